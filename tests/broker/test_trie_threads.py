"""The tree under threads that really run at once; the thread sanitizer's build runs the same tests."""

from __future__ import annotations

import threading
import time

import pytest

from tests.broker.reference import together
from tests.face.broker_tree import RoutesFace, TrieFace, live_routes

FAR = 1 << 40                      # sessions from here on come and go


def steady_tree() -> tuple[TrieFace, int]:
    """Subscriptions that stay, all met by a/b/c/d; their number."""
    tree = TrieFace()
    stay = [b"a/b/c/d", b"a/+/c/#", b"#", b"+/+/+/+", b"a/b/c/d/#", b"+/b/#"]
    for number, filter in enumerate(stay):
        tree.subscribe(filter, number + 1)
    return tree, len(stay)


def test_matches_are_whole_while_others_write() -> None:
    tree, steady = steady_tree()
    nodes = tree.node_count
    assert together(
        lambda: tree.watch(b"a/b/c/d", FAR, steady, 20_000),
        lambda: tree.watch(b"a/b/c/d", FAR, steady, 20_000),
        lambda: tree.churn(b"a/b/+/d", FAR, 40, 100),
        lambda: tree.churn(b"+/b/+/#", FAR, 3, 1000),
        lambda: tree.churn(b"x/y/z", FAR, 100, 30),
        lambda: tree.churn_group(b"g", b"a/b/#", 2000),
    ) == [0] * 6
    assert (tree.subscription_count, tree.node_count) == (steady, nodes)


def test_a_match_that_lets_go_still_finds_all() -> None:
    """8192 filters meet the topic, so that the lock is let go several times in each match while writers change its very stripes."""
    tree = TrieFace()
    depth = 12
    for number in range(1 << depth):
        tree.subscribe(b"/".join(b"+" if number >> i & 1 else b"a" for i in range(depth)), number + 1)
    topic = b"/".join([b"a"] * depth)
    nodes = tree.node_count
    assert together(
        lambda: tree.watch(topic, FAR, 1 << depth, 60),
        lambda: tree.churn(b"a/a/a/+/x/#", FAR, 2, 5000),
        lambda: tree.churn(b"+/a/#", FAR, 2, 5000),
    ) == [0] * 3
    assert (tree.subscription_count, tree.node_count) == (1 << depth, nodes)


@pytest.mark.parametrize("filter", [b"/".join([b"+"] * 12), b"/".join([b"a"] + [b"+"] * 11)])
def test_generations_tell_what_a_match_saw(filter: bytes) -> None:
    """A match that lets go must not report the generations of before together with subscriptions of after."""
    tree = TrieFace()
    depth = 12
    for number in range(1 << depth):
        tree.subscribe(b"/".join(b"+" if number >> i & 1 else b"a" for i in range(depth)), number + 1)
    topic = b"/".join([b"a"] * depth)
    assert together(
        lambda: tree.watch_generations(topic, 500),
        lambda: tree.churn_slowly(filter, FAR, 150, 1000),
    ) == [0] * 2


def test_nodes_that_vanish_between_look_and_lock() -> None:
    """All make and take away one and the same path, so that what one saw is gone when it has the lock."""
    tree = TrieFace()
    assert together(*[lambda first=first: tree.churn(b"a/+/c/d/e/#", first, 1, 10_000) for first in (1, 2, 3)]) == [0] * 3
    assert (tree.subscription_count, tree.node_count) == (0, 0)


def test_writers_are_not_starved_by_readers() -> None:
    """Three matchers go on until the writer is done; were readers preferred, one of them would always hold the lock."""
    tree, steady = steady_tree()
    done = threading.Event()
    end = time.monotonic() + 60

    def read() -> int:
        wrong = 0
        while not (done.is_set() and tree.lock_waits) and time.monotonic() < end:
            wrong += tree.watch(b"a/b/c/d", FAR, steady, 5000)
        return wrong

    def write() -> int:
        wrong = tree.churn(b"a/b/c/d", FAR, 10, 500)
        done.set()
        while not tree.lock_waits and time.monotonic() < end:
            wrong += tree.churn(b"a/b/c/d", FAR, 10, 500)
        return wrong

    assert together(read, read, read, write) == [0] * 4
    assert time.monotonic() < end
    assert tree.lock_waits > 0, "who found the lock taken was counted"
    assert tree.subscription_count == steady


def test_each_worker_has_its_cache_of_the_one_tree() -> None:
    before = live_routes()
    tree, steady = steady_tree()
    caches = [RoutesFace(tree, 1, 8) for _ in range(3)]
    assert together(
        *[lambda cache=cache: cache.watch(b"a/b/c/d", steady, 20_000) for cache in caches],
        lambda: tree.churn(b"a/b/+/d", FAR, 5, 500),
    ) == [0] * 4
    assert all(len(cache.lookup(b"a/b/c/d")[0][0]) == steady for cache in caches), "stale routes were built anew"
    del caches
    assert live_routes() == before
