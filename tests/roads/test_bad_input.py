"""Clients that speak something else, or nothing, or too much: their connection ends, the log says whose and why, nobody else notices."""

from __future__ import annotations

import contextlib
import random
import socket
import ssl
import struct
from pathlib import Path
from typing import Any

import h2.connection
import pytest
from aioquic.quic.connection import QuicConnection
from h2.settings import SettingCodes

from mqttc.adapters import duct
from mqttc.server import Broker
from tests import transports
from tests.adapters.quic_peer import client_configuration
from tests.broker.conftest import eventually
from tests.conftest import tcp_address
from tests.rawclient import TIMEOUT, Peer, PeerClosed, PeerTimeout, connect_packet
from tests.roads.conftest import CONNECT_TIMEOUT_S, Onlookers, Site, StartSite, name
from tests.streams import Http2Link, QuicLink, driver
from tests.transports import STREAMED, WEBSOCKET, TransportError, WebSocketPipe, handshake_bytes

ENDED = (ConnectionResetError, BrokenPipeError)


def read_to_end(connection: socket.socket) -> bytes:
    """What comes before the other side ends; a reset is an end too."""
    got = bytearray()
    connection.settimeout(TIMEOUT)
    with contextlib.suppress(*ENDED):
        while part := connection.recv(65536):
            got += part
    return bytes(got)


def send(connection: socket.socket, data: bytes) -> None:
    """As much as is taken."""
    with contextlib.suppress(*ENDED):
        connection.sendall(data)


def own_address(connection: socket.socket) -> str:
    host, port = connection.getsockname()
    return f"{host}:{port}"


