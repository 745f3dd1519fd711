"""``Recorder``: what a broker has seen, and assertions that wait for it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Final, Self, TypedDict, TypeVar, Unpack, overload

from mqttc import codec
from mqttc.client.sync import LoopThread
from mqttc.embed.events import Connected, Disconnected, Event, SessionExpired, Subscribed, Unsubscribed
from mqttc.embed.message import Message, Payload
from mqttc.errors import BrokerError, ClosedError
from mqttc.server import Broker

TIMEOUT_S: Final = 5.0
"""How long assertions wait by default."""
MAX_RECORDS: Final = 100_000
"""Messages, and events, that a recorder keeps; later ones are counted only."""
SHOWN: Final = 20
"""Lines of what came instead, in an assertion's text."""
_FENCE: Final = "$mqttc/recorder/"

T = TypeVar("T")
E_ = TypeVar("E_", bound=Event)


class Like(TypedDict, total=False):
    """Keyword arguments of assertions on messages: what a message has to be like. See ``Recorder.expect``."""

    payload: Payload | None
    qos: int | None
    retain: bool | None
    properties: Mapping[str, Any] | None
    where: Callable[[Message], object] | None


class LikeInTime(Like, total=False):
    """The same where the assertion waits."""

    timeout: float | None


class Expected:
    """What a message has to be like."""

    def __init__(
        self,
        topic_filter: str,
        *,
        payload: Payload | None = None,
        qos: int | None = None,
        retain: bool | None = None,
        properties: Mapping[str, Any] | None = None,
        where: Callable[[Message], object] | None = None,
    ) -> None:
        codec.validate_filter(topic_filter)
        for name in properties or ():
            if name.startswith("_") or not hasattr(codec.Properties, name):
                raise TypeError(f"{name!r} is no property of MQTT 5.0")
        self.topic_filter = topic_filter
        self.payload = payload.encode() if isinstance(payload, str) else None if payload is None else bytes(payload)
        self.qos = qos
        self.retain = retain
        self.properties = dict(properties or {})
        self.where = where

    def __str__(self) -> str:
        parts = [repr(self.topic_filter)]
        if self.payload is not None:
            parts.append(f"payload={shown(self.payload)}")
        parts += [f"{name}={getattr(self, name)!r}" for name in ("qos", "retain") if getattr(self, name) is not None]
        parts += [f"{name}={value!r}" for name, value in self.properties.items()]
        if self.where is not None:
            parts.append(f"where={getattr(self.where, '__name__', self.where)!s}")
        return ", ".join(parts)

    def differences(self, message: Message) -> list[str]:
        """Names of what is not as expected."""
        found = []
        if not codec.topic_matches(self.topic_filter, message.topic):
            found.append("topic")
        if self.payload is not None and self.payload != message.payload:
            found.append("payload")
        if self.qos is not None and self.qos != message.qos:
            found.append("qos")
        if self.retain is not None and self.retain != message.retain:
            found.append("retain")
        if self.properties:
            found += [name for name, value in self.properties.items() if getattr(message.properties, name) != value]
        if not found and self.where is not None and not self.where(message):
            found.append("where")
        return found


