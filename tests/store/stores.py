"""Stores with known content, and damage at known places."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from mqttc.store import open_store
from mqttc.store.schema import PAGE_BYTES

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def writing(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection as the journal's: in WAL mode, with transactions of the test's own."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        yield connection


def add_session(connection: sqlite3.Connection, number: int, messages: int = 0) -> None:
    """A session with everything that can belong to one, and messages that wait for it alone."""
    client_id = b"client-%d" % number
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("INSERT INTO session VALUES (?, ?, 3600, 0)", (number, client_id))
    connection.execute("INSERT INTO subscription VALUES (?, ?, 1, 7)", (number, b"to/" + client_id))
    connection.execute("INSERT INTO inbound VALUES (?, 9)", (number,))
    connection.execute("INSERT INTO will VALUES (?, ?, x'', ?, 1, 0, 0, -1)", (number, b"gone/" + client_id, b"\xff\x00bye"))
    connection.execute("INSERT INTO retained VALUES (?, 1, x'', ?, 1, 0)", (b"state/" + client_id, b"on"))
    for count in range(1, messages + 1):
        message = number * 1_000_000 + count
        connection.execute("INSERT INTO message VALUES (?, ?, x'', ?, 1, 0, 0)", (message, b"to/" + client_id, b"m" * 300))
        connection.execute("INSERT INTO delivery VALUES (?, ?, 1, 0, 0, 0, ?)", (message, number, (7).to_bytes(4, "little")))
    connection.execute("UPDATE meta SET value = ? WHERE key = 'next_id'", (number * 1_000_000 + messages + 1,))
    connection.execute("COMMIT")


def make_store(folder: Path, sessions: int = 3, messages: int = 5) -> Path:
    """A store that its broker has left in order; the path of `store.db`."""
    with open_store(folder) as store, writing(store.path) as connection:
        for number in range(1, sessions + 1):
            add_session(connection, number, messages)
    return store.path


def pages_of(path: Path, table: str, kind: str) -> list[int]:
    """The table's `leaf`, `internal` or `overflow` pages, in key order."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT pageno FROM dbstat WHERE name = ? AND pagetype = ? ORDER BY path", (table, kind))
        return [row[0] for row in rows]


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def damage_page(path: Path, page: int) -> None:
    overwrite(path, (page - 1) * PAGE_BYTES, b"\xa5" * PAGE_BYTES)


def count(path: Path, table: str, where: str = "1") -> int:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        number: int = connection.execute(f"SELECT count(*) FROM {table} WHERE {where}").fetchone()[0]
        return number


def python(code: str, *arguments: str) -> subprocess.Popen[str]:
    """Another process, with pipes; it ends when its standard input does."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
