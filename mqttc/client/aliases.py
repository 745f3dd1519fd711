"""Topic aliases (section 3.3.2.3.4), of one connection. Both ways they live and die with it."""

from __future__ import annotations

from typing import Any

from mqttc import codec
from mqttc.codec import Properties

LONG_TOPIC = 32
"""Characters from which on an alias is worth copying a message's own properties."""
MOST = 256
"""Aliases used, whatever the broker allows."""


class OutgoingAliases:
    """Which topics the broker knows by number. The table is filled in the order of first use and then overwritten in it."""

    def __init__(self, maximum: int) -> None:
        self.maximum = min(maximum, MOST)
        self._known: dict[str, Properties] = {}
        self._next = 1
        self._topics: list[str | None] = [None] * (self.maximum + 1)

    def shorten(self, topic: str, properties: Properties | None) -> tuple[str, Properties | None]:
        """The topic and properties to send instead: never an alias above the maximum [MQTT-3.2.2-17], none at all when it is 0."""
        if not self.maximum or (properties and len(topic) < LONG_TOPIC):
            return topic, properties
        known = self._known.get(topic)
        if known is not None:
            return "", merged(properties, known.topic_alias) if properties else known
        number = self._next
        self._next = number + 1 if number < self.maximum else 1
        forgotten = self._topics[number]
        if forgotten is not None:
            del self._known[forgotten]
        self._topics[number] = topic
        known = self._known[topic] = Properties(topic_alias=number)
        return topic, merged(properties, number) if properties else known

    def forget(self, topic: str) -> None:
        """The packet that would have told it was not sent."""
        known = self._known.pop(topic, None)
        if known is not None and known.topic_alias is not None:
            self._topics[known.topic_alias] = None


def merged(properties: Properties, number: int | None) -> Properties:
    """The same with an alias."""
    told: dict[str, Any] = {**properties.as_dict(), "topic_alias": number}
    return Properties(**told)


class IncomingAliases:
    """What the broker's numbers stand for. Every number up to the maximum we told it is good [MQTT-3.3.2-10]."""

    def __init__(self, maximum: int) -> None:
        self._maximum = maximum
        self.topics: dict[int, str] = {}

    def resolve(self, topic: str, properties: Properties) -> str:
        """The topic of a PUBLISH with these. Raises ``codec.ProtocolViolationError``."""
        number = properties.topic_alias
        if number is None:
            if not topic:
                raise codec.ProtocolViolationError("PUBLISH without a topic and without an alias")
            return topic
        if not topic and number in self.topics:
            return self.topics[number]
        if not 1 <= number <= self._maximum:
            raise codec.ProtocolViolationError(f"topic alias {number} of {self._maximum}", codec.ReasonCode.TOPIC_ALIAS_INVALID)
        if topic:
            self.topics[number] = topic
            return topic
        raise codec.ProtocolViolationError(f"topic alias {number} has not been told")