def client_hello() -> bytes:
    """A TLS client's first flight."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        session.do_handshake()
    return outgoing.read()


def upgrade_request(path: str = "/mqtt") -> bytes:
    return handshake_bytes("localhost", path)[1]


# ------------------------------------------------------------------------------------------------ the wrong protocol


@pytest.mark.parametrize(
    ("data", "answer", "detail"),
    [
        pytest.param(connect_packet("c", 4), b"", "plain MQTT", id="mqtt-3.1.1"),
        pytest.param(connect_packet("c", 5), b"", "plain MQTT", id="mqtt-5"),
        pytest.param(client_hello(), b"", "TLS", id="tls"),
        pytest.param(b"\0" * 64, b"HTTP/1.1 400 ", "not an HTTP request", id="zeros"),
        pytest.param(b"\r\n\r\n", b"HTTP/1.1 400 ", "not an HTTP request", id="empty-lines"),
        pytest.param(b"get / http/1.1\r\n\r\n", b"HTTP/1.1 400 ", "not an HTTP request", id="lower-case"),
        pytest.param(b"SSH-2.0-OpenSSH_9.2\r\n\r\n", b"HTTP/1.1 400 ", "", id="ssh"),
        pytest.param(b"GET / HTTP/3.0\r\nHost: x\r\n\r\n", b"HTTP/1.1 400 ", "HTTP/1.1", id="version"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n", b"HTTP/1.1 400 ", "folded", id="folded"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", b"HTTP/1.1 400 ", "host", id="two-hosts"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\nX: y\r\n\r\n", b"HTTP/1.1 400 ", "alone", id="lone-line-feed"),
        pytest.param(b"GET \xff\0 HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 400 ", "", id="target"),
        pytest.param(b"GET / HTTP/1.1\r\n\xff\xfe: x\r\n\r\n", b"HTTP/1.1 400 ", "", id="header-name"),
    ],
)
@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_something_else(site: Site, onlookers: Onlookers, scheme: str, data: bytes, answer: bytes, detail: str) -> None:
    plain = site.socket(scheme)
    with plain if scheme == "ws" else transports.secure(plain, site.road("wss").context(), "localhost") as connection:
        peer = own_address(connection)
        send(connection, data)
        assert read_to_end(connection).startswith(answer)
    said = site.events.wait("http request refused", peer=peer)
    assert detail in said["detail"] and said["listener"].startswith(f"{scheme}://")
    eventually(lambda: site.stat("connections_open") == onlookers.open)


@pytest.mark.parametrize("data", [connect_packet("c", 4), upgrade_request(), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", bytes(100)])
@pytest.mark.parametrize("scheme", ["wss", "tls"])
def test_no_tls_where_there_has_to_be(site: Site, onlookers: Onlookers, scheme: str, data: bytes) -> None:
    with site.socket(scheme) as connection:
        peer = own_address(connection)
        send(connection, data)
        assert len(read_to_end(connection)) < 16  # an alert at most
    assert site.events.wait("handshake failed", peer=peer)["detail"]
    eventually(lambda: site.stat("connections_open") == onlookers.open)


# ------------------------------------------------------------------------------------------------ heads without end


@pytest.mark.parametrize("limit", [1024, 65536])
def test_a_head_is_bounded(start: StartSite, limit: int) -> None:
    """"max_request_head": a head of that many bytes is read, a longer one is answered with 431 before its end."""
    site = start("ws", limits={"max_request_head": limit})
    for size, status in ((limit, b"101"), (limit + 1, b"431")):
        begin, _, _ = upgrade_request().rpartition(b"\r\n")
        padding = size - len(begin) - len(b"x: \r\n\r\n")
        with site.socket("ws") as connection:
            peer = own_address(connection)
            connection.sendall(begin + b"x: " + b"y" * padding + b"\r\n\r\n")
            assert connection.recv(65536).split()[1] == status
        if status == b"431":
            assert "limits.max_request_head" in site.events.wait("http request refused", peer=peer)["detail"]


@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_an_endless_head(site: Site, onlookers: Onlookers, scheme: str) -> None:
    plain = site.socket(scheme)
    with plain if scheme == "ws" else transports.secure(plain, site.road("wss").context(), "localhost") as connection:
        peer = own_address(connection)
        send(connection, b"GET /mqtt HTTP/1.1\r\n" + b"x: y\r\n" * 20_000)
        assert read_to_end(connection).startswith(b"HTTP/1.1 431 ")
    assert "max_request_head" in site.events.wait("http request refused", peer=peer)["detail"]


@pytest.mark.parametrize("sent", [0, 1, 20, -3, -1], ids=["nothing", "a byte", "a line", "up to the empty line", "all but a byte"])
@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_a_head_that_stops(site: Site, onlookers: Onlookers, scheme: str, sent: int) -> None:
    """The deadline of CONNECT counts from accepting."""
    plain = site.socket(scheme)
    with plain if scheme == "ws" else transports.secure(plain, site.road("wss").context(), "localhost") as connection:
        peer = own_address(connection)
        connection.sendall(upgrade_request()[:sent])
        eventually(lambda: site.stat("connections_open") == onlookers.open + 1)
        site.broker.advance_clock(CONNECT_TIMEOUT_S + 2)
        assert read_to_end(connection) == b""
    assert site.events.wait("connect timeout", peer=peer)


@pytest.mark.parametrize("sent", [0, 1, 5, 100])
@pytest.mark.parametrize("scheme", ["wss", "tls"])
def test_a_tls_handshake_that_stops(site: Site, onlookers: Onlookers, scheme: str, sent: int) -> None:
    with site.socket(scheme) as connection:
        peer = own_address(connection)
        connection.sendall(client_hello()[:sent])
        eventually(lambda: site.stat("connections_open") == onlookers.open + 1)
        site.broker.advance_clock(CONNECT_TIMEOUT_S + 2)
        read_to_end(connection)
    assert site.events.wait("connect timeout", peer=peer)


@pytest.mark.parametrize("proxied", [False, True])
def test_max_tls_handshakes(start: StartSite, proxied: bool) -> None:
    """Under way at once, over all listeners, behind a PROXY header too; one more is closed. Those that are over do not count."""
    keys: dict[str, Any] = {"proxy_protocol": True, "trusted_proxies": ["127.0.0.1"]} if proxied else {}
    head = b"PROXY TCP4 198.51.100.1 127.0.0.1 4242 1883\r\n" if proxied else b""
    site = start("tcp", "tls", "wss", limits={"max_tls_handshakes": 3}, tls=keys)
    done = [site("wss") for _ in range(4)]
    assert site.stat("tls_handshakes_open") == 0
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(site.socket("tls")) for _ in range(2)]
        for connection in slow:
            connection.sendall(head + client_hello()[:50])
        stack.enter_context(site.socket("wss"))  # says nothing at all
        eventually(lambda: site.stat("tls_handshakes_open") == 3)
        with site.socket("tls") as connection:
            send(connection, head + client_hello())
            assert read_to_end(connection) == b""
        eventually(lambda: any("too many TLS handshakes" in fields.get("detail", "") for _, fields in seen(site)))
        assert (site.stat("connections_refused_handshakes"), site.stat("tls_handshakes_open")) == (1, 3)
        site("tcp").ping()
        slow[0].close()
        eventually(lambda: site.stat("tls_handshakes_open") == 2)
        site("wss").ping()
        eventually(lambda: site.stat("tls_handshakes_open") == 2)
    eventually(lambda: site.stat("tls_handshakes_open") == 0)
    for peer in done:
        peer.ping()
    assert site.stat("connections_refused_handshakes") == 1


# ------------------------------------------------------------------------------------------------ behind the handshake


def end_by_deadline(site: Site, peer: Peer) -> None:
    """Nothing of MQTT was said: the connection is closed when its time is over."""
    for _ in range(50):  # the time counts from accepting, which may come after the first step of the clock
        site.broker.advance_clock(CONNECT_TIMEOUT_S + 2)
        with contextlib.suppress(PeerTimeout):
            assert peer.expect_close(0.1) == []
            return
    pytest.fail("still open")


@pytest.mark.parametrize("transport", [*WEBSOCKET, "quic"])
def test_no_connect(site: Site, onlookers: Onlookers, transport: str) -> None:
    """A WebSocket or stream that opens and then begins a CONNECT, but does not end it."""
    peer = site.raw(transport)
    peer.send(connect_packet(name())[:5])
    end_by_deadline(site, peer)
    said = site.events.wait("connect timeout")
    assert said["peer"].startswith("127.0.0.1:") and said["listener"].startswith(f"{transports.SCHEMES[transport]}://")


@pytest.mark.parametrize("transport", WEBSOCKET)
def test_a_websocket_that_says_nothing(site: Site, onlookers: Onlookers, transport: str) -> None:
    peer = site.raw(transport)
    end_by_deadline(site, peer)


@pytest.mark.parametrize("transport", [*WEBSOCKET, "quic"])
@pytest.mark.parametrize("kind", ["end", "reset"])
def test_gone_before_connect(site: Site, onlookers: Onlookers, transport: str, kind: str) -> None:
    peer = site.raw(transport)
    peer.send(connect_packet(name())[:5])
    eventually(lambda: site.stat("connections_open") > onlookers.open)
    if kind == "reset":
        peer.reset()
    else:
        inner = peer.pipe.inner if isinstance(peer.pipe, WebSocketPipe) else peer.pipe
        inner.finish()
    eventually(lambda: site.stat("connections_open") == onlookers.open)


@pytest.mark.parametrize("transport", ["tcp", "tls", *WEBSOCKET, "quic"])
def test_noise_behind_connect(site: Site, onlookers: Onlookers, transport: str) -> None:
    """Random bytes in frames or streams, and after MQTT has begun: told to the log with the client's name."""
    noise = random.Random(3)
    for _ in range(5):
        client_id = name()
        peer = site(transport, 5, client_id)
        with contextlib.suppress(PeerClosed):
            peer.send(b"\0\0" + noise.randbytes(2000))
        peer.expect_close()
        assert site.events.wait("protocol error", client_id=client_id)["peer"].startswith("127.0.0.1:")


