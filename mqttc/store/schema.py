"""The store's tables: their columns, what a sound row is, which rows belong to which, and how older versions become this one.

Everything that reads or writes a store takes its knowledge from here. ``VERSION`` is the file's ``user_version``;
a change of the tables raises it and adds an entry to ``MIGRATIONS``.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

APPLICATION_ID: Final = 0x6D717463
"""``mqtc`` in ASCII, bytes 68 to 71 of the file (SQLite's file format, section 1.3.14)."""
VERSION: Final = 2
PAGE_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class Table:
    """One table. ``key``: the primary key, in whose order rows lie; ``sound``: an SQL condition that every row must fulfil."""

    name: str
    sql: str
    columns: tuple[str, ...]
    key: tuple[str, ...]
    sound: str


@dataclass(frozen=True, slots=True)
class Orphans:
    """Rows whose counterpart is missing. ``where``: the SQL condition that finds them in ``table``."""

    table: str
    what: str
    where: str


def _range(column: str, low: int, high: int) -> str:
    return f"typeof({column}) = 'integer' AND {column} BETWEEN {low} AND {high}"


def _blobs(*columns: str) -> str:
    return " AND ".join(f"typeof({column}) = 'blob'" for column in columns)


_MAXIMUM_INTEGER: Final = 2**63 - 1
_MAXIMUM_SECONDS: Final = 2**32 - 1
_MAXIMUM_IDENTIFIER: Final = 268_435_455


def _number(column: str, low: int = 0) -> str:
    return _range(column, low, _MAXIMUM_INTEGER)


DELIVERY_LENT: Final = 2
"""Of ``delivery.flags``: a session's, at QoS 1, of a shared group that it has left; ``identifiers`` is that group's id then (8 bytes)."""

_TOPIC: Final = "CASE typeof({0}) WHEN 'blob' THEN is_topic({0}) ELSE 0 END"
"""``is_topic`` is a function of every connection made by ``mqttc.store.database``: 1 to 65535 bytes of UTF-8 without U+0000. It
must not be asked about text, which Python would have to decode. ``is_log`` is such a function, too."""

TABLES: Final[tuple[Table, ...]] = (
    Table(
        "meta",
        "CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID",
        ("key", "value"),
        ("key",),
        "typeof(key) = 'text' AND (key NOT IN ('clock', 'next_id', 'clean') OR typeof(value) = 'integer' AND value >= 0)",
    ),
    Table(
        "session",
        "CREATE TABLE session (id INTEGER PRIMARY KEY, client_id BLOB NOT NULL, expiry_s INTEGER NOT NULL,"
        " offline_since_ms INTEGER NOT NULL)",
        ("id", "client_id", "expiry_s", "offline_since_ms"),
        ("id",),
        f"{_number('id', 1)} AND {_TOPIC.format('client_id')} AND {_range('expiry_s', 0, _MAXIMUM_SECONDS)}"
        f" AND {_number('offline_since_ms')}",
    ),
    Table(
        "subscription",
        "CREATE TABLE subscription (session INTEGER NOT NULL, filter BLOB NOT NULL, options INTEGER NOT NULL,"
        " identifier INTEGER NOT NULL, PRIMARY KEY (session, filter)) WITHOUT ROWID",
        ("session", "filter", "options", "identifier"),
        ("session", "filter"),
        f"{_TOPIC.format('filter')} AND {_range('options', 0, 255)} AND {_range('identifier', 0, _MAXIMUM_IDENTIFIER)}",
    ),
    Table(
        "share_group",
        "CREATE TABLE share_group (id INTEGER PRIMARY KEY, filter BLOB NOT NULL)",
        ("id", "filter"),
        ("id",),
        f"{_number('id', 1)} AND {_TOPIC.format('filter')}",
    ),
    Table(
        "message",
        "CREATE TABLE message (id INTEGER PRIMARY KEY, topic BLOB NOT NULL, properties BLOB NOT NULL, payload BLOB NOT NULL,"
        " qos INTEGER NOT NULL, retain INTEGER NOT NULL, expires_ms INTEGER NOT NULL)",
        ("id", "topic", "properties", "payload", "qos", "retain", "expires_ms"),
        ("id",),
        f"{_number('id', 1)} AND {_TOPIC.format('topic')} AND {_blobs('properties', 'payload')} AND {_range('qos', 0, 2)}"
        f" AND {_range('retain', 0, 1)} AND {_number('expires_ms')}",
    ),
    Table(
        "delivery",
        "CREATE TABLE delivery (message INTEGER NOT NULL, target INTEGER NOT NULL, qos INTEGER NOT NULL, flags INTEGER NOT NULL,"
        " state INTEGER NOT NULL, packet_id INTEGER NOT NULL, identifiers BLOB, PRIMARY KEY (message, target)) WITHOUT ROWID",
        ("message", "target", "qos", "flags", "state", "packet_id", "identifiers"),
        ("message", "target"),
        f"{_range('qos', 0, 2)} AND {_range('flags', 0, 255)} AND {_range('state', 0, 2)} AND {_range('packet_id', 0, 65535)}"
        " AND (state = 0 OR packet_id > 0)"
        " AND (identifiers IS NULL OR typeof(identifiers) = 'blob' AND length(identifiers) % 4 = 0)"
        f" AND (flags & {DELIVERY_LENT} = 0 OR identifiers IS NOT NULL AND length(identifiers) = 8)",
    ),
    Table(
        "log",
        "CREATE TABLE log (id INTEGER PRIMARY KEY, records BLOB NOT NULL)",
        ("id", "records"),
        ("id",),
        f"{_number('id', 1)} AND CASE typeof(records) WHEN 'blob' THEN is_log(records) ELSE 0 END",
    ),
    Table(
        "inbound",
        "CREATE TABLE inbound (session INTEGER NOT NULL, packet_id INTEGER NOT NULL, PRIMARY KEY (session, packet_id)) WITHOUT ROWID",
        ("session", "packet_id"),
        ("session", "packet_id"),
        _range("packet_id", 1, 65535),
    ),
    Table(
        "will",
        "CREATE TABLE will (session INTEGER PRIMARY KEY, topic BLOB NOT NULL, properties BLOB NOT NULL, payload BLOB NOT NULL,"
        " qos INTEGER NOT NULL, retain INTEGER NOT NULL, delay_s INTEGER NOT NULL, expiry_s INTEGER NOT NULL)",
        ("session", "topic", "properties", "payload", "qos", "retain", "delay_s", "expiry_s"),
        ("session",),
        f"{_TOPIC.format('topic')} AND {_blobs('properties', 'payload')} AND {_range('qos', 0, 2)} AND {_range('retain', 0, 1)}"
        f" AND {_range('delay_s', 0, _MAXIMUM_SECONDS)} AND {_range('expiry_s', -1, _MAXIMUM_SECONDS)}",
    ),
    Table(
        "retained",
        "CREATE TABLE retained (topic BLOB PRIMARY KEY, version INTEGER NOT NULL, properties BLOB NOT NULL, payload BLOB NOT NULL,"
        " qos INTEGER NOT NULL, expires_ms INTEGER NOT NULL) WITHOUT ROWID",
        ("topic", "version", "properties", "payload", "qos", "expires_ms"),
        ("topic",),
        f"{_TOPIC.format('topic')} AND typeof(version) = 'integer' AND {_blobs('properties', 'payload')} AND {_range('qos', 0, 2)}"
        f" AND {_number('expires_ms')}",
    ),
)

_IDS: Final = 2**40 - 1
"""The bits of ``delivery.target`` that are an id; above them stands the packet id of what a shared group has lent to that session
for good."""

_NO_SESSION: Final = "NOT EXISTS (SELECT 1 FROM session WHERE session.id = {}.session)"

ORPHANS: Final[tuple[Orphans, ...]] = (
    Orphans("session", "sessions of a client id that has a newer one", "id NOT IN (SELECT max(id) FROM session GROUP BY client_id)"),
    Orphans("share_group", "shared groups with the id of a session", "id IN (SELECT id FROM session)"),
    Orphans("subscription", "subscriptions without session", _NO_SESSION.format("subscription")),
    Orphans("inbound", "inbound packet ids without session", _NO_SESSION.format("inbound")),
    Orphans("will", "wills without session", _NO_SESSION.format("will")),
    Orphans(
        "delivery",
        "deliveries without session or shared group",
        f"NOT EXISTS (SELECT 1 FROM session WHERE id = delivery.target & {_IDS})"
        " AND NOT EXISTS (SELECT 1 FROM share_group WHERE id = delivery.target)",
    ),
    Orphans(
        "delivery",
        "deliveries without message",
        "state <> 2 AND NOT EXISTS (SELECT 1 FROM message WHERE id = delivery.message)",
    ),
)
"""In the order in which they are to be removed: what one leaves behind the next ones find."""

UNCLAIMED: Final = Orphans(
    "message", "messages that nobody waits for", "NOT EXISTS (SELECT 1 FROM delivery WHERE delivery.message = message.id)"
)
"""Space that is wasted, no damage."""

MIGRATIONS: Mapping[int, tuple[str, ...]] = {1: ("CREATE TABLE log (id INTEGER PRIMARY KEY, records BLOB NOT NULL)",)}
"""From the version that is the key to the next one: the statements, run in one transaction with the new ``user_version``."""


def create_tables(connection: sqlite3.Connection, now_ms: int) -> None:
    """Make the tables in an empty file, in one transaction; the caller has chosen page size and journal mode."""
    connection.execute("BEGIN IMMEDIATE")
    for table in TABLES:
        connection.execute(table.sql)
    connection.executemany("INSERT INTO meta VALUES (?, ?)", [("clock", now_ms), ("next_id", 1), ("clean", 1)])
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {VERSION}")
    connection.execute("COMMIT")


def table_problems(connection: sqlite3.Connection) -> list[str]:
    """How the tables differ from those of ``VERSION``; SQLite's own (``sqlite_*``) are left aside."""
    rows = connection.execute("SELECT type, name, sql FROM sqlite_schema WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\'")
    found = {str(name): (str(kind), str(sql)) for kind, name, sql in rows}
    problems = []
    for table in TABLES:
        if table.name not in found:
            problems.append(f"table {table.name} is missing")
        elif found.pop(table.name) != ("table", table.sql):
            problems.append(f"table {table.name} has other columns")
    return problems + [f"{kind} {name!a} does not belong to a store of version {VERSION}" for name, (kind, _) in sorted(found.items())]
