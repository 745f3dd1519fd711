"""Structured log lines: one event, its time, its key=value fields; as text or JSON.

Fields come from peers (client ids, topics, reason strings), so nothing that is not printable reaches a line
unescaped: no peer can end a line, fake another one or steer a terminal.
"""

from __future__ import annotations

import datetime
import json
import logging
import queue
import sys
import threading
from collections.abc import Mapping
from typing import Final, TextIO

LOGGER_NAME: Final = "mqttc.broker"
LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
MAXIMUM_FIELD_CHARACTERS: Final = 512
_QUEUED_LINES: Final = 10_000
_STOP_S: Final = 2.0

Field = str | int | float
_PLAIN_EXTRA = frozenset("-_.:/@*+#$%,[]")


def escape(text: str) -> str:
    """Text as it may stand in a line: bare if harmless, else quoted and escaped.

    Cut after 512 characters, and marked so.
    """
    cut = text[:MAXIMUM_FIELD_CHARACTERS]
    if text and len(cut) == len(text) and all(c.isascii() and (c.isalnum() or c in _PLAIN_EXTRA) for c in text):
        return text
    characters = [_escape_character(character) for character in cut]
    return '"' + "".join(characters) + ('"' if len(cut) == len(text) else '"...')


def _escape_character(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    if character.isprintable():
        return character
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def line(event: str, fields: Mapping[str, Field]) -> str:
    """``event key=value ...``; empty texts are left out."""
    parts = [event]
    for key, value in fields.items():
        if value != "":
            parts.append(f"{key}={escape(value) if isinstance(value, str) else value}")
    return " ".join(parts)


def emit(logger: logging.Logger, level: int, event: str, fields: Mapping[str, Field], wall_s: float = 0.0) -> None:
    """Log an event. ``wall_s``: when it happened, if that was not now."""
    if not logger.isEnabledFor(level):
        return
    record = logger.makeRecord(logger.name, level, "", 0, line(event, fields), (), None)
    record.event = event
    record.fields = dict(fields)
    if wall_s:
        record.created = wall_s
        record.msecs = int(wall_s * 1000) % 1000
    logger.handle(record)


def _time(record: logging.LogRecord) -> str:
    moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class TextFormatter(logging.Formatter):
    """``2026-01-31T12:00:00.000Z info connected client_id=c1 peer=127.0.0.1:50000``."""

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        if not hasattr(record, "fields"):  # somebody else's record: its text was not escaped yet
            message = "".join(map(_escape_line_character, message))
        text = f"{_time(record)} {record.levelname.lower()} {message}"
        if record.exc_info:
            text += f" exception={escape(self.formatException(record.exc_info)[-MAXIMUM_FIELD_CHARACTERS:])}"
        return text


def _escape_line_character(character: str) -> str:
    return character if character in '"\\' else _escape_character(character)


class JsonFormatter(logging.Formatter):
    """One ASCII JSON object a line: ``time``, ``level``, ``event`` and the fields."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {"time": _time(record), "level": record.levelname.lower()}
        entry["event"] = getattr(record, "event", None) or record.getMessage()
        for key, value in getattr(record, "fields", {}).items():
            if value != "":
                entry[key] = value[:MAXIMUM_FIELD_CHARACTERS] if isinstance(value, str) else value
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def formatter(name: str) -> logging.Formatter:
    """The formatter of ``log.format``."""
    return JsonFormatter() if name == "json" else TextFormatter()


class BackgroundHandler(logging.Handler):
    """Writes lines from a thread of its own, so that a blocked terminal or pipe stops nothing else.

    The queue between is bounded; what does not fit is counted, and the count is written when it can be.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__()
        self._stream = sys.stderr if stream is None else stream
        self._lines: queue.Queue[str | None] = queue.Queue(_QUEUED_LINES)
        self._dropped = 0
        self._thread = threading.Thread(target=self._write, name="mqttc-log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        self.put(self.format(record))

    def put(self, text: str) -> None:
        """Write a line as it is, behind those that wait."""
        try:
            self._lines.put_nowait(text)
        except queue.Full:
            self._dropped += 1

    def close(self) -> None:
        """Write what waits, for at most two seconds."""
        if self._thread.is_alive():
            try:
                self._lines.put(None, timeout=_STOP_S)
            except queue.Full:
                self._dropped += 1
            self._thread.join(_STOP_S)
        super().close()

    def _write(self) -> None:
        while (text := self._lines.get()) is not None:
            if self._dropped:
                dropped, self._dropped = self._dropped, 0
                text += f"\n{line('log_lines_dropped', {'count': dropped})}"
            try:
                self._stream.write(text + "\n")
                self._stream.flush()
            except (OSError, ValueError):
                self._dropped += 1  # nobody reads any more; told if somebody does again
