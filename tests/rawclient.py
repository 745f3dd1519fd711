"""A raw-socket MQTT peer for black-box tests, written against the standards alone.

It shares no code with the package under test, so that an error in the package's codec cannot hide itself. It never
sleeps: every read has a deadline (`TIMEOUT` seconds, `MQTTC_TEST_TIMEOUT` in the environment), and packets that arrive
while another one is awaited are set aside in order and handed out later. It speaks over whatever `transports` opens.

Versions are protocol levels: 3 is MQTT 3.1, 4 is MQTT 3.1.1, 5 is MQTT 5.0.
"""

from __future__ import annotations

import contextlib
import os
import ssl
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from .transports import Address, Link, Pipe, Road, open_pipe, open_socket, readable, secure

TIMEOUT = float(os.environ.get("MQTTC_TEST_TIMEOUT", "5"))

CONNECT, CONNACK, PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP = range(1, 8)
SUBSCRIBE, SUBACK, UNSUBSCRIBE, UNSUBACK, PINGREQ, PINGRESP, DISCONNECT, AUTH = range(8, 16)

NAMES = {
    1: "CONNECT", 2: "CONNACK", 3: "PUBLISH", 4: "PUBACK", 5: "PUBREC", 6: "PUBREL", 7: "PUBCOMP", 8: "SUBSCRIBE",
    9: "SUBACK", 10: "UNSUBSCRIBE", 11: "UNSUBACK", 12: "PINGREQ", 13: "PINGRESP", 14: "DISCONNECT", 15: "AUTH",
}  # fmt: skip

PAYLOAD_FORMAT, MESSAGE_EXPIRY, CONTENT_TYPE, RESPONSE_TOPIC, CORRELATION_DATA = 0x01, 0x02, 0x03, 0x08, 0x09
SUBSCRIPTION_ID, SESSION_EXPIRY, ASSIGNED_ID, SERVER_KEEP_ALIVE = 0x0B, 0x11, 0x12, 0x13
AUTH_METHOD, AUTH_DATA, REQUEST_PROBLEM, WILL_DELAY, REQUEST_RESPONSE = 0x15, 0x16, 0x17, 0x18, 0x19
RESPONSE_INFO, SERVER_REFERENCE, REASON_STRING, RECEIVE_MAXIMUM, ALIAS_MAXIMUM = 0x1A, 0x1C, 0x1F, 0x21, 0x22
TOPIC_ALIAS, MAXIMUM_QOS, RETAIN_AVAILABLE, USER_PROPERTY, MAXIMUM_PACKET_SIZE = 0x23, 0x24, 0x25, 0x26, 0x27
WILDCARD_AVAILABLE, SUBSCRIPTION_ID_AVAILABLE, SHARED_AVAILABLE = 0x28, 0x29, 0x2A

# Property identifier -> wire type: byte, two bytes, four bytes, variable byte integer, string, binary, pair.
PROPERTY_TYPES = {
    0x01: "1", 0x02: "4", 0x03: "s", 0x08: "s", 0x09: "b", 0x0B: "v", 0x11: "4", 0x12: "s", 0x13: "2", 0x15: "s",
    0x16: "b", 0x17: "1", 0x18: "4", 0x19: "1", 0x1A: "s", 0x1C: "s", 0x1F: "s", 0x21: "2", 0x22: "2", 0x23: "2",
    0x24: "1", 0x25: "1", 0x26: "p", 0x27: "4", 0x28: "1", 0x29: "1", 0x2A: "1",
}  # fmt: skip

Properties = Sequence[tuple[int, Any]]


class PeerClosed(Exception):
    """The other side closed the connection while a packet was awaited."""


class PeerTimeout(AssertionError):
    """Nothing (or not enough) arrived before the deadline."""


# ---------------------------------------------------------------------------------------------------- writing


def hexed(text: str) -> bytes:
    """Bytes of a hex dump; blanks are free."""
    return bytes.fromhex(text)


def raw_text(value: str | bytes) -> bytes:
    """Bytes of a string field; bytes go as they are so that ill-formed strings can be made."""
    return value if isinstance(value, bytes) else value.encode("utf-8")


def string(value: str | bytes) -> bytes:
    """A UTF-8 Encoded String or Binary Data field: two-byte length and bytes."""
    data = raw_text(value)
    return struct.pack(">H", len(data)) + data


