"""Duct: this side of a socket pair that leads to a worker, with flow control both ways.

A duct belongs to the loop's thread. Whatever it holds is bounded: towards the broker by what the peer may send before
`Sink.duct_room` opens its window again, from the broker by one read, for nothing is read while the sink has paused it.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
from collections import deque
from typing import Final, Protocol

_READ_BYTES: Final = 65536
STUCK_S: Final = 30.0
"""Seconds that the last bytes of an ended connection wait for a peer that takes nothing; then they are thrown away."""


class Sink(Protocol):
    """Who owns a duct: a stream of HTTP/2 or QUIC. Called from the loop, never from within a call of the duct's methods but ``feed``."""

    def duct_bytes(self, data: bytes) -> None:
        """Bytes of the broker for the peer; call ``Duct.pause`` when the peer takes no more for now."""

    def duct_room(self) -> None:
        """All that was fed has gone to the broker, after a ``feed`` that returned False."""

    def duct_ended(self) -> None:
        """The broker has ended the connection, after its last bytes; the duct is closed. Not called after ``close``.

        While the duct is paused that cannot be seen; after `STUCK_S` it is looked for, and what was not read by then is lost.
        """


class Duct:
    """``sock``: a non-blocking stream socket, which the duct owns."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket, sink: Sink) -> None:
        self._loop = loop
        self._socket = sock
        self._sink = sink
        self._unsent: deque[memoryview] = deque()
        self._paused = False
        self._paused_at = 0.0
        self._watch: asyncio.TimerHandle | None = None
        self._finishing = False
        self._closed = False
        loop.add_reader(sock, self._readable)

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def backlog(self) -> int:
        """Bytes fed that the broker has not taken yet."""
        return sum(len(part) for part in self._unsent)

    def feed(self, data: bytes) -> bool:
        """Give bytes of the peer to the broker. False: it does not take them all now; ``Sink.duct_room`` tells when it has."""
        if self._closed or self._finishing or not data:
            return True
        view = memoryview(data)
        if not self._unsent:
            view = view[self._send(view) :]
            if not view or self._closed:
                return True
            self._loop.add_writer(self._socket, self._writable)
        self._unsent.append(view)
        return False

    def finish(self) -> None:
        """The peer has ended its stream: the broker sees the end after what was fed."""
        if not self._closed and not self._finishing:
            self._finishing = True
            if not self._unsent:
                self._shut()

    def pause(self) -> None:
        """Take nothing from the broker until ``resume``; its queues and their policies do the rest."""
        if not self._closed and not self._paused:
            self._paused = True
            self._paused_at = self._loop.time()
            self._loop.remove_reader(self._socket)
            if self._watch is None:
                self._watch = self._loop.call_later(STUCK_S, self._look)

    def resume(self) -> None:
        if not self._closed and self._paused:
            self._paused = False
            self._loop.add_reader(self._socket, self._readable)

    def close(self) -> None:
        """Break the connection off."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._unsent.clear()
            self._socket.close()
            if self._watch is not None:
                self._watch.cancel()
                self._watch = None

    def _send(self, view: memoryview) -> int:
        """Bytes taken."""
        taken = 0
        while taken < len(view):
            try:
                taken += self._socket.send(view[taken:])
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                # The broker has gone, which the next read tells, behind its last bytes.
                return len(view)
        return taken

    def _writable(self) -> None:
        while self._unsent:
            part = self._unsent[0]
            taken = self._send(part)
            if taken < len(part):
                self._unsent[0] = part[taken:]
                return
            self._unsent.popleft()
        self._loop.remove_writer(self._socket)
        if self._finishing:
            self._shut()
        self._sink.duct_room()

    def _look(self) -> None:
        """Whether the broker ended a connection long ago whose peer takes nothing. One timer serves many short pauses."""
        self._watch = None
        if not self._paused:
            return
        left = self._paused_at + STUCK_S - self._loop.time()
        if left <= 0 and self._is_hung_up():
            self.close()
            self._sink.duct_ended()
        else:
            self._watch = self._loop.call_later(left if left > 0 else STUCK_S, self._look)

    def _is_hung_up(self) -> bool:
        """Whether the broker has closed its end, whatever can still be read from it."""
        poller = select.poll()
        poller.register(self._socket, 0)
        return bool(poller.poll(0))

    def _shut(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def _readable(self) -> None:
        try:
            data = self._socket.recv(_READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if data:
            self._sink.duct_bytes(data)
        elif not self._closed:
            self.close()
            self._sink.duct_ended()
