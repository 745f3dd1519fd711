"""One connection through a ``FaultProxy``: bytes become packets, and packets meet faults."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import TYPE_CHECKING, Final

from mqttc import codec
from mqttc.codec import PacketType
from mqttc.testing.faults import Fault, Kind, SeenPacket, Side

if TYPE_CHECKING:
    from mqttc.testing.proxy import FaultProxy

READ_BYTES: Final = 65536
_RESET: Final = struct.pack("ii", 1, 0)


class Cut(Exception):
    """The connection breaks here."""


class Connection:
    """Of one client. Everything happens on the proxy's loop, on sockets without buffers of our own: what was sent is with the system."""

    def __init__(self, proxy: FaultProxy, client: socket.socket) -> None:
        self._proxy = proxy
        self._sockets: dict[Side, socket.socket] = {"client": client}
        self._writing: dict[Side, asyncio.Lock] = {"client": asyncio.Lock(), "broker": asyncio.Lock()}
        self._sent: dict[Side, int] = {"client": 0, "broker": 0}
        self._aliases: dict[Side, dict[int, str]] = {"client": {}, "broker": {}}
        self._unheard: dict[Side, set[int]] = {"client": set(), "broker": set()}  # aliases whose PUBLISH did not arrive
        self.client_id = ""
        self.version: int | None = None
        self.reset = False
        """It ends with a TCP reset."""

    async def run(self, target: tuple[str, int]) -> None:
        """Until both directions have ended, or it is cut."""
        loop = asyncio.get_running_loop()
        family = socket.AF_INET6 if ":" in target[0] else socket.AF_INET
        upstream = self._sockets["broker"] = socket.socket(family, socket.SOCK_STREAM)
        for one in self._sockets.values():
            one.setblocking(False)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await loop.sock_connect(upstream, target)
        pipes = [loop.create_task(self._pipe("broker")), loop.create_task(self._pipe("client"))]
        try:
            await asyncio.gather(*pipes)
        except Cut:
            pass
        except ConnectionError:
            self.reset = True  # as one side has seen it, so does the other
        finally:
            for pipe in pipes:
                pipe.cancel()
            await asyncio.gather(*pipes, return_exceptions=True)

    def close(self) -> None:
        for one in self._sockets.values():
            if self.reset:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            one.close()

    # ---- bytes

    async def _pipe(self, to: Side) -> None:
        loop = asyncio.get_running_loop()
        source = self._sockets["client" if to == "broker" else "broker"]
        buffer = bytearray()
        opaque = False
        while True:
            await self._may_read(to)
            data = await loop.sock_recv(source, READ_BYTES)
            await self._may_read(to)
            if not data:
                await self._send(to, bytes(buffer))
                self._sockets[to].shutdown(socket.SHUT_WR)
                return
            buffer += data
            while not opaque and (size := frame_size(buffer)):
                if size < 0:
                    opaque = True  # no MQTT from here on: it goes through as it is
                    break
                frame = bytes(buffer[:size])
                del buffer[:size]
                await self._packet(to, frame)
            if opaque:
                await self._send(to, bytes(buffer))
                buffer.clear()

    async def _may_read(self, to: Side) -> None:
        for fault in self._proxy.faults:
            if fault.holds_reading(to, self.client_id):
                fault.count(None)
                await fault.released()

    async def _send(self, to: Side, data: bytes) -> None:
        """All of it, unless the connection is to break before."""
        loop = asyncio.get_running_loop()
        async with self._writing[to]:
            for fault in self._proxy.faults:
                if fault.kind is Kind.CUT_AFTER and self._cuts(fault, to, len(data)):
                    fault.count(None)
                    await loop.sock_sendall(self._sockets[to], data[: max(0, fault.at_byte - self._sent[to])])
                    self.reset = fault.reset
                    raise Cut
            self._sent[to] += len(data)
            await loop.sock_sendall(self._sockets[to], data)

    def _cuts(self, fault: Fault, to: Side, size: int) -> bool:
        spent = fault.times is not None and fault.hits >= fault.times
        return not spent and fault.selection.takes_way(to, self.client_id) and self._sent[to] + size >= fault.at_byte

    # ---- packets

    async def _packet(self, to: Side, frame: bytes) -> None:
        seen = self._look(to, frame)
        fault = self._proxy.saw(seen)
        frame = self._with_topic(seen, fault is not None and fault.kind in (Kind.DROP, Kind.REFUSE))
        if fault is None:
            await self._send(to, frame)
            return
        fault.count(seen)
        if fault.kind is Kind.DUPLICATE:
            await self._send(to, frame * (1 + fault.copies))
        elif fault.kind is Kind.CORRUPT:
            await self._send(to, corrupted(frame, fault.at_byte, fault.mask))
        elif fault.kind is Kind.HOLD:
            await fault.released()
            await self._send(to, frame)
        elif fault.kind is Kind.DELAY:
            await asyncio.sleep(fault.seconds)
            await self._send(to, frame)
        elif fault.kind is Kind.CUT:
            await self._send(to, frame[: fault.at_byte])
            self.reset = fault.reset
            raise Cut
        elif fault.kind is Kind.REFUSE:
            await self._refuse(seen, fault)

    def _with_topic(self, seen: SeenPacket, lost: bool) -> bytes:
        """What is lost is a message, not the topic alias that it has set: the next message with that alias says its topic again."""
        packet = seen.packet
        if isinstance(packet, codec.Publish) and packet.properties.topic_alias is not None:
            unheard, alias = self._unheard[seen.to], packet.properties.topic_alias
            if lost and packet.topic:
                unheard.add(alias)
            elif not lost and alias in unheard:
                unheard.discard(alias)
                return codec.encode(packet.replace(topic=seen.topic))
        return seen.data

    async def _refuse(self, seen: SeenPacket, fault: Fault) -> None:
        packet = seen.packet
        answer = None if packet is None else answer_to(packet, fault.reason_code, self.version or 5)
        if answer is not None:
            await self._send("client", answer)
        if isinstance(packet, codec.Connect) or (answer is None and isinstance(packet, codec.Publish) and packet.qos):
            raise Cut  # [MQTT-3.2.2-7], and [MQTT-3.3.5-2] of 3.1.1

    def _look(self, to: Side, frame: bytes) -> SeenPacket:
        kind = frame[0] >> 4
        packet: codec.Packet | None = None
        try:
            decoder = codec.Decoder(None if kind == PacketType.CONNECT else self.version)
            packet = next(decoder.feed(frame))
            if isinstance(packet, codec.Connect):
                self.version, self.client_id = decoder.version, packet.client_id
        except (codec.DecodeError, StopIteration):
            pass
        topic = None
        if isinstance(packet, codec.Connack) and packet.properties.assigned_client_identifier:
            self.client_id = packet.properties.assigned_client_identifier
        if isinstance(packet, codec.Publish):
            alias = packet.properties.topic_alias
            topic = packet.topic or self._aliases[to].get(alias or 0, "")
            if alias is not None and packet.topic:
                self._aliases[to][alias] = packet.topic
        return SeenPacket(to, self.client_id, PacketType(kind), frame, packet, topic)