def test_frames_are_bounded(start: StartSite) -> None:
    """"max_frame_size": refused by the length that is announced, before it comes."""
    site = start("ws", limits={"max_frame_size": 1024})
    for transport in ("ws", "h2"):
        peer = site(transport, 4, client_id := name())
        peer.send(b"\xc0\0" * 512)
        peer.ping()
        with contextlib.suppress(ConnectionError):
            peer.send(b"\xc0\0" * 512 + b"\xc0")
        peer.expect_close()
        pipe = peer.pipe
        assert isinstance(pipe, WebSocketPipe) and pipe.close_code == 1009
        assert "too large" in site.events.wait("connection lost", client_id=client_id)["detail"]


def test_frames_that_carry_nothing(site: Site, onlookers: Onlookers) -> None:
    """Thousands of empty frames, pings and pongs cost their sender's connection nothing but time, and others nothing."""
    peer = site("ws")
    pipe = peer.pipe
    assert isinstance(pipe, WebSocketPipe)
    frames = pipe.frames
    pipe.inner.send(bytes(frames.send_data(b"") * 20_000))
    pipe.inner.send(bytes(frames.ping(bytes(125)) * 5_000))
    pipe.inner.send(bytes(frames.pong() * 20_000))
    peer.ping()
    assert pipe.pongs and len(pipe.pongs) <= 5_000


