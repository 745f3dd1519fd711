"""`check` and `--recover`: damage inside the file is found, what is sound is saved, everything is counted."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mqttc.store import DamageError, Recovery, check, database, export, info, open_store, salvage, walk
from mqttc.store.schema import PAGE_BYTES, TABLES
from tests.store.stores import add_session, count, damage_page, make_store, overwrite, pages_of, writing

MESSAGES = 3000


def recover(folder: Path) -> Recovery:
    with open_store(folder, recover=True) as store:
        assert store.recovery is not None
        return store.recovery


def adds_up(recovery: Recovery, path: Path) -> None:
    """What is said to be saved is in the new file, the damaged one is as it was, and the new one is sound."""
    assert check(path) == []
    for name, table in recovery.tables.items():
        assert count(path, name) == table.kept == table.read - table.damaged - table.orphans
    assert recovery.moved_to.exists()
    assert not [name for name in os.listdir(path.parent) if name.endswith((".salvage", ".source", ".template")) or ".recovered-" in name]
    assert recovery.moved_to.stat().st_mode & 0o777 == path.stat().st_mode & 0o777 == 0o600


def test_sound_store_is_left_alone(tmp_path: Path) -> None:
    path = make_store(tmp_path)
    before = path.read_bytes()
    with open_store(tmp_path, recover=True) as store:
        assert (store.created, store.clean, store.recovery) == (False, True, None)
    assert path.read_bytes() == before
    assert not list(tmp_path.glob("*.damaged-*"))


def test_damaged_leaf_in_a_big_table(tmp_path: Path) -> None:
    path = make_store(tmp_path, 1, MESSAGES)
    leaves = pages_of(path, "message", "leaf")
    assert len(leaves) > 200
    damage_page(path, leaves[50])
    damage_page(path, leaves[120])
    damaged = path.read_bytes()
    with open_store(tmp_path):
        pass  # the start does not read so far
    assert any("message" in problem or "malformed" in problem for problem in check(path))
    lines: list[str] = []
    with open_store(tmp_path, recover=True, progress=lines.append) as store:
        recovery = store.recovery
        assert not store.clean
    assert recovery is not None and lines
    adds_up(recovery, path)
    assert recovery.moved_to.read_bytes() == damaged
    message, delivery = recovery.tables["message"], recovery.tables["delivery"]
    lost = MESSAGES - message.read
    assert message.unreadable == 2
    assert 0 < lost <= 2 * PAGE_BYTES // 300  # no more than lay on two pages
    assert (message.damaged, message.orphans, message.kept) == (0, 0, MESSAGES - lost)
    assert (delivery.read, delivery.orphans) == (MESSAGES, lost)
    assert {name: table.kept for name, table in recovery.tables.items() if not table.has_loss} == {
        "meta": 3, "session": 1, "subscription": 1, "share_group": 0, "log": 0, "inbound": 1, "will": 1, "retained": 1,
    }  # fmt: skip
    assert "data was lost" in "\n".join(recovery.lines())
    assert f"the damaged file is kept as {recovery.moved_to}" in recovery.lines()
    with open_store(tmp_path, recover=True) as store:
        assert store.recovery is None  # sound now


@pytest.mark.parametrize("table", ["delivery", "retained"])
def test_damaged_leaf_of_a_table_by_key(tmp_path: Path, table: str) -> None:
    """Tables without row ids are walked around by their primary keys."""
    path = make_store(tmp_path, 1, MESSAGES)
    with writing(path) as connection:
        connection.execute("BEGIN")
        connection.executemany(
            "INSERT INTO retained VALUES (?, 1, x'', ?, 1, 0)", ((b"sensors/%05d/state" % number, b"v" * 50) for number in range(MESSAGES))
        )
        connection.execute("COMMIT")
    leaves = pages_of(path, table, "leaf")
    before = count(path, table)
    for place in (3, len(leaves) // 2):
        damage_page(path, leaves[place])
    recovery = recover(tmp_path)
    adds_up(recovery, path)
    result = recovery.tables[table]
    assert result.unreadable == 2 and not result.cut_short
    assert 0 < before - result.read <= 2 * PAGE_BYTES // 8
    assert result.damaged == 0


@pytest.mark.parametrize("table", ["message", "delivery", "retained"])
def test_first_and_last_leaf_of_far_away_keys(tmp_path: Path, table: str) -> None:
    """Nothing can be read from either end, and the keys are a speck among all that could be."""
    path = make_store(tmp_path, 0)
    with writing(path) as connection:
        connection.execute("BEGIN")
        connection.execute("INSERT INTO session VALUES (1, x'61', 0, 0)")
        for number in range(10**15, 10**15 + MESSAGES):
            connection.execute("INSERT INTO message VALUES (?, x'61', x'', ?, 1, 0, 0)", (number, b"m" * 300))
            connection.execute("INSERT INTO delivery VALUES (?, 1, 1, 0, 0, 0, NULL)", (number,))
            connection.execute("INSERT INTO retained VALUES (?, 1, x'', ?, 1, 0)", (b"a/long/common/prefix/%d" % number, b"v" * 50))
        connection.execute("UPDATE meta SET value = ? WHERE key = 'next_id'", (2 * 10**15,))
        connection.execute("COMMIT")
    leaves = pages_of(path, table, "leaf")
    for place in (0, len(leaves) // 2, -1):
        damage_page(path, leaves[place])
    recovery = recover(tmp_path)
    adds_up(recovery, path)
    result = recovery.tables[table]
    assert result.unreadable == 3
    assert MESSAGES > result.read >= MESSAGES - 3 * PAGE_BYTES // 8
    assert result.damaged == 0


def test_first_and_last_leaf(tmp_path: Path) -> None:
    path = make_store(tmp_path, 1, MESSAGES)
    leaves = pages_of(path, "message", "leaf")
    damage_page(path, leaves[0])
    damage_page(path, leaves[-1])
    recovery = recover(tmp_path)
    adds_up(recovery, path)
    assert recovery.tables["message"].unreadable == 2
    assert recovery.tables["message"].kept > MESSAGES - 2 * PAGE_BYTES // 300


def test_lost_body_of_one_message(tmp_path: Path) -> None:
    """A page that holds nothing but a part of one long payload."""
    path = make_store(tmp_path, 1, 20)
    with writing(path) as connection:
        connection.execute("UPDATE message SET payload = ? WHERE id = 1000010", (b"x" * 20_000,))
    damage = pages_of(path, "message", "overflow")[1]
    overwrite(path, (damage - 1) * PAGE_BYTES, b"\xff\xff\xff\xff")  # the next page's number
    recovery = recover(tmp_path)
    adds_up(recovery, path)
    assert recovery.tables["message"].kept == 19
    assert count(path, "message", "id = 1000010") == 0


def test_inner_page_and_root(tmp_path: Path) -> None:
    """What no page leads to any more is lost, and said to be."""
    path = make_store(tmp_path, 1, MESSAGES)
    damage_page(path, pages_of(path, "message", "internal")[0])  # the root
    recovery = recover(tmp_path)
    adds_up(recovery, path)
    assert (recovery.tables["message"].read, recovery.tables["message"].unreadable) == (0, 1)
    assert (recovery.tables["delivery"].orphans, recovery.tables["session"].kept) == (MESSAGES, 1)


@pytest.mark.parametrize("child", [0, 1, 2**32 - 1])
def test_inner_page_that_leads_astray(tmp_path: Path, child: int) -> None:
    path = make_store(tmp_path, 1, MESSAGES)
    root = pages_of(path, "delivery", "internal")[0]
    overwrite(path, (root - 1) * PAGE_BYTES + 8, child.to_bytes(4))  # to the rightmost leaf
    recovery = recover(tmp_path)
    adds_up(recovery, path)
    result = recovery.tables["delivery"]
    assert result.unreadable == 1 and MESSAGES - PAGE_BYTES // 8 < result.kept < MESSAGES


def test_schema_that_is_no_text(tmp_path: Path) -> None:
    """SQLite's message quotes it, and Python cannot decode the message."""
    path = make_store(tmp_path, 1, 5)
    place = path.read_bytes().index(b"packet_id INTEGER NOT NULL, identifiers")
    overwrite(path, place + len(b"packet_id INTEGER NOT N"), b"\xa4")
    for work in (info, open_store):
        with pytest.raises(DamageError, match="the text of its schema is not UTF-8"):
            work(path if work is info else tmp_path)
    assert check(path) == ["the text of its schema is not UTF-8"]
    recovery = recover(tmp_path)
    adds_up(recovery, path)
    assert not recovery.has_loss and recovery.tables["delivery"].kept == 5


