"""Sends the messages of `mqttc pub` one after the other, many of them on their way at once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from mqttc.client import Client, PublishResult
    from mqttc.codec import Properties

WINDOW_BYTES: Final = 16 * 1024 * 1024
"""Payloads that are sent and not acknowledged, or that wait for a connection: from then on standard input is not read."""


class Sender:
    """Publishes in order. Of QoS 1 and 2 so many are on their way as the window allows; each answer is looked at."""

    def __init__(self, client: Client, topic: str, qos: int, retain: bool, told: Properties | None, window: int) -> None:
        self.sent = 0
        self.unmatched = 0
        """Acknowledged with NO_MATCHING_SUBSCRIBERS."""
        self._client = client
        self._topic = topic
        self._qos = qos
        self._retain = retain
        self._told = told
        self._window = window
        self._held_bytes = 0
        self._tasks: set[asyncio.Task[PublishResult]] = set()
        self._error: BaseException | None = None
        self._changed = asyncio.Event()

    async def send(self, payload: bytes) -> None:
        """Returns when the next one may be given. Raises what `Client.publish` does, also of earlier ones."""
        if not self._qos:
            await self._client.publish(self._topic, payload, 0, self._retain, properties=self._told)
            self.sent += 1
            return
        while self._tasks and (len(self._tasks) >= self._window or self._held_bytes + len(payload) > WINDOW_BYTES):
            await self._wait()
        self._look()
        publishing = self._client.publish(self._topic, payload, self._qos, self._retain, properties=self._told)
        task = asyncio.get_running_loop().create_task(publishing)
        self._held_bytes += len(payload)
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._done(done, len(payload)))

    async def finish(self) -> None:
        """Until all are acknowledged."""
        while self._tasks:
            await self._wait()
        self._look()

    async def drop(self) -> None:
        """Of what is still on its way nobody wants to hear."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _wait(self) -> None:
        self._changed.clear()
        await self._changed.wait()
        self._look()

    def _look(self) -> None:
        if self._error is not None:
            raise self._error

    def _done(self, task: asyncio.Task[PublishResult], size: int) -> None:
        self._tasks.discard(task)
        self._held_bytes -= size
        self._changed.set()
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            self._error = self._error or error
            return
        self.sent += 1
        self.unmatched += bool(task.result().reason_code)
