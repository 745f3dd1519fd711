"""`mqttc tap`: what a message looks like, and how much passes."""

from __future__ import annotations

import re
import signal
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mqttc import SyncClient, codec
from mqttc.cli.jsontext import layout
from mqttc.cli.pretty import Layout, text_of
from mqttc.cli.tap import Rates, property_lines, sized
from mqttc.cli.terminal import Paint
from mqttc.client import Message, Properties
from tests.cli.conftest import Running, Start, mqttc
from tests.cli.test_sub import Terminal

Tapping = Callable[..., Running]
CLOCK = r"\d\d:\d\d:\d\d\.\d{3}"


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    made = Terminal()
    yield made
    made.close()


@pytest.fixture
def tapping(start: Start, url: str) -> Tapping:
    def run(*arguments: str, **options: Any) -> Running:
        made = start("tap", "-L", url, "-d", *arguments, **options)
        made.until("subscribed ")
        return made

    return run


def message(payload: bytes, **properties: Any) -> Message:
    return Message("t", codec.Publish("t", payload, properties=Properties(**properties)))


def plain(payload: bytes, *, most_bytes: int = 4096, compact: bool = False, decode: str | None = None, **properties: Any) -> list[str]:
    return Layout(Paint(False), most_bytes=most_bytes, compact=compact, decode=decode).lines(message(payload, **properties))


def test_payloads() -> None:
    assert plain(b"") == ["(empty)"]
    assert plain(b"21.5\n") == ["21.5"]
    assert plain("zoë\ttab\nsecond".encode()) == ["zoë\ttab", "second"]
    shown = plain(b'{"a":[1,{"b":null}],"c":1.50}')
    assert shown == [
        "{",
        '  "a": [',
        "    1,",
        "    {",
        '      "b": null',
        "    }",
        "  ],",
        '  "c": 1.50',
        "}",
    ]
    assert plain(b'{"a":[1,{"b":null}] }', compact=True) == ['{"a":[1,{"b":null}]}']
    assert plain(b"{not json}") == ["{not json}"]
    assert plain(bytes(range(20))) == [
        "00000000  00 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f  ................",
        "00000010  10 11 12 13                                      ....",
    ]
    assert plain(b"[" * 100_000)[0] == "[" * 4096  # too deep to be JSON


def test_payloads_are_cut() -> None:
    assert plain(b"a" * 10, most_bytes=4) == ["aaaa", "… 6 more bytes"]
    assert plain("ëëë".encode(), most_bytes=3) == ["ë", "… 4 more bytes"]
    assert plain(b"\0" * 40, most_bytes=16)[1:] == ["… 24 more bytes"]
    assert plain(b'{"a":1,"b":2,"c":3}', most_bytes=10) == ["{", '  "a": 1,', "… 3 more lines"]


@pytest.mark.parametrize("payload", ["\x1b[31m", "a\u202eb", "\x9bx", '{"k\u202e":"\x7f\u009b"}'])
def test_no_payload_drives_the_terminal(payload: str) -> None:
    shown = "".join(plain(payload.encode()))
    assert shown.isprintable() and shown


def test_text() -> None:
    assert text_of(b"a\r\n\tb") == "a\r\n\tb"
    assert text_of(b"a\0") is None and text_of(b"\xff") is None and text_of(b"\x7f") is None


def test_json_in_colours() -> None:
    shown = layout('{"k":["s",1,true]}', Paint(True), None)
    assert shown == '{\x1b[34m"k"\x1b[0m:[\x1b[32m"s"\x1b[0m,\x1b[33m1\x1b[0m,\x1b[35mtrue\x1b[0m]}'


def test_cbor_and_messagepack_where_the_libraries_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """By stand-ins: neither is needed."""
    library = types.ModuleType("cbor2")
    library.loads = lambda data: {"n": [1, b"\xff", None], 2: "x"}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cbor2", library)
    assert plain(b"\xa1", compact=True, content_type="application/cbor; x=y") == ['{"n":[1,"0xff",null],"2":"x"}']
    assert plain(b"\xa1", compact=True, decode="cbor") == ['{"n":[1,"0xff",null],"2":"x"}']

    def fails(data: bytes, strict_map_key: bool) -> None:
        raise RuntimeError("of its own")

    other = types.ModuleType("msgpack")
    other.unpackb = fails  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "msgpack", other)
    assert plain(b"\xc1", content_type="application/msgpack")[0].startswith("00000000  c1")
    monkeypatch.setitem(sys.modules, "msgpack", None)
    assert plain(b"\xc1", content_type="application/msgpack")[0].startswith("00000000  c1")


