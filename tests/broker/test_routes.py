"""Routes: merging by the rules of the standard, slices, freshness, and a cache that stays within its bounds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.broker.reference import OPT_NO_LOCAL, OPT_RETAIN_AS_PUBLISHED, filters, matches, topics
from tests.face.broker_tree import NOT_OWN, OWN_ONLY, RETAIN_AS_PUBLISHED, RoutesFace, TrieFace, handle, live_ids, live_routes

Entry = tuple[int, int, int, list[int]]


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    before = live_routes(), live_ids()
    yield
    assert (live_routes(), live_ids()) == before, "made equals freed"


def merged(found: list[tuple[int, int]], session: int, flag: int) -> Entry:
    """One entry of these (options, id)."""
    return (
        session,
        max(options & 3 for options, _ in found),
        flag | (RETAIN_AS_PUBLISHED if any(options & OPT_RETAIN_AS_PUBLISHED for options, _ in found) else 0),
        sorted(number for _, number in found if number),
    )


def expected(found: list[tuple[int, int]], session: int) -> list[Entry]:
    """Entries of a session with these matching subscriptions, by the rules in routes.pxd."""
    local = [pair for pair in found if not pair[0] & OPT_NO_LOCAL]
    if len(local) == len(found):
        return [merged(found, session, 0)]
    entries = [merged(found, session, NOT_OWN)]
    if local:
        entries.append(merged(local, session, OWN_ONLY))
    return entries


def plain(entries: list[Entry]) -> list[Entry]:
    return sorted((session, qos, flags, sorted(ids)) for session, qos, flags, ids in entries)


sessions = st.builds(handle, st.integers(0, 2), st.integers(0, 2))
options = st.sampled_from([qos | flags for qos in range(3) for flags in (0, OPT_NO_LOCAL, OPT_RETAIN_AS_PUBLISHED, 12)])
subscription = st.tuples(filters, sessions, options, st.integers(0, 3))


@settings(deadline=None)
@given(made=st.lists(subscription, max_size=60), joined=st.lists(st.tuples(filters, st.integers(0, 2)), max_size=6), topic=topics)
def test_route_says_what_the_subscriptions_say(made: list[tuple], joined: list[tuple], topic: bytes) -> None:
    tree = TrieFace()
    model: dict[tuple[bytes, int], tuple[int, int]] = {}
    groups: dict[bytes, int] = {}
    for filter, session, options, subscription_id in made:
        tree.subscribe(filter, session, options, subscription_id)
        model[filter, session] = (options, subscription_id)
    for filter, home in joined:
        groups.setdefault(filter, tree.group_join(b"g", filter, home)[1])
    slices = RoutesFace(tree, 3).lookup(topic)
    assert len(slices) == 3
    met: dict[int, list[tuple[int, int]]] = {}
    for (filter, session), pair in model.items():
        if matches(filter, topic):
            met.setdefault(session, []).append(pair)
    for worker, (entries, found) in enumerate(slices):
        own = [entry for session, pairs in met.items() if session >> 56 == worker for entry in expected(pairs, session)]
        assert plain(entries) == plain(own)
        assert sorted(found) == sorted(g for f, g in groups.items() if g >> 56 == worker and matches(f, topic))


def test_examples_of_merging() -> None:
    """[MQTT-3.3.4-2], [MQTT-3.3.4-4], [MQTT-3.8.3-3], [MQTT-3.3.1-13]"""
    tree = TrieFace()
    tree.subscribe(b"a/#", 1, 0, 1)
    tree.subscribe(b"a/b", 1, 2 | OPT_RETAIN_AS_PUBLISHED, 2)
    tree.subscribe(b"+/b", 1, 1, 2)
    tree.subscribe(b"a/b", 2, 1 | OPT_NO_LOCAL)
    tree.subscribe(b"#", 3, 2 | OPT_NO_LOCAL, 8)
    tree.subscribe(b"a/b", 3, 1, 9)
    routes = RoutesFace(tree)
    assert plain(routes.lookup(b"a/b")[0][0]) == [
        (1, 2, RETAIN_AS_PUBLISHED, [1, 2, 2]),
        (2, 1, NOT_OWN, []),
        (3, 1, OWN_ONLY, [9]),
        (3, 2, NOT_OWN, [8, 9]),
    ]
    assert routes.lookup(b"b") == [([(3, 2, NOT_OWN, [8])], [])]
    assert routes.lookup(b"$b") == [([], [])]


def test_a_session_of_a_worker_that_is_not_there_is_left_out() -> None:
    tree = TrieFace()
    tree.subscribe(b"a", handle(0, 1))
    tree.subscribe(b"a", handle(2, 1))
    tree.group_join(b"g", b"a", 2)
    assert RoutesFace(tree, 2).lookup(b"a") == [([(handle(0, 1), 0, 0, [])], []), ([], [])]


@pytest.mark.parametrize("count", [100, 5000])
def test_many_sessions(count: int) -> None:
    tree = TrieFace()
    for slot in range(count):
        tree.subscribe(b"a/b", handle(slot % 4, slot), 1, slot)
        if slot % 3 == 0:
            tree.subscribe(b"a/+", handle(slot % 4, slot), 2, slot + count)
    slices = RoutesFace(tree, 4).lookup(b"a/b")
    for worker, (entries, _) in enumerate(slices):
        assert plain(entries) == plain(
            [
                (handle(worker, slot), 2, 0, [number for number in (slot, slot + count) if number])
                if slot % 3 == 0
                else (handle(worker, slot), 1, 0, [slot])
                for slot in range(worker, count, 4)
            ]
        )


operation = st.one_of(
    st.tuples(st.just("subscribe"), filters, sessions, st.integers(0, 2)),
    st.tuples(st.just("unsubscribe"), filters, sessions),
    st.tuples(st.just("lookup"), topics),
)


@settings(deadline=None)
@given(steps=st.lists(operation, max_size=80), capacity=st.integers(1, 5))
def test_a_cached_route_is_the_one_that_would_be_built_now(steps: list[tuple], capacity: int) -> None:
    tree = TrieFace()
    routes = RoutesFace(tree, 3, capacity)
    for step in steps:
        match step:
            case ("subscribe", filter, session, qos):
                tree.subscribe(filter, session, qos)
            case ("unsubscribe", filter, session):
                tree.unsubscribe(filter, session)
            case ("lookup", topic):
                anew = RoutesFace(tree, 3).lookup(topic)
                assert [plain(entries) for entries, _ in routes.lookup(topic)] == [plain(entries) for entries, _ in anew]
                hits = routes.counters[0]
                routes.lookup(topic)
                assert routes.counters[0] == hits + 1
                assert routes.count <= capacity
    hits, misses, made, freed = routes.counters
    assert misses == made and made - freed == routes.count
    assert hits + misses == 2 * sum(step[0] == "lookup" for step in steps)


def test_a_route_goes_stale_with_either_generation_and_with_no_other() -> None:
    tree = TrieFace()
    routes = RoutesFace(tree)
    hold = routes.hold(b"a/b")
    assert routes.fresh(hold)
    tree.subscribe(b"other", 1)
    assert routes.fresh(hold)
    tree.subscribe(b"a/c", 1)
    assert not routes.fresh(hold), "the same stripe"
    hold.drop()
    hold = routes.hold(b"a/b")
    tree.subscribe(b"+/x", 1)
    assert not routes.fresh(hold), "the stripe of wildcards"
    assert routes.counters == (0, 2, 2, 1), "the stale one was replaced in its place"
    assert routes.count == 1


def test_a_held_route_outlives_replacement_eviction_and_cache() -> None:
    tree = TrieFace()
    tree.subscribe(b"#", 1, 1, 7)
    routes = RoutesFace(tree, 1, 2)
    hold, ids = routes.hold(b"a"), routes.hold_ids(b"a")
    assert hold.refs == 2
    tree.unsubscribe(b"#", 1)
    assert routes.lookup(b"a") == [([], [])]
    for i in range(10):
        routes.lookup(b"%d" % i)
    assert routes.count == 2
    del routes
    assert hold.refs == 1
    assert hold.read() == [([(1, 1, 0, [7])], [])]
    hold.drop()
    assert ids.read() == [7], "identifiers are counted on their own"


def test_the_clock_keeps_what_is_used() -> None:
    tree = TrieFace()
    routes = RoutesFace(tree, 1, 4)
    for i in range(200):
        routes.lookup(b"hot")
        routes.lookup(b"cold%d" % i)
    hits, misses, _, freed = routes.counters
    assert (hits, misses) == (199, 201)
    assert routes.count == 4 and freed == 201 - 4


def test_stale_routes_go_first() -> None:
    tree = TrieFace()
    routes = RoutesFace(tree, 1, 4)
    for name in (b"a", b"b", b"c", b"d") * 2:
        routes.lookup(name)
    tree.subscribe(b"c/x", 1)
    routes.lookup(b"e")
    hits = routes.counters[0]
    for name in (b"e", b"d", b"b", b"a"):
        routes.lookup(name)
    assert routes.counters[0] == hits + 4, "all used twice, but one of them in vain"
    assert routes.count == 4


def test_the_cache_is_bounded_in_bytes_too() -> None:
    tree = TrieFace()
    for session in range(1, 1001):
        tree.subscribe(b"#", session)
    routes = RoutesFace(tree, 1, 1000)
    routes.lookup(b"0")
    one = routes.bytes
    assert one > 1000 * 16
    routes.limit_bytes(10 * one)
    for i in range(100):
        routes.lookup(b"%d" % (i % 10 + i))
        assert routes.bytes <= 10 * one
    assert routes.count == 9 or routes.count == 10
    routes.limit_bytes(1)
    assert len(routes.lookup(b"large")[0][0]) == 1000, "the newest stays whatever its size"
    assert routes.count == 1
