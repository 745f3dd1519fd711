"""SUBSCRIBE and UNSUBSCRIBE on their way: those that wait for their answer, and those that wait for a connection."""

from __future__ import annotations

from collections import deque
from typing import Any

from mqttc import codec
from mqttc.client.packet_ids import PacketIds
from mqttc.codec import Properties, ReasonCode
from mqttc.errors import MqttError, QueueFullError

NO_PROPERTIES = Properties()


class Request:
    """One SUBSCRIBE (`subscriptions`) or UNSUBSCRIBE (`topic_filters`). Answered when `reason_codes` or `error` is set.

    `own`: by the client itself, which subscribes again after the broker has lost the session. `waiter` belongs to whoever drives the core.
    """

    __slots__ = (
        *("abandoned", "answered", "error", "own", "packet_id", "properties", "reason_codes", "result_properties", "subscriptions"),
        *("topic_filters", "waiter"),
    )

    def __init__(
        self,
        subscriptions: tuple[codec.Subscription, ...] = (),
        topic_filters: tuple[str, ...] = (),
        properties: Properties | None = None,
        own: bool = False,
    ) -> None:
        self.subscriptions = subscriptions
        self.topic_filters = topic_filters
        self.properties = properties
        self.own = own
        self.packet_id = 0
        self.answered = False
        self.abandoned = False
        self.reason_codes: tuple[ReasonCode, ...] = ()
        self.result_properties = NO_PROPERTIES
        self.error: MqttError | None = None
        self.waiter: Any = None

    @property
    def subscription_filters(self) -> tuple[str, ...]:
        return tuple(item.topic_filter for item in self.subscriptions)

    def packet(self) -> codec.Packet:
        if self.subscriptions:
            return codec.Subscribe(self.packet_id, self.subscriptions, properties=self.properties)
        return codec.Unsubscribe(self.packet_id, self.topic_filters, properties=self.properties)


class Requests:
    """They are no part of a session: a connection that breaks takes the packet with it, and the next one gets it as a new one."""

    def __init__(self, ids: PacketIds, most: int) -> None:
        self._ids = ids
        self._most = most
        self._sent: dict[int, Request] = {}
        self._waiting: deque[Request] = deque()

    def __len__(self) -> int:
        return len(self._sent) + len(self._waiting)

    def add(self, request: Request) -> None:
        """Raises ``QueueFullError``."""
        if len(self) >= self._most and not request.own:
            raise QueueFullError(f"{len(self)} SUBSCRIBE and UNSUBSCRIBE wait for their answer (max_requests {self._most})")
        self._waiting.append(request)

    def first(self, requests: list[Request]) -> None:
        """Before those that wait."""
        self._waiting.extendleft(reversed(requests))

    def next(self) -> Request | None:
        """The next to be sent; it has its identifier."""
        if not self._waiting or self._ids.exhausted:
            return None
        request = self._waiting.popleft()
        request.packet_id = self._ids.take()
        self._sent[request.packet_id] = request
        return request

    def answer(self, packet: codec.Verdicts) -> Request | None:
        """Whose answer it is. None for an identifier that nobody waits for. Raises ``codec.ProtocolViolationError``."""
        request = self._sent.get(packet.packet_id)
        if request is None or bool(request.subscriptions) != isinstance(packet, codec.Suback):
            return None
        count = len(request.subscriptions) or len(request.topic_filters)
        if len(packet.reason_codes) != count and (packet.reason_codes or isinstance(packet, codec.Suback)):
            raise codec.ProtocolViolationError(f"{len(packet.reason_codes)} reason codes for {count} filters")
        self._forget(request)
        request.answered = True
        request.reason_codes = packet.reason_codes
        request.result_properties = packet.properties
        return request

    def fail(self, request: Request, error: MqttError) -> None:
        """It cannot be sent to this broker."""
        self._forget(request)
        request.answered = True
        request.error = error

    def withdraw(self, request: Request) -> bool:
        """Takes back what was not sent yet."""
        if request not in self._waiting:
            return False
        self._waiting.remove(request)
        return True

    def lost(self) -> None:
        """What was sent is to be sent again, but for what nobody waits for any more, and what the client does again by itself."""
        again = [request for request in self._sent.values() if not request.abandoned and not request.own]
        for request in list(self._sent.values()):
            self._forget(request)
        self._waiting = deque([*again, *(request for request in self._waiting if not request.own)])

    def entries(self) -> list[Request]:
        return [*self._sent.values(), *self._waiting]

    def _forget(self, request: Request) -> None:
        if self._sent.pop(request.packet_id, None) is not None:
            self._ids.free(request.packet_id)
