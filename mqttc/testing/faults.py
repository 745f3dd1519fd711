"""What is to go wrong between a client and a broker, and for which packets."""

from __future__ import annotations

import asyncio
import enum
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal, TypedDict

from mqttc import codec
from mqttc.codec import PacketType
from mqttc.embed.message import Payload

Side = Literal["broker", "client"]
"""To whom a packet goes."""

FAULT_TIMEOUT_S: Final = 5.0
"""How long ``Fault.wait`` and ``FaultProxy.wait_for`` wait by default."""


class About(TypedDict, total=False):
    """Keyword arguments by which a fault says which packets it is about; see ``FaultProxy``."""

    client_id: str | None
    topic: str | None
    payload: Payload | None
    nth: int
    times: int | None


class AboutEither(About, total=False):
    """The same for packets that may go both ways."""

    to: Side | None


_ONE_WAY: Final[dict[PacketType, Side]] = {
    PacketType.CONNECT: "broker",
    PacketType.SUBSCRIBE: "broker",
    PacketType.UNSUBSCRIBE: "broker",
    PacketType.PINGREQ: "broker",
    PacketType.CONNACK: "client",
    PacketType.SUBACK: "client",
    PacketType.UNSUBACK: "client",
    PacketType.PINGRESP: "client",
}


class Kind(enum.Enum):
    DROP = "drop"
    DUPLICATE = "duplicate"
    CORRUPT = "corrupt"
    HOLD = "hold"
    DELAY = "delay"
    CUT = "cut"
    CUT_AFTER = "cut_after"
    REFUSE = "refuse"
    STOP_READING = "stop_reading"


@dataclass(frozen=True, slots=True)
class SeenPacket:
    """A packet that has reached the proxy, as its sender has sent it."""

    to: Side
    client_id: str
    """Of CONNECT, or as the broker has assigned it; empty before it is known."""
    packet_type: PacketType
    data: bytes
    """All of it, the fixed header included."""
    packet: codec.Packet | None
    """Decoded; None: it is malformed."""
    topic: str | None
    """Of a PUBLISH, also where it has a topic alias instead."""


def packet_type_of(name: PacketType | str) -> PacketType:
    """Raises ``ValueError`` for what is no packet."""
    if isinstance(name, PacketType):
        return name
    try:
        return PacketType[name.upper()]
    except KeyError:
        raise ValueError(f"{name!r} is no MQTT packet; one of {', '.join(one.name for one in PacketType)}") from None


@dataclass(frozen=True, slots=True)
class Selection:
    """Which packets."""

    packet_type: PacketType | None = None
    to: Side | None = None
    client_id: str | None = None
    topic: str | None = None
    """A filter for the topic of PUBLISH, or one of the filters of SUBSCRIBE and UNSUBSCRIBE, as text."""
    payload: bytes | None = None

    def __post_init__(self) -> None:
        if self.to not in ("broker", "client", None):
            raise ValueError(f"to: {self.to!r} is neither 'broker' nor 'client'")
        way = None if self.packet_type is None else _ONE_WAY.get(self.packet_type)
        if way is not None and self.to not in (way, None):
            raise ValueError(f"to: {self.packet_type.name if self.packet_type else ''} goes to the {way}")
        if self.topic is not None:
            codec.validate_filter(self.topic)

    @classmethod
    def of(
        cls, packet: PacketType | str | None, to: Side | None, client_id: str | None, topic: str | None, payload: Payload | None
    ) -> Selection:
        kind = None if packet is None else packet_type_of(packet)
        body = payload.encode() if isinstance(payload, str) else None if payload is None else bytes(payload)
        return cls(kind, to, client_id, topic, body)

    def takes(self, seen: SeenPacket) -> bool:
        if self.packet_type not in (None, seen.packet_type) or not self.takes_way(seen.to, seen.client_id):
            return False
        if self.topic is not None and not self._takes_topic(self.topic, seen):
            return False
        return self.payload is None or (isinstance(seen.packet, codec.Publish) and bytes(seen.packet.payload) == self.payload)

    def takes_way(self, to: Side, client_id: str) -> bool:
        return self.to in (None, to) and self.client_id in (None, client_id)

    @staticmethod
    def _takes_topic(topic_filter: str, seen: SeenPacket) -> bool:
        if seen.topic is not None:
            return codec.topic_matches(topic_filter, seen.topic)
        if isinstance(seen.packet, codec.Subscribe):
            return any(one.topic_filter == topic_filter for one in seen.packet.subscriptions)
        return isinstance(seen.packet, codec.Unsubscribe) and topic_filter in seen.packet.topic_filters

    def __str__(self) -> str:
        parts = ["any packet" if self.packet_type is None else self.packet_type.name]
        parts += [] if self.to is None else [f"to the {self.to}"]
        parts += [f"{name}={value!r}" for name in ("client_id", "topic", "payload") if (value := getattr(self, name)) is not None]
        return " ".join(parts)