# ------------------------------------------------------------------------------------------------ HTTP/2


def http2_bytes(*frames: bytes) -> bytes:
    """A client's preface and settings, then these."""
    client = h2.connection.H2Connection()
    client.initiate_connection()
    return client.data_to_send() + b"".join(frames)


def http2_frame(kind: int, flags: int, stream: int, payload: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack(">I", len(payload) if length is None else length)[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", 1, id="preface"),
        pytest.param(http2_bytes(bytes(100)), None, id="zeros"),
        pytest.param(http2_bytes(http2_frame(0, 0, 0, b"x")), 1, id="data-on-stream-0"),
        pytest.param(http2_bytes(http2_frame(1, 4, 2, b"\x82")), 1, id="even-stream"),
        pytest.param(http2_bytes(http2_frame(1, 4, 1, b"\xff" * 20)), 1, id="header-compression"),  # h2 does not say COMPRESSION_ERROR
        pytest.param(http2_bytes(http2_frame(0, 0, 1, length=1 << 20)), 6, id="frame-size"),
        pytest.param(http2_bytes(http2_frame(8, 0, 0, bytes(4))), 1, id="window-of-nothing"),
        pytest.param(http2_bytes(http2_frame(6, 0, 0, bytes(8)) * 20_000), 11, id="ping-flood"),
        pytest.param(http2_bytes(http2_frame(1, 0, 1, b"\x82") + http2_frame(9, 0, 1, b"\x40\1a\1b" * 1000) * 40), None, id="endless-head"),
    ],
)
@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_broken_http2(site: Site, onlookers: Onlookers, scheme: str, data: bytes, code: int | None) -> None:
    plain = site.socket(scheme)
    with plain if scheme == "ws" else transports.secure(plain, site.road("wss-h2").context(), "localhost") as connection:
        peer = own_address(connection)
        send(connection, data)
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_WR) if code is None else None
        got = read_to_end(connection)
        if code is not None and got:
            assert goaway_code(got) == code
    if code is not None:
        eventually(lambda: any(fields.get("peer") == peer for _, fields in seen(site)))
    eventually(lambda: site.stat("http_connections") == 0 or site.stat("http_connections") == 2)  # those of the onlookers


def seen(site: Site) -> list[tuple[str, dict[str, Any]]]:
    site.events.find("")
    return site.events.seen


def goaway_code(data: bytes) -> int | None:
    """Error code of the GOAWAY among whole frames."""
    while len(data) >= 9:
        length, kind = int.from_bytes(data[:3]), data[3]
        if kind == 7:
            return int.from_bytes(data[13:17])
        data = data[9 + length :]
    return None


def test_http2_streams_are_bounded(start: StartSite) -> None:
    """"max_http_streams": one too many is refused, the others go on."""
    site = start("ws", limits={"max_http_streams": 3})
    link = transports.open_link(site.address("ws"), site.road("h2"))
    peers = [site.raw("h2", link=link) for _ in range(3)]
    for peer in peers:
        assert peer.connect(name()).reason == 0
    assert isinstance(link, Http2Link)
    link.h2.remote_settings[SettingCodes.MAX_CONCURRENT_STREAMS] = 100  # a client that does not care for what it was told
    link.h2.remote_settings.acknowledge()
    with pytest.raises(TransportError, match="REFUSED_STREAM"):
        site.raw("h2", link=link)
    for peer in peers:
        peer.ping()
    peers[0].disconnect()
    peer = site.raw("h2", link=link)
    assert peer.connect(name()).reason == 0
    transports.close_link(link)


