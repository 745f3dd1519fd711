"""What the program asks about clients, sessions and retained messages, and what it does to them."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from mqttc import codec, inside
from mqttc.codec import Properties, QoS, RetainHandling
from mqttc.embed.message import decode_properties
from mqttc.errors import BrokerError

if TYPE_CHECKING:
    from mqttc.embed.hub import Answer, Hub
    from mqttc.listen import Served

T = TypeVar("T")
R = TypeVar("R", "RetainedMessage", "RetainedInfo")

MAX_PAGE: Final = 1000
"""Items of a page, at most."""
PAGE_BYTES: Final = 1024 * 1024
"""Rows of the workers that a page of sessions, receivers or sizes ends with, though it has fewer items than it may have."""
_END: Final = 0xFFFF
_NEVER: Final = 0xFFFFFFFF
_SESSION: Final = struct.Struct("=BBBBHHIIIIIIIQQQI")
_FILTER: Final = struct.Struct("=BI")
_RETAINED: Final = struct.Struct("=BQII")
_TEXT: Final = struct.Struct("=H")
_COUNT: Final = struct.Struct("=I")
_CLEAR_STEP: Final = 1000


@dataclass(frozen=True, slots=True)
class SubscriptionInfo:
    """One of a session's subscriptions."""

    topic_filter: str
    qos: QoS
    no_local: bool
    retain_as_published: bool
    retain_handling: RetainHandling
    identifier: int | None


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """A session, at the moment at which its worker was asked. Text comes from the client: escape it before it is shown."""

    client_id: str
    connected: bool
    durable: bool
    """It outlives the process (see docs/durability.md)."""
    will: bool
    """A will is kept for it."""
    expiry_interval: int | None
    """Seconds for which it outlives its connection; None: for ever."""
    offline_for: float | None
    """Seconds since its client went; None while it is connected."""
    receive_maximum: int
    """QoS 1 and 2 messages that may be on their way to the client."""
    subscription_count: int
    queued: int
    """Messages that wait."""
    queued_bytes: int
    in_flight: int
    """Messages sent and not acknowledged."""
    inbound: int
    """QoS 2 messages of the client that are not released yet."""
    dropped: int
    """Messages lost so far, for all reasons."""
    subscriptions: tuple[SubscriptionInfo, ...] | None
    """None in lists: look the session up to have them."""


@dataclass(frozen=True, slots=True)
class ClientInfo(SessionInfo):
    """A connected client and its session."""

    username: str | None
    """Of CONNECT."""
    address: str
    """``host:port`` or ``unix``."""
    listener: str
    """The listener's name, or its URL."""
    transport: str
    """The scheme of the listener's URL."""
    protocol: int
    """Version of MQTT: 3 (3.1), 4 (3.1.1) or 5."""
    connected_since: float
    """Unix time, seconds."""
    keep_alive: int
    """Seconds; 0: none."""
    unsent_bytes: int
    """Of what has left the queue and not the broker."""


@dataclass(frozen=True, slots=True)
class RetainedMessage:
    """A retained message."""

    topic: str
    payload: bytes
    qos: QoS
    message_expiry: int | None
    """Seconds left; None: it does not expire."""
    properties: Properties


@dataclass(frozen=True, slots=True)
class RetainedInfo:
    """A retained message without what it says."""

    topic: str
    qos: QoS
    payload_bytes: int
    message_expiry: int | None
    """Seconds left; None: it does not expire."""


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Some of the items. ``next`` is for ``after=`` of the next call; None: these were the last."""

    items: tuple[T, ...]
    next: str | None

    def __iter__(self) -> Iterator[T]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


class Reader:
    """Takes an answer's rows apart."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def at(self) -> int:
        return self._at

    def take(self, layout: struct.Struct) -> tuple[int, ...]:
        values = layout.unpack_from(self._data, self._at)
        self._at += layout.size
        return values

    def bytes(self, count: int) -> bytes:
        found = self._data[self._at : self._at + count]
        self._at += count
        return found

    def text(self) -> str:
        (count,) = self.take(_TEXT)
        return self.bytes(count).decode("utf-8", "replace")


def _session(reader: Reader, served: Mapping[int, Served], detail: bool) -> SessionInfo:
    online, level, durable, will, listener_id, receive_maximum, keep_alive, expiry, *counts = reader.take(_SESSION)
    subscription_count, queued, in_flight, inbound, dropped, queued_bytes, connected_ms, offline_ms, unsent = counts
    client_id, username, address = reader.text(), reader.text(), reader.text()
    (listed,) = reader.take(_COUNT)
    filters = tuple(read_subscription(reader) for _ in range(listed))
    base = (
        client_id,
        bool(online),
        bool(durable),
        bool(will),
        None if expiry == _NEVER else expiry,
        None if online else offline_ms / 1000,
        receive_maximum,
        subscription_count,
        queued,
        queued_bytes,
        in_flight,
        inbound,
        dropped,
        filters if detail else None,
    )
    if not online:
        return SessionInfo(*base)
    listener = served.get(listener_id)
    name, scheme = ("", "") if listener is None else (listener.name, listener.listener.scheme)
    return ClientInfo(*base, username or None, address, name, scheme, level, connected_ms / 1000, keep_alive, unsent)


def read_subscription(reader: Reader) -> SubscriptionInfo:
    options, identifier = reader.take(_FILTER)
    return SubscriptionInfo(
        reader.text(), QoS(options & 3), bool(options & 4), bool(options & 8), RetainHandling(options >> 4 & 3), identifier or None
    )


