"""The journal's thread by hand: the rows of each record, what comes and goes within a batch, and that a failed commit leaves nothing."""

from __future__ import annotations

import contextlib
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mqttc.store import check, log, open_store

from ..face.broker_journal import Journal
from .durable import eventually

LENT = 2**40


class Bench:
    """A journal on a file, which other connections look at."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.journal: Any = Journal(str(path))
        self.running = False

    def start(self) -> None:
        self.journal.start()
        self.running = True

    def commit(self, worker: int = 0) -> None:
        """Post what was gathered and wait for its commit."""
        sequence = self.journal.post(worker)
        eventually(lambda: self.journal.committed(worker) >= sequence, lambda: f"{self.journal.states()}")

    def rows(self, table: str) -> list[tuple[Any, ...]]:
        """Those that a broker would make of the log are among them."""
        with contextlib.closing(sqlite3.connect(self.path, isolation_level=None)) as connection:
            connection.execute("BEGIN")
            found = connection.execute(f"SELECT * FROM {table}").fetchall()
            return sorted(found + log.rows(connection)[table]) if table in ("message", "delivery") else found

    def written(self, table: str) -> list[tuple[Any, ...]]:
        """Those alone that are rows."""
        with contextlib.closing(sqlite3.connect(self.path)) as connection:
            return connection.execute(f"SELECT * FROM {table}").fetchall()

    def deliveries(self) -> list[tuple[Any, ...]]:
        """(message, target, QoS, state, packet id)"""
        return [(row[0], row[1], row[2], row[4], row[5]) for row in self.rows("delivery")]

    def messages(self) -> list[int]:
        return [row[0] for row in self.rows("message")]

    @contextlib.contextmanager
    def refusing(self, table: str, verb: str = "INSERT", when: str = "1") -> Iterator[None]:
        """Commits that touch that table fail meanwhile, the way SQLite's errors do."""
        with contextlib.closing(sqlite3.connect(self.path, timeout=5, isolation_level=None)) as connection:
            abort = f"BEGIN SELECT RAISE(ABORT, 'no room for {table}'); END"
            connection.execute(f"CREATE TRIGGER refuse BEFORE {verb} ON {table} WHEN {when} {abort}")
            try:
                yield
            finally:
                while True:
                    with contextlib.suppress(sqlite3.OperationalError):
                        connection.execute("DROP TRIGGER refuse")
                        break

    def end(self) -> None:
        if self.running:
            assert self.journal.stop()
        self.journal.close()
        assert check(self.path) == []


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with open_store(tmp_path) as store:
        made = Bench(store.path)
        made.start()
        yield made
        made.end()


# ---------------------------------------------------------------------------------------------------- rows


def test_sessions(bench: Bench) -> None:
    journal = bench.journal
    journal.session(7, b"a", 100)
    journal.subscribe(7, b"x/#", 0x81, 5)
    journal.subscribe(7, b"y", 2)
    journal.will(7, b"w", b"gone", 30)
    journal.message(b"t", b"m", publisher=7, packet_id=9)
    bench.commit()
    assert bench.rows("session") == [(1, b"a", 100, 0)]
    assert bench.rows("subscription") == [(1, b"x/#", 0x81, 5), (1, b"y", 2, 0)]
    assert bench.rows("will") == [(1, b"w", b"", b"gone", 1, 0, 30, -1)]
    assert bench.rows("inbound") == [(1, 9)] and bench.messages() == []
    journal.presence(7, 12345, 50)
    journal.subscribe(7, b"y", 1, 3)
    journal.handed_out(7, b"x/#")
    journal.will_done(7)
    journal.inbound_done(7, 9)
    bench.commit()
    assert bench.rows("session") == [(1, b"a", 50, 12345)]
    assert bench.rows("subscription") == [(1, b"x/#", 1, 5), (1, b"y", 1, 3)]
    assert bench.rows("will") == bench.rows("inbound") == []
    journal.unsubscribe(7, b"y")
    journal.will(7, b"w", b"gone", 30)
    journal.session_end(7)
    journal.session(8, b"a", 1)
    bench.commit()
    assert bench.rows("session") == [(2, b"a", 1, 0)]
    assert bench.rows("subscription") == bench.rows("will") == []
    journal.subscribe(7, b"late", 1)
    journal.presence(7, 5, 5)
    journal.will(7, b"w", b"gone", 30)
    bench.commit()
    assert bench.rows("subscription") == bench.rows("will") == [], "what has ended is not named any more"


