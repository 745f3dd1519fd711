"""The reactor, turn by turn from this thread, or in threads of its own; see tests/face/net_reactor.pyx for the frames."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import resource
import select
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.face.net_reactor import ALLOC_TESTED, DEBUG, ClockFace, ReactorFace, blocks_live, fail_allocations

Handle = tuple[int, int]

PEER_CLOSED, PEER_RESET, WRITE_FAILED, NO_MEMORY = 1, 2, 3, 4


def frame(command: bytes, body: bytes = b"") -> bytes:
    return command + struct.pack(">I", len(body)) + body


def pattern(n: int) -> bytes:
    return bytes((i * 31 >> 3) & 255 for i in range(n))


class Bed:
    """A reactor with a listener, and clients of it."""

    def __init__(self, turn_bytes: int = 1 << 20, family: str = "tcp", clock: ClockFace | None = None, with_pool: bool = True) -> None:
        self.reactor = ReactorFace(turn_bytes, clock, with_pool)
        self.family = family
        if family == "tcp":
            self.server = socket.create_server(("127.0.0.1", 0), backlog=4096)
        else:
            self.server = socket.socket(socket.AF_UNIX)
            self.server.bind("")
            self.server.listen(100)
        self.server.setblocking(False)
        self.clients: list[socket.socket] = []
        assert self.reactor.listen(self.server.fileno(), 3)

    def connect(self) -> socket.socket:
        client = socket.socket(self.server.family)
        client.connect(self.server.getsockname())
        self.clients.append(client)
        return client

    def open(self) -> tuple[socket.socket, Handle]:
        """A client and the handle of its link."""
        known = set(self.reactor.links())
        client = self.connect()
        self.until(lambda: len(self.reactor.links()) > len(known))
        (handle,) = set(self.reactor.links()) - known
        return client, handle

    def until(self, done: Callable[[], bool], seconds: float = 5.0) -> None:
        deadline = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < deadline, (self.reactor.stats, self.reactor.ends)
            self.reactor.turn(5)

    def settle(self, turns: int = 5) -> None:
        for _ in range(turns):
            self.reactor.turn(2)

    def receive(self, client: socket.socket, n: int, seconds: float = 5.0) -> bytes:
        """n bytes, while turns go on."""
        got = bytearray()
        client.setblocking(False)
        deadline = time.monotonic() + seconds
        while len(got) < n:
            assert time.monotonic() < deadline, (len(got), n, self.reactor.stats)
            self.reactor.turn(1)
            with contextlib.suppress(BlockingIOError):
                data = client.recv(n - len(got))
                assert data, "end of stream"
                got += data
        return bytes(got)

    def close(self) -> None:
        for client in self.clients:
            client.close()
        self.reactor.free()
        self.server.close()


@pytest.fixture
def make() -> Iterator[Callable[..., Bed]]:
    beds: list[Bed] = []

    def build(*arguments: object, **named: object) -> Bed:
        beds.append(Bed(*arguments, **named))  # type: ignore[arg-type]
        return beds[-1]

    before = blocks_live()
    yield build
    pools = []
    for bed in beds:
        bed.close()
        pools.append(bed.reactor.pool_live)
    assert not any(pools), "message blocks left"
    beds.clear()
    if ALLOC_TESTED:
        assert blocks_live() <= before, "memory left"


@pytest.fixture(params=["tcp", "unix"])
def bed(request: pytest.FixtureRequest, make: Callable[..., Bed]) -> Bed:
    return make(family=request.param)


@pytest.fixture
def tcp(make: Callable[..., Bed]) -> Bed:
    return make()


def test_a_transport_that_has_more_to_give_than_it_gave(tcp: Bed) -> None:
    """IO_AGAIN with WANTS_READ: the socket is empty, no event would tell."""
    ours, client = socket.socketpair()
    tcp.clients.append(client)
    ours.setblocking(False)
    handle = tcp.reactor.open_coy(ours.detach())
    for _ in range(3):
        client.sendall(frame(b"e", b"hello"))
        assert tcp.receive(client, 10) == frame(b"e", b"hello")
    assert tcp.reactor.alive(handle)


def reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


# ---------------------------------------------------------------------------------------------- reading


def test_accept_and_echo(bed: Bed) -> None:
    client, handle = bed.open()
    client.sendall(frame(b"e", b"hello"))
    assert bed.receive(client, 10) == frame(b"e", b"hello")
    state = bed.reactor.state(handle)
    assert state["listener"] == 3 and state["loopback"]
    if bed.family == "tcp":
        assert state["peer"] == f"127.0.0.1:{client.getsockname()[1]}"
        with socket.socket(fileno=socket.dup(state["fd"])) as ours:
            assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            bed.reactor.keep_alive(handle, 30, 9000)
            assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            if sys.platform == "linux":
                assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30
                assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 9000
    else:
        assert state["peer"] == "unix"


def test_ipv6_and_mapped_peers(make: Callable[..., Bed]) -> None:
    reactor = ReactorFace()
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        server.setblocking(False)
        assert reactor.listen(server.fileno(), 0)
        port = server.getsockname()[1]
        seen = set()
        with socket.create_connection(("::1", port)) as six, socket.create_connection(("127.0.0.1", port)) as four:
            while len(reactor.links()) < 2:
                reactor.turn(100)
            for handle in reactor.links():
                state = reactor.state(handle)
                assert state["loopback"]
                seen.add(state["peer"])
            assert seen == {f"[::1]:{six.getsockname()[1]}", f"127.0.0.1:{four.getsockname()[1]}"}
        reactor.free()


def test_byte_by_byte(bed: Bed) -> None:
    client, handle = bed.open()
    data = frame(b"e", b"split") * 3
    for i in range(len(data)):
        client.sendall(data[i : i + 1])
        bed.settle(1)
    assert bed.receive(client, len(data)) == data
    bed.settle()
    assert not bed.reactor.state(handle)["has_partial"]


@pytest.mark.parametrize("seed", range(4))
def test_any_split_of_frames_of_any_size(make: Callable[..., Bed], seed: int) -> None:
    bed = make(turn_bytes=random.Random(seed).choice([3000, 70000, 1 << 20]))
    random_ = random.Random(seed)
    client, handle = bed.open()
    frames = [
        frame(random_.choice([b"e", b"s"]), random_.randbytes(random_.choice([0, 1, 10, 1000, 16000, 17000, 70000, 140000, 400000])))
        for _ in range(60)
    ]
    data = b"".join(frames)
    expected = b"".join(f for f in frames if f[:1] == b"e")
    got = bytearray()
    client.setblocking(False)
    at = 0
    deadline = time.monotonic() + 20
    while len(got) < len(expected) or bed.reactor.stats["frames"] < len(frames):
        assert time.monotonic() < deadline
        with contextlib.suppress(BlockingIOError):
            at += client.send(data[at : at + random_.choice([1, 5, 100, 1448, 20000, 200000])])
        bed.reactor.turn(0)
        with contextlib.suppress(BlockingIOError):
            got += client.recv(1 << 20)
    assert bytes(got) == expected
    bed.settle()
    state = bed.reactor.state(handle)
    assert not state["has_partial"] and not state["has_block"] and not state["owns_output"]
    assert bed.reactor.pool_live == 0 and bed.reactor.chunks_live == 0


def test_a_large_packet_is_received_into_its_block_and_may_be_kept(tcp: Bed) -> None:
    client, handle = tcp.open()
    body = random.Random(5).randbytes(3_000_000)
    sender = threading.Thread(target=client.sendall, args=(frame(b"k", body) + frame(b"s", b"after"),))
    sender.start()
    tcp.until(lambda: tcp.reactor.stats["frames"] == 2)
    sender.join()
    stats = tcp.reactor.stats
    assert stats["blocks"] == 1 and stats["sum"] == sum(body) + sum(b"after")
    assert tcp.reactor.kept()[: len(body) + 5] == frame(b"k", body)
    assert not tcp.reactor.state(handle)["has_block"]
    assert tcp.reactor.pool_live == 1


def test_a_block_under_way_dies_with_its_link(bed: Bed) -> None:
    client, handle = bed.open()
    client.sendall(frame(b"s", bytes(100000))[:50000])
    bed.until(lambda: bed.reactor.state(handle)["has_block"])
    assert bed.reactor.pool_live == 1
    client.close()
    bed.until(lambda: bed.reactor.stats["ended"] == 1)
    assert bed.reactor.pool_live == 0


def test_without_a_pool_packets_up_to_the_read_buffer_pass(make: Callable[..., Bed]) -> None:
    bed = make(with_pool=False)
    client, _ = bed.open()
    client.sendall(frame(b"s", bytes(100000)))
    bed.until(lambda: bed.reactor.stats["frames"] == 1)
    client.sendall(frame(b"s", bytes(200000))[:150000])
    bed.until(lambda: bed.reactor.ends == [NO_MEMORY])


def test_a_hook_that_takes_nothing_ends_its_link(tcp: Bed) -> None:
    client, _ = tcp.open()
    client.sendall(frame(b"x", bytes(20)))
    tcp.settle(20)
    assert tcp.reactor.ends == []
    client.setblocking(False)
    sent = 0
    while not tcp.reactor.ends:
        with contextlib.suppress(BlockingIOError):
            sent += client.send(bytes(16384))
        tcp.reactor.turn(1)
        assert sent < 4 << 20
    assert tcp.reactor.ends == [NO_MEMORY]


def test_the_budget_is_per_link_and_turn(make: Callable[..., Bed]) -> None:
    bed = make(turn_bytes=4096)
    loud, _ = bed.open()
    quiet, _ = bed.open()
    loud.sendall(frame(b"s", bytes(95)) * 1000)
    quiet.sendall(frame(b"e", b"me too"))
    time.sleep(0.05)
    before = bed.reactor.stats
    bed.reactor.turn(100)
    after = bed.reactor.stats
    assert after["bytes_in"] - before["bytes_in"] == 4096 + 11
    assert bed.receive(quiet, 11) == frame(b"e", b"me too")
    assert bed.reactor.stats["frames"] < 500, "the quiet one waited for the loud one"
    bed.until(lambda: bed.reactor.stats["frames"] == 1001)


def test_one_read_per_event_unless_the_buffer_was_full(tcp: Bed) -> None:
    client, _ = tcp.open()
    for _ in range(10):
        before = tcp.reactor.stats
        client.sendall(frame(b"s", b"x"))
        tcp.until(lambda before=before: tcp.reactor.stats["frames"] == before["frames"] + 1)
        assert tcp.reactor.stats["reads"] - before["reads"] == 1


def test_spans_die_with_the_turn_in_debug_builds(tcp: Bed) -> None:
    client, _ = tcp.open()
    client.sendall(frame(b"s", b"x"))
    tcp.until(lambda: tcp.reactor.stats["frames"] == 1)
    assert tcp.reactor.last_byte() == (0xDD if DEBUG else ord("s"))


# ---------------------------------------------------------------------------------------------- pause and resume


def test_pause_holds_what_was_read_and_resume_goes_on(bed: Bed) -> None:
    client, handle = bed.open()
    client.sendall(frame(b"p") + frame(b"e", b"later"))
    bed.until(lambda: bed.reactor.state(handle)["paused"])
    client.sendall(frame(b"e", b"last"))
    bed.settle(10)
    assert bed.reactor.stats["frames"] == 1
    bed.reactor.resume(handle)
    assert bed.receive(client, 19) == frame(b"e", b"later") + frame(b"e", b"last")


def test_a_held_packet_comes_again(bed: Bed) -> None:
    client, handle = bed.open()
    client.sendall(frame(b"h", b"abc") + frame(b"e"))
    bed.until(lambda: bed.reactor.state(handle)["paused"])
    assert bed.reactor.state(handle)["partial_bytes"] == 13
    bed.settle()
    assert bed.reactor.stats["frames"] == 0
    bed.reactor.resume(handle)
    assert bed.receive(client, 5) == frame(b"e")
    assert bed.reactor.stats["frames"] == 2


def test_a_held_block_comes_again(tcp: Bed) -> None:
    client, handle = tcp.open()
    body = random.Random(2).randbytes(90000)
    data = frame(b"h", body) + frame(b"e", b"next")
    client.sendall(data[:60000])
    tcp.until(lambda: tcp.reactor.state(handle)["has_block"])
    client.sendall(data[60000:])
    tcp.until(lambda: tcp.reactor.state(handle)["paused"])
    tcp.settle()
    assert tcp.reactor.stats["frames"] == 0
    tcp.reactor.resume(handle)
    assert tcp.receive(client, 9) == frame(b"e", b"next")
    assert tcp.reactor.stats["sum"] == sum(body) and tcp.reactor.stats["blocks"] == 1


def test_pause_and_resume_over_and_over_with_much_held(tcp: Bed) -> None:
    client, handle = tcp.open()
    client.sendall((frame(b"p") + frame(b"s", b"12345")) * 2000)
    deadline = time.monotonic() + 10
    while tcp.reactor.stats["frames"] < 4000:
        assert time.monotonic() < deadline
        tcp.reactor.turn(0)
        if tcp.reactor.state(handle)["paused"]:
            tcp.reactor.resume(handle)
    assert tcp.reactor.stats["bytes"] == 10000
    tcp.settle()
    assert not tcp.reactor.state(handle)["has_partial"]


def test_input_for_a_paused_link_costs_no_turns(bed: Bed) -> None:
    client, handle = bed.open()
    bed.reactor.pause(handle)
    client.sendall(frame(b"s", bytes(1000)))
    bed.settle()
    before = bed.reactor.stats["turns"]
    bed.reactor.turn(60)
    assert bed.reactor.stats["turns"] == before + 1
    start = time.monotonic()
    bed.reactor.turn(60)
    assert time.monotonic() - start > 0.04, "the poll came back at once"
    bed.reactor.resume(handle)
    bed.until(lambda: bed.reactor.stats["frames"] == 1)


def test_a_half_closed_peer_of_a_paused_link_costs_no_turns(bed: Bed) -> None:
    client, handle = bed.open()
    bed.reactor.pause(handle)
    client.sendall(frame(b"e", b"x"))
    client.shutdown(socket.SHUT_WR)
    bed.settle()
    start = time.monotonic()
    bed.reactor.turn(60)
    assert time.monotonic() - start > 0.04
    bed.reactor.resume(handle)
    assert bed.receive(client, 6) == frame(b"e", b"x")
    bed.until(lambda: bed.reactor.ends == [PEER_CLOSED])


def run_in_thread(reactor: ReactorFace) -> threading.Thread:
    thread = threading.Thread(target=reactor.run)
    thread.start()
    return thread


@pytest.mark.parametrize("with_input", [False, True])
def test_a_reset_while_paused_closes_at_once_and_costs_no_turns(tcp: Bed, with_input: bool) -> None:
    tcp.reactor.pause_on_open(True)
    thread = run_in_thread(tcp.reactor)
    try:
        client = tcp.connect()
        wait_for(lambda: tcp.reactor.stats["opened"] == 1)
        if with_input:
            client.sendall(frame(b"s", b"never read"))
            time.sleep(0.05)
        start = time.monotonic()
        reset(client)
        wait_for(lambda: tcp.reactor.stats["ended"] == 1)
        assert time.monotonic() - start < 1.5
        time.sleep(0.05)
        turns = tcp.reactor.stats["turns"]
        time.sleep(0.3)
        assert tcp.reactor.stats["turns"] - turns <= 1
    finally:
        tcp.reactor.stop()
        thread.join()
    assert tcp.reactor.ends == [PEER_RESET]
    assert tcp.reactor.stats["frames"] == 0


def wait_for(done: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_a_unix_peer_that_goes_away_while_paused_loses_no_input(make: Callable[..., Bed]) -> None:
    bed = make(family="unix")
    client, handle = bed.open()
    bed.reactor.pause(handle)
    client.sendall(frame(b"s", b"abc") * 3)
    bed.settle()
    client.close()
    bed.settle()
    start = time.monotonic()
    bed.reactor.turn(60)
    assert time.monotonic() - start > 0.04
    assert bed.reactor.stats["ended"] == 0
    bed.reactor.resume(handle)
    bed.until(lambda: bed.reactor.ends == [PEER_CLOSED])
    assert bed.reactor.stats["frames"] == 3


def test_a_unix_peer_with_nothing_to_read_is_closed_while_paused(make: Callable[..., Bed]) -> None:
    bed = make(family="unix")
    client, handle = bed.open()
    bed.reactor.pause(handle)
    client.close()
    if sys.platform == "linux" and "kqueue" not in str(sys.modules["mqttc.net.poller"]):
        bed.until(lambda: bed.reactor.ends == [PEER_CLOSED])
    else:
        bed.settle()
        assert bed.reactor.ends == []  # kqueue cannot tell it from a half-closed peer
        bed.reactor.resume(handle)
        bed.until(lambda: bed.reactor.ends == [PEER_CLOSED])


# ---------------------------------------------------------------------------------------------- writing


def test_one_write_per_link_and_turn(tcp: Bed) -> None:
    client, _ = tcp.open()
    client.sendall(frame(b"e", b"0123456789") * 200)
    tcp.receive(client, 15 * 200)
    stats = tcp.reactor.stats
    assert stats["writes"] <= stats["reads"]
    assert stats["bytes_out"] == 15 * 200


def test_a_slow_reader_gets_everything_and_costs_no_turns_meanwhile(bed: Bed) -> None:
    n = 12_000_000
    client, handle = bed.open()
    client.sendall(frame(b"w", struct.pack(">I", n)))
    bed.until(lambda: bed.reactor.state(handle)["wants_out"])
    bed.settle(20)
    stats = bed.reactor.stats
    assert stats["short_writes"] >= 1 and stats["drained"] == 0
    start = time.monotonic()
    bed.reactor.turn(60)
    assert time.monotonic() - start > 0.04, "output that nobody reads keeps the loop awake"
    assert bed.receive(client, n, 20) == pattern(n)
    bed.settle()
    assert bed.reactor.stats["drained"] == 1
    state = bed.reactor.state(handle)
    assert not state["wants_out"] and not state["owns_output"]
    assert bed.reactor.chunks_live == 0


def test_on_drained_on_request_without_a_short_write(tcp: Bed) -> None:
    client, _ = tcp.open()
    client.sendall(frame(b"w", struct.pack(">I", 10)))
    assert tcp.receive(client, 10) == pattern(10)
    assert tcp.reactor.stats["drained"] == 1 and tcp.reactor.stats["short_writes"] == 0
    client.sendall(frame(b"e"))
    assert tcp.receive(client, 5) == frame(b"e")
    assert tcp.reactor.stats["drained"] == 1


def test_a_peer_that_goes_away_under_output(bed: Bed) -> None:
    client, handle = bed.open()
    client.sendall(frame(b"w", struct.pack(">I", 8_000_000)))
    bed.until(lambda: bed.reactor.state(handle)["wants_out"])
    client.close()
    bed.until(lambda: bed.reactor.stats["ended"] == 1)
    assert bed.reactor.ends[0] in (PEER_RESET, WRITE_FAILED, PEER_CLOSED)
    bed.until(lambda: bed.reactor.chunks_live == 0)
    assert not bed.reactor.alive(handle)


def test_input_before_the_end_counts_although_a_write_failed(bed: Bed) -> None:
    """A client that publishes, says good-bye and closes while we write to it."""
    client, handle = bed.open()
    client.sendall(frame(b"s", b"x" * 50) * 100)
    time.sleep(0.02)
    client.close()
    if bed.family == "tcp":
        bed.reactor.pause(handle)
        bed.reactor.send(handle, b"first, which the peer answers with a reset")
        bed.reactor.turn(0)
        time.sleep(0.05)
    bed.reactor.send(handle, b"second")
    if bed.reactor.state(handle)["paused"]:
        bed.reactor.resume(handle)
    bed.until(lambda: bed.reactor.stats["ended"] == 1)
    assert bed.reactor.stats["frames"] == 100


# ---------------------------------------------------------------------------------------------- closing


def test_last_words_arrive_although_input_was_unread(bed: Bed) -> None:
    client, handle = bed.open()
    client.setblocking(False)
    client.send(frame(b"c", b"1234") + bytes(300_000))  # more than was read when the close came
    got = bytearray()
    deadline = time.monotonic() + 5
    while True:
        assert time.monotonic() < deadline
        bed.reactor.turn(1)
        with contextlib.suppress(BlockingIOError):
            client.send(bytes(10_000))
        with contextlib.suppress(BlockingIOError):
            data = client.recv(100)
            if not data:
                break
            got += data
    assert got == b"bye"
    assert bed.reactor.ends == [20]
    assert not bed.reactor.alive(handle)
    client.close()
    bed.settle()
    assert bed.reactor.stats["links_open"] == 0


def test_lingering_ends_by_itself(tcp: Bed) -> None:
    client, handle = tcp.open()
    fd = tcp.reactor.state(handle)["fd"]
    tcp.reactor.close(handle)
    tcp.settle()
    assert tcp.reactor.ends == [16]
    assert client.recv(1) == b""
    assert is_open(fd), "the peer still talks"
    tcp.reactor.clock.move(2200)
    tcp.settle()
    assert not is_open(fd)


def is_open(fd: int) -> bool:
    try:
        socket.close(socket.dup(fd))
    except OSError:
        return False
    return True


def test_a_peer_that_talks_on_is_cut_off(tcp: Bed) -> None:
    client, handle = tcp.open()
    fd = tcp.reactor.state(handle)["fd"]
    tcp.reactor.close(handle)
    client.setblocking(False)
    sent = 0
    deadline = time.monotonic() + 10
    while is_open(fd):
        assert time.monotonic() < deadline
        with contextlib.suppress(BlockingIOError, ConnectionError):
            sent += client.send(bytes(1 << 20))
        tcp.reactor.turn(0)
    assert sent >= 8 << 20


def test_queued_output_leaves_before_the_stream_ends(bed: Bed) -> None:
    n = 6_000_000
    client, handle = bed.open()
    bed.reactor.send_pattern(handle, n)
    bed.reactor.close(handle, 77)
    bed.settle()
    assert bed.reactor.ends == [77]
    client.sendall(b"ignored")
    assert bed.receive(client, n, 20) == pattern(n)
    client.setblocking(False)
    bed.settle()
    assert client.recv(1) == b""


def test_output_that_nobody_takes_does_not_hold_a_closing_link(tcp: Bed) -> None:
    _, handle = tcp.open()
    fd = tcp.reactor.state(handle)["fd"]
    tcp.reactor.send_pattern(handle, 9_000_000)
    tcp.reactor.close(handle)
    tcp.settle(10)
    assert is_open(fd) and tcp.reactor.chunks_live > 0
    tcp.reactor.clock.move(2200)
    tcp.settle()
    assert not is_open(fd) and tcp.reactor.chunks_live == 0


def test_a_peer_that_stops_talking_still_gets_its_answer(bed: Bed) -> None:
    client, _ = bed.open()
    client.sendall(frame(b"w", struct.pack(">I", 5_000_000)))
    client.shutdown(socket.SHUT_WR)
    assert bed.receive(client, 5_000_000, 20) == pattern(5_000_000)
    client.setblocking(True)
    bed.settle()
    assert client.recv(1) == b""
    assert bed.reactor.ends == [PEER_CLOSED]


def test_closing_twice_ends_once_with_the_first_reason(tcp: Bed) -> None:
    client, handle = tcp.open()
    tcp.reactor.close(handle, 21)
    tcp.reactor.close(handle, 22)
    client.close()
    tcp.settle()
    assert tcp.reactor.ends == [21]


def test_closing_a_link_that_was_just_resumed(tcp: Bed) -> None:
    client, handle = tcp.open()
    tcp.reactor.pause(handle)
    client.sendall(frame(b"s"))
    tcp.settle()
    tcp.reactor.resume(handle)
    tcp.reactor.close(handle, 30)
    tcp.settle()
    assert tcp.reactor.ends == [30] and tcp.reactor.stats["frames"] == 0
    client.close()
    tcp.settle()
    assert tcp.open()[1][0] == handle[0], "the slot is free again"


def test_a_handle_of_a_gone_link_names_nothing(tcp: Bed) -> None:
    client, handle = tcp.open()
    client.close()
    tcp.until(lambda: tcp.reactor.stats["ended"] == 1)
    assert not tcp.reactor.alive(handle)
    _, again = tcp.open()
    assert again[0] == handle[0] and again[1] != handle[1]
    assert not tcp.reactor.alive(handle) and tcp.reactor.alive(again)
    with pytest.raises(LookupError):
        tcp.reactor.close(handle)


def test_events_of_a_link_that_closed_in_the_same_batch_are_ignored(tcp: Bed) -> None:
    handles = [tcp.open() for _ in range(50)]
    for client, _ in handles:
        client.sendall(frame(b"c") + frame(b"s"))
        reset(client)
    time.sleep(0.05)
    tcp.until(lambda: tcp.reactor.stats["ended"] == 50)
    assert tcp.reactor.stats["links_open"] == 0
    client, _ = tcp.open()
    client.sendall(frame(b"e"))
    assert tcp.receive(client, 5) == frame(b"e")


# ---------------------------------------------------------------------------------------------- accepting


def test_a_refused_connection_is_closed_at_once(bed: Bed) -> None:
    bed.reactor.refuse(1)
    client = bed.connect()
    bed.until(lambda: bed.reactor.stats["accepted"] == 1)
    assert client.recv(1) == b""
    bed.settle()
    stats = bed.reactor.stats
    assert stats["opened"] == 0 and stats["ended"] == 0 and stats["links_open"] == 0
    bed.open()


def test_many_at_once_are_accepted_in_portions(tcp: Bed) -> None:
    clients = [tcp.connect() for _ in range(100)]
    tcp.reactor.turn(100)
    assert tcp.reactor.stats["accepted"] == 64
    tcp.reactor.turn(100)
    assert tcp.reactor.stats["accepted"] == len(clients)


def test_unlisten_stops_accepting_and_leaves_the_links(tcp: Bed) -> None:
    client, _ = tcp.open()
    tcp.reactor.unlisten()
    tcp.connect()
    tcp.settle()
    assert tcp.reactor.stats["accepted"] == 1
    client.sendall(frame(b"e"))
    assert tcp.receive(client, 5) == frame(b"e")


TOO_MANY_FILES = """
    import errno, os, resource, socket, sys, time
    import tests.net.conftest
    from tests.face.net_reactor import ReactorFace
    server = socket.create_server(("127.0.0.1", 0))
    server.setblocking(False)
    reactor = ReactorFace()
    assert reactor.listen(server.fileno(), 0)
    early = socket.create_connection(server.getsockname())
    while not reactor.links():
        reactor.turn(100)
    waiting = [socket.create_connection(server.getsockname()) for _ in range(3)]
    highest = max(int(name) for name in os.listdir("/dev/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest - 0, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    full = []
    while True:
        try:
            full.append(os.dup(0))
        except OSError:
            break
    reactor.turn(100)
    assert reactor.stats["accept_errors"] == 1 == reactor.stats["accept_errors_told"], reactor.stats
    assert reactor.last_accept_error == errno.EMFILE
    early.sendall(b"e\\0\\0\\0\\0")
    while reactor.stats["frames"] < 1:
        reactor.turn(10)
    assert early.recv(5) == b"e\\0\\0\\0\\0"
    start = time.monotonic()
    reactor.turn(80)
    assert time.monotonic() - start > 0.06, "the listener keeps the loop awake"
    assert reactor.stats["accept_errors"] == 1
    for fd in full:
        os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 50, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    start = time.monotonic()
    while reactor.stats["accepted"] < 4:
        reactor.turn(100)
    assert time.monotonic() - start < 2
    print("survived")
"""


def test_too_many_open_files_is_survived_and_counted() -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(TOO_MANY_FILES)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.stdout.strip() == "survived", done.stderr


# ---------------------------------------------------------------------------------------------- own sockets, moving links


def test_an_own_socket_that_is_still_connecting(tcp: Bed) -> None:
    client = socket.socket()
    client.setblocking(False)
    assert client.connect_ex(tcp.server.getsockname()) in (0, errno.EINPROGRESS)
    other = ReactorFace()
    handle = other.open_fd(client.detach())
    other.send(handle, frame(b"e", b"from us"))
    deadline = time.monotonic() + 5
    while other.stats["frames"] < 3:
        assert time.monotonic() < deadline
        other.turn(1)
        tcp.reactor.turn(1)  # both echo: it goes round
    other.free()


class Shy:
    """A link over a transport whose writes wait for input, on its way to a socket of ours that accepts late."""

    def __init__(self, due: int = 4) -> None:
        self.server = socket.create_server(("127.0.0.1", 0))
        self.reactor = ReactorFace()
        client = socket.socket()
        client.setblocking(False)
        assert client.connect_ex(self.server.getsockname()) in (0, errno.EINPROGRESS)
        self.handle = self.reactor.open_shy(client.detach(), due)
        self.peer = socket.socket()

    def greeted(self) -> None:
        """The peer has its greeting, and the output that was appended before waits for an answer."""
        self.peer, _ = self.server.accept()
        self.until(lambda: self.state()["wants_in"])
        assert self.peer.recv(10) == b"?"
        assert not self.state()["wants_out"]

    def state(self) -> dict[str, object]:
        return self.reactor.state(self.handle)

    def until(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 5
        while not done():
            assert time.monotonic() < deadline, (self.reactor.stats, self.reactor.ends)
            self.reactor.turn(5)

    def received(self) -> bytes:
        self.peer.setblocking(False)
        got = bytearray()

        def arrived() -> bool:
            with contextlib.suppress(BlockingIOError):
                got.extend(self.peer.recv(1000))
            return bool(got)

        self.until(arrived)
        return bytes(got)


@pytest.fixture
def shy() -> Iterator[Shy]:
    made = Shy()
    yield made
    made.peer.close()
    made.server.close()
    made.reactor.free()


def test_a_write_that_waits_for_input_costs_no_turns_and_goes_on_by_a_read(shy: Shy) -> None:
    shy.reactor.send(shy.handle, b"held")
    shy.greeted()
    assert shy.reactor.refused_writes(shy.handle) == 1
    shy.reactor.send(shy.handle, b" back")  # more output changes nothing
    turns = shy.reactor.stats["turns"]
    shy.reactor.turn(0, 3)
    shy.reactor.turn(50)  # a whole wait: no READY_OUT is armed
    assert shy.reactor.stats["turns"] == turns + 4
    assert shy.reactor.refused_writes(shy.handle) == 1
    assert shy.state()["out_bytes"] == 9
    shy.peer.sendall(b"ab")
    shy.until(lambda: shy.reactor.refused_writes(shy.handle) == 2)  # half of what is due: tried once more, and waits again
    assert shy.state()["wants_in"]
    shy.peer.sendall(b"cd")
    assert shy.received() == b"held back"
    assert not shy.state()["wants_in"] and not shy.state()["wants_out"]
    assert (shy.reactor.stats["drained"], shy.reactor.stats["short_writes"]) == (1, 0)
    shy.peer.sendall(frame(b"e", b"on"))
    assert shy.received() == frame(b"e", b"on")


def test_a_write_that_waits_for_input_while_paused(shy: Shy) -> None:
    shy.reactor.send(shy.handle, b"held")
    shy.greeted()
    shy.reactor.pause(shy.handle)
    shy.peer.sendall(b"abcd")
    shy.reactor.turn(5, 5)
    assert shy.state()["wants_in"] and shy.state()["out_bytes"] == 4
    shy.reactor.resume(shy.handle)
    assert shy.received() == b"held"


def test_a_closing_link_whose_write_waits_for_input_still_says_its_last_words(shy: Shy) -> None:
    shy.reactor.send(shy.handle, b"bye")
    shy.greeted()
    shy.reactor.close(shy.handle)
    shy.reactor.turn(0, 2)
    assert shy.reactor.ends == [16]
    shy.peer.sendall(b"abcd")
    assert shy.received() == b"bye"
    shy.peer.setblocking(True)
    assert shy.peer.recv(1) == b""


def test_closing_paused_while_the_write_waits_for_input(shy: Shy) -> None:
    shy.reactor.send(shy.handle, b"bye")
    shy.greeted()
    shy.reactor.pause(shy.handle)
    shy.peer.sendall(b"ab")
    shy.reactor.turn(5, 3)  # READY_IN is off now
    shy.reactor.close(shy.handle)
    shy.reactor.turn(0, 2)
    shy.peer.sendall(b"cd")
    assert shy.received() == b"bye"


@pytest.mark.parametrize("closing", [False, True])
def test_a_peer_that_ends_while_the_write_waits_for_it(shy: Shy, closing: bool) -> None:
    shy.reactor.send(shy.handle, b"never")
    shy.greeted()
    if closing:
        shy.reactor.close(shy.handle)
        shy.reactor.turn(0)
    shy.peer.close()
    shy.until(lambda: shy.reactor.ends == [16 if closing else PEER_CLOSED])
    shy.reactor.clock.move(10_000)  # the most that output waits for
    shy.until(lambda: shy.reactor.chunks_live == 0)
    assert shy.reactor.links() == []


def test_a_connect_that_is_refused_ends_the_link(make: Callable[..., Bed]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
    client = socket.socket()
    client.setblocking(False)
    client.connect_ex(address)
    reactor = ReactorFace()
    handle = reactor.open_fd(client.detach())
    reactor.send(handle, b"x")
    deadline = time.monotonic() + 5
    while not reactor.ends:
        assert time.monotonic() < deadline
        reactor.turn(10)
    assert reactor.ends[0] in (PEER_RESET, WRITE_FAILED)
    reactor.free()


def test_a_link_moves_to_another_reactor_with_its_leftover(make: Callable[..., Bed]) -> None:
    first, second = make(), make()
    client, handle = first.open()
    client.sendall(frame(b"d") + frame(b"e", b"whole") + frame(b"e", b"cut off")[:7])
    first.until(lambda: first.reactor.stats["detached"] == 1)
    assert not first.reactor.alive(handle) and first.reactor.stats["links_open"] == 0
    parcel = first.reactor.take_parcel()
    assert parcel.leftover == frame(b"e", b"whole") + frame(b"e", b"cut off")[:7]
    moved = second.reactor.adopt(parcel)
    state = second.reactor.state(moved)
    assert state["paused"] and state["listener"] == 3 and state["peer"].startswith("127.0.0.1:")
    second.settle()
    assert second.reactor.stats["frames"] == 0
    second.reactor.resume(moved)
    assert second.receive(client, 10) == frame(b"e", b"whole")
    client.sendall(frame(b"e", b"cut off")[7:])
    assert second.receive(client, 12) == frame(b"e", b"cut off")
    assert first.reactor.ends == [] and first.reactor.stats["frames"] == 1
    client.close()
    second.until(lambda: second.reactor.ends == [PEER_CLOSED])


def test_detaching_by_itself_takes_what_the_link_holds(make: Callable[..., Bed]) -> None:
    first, second = make(), make()
    client, handle = first.open()
    body = random.Random(9).randbytes(50000)
    client.sendall(frame(b"s", body)[:30000])
    first.until(lambda: first.reactor.state(handle)["has_block"])
    first.until(lambda: first.reactor.state(handle)["partial_bytes"] == 30000)
    parcel = first.reactor.detach(handle)
    assert parcel.leftover == frame(b"s", body)[:30000] and first.reactor.pool_live == 0
    moved = second.reactor.adopt(parcel)
    second.reactor.resume(moved)
    client.sendall(frame(b"s", body)[30000:])
    second.until(lambda: second.reactor.stats["frames"] == 1)
    assert second.reactor.stats["sum"] == sum(body)


def test_detaching_when_it_is_accepted(make: Callable[..., Bed]) -> None:
    first, second = make(), make()
    first.reactor.detach_on_open(1)
    client = first.connect()
    first.until(lambda: first.reactor.stats["detached"] == 1)
    assert first.reactor.links() == [] and first.reactor.stats["links_open"] == 0
    moved = second.reactor.adopt(first.reactor.take_parcel())
    second.reactor.resume(moved)
    client.sendall(frame(b"e", b"hi"))
    assert second.receive(client, 7) == frame(b"e", b"hi")


def test_a_closing_link_cannot_be_detached(tcp: Bed) -> None:
    _, handle = tcp.open()
    tcp.reactor.close(handle)
    with pytest.raises(OSError):
        tcp.reactor.detach(handle)


# ---------------------------------------------------------------------------------------------- time and mail


def test_time_is_moved_by_the_clock(tcp: Bed) -> None:
    _, handle = tcp.open()
    mono, wall = tcp.reactor.now_ms, tcp.reactor.wall_ms
    tcp.reactor.arm_timer(handle, 3_600_000)
    tcp.settle()
    assert tcp.reactor.stats["timers"] == 0
    tcp.reactor.clock.move(3_600_100, 7_000_000)
    tcp.reactor.turn(0)
    stats = tcp.reactor.stats
    assert stats["timers"] == 1 and stats["late_timers"] == 0
    assert 3_600_100 <= tcp.reactor.now_ms - mono < 3_605_000
    assert 7_000_000 <= tcp.reactor.wall_ms - wall < 7_005_000


def test_a_moved_clock_and_a_wake_are_enough_in_a_thread(tcp: Bed) -> None:
    _, handle = tcp.open()
    tcp.reactor.arm_timer(handle, 60_000)
    thread = run_in_thread(tcp.reactor)
    time.sleep(0.05)
    tcp.reactor.clock.move(60_100)
    tcp.reactor.wake()
    wait_for(lambda: tcp.reactor.stats["timers"] == 1, 2)
    tcp.reactor.stop()
    thread.join()


def test_timers_end_the_wait(tcp: Bed) -> None:
    _, handle = tcp.open()
    tcp.reactor.arm_timer(handle, 150)
    start = time.monotonic()
    turns = 0
    while not tcp.reactor.stats["timers"]:
        tcp.reactor.turn(5000)
        turns += 1
        assert turns < 20
    assert 0.14 <= time.monotonic() - start < 4


def test_a_timer_dies_with_its_link(tcp: Bed) -> None:
    client, handle = tcp.open()
    tcp.reactor.arm_timer(handle, 1000)
    client.close()
    tcp.until(lambda: tcp.reactor.stats["ended"] == 1)
    tcp.reactor.clock.move(10_000)
    tcp.settle()
    assert tcp.reactor.stats["timers"] == 0


def test_mail_wakes_and_comes_as_one_chain(tcp: Bed) -> None:
    for _ in range(100):
        tcp.reactor.note()
    tcp.reactor.turn(1000)
    stats = tcp.reactor.stats
    assert stats["notes"] == 100 and stats["mails"] == 1
    start = time.monotonic()
    tcp.reactor.turn(50)
    assert time.monotonic() - start > 0.03, "the wake descriptor is still readable"


def test_mail_from_many_threads_is_all_there(tcp: Bed) -> None:
    thread = run_in_thread(tcp.reactor)
    posters = [threading.Thread(target=lambda: [tcp.reactor.note() for _ in range(2000)]) for _ in range(4)]
    for poster in posters:
        poster.start()
    for poster in posters:
        poster.join()
    wait_for(lambda: tcp.reactor.stats["notes"] == 8000)
    tcp.reactor.stop()
    thread.join()


# ---------------------------------------------------------------------------------------------- many, and memory


def test_an_idle_link_owns_nothing(tcp: Bed) -> None:
    client, handle = tcp.open()
    client.sendall(frame(b"e", bytes(30000)) + frame(b"s", bytes(5000))[:4000])
    tcp.receive(client, 30005)
    tcp.until(lambda: tcp.reactor.state(handle)["partial_bytes"] == 4000)
    assert tcp.reactor.state(handle)["partial_capacity"] <= 8192
    client.sendall(bytes(1005))
    tcp.until(lambda: tcp.reactor.stats["frames"] == 2)
    state = tcp.reactor.state(handle)
    assert not state["has_partial"] and not state["has_block"] and not state["owns_output"] and state["partial_capacity"] == 0


def test_two_thousand_links_in_a_thread(tcp: Bed) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 4200
    if hard != resource.RLIM_INFINITY and hard < needed:
        pytest.skip(f"no more than {hard} open files here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
    thread = run_in_thread(tcp.reactor)
    try:
        clients = [tcp.connect() for _ in range(2000)]
        wait_for(lambda: tcp.reactor.stats["opened"] == 2000, 30)
        for i, client in enumerate(clients):
            client.sendall(frame(b"e", b"%05d" % i))
        for i, client in enumerate(clients):
            client.settimeout(20)
            assert client.recv(100) == frame(b"e", b"%05d" % i)
        for client in clients:
            client.close()
        wait_for(lambda: tcp.reactor.stats["ended"] == 2000, 30)
    finally:
        tcp.reactor.stop()
        thread.join()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert tcp.reactor.stats["links_open"] == 0 and tcp.reactor.chunks_live == 0
    assert set(tcp.reactor.ends) == {PEER_CLOSED}


def test_two_reactors_share_a_listener(make: Callable[..., Bed]) -> None:
    first, second = make(), make()
    assert second.reactor.listen(first.server.fileno(), 9)
    threads = [run_in_thread(first.reactor), run_in_thread(second.reactor)]
    try:
        for i in range(200):
            client = first.connect()
            client.sendall(frame(b"e", b"%03d" % i))
            client.settimeout(10)
            assert client.recv(8) == frame(b"e", b"%03d" % i)
    finally:
        for bed in (first, second):
            bed.reactor.stop()
        for thread in threads:
            thread.join()
    assert first.reactor.stats["accepted"] + second.reactor.stats["accepted"] == 200


def test_free_closes_what_is_open(make: Callable[..., Bed]) -> None:
    bed = make()
    client, handle = bed.open()
    bed.reactor.send_pattern(handle, 9_000_000)
    client.sendall(frame(b"s", bytes(90000))[:40000])
    bed.until(lambda: bed.reactor.state(handle)["has_block"])
    bed.reactor.note()
    bed.reactor.free()
    readable, _, _ = select.select([client], [], [], 5)
    assert readable
    assert bed.reactor.pool_live == 0


@pytest.mark.skipif(not ALLOC_TESTED, reason="this build cannot refuse allocations")
@pytest.mark.parametrize("once", [True, False])
def test_no_memory_costs_the_link_and_not_the_process(make: Callable[..., Bed], once: bool) -> None:
    lost = 0
    for granted in range(8):
        bed = make()
        client = bed.connect()
        body = random.Random(granted).randbytes(20000)
        fail_allocations(granted, once)
        try:
            bed.settle()
            with contextlib.suppress(OSError):
                client.sendall(frame(b"e", b"short")[:7])
                bed.settle()
                client.sendall(frame(b"e", b"short")[7:] + frame(b"e", body)[:9000])
                bed.settle()
                client.sendall(frame(b"e", body)[9000:])
            bed.settle()
        finally:
            fail_allocations(-1)
        stats = bed.reactor.stats
        lost += stats["ended"] + stats["accept_errors"]
        assert set(bed.reactor.ends) <= {NO_MEMORY}
        bed.reactor.clock.move(600)  # a listener that could not hold the connection rests
        if not stats["ended"] and not stats["accept_errors"]:
            assert bed.receive(client, 20015) == frame(b"e", b"short") + frame(b"e", body)
        fresh, _ = bed.open()
        fresh.sendall(frame(b"e", b"alive"))
        assert bed.receive(fresh, 10) == frame(b"e", b"alive")
    assert lost >= 3


@pytest.mark.skipif(not ALLOC_TESTED, reason="this build cannot refuse allocations")
def test_no_memory_for_a_reactor(make: Callable[..., Bed]) -> None:
    before = blocks_live()
    refused = 0
    while True:
        fail_allocations(refused)
        try:
            ReactorFace().free()
            break
        except MemoryError:
            refused += 1
        finally:
            fail_allocations(-1)
    assert refused >= 5 and blocks_live() == before
