"""A core joined in memory to a broker that the test plays, packet by packet."""

from __future__ import annotations

from typing import Any

from mqttc import codec
from mqttc.client.core import Core, Event, Phase
from mqttc.client.incoming import Receipt
from mqttc.client.message import Message
from mqttc.client.options import Options
from mqttc.client.outgoing import Outgoing
from mqttc.client.requests import Request
from mqttc.client.store import MEMORY, Store
from mqttc.codec import Properties


class Wire:
    """``version`` 3, 4 or 5. Messages of QoS 1 and 2 are acknowledged by the test."""

    def __init__(self, version: int = 5, store: Store = MEMORY, client_id: str = "c", **options: Any) -> None:
        self.version = version
        self.now = 1000.0
        told = Options(version=version, client_id=client_id, **options)
        self.core = Core(told, client_id, store, None, self._acknowledge, lambda: self.now)
        self._decoder = codec.Decoder()

    def open(self) -> codec.Connect:
        """CONNECT, which is the first packet and the only one."""
        self.core.begin(self.version)
        self._decoder = codec.Decoder()
        [packet] = self.sent()
        assert isinstance(packet, codec.Connect) and self._decoder.version == self.version
        return packet

    def connect(self, session_present: bool = False, reason_code: int = 0, **properties: Any) -> list[codec.Packet]:
        """CONNECT and CONNACK; what the core sends then."""
        self.open()
        told = Properties(**properties) if self.version == 5 else None
        self.events = self.give(codec.Connack(reason_code, session_present=session_present, properties=told))
        return self.sent()

    def cut(self) -> None:
        self.core.lost()

    def give(self, *packets: codec.Packet) -> list[Event]:
        return self.core.receive(b"".join(codec.encode(packet, self.version) for packet in packets))

    def raw(self, data: str) -> list[Event]:
        return self.core.receive(bytes.fromhex(data))

    def sent(self) -> list[codec.Packet]:
        return list(self._decoder.feed(self.core.take()))

    def publish(self, topic: str = "t", payload: bytes = b"x", qos: int = 1, retain: bool = False, **properties: Any) -> Outgoing:
        entry = Outgoing(topic, payload, qos, retain, Properties(**properties) if properties else None)
        if entry.properties is not None:
            self.core.expires(entry, entry.properties)
        self.core.publish(entry)
        return entry

    def subscribe(self, *filters: str, qos: int = 2, properties: Properties | None = None) -> Request:
        request = Request(tuple(codec.Subscription(name, qos) for name in filters), properties=properties)
        self.core.request(request)
        return request

    def _acknowledge(self, receipt: Receipt, reason_code: int) -> None:
        self.core.acknowledge(receipt, reason_code)


def messages(events: list[Event]) -> list[Message]:
    return [event for event in events if isinstance(event, Message)]


def ended(wire: Wire) -> bool:
    """The core wants the connection closed."""
    return wire.core.phase is Phase.LEAVING