def test_a_message_ends_with_its_last_delivery(bench: Bench) -> None:
    journal = bench.journal
    for handle in (1, 2, 3):
        journal.session(handle, b"%d" % handle)
    message = journal.message(b"t", b"m", [(1, 0, 1), (2, 0, 2), (3, 0, 2), (99, 0, 1)], qos=2)
    bench.commit()
    assert bench.deliveries() == [(message, 1, 1, 0, 0), (message, 2, 2, 0, 0), (message, 3, 2, 0, 0)], "99 is nobody"
    journal.done(message, 1)
    journal.sent(message, 2, 10)
    bench.commit()
    assert bench.deliveries() == [(message, 2, 2, 1, 10), (message, 3, 2, 0, 0)]
    journal.released(message, 2, 10)
    journal.released(message, 2, 10)
    bench.commit()
    assert bench.deliveries() == [(message, 2, 2, 2, 10), (message, 3, 2, 0, 0)] and bench.messages() == [message]
    journal.done(message, 3)
    bench.commit()
    assert bench.deliveries() == [(message, 2, 2, 2, 10)] and bench.messages() == []
    journal.done(message, 2, packet_id=10, released=True)
    bench.commit()
    assert bench.deliveries() == []
    for handle in (1, 2, 3):
        journal.session_end(handle)
    bench.commit()


def test_what_a_group_has_lent(bench: Bench) -> None:
    """Three deliveries of one message to one session: its own, and one from each of two groups."""
    journal = bench.journal
    journal.session(1, b"a")
    journal.group(100, b"$share/a/t")
    journal.group(200, b"$share/b/t")
    bench.commit()
    one, a, b = 1, 2, 3
    message = journal.message(b"t", b"m", [(1, 0, 2), (100, 1, 2), (200, 1, 2)], qos=2)
    journal.sent(message, 1, 1)
    journal.sent(message, 1, 2, group=100)
    bench.commit()
    assert bench.deliveries() == [(message, one, 2, 1, 1), (message, b, 2, 0, 0), (message, one + 2 * LENT, 2, 1, 2)]
    journal.sent(message, 1, 3, group=200)
    journal.released(message, 1, 2)
    bench.commit()
    assert bench.deliveries() == [(message, one, 2, 1, 1), (message, one + 2 * LENT, 2, 2, 2), (message, one + 3 * LENT, 2, 1, 3)]
    journal.done(message, 1, packet_id=2, released=True)
    journal.done(message, 1, packet_id=1)
    bench.commit()
    assert bench.deliveries() == [(message, one + 3 * LENT, 2, 1, 3)] and bench.messages() == [message]
    journal.done(message, 1, packet_id=3)
    bench.commit()
    assert bench.deliveries() == [] and bench.messages() == [] and a == 2
    journal.session_end(1)
    journal.group_end(100, 1)
    journal.group_end(200, 1)
    bench.commit()
    assert bench.rows("share_group") == []


