"""Start of the durable store: the lock, then the file made, checked, migrated or salvaged, before the journal has it."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from mqttc.store import database, schema
from mqttc.store.check import problems_of
from mqttc.store.database import DamageError, StoreError
from mqttc.store.lock import StoreLock
from mqttc.store.salvage import Recovery, beside, finish, salvage

FILE_NAME: Final = "store.db"
LOCK_NAME: Final = "store.lock"


class OpenStore:
    """A store that this process alone may use, until ``close``. No connection is open: the journal makes its own on ``path``,
    and has closed it before ``close`` is called."""

    def __init__(self, path: Path, lock: StoreLock) -> None:
        self.path = path
        """``store.db`` in the data directory."""
        self.created = False
        """Whether there was none before."""
        self.clean = True
        """Whether the last broker ended in order."""
        self.migrated_from: int | None = None
        """The older schema version that it had."""
        self.recovery: Recovery | None = None
        """What was saved, if it was damaged and ``recover`` given."""
        self._lock = lock

    def close(self) -> None:
        """Let others have it. May be called twice; does nothing in a forked child."""
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def open_store(
    data_dir: str | os.PathLike[str],
    *,
    recover: bool = False,
    progress: Callable[[str], None] = lambda line: None,
    now_ms: int | None = None,
) -> OpenStore:
    """Lock the data directory and have a sound, current ``store.db`` in it.

    Makes the directory (0700) and an empty store (0600) where there is none. Looks at headers, tables and ``meta``
    only; damage further inside is found when it is read. Raises ``StoreError``: in use, locks not supported, foreign, newer,
    damaged. With ``recover`` the whole file is read, and a damaged one is replaced by what is sound in it, with lines of
    ``progress``; ``recovery`` is the report. ``now_ms``: Unix time for a new store, None: now.
    """
    folder = Path(data_dir).absolute()
    try:
        folder.mkdir(database.DIRECTORY_MODE, parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{folder}: {error.strerror}") from error
    lock = StoreLock(folder / LOCK_NAME)
    store = OpenStore(folder / FILE_NAME, lock)
    try:
        _prepare(store, recover, progress, now_ms)
    except StoreError:
        lock.release()
        raise
    except OSError as error:
        lock.release()
        raise StoreError(f"{error.filename or store.path}: {error.strerror or error}") from error
    except BaseException:
        lock.release()
        raise
    return store


def _prepare(store: OpenStore, recover: bool, progress: Callable[[str], None], now_ms: int | None) -> None:
    path = store.path
    finish(path)
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise StoreError(f"{path} is not a plain file; set data_dir to where it lies")
    if not path.exists() and not _has_wal(path):
        new = beside(path, ".new")
        database.create(new, now_ms)
        new.rename(path)
        database.sync_directory(path.parent)
        store.created = True
        return
    for file in (path, *(beside(path, suffix) for suffix in database.SIDE_FILES)):
        if file.exists() and file.stat().st_mode & 0o077 and file.stat().st_uid == os.geteuid():
            file.chmod(database.FILE_MODE)
    if recover:
        _recover(store, progress)
    elif not path.exists():
        raise DamageError(path, "it is gone, its WAL is there")
    database.check_header(path)
    if problem := database.wal_problem(path):
        raise DamageError(path, problem)
    with database.store_errors(path), contextlib.closing(database.connect(path, "ro")) as connection:
        version = database.identify(connection, path)
        if version == schema.VERSION:
            _check_tables(store, connection)
            return
    _migrate(store, version, progress)


def _has_wal(path: Path) -> bool:
    wal = database.wal_of(path)
    return wal.exists() and wal.stat().st_size > 0


def _check_tables(store: OpenStore, connection: sqlite3.Connection) -> None:
    if problems := schema.table_problems(connection):
        raise DamageError(store.path, ", ".join(problems))
    values = dict(connection.execute("SELECT key, value FROM meta"))
    for key in ("clock", "next_id", "clean"):
        if not isinstance(values.get(key, 0), int):
            raise DamageError(store.path, f"meta has {key} = {ascii(values[key])[:60]}")
    store.clean = values.get("clean") == 1


def _recover(store: OpenStore, progress: Callable[[str], None]) -> None:
    """Salvage it if anything is wrong with it. A foreign or newer file is refused as ever."""
    path = store.path
    if not path.exists():
        database.create_file(path)
    try:
        database.check_header(path)
        if problem := database.wal_problem(path):
            raise DamageError(path, problem)
        with database.store_errors(path), contextlib.closing(database.connect(path, "ro")) as connection:
            if database.identify(connection, path) < schema.VERSION:
                return  # the older tables first become today's
            reasons = problems_of(connection, progress)
    except DamageError as error:
        reasons = [error.reason]
    if reasons:
        store.recovery = salvage(path, reasons, progress)


def _migrate(store: OpenStore, version: int, progress: Callable[[str], None]) -> None:
    """Bring an older file to this version, in one transaction; a copy of it is kept."""
    path = store.path
    kept = beside(path, f".v{version}-{database.utc_stamp()}")
    with database.store_errors(path), contextlib.closing(database.connect(path, "rw")) as connection:
        connection.execute("BEGIN")
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        partial = beside(path, ".new")
        database.create_file(partial)
        database.copy(connection, partial)
        partial.rename(kept)
        database.sync_directory(path.parent)
        connection.execute("COMMIT")
        progress(f"schema version {version} becomes {schema.VERSION}; the old file is kept as {kept}")
        connection.execute("BEGIN IMMEDIATE")
        for step in range(version, schema.VERSION):
            for statement in schema.MIGRATIONS[step]:
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {schema.VERSION}")
        _check_tables(store, connection)
        connection.execute("COMMIT")
    store.migrated_from = version
