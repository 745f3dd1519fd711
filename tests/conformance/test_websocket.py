"""MQTT over WebSocket, section 6 of both standards, and what RFC 6455 asks of a server: over HTTP/1.1 and HTTP/2, plain and with TLS.

These run once, whatever `MQTTC_TEST_TRANSPORT` is: they open WebSockets of their own.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ..rawclient import (
    CONNACK,
    PING,
    PINGRESP,
    PUBACK,
    SUBACK,
    TIMEOUT,
    Peer,
    PeerClosed,
    Will,
    connect_packet,
    publish_packet,
    subscribe_packet,
)
from ..transports import WEBSOCKET, Refused, WebSocketPipe
from .conftest import EXTERNAL, Address, TestBroker, address_of, broker_config, listener_for, road
from .statements import each_version, spec

BINARY_311, BINARY_5 = spec("3.1.1", "MQTT-6.0.0-1"), spec("5", "MQTT-6.0.0-1")
UNALIGNED_311, UNALIGNED_5 = spec("3.1.1", "MQTT-6.0.0-2"), spec("5", "MQTT-6.0.0-2")
OFFERED_311, OFFERED_5 = spec("3.1.1", "MQTT-6.0.0-3"), spec("5", "MQTT-6.0.0-3")
SELECTED_311, SELECTED_5 = spec("3.1.1", "MQTT-6.0.0-4"), spec("5", "MQTT-6.0.0-4")

each_transport = pytest.mark.parametrize("transport", WEBSOCKET)

CONTINUATION, TEXT, BINARY, CLOSE, PING_FRAME, PONG_FRAME = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
FIN = 0x80
NORMAL, PROTOCOL_ERROR, UNSUPPORTED, NOT_CONSISTENT, TOO_BIG = 1000, 1002, 1003, 1007, 1009
MASK = b"\x12\x34\x56\x78"
MAX_FRAME_BYTES = 2_000_000  # of the broker here


def frame(
    opcode: int, payload: bytes = b"", *, fin: bool = True, masked: bool = True, reserved: int = 0, announced: int | None = None
) -> bytes:
    """One frame of a client (RFC 6455 section 5.2). `announced`: a length that is not the payload's, in eight bytes."""
    head = bytes([(FIN if fin else 0) | reserved << 4 | opcode])
    length = len(payload)
    mask_bit = 0x80 if masked else 0
    if announced is not None:
        head += bytes([mask_bit | 127]) + struct.pack(">Q", announced)
    elif length < 126:
        head += bytes([mask_bit | length])
    elif length < 65536:
        head += bytes([mask_bit | 126]) + struct.pack(">H", length)
    else:
        head += bytes([mask_bit | 127]) + struct.pack(">Q", length)
    if not masked:
        return head + payload
    return head + MASK + bytes(byte ^ MASK[at % 4] for at, byte in enumerate(payload))


class Web:
    """A broker with a ws and a wss listener, and the peers of one test."""

    def __init__(self, broker: TestBroker) -> None:
        self.broker = broker
        self.made: list[Peer] = []

    def address(self, transport: str) -> Address:
        return address_of(self.broker.native.urls[0 if transport in ("ws", "h2") else 1])

    def raw(self, transport: str, version: int = 4, **options: Any) -> Peer:
        """A peer behind the WebSocket handshake; `pipe` is its WebSocket."""
        peer = Peer(self.address(transport), version, road=road(transport, **options))
        self.made.append(peer)
        return peer

    def __call__(self, transport: str, version: int, client_id: str, **options: Any) -> Peer:
        peer = self.raw(transport, version)
        assert peer.connect(client_id, **options).reason == 0
        return peer


@pytest.fixture(scope="module")
def web_broker(peers_loop: None) -> Iterator[TestBroker]:
    if EXTERNAL:
        pytest.skip("an external broker has the listeners it has")
    listeners = [listener_for("ws"), listener_for("wss")]
    broker = TestBroker({**broker_config(limits={"max_frame_size": MAX_FRAME_BYTES}), "listeners": listeners})
    yield broker
    broker.stop()


@pytest.fixture
def web(web_broker: TestBroker) -> Iterator[Web]:
    made = Web(web_broker)
    yield made
    for peer in made.made:
        peer.close()


def pipe_of(peer: Peer) -> WebSocketPipe:
    assert isinstance(peer.pipe, WebSocketPipe)
    return peer.pipe


def send_frames(peer: Peer, *frames: bytes) -> None:
    """Bytes of frames in one write, as they are."""
    pipe_of(peer).inner.send(b"".join(frames))


