"""Brokers and clients for the conformance tests.

Environment: `MQTTC_TEST_WORKERS` (2), `MQTTC_TEST_PROTOCOL` (3 or 5: only tests of that family; those that join versions
run in both), `MQTTC_TEST_BROKER` (host:port of a running broker: tests that need a special configuration are skipped, and
those that move the clock too, unless `MQTTC_TEST_SLEEP=1` lets them wait in real time), `MQTTC_TEST_TRANSPORT` (tcp, unix, tls,
ws, wss, h2, wss-h2 or quic; h2: WebSocket over HTTP/2), `MQTTC_TEST_WS_SPLIT=1` (what is sent over a WebSocket is cut into frames
and fragments at random), `MQTTC_TEST_SHARED=1` (all peers of a test are streams of one HTTP/2 or QUIC connection to each broker),
`MQTTC_TEST_DURABILITY` (written or synced: each broker keeps what it has in a directory of its own).
"""

from __future__ import annotations

import atexit
import functools
import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from .. import transports
from ..rawclient import Packet, Peer
from ..transports import SCHEMES, SECURE, STREAMED, TRANSPORTS, Address, Link, Road

EXTERNAL = os.environ.get("MQTTC_TEST_BROKER", "")
FAMILY = os.environ.get("MQTTC_TEST_PROTOCOL", "")
WORKERS = int(os.environ.get("MQTTC_TEST_WORKERS", "2"))

TRANSPORT = os.environ.get("MQTTC_TEST_TRANSPORT", "tcp")
if TRANSPORT not in TRANSPORTS or (EXTERNAL and TRANSPORT != "tcp"):
    raise ValueError(f"MQTTC_TEST_TRANSPORT={TRANSPORT}: {', '.join(TRANSPORTS)}; with MQTTC_TEST_BROKER tcp alone")
SPLIT = os.environ.get("MQTTC_TEST_WS_SPLIT") == "1"
SHARED = os.environ.get("MQTTC_TEST_SHARED") == "1" and TRANSPORT in STREAMED

DURABILITY = os.environ.get("MQTTC_TEST_DURABILITY", "")
if DURABILITY not in ("", "written", "synced"):
    raise ValueError(f"MQTTC_TEST_DURABILITY={DURABILITY}: written, synced")

RUN = f"{os.getpid()}x" if EXTERNAL else ""  # names that an earlier run did not leave in a broker that goes on

_numbers = itertools.count(1)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "spec(version, *ids): statements of one standard that the test checks")
    config.addinivalue_line("markers", "not_over(*transports, reason=...): what the test looks at does not exist there")


def item_family(item: pytest.Item) -> str:
    """ "3" or "5" when the test belongs to one family alone, else an empty string."""
    callspec = getattr(item, "callspec", None)
    version = callspec.params.get("version") if callspec is not None else None
    if version is not None:
        return "5" if version == 5 else "3"
    named = {mark.args[0] for mark in item.iter_markers("spec")}
    if len(named) != 1:
        return ""
    return "5" if named == {"5"} else "3"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    ours = [i for i in items if here in i.path.parents]
    for item in ours:
        item.add_marker("matrix")
        for mark in item.iter_markers("not_over"):
            if TRANSPORT in mark.args:
                item.add_marker(pytest.mark.skip(reason=f"over {TRANSPORT}: {mark.kwargs['reason']}"))
    if FAMILY not in ("3", "5"):
        return
    other = [i for i in ours if item_family(i) not in ("", FAMILY)]
    config.hook.pytest_deselected(items=other)
    dropped = set(other)
    items[:] = [i for i in items if i not in dropped]


class TestBroker:
    """A broker under test: where it listens, its clock, and whether it is ours."""

    __test__ = False

    def __init__(self, config: dict[str, Any] | None, authenticator: Any = None) -> None:
        self.native: Any = None
        self.stopped = False
        self.address: Address
        if config is None:
            host, _, port = EXTERNAL.rpartition(":")
            self.address = (host, int(port))
            return
        from mqttc.server import Broker

        self.native = Broker(config, authenticator=authenticator)
        self.native.start()
        self.address = address_of(self.native.urls[0])

    @property
    def ours(self) -> bool:
        return self.native is not None

    def advance_clock(self, seconds: float) -> None:
        """Let that much time pass for the broker."""
        if self.native is not None:
            self.native.advance_clock(seconds)
        elif os.environ.get("MQTTC_TEST_SLEEP") == "1":
            time.sleep(seconds)
        else:
            pytest.skip("the clock of an external broker cannot be moved")

    def stop(self) -> None:
        if self.native is not None and not self.stopped:
            self.stopped = True
            self.native.stop()


def address_of(url: str) -> Address:
    """Host and port of a listener's URL, or the path of its Unix socket."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return parts.path
    assert parts.hostname is not None and parts.port is not None
    return parts.hostname, parts.port


@functools.cache
def folder() -> Path:
    """A directory for Unix sockets and certificates."""
    made = Path(tempfile.mkdtemp(prefix="mqttc-test-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


@functools.cache
def certificates() -> Path:
    """A directory with a CA and a server's certificate for localhost."""
    from mqttc import certs

    certs.make_authority(folder())
    certs.make_server(folder(), ["localhost"])
    return folder()


