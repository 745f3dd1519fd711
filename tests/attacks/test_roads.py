"""Known ways to break a broker below MQTT: half-open TLS, HTTP/2 and QUIC. Bystanders come over TCP and over the road under attack.

What a single connection must lead to stands in tests/adapters; here many come one after the other, for as long as bystanders are to notice.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.settings
import hpack
import pytest
from aioquic.quic.connection import QuicConnection
from hyperframe.frame import ContinuationFrame, Frame, HeadersFrame, PingFrame, RstStreamFrame, SettingsFrame
from wsproto.frame_protocol import FrameProtocol

from ..adapters.quic_peer import client_configuration
from ..broker.conftest import eventually
from ..rawclient import TIMEOUT, PeerClosed, connect_packet, publish_packet, subscribe_packet
from ..streams import QuicLink, driver
from ..transports import TransportError
from .conftest import Roads, name, watching

MB = 1 << 20
PATIENCE_S = 12 * TIMEOUT
"""For an attacker's own connection: it may wait as long as it likes."""
SLOW = bool(os.environ.get("MQTTC_SANITIZER"))
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
StartRoads = Callable[..., Roads]
GET = [(":method", "GET"), (":scheme", "http"), (":authority", "localhost"), (":path", "/health")]
CONNECT = [
    *((":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "http"), (":authority", "localhost"), (":path", "/mqtt")),
    *(("sec-websocket-version", "13"), ("sec-websocket-protocol", "mqtt")),
]


@contextlib.contextmanager
def connected(address: tuple[str, int], data: bytes = b"") -> Iterator[socket.socket]:
    """Plain TCP to that listener; an attacker does not mind that its connection is gone."""
    with socket.create_connection(address, PATIENCE_S) as made:
        with contextlib.suppress(ConnectionError, TimeoutError):
            made.sendall(data)
        yield made


def ended(connection: socket.socket) -> bool:
    """Whether the other side ends it, whatever it says before."""
    try:
        while connection.recv(65536):
            pass
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True


# ---------------------------------------------------------------------------------------------------------- TLS


def client_hello() -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        session.do_handshake()
    return outgoing.read()


def test_half_open_handshakes(roads: StartRoads) -> None:
    """Hundreds of TLS handshakes that begin and stop: as many as there may be, and others still come in."""
    site = roads("tls", limits={"max_tls_handshakes": 100})
    hello = client_hello()
    with watching(site.bench, 16 * MB, [site()]), contextlib.ExitStack() as stack:
        for i in range(300):
            stack.enter_context(connected(site.address, hello if i % 2 else hello[:40]))
        eventually(lambda: site.stat("connections_refused_handshakes") == 200)
        assert site.stat("tls_handshakes_open") == 100
    eventually(lambda: site.stat("tls_handshakes_open") == 0)
    site().ping()


# ------------------------------------------------------------------------------------------------------- HTTP/2


def headers(encoder: hpack.Encoder, stream_id: int, fields: Sequence[tuple[str, str]], end: bool) -> Frame:
    return HeadersFrame(stream_id, encoder.encode(fields), flags=["END_HEADERS", *(["END_STREAM"] if end else [])])


def resets(fields: Sequence[tuple[str, str]], end: bool) -> list[Frame]:
    """Requests that are taken back at once (CVE-2023-44487), more than a slow machine lets pass for the time that it takes."""
    encoder = hpack.Encoder()
    return [frame for i in range(1, 16_001, 2) for frame in (headers(encoder, i, fields, end), RstStreamFrame(i))]


def continuations(size: int) -> list[Frame]:
    """A header block without end (CVE-2024-27316 and others)."""
    return [HeadersFrame(1, hpack.Encoder().encode(GET)), *([ContinuationFrame(1, bytes([0x82]) * size)] * 3000)]


FLOODS: dict[str, Callable[[], list[Frame]]] = {
    "rapid reset": lambda: resets(GET, True),
    "rapid reset of websockets": lambda: resets(CONNECT, False),
    "settings": lambda: [SettingsFrame(0)] * 5000,
    "ping": lambda: [PingFrame(0, b"12345678")] * 5000,
    "continuation without bytes": lambda: continuations(0),
    "continuation": lambda: continuations(100),
}


@pytest.mark.parametrize("kind", FLOODS)
def test_http2_floods(roads: StartRoads, kind: str) -> None:
    """One connection after the other, several at once: each is cut off, and counted."""
    site = roads("h2")
    data = PREFACE + b"".join(frame.serialize() for frame in [SettingsFrame(0), *FLOODS[kind]()])
    rounds, at_once = (2, 3) if SLOW else (3, 5) if "reset" in kind else (15, 5)
    with watching(site.bench, 16 * MB, [site()]):
        for _ in range(rounds):
            with contextlib.ExitStack() as stack:
                flooding = [stack.enter_context(connected(site.address, data)) for _ in range(at_once)]
                assert all(ended(connection) for connection in flooding)
    assert site.stat("http_floods") + site.stat("http_protocol_errors") == rounds * at_once
    site().ping()


class Shut:
    """An HTTP/2 client whose windows are shut: whatever the broker has for its streams stays there."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.http = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        self.http.local_settings = h2.settings.Settings(
            client=True, initial_values={h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 0, h2.settings.SettingCodes.ENABLE_PUSH: 0}
        )
        self.http.initiate_connection()
        self.answered = 0

    def until_answered(self, count: int) -> None:
        self.flush()
        while self.answered < count:
            for event in self.http.receive_data(self.connection.recv(65536)):
                self.answered += isinstance(event, h2.events.ResponseReceived)
            self.flush()

    def flush(self) -> None:
        self.connection.sendall(self.http.data_to_send())

    def open(self, count: int) -> list[int]:
        made = [1 + 2 * i for i in range(count)]
        for stream_id in made:
            self.http.send_headers(stream_id, CONNECT)
        self.until_answered(self.answered + count)
        return made

    def send(self, stream_id: int, data: bytes) -> None:
        self.http.send_data(stream_id, bytes(FrameProtocol(client=True, extensions=[]).send_data(data)))


def test_http2_windows_that_stay_shut(roads: StartRoads) -> None:
    """A hundred subscribers on two connections never open a window, while thousands of messages are published to them."""
    site = roads("h2", limits={"max_queued_messages": 100, "max_output_bytes": 100_000})
    publisher = site.bench(5)
    with watching(site.bench, 64 * MB, [site()]), contextlib.ExitStack() as stack:
        for _ in range(2):
            shut = Shut(stack.enter_context(connected(site.address)))
            for stream_id in shut.open(50):
                shut.send(stream_id, connect_packet(name(), 5) + subscribe_packet([("shut/#", 1)], 5))
            shut.flush()
        eventually(lambda: site.stat("subscriptions") == 5 + 100)
        for _ in range(20):
            publisher.send(*[publish_packet("shut/x", bytes(1000), 5) for _ in range(100)])
            publisher.ping()
        assert site.stat("dropped_output_full") + site.stat("dropped_queue_full") > 0
    site.bench.until("connections_open", 1)
    publisher.ping()


# --------------------------------------------------------------------------------------------------------- QUIC


def first_datagrams(folder: Path, count: int) -> list[bytes]:
    """Of as many clients, which never say another word."""
    configuration = client_configuration(folder)
    made = []
    for _ in range(count):
        client = QuicConnection(configuration=configuration)
        client.connect(("127.0.0.1", 1), 0.0)
        made.append(client.datagrams_to_send(0.0)[0][0])
    return made


@contextlib.contextmanager
def datagrams(address: tuple[str, int]) -> Iterator[Callable[[bytes], Any]]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.connect(address)
        yield sender.send


@pytest.mark.parametrize("retry", [True, "auto"])
def test_quic_floods_of_initial_packets(roads: StartRoads, folder: Path, retry: bool | str) -> None:
    """Genuine first packets of clients that never answer: with Retry nothing is kept, else few handshakes go on."""
    site = roads("quic", limits={"max_quic_handshakes": 64}, stateless_retry=retry)
    sent = first_datagrams(folder, 100 if SLOW else 400)
    with watching(site.bench, 16 * MB, [site()]), datagrams(site.address) as send:
        for count, data in enumerate(sent, 1):
            send(data)
            if count % 50 == 0:  # no more than the socket holds: it would drop the bystander's as well
                eventually(lambda count=count: site.stat("quic_retries") >= count - 16)  # type: ignore[misc]
        assert site.stat("quic_half_open") <= (0 if retry is True else 16)
    site().ping()


def test_quic_noise_and_tokens_of_others(roads: StartRoads, folder: Path) -> None:
    """Datagrams of any kind, and an address that never proves itself, by the thousand."""
    site = roads("quic", stateless_retry=True)
    noise = random.Random(3)
    (initial,) = first_datagrams(folder, 1)
    count = 2000 if SLOW else 20_000
    with watching(site.bench, 16 * MB, [site()]), datagrams(site.address) as send:
        before, lost = site.stat("quic_datagrams_received"), 0
        for i in range(count):
            send(initial if i % 4 == 0 else bytes([noise.choice((0x40, 0xC0, 0xC3, 0xFF))]) + noise.randbytes(noise.choice((20, 1250))))
            # As fast as they are taken: a socket that is full drops the bystander's as well, and no broker could hold against that.
            deadline = time.monotonic() + 0.1
            while (behind := i - 32 - lost - (site.stat("quic_datagrams_received") - before)) > 0:
                if time.monotonic() > deadline:
                    lost += behind
                time.sleep(0)
        eventually(lambda: site.stat("quic_datagrams_received") - before >= count - lost)
        assert lost < count // 4
    assert site.stat("quic_half_open") == 0
    site().ping()


async def streams(link: QuicLink, count: int) -> None:
    """More streams than there may be, against the allowance that the server has given; then each is broken off."""
    link.quic._remote_max_streams_bidi = 1 << 20
    for _ in range(count):
        stream = link.quic.get_next_available_stream_id()
        link.quic.send_stream_data(stream, b"\x10")
    link.transmit()
    await link.wait_closed()


def test_quic_floods_of_streams(roads: StartRoads) -> None:
    """Connections that open more streams than they may are ended, one after the other."""
    site = roads("quic", limits={"max_quic_streams": 20})
    rounds = 3 if SLOW else 12
    with watching(site.bench, 16 * MB, [site()]):
        for _ in range(rounds):
            link = driver().run(QuicLink.connect(site.address, site.road))
            driver().run(streams(link, 2000))
            assert link.ended is not None and link.ended.error_code == 4  # STREAM_LIMIT_ERROR (RFC 9000 section 20.1)
        eventually(lambda: site.stat("quic_connections") == 1)
    eventually(lambda: site.stat("connections_open") <= 5)


async def rapid_resets(link: QuicLink, count: int) -> int:
    """Opens streams and breaks them off at once, as many as the server lets it; how many."""
    done = 0
    while done < count and not link.gone.is_set():
        for _ in range(10):
            stream = link.quic.get_next_available_stream_id()
            link.quic.send_stream_data(stream, b"\x10")
            link.quic.reset_stream(stream, 0)
            done += 1
        link.transmit()
        await link.ping()
    return done


def test_quic_rapid_resets_of_streams(roads: StartRoads) -> None:
    """Within its allowance a client may open and reset as it likes: each is a connection of a worker that comes and goes."""
    site = roads("quic")
    count = 100 if SLOW else 1000
    with watching(site.bench, 16 * MB, [site()]):
        link = driver().run(QuicLink.connect(site.address, site.road))
        with contextlib.suppress(PeerClosed, TransportError, ConnectionError):
            assert driver().run(rapid_resets(link, count)) <= count
        driver().call(link.close_soon)
    eventually(lambda: site.stat("quic_streams") == 0)
    site().ping()