def test_text_where_a_blob_belongs(tmp_path: Path) -> None:
    path = make_store(tmp_path, 1, 5)
    with writing(path) as connection:
        connection.execute("UPDATE message SET topic = CAST(x'ff' AS TEXT) WHERE id = 1000001")
    assert check(path) == ["1 rows of message with impossible values"]
    recovery = recover(tmp_path)
    adds_up(recovery, path)
    assert (recovery.tables["message"].damaged, recovery.tables["delivery"].orphans) == (1, 1)


def test_damaged_meta(tmp_path: Path) -> None:
    path = make_store(tmp_path, 2, 3)
    damage_page(path, 2)
    with pytest.raises(DamageError):
        open_store(tmp_path)
    recovery = recover(tmp_path)
    assert (recovery.tables["meta"].unreadable, recovery.tables["meta"].kept) == (1, 0)
    assert count(path, "meta") == 3  # new ones
    assert check(path) == []
    assert (info(path).next_id or 0) > 2_000_003


def test_cut_file(tmp_path: Path) -> None:
    path = make_store(tmp_path, 1, MESSAGES)
    path.write_bytes(path.read_bytes()[: 100 * PAGE_BYTES])
    recovery = recover(tmp_path)
    adds_up(recovery, path)
    assert recovery.tables["session"].kept == 1
    assert recovery.has_loss


