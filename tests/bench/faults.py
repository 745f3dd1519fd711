"""A relay that drops, repeats, reorders or damages PUBLISH packets on their way from a broker to its clients, on purpose."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

Faults = Callable[[int, bytes], list[bytes]]
"""What becomes of a connection's PUBLISH number n (from 0): the packets that go on instead of it."""

PUBLISH = 3


def frames(buffer: bytearray) -> Iterator[bytes]:
    """Takes whole packets off the front, by their fixed headers."""
    while True:
        length, shift, at = 0, 0, 1
        while at < len(buffer) and shift < 28:
            length |= (buffer[at] & 127) << shift
            shift += 7
            at += 1
            if buffer[at - 1] < 128:
                break
        else:
            return
        if len(buffer) < at + length:
            return
        yield bytes(buffer[: at + length])
        del buffer[: at + length]


def drop(at: int) -> Faults:
    return lambda number, packet: [] if number == at else [packet]


def repeat(at: int) -> Faults:
    return lambda number, packet: [packet, packet] if number == at else [packet]


def damage(at: int) -> Faults:
    """The magic number of the payload; topics of the tests and packet ids are longer than what stands before it."""
    return lambda number, packet: [packet[:-64] + b"\xff" * 4 + packet[-60:]] if number == at else [packet]


def reorder(at: int) -> Faults:
    """Number `at` goes after the one that follows it."""
    held: list[bytes] = []

    def faults(number: int, packet: bytes) -> list[bytes]:
        if number == at:
            held.append(packet)
            return []
        if number == at + 1:
            return [packet, held.pop()]
        return [packet]

    return faults


def cut(at: int) -> Faults:
    """The connection ends."""

    def faults(number: int, packet: bytes) -> list[bytes]:
        if number == at:
            raise ConnectionAbortedError
        return [packet]

    return faults


class FaultyRelay:
    """Relays to a broker's port; the faults happen on the first connection that receives a PUBLISH, the others are left alone."""

    def __init__(self, broker_port: int, faults: Faults) -> None:
        self._broker_port = broker_port
        self._faults = faults
        self._victim: object | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._main, name="faulty-relay")
        self._ready = threading.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._end: asyncio.Event
        self.port = 0

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(10)
        assert not self._thread.is_alive()

    def _main(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._end = asyncio.Event()
        server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._end.wait()
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_broker, from_client = None, asyncio.current_task()
        assert from_client is not None
        self._tasks.add(from_client)
        try:
            from_broker, to_broker = await asyncio.open_connection("127.0.0.1", self._broker_port)
            ways = [asyncio.ensure_future(self._copy(reader, to_broker)), asyncio.ensure_future(self._deliver(from_broker, writer))]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        finally:
            self._tasks.discard(from_client)
            writer.close()
            if to_broker is not None:
                to_broker.close()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()

    async def _deliver(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        buffer, count = bytearray(), 0
        while data := await reader.read(65536):
            buffer += data
            for packet in frames(buffer):
                if packet[0] >> 4 != PUBLISH:
                    writer.write(packet)
                    continue
                if self._victim is None:
                    self._victim = writer
                for part in self._faults(count, packet) if self._victim is writer else [packet]:
                    writer.write(part)
                count += 1
            await writer.drain()
