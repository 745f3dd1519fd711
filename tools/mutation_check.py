"""Does the suite notice a broken broker? Each mutant breaks one thing on purpose, and the tests of the statements it breaks must fail.

A mutant is an edit of one source file (exact text, which must occur once) and the statements it violates. It is applied in build/mutation,
a copy of the tree; only its module is built again; then the tests of tests/conformance that name one of those statements in a `spec` mark
run. A statement is noticed when at least one of its tests fails (or the process dies or hangs: the broker runs inside it). Before all that,
the same tests must pass on the unbroken copy.

    python tools/mutation_check.py [--only TEXT] [--write]

prints a Markdown table and ends with 1 if a statement's violation was noticed by no test of its own. `--only` takes the mutants whose area,
statements or file contain TEXT; `--write` also puts the table into docs/testing.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dev
import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "testing.md"
MARKS = ("<!-- mutation table -->", "<!-- end of mutation table -->")
KEPT = "mutation.kept"  # in the copy, while a mutant is tried: what stood there before
TIMEOUT_S = 240
ENOUGH = 5  # failing tests after which only tests of statements not noticed yet are run

Statement = tuple[str, str]


@dataclass(frozen=True)
class Mutant:
    """One way to break the broker. `statements` are written "version:id", with the id's "MQTT-" left out."""

    area: str
    breaks: str
    file: str
    old: str
    new: str
    statements: str

    def names(self) -> list[Statement]:
        return [(version, "MQTT-" + number) for version, number in (word.split(":") for word in self.statements.split())]


DECODE, WIRE, TOPIC = "mqttc/proto/decode.pyx", "mqttc/proto/wire.pyx", "mqttc/proto/topic.pyx"
CONN, REPLY, ON_CONNECT = "mqttc/broker/conn.pyx", "mqttc/broker/reply.pyx", "mqttc/broker/on_connect.pyx"
ON_PUBLISH, ON_SUBSCRIBE, DELIVER = "mqttc/broker/on_publish.pyx", "mqttc/broker/on_subscribe.pyx", "mqttc/broker/deliver.pyx"
PUMP, SEND, SHARED = "mqttc/broker/pump.pyx", "mqttc/broker/send.pyx", "mqttc/broker/shared.pyx"
SESSION, PRESENCE, RETAIN = "mqttc/broker/session.pyx", "mqttc/broker/presence.pyx", "mqttc/broker/retain.pyx"
TRIE, ROUTES = "mqttc/broker/trie.pyx", "mqttc/broker/routes.pyx"

