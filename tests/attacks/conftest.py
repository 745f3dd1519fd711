"""Brokers that are attacked, and bystanders that must not notice: clients that measure their own round trips meanwhile."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from mqttc import certs

from .. import transports
from ..broker.conftest import Bench, Make, events, make, name, unix
from ..rawclient import TIMEOUT, Peer, PeerClosed
from ..transports import SCHEMES, SECURE, Road

__all__ = ["STALL_S", "Roads", "Watch", "events", "make", "name", "roads", "settled", "unix", "watching"]

STALL_S = float(os.environ.get("MQTTC_TEST_STALL", "1")) * max(1.0, TIMEOUT / 5)
"""Seconds that a bystander's round trip may take. What the machine itself makes a thread wait meanwhile is measured beside it and added."""
RSS_BYTES = 256 << 20
"""By which the resident memory of the process, the attacker's own included, may grow."""
BYSTANDERS = 4


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Watch:
    """What bystanders saw during an attack."""

    def __init__(self, bench: Bench, others: Sequence[Peer]) -> None:
        self.bench = bench
        self.peers = [*(bench(5 if i % 2 else 4) for i in range(BYSTANDERS)), *others]
        for i, peer in enumerate(self.peers):
            peer.subscribe(f"bystander/{i}", 1)
        self.trips = 0
        self.longest_s = [0.0] * len(self.peers)
        self.machine_s = 0.0
        self.memory_bytes = 0
        self.failure: BaseException | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _machine(self) -> float:
        """How long this thread waits for another that does nothing but answer."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            thread = threading.Thread(target=lambda: theirs.sendall(theirs.recv(1)))
            began = time.monotonic()
            thread.start()
            ours.sendall(b"x")
            ours.recv(1)
            thread.join()
            return time.monotonic() - began

    def _run(self) -> None:
        try:
            while not self._over.is_set() or self.trips < len(self.peers):
                self.machine_s = max(self.machine_s, self._machine())
                for i, peer in enumerate(self.peers):
                    began = time.monotonic()
                    peer.publish(f"bystander/{i}", b"x", 1)
                    peer.answer(peer.await_packet(3))
                    self.longest_s[i] = max(self.longest_s[i], time.monotonic() - began)
                    self.trips += 1
                self.memory_bytes = max(self.memory_bytes, self.bench.stat("memory_bytes"))
                self._over.wait(0.005)
        except BaseException as failure:
            self.failure = failure


@contextlib.contextmanager
def watching(bench: Bench, memory_bytes: int, others: Sequence[Peer] = ()) -> Iterator[Watch]:
    """Bystanders' round trips go on while the block attacks; the broker's own account of memory may not grow by more than that.

    They come over TCP; `others` are further ones, admitted already, over other roads.
    """
    watch = Watch(bench, others)
    before, resident = bench.stat("memory_bytes"), resident_bytes()
    watch._thread.start()
    try:
        yield watch
    finally:
        watch._over.set()
        watch._thread.join()
    if watch.failure is not None:
        raise AssertionError("a bystander noticed") from watch.failure
    told = ", ".join(f"{longest:.2f}" for longest in watch.longest_s)
    assert max(watch.longest_s) <= STALL_S + watch.machine_s, f"bystanders waited {told} s at most, the machine {watch.machine_s:.2f} s"
    assert watch.memory_bytes - before <= memory_bytes, f"memory grew by {watch.memory_bytes - before} bytes"
    assert resident_bytes() - resident <= RSS_BYTES
    for peer in watch.peers:
        peer.disconnect()


def settled(peer: Peer) -> bool:
    """Read what comes until the connection answers a ping (True) or has ended (False)."""
    try:
        peer.ping()
    except (PeerClosed, ConnectionError):
        return False
    return True


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA, and a certificate of it for localhost."""
    made = tmp_path_factory.mktemp("attacks")
    certs.make_authority(made)
    certs.make_server(made, ["localhost", "127.0.0.1"])
    return made


class Roads:
    """A broker with a TCP listener, and one other."""

    def __init__(self, make: Make, folder: Path, transport: str, keys: dict[str, Any], limits: dict[str, Any]) -> None:
        table = {"url": f"{SCHEMES[transport]}://127.0.0.1:0", **keys}
        if transport in SECURE:
            table |= {"certificate": str(folder / "server.pem"), "key": str(folder / "server.key")}
        self.bench = make(listeners=[{"url": "tcp://127.0.0.1:0"}, table], limits=limits)
        self.road = Road(transport, ca=folder / "ca.pem" if transport in SECURE else None)
        address = self.bench.address(1)
        assert isinstance(address, tuple)
        self.address = address
        self._peers: list[Peer] = []

    def __call__(self) -> Peer:
        """A client over the other road."""
        peer = Peer(self.address, 5, road=self.road)
        self._peers.append(peer)
        assert peer.connect(name()).reason == 0
        return peer

    def stat(self, counter: str) -> int:
        return self.bench.stat(counter)

    def close(self) -> None:
        for peer in self._peers:
            peer.close()


@pytest.fixture
def roads(make: Make, folder: Path) -> Iterator[Any]:
    """`roads("quic", limits={...}, key of the listener=value...)`"""
    made: list[Roads] = []

    def start(transport: str, *, limits: dict[str, Any] | None = None, **keys: Any) -> Roads:
        made.append(Roads(make, folder, transport, keys, limits or {}))
        return made[-1]

    yield start
    for one in made:
        one.close()
    transports.stop()
