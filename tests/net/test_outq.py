"""The output queue: order, merging, gathering, short writes, and that an empty queue owns nothing."""

from __future__ import annotations

import random

import pytest

from tests.face import net_outq
from tests.face.net_outq import AGAIN, CLOSED, NO_MEMORY, OK, Pool, Queue, Run


@pytest.fixture
def pool() -> Pool:
    return Pool()


@pytest.fixture
def queue(pool: Pool) -> Queue:
    return Queue(pool)


def test_an_empty_queue_owns_nothing(pool: Pool, queue: Queue) -> None:
    assert not queue.owns
    assert queue.flush() == (OK, 0)
    assert queue.writes == 0
    assert queue.append(b"x")
    assert queue.owns
    assert queue.flush() == (OK, 1)
    assert not queue.owns and queue.bytes == 0 and pool.live == 0


def test_private_bytes_join_into_one_extent(queue: Queue) -> None:
    for i in range(100):
        assert queue.append(bytes([i]) * 4)
    assert queue.extents == 1 and queue.bytes == 400
    assert queue.flush() == (OK, 400)
    assert queue.sent() == b"".join(bytes([i]) * 4 for i in range(100))
    assert queue.writes == 1 and queue.parts == 1


def test_neighbours_in_a_run_merge_and_others_do_not(pool: Pool, queue: Queue) -> None:
    run = Run(pool, 4096)
    pieces = [run.append(bytes([65 + i]) * 10) for i in range(6)]
    for i in (0, 1, 2, 4, 5, 0):
        assert queue.share(run, *pieces[i]) == OK
    assert queue.extents == 3 and queue.bytes == 60
    assert run.refs == 4
    queue.flush()
    assert queue.sent() == b"A" * 10 + b"B" * 10 + b"C" * 10 + b"E" * 10 + b"F" * 10 + b"A" * 10
    assert run.refs == 1


def test_a_run_lives_as_long_as_a_queue_needs_it(pool: Pool, queue: Queue) -> None:
    run = Run(pool, 4096)
    assert queue.share(run, *run.append(b"shared")) == OK
    run.drop()
    assert pool.live == 1
    queue.flush()
    assert queue.sent() == b"shared" and pool.live == 0


def test_private_bytes_go_on_in_the_tail_after_shared_ones(pool: Pool, queue: Queue) -> None:
    run = Run(pool, 100)
    assert queue.append(b"one")
    assert queue.share(run, *run.append(b"two")) == OK
    assert queue.append(b"three")
    assert queue.append(b"four")
    assert queue.extents == 3
    assert pool.live == 2
    queue.flush()
    assert queue.sent() == b"onetwothreefour"


def test_an_empty_share_adds_nothing(pool: Pool, queue: Queue) -> None:
    run = Run(pool, 100)
    assert queue.share(run, 0, 0) == OK
    assert queue.extents == 0 and run.refs == 1


def test_short_ones_are_gathered_long_ones_go_by_reference(pool: Pool, queue: Queue) -> None:
    run = Run(pool, 60000)
    short, long = [], []
    for i in range(20):
        short.append(run.append(bytes([i]) * 50))
        long.append(run.append(bytes([100 + i]) * 1500))
    for piece in (short[2], short[0], long[7], short[4], short[9], short[1]):
        assert queue.share(run, *piece) == OK
    assert queue.flush() == (OK, 1500 + 5 * 50)
    assert queue.parts == 3 and queue.writes == 1
    assert queue.sent() == bytes([2]) * 50 + bytes([0]) * 50 + bytes([107]) * 1500 + bytes([4]) * 50 + bytes([9]) * 50 + bytes([1]) * 50


def test_a_packet_larger_than_any_class(pool: Pool, queue: Queue) -> None:
    data = random.Random(1).randbytes(300000)
    assert queue.append(b"before") and queue.append(data) and queue.append(b"after")
    assert queue.flush() == (OK, 300011)
    assert queue.sent() == b"before" + data + b"after"
    assert pool.live == 0


def test_no_more_than_the_flush_budget_at_once(queue: Queue) -> None:
    for _ in range(40):
        assert queue.append(bytes(50000))
    status, written = queue.flush()
    assert status == AGAIN and 1 << 20 <= written < 2000000
    assert queue.flush() == (OK, 2000000 - written)


