"""Users in SQLite and PostgreSQL. PostgreSQL is started here, in a directory of its own, where its programs are installed."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mqttc.auth.hashing import Pool, make_hash, make_scram
from mqttc.auth.source import Answer, Outcome
from mqttc.auth.sql import SqlSource
from mqttc.config import ConfigError
from mqttc.config_auth import Hashing, Sql
from tests.auth.conftest import ALICE, BOB, Make, ask, attempt

HASHES = {"alice": make_hash(ALICE), "bob": make_scram(BOB), "broken": "plain text", "none": None, "drop'--": make_hash(b"x")}


def decide(section: Sql, *asked: tuple[str, bytes | None], **keys: Any) -> list[Outcome]:
    async def run() -> list[Outcome]:
        pool = Pool.of(Hashing())
        source = SqlSource(section, pool)
        await source.start()
        try:
            return [await source.decide(ask(username, password, **keys), {}) for username, password in asked]
        finally:
            await source.close()
            await pool.close()

    return asyncio.run(run())


EVERYONE: list[tuple[str, bytes | None]] = [
    ("alice", ALICE), ("alice", BOB), ("bob", BOB), ("bob", ALICE), ("carol", ALICE), ("broken", b"plain text"), ("none", b""),
    ("drop'--", b"x"),
    ("' OR 1=1 --", b"x"), ("alice", None),
]  # fmt: skip
ANSWERS = [
    *(Answer.ALLOW, Answer.DENY, Answer.ALLOW, Answer.DENY, Answer.IGNORE, Answer.DENY, Answer.IGNORE, Answer.ALLOW),
    *(Answer.IGNORE, Answer.IGNORE),
]


def simple(tmp_path: Path) -> Path:
    path = tmp_path / "users.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE users (username TEXT PRIMARY KEY, password_hash TEXT, enabled INTEGER DEFAULT 1)")
        connection.executemany("INSERT INTO users (username, password_hash) VALUES (?, ?)", HASHES.items())
    connection.close()
    return path


def test_sqlite(tmp_path: Path) -> None:
    assert [outcome.answer for outcome in decide(Sql(url=f"sqlite:///{simple(tmp_path)}"), *EVERYONE)] == ANSWERS


def test_a_query_of_ones_own(tmp_path: Path) -> None:
    path = simple(tmp_path)
    query = "SELECT password_hash FROM users WHERE username = :username AND enabled = 1 AND :client_id = 'c'"
    section = Sql(url=f"sqlite:///{path}", query=query)
    assert decide(section, ("alice", ALICE))[0].answer is Answer.ALLOW
    assert decide(section, ("alice", ALICE), client_id="d")[0].answer is Answer.IGNORE
    assert SqlSource(section, Pool.of(Hashing())).depends == {"client_id"}
    many = Sql(url=f"sqlite:///{path}", query="SELECT password_hash FROM users")
    assert decide(many, ("alice", ALICE))[0].answer is Answer.DENY  # whose would it be?


def test_other_names(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as connection:
        connection.execute('CREATE TABLE "order" ("select" TEXT, hash TEXT)')
        connection.execute('INSERT INTO "order" VALUES (?, ?)', ("alice", HASHES["alice"]))
    connection.close()
    section = Sql(url=f"sqlite:///{path}", table="order", user_column="select", password_column="hash")
    assert [outcome.answer for outcome in decide(section, *EVERYONE[:2])] == ANSWERS[:2]


def test_a_table_is_made_on_request_alone(tmp_path: Path) -> None:
    path = tmp_path / "new.db"
    section = {"url": f"sqlite:///{path}"}
    assert decide(Sql(**section), ("alice", ALICE))[0].answer is Answer.UNAVAILABLE
    assert not path.exists()
    assert decide(Sql(**section, create_table=True), ("alice", ALICE))[0].answer is Answer.IGNORE
    with sqlite3.connect(path) as connection:
        connection.execute("INSERT INTO users (username, password_hash) VALUES (?, ?)", ("alice", HASHES["alice"]))
    connection.close()
    assert decide(Sql(**section, create_table=True), ("alice", ALICE))[0].answer is Answer.ALLOW


def test_failures(tmp_path: Path) -> None:
    (tmp_path / "no.db").write_text("this is no database, this is no database, this is no database")
    for section in (
        {"url": f"sqlite:///{tmp_path}/missing.db"},
        {"url": f"sqlite:///{tmp_path}/no.db"},
        {"url": f"sqlite:///{simple(tmp_path)}", "query": "SELECT nothing FROM nowhere"},
        {"url": "postgresql://u@127.0.0.1:1/d"},
    ):
        assert decide(Sql(**section), ("alice", ALICE))[0].answer is Answer.UNAVAILABLE, section
        assert decide(Sql(**section, on_failure="deny"), ("alice", ALICE))[0].answer is Answer.FAILED


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "postgresql://u@h:port/d"])
def test_urls_that_name_nothing(url: str) -> None:
    with pytest.raises(ConfigError):
        SqlSource(Sql(url=url), Pool.of(Hashing()))


def test_a_broker_with_it(make: Make, tmp_path: Path) -> None:
    bench = make({"sql": {"url": f"sqlite:///{simple(tmp_path)}"}, "cache": {"ttl": 0.0, "negative_ttl": 0.0}})
    for version, codes in ((5, (0, 0x86, 0x86)), (4, (0, 4, 4)), (3, (0, 4, 4))):
        got = [
            attempt(bench, username, password, version).reason for username, password in (("alice", ALICE), ("alice", BOB), ("eve", BOB))
        ]
        assert tuple(got) == codes
    (tmp_path / "users.db").rename(tmp_path / "gone")
    broken = make({"sql": {"url": f"sqlite:///{tmp_path}/users.db"}})
    assert attempt(broken, "alice", ALICE).reason == 0x88
    assert attempt(broken, "alice", ALICE, 4).reason == 3
    told = broken.events.wait("auth_sql_failed")
    assert ALICE.decode() not in str(told)


# ---------------------------------------------------------------------------------- PostgreSQL


def programs() -> Path | None:
    for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True):
        if (folder / "initdb").exists():
            return folder
    found = shutil.which("initdb")
    return None if found is None else Path(found).resolve().parent


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a server that listens on a Unix socket alone. As root it runs as the user of the package, because it refuses root."""
    where = programs()
    if where is None:
        pytest.skip("needs PostgreSQL's server programs (Debian: postgresql)")
    user: dict[str, Any] = {}
    folder = tmp_path_factory.mktemp("pg")
    if os.geteuid() == 0:
        try:
            entry = pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("PostgreSQL refuses root, and there is no user postgres")
        user = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
        import tempfile

        folder = Path(tempfile.mkdtemp(prefix="mqttc-pg-"))
        os.chown(folder, entry.pw_uid, entry.pw_gid)
    data = folder / "data"
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.STDOUT, "cwd": folder, **user}
    try:
        subprocess.run([where / "initdb", "-D", data, "-U", "mqttc", "-A", "trust", "-N", "--no-locale", "-E", "UTF8"], check=True, **quiet)
        options = f"-c listen_addresses= -c unix_socket_directories={folder} -c fsync=off"
        control = [where / "pg_ctl", "-D", data, "-w", "-o", options, "-l", folder / "log"]
        subprocess.run([*control, "start"], check=True, **quiet)
        try:
            yield f"postgresql://mqttc@/postgres?host={folder}"
        finally:
            subprocess.run([*control, "-m", "immediate", "stop"], check=True, **quiet)
    finally:
        if user:
            shutil.rmtree(folder)