# ------------------------------------------------------------------------------------------------ binary frames


@BINARY_311
@BINARY_5
@each_version
@each_transport
def test_a_binary_frame_is_answered_in_one(web: Web, name: str, transport: str, version: int) -> None:
    """The pipe takes no other frames than binary ones."""
    peer = web.raw(transport, version)
    send_frames(peer, frame(BINARY, connect_packet(name, version)))
    assert peer.recv().type == CONNACK


@BINARY_311
@BINARY_5
@each_version
@each_transport
def test_a_text_frame_ends_the_connection(web: Web, name: str, transport: str, version: int) -> None:
    peer = web.raw(transport, version)
    send_frames(peer, frame(TEXT, connect_packet(name, version)))
    assert peer.expect_close() == []
    assert pipe_of(peer).close_code == UNSUPPORTED


@BINARY_311
@BINARY_5
@each_version
@each_transport
def test_a_text_frame_after_connect(web: Web, name: str, transport: str, version: int) -> None:
    """It is no orderly end: the will goes out, and to an MQTT 5 client the close frame alone tells why."""
    watcher, peer = web(transport, version, f"{name}-watcher"), web(transport, version, name, will=Will(f"{name}/w", b"gone"))
    watcher.subscribe(f"{name}/w")
    send_frames(peer, frame(BINARY, PING), frame(TEXT, PING))
    assert [p.type for p in peer.expect_close() if p.type != PINGRESP] == []
    assert pipe_of(peer).close_code == UNSUPPORTED
    assert watcher.message(f"{name}/w").payload == b"gone"


# ------------------------------------------------------------------------------------------------ alignment


@UNALIGNED_311
@UNALIGNED_5
@each_version
@each_transport
def test_one_byte_a_frame(web: Web, name: str, transport: str, version: int) -> None:
    peer = web.raw(transport, version)
    send_frames(peer, *(frame(BINARY, bytes([byte])) for byte in connect_packet(name, version)))
    assert peer.recv().type == CONNACK


@UNALIGNED_311
@UNALIGNED_5
@each_version
@each_transport
def test_several_packets_in_a_frame(web: Web, name: str, transport: str, version: int) -> None:
    """And a last one that goes on in the next frame."""
    peer = web.raw(transport, version)
    packets = connect_packet(name, version) + subscribe_packet([(name, 1)], version) + PING
    last = publish_packet(name, b"across", version, qos=1, packet_id=7)
    peer.send(packets + last[:5])
    assert [peer.recv().type for _ in range(3)] == [CONNACK, SUBACK, PINGRESP]
    peer.send(last[5:])
    assert peer.await_packet(PUBACK, 7)
    assert peer.message(name).payload == b"across"


@UNALIGNED_311
@UNALIGNED_5
@each_version
@each_transport
@pytest.mark.parametrize("size", [10, 125, 126, 65535, 65536, 300_000])
def test_a_publish_over_frames_and_fragments(web: Web, name: str, transport: str, version: int, size: int) -> None:
    """Three frames, then fragments of one message with control frames between them, some of them empty."""
    peer = web(transport, version, name)
    peer.subscribe(name, 1)
    payload = bytes(at * 7 & 0xFF for at in range(size))
    data = publish_packet(name, payload, version, qos=1, packet_id=1)
    third = len(data) // 3
    for part in (data[:third], data[third : 2 * third], data[2 * third :]):
        peer.send(part)
    assert peer.await_packet(PUBACK, 1) and peer.message(name).payload == payload
    send_frames(
        peer,
        frame(BINARY, b"", fin=False),
        frame(CONTINUATION, data[:1], fin=False),
        frame(PING_FRAME, b"between"),
        frame(CONTINUATION, data[1:third], fin=False),
        frame(CONTINUATION, b"", fin=False),
        frame(PONG_FRAME, b"unasked"),
        frame(CONTINUATION, data[third:]),
    )
    assert peer.await_packet(PUBACK, 1) and peer.message(name).payload == payload
    peer.ping()
    assert pipe_of(peer).pongs == [b"between"]


@UNALIGNED_311
@UNALIGNED_5
@each_version
@each_transport
def test_zero_length_frames(web: Web, name: str, transport: str, version: int) -> None:
    """They carry nothing and are no end."""
    peer = web.raw(transport, version)
    nothing = [frame(BINARY)] * 5000
    send_frames(peer, *nothing, frame(BINARY, connect_packet(name, version)), *nothing)
    assert peer.recv().type == CONNACK
    peer.ping()


# ------------------------------------------------------------------------------------------------ handshake