# By file, so that neighbours build the same module.
MUTANTS = (
    Mutant(
        "UTF-8", "surrogates pass as characters", WIRE,
        "if code < least or code > 0x10FFFF or (0xD800 <= code <= 0xDFFF):",
        "if code < least or code > 0x10FFFF:",
        "5:1.5.4-1 3.1.1:1.5.3-1",
    ),
    Mutant(
        "UTF-8", "U+0000 passes as a character", WIRE,
        "            if unlikely(byte == 0):\n                return TEXT_BAD\n            if unlikely(byte == c'+'",
        "            if unlikely(byte == c'+'",
        "5:1.5.4-2 3.1.1:1.5.3-2",
    ),
    Mutant(
        "framing", "a Remaining Length in more bytes than needed is read", DECODE,
        "if unlikely(byte == 0):     # more bytes than needed [MQTT-1.5.5-1]",
        "if False:",
        "5:1.5.5-1",
    ),
    Mutant(
        "reserved bits", "the fixed header's flags are not looked at", DECODE,
        "if dialect.strict_flags and frame.flags != (FLAGS_FIXED if kind == SUBSCRIBE or kind == UNSUBSCRIBE else 0):",
        "if False:",
        "5:2.1.3-1 5:3.8.1-1 5:3.10.1-1 5:3.14.1-1 3.1.1:2.2.2-2 3.1.1:3.8.1-1 3.1.1:3.10.1-1 3.1.1:3.14.1-1",
    ),
    Mutant(
        "reserved bits", "bit 0 of the Connect Flags is not looked at", DECODE,
        "if dialect.strict_flags and (frame.flags != 0 or flags & CONNECT_RESERVED):",
        "if dialect.strict_flags and frame.flags != 0:",
        "5:3.1.2-3 3.1.1:3.1.2-3",
    ),
    Mutant(
        "packet identifiers", "PUBLISH with Packet Identifier 0 is accepted", DECODE,
        "        if unlikely(packet.packet_id == 0):\n            return -RC_PROTOCOL_ERROR       # [MQTT-2.2.1-3]",
        "        if False:\n            return -RC_PROTOCOL_ERROR       # [MQTT-2.2.1-3]",
        "5:2.2.1-3 3.1.1:2.3.1-1",
    ),
    Mutant(
        "topics", "a Topic Name with wildcards is accepted", DECODE,
        "if unlikely(text):                      # [MQTT-3.3.2-1, MQTT-3.3.2-2]",
        "if unlikely(text & TEXT_BAD):",
        "5:3.3.2-2 5:4.7.0-1 3.1.1:3.3.2-2 3.1.1:4.7.1-1",
    ),
    Mutant(
        "shared subscriptions", "a ShareName with wildcards is accepted", TOPIC,
        "    if text_flags(group.p, group.n) & TEXT_WILDCARD:\n        return -1\n",
        "",
        "5:4.8.2-2",
    ),
    Mutant(
        "CONNECT", "a second CONNECT is passed over", CONN,
        "    else:                                                                       # a server's packet, or a second CONNECT",
        "    elif frame.type != CONNECT:                                                 # a server's packet, or a second CONNECT",
        "5:3.1.0-2 3.1.1:3.1.0-2",
    ),
    Mutant(
        "ping", "PINGREQ is not answered", CONN,
        "        send_packet(worker, conn, &packet)\n    elif frame.type == DISCONNECT:",
        "    elif frame.type == DISCONNECT:",
        "5:3.12.4-1 3.1.1:3.12.4-1",
    ),
    Mutant(
        "wills", "the will goes out although DISCONNECT came", CONN,
        "conn.keep_will = packet.reason != RC_SUCCESS",
        "conn.keep_will = True",
        "5:3.14.4-3 5:3.1.2-10 3.1.1:3.14.4-3 3.1.1:3.1.2-10",
    ),
    Mutant(
        "CONNECT", "a refused connection stays open", REPLY,
        "    report(worker, LOG_WARNING, EV_REFUSED, reason, conn, NULL, detail)\n"
        "    link_close(worker.reactor, &conn.link, END_REFUSED)",
        "    report(worker, LOG_WARNING, EV_REFUSED, reason, conn, NULL, detail)",
        "5:3.2.2-7 3.1.1:3.2.2-5",
    ),
    Mutant(
        "CONNECT", "an empty client id is accepted with CleanSession 0", ON_CONNECT,
        "if not conn.dialect.empty_client_id or (conn.dialect.empty_client_id_needs_clean and not packet.clean_start):",
        "if not conn.dialect.empty_client_id:",
        "3.1.1:3.1.3-8",
    ),
    Mutant(
        "CONNECT", "the assigned client id is not told", ON_CONNECT,
        "if packet.client_id.n == 0:                             # [MQTT-3.2.2-16]",
        "if False:",
        "5:3.2.2-16 5:3.1.3-7",
    ),
    Mutant(
        "sessions", "Session Present is always 0", ON_CONNECT,
        "connack.session_present = present ",
        "connack.session_present = False ",
        "5:3.2.2-3 3.1.1:3.2.2-2",
    ),
    Mutant(
        "sessions", "a clean start keeps the old session", ON_CONNECT,
        "    elif session != NULL and packet.clean_start:\n        session_finish(worker, session)\n        session = NULL\n",
        "",
        "5:3.1.2-4 5:3.2.2-2 3.1.1:3.1.2-6 3.1.1:3.2.2-1",
    ),
    Mutant(
        "sessions", "a session is kept twice as long as agreed", ON_CONNECT,
        "session.expiry_s = packet.props.session_expiry\n",
        "session.expiry_s = packet.props.session_expiry * 2\n",
        "5:4.1.0-2",
    ),
    Mutant(
        "take-over", "the loser keeps its connection", ON_CONNECT,
        "conn_disconnect(worker, loser, RC_SESSION_TAKEN_OVER)",
        "loser.phase = 4     # CONN_DONE: whatever it sends is passed over",
        "5:3.1.4-3 3.1.1:3.1.4-2",
    ),
    Mutant(
        "keep alive", "a silent client may stay three times its Keep Alive", ON_CONNECT,
        "conn.keep_alive_ms = seconds * 1500",
        "conn.keep_alive_ms = seconds * 3000",
        "5:3.1.2-22 3.1.1:3.1.2-24",
    ),
    Mutant(
        "wills", "Will Retain is lost", ON_CONNECT,
        "will.msg.retain = packet.will_retain",
        "will.msg.retain = 0",
        "5:3.1.2-15 3.1.1:3.1.2-17",
    ),
    Mutant(
        "capabilities", "Maximum QoS is not told", ON_CONNECT,
        "if conn.maximum_qos < 2:",
        "if False:",
        "5:3.2.2-9",
    ),
    Mutant(
        "topic aliases", "the client's Topic Alias Maximum is not looked at", ON_CONNECT,
        "    if maximum < capacity:\n        capacity = maximum\n",
        "",
        "5:3.1.2-26 5:3.1.2-27 5:3.3.2-11",
    ),
    Mutant(
        "authentication", "AUTH does not name its method", ON_CONNECT,
        "packet.props.present = HAS_AUTH_METHOD                      # [MQTT-4.12.0-5]",
        "packet.props.present = 0",
        "5:4.12.0-5",
    ),
    Mutant(
        "sessions", "every session ends with its connection", PRESENCE,
        "    if session.expiry_s == 0:\n        ending = True",
        "    ending = True",
        "5:3.1.2-23 5:3.1.2-5 3.1.1:3.1.2-4 3.1.1:4.1.0-1",
    ),
    Mutant(
        "wills", "a delayed will goes out when its client comes back", PRESENCE,
        "    if session.will != NULL:            # the client is back before the delay's end [MQTT-3.1.3-9]\n"
        "        will_free(worker, session.will)\n        session.will = NULL",
        "    will_publish(worker, session)",
        "5:3.1.3-9",
    ),
    Mutant(
        "QoS 2", "a repeated PUBLISH is published again", ON_PUBLISH,
        "if inbound_has(conn.session, packet.packet_id):         # repeated",
        "if False:                                               # repeated",
        "5:4.3.3-10 3.1.1:4.3.3-2",
    ),
    Mutant(
        "QoS 1", "a refused PUBLISH stays unacknowledged", ON_PUBLISH,
        "            stat(&worker.stats, C_REJECTED_BY_CLIENT)\n        inflight_done(worker, session, entry)\n    elif",
        "            return\n        inflight_done(worker, session, entry)\n    elif",
        "5:4.4.0-2",
    ),
    Mutant(
        "flow control", "the client may exceed our Receive Maximum", ON_PUBLISH,
        "return -RC_RECEIVE_MAXIMUM_EXCEEDED",
        "return ST_OK",
        "5:3.3.4-7",
    ),
    Mutant(
        "topic aliases", "the highest alias we allow is refused", ON_PUBLISH,
        "packet.props.topic_alias > maximum:",
        "packet.props.topic_alias >= maximum:",
        "5:3.3.2-12",
    ),
    Mutant(
        "properties", "properties are lost on the way", ON_PUBLISH,
        "pub.properties = packet.props.raw if conn.dialect.properties else span_make(NULL, 0)",
        "pub.properties = span_make(NULL, 0)",
        "5:3.3.2-4 5:3.3.2-15 5:3.3.2-16 5:3.3.2-17 5:3.3.2-18 5:3.3.2-20",
    ),
    Mutant(
        "subscriptions", "SUBACK's codes stand in reverse order", ON_SUBSCRIBE,
        "codes[i] = subscribe_one(worker, conn, &filter, id)",
        "codes[count - 1 - i] = subscribe_one(worker, conn, &filter, id)",
        "5:3.9.3-1 3.1.1:3.9.3-1",
    ),
    Mutant(
        "subscriptions", "UNSUBSCRIBE leaves the filter in the tree", ON_SUBSCRIBE,
        "        trie_unsubscribe(worker.engine.trie, filter, session_handle(worker, session))\n        handout_drop",
        "        handout_drop",
        "5:3.10.4-2 3.1.1:3.10.4-2",
    ),
    Mutant(
        "shared subscriptions", "No Local on a shared subscription is accepted", ON_SUBSCRIBE,
        "if filter.options & OPT_NO_LOCAL and share_split(filter.text, &group, &plain) != 0:",
        "if False:",
        "5:3.8.3-4",
    ),
    Mutant(
        "retained messages", "Retain Handling 2 hands retained messages out", ON_SUBSCRIBE,
        "(options & OPT_RETAIN_HANDLING_MASK == 0x10 and fresh))",
        "(options & OPT_RETAIN_HANDLING_MASK != 0 and fresh))",
        "5:3.3.1-11",
    ),
    Mutant(
        "retained messages", "an empty payload removes nothing", RETAIN,
        "        return retain_clear(store, pool, topic)\n    stripe = stripe_of",
        "        return ST_OK\n    stripe = stripe_of",
        "5:3.3.1-6 3.1.1:3.3.1-10",
    ),
    Mutant(
        "retained messages", "an empty payload is stored", RETAIN,
        "    if msg.payload_bytes == 0:\n        return retain_clear(store, pool, topic)\n    stripe = stripe_of",
        "    stripe = stripe_of",
        "5:3.3.1-7 3.1.1:3.3.1-11",
    ),
    Mutant(
        "topics", "wildcards at the start match $ topics", TRIE,
        "cdef bint dollar = topic.n > 0 and topic.p[0] == c'$'",
        "cdef bint dollar = False",
        "5:4.7.2-1 3.1.1:4.7.2-1",
    ),
    Mutant(
        "subscriptions", "No Local has no effect", ROUTES,
        "return (match.options & OPT_NO_LOCAL) != 0",
        "return False",
        "5:3.8.3-3",
    ),
    Mutant(
        "subscriptions", "of overlapping filters the first one's QoS holds", ROUTES,
        "if (match.options & OPT_QOS_MASK) > entry.qos:",
        "if i == merged.first:",
        "5:3.3.4-2 3.1.1:3.3.5-1",
    ),
    Mutant(
        "packet identifiers", "an identifier that is in use is given again", SESSION,
        "while inflight_find(session, session.next_packet_id) != NULL:",
        "while False:",
        "5:2.2.1-4 3.1.1:2.3.1-4",
    ),
    Mutant(
        "flow control", "the client's Receive Maximum is not looked at", SESSION,
        "    if session.window_used >= session.receive_maximum or session.inflight.count >= INFLIGHT_LIMIT:\n        return 0\n"
        "    return session.receive_maximum - session.window_used",
        "    return 65535",
        "5:3.3.4-9 5:4.9.0-2",
    ),
    Mutant(
        "ordering", "what is queued overtakes what was queued before it", SESSION,
        "    place[0] = entry[0]\n    if session.queue.count == 1:",
        "    place[0] = entry[0]\n    if session.queue.count > 1:\n"
        "        place[0] = (<QueueEntry *> ring_at(&session.queue, session.queue.count - 2))[0]\n"
        "        (<QueueEntry *> ring_at(&session.queue, session.queue.count - 2))[0] = entry[0]\n"
        "    if session.queue.count == 1:",
        "5:4.6.0-5 5:4.6.0-6 3.1.1:4.6.0-5 3.1.1:4.6.0-6",
    ),
    Mutant(
        "shared subscriptions", "a QoS 2 message that was sent goes to another member", SESSION,
        "if entry.member == 0 or entry.qos != 1 or entry.state & 15 != OUT_SENT:",
        "if entry.member == 0 or entry.state & 15 != OUT_SENT:",
        "5:4.8.2-4 5:4.8.2-5",
    ),
    Mutant(
        "sessions", "nothing is queued for who is off line", DELIVER,
        "elif conn == NULL and qos == 0 and not worker.engine.settings.queue_qos0_offline:",
        "elif conn == NULL:",
        "5:4.5.0-1 3.1.1:4.5.0-1 3.1.1:3.1.2-5",
    ),
    Mutant(
        "QoS 2", "PUBREL is not sent again on resume", PUMP,
        "        answer(worker, conn, PUBREL, entry.packet_id, RC_SUCCESS, until_now(worker) if entry.state & (QE_JOURNALED << 4) else 0)\n"
        "        session.resend += 1",
        "        session.resend += 1",
        "5:4.4.0-1 5:4.3.3-5 3.1.1:4.4.0-1",
    ),
    Mutant(
        "QoS 1", "a repeated PUBLISH has DUP 0", PUMP,
        "parts.dup = 1                   # [MQTT-3.3.1-1]",
        "parts.dup = 0",
        "5:3.3.1-1 3.1.1:3.3.1-1",
    ),
    Mutant(
        "subscriptions", "messages come with their own QoS, whatever was granted", DELIVER,
        "qos = route_entry.qos if route_entry.qos < pub.qos else pub.qos",
        "qos = pub.qos",
        "5:3.8.4-8 3.1.1:3.8.4-6",
    ),
    Mutant(
        "subscriptions", "only one Subscription Identifier is sent", SEND,
        "parts.subscription_id_count = entry.subscription_ids.count",
        "parts.subscription_id_count = 1",
        "5:3.3.4-3 5:3.3.4-4",
    ),
    Mutant(
        "retained messages", "RETAIN is passed on to living subscriptions", DELIVER,
        "        retain = 0\n        if route_entry.flags:",
        "        retain = pub.retain\n        if route_entry.flags:",
        "5:3.3.1-12 3.1.1:3.3.1-9",
    ),
    Mutant(
        "shared subscriptions", "a member gets more than its QoS", SHARED,
        "entry.qos = mail.qos if mail.qos < mail.msg.qos else mail.msg.qos",
        "entry.qos = mail.msg.qos",
        "5:4.8.2-3",
    ),
    Mutant(
        "message expiry", "queued messages do not expire", PUMP,
        "if entry.msg.expires_at_ms and entry.msg.expires_at_ms <= worker.reactor.now_ms:    # [MQTT-3.3.2-5]",
        "if False:",
        "5:3.3.2-5",
    ),
    Mutant(
        "message expiry", "ten seconds too many are left", SEND,
        "        left_ms = msg.expires_at_ms - worker.reactor.now_ms\n        parts.has_message_expiry",
        "        left_ms = msg.expires_at_ms - worker.reactor.now_ms + 10000\n        parts.has_message_expiry",
        "5:3.3.2-6",
    ),
    Mutant(
        "packet size", "the client's Maximum Packet Size is not looked at", SEND,
        "return conn.maximum_packet_size == 0 or publish_size(conn.dialect, parts) <= conn.maximum_packet_size",
        "return True",
        "5:3.1.2-24 5:3.1.2-25",
    ),
)


