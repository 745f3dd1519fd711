"""Inbox, log ring and message blocks under threads that really run at once; the thread sanitizer's build runs the same tests."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.face.base_threads import Exchange, InboxFace, LogRingFace, log_text_cut

WAIT_MS = 20_000


def together(*jobs: Callable[[], Any]) -> list[Any]:
    """Runs all jobs at once, each on its own thread; their results in order. A job that raises fails the test."""
    results: list[Any] = [None] * len(jobs)
    start = threading.Barrier(len(jobs))

    def run(i: int) -> None:
        start.wait()
        try:
            results[i] = jobs[i]()
        except BaseException as error:
            results[i] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


@pytest.mark.parametrize("over_pipe", [False, True])
def test_inbox_keeps_posting_order_and_says_when_it_was_empty(over_pipe: bool) -> None:
    inbox = InboxFace(over_pipe)
    assert inbox.take() == [] and not inbox.readable()
    assert inbox.post(1, 0, 5, 2) == 1, "three chains, only the first found it empty"
    assert inbox.readable()
    assert inbox.take() == [(1, number) for number in range(5)]
    assert inbox.readable(), "taking mail does not touch the descriptor"
    inbox.drain_wake()
    assert not inbox.readable()
    inbox.drain_wake()
    assert inbox.post(2, 7, 1, 1) == 1
    assert inbox.take() == [(2, 7)]


def test_descriptors_are_non_blocking_and_closed_on_exec() -> None:
    inbox, piped, ring = InboxFace(), InboxFace(over_pipe=True), LogRingFace(4)
    for fd in (*inbox.fds, *piped.fds, ring.fd):
        assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK


def test_descriptors_are_closed() -> None:
    inbox, piped, ring = InboxFace(), InboxFace(over_pipe=True), LogRingFace(4)
    fds = {*inbox.fds, *piped.fds, ring.fd}
    assert len(fds) == 4
    del inbox, piped, ring
    for fd in fds:
        with pytest.raises(OSError):
            fcntl.fcntl(fd, fcntl.F_GETFD)


@pytest.mark.parametrize("over_pipe", [False, True])
def test_waking_never_blocks_and_draining_empties(over_pipe: bool) -> None:
    """20 000 wake-ups are more than a pipe holds."""
    inbox = InboxFace(over_pipe)
    inbox.wake(20_000)
    assert inbox.readable()
    inbox.drain_wake()
    assert not inbox.readable()
    inbox.wake(64)
    inbox.drain_wake()
    assert not inbox.readable(), "exactly one buffer of a pipe"


@pytest.mark.parametrize("over_pipe", [False, True])
@pytest.mark.parametrize("batch", [1, 7])
def test_no_letter_and_no_wake_up_is_lost(batch: int, over_pipe: bool) -> None:
    inbox, senders, each = InboxFace(over_pipe), 4, 20_000
    results = together(
        lambda: inbox.receive(senders, senders * each, WAIT_MS),
        *((lambda sender=sender: inbox.post(sender, 0, each, batch)) for sender in range(senders)),
    )
    assert results[0] == (senders * each, 0)
    woken = results[1:]
    assert all(isinstance(n, int) and n >= 0 for n in woken) and sum(woken) >= 1


def test_log_ring_is_bounded_and_counts_what_it_drops() -> None:
    ring = LogRingFace(5)
    for turn in range(7):
        assert ring.push(1, 10 * turn, 3) == 3
        assert ring.readable()
        ring.drain_wake()
        assert [ring.pop() for _ in range(4)] == [(1, 10 * turn + i) for i in range(3)] + [None]
        assert not ring.readable()
    assert ring.dropped == 0
    assert ring.push(2, 0, 9) == 5
    assert ring.dropped == 4
    assert [ring.pop() for _ in range(6)] == [(2, i) for i in range(5)] + [None]


def test_log_ring_wake_makes_it_readable_without_a_record() -> None:
    ring = LogRingFace(1)
    ring.wake()
    assert ring.readable() and ring.pop() is None
    ring.drain_wake()
    assert not ring.readable()


def test_log_ring_of_no_room_drops_all() -> None:
    ring = LogRingFace(0)
    assert ring.push(0, 1, 3) == 0 and ring.dropped == 3 and ring.pop() is None


def test_log_records_arrive_whole_and_in_order_or_are_counted() -> None:
    ring, workers, each = LogRingFace(64), 4, 20_000
    results = together(
        lambda: ring.receive(workers, workers * each, WAIT_MS),
        *((lambda worker=worker: ring.push(worker, 1, each)) for worker in range(workers)),
    )
    received, wrong = results[0]
    late = 0
    while ring.pop() is not None:
        late += 1
    assert wrong == 0
    assert received + late == sum(results[1:])
    assert received + late + ring.dropped == workers * each


@given(st.text(max_size=300), st.integers(0, 255))
def test_log_text_is_cut_between_code_points(text: str, room: int) -> None:
    data = text.encode()
    cut = log_text_cut(data, room)
    assert data.startswith(cut) and len(cut) <= room
    cut.decode()
    assert len(data) <= room or len(cut) > room - 4


@given(st.binary(max_size=300), st.integers(0, 400))
def test_log_text_of_bytes_that_are_no_text_fills_the_room(data: bytes, room: int) -> None:
    cut = log_text_cut(data, room)
    assert data.startswith(cut)
    assert min(len(data), room, 255) - 3 <= len(cut) <= min(len(data), room, 255)


def test_log_text_of_continuation_bytes_only() -> None:
    assert log_text_cut(b"\x80" * 300, 64) == b"\x80" * 64


@pytest.mark.parametrize("workers", [2, 4])
def test_blocks_cross_threads_and_come_home(workers: int) -> None:
    messages = 3_000
    exchange = Exchange(workers)
    results = together(*((lambda me=me: exchange.run(me, messages, WAIT_MS)) for me in range(workers)))
    assert results == [(messages * (workers - 1), 0)] * workers
    exchange.settle()
    counters = exchange.counters()
    assert [made for made, _ in counters] == [messages] * workers
    assert sum(freed for _, freed in counters) == messages * workers
    assert all(0 < cached <= messages for cached in exchange.cached())
