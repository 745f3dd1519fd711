"""Line: one spliced connection as bytes in and out, with back-pressure and an orderly end. What is spoken on it is its speaker's.

A line belongs to the loop's thread. It holds no input; what it has not sent yet is what its speaker wrote past `Line.full`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

_HIGH_BYTES: Final = 65536
TURN_S: Final = 0.005
"""Seconds that the input of one peer may take before others have their turn."""
LINGER_S: Final = 2.0
"""Seconds that the peer has, after our end, to read what was sent and close."""


class Speaker(Protocol):
    """A protocol on a line: HTTP/1.1 or HTTP/2."""

    def received(self, data: bytes) -> None:
        """Bytes of the peer."""

    def room(self) -> None:
        """The line was full, and takes more again."""

    def ended(self) -> None:
        """The peer sends no more. Until the speaker ends the line, it can still send."""

    def lost(self) -> None:
        """The connection is gone. Nothing is called after this; called once, however it came to be."""

    def end(self) -> None:
        """The server stops: finish what runs, begin nothing, then end the line."""


class Turns:
    """What lines have postponed. One of them goes on in each turn of the loop, so that however many there are, others do not wait long."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: deque[Callable[[], None]] = deque()

    def add(self, call: Callable[[], None]) -> None:
        self._waiting.append(call)
        if len(self._waiting) == 1:
            self._loop.call_soon(self._next)

    def _next(self) -> None:
        call = self._waiting.popleft()
        if self._waiting:
            self._loop.call_soon(self._next)
        call()


class Line(asyncio.BufferedProtocol):
    """``buffer``: shared by all lines of a loop, for nothing stays in it. ``closed``: called once, at the very end."""

    def __init__(self, loop: asyncio.AbstractEventLoop, buffer: bytearray, turns: Turns, closed: Callable[[Line], None]) -> None:
        self._loop = loop
        self._turns = turns
        self._postponed = False
        self._buffer = memoryview(buffer)
        self._closed = closed
        self._transport: asyncio.Transport | None = None
        self._linger: asyncio.TimerHandle | None = None
        self._finishing = False
        self._full = False
        self._paused = False
        self.speaker: Speaker | None = None
        self.failed: Callable[[Exception], None] | None = None
        """Called with an exception that a speaker did not expect; the line is then aborted."""

    @property
    def full(self) -> bool:
        """Whether the peer takes no more for now; ``Speaker.room`` tells when it does."""
        return self._full

    @property
    def open(self) -> bool:
        """Whether the line was neither ended by us nor lost."""
        return self._transport is not None and not self._finishing

    @property
    def unsent(self) -> int:
        """Bytes written that the socket has not taken yet."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def write(self, data: bytes) -> None:
        if self._transport is not None and not self._finishing and data:
            self._transport.write(data)

    def pause(self) -> None:
        """Read nothing until ``resume``."""
        if self._transport is not None and not self._paused and not self._finishing:
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._transport is not None and self._paused and not self._postponed and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()

    def postpone(self, work: Callable[[], None]) -> None:
        """The speaker goes on with ``work`` in a later turn, unless the line has ended until then; nothing is read meanwhile."""
        if self._postponed or not self.open:
            return

        def go_on() -> None:
            self._postponed = False
            if self.open:
                self.resume()
                self._call(lambda _: work())

        self.pause()
        self._postponed = True
        self._turns.add(go_on)

    def finish(self) -> None:
        """End after what was written. Input is thrown away until the peer ends too, so that its reading is not cut short by a reset."""
        if self._transport is None or self._finishing:
            return
        self._postponed = False
        self.resume()
        self._finishing = True
        self._linger = self._loop.call_later(LINGER_S, self.abort)
        if not self._transport.is_closing():
            try:
                self._transport.write_eof()
            except OSError:
                self.abort()  # the peer has closed meanwhile

    def abort(self) -> None:
        """Break off; what is unsent is lost."""
        if self._transport is not None:
            self._finishing = True
            self._transport.abort()

    # ------------------------------------------------------------------------- asyncio's protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=_HIGH_BYTES)

    def get_buffer(self, sizehint: int) -> Any:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if not self._finishing:
            data = bytes(self._buffer[:nbytes])
            self._call(lambda speaker: speaker.received(data))

    def eof_received(self) -> bool:
        if self._finishing:
            return False
        self._call(lambda speaker: speaker.ended())
        return not self._finishing

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        if not self._finishing:
            self._call(lambda speaker: speaker.room())

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._finishing = True
        if self._linger is not None:
            self._linger.cancel()
        self._call(lambda speaker: speaker.lost())
        self._closed(self)

    def _call(self, call: Callable[[Speaker], None]) -> None:
        speaker = self.speaker
        if speaker is None:
            return
        try:
            call(speaker)
        except Exception as error:
            if self.failed is not None:
                self.failed(error)
            self.abort()