def frame_size(data: bytearray) -> int:
    """Bytes of the packet that they begin with; 0: its end has not come; -1: they are no packet (section 2.1.4)."""
    if data and data[0] < 16:
        return -1
    length = 0
    for place in range(1, 5):
        if len(data) <= place:
            return 0
        length |= (data[place] & 127) << (7 * (place - 1))
        if data[place] < 128:
            size = place + 1 + length
            return size if len(data) >= size else 0
    return -1


def corrupted(frame: bytes, at_byte: int, mask: int) -> bytes:
    place = at_byte if at_byte >= 0 else len(frame) + at_byte
    place = min(max(place, 0), len(frame) - 1)
    return frame[:place] + bytes([frame[place] ^ mask]) + frame[place + 1 :]


def answer_to(packet: codec.Packet, code: int, version: int) -> bytes | None:
    """The packet that refuses it; None: that version has none. Raises ``codec.EncodeError`` for a code that does not stand there."""
    if isinstance(packet, codec.Connect):
        try:
            return codec.encode(codec.Connack(code), version)
        except codec.EncodeError:
            if version == 5:
                raise
            return codec.encode(codec.Connack(codec.ReasonCode.SERVER_UNAVAILABLE), version)
    if isinstance(packet, codec.Subscribe):
        return codec.encode(codec.Suback(packet.packet_id, [code if version == 5 else 0x80] * len(packet.subscriptions)), version)
    if isinstance(packet, codec.Unsubscribe):
        return codec.encode(codec.Unsuback(packet.packet_id, [code] * len(packet.topic_filters) if version == 5 else ()), version)
    if isinstance(packet, codec.Publish) and packet.qos and version == 5:
        return codec.encode(codec.Puback(packet.packet_id, code) if packet.qos == 1 else codec.Pubrec(packet.packet_id, code))
    return None


_SAMPLES: Final = {
    PacketType.CONNECT: codec.Connect("a"),
    PacketType.SUBSCRIBE: codec.Subscribe(1, [codec.Subscription("a")]),
    PacketType.UNSUBSCRIBE: codec.Unsubscribe(1, ["a"]),
    PacketType.PUBLISH: codec.Publish("a", qos=1, packet_id=1),
}


def check_refusal(kind: PacketType, code: int) -> None:
    """Raises ``ValueError`` for a packet that has no refusal, and for a reason code that is not one of it."""
    if kind not in _SAMPLES:
        raise ValueError(f"{kind.name} cannot be refused; {', '.join(one.name for one in _SAMPLES)} can")
    if not 0x80 <= code <= 0xFF:
        raise ValueError("reason_code: 0x80 to 0xFF")
    answer_to(_SAMPLES[kind], code, 5)
