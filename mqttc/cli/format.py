"""mosquitto_sub's format strings (`-F`): ``%`` for parts of the message, ``@`` for its time, ``\\`` for characters that are hard to type.

Two departures from mosquitto_sub 2.0, towards its manual: a width is never a maximum (there it cuts payloads), and `%P` and `%S` give all
user properties and subscription identifiers.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from mqttc.cli.arguments import UsageError
from mqttc.cli.jsontext import layout, message_json
from mqttc.cli.terminal import Paint, harmless, printable

if TYPE_CHECKING:
    from mqttc.client import Message

Piece = Callable[["Message", int], bytes]
"""Of a message and the time at which it came, in nanoseconds since 1970."""

_SEQUENCE: Final = re.compile(r"%([-0]*)([0-9]*)(?:\.([0-9]*))?([^-0-9.])", re.DOTALL)
_ESCAPES: Final = {"\\": "\\", "0": "\0", "a": "\a", "e": "\x1b", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_PADDED: Final = "ACEFIlmpRStxX"
_ZEROED: Final = "AEFlmSxX"
_CUT: Final = "CIRt"


class NotJson(Exception):
    """%J of a payload that is none. The message is the topic."""


class Format:
    """A format string, taken apart. Raises ``UsageError``. `safe`: nothing that a message brings can drive a terminal."""

    def __init__(self, text: str, *, safe: bool = False, pretty: bool = False, paint: Paint | None = None) -> None:
        self._safe = safe
        self._pretty = pretty
        self._paint = Paint(False) if paint is None else paint
        self._pieces: list[Piece] = []
        position, plain = 0, ""
        while position < len(text):
            character = text[position]
            if character == "\\":
                plain += self._escape(text[position + 1 : position + 2])
                position += 2
            elif character in "%@":
                piece, position = self._sequence(text, position) if character == "%" else self._time(text, position)
                self._constant(plain)
                plain = ""
                self._pieces.append(piece)
            else:
                plain += character
                position += 1
        self._constant(plain)

    def render(self, message: Message, when_ns: int) -> bytes:
        """Raises ``NotJson``."""
        return b"".join(piece(message, when_ns) for piece in self._pieces)

    def _constant(self, plain: str) -> None:
        if plain:
            data = plain.encode("utf-8", "surrogateescape")
            self._pieces.append(lambda message, when_ns: data)

    @staticmethod
    def _escape(character: str) -> str:
        if character not in _ESCAPES or not character:
            raise UsageError(f"format: \\{character} is no escape; there are " + " ".join("\\" + known for known in _ESCAPES))
        return _ESCAPES[character]

    @staticmethod
    def _time(text: str, position: int) -> tuple[Piece, int]:
        letter = text[position + 1 : position + 2]
        if not letter:
            raise UsageError("format: a letter of strftime is missing behind @ (@@ for @)")
        if letter == "@":
            return (lambda message, when_ns: b"@"), position + 2
        if letter == "N":
            return (lambda message, when_ns: b"%09d" % (when_ns % 1_000_000_000)), position + 2
        return (lambda message, when_ns: _strftime("%" + letter, when_ns).encode()), position + 2

    def _sequence(self, text: str, position: int) -> tuple[Piece, int]:
        found = _SEQUENCE.match(text, position)
        if found is None:
            raise UsageError("format: a letter is missing behind % (%% for %)")
        flags, width, precision, letter = found.groups()
        if letter == "%":
            return (lambda message, when_ns: b"%"), found.end()
        if letter in "jJ":
            return self._json(letter == "J"), found.end()
        part = self._part(letter)
        if part is None:
            raise UsageError(f"format: %{letter} is unknown; there are %% and %" + " %".join("ACDEFIJPRSUXjlmpqrtx"))
        if not (flags or width or precision is not None) or letter not in _PADDED:
            return part, found.end()
        fill = b"0" if "0" in flags and "-" not in flags and letter in _ZEROED else b" "
        most = int(precision or 0) if precision is not None and letter in _CUT else None
        return _padded(part, int(width or 0), fill, "-" in flags, most), found.end()

    def _json(self, parsed: bool) -> Piece:
        plain_colors = not (self._pretty or self._paint.on or self._safe)

        def piece(message: Message, when_ns: int) -> bytes:
            text = message_json(message, when_ns, parsed=parsed)
            if text is None:
                raise NotJson(message.topic)
            if not plain_colors:
                text = layout(text, self._paint, 2 if self._pretty else None)
            return text.encode()

        return piece

    def _part(self, letter: str) -> Piece | None:
        if letter in "UIqrlm":
            return _FACTS[letter]
        if letter == "p":
            return (
                (lambda message, when_ns: harmless(message.payload, "\n\t").encode())
                if self._safe
                else (lambda message, when_ns: message.payload)
            )
        if letter == "D":
            return lambda message, when_ns: self._data(message.correlation_data or b"")
        text = _TEXTS.get(letter)
        if text is None:
            return None
        if letter == "t" and self._paint.on:
            return lambda message, when_ns: self._paint("topic", self._text(text(message))).encode()
        return lambda message, when_ns: self._text(text(message)).encode()

    def _text(self, text: str) -> str:
        return printable(text) if self._safe else text

    def _data(self, data: bytes) -> bytes:
        return harmless(data).encode() if self._safe else data


def _padded(part: Piece, width: int, fill: bytes, left: bool, most: int | None) -> Piece:
    """Widths are of characters, where it is text."""

    def piece(message: Message, when_ns: int) -> bytes:
        data = part(message, when_ns)
        if most is not None:
            data = data.decode()[:most].encode()
        missing = width - len(data.decode("utf-8", "replace"))
        if missing <= 0:
            return data
        return data + b" " * missing if left else fill * missing + data

    return piece


def _strftime(form: str, when_ns: int) -> str:
    return time.strftime(form, time.localtime(when_ns // 1_000_000_000))


def _or_nothing(value: object) -> str:
    return "" if value is None else str(value)


_FACTS: Final[dict[str, Piece]] = {
    "U": lambda message, when_ns: b"%d.%09d" % divmod(when_ns, 1_000_000_000),
    "I": lambda message, when_ns: _strftime("%Y-%m-%dT%H:%M:%S%z", when_ns).encode(),
    "q": lambda message, when_ns: b"%d" % message.qos,
    "r": lambda message, when_ns: b"%d" % message.retain,
    "l": lambda message, when_ns: b"%d" % len(message.payload),
    "m": lambda message, when_ns: b"%d" % message.packet.packet_id,
}
_TEXTS: Final[dict[str, Callable[[Message], str]]] = {
    "A": lambda message: _or_nothing(message.properties.topic_alias),
    "C": lambda message: message.properties.content_type or "",
    "E": lambda message: _or_nothing(message.properties.message_expiry_interval),
    "F": lambda message: _or_nothing(message.properties.payload_format_indicator),
    "P": lambda message: " ".join(f"{name}:{value}" for name, value in message.user_properties),
    "R": lambda message: message.response_topic or "",
    "S": lambda message: " ".join(map(str, message.properties.subscription_identifiers)),
    "t": lambda message: message.topic,
    "x": lambda message: message.payload.hex(),
    "X": lambda message: message.payload.hex().upper(),
}
