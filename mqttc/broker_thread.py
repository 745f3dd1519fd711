"""``BrokerThread``: the broker for programs without asyncio."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, Self, TypeVar

from mqttc.auth import Authenticator
from mqttc.auth.grant import Action
from mqttc.client.sync import LoopThread
from mqttc.codec import Properties, ReasonCode
from mqttc.config import Config
from mqttc.embed.admin import ClientInfo, Page, RetainedMessage, SessionInfo
from mqttc.embed.events import MAX_WAITING, Event, EventStream
from mqttc.embed.explain import LiveExplanation
from mqttc.embed.message import Message, Payload, Published
from mqttc.embed.publisher import Publisher
from mqttc.embed.subscription import Callback, Subscription
from mqttc.errors import ClosedError
from mqttc.hooks import Hooks
from mqttc.server import Broker, Reload

if TYPE_CHECKING:
    from mqttc.clock import VirtualClock

BATCH: Final = 100
"""Messages or events that change threads at a time."""

T = TypeVar("T")


async def _running_loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


class Source(Protocol[T]):
    """A subscription, or a stream of events."""

    async def get(self) -> T: ...
    def take(self, most: int) -> list[T]: ...


class Inflow(Generic[T]):
    """A stream of the thread's loop as an iterator of any thread; several threads share it out."""

    def __init__(self, thread: LoopThread, source: Source[T]) -> None:
        self._thread = thread
        self._source = source
        self._ready: deque[T] = deque()

    def get(self, timeout_s: float | None = None) -> T:
        """The next one. Raises ``TimeoutError``, and ``StopIteration`` after the end."""
        try:
            return self._ready.popleft()
        except IndexError:
            pass
        try:
            found = self._thread.call(self._next(timeout_s))
        except ClosedError:
            found = []
        if not found:
            raise StopIteration
        self._ready.extend(found[1:])
        return found[0]

    async def _next(self, timeout_s: float | None) -> list[T]:
        async with asyncio.timeout(timeout_s):
            try:
                first = await self._source.get()
            except StopAsyncIteration:
                return []
        return [first, *self._source.take(BATCH - 1)]

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        return self.get()


class ThreadSubscription(Inflow[Message]):
    """See ``Subscription``. It begins and ends with ``with``; ``for message in messages`` blocks, and so does ``get``, which may have a
    deadline. Callbacks run in the broker's thread, one message at a time.
    """

    def __init__(self, thread: LoopThread, subscription: Subscription) -> None:
        super().__init__(thread, subscription)
        self._subscription = subscription

    @property
    def topic_filters(self) -> tuple[str, ...]:
        return self._subscription.topic_filters

    @property
    def reason_codes(self) -> dict[str, ReasonCode]:
        return self._subscription.reason_codes

    @property
    def dropped(self) -> int:
        return self._subscription.dropped

    def filters_of(self, message: Message) -> tuple[str, ...]:
        return self._subscription.filters_of(message)

    def subscribe(
        self,
        topic_filter: str,
        qos: int | None = None,
        *,
        no_local: bool | None = None,
        retain_as_published: bool | None = None,
        retain_handling: int | None = None,
        callback: Callback | None = None,
    ) -> ReasonCode:
        """See ``Subscription.subscribe``."""
        return self._thread.call(
            self._subscription.subscribe(
                topic_filter,
                qos,
                no_local=no_local,
                retain_as_published=retain_as_published,
                retain_handling=retain_handling,
                callback=callback,
            )
        )

    def unsubscribe(self, topic_filter: str) -> None:
        """See ``Subscription.unsubscribe``."""
        self._thread.call(self._subscription.unsubscribe(topic_filter))

    def publish(
        self, topic: str, payload: Payload = b"", qos: int = 0, retain: bool = False, *, properties: Properties | None = None
    ) -> Published:
        """See ``Subscription.publish``."""
        return self._thread.call(self._subscription.publish(topic, payload, qos, retain, properties=properties))

    def __enter__(self) -> Self:
        self._thread.call(self._subscription.__aenter__())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._thread.call(self._subscription.close())
        except ClosedError:
            pass  # it has ended with the broker


class ThreadEvents(Inflow[Event]):
    """See ``EventStream``. It begins and ends with ``with``, and is a blocking iterator."""

    def __init__(self, thread: LoopThread, stream: EventStream) -> None:
        super().__init__(thread, stream)
        self._stream = stream

    @property
    def lost(self) -> int:
        return self._stream.lost

    def __enter__(self) -> Self:
        self._thread.call(self._stream.__aenter__())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stream.close()


