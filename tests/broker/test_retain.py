"""The retained store against a dict."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.broker.reference import filters, matches, place, together, topics
from tests.face.broker_retain import Cursor, Pool, Store

ST_OK, ST_LIMIT = 0, -4


@pytest.fixture
def pool() -> Iterator[Pool]:
    pool = Pool()
    yield pool
    assert pool.made == pool.freed, "no message leaks"


def drain(store: Store, pool: Pool, filter: bytes, room: int = 64, now_ms: int = 0) -> list[tuple[bytes, bytes]]:
    cursor = Cursor(store, filter)
    found: list[tuple[bytes, bytes]] = []
    while batch := cursor.next(pool, now_ms, room):
        assert 0 < len(batch) <= room
        found += batch
    assert cursor.done
    assert cursor.next(pool, now_ms, room) == [], "the end stays the end"
    return found


def in_order(found: list[tuple[bytes, bytes]]) -> bool:
    """By topic within what has one first level, which is what a stripe keeps together."""
    last: dict[bytes, bytes] = {}
    for topic, _ in found:
        first = topic.split(b"/")[0]
        if first in last and place(last[first]) >= place(topic):
            return False
        last[first] = topic
    return True


operation = st.one_of(
    st.tuples(st.just("set"), topics, st.binary(min_size=1, max_size=3)),
    st.tuples(st.just("set"), topics, st.binary(min_size=1, max_size=3)),
    st.tuples(st.just("clear"), topics),
)


@settings(deadline=None)
@given(
    steps=st.lists(operation, max_size=80),
    asked=st.lists(st.one_of(filters, topics), min_size=1, max_size=10),
    room=st.sampled_from([1, 2, 64]),
)
def test_store_is_what_a_dict_is(steps: list[tuple], asked: list[bytes], room: int) -> None:
    pool = Pool()
    store, model = Store(pool), dict[bytes, bytes]()
    for step in steps:
        match step:
            case ("set", topic, payload):
                assert store.set(pool, topic, payload) == ST_OK
                model[topic] = payload
            case ("clear", topic):
                assert store.set(pool, topic, b"") == ST_OK
                model.pop(topic, None)
        assert store.count == len(model)
    for filter in [*asked, b"#", b"+/#", b"$SYS/#"]:
        found = drain(store, pool, filter, room)
        assert sorted(found) == sorted(item for item in model.items() if matches(filter, item[0]))
        assert in_order(found)
    for topic in model:
        store.set(pool, topic, b"")
    assert (store.count, store.bytes) == (0, 0)
    store.close()
    assert pool.made == pool.freed


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(operation, min_size=20, max_size=80),
    filter=filters,
    room=st.integers(1, 3),
    budget=st.integers(1, 4),
    seed=st.randoms(use_true_random=False),
)
def test_a_cursor_survives_changes(steps: list[tuple], filter: bytes, room: int, budget: int, seed: random.Random) -> None:
    """What matches and stands all the while is handed out once; what does not match never is."""
    pool = Pool()
    store, now = Store(pool), dict[bytes, bytes]()
    half = len(steps) // 2
    for step in steps[:half]:
        if step[0] == "set":
            store.set(pool, step[1], step[2])
            now[step[1]] = step[2]
    steady = {topic for topic in now if matches(filter, topic)}
    cursor = Cursor(store, filter)
    handed: list[bytes] = []
    rest = steps[half:]
    for _ in range(100_000):
        for topic, payload in cursor.step(pool, budget, 0, room) if seed.random() < 0.5 else cursor.next(pool, 0, room):
            handed.append(topic)
            assert now[topic] == payload, "the message of the moment"
        if cursor.done:
            break
        if rest and seed.random() < 0.7:
            step = rest.pop()
            payload = step[2] if step[0] == "set" else b""
            store.set(pool, step[1], payload)
            if payload:
                now[step[1]] = payload
            else:
                now.pop(step[1], None)
                steady.discard(step[1])
    assert cursor.done, "every step moves on"
    assert len(handed) == len(set(handed))
    assert steady <= set(handed)
    assert all(matches(filter, topic) for topic in handed)
    del cursor
    store.close()
    assert pool.made == pool.freed


def test_examples(pool: Pool) -> None:
    store = Store(pool)
    for topic in (b"a", b"a/", b"a/b", b"a/b/c", b"a!", b"a.b", b"ab", b"/a", b"$SYS/x", b"$SYS", b"%", b"!"):
        assert store.set(pool, topic, topic) == ST_OK

    def names(filter: bytes) -> list[bytes]:
        return [topic for topic, _ in drain(store, pool, filter)]

    assert names(b"a/#") == [b"a", b"a/", b"a/b", b"a/b/c"]
    assert names(b"a/+") == [b"a/", b"a/b"]
    assert names(b"a") == [b"a"]
    assert names(b"a/b/c/d") == []
    assert sorted(names(b"+")) == [b"!", b"%", b"a", b"a!", b"a.b", b"ab"]
    assert names(b"$SYS/#") == [b"$SYS", b"$SYS/x"]
    assert names(b"$SYS/+") == [b"$SYS/x"]
    assert names(b"/+") == [b"/a"]
    assert len(names(b"#")) == 10, "without the $ topics"


def test_expired_messages_are_left_out_and_removed(pool: Pool) -> None:
    store = Store(pool)
    for i in range(500):
        store.set(pool, b"a/%03d" % i, b"x", 100 if i % 2 else 0)
    store.set(pool, b"b", b"x", 100)
    assert len(drain(store, pool, b"a/+", now_ms=99)) == 500
    assert len(drain(store, pool, b"b", now_ms=99)) == 1
    assert store.count == 501
    assert [int(topic[2:]) for topic, _ in drain(store, pool, b"a/+", now_ms=100)] == list(range(0, 500, 2))
    assert store.count == 251
    assert drain(store, pool, b"b", now_ms=100) == []
    assert store.count == 250
    assert store.sweep(pool, 1 << 60, 10_000) == 0, "what has no expiry stays"


def test_sweep_goes_on_where_it_stopped(pool: Pool) -> None:
    store = Store(pool)
    for i in range(300):
        store.set(pool, b"%d/x" % i, b"x", 50 if i % 3 else 0)
        store.set(pool, b"a/%d" % i, b"x", 60 if i % 3 else 0)
    assert store.sweep(pool, 49, 10_000) == 0
    removed = [store.sweep(pool, 50, 7) for _ in range(120)]
    assert sum(removed) == 200 and max(removed) <= 7
    assert store.count == 400
    assert store.sweep(pool, 60, 10_000) == 200
    assert store.count == 200
    store.set(pool, b"a/0", b"x", 70)
    store.set(pool, b"a/0", b"x")
    store.set(pool, b"a/3", b"x")
    store.set(pool, b"a/3", b"x", 70)
    assert store.sweep(pool, 70, 10_000) == 1, "the expiry is that of the message that stands"


def test_limits_are_exact(pool: Pool) -> None:
    one = Store.cost(pool, b"a/0", b"x")
    store = Store(pool, 3, 0)
    assert [store.set(pool, b"a/%d" % i, b"x") for i in range(5)] == [ST_OK] * 3 + [ST_LIMIT] * 2
    assert (store.count, store.bytes) == (3, 3 * one)
    assert store.set(pool, b"a/0", b"y" * 5000) == ST_OK, "a topic that is there may change"
    assert store.set(pool, b"a/1", b"") == ST_OK and store.set(pool, b"a/4", b"x") == ST_OK
    assert store.set(pool, b"a/9", b"") == ST_OK, "clearing what is not there"
    assert store.count == 3
    store.close()

    store = Store(pool, 0, 3 * one)
    assert [store.set(pool, b"a/%d" % i, b"x") for i in range(5)] == [ST_OK] * 3 + [ST_LIMIT] * 2
    assert store.set(pool, b"a/0", b"y" * 5000) == ST_LIMIT
    assert drain(store, pool, b"a/0") == [(b"a/0", b"x")], "refused, so what stood there stands"
    assert store.set(pool, b"a/0", b"z") == ST_OK
    assert (store.count, store.bytes) == (3, 3 * one)
    for i in range(3):
        store.set(pool, b"a/%d" % i, b"")
    assert (store.count, store.bytes) == (0, 0)


@pytest.mark.parametrize("order", ["up", "down", "random"])
def test_many_topics_in_any_order(pool: Pool, order: str) -> None:
    """Leaves split, fill up and join; the index stays whole all along."""
    store = Store(pool)
    names = [b"t/%05d" % i for i in range(6000)]
    chance = random.Random(3)
    wanted = {"up": names, "down": names[::-1], "random": chance.sample(names, len(names))}[order]
    for name in wanted:
        assert store.set(pool, name, name) == ST_OK
    assert [topic for topic, _ in drain(store, pool, b"t/#", 250)] == names
    left = set(names)
    for name in chance.sample(names, 5900):
        store.set(pool, name, b"")
        left.discard(name)
        if len(left) % 500 == 0:
            assert [topic for topic, _ in drain(store, pool, b"t/+", 250)] == sorted(left)
    assert [topic for topic, _ in drain(store, pool, b"t/#")] == sorted(left)
    assert store.count == 100


def test_leaves_of_all_sizes_join(pool: Pool) -> None:
    """Topics set in order fill leaves; ranges taken away leave a small one beside a large one at every ratio."""
    for cut in range(0, 250, 10):
        store = Store(pool)
        names = [b"t/%04d" % i for i in range(1024)]
        for name in names:
            store.set(pool, name, name)
        for gone in (range(256, 256 + cut), range(250), range(1023, 800, -1), range(600, 520, -1)):
            for i in gone:
                store.set(pool, names[i], b"")
                names[i] = b""
            assert drain(store, pool, b"t/#", 250) == [(name, name) for name in names if name]
        for name in filter(None, names):
            store.set(pool, name, b"")
        assert store.count == 0 and drain(store, pool, b"#") == []
        store.close()


def test_plus_leaps_over_what_cannot_match(pool: Pool) -> None:
    """1000 devices of 50 topics each: a filter for one topic of every device looks at few of the others, so a small budget is enough."""
    store = Store(pool)
    for device in range(1000):
        for number in range(50):
            store.set(pool, b"home/%04d/state/%02d/value" % (device, number), b"x")
    cursor = Cursor(store, b"home/+/state/49/+")
    found: list[bytes] = []
    steps = 0
    while not cursor.done:
        found += [topic for topic, _ in cursor.step(pool, 600)]
        steps += 1
    assert found == [b"home/%04d/state/49/value" % device for device in range(1000)]
    assert steps < 40, "without leaps it takes 50000 / 600"
    cursor = Cursor(store, b"+/+/+/nothing")
    assert cursor.next(pool) == []


def test_a_step_looks_at_no_more_than_its_budget(pool: Pool) -> None:
    store = Store(pool)
    for number in range(5000):
        store.set(pool, b"a/%04d" % number, b"x")
    cursor = Cursor(store, b"+/+/nothing")
    steps = 0
    while not cursor.done:
        assert cursor.step(pool, 500) == []
        steps += 1
    assert 9 <= steps <= 30


def test_long_topics(pool: Pool) -> None:
    store = Store(pool)
    names = [b"a/" + b"x" * length + end for length in (10, 600, 65_000) for end in (b"", b"/b", b"/c/d")]
    for name in names:
        assert store.set(pool, name, b"1") == ST_OK
    assert {topic for topic, _ in drain(store, pool, b"a/#", 1)} == set(names)
    assert {topic for topic, _ in drain(store, pool, b"a/+/c/+", 1)} == {name for name in names if name.endswith(b"/c/d")}
    assert {topic for topic, _ in drain(store, pool, b"+/+/b", 1)} == {name for name in names if name.endswith(b"/b")}
    longest = b"z" * 65_535
    assert store.set(pool, longest, b"1") == ST_OK
    assert drain(store, pool, b"+", 1) == [(longest, b"1")]
    assert drain(store, pool, longest) == [(longest, b"1")]


def test_blocks_of_other_workers_go_home() -> None:
    mine, other = Pool(0, 2), Pool(1, 2)
    store = Store(mine)
    store.set(mine, b"a", b"1")
    store.set(other, b"a", b"2")
    assert drain(store, other, b"a") == [(b"a", b"2")]
    assert other.send_home(mine) == 1
    assert (mine.made, mine.freed + other.freed) == (1, 1)
    store.close()
    assert mine.send_home(other) == 1
    assert mine.made + other.made == mine.freed + other.freed == 2


def test_threads_set_clear_and_read_at_once() -> None:
    workers = 4
    pools = [Pool(i, workers) for i in range(workers)]
    store = Store(pools[0])
    steady = [b"s/%d" % i for i in range(50)] + [b"a/steady"]
    moving = [b"%s/%d" % (name, i) for name in (b"a", b"b", b"s/3", b"$SYS") for i in range(40)]
    for topic in steady:
        store.set(pools[0], topic, topic)

    def read() -> int:
        for _ in range(300):
            for filter, at_least in ((b"#", 51), (b"s/#", 50), (b"+/steady", 1), (b"a/+", 1), (b"a/steady", 1)):
                found = [topic for topic, _ in drain(store, pools[3], filter, 7)]
                assert len(found) == len(set(found))
                assert sum(topic in steady for topic in found) == at_least
                assert all(matches(filter, topic) for topic in found)
        return 0

    def sweep() -> int:
        return sum(store.sweep(pools[2], 1000, 50) for _ in range(2000))

    assert together(
        lambda: store.hammer(pools[0], moving, 40_000, 1, True),
        lambda: store.hammer(pools[1], moving, 40_000, 2, True),
        sweep,
        read,
    ) == [0] * 4
    assert store.count == len(drain(store, pools[0], b"#")) + len(drain(store, pools[0], b"$SYS/#"))
    for topic in moving + steady:
        store.set(pools[0], topic, b"")
    assert (store.count, store.bytes) == (0, 0)
    store.close()
    assert sum(pool.made for pool in pools) == sum(pool.freed for pool in pools)
    for home in pools:
        for away in pools:
            away.send_home(home)


def test_limits_hold_with_several_writers() -> None:
    pools = [Pool(i, 4) for i in range(4)]
    names = [b"%d/%d" % (i % 20, i) for i in range(200)]
    one = Store.cost(pools[0], names[-1], b"x" * 64)
    store = Store(pools[0], 100, 60 * one)
    seen: list[tuple[int, int]] = []

    def look() -> int:
        for _ in range(20_000):
            seen.append((store.count, store.bytes))
        return 0

    refused = together(*[lambda i=i: store.hammer(pools[i], names, 30_000, i, True) for i in range(3)], look)
    assert all(int(str(count)) > 0 for count in refused[:3]), "the limits were met"
    assert max(count for count, _ in seen) <= 100 and max(size for _, size in seen) <= 60 * one
    found = drain(store, pools[0], b"#")
    assert store.count == len(found) <= 100
    for name in names:
        store.set(pools[0], name, b"")
    assert (store.count, store.bytes) == (0, 0)
    store.close()
    for home in pools:
        for away in pools:
            away.send_home(home)
    assert sum(pool.made for pool in pools) == sum(pool.freed for pool in pools)
