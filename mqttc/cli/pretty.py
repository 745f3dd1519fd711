"""Payloads laid out for people: JSON indented, text as it is, anything else as a hex dump; nothing of it can drive a terminal."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from mqttc.cli.jsontext import is_json, layout
from mqttc.cli.terminal import Paint, printable

if TYPE_CHECKING:
    from mqttc.client import Message

DUMP_BYTES: Final = 16
"""In a line of a hex dump."""
JSON_BYTES: Final = 1 << 20
"""Longer payloads are not looked into."""
BINARY_TYPES: Final = {
    "application/cbor": "cbor", "application/msgpack": "msgpack", "application/vnd.msgpack": "msgpack", "application/x-msgpack": "msgpack",
}  # fmt: skip
"""Content types of what the packages cbor2 and msgpack read, if they are there."""
LIBRARIES: Final = {"cbor": "cbor2", "msgpack": "msgpack"}


class Layout:
    """`most_bytes` of a payload are shown; `decode` reads every payload as cbor or msgpack, not only those whose content type says so."""

    def __init__(self, paint: Paint, *, most_bytes: int, compact: bool = False, decode: str | None = None) -> None:
        self._paint = paint
        self._most_bytes = most_bytes
        self._indent = None if compact else 2
        self._decode = decode

    def lines(self, message: Message) -> list[str]:
        """At least one, each without a line feed."""
        payload = message.payload
        if not payload:
            return [self._paint("faint", "(empty)")]
        kind = self._decode or BINARY_TYPES.get((message.properties.content_type or "").partition(";")[0].strip().lower())
        decoded = None if kind is None else decoded_json(kind, payload)
        if decoded is not None:
            return self._cut_lines(layout(decoded, self._paint, self._indent))
        text = text_of(payload)
        if text is None:
            return self._dump(payload)
        if text.lstrip()[:1] in ("{", "[") and len(payload) <= JSON_BYTES and is_json(text):
            return self._cut_lines(layout(text, self._paint, self._indent))
        shown = payload[: self._most_bytes].decode("utf-8", "ignore")  # the cut may be within a character
        lines = [printable(line, "\t") for line in shown.rstrip("\r\n").split("\n")]
        return lines + self._more(len(payload) - len(shown.encode()))

    def _cut_lines(self, text: str) -> list[str]:
        lines = text.split("\n")
        kept: list[str] = []
        size = 0
        for line in lines:
            size += len(line)
            if size > self._most_bytes and kept:
                return [*kept, self._paint("faint", f"… {len(lines) - len(kept)} more lines")]
            kept.append(line)
        return kept

    def _dump(self, payload: bytes) -> list[str]:
        shown = payload[: self._most_bytes]
        return [self._dump_line(shown, start) for start in range(0, len(shown), DUMP_BYTES)] + self._more(len(payload) - len(shown))

    def _dump_line(self, data: bytes, start: int) -> str:
        part = data[start : start + DUMP_BYTES]
        characters = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in part)
        return f"{self._paint('faint', f'{start:08x}')}  {part.hex(' '):{DUMP_BYTES * 3 - 1}}  {self._paint('string', characters)}"

    def _more(self, size: int) -> list[str]:
        return [self._paint("faint", f"… {size} more bytes")] if size > 0 else []


def text_of(payload: bytes) -> str | None:
    """UTF-8 without control characters but for blanks; None for anything else."""
    try:
        text = payload.decode()
    except UnicodeDecodeError:
        return None
    controls = any((character < " " and character not in "\t\r\n") or character == "\x7f" for character in text)
    return None if controls else text


def decoded_json(kind: str, payload: bytes) -> str | None:
    """CBOR or MessagePack as JSON; None without the library, and for what is neither."""
    try:
        if kind == "cbor":
            import cbor2

            value: Any = cbor2.loads(payload)
        else:
            import msgpack

            value = msgpack.unpackb(payload, strict_map_key=False)
        return json.dumps(_plain(value), ensure_ascii=False)
    except Exception:  # the payload is what a stranger has sent, and each library has errors of its own
        return None


def _plain(value: Any) -> Any:
    """What JSON has no word for, as text."""
    if isinstance(value, dict):
        return {key if isinstance(key, str) else str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return f"0x{value.hex()}"
    return value if value is None or isinstance(value, str | bool | int | float) else str(value)