def test_empty_file_and_no_file_beside_their_wal(tmp_path: Path) -> None:
    for name in ("empty", "gone"):
        folder = tmp_path / name
        path = make_store(folder / "source", 0)
        with writing(path) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            add_session(connection, 1, 5)
            wal = Path(f"{path}-wal").read_bytes()
        (folder / "store.db-wal").write_bytes(wal)
        if name == "empty":
            (folder / "store.db").write_bytes(b"")
        recovery = recover(folder)
        adds_up(recovery, folder / "store.db")
        assert recovery.tables["session"].kept == 1
        assert recovery.tables["message"].kept == 5
        assert Path(f"{recovery.moved_to}-wal").read_bytes() == wal


def test_first_page_of_zeros(tmp_path: Path) -> None:
    path = make_store(tmp_path, 2, 100)
    damage_page(path, 1)
    recovery = recover(tmp_path)
    adds_up(recovery, path)
    assert not recovery.has_loss
    assert recovery.tables["message"].kept == 200


IMPOSSIBLE: dict[str, str] = {
    "meta": "UPDATE meta SET value = 'x' WHERE key = 'clock'",
    "session": "UPDATE session SET client_id = x'ff' WHERE id = 3",
    "subscription": "UPDATE subscription SET options = 256 WHERE session = 2",
    "share_group": "INSERT INTO share_group VALUES (500, x'')",
    "message": "UPDATE message SET qos = 3 WHERE id = 1000001",
    "delivery": "UPDATE delivery SET state = 1 WHERE message = 1000002",
    "log": "INSERT INTO log VALUES (1, x'0100')",
    "inbound": "INSERT INTO inbound VALUES (1, 65536)",
    "will": "UPDATE will SET expiry_s = -2 WHERE session = 2",
    "retained": "UPDATE retained SET topic = x'6100' WHERE topic = CAST('state/client-1' AS BLOB)",
}


