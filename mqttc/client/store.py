"""Where a client's half of the session is kept: in memory, or in an SQLite file that outlives the process.

The file holds messages of the application that are not delivered, with their identifiers, and the identifiers of QoS 2 messages that have
arrived and are not released. Changes of one turn of the loop are written in one transaction, before the packets that depend on them leave.
"""

from __future__ import annotations

import os
import sqlite3
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from mqttc import codec
from mqttc.errors import MqttError

if TYPE_CHECKING:
    from mqttc.client.outgoing import Outgoing

LAYOUT: Final = 2
"""`user_version` of the file."""
APPLICATION: Final = 0x6D716331
"""`application_id` of the file."""


@dataclass(slots=True)
class Stored:
    """What was there: messages in their order, and identifiers."""

    outgoing: list[Outgoing] = field(default_factory=list)
    received: list[int] = field(default_factory=list)


class Store(Protocol):
    """Called by the core as things happen. `dirty` says that `commit` has something to do."""

    @property
    def durable(self) -> bool:
        """It outlives the process."""
        ...

    @property
    def dirty(self) -> bool: ...
    def load(self) -> Stored:
        """Opens it. Raises ``MqttError``."""
        ...

    def queued(self, entry: Outgoing) -> None: ...
    def staged(self, entry: Outgoing) -> None: ...
    def done(self, entry: Outgoing) -> None: ...
    def received(self, packet_id: int) -> None: ...
    def forgotten(self, packet_id: int) -> None: ...
    def all_forgotten(self) -> None: ...
    def commit(self) -> None: ...
    def close(self) -> None: ...


class MemoryStore:
    """Nothing is kept beyond the client, which holds it all itself."""

    durable = False
    dirty = False

    def load(self) -> Stored:
        return Stored()

    def queued(self, entry: Outgoing) -> None: ...
    def staged(self, entry: Outgoing) -> None: ...
    def done(self, entry: Outgoing) -> None: ...
    def received(self, packet_id: int) -> None: ...
    def forgotten(self, packet_id: int) -> None: ...
    def all_forgotten(self) -> None: ...
    def commit(self) -> None: ...
    def close(self) -> None: ...


MEMORY: Final = MemoryStore()


