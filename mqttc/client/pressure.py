"""Back-pressure: a stream that nobody reads holds up the socket, and with it the broker.

Not for ever, though: acknowledgements come over the same socket, and an application that waits for one may be the one that should read.
So when nothing is read for `stall_timeout_s` while an answer is awaited, the socket is read again, and QoS 0 messages of full streams
are dropped and counted until there is room. Messages of QoS 1 and 2 are never dropped; Receive Maximum bounds them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from mqttc.client.connection import Connection
from mqttc.client.state import Stats
from mqttc.client.stream import Stream

log = logging.getLogger("mqttc.client")


class Pressure:
    """Of one client. ``awaited``: whether an answer of the broker's is."""

    def __init__(self, stall_timeout_s: float, stats: Stats, awaited: Callable[[], bool]) -> None:
        self.overflow = False
        """Messages that may be dropped are, where a stream is full."""
        self._stall_timeout_s = stall_timeout_s
        self._stats = stats
        self._awaited = awaited
        self._connection: Connection | None = None
        self._full: set[Stream] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._mark = 0

    def connected(self, connection: Connection | None) -> None:
        """Another connection, or none."""
        self._connection = connection
        if self._full and connection is not None and not self.overflow:
            connection.pause_reading()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._connection = None

    def stream_full(self, stream: Stream) -> None:
        self._full.add(stream)
        if self.overflow:
            return
        self._stats.pauses += 1
        if self._connection is not None:
            self._connection.pause_reading()
        self._watch()

    def stream_room(self, stream: Stream) -> None:
        self._full.discard(stream)
        self.overflow = False
        if self._connection is None:
            return
        if self._full:
            self._connection.pause_reading()
            self._watch()
        else:
            self._connection.resume_reading()

    def _watch(self) -> None:
        if self._timer is None:
            self._mark = self._taken()
            self._timer = asyncio.get_running_loop().call_later(self._stall_timeout_s, self._look)

    def _taken(self) -> int:
        return sum(stream.taken for stream in self._full)

    def _look(self) -> None:
        self._timer = None
        if not self._full or self.overflow:
            return
        if self._taken() == self._mark and self._connection is not None and self._awaited():
            log.warning("stalled: %d streams are not read; QoS 0 messages for them are dropped", len(self._full))
            self.overflow = True
            self._connection.resume_reading()
        else:
            self._watch()
