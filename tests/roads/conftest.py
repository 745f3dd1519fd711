"""A broker that listens on every road, its log events, and clients that look on while others misbehave."""

from __future__ import annotations

import itertools
import logging
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from mqttc import certs
from mqttc.auth import Request, Verdict
from tests import transports
from tests.broker.conftest import Events
from tests.conftest import BrokerFactory, tcp_address
from tests.rawclient import Peer
from tests.transports import SCHEMES, SECURE, TRANSPORTS, Address, Road

_numbers = itertools.count(1)

CONNECT_TIMEOUT_S = 5.0


def name() -> str:
    return f"r{next(_numbers)}"


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA, and certificates of it for localhost and for a client called device."""
    made = tmp_path_factory.mktemp("roads")
    certs.make_authority(made)
    certs.make_server(made, ["localhost", "127.0.0.1"])
    certs.make_client(made, "device")
    return made


@pytest.fixture(scope="package", autouse=True)
def peers_loop() -> Iterator[None]:
    yield
    transports.stop()


@pytest.fixture
def events() -> Iterator[Events]:
    """Log events from "debug" on."""
    handler = Events()
    logger = logging.getLogger("mqttc.broker")
    level = logger.level
    logger.setLevel(logging.DEBUG)
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)


class Site:
    """A broker and the peers that a test connects to it."""

    def __init__(self, broker: Any, folder: Path, events: Events) -> None:
        self.broker = broker
        self.events = events
        self._folder = folder
        self._made: list[Peer] = []

    def address(self, scheme: str) -> Address:
        """Of the first listener of that scheme."""
        url = next(url for url in self.broker.urls if url.startswith(f"{scheme}:"))
        return urlsplit(url).path if scheme == "unix" else tcp_address(url)

    def road(self, transport: str, **options: Any) -> Road:
        return Road(transport, ca=self._folder / "ca.pem" if transport in SECURE else None, **options)

    def raw(self, transport: str, version: int = 4, link: Any = None, **options: Any) -> Peer:
        """A peer that has sent nothing of MQTT yet."""
        peer = Peer(self.address(SCHEMES[transport]), version, road=self.road(transport, **options), link=link)
        self._made.append(peer)
        return peer

    def __call__(self, transport: str, version: int = 4, client_id: str = "", **options: Any) -> Peer:
        """A connected one."""
        peer = self.raw(transport, version)
        assert peer.connect(client_id or name(), **options).reason == 0
        return peer

    def socket(self, scheme: str) -> socket.socket:
        """Plain, whatever the listener speaks."""
        return transports.open_socket(self.address(scheme))

    def stat(self, counter: str) -> int:
        return int(self.broker.stats()[counter])

    def close(self) -> None:
        for peer in self._made:
            peer.close()


StartSite = Callable[..., Site]


class Curious:
    """Admits everybody and remembers what was asked."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    async def authenticate(self, request: Request) -> Verdict:
        self.requests.append(request)
        return Verdict(0)


@pytest.fixture
def start(broker_factory: BrokerFactory, folder: Path, events: Events, tmp_path: Path) -> Iterator[StartSite]:
    """Starts a broker: `start("ws", "tls", limits={...}, authenticator=..., ws={keys of that listener})`; by default on every road."""
    made: list[Site] = []

    def make(*schemes: str, authenticator: Any = None, **sections: Any) -> Site:
        listeners = []
        for scheme in schemes or ("tcp", "unix", "tls", "ws", "wss", "quic"):
            table: dict[str, Any] = {"url": f"unix://{tmp_path}/s" if scheme == "unix" else f"{scheme}://127.0.0.1:0"}
            if scheme in ("tls", "wss", "quic"):
                table |= {"certificate": str(folder / "server.pem"), "key": str(folder / "server.key")}
            listeners.append({**table, **sections.pop(scheme, {})})
        config = {"listeners": listeners, "auth": {"anonymous": True}, "log": {"level": "debug"}, **sections}
        config["limits"] = {"connect_timeout": CONNECT_TIMEOUT_S, **sections.get("limits", {})}
        site = Site(broker_factory(config, authenticator=authenticator), folder, events)
        made.append(site)
        return site

    yield make
    for site in made:
        site.close()


class Onlookers:
    """One client on every road, each subscribed to the same topic."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.peers = [site(transport, 5) for transport in TRANSPORTS]
        for peer in self.peers:
            peer.subscribe("onlookers", 1)
        self.open = site.stat("connections_open")

    def noticed_nothing(self) -> None:
        """All are there, and a message of each reaches all."""
        for number, peer in enumerate(self.peers):
            peer.publish("onlookers", b"%d" % number, 1)
            for other in self.peers:
                assert other.message("onlookers").payload == b"%d" % number
        for peer in self.peers:
            assert not peer.aside and not peer.buffer


@pytest.fixture
def site(start: StartSite) -> Site:
    """On every road, with its default limits but for a short connect_timeout."""
    return start()


@pytest.fixture
def onlookers(site: Site) -> Iterator[Onlookers]:
    """Checked at the end of the test, when the misbehaving clients' connections have ended."""
    made = Onlookers(site)
    yield made
    made.noticed_nothing()
