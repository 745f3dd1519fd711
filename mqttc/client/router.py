"""Which streams and callbacks a message goes to: those of the subscriptions whose filters match its topic."""

from __future__ import annotations

from typing import Final, Protocol

from mqttc import codec
from mqttc.client.message import Message

CACHED_TOPICS: Final = 4096
"""Topics whose sinks are remembered; then all are forgotten and looked up again."""


class Sink(Protocol):
    """A stream, or a callback."""

    @property
    def full(self) -> bool: ...
    def put(self, message: Message) -> None: ...
    def put_all(self, messages: list[Message], payload_bytes: int) -> None:
        """Some that nothing is owed for."""
        ...


class Route(Protocol):
    """A subscription, as the router sees it."""

    @property
    def topic_filters(self) -> tuple[str, ...]: ...
    @property
    def identifier(self) -> int | None: ...
    @property
    def sink(self) -> Sink: ...


class Router:
    """``inbox`` gets what no subscription matches."""

    def __init__(self, inbox: Sink) -> None:
        self._inbox = inbox
        self._routes: list[Route] = []
        self._cache: dict[str, tuple[Sink, ...]] = {}
        self.identified = False
        """Whether a subscription has an identifier, so that the topic alone does not say whose a message is."""

    @property
    def routes(self) -> tuple[Route, ...]:
        return tuple(self._routes)

    def add(self, route: Route) -> None:
        self._routes.append(route)
        self.changed()

    def remove(self, route: Route) -> None:
        if route in self._routes:
            self._routes.remove(route)
            self.changed()

    def changed(self) -> None:
        """A route has another sink."""
        self._cache.clear()
        self.identified = any(route.identifier is not None for route in self._routes)

    def sinks(self, message: Message) -> tuple[Sink, ...]:
        if self.identified and (identifiers := message.packet.properties.subscription_identifiers):
            return self._look_up(message.topic, identifiers)
        found = self._cache.get(message.topic)
        if found is None:
            if len(self._cache) >= CACHED_TOPICS:
                self._cache.clear()
            found = self._cache[message.topic] = self._look_up(message.topic)
        return found

    def _look_up(self, topic: str, identifiers: tuple[int, ...] = ()) -> tuple[Sink, ...]:
        """With identifiers of the message, subscriptions that have one get it only by theirs."""
        found: dict[int, Sink] = {}
        for route in self._routes:
            by_identifier = identifiers and route.identifier is not None
            if (route.identifier in identifiers) if by_identifier else matches(route, topic):
                found[id(route.sink)] = route.sink
        return tuple(found.values()) or (self._inbox,)


def matches(route: Route, topic: str) -> bool:
    return any(codec.topic_matches(topic_filter, topic) for topic_filter in route.topic_filters)
