"""Brokers and clients for the conformance tests.

Environment: `MQTTC_TEST_WORKERS` (2), `MQTTC_TEST_PROTOCOL` (3 or 5: only tests of that family; those that join versions
run in both), `MQTTC_TEST_BROKER` (host:port of a running broker: tests that need a special configuration are skipped, and
those that move the clock too, unless `MQTTC_TEST_SLEEP=1` lets them wait in real time), `MQTTC_TEST_TRANSPORT` (tcp or tls).
"""

from __future__ import annotations

import atexit
import functools
import itertools
import os
import shutil
import ssl
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ..rawclient import Packet, Peer

EXTERNAL = os.environ.get("MQTTC_TEST_BROKER", "")
FAMILY = os.environ.get("MQTTC_TEST_PROTOCOL", "")
WORKERS = int(os.environ.get("MQTTC_TEST_WORKERS", "2"))

TLS = os.environ.get("MQTTC_TEST_TRANSPORT", "tcp") == "tls"

RUN = f"{os.getpid()}x" if EXTERNAL else ""  # names that an earlier run did not leave in a broker that goes on

_numbers = itertools.count(1)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "spec(version, *ids): statements of one standard that the test checks")


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
        if config is None:
            host, _, port = EXTERNAL.rpartition(":")
            self.address = (host, int(port))
            return
        from mqttc.server import Broker

        self.native = Broker(config, authenticator=authenticator)
        self.native.start()
        host, _, port = self.native.urls[0].rpartition("//")[2].rpartition(":")
        self.address = (host, int(port))

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


@functools.cache
def certificates() -> Path:
    """A directory with a CA and a server's certificate for localhost."""
    from mqttc import certs

    folder = Path(tempfile.mkdtemp(prefix="mqttc-tls-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    certs.make_authority(folder)
    certs.make_server(folder, ["localhost"])
    return folder


@functools.cache
def client_context() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificates() / "ca.pem"))


def listener_under_test() -> dict[str, Any]:
    if not TLS:
        return {"url": "tcp://127.0.0.1:0"}
    return {"url": "tls://127.0.0.1:0", "certificate": str(certificates() / "server.pem"), "key": str(certificates() / "server.key")}


def broker_config(**sections: Any) -> dict[str, Any]:
    """The default test configuration with sections merged in; `listener` goes into the one listener."""
    config: dict[str, Any] = {
        "listeners": [{**listener_under_test(), **sections.pop("listener", {})}],
        "workers": WORKERS,
        "auth": {"anonymous": True},
    }
    for name, values in sections.items():
        config[name] = {**config.get(name, {}), **values} if isinstance(values, dict) else values
    return config


MakeBroker = Callable[..., TestBroker]


@pytest.fixture(scope="package")
def shared_broker() -> Iterator[TestBroker]:
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

    def raw(self, version: int = 4, broker: TestBroker | None = None) -> Peer:
        """A peer with an open socket and nothing sent."""
        peer = Peer((broker or self.broker).address, version, tls=client_context() if TLS else None)
        self.made.append(peer)
        return peer

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
    for peer in made.made:
        peer.close()