@OFFERED_311
@OFFERED_5
@SELECTED_311
@SELECTED_5
@each_transport
@pytest.mark.parametrize("offered", [("mqtt",), ("chat", "mqtt"), ("mqtt", "chat"), ("mqttv3.1", "mqtt"), ("x.mqtt", "mqtt", "mqttv3.1")])
def test_mqtt_is_selected(web: Web, name: str, transport: str, offered: tuple[str, ...]) -> None:
    peer = web.raw(transport, subprotocols=offered)
    assert pipe_of(peer).subprotocol == "mqtt"
    assert peer.connect(name).reason == 0


@each_transport
def test_clients_of_mqtt_3_1(web: Web, name: str, transport: str) -> None:
    """Their sub-protocol is selected where they offer no other."""
    peer = web.raw(transport, 3, subprotocols=("mqttv3.1",))
    assert pipe_of(peer).subprotocol == "mqttv3.1"
    assert peer.connect(name).reason == 0


@OFFERED_311
@OFFERED_5
@each_transport
@pytest.mark.parametrize("offered", [(), ("chat",), ("MQTT",), ("mqttv5", "mqtt5")])
def test_who_does_not_offer_mqtt_is_refused(web: Web, transport: str, offered: tuple[str, ...]) -> None:
    with pytest.raises(Refused) as refused:
        web.raw(transport, subprotocols=offered)
    assert refused.value.status == 400
    assert b"sec-websocket-protocol" in refused.value.body


@each_transport
@pytest.mark.parametrize("path", ["/", "/mqtt/", "/other", "/MQTT", "/mqtt/../mqtt"])
def test_other_paths_are_refused(web: Web, transport: str, path: str) -> None:
    with pytest.raises(Refused) as refused:
        web.raw(transport, path=path)
    assert refused.value.status == 404


@each_transport
def test_a_query_is_no_part_of_the_path(web: Web, name: str, transport: str) -> None:
    assert web.raw(transport, path="/mqtt?token=1").connect(name).reason == 0


# ------------------------------------------------------------------------------------------------ control frames


@each_transport
def test_ping_and_pong(web: Web, name: str, transport: str) -> None:
    """Also before CONNECT; a pong has its ping's bytes (RFC 6455 section 5.5.3)."""
    peer = web.raw(transport)
    pipe = pipe_of(peer)
    for payload in (b"", b"x", bytes(125)):
        pipe.pongs.clear()
        pipe.ping(payload)
        if payload == b"x":
            assert peer.connect(name).reason == 0
        while not pipe.pongs:
            peer._fill(time.monotonic() + TIMEOUT)
        assert pipe.pongs == [payload]


@each_version
@each_transport
def test_closing_handshake(web: Web, name: str, transport: str, version: int) -> None:
    """A close frame is answered with its status and ends the connection; without DISCONNECT before it, the will goes out."""
    watcher = web(transport, version, f"{name}-watcher")
    watcher.subscribe(f"{name}/w")
    for code in (NORMAL, 1001, 3000, 4999, None):
        peer = web(transport, version, name, will=Will(f"{name}/w", b"gone"))
        pipe_of(peer).send_close(code)
        assert peer.expect_close() == []
        assert pipe_of(peer).close_code == (NORMAL if code is None else code)
        assert watcher.message(f"{name}/w").payload == b"gone"


@each_transport
def test_disconnect_and_close_frame(web: Web, name: str, transport: str) -> None:
    """DISCONNECT ends the connection with a close frame of the server's; who sends both at once has left in order all the same."""
    watcher = web(transport, 4, f"{name}-watcher")
    watcher.subscribe(f"{name}/w")
    peer = web(transport, 4, name, will=Will(f"{name}/w", b"gone"))
    peer.send(b"\xe0\0")
    assert peer.expect_close() == []
    assert pipe_of(peer).close_code == NORMAL
    peer = web(transport, 4, name, will=Will(f"{name}/w", b"gone"))
    send_frames(peer, frame(BINARY, b"\xe0\0"), frame(CLOSE, struct.pack(">H", NORMAL)))
    assert peer.expect_close() == []
    watcher.publish(f"{name}/w", b"last")
    assert watcher.message(f"{name}/w").payload == b"last"


@each_version
@each_transport
def test_the_servers_disconnect_comes_before_its_close_frame(web: Web, name: str, transport: str, version: int) -> None:
    peer = web(transport, version, name)
    peer.send("00 00")
    assert [(p.type, p.reason) for p in peer.expect_close()] == ([(14, 0x81)] if version == 5 else [])
    assert pipe_of(peer).close_code is not None