def test_what_comes_back_to_its_group(bench: Bench) -> None:
    """Lent at QoS 1 to a session that ends; what is its own ends with it, and so does what was lent by a group that has ended."""
    journal = bench.journal
    journal.session(1, b"a")
    journal.group(100, b"$share/a/t")
    journal.group(200, b"$share/b/t")
    bench.commit()
    message = journal.message(b"t", b"m", [(1, 0, 1), (100, 1, 2), (200, 1, 2)], qos=2)
    journal.sent(message, 1, 5, group=100, qos=1)
    journal.sent(message, 1, 6, group=200, qos=1)
    bench.commit()
    group = (2).to_bytes(8, sys.byteorder)
    assert bench.rows("delivery")[1:2] == [(message, 1 + 5 * LENT, 1, 2, 1, 5, group)]
    journal.group_end(200, 1)
    journal.returned(message, 1, 5, 100)
    journal.returned(message, 1, 6, 200)
    journal.session_end(1)
    bench.commit()
    assert bench.rows("delivery") == [(message, 2, 1, 0, 0, 0, None)] and bench.messages() == [message]
    journal.session(3, b"c")
    journal.sent(message, 3, 7, group=100)
    bench.commit()
    assert bench.rows("delivery") == [(message, 4 + 7 * LENT, 2, 0, 1, 7, None)]
    journal.done(message, 3, packet_id=7)
    journal.session_end(3)
    journal.group_end(100, 1)
    bench.commit()
    assert bench.deliveries() == [] and bench.messages() == []


def test_it_comes_and_goes_within_a_batch(bench: Bench) -> None:
    journal = bench.journal
    journal.session(1, b"a")
    journal.group(100, b"$share/a/t")
    bench.commit()
    gone = journal.message(b"t", b"1", [(100, 1, 1)])
    kept = journal.message(b"t", b"2", [(100, 1, 1)])
    for message in (gone, kept):
        journal.sent(message, 1, message, group=100, qos=1)
        journal.returned(message, 1, message, 100)
    journal.session_end(1)
    journal.done(gone, 100, group=True)
    bench.commit()
    assert bench.deliveries() == [(kept, 2, 1, 0, 0)] and bench.messages() == [kept]
    journal.group_end(100, 1)
    bench.commit()
    assert bench.deliveries() == [] and bench.messages() == []


def test_lent_to_a_session_that_is_not_stored(bench: Bench) -> None:
    journal = bench.journal
    journal.group(100, b"$share/a/t")
    message = journal.message(b"t", b"m", [(100, 1, 2)], qos=2)
    bench.commit()
    assert len(bench.deliveries()) == 1
    journal.sent(message, 77, 5, group=100)
    journal.released(message, 77, 5)
    bench.commit()
    assert bench.deliveries() == [] and bench.messages() == []
    journal.group_end(100, 1)
    bench.commit()


def test_deliveries_on_their_way_to_what_ends(bench: Bench) -> None:
    """Nobody tells that they are over: the end of the session, or of the group, takes them along."""
    journal = bench.journal
    journal.session(1, b"a")
    journal.session(2, b"b")
    journal.group(100, b"$share/a/t")
    bench.commit()
    first = journal.message(b"t", b"1", [(1, 0, 2), (2, 0, 1), (100, 1, 2)], qos=2)
    second = journal.message(b"t", b"2", [(1, 0, 2), (100, 1, 2)], qos=2)
    third = journal.message(b"t", b"3", [(100, 1, 2)], qos=2)
    journal.sent(second, 1, 7, group=100)
    journal.sent(first, 1, 8)
    journal.released(first, 1, 8)
    bench.commit()
    journal.session_end(1)
    bench.commit()
    assert {row[:2] for row in bench.deliveries()} == {(first, 2), (first, 3), (third, 3)}
    assert bench.messages() == [first, third]
    journal.group_end(100, 1)
    bench.commit(worker=1)
    assert bench.deliveries() == [(first, 2, 1, 0, 0)] and bench.messages() == [first]
    journal.message(b"t", b"late", [(1, 0, 1), (100, 1, 1)])
    journal.done(first, 2)
    journal.session_end(2)
    bench.commit()
    assert bench.deliveries() == [] and bench.messages() == []