class Recorder:
    """Records what clients publish and what becomes of clients, from ``start`` or ``with`` on.

    ``topic_filters``: what is recorded, by default ``#``, which leaves out topics that begin with ``$`` [MQTT-4.7.2-1]. The recorder
    is a subscriber: a publisher that nobody else listens to is not told NO_MATCHING_SUBSCRIBERS.

    Assertions look at all that was recorded since the start or ``clear``, in whatever order it came, and consume nothing. Their
    timeouts are real seconds, whatever the broker's clock is. They block the thread; coroutines use those of ``aio``.
    """

    def __init__(self, broker: Broker, *topic_filters: str, timeout: float = TIMEOUT_S) -> None:
        self._broker = broker
        self._subscription = broker.subscribe(
            *(topic_filters or ("#",)), _FENCE + "+", qos=2, retain_as_published=True, retain_handling=2, callback=self._message
        )
        self._timeout = timeout
        self._changed = threading.Condition()
        self._messages: list[Message] = []
        self._events: list[Event] = []
        self._lost = 0
        self._lost_before = 0
        self._fences = 0
        self._passed = 0
        self._thread = LoopThread("recorder")
        self._unlisten: Callable[[], None] = lambda: None
        self.aio = AsyncRecorder(self)
        """The assertions as coroutines, with the same arguments."""

    # ---- begin and end

    def start(self) -> None:
        """Begins once. Raises ``BrokerError`` where the broker does not run."""
        try:
            self._thread.call(self._begin())
        except BaseException:
            self._thread.stop()
            raise

    async def _begin(self) -> None:
        await self._subscription.__aenter__()
        self._lost_before = self._broker.stats()["events_lost"]
        self._unlisten = self._broker.on_event(self._event)

    def stop(self) -> None:
        """What was recorded stays. Idempotent."""
        self._unlisten()
        self._unlisten = lambda: None
        try:
            self._thread.call(self._subscription.close())
        except (BrokerError, ClosedError):
            pass  # the broker has stopped, or this has before
        finally:
            self._thread.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    # ---- what came

    def _message(self, message: Message) -> None:
        with self._changed:
            if message.topic.startswith(_FENCE):
                self._passed = int(message.payload)
            elif len(self._messages) < MAX_RECORDS:
                self._messages.append(message)
            else:
                self._lost += 1
            self._changed.notify_all()

    def _event(self, event: Event) -> None:
        with self._changed:
            if len(self._events) < MAX_RECORDS:
                self._events.append(event)
            else:
                self._lost += 1
            self._changed.notify_all()

    @property
    def messages(self) -> list[Message]:
        """All so far, as they came."""
        with self._changed:
            return list(self._messages)

    @property
    def events(self) -> list[Event]:
        """All so far, as they came: see ``mqttc.embed``."""
        with self._changed:
            return list(self._events)

    @property
    def lost(self) -> int:
        """Messages and events that were not recorded, since there was no room; then assertions fail."""
        events = self._broker.stats()["events_lost"] - self._lost_before
        with self._changed:
            return self._lost + self._subscription.dropped + events

    def clear(self) -> None:
        """Forget what came; first what is still on its way: see ``fence``."""
        self.fence()
        with self._changed:
            self._messages.clear()
            self._events.clear()

    def fence(self) -> None:
        """Returns when all has been recorded that had reached the broker's sockets (``Broker.settle``) and what followed from it."""
        __tracebackhide__ = True
        self._broker.settle()
        with self._changed:
            self._fences += 1
            number = self._fences
        self._thread.call(self._subscription.publish(f"{_FENCE}{number}", str(number), qos=1))
        with self._changed:
            if not self._changed.wait_for(lambda: self._passed >= number, self._timeout):
                raise AssertionError(f"the recorder did not keep up with the broker within {self._timeout:g} s")

    # ---- assertions on messages

    @overload
    def expect(
        self,
        topic_filter: str = "#",
        *,
        count: None = None,
        timeout: float | None = None,
        **like: Unpack[Like],
    ) -> Message: ...
    @overload
    def expect(
        self,
        topic_filter: str = "#",
        *,
        count: int,
        timeout: float | None = None,
        **like: Unpack[Like],
    ) -> list[Message]: ...
    def expect(
        self,
        topic_filter: str = "#",
        *,
        count: int | None = None,
        timeout: float | None = None,
        **like: Unpack[Like],
    ) -> Message | list[Message]:
        """Wait until a message is published that is like this, and return the first such one.

        ``qos``, ``retain``: as it was published. ``properties``: some of those of MQTT 5.0, by name. ``where``: a function that is true
        of it. With ``count``, wait for so many, make sure by ``fence`` that no more came, and return them. ``AssertionError`` after
        ``timeout`` seconds, or where more came, tells what came instead.
        """
        __tracebackhide__ = True
        if count is not None and count < 1:
            raise ValueError("count is at least 1; see expect_none")
        expected = Expected(topic_filter, **like)
        seconds = self._timeout if timeout is None else timeout
        found = self._wait(lambda: self._like(expected), count or 1, seconds)
        if len(found) < (count or 1):
            wanted = f"{len(found)} of {count} messages" if count else "no message"
            raise AssertionError(f"{wanted} within {seconds:g} s: {expected}\n{self._instead(expected)}")
        if count is None:
            self._complete()
            return found[0]
        self.fence()
        found = self._like(expected)
        if len(found) > count:
            raise AssertionError(f"{len(found)} messages instead of {count}: {expected}\n{_lines('They were', map(line, found))}")
        self._complete()
        return found

    def expect_none(self, topic_filter: str = "#", **like: Unpack[Like]) -> None:
        """No such message was published so far. Nothing is waited for but the ``fence``."""
        __tracebackhide__ = True
        expected = Expected(topic_filter, **like)
        self.fence()
        found = self._like(expected)
        if found:
            raise AssertionError(f"{len(found)} messages instead of none: {expected}\n{_lines('They were', map(line, found))}")
        self._complete()

    # ---- assertions on events

    def expect_event(self, kind: type[E_], *, timeout: float | None = None, **fields: Any) -> E_:
        """Wait for an event of this kind (see ``mqttc.embed``) whose fields are as given; a field that is None is not looked at."""
        __tracebackhide__ = True
        seconds = self._timeout if timeout is None else timeout
        wanted = _fields(kind, fields)
        found = self._wait(lambda: self._events_like(kind, wanted), 1, seconds)
        if not found:
            raise AssertionError(f"no event within {seconds:g} s: {_event_text(kind, wanted)}\n{self._other_events()}")
        return found[0]

    def expect_no_event(self, kind: type[E_], **fields: Any) -> None:
        """No such event was there so far; see ``expect_none``."""
        __tracebackhide__ = True
        wanted = _fields(kind, fields)
        self.fence()
        found = self._events_like(kind, wanted)
        if found:
            raise AssertionError(
                f"{len(found)} events instead of none: {_event_text(kind, wanted)}\n{_lines('They were', map(repr, found))}"
            )
        self._complete()

    def expect_connected(self, client_id: str | None = None, *, timeout: float | None = None, **fields: Any) -> Connected:
        """A client was accepted; see ``expect_event``."""
        __tracebackhide__ = True
        return self.expect_event(Connected, client_id=client_id, timeout=timeout, **fields)

    def expect_disconnected(self, client_id: str | None = None, *, timeout: float | None = None, **fields: Any) -> Disconnected:
        """A connection has ended; ``clean=True``: by a DISCONNECT. See ``expect_event``."""
        __tracebackhide__ = True
        return self.expect_event(Disconnected, client_id=client_id, timeout=timeout, **fields)

    def expect_subscribed(
        self, topic_filter: str | None = None, *, client_id: str | None = None, timeout: float | None = None, **fields: Any
    ) -> Subscribed:
        """A filter, this very text, was granted; see ``expect_event``."""
        __tracebackhide__ = True
        return self.expect_event(Subscribed, topic_filter=topic_filter, client_id=client_id, timeout=timeout, **fields)

    def expect_unsubscribed(
        self, topic_filter: str | None = None, *, client_id: str | None = None, timeout: float | None = None, **fields: Any
    ) -> Unsubscribed:
        """See ``expect_event``."""
        __tracebackhide__ = True
        return self.expect_event(Unsubscribed, topic_filter=topic_filter, client_id=client_id, timeout=timeout, **fields)

    def expect_session_expired(self, client_id: str | None = None, *, timeout: float | None = None) -> SessionExpired:
        """See ``expect_event``."""
        __tracebackhide__ = True
        return self.expect_event(SessionExpired, client_id=client_id, timeout=timeout)

    # ---- parts

    def _like(self, expected: Expected) -> list[Message]:
        return [message for message in self.messages if not expected.differences(message)]

    def _events_like(self, kind: type[E_], wanted: Mapping[str, Any]) -> list[E_]:
        return [
            event
            for event in self.events
            if isinstance(event, kind) and all(getattr(event, name) == value for name, value in wanted.items())
        ]

    def _wait(self, find: Callable[[], list[T]], count: int, seconds: float) -> list[T]:
        deadline = time.monotonic() + seconds
        with self._changed:
            while True:
                found = find()
                left = deadline - time.monotonic()
                if len(found) >= count or left <= 0:
                    return found
                self._changed.wait(left)

    def _complete(self) -> None:
        __tracebackhide__ = True
        if self.lost:
            raise AssertionError(f"{self.lost} messages or events were not recorded: more came than there is room for")

    def _instead(self, expected: Expected) -> str:
        others = [(expected.differences(message), message) for message in self.messages]
        others.sort(key=lambda other: len(other[0]))
        lines = (f"{line(message)}  ({', '.join(names) or 'as expected'})" for names, message in others)
        text = _lines("What came, and in what it differs", lines) if others else "Nothing came."
        return text + "\n" + self._other_events()

    def _other_events(self) -> str:
        events = self.events
        return _lines("Events", map(repr, events[-SHOWN:])) if events else "No events."


