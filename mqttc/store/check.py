"""``mqttc-broker store check`` and ``info``: what is in a store and whether it is sound. Both only read, also while a broker writes."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mqttc.store import database, schema
from mqttc.store.database import DamageError, StoreError


def check(path: Path, progress: Callable[[str], None] = lambda line: None) -> list[str]:
    """Read the whole store; what is wrong with it, a line each, none if it is sound. Raises ``StoreError`` if there is none or it
    cannot be opened at all. Past a bad WAL nothing else is looked at."""
    if path.is_file() and (problem := database.wal_problem(path)):
        return [problem]
    try:
        with database.snapshot(path) as connection:
            _require_current(path, database.identify(connection, path))
            return problems_of(connection, progress)
    except DamageError as error:
        return [error.reason]


def problems_of(connection: sqlite3.Connection, progress: Callable[[str], None]) -> list[str]:
    """Structure, values, and rows whose counterpart is missing. SQLite's part ends after 100 findings."""
    problems: list[str] = []
    try:
        progress("checking the structure")
        for row in connection.execute(f"PRAGMA integrity_check({database.MAXIMUM_FINDINGS})"):
            if row[0] != "ok":
                problems.append(str(row[0]).replace("\n", " "))
        missing = schema.table_problems(connection)
    except sqlite3.Error as error:
        problems.append(_reason("the file's structure", error))
        missing = []
    if missing:
        return problems + missing
    for table in schema.TABLES:
        progress(f"checking the rows of {table.name}")
        problems += _counted(connection, f"rows of {table.name} with impossible values", table.name, f"NOT coalesce({table.sound}, 0)")
    for orphans in schema.ORPHANS:
        problems += _counted(connection, orphans.what, orphans.table, orphans.where)
    return problems


def _reason(what: str, error: sqlite3.Error) -> str:
    """The finding that something cannot be read; what is no fault of the file's is raised again."""
    if not database.is_unreadable(error):
        raise error
    return f"{what} cannot be read: {error}"


def _counted(connection: sqlite3.Connection, what: str, table: str, where: str) -> list[str]:
    try:
        (count,) = connection.execute(f"SELECT count(*) FROM {table} WHERE {where}").fetchone()
    except sqlite3.Error as error:
        return [_reason(what, error)]
    return [f"{count} {what}"] if count else []


def _require_current(path: Path, version: int) -> None:
    if version < schema.VERSION:
        raise StoreError(f"{path} has schema version {version}: the broker brings it to {schema.VERSION} when it starts")


def require_tables(connection: sqlite3.Connection, path: Path, version: int) -> None:
    """Raises ``StoreError`` for a file whose tables are not today's, older ones included."""
    _require_current(path, version)
    if problems := schema.table_problems(connection):
        raise DamageError(path, ", ".join(problems))


@dataclass(frozen=True, slots=True)
class StoreInfo:
    """Figures of one moment."""

    path: Path
    version: int
    clean: bool
    clock_ms: int | None
    """Wall clock at the last commit, in milliseconds since 1970 UTC."""
    next_id: int | None
    file_bytes: int
    wal_bytes: int
    free_bytes: int
    """Inside the file, for use again."""
    unclaimed: int
    """Messages that nobody waits for."""
    rows: dict[str, int] = field(default_factory=dict)
    """By table."""


def info(path: Path) -> StoreInfo:
    """Sizes and counts; raises ``StoreError``."""
    with database.snapshot(path) as connection:
        version = database.identify(connection, path)
        require_tables(connection, path, version)
        values = dict(connection.execute("SELECT key, value FROM meta"))
        (free,) = connection.execute("PRAGMA freelist_count").fetchone()
        rows = {name: connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in (table.name for table in schema.TABLES)}
        (unclaimed,) = connection.execute(f"SELECT count(*) FROM message WHERE {schema.UNCLAIMED.where}").fetchone()
        return StoreInfo(
            path,
            version,
            values.get("clean") == 1,
            _integer(values.get("clock")),
            _integer(values.get("next_id")),
            path.stat().st_size,
            _size(database.wal_of(path)),
            free * schema.PAGE_BYTES,
            unclaimed,
            rows,
        )


def _integer(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0
