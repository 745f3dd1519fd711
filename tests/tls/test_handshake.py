"""What is agreed in a handshake, and who is refused."""

from __future__ import annotations

import hashlib
import socket
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mqttc.auth import Request, Verdict
from mqttc.config import ConfigError
from tests.broker.conftest import Events, eventually
from tests.conftest import tcp_address
from tests.rawclient import PeerClosed
from tests.tls.conftest import Peers, name


def refused(peers: Peers, broker: Any, context: ssl.SSLContext, **options: Any) -> None:
    """The handshake fails, for a client of TLS 1.3 maybe only when it reads."""
    with pytest.raises((ssl.SSLError, ConnectionError, PeerClosed)):
        peers(broker, context, **options)


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_messages_over_each_version(start: Any, context: Any, peers: Peers, version: str) -> None:
    broker = start()
    peer = peers(broker, context(version=version))
    assert peer.socket.version() == f"TLSv{version}"
    peer.subscribe("a/#", 1)
    peer.publish("a/b", b"x", 1)
    assert peer.message().payload == b"x"
    assert broker.stats()["tls_handshakes"] == 1


def test_oldest_version(start: Any, context: Any, peers: Peers, events: Events) -> None:
    broker = start(minimum_tls_version="1.3")
    peers(broker, context(version="1.3"))
    refused(peers, broker, context(version="1.2"))
    assert "unsupported protocol" in events.wait("handshake failed")["detail"]


def test_ciphers(start: Any, context: Any, peers: Peers) -> None:
    broker = start(ciphers="ECDHE-ECDSA-CHACHA20-POLY1305", ciphersuites="TLS_AES_128_GCM_SHA256")
    assert peers(broker, context(version="1.2")).socket.cipher()[0] == "ECDHE-ECDSA-CHACHA20-POLY1305"
    assert peers(broker, context(version="1.3")).socket.cipher()[0] == "TLS_AES_128_GCM_SHA256"


@pytest.mark.parametrize(
    ("ours", "offered", "agreed"),
    [
        (["mqtt"], None, None),
        (["mqtt"], ["mqtt"], "mqtt"),
        (["mqtt"], ["http/1.1", "mqtt"], "mqtt"),
        (["mqtt"], ["http/1.1"], "refused"),
        (["x", "mqtt"], ["mqtt", "x"], "x"),
        ([], ["http/1.1"], None),
    ],
)
def test_alpn(start: Any, context: Any, peers: Peers, ours: list[str], offered: list[str] | None, agreed: str | None) -> None:
    broker = start(alpn=ours)
    if agreed == "refused":
        refused(peers, broker, context(alpn=offered))
    else:
        assert peers(broker, context(alpn=offered)).socket.selected_alpn_protocol() == agreed


@pytest.mark.parametrize("version", ["1.2", "1.3"])
@pytest.mark.parametrize(
    ("host", "expected"),
    [("localhost", "server"), ("other.test", "other"), ("a.wild.test", "other"), ("nobody.test", "server"), (None, "server")],
)
def test_certificate_by_host(start: Any, context: Any, peers: Peers, folder: Path, host: str | None, expected: str, version: str) -> None:
    broker = start(certificates=[{"certificate": "other.pem", "key": "other.key"}])
    tls = context(version=version)
    tls.check_hostname = False
    peer = peers(broker, tls, host=host)
    assert ssl.DER_cert_to_PEM_cert(peer.socket.getpeercert(True)) == (folder / f"{expected}.pem").read_text()


@pytest.mark.parametrize("version", ["1.2", "1.3"])
@pytest.mark.parametrize(
    ("rule", "shown", "admitted"),
    [
        ("none", "", True),
        ("none", "foreign/stranger", True),
        ("optional", "", True),
        ("optional", "device", True),
        ("optional", "foreign/stranger", False),
        ("optional", "revoked", False),
        ("required", "", False),
        ("required", "device", True),
        ("required", "foreign/stranger", False),
        ("required", "revoked", False),
    ],
)
def test_client_certificate(start: Any, context: Any, peers: Peers, rule: str, shown: str, admitted: bool, version: str) -> None:
    keys = {} if rule == "none" else {"client_ca": "ca.pem", "client_certificate": rule, "crl": "crl.pem"}
    broker = start(**keys)
    if admitted:
        peers(broker, context(shown, version=version))
    else:
        refused(peers, broker, context(shown, version=version))


