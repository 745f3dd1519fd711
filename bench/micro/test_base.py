"""What base/ costs per operation.

Each round runs OPERATIONS of them in one native loop; `ns_each` in the extra information is the figure.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from tests.face.base_bench import InboxBench, MapBench, MsgBench, WheelBench, hash_topics, ring_pass, vec_fill

OPERATIONS = 100_000


def measure(benchmark: BenchmarkFixture, work: Callable[..., int], *arguments: object) -> int:
    result: int = benchmark(work, *arguments)
    if benchmark.stats is not None:
        benchmark.extra_info["ns_each"] = round(benchmark.stats.stats.min / OPERATIONS * 1e9, 2)
    return result


@pytest.mark.parametrize("length", [4, 16, 32, 64, 100])
def test_hash(benchmark: BenchmarkFixture, length: int) -> None:
    measure(benchmark, hash_topics, b"t" * length, OPERATIONS)


@pytest.mark.parametrize("count", [1_000, 100_000, 1_000_000])
@pytest.mark.parametrize("present", [True, False])
def test_map_find(benchmark: BenchmarkFixture, count: int, present: bool) -> None:
    table = MapBench(count)
    assert measure(benchmark, table.find, OPERATIONS, 0 if present else count) == (OPERATIONS if present else 0)


@pytest.mark.parametrize("count", [1_000, 100_000])
def test_map_remove_and_insert(benchmark: BenchmarkFixture, count: int) -> None:
    assert measure(benchmark, MapBench(count).remove_and_insert, OPERATIONS) == 2 * OPERATIONS


@pytest.mark.parametrize("depth", [1, 1000])
def test_ring_pass(benchmark: BenchmarkFixture, depth: int) -> None:
    assert measure(benchmark, ring_pass, depth, OPERATIONS) == OPERATIONS * (OPERATIONS - 1) // 2


def test_vec_fill(benchmark: BenchmarkFixture) -> None:
    assert measure(benchmark, vec_fill, OPERATIONS) == OPERATIONS * (OPERATIONS - 1) // 2


@pytest.mark.parametrize("capacity", [50, 1000, 10_000, 100_000])
def test_msg_alloc_and_drop(benchmark: BenchmarkFixture, capacity: int) -> None:
    assert measure(benchmark, MsgBench().alloc_and_drop, capacity, OPERATIONS) == OPERATIONS


def test_msg_share_and_drop(benchmark: BenchmarkFixture) -> None:
    assert measure(benchmark, MsgBench().share_and_drop, 99, OPERATIONS) == OPERATIONS


def test_msg_drop_away_and_come_home(benchmark: BenchmarkFixture) -> None:
    assert measure(benchmark, MsgBench().drop_away_and_come_home, 100, OPERATIONS) == OPERATIONS


@pytest.mark.parametrize("count", [1_000, 100_000])
def test_timer_move(benchmark: BenchmarkFixture, count: int) -> None:
    assert measure(benchmark, WheelBench(count).move, OPERATIONS) == OPERATIONS


@pytest.mark.parametrize("count", [1_000, 100_000])
def test_timer_fire(benchmark: BenchmarkFixture, count: int) -> None:
    assert measure(benchmark, WheelBench(count).fire, OPERATIONS) >= OPERATIONS


def test_timer_next(benchmark: BenchmarkFixture) -> None:
    assert measure(benchmark, WheelBench(1000).next_ms, OPERATIONS) > 0


def test_inbox_post_and_take(benchmark: BenchmarkFixture) -> None:
    assert measure(benchmark, InboxBench().post_and_take, OPERATIONS) == OPERATIONS
