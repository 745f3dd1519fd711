"""Messages of QoS 1 and 2 on their way in: what is not acknowledged yet, in which order acknowledgements leave, what is a repetition.

An acknowledgement leaves when the application has got the message (or says so), never before those of the messages that came earlier
[MQTT-4.6.0-2] [MQTT-4.6.0-3]. So what the application leaves lying is never more than Receive Maximum; the broker keeps the rest.

A connection that breaks takes nothing with it: the broker sends what it has no acknowledgement of again, under the same identifiers, and
what is still here, or has been dealt with meanwhile, is not given out a second time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from mqttc import codec
from mqttc.codec import ReasonCode


class Receipt:
    """What is owed for one message. `holders`: how many streams have it and have not dealt with it."""

    __slots__ = ("acknowledger", "connection", "done", "holders", "packet_id", "qos", "reason_code")

    def __init__(self, packet_id: int, qos: int, connection: int) -> None:
        self.packet_id = packet_id
        self.qos = qos
        self.connection = connection
        self.holders = 1
        self.done = False
        self.reason_code = 0
        self.acknowledger: Callable[[Receipt, int], None] | None = None
        """Who takes `Message.acknowledge`."""


class ReceivedStore(Protocol):
    """Who remembers QoS 2 identifiers beyond this process."""

    def received(self, packet_id: int) -> None: ...
    def forgotten(self, packet_id: int) -> None: ...
    def all_forgotten(self) -> None: ...


class Incoming:
    """The receiving half of a session. ``answers`` are packets to be sent, in order."""

    def __init__(self, store: ReceivedStore, unreleased: set[int]) -> None:
        self.answers: list[codec.Packet] = []
        self._store = store
        self._connection = 0
        self._maximum = 65535
        self._pending: dict[int, Receipt] = {}
        """Given out and not acknowledged, of this connection or an earlier one of the session."""
        self._order: tuple[deque[Receipt], deque[Receipt]] = (deque(), deque())
        """Of this connection, in the order of arrival: QoS 1, QoS 2."""
        self._unreleased = unreleased
        """QoS 2: PUBREC is sent, PUBREL has not come. A PUBLISH with such an identifier is a repetition [MQTT-4.3.3-10]."""
        self._counted: set[int] = set()
        """Those of them that this connection brought."""

    @property
    def unacknowledged(self) -> int:
        return len(self._pending)

    @property
    def has_state(self) -> bool:
        return bool(self._pending or self._unreleased)

    def connected(self, receive_maximum: int, session_present: bool) -> None:
        self.lost()
        self._maximum = receive_maximum
        self._counted.clear()
        if not session_present:
            self._pending.clear()
            self._unreleased.clear()
            self._store.all_forgotten()

    def lost(self) -> None:
        """The connection is gone: what is acknowledged from now on waits for its message to come again."""
        self._connection += 1
        for order in self._order:
            order.clear()
        self.answers.clear()

    def on_publish(self, packet: codec.Publish) -> Receipt | None:
        """What is owed for a new message; None for a repetition. Raises ``codec.ProtocolViolationError`` past Receive Maximum.

        What was sent before comes with DUP [MQTT-3.3.1-1]; without, a broker has given up what it had under this identifier.
        """
        packet_id, qos = packet.packet_id, int(packet.qos)
        if qos == 2 and packet_id in self._unreleased:
            self._counted.add(packet_id)
            self.answers.append(codec.Pubrec(packet_id))
            return None
        held = self._pending.get(packet_id)
        if held is not None and (packet.dup or held.connection == self._connection):
            if held.connection != self._connection:
                held.connection = self._connection
                self._order[held.qos - 1].append(held)
                self._leave(held.qos)
            return None
        order = self._order[qos - 1]
        if len(self._order[0]) + len(self._order[1]) + len(self._counted) >= self._maximum:
            raise codec.ProtocolViolationError("more messages than Receive Maximum allows", ReasonCode.RECEIVE_MAXIMUM_EXCEEDED)
        receipt = self._pending[packet_id] = Receipt(packet_id, qos, self._connection)
        order.append(receipt)
        return receipt

    def on_pubrel(self, packet: codec.Pubrel) -> None:
        """PUBCOMP, whether the identifier is known or not; then it is free again."""
        packet_id = packet.packet_id
        if packet_id in self._unreleased:
            self._unreleased.remove(packet_id)
            self._counted.discard(packet_id)
            self._store.forgotten(packet_id)
            self.answers.append(codec.Pubcomp(packet_id))
        else:
            self.answers.append(codec.Pubcomp(packet_id, ReasonCode.PACKET_IDENTIFIER_NOT_FOUND))

    def acknowledge(self, receipt: Receipt, reason_code: int = 0) -> None:
        """One holder has dealt with it. Late ones, of a session that is gone, do nothing."""
        receipt.holders -= 1
        if reason_code >= 0x80:
            receipt.reason_code = reason_code
        if receipt.holders > 0 or receipt.done or self._pending.get(receipt.packet_id) is not receipt:
            return
        receipt.done = True
        if receipt.connection == self._connection:
            self._leave(receipt.qos)

    def _leave(self, qos: int) -> None:
        order = self._order[qos - 1]
        while order and order[0].done:
            receipt = order.popleft()
            packet_id = receipt.packet_id
            del self._pending[packet_id]
            if qos == 1:
                self.answers.append(codec.Puback(packet_id, receipt.reason_code))
                continue
            if not receipt.reason_code:
                self._unreleased.add(packet_id)
                self._counted.add(packet_id)
                self._store.received(packet_id)
            self.answers.append(codec.Pubrec(packet_id, receipt.reason_code))
