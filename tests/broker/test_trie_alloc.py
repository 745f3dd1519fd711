"""Tree, routes and retained store when memory is refused: what was stands, asking again succeeds. Needs a build that counts blocks."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest

from tests.broker.reference import OPT_NO_LOCAL, matches
from tests.face.broker_retain import Cursor, Pool, Store
from tests.face.broker_tree import RoutesFace, TrieFace, alloc_fail_after, alloc_live, alloc_tested

pytestmark = pytest.mark.skipif(not alloc_tested(), reason="this build hands out memory as it is asked: make a debug build")

ST_OK, ST_NO_MEMORY = 0, -1


@pytest.fixture(autouse=True)
def grant_again() -> Iterator[None]:
    live = alloc_live()
    yield
    alloc_fail_after(-1)
    assert alloc_live() == live, "blocks made are blocks freed"


def until_granted(attempt: Callable[[], bool], unchanged: Callable[[], None]) -> int:
    """Refuses the first allocation of the attempt, then the second, and so on, until it works; how often it did not."""
    refused = 0
    while True:
        alloc_fail_after(refused)
        worked = attempt()
        alloc_fail_after(-1)
        if worked:
            return refused
        refused += 1
        unchanged()
        assert refused < 1000


def test_subscribing() -> None:
    tree = TrieFace()
    stood: dict[tuple[bytes, int], int] = {}
    chance = random.Random(2)
    refused = 0

    def unchanged() -> None:
        assert tree.subscription_count == len(stood)
        assert tree.node_count == nodes
        assert sorted(match[0] for match in tree.match(b"a/b/c/d")) == sorted(s for f, s in stood if matches(f, b"a/b/c/d"))

    for _ in range(400):
        nodes = tree.node_count
        filter = b"/".join(chance.choice([b"a", b"b", b"c", b"d", b"+"]) for _ in range(chance.randrange(1, 6)))
        filter += chance.choice([b"", b"/#"])
        session = chance.randrange(1, 40)

        def subscribe(filter: bytes = filter, session: int = session) -> bool:
            status, existed = tree.subscribe(filter, session)
            assert status in (ST_OK, ST_NO_MEMORY)
            assert existed is (status == ST_OK and (filter, session) in stood)
            return status == ST_OK

        refused += until_granted(subscribe, unchanged)
        stood[filter, session] = 1
    assert refused > 400
    for filter, session in stood:
        assert tree.unsubscribe(filter, session)
    assert (tree.subscription_count, tree.node_count) == (0, 0)


def test_a_list_of_subscribers_grows_and_shrinks_without_memory() -> None:
    tree = TrieFace()
    for session in range(1, 600):
        until_granted(lambda session=session: tree.subscribe(b"a", session)[0] == ST_OK, lambda: None)
        assert len(tree.match(b"a")) == session
    for session in range(1, 600):
        alloc_fail_after(0, False)
        assert tree.unsubscribe(b"a", session)
        alloc_fail_after(-1)
        assert len(tree.match(b"a")) == 599 - session
    assert tree.node_count == 0


def test_a_list_that_was_long_gives_its_memory_back() -> None:
    tree = TrieFace()
    tree.subscribe(b"a", 1)
    before = alloc_live()
    for session in range(2, 3000):
        tree.subscribe(b"a", session)
    assert alloc_live() > before + 100
    for session in range(2, 3000):
        assert tree.unsubscribe(b"a", session)
    assert alloc_live() == before


def test_joining_a_group() -> None:
    tree = TrieFace()

    def unchanged() -> None:
        assert (tree.subscription_count, tree.node_count) == (0, 0)

    for filter in (b"a/+/b", b"#"):
        assert until_granted(lambda filter=filter: tree.group_join(b"g", filter)[0] == ST_OK, unchanged) >= 2
        assert tree.subscription_count == 1
        tree.group_leave(b"g", filter)
        unchanged()


def test_matching_and_routes() -> None:
    tree = TrieFace()
    for session in range(1, 50):
        tree.subscribe(b"a/#", session, 1, session)
        tree.subscribe(b"a/+", session, 2 | OPT_NO_LOCAL if session % 2 else 0, 7)
    tree.group_join(b"g", b"a/b")
    wanted = RoutesFace(tree).lookup(b"a/b")
    routes = RoutesFace(tree, 1, 2)
    found: list[object] = []

    def lookup() -> bool:
        try:
            found.append(routes.lookup(b"a/b"))
        except MemoryError:
            return False
        return True

    assert until_granted(lookup, lambda: None) > 70, "matches, scratch, route, identifiers, cache"
    assert found == [wanted]
    tree.subscribe(b"a/c", 1)
    until_granted(lookup, lambda: None)
    assert found[1] == wanted and routes.count == 1


def test_retained_messages() -> None:
    pool = Pool()
    store = Store(pool)
    stood: dict[bytes, bytes] = {}
    chance = random.Random(4)

    def unchanged() -> None:
        assert store.count == len(stood)
        assert store.bytes == size

    def set_message(topic: bytes, payload: bytes) -> bool:
        try:
            status = store.set(pool, topic, payload)
        except MemoryError:
            return False
        assert status in (ST_OK, ST_NO_MEMORY)
        return status == ST_OK

    refused = 0
    for _ in range(600):
        size = store.bytes
        topic, payload = b"a/%d/%d" % (chance.randrange(40), chance.randrange(20)), b"%d" % chance.randrange(99)
        refused += until_granted(lambda topic=topic, payload=payload: set_message(topic, payload), unchanged)
        stood[topic] = payload
    assert refused > 300
    cursor = Cursor(store, b"a/#")
    found: dict[bytes, bytes] = {}
    alloc_fail_after(0)
    assert cursor.next(pool, 0, 3) == ST_NO_MEMORY and not cursor.done
    alloc_fail_after(-1)
    while batch := cursor.next(pool, 0, 3):
        found |= dict(batch)
    assert found == stood
    for topic in stood:
        assert set_message(topic, b"")
    assert (store.count, store.bytes) == (0, 0)
