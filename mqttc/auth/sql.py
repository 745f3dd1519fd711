"""Users in a database: SQLite or PostgreSQL, by SQLAlchemy's asyncio extension."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mqttc import logs
from mqttc.auth import Request
from mqttc.auth.grant import check_groups, with_groups
from mqttc.auth.hashing import ARGON2_MEMORY_KIB, Busy, Hash, Pool, make_dummy, parse_hash
from mqttc.auth.passwords import verify
from mqttc.auth.source import BUSY, DENY, FAILED, IGNORE, UNAVAILABLE, Answer, Outcome, Source, missing_extra, problem, secret_text
from mqttc.config_auth import Sql

if TYPE_CHECKING:
    from sqlalchemy import URL
    from sqlalchemy.ext.asyncio import AsyncEngine

_WHERE: Final = "auth.sql"
_DRIVERS: Final = {"sqlite": ("sqlite+aiosqlite", "aiosqlite"), "postgresql": ("postgresql+asyncpg", "asyncpg")}
_logger: Final = logging.getLogger(logs.LOGGER_NAME)


class SqlSource(Source):
    name = "sql"
    takes_passwords = True

    def __init__(self, section: Sql, pool: Pool) -> None:
        self._section = section
        self._pool = pool
        self._url = _database_url(section)
        self.depends = frozenset({"client_id"} if ":client_id" in section.query else ())
        self._statement = self._select()
        self._engine: AsyncEngine | None = None
        self._made = False
        self._dummy: Hash | None = None
        self._dummy_fits = False
        self._lock = asyncio.Lock()
        self._queries = 0
        self._failures = 0

    def _select(self) -> Any:
        from sqlalchemy import bindparam, column, select, table, text

        section = self._section
        if section.query:
            return text(section.query)
        schema, _, name = section.table.rpartition(".")
        names = (section.user_column, section.password_column, section.groups_column)
        users = table(name, *(column(one) for one in dict.fromkeys(names) if one), schema=schema or None)
        chosen = [users.c[section.password_column], *([users.c[section.groups_column]] if section.groups_column else [])]
        return select(*chosen).where(users.c[section.user_column] == bindparam("username")).limit(2)

    async def start(self) -> None:
        from sqlalchemy.ext.asyncio import create_async_engine

        options: dict[str, Any] = {"pool_size": self._section.pool_size, "max_overflow": 0, "pool_timeout": self._section.timeout}
        if self._url.get_backend_name() == "sqlite":
            from sqlalchemy.pool import AsyncAdaptedQueuePool

            options["poolclass"] = AsyncAdaptedQueuePool
            options["connect_args"] = {"timeout": self._section.timeout}
        else:
            options["pool_pre_ping"] = True
            options["connect_args"] = {"timeout": self._section.timeout, "command_timeout": self._section.timeout}
        self._engine = create_async_engine(self._url, hide_parameters=True, **options)

    async def close(self) -> None:
        if self._engine is not None:
            await self._engine.dispose()

    async def find(self, username: str, client_id: str = "") -> tuple[Hash, tuple[str, ...]] | None:
        """The hash and the user's groups. None: no such user. Whatever the database or its driver raise goes on; ``ValueError``: what
        stands there is no usable hash, or no groups."""
        assert self._engine is not None
        self._queries += 1
        async with asyncio.timeout(self._section.timeout):
            if self._section.create_table and not self._made:
                async with self._lock:
                    await self._create(self._engine)
            parameters = {"username": username}
            if self.depends:
                parameters["client_id"] = client_id
            async with self._engine.connect() as connection:
                result = await connection.execute(self._statement, parameters)
                place = self._groups_place(list(result.keys()))
                rows = result.fetchmany(2)
        if not rows or rows[0][0] is None:
            return None
        if len(rows) > 1:
            raise ValueError("the query gives more than one row")
        hashed = parse_hash(str(rows[0][0]))
        if hashed.memory_kib > self._pool.memory_kib:
            raise ValueError("the hash takes more than auth.hashing.memory")
        return hashed, () if place is None else _groups(rows[0][place])

    def _groups_place(self, names: list[str]) -> int | None:
        """Of the column with groups. PostgreSQL writes names in lower case where they are not quoted."""
        wanted = self._section.groups_column
        if not wanted:
            return None
        for place, name in enumerate(names):
            if place and name in (wanted, wanted.lower()):
                return place
        raise ValueError(f"the query gives no column {wanted} behind the first")

    async def _create(self, engine: AsyncEngine) -> None:
        from sqlalchemy import Column, MetaData, String, Table
        from sqlalchemy.schema import CreateTable

        section = self._section
        made = Table(
            section.table,
            MetaData(),
            Column(section.user_column, String, primary_key=True),
            Column(section.password_column, String, nullable=False),
            *([Column(section.groups_column, String)] if section.groups_column else []),
        )
        async with engine.begin() as connection:
            await connection.execute(CreateTable(made, if_not_exists=True))
        self._made = True

    async def decide(self, request: Request, state: dict[str, Any]) -> Outcome:
        if request.username is None or request.password is None or request.auth_method is not None:
            return IGNORE
        try:
            found = await self.find(request.username, request.client_id)
        except ValueError as error:
            logs.emit(_logger, logging.ERROR, "auth_sql_entry_refused", {"username": request.username, "problem": str(error)})
            return DENY
        except Exception as error:  # of the network, of the database, of its driver: each has its own
            self._failures += 1
            problem_text = f"{type(error).__name__}: {getattr(error, 'orig', None) or error}"
            logs.emit(_logger, logging.ERROR, "auth_sql_failed", {"problem": problem_text[:300]})
            return FAILED if self._section.on_failure == "deny" else UNAVAILABLE
        hashed, groups = found or (None, ())
        try:
            dummy = await self._stand_in(hashed)
        except Busy:
            return BUSY
        if hashed is not None:
            outcome = await verify(self._pool, hashed, request.password)
            return replace(outcome, grant=with_groups(None, groups)) if outcome.answer is Answer.ALLOW else outcome
        outcome = await verify(self._pool, dummy, request.password)
        return BUSY if outcome is BUSY else IGNORE

    async def _stand_in(self, hashed: Hash | None) -> Hash:
        """What takes as long for users who are not there as the first hash that was seen."""
        if self._dummy is None or (hashed is not None and not self._dummy_fits):
            kind = None if hashed is None else hashed.kind
            memory_kib = ARGON2_MEMORY_KIB if hashed is None else hashed.memory_kib
            self._dummy = await self._pool.run(lambda: make_dummy(kind), min(memory_kib, self._pool.memory_kib))
            self._dummy_fits = hashed is not None
        return self._dummy

    def stats(self) -> dict[str, int]:
        return {"auth_sql_queries": self._queries, "auth_sql_failures": self._failures}


def _groups(value: object) -> tuple[str, ...]:
    """Of an array, or of text with commas between the names; NULL: none."""
    if value is None:
        return ()
    if isinstance(value, str):
        return check_groups([name for part in value.split(",") if (name := part.strip())])
    return check_groups(value)


def _database_url(section: Sql) -> URL:
    try:
        from sqlalchemy.engine import make_url
        from sqlalchemy.exc import ArgumentError
    except ImportError as error:
        raise missing_extra(_WHERE, "auth-sql", error) from None
    try:
        url = make_url(section.url)
    except (ArgumentError, ValueError):
        raise problem(_WHERE, "url cannot be read") from None
    driver, module = _DRIVERS[url.get_backend_name()]
    try:
        __import__(module)
    except ImportError as error:
        raise missing_extra(_WHERE, "auth-sql", error) from None
    password = secret_text(_WHERE, section.password_file, section.password)
    if password:
        url = url.set(password=password)
    if url.get_backend_name() == "sqlite":
        if not url.database or url.database == ":memory:":
            raise problem(_WHERE, "url names no file: sqlite:///relative.db or sqlite:////absolute.db")
        # A URI, so that a name that is wrong makes no empty database.
        mode = "rwc" if section.create_table else "rw"
        url = url.set(database=Path(url.database).absolute().as_uri(), query={"mode": mode, "uri": "true"})
    return url.set(drivername=driver)
