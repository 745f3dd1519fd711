"""A bounded buffer of messages between the socket and one reader of the application."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final, Self

from mqttc.client.message import Message

MESSAGE_BYTES: Final = 200
"""What a message is counted with beside its topic and payload."""


class Stream:
    """``on_full`` and ``on_room`` are told when a bound is met, and when half of it is free again. Of the loop's thread.

    Past its bounds a stream still takes what it is given: whoever feeds it stops reading the socket, or drops. So it holds at most
    what one read brings beyond its bounds, and messages of QoS 1 and 2 up to Receive Maximum.
    """

    __slots__ = (
        *("_error", "_counted_bytes", "_max_bytes", "_max_messages", "_messages", "_waiters"),
        *("full", "handed_over", "on_full", "on_room", "taken"),
    )

    def __init__(
        self,
        max_messages: int,
        max_bytes: int,
        on_full: Callable[[Stream], None],
        on_room: Callable[[Stream], None],
        handed_over: Callable[[Message], None] | None,
    ) -> None:
        self.full = False
        self.taken = 0
        """Messages that were read while it was full, so that a stall can be told from slowness."""
        self.on_full = on_full
        self.on_room = on_room
        self.handed_over = handed_over
        """For messages of QoS 1 and 2; None where the application acknowledges."""
        self._messages: deque[Message] = deque()
        self._counted_bytes = 0
        """Of what was put since they were counted: never less than what is held."""
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._error: BaseException | None = None

    def __len__(self) -> int:
        return len(self._messages)

    @property
    def held_bytes(self) -> int:
        """Counted anew: by message this would be a good part of the work."""
        return sum(MESSAGE_BYTES + len(message.packet.payload) for message in self._messages)

    def put(self, message: Message) -> None:
        messages = self._messages
        messages.append(message)
        self._counted_bytes = held = self._counted_bytes + MESSAGE_BYTES + len(message.packet.payload)
        if self._waiters:
            self._wake()
        if (held >= self._max_bytes or len(messages) >= self._max_messages) and not self.full:
            self._look_whether_full()

    def put_all(self, messages: list[Message], payload_bytes: int) -> None:
        """The same for some, with one look at the bounds."""
        held = self._messages
        held.extend(messages)
        self._counted_bytes += MESSAGE_BYTES * len(messages) + payload_bytes
        for _ in range(min(len(messages), len(self._waiters))):
            self._wake()
        if (self._counted_bytes >= self._max_bytes or len(held) >= self._max_messages) and not self.full:
            self._look_whether_full()

    def _look_whether_full(self) -> None:
        self._counted_bytes = self.held_bytes
        if self._counted_bytes >= self._max_bytes or len(self._messages) >= self._max_messages:
            self.full = True
            self.on_full(self)

    def take(self) -> Message | None:
        """The next one, if there is one."""
        messages = self._messages
        if not messages:
            return None
        message = messages.popleft()
        if self.full:
            self._look_for_room()
        if message.receipt is not None and self.handed_over is not None:
            self.handed_over(message)
        return message

    def _look_for_room(self) -> None:
        self.taken += 1
        if len(self._messages) <= self._max_messages // 2 and self.held_bytes <= self._max_bytes // 2:
            self.full = False
            self._counted_bytes = self.held_bytes
            self.on_room(self)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        messages = self._messages
        if messages and messages[0].receipt is None:  # what `take` would do
            if not self.full:
                return messages.popleft()
            if len(messages) > self._max_messages // 2 + 1:
                self.taken += 1
                return messages.popleft()
        message = self.take()
        return message if message is not None else await self.get()

    def take_many(self, most: int) -> list[Message]:
        found: list[Message] = []
        while len(found) < most and (message := self.take()) is not None:
            found.append(message)
        return found

    async def wait(self) -> bool:
        """Until there is something to take; False at the end. Raises why the client ended, if not by `close`."""
        while not self._messages:
            if self._error is not None:
                if isinstance(self._error, StopAsyncIteration):
                    return False
                raise self._error
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            except BaseException:
                if waiter.done() and not waiter.cancelled():
                    self._wake()  # this reader leaves: the next one is to look
                raise
            finally:
                if waiter in self._waiters:
                    self._waiters.remove(waiter)
        return True

    async def get(self) -> Message:
        """Raises ``StopAsyncIteration`` at the end."""
        while True:
            message = self.take()
            if message is not None:
                return message
            if not await self.wait():
                raise StopAsyncIteration

    def remove(self, wanted: Callable[[Message], bool]) -> list[Message]:
        """Takes out what is to go to another stream."""
        gone: list[Message] = []
        kept: list[Message] = []
        for message in self._messages:
            (gone if wanted(message) else kept).append(message)
        if gone:
            self._messages = deque(kept)
            if self.full:
                self._look_for_room()
        return gone

    def end(self, error: BaseException | None = None) -> None:
        """What is here can still be read; then readers get the error, or the end."""
        if self._error is None:
            self._error = StopAsyncIteration() if error is None else error
        while self._waiters:
            self._wake()

    def _wake(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