def varint(value: int) -> bytes:
    """A Variable Byte Integer in the fewest bytes."""
    out = bytearray()
    while True:
        value, digit = value >> 7, value & 0x7F
        out.append(digit | 0x80 if value else digit)
        if not value:
            return bytes(out)


def properties(items: Properties) -> bytes:
    """A property block with its length in front."""
    out = bytearray()
    for identifier, value in items:
        out += varint(identifier)
        kind = PROPERTY_TYPES[identifier]
        if kind == "1":
            out.append(value)
        elif kind == "2":
            out += struct.pack(">H", value)
        elif kind == "4":
            out += struct.pack(">I", value)
        elif kind == "v":
            out += varint(value)
        elif kind == "p":
            out += string(value[0]) + string(value[1])
        else:
            out += string(value)
    return varint(len(out)) + bytes(out)


def packet(first: int, body: bytes) -> bytes:
    """A whole packet: first byte, Remaining Length, body."""
    return bytes([first]) + varint(len(body)) + body


@dataclass(frozen=True)
class Will:
    """The will of a CONNECT. `props` are the Will Properties, sent in version 5 only."""

    topic: str | bytes
    payload: bytes = b"x"
    qos: int = 0
    retain: bool = False
    props: Properties = ()


def connect_packet(
    client_id: str | bytes,
    version: int = 4,
    *,
    clean: bool = True,
    keep_alive: int = 0,
    props: Properties = (),
    expiry: int | None = None,
    will: Will | None = None,
    username: str | bytes | None = None,
    password: bytes | None = None,
    name: str | None = None,
    level: int | None = None,
) -> bytes:
    """A CONNECT. `expiry` adds a Session Expiry Interval in version 5 and is left out in the others."""
    flags = 2 if clean else 0
    payload = string(client_id)
    if will is not None:
        flags |= 4 | will.qos << 3 | (32 if will.retain else 0)
        if version == 5:
            payload += properties(will.props)
        payload += string(will.topic) + string(will.payload)
    if username is not None:
        flags |= 128
        payload += string(username)
    if password is not None:
        flags |= 64
        payload += string(password)
    head = string(name if name is not None else ("MQIsdp" if version == 3 else "MQTT"))
    head += bytes([level if level is not None else version, flags]) + struct.pack(">H", keep_alive)
    if version == 5:
        extra: Properties = () if expiry is None else ((SESSION_EXPIRY, expiry),)
        head += properties([*extra, *props])
    return packet(CONNECT << 4, head + payload)


def publish_packet(
    topic: str | bytes,
    payload: bytes = b"",
    version: int = 4,
    *,
    qos: int = 0,
    retain: bool = False,
    dup: bool = False,
    packet_id: int = 1,
    props: Properties = (),
) -> bytes:
    """A PUBLISH; the identifier goes in when `qos` is above 0."""
    body = string(topic)
    if qos:
        body += struct.pack(">H", packet_id)
    if version == 5:
        body += properties(props)
    return packet(PUBLISH << 4 | (8 if dup else 0) | qos << 1 | int(retain), body + payload)


def ack_packet(kind: int, packet_id: int, reason: int | None = None, props: Properties | None = None) -> bytes:
    """PUBACK, PUBREC, PUBREL or PUBCOMP; without `reason` in the two-byte form, which all versions share."""
    body = struct.pack(">H", packet_id)
    if reason is not None:
        body += bytes([reason])
    if props is not None:
        body += properties(props)
    return packet(kind << 4 | (2 if kind == PUBREL else 0), body)


def subscribe_packet(filters: Iterable[tuple[str | bytes, int]], version: int = 4, *, packet_id: int = 1, props: Properties = ()) -> bytes:
    """A SUBSCRIBE of (filter, options byte) pairs."""
    body = struct.pack(">H", packet_id) + (properties(props) if version == 5 else b"")
    return packet(SUBSCRIBE << 4 | 2, body + b"".join(string(f) + bytes([o]) for f, o in filters))


def unsubscribe_packet(filters: Iterable[str | bytes], version: int = 4, *, packet_id: int = 1, props: Properties = ()) -> bytes:
    """An UNSUBSCRIBE of filters."""
    body = struct.pack(">H", packet_id) + (properties(props) if version == 5 else b"")
    return packet(UNSUBSCRIBE << 4 | 2, body + b"".join(string(f) for f in filters))


