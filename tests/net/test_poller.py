"""The poller's contract, over this system's poller and over the kqueue one (which runs on a stand-in where there is no kqueue)."""

from __future__ import annotations

import importlib
import os
import socket
import struct
import sys
import time
from collections.abc import Iterator
from types import ModuleType

import pytest

from tests.face.net_poller import HANGUP, IN, OUT, SHARED, PollerFace

KQUEUE_IS_NATIVE = not sys.platform.startswith("linux")
MODULES = ["mqttc.net.poller"] if KQUEUE_IS_NATIVE else ["mqttc.net.poller", "tests.face.kqueue_poller"]


@pytest.fixture(params=MODULES)
def module(request: pytest.FixtureRequest) -> ModuleType:
    return importlib.import_module(request.param)


@pytest.fixture
def poller(module: ModuleType) -> Iterator[PollerFace]:
    face = PollerFace(module)
    yield face
    face.close()


@pytest.fixture(params=["tcp", "unix"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    """(ours, the peer's)"""
    if request.param == "unix":
        ours, peer = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as server:
            peer = socket.create_connection(server.getsockname())
            ours, _ = server.accept()
    ours.setblocking(False)
    with ours, peer:
        yield ours, peer


def reset(peer: socket.socket) -> None:
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        peer = socket.create_connection(server.getsockname())
        ours, _ = server.accept()
    ours.setblocking(False)
    return ours, peer


def test_nothing_is_ready_at_first(poller: PollerFace, pair: tuple[socket.socket, socket.socket]) -> None:
    assert poller.add(pair[0].fileno(), IN, 7)
    assert poller.wait() == {}


def test_input_is_level_triggered_and_carries_the_whole_token(poller: PollerFace, pair: tuple[socket.socket, socket.socket]) -> None:
    ours, peer = pair
    token = 0xFEDC_BA98_7654_3210
    assert poller.add(ours.fileno(), IN, token)
    peer.send(b"ab")
    assert poller.wait(1000) == {token: IN}
    assert ours.recv(1) == b"a"
    assert poller.wait(1000) == {token: IN}
    assert ours.recv(1) == b"b"
    assert poller.wait() == {}


def test_output_only_while_asked_for(poller: PollerFace, pair: tuple[socket.socket, socket.socket]) -> None:
    ours, _ = pair
    assert poller.add(ours.fileno(), IN, 1)
    assert poller.wait() == {}
    assert poller.change(ours.fileno(), IN | OUT, 2)
    assert poller.wait(1000) == {2: OUT}
    assert poller.wait(1000) == {2: OUT}
    assert poller.change(ours.fileno(), IN, 3)
    assert poller.wait() == {}


def test_output_waits_for_room(poller: PollerFace, pair: tuple[socket.socket, socket.socket]) -> None:
    ours, peer = pair
    sent = 0
    try:
        while True:
            sent += ours.send(bytes(65536))
    except BlockingIOError:
        pass
    assert poller.add(ours.fileno(), IN | OUT, 1)
    assert poller.wait() == {}
    while sent:
        sent -= len(peer.recv(min(sent, 1 << 20)))
    assert poller.wait(1000) == {1: OUT}


def test_without_interest_input_is_silent_and_comes_back(poller: PollerFace, pair: tuple[socket.socket, socket.socket]) -> None:
    ours, peer = pair
    assert poller.add(ours.fileno(), IN, 1)
    assert poller.change(ours.fileno(), 0, 1)
    for _ in range(3):
        peer.send(b"x")
        assert poller.wait(20) == {}
    assert poller.change(ours.fileno(), IN, 2)
    assert poller.wait(1000) == {2: IN}


@pytest.mark.parametrize("interest", [IN, 0, OUT, IN | OUT])
def test_a_reset_is_reported_whatever_the_interest(poller: PollerFace, interest: int) -> None:
    ours, peer = tcp_pair()
    with ours:
        assert poller.add(ours.fileno(), interest, 1)
        reset(peer)
        deadline = time.monotonic() + 2
        seen = 0
        while not seen & HANGUP and time.monotonic() < deadline:
            seen = poller.wait(100).get(1, 0)
        assert seen & HANGUP


def test_a_reset_after_unread_input_is_reported_without_interest(poller: PollerFace) -> None:
    ours, peer = tcp_pair()
    with ours:
        assert poller.add(ours.fileno(), 0, 1)
        peer.send(b"unread")
        assert poller.wait(20) == {}
        reset(peer)
        assert poller.wait(1000).get(1, 0) & HANGUP


def test_a_half_closed_peer_is_input_and_silent_without_interest(poller: PollerFace, pair: tuple[socket.socket, socket.socket]) -> None:
    ours, peer = pair
    assert poller.add(ours.fileno(), IN, 1)
    peer.shutdown(socket.SHUT_WR)
    assert poller.wait(1000) == {1: IN}
    assert ours.recv(1) == b""
    assert poller.change(ours.fileno(), 0, 1)
    assert poller.wait(30) == {}


def test_removed_descriptors_are_silent_and_may_come_back(poller: PollerFace, pair: tuple[socket.socket, socket.socket]) -> None:
    ours, peer = pair
    assert poller.add(ours.fileno(), IN | OUT, 1)
    peer.send(b"x")
    poller.remove(ours.fileno())
    poller.remove(ours.fileno())
    assert poller.wait(20) == {}
    assert poller.add(ours.fileno(), IN, 9)
    assert poller.wait(1000) == {9: IN}


def test_a_closed_descriptor_is_an_error(poller: PollerFace) -> None:
    ours, peer = socket.socketpair()
    number = ours.fileno()
    ours.close()
    peer.close()
    assert not poller.add(number, IN, 1)


def test_no_more_events_than_asked_for_and_none_is_lost(poller: PollerFace) -> None:
    pairs = [socket.socketpair() for _ in range(20)]
    for token, (ours, peer) in enumerate(pairs):
        assert poller.add(ours.fileno(), IN, token)
        peer.send(b"x")
    seen: set[int] = set()
    for _ in range(20):
        ready = poller.wait(100, 4)
        assert len(ready) <= 4
        for token in ready:
            pairs[token][0].recv(1)
        seen |= set(ready)
    assert seen == set(range(20))
    for ours, peer in pairs:
        ours.close()
        peer.close()


def test_the_wait_ends_with_its_time(poller: PollerFace, pair: tuple[socket.socket, socket.socket]) -> None:
    assert poller.add(pair[0].fileno(), IN, 1)
    start = time.monotonic()
    assert poller.wait(80) == {}
    assert 0.06 <= time.monotonic() - start < 2


def test_a_listener_shared_by_two_pollers(module: ModuleType) -> None:
    first, second = PollerFace(module), PollerFace(module)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        assert first.add(server.fileno(), IN | SHARED, 1)
        assert second.add(server.fileno(), IN | SHARED, 2)
        with socket.create_connection(server.getsockname()):
            assert first.wait(500) or second.wait(500)
        first.remove(server.fileno())
        with socket.create_connection(server.getsockname()):
            assert second.wait(1000) == {2: IN}
            assert first.wait() == {}
    first.close()
    second.close()


def test_the_pollers_descriptor_is_not_inherited(poller: PollerFace) -> None:
    assert not os.get_inheritable(poller.fd)
