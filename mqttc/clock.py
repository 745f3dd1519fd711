"""``VirtualClock``: the time of brokers under test."""

from __future__ import annotations

import datetime
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol

MOST_S: Final = 10_000_000_000
"""Seconds of one step at most: MQTT's longest intervals are of 2**32 seconds."""


class Engine(Protocol):
    """What a clock needs of ``mqttc.native.Engine``."""

    def hold_clock(self, wall_milliseconds: int) -> None: ...
    def advance_clock(self, milliseconds: int, wall_milliseconds: int, *, heard: bool = False) -> None: ...


class VirtualClock:
    """Time that stands still until ``advance``: ``Broker(config, clock=VirtualClock())``.

    All that a broker does by time follows it: expiry of sessions, messages and retained messages, will delay, keep alive, deadlines of
    CONNECT and of authentication, the brakes on publishers, the time stamps of events, and what a store that is opened again finds
    expired. A broker that stops takes its last steps in real time. Other brokers of the process, clients, deadlines of HTTP and QUIC,
    what authenticators measure for themselves, and the program's own hooks keep real time.

    Several brokers may share a clock; one that is started later begins where the clock stands. All methods may be called from any thread.
    """

    def __init__(self, start: float | datetime.datetime | None = None) -> None:
        """``start``: Unix time in seconds, or a datetime with a time zone; None: now."""
        if isinstance(start, datetime.datetime):
            if start.tzinfo is None:
                raise ValueError("start: a datetime needs a time zone")
            start = start.timestamp()
        seconds = time.time() if start is None else start
        if not 0 <= seconds <= MOST_S:
            raise ValueError(f"start: {start!r} is no Unix time in seconds")
        self._lock = threading.Lock()
        self._start_ms = round(seconds * 1000)
        self._elapsed_ms = 0
        self._engines: list[Engine] = []

    def __repr__(self) -> str:
        return f"<VirtualClock {self.datetime.isoformat()}, {self.elapsed:g} s after its start>"

    @property
    def time(self) -> float:
        """Unix time, seconds."""
        return (self._start_ms + self._elapsed_ms) / 1000

    @property
    def datetime(self) -> datetime.datetime:
        return datetime.datetime.fromtimestamp(self.time, datetime.UTC)

    @property
    def elapsed(self) -> float:
        """Seconds by which it was advanced."""
        return self._elapsed_ms / 1000

    def advance(self, seconds: float, *, keep_alive: bool = False) -> None:
        """Let time pass, to the millisecond. Returns when all timers that were due have run, in their order, each at its time.

        ``keep_alive``: False takes clients for alive, as if they had sent PINGREQ all the while: a real client does not see that time
        passes, and would be let go. True lets those that have sent nothing for one and a half times their keep alive go (section 3.1.2.10).

        It waits for the broker's own threads only, so a coroutine may call it. Raises ``ValueError`` for time that does not pass.
        """
        if not (math.isfinite(seconds) and 0 <= seconds <= MOST_S):
            raise ValueError(f"a clock is not advanced by {seconds!r} seconds")
        milliseconds = round(seconds * 1000)
        with self._lock:
            self._elapsed_ms += milliseconds
            for engine in self._engines:
                engine.advance_clock(milliseconds, milliseconds, heard=not keep_alive)

    @contextmanager
    def starting(self, engine: Engine) -> Iterator[None]:
        """For the broker: an engine that is built inside follows from then on. The clock stands still meanwhile."""
        with self._lock:
            engine.hold_clock(self._start_ms + self._elapsed_ms)
            yield
            self._engines.append(engine)

    def let_go(self, engine: Engine) -> None:
        """For the broker: the engine stops."""
        with self._lock:
            if engine in self._engines:
                self._engines.remove(engine)
