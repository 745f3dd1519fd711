"""New rules while clients are connected: whole, without a gap, and back."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from mqttc.config import ConfigError
from mqttc.server import Broker

from ..rawclient import PUBACK, PUBLISH, Peer, PeerTimeout, publish_packet
from .conftest import Guarded, MakeGuarded

OPEN = '[[rules]]\nallow = "all"\ntopics = ["#"]\n'
WRITERS = '[[rules]]\nallow = "all"\ntopics = ["#"]\nclients = ["w*"]\n'


def reason_of(peer: Peer, topic: str, qos: int = 1) -> int:
    got = peer.publish(topic, b"", qos)
    assert got is not None
    return got.reason


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_what_is_cached_dies(guarded: MakeGuarded, workers: int) -> None:
    """Verdicts kept for a connection, its aliases, routes and subscriptions go with the old table; given back, they are there again."""
    here = guarded(OPEN, workers=workers)
    reader, writer, other = here.client("r"), here.client("w"), here.client("x")
    reader.subscribe("t/#", 1)
    for _ in range(2):
        for topic in ("t/1", "t/2"):
            assert [reason_of(peer, topic) for peer in (writer, other)] == [0, 0]
    reader.messages(8)
    here.rewrite(WRITERS)
    for topic in ("t/1", "t/2"):
        assert [reason_of(peer, topic) for peer in (writer, other)] == [0, 0x87]
    reader.ping()
    assert not reader.aside, "no longer allowed to receive"
    assert here.stat("subscriptions") == 1
    here.rewrite(OPEN)
    assert reason_of(other, "t/1") == 0
    assert reader.message().topic == "t/1"


def test_under_load_without_a_gap(guarded: MakeGuarded) -> None:
    """Tables come and go while publishers publish: what both allow is never refused and arrives once; what both deny never arrives."""
    wide = '[[rules]]\nallow = ["subscribe"]\ntopics = ["#"]\nclients = ["reader"]\n'
    always = '[[rules]]\nallow = "all"\ntopics = ["always/#"]\n'
    many = "".join(f'[[rules]]\nallow = "all"\ntopics = ["n/{i}"]\n' for i in range(300))
    tables = [always + wide, always + many + wide]
    here = guarded(tables[0])
    reader = here.client("reader")
    reader.subscribe("#", 0)
    ended = threading.Event()
    failures: list[str] = []
    sent = [0, 0, 0]

    def publish(place: int) -> None:
        peer = here.client(f"p{place}", version=5)
        while not ended.is_set():
            batch = b"".join(
                publish_packet(t, b"%d" % place, 5, qos=1, packet_id=i + 1) for i, t in enumerate((f"always/{place}", "never", "n/7") * 8)
            )
            peer.send(batch)
            for i in range(24):
                got = peer.expect(PUBACK)
                if got.reason != 0 and got.packet_id % 3 == 1:
                    failures.append(f"refused {got}")
                if got.reason != 0x87 and got.packet_id % 3 == 2:
                    failures.append(f"taken {got}")
                assert got.packet_id == i + 1
            sent[place] += 8

    threads = [threading.Thread(target=publish, args=(place,)) for place in range(3)]
    received = [0, 0, 0]

    def read() -> None:
        while not (ended.is_set() and received == sent and not any(thread.is_alive() for thread in threads)):
            try:
                got = reader.recv(timeout=0.2)
            except PeerTimeout:
                if ended.is_set() and not any(thread.is_alive() for thread in threads):
                    return
                continue
            assert got.type == PUBLISH
            topic = reader.aliases.setdefault(got.prop(0x23), got.topic) if got.prop(0x23) else got.topic
            if topic.startswith("always/"):
                received[int(got.payload)] += 1
            elif topic != "n/7":
                failures.append(f"delivered {topic}")

    reading = threading.Thread(target=read)
    for thread in (*threads, reading):
        thread.start()
    for turn in range(40):
        here.rewrite(tables[turn % 2])
    ended.set()
    for thread in (*threads, reading):
        thread.join(30)
        assert not thread.is_alive()
    assert failures == []
    assert received == sent
    assert all(sent)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[[rules]]\nallow = 'all'\n", "topics"),
        ("[[rules]\n", "acl.toml:1"),
        ('[[rules]]\nallow = "all"\ntopics = ["a/#/b"]\n', "acl.toml:3"),
        ('[[rules]]\nallow = "all"\ntopics = ["a"]\nlisteners = ["nowhere"]\n', "acl.toml:4"),
    ],
)
def test_an_invalid_file_changes_nothing(guarded: MakeGuarded, text: str, problem: str) -> None:
    here = guarded(WRITERS)
    writer, other = here.client("w"), here.client("x")
    here.file.write_text(text)
    with pytest.raises(ConfigError, match=problem):
        here.broker.reload({**here.config, "log": {"level": "error"}})
    assert [reason_of(peer, "t") for peer in (writer, other)] == [0x10, 0x87]
    assert here.broker.config.log.level == "info"
    here.file.write_text(OPEN)
    here.broker.reload(here.config)
    assert reason_of(other, "t") == 0x10


def test_start_with_an_invalid_file(tmp_path: Path) -> None:
    file = tmp_path / "acl.toml"
    for text in (None, "rules = 1\n"):
        if text is not None:
            file.write_text(text)
        broker = Broker({"listeners": [{"url": "tcp://127.0.0.1:0"}], "auth": {"acl_file": str(file)}})
        with pytest.raises(ConfigError, match=r"acl\.toml"):
            broker.start()
        assert not broker.running


def test_the_file_is_watched(guarded: MakeGuarded, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written over, or another file put in its place: in force without a signal. An invalid one is told of once, and the old one stays."""
    monkeypatch.setattr("mqttc.control._WATCH_S", 0.01)
    here = guarded(WRITERS)
    other = here.client("x")
    rules = here.broker._running.rules  # type: ignore[union-attr]
    assert rules is not None
    loaded = threading.Semaphore(0)
    refused = threading.Semaphore(0)
    plain = rules.check

    def check() -> bool:
        try:
            changed = plain()
        except ConfigError:
            refused.release()
            raise
        if changed:
            loaded.release()
        return changed

    monkeypatch.setattr(rules, "check", check)
    assert reason_of(other, "t") == 0x87
    replacement = here.file.with_suffix(".new")
    replacement.write_text(OPEN)
    os.replace(replacement, here.file)
    assert loaded.acquire(timeout=10)
    assert reason_of(other, "t") == 0x10
    here.file.write_text("nonsense = 1\n")
    assert refused.acquire(timeout=10)
    assert not refused.acquire(timeout=0.1)
    assert reason_of(other, "t") == 0x10
    here.file.unlink()
    assert not refused.acquire(timeout=0.1)
    here.file.write_text(WRITERS)
    assert loaded.acquire(timeout=10)
    assert reason_of(other, "t") == 0x87


