"""In which state a client is, and who wants to know."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Final

from mqttc.client.state import State
from mqttc.client.waiters import Waiters

HELD_STATES: Final = 64
"""For a watcher that does not look; then the oldest are forgotten."""

log = logging.getLogger("mqttc.client")


class Lifecycle:
    """``on_state`` is called at each change; an error of its own is logged."""

    def __init__(self, on_state: Callable[[State, BaseException | None], None] | None) -> None:
        self.state = State.NEW
        self.over = False
        """CLOSING or CLOSED."""
        self.error: BaseException | None = None
        """Why the last connection ended or could not be made."""
        self._on_state = on_state
        self._changes = Waiters()
        self._watchers: list[deque[State]] = []

    def set(self, state: State, error: BaseException | None) -> None:
        changed = state is not self.state
        self.state, self.error = state, error
        if not changed:
            return
        self.over = state is State.CLOSING or state is State.CLOSED
        for seen in self._watchers:
            seen.append(state)
        self._changes.wake()
        if self._on_state is not None:
            try:
                self._on_state(state, error)
            except Exception:
                log.exception("on_state_failed")

    async def wait_for(self, *states: State) -> State:
        while self.state not in states:
            await self._changes.wait()
        return self.state

    async def states(self) -> AsyncIterator[State]:
        seen = deque([self.state], HELD_STATES)
        self._watchers.append(seen)
        try:
            while True:
                while not seen:
                    await self._changes.wait()
                state = seen.popleft()
                yield state
                if state is State.CLOSED:
                    return
        finally:
            self._watchers.remove(seen)
