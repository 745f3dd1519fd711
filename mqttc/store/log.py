"""The rows of table ``log``: what a broker has written of messages that are over a moment later (mqttc/broker/window.pxd).

It is read here and never written: a broker makes rows of it when it starts, and an orderly end leaves none.
"""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

_MESSAGE: Final = 1
_SENT: Final = 2
_DONE: Final = 3
_ITEM: Final = struct.Struct("<BBBxHHQQqII")
"""Kind, qos, retain, packet id, bytes of the topic, message, target (of a message: how many), expires_ms, bytes of properties and of
payload."""
_TARGET: Final = struct.Struct("<QHBBI")
"""Target, packet id, flags, state, how many subscription identifiers follow."""
_IDENTIFIER_BYTES: Final = 4

Row = tuple[Any, ...]


@dataclass(slots=True)
class Item:
    """One of a row. ``deliveries``: (target, packet id, flags, state, identifiers), of a message; else the target alone counts."""

    kind: int
    message: int
    target: int
    packet_id: int
    body: Row = ()
    """The columns of ``message`` behind its id."""
    deliveries: list[Row] = field(default_factory=list)


def items(records: bytes) -> Iterator[Item]:
    """What a row says, in its order. Raises ``ValueError`` at what means nothing."""
    at = 0

    def take(count: int) -> bytes:
        nonlocal at
        if count > len(records) - at:
            raise ValueError("the row ends inside an item")
        at += count
        return records[at - count : at]

    while at < len(records):
        kind, qos, retain, packet_id, topic_bytes, message, target, expires_ms, *sizes = _ITEM.unpack(take(_ITEM.size))
        if not _MESSAGE <= kind <= _DONE or message == 0 or target == 0 or (kind == _SENT and packet_id == 0):
            raise ValueError("an item has impossible values")
        item = Item(kind, message, target, packet_id)
        if kind == _MESSAGE:
            item.deliveries = [_delivery(take) for _ in range(target)]
            topic, properties, payload = take(topic_bytes), take(sizes[0]), take(sizes[1])
            if not topic or qos > 2 or retain > 1 or expires_ms < 0:
                raise ValueError("a message has impossible values")
            item.body = (topic, properties, payload, qos, retain, expires_ms)
        yield item


def _delivery(take: Any) -> Row:
    target, packet_id, flags, state, count = _TARGET.unpack(take(_TARGET.size))
    identifiers = take(count * _IDENTIFIER_BYTES)
    if target == 0 or state > 1 or (state == 1 and packet_id == 0):
        raise ValueError("a delivery has impossible values")
    return target, packet_id, flags, state, identifiers or None


def is_log(records: bytes) -> bool:
    """Whether all of a row has a meaning."""
    try:
        return bool(records) and all(True for _ in items(records))
    except ValueError:
        return False


def rows(connection: sqlite3.Connection) -> dict[str, list[Row]]:
    """Rows of ``message`` and ``delivery`` that a broker would make of the log. The log holds a few megabytes at most."""
    messages: dict[int, Row] = {}
    deliveries: dict[tuple[int, int], Row] = {}
    for (records,) in connection.execute("SELECT records FROM log ORDER BY id"):
        for item in items(records):
            key = item.message, item.target
            if item.kind == _MESSAGE:
                messages[item.message] = (item.message, *item.body)
                for target, packet_id, flags, state, identifiers in item.deliveries:
                    deliveries[item.message, target] = (item.message, target, 1, flags, state, packet_id, identifiers)
            elif item.kind == _DONE:
                deliveries.pop(key, None)
            elif key in deliveries:
                message, target, qos, flags, _, _, identifiers = deliveries[key]
                deliveries[key] = (message, target, qos, flags, 1, item.packet_id, identifiers)
    waiting = {message for message, _ in deliveries}
    return {
        "message": [row for message, row in sorted(messages.items()) if message in waiting],
        "delivery": [row for _, row in sorted(deliveries.items())],
    }
