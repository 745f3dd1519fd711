"""Store files by SQLite, and what SQLite does not look at: headers, permissions, durable renames.

Everything here is for the control plane: opening, checking, copying. Writing to a store in use is the journal's.
``store.db`` is opened by name only under the store's lock and before the journal has it: closing any descriptor of
a file gives up the whole process's POSIX locks on it, SQLite's included.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import sqlite3
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from mqttc.store import schema
from mqttc.store.log import is_log

FILE_MODE: Final = 0o600
DIRECTORY_MODE: Final = 0o700
SIDE_FILES: Final = ("-wal", "-shm")
"""What SQLite keeps beside a file in WAL mode; they belong together."""
HEADER_BYTES: Final = 100
MAXIMUM_FINDINGS: Final = 100
"""Of SQLite's own integrity check."""
BUSY_S: Final = 5.0
"""Seconds to wait for another connection's lock."""

UNREADABLE_SCHEMA: Final = "the text of its schema is not UTF-8"
"""What a ``UnicodeDecodeError`` of Python's ``sqlite3`` means: SQLite's message quotes the schema."""

_MAGIC: Final = b"SQLite format 3\0"
_WAL_MAGIC: Final = (0x377F0682, 0x377F0683)
_WAL_VERSION: Final = 3_007_000
_WAL_HEADER_BYTES: Final = 32


class StoreError(OSError):
    """The store cannot be used; the text names the file and says what is wrong."""

    exit_code = 1


class DamageError(StoreError):
    """The file is a store, or was one, and cannot be read as it is; ``--recover`` saves what is sound."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} is damaged: {reason}; mqttc-broker --recover saves what can be read and keeps the damaged file")
        self.reason = reason


class ForeignError(StoreError):
    """The file is another program's."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} is not a store of mqttc: {reason}; move it away or set another data_dir (--recover does not touch it)")


class VersionError(StoreError):
    """The file was written by a newer version of mqttc."""

    def __init__(self, path: Path, version: int) -> None:
        super().__init__(f"{path} has schema version {version}, this mqttc knows versions up to {schema.VERSION}: it takes a newer mqttc")


def is_unreadable(error: sqlite3.Error) -> bool:
    """Whether the error is the file's condition (damage, bad blocks), and not for instance somebody's lock."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_TOOBIG)


@contextlib.contextmanager
def store_errors(path: Path) -> Iterator[None]:
    """SQLite's errors as ``StoreError``."""
    try:
        yield
    except sqlite3.Error as error:
        if is_unreadable(error):
            raise DamageError(path, str(error)) from error
        raise StoreError(f"{path}: {error}") from error
    except UnicodeDecodeError as error:
        raise DamageError(path, UNREADABLE_SCHEMA) from error


def _is_topic(value: bytes) -> bool:
    if not 0 < len(value) <= 65535 or b"\0" in value:
        return False
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def connect(path: Path, mode: str) -> sqlite3.Connection:
    """Open a file that exists. ``mode``: ``ro`` neither writes to it nor empties its WAL; ``rw``; ``immutable`` takes no locks
    and looks at no WAL, for a file that nobody else knows. Transactions are the caller's."""
    options = "immutable=1" if mode == "immutable" else f"mode={mode}"
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?{options}", uri=True, isolation_level=None, timeout=BUSY_S, check_same_thread=False
    )
    connection.text_factory = lambda data: data.decode("utf-8", "replace")
    connection.create_function("is_topic", 1, _is_topic, deterministic=True)
    connection.create_function("is_log", 1, is_log, deterministic=True)
    return connection


