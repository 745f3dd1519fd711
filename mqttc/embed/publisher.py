"""Publishing from inside."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections import deque
from types import TracebackType
from typing import Self

from mqttc import inside
from mqttc.codec import Properties, ReasonCode
from mqttc.embed.hub import Answer, Hub, Waiter, settle, stopped
from mqttc.embed.message import Payload, Published, encode_publish
from mqttc.errors import BrokerError, PublishError, QueueFullError, reason_text


class Outlet:
    """The way of one in-process client's messages to its worker: in the order in which they were given to it.

    At most ``limits.receive_maximum`` messages, and ``limits.max_queued_bytes`` bytes, are on their way at a time; later ones
    wait here. ``session`` is None as long as the worker has not opened the client.
    """

    def __init__(self, hub: Hub, session: int | None = None) -> None:
        self._hub = hub
        self._lock = threading.RLock()
        self._session = session
        self._opening = False
        self._queue: deque[tuple[bytes, Waiter | None]] = deque()
        self._unanswered = 0
        self._unanswered_bytes = 0
        self._most = hub.config.limits.receive_maximum
        self._most_bytes = hub.config.limits.max_queued_bytes
        self._closed = False

    @property
    def session(self) -> int | None:
        return self._session

    def submit(self, data: bytes, waiter: Waiter | None) -> None:
        """Without a waiter it does not wait for room: ``QueueFullError``."""
        self._hub.check_process()
        with self._lock:
            if self._closed:
                raise BrokerError("the publisher is closed")
            if self._session is None:
                self._open()
            if self._queue or not self._room(len(data)):
                if waiter is None and (self._session is not None or len(self._queue) >= self._most):
                    raise QueueFullError("too many messages are on their way to the broker", ReasonCode.QUOTA_EXCEEDED)
                self._queue.append((data, waiter))
            else:
                self._send(data, waiter)

    def close(self, end: bool = True) -> None:
        """What waits here is refused; what is on its way is published. ``end``: the in-process client ends too."""
        self._hub.check_process()
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if end and self._session is not None:
                self._hub.tell(inside.CLOSE, session=self._session)
            self._refuse(BrokerError("the publisher is closed"))

    def _refuse(self, error: BrokerError) -> None:
        """All that waits here."""
        while self._queue:
            settle(self._queue.popleft()[1], error)

    def _room(self, size: int) -> bool:
        if self._session is None:
            return False
        return self._unanswered < self._most and (self._unanswered == 0 or self._unanswered_bytes + size <= self._most_bytes)

    def _open(self) -> None:
        if not self._opening:
            self._hub.send(inside.OPEN, None, self._opened, worker=self._hub.next_worker())
            self._opening = True

    def _opened(self, answer: Answer | None) -> None:
        with self._lock:
            self._opening = False
            if answer is not None and answer.reason < 0x80:
                self._session = answer.session
                if self._closed:
                    self._hub.tell(inside.CLOSE, session=answer.session)
                else:
                    self._go_on()
            elif answer is None:
                self._refuse(stopped())
            else:
                self._refuse(BrokerError("there is no room for another session (limits.max_sessions)"))

    def _send(self, data: bytes, waiter: Waiter | None) -> None:
        size = len(data)

        def answered(answer: Answer | None) -> None:
            with self._lock:
                self._unanswered -= 1
                self._unanswered_bytes -= size
                if answer is None:
                    self._refuse(stopped())
                else:
                    self._go_on()

        self._hub.send(inside.PUBLISH, waiter, answered, session=self._session, data=data)
        self._unanswered += 1
        self._unanswered_bytes += size

    def _go_on(self) -> None:
        while self._queue and self._room(len(self._queue[0][0])):
            data, waiter = self._queue.popleft()
            if waiter is not None and waiter.cancelled():
                continue
            try:
                self._send(data, waiter)
            except BrokerError as error:
                settle(waiter, error)


class Publisher:
    """Publishes without a socket, first in, first out: it is bound to one worker, like a connection.

    Its methods may be called from any thread. It is an in-process client, and costs what a connected session costs; close it,
    or let it end with the broker.
    """

    def __init__(self, hub: Hub, outlet: Outlet | None = None) -> None:
        self._hub = hub
        self._outlet = Outlet(hub) if outlet is None else outlet

    async def publish(
        self, topic: str, payload: Payload = b"", qos: int = 0, retain: bool = False, *, properties: Properties | None = None
    ) -> Published:
        """Returns when a client would get the acknowledgement: the broker has taken the message over and, where it must outlive
        the process, has committed it. A text is sent as UTF-8.

        Raises ``codec.EncodeError`` (a ``ValueError``) for what cannot be a message, ``PublishError`` for what the broker refuses,
        ``BrokerError`` if it does not run.
        """
        waiter: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._outlet.submit(encode_publish(topic, payload, qos, retain, properties), waiter)
        return _published(await waiter)

    def publish_sync(
        self,
        topic: str,
        payload: Payload = b"",
        qos: int = 0,
        retain: bool = False,
        *,
        properties: Properties | None = None,
        timeout_s: float | None = None,
    ) -> Published:
        """The same for threads that may wait. Raises ``TimeoutError`` too; then it is not known what became of the message."""
        if threading.current_thread() is self._hub.thread:
            raise BrokerError("the broker's control thread cannot wait for an answer; use publish_nowait")
        waiter: concurrent.futures.Future[Answer] = concurrent.futures.Future()
        self._outlet.submit(encode_publish(topic, payload, qos, retain, properties), waiter)
        try:
            return _published(waiter.result(timeout_s))
        except TimeoutError:
            waiter.cancel()
            raise

    def publish_nowait(
        self, topic: str, payload: Payload = b"", qos: int = 0, retain: bool = False, *, properties: Properties | None = None
    ) -> None:
        """Give it to the broker and go on; nobody is told what becomes of it, but the broker's counters.

        Raises ``QueueFullError`` if too much is on its way (see docs/embedding.md), else as ``publish``.
        """
        self._outlet.submit(encode_publish(topic, payload, qos, retain, properties), None)

    def close(self) -> None:
        """Publish no more. What waits for room is refused; what is on its way is published. May be called again."""
        self._outlet.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _published(answer: Answer) -> Published:
    if answer.reason >= 0x80:
        raise PublishError(f"the broker refused the message: {reason_text(answer.reason)}", ReasonCode(answer.reason))
    reason = ReasonCode.SUCCESS if answer.count else ReasonCode.NO_MATCHING_SUBSCRIBERS
    return Published(reason, answer.count)