def test_impossible_values_are_found_and_left_out(tmp_path: Path) -> None:
    assert sorted(IMPOSSIBLE) == sorted(table.name for table in TABLES)
    path = make_store(tmp_path, 4, 5)
    with writing(path) as connection:
        for statement in IMPOSSIBLE.values():
            assert connection.execute(statement).rowcount == 1
    found = check(path)
    for table in IMPOSSIBLE:
        assert f"1 rows of {table} with impossible values" in found
    recovery = recover(tmp_path)
    adds_up_but_meta(recovery, path)
    assert {name: table.damaged for name, table in recovery.tables.items()} == dict.fromkeys(IMPOSSIBLE, 1)
    # The session with the bad client id takes what is its own with it.
    assert (recovery.tables["session"].kept, recovery.tables["inbound"].orphans, recovery.tables["will"].orphans) == (3, 1, 1)
    assert (info(path).clock_ms or 0) > 0


def adds_up_but_meta(recovery: Recovery, path: Path) -> None:
    """As `adds_up`; what was missing in `meta` is new."""
    recovery.tables["meta"].damaged -= 1
    recovery.tables["meta"].kept += 1
    adds_up(recovery, path)
    recovery.tables["meta"].damaged += 1


ORPHANED: list[tuple[str, str, str]] = [
    ("INSERT INTO subscription VALUES (99, x'61', 0, 0)", "1 subscriptions without session", "subscription"),
    ("INSERT INTO inbound VALUES (99, 1)", "1 inbound packet ids without session", "inbound"),
    ("INSERT INTO will VALUES (99, x'61', x'', x'', 0, 0, 0, -1)", "1 wills without session", "will"),
    ("INSERT INTO delivery VALUES (1000001, 99, 1, 0, 0, 0, NULL)", "1 deliveries without session or shared group", "delivery"),
    ("INSERT INTO delivery VALUES (77, 1, 1, 0, 1, 5, NULL)", "1 deliveries without message", "delivery"),
    ("INSERT INTO share_group VALUES (1, x'61')", "1 shared groups with the id of a session", "share_group"),
    (
        "INSERT INTO session VALUES (4, CAST('client-1' AS BLOB), 0, 0)",
        "1 sessions of a client id that has a newer one",
        "session",
    ),
]


@pytest.mark.parametrize(("statement", "finding", "table"), ORPHANED)
def test_orphans_are_found_and_dropped(tmp_path: Path, statement: str, finding: str, table: str) -> None:
    path = make_store(tmp_path, 2, 2)
    with writing(path) as connection:
        connection.execute(statement)
    assert check(path) == [finding]
    recovery = recover(tmp_path)
    adds_up(recovery, path)
    assert recovery.reasons == [finding]
    assert recovery.tables[table].orphans == 1


def test_what_is_no_orphan(tmp_path: Path) -> None:
    """A released delivery needs no message, a shared group's needs no session; a message that nobody waits for is only counted."""
    path = make_store(tmp_path, 1, 1)
    with writing(path) as connection:
        connection.execute("INSERT INTO delivery VALUES (77, 1, 2, 0, 2, 5, NULL)")
        connection.execute("INSERT INTO share_group VALUES (50, CAST('$share/g/a' AS BLOB))")
        connection.execute("INSERT INTO delivery VALUES (1000001, 50, 1, 0, 0, 0, NULL)")
        connection.execute("INSERT INTO message VALUES (78, x'61', x'', x'', 1, 0, 0)")
    assert check(path) == []
    assert info(path).unclaimed == 1


def test_check_and_info_of_what_is_not_there(tmp_path: Path) -> None:
    for command in (check, info):
        with pytest.raises(OSError, match="there is no store"):
            command(tmp_path / "store.db")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("renames", range(6))
def test_crash_between_the_renames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: int) -> None:
    """The next start, without --recover, ends with the new file in its place and the damaged one with its WAL aside."""
    path = make_store(tmp_path, 2, 5)
    with writing(path) as connection:
        connection.execute("INSERT INTO inbound VALUES (99, 1)")
        add_session(connection, 3, 5)
        wal, data = Path(f"{path}-wal").read_bytes(), path.read_bytes()
    Path(f"{path}-wal").write_bytes(wal)
    path.write_bytes(data)
    left = renames
    rename = Path.rename

    def crash(self: Path, target: Path) -> Path:
        nonlocal left
        if left == 0:
            raise InterruptedError(4, "crash")
        left -= 1
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", crash)
        if renames < 5:
            with pytest.raises(OSError, match="crash"):
                open_store(tmp_path, recover=True)
        else:
            recover(tmp_path)
    with open_store(tmp_path, recover=renames == 0) as store:  # nothing was renamed then: as if it had never begun
        assert not store.created
    assert check(path) == []
    assert count(path, "session") == 3 and count(path, "message") == 15
    (kept,) = tmp_path.glob("store.db.damaged-*Z")
    assert kept.read_bytes() == data
    assert Path(f"{kept}-wal").read_bytes() == wal
    assert not list(tmp_path.glob("store.db.recovered-*"))


