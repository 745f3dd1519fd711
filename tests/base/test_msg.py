"""Message blocks: size classes, references, going home, bounded lists, counters."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.face.base_threads import Block, PoolFace

HEADER = 64
CLASSES = [128 << n for n in range(8)]
ALONE = 255


def test_every_capacity_gets_the_smallest_class_that_holds_it() -> None:
    pool = PoolFace(3, 4)
    for total in [HEADER, *(size + edge for size in CLASSES for edge in (-1, 0, 1))]:
        block = pool.alloc(total - HEADER)
        assert block is not None
        expected = next((size for size in CLASSES if size >= total), None)
        if expected is None:
            assert (block.size_class, block.capacity) == (ALONE, total - HEADER)
        else:
            assert (block.size_class, block.capacity) == (CLASSES.index(expected), expected - HEADER)
        assert block.owner == 3 and block.refs == 1 and not any(block.fields.values())
        block.fill(0xAA)
        pool.drop(block)
    assert pool.made == pool.freed == 25


def test_a_reused_block_is_zero_in_every_field() -> None:
    pool = PoolFace(0, 1)
    block = pool.alloc(30)
    assert block is not None
    address = block.address
    assert block.runs(b"a/b", b"\x01\x01", b"payload") == (b"a/b", b"\x01\x01", b"payload")
    pool.drop(block)
    again = pool.alloc(1)
    assert again is not None and again.address == address
    assert not any(again.fields.values()) and again.refs == 1
    pool.drop(again)


def test_the_last_reference_frees_and_no_other() -> None:
    pool = PoolFace(0, 1)
    block = pool.alloc(100)
    assert block is not None
    block.share(3)
    for left in (3, 2, 1):
        pool.drop(block)
        assert block.refs == left and pool.freed == 0 and sum(pool.cached()) == 0
    pool.drop(block)
    assert pool.freed == 1 and sum(pool.cached()) == 1


def test_free_lists_are_bounded_by_bytes() -> None:
    pool = PoolFace(0, 1)
    for size_class, size in enumerate(CLASSES):
        limit = (1 << 20) // size
        blocks = [pool.alloc(size - HEADER) for _ in range(limit + 10)]
        for block in blocks:
            assert block is not None
            pool.drop(block)
        assert pool.cached()[size_class] == limit
    assert pool.made == pool.freed


def test_strays_go_home_in_one_chain() -> None:
    maker, other = PoolFace(0, 3), PoolFace(2, 3)
    blocks = [maker.alloc(50) for _ in range(5)] + [maker.alloc(5000)]
    for block in blocks:
        assert block is not None
        other.drop(block)
    assert (maker.made, maker.freed, other.made, other.freed) == (6, 0, 0, 6)
    assert other.strays(0) == 6 and sum(maker.cached()) == 0
    assert other.mail_home(maker) == 6
    assert other.strays(0) == 0 and maker.cached() == [5, 0, 0, 0, 0, 0, 1, 0]
    assert other.mail_home(maker) == 0


@pytest.mark.parametrize(("owner", "capacity"), [(0, 100_000), (9, 50)])
def test_blocks_with_no_list_to_go_to_are_freed_where_they_die(owner: int, capacity: int) -> None:
    maker, other = PoolFace(owner, 10), PoolFace(1, 2)
    block = maker.alloc(capacity)
    assert block is not None
    other.drop(block)
    assert other.freed == 1 and other.strays(0) == 0


def test_a_pool_frees_strays_that_were_never_mailed() -> None:
    """The address sanitizer's leak check is the judge; here: it does not crash and counts add up."""
    maker, other = PoolFace(0, 2), PoolFace(1, 2)
    block = maker.alloc(10)
    assert block is not None
    other.drop(block)
    assert maker.made == other.freed == 1
    del other


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 40_000)), max_size=60))
def test_live_blocks_never_overlap(steps: list[tuple[bool, int]]) -> None:
    pool = PoolFace(0, 1)
    live: list[Block] = []
    for take, n in steps:
        if take or not live:
            block = pool.alloc(n)
            assert block is not None and block.capacity >= n
            live.append(block)
        else:
            pool.drop(live.pop(n % len(live)))
        ranges = sorted((block.address, block.address + HEADER + block.capacity) for block in live)
        assert all(before[1] <= after[0] for before, after in pairwise(ranges))
        assert pool.made - pool.freed == len(live)
    for block in live:
        pool.drop(block)