@dataclass(eq=False)
class Fault:
    """One thing that goes wrong, from when it was made until it has struck ``times`` times, or until ``remove``."""

    kind: Kind
    selection: Selection
    nth: int = 1
    """The first packet that it strikes, counted from 1 among those that it is about."""
    times: int | None = 1
    """How many packets in a row; None: all further ones."""
    at_byte: int = 0
    mask: int = 0
    reason_code: int = 0
    copies: int = 1
    seconds: float = 0.0
    reset: bool = False
    seen: int = 0
    """Packets so far that it is about."""
    struck: list[SeenPacket] = field(default_factory=list)
    """Packets that it has struck."""
    hits: int = 0
    """How often it has struck."""
    _changed: threading.Condition = field(default_factory=threading.Condition, repr=False)
    _on_loop: Callable[[Callable[[], None]], None] = field(default=lambda call: call(), repr=False)
    _released: asyncio.Event = field(default_factory=asyncio.Event, repr=False)
    _removed: bool = False

    def __post_init__(self) -> None:
        if self.nth < 1 or (self.times is not None and self.times < 1):
            raise ValueError("nth and times are at least 1")

    def __str__(self) -> str:
        return f"{self.kind.value} {self.selection}"

    def wait(self, timeout: float = FAULT_TIMEOUT_S, *, hits: int = 1) -> None:
        """Wait until it has struck so often. ``AssertionError`` after ``timeout`` seconds."""
        __tracebackhide__ = True
        with self._changed:
            if not self._changed.wait_for(lambda: self.hits >= hits, timeout):
                about = f"of {self.seen} packets that it is about"
                raise AssertionError(f"{self}: struck {self.hits} times instead of {hits} within {timeout:g} s, {about}")

    def release(self) -> None:
        """What ``hold`` and ``stop_reading`` keep back goes on, and further packets go through."""
        self._on_loop(self._released.set)

    def remove(self) -> None:
        """It strikes no more; see ``release``."""
        self._removed = True
        self.release()

    # ---- for the proxy, on its loop

    def strikes(self, seen: SeenPacket) -> bool:
        """Counts the packet if the fault is about it."""
        if self._removed or self.kind in (Kind.CUT_AFTER, Kind.STOP_READING) or not self.selection.takes(seen):
            return False
        self.seen += 1
        return self.seen >= self.nth and (self.times is None or self.seen < self.nth + self.times)

    def holds_reading(self, to: Side, client_id: str) -> bool:
        active = self.kind is Kind.STOP_READING and not self._removed and not self._released.is_set()
        return active and self.selection.takes_way(to, client_id)

    def count(self, seen: SeenPacket | None) -> None:
        with self._changed:
            self.hits += 1
            if seen is not None:
                self.struck.append(seen)
            self._changed.notify_all()

    async def released(self) -> None:
        await self._released.wait()