def test_what_a_crash_left_of_unfinished_work_is_removed(tmp_path: Path) -> None:
    make_store(tmp_path)
    for suffix in salvage._WORK:
        (tmp_path / f"store.db{suffix}").write_bytes(b"half")
        (tmp_path / f"store.db{suffix}-wal").write_bytes(b"half")
    with open_store(tmp_path):
        pass
    assert [name for name in sorted(os.listdir(tmp_path)) if not name.endswith(("-wal", "-shm"))] == ["store.db", "store.lock"]


def test_no_room_for_the_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The damaged file keeps its place, and nothing half made stays."""
    path = make_store(tmp_path, 1, 200)
    damage_page(path, pages_of(path, "message", "leaf")[3])
    before = path.read_bytes()
    connect = database.connect

    def small(file: Path, mode: str) -> database.sqlite3.Connection:
        connection = connect(file, mode)
        if file.name.endswith(".salvage") and file.stat().st_size:
            connection.execute("PRAGMA max_page_count = 12")
        return connection

    with monkeypatch.context() as patch:
        patch.setattr(database, "connect", small)
        with pytest.raises(OSError, match="full"):
            open_store(tmp_path, recover=True)
    assert path.read_bytes() == before
    assert not list(tmp_path.glob("store.db.*"))
    adds_up(recover(tmp_path), path)


def test_probes_are_limited_and_the_limit_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_store(tmp_path, 1, MESSAGES)
    leaves = pages_of(path, "message", "leaf")
    damage_page(path, leaves[10])
    damage_page(path, leaves[-10])
    monkeypatch.setattr(walk, "MAXIMUM_PROBES", 2)
    recovery = recover(tmp_path)
    adds_up(recovery, path)
    assert recovery.tables["message"].cut_short
    assert any("the search ended after" in line for line in recovery.lines())


def test_progress_of_large_stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_store(tmp_path, 1, 250)
    damage_page(path, pages_of(path, "delivery", "leaf")[0])
    monkeypatch.setattr(salvage, "PROGRESS_ROWS", 100)
    lines: list[str] = []
    with open_store(tmp_path, recover=True, progress=lines.append):
        pass
    assert "message: 100 rows read" in lines and "message: 200 rows read" in lines


def test_walk_does_not_turn_in_circles(tmp_path: Path) -> None:
    """A key that is out of order, as a flipped bit makes one, is left out."""
    path = make_store(tmp_path, 1, 100)
    page = pages_of(path, "retained", "leaf")[0]
    with writing(path) as connection:
        connection.executemany("INSERT INTO retained VALUES (?, 1, x'', x'', 1, 0)", ((b"t/%02d" % number,) for number in range(50)))
    data = path.read_bytes()
    place = data.index(b"t/25", (page - 1) * PAGE_BYTES)
    overwrite(path, place, b"A/25")
    recovery = recover(tmp_path)
    adds_up(recovery, path)
    assert recovery.tables["retained"].kept == 50
    assert recovery.tables["retained"].damaged == 1


@pytest.mark.parametrize("work", [check, info, lambda path: export(path, io.StringIO())])
def test_readers_name_the_file_if_it_is_damaged(tmp_path: Path, work: Callable[[Path], object]) -> None:
    path = make_store(tmp_path, 1, 100)
    damage_page(path, 1)
    if work is check:
        assert work(path) == ["file is not a database"]
        return
    with pytest.raises(DamageError, match=r"store\.db is damaged: file is not a database; mqttc-broker --recover"):
        work(path)
