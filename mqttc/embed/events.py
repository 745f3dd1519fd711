"""Events: what happens to clients, for the program."""

from __future__ import annotations

import asyncio
import inspect
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from mqttc import inside
from mqttc.codec import QoS

if TYPE_CHECKING:
    from mqttc.embed.hub import Hub
    from mqttc.listen import Served

MAX_WAITING: Final = 10_000


@dataclass(frozen=True, slots=True)
class Event:
    """What all events have. Text comes from clients: escape it before it is shown."""

    time: float
    """Unix time of the event, seconds."""
    client_id: str
    username: str | None
    """Of CONNECT."""
    address: str
    """``host:port`` or ``unix``; empty where the client is not connected, or in-process."""
    listener: str
    """The listener's name, or its URL."""
    protocol: int
    """Version of MQTT: 3 (3.1), 4 (3.1.1) or 5; 0 where the client is not connected."""


@dataclass(frozen=True, slots=True)
class Connected(Event):
    """CONNACK with success was sent."""


@dataclass(frozen=True, slots=True)
class Disconnected(Event):
    """The connection of a client has ended."""

    reason_code: int
    """Of the client's DISCONNECT, or of the broker's own (section 3.14.2.1): 0x8E was taken over, 0x8D keep alive; 0 where
    neither was sent."""
    clean: bool
    """The client has sent DISCONNECT."""
    detail: str
    """What else is known of the reason."""


@dataclass(frozen=True, slots=True)
class Subscribed(Event):
    """A filter was granted."""

    topic_filter: str
    qos: QoS


@dataclass(frozen=True, slots=True)
class Unsubscribed(Event):
    """UNSUBSCRIBE of a filter; ``reason_code`` 0x11: it was not in force."""

    topic_filter: str
    reason_code: int


@dataclass(frozen=True, slots=True)
class Dropped(Event):
    """A client's messages are lost. Told of the 1st, 2nd, 4th, 8th, ... of its session, so that loss does not make a flood."""

    reason: str
    """Why the last one was."""
    total: int
    """Messages that it has lost so far, for all reasons."""


@dataclass(frozen=True, slots=True)
class SessionExpired(Event):
    """A session has ended while its client was away."""


_KINDS: Final[Mapping[type[Event], tuple[int, ...]]] = {
    Connected: (inside.CONNECTED,),
    Disconnected: (inside.DISCONNECTED, inside.CONNECTION_LOST, inside.TAKEN_OVER),
    Subscribed: (inside.SUBSCRIBED,),
    Unsubscribed: (inside.UNSUBSCRIBED,),
    Dropped: (inside.DROPPED,),
    SessionExpired: (inside.SESSION_EXPIRED,),
}


def event_of(raw: inside.RawEvent, served: Mapping[int, Served]) -> Event:
    listener = served.get(raw.listener)
    name = "" if listener is None else listener.name
    base = (raw.wall_ms / 1000, raw.client_id, raw.username or None, raw.peer, name, raw.level)
    if raw.kind == inside.CONNECTED:
        return Connected(*base)
    if raw.kind == inside.SUBSCRIBED:
        return Subscribed(*base, raw.detail, QoS(raw.reason))
    if raw.kind == inside.UNSUBSCRIBED:
        return Unsubscribed(*base, raw.detail, raw.reason)
    if raw.kind == inside.DROPPED:
        return Dropped(*base, raw.detail, raw.dropped)
    if raw.kind == inside.SESSION_EXPIRED:
        return SessionExpired(*base)
    return Disconnected(*base, raw.reason, raw.kind == inside.DISCONNECTED, raw.detail)


class Listening:
    """Somebody who hears events: on a loop, or, without one, on the control thread."""

    def __init__(self, kinds: tuple[type[Event], ...], loop: asyncio.AbstractEventLoop | None, put: Callable[[Event], object]) -> None:
        unknown = [kind for kind in kinds if kind not in _KINDS]
        if unknown:
            raise TypeError(f"{unknown[0]!r} is no kind of event")
        self.kinds = frozenset(number for kind in (kinds or tuple(_KINDS)) for number in _KINDS[kind])
        self.loop = loop
        self.put = put

    def end(self) -> None:
        """The broker has stopped."""


class Stream(Listening):
    """What a stream has of the hub; it does not keep the stream alive, so that one that nobody reads any more is let go."""

    def __init__(self, kinds: tuple[type[Event], ...], loop: asyncio.AbstractEventLoop, stream: EventStream) -> None:
        self._stream = weakref.ref(stream)
        super().__init__(kinds, loop, self._put)

    def _put(self, event: Event) -> None:
        stream = self._stream()
        if stream is not None:
            stream.put(event)

    def end(self) -> None:
        stream = self._stream()
        if stream is not None:
            stream.end()


class EventStream:
    """What ``Broker.events`` gives: ``async for event in broker.events():``. It listens from the first step of the iteration, or from
    ``async with``, until ``close``, the end of the context, or until nobody has it any more.

    At most ``max_waiting`` events wait here; later ones are lost, and counted in ``lost``.
    """

    def __init__(self, hub: Callable[[], Hub], kinds: tuple[type[Event], ...], max_waiting: int) -> None:
        if max_waiting < 1:
            raise ValueError("max_waiting is at least 1")
        Listening(kinds, None, lambda event: None)
        self._find_hub = hub
        self._kinds = kinds
        self._max_waiting = max_waiting
        self._events: deque[Event] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._close: Callable[[], object] | None = None
        self._ended = False
        self.lost = 0
        """Events that were not kept, because ``max_waiting`` others waited."""

    @property
    def waiting(self) -> int:
        """Events that can be read without waiting."""
        return len(self._events)

    def put(self, event: Event) -> None:
        """For the hub, on the loop."""
        if len(self._events) >= self._max_waiting:
            self.lost += 1
        else:
            self._events.append(event)
            self._wake()

    def end(self) -> None:
        """For the hub, on the loop: the broker has stopped."""
        self._ended = True
        self._wake()

    def close(self) -> None:
        """Listen no more; what waits can still be read."""
        self._ended = True
        if self._close is not None:
            self._close()
        self._wake()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def _start(self) -> None:
        if self._close is None and not self._ended:
            hub = self._find_hub()
            listening = Stream(self._kinds, asyncio.get_running_loop(), self)
            hub.listen(listening)
            self._close = weakref.finalize(self, hub.unlisten, id(listening))

    async def __aenter__(self) -> Self:
        self._start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    async def get(self) -> Event:
        """The next event. Raises ``StopAsyncIteration`` after the end."""
        return await self.__anext__()

    def take(self, most: int) -> list[Event]:
        """What can be had without waiting, ``most`` events at most."""
        return [self._events.popleft() for _ in range(min(most, len(self._events)))]

    def __aiter__(self) -> Self:
        self._start()
        return self

    async def __anext__(self) -> Event:
        self._start()
        while not self._events:
            if self._ended:
                raise StopAsyncIteration
            if self._reader is not None and not self._reader.done():
                raise RuntimeError("another task waits for the next event already")
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        return self._events.popleft()


def on_loop(hub: Hub, callback: Callable[[Event], object], kinds: tuple[type[Event], ...]) -> Callable[[], None]:
    """Calls it from now on; what is returned ends that."""
    try:
        loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
    except RuntimeError:
        loop = None
    if inspect.iscoroutinefunction(callback):
        raise TypeError("an event's callback is a plain function; coroutines read `events()`")
    listening = Listening(kinds, loop, callback)
    hub.listen(listening)
    return lambda: hub.unlisten(id(listening))