def test_group_that_ends_behind_a_join(bench: Bench) -> None:
    """The home of the group did not know of the second member when it said that the group ends."""
    journal = bench.journal
    journal.group(100, b"$share/a/t")
    journal.group(100, b"$share/a/t")
    bench.commit()
    journal.group_end(100, 1)
    message = journal.message(b"t", b"m", [(100, 1, 1)])
    bench.commit()
    assert bench.rows("share_group") == [(1, b"$share/a/t")] and bench.messages() == [message]
    journal.group_end(100, 1)
    bench.commit()
    assert bench.rows("share_group") == [] and bench.messages() == []


def test_retained_in_any_order(bench: Bench) -> None:
    """What two workers have set and removed comes in another order than it happened: the higher version holds."""
    journal = bench.journal
    journal.message(b"t", b"new", version=6)
    journal.message(b"t", b"old", version=5)
    journal.message(b"gone", b"", version=9)
    journal.message(b"gone", b"old", version=8)
    journal.message(b"back", b"", version=9)
    journal.message(b"back", b"new", version=10)
    journal.message(b"kept", b"new", version=12)
    journal.message(b"kept", b"", version=11)
    bench.commit()
    assert [(row[0], row[1], row[3]) for row in bench.rows("retained")] == [(b"back", 10, b"new"), (b"kept", 12, b"new"), (b"t", 6, b"new")]
    assert bench.messages() == []


def test_bodies(bench: Bench) -> None:
    journal = bench.journal
    journal.session(1, b"a")
    ids = [journal.message(b"t/%d" % n, b"m" * n * 1000, [(1, 0, 1)]) for n in range(5)]
    journal.read(1, [ids[3], 12345, ids[1]])
    bench.commit()
    eventually(lambda: journal.stats["backlog"] == 0)
    assert journal.bodies() == [(ids[3], b"t/3", b"m" * 3000), (12345, None, None), (ids[1], b"t/1", b"m" * 1000)]
    assert journal.bodies() is None
    journal.session_end(1)
    bench.commit()
    assert bench.messages() == []


# ---------------------------------------------------------------------------------------------------- within a batch


def test_cancelled_within_a_batch(tmp_path: Path) -> None:
    """QoS 1 that is over leaves no trace; QoS 1 that was sent is written as sent; QoS 2 is written step by step."""
    with open_store(tmp_path) as store:
        bench = Bench(store.path)
        journal = bench.journal
        journal.session(1, b"a")
        journal.session(2, b"b")
        over = journal.message(b"t", b"1", [(1, 0, 1)])
        half = journal.message(b"t", b"2", [(1, 0, 1), (2, 0, 1)])
        two = journal.message(b"t", b"3", [(1, 0, 2)], qos=2)
        journal.sent(over, 1, 1)
        journal.done(over, 1, packet_id=1)
        journal.sent(half, 1, 2)
        journal.done(half, 2)
        journal.sent(two, 1, 3)
        sequence = journal.post()
        bench.start()
        eventually(lambda: journal.committed() == sequence)
        assert bench.deliveries() == [(half, 1, 1, 1, 2), (two, 1, 2, 1, 3)]
        assert bench.messages() == [half, two]
        assert journal.stats["cancelled"] == 2
        journal.done(half, 1, packet_id=2)
        journal.done(two, 1, packet_id=3)
        bench.commit()
        assert bench.messages() == [] == bench.deliveries()
        assert journal.stats["cancelled"] == 2, "these were in the file"
        journal.session_end(1)
        journal.session_end(2)
        bench.commit()
        bench.end()


def test_a_session_and_a_group_with_one_number(tmp_path: Path) -> None:
    """Handles of sessions and ids of groups are of two kinds, though they look alike."""
    with open_store(tmp_path) as store:
        bench = Bench(store.path)
        journal = bench.journal
        journal.session(5, b"a")
        journal.group(5, b"$share/g/t")
        message = journal.message(b"t", b"m", [(5, 0, 1), (5, 1, 1)])
        journal.done(message, 5, group=True)
        sequence = journal.post()
        bench.start()
        eventually(lambda: journal.committed() == sequence)
        assert bench.deliveries() == [(message, 1, 1, 0, 0)]
        journal.done(message, 5)
        journal.session_end(5)
        journal.group_end(5, 1)
        bench.commit()
        bench.end()


