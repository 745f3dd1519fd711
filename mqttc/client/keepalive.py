"""Keep alive of one connection (section 3.1.2.10): when a PINGREQ is due, and when its answer has not come. Time is an argument."""

from __future__ import annotations

import enum
from typing import Final

EARLY: Final = 0.1
"""Part of the interval by which PINGREQ goes early, for the way to the broker."""


class Due(enum.Enum):
    NOTHING = 0
    PING = 1
    DEAD = 2
    """Nothing has come since the PINGREQ."""


class KeepAlive:
    """Seconds on any monotonic clock. With ``interval_s`` 0 nothing is ever due but the answer to a PINGREQ that was sent."""

    def __init__(self, interval_s: float, timeout_s: float, now: float) -> None:
        self.sent_at = now
        """When the last packet left; kept up to date by whoever sends."""
        self.received_at = now
        self._every_s = interval_s * (1 - EARLY)
        self._timeout_s = timeout_s
        self._pinged_at: float | None = None

    def next_at(self) -> float | None:
        """When to ask `due` again."""
        dead_at = None if self._pinged_at is None else self._pinged_at + self._timeout_s
        ping_at = self.sent_at + self._every_s if self._every_s else None
        return min((at for at in (dead_at, ping_at) if at is not None), default=None)

    def due(self, now: float, reading: bool) -> Due:
        """``reading``: False while the socket is not read, when nothing can be said about the broker."""
        if self._pinged_at is not None:
            if self.received_at > self._pinged_at:
                self._pinged_at = None
            elif now >= self._pinged_at + self._timeout_s:
                if reading:
                    return Due.DEAD
                self._pinged_at = None
        if self._every_s and now >= self.sent_at + self._every_s:
            self._pinged_at = now if self._pinged_at is None else self._pinged_at  # of several, the oldest that has no answer
            return Due.PING
        return Due.NOTHING