def test_property_lines() -> None:
    shown = property_lines(
        message(b"", content_type="a\x1b", user_properties=[("k", "v"), ("k", "w")], correlation_data=b"\xff", message_expiry_interval=5)
    )
    assert sorted(shown) == [
        ("content-type", "a\\x1b"), ("correlation-data", "\\xff"), ("message-expiry-interval", "5"),
        ("user-property", "k=v"), ("user-property", "k=w"),
    ]  # fmt: skip


def test_rates() -> None:
    rates = Rates(10.0)
    assert rates.line(12.0) == "0.0 messages/s, 0 B/s"
    for _ in range(4):
        rates.add("a", 1000)
    rates.add("b", 0)
    assert rates.line(14.0) == "2.5 messages/s, 2.0 kB/s; a 2.0/s, b 0.5/s"
    assert rates.line(15.0) == "0.0 messages/s, 0 B/s"
    assert rates.summary(20.0) == "5 messages of 2 topics, 4.0 kB in 10.0 s (0.5 messages/s, 400 B/s)"
    sizes = [sized(size) for size in (0, 999, 1000, 999_600, 1.5e9, 2e13)]
    assert sizes == ["0 B", "999 B", "1.0 kB", "1.0 MB", "1.5 GB", "20000.0 GB"]


def test_everything_passes_by(tapping: Tapping, url: str) -> None:
    running = tapping("-C", "4", "-q", "2")
    with SyncClient(url) as client:
        client.publish("a/b", "text", 1)
        client.publish("j", '{"a": 1}', 2, properties=Properties(content_type="application/json"))
        client.publish("bin", b"\0\1")
        client.publish("e")
    code, out = running.rest()
    lines = out.decode().split("\n")
    assert code == 0
    wanted = [
        rf"{CLOCK} a/b q1 4 B  text", rf"{CLOCK} j q2 application/json 8 B", r"  \{", r'    "a": 1', r"  \}",
        rf"{CLOCK} bin q0 2 B  00000000  00 01 +\.\.", rf"{CLOCK} e q0 0 B  \(empty\)", "",
    ]  # fmt: skip
    assert [re.fullmatch(pattern, line) is not None for pattern, line in zip(wanted, lines, strict=True)] == [True] * len(wanted), lines
    assert re.search(r"mqttc tap: 4 messages of 4 topics, 14 B in ", running.lines[-1])


def test_retained_filters_and_properties(url: str) -> None:
    with SyncClient(url) as client:
        client.publish("a/1", "kept", 1, True, properties=Properties(user_properties=[("k", "v")]))
        client.publish("b", "not this", retain=True)
    done = mqttc("tap", "-L", url, "-t", "#", "-T", "b", "--retained-only", "-C", "1", "--properties", "--date", "--quiet")
    assert (done.returncode, done.stderr) == (0, b"")
    assert re.fullmatch(rf"\d{{4}}-\d\d-\d\d {CLOCK} a/1 q0 retained 4 B\n  user-property: k=v\n  kept\n", done.stdout.decode())
    done = mqttc("tap", "-L", url, "-t", "a/1", "-C", "1", "--no-payload")
    assert re.fullmatch(rf"{CLOCK} a/1 q0 retained 4 B\n", done.stdout.decode())


def test_lines_of_rates(tapping: Tapping, url: str) -> None:
    running = tapping("--rates", "0.05")
    assert running.process.stdout is not None
    with SyncClient(url) as client:
        assert running.process.stdout.readline().startswith(b"-- 0.0 messages/s")
        client.publish("a", "x")
        for line in running.process.stdout:
            if line.startswith(b"--") and b"; a " in line:
                break
    assert running.end(signal.SIGINT) == 0


def test_colours_on_a_terminal(terminal: Terminal, tapping: Tapping, url: str) -> None:
    running = tapping("-C", "1", stdout=terminal.slave, variables={"TERM": "xterm"})
    with SyncClient(url) as client:
        client.publish("a", '{"k":1}')
    seen = terminal.until(b"}")
    assert b"\x1b[1;36ma\x1b[0m" in seen and b'\x1b[34m"k"\x1b[0m: \x1b[33m1\x1b[0m' in seen
    assert running.rest()[0] == 0


def test_a_library_that_is_not_there(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    from mqttc.cli.main import main

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["tap", "--decode", "cbor"]) == 2
    assert "needs the Python package cbor2" in capsys.readouterr().err
