"""JSON as text: messages as objects, and payloads laid out anew without changing a number's or a string's spelling."""

from __future__ import annotations

import base64
import json
import re
import time
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from mqttc.cli.terminal import Paint
    from mqttc.client import Message

_TOKEN: Final = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{},:]|[^\s\[\]{},:"]+')
_NOT_SHOWN: Final = re.compile(r"[^\x20-\x7e]")


def is_json(text: str) -> bool:
    """By RFC 8259: without NaN and Infinity."""
    try:
        json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return False
    return True


def _no_constant(name: str) -> None:
    raise ValueError(name)


def layout(text: str, paint: Paint, indent: int | None = 2) -> str:
    """Valid JSON with one member a line, or without any blank for None; what a terminal should not get is escaped."""
    out: list[str] = []
    depth = 0
    tokens = _TOKEN.findall(text)
    for place, token in enumerate(tokens):
        following = tokens[place + 1] if place + 1 < len(tokens) else ""
        if token in "{[":
            depth += 1
            out.append(token)
            if following not in "}]":
                out.append(_break(indent, depth))
        elif token in "}]":
            depth -= 1
            if out[-1] not in "{[":
                out.append(_break(indent, depth))
            out.append(token)
        elif token == ",":
            out.append("," + _break(indent, depth))
        elif token == ":":
            out.append(":" if indent is None else ": ")
        elif token[0] == '"':
            out.append(paint("key" if following == ":" else "string", shown(token)))
        else:
            out.append(paint("word" if token[0] in "tfn" else "number", token))
    return "".join(out)


def _break(indent: int | None, depth: int) -> str:
    return "" if indent is None else "\n" + " " * (indent * depth)


def shown(token: str) -> str:
    """A JSON string whose characters that are not printable are written as JSON's escapes."""
    return token if token.isprintable() else _NOT_SHOWN.sub(lambda found: _escaped(found[0]), token)


def _escaped(character: str) -> str:
    return character if character.isprintable() else json.dumps(character)[1:-1]


def timestamp(when_ns: int) -> str:
    """ISO 8601 with microseconds and the offset of this place, as mosquitto_sub's `tst`."""
    local = time.localtime(when_ns // 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", local) + f".{when_ns // 1000 % 1_000_000:06d}" + time.strftime("%z", local)


def describe(message: Message, when_ns: int) -> dict[str, Any]:
    """All but the payload, with mosquitto_sub's names."""
    packet = message.packet
    told: dict[str, Any] = {
        "tst": timestamp(when_ns),
        "topic": message.topic,
        "qos": int(packet.qos),
        "retain": int(packet.retain),
        "payloadlen": len(message.payload),
    }
    if packet.qos:
        told["mid"] = packet.packet_id
    if found := _properties(message):
        told["properties"] = found
    return told


def _properties(message: Message) -> dict[str, Any]:
    told: dict[str, Any] = {}
    if not message.properties:
        return told
    for field, value in message.properties.as_dict().items():
        name = field.replace("_", "-")
        if field == "user_properties":
            told[name] = _pairs(value)
        elif field == "subscription_identifiers":
            told["subscription-identifier"] = value[0] if len(value) == 1 else list(value)
        elif isinstance(value, bytes):
            told |= data_member(name, value)
        elif field != "topic_alias":  # of the connection, not of the message
            told[name] = value
    return told


def _pairs(pairs: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    """A name that comes more than once has an array."""
    found: dict[str, list[str]] = {}
    for name, value in pairs:
        found.setdefault(name, []).append(value)
    return {name: values[0] if len(values) == 1 else values for name, values in found.items()}


def data_member(name: str, data: bytes) -> dict[str, str]:
    """A member with the data as text; what is not UTF-8 as ``<name>_base64``."""
    try:
        return {name: data.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(data).decode()}


def message_json(message: Message, when_ns: int, *, parsed: bool = False) -> str | None:
    """The object on one line. `parsed`: the payload is JSON and stands in it as such; None where it is not valid."""
    told = describe(message, when_ns)
    if not parsed:
        return json.dumps(told | data_member("payload", message.payload), ensure_ascii=False, separators=(",", ":"))
    try:
        text = message.payload.decode()
    except UnicodeDecodeError:
        return None
    if not is_json(text):
        return None
    from mqttc.cli.terminal import Paint

    return json.dumps(told, ensure_ascii=False, separators=(",", ":"))[:-1] + ',"payload":' + layout(text, Paint(False), None) + "}"
