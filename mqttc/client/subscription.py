"""What `Client.subscribe` gives: the broker's answer, and the messages of these filters."""

from __future__ import annotations

import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from mqttc import codec
from mqttc.client.message import Message, UnsubscribeResult
from mqttc.client.requests import NO_PROPERTIES
from mqttc.client.router import Sink
from mqttc.client.state import State
from mqttc.client.stream import Stream
from mqttc.codec import Properties, ReasonCode

if TYPE_CHECKING:
    from mqttc.client.engine import Engine

Callback = Callable[[Message], None] | Callable[[Message], Awaitable[None]]

log = logging.getLogger("mqttc.client")


class CallbackSink:
    """Calls a plain function from within the reading of the socket. An error of the function's is logged and counted."""

    full = False

    def __init__(self, engine: Engine, callback: Callable[[Message], object], manual: bool) -> None:
        self._engine = engine
        self._callback = callback
        self._manual = manual

    def put(self, message: Message) -> None:
        try:
            self._callback(message)
        except Exception:
            self._engine.stats.callback_errors += 1
            log.exception("callback_failed topic=%r", message.topic)
        if message.receipt is not None and not self._manual:
            self._engine.hand_over(message)

    def put_all(self, messages: list[Message], payload_bytes: int) -> None:
        for message in messages:
            self.put(message)


class Subscription:
    """Filters that were subscribed together. It stays in force over reconnects, until `unsubscribe` or the end of the client.

    Messages go to the callback, if there is one; to this object, as soon as it is iterated over; else to the client. As an asynchronous
    context manager it unsubscribes at the end.
    """

    def __init__(
        self,
        engine: Engine,
        subscriptions: tuple[codec.Subscription, ...],
        properties: Properties | None,
        callback: Callback | None,
        manual: bool,
    ) -> None:
        self.subscriptions = subscriptions
        self.topic_filters: tuple[str, ...] = tuple(item.topic_filter for item in subscriptions)
        self.reason_codes: tuple[ReasonCode, ...] = ()
        """One for each filter, in their order: the granted QoS, or why it was refused."""
        self.properties = NO_PROPERTIES
        """Of SUBACK."""
        identifiers = properties.subscription_identifiers if properties is not None else ()
        self.identifier = identifiers[0] if identifiers else None
        self._engine = engine
        self._manual = manual
        self._stream: Stream | None = None
        self._pumped = False
        self._ended = False
        self._callback_sink: CallbackSink | None = None
        if callback is not None and not inspect.iscoroutinefunction(callback):
            self._callback_sink = CallbackSink(engine, callback, manual)
        elif callback is not None:
            self._stream = engine.make_stream(manual)
            self._pumped = True
            engine.spawn(self._pump(self._stream, callback))

    def __repr__(self) -> str:
        return f"Subscription({', '.join(self.topic_filters)!r}, reason_codes={self.reason_codes})"

    @property
    def sink(self) -> Sink:
        if self._callback_sink is not None:
            return self._callback_sink
        return self._engine.inbox if self._stream is None else self._stream  # which is false while it is empty

    @property
    def granted(self) -> bool:
        """Every filter was."""
        return all(code < 0x80 for code in self.reason_codes)

    @property
    def waiting(self) -> int:
        """Messages that can be read without waiting."""
        return 0 if self._stream is None else len(self._stream)

    async def unsubscribe(self) -> UnsubscribeResult:
        """Ends it, but for filters that another subscription of the client has too. What has arrived can still be read.

        Raises ``SubscribeError``, ``ConnectionLostError``, ``ClosedError``.
        """
        return await self._engine.end_subscription(self)

    def __aiter__(self) -> AsyncIterator[Message]:
        return self.claim()

    async def __anext__(self) -> Message:
        return await self.claim().__anext__()

    async def get(self) -> Message:
        """The next message. Raises ``StopAsyncIteration`` after the end."""
        return await self.claim().get()

    def take(self, most: int) -> list[Message]:
        """What can be had without waiting."""
        return self.claim().take_many(most)

    async def __aenter__(self) -> Self:
        self.prepare()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self._ended and self._engine.life.state is not State.CLOSED:
            await self.unsubscribe()

    def prepare(self) -> None:
        """What entering the context does: without a callback the messages come here."""
        if self._callback_sink is None and not self._pumped:
            self.claim()

    def claim(self) -> Stream:
        """From now on the messages come here, and what the client holds of them too. Raises ``TypeError`` with a callback."""
        if self._callback_sink is not None or self._pumped:
            raise TypeError("messages of this subscription go to its callback")
        if self._stream is None:
            self._stream = self._engine.make_stream(self._manual)
            self._engine.claim(self, self._stream)
            if self._ended:
                self._stream.end()
        return self._stream

    def refused(self, topic_filter: str, code: ReasonCode, error: BaseException) -> None:
        """For the client: the broker has lost this filter. Without any other, readers get the error."""
        if topic_filter in self.topic_filters:
            old = zip(self.topic_filters, self.reason_codes, strict=True)
            self.reason_codes = tuple(code if name == topic_filter else before for name, before in old)
            if not any(now < 0x80 for now in self.reason_codes):
                self.end(error)

    def end(self, error: BaseException | None = None) -> None:
        """For the client: no more messages come."""
        self._ended = True
        if self._stream is not None:
            self._stream.end(error)

    async def _pump(self, stream: Stream, callback: Callable[[Message], object]) -> None:
        """One message after another: order is kept, and an unfinished callback holds the rest back."""
        while True:
            try:
                message = await stream.get()
            except StopAsyncIteration:
                return
            except Exception:
                return  # the client has ended, and says why elsewhere
            try:
                await callback(message)  # type: ignore[misc]
            except Exception:
                self._engine.stats.callback_errors += 1
                log.exception("callback_failed topic=%r", message.topic)
