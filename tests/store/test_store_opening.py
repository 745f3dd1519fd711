"""Start of a store: made, opened again, locked; foreign, newer and damaged files are refused and stay as they are."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import sqlite3
import stat
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest

from mqttc.store import DamageError, ForeignError, StoreError, VersionError, check, lock, open_store, schema
from tests.store.stores import add_session, count, make_store, overwrite, python, writing

OPEN_AND_WAIT = """
import sys
from mqttc.store import open_store
store = open_store(sys.argv[1])
print("open", flush=True)
sys.stdin.read()
store.close()
"""


def test_fresh(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "data"
    with open_store(folder) as store:
        assert (store.path, store.created, store.clean, store.recovery) == (folder / "store.db", True, True, None)
        assert sorted(os.listdir(folder)) == ["store.db", "store.lock"]
        with writing(store.path) as connection:
            add_session(connection, 1)  # makes the side files
            assert {name: stat.S_IMODE((folder / name).stat().st_mode) for name in os.listdir(folder)} == dict.fromkeys(
                ("store.db", "store.db-shm", "store.db-wal", "store.lock"), 0o600
            )
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    with contextlib.closing(sqlite3.connect(store.path)) as connection:
        values = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version", "page_size")]
        assert values == [0x6D717463, 2, 4096]
        assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        names = {row[0] for row in connection.execute("SELECT name FROM sqlite_schema")}
    assert names == {"meta", "session", "subscription", "share_group", "message", "delivery", "log", "inbound", "will", "retained"}


def test_reopened_with_its_content_and_how_it_ended(tmp_path: Path) -> None:
    path = make_store(tmp_path)
    path.chmod(0o644)  # as a copied backup may have
    with open_store(tmp_path) as store:
        assert (store.created, store.clean) == (False, True)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert count(path, "message") == 15
        with writing(path) as connection:
            connection.execute("UPDATE meta SET value = 0 WHERE key = 'clean'")
    with open_store(tmp_path) as store:
        assert not store.clean
    store.close()  # again: nothing happens


def test_what_a_killed_process_committed_is_there(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from pathlib import Path
from mqttc.store import open_store
from tests.store.stores import add_session, writing
with open_store(sys.argv[1]) as store, writing(store.path) as connection:
    add_session(connection, 1, 10)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    with python(code, str(tmp_path)) as process:
        assert process.wait(20) == -signal.SIGKILL
    assert (tmp_path / "store.db-wal").stat().st_size > 0
    with open_store(tmp_path) as store:
        assert count(store.path, "delivery") == 10


def test_second_broker_of_this_process_is_refused(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "data")
    with open_store(tmp_path / "data"):
        for folder in (tmp_path / "data", link):
            with pytest.raises(StoreError, match="in use by another broker of this process"):
                open_store(folder)
        with open_store(tmp_path / "other"):
            pass
        # The refusals have not ended the lock.
        with python(OPEN_AND_WAIT, str(tmp_path / "data")) as process:
            assert process.wait(20) == 1
    with open_store(tmp_path / "data"):
        pass


def test_second_process_is_refused_by_the_first_ones_pid(tmp_path: Path) -> None:
    with python(OPEN_AND_WAIT, str(tmp_path)) as process:
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline() == "open\n"
        with pytest.raises(StoreError) as caught:
            open_store(tmp_path)
        assert str(caught.value) == f"{tmp_path} is in use by another broker (process {process.pid})"
        process.stdin.close()
        assert process.wait(20) == 0
    with open_store(tmp_path):
        pass


@pytest.mark.parametrize("kind", [fcntl.flock, fcntl.lockf])
def test_either_lock_alone_refuses(tmp_path: Path, kind: Any) -> None:
    code = f"""
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.{kind.__name__}(file, fcntl.LOCK_EX)
print("open", flush=True)
sys.stdin.read()
"""
    with python(code, str(tmp_path / "store.lock")) as process:
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline() == "open\n"
        with pytest.raises(StoreError, match=r"in use by another broker$"):
            open_store(tmp_path)
        process.stdin.close()
        assert process.wait(20) == 0


def test_forked_child_has_no_part_in_the_lock(tmp_path: Path) -> None:
    """It neither ends its parent's lock nor keeps it."""
    reader, writer = os.pipe()
    with open_store(tmp_path) as store:
        descriptor = store._lock._descriptor
        child = os.fork()
        if child == 0:
            code = 1
            with contextlib.suppress(BaseException):
                store.close()
                os.close(writer)
                try:
                    os.fstat(descriptor)
                except OSError:
                    code = 0
                os.read(reader, 1)  # until the test is over
            os._exit(code)
        os.close(reader)
        try:
            with python(OPEN_AND_WAIT, str(tmp_path)) as process:
                assert process.wait(20) == 1
            store.close()
            with open_store(tmp_path):
                pass
        finally:
            os.close(writer)
            _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def test_lock_of_a_killed_process_ends_though_its_child_lives(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from mqttc.store import open_store
store = open_store(sys.argv[1])
if os.fork() == 0:
    print(os.getpid(), flush=True)
    os.kill(os.getppid(), signal.SIGKILL)
    sys.stdin.read()
    os._exit(0)
signal.pause()
"""
    with python(code, str(tmp_path)) as process:
        assert process.stdout is not None and process.stdin is not None
        child = int(process.stdout.readline())
        assert process.wait(20) == -signal.SIGKILL
        os.kill(child, 0)  # it lives
        with open_store(tmp_path):
            pass
        process.stdin.close()


@pytest.mark.parametrize("kind", ["flock", "lockf"])
def test_file_system_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    def unsupported(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    unsupported.__name__ = kind
    with monkeypatch.context() as patch:
        patch.setattr(lock.fcntl, kind, unsupported)
        with pytest.raises(StoreError) as caught:
            open_store(tmp_path)
    assert f"{tmp_path}/store.lock: the file system" in str(caught.value)
    assert f"does not support locks ({kind}: {os.strerror(errno.ENOLCK)})" in str(caught.value)
    assert os.listdir(tmp_path) == ["store.lock"]
    with open_store(tmp_path) as store:  # nothing was left locked
        assert store.created


def test_file_system_is_told_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = tmp_path.stat().st_dev
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"1 0 0:0 / / rw - proc proc rw\n2 1 {os.major(device)}:{os.minor(device)} / /srv rw shared:1 - nfs4 host:/srv rw\n")
    monkeypatch.setattr(lock, "_MOUNTS", mounts)
    assert lock._file_system(tmp_path) == "nfs4"
    monkeypatch.setattr(lock, "_MOUNTS", tmp_path / "none")
    assert lock._file_system(tmp_path) == ""


def test_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file/data: Not a directory"):
        open_store(tmp_path / "file" / "data")


def refused(folder: Path, kind: type[StoreError], text: str, *, recover: bool = False) -> None:
    """The store is refused, the text names the file and what is wrong, the file is as before, and the lock is free."""
    path = folder / "store.db"
    before = zlib.crc32(path.read_bytes()) if path.exists() else None
    for _ in range(2):
        with pytest.raises(kind) as caught:
            open_store(folder, recover=recover)
        assert caught.value.exit_code == 1
        assert str(path) in str(caught.value) and text in str(caught.value), str(caught.value)
        if kind is not VersionError:
            assert "--recover" in str(caught.value)
    assert (zlib.crc32(path.read_bytes()) if path.exists() else None) == before
    assert not list(folder.glob("store.db.*"))


@pytest.mark.parametrize("recover", [False, True])
def test_another_programs_database_is_refused(tmp_path: Path, recover: bool) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "store.db")) as connection:
        connection.execute("CREATE TABLE meta (a)")
    refused(tmp_path, ForeignError, "its application id is 0x00000000", recover=recover)


def test_text_is_refused_and_not_salvaged(tmp_path: Path) -> None:
    (tmp_path / "store.db").write_text("my notes\n" * 3000)
    refused(tmp_path, DamageError, "does not begin as an SQLite file does")
    refused(tmp_path, ForeignError, "nothing in it can be read as a store's", recover=True)


@pytest.mark.parametrize("recover", [False, True])
def test_newer_version_is_refused(tmp_path: Path, recover: bool) -> None:
    path = make_store(tmp_path)
    with writing(path) as connection:
        connection.execute("PRAGMA user_version = 3")
    refused(tmp_path, VersionError, "schema version 3, this mqttc knows versions up to 2", recover=recover)


@pytest.mark.parametrize(
    ("offset", "data", "text"),
    [
        (0, bytes(16), "does not begin as an SQLite file does"),
        (16, b"\x20\x00", "its page size is 8192"),
        (60, b"\0\0\0\0", "its schema version is 0"),
        (68, b"\0\0\0\0", "its application id is 0x00000000, its tables are a store's"),
        (100, bytes(200), ""),
    ],
)
def test_damaged_header_is_refused(tmp_path: Path, offset: int, data: bytes, text: str) -> None:
    path = make_store(tmp_path)
    overwrite(path, offset, data)
    refused(tmp_path, DamageError, text)
    with open_store(tmp_path, recover=True) as store:
        assert store.recovery is not None and not store.recovery.has_loss
        assert {name: table.kept for name, table in store.recovery.tables.items() if table.kept} == {
            "meta": 3, "session": 3, "subscription": 3, "message": 15, "delivery": 15, "inbound": 3, "will": 3, "retained": 3,
        }  # fmt: skip
    assert check(path) == []


def test_empty_and_cut_files_are_refused(tmp_path: Path) -> None:
    path = make_store(tmp_path, 3, 200)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(tmp_path, DamageError, "malformed")
    path.write_bytes(b"")
    refused(tmp_path, DamageError, "it is empty")


def test_missing_file_beside_its_wal_is_no_fresh_start(tmp_path: Path) -> None:
    path = make_store(tmp_path)
    with writing(path) as connection:
        add_session(connection, 9)
        wal = (tmp_path / "store.db-wal").read_bytes()
    path.unlink()
    (tmp_path / "store.db-wal").write_bytes(wal)
    refused(tmp_path, DamageError, "it is gone, its WAL is there")


def test_missing_and_unknown_tables_are_refused(tmp_path: Path) -> None:
    path = make_store(tmp_path)
    with writing(path) as connection:
        connection.execute("DROP TABLE will")
        connection.execute("CREATE TABLE more (a)")
    refused(tmp_path, DamageError, "table will is missing, table 'more' does not belong to a store of version 2")


def test_bad_meta_is_refused(tmp_path: Path) -> None:
    path = make_store(tmp_path)
    with writing(path) as connection:
        connection.execute("UPDATE meta SET value = 'soon' WHERE key = 'clock'")
    refused(tmp_path, DamageError, "meta has clock = 'soon'")


@pytest.mark.parametrize("make", ["symlink", "directory"])
def test_only_a_plain_file_will_do(tmp_path: Path, make: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    if make == "symlink":
        (folder / "store.db").symlink_to(make_store(tmp_path / "other"))
    else:
        (folder / "store.db").mkdir()
    with pytest.raises(StoreError, match="is not a plain file"):
        open_store(folder)


def leave_wal(folder: Path) -> Path:
    """A store whose WAL holds a session that the file does not, as a crash leaves it; the WAL's path."""
    path = make_store(folder)
    wal = folder / "store.db-wal"
    with writing(path) as connection:
        add_session(connection, 9)
        data = wal.read_bytes()
        file = path.read_bytes()
    path.write_bytes(file)
    wal.write_bytes(data)
    return wal


@pytest.mark.parametrize(
    ("offset", "data", "text"),
    [
        (0, b"\x11", "its WAL begins with other bytes"),
        (4, struct.pack(">I", 1), "its WAL has version 1"),
        (8, struct.pack(">I", 512), "page size 512"),
        (16, b"\xff\xff\xff\xff", "the checksum of its WAL's header"),
    ],
)
def test_damaged_wal_header_is_refused(tmp_path: Path, offset: int, data: bytes, text: str) -> None:
    """SQLite itself would begin a new WAL, and what was committed would be gone without a word."""
    wal = leave_wal(tmp_path)
    overwrite(wal, offset, data)
    refused(tmp_path, DamageError, text)
    assert any(text in problem for problem in check(tmp_path / "store.db"))
    kept = wal.read_bytes()
    with open_store(tmp_path, recover=True) as store:
        assert store.recovery is not None
        assert any(text in reason for reason in store.recovery.reasons)
        assert store.recovery.has_loss
        assert store.recovery.tables["session"].kept == 3
        assert Path(f"{store.recovery.moved_to}-wal").read_bytes() == kept


def test_sound_and_zeroed_wals_are_taken(tmp_path: Path) -> None:
    wal = leave_wal(tmp_path)
    with open_store(tmp_path) as store:
        assert count(store.path, "session") == 4
    wal.write_bytes(bytes(4096))
    with open_store(tmp_path) as store:
        assert count(store.path, "session") == 4


def test_migrations_lead_to_this_version() -> None:
    assert sorted(schema.MIGRATIONS) == list(range(1, schema.VERSION))


def test_a_file_of_version_1_gets_the_log(tmp_path: Path) -> None:
    path = make_store(tmp_path)
    with writing(path) as connection:
        connection.execute("DROP TABLE log")
        connection.execute("PRAGMA user_version = 1")
    with open_store(tmp_path) as store:
        assert (store.migrated_from, count(path, "log"), count(path, "message")) == (1, 0, 15)
    assert check(path) == []


def newer_schema(monkeypatch: pytest.MonkeyPatch, *statements: str) -> None:
    extra = schema.Table("extra", "CREATE TABLE extra (id INTEGER PRIMARY KEY)", ("id",), ("id",), "1")
    monkeypatch.setattr(schema, "VERSION", schema.VERSION + 1)
    monkeypatch.setattr(schema, "TABLES", (*schema.TABLES, extra))
    monkeypatch.setattr(schema, "MIGRATIONS", {schema.VERSION - 1: statements})


def test_older_version_is_migrated_after_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_store(tmp_path)
    newer_schema(monkeypatch, "CREATE TABLE extra (id INTEGER PRIMARY KEY)", "UPDATE session SET expiry_s = 1")
    with pytest.raises(StoreError, match="schema version 2: the broker brings it to 3"):
        check(path)
    lines: list[str] = []
    with open_store(tmp_path, progress=lines.append) as store:
        assert store.migrated_from == 2
        assert count(path, "session", "expiry_s = 1") == 3
        assert count(path, "extra") == 0
    (kept,) = tmp_path.glob("store.db.v2-*Z")
    assert lines == [f"schema version 2 becomes 3; the old file is kept as {kept}"]
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert count(kept, "session", "expiry_s = 3600") == 3
    with open_store(tmp_path) as store:
        assert store.migrated_from is None
    monkeypatch.undo()
    refused_newer = tmp_path / "older"
    refused_newer.mkdir()
    os.rename(path, refused_newer / "store.db")
    with pytest.raises(VersionError):
        open_store(refused_newer)


def test_failed_migration_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_store(tmp_path)
    newer_schema(monkeypatch, "CREATE TABLE extra (id INTEGER PRIMARY KEY)", "UPDATE session SET nonsense = 1")
    with pytest.raises(StoreError, match="no such column: nonsense"):
        open_store(tmp_path)
    monkeypatch.undo()
    with open_store(tmp_path) as store:
        assert count(store.path, "session", "expiry_s = 3600") == 3
    assert check(path) == []
