"""The methods of ``mqttc.Broker`` for the program around it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from mqttc import codec
from mqttc.codec import Properties, ReasonCode
from mqttc.embed import admin, events
from mqttc.embed.admin import ClientInfo, Page, RetainedMessage, SessionInfo
from mqttc.embed.events import MAX_WAITING, Event, EventStream
from mqttc.embed.hub import Hub
from mqttc.embed.message import Payload, Published
from mqttc.embed.publisher import Publisher
from mqttc.embed.subscription import Callback, Subscription, options_byte
from mqttc.errors import BrokerError


class InProcess(ABC):
    """What a broker gives to the program that it lives in. Coroutines run on the program's own loops, any number of them; all other
    methods may be called from any thread. ``BrokerError`` is raised where the broker does not run, or stops meanwhile."""

    @abstractmethod
    def _hub(self) -> Hub:
        """Raises ``BrokerError`` if the broker does not run."""

    def responsive(self, timeout_s: float = 5.0) -> bool:
        """Whether the control thread and every worker answer within so many seconds; False also where the broker does not run.

        Blocks for that long at most; not from a coroutine.
        """
        try:
            return self._hub().responsive(timeout_s)
        except BrokerError:
            return False

    # ---- messages

    async def publish(
        self, topic: str, payload: Payload = b"", qos: int = 0, retain: bool = False, *, properties: Properties | None = None
    ) -> Published:
        """Publish from inside; see ``Publisher.publish``. All that is published by these methods of one broker keeps its order."""
        return await self._hub().default_publisher().publish(topic, payload, qos, retain, properties=properties)

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
        """See ``Publisher.publish_sync``."""
        publisher = self._hub().default_publisher()
        return publisher.publish_sync(topic, payload, qos, retain, properties=properties, timeout_s=timeout_s)

    def publish_nowait(
        self, topic: str, payload: Payload = b"", qos: int = 0, retain: bool = False, *, properties: Properties | None = None
    ) -> None:
        """See ``Publisher.publish_nowait``."""
        self._hub().default_publisher().publish_nowait(topic, payload, qos, retain, properties=properties)

    def publisher(self) -> Publisher:
        """A way into the broker of its own, bound to one worker: publishers do not wait for each other."""
        return Publisher(self._hub())

    def subscribe(
        self,
        *topic_filters: str,
        qos: int = 0,
        no_local: bool = False,
        retain_as_published: bool = False,
        retain_handling: int = 0,
        callback: Callback | None = None,
    ) -> Subscription:
        """``async with broker.subscribe("a/#") as messages: async for message in messages: ...``

        Retained messages come first. Shared subscriptions (``$share/group/filter``) share with clients. More filters, with options
        and callbacks of their own, are added by ``Subscription.subscribe``. ``no_local``: not what this subscription's own
        ``publish`` publishes. A filter that is refused is a ``SubscribeError`` of ``async with``.
        """
        options = options_byte(qos, no_local, retain_as_published, retain_handling)
        for topic_filter in topic_filters:
            codec.validate_filter(topic_filter)
        return Subscription(self._hub, topic_filters, options, callback)

    # ---- events

    def events(self, *kinds: type[Event], max_waiting: int = MAX_WAITING) -> EventStream:
        """``async for event in broker.events(Connected, Disconnected): ...``; without kinds, all of them."""
        return EventStream(self._hub, kinds, max_waiting)

    def on_event(self, callback: Callable[[Event], object], *kinds: type[Event]) -> Callable[[], None]:
        """Call a plain function for each event: on the running loop or, where there is none, on the broker's control thread,
        where it must not block. The function that is returned ends it. What the callback raises is logged.
        """
        return events.on_loop(self._hub(), callback, kinds)

    # ---- administration

    async def clients(self, *, limit: int = 100, after: str | None = None) -> Page[ClientInfo]:
        """Clients that are connected over a network, a page at a time; ``limit``: 1 to 1000. Whoever connects or goes meanwhile may or
        may not be among them; nobody is there twice unless he comes back.
        """
        page = await admin.list_sessions(self._hub(), True, limit, after)
        return Page(tuple(one for one in page if isinstance(one, ClientInfo)), page.next)

    async def client(self, client_id: str) -> ClientInfo | None:
        """A connected client, with its subscriptions; None: it is not connected."""
        found = await admin.look_up(self._hub(), client_id)
        return found if isinstance(found, ClientInfo) else None

    async def disconnect(self, client_id: str, reason_code: int = ReasonCode.ADMINISTRATIVE_ACTION) -> bool:
        """Disconnect a client; 5.0 clients are told the reason code (section 3.14.2.1), 0x80 or above. Its session stays as it has
        asked, and its will goes out. False: it was not connected.
        """
        return await admin.disconnect(self._hub(), client_id, reason_code)

    async def sessions(self, *, limit: int = 100, after: str | None = None) -> Page[SessionInfo]:
        """All sessions, those of connected clients as ``ClientInfo``; see ``clients``."""
        return await admin.list_sessions(self._hub(), False, limit, after)

    async def session(self, client_id: str) -> SessionInfo | None:
        """A session, with its subscriptions; None: there is none."""
        return await admin.look_up(self._hub(), client_id)

    async def delete_session(self, client_id: str) -> bool:
        """End a session: its client is disconnected (0x98), what waits for it is dropped and counted. False: there was none."""
        return await admin.end_session(self._hub(), client_id)

    async def retained(self, topic_filter: str = "#", *, limit: int = 100, after: str | None = None) -> Page[RetainedMessage]:
        """Retained messages whose topics match, a page at a time. ``#`` does not match topics that begin with ``$`` [MQTT-4.7.2-1]."""
        return await admin.list_retained(self._hub(), topic_filter, limit, after)

    async def retained_message(self, topic: str) -> RetainedMessage | None:
        """The retained message of one topic."""
        codec.validate_topic(topic)
        page = await admin.list_retained(self._hub(), topic, 1, None)
        return page.items[0] if page.items else None

    async def delete_retained(self, topic_filter: str) -> int:
        """Delete the retained messages whose topics match; how many. Subscribers are not told, as an empty message would tell them."""
        return await admin.delete_retained(self._hub(), topic_filter)