def test_would_block_keeps_everything(queue: Queue) -> None:
    queue.allow(0)
    assert queue.append(b"abc")
    assert queue.flush() == (AGAIN, 0)
    assert queue.bytes == 3
    queue.allow(-1)
    assert queue.flush() == (OK, 3)
    assert queue.sent() == b"abc"


def test_a_broken_transport_is_told_and_clear_frees(pool: Pool, queue: Queue) -> None:
    assert queue.append(b"abc")
    queue.break_transport()
    assert queue.flush()[0] == CLOSED
    queue.clear()
    assert not queue.owns and queue.bytes == 0 and pool.live == 0


def test_turns_in_steady_state_make_no_new_chunks(pool: Pool, queue: Queue) -> None:
    for _ in range(1000):
        assert queue.append(b"x" * 20)
        queue.flush()
        queue.sent()
    assert pool.made == 1000  # taken from the free list, which holds one
    assert pool.kept == 1 and pool.rings_kept == [1, 0, 0]


def test_rings_of_many_extents_are_kept_too(pool: Pool, queue: Queue) -> None:
    run = Run(pool, 60000)
    pieces = [run.append(b"%03d" % i) for i in range(200)]
    for _ in range(3):
        for piece in reversed(pieces):
            assert queue.share(run, *piece) == OK
        assert queue.extents == 200
        queue.flush()
        assert queue.sent() == b"".join(b"%03d" % i for i in reversed(range(200)))
    assert pool.rings_kept == [1, 1, 1]


@pytest.mark.parametrize("seed", range(8))
def test_any_mixture_in_any_pieces_arrives_in_order(pool: Pool, seed: int) -> None:
    random_ = random.Random(seed)
    queue = Queue(pool)
    runs = [Run(pool, 60000) for _ in range(3)]
    expected, sent = bytearray(), bytearray()
    for _ in range(600):
        what = random_.random()
        if what < 0.4:
            data = random_.randbytes(random_.choice([1, 2, 4, 30, 700, 1023, 1024, 5000]))
            assert queue.append(data)
            expected += data
        elif what < 0.8:
            i = random_.randrange(3)
            data = random_.randbytes(random_.choice([1, 16, 60, 1024, 2500]))
            try:
                piece = runs[i].append(data)
            except AssertionError:
                runs[i] = Run(pool, 60000)
                piece = runs[i].append(data)
            if random_.random() < 0.8:
                assert queue.share(runs[i], *piece) == OK
                expected += data
        else:
            queue.allow(random_.choice([-1, 0, 1, 7, 1000, 3000, 20000]))
            queue.flush()
            sent += queue.sent()
        assert queue.bytes == len(expected) - len(sent)
    queue.allow(-1)
    while queue.flush()[0] == AGAIN:
        sent += queue.sent()
    sent += queue.sent()
    assert bytes(sent) == bytes(expected)
    assert not queue.owns
    for run in runs:
        assert run.refs == 1
        run.drop()
    assert pool.live == 0


@pytest.mark.skipif(not net_outq.alloc_tested, reason="this build cannot refuse allocations")
def test_no_memory_leaves_the_queue_as_it_was() -> None:
    pool = Pool()
    run = Run(pool, 100)
    piece = run.append(b"shared")
    for granted in (0, 1):  # the chunk, then the array of extents
        queue = Queue(pool if granted else Pool())
        net_outq.fail_allocations(granted)
        try:
            assert not queue.append(bytes(100_000))
        finally:
            net_outq.fail_allocations(-1)
        assert not queue.owns and queue.bytes == 0
        assert queue.append(b"again") and queue.flush() == (OK, 5)
    queue = Queue(pool)
    assert queue.share(run, *piece) == OK
    for _ in range(3):
        for _ in range(7):
            assert queue.share(run, 0, 1) == OK
            assert queue.share(run, 3, 1) == OK
        held, extents, refs = queue.bytes, queue.extents, run.refs
        if extents in (8, 32):
            net_outq.fail_allocations(0)
            try:
                assert queue.share(run, 0, 1) == NO_MEMORY
            finally:
                net_outq.fail_allocations(-1)
            assert (queue.bytes, queue.extents, run.refs) == (held, extents, refs)
