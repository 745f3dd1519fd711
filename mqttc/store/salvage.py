"""``--recover``: saves what is sound of a damaged store, and keeps the damaged files beside the new one.

Everything happens under the store's lock. The damaged file is only read. The new file is complete and on the disk before
either is renamed, and a crash between two renames is made good at the next start (``finish``).
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from mqttc.store import database, schema
from mqttc.store.walk import MAXIMUM_PROBES, Row, Walk

Progress = Callable[[str], None]

PROGRESS_ROWS: Final = 100_000
"""Rows between two lines of progress."""
_BATCH_ROWS: Final = 500
_BATCH_BYTES: Final = 4 * 1024 * 1024
_READY: Final = ".recovered-"
"""Ends the name of the new file while the damaged one has its place; the rest is the time that the damaged one is named by."""
_WORK: Final = (".salvage", ".source", ".template", ".new")
"""Ends of the names of files that are of no use after a crash."""


@dataclass(slots=True)
class TableRecovery:
    """What became of one table: ``read`` = ``kept`` + ``damaged`` + ``orphans``; what could not be read has no number."""

    read: int = 0
    kept: int = 0
    damaged: int = 0
    """Rows that were read and have impossible values."""
    orphans: int = 0
    """Sound rows that belong to something that is lost."""
    unreadable: int = 0
    """Stretches of the table that could not be read: one or many rows each."""
    cut_short: bool = False

    @property
    def has_loss(self) -> bool:
        return bool(self.damaged or self.orphans or self.unreadable)


@dataclass(slots=True)
class Recovery:
    """The report of a recovery."""

    reasons: list[str]
    """What was wrong."""
    moved_to: Path
    """Where the damaged file is now; its ``-wal`` and ``-shm`` are beside it."""
    tables: dict[str, TableRecovery] = field(default_factory=dict)
    wal_lost_bytes: int = 0
    """Size of a WAL that could not be read at all: what was committed last."""

    @property
    def has_loss(self) -> bool:
        return self.wal_lost_bytes > 0 or any(table.has_loss for table in self.tables.values())

    def lines(self) -> list[str]:
        """For people."""
        lines = [f"the store was damaged: {reason}" for reason in self.reasons]
        for name, table in self.tables.items():
            line = f"{name}: {table.kept} rows saved"
            if table.has_loss:
                line += f", {table.damaged} with impossible values and {table.orphans} without counterpart left out"
                line += f", {table.unreadable} stretches of unknown size unreadable" if table.unreadable else ""
            if table.cut_short:
                line += f"; the search ended after {MAXIMUM_PROBES} probes"
            lines.append(line)
        if self.wal_lost_bytes:
            lines.append(f"a WAL of {self.wal_lost_bytes} bytes is left out: what was committed after the last checkpoint")
        lost = "data was lost: what is not counted as saved is gone from the store"
        lines.append(lost if self.has_loss else "no loss was found in what could be read")
        lines.append(f"the damaged file is kept as {self.moved_to}")
        return lines


def beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def finish(path: Path) -> None:
    """Remove what a crash left of unfinished work, and make the renames of a recovery that was complete."""
    for suffix in _WORK:
        database.remove(beside(path, suffix))
    for ready in sorted(path.parent.glob(f"{path.name}{_READY}*T*Z")):
        damaged = beside(path, ".damaged-" + ready.name.removeprefix(path.name + _READY))
        for suffix in (*database.SIDE_FILES, ""):  # the new file must never meet the old WAL
            if beside(path, suffix).exists():
                beside(path, suffix).rename(beside(damaged, suffix))
        ready.rename(path)
        database.sync_directory(path.parent)


def salvage(path: Path, reasons: list[str], progress: Progress) -> Recovery:
    """Replace the damaged store by one with all that is sound in it. Raises ``ForeignError`` if nothing in it is a store's."""
    new, stamp = beside(path, ".salvage"), _free_stamp(path)
    recovery = Recovery(reasons, beside(path, f".damaged-{stamp}"))
    if database.wal_problem(path):
        recovery.wal_lost_bytes = database.wal_of(path).stat().st_size
    database.create(new)
    try:
        with database.store_errors(new), contextlib.closing(database.connect(new, "rw")) as target:
            target.execute("PRAGMA synchronous = OFF")  # the file counts only once it is complete
            with _source(path) as source:
                target.execute("DELETE FROM meta")
                for table in schema.TABLES:
                    recovery.tables[table.name] = _copy_table(source, target, table, progress)
                if path.stat().st_size and not any(table.read for table in recovery.tables.values()):
                    raise database.ForeignError(path, "nothing in it can be read as a store's")
            _drop_orphans(target, recovery)
            _renew_meta(target)
            for name, result in recovery.tables.items():
                result.kept = result.read - result.damaged - result.orphans
                progress(f"{name}: {result.kept} of {result.read} rows that could be read are sound")
        database.sync_file(new)
        new.rename(beside(path, f"{_READY}{stamp}"))
        database.sync_directory(path.parent)
    except BaseException:
        database.remove(new)
        raise
    finish(path)
    return recovery


