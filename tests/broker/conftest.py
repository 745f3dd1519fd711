"""Brokers with clients for the broker's tests, and what they tell about themselves: counters and log events.

`MQTTC_TEST_WORKERS` is the number of workers where a test does not set one (2).
"""

from __future__ import annotations

import itertools
import logging
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from ..conftest import WORKERS, tcp_address
from ..rawclient import TIMEOUT, Packet, Peer, PeerTimeout

_numbers = itertools.count(1)
_pause = threading.Event()


def name() -> str:
    """A client id or topic prefix that nobody else uses."""
    return f"b{next(_numbers)}"


def eventually(check: Callable[[], Any], what: str = "") -> None:
    """Look until the check holds, for at most the time that a packet may take."""
    deadline = time.monotonic() + TIMEOUT
    while not check():
        assert time.monotonic() < deadline, what or "it did not come to that"
        _pause.wait(0.001)


class Events(logging.Handler):
    """The broker's log events as they come."""

    def __init__(self) -> None:
        super().__init__()
        self.coming: queue.Queue[logging.LogRecord] = queue.Queue()
        self.seen: list[tuple[str, dict[str, Any]]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.coming.put(record)

    def take(self, timeout: float | None = None) -> None:
        record = self.coming.get(timeout=timeout) if timeout else self.coming.get_nowait()
        self.seen.append((getattr(record, "event", ""), {"level": record.levelname, **getattr(record, "fields", {})}))

    def find(self, event: str, **fields: Any) -> list[dict[str, Any]]:
        """Events so far with that name and those field values."""
        while not self.coming.empty():
            self.take()
        return [found for kind, found in self.seen if kind == event and all(found.get(k) == v for k, v in fields.items())]

    def wait(self, event: str, *, times: int = 1, **fields: Any) -> dict[str, Any]:
        """The first event with that name and those field values, when it has come so many times; those that came already included."""
        deadline = time.monotonic() + TIMEOUT
        while len(found := self.find(event, **fields)) < times:
            assert time.monotonic() < deadline, f"not {times} events {event} {fields} among {self.seen}"
            try:
                self.take(0.05)
            except queue.Empty:
                continue
        return found[0]


class SmallPeer(Peer):
    """A peer whose socket holds little of what it was sent and did not read."""

    def __init__(self, address: tuple[str, int], version: int = 4) -> None:
        plain = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        plain.settimeout(TIMEOUT)
        plain.connect(address)
        connect = socket.create_connection
        try:
            socket.create_connection = lambda *_, **__: plain  # type: ignore[assignment]
            super().__init__(address, version)
        finally:
            socket.create_connection = connect


class Bench:
    """A broker, the peers that one test connects to it, and its counters."""

    def __init__(self, config: Mapping[str, Any], events: Events, authenticator: Any = None) -> None:
        from mqttc.server import Broker

        self.native = Broker(config, authenticator=authenticator)
        self.native.start()
        self.events = events
        self.peers: list[Peer] = []

    def address(self, listener: int = 0) -> tuple[str, int] | str:
        url = self.native.urls[listener]
        return url.removeprefix("unix://") if url.startswith("unix:") else tcp_address(url)

    def raw(self, version: int = 4, *, listener: int = 0, small: bool = False) -> Peer:
        """A peer with an open socket and nothing sent."""
        address = self.address(listener)
        peer = SmallPeer(address, version) if small and isinstance(address, tuple) else Peer(address, version)
        self.peers.append(peer)
        return peer

    def __call__(self, version: int = 4, client_id: str | None = None, *, listener: int = 0, small: bool = False, **options: Any) -> Peer:
        """A connected peer; its CONNACK is in `peer.connack`."""
        peer = self.raw(version, listener=listener, small=small)
        connack = peer.connect(name() if client_id is None else client_id, **options)
        assert connack.reason == 0, f"CONNECT refused: {connack}"
        peer.connack = connack  # type: ignore[attr-defined]
        return peer

    def session(self, version: int, client_id: str, **options: Any) -> Peer:
        """A connected peer whose session outlives the connection."""
        options.setdefault("expiry", 3600)
        return self(version, client_id, clean=False, **options)

    def stat(self, counter: str) -> int:
        return self.native.stats()[counter]

    def until(self, counter: str, value: int) -> None:
        """Wait for a counter to be that."""
        eventually(lambda: self.stat(counter) == value, f"{counter} is {self.stat(counter)}, not {value}")

    def spread(self, count: int, version: int = 5, **options: Any) -> list[Peer]:
        """Peers that live on as many workers as there are, by their number."""
        return [self(version, **options) for _ in range(count)]

    def drain(self, subscriber: Peer, publisher: Peer, qos: int = 1, *, answer: bool = True) -> list[Packet]:
        """All messages that reached the subscriber from what the publisher sent so far."""
        last = f"last/{name()}"
        subscriber.subscribe(last, qos)
        publisher.publish(last, b"last", qos)
        got = subscriber.messages_until(last, answer=answer)
        subscriber.unsubscribe(last)
        return got

    def close(self) -> None:
        for peer in self.peers:
            peer.close()
        self.native.stop(0)


Make = Callable[..., Bench]


@pytest.fixture
def events() -> Iterator[Events]:
    """Log events of all brokers, from "info" on."""
    logger = logging.getLogger("mqttc.broker")
    handler, level, propagate = Events(), logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)
    logger.propagate = propagate


@pytest.fixture
def make(nothing_left: None, events: Events) -> Iterator[Make]:
    """Starts brokers: `make(limits={...}, listeners=[...], workers=1, authenticator=...)`; they end with the test."""
    made: list[Bench] = []

    def start(*, authenticator: Any = None, **sections: Any) -> Bench:
        config = {"listeners": [{"url": "tcp://127.0.0.1:0"}], "workers": WORKERS, "auth": {"anonymous": True}, **sections}
        bench = Bench(config, events, authenticator)
        made.append(bench)
        return bench

    yield start
    for bench in made:
        bench.close()


@pytest.fixture
def unix(tmp_path: Path) -> dict[str, Any]:
    """A listener whose sockets hold little that was not read (unlike TCP's, which grow)."""
    return {"url": f"unix://{tmp_path}/s"}


def collect(peers: list[Peer], count: int, *, answer: bool = True) -> list[list[Packet]]:
    """Messages from all peers until there are `count` of them; what each peer got."""
    import select

    got: list[list[Packet]] = [[] for _ in peers]
    deadline = time.monotonic() + TIMEOUT
    while sum(map(len, got)) < count:
        ready = [i for i, p in enumerate(peers) if p.aside or p.buffer]
        if not ready:
            sockets = select.select([p.socket for p in peers], [], [], max(deadline - time.monotonic(), 0))[0]
            ready = [i for i, p in enumerate(peers) if p.socket in sockets]
        if not ready:
            raise PeerTimeout(f"{[len(g) for g in got]} messages of {count}")
        for i in ready:
            got[i].append(peers[i].message(answer=answer))
    return got
