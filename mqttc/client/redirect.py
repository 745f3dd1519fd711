"""Which broker the next attempt goes to: the one of the URL, or one that a broker has named in its place (section 4.11)."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import Final

from mqttc.client.url import UNIX, Target, parse_url
from mqttc.codec import ReasonCode
from mqttc.errors import DisconnectedError, RefusedError

MOST_NAMED: Final = 16
"""Brokers of one Server Reference; more are not looked at."""
SETTLED_S: Final = 60.0
"""A connection that lasts for so long ends a row of redirections."""


class Servers:
    """``most``: redirections in a row that are followed. Time is an argument, in seconds of any monotonic clock."""

    def __init__(self, target: Target, most: int) -> None:
        self.target = target
        self.followed = 0
        """In a row."""
        self._home = target
        """Where a temporary redirection ends."""
        self._most = most
        self._others: deque[Target] = deque()
        """Named together with `target`, and not tried."""
        self._permanent = False
        self._accepted_at: float | None = None

    def accepted(self, now: float) -> None:
        """The broker has accepted the connection."""
        self._accepted_at = now
        self._others.clear()
        if self._permanent:
            self._home = self.target

    def refer(self, error: BaseException | None, now: float) -> bool:
        """Whether this error names a broker that the next attempt goes to.

        USE_ANOTHER_SERVER holds for one connection, SERVER_MOVED from then on. Never from a road with TLS to one without.
        """
        if not isinstance(error, RefusedError | DisconnectedError) or error.server_reference is None:
            return False
        if error.reason_code not in (ReasonCode.USE_ANOTHER_SERVER, ReasonCode.SERVER_MOVED):
            return False
        if self._accepted_at is not None and now - self._accepted_at >= SETTLED_S:
            self.followed = 0
        named = named_by(error.server_reference, self.target)
        if self.followed >= self._most or not named:
            return False
        self.followed += 1
        self._accepted_at = None
        self._permanent = error.reason_code == ReasonCode.SERVER_MOVED
        self._others = deque(named)
        self.target = self._others.popleft()
        return True

    def failed(self) -> bool:
        """The attempt failed. Whether another broker that was named with it comes next; if not, it is the one before again."""
        if self._others:
            self.target = self._others.popleft()
            return True
        self._return()
        return False

    def ended(self) -> None:
        """The connection ended without naming another broker."""
        self._return()

    def _return(self) -> None:
        self.target = self._home
        self.followed = 0
        self._permanent = False
        self._accepted_at = None


def named_by(reference: str, by: Target) -> list[Target]:
    """The brokers of a Server Reference: names, `name:port`, `[address]:port` on the same road, or URLs; parted by spaces.

    What cannot be understood, or would be less safe than where we are, is left out.
    """
    found: list[Target] = []
    for part in reference.split()[:MOST_NAMED]:
        try:
            if "://" in part:
                target = parse_url(part)
            elif by.road == UNIX:
                continue  # what was meant for this machine stays there
            else:
                target = parse_url(f"{by.scheme}://{part}")
                if target.path not in ("", "/mqtt") or (part.count(":") > 1 and not part.startswith("[")):
                    continue
                target = replace(target, path=by.path)
        except ValueError:
            continue
        if (by.secure and not target.secure) or (by.road == UNIX) != (target.road == UNIX):
            continue
        found.append(target)
    return found