def prepare(url: str) -> None:
    import asyncpg

    async def run() -> None:
        host = url.partition("host=")[2]
        connection = await asyncpg.connect(user="mqttc", database="postgres", host=host)
        await connection.execute("DROP TABLE IF EXISTS users")
        await connection.execute("CREATE TABLE users (username text PRIMARY KEY, password_hash text)")
        await connection.executemany("INSERT INTO users VALUES ($1, $2)", list(HASHES.items()))
        await connection.close()

    asyncio.run(run())


def test_postgresql(postgres: str) -> None:
    prepare(postgres)
    assert [outcome.answer for outcome in decide(Sql(url=postgres), *EVERYONE)] == ANSWERS
    schema = Sql(url=postgres, table="public.users")
    assert [outcome.answer for outcome in decide(schema, *EVERYONE[:2])] == ANSWERS[:2]
    slow = Sql(url=postgres, timeout=0.2, query="SELECT pg_sleep(10)::text WHERE :username <> ''")
    assert decide(slow, ("alice", ALICE))[0].answer is Answer.UNAVAILABLE


def test_postgresql_that_comes_back(postgres: str, make: Make) -> None:
    """A connection of the pool that has broken is not anybody's refusal."""
    prepare(postgres)
    bench = make({"sql": {"url": postgres, "pool_size": 1}, "cache": {"ttl": 0.0, "negative_ttl": 0.0}})
    assert attempt(bench, "alice", ALICE).reason == 0
    import asyncpg

    async def cut() -> None:
        connection = await asyncpg.connect(user="mqttc", database="postgres", host=postgres.partition("host=")[2])
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND usename = 'mqttc'"
        )
        await connection.close()

    asyncio.run(cut())
    assert attempt(bench, "alice", ALICE).reason == 0
    assert attempt(bench, "alice", BOB).reason == 0x86


def test_many_at_once_share_few_connections(postgres: str) -> None:
    prepare(postgres)

    async def run() -> None:
        pool = Pool.of(Hashing())
        source = SqlSource(Sql(url=postgres, pool_size=2, timeout=30.0), pool)
        await source.start()
        outcomes = await asyncio.gather(*(source.decide(ask("nobody", b"x"), {}) for _ in range(30)))
        assert {outcome.answer for outcome in outcomes} == {Answer.IGNORE}
        await source.close()
        await pool.close()

    asyncio.run(run())
