"""Every refused allocation leaves things as they were and nothing leaks. Needs a build that counts blocks (debug or sanitizer)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.face.base_containers import MapFace, RingFace, VecFace, alloc_fail_after, alloc_made, alloc_tested
from tests.face.base_threads import Exchange, InboxFace, LogRingFace, PoolFace
from tests.face.base_timer import WheelFace

pytestmark = pytest.mark.skipif(not alloc_tested(), reason="this build hands out memory as it is asked: make a debug build")

ST_OK, ST_NO_MEMORY = 0, -1


@pytest.fixture(autouse=True)
def grant_again() -> Iterator[None]:
    yield
    alloc_fail_after(-1)


def test_vec_survives_every_refusal() -> None:
    vec = VecFace(8)
    model = list(range(200))
    refused = 0
    for value in model:
        alloc_fail_after(0)
        while not vec.push(value):
            refused += 1
            assert vec.values() == model[:value]
    assert refused == 10, "4, 7, 11, 17, 26, 40, 61, 92, 139, 209"
    assert vec.values() == model
    alloc_fail_after(0)
    assert vec.reserve(10_000) == ST_NO_MEMORY
    assert vec.values() == model


@pytest.mark.parametrize("push", [RingFace.push, RingFace.push_front])
def test_ring_survives_every_refusal(push: Callable[[RingFace, int], bool]) -> None:
    ring = RingFace(8)
    refused = 0
    for value in range(100):
        before = ring.values()
        alloc_fail_after(0)
        while not push(ring, value):
            refused += 1
            assert ring.values() == before
    assert refused == 6, "4, 8, 16, 32, 64, 128"
    assert sorted(ring.values()) == list(range(100))
    ring.pop_front(90)
    left = ring.values()
    alloc_fail_after(0)
    ring.trim()
    assert ring.capacity == 128 and ring.values() == left
    ring.trim()
    assert ring.capacity == 64 and ring.values() == left


def test_map_survives_every_refusal() -> None:
    table = MapFace()
    refused = 0
    for key in range(1000):
        hash = key * 0x9E3779B1 % 2**32
        alloc_fail_after(0)
        while table.insert(key, hash, key) != ST_OK:
            refused += 1
            assert table.find(key, hash) is None and table.count == key
    assert refused == 9, "8, 16, ... 2048"
    alloc_fail_after(0, once=False)
    for key in range(10, 1000):
        assert table.remove(key, key * 0x9E3779B1 % 2**32) == key
    assert table.capacity == 2048, "no memory to shrink into, so the table stays"
    assert sorted(table.items()) == [(key, key) for key in range(10)]


def test_pool_and_blocks() -> None:
    for granted in range(2):
        alloc_fail_after(granted)
        with pytest.raises(MemoryError):
            PoolFace(0, 4)
    pool = PoolFace(0, 4)
    alloc_fail_after(0, once=False)
    assert pool.alloc(10) is None and pool.alloc(100_000) is None
    assert pool.made == 0
    alloc_fail_after(-1)
    block = pool.alloc(10)
    assert block is not None
    pool.drop(block)
    alloc_fail_after(0, once=False)
    again = pool.alloc(20)
    assert again is not None, "from the free list"
    pool.drop(again)
    assert pool.made == pool.freed == 2


def test_wheel_and_log_ring_and_inbox() -> None:
    for granted in range(2):
        alloc_fail_after(granted)
        with pytest.raises(MemoryError):
            WheelFace(0, 10)
        alloc_fail_after(granted)
        with pytest.raises(MemoryError):
            LogRingFace(10)
    inbox = InboxFace()
    alloc_fail_after(2)
    assert inbox.post(0, 0, 5, 1) == -1
    assert inbox.take() == [(0, 0), (0, 1)]


def test_steady_state_allocates_nothing() -> None:
    pool, ring = PoolFace(0, 1), RingFace(8)
    for turn in range(300):
        if turn == 50:
            made = alloc_made()
        blocks = [pool.alloc(size) for size in (10, 500, 3000, 16_000)]
        for block in blocks:
            assert block is not None
            assert ring.push(turn)
            pool.drop(block)
        ring.pop_front(4)
    assert alloc_made() == made


def test_an_exchange_leaves_no_block() -> None:
    exchange = Exchange(1)
    assert exchange.run(0, 500, 1000) == (0, 0)
    exchange.settle()
    assert exchange.counters() == [(500, 500)]
