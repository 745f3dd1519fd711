"""Subscribing from inside."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self, TypeAlias

from mqttc import codec, inside, logs
from mqttc.codec import Properties, ReasonCode, RetainHandling
from mqttc.embed.message import Message, Payload, Published
from mqttc.embed.publisher import Outlet, Publisher
from mqttc.errors import BrokerError, SubscribeError, reason_text

if TYPE_CHECKING:
    from mqttc.embed.hub import Hub

Callback = Callable[[Message], None] | Callable[[Message], Awaitable[None]]
Delivery: TypeAlias = "inside.Delivery[Message]"

_RETURN_AT: Final = 256
"""Messages dealt with, from which the worker is told although more are at hand: a quarter of its window."""
_logger: Final = logging.getLogger(logs.LOGGER_NAME)


class Subscription:
    """What ``Broker.subscribe`` gives: an in-process client of one asyncio loop. It begins and ends with ``async with``; messages come by
    ``async for``, ``get`` and ``take``, or go to callbacks.

    Its messages wait in three bounds, none of which is silent: up to 1024 messages (or 4 MiB) lie here, at hand; behind them, at the
    worker, its session's queue holds ``limits.max_queued_messages`` and ``limits.max_queued_bytes``. When that is nearly full,
    publishers are slowed for a bounded time; when it is full, ``limits.queue_policy`` says what gives way (``disconnect``: the newest
    message), and each loss is counted: ``dropped`` here, ``dropped_queue_full`` of ``Broker.stats``.
    """

    def __init__(self, hub: Callable[[], Hub], filters: tuple[str, ...], options: int, callback: Callback | None) -> None:
        self._find_hub = hub
        self._wanted = filters
        self._options = options
        self._callback = callback
        self._hub: Hub | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._session = 0
        self._outlet: Outlet | None = None
        self._deliveries: deque[Delivery] = deque()
        self._current: Delivery | None = None
        self._next = 0
        self._done = 0
        self._done_bytes = 0
        self._waiting = 0
        self._dropped = 0
        self._readers: deque[asyncio.Future[None]] = deque()
        self._identifiers = itertools.count(1)
        self._callbacks: dict[int, Callback] = {}
        self._by_identifier: dict[int, str] = {}
        self._codes: dict[str, ReasonCode] = {}
        self._pump: asyncio.Task[None] | None = None
        self._ended = False

    def __repr__(self) -> str:
        return f"Subscription({', '.join(self._codes or self._wanted)!r})"

    # ---- what it is

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop on which messages come."""
        if self._loop is None:
            raise BrokerError("a subscription begins with `async with`")
        return self._loop

    @property
    def topic_filters(self) -> tuple[str, ...]:
        """The filters in force."""
        return tuple(self._codes)

    @property
    def reason_codes(self) -> dict[str, ReasonCode]:
        """The granted QoS of each filter in force."""
        return dict(self._codes)

    @property
    def waiting(self) -> int:
        """Messages that can be read without waiting."""
        return self._waiting

    @property
    def dropped(self) -> int:
        """Messages that were lost on the way here, as of the last one that came."""
        return self._dropped

    def filters_of(self, message: Message) -> tuple[str, ...]:
        """The filters of this subscription that the message came by."""
        return tuple(self._by_identifier[number] for number in message.identifiers if number in self._by_identifier)

    # ---- begin and end

    async def __aenter__(self) -> Self:
        if self._hub is not None:
            raise BrokerError("a subscription begins once")
        hub = self._find_hub()
        self._loop = asyncio.get_running_loop()
        answer = await hub.ask(inside.OPEN, worker=hub.next_worker())
        if answer.reason >= 0x80:
            raise BrokerError("there is no room for another session (limits.max_sessions)")
        self._hub, self._session = hub, answer.session
        self._outlet = Outlet(hub, self._session)
        try:
            hub.add_subscription(self._session, self)
            for topic_filter in self._wanted:
                await self.subscribe(topic_filter, callback=self._callback)
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """No more messages come; what is at hand can still be read. May be called again."""
        if self._hub is None or self._ended:
            self._ended = True
            return
        self._hub.remove_subscription(self._session)
        if self._outlet is not None:
            self._outlet.close(end=False)
        self.end()
        pump, self._pump = self._pump, None
        if pump is not None and pump is not asyncio.current_task():
            pump.cancel()
        try:
            await self._hub.ask(inside.CLOSE, session=self._session)
        except BrokerError:
            pass  # it has stopped, and this has ended with it
        if pump is not None and pump is not asyncio.current_task():
            await asyncio.wait([pump])

    def abandon(self) -> None:
        """For the hub: its loop is closed."""
        if self._hub is not None:
            self._hub.remove_subscription(self._session)
            self._hub.tell(inside.CLOSE, session=self._session)

    async def subscribe(
        self,
        topic_filter: str,
        qos: int | None = None,
        *,
        no_local: bool | None = None,
        retain_as_published: bool | None = None,
        retain_handling: int | None = None,
        callback: Callback | None = None,
    ) -> ReasonCode:
        """One more filter, or new options for one; what is not given is as in ``Broker.subscribe``.

        With a callback its messages go there: a plain function is called on the loop, a coroutine function has one message at a
        time, and what either raises is logged.

        Returns the granted QoS. Raises ``SubscribeError``; ``codec.InvalidTopicError`` (a ``ValueError``) for what is no filter.
        """
        hub = self._alive()
        options = options_byte(
            self._options & 3 if qos is None else qos,
            bool(self._options & 4) if no_local is None else no_local,
            bool(self._options & 8) if retain_as_published is None else retain_as_published,
            self._options >> 4 if retain_handling is None else retain_handling,
        )
        codec.validate_filter(topic_filter)
        if topic_filter.startswith("$share/"):
            options &= ~4  # no local is a protocol error there [MQTT-3.8.3-4]
        number = next(self._identifiers)
        self._by_identifier[number] = topic_filter
        if callback is not None:
            self._callbacks[number] = callback
            self._start_pump()
        answer = await hub.ask(
            inside.SUBSCRIBE, session=self._session, options=options, number=number, data=topic_filter.encode("utf-8", "strict")
        )
        code = ReasonCode(answer.reason)
        if code >= 0x80:
            self._forget(number)
            raise SubscribeError(f"the broker refused {topic_filter!r}: {reason_text(code)}", (code,))
        for old in [old for old, name in self._by_identifier.items() if name == topic_filter and old != number]:
            self._forget(old)
        self._codes[topic_filter] = code
        return code

    async def unsubscribe(self, topic_filter: str) -> None:
        """Messages of that filter come no more; what has come stays. Raises ``SubscribeError`` if it is not in force."""
        hub = self._alive()
        answer = await hub.ask(inside.UNSUBSCRIBE, session=self._session, data=topic_filter.encode())
        if answer.reason:
            code = ReasonCode(answer.reason)
            raise SubscribeError(f"{topic_filter!r}: {reason_text(code)}", (code,))
        self._codes.pop(topic_filter, None)

    async def publish(
        self, topic: str, payload: Payload = b"", qos: int = 0, retain: bool = False, *, properties: Properties | None = None
    ) -> Published:
        """As ``Broker.publish``, but as this client: filters with no local do not get it."""
        self._alive()
        assert self._outlet is not None and self._hub is not None
        return await Publisher(self._hub, self._outlet).publish(topic, payload, qos, retain, properties=properties)

    def _alive(self) -> Hub:
        if self._hub is None:
            raise BrokerError("a subscription begins with `async with`")
        if self._ended:
            raise BrokerError("the subscription has ended")
        return self._hub

    def _forget(self, number: int) -> None:
        self._by_identifier.pop(number, None)
        self._callbacks.pop(number, None)

    # ---- messages

    def put(self, delivery: Delivery) -> None:
        """For the hub, on the loop."""
        if self._ended:
            return
        self._dropped = delivery.dropped
        self._deliveries.append(delivery)
        self._waiting += len(delivery.messages)
        self._wake()

    def end(self) -> None:
        """For the hub, on the loop: the broker has stopped."""
        self._ended = True
        self._wake()

    def _wake(self) -> None:
        for reader in self._readers:
            if not reader.done():
                reader.set_result(None)
        self._readers.clear()

    def _pop(self) -> Message | None:
        while True:
            if self._current is not None:
                if self._next < len(self._current.messages):
                    message = self._current.messages[self._next]
                    self._next += 1
                    self._waiting -= 1
                    return message
                self._give_back(self._current)
                self._current = None
            if not self._deliveries:
                return None
            self._current = self._deliveries.popleft()
            self._next = 0

    def _give_back(self, delivery: Delivery) -> None:
        """The worker may send as many more."""
        self._done += len(delivery.messages)
        self._done_bytes += delivery.size
        if self._hub is not None and not self._ended and (self._done >= _RETURN_AT or not self._deliveries):
            self._hub.tell(inside.TAKEN, session=self._session, number=self._done, cursor=self._done_bytes)
            self._done = self._done_bytes = 0

    async def _wait(self) -> Message | None:
        """None: the end."""
        while True:
            message = self._pop()
            if message is not None or self._ended:
                return message
            reader = self.loop.create_future()
            self._readers.append(reader)
            try:
                await reader
            finally:
                if reader in self._readers:
                    self._readers.remove(reader)

    def __aiter__(self) -> Self:
        self._claim()
        return self

    async def __anext__(self) -> Message:
        message = await self._wait()
        if message is None:
            raise StopAsyncIteration
        return message

    async def get(self) -> Message:
        """The next message. Raises ``StopAsyncIteration`` after the end."""
        self._claim()
        return await self.__anext__()

    def take(self, most: int) -> list[Message]:
        """What can be had without waiting, ``most`` messages at most."""
        self._claim()
        found: list[Message] = []
        while len(found) < most and (message := self._pop()) is not None:
            found.append(message)
        return found

    def _claim(self) -> None:
        if self._hub is None:
            raise BrokerError("a subscription begins with `async with`")
        if self._pump is not None:
            raise TypeError("messages of this subscription go to callbacks")

    # ---- callbacks

    def _start_pump(self) -> None:
        if self._pump is None:
            self._pump = self.loop.create_task(self._feed())

    async def _feed(self) -> None:
        """One message after another: order is kept, and an unfinished callback holds the rest back."""
        while (message := await self._wait()) is not None:
            for number in message.identifiers:
                callback = self._callbacks.get(number)
                if callback is None:
                    continue
                try:
                    result = callback(message)
                    if inspect.isawaitable(result):
                        await result
                except Exception as error:
                    logs.emit(_logger, logging.ERROR, "callback_failed", {"topic": message.topic, "error": repr(error)})


def options_byte(qos: int, no_local: bool, retain_as_published: bool, retain_handling: int) -> int:
    """Subscription Options (section 3.8.3.1)."""
    if qos not in (0, 1, 2):
        raise ValueError("QoS is 0, 1 or 2")
    return qos | no_local << 2 | retain_as_published << 3 | RetainHandling(retain_handling) << 4