def checked(answer: Answer) -> Answer:
    if answer.reason >= 0x80:
        raise BrokerError("the broker has no memory for the answer")
    return answer


def page_limit(limit: int) -> int:
    if not 1 <= limit <= MAX_PAGE:
        raise ValueError(f"limit is within 1 .. {MAX_PAGE}")
    return limit


def place_of(hub: Hub, after: str | None) -> tuple[int, int]:
    """Worker and cursor that ``next`` of a page stands for."""
    if after is None:
        return 0, 0
    try:
        worker, cursor = (int(part) for part in after.split("."))
    except ValueError:
        raise ValueError(f"{after!r} is not `next` of a page") from None
    if not 0 <= worker < hub.port.workers or not 0 <= cursor < 2**64:
        raise ValueError(f"{after!r} is not `next` of a page")
    return worker, cursor


def _client_id(client_id: str) -> bytes:
    return client_id.encode("utf-8", "surrogatepass")


async def list_sessions(hub: Hub, connected: bool, limit: int, after: str | None) -> Page[SessionInfo]:
    """Worker after worker, in the order of their tables."""
    wanted = page_limit(limit)
    worker, slot = place_of(hub, after)
    found: list[SessionInfo] = []
    size = 0
    while worker < hub.port.workers:
        answer = checked(await hub.ask(inside.LIST, worker=worker, options=int(connected), number=wanted - len(found), cursor=slot))
        reader = Reader(answer.result)
        size += len(answer.result)
        found += [_session(reader, hub.served, False) for _ in range(answer.count)]
        worker, slot = (worker, answer.cursor) if answer.cursor else (worker + 1, 0)
        if len(found) >= wanted or size >= PAGE_BYTES:
            break
    return Page(tuple(found), f"{worker}.{slot}" if worker < hub.port.workers else None)


async def look_up(hub: Hub, client_id: str) -> SessionInfo | None:
    data = _client_id(client_id)
    answer = checked(await hub.ask(inside.LOOK, worker=hub.port.home(data), data=data))
    return _session(Reader(answer.result), hub.served, True) if answer.count else None


async def disconnect(hub: Hub, client_id: str, reason_code: int) -> bool:
    if reason_code < 0x80:
        raise ValueError("the broker disconnects with a reason code of 0x80 or above")
    codec.encode(codec.Disconnect(reason_code))  # whether MQTT lets it stand there
    data = _client_id(client_id)
    answer = await hub.ask(inside.DISCONNECT, worker=hub.port.home(data), options=int(reason_code), data=data)
    return answer.count != 0


async def end_session(hub: Hub, client_id: str) -> bool:
    data = _client_id(client_id)
    answer = await hub.ask(inside.END, worker=hub.port.home(data), data=data)
    return answer.count != 0


def _plain_filter(topic_filter: str) -> bytes:
    codec.validate_filter(topic_filter)
    if topic_filter.startswith("$share/"):
        raise ValueError("retained messages have no shared filters")
    return topic_filter.encode()


async def list_retained(hub: Hub, topic_filter: str, limit: int, after: str | None) -> Page[RetainedMessage]:
    return await _list_retained(hub, _retained, False, topic_filter, limit, after)


async def list_retained_info(hub: Hub, topic_filter: str, limit: int, after: str | None) -> Page[RetainedInfo]:
    return await _list_retained(hub, _retained_info, True, topic_filter, limit, after)


async def _list_retained(
    hub: Hub, read: Callable[[Reader], R], sizes_only: bool, topic_filter: str, limit: int, after: str | None
) -> Page[R]:
    wanted = page_limit(limit)
    encoded = _plain_filter(topic_filter)
    topic, stripe = (b"" if after is None else after.encode()), _END
    found: list[R] = []
    size = 0
    while True:
        request = {"options": int(sizes_only), "cursor": stripe, "number": wanted - len(found), "split": len(encoded)}
        answer = checked(await hub.ask(inside.RETAINED, worker=0, data=encoded + topic, **request))
        reader = Reader(answer.result)
        size += len(answer.result)
        found += [read(reader) for _ in range(answer.count)]
        stripe, topic = answer.cursor, reader.bytes(answer.split)
        if stripe == _END:
            return Page(tuple(found), None)
        if len(found) >= wanted or (sizes_only and found and size >= PAGE_BYTES):
            return Page(tuple(found), found[-1].topic)


def _retained(reader: Reader) -> RetainedMessage:
    qos, expiry, properties_bytes, payload_bytes = reader.take(_RETAINED)
    topic = reader.text()
    raw, payload = reader.bytes(properties_bytes), reader.bytes(payload_bytes)
    left = None if expiry == 2**64 - 1 else expiry
    return RetainedMessage(topic, payload, QoS(qos), left, decode_properties(raw, left))


def _retained_info(reader: Reader) -> RetainedInfo:
    qos, expiry, _, payload_bytes = reader.take(_RETAINED)
    return RetainedInfo(reader.text(), QoS(qos), payload_bytes, None if expiry == 2**64 - 1 else expiry)


async def delete_retained(hub: Hub, topic_filter: str) -> int:
    encoded = _plain_filter(topic_filter)
    topic, stripe, deleted = b"", _END, 0
    while True:
        answer = checked(
            await hub.ask(inside.CLEAR, worker=0, cursor=stripe, number=_CLEAR_STEP, split=len(encoded), data=encoded + topic)
        )
        deleted += answer.count
        stripe, topic = answer.cursor, answer.result[len(answer.result) - answer.split :]
        if stripe == _END:
            return deleted