def test_whether_there_are_rules_needs_a_restart(guarded: MakeGuarded) -> None:
    here = guarded(OPEN)
    auth = {key: value for key, value in here.config["auth"].items() if key != "acl_file"}
    assert here.broker.reload({**here.config, "auth": auth}).needs_restart == ("auth.acl_file",)
    second = here.file.with_name("second.toml")
    second.write_text(WRITERS)
    other = here.client("x")
    assert here.broker.reload({**here.config, "auth": {**auth, "acl_file": str(second)}}).applied == ("auth.acl_file",)
    assert reason_of(other, "t") == 0x87


def test_rules_for_a_broker_without_need_a_restart(guarded: MakeGuarded, tmp_path: Path) -> None:
    here = guarded(None)
    file = tmp_path / "late.toml"
    file.write_text(WRITERS)
    answer = here.broker.reload({**here.config, "auth": {**here.config["auth"], "acl_file": str(file)}})
    assert answer.needs_restart == ("auth.acl_file",)
    assert reason_of(here.client("x"), "t") == 0x10


def group_rules(denied: bool) -> str:
    first = '[[rules]]\ndeny = "all"\ntopics = ["g/secret"]\nclients = ["m1"]\n' if denied else ""
    return first + OPEN


def test_members_of_shared_groups_that_are_not_allowed_leave(guarded: MakeGuarded) -> None:
    """And what the group has goes to the others."""
    here = guarded(group_rules(False))
    members = [here.client(name) for name in ("m1", "m2")]
    for member in members:
        member.subscribe("$share/g/g/#", 1)
    here.rewrite(group_rules(True))
    assert here.stat("subscriptions") == 1
    root = here.client("root")
    for i in range(6):
        root.publish("g/secret" if i % 2 else "g/x", b"", 1)
    assert [m.topic for m in members[1].messages(6)] == ["g/x", "g/secret"] * 3
    members[0].ping()
    assert not members[0].aside


def test_what_is_queued_is_looked_at_again(guarded: MakeGuarded) -> None:
    here: Guarded = guarded(OPEN)
    reader = here.client("r", expiry=600)
    reader.subscribe("t/#", 1)
    reader.disconnect()
    writer = here.client("w")
    for i in range(3):
        writer.publish(f"t/{i}", b"", 1)
    here.await_stat("messages_queued", 3)
    here.rewrite('[[rules]]\ndeny = "all"\ntopics = ["t/1"]\nclients = ["r"]\n' + OPEN)
    again = here.peer()
    assert again.connect("r", clean=False).session_present
    assert [m.topic for m in again.messages(2)] == ["t/0", "t/2"]
    assert here.stat("denied_receive") == 1