def test_why_a_certificate_is_refused_stands_in_the_log(start: Any, context: Any, peers: Peers, events: Events) -> None:
    broker = start(client_ca="ca.pem", client_certificate="required", crl="crl.pem")
    refused(peers, broker, context("revoked"))
    found = events.wait("handshake failed", detail="TLS handshake failed: certificate revoked")
    assert found["peer"].startswith("127.0.0.1:") and found["listener"] == broker.urls[0]
    refused(peers, broker, context())
    events.wait("handshake failed", detail="TLS handshake failed: peer did not return a certificate")
    assert broker.stats()["tls_handshakes_failed"] == 2


class Curious:
    """Admits everybody and remembers what was asked."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    async def authenticate(self, request: Request) -> Verdict:
        self.requests.append(request)
        return Verdict(0)


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_identity_reaches_the_authenticator(start: Any, context: Any, peers: Peers, folder: Path, version: str) -> None:
    curious = Curious()
    broker = start(client_ca="ca.pem", client_certificate="optional", authenticator=curious)
    peers(broker, context("device", version=version))
    identity = curious.requests[0].identity
    assert identity is not None and identity.common_name == "device" and identity.subject == "CN=device"
    assert identity.alternative_names == ("URI:urn:mqttc:client:device",)
    der = ssl.PEM_cert_to_DER_cert((folder / "device.pem").read_text())
    assert identity.fingerprint == hashlib.sha256(der).hexdigest() and identity.key_name is None
    peers(broker, context(version=version))
    assert len(curious.requests) == 1  # a client that proves nothing and claims nothing is decided by auth.anonymous


def test_pkcs12_and_encrypted_keys(start: Any, context: Any, peers: Peers, folder: Path, tmp_path: Path) -> None:
    pair = [folder / "server.pem", folder / "server.key"]
    bundle, key = tmp_path / "server.p12", tmp_path / "encrypted.key"
    subprocess.run(
        ["openssl", "pkcs12", "-export", "-in", pair[0], "-inkey", pair[1], "-out", bundle, "-passout", "pass:secret"], check=True
    )
    subprocess.run(["openssl", "pkey", "-in", pair[1], "-aes256", "-passout", "pass:secret", "-out", key], check=True)
    peers(start(certificate=str(bundle), key=None, key_password="secret"), context())
    peers(start(key=str(key), key_password="secret"), context())
    for keys in ({"certificate": str(bundle), "key": None}, {"key": str(key)}):
        for password in ("wrong", ""):
            with pytest.raises(ConfigError, match=r"PKCS#12 file cannot be opened|key cannot be read"):
                start(**keys, key_password=password)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"certificate": "nothing.pem"}, r"certificate: .*nothing\.pem: No such file"),
        ({"certificate": "keys"}, "the certificate cannot be read"),
        ({"key": "other.key"}, "cannot be used: private key mismatch"),
        ({"client_ca": "keys", "client_certificate": "optional"}, "client_ca cannot be read"),
        ({"client_ca": "ca.pem", "client_certificate": "optional", "crl": "ca.pem"}, "crl cannot be read"),
        ({"ciphers": "NONSENSE"}, "ciphers cannot be used: no cipher match"),
        ({"psk_file": "ca.pem"}, "psk_file: .*:1: write name:key"),
    ],
)
def test_bad_files_are_refused_by_name(start: Any, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        start(**keys)


def test_renegotiation_is_off(start: Any, folder: Path) -> None:
    broker = start()
    host, port = tcp_address(broker.urls[0])
    command = ["openssl", "s_client", "-connect", f"{host}:{port}", "-tls1_2", "-CAfile", str(folder / "ca.pem")]
    done = subprocess.run(command, input=b"R\n", capture_output=True, timeout=10, check=False)
    assert b"RENEGOTIATING" in done.stderr and b"no renegotiation" in done.stderr


# ------------------------------------------------------------------------------------ those that do not speak TLS, or not to the end


def ended(plain: socket.socket) -> bool:
    """Whether the other side ends the connection in time, whatever it says before."""
    try:
        while plain.recv(4096):
            pass
    except ConnectionResetError:
        pass
    return True


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02\x00\x01\x00\x01"], ids=["silence", "half a hello"])
def test_stalled_handshake_ends_at_the_deadline(start: Any, context: Any, peers: Peers, events: Events, sent: bytes) -> None:
    broker = start({"limits": {"connect_timeout": 5}})
    live = peers(broker, context())
    with socket.create_connection(tcp_address(broker.urls[0]), 10) as plain:
        plain.sendall(sent)
        eventually(lambda: broker.stats()["connections_open"] == 2 and broker.stats()["reads"] > 0)
        broker.advance_clock(5.1)
        assert ended(plain)
    found = events.wait("connect timeout")
    assert found["detail"] in ("no TLS handshake", "the TLS handshake was not finished") and found["peer"].startswith("127.0.0.1:")
    live.ping()


def test_finished_handshake_without_connect_ends_at_the_deadline(start: Any, context: Any, peers: Peers, events: Events) -> None:
    broker = start({"limits": {"connect_timeout": 5}})
    peer = peers.raw(broker, context())
    eventually(lambda: broker.stats()["tls_handshakes"] == 1)
    broker.advance_clock(5.1)
    peer.expect_close()
    assert events.wait("connect timeout")["detail"] == ""


@pytest.mark.parametrize(
    ("sent", "detail"),
    [
        (b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x00\x00\x00", "not TLS: the client speaks plain MQTT"),
        (b"GET / HTTP/1.1\r\n\r\n", "not TLS: no handshake"),
        (b"\x16\x03\x01\x00\x05hello", "TLS handshake failed: "),
    ],
)
def test_plain_client_on_a_tls_port(start: Any, events: Events, sent: bytes, detail: str) -> None:
    broker = start()
    with socket.create_connection(tcp_address(broker.urls[0]), 10) as plain:
        plain.sendall(sent)
        assert ended(plain)
    assert events.wait("handshake failed")["detail"].startswith(detail)


def test_tls_client_on_a_plain_port(broker_factory: Any, context: Any, peers: Peers, events: Events) -> None:
    broker = broker_factory({"log": {"level": "info"}})
    refused(peers, broker, context())
    found = events.wait("protocol error")
    assert "speaks TLS, this listener does not" in found["detail"] and found["peer"].startswith("127.0.0.1:")


def client_hello() -> bytes:
    """What Python's ssl sends first."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def test_damaged_hellos_disturb_nobody(start: Any, context: Any, peers: Peers) -> None:
    broker = start()
    live = peers(broker, context())
    hello = client_hello()
    for at in range(0, len(hello), 3):
        with socket.create_connection(tcp_address(broker.urls[0]), 10) as plain:
            plain.sendall(hello[:at] + bytes([hello[at] ^ 0x41]) + hello[at + 1 :] + b"\x00" * 64)
            plain.shutdown(socket.SHUT_WR)
            assert ended(plain)
    live.ping()
    eventually(lambda: broker.stats()["connections_open"] == 1)


def test_a_client_may_leave_without_close_notify(start: Any, context: Any, peers: Peers, events: Events) -> None:
    broker = start()
    client_id = name()
    peer = peers(broker, context(), client_id=client_id)
    socket.socket.shutdown(peer.socket, socket.SHUT_RDWR)
    assert events.wait("connection lost", client_id=client_id)["detail"] == ""