# ---- inside pytest: keeps the tests of the statements in question, writes down how each went


def named_statements(item: Any) -> set[str]:
    """The statements ("version:id") that a test checks; one run for several versions checks each standard in its own version."""
    callspec = getattr(item, "callspec", None)
    level = callspec.params.get("version") if callspec is not None else None
    marks = [mark.args for mark in item.iter_markers("spec")]
    return {f"{version}:{name}" for version, *names in marks if level is None or (version == "5") == (level == 5) for name in names}


def write_down(**entry: Any) -> None:
    with open(os.environ["MQTTC_MUTATION_RESULTS"], "a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


checks: dict[str, set[str]] = {}  # test to the statements in question that it names
failed: list[str] = []


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    wanted = set(os.environ["MQTTC_MUTATION_STATEMENTS"].split())
    kept = [item for item in items if named_statements(item) & wanted]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept
    for item in kept:
        checks[item.nodeid] = named_statements(item) & wanted
        write_down(test=item.nodeid, statements=sorted(checks[item.nodeid]))


def pytest_runtest_setup(item: Any) -> None:
    if len(failed) >= ENOUGH and checks[item.nodeid] <= set().union(*(checks[test] for test in failed)):
        pytest.skip("enough has failed")


def pytest_runtest_logstart(nodeid: str) -> None:
    write_down(test=nodeid, outcome="died")  # unless the next line says otherwise


def pytest_runtest_logreport(report: Any) -> None:
    if report.when == "call" or report.outcome != "passed":
        write_down(test=report.nodeid, outcome=report.outcome if report.when == "call" or report.skipped else report.when)
    if report.when == "call" and report.failed:
        failed.append(report.nodeid)


# ---- outside


@dataclass
class Outcome:
    statements: dict[str, set[str]]  # test to the statements in question that it names
    results: dict[str, str]  # test to passed, failed, skipped, setup, teardown or died
    ended: str  # how the process went: "", "died" or "hung"

    def noticed(self) -> list[str]:
        """The tests that failed, in their order; one in which the process died or hung counts."""
        return [test for test, outcome in self.results.items() if outcome == "failed" or (outcome == "died" and self.ended)]

    def unnoticed(self, wanted: set[str]) -> set[str]:
        return wanted - {statement for test in self.noticed() for statement in self.statements[test]}


def run_tests(tree: Path, statements: set[str]) -> Outcome:
    found = tree / "mutation.jsonl"
    found.unlink(missing_ok=True)
    environment = {
        **os.environ,
        "PYTHONPATH": f"{tree}{os.pathsep}{ROOT / 'tools'}",
        "MQTTC_MUTATION_STATEMENTS": " ".join(sorted(statements)),
        "MQTTC_MUTATION_RESULTS": str(found),
        "MQTTC_TEST_TIMEOUT": "2",
    }
    command = [sys.executable, "-m", "pytest", "-q", "--tb=no", "-p", "no:cacheprovider", "-p", "mutation_check", "tests/conformance"]
    with open(tree / "mutation.log", "wb") as log:
        process = subprocess.Popen(command, cwd=tree, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            code = process.wait(TIMEOUT_S)
            ended = "died" if code < 0 else ""
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            ended = "hung"
    outcome = Outcome({}, {}, ended)
    for line in found.read_text("utf-8").splitlines() if found.is_file() else []:
        entry = json.loads(line)
        if "statements" in entry:
            outcome.statements[entry["test"]] = set(entry["statements"])
        else:
            outcome.results[entry["test"]] = entry["outcome"]
    return outcome


def build(tree: Path, only: str) -> int:
    environment = {**os.environ, "MQTTC_ONLY": only, "PYTHONWARNINGS": "ignore"}
    with open(tree / "mutation.log", "wb") as log:
        command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        return subprocess.run(command, cwd=tree, env=environment, stdout=log, stderr=log, check=False).returncode


def built_files(tree: Path, source: str) -> list[Path]:
    """The source and what is made of it."""
    path = Path(source)
    modules = [*tree.glob(f"{path.parent}/{path.stem}.*.so"), *tree.glob(f"build/lib*/{path.parent}/{path.stem}.*.so")]
    return [tree / path, tree / "build" / "c" / path.with_suffix(".c"), *sorted(modules)]


def try_mutant(tree: Path, mutant: Mutant) -> tuple[Outcome | None, str]:
    """What the tests say about it; None with a reason if it could not be tried."""
    source = tree / mutant.file
    text = source.read_text("utf-8")
    if text.count(mutant.old) != 1:
        return None, f"the text to replace occurs {text.count(mutant.old)} times in {mutant.file}"
    kept = tree / KEPT
    kept.mkdir()
    (kept / "source").write_text(mutant.file, "utf-8")
    files = built_files(tree, mutant.file)
    for number, path in enumerate(files):
        shutil.copy2(path, kept / str(number))
    try:
        source.write_text(text.replace(mutant.old, mutant.new), "utf-8")
        if build(tree, mutant.file.removesuffix(".pyx").replace("/", ".")):
            return None, "does not build:\n" + (tree / "mutation.log").read_text("utf-8", "replace")[-2000:]
        return run_tests(tree, {":".join(name) for name in mutant.names()}), ""
    finally:
        for number, path in enumerate(files):
            path.unlink(missing_ok=True)  # a new file, not the one that a process may still have mapped
            shutil.copy2(kept / str(number), path)
        shutil.rmtree(kept)


def forget_interrupted(tree: Path) -> None:
    """A run that was killed left a broken module, newer than its source: it is removed, so that it is built again."""
    kept = tree / KEPT
    if kept.is_dir():
        if (kept / "source").is_file():
            for path in built_files(tree, (kept / "source").read_text("utf-8")):
                path.unlink(missing_ok=True)
        shutil.rmtree(kept)


def short(test: str) -> str:
    return test.removeprefix("tests/conformance/").replace("|", "\\|")


def row(mutant: Mutant, outcome: Outcome) -> str:
    noticed = outcome.noticed()
    names: dict[str, list[str]] = {}
    for version, name in mutant.names():
        names.setdefault(version, []).append(name.removeprefix("MQTT-"))
    statements = "; ".join(f"{version}: {', '.join(ids)}" for version, ids in names.items())
    if noticed:
        many = f"{len(noticed)}{' or more' if len(noticed) >= ENOUGH else ''}: "
        by = f"{many}`{short(noticed[0])}`" + (f" (the process {outcome.ended})" if outcome.ended else "")
    else:
        by = "**nothing**"
    return f"| {mutant.area} | {statements} | {mutant.breaks} | {by} |"


def main() -> int:
    parser = argparse.ArgumentParser(prog="mutation_check.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="TEXT", help="mutants whose area, statements or file contain it")
    parser.add_argument("--write", action="store_true", help="put the table into docs/testing.md")
    options = parser.parse_args()
    chosen = [m for m in MUTANTS if any(options.only in part for part in (m.area, m.statements, m.file))]
    if not chosen:
        parser.error("no such mutant")
    forget_interrupted(dev.BUILD / "mutation")
    tree = dev.copy_tree("mutation")
    if build(tree, "mqttc"):
        print((tree / "mutation.log").read_text("utf-8", "replace"))
        return 1
    wanted = {":".join(name) for mutant in chosen for name in mutant.names()}
    healthy = run_tests(tree, wanted)
    untested = wanted - {s for test, names in healthy.statements.items() if healthy.results.get(test) == "passed" for s in names}
    if healthy.ended or any(result not in ("passed", "skipped") for result in healthy.results.values()) or untested:
        print(f"the unbroken copy does not pass (tests missing for: {' '.join(sorted(untested)) or 'none'})")
        print((tree / "mutation.log").read_text("utf-8", "replace"))
        return 1
    print(f"{len(chosen)} mutants; {len(healthy.results)} tests name their {len(wanted)} statements and pass unbroken", flush=True)
    rows, faults = [], []
    for mutant in chosen:
        outcome, fault = try_mutant(tree, mutant)
        if outcome is None:
            faults.append(f"{mutant.statements} ({mutant.breaks}): {fault}")
            print(f"FAULT: {faults[-1]}", flush=True)
            continue
        rows.append(row(mutant, outcome))
        print(rows[-1], flush=True)
        left = outcome.unnoticed({":".join(name) for name in mutant.names()})
        if left:
            faults.append(f"{mutant.breaks}: no test of {' '.join(sorted(left))} notices")
    table = "\n".join(["| area | statements | what was broken | noticed by |", "|---|---|---|---|", *sorted(rows)])
    print("\n" + table)
    if options.write and not faults:
        before, rest = PAGE.read_text("utf-8").split(MARKS[0])
        PAGE.write_text(f"{before}{MARKS[0]}\n{table}\n{MARKS[1]}{rest.split(MARKS[1])[1]}", "utf-8")
    for fault in faults:
        print(f"SURVIVES: {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