def disconnect_packet(reason: int | None = None, props: Properties | None = None) -> bytes:
    """A DISCONNECT; bare without `reason`."""
    body = b"" if reason is None else bytes([reason])
    if props is not None:
        body += properties(props)
    return packet(DISCONNECT << 4, body)


PING = b"\xc0\x00"


# ---------------------------------------------------------------------------------------------------- reading


@dataclass
class Packet:
    """One packet as received; fields that its type does not have stay at their defaults."""

    type: int
    flags: int
    raw: bytes
    packet_id: int = 0
    reason: int = 0
    reasons: list[int] = field(default_factory=list)
    session_present: bool = False
    topic: str = ""
    payload: bytes = b""
    props: list[tuple[int, Any]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return NAMES.get(self.type, f"type {self.type}")

    @property
    def qos(self) -> int:
        return self.flags >> 1 & 3

    @property
    def dup(self) -> bool:
        return bool(self.flags & 8)

    @property
    def retain(self) -> bool:
        return bool(self.flags & 1)

    def prop(self, identifier: int, default: Any = None) -> Any:
        """Value of the first property of that identifier."""
        return next((v for i, v in self.props if i == identifier), default)

    def all_props(self, identifier: int) -> list[Any]:
        """Values of all properties of that identifier, in order."""
        return [v for i, v in self.props if i == identifier]


class Cursor:
    """Reads fields off a packet body; raises AssertionError when the server's packet is ill-formed."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def take(self, count: int) -> bytes:
        assert count <= self.left, f"field of {count} bytes past the end of {self.data.hex(' ')}"
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def varint(self) -> int:
        value = shift = 0
        while True:
            digit = self.number(1)
            value |= (digit & 0x7F) << shift
            if not digit & 0x80:
                assert shift == 0 or digit, "Variable Byte Integer longer than needed"
                return value
            shift += 7
            assert shift < 28, "Variable Byte Integer of more than four bytes"

    def binary(self) -> bytes:
        return self.take(self.number(2))

    def text(self) -> str:
        return self.binary().decode("utf-8")

    def properties(self) -> list[tuple[int, Any]]:
        inner = Cursor(self.take(self.varint()))
        found: list[tuple[int, Any]] = []
        while inner.left:
            identifier = inner.varint()
            kind = PROPERTY_TYPES[identifier]
            if kind in "124":
                found.append((identifier, inner.number(int(kind))))
            elif kind == "v":
                found.append((identifier, inner.varint()))
            elif kind == "s":
                found.append((identifier, inner.text()))
            elif kind == "p":
                found.append((identifier, (inner.text(), inner.text())))
            else:
                found.append((identifier, inner.binary()))
        return found


# What a server may send, with its fixed flags (None: any) and the properties each packet may carry in version 5.
SERVER_PACKETS: dict[int, tuple[int | None, set[int]]] = {
    CONNACK: (0, {0x11, 0x12, 0x13, 0x15, 0x16, 0x1A, 0x1C, 0x1F, 0x21, 0x22, 0x24, 0x25, 0x26, 0x27, 0x28, 0x29, 0x2A}),
    PUBLISH: (None, {0x01, 0x02, 0x03, 0x08, 0x09, 0x0B, 0x23, 0x26}),
    PUBACK: (0, {0x1F, 0x26}),
    PUBREC: (0, {0x1F, 0x26}),
    PUBREL: (2, {0x1F, 0x26}),
    PUBCOMP: (0, {0x1F, 0x26}),
    SUBACK: (0, {0x1F, 0x26}),
    UNSUBACK: (0, {0x1F, 0x26}),
    PINGRESP: (0, set()),
    DISCONNECT: (0, {0x1C, 0x1F, 0x26}),
    AUTH: (0, {0x15, 0x16, 0x1F, 0x26}),
}


def parse(raw: bytes, version: int) -> Packet:
    """Parse one whole packet that a server sent; AssertionError when the server breaks the format."""
    got = Packet(raw[0] >> 4, raw[0] & 15, raw)
    assert got.type in SERVER_PACKETS, f"a server may not send {got.name}: {raw.hex(' ')}"
    flags, allowed = SERVER_PACKETS[got.type]
    assert flags is None or flags == got.flags, f"{got.name} with flags {got.flags}"
    start = Cursor(raw[1:])
    start.varint()
    body = Cursor(start.take(start.left))
    five = version == 5
    if got.type == CONNACK:
        acknowledge_flags = body.number(1)
        assert acknowledge_flags < 2, "reserved CONNACK flags"
        got.session_present = bool(acknowledge_flags)
        got.reason = body.number(1)
        if five and body.left:
            got.props = body.properties()
    elif got.type == PUBLISH:
        assert got.qos < 3, "PUBLISH with QoS 3"
        assert got.qos or not got.dup, "QoS 0 PUBLISH with DUP"
        got.topic = body.text()
        if got.qos:
            got.packet_id = body.number(2)
            assert got.packet_id, "Packet Identifier 0"
        if five:
            got.props = body.properties()
        got.payload = body.take(body.left)
    elif got.type in (PUBACK, PUBREC, PUBREL, PUBCOMP):
        got.packet_id = body.number(2)
        if five and body.left:
            got.reason = body.number(1)
            if body.left:
                got.props = body.properties()
    elif got.type in (SUBACK, UNSUBACK):
        got.packet_id = body.number(2)
        if five:
            got.props = body.properties()
        if five or got.type == SUBACK:
            got.reasons = list(body.take(body.left))
    elif got.type in (DISCONNECT, AUTH):
        assert five, f"{got.name} sent to a version {version} client"
        if body.left:
            got.reason = body.number(1)
            if body.left:
                got.props = body.properties()
    assert not body.left, f"bytes left over in {got.name}: {raw.hex(' ')}"
    identifiers = [i for i, _ in got.props]
    assert set(identifiers) <= allowed, f"{got.name} with properties {identifiers}"
    for identifier in set(identifiers) - {USER_PROPERTY, SUBSCRIPTION_ID}:
        assert identifiers.count(identifier) == 1, f"{got.name} repeats property {identifier:#x}"
    return got


def packet_end(buffer: bytes | bytearray) -> int | None:
    """Length of the first packet in the buffer, or None while it is incomplete."""
    value = shift = 0
    for at in range(1, min(len(buffer), 5)):
        value |= (buffer[at] & 0x7F) << shift
        shift += 7
        if not buffer[at] & 0x80:
            return at + 1 + value if len(buffer) >= at + 1 + value else None
    assert len(buffer) < 5, "Remaining Length of more than four bytes"
    return None


class Peer:
    """One client side connection. `version` fixes how packets are written and read.

    `road`: how to get there, else a plain socket; `link`: over a stream of that connection; `pipe`: what is open already. `tls`: over TLS,
    to the host of that name.
    `socket` is what one can wait on; with HTTP/2 and QUIC it is a socket pair's.
    """

    def __init__(
        self,
        address: Address,
        version: int = 4,
        *,
        tls: ssl.SSLContext | None = None,
        host: str | None = "localhost",
        session: ssl.SSLSession | None = None,
        road: Road | None = None,
        link: Link | None = None,
        pipe: Pipe | None = None,
    ) -> None:
        self.pipe: Pipe
        if pipe is not None:
            self.pipe = pipe
        elif road is not None:
            self.pipe = open_pipe(address, road, link=link)
        elif tls is not None:
            self.pipe = Pipe(secure(open_socket(address), tls, host, session))
        else:
            self.pipe = Pipe(open_socket(address))
        self.socket: Any = self.pipe.socket
        self.version = version
        self.client_id: str | bytes = ""
        self.aside: deque[Packet] = deque()
        self.buffer = bytearray()
        self.closed = False
        self.next_id = 0
        self.aliases: dict[int, str] = {}

    # ------------------------------------------------------------------------------------------ bytes

    def send(self, *parts: bytes | str) -> None:
        """Send all parts in one write; strings are hex dumps."""
        self._write(b"".join(hexed(p) if isinstance(p, str) else p for p in parts))

    def send_split(self, data: bytes, sizes: Callable[[], int] = lambda: 1) -> None:
        """Send in pieces of the sizes that `sizes` gives, each in a segment (TCP_NODELAY) or frame of its own."""
        at = 0
        while at < len(data):
            step = max(1, sizes())
            self._write(data[at : at + step])
            at += step

    def _write(self, data: bytes) -> None:
        try:
            self.pipe.send(data)
        except (ConnectionResetError, BrokenPipeError, ssl.SSLError) as error:
            raise PeerClosed from error

    def _fill(self, deadline: float) -> None:
        """Read once into the buffer; PeerTimeout past the deadline, PeerClosed at the end of the stream."""
        if self.closed:
            raise PeerClosed
        left = deadline - time.monotonic()
        if left <= 0 or not (self.pipe.held() or readable(self.socket, left)):
            raise PeerTimeout(f"nothing arrived in time (buffer: {bytes(self.buffer).hex(' ')})")
        try:
            data = self.pipe.receive()
        except (ConnectionResetError, BrokenPipeError, ssl.SSLError):
            data = b""
        if data == b"":
            self.closed = True
            raise PeerClosed
        self.buffer += data or b""

    def _read(self, timeout: float | None = None) -> Packet:
        deadline = time.monotonic() + (TIMEOUT if timeout is None else timeout)
        while True:
            end = packet_end(self.buffer)
            if end is not None:
                raw = bytes(self.buffer[:end])
                del self.buffer[:end]
                return parse(raw, self.version)
            self._fill(deadline)

    # ------------------------------------------------------------------------------------------ packets

    def recv(self, timeout: float | None = None) -> Packet:
        """The next packet, those set aside first."""
        return self.aside.popleft() if self.aside else self._read(timeout)

    def expect(self, kind: int, **fields: Any) -> Packet:
        """The next packet, which must be of that type and have those field values."""
        got = self.recv()
        assert got.type == kind, f"expected {NAMES[kind]}, got {got}"
        for key, value in fields.items():
            assert getattr(got, key) == value, f"{key} is {getattr(got, key)!r}, expected {value!r}: {got}"
        return got

    def await_packet(self, kind: int, packet_id: int | None = None) -> Packet:
        """Read on until a packet of that type (and identifier) comes; the others are set aside in order."""
        for got in self.aside:
            if got.type == kind and packet_id in (None, got.packet_id):
                self.aside.remove(got)
                return got
        while True:
            got = self._read()
            if got.type == kind and packet_id in (None, got.packet_id):
                return got
            self.aside.append(got)

    def expect_close(self, timeout: float | None = None) -> list[Packet]:
        """Read to the end of the stream; the packets that came before it. PeerTimeout if it stays open."""
        got = list(self.aside)
        self.aside.clear()
        while True:
            try:
                got.append(self._read(timeout))
            except PeerClosed:
                assert not self.buffer, f"part of a packet before the close: {bytes(self.buffer).hex(' ')}"
                return got

    # ------------------------------------------------------------------------------------------ verbs

    def packet_id(self) -> int:
        """A fresh identifier for packets of this side."""
        self.next_id = self.next_id % 65535 + 1
        return self.next_id

    def connect(self, client_id: str | bytes, **options: Any) -> Packet:
        """Send CONNECT and read the first answer, which must be CONNACK."""
        self.client_id = client_id
        self.send(connect_packet(client_id, self.version, **options))
        return self.expect(CONNACK)

    def subscribe_many(self, filters: Iterable[tuple[str | bytes, int]], props: Properties = ()) -> list[int]:
        """SUBSCRIBE; the return or reason codes of its SUBACK."""
        packet_id = self.packet_id()
        self.send(subscribe_packet(filters, self.version, packet_id=packet_id, props=props))
        return self.await_packet(SUBACK, packet_id).reasons

    def subscribe(self, topic_filter: str | bytes, options: int = 0, subscription_id: int | None = None) -> None:
        """SUBSCRIBE to one filter; it must be granted at the QoS asked for."""
        props: Properties = () if subscription_id is None else ((SUBSCRIPTION_ID, subscription_id),)
        assert self.subscribe_many([(topic_filter, options)], props) == [options & 3]

    def unsubscribe(self, *filters: str | bytes) -> Packet:
        """UNSUBSCRIBE; its UNSUBACK."""
        packet_id = self.packet_id()
        self.send(unsubscribe_packet(filters, self.version, packet_id=packet_id))
        return self.await_packet(UNSUBACK, packet_id)

    def publish(
        self,
        topic: str | bytes,
        payload: bytes | str = b"x",
        qos: int = 0,
        *,
        retain: bool = False,
        dup: bool = False,
        props: Properties = (),
        packet_id: int | None = None,
    ) -> Packet | None:
        """PUBLISH and the whole exchange of its QoS; the PUBACK or PUBREC."""
        if packet_id is None:
            packet_id = self.packet_id() if qos else 0
        data = raw_text(payload)
        self.send(publish_packet(topic, data, self.version, qos=qos, retain=retain, dup=dup, packet_id=packet_id, props=props))
        if qos == 0:
            return None
        if qos == 1:
            return self.await_packet(PUBACK, packet_id)
        received = self.await_packet(PUBREC, packet_id)
        if received.reason < 0x80:
            self.send(ack_packet(PUBREL, packet_id))
            self.await_packet(PUBCOMP, packet_id)
        return received

    def ping(self) -> None:
        """PINGREQ and its PINGRESP; other packets are set aside."""
        self.send(PING)
        self.await_packet(PINGRESP)

    def answer(self, got: Packet, reason: int | None = None) -> None:
        """Acknowledge a PUBLISH by its QoS, to the end of the exchange."""
        if got.qos == 1:
            self.send(ack_packet(PUBACK, got.packet_id, reason))
        elif got.qos == 2:
            self.send(ack_packet(PUBREC, got.packet_id, reason))
            if reason is None or reason < 0x80:
                self.await_packet(PUBREL, got.packet_id)
                self.send(ack_packet(PUBCOMP, got.packet_id))

    def message(self, topic: str | None = None, *, answer: bool = True) -> Packet:
        """The next packet, which must be a PUBLISH (on that topic); acknowledged unless told otherwise."""
        got = self.expect(PUBLISH)
        alias = got.prop(TOPIC_ALIAS)
        if alias is not None:
            if got.topic:
                self.aliases[alias] = got.topic
            else:
                got.topic = self.aliases[alias]
        assert got.topic, "PUBLISH without a topic"
        if topic is not None:
            assert got.topic == topic, f"topic {got.topic!r}, expected {topic!r}"
        if answer:
            self.answer(got)
        return got

    def messages(self, count: int, *, answer: bool = True) -> list[Packet]:
        """The next `count` packets, which must all be PUBLISH."""
        return [self.message(answer=answer) for _ in range(count)]

    def messages_until(self, last_topic: str, *, answer: bool = True) -> list[Packet]:
        """All messages before the one on `last_topic`, which is read and acknowledged too."""
        got: list[Packet] = []
        while True:
            item = self.message(answer=False)
            if item.topic == last_topic:
                self.answer(item)
                return got
            if answer:
                self.answer(item)
            got.append(item)

    # ------------------------------------------------------------------------------------------ endings

    def disconnect(self, reason: int | None = None, props: Properties | None = None) -> None:
        """DISCONNECT, then wait until the server has closed, so that it is known to have been processed."""
        self.send(disconnect_packet(reason, props))
        self.finish()

    def finish(self) -> None:
        """End the stream of this side and read until the server has closed; what comes is thrown away."""
        try:
            self.pipe.finish()
        except OSError:
            self.closed = True
        deadline = time.monotonic() + TIMEOUT
        try:
            while True:
                self._fill(deadline)
        except PeerClosed:
            pass
        self.close()

    drop = finish  # without DISCONNECT before it, an end of stream is an abnormal close

    def reset(self) -> None:
        """Break the connection off: a TCP reset, or that of the stream."""
        self.closed = True
        self.pipe.reset()

    def close(self) -> None:
        """Close the socket at once."""
        self.closed = True
        self.pipe.close()


@contextlib.contextmanager
def flooded(address: tuple[str, int]) -> Iterator[None]:
    """A client does not read what another has published, more than its socket buffers hold: an orderly end waits for it."""
    subscriber, publisher = Peer(address, 4), Peer(address, 4)
    try:
        subscriber.connect("subscriber")
        subscriber.subscribe("flood", 0)
        publisher.connect("publisher")
        for _ in range(100):
            publisher.publish("flood", bytes(200_000), 0)
        publisher.ping()
        yield
    finally:
        subscriber.close()
        publisher.close()
