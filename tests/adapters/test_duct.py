"""The socket pair's side of an adapter: flow control both ways, and its ends."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

import pytest

from mqttc.adapters import duct as module
from mqttc.adapters.duct import Duct


class Recorder:
    def __init__(self) -> None:
        self.received = bytearray()
        self.rooms = 0
        self.ended = False
        self.changed = asyncio.Event()

    def duct_bytes(self, data: bytes) -> None:
        self.received += data
        self.changed.set()

    def duct_room(self) -> None:
        self.rooms += 1
        self.changed.set()

    def duct_ended(self) -> None:
        self.ended = True
        self.changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


def run(scenario: Callable[[Duct, socket.socket, Recorder], Awaitable[None]]) -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        recorder = Recorder()
        duct = Duct(asyncio.get_running_loop(), ours, recorder)
        try:
            await scenario(duct, theirs, recorder)
        finally:
            duct.close()
            theirs.close()

    asyncio.run(main())


async def read_all(peer: socket.socket, count: int) -> bytes:
    loop = asyncio.get_running_loop()
    got = bytearray()
    while len(got) < count:
        data = await asyncio.wait_for(loop.sock_recv(peer, 65536), 5)
        if not data:
            break
        got += data
    return bytes(got)


def test_bytes_go_both_ways() -> None:
    async def scenario(duct: Duct, peer: socket.socket, recorder: Recorder) -> None:
        assert duct.feed(b"to the broker")
        assert await read_all(peer, 13) == b"to the broker"
        peer.send(b"to the peer")
        await recorder.until(lambda: recorder.received == b"to the peer")

    run(scenario)


def test_a_full_socket_asks_to_wait_and_tells_when_there_is_room() -> None:
    async def scenario(duct: Duct, peer: socket.socket, recorder: Recorder) -> None:
        data = bytes(range(256)) * 16384
        assert not duct.feed(data)
        assert not duct.feed(b"more")
        assert duct.backlog > 0 and recorder.rooms == 0
        assert await read_all(peer, len(data) + 4) == data + b"more"
        await recorder.until(lambda: recorder.rooms == 1)
        assert duct.backlog == 0

    run(scenario)


def test_nothing_is_read_while_paused() -> None:
    async def scenario(duct: Duct, peer: socket.socket, recorder: Recorder) -> None:
        duct.pause()
        peer.send(b"waits")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert recorder.received == b""
        duct.resume()
        await recorder.until(lambda: recorder.received == b"waits")

    run(scenario)


def test_the_end_of_the_peer_comes_behind_what_was_fed() -> None:
    async def scenario(duct: Duct, peer: socket.socket, recorder: Recorder) -> None:
        data = b"x" * 4_000_000
        duct.feed(data)
        duct.finish()
        assert len(await read_all(peer, len(data) + 1)) == len(data)
        peer.send(b"last words")
        peer.close()
        await recorder.until(lambda: recorder.ended)
        assert recorder.received == b"last words" and duct.closed

    run(scenario)


def test_a_broker_that_has_gone_is_told_by_the_read() -> None:
    async def scenario(duct: Duct, peer: socket.socket, recorder: Recorder) -> None:
        peer.close()
        assert duct.feed(b"nobody there")
        await recorder.until(lambda: recorder.ended)
        assert duct.feed(b"still harmless")

    run(scenario)


def test_a_paused_duct_does_not_outlive_the_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that takes nothing would keep it: after a while the end is looked for, and what lies before it is given up."""
    monkeypatch.setattr(module, "STUCK_S", 0.02)

    async def scenario(duct: Duct, peer: socket.socket, recorder: Recorder) -> None:
        for _ in range(3):
            duct.pause()
            duct.resume()
        duct.pause()
        peer.send(b"unread")
        looked = asyncio.Event()
        monkeypatch.setattr(duct, "_is_hung_up", lambda hung_up=duct._is_hung_up: looked.set() or hung_up())
        await asyncio.wait_for(looked.wait(), 5)
        assert not recorder.ended and not duct.closed, "the broker is there"
        peer.close()
        await recorder.until(lambda: recorder.ended)
        assert duct.closed and not recorder.received

    run(scenario)


def test_a_duct_that_is_read_again_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STUCK_S", 3600.0)

    async def scenario(duct: Duct, peer: socket.socket, recorder: Recorder) -> None:
        duct.pause()
        peer.send(b"last words")
        peer.close()
        duct.resume()
        await recorder.until(lambda: recorder.ended)
        assert recorder.received == b"last words"

    run(scenario)
