"""About 600 lines a file and 60 a function are the point to ask whether it is one thing (docs/design.md, section 3).

What is longer has its answer here. An answer that is no longer needed is an error, so that the lists stay true.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("Cython")

from cython_tree import parse, sources, walk

ROOT = Path(__file__).resolve().parent.parent.parent
FILE_LINES = 600
FUNCTION_LINES = 60

LONG_FILES = {
    "mqttc/broker/retain.pyx": "one noun: a topic tree, its cursor and its sweep share the node's layout and the stripe's lock",
    "mqttc/broker/state.pxd": "the structs that a broker is made of, on one page",
    "mqttc/broker/trie.pyx": "one noun: insertion, removal and matching of one tree under one lock",
    "mqttc/broker/session.pyx": "one noun: a session's whole life, and its window, queue and packet ids",
    "mqttc/broker/recover.pyx": "one reading of the file, table by table, into the structures of every room",
    "mqttc/broker/rows.pyx": "one transaction: each kind of record with the statements that it becomes, over one set of prepared ones",
    "mqttc/broker/on_connect.pyx": "one verb: from the first packet over questions and answers to CONNACK, on two workers",
    "mqttc/broker/worker.pyx": "one thread's turn: mail, timers, what it waits for; the engine starts and stops all of them",
    "mqttc/loadgen/actor.pyx": "one state machine per generated client, and the crew of threads that drives it",
    "mqttc/codec.pyx": "one class per packet type, each with its construction, fields and representation, and the same for many at once",
    "mqttc/adapters/http2.py": "one HTTP/2 connection: its streams share its windows, its budget and its state machine",
    "mqttc/native.pyx": "the border of one engine: its settings, listeners, questions and answers, and nothing else",
    "mqttc/config.py": "the models and the three sources, which need the models to say where an error stands",
    "mqttc/net/tls.pyx": "a listener's context, what handshakes ask of it, and connections of both sides, which share it",
    "mqttc/net/ws.pyx": "one connection's frames: reading, sending and closing share the frame and the words that are under way",
    "mqttc/net/reactor.pyx": "one turn: registration, events, timers, brakes and flush of one loop over the same connection state",
}
LONG_FUNCTIONS = {
    "mqttc/broker/deliver.pyx": "one decision per step of a delivery, in the order of the standard",
    "mqttc/broker/on_publish.pyx": "the life of a PUBLISH from top to bottom, as docs/design.md tells it",
    "mqttc/broker/trie.pyx": "one loop over the levels of a topic with its stack",
    "mqttc/native.pyx": "one assignment per field of the configuration",
    "mqttc/proto/props.pyx": "one case per type of property",
}


def line_count(path: Path) -> int:
    return len(path.read_text("utf-8").splitlines())


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Place and length of each function."""
    where = path.relative_to(ROOT).as_posix()
    lines = path.read_text("utf-8").splitlines()
    if path.suffix == ".py":
        for node in ast.walk(ast.parse("\n".join(lines))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{where}:{node.lineno}", (node.end_lineno or node.lineno) - node.lineno + 1
        return
    for node in walk(parse(ROOT, path), into_extern=False):
        if type(node).__name__ in ("CFuncDefNode", "DefNode"):
            first = node.pos[1]
            indent = len(lines[first - 1]) - len(lines[first - 1].lstrip())
            last = first
            for number, line in enumerate(lines[first:], first + 1):
                outside = len(line) - len(line.lstrip()) <= indent
                if not line.strip() or (outside and line.lstrip().startswith("#")):
                    continue
                if outside and not line.lstrip().startswith(")"):
                    break
                last = number
            yield f"{where}:{first}", last - first + 1


def test_long_files_are_one_thing():
    paths = sources(ROOT, ".pyx", ".pxd", ".py", ".pyi", ".h")
    long = {path.relative_to(ROOT).as_posix() for path in paths if line_count(path) > FILE_LINES}
    assert sorted(long - set(LONG_FILES)) == [], "ask whether each is one thing; if it is, say why in this test"
    assert sorted(set(LONG_FILES) - long) == [], "no longer long"


def test_long_functions_are_one_thing():
    found = [item for path in sources(ROOT, ".pyx", ".pxd", ".py") for item in functions(path)]
    assert len(found) > 100
    long = {place: count for place, count in found if count > FUNCTION_LINES}
    unanswered = {place: count for place, count in long.items() if place.split(":")[0] not in LONG_FUNCTIONS}
    assert unanswered == {}, "ask whether each is one thing; if it is, say why in this test"
    assert sorted(set(LONG_FUNCTIONS) - {place.split(":")[0] for place in long}) == [], "no longer long"


def test_the_measure_finds_the_end_of_a_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "mqttc").mkdir()
    path = tmp_path / "mqttc" / "a.pyx"
    first = "cdef int f(\n    int x,\n) noexcept nogil:\n    # note\n\n    return x\n"
    path.write_text(first + "\n\n# next\ncdef int g() noexcept nogil:\n    return 1\n")
    assert [count for _, count in functions(path)] == [6, 2]