def test_http_connections_are_bounded(start: StartSite) -> None:
    """"max_http_connections": WebSocket over HTTP/1.1 does not count, for it leaves HTTP."""
    site = start("ws", limits={"max_http_connections": 2})
    held = [site("h2"), site("h2")]
    with pytest.raises(TransportError):
        site.raw("h2")
    assert site.events.wait("http_connection_limit")["limit"] == 2
    site("ws").ping()
    for peer in held:
        peer.ping()
    held[0].disconnect()
    eventually(lambda: site.stat("http_connections") == 1)
    site("h2").ping()


def test_http_has_a_time_limit(start: StartSite) -> None:
    """"http_timeout", in real time: an idle connection without a stream ends, one with a stream stays."""
    site = start("ws", limits={"http_timeout": 0.2})
    peer = site("h2")
    with site.socket("ws") as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert read_to_end(connection).startswith(b"HTTP/1.1 200 ")
    peer.ping()


# ------------------------------------------------------------------------------------------------ QUIC


def test_noise_on_the_quic_port(site: Site, onlookers: Onlookers) -> None:
    """Datagrams of any kind: dropped and counted, or answered with Version Negotiation; no state is kept for them."""
    noise = random.Random(11)
    before = site.stat("quic_datagrams_received")
    count = 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.connect(site.address("quic"))
        for size in (0, 1, 5, 20, 1199, 1200, 1400, 60_000):
            for first in (0x00, 0x40, 0x7F, 0x80, 0xC0, 0xFF):
                for _ in range(5):
                    sender.send(bytes([first])[:size] + noise.randbytes(max(size - 1, 0)))
                    count += 1
        # A long header with a version that there is, and nothing behind it that could be decrypted.
        for version in (0x00000001, 0x6B3343CF, 0x00000000, 0xFF00001D):
            sender.send(b"\xc3" + struct.pack(">I", version) + b"\x08" + bytes(8) + b"\x08" + bytes(8) + noise.randbytes(1300))
            count += 1
        eventually(lambda: site.stat("quic_datagrams_received") - before >= count * 9 // 10)
    onlookers.noticed_nothing()
    assert site.stat("quic_datagrams_dropped") > count // 2
    eventually(lambda: site.stat("quic_half_open") <= 2)


def test_quic_with_another_protocol(site: Site, onlookers: Onlookers) -> None:
    with pytest.raises(TransportError):
        driver().run(QuicLink.connect(site.address("quic"), site.road("quic"), alpn=("h3",)))
    eventually(lambda: site.stat("quic_handshakes_failed") == 1)
    eventually(lambda: any("quic" in event and fields.get("peer", "").startswith("127.0.0.1:") for event, fields in seen(site)))


def test_quic_streams_are_bounded(start: StartSite) -> None:
    """"max_quic_streams": a further one waits until another has ended; the client learns it from its allowance."""
    site = start("quic", limits={"max_quic_streams": 2})
    link = transports.open_link(site.address("quic"), site.road("quic"))
    first, second = (site.raw("quic", link=link) for _ in range(2))
    assert first.connect(name()).reason == second.connect(name()).reason == 0
    third = site.raw("quic", link=link)
    third.send(connect_packet(name()))
    with pytest.raises(PeerTimeout):
        third.recv(0.2)
    first.disconnect()
    assert third.recv().reason == 0
    second.ping()
    transports.close_link(link)


def test_quic_connections_are_bounded(start: StartSite) -> None:
    """"max_quic_connections": one too many is told so, and counted."""
    site = start("quic", limits={"max_quic_connections": 1})
    first = site("quic")
    with pytest.raises(TransportError):
        site.raw("quic")
    assert site.stat("quic_connections_refused") >= 1
    first.ping()


def test_limits_of_quic_hold_for_all_listeners_together(start: StartSite) -> None:
    site = start("quic", "quic", limits={"max_quic_connections": 1})
    first = site("quic")
    with pytest.raises(TransportError):
        Peer(tcp_address(site.broker.urls[1]), road=site.road("quic"))
    first.ping()
    first.disconnect()
    first.close()
    eventually(lambda: site.stat("quic_connections") == 0)
    second = Peer(tcp_address(site.broker.urls[1]), road=site.road("quic"))
    assert second.connect(name()).reason == 0
    second.close()


def test_max_quic_handshakes(start: StartSite, folder: Path) -> None:
    """From a quarter of them on, here the first, an address is validated: a client that finishes comes in beside one that does not."""
    site = start("quic", limits={"max_quic_handshakes": 2})
    slow = QuicConnection(configuration=client_configuration(folder))
    slow.connect(("127.0.0.1", 1), 0.0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(slow.datagrams_to_send(0.0)[0][0], site.address("quic"))
        eventually(lambda: site.stat("quic_half_open") == 1)
        site("quic").ping()
    assert (site.stat("quic_retries"), site.stat("quic_handshakes_refused"), site.stat("quic_half_open")) == (1, 0, 1)


# ------------------------------------------------------------------------------------------------ many on one connection


@pytest.mark.parametrize("transport", STREAMED)
def test_many_clients_share_a_connection(site: Site, onlookers: Onlookers, transport: str) -> None:
    """Each stream is a client of its own: one that breaks the protocol, ends or does not read leaves the others alone."""
    link = transports.open_link(site.address(transports.SCHEMES[transport]), site.road(transport))
    peers = [site.raw(transport, 5, link=link) for _ in range(20)]
    for number, peer in enumerate(peers):
        assert peer.connect(f"shared-{number}").reason == 0
        peer.subscribe(f"shared/{number % 4}", 1)
    peers[0].send("00 00")
    peers[0].expect_close()
    peers[1].reset()
    peers[2].disconnect()
    for number, peer in enumerate(peers[4:], 4):
        peer.publish(f"shared/{number % 4}", b"%d" % number, 1)
    for number, peer in enumerate(peers[4:], 4):
        expected = [b"%d" % other for other in range(4, 20) if other % 4 == number % 4]
        assert sorted(got.payload for got in peer.messages(4)) == sorted(expected)
    assert len(peers[3].messages(4)) == 4
    again = site.raw(transport, 5, link=link)
    assert again.connect("shared-0").reason == 0
    transports.close_link(link)
    eventually(lambda: site.stat("connections_open") == onlookers.open)


@pytest.mark.parametrize("transport", STREAMED)
def test_a_client_that_reads_nothing_is_not_kept(start: StartSite, transport: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client id is taken over while its stream's window is shut: the stream ends all the same."""
    monkeypatch.setattr(duct, "STUCK_S", 0.1)
    site = start("tcp", transports.SCHEMES[transport])
    deaf, publisher = site(transport, 4, "deaf"), site("tcp")
    deaf.subscribe("t", 0)
    counter = "quic_streams" if transport == "quic" else "http_connections"
    for _ in range(300):  # far more than the windows and socket buffers on the way hold
        publisher.publish("t", bytes(60_000), 1)
    assert site.stat("dropped_output_full") > 0 and site.stat(counter) == 1
    site("tcp", 4, "deaf")
    site.broker.advance_clock(5)  # the worker waits a moment for its last words to be read
    eventually(lambda: site.stat(counter) == 0)
    with pytest.raises(PeerClosed):
        while True:
            deaf.message()


def test_a_broker_in_a_with_statement_ends_all_roads(start: StartSite) -> None:
    """Nothing is left of a stopped broker: its ports can be taken again at once."""
    site = start()
    peers = [site(transport, 5) for transport in transports.TRANSPORTS]
    urls = site.broker.urls
    site.broker.stop()
    for peer in peers:
        assert [packet.reason for packet in peer.expect_close()] == [0x8B]
    tables = [{"url": url} for url in urls if url.startswith(("tcp", "ws:"))]
    with Broker({"listeners": tables, "auth": {"anonymous": True}}) as again:
        assert again.urls == tuple(table["url"] for table in tables)