def test_sequences_of_workers(bench: Bench) -> None:
    journal = bench.journal
    journal.session(1, b"a")
    bench.commit(worker=1)
    assert (journal.committed(0), journal.committed(1)) == (0, 1)
    for _ in range(3):
        journal.presence(1, 5, 5)
        last = journal.post()
    eventually(lambda: journal.committed(0) == last == 3)
    assert journal.committed(1) == 1
    journal.session_end(1)
    bench.commit()


def test_synced_only_where_asked(bench: Bench) -> None:
    journal = bench.journal
    journal.session(1, b"a")
    bench.commit()
    assert journal.stats["syncs"] == 0
    journal.message(b"t", b"m", [(1, 0, 1)], synced=True)
    bench.commit()
    assert journal.stats["syncs"] == 1
    journal.session_end(1)
    bench.commit()
    assert journal.stats["syncs"] == 1


# ---------------------------------------------------------------------------------------------------- failed commits


def lively(journal: Any, number: int) -> int:
    """One of everything, about session 1000 + number and group 2000 + number, and message rows that others hold too.

    The message that was lent at QoS 1.
    """
    session, group = 1000 + number, 2000 + number
    journal.session(session, b"s%d" % number)
    journal.group(group, b"$share/g%d/t" % number)
    journal.subscribe(session, b"t", 1)
    journal.will(session, b"w", b"gone", 5)
    message = journal.message(b"t", b"m", [(session, 0, 2), (group, 1, 2), (1, 0, 1)], qos=2, publisher=session, packet_id=3)
    journal.sent(message, session, 1)
    journal.sent(message, session, 2, group=group)
    journal.released(message, session, 2)
    journal.message(b"r%d" % number, b"m", version=number + 1)
    lent: int = journal.message(b"t", b"m", [(group, 1, 1)])
    journal.sent(lent, session, 4, group=group, qos=1)
    return lent


def everything(bench: Bench) -> dict[str, list[tuple[Any, ...]]]:
    tables = ("session", "subscription", "share_group", "message", "delivery", "inbound", "will", "retained")
    return {table: bench.rows(table) for table in tables}


FAILURES = [
    ("session", "INSERT"),
    ("share_group", "INSERT"),
    ("subscription", "INSERT"),
    ("will", "INSERT"),
    ("message", "INSERT"),
    ("delivery", "INSERT"),
    ("delivery", "UPDATE"),
    ("delivery", "DELETE"),
    ("inbound", "INSERT"),
    ("retained", "INSERT"),
    ("session", "DELETE"),
    ("share_group", "DELETE"),
    ("message", "DELETE"),
]


@pytest.mark.parametrize(("table", "verb"), FAILURES)
def test_failed_commits_leave_nothing_behind(bench: Bench, tmp_path: Path, table: str, verb: str) -> None:
    """The same records through a journal whose commits fail for a while, and through one whose do not: the same rows."""
    with open_store(tmp_path / "other") as store:
        smooth = Bench(store.path)
        smooth.start()
        for each in (bench, smooth):
            each.journal.session(1, b"all")
            lively(each.journal, 0)
            each.commit()
        before = everything(bench)
        lent: dict[Bench, int] = {}
        with bench.refusing(table, verb):
            for part in range(3):
                for each in (bench, smooth):
                    journal = each.journal
                    if part == 0:
                        lent[each] = lively(journal, 1)
                        journal.done(1, 1000, packet_id=2, released=True)
                        journal.done(1, 1000, packet_id=1)
                        journal.done(1, 1)
                        journal.session_end(1000)
                        journal.group_end(2000, 1)
                    elif part == 1:
                        lively(journal, 2)
                        journal.returned(lent[each], 1001, 4, 2001)
                        journal.session_end(1001)
                    else:
                        journal.group(2001, b"$share/g1/t")
                        journal.group_end(2001, 1)
                    if each is smooth:
                        each.commit()
                    else:
                        each.journal.post()
                        failures = journal.stats["failures"]
                        eventually(lambda: bench.journal.stats["failures"] > failures + 1)  # noqa: B023
            assert everything(bench) == before
            assert bench.journal.failing and bench.journal.committed() == 1
            assert bench.journal.states() == [(True, f"no room for {table}")]
        eventually(lambda: bench.journal.committed() == 4)
        assert bench.journal.states()[1:] == [(False, "")] and not bench.journal.failing
        ids = renumbered(everything(bench)), renumbered(everything(smooth))
        assert ids[0] == ids[1]
        assert (lent[bench], b"$share/g1/t", 0, 1, 0, 0, 0, None) in ids[0]["delivery"]
        for each in (bench, smooth):
            for handle in (1, 1002):
                each.journal.session_end(handle)
            each.journal.group_end(2001, 2)
            each.journal.group_end(2002, 1)
            each.commit()
            left = everything(each)
            assert {name for name, rows in left.items() if rows} == {"retained"}
        smooth.end()


