"""Log lines: form, escaping, and a writer that a blocked pipe does not stop."""

from __future__ import annotations

import io
import json
import logging
import os
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqttc import logs


class Collector(logging.Handler):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.setFormatter(logs.formatter(name))
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


def lines(name: str, event: str, fields: dict[str, logs.Field]) -> str:
    logger = logging.Logger("test", logging.DEBUG)
    collector = Collector(name)
    logger.addHandler(collector)
    logs.emit(logger, logging.WARNING, event, fields, wall_s=1_700_000_000.25)
    (written,) = collector.lines
    return written


def test_text() -> None:
    written = lines("text", "disconnected", {"client_id": "c 1", "reason": "0x8e", "worker": 1, "detail": ""})
    assert written == '2023-11-14T22:13:20.250Z warning disconnected client_id="c 1" reason=0x8e worker=1'


def test_json() -> None:
    written = lines("json", "disconnected", {"client_id": "c\n1", "worker": 1, "detail": ""})
    assert json.loads(written) == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "warning",
        "event": "disconnected",
        "client_id": "c\n1",
        "worker": 1,
    }


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("plain-1/a:b", "plain-1/a:b"),
        ("", '""'),
        ("a b", '"a b"'),
        ('a"b\\', '"a\\"b\\\\"'),
        ("a\nready", '"a\\x0aready"'),
        ("\x1b[31m", '"\\x1b[31m"'),
        ("\u202egnp", '"\\u202egnp"'),
        ("\U000e0001", '"\\U000e0001"'),
        ("grün", '"grün"'),
        ("a=b", '"a=b"'),
    ],
)
def test_escape(text: str, escaped: str) -> None:
    assert logs.escape(text) == escaped


@given(st.text(max_size=700))
def test_no_text_of_a_peer_can_break_a_line(text: str) -> None:
    for form in ("text", "json"):
        written = lines(form, "connected", {"client_id": text})
        assert written.isprintable()
        assert len(written) < 12 * logs.MAXIMUM_FIELD_CHARACTERS
    if text and len(text) <= logs.MAXIMUM_FIELD_CHARACTERS:
        assert json.loads(written)["client_id"] == text


def test_percent_signs_are_text() -> None:
    assert "client_id=%s%d" in lines("text", "connected", {"client_id": "%s%d"})


def test_foreign_records_are_escaped() -> None:
    record = logging.LogRecord("other", logging.ERROR, "", 0, "a\nb %s", ("\x1b",), None)
    assert logs.formatter("text").format(record).endswith("error a\\x0ab \\x1b")


def test_levels_are_respected() -> None:
    logger = logging.Logger("test", logging.ERROR)
    collector = Collector("text")
    logger.addHandler(collector)
    logs.emit(logger, logging.INFO, "connected", {})
    assert collector.lines == []


def test_background_handler_writes_in_order_and_at_close() -> None:
    stream = io.StringIO()
    handler = logs.BackgroundHandler(stream)
    for number in range(100):
        handler.put(str(number))
    handler.close()
    assert stream.getvalue().split() == [str(number) for number in range(100)]


def test_a_blocked_pipe_blocks_nobody_and_loss_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_QUEUED_LINES", 10)
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream, os.fdopen(reader) as other_end:
        handler = logs.BackgroundHandler(stream)
        started = time.monotonic()
        for _ in range(100):
            handler.put("x" * 8000)
        assert time.monotonic() - started < 1
        received: list[str] = []
        collecting = threading.Thread(target=lambda: received.extend(other_end))
        collecting.start()
        handler.close()
        stream.close()
        collecting.join()
    told = [text for text in received if text.startswith("log_lines_dropped count=")]
    assert sum(int(text.partition("=")[2]) for text in told) + len(received) - len(told) == 100
    assert told


def test_a_closed_stream_is_survived() -> None:
    stream = io.StringIO()
    handler = logs.BackgroundHandler(stream)
    stream.close()
    handler.put("lost")
    handler.close()
    assert handler._dropped == 1
