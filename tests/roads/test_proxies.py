"""Behind a proxy or load balancer: PROXY protocol (versions 1 and 2) and X-Forwarded-For, believed from whom and for what."""

from __future__ import annotations

import contextlib
import socket
import struct
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tests import transports
from tests.rawclient import CONNACK, Peer, PeerClosed
from tests.roads.conftest import CONNECT_TIMEOUT_S, Curious, Site, StartSite, name
from tests.transports import Pipe, Refused, TransportError, WebSocketPipe, upgrade

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
CLIENT, CLIENT_6 = "192.0.2.7", "2001:db8::7"
TRUSTED = {"proxy_protocol": True, "trusted_proxies": ["127.0.0.0/8"]}
UNTRUSTED = {"proxy_protocol": True, "trusted_proxies": ["192.0.2.0/24", "::1"]}

BEHIND = ("tcp", "tls", "ws", "wss")
behind = pytest.mark.parametrize("transport", BEHIND)


def tlv(kind: int, value: bytes) -> bytes:
    return bytes([kind]) + struct.pack(">H", len(value)) + value


def tls_fields(*fields: bytes, shown: int = 0x07, verify: int = 0) -> bytes:
    """PP2_TYPE_SSL: TLS, with a certificate shown, and how its verification ended."""
    return tlv(0x20, bytes([shown]) + struct.pack(">I", verify) + b"".join(fields))


def version_2(source: str = CLIENT, port: int = 4711, fields: bytes = b"", command: int = 1) -> bytes:
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    one = socket.inet_pton(family, source)
    body = one + one + struct.pack(">HH", port, 1883) + fields
    return SIGNATURE + bytes([0x20 | command, 0x21 if family == socket.AF_INET6 else 0x11]) + struct.pack(">H", len(body)) + body


def version_1(source: str = CLIENT, port: int = 4711) -> bytes:
    return f"PROXY TCP{6 if ':' in source else 4} {source} {source} {port} 1883\r\n".encode()


HEADERS = {
    "v1": (version_1(), f"{CLIENT}:4711"),
    "v1-ipv6": (version_1(CLIENT_6), f"[{CLIENT_6}]:4711"),
    "v2": (version_2(), f"{CLIENT}:4711"),
    "v2-ipv6": (version_2(CLIENT_6), f"[{CLIENT_6}]:4711"),
    "v2-padded": (version_2(fields=tlv(4, bytes(2000))), f"{CLIENT}:4711"),
}