def road(transport: str = TRANSPORT, **options: Any) -> Road:
    """How peers reach a listener of `listener_for`."""
    return Road(transport, ca=certificates() / "ca.pem" if transport in SECURE else None, split=SPLIT, **options)


def listener_for(transport: str = TRANSPORT) -> dict[str, Any]:
    """A listener on a free port, or path, that serves this transport."""
    if transport == "unix":
        return {"url": f"unix://{folder()}/{next(_numbers)}.sock"}
    table: dict[str, Any] = {"url": f"{SCHEMES[transport]}://127.0.0.1:0"}
    if transport in SECURE:
        table |= {"certificate": str(certificates() / "server.pem"), "key": str(certificates() / "server.key")}
    return table


def broker_config(**sections: Any) -> dict[str, Any]:
    """The default test configuration with sections merged in; `listener` goes into the one listener."""
    config: dict[str, Any] = {
        "listeners": [{**listener_for(), **sections.pop("listener", {})}],
        "workers": WORKERS,
        "auth": {"anonymous": True},
    }
    if DURABILITY:
        config |= {"durability": {"mode": DURABILITY}, "data_dir": str(folder() / f"store-{next(_numbers)}")}
    for name, values in sections.items():
        config[name] = {**config.get(name, {}), **values} if isinstance(values, dict) else values
    return config


MakeBroker = Callable[..., TestBroker]


@pytest.fixture(scope="package", autouse=True)
def peers_loop() -> Iterator[None]:
    """Set up before all brokers: connections of HTTP/2 and QUIC end with the last test here."""
    yield
    transports.stop()


@pytest.fixture(scope="package")
def shared_broker(peers_loop: None) -> Iterator[TestBroker]:
    broker = TestBroker(None if EXTERNAL else broker_config())
    yield broker
    broker.stop()


@pytest.fixture
def broker(shared_broker: TestBroker) -> TestBroker:
    """The broker in its default configuration, shared by most tests."""
    return shared_broker


@pytest.fixture(scope="module")
def make_broker() -> Iterator[MakeBroker]:
    """Brokers with a special configuration; equal configurations share one within a module."""
    made: dict[str, TestBroker] = {}

    def make(authenticator: Any = None, **sections: Any) -> TestBroker:
        if EXTERNAL:
            pytest.skip("an external broker has the configuration it has")
        key = repr((type(authenticator), sorted(sections.items())))
        if key not in made:
            made[key] = TestBroker(broker_config(**sections), authenticator)
        return made[key]

    yield make
    for one in made.values():
        one.stop()


@pytest.fixture
def name() -> str:
    """A client id and topic prefix that no other test uses."""
    return f"n{RUN}{next(_numbers)}"


class Clients:
    """Makes peers for one test and closes them at its end."""

    def __init__(self, broker: TestBroker) -> None:
        self.broker = broker
        self.made: list[Peer] = []
        self.links: dict[TestBroker, Link] = {}

    def raw(self, version: int = 4, broker: TestBroker | None = None) -> Peer:
        """A peer with an open socket and nothing sent."""
        chosen = broker or self.broker
        if SHARED and chosen not in self.links:
            self.links[chosen] = transports.open_link(chosen.address, road())
        peer = Peer(chosen.address, version, road=road(), link=self.links.get(chosen))
        self.made.append(peer)
        return peer

    def close(self) -> None:
        for peer in self.made:
            peer.close()
        for link in self.links.values():
            transports.close_link(link)

    def __call__(self, version: int = 4, client_id: str | bytes | None = None, *, broker: TestBroker | None = None, **options: Any) -> Peer:
        """A connected peer; its CONNACK is in `peer.connack`."""
        peer = self.raw(version, broker)
        connack = peer.connect(f"c{RUN}{next(_numbers)}" if client_id is None else client_id, **options)
        assert connack.reason == 0, f"CONNECT refused: {connack}"
        peer.connack = connack  # type: ignore[attr-defined]
        return peer

    def session(self, version: int, client_id: str, *, present: bool | None = None, **options: Any) -> Peer:
        """A connected peer with a session that outlives its connection (clean flag 0, long expiry)."""
        options.setdefault("expiry", 3600)
        peer = self(version, client_id, clean=False, **options)
        if present is not None and version != 3:  # 3.1 has no Session Present
            assert peer.connack.session_present is present  # type: ignore[attr-defined]
        return peer

    def drain(self, subscriber: Peer, publisher: Peer, qos: int = 1, *, answer: bool = True) -> list[Packet]:
        """All messages that reached the subscriber from what the publisher sent so far.

        A last message, sent by the publisher on a topic of its own, marks the end: it takes the same way as those before
        it, so nothing can arrive after it and no waiting is needed.
        """
        last = f"last/{next(_numbers)}"
        subscriber.subscribe(last, qos)
        publisher.publish(last, b"last", qos)
        got = subscriber.messages_until(last, answer=answer)
        subscriber.unsubscribe(last)
        return got


@pytest.fixture
def clients(broker: TestBroker) -> Iterator[Clients]:
    made = Clients(broker)
    yield made
    made.close()