def renumbered(tables: dict[str, list[tuple[Any, ...]]]) -> dict[str, list[tuple[Any, ...]]]:
    """Sessions and groups by their names: a retry draws new ids."""
    names = {row[0]: row[1] for table in ("session", "share_group") for row in tables[table]}

    def lender(row: tuple[Any, ...]) -> Any:
        return names[int.from_bytes(row[6], sys.byteorder)] if row[3] & 2 else row[6]

    keyed: dict[str, Callable[[tuple[Any, ...]], tuple[Any, ...]]] = {
        "delivery": lambda row: (row[0], names[row[1] % LENT], row[1] // LENT, *row[2:6], lender(row)),
        "session": lambda row: row[1:],
        "share_group": lambda row: row[1:],
    }
    by_session = {"subscription", "inbound", "will"}
    return {
        table: sorted(keyed[table](row) if table in keyed else (names[row[0]], *row[1:]) if table in by_session else row for row in rows)
        for table, rows in tables.items()
    }


def test_what_comes_while_commits_fail_cancels_too(bench: Bench) -> None:
    journal = bench.journal
    journal.session(1, b"a")
    bench.commit()
    with bench.refusing("delivery", "INSERT", "NEW.qos = 2"):
        two = journal.message(b"t", b"2", [(1, 0, 2)], qos=2)
        one = journal.message(b"t", b"1", [(1, 0, 1)])
        journal.post()
        eventually(lambda: journal.failing)
        journal.done(one, 1)
        journal.read(1, [two])
        sequence = journal.post()
        eventually(lambda: journal.stats["cancelled"] == 1)
        assert journal.bodies() is None and journal.committed() == 1
    eventually(lambda: journal.committed() == sequence)
    assert journal.bodies() == [(two, b"t", b"2")]
    assert bench.messages() == [two]
    journal.session_end(1)
    bench.commit()


def test_queues_are_read_back_while_commits_fail(bench: Bench) -> None:
    """What is in the file; what waits to be written, and all behind it, when it is."""
    journal = bench.journal
    journal.session(1, b"a")
    journal.presence(1, 1000, 100)
    kept = [journal.message(b"t", b"%d" % number, [(1, 0, 1)]) for number in range(3)]
    bench.commit()
    with bench.refusing("session"):
        journal.session(2, b"b")
        late = journal.message(b"t", b"late", [(1, 0, 1)])
        journal.read(1, [*kept[:2], late, kept[2]])
        journal.read(1, [late, kept[2]])
        sequence = journal.post()
        found: list[Any] = []
        eventually(lambda: found.append(journal.bodies()) or found[-1] is not None)
        assert found[-1] == [(kept[0], b"t", b"0"), (kept[1], b"t", b"1")]
        eventually(lambda: journal.stats["failures"] > 3)
        assert journal.bodies() is None
    eventually(lambda: journal.committed() == sequence)
    assert journal.bodies() == [(late, b"t", b"late"), (kept[2], b"t", b"2")]
    journal.session_end(1)
    bench.commit()


def online(bench: Bench, *handles: int) -> Any:
    """Sessions whose clients are there."""
    for handle in handles:
        bench.journal.session(handle, b"client-%d" % handle)
        bench.journal.presence(handle, 0, 100)
    bench.commit()
    return bench.journal


def test_what_is_soon_over_goes_to_the_log(bench: Bench) -> None:
    """One row of the log a batch, and none when all of it is over; what it is about becomes no rows."""
    journal = online(bench, 1, 2)
    first = journal.message(b"t", b"1", [(1, 0, 1), (2, 0, 1)])
    journal.sent(first, 1, 5)
    bench.commit()
    second = journal.message(b"t", b"2", [(1, 0, 1)])
    bench.commit()
    assert [row[0] for row in bench.written("log")] == [1, 2]
    assert bench.written("message") == [] == bench.written("delivery")
    assert bench.deliveries() == [(first, 1, 1, 1, 5), (first, 2, 1, 0, 0), (second, 1, 1, 0, 0)]
    journal.sent(second, 1, 6)
    journal.done(first, 1, packet_id=5)
    bench.commit()
    assert bench.deliveries() == [(first, 2, 1, 0, 0), (second, 1, 1, 1, 6)]
    journal.done(second, 1, packet_id=6)
    bench.commit()
    assert len(bench.written("log")) == 4, "the first row is not over, and what follows is about it"
    journal.done(first, 2)
    bench.commit()
    assert bench.written("log") == [] == bench.written("message")
    assert (journal.stats["logged"], journal.stats["folded"], journal.stats["cancelled"]) == (3, 0, 0)


def test_what_becomes_rows_at_once(bench: Bench) -> None:
    """Who is away, what is large, what is not of QoS 1, what a group has."""
    journal = online(bench, 1, 2)
    journal.presence(2, 1000, 100)
    journal.group(9, b"$share/g/t")
    bench.commit()
    away = journal.message(b"t", b"1", [(1, 0, 1), (2, 0, 1)])
    large = journal.message(b"t", b"x" * 5000, [(1, 0, 1)])
    exact = journal.message(b"t", b"2", [(1, 0, 2)], qos=2)
    shared = journal.message(b"t", b"3", [(9, 1, 1)])
    bench.commit()
    assert [row[0] for row in bench.written("message")] == [away, large, exact, shared]
    assert bench.written("log") == [] and journal.stats["logged"] == 0


def test_the_log_becomes_rows_where_it_must(bench: Bench) -> None:
    """A body that is asked for, a session that ends, and an end in order."""
    journal = online(bench, 1, 2)
    first = journal.message(b"t", b"1", [(1, 0, 1), (2, 0, 1)])
    bench.commit()
    second = journal.message(b"t", b"2", [(1, 0, 1)])
    journal.read(1, [first, second])
    after = journal.message(b"t", b"3", [(2, 0, 1)])
    journal.done(first, 2)
    bench.commit()
    assert journal.bodies() == [(first, b"t", b"1"), (second, b"t", b"2")]
    assert [row[0] for row in bench.written("message")] == [first, second]
    assert [row[:2] for row in bench.written("delivery")] == [(first, 1), (second, 1)]
    assert bench.messages() == [first, second, after]
    third = journal.message(b"t", b"4", [(2, 0, 1), (1, 0, 1)])
    bench.commit()
    journal.session_end(2)
    bench.commit()
    assert bench.written("log") == []
    assert bench.deliveries() == [(first, 1, 1, 0, 0), (second, 1, 1, 0, 0), (third, 1, 1, 0, 0)]
    last = journal.message(b"t", b"5", [(1, 0, 1)])
    bench.commit()
    assert len(bench.written("log")) == 1
    assert journal.stop()
    bench.running = False
    assert bench.written("log") == [] and [row[0] for row in bench.written("message")] == [first, second, third, last]


def test_a_long_log_becomes_rows(bench: Bench) -> None:
    """A client that does not acknowledge: its message leaves the log, which others go on with."""
    journal = online(bench, 1, 2)
    stuck = journal.message(b"t", b"0", [(1, 0, 1)])
    bench.commit()
    for _ in range(520):
        message = journal.message(b"t", b"1", [(2, 0, 1)])
        bench.commit()
        journal.done(message, 2)
    bench.commit()
    assert [row[0] for row in bench.written("message")] == [stuck]
    assert bench.written("log") == [] and journal.stats["folded"] == 1
    journal.done(stuck, 1)
    bench.commit()
    assert bench.messages() == [] == bench.deliveries()


def test_a_receiver_that_is_behind_gets_rows(bench: Bench) -> None:
    journal = online(bench, 1)
    for _ in range(300):
        journal.message(b"t", b"x" * 5000, [(1, 0, 1)])
    bench.commit()
    journal.message(b"t", b"small", [(1, 0, 1)])
    bench.commit()
    assert bench.written("log") == [] and len(bench.written("message")) == 301


@pytest.mark.parametrize("table", ["log", "message"])
def test_failed_commits_leave_the_log_as_it_was(bench: Bench, table: str) -> None:
    journal = online(bench, 1, 2)
    first = journal.message(b"t", b"1", [(1, 0, 1), (2, 0, 1)])
    bench.commit()
    before = bench.written("log")
    with bench.refusing(table):
        journal.done(first, 1)
        second = journal.message(b"t", b"2", [(1, 0, 1)])
        journal.post()
        if table == "message":
            journal.read(1, [first, second])
            journal.session_end(2)
            journal.post()
            eventually(lambda: journal.failing)
        else:
            eventually(lambda: journal.failing)
            assert bench.written("log") == before
        journal.done(second, 1)
        third = journal.message(b"t", b"3", [(1, 0, 1)])
        sequence = journal.post()
    eventually(lambda: journal.committed() == sequence)
    if table == "message":
        found = journal.bodies()
        assert found is not None and [body[0] for body in found] == [first, second]
    assert third in bench.messages()
    if table == "log":
        assert bench.deliveries() == [(first, 2, 1, 0, 0), (third, 1, 1, 0, 0)]
        journal.done(first, 2)
    journal.done(third, 1)
    bench.commit()
    assert bench.messages() == [] == bench.deliveries() == bench.written("log")


def test_the_log_is_read_as_it_was_written(bench: Bench) -> None:
    """By the commands that look at a store; what means nothing is no log."""
    journal = online(bench, 1)
    journal.message(b"t/\xc3\xa4", b"\x00\xff", [(1, 0, 1)])
    bench.commit()
    ((_, records),) = bench.written("log")
    (item,) = log.items(records)
    assert item.body == (b"t/\xc3\xa4", b"", b"\x00\xff", 1, 0, 0) and item.deliveries == [(1, 0, 0, 0, None)]
    assert log.is_log(records) and not log.is_log(b"")
    for end in range(1, len(records)):
        assert not log.is_log(records[:end])
    for place, value in ((0, 4), (0, 0), (1, 3), (2, 2)):
        assert not log.is_log(records[:place] + bytes([value]) + records[place + 1 :])


def test_stop_with_commits_that_fail(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        bench = Bench(store.path)
        bench.start()
        bench.journal.session(1, b"a")
        bench.commit()
        with bench.refusing("log"):
            bench.journal.message(b"t", b"m", [(1, 0, 1)])
            bench.journal.post()
            eventually(lambda: bench.journal.failing)
            assert not bench.journal.stop()
        bench.journal.close()
        with contextlib.closing(sqlite3.connect(store.path)) as connection:
            assert connection.execute("SELECT value FROM meta WHERE key = 'clean'").fetchone() == (0,)
        assert bench.messages() == []
