"""Request and response (section 4.10): which answer belongs to which question."""

from __future__ import annotations

import asyncio

from mqttc.client.message import Message
from mqttc.errors import QueueFullError


class Responses:
    """Questions that wait, by their correlation data."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiting: dict[bytes, asyncio.Future[Message]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def ask(self, correlation: bytes) -> asyncio.Future[Message]:
        """Raises ``QueueFullError``."""
        if len(self._waiting) >= self._most:
            raise QueueFullError(f"{len(self._waiting)} requests wait for their answer (max_requests {self._most})")
        made = self._waiting[correlation] = asyncio.get_running_loop().create_future()
        return made

    def forget(self, correlation: bytes) -> None:
        self._waiting.pop(correlation, None)

    def answered(self, message: Message) -> None:
        """The callback of the subscription to the response topic. Answers that nobody waits for are late ones, and go nowhere."""
        waiter = self._waiting.pop(message.correlation_data or b"", None)
        if waiter is not None and not waiter.done():
            waiter.set_result(message)

    def fail(self, error: BaseException) -> None:
        for waiter in self._waiting.values():
            if not waiter.done():
                waiter.set_exception(error)
                waiter.exception()
        self._waiting.clear()
