"""A data directory with brokers that have it one after the other, their clients, and a look at what is in the file."""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mqttc.server import Broker
from mqttc.store import FILE_NAME, backup, check, log
from mqttc.store.schema import TABLES

from ..conftest import WORKERS, tcp_address
from ..rawclient import PUBACK, PUBCOMP, PUBLISH, PUBREC, PUBREL, TIMEOUT, Packet, Peer, PeerTimeout, ack_packet

VERSIONS = (3, 4, 5)

_numbers = itertools.count(1)
_pause = threading.Event()


def name() -> str:
    """A client id or topic that nobody else uses."""
    return f"d{next(_numbers)}"


def eventually(check_it: Callable[[], Any], what: Callable[[], str] = lambda: "it did not come to that") -> None:
    """Look until it holds, for at most the time that a packet may take."""
    deadline = time.monotonic() + TIMEOUT
    while not check_it():
        assert time.monotonic() < deadline, what()
        _pause.wait(0.002)


class Place:
    """A data directory, the broker that has it at the moment, and that broker's peers."""

    def __init__(self, folder: Path, **sections: Any) -> None:
        self.folder = folder
        self.path = folder / FILE_NAME
        self.sections: dict[str, Any] = {"durability": {"mode": "written"}, **sections}
        self.broker: Broker | None = None
        self.peers: list[Peer] = []
        self.sessions: set[str] = set()
        self.leaves_rows = False
        """What the end of the test does not look for: rows that nobody could fetch."""

    # ------------------------------------------------------------------------------------------ brokers

    def start(self, **sections: Any) -> Broker:
        self.sections |= sections
        config = {
            "listeners": [{"url": "tcp://127.0.0.1:0"}],
            "workers": WORKERS,
            "auth": {"anonymous": True},
            "data_dir": str(self.folder),
            **self.sections,
        }
        broker = Broker(config)
        broker.start()
        self.broker = broker
        return broker

    @property
    def running(self) -> Broker:
        assert self.broker is not None, "no broker runs"
        return self.broker

    def stop(self) -> None:
        """End in order; the peers' connections end with it."""
        if self.broker is not None:
            self.broker.stop()
            self.broker = None
        for peer in self.peers:
            peer.close()
        self.peers.clear()

    def restart(self, **sections: Any) -> None:
        self.stop()
        self.start(**sections)

    def crash(self, **sections: Any) -> None:
        """The next broker finds what is committed at this moment; what this one does from now on is as if it had not been."""
        image = self.folder / "image"
        backup(self.path, image)
        self.stop()
        for suffix in ("", "-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        image.rename(self.path)
        self.start(**sections)

    def stat(self, counter: str) -> int:
        return self.running.stats()[counter]

    # ------------------------------------------------------------------------------------------ clients

    def raw(self, version: int = 4, *, listener: int = 0) -> Peer:
        peer = Peer(tcp_address(self.running.urls[listener]), version)
        self.peers.append(peer)
        return peer

    def __call__(self, version: int = 4, client_id: str | None = None, *, listener: int = 0, **options: Any) -> Peer:
        """A connected peer, whose session ends with the connection unless the options say otherwise; its CONNACK is in `peer.connack`."""
        peer = self.raw(version, listener=listener)
        chosen = name() if client_id is None else client_id
        connack = peer.connect(chosen, **options)
        assert connack.reason == 0, f"CONNECT refused: {connack}"
        peer.connack = connack  # type: ignore[attr-defined]
        if not options.get("clean", True) or options.get("expiry"):
            self.sessions.add(chosen)
        return peer

    def session(self, version: int, client_id: str, *, present: bool | None = None, **options: Any) -> Peer:
        """A connected peer with a session that outlives its connection."""
        options.setdefault("expiry", 3600)
        peer = self(version, client_id, clean=False, **options)
        if present is not None and version != 3:  # 3.1 has no Session Present
            assert peer.connack.session_present is present  # type: ignore[attr-defined]
        return peer

    # ------------------------------------------------------------------------------------------ the file

    def query(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        with contextlib.closing(sqlite3.connect(f"file:{self.path}?mode=ro", uri=True, timeout=TIMEOUT)) as connection:
            return connection.execute(sql, values).fetchall()

    def count(self, table: str) -> int:
        """Rows, those that a broker would make of the log among them: whether a receiver was on line may be known late."""
        with contextlib.closing(
            sqlite3.connect(f"file:{self.path}?mode=ro", uri=True, timeout=TIMEOUT, isolation_level=None)
        ) as connection:
            connection.execute("BEGIN")
            (rows,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
            return int(rows) + (len(log.rows(connection)[table]) if table in ("message", "delivery") else 0)

    def counts(self) -> dict[str, int]:
        """Rows of all tables that have any."""
        return {table.name: rows for table in TABLES if table.name != "meta" and (rows := self.count(table.name))}

    def until(self, **counts: int) -> None:
        """Wait for tables to have as many rows: what needs no acknowledgement is written in its own time."""
        eventually(
            lambda: all(self.count(table) == rows for table, rows in counts.items()),
            lambda: f"{counts} wanted, there are {self.counts()}",
        )

    def settled(self) -> None:
        """Wait until nothing is on its way to the disk any more."""
        eventually(lambda: self.stat("journal_backlog_bytes") == 0)

    def nothing_waits(self) -> None:
        """All is acknowledged: no message and no delivery is left."""
        self.until(message=0, delivery=0, log=0)

    def write(self, *statements: str) -> None:
        """Change the file of a broker that has ended."""
        assert self.broker is None
        with contextlib.closing(sqlite3.connect(self.path)) as connection:
            for statement in statements:
                connection.execute(statement)
            connection.commit()

    def let_pass(self, seconds: float) -> None:
        """While no broker runs: all times in the file lie that much further back."""
        ms = round(seconds * 1000)
        self.write(
            f"UPDATE meta SET value = value - {ms} WHERE key = 'clock'",
            f"UPDATE session SET offline_since_ms = offline_since_ms - {ms} WHERE offline_since_ms > 0",
            f"UPDATE message SET expires_ms = expires_ms - {ms} WHERE expires_ms > 0",
            f"UPDATE retained SET expires_ms = expires_ms - {ms} WHERE expires_ms > 0",
        )

    @contextlib.contextmanager
    def blocked(self) -> Iterator[None]:
        """Nothing can be committed meanwhile: somebody else has the file."""
        self.settled()
        with contextlib.closing(sqlite3.connect(self.path, isolation_level=None, timeout=TIMEOUT)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield
            finally:
                connection.execute("ROLLBACK")

    # ------------------------------------------------------------------------------------------ the end of a test

    def drain(self) -> list[bytes]:
        """Every session fetches and acknowledges what is its own; the payloads."""
        got: list[bytes] = []
        for peer in self.peers:
            peer.close()
        peers = [self.session(5, client_id) for client_id in sorted(self.sessions)]
        gauges = ("messages_queued", "messages_inflight", "group_backlog")
        deadline = time.monotonic() + TIMEOUT
        while any(self.stat(gauge) for gauge in gauges):
            assert time.monotonic() < deadline, {gauge: self.stat(gauge) for gauge in gauges}
            for peer in peers:
                with contextlib.suppress(PeerTimeout):
                    while True:
                        got += complete(peer, peer.recv(0.005))
        return got

    def finish(self) -> None:
        """Whatever the test has left: when all is fetched no message is left, and when all sessions end nothing at all."""
        if self.path.exists():
            if self.broker is None:
                self.start()
            if not self.leaves_rows:
                self.drain()
                self.nothing_waits()
            for client_id in self.sessions:
                self(5, client_id).disconnect()
            self.settled()
            self.until(session=0, subscription=0, inbound=0, will=0, share_group=0, delivery=0, message=0, log=0)
        self.stop()
        if self.path.exists():
            assert check(self.path) == []
            assert self.query("SELECT value FROM meta WHERE key = 'clean'") == [(1,)]


def fetch(peer: Peer, count: int) -> list[bytes]:
    """The payloads of the next messages, each acknowledged to its end."""
    got: list[bytes] = []
    open_exchanges = 0
    while len(got) < count or open_exchanges:
        one = peer.recv()
        got += complete(peer, one)
        open_exchanges += (one.type == PUBLISH and one.qos == 2) - (one.type == PUBREL)
    return got


def complete(peer: Peer, got: Packet) -> list[bytes]:
    """Answer one packet of an exchange; the payload of a PUBLISH."""
    if got.type == PUBLISH:
        if got.qos:
            peer.send(ack_packet(PUBACK if got.qos == 1 else PUBREC, got.packet_id))
        return [got.payload]
    if got.type == PUBREL:
        peer.send(ack_packet(PUBCOMP, got.packet_id))
    return []