class SqliteStore:
    """One file for one client, locked while it is open. Used on the loop's thread, which waits for each commit.

    `synchronous="normal"` survives the death of the process, `"full"` that of the machine too, at the price of a disk's flush a turn.
    """

    durable = True

    def __init__(self, path: str | os.PathLike[str], synchronous: str = "normal") -> None:
        if synchronous not in ("normal", "full"):
            raise ValueError('synchronous: "normal" or "full"')
        self._path = os.fspath(path)
        self._synchronous = synchronous
        self._base: sqlite3.Connection | None = None
        self._written: dict[int, Outgoing | None] = {}
        """By number: to be written, or None to be deleted."""
        self._fresh: set[int] = set()
        """Numbers that the file does not hold yet."""
        self._received: dict[int, bool] = {}
        self._clear_received = False
        self._clock, self._wall_clock = time.monotonic, time.time
        """The core's clock, whose seconds mean nothing to another process, and the one that they are kept in."""

    @property
    def dirty(self) -> bool:
        return bool(self._written or self._received or self._clear_received)

    def load(self) -> Stored:
        try:
            return self._load()
        except (sqlite3.Error, ValueError) as error:
            self.close()
            raise MqttError(f"store {self._path}: {error}") from error

    def _load(self) -> Stored:
        from mqttc.client.outgoing import Outgoing, Stage

        if self._base is not None:
            raise ValueError("it is in use by another client")
        base = self._base = sqlite3.connect(self._path, timeout=0.5, isolation_level=None, check_same_thread=False)
        base.execute("PRAGMA locking_mode=EXCLUSIVE")
        layout = base.execute("PRAGMA user_version").fetchone()[0]
        application = base.execute("PRAGMA application_id").fetchone()[0]
        if (layout, application) not in ((0, 0), (1, APPLICATION), (LAYOUT, APPLICATION)):
            raise ValueError("it is not a client's store, or of another version of mqttc")
        if not layout and base.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            raise ValueError("it is not a client's store")
        base.execute("PRAGMA journal_mode=WAL")
        base.execute(f"PRAGMA synchronous={self._synchronous}")
        base.execute("BEGIN IMMEDIATE")
        if not layout:
            base.execute(f"PRAGMA application_id={APPLICATION}")
            base.execute("CREATE TABLE outgoing (number INTEGER PRIMARY KEY, packet_id INTEGER, stage INTEGER, packet BLOB) STRICT")
            base.execute("CREATE TABLE received (packet_id INTEGER PRIMARY KEY) STRICT")
        if layout < 2:
            base.execute("ALTER TABLE outgoing ADD COLUMN expires_at REAL")  # seconds since 1970
            base.execute(f"PRAGMA user_version={LAYOUT}")
        base.execute("COMMIT")
        stored = Stored()
        released: list[Outgoing] = []
        wall, now = self._wall_clock(), self._clock()
        rows = base.execute("SELECT number, packet_id, stage, packet, expires_at FROM outgoing ORDER BY number")
        for number, packet_id, stage, data, expires_at in rows:
            [packet] = codec.Decoder(5).feed(data)
            assert isinstance(packet, codec.Publish)
            if (
                stage not in (Stage.QUEUED, Stage.SENT, Stage.RELEASED)
                or (stage == Stage.QUEUED) != (packet_id == 0)
                or not 0 <= packet_id <= 65535
            ):
                raise ValueError(f"message {number} has the packet identifier {packet_id} and is in stage {stage}")
            entry = Outgoing(packet.topic, bytes(packet.payload), int(packet.qos), packet.retain, packet.properties or None)
            entry.number, entry.packet_id, entry.stage = number, packet_id, stage
            if expires_at is not None:
                entry.expires_at = now + expires_at - wall
            (released if stage == Stage.RELEASED else stored.outgoing).append(entry)
        stored.outgoing[:0] = released
        stored.received = [row[0] for row in base.execute("SELECT packet_id FROM received")]
        return stored

    def queued(self, entry: Outgoing) -> None:
        self._written[entry.number] = entry
        self._fresh.add(entry.number)

    def staged(self, entry: Outgoing) -> None:
        self._written[entry.number] = entry

    def done(self, entry: Outgoing) -> None:
        if entry.number in self._fresh:  # it came and went within the turn
            self._fresh.discard(entry.number)
            self._written.pop(entry.number, None)
        elif entry.number:
            self._written[entry.number] = None

    def received(self, packet_id: int) -> None:
        self._received[packet_id] = True

    def forgotten(self, packet_id: int) -> None:
        self._received[packet_id] = False

    def all_forgotten(self) -> None:
        self._received.clear()
        self._clear_received = True

    def commit(self) -> None:
        """Raises ``MqttError``; what was to be written stays to be written."""
        base = self._base
        if base is None or not self.dirty:
            return
        try:
            base.execute("BEGIN")
            if self._clear_received:
                base.execute("DELETE FROM received")
            for packet_id, there in self._received.items():
                change = "INSERT OR IGNORE INTO received VALUES (?)" if there else "DELETE FROM received WHERE packet_id = ?"
                base.execute(change, (packet_id,))
            for number, entry in self._written.items():
                self._write(base, number, entry)
            base.execute("COMMIT")
        except sqlite3.Error as error:
            if base.in_transaction:
                base.execute("ROLLBACK")
            raise MqttError(f"store {self._path}: {error}") from error
        self._written.clear()
        self._fresh.clear()
        self._received.clear()
        self._clear_received = False

    def _write(self, base: sqlite3.Connection, number: int, entry: Outgoing | None) -> None:
        if entry is None:
            base.execute("DELETE FROM outgoing WHERE number = ?", (number,))
        elif number in self._fresh:
            packet = codec.Publish(
                entry.topic, entry.payload, qos=entry.qos, retain=entry.retain, packet_id=1 if entry.qos else 0, properties=entry.properties
            )
            expires_at = None if entry.expires_at is None else self._wall_clock() + entry.expires_at - self._clock()
            row = (number, entry.packet_id, int(entry.stage), codec.encode(packet, 5), expires_at)
            base.execute("INSERT INTO outgoing VALUES (?, ?, ?, ?, ?)", row)
        else:
            row3 = (entry.packet_id, int(entry.stage), number)
            base.execute("UPDATE outgoing SET packet_id = ?, stage = ? WHERE number = ?", row3)

    def close(self) -> None:
        """What was not committed is forgotten. Idempotent."""
        if self._base is not None:
            self._base.close()
            self._base = None
        self._written.clear()
        self._fresh.clear()
        self._received.clear()
        self._clear_received = False