class AsyncRecorder:
    """Assertions of a ``Recorder`` for coroutines of an asyncio loop: each waits on a thread of the loop's executor."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    @overload
    async def expect(self, topic_filter: str = "#", *, count: None = None, **like: Unpack[LikeInTime]) -> Message: ...
    @overload
    async def expect(self, topic_filter: str = "#", *, count: int, **like: Unpack[LikeInTime]) -> list[Message]: ...
    async def expect(self, topic_filter: str = "#", *, count: int | None = None, **like: Unpack[LikeInTime]) -> Message | list[Message]:
        """See ``Recorder.expect``."""
        recorder = self._recorder
        if count is None:
            return await asyncio.to_thread(lambda: recorder.expect(topic_filter, **like))
        return await asyncio.to_thread(lambda: recorder.expect(topic_filter, count=count, **like))

    async def expect_none(self, topic_filter: str = "#", **like: Unpack[Like]) -> None:
        """See ``Recorder.expect_none``."""
        await asyncio.to_thread(lambda: self._recorder.expect_none(topic_filter, **like))

    async def expect_event(self, kind: type[E_], **fields: Any) -> E_:
        """See ``Recorder.expect_event``."""
        return await asyncio.to_thread(lambda: self._recorder.expect_event(kind, **fields))

    async def expect_no_event(self, kind: type[E_], **fields: Any) -> None:
        """See ``Recorder.expect_no_event``."""
        await asyncio.to_thread(lambda: self._recorder.expect_no_event(kind, **fields))

    async def expect_connected(self, client_id: str | None = None, **fields: Any) -> Connected:
        return await self.expect_event(Connected, client_id=client_id, **fields)

    async def expect_disconnected(self, client_id: str | None = None, **fields: Any) -> Disconnected:
        return await self.expect_event(Disconnected, client_id=client_id, **fields)

    async def expect_subscribed(self, topic_filter: str | None = None, **fields: Any) -> Subscribed:
        return await self.expect_event(Subscribed, topic_filter=topic_filter, **fields)

    async def expect_unsubscribed(self, topic_filter: str | None = None, **fields: Any) -> Unsubscribed:
        return await self.expect_event(Unsubscribed, topic_filter=topic_filter, **fields)

    async def expect_session_expired(self, client_id: str | None = None, **fields: Any) -> SessionExpired:
        return await self.expect_event(SessionExpired, client_id=client_id, **fields)

    async def fence(self) -> None:
        """See ``Recorder.fence``."""
        await asyncio.to_thread(self._recorder.fence)

    async def clear(self) -> None:
        """See ``Recorder.clear``."""
        await asyncio.to_thread(self._recorder.clear)


def shown(payload: bytes) -> str:
    return repr(payload) if len(payload) <= 80 else f"{payload[:64]!r}... ({len(payload)} bytes)"


def line(message: Message) -> str:
    """A message on one line."""
    parts = [repr(message.topic), f"payload={shown(message.payload)}", f"qos={int(message.qos)}"]
    if message.retain:
        parts.append("retain=True")
    parts += [f"{name}={value!r}" for name, value in message.properties.as_dict().items() if name != "subscription_identifiers"]
    return " ".join(parts)


def _lines(title: str, items: Iterable[str]) -> str:
    every = list(items)
    more = [f"  ... and {len(every) - SHOWN} more"] if len(every) > SHOWN else []
    return "\n".join([f"{title}:", *(f"  {item}" for item in every[:SHOWN]), *more])


def _fields(kind: type[Event], fields: Mapping[str, Any]) -> dict[str, Any]:
    for name in fields:
        if name not in kind.__dataclass_fields__:
            raise TypeError(f"{kind.__name__} has no field {name!r}")
    return {name: value for name, value in fields.items() if value is not None}


def _event_text(kind: type[Event], wanted: Mapping[str, Any]) -> str:
    return f"{kind.__name__}({', '.join(f'{name}={value!r}' for name, value in wanted.items())})"
