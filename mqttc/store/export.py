"""``mqttc-broker store export`` and ``mqttc-broker backup``: copies of a store of one moment, also while a broker writes."""

from __future__ import annotations

import base64
import errno
import itertools
import json
import os
import struct
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final, TextIO

from mqttc.store import database, log, schema
from mqttc.store.check import require_tables
from mqttc.store.database import DamageError, StoreError

_NO_LINKS: Final = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS})


def export(path: Path, output: TextIO) -> int:
    """Write everything as JSON lines: one object a row, with ``type``, the table's name. One row is held at a time.

    What is binary and not UTF-8 stands as ``<column>_base64``; subscription identifiers of a delivery as a list of numbers, and
    ``lent_by`` is the id of the shared group that gets it if its session ends.
    What the log holds stands as the rows that it would become. The number of lines; raises ``StoreError``.
    """
    lines = 0
    with database.snapshot(path) as connection:
        version = database.identify(connection, path)
        require_tables(connection, path, version)
        output.write(json.dumps({"type": "store", "version": version}) + "\n")
        try:
            logged = log.rows(connection)
        except ValueError as error:
            raise DamageError(path, f"table log: {error}") from error
        for table in schema.TABLES:
            if table.name == "log":
                continue
            columns = ", ".join(table.columns)
            kept = connection.execute(f"SELECT {columns} FROM {table.name} ORDER BY {', '.join(table.key)}")
            for row in itertools.chain(kept, logged.get(table.name, ())):
                entry: dict[str, object] = {"type": table.name}
                for column, value in zip(table.columns, row, strict=True):
                    entry.update(_shown(column, value))
                if table.name == "delivery":
                    _show_lender(entry)
                output.write(json.dumps(entry, ensure_ascii=False) + "\n")
                lines += 1
    return lines + 1


def _shown(column: str, value: object) -> dict[str, object]:
    if not isinstance(value, bytes):
        return {column: value}
    if column == "identifiers" and len(value) % 4 == 0:
        return {column: list(struct.unpack(f"<{len(value) // 4}I", value))}
    try:
        return {column: value.decode()}
    except UnicodeDecodeError:
        return {f"{column}_base64": base64.b64encode(value).decode()}


def _show_lender(entry: dict[str, object]) -> None:
    flags, identifiers = entry["flags"], entry["identifiers"]
    if isinstance(flags, int) and flags & schema.DELIVERY_LENT and isinstance(identifiers, list) and len(identifiers) == 2:
        del entry["identifiers"]
        entry["lent_by"] = identifiers[0] | identifiers[1] << 32


def backup(path: Path, target: Path, progress: Callable[[str], None] = lambda line: None) -> int:
    """Copy the store of this moment to a new file, mode 0600, that can be used as ``store.db``; its size in bytes.

    It has its name only when it is complete, checked and on the disk. Raises ``StoreError``: there is such a file, no room, damage.
    """
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        if target.is_symlink() or target.exists():
            raise StoreError(f"{target} exists; a backup replaces nothing")
        database.create_file(partial)
        try:
            with database.snapshot(path) as connection:
                database.identify(connection, path)
                progress(f"copying {path}")
                database.copy(connection, partial)
            progress(f"checking {target}")
            _verify(path, partial)
            _name(partial, target)
        finally:
            database.remove(partial)
        database.sync_directory(target.absolute().parent)
        return target.stat().st_size
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(f"{target}: {error.strerror}") from error


def _verify(path: Path, copied: Path) -> None:
    """The copy has the original's faults, so it is the original that is named."""
    with database.store_errors(path), closing(database.connect(copied, "immutable")) as connection:
        database.identify(connection, path)
        rows = [str(row[0]) for row in connection.execute(f"PRAGMA quick_check({database.MAXIMUM_FINDINGS})")]
    if rows != ["ok"]:
        raise database.DamageError(path, f"the copy has {len(rows)} faults, the first: {rows[0]}")


def _name(partial: Path, target: Path) -> None:
    """By a link, which fails if there is such a file by now; where there are no links, after another look."""
    try:
        os.link(partial, target)
    except FileExistsError:
        raise StoreError(f"{target} exists; a backup replaces nothing") from None
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if target.exists():
            raise StoreError(f"{target} exists; a backup replaces nothing") from None
        partial.rename(target)