@contextlib.contextmanager
def snapshot(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that sees the store as it is at this moment, whatever a broker writes meanwhile; raises ``StoreError``.

    While it is open the WAL cannot be begun anew, so it grows.
    """
    if not path.is_file():
        raise StoreError(f"{path}: there is no store")
    with store_errors(path), contextlib.closing(connect(path, "ro")) as connection:
        connection.execute("BEGIN")
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        yield connection


def identify(connection: sqlite3.Connection, path: Path) -> int:
    """The schema version of a file that is ours and not newer than this program; else raises ``StoreError``."""
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application_id != schema.APPLICATION_ID:
        raise ForeignError(path, f"its application id is {application_id & 0xFFFFFFFF:#010x}")
    if version > schema.VERSION:
        raise VersionError(path, version)
    if version < 1:
        raise DamageError(path, f"its schema version is {version}")
    return int(version)


def check_header(path: Path) -> None:
    """Whether the first page is a store's. Opens the file: only under the store's lock, before the journal does.

    A file that does not begin as an SQLite file may have been a store: then what is in it decides, when it is salvaged.
    """
    with path.open("rb") as file:
        page = file.read(schema.PAGE_BYTES)
    if not page:
        raise DamageError(path, "it is empty")
    if page[:16] != _MAGIC or len(page) < HEADER_BYTES:
        raise DamageError(path, "it does not begin as an SQLite file does")
    if page[68:72] != schema.APPLICATION_ID.to_bytes(4):
        if schema.TABLES[0].sql.encode() not in page:
            raise ForeignError(path, f"its application id is 0x{page[68:72].hex()}")
        raise DamageError(path, f"its application id is 0x{page[68:72].hex()}, its tables are a store's")
    page_bytes = int.from_bytes(page[16:18])
    if page_bytes != schema.PAGE_BYTES:
        raise DamageError(path, f"its page size is {page_bytes}, a store's is {schema.PAGE_BYTES}")


def wal_problem(path: Path) -> str:
    """What is wrong with the header of the store's WAL, else ``""``. SQLite passes over a WAL with a bad header in silence,
    and with it over everything that was committed since the last checkpoint.

    One of zeros alone is what a loss of power leaves that came before the first commit.
    """
    try:
        with wal_of(path).open("rb") as file:
            header = file.read(_WAL_HEADER_BYTES)
    except FileNotFoundError:
        return ""
    if not header.strip(b"\0"):
        return ""
    if len(header) < _WAL_HEADER_BYTES:
        return "its WAL is cut off"
    magic, version, page_bytes = struct.unpack(">3I", header[:12])
    if magic not in _WAL_MAGIC:
        return "its WAL begins with other bytes than a WAL's"
    if version != _WAL_VERSION or page_bytes != schema.PAGE_BYTES:
        return f"its WAL has version {version} and page size {page_bytes}"
    first = second = 0
    words = struct.unpack(f"{'>' if magic & 1 else '<'}6I", header[:24])
    for even, odd in zip(words[::2], words[1::2], strict=True):  # SQLite's file format, section 4.2
        first = (first + even + second) & 0xFFFFFFFF
        second = (second + odd + first) & 0xFFFFFFFF
    return "" if struct.unpack(">2I", header[24:]) == (first, second) else "the checksum of its WAL's header is wrong"


def wal_of(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def create_file(path: Path) -> None:
    """Make an empty file with mode 0600; raises ``FileExistsError``."""
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, FILE_MODE))


def create(path: Path, now_ms: int | None = None) -> None:
    """Make an empty store, complete and on the disk. ``path`` must not exist. ``now_ms``: Unix time of its beginning, None: now."""
    create_file(path)
    with store_errors(path), contextlib.closing(connect(path, "rw")) as connection:
        connection.execute(f"PRAGMA page_size = {schema.PAGE_BYTES}")
        connection.execute("PRAGMA auto_vacuum = NONE")
        connection.execute("PRAGMA journal_mode = WAL")
        schema.create_tables(connection, time.time_ns() // 1_000_000 if now_ms is None else now_ms)
    sync_file(path)
    sync_directory(path.parent)


def remove(path: Path) -> None:
    """Delete a database file of ours with what SQLite keeps beside it, as far as they exist."""
    for suffix in ("", "-journal", *SIDE_FILES):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def sync_file(path: Path) -> None:
    """fsync of a file that no connection of this process has open."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_directory(folder: Path) -> None:
    """Let renames and new files in it outlive a loss of power."""
    sync_file(folder)


def copy(source: sqlite3.Connection, target: Path) -> None:
    """Copy the state that ``source`` sees into the empty file ``target``; durable when it returns.

    ``source`` has a transaction open, so that the copy need not begin anew when a broker commits.
    """
    with store_errors(target), contextlib.closing(connect(target, "rw")) as copied:
        source.backup(copied, pages=1024)
    sync_file(target)


def utc_stamp() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