class Proxied:
    """Peers whose bytes follow a header that a proxy would send."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.made: list[Pipe] = []

    def raw(self, transport: str, header: bytes, **options: Any) -> Peer:
        road = self.site.road(transport, **options)
        plain = self.site.socket(transports.SCHEMES[transport])
        plain.sendall(header)
        pipe = Pipe(transports.secure(plain, road.context(), road.host) if transport in transports.SECURE else plain)
        self.made.append(pipe)
        if transport in transports.WEBSOCKET:
            pipe = upgrade(pipe, "localhost", road)
        return Peer(self.site.address(transports.SCHEMES[transport]), 5, pipe=pipe)

    def close(self) -> None:
        for pipe in self.made:
            pipe.close()


@behind
@pytest.mark.parametrize("kind", HEADERS)
def test_the_client_is_who_the_proxy_says(start: StartSite, transport: str, kind: str) -> None:
    """In log lines and for the authenticator; a client at the loopback is no local one."""
    header, address = HEADERS[kind]
    curious = Curious()
    site = start(transport, authenticator=curious, **{transport: TRUSTED})
    proxied = Proxied(site)
    peer = proxied.raw(transport, header)
    client_id = name()
    assert peer.connect(client_id, username="u").reason == 0
    (request,) = curious.requests
    assert (request.client_id, request.peer) == (client_id, address)
    assert site.events.wait("connected", client_id=client_id)["peer"] == address
    peer.subscribe("t", 1)
    peer.publish("t", bytes(70_000), 1)
    assert len(peer.message("t").payload) == 70_000
    peer.disconnect()
    assert site.events.wait("disconnected", client_id=client_id)["peer"] == address
    proxied.close()


@behind
@pytest.mark.parametrize("kind", ["v1", "v2"])
def test_others_are_not_believed(start: StartSite, transport: str, kind: str) -> None:
    """Not even read: the connection ends."""
    site = start(transport, **{transport: UNTRUSTED})
    proxied = Proxied(site)
    with pytest.raises((TransportError, PeerClosed, OSError)):
        proxied.raw(transport, HEADERS[kind][0]).connect(name())
    said = site.events.wait("handshake failed")
    assert "trusted_proxies" in said["detail"] and said["peer"].startswith("127.0.0.1:")
    assert not site.events.find("connected")
    proxied.close()


@behind
def test_a_header_has_to_come(start: StartSite, transport: str) -> None:
    site = start(transport, **{transport: TRUSTED})
    with pytest.raises((TransportError, PeerClosed, OSError)):
        site.raw(transport).connect(name())
    said = site.events.wait("handshake failed")
    assert "PROXY protocol" in said["detail"] and said["peer"].startswith("127.0.0.1:")


@pytest.mark.parametrize(
    "header",
    [
        b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 1883\n",
        b"PROXY TCP4 192.0.2.7 192.0.2.1 4711\r\n",
        b"PROXY TCP4 192.0.2.777 192.0.2.1 4711 1883\r\n",
        b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 65536\r\n",
        b"PROXY TCP6 192.0.2.7 192.0.2.1 4711 1883\r\n",
        b"PROXY UDP4 192.0.2.7 192.0.2.1 4711 1883\r\n",
        b"proxy tcp4 192.0.2.7 192.0.2.1 4711 1883\r\n",
        b"PROXY " + b"x" * 200 + b"\r\n",
        SIGNATURE[:-1] + b"\r" + version_2()[12:],
        SIGNATURE + b"\x31\x11\x00\x0c" + bytes(12),
        SIGNATURE + b"\x22\x11\x00\x0c" + bytes(12),
        SIGNATURE + b"\x21\x11\x00\x0b" + bytes(11),
        SIGNATURE + b"\x21\x11\xff\xff" + bytes(12),
        version_2(fields=b"\x20\x00"),
        version_2(fields=tlv(0x03, bytes(4))),
        version_2(fields=tlv(0x20, bytes(2))),
    ],
)
def test_ill_formed_headers(start: StartSite, header: bytes) -> None:
    """The connection ends with a line that says so, and the others stay."""
    site = start("tcp", tcp=TRUSTED)
    proxied = Proxied(site)
    onlooker = proxied.raw("tcp", version_1())
    assert onlooker.connect(name()).reason == 0
    peer = proxied.raw("tcp", header)
    with contextlib.suppress(PeerClosed):
        peer.send(b"\x10")
    assert peer.expect_close() == []
    assert "PROXY protocol" in site.events.wait("handshake failed")["detail"]
    onlooker.ping()
    proxied.close()


@pytest.mark.parametrize("sent", [0, 1, 11, 12, 15, 20])
@pytest.mark.parametrize("kind", ["v1", "v2"])
def test_a_header_that_stops(start: StartSite, kind: str, sent: int) -> None:
    site = start("tcp", tcp=TRUSTED)
    with site.socket("tcp") as connection:
        connection.sendall(HEADERS[kind][0][:sent])
        for _ in range(50):
            site.broker.advance_clock(CONNECT_TIMEOUT_S + 2)
            if transports.readable(connection, 0.1):
                break
        assert connection.recv(100) == b""
    assert site.events.wait("connect timeout")["peer"].startswith("127.0.0.1:")


def test_a_header_byte_by_byte(start: StartSite) -> None:
    site = start("tcp", tcp=TRUSTED)
    proxied = Proxied(site)
    for kind in ("v1", "v2"):
        header, address = HEADERS[kind]
        peer = proxied.raw("tcp", b"")
        for at in range(len(header)):
            peer.pipe.send(header[at : at + 1])
        client_id = name()
        assert peer.connect(client_id).reason == 0
        assert site.events.wait("connected", client_id=client_id)["peer"] == address
    proxied.close()


@pytest.mark.parametrize("header", [b"PROXY UNKNOWN\r\n", b"PROXY UNKNOWN ffff::1 ::2 3 4\r\n", version_2(command=0)])
def test_a_proxy_that_speaks_for_itself(start: StartSite, header: bytes) -> None:
    """Health checks: the connection's own address holds."""
    site = start("tcp", tcp=TRUSTED)
    proxied = Proxied(site)
    client_id = name()
    assert proxied.raw("tcp", header).connect(client_id).reason == 0
    assert site.events.wait("connected", client_id=client_id)["peer"].startswith("127.0.0.1:")
    proxied.close()


# ------------------------------------------------------------------------------------------------ identities


@behind
def test_what_the_proxy_says_of_a_certificate(start: StartSite, folder: Path, transport: str) -> None:
    """A common name or a whole certificate that it has verified reaches the authenticator; what it has not verified does not."""
    certificate = x509.load_pem_x509_certificate((folder / "device.pem").read_bytes()).public_bytes(Encoding.DER)
    curious = Curious()
    site = start(transport, authenticator=curious, **{transport: TRUSTED})
    proxied = Proxied(site)
    version = tlv(0x21, b"TLSv1.3")
    common_name = tlv(0x22, "gerät 1".encode())
    for fields in (
        tls_fields(version, common_name),
        tls_fields(version, tlv(0x28, certificate)),
        tls_fields(version, common_name, verify=1),
        tls_fields(version, common_name, shown=0x01),
        b"",
    ):
        assert proxied.raw(transport, version_2(fields=fields)).connect(name(), username="u").reason == 0
    named, whole, *others = [request.identity for request in curious.requests]
    assert named is not None and named.common_name == "gerät 1" and named.certificate is None
    assert whole is not None and whole.certificate == certificate and whole.common_name == "device"
    assert others == [None] * 3
    proxied.close()