class BrokerThread:
    """A ``Broker`` for programs without asyncio: the same names, blocking, from any thread.

    The broker is the same, and so are its threads; what this adds is one thread with a loop, on which the broker's asynchronous
    side runs, and on which callbacks are called. They must not block, and must not call these methods, which would wait for
    themselves (``RuntimeError``). Start and stop it with ``start`` and ``stop`` or ``with``; afterwards it may be started again.
    """

    def __init__(
        self,
        config: Config | Mapping[str, Any] | None = None,
        *,
        authenticator: Authenticator | None = None,
        clock: VirtualClock | None = None,
        hooks: Hooks | None = None,
    ) -> None:
        self.broker = Broker(config, authenticator=authenticator, clock=clock, hooks=hooks)
        """The broker itself, whose other methods may be called from any thread too."""
        self._has_hooks = hooks is not None
        self._thread = LoopThread("broker thread")

    @property
    def config(self) -> Config:
        return self.broker.config

    @property
    def running(self) -> bool:
        return self.broker.running

    @property
    def urls(self) -> tuple[str, ...]:
        """See ``Broker.urls``."""
        return self.broker.urls

    def start(self) -> None:
        """See ``Broker.start``. Hooks that are coroutine functions run in the broker's thread, if they were not given a loop."""
        if not self._has_hooks:
            self.broker.start()
            self._thread = LoopThread("broker thread")
            return
        thread = LoopThread("broker thread")
        try:
            self.broker._start(thread.call(_running_loop()))
        except BaseException:
            thread.stop()
            raise
        self._thread = thread

    def stop(self, timeout: float | None = None) -> bool:
        """See ``Broker.stop``. Who still iterates over messages comes to the end."""
        try:
            return self.broker.stop(timeout)
        finally:
            self._thread.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def stats(self) -> dict[str, int]:
        """See ``Broker.stats``."""
        return self.broker.stats()

    def reload(self, config: Config | Mapping[str, Any]) -> Reload:
        """See ``Broker.reload``."""
        return self.broker.reload(config)

    def explain(
        self,
        action: Action,
        topic: str,
        *,
        client_id: str,
        username: str | None = None,
        listener: str | None = None,
        groups: Sequence[str] = (),
        limit: int = 100,
        after: str | None = None,
    ) -> LiveExplanation:
        """See ``Broker.explain``."""
        return self._thread.call(
            self.broker.explain(
                action, topic, client_id=client_id, username=username, listener=listener, groups=groups, limit=limit, after=after
            )
        )

    def publish(
        self,
        topic: str,
        payload: Payload = b"",
        qos: int = 0,
        retain: bool = False,
        *,
        properties: Properties | None = None,
        timeout_s: float | None = None,
    ) -> Published:
        """See ``Publisher.publish_sync``; it waits for no other thread than the broker's."""
        return self.broker.publish_sync(topic, payload, qos, retain, properties=properties, timeout_s=timeout_s)

    def publisher(self) -> Publisher:
        """See ``Broker.publisher``; its ``publish_sync`` and ``publish_nowait`` are for threads."""
        return self.broker.publisher()

    def subscribe(
        self,
        *topic_filters: str,
        qos: int = 0,
        no_local: bool = False,
        retain_as_published: bool = False,
        retain_handling: int = 0,
        callback: Callback | None = None,
    ) -> ThreadSubscription:
        """See ``Broker.subscribe``: ``with broker.subscribe("a/#") as messages: for message in messages: ...``"""
        made = self.broker.subscribe(
            *topic_filters,
            qos=qos,
            no_local=no_local,
            retain_as_published=retain_as_published,
            retain_handling=retain_handling,
            callback=callback,
        )
        return ThreadSubscription(self._thread, made)

    def events(self, *kinds: type[Event], max_waiting: int = MAX_WAITING) -> ThreadEvents:
        """See ``Broker.events``: ``with broker.events() as events: for event in events: ...``"""
        return ThreadEvents(self._thread, self.broker.events(*kinds, max_waiting=max_waiting))

    def on_event(self, callback: Callable[[Event], object], *kinds: type[Event]) -> Callable[[], None]:
        """See ``Broker.on_event``; the callback is called in the broker's thread."""

        async def begin() -> Callable[[], None]:
            return self.broker.on_event(callback, *kinds)

        return self._thread.call(begin())

    def clients(self, *, limit: int = 100, after: str | None = None) -> Page[ClientInfo]:
        """See ``Broker.clients``."""
        return self._thread.call(self.broker.clients(limit=limit, after=after))

    def client(self, client_id: str) -> ClientInfo | None:
        """See ``Broker.client``."""
        return self._thread.call(self.broker.client(client_id))

    def disconnect(self, client_id: str, reason_code: int = ReasonCode.ADMINISTRATIVE_ACTION) -> bool:
        """See ``Broker.disconnect``."""
        return self._thread.call(self.broker.disconnect(client_id, reason_code))

    def sessions(self, *, limit: int = 100, after: str | None = None) -> Page[SessionInfo]:
        """See ``Broker.sessions``."""
        return self._thread.call(self.broker.sessions(limit=limit, after=after))

    def session(self, client_id: str) -> SessionInfo | None:
        """See ``Broker.session``."""
        return self._thread.call(self.broker.session(client_id))

    def delete_session(self, client_id: str) -> bool:
        """See ``Broker.delete_session``."""
        return self._thread.call(self.broker.delete_session(client_id))

    def retained(self, topic_filter: str = "#", *, limit: int = 100, after: str | None = None) -> Page[RetainedMessage]:
        """See ``Broker.retained``."""
        return self._thread.call(self.broker.retained(topic_filter, limit=limit, after=after))

    def retained_message(self, topic: str) -> RetainedMessage | None:
        """See ``Broker.retained_message``."""
        return self._thread.call(self.broker.retained_message(topic))

    def delete_retained(self, topic_filter: str) -> int:
        """See ``Broker.delete_retained``."""
        return self._thread.call(self.broker.delete_retained(topic_filter))