def _free_stamp(path: Path) -> str:
    """The time in UTC, later if a file is named by it already."""
    while beside(path, f".damaged-{(stamp := database.utc_stamp())}").exists():
        time.sleep(0.1)
    return stamp


@contextlib.contextmanager
def _source(path: Path) -> Iterator[sqlite3.Connection]:
    """The damaged store, for reading. If its first page is of no use, a copy that has an empty store's first page in its place.

    All stores have their tables at the same pages, as they are made by the same statements in the same order.
    """
    sound_wal = not database.wal_problem(path)
    if sound_wal and _begins_as_store(path):  # an empty file does not: SQLite deletes the WAL of one
        with contextlib.closing(database.connect(path, "ro")) as connection:
            if _knows_tables(connection):
                yield connection
                return
    copied, template = beside(path, ".source"), beside(path, ".template")
    try:
        database.create(template)
        database.create_file(copied)
        shutil.copyfile(path, copied)
        if sound_wal and database.wal_of(path).exists():
            shutil.copyfile(database.wal_of(path), database.wal_of(copied))
        page = bytearray(template.read_bytes()[: schema.PAGE_BYTES])
        page[24:28] = (1).to_bytes(4)  # change counter, not that of bytes 92 to 95: the number of pages is that of the file
        page[92:96] = bytes(4)
        with copied.open("r+b") as file:
            file.write(page)
        with contextlib.closing(database.connect(copied, "ro")) as connection:
            if not _knows_tables(connection):  # the WAL has another first page
                database.wal_of(copied).unlink(missing_ok=True)
        with contextlib.closing(database.connect(copied, "ro")) as connection:
            _knows_tables(connection)
            yield connection
    finally:
        database.remove(copied)
        database.remove(template)


def _begins_as_store(path: Path) -> bool:
    try:
        database.check_header(path)
    except database.DamageError:
        return False
    return True


def _knows_tables(connection: sqlite3.Connection) -> bool:
    """Whether the first page leads to every table; the connection then also reads files that are cut off."""
    try:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("PRAGMA cell_size_check = ON")
        return not any(problem.startswith("table ") for problem in schema.table_problems(connection))
    except sqlite3.Error as error:
        if not database.is_unreadable(error):
            raise
        return False
    except UnicodeDecodeError:
        return False


def _copy_table(source: sqlite3.Connection, target: sqlite3.Connection, table: schema.Table, progress: Progress) -> TableRecovery:
    result = TableRecovery()
    walk = Walk(source, table)
    batch: list[Row] = []
    size = 0
    stored = 0
    target.execute("BEGIN")
    for row in walk.rows():
        result.read += 1
        batch.append(row)
        size += sum(len(value) for value in row if isinstance(value, bytes | str))
        if len(batch) == _BATCH_ROWS or size >= _BATCH_BYTES:
            stored += _insert(target, table, batch)
            batch, size = [], 0
        if result.read % PROGRESS_ROWS == 0:
            progress(f"{table.name}: {result.read} rows read")
            target.execute("COMMIT")
            target.execute("BEGIN")
    stored += _insert(target, table, batch)
    stored -= target.execute(f"DELETE FROM {table.name} WHERE NOT coalesce({table.sound}, 0)").rowcount
    target.execute("COMMIT")
    result.read += walk.misplaced
    result.damaged = result.read - stored
    result.unreadable, result.cut_short = walk.unreadable, walk.cut_short
    return result


def _insert(target: sqlite3.Connection, table: schema.Table, rows: list[Row]) -> int:
    """The number of rows that are stored: no doubles, nothing NULL that must not be."""
    marks = ", ".join("?" * len(table.columns))
    return target.executemany(f"INSERT OR IGNORE INTO {table.name} VALUES ({marks})", rows).rowcount if rows else 0


def _drop_orphans(target: sqlite3.Connection, recovery: Recovery) -> None:
    target.execute("BEGIN")
    for orphans in (*schema.ORPHANS, schema.UNCLAIMED):
        dropped = target.execute(f"DELETE FROM {orphans.table} WHERE {orphans.where}").rowcount
        recovery.tables[orphans.table].orphans += dropped
    target.execute("COMMIT")


def _renew_meta(target: sqlite3.Connection) -> None:
    """Ids must not be given twice, and the end was not orderly; a lost clock begins now."""
    target.execute("BEGIN")
    highest = "(SELECT coalesce(max(id), 0) + 1 FROM {})"
    ids = ", ".join(highest.format(name) for name in ("session", "share_group", "message"))
    known = "coalesce((SELECT value FROM meta WHERE key = 'next_id'), 1)"
    target.execute(f"INSERT OR REPLACE INTO meta VALUES ('next_id', max({known}, {ids}))")
    target.execute("INSERT OR REPLACE INTO meta VALUES ('clean', 0)")
    target.execute("INSERT OR IGNORE INTO meta VALUES ('clock', ?)", (time.time_ns() // 1_000_000,))
    target.execute("COMMIT")
