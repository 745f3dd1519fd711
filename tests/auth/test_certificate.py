"""Certificates as user names, over TLS and by what a trusted proxy says; and what a chain makes of them."""

from __future__ import annotations

import asyncio
import datetime
import socket
import ssl
import struct
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from mqttc import certs
from mqttc.auth import PeerIdentity
from mqttc.auth.certificates import CertificateSource
from mqttc.auth.source import Answer, Outcome
from mqttc.config_auth import ClientCertificate
from tests.auth.conftest import ALICE, BOB, Make, ask
from tests.broker.conftest import Bench, name
from tests.rawclient import Peer, PeerClosed


def made(common_name: str | None = "device", alternatives: list[x509.GeneralName] | None = None) -> bytes:
    """A certificate, DER."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([] if common_name is None else [x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), 1, now, now + datetime.timedelta(days=1))
    if alternatives:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    return builder.sign(key, SHA256()).public_bytes(Encoding.DER)


MANY = made(
    "common",
    [
        *(x509.DNSName("one.test"), x509.DNSName("two.test"), x509.UniformResourceIdentifier("urn:mqttc:device:7")),
        *(x509.RFC822Name("dev@example.org"),),
    ],
)


def decide(section: dict[str, Any], identity: PeerIdentity | None, username: str | None = None) -> Outcome:
    source = CertificateSource(ClientCertificate(**section))
    return asyncio.run(source.decide(ask(username, None, identity=identity), {}))


@pytest.mark.parametrize(
    ("section", "user"),
    [
        ({}, "common"), ({"name": "dns"}, "one.test"), ({"name": "uri"}, "urn:mqttc:device:7"), ({"name": "email"}, "dev@example.org"),
        ({"name": "subject"}, "CN=common"), ({"pattern": "com.*"}, "common"), ({"pattern": "com"}, None), ({"pattern": "(com).*"}, "com"),
        ({"name": "dns", "pattern": r"(two)\.test"}, "two"),
        ({"name": "uri", "pattern": r"urn:mqttc:(\w+):(\d+)", "user": r"\1-\2"}, "device-7"),
        ({"name": "uri", "pattern": r"urn:mqttc:(?P<kind>\w+):\d+", "user": r"\g<kind>"}, "device"), ({"pattern": "(x?)common"}, None),
    ],
)  # fmt: skip
def test_names(section: dict[str, Any], user: str | None) -> None:
    outcome = decide(section, PeerIdentity(certificate=MANY))
    assert (outcome.answer, outcome.username) == ((Answer.DENY, None) if user is None else (Answer.ALLOW, user))


def test_what_proves_nothing() -> None:
    assert decide({}, None).answer is Answer.IGNORE
    assert decide({}, PeerIdentity(key_name="k")).answer is Answer.IGNORE
    assert decide({"name": "dns"}, PeerIdentity(certificate=made())).answer is Answer.IGNORE
    assert decide({}, PeerIdentity(certificate=made(None))).answer is Answer.IGNORE
    assert decide({}, PeerIdentity(certificate=b"no certificate")).answer is Answer.DENY
    # All that the proxy told is the common name.
    assert decide({"name": "dns"}, PeerIdentity(proxied_name="device")).answer is Answer.IGNORE


def test_other_proofs() -> None:
    assert decide({"name": "key_name"}, PeerIdentity(key_name="sensor-1")).username == "sensor-1"
    assert decide({}, PeerIdentity(proxied_name="device")).username == "device"


def test_the_name_of_connect_can_have_to_be_the_same() -> None:
    for section, username, answer in (
        ({"match_username": True}, "common", Answer.ALLOW),
        ({"match_username": True}, None, Answer.ALLOW),
        ({"match_username": True}, "other", Answer.DENY),
        ({"match_username": True, "name": "dns"}, "two.test", Answer.ALLOW),
        ({}, "other", Answer.ALLOW),
    ):
        assert decide(section, PeerIdentity(certificate=MANY), username).answer is answer


# ---------------------------------------------------------------------------------- with a broker


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made_ = tmp_path_factory.mktemp("certificates")
    certs.make_authority(made_)
    certs.make_server(made_, ["localhost"])
    for client in ("alice", "stranger"):
        certs.make_client(made_, client)
    foreign = made_ / "foreign"
    certs.make_authority(foreign)
    certs.make_client(foreign, "alice")
    return made_


def tls(folder: Path, **keys: Any) -> dict[str, Any]:
    return {
        "url": "tls://127.0.0.1:0", "certificate": str(folder / "server.pem"), "key": str(folder / "server.key"),
        "client_ca": str(folder / "ca.pem"), "client_certificate": "optional", **keys,
    }  # fmt: skip


def secure(bench: Bench, folder: Path, client: str = "", version: int = 5) -> Peer:
    context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    if client:
        context.load_cert_chain(folder / f"{client}.pem", folder / f"{client}.key")
    peer = Peer(bench.address(), version, tls=context)
    bench.peers.append(peer)
    return peer


@pytest.mark.parametrize("version", [4, 5])
def test_over_tls(make: Make, folder: Path, version: int) -> None:
    bench = make({"certificate": {"pattern": "(alice)"}}, listeners=[tls(folder)], workers=1)
    for _ in range(2):
        assert secure(bench, folder, "alice", version).connect(name()).reason == 0
        assert secure(bench, folder, "stranger", version).connect(name()).reason == (0x87 if version == 5 else 5)
        assert secure(bench, folder, "", version).connect(name()).reason == (0x87 if version == 5 else 5)
    with pytest.raises((ssl.SSLError, PeerClosed)):
        secure(bench, folder, "foreign/alice", version).connect(name())
    assert bench.stat("connects_accepted") == 2


@pytest.mark.parametrize(
    ("chain", "codes"),
    [
        ({"any": ["certificate", "password_file"]}, (0, 0, 0x86, 0)),
        ({"all": ["certificate", "password_file"]}, (0x87, 0x86, 0x86, 0)),
    ],
)
def test_two_factors(make: Make, folder: Path, users: Path, chain: dict[str, Any], codes: tuple[int, ...]) -> None:
    """Certificate alone, password alone, wrong password without certificate, both."""
    bench = make({"certificate": {}, "password_file": str(users), "chain": chain}, listeners=[tls(folder)])
    got = (
        secure(bench, folder, "alice").connect(name()).reason,
        secure(bench, folder).connect(name(), username="alice", password=ALICE).reason,
        secure(bench, folder).connect(name(), username="alice", password=BOB).reason,
        secure(bench, folder, "alice").connect(name(), username="alice", password=ALICE).reason,
    )
    assert got == codes


def header(*fields: bytes, verify: int = 0) -> bytes:
    """PROXY protocol version 2, with what the proxy says of TLS."""
    ours = bytes([0x20]) + struct.pack(">H", 5 + sum(map(len, fields))) + b"\x07" + struct.pack(">I", verify) + b"".join(fields)
    one = socket.inet_pton(socket.AF_INET, "192.0.2.7")
    body = one + one + struct.pack(">HH", 4711, 1883) + ours
    return b"\r\n\r\n\0\r\nQUIT\n" + bytes([0x21, 0x11]) + struct.pack(">H", len(body)) + body


def test_by_a_trusted_proxy(make: Make) -> None:
    """What it has verified counts, what it has not does not."""
    bench = make({"certificate": {}}, listeners=[{"url": "tcp://127.0.0.1:0", "proxy_protocol": True, "trusted_proxies": ["127.0.0.1"]}])
    common = bytes([0x22]) + struct.pack(">H", 6) + b"device"
    for verify, code in ((0, 0), (1, 0x87)):
        peer = bench.raw(5)
        peer.send(header(common, verify=verify))
        assert peer.connect(name()).reason == code