@behind
@pytest.mark.parametrize("kind", ["v1", "v2"])
def test_loopback_never_holds(start: StartSite, transport: str, kind: str) -> None:
    """Whatever address is told, and for the proxy's own connections too."""
    site = start(transport, auth={"anonymous": "loopback"}, **{transport: TRUSTED})
    proxied = Proxied(site)
    made = version_1 if kind == "v1" else version_2
    for header in (made("127.0.0.1"), made("::1"), made(CLIENT), b"PROXY UNKNOWN\r\n" if kind == "v1" else version_2(command=0)):
        assert proxied.raw(transport, header).connect(name()).reason == 0x87
    proxied.close()


def test_loopback_never_holds_over_http_2(start: StartSite) -> None:
    """Streams of an HTTP/2 connection behind a proxy that sets X-Forwarded-For, and without one."""
    site = start("ws", auth={"anonymous": "loopback"}, ws={"trusted_proxies": ["127.0.0.1"]})
    for transport in ("ws", "h2"):
        for headers in ((), ((b"x-forwarded-for", b"127.0.0.1"),), ((b"x-forwarded-for", CLIENT.encode()),)):
            assert site.raw(transport, 5, headers=headers).connect(name()).reason == 0x87
    site = start("ws", auth={"anonymous": "loopback"})
    for transport in ("ws", "h2"):
        assert site.raw(transport, 5).connect(name()).reason == 0


# ------------------------------------------------------------------------------------------------ X-Forwarded-For


@pytest.mark.parametrize("transport", transports.WEBSOCKET)
@pytest.mark.parametrize(
    ("told", "address"),
    [
        (CLIENT, f"{CLIENT}:0"),
        (f"{CLIENT}:4711", f"{CLIENT}:4711"),
        (f"203.0.113.9, {CLIENT}", f"{CLIENT}:0"),
        (f"{CLIENT}, 127.0.0.5", f"{CLIENT}:0"),
        (CLIENT_6, f"[{CLIENT_6}]:0"),
        ("unknown", None),
        ("", None),
    ],
)
@pytest.mark.parametrize("trusted", [True, False])
def test_forwarded_for(start: StartSite, transport: str, told: str, address: str | None, trusted: bool) -> None:
    """Believed from a trusted proxy alone, and read from the right, past the trusted ones."""
    curious = Curious()
    proxies = ["127.0.0.0/8"] if trusted else ["192.0.2.0/24"]
    scheme = transports.SCHEMES[transport]
    site = start(scheme, authenticator=curious, **{scheme: {"trusted_proxies": proxies}})
    client_id = name()
    peer = site.raw(transport, 5, headers=((b"x-forwarded-for", told.encode()),))
    assert peer.connect(client_id, username="u").reason == 0
    (request,) = curious.requests
    logged = site.events.wait("connected", client_id=client_id)["peer"]
    if trusted and address is not None:
        assert request.peer == logged == address
    else:
        assert request.peer == logged and logged.startswith("127.0.0.1:")


# ------------------------------------------------------------------------------------------------ origins


@pytest.mark.parametrize("transport", transports.WEBSOCKET)
def test_allowed_origins(start: StartSite, transport: str) -> None:
    """Pages of these may connect, and clients that are no browsers; a refusal is an HTTP answer and a log line with the peer."""
    scheme = transports.SCHEMES[transport]
    site = start(scheme, **{scheme: {"allowed_origins": ["https://example.org", "http://localhost:3000"]}})
    for origin in (b"https://example.org", b"HTTPS://EXAMPLE.ORG", b"http://localhost:3000", None):
        peer = site.raw(transport, headers=() if origin is None else ((b"origin", origin),))
        assert peer.connect(name()).type == CONNACK
    for origin in (b"https://example.org:8443", b"http://example.org", b"https://example.org.evil.test", b"null", b""):
        with pytest.raises(Refused) as refused:
            site.raw(transport, headers=((b"origin", origin),))
        assert refused.value.status == 403
    said = site.events.wait("http_refused" if transport in transports.STREAMED else "http request refused")
    assert "origin" in said["detail"] and said["peer"].startswith("127.0.0.1:")


@pytest.mark.parametrize("transport", transports.WEBSOCKET)
def test_any_origin_by_default(start: StartSite, transport: str) -> None:
    site = start(transports.SCHEMES[transport])
    peer = site.raw(transport, headers=((b"origin", b"https://anything.test"),))
    assert isinstance(peer.pipe, WebSocketPipe)
    assert peer.connect(name()).reason == 0