# ------------------------------------------------------------------------------------------------ frames that are wrong


BAD_FRAMES: dict[str, tuple[Callable[[], bytes], int]] = {
    "not-masked": (lambda: frame(BINARY, PING, masked=False), PROTOCOL_ERROR),
    "reserved-bit-1": (lambda: frame(BINARY, PING, reserved=4), PROTOCOL_ERROR),
    "reserved-bit-3": (lambda: frame(BINARY, PING, reserved=1), PROTOCOL_ERROR),
    "opcode-3": (lambda: frame(3, PING), PROTOCOL_ERROR),
    "opcode-15": (lambda: frame(15, PING), PROTOCOL_ERROR),
    "continuation-of-nothing": (lambda: frame(CONTINUATION, PING), PROTOCOL_ERROR),
    "message-in-a-message": (lambda: frame(BINARY, b"", fin=False) + frame(BINARY, PING), PROTOCOL_ERROR),
    "fragmented-ping": (lambda: frame(PING_FRAME, b"", fin=False), PROTOCOL_ERROR),
    "long-ping": (lambda: frame(PING_FRAME, bytes(126)), PROTOCOL_ERROR),
    "too-large": (lambda: frame(BINARY, b"", announced=MAX_FRAME_BYTES + 1), TOO_BIG),
    "length-of-63-bits": (lambda: frame(BINARY, b"", announced=(1 << 63) - 1), TOO_BIG),
    "length-of-64-bits": (lambda: frame(BINARY, b"", announced=1 << 63), PROTOCOL_ERROR),
    "length-in-too-many-bytes": (lambda: frame(BINARY, b"", announced=2), PROTOCOL_ERROR),
    "close-of-one-byte": (lambda: frame(CLOSE, b"\x03"), PROTOCOL_ERROR),
    "close-with-code-0": (lambda: frame(CLOSE, struct.pack(">H", 0)), PROTOCOL_ERROR),
    "close-with-code-1005": (lambda: frame(CLOSE, struct.pack(">H", 1005)), PROTOCOL_ERROR),
    "close-with-code-1006": (lambda: frame(CLOSE, struct.pack(">H", 1006)), PROTOCOL_ERROR),
    "close-reason-not-utf-8": (lambda: frame(CLOSE, struct.pack(">H", NORMAL) + b"\xff"), NOT_CONSISTENT),
    "close-too-long": (lambda: frame(CLOSE, struct.pack(">H", NORMAL) + b"x" * 124), PROTOCOL_ERROR),
}


@each_transport
@pytest.mark.parametrize("connected", [False, True])
@pytest.mark.parametrize("kind", BAD_FRAMES)
def test_bad_frames(web: Web, name: str, transport: str, connected: bool, kind: str) -> None:
    """Each ends its connection with a close frame that says what it was (RFC 6455 section 7.4.1); the client's will goes out."""
    make, code = BAD_FRAMES[kind]
    watcher = web(transport, 4, f"{name}-watcher")
    watcher.subscribe(f"{name}/w")
    peer = web(transport, 4, name, will=Will(f"{name}/w", b"gone")) if connected else web.raw(transport)
    send_frames(peer, make())
    assert peer.expect_close() == []
    assert pipe_of(peer).close_code == code
    if connected:
        assert watcher.message(f"{name}/w").payload == b"gone"
    watcher.ping()


@each_transport
def test_the_largest_frame(web: Web, name: str, transport: str) -> None:
    """A frame of exactly the limit passes, whatever packets are in it."""
    peer = web(transport, 4, name)
    packet = publish_packet(f"{name}/unheard", bytes(500_000 - 4 - 2 - len(f"{name}/unheard")))
    assert len(packet) == 500_000
    peer.send(packet * (MAX_FRAME_BYTES // len(packet)))
    peer.ping()


@each_transport
@pytest.mark.parametrize("ending", ["end-of-stream", "reset", "half-a-frame"])
def test_an_end_without_a_close_frame(web: Web, name: str, transport: str, ending: str) -> None:
    watcher = web(transport, 4, f"{name}-watcher")
    watcher.subscribe(f"{name}/w")
    peer = web(transport, 4, name, will=Will(f"{name}/w", b"gone"))
    pipe = pipe_of(peer)
    if ending == "reset":
        peer.reset()
    else:
        if ending == "half-a-frame":
            send_frames(peer, frame(BINARY, PING)[:-1])
        pipe.inner.finish()
        with pytest.raises(PeerClosed):
            peer.recv()
    assert watcher.message(f"{name}/w").payload == b"gone"
