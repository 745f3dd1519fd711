"""What routing costs: the tree with 100 000 wildcard filters, the route cache, the retained store with 100 000 topics.

Each round runs OPERATIONS of them in one native loop; `ns_each` in the extra information is the figure.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from tests.face.broker_retain import Pool, Store
from tests.face.broker_tree import RoutesFace, TrieFace, handle

OPERATIONS = 10_000
FILTERS = 100_000
TOPICS = 100_000


def measure(benchmark: BenchmarkFixture, operations: int, work: Callable[..., int], *arguments: object) -> int:
    result: int = benchmark(work, *arguments)
    if benchmark.stats is not None:
        benchmark.extra_info["ns_each"] = round(benchmark.stats.stats.min / operations * 1e9, 1)
    return result


@pytest.fixture(scope="module")
def tree() -> TrieFace:
    """A filter with + and # per device, and some that watch across devices."""
    tree = TrieFace()
    for i in range(FILTERS - 2005):
        tree.subscribe(b"plant/%d/+/device%d/#" % (i % 50, i), handle(i % 4, i), 1)
    for i in range(2000):
        tree.subscribe(b"+/%d/line%d/+/state/#" % (i % 50, i), handle(i % 4, i), 1)
    for i, filter in enumerate([b"#", b"plant/#", b"+/7/#", b"plant/+/x/+/temperature", b"+/+/+/+/+/+"]):
        tree.subscribe(filter, handle(0, 200_000 + i), 1)
    assert tree.subscription_count == FILTERS
    return tree


@pytest.mark.parametrize(
    ("topic", "found"),
    [(b"plant/7/x/device1007/temperature", 5), (b"plant/8/y/device1007/temperature", 2), (b"$SYS/broker/uptime", 0)],
)
def test_tree_match(benchmark: BenchmarkFixture, tree: TrieFace, topic: bytes, found: int) -> None:
    assert measure(benchmark, OPERATIONS, tree.match_often, topic, OPERATIONS) == found


@pytest.mark.parametrize("filter", [b"plant/7/+/device1007/#", b"plant/7/+/new/line/of/nodes/#"])
def test_tree_subscribe_and_unsubscribe(benchmark: BenchmarkFixture, tree: TrieFace, filter: bytes) -> None:
    assert measure(benchmark, OPERATIONS, tree.churn, filter, handle(3, 1 << 24), 1, OPERATIONS) == 0


def test_tree_subscribe_and_unsubscribe_among_100_000_of_one_filter(benchmark: BenchmarkFixture) -> None:
    tree = TrieFace()
    for slot in range(100_000):
        tree.subscribe(b"news", handle(slot % 4, slot))
    assert measure(benchmark, OPERATIONS, tree.churn, b"news", handle(3, 1 << 24), 100, OPERATIONS // 100) == 0


def test_tree_match_of_100_000_subscribers(benchmark: BenchmarkFixture) -> None:
    tree = TrieFace()
    for slot in range(100_000):
        tree.subscribe(b"news", handle(slot % 4, slot))
    assert measure(benchmark, 100_000, tree.match_often, b"news", 1) == 100_000


def test_route_hit(benchmark: BenchmarkFixture, tree: TrieFace) -> None:
    routes = RoutesFace(tree, 4, 1024)
    for i in range(1024):
        routes.lookup(b"plant/7/x/device%d/temperature" % i)
    assert measure(benchmark, OPERATIONS, routes.lookup_often, b"plant/7/x/device1007/temperature", OPERATIONS) == 5


def test_route_miss(benchmark: BenchmarkFixture, tree: TrieFace) -> None:
    routes = RoutesFace(tree, 4, 1)
    topics = [b"plant/7/x/device%d/temperature" % (i * 50 + 7) for i in range(1000)]

    def miss() -> int:
        return sum(routes.lookup_often(topic, 1) for topic in topics)

    assert measure(benchmark, len(topics), miss) == 5000


@pytest.fixture(scope="module")
def store() -> tuple[Store, Pool]:
    """100 000 topics home/0..99/i."""
    pool = Pool()
    store = Store(pool)
    assert store.fill(pool, b"home", 0, TOPICS, 100) == TOPICS
    return store, pool


@pytest.mark.parametrize(
    ("filter", "found"),
    [(b"home/7/7007", 1), (b"home/7/none", 0), (b"home/7/+", 1000), (b"home/+/50007", 1), (b"#", TOPICS)],
    ids=["exact", "absent", "children", "leaps", "all"],
)
def test_retained_lookup(benchmark: BenchmarkFixture, store: tuple[Store, Pool], filter: bytes, found: int) -> None:
    times = 1000 if found < 2 and b"+" not in filter else 1
    assert measure(benchmark, times * max(found, 1), store[0].count_often, store[1], filter, times) == found


def test_retained_replace(benchmark: BenchmarkFixture, store: tuple[Store, Pool]) -> None:
    names = [b"home/%d/%d" % (i % 100, i) for i in range(0, TOPICS, 7)]
    assert measure(benchmark, OPERATIONS, store[0].hammer, store[1], names, OPERATIONS, 1, False) == 0
