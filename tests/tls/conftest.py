"""A CA with certificates, brokers with TLS listeners, and peers that speak TLS by Python's ssl."""

from __future__ import annotations

import itertools
import logging
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mqttc import certs
from tests.broker.conftest import Events
from tests.conftest import BrokerFactory, tcp_address
from tests.rawclient import Peer

_numbers = itertools.count(1)

Listener = Callable[..., dict[str, Any]]


def name() -> str:
    return f"t{next(_numbers)}"


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ca, server (localhost, 127.0.0.1), other (other.test, *.wild.test), device, revoked (by crl.pem), and stranger, of another CA."""
    made = tmp_path_factory.mktemp("tls")
    certs.make_authority(made)
    certs.make_server(made, ["localhost", "127.0.0.1"])
    certs.make_server(made, ["other.test", "*.wild.test"], name="other")
    certs.make_client(made, "device")
    certs.make_client(made, "revoked")
    certs.make_revocations(made, [made / "revoked.pem"])
    foreign = made / "foreign"
    certs.make_authority(foreign, "another CA")
    certs.make_client(foreign, "stranger")
    (made / "keys").write_text("# name:key\nsensor-1:0123456789abcdef0123456789abcdef\nwith:colon:00ff\n")
    return made


@pytest.fixture
def listener(folder: Path) -> Listener:
    """A TLS listener's table, with the files of `folder` by their names."""
    files = ("certificate", "key", "client_ca", "crl", "psk_file")

    def make(**keys: Any) -> dict[str, Any]:
        table = {"url": "tls://127.0.0.1:0", "certificate": "server.pem", "key": "server.key", **keys}
        table = {key: value for key, value in table.items() if value is not None}
        for key in files:
            if key in table:
                table[key] = str(folder / table[key])
        if "certificates" in table:
            table["certificates"] = [{key: str(folder / value) for key, value in one.items()} for one in table["certificates"]]
        return table

    return make


@pytest.fixture
def start(broker_factory: BrokerFactory, listener: Listener) -> Callable[..., Any]:
    """Starts a broker with one TLS listener: `start(client_certificate=..., config={...}, authenticator=...)`."""

    def make(config: dict[str, Any] | None = None, authenticator: Any = None, **keys: Any) -> Any:
        table = {"listeners": [listener(**keys)], "auth": {"anonymous": True}, "log": {"level": "debug"}, **(config or {})}
        return broker_factory(table, authenticator=authenticator)

    return make


@pytest.fixture
def context(folder: Path) -> Callable[..., ssl.SSLContext]:
    """A client's context: `context("device", version="1.2", alpn=[...])`."""

    def make(certificate: str = "", *, version: str = "", alpn: list[str] | None = None) -> ssl.SSLContext:
        made = ssl.create_default_context(cafile=str(folder / "ca.pem"))
        if certificate:
            made.load_cert_chain(folder / f"{certificate}.pem", folder / f"{certificate}.key")
        if version:
            made.minimum_version = made.maximum_version = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}[version]
        if alpn is not None:
            made.set_alpn_protocols(alpn)
        return made

    return make


class Peers:
    """Makes peers and closes them at the end."""

    def __init__(self) -> None:
        self.made: list[Peer] = []

    def raw(self, broker: Any, tls: ssl.SSLContext | None, version: int = 4, **options: Any) -> Peer:
        peer = Peer(tcp_address(broker.urls[0]), version, tls=tls, **options)
        self.made.append(peer)
        return peer

    def __call__(self, broker: Any, tls: ssl.SSLContext | None, version: int = 4, client_id: str = "", **options: Any) -> Peer:
        """Connected; its CONNACK was a success."""
        peer = self.raw(broker, tls, version, **options)
        assert peer.connect(client_id or name()).reason == 0
        return peer


@pytest.fixture
def peers() -> Iterator[Peers]:
    made = Peers()
    yield made
    for peer in made.made:
        peer.close()


@pytest.fixture
def events() -> Iterator[Events]:
    handler = Events()
    logger = logging.getLogger("mqttc.broker")
    level = logger.level
    logger.setLevel(logging.DEBUG)
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)
