"""Messages of the application on their way out: queued, sent and not acknowledged, released; in the order in which they were given.

The window is that of section 4.9: one is taken from it for each PUBLISH of QoS 1 or 2, and given back by PUBACK, PUBCOMP or a PUBREC that
refuses. What does not fit, and all that is given while there is no connection, waits in one bounded queue.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterator
from typing import Any, Protocol

from mqttc import codec
from mqttc.client.message import NO_PROPERTIES, RESULTS, SENT, PublishResult
from mqttc.client.packet_ids import PacketIds
from mqttc.client.store import MemoryStore
from mqttc.codec import Properties, ReasonCode
from mqttc.errors import ExpiredError, MqttError, PublishError, QueueFullError, reason_text

OVERHEAD_BYTES = 128
"""What a queued message is counted with beside its topic and payload."""


class Stage(enum.IntEnum):
    QUEUED = 0
    SENT = 1
    RELEASED = 2
    """QoS 2: PUBREC has come, PUBREL is sent."""
    DONE = 3


_SENT, _DONE = Stage.SENT, Stage.DONE


class Outgoing:
    """One message. When `stage` is DONE, `error` or `result` says how it ended; `waiter` belongs to whoever drives the core."""

    __slots__ = (
        *(
            "error",
            "expires_at",
            "number",
            "packet_id",
            "payload",
            "properties",
            "qos",
            "result",
            "retain",
            "sent_before",
            "stage",
            "topic",
        ),
        "waiter",
    )

    def __init__(self, topic: str, payload: bytes, qos: int, retain: bool, properties: Properties | None) -> None:
        self.topic = topic
        self.payload = payload
        self.qos = qos
        self.retain = retain
        self.properties = properties
        self.packet_id = 0
        self.number = 0
        self.stage: int = 0
        self.sent_before = False
        self.expires_at: float | None = None
        """On the core's clock."""
        self.result: PublishResult = SENT
        self.error: MqttError | None = None
        self.waiter: Any = None

    @property
    def cost_bytes(self) -> int:
        return OVERHEAD_BYTES + len(self.topic) + len(self.payload)

    def packet(self, dup: bool = False) -> codec.Publish:
        return codec.Publish(
            self.topic, self.payload, qos=self.qos, retain=self.retain, dup=dup, packet_id=self.packet_id, properties=self.properties
        )


class OutgoingStore(Protocol):
    """Who remembers messages beyond this process."""

    def queued(self, entry: Outgoing) -> None: ...
    def staged(self, entry: Outgoing) -> None:
        """Its stage or identifier has changed."""
        ...

    def done(self, entry: Outgoing) -> None: ...


class OutgoingMessages:
    """The sending half of a session. The core sends what `next` gives, and tells it of answers."""

    def __init__(self, ids: PacketIds, store: OutgoingStore, max_messages: int, max_bytes: int, max_inflight: int) -> None:
        self.ids = ids
        self.queued_bytes = 0
        self.inflight: dict[int, Outgoing] = {}
        """PUBLISH sent, in the order of the first sending."""
        self.released: dict[int, Outgoing] = {}
        """In the order in which PUBREC came [MQTT-4.6.0-4]."""
        self._store = store
        self._remembers = not isinstance(store, MemoryStore)
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._max_inflight = max_inflight
        self._queue: deque[Outgoing] = deque()
        self._again: deque[Outgoing] = deque()
        """Sent on an earlier connection of the session, to be sent again before anything else."""
        self._window = 0
        self._window_maximum = 0
        self._last_number = 0
        self.next_expiry: float | None = None
        """Nothing that is queued expires earlier."""

    @property
    def queued(self) -> int:
        return len(self._queue)

    @property
    def unfinished(self) -> int:
        """QoS 1 and 2 without their last acknowledgement, and all that is queued."""
        return len(self._queue) + len(self.inflight) + len(self.released)

    @property
    def idle_window(self) -> bool:
        """Whether a new message may be sent at once: nothing waits, and the window has room."""
        return self._window > 0 and not self._queue and not self._again and not self.ids.exhausted

    def full_for(self, entry: Outgoing) -> bool:
        return len(self._queue) >= self._max_messages or self.queued_bytes + entry.cost_bytes > self._max_bytes

    def enqueue(self, entry: Outgoing) -> None:
        """Raises ``QueueFullError``."""
        if self.full_for(entry):
            raise QueueFullError(
                f"{len(self._queue)} messages of {self.queued_bytes} bytes wait to be sent"
                f" (max_queued_messages {self._max_messages}, max_queued_bytes {self._max_bytes})"
            )
        self._number(entry)
        self._queue.append(entry)
        self.queued_bytes += entry.cost_bytes
        self._expires(entry)
        self._store.queued(entry)

    def _expires(self, entry: Outgoing) -> None:
        at = entry.expires_at
        if at is not None and (self.next_expiry is None or at < self.next_expiry):
            self.next_expiry = at

    def expire(self, now: float) -> list[Outgoing]:
        """Takes out of the queue what is to be sent no more; those have ended."""
        if self.next_expiry is None or now < self.next_expiry:
            return []
        self.next_expiry = None
        gone: list[Outgoing] = []
        kept: deque[Outgoing] = deque()
        for entry in self._queue:
            if entry.expires_at is None or now < entry.expires_at:
                kept.append(entry)
                self._expires(entry)
                continue
            self.queued_bytes -= entry.cost_bytes
            entry.error = ExpiredError(f"a message to {entry.topic!r} was not sent before its message_expiry_interval ended")
            self._finish(entry)
            gone.append(entry)
        self._queue = kept
        return gone

    def start(self, entry: Outgoing) -> None:
        """A new message of QoS 1 or 2 that is sent at once; only where `idle_window`."""
        self._last_number += 1
        entry.number = self._last_number
        self._window -= 1
        entry.packet_id = packet_id = self.ids.take()
        entry.stage = _SENT
        entry.sent_before = True
        self.inflight[packet_id] = entry
        self._store.queued(entry)

    def next(self) -> Outgoing | None:
        """The next to be sent, taken from queue and window; `sent_before` says whether DUP is to be set."""
        while self._again:
            if self._again[0].stage == Stage.DONE:
                self._again.popleft()
                continue
            if not self._window:
                return None
            self._window -= 1
            return self._again.popleft()
        if not self._queue:
            return None
        entry = self._queue[0]
        if entry.qos:
            if not self._window or self.ids.exhausted:
                return None
            self._window -= 1
            entry.packet_id = self.ids.take()
            entry.stage = Stage.SENT
            self.inflight[entry.packet_id] = entry
            self._store.staged(entry)
        else:
            entry.stage = Stage.DONE
            self._store.done(entry)
        self._queue.popleft()
        self.queued_bytes -= entry.cost_bytes
        return entry

    def connected(self, receive_maximum: int, session_present: bool) -> list[Outgoing]:
        """Opens the window. Without the session, what was sent becomes new again; those are returned that count as done: the broker had
        them, and asked for their release."""
        self._window = self._window_maximum = min(receive_maximum, self._max_inflight)
        self._again.clear()
        if session_present:
            self._again.extend(self.inflight.values())
            return []
        finished = list(self.released.values())
        for entry in finished:
            self._finish(entry)
        self.released.clear()
        for entry in reversed(self.inflight.values()):
            self.ids.free(entry.packet_id)
            entry.packet_id, entry.stage, entry.sent_before = 0, Stage.QUEUED, False
            self._queue.appendleft(entry)
            self._expires(entry)
            self.queued_bytes += entry.cost_bytes
            self._store.staged(entry)
        self.inflight.clear()
        return finished

    def lost(self) -> None:
        self._window = self._window_maximum = 0
        self._again.clear()

    def on_ack(self, packet: codec.Ack) -> Outgoing | None:
        """PUBACK or PUBCOMP: the message that has ended. None for an identifier that nobody waits for."""
        packet_id = packet.packet_id
        entry = self.inflight.get(packet_id)
        wanted = 1
        if entry is None:
            entry = self.released.get(packet_id)
            wanted = 2
        if entry is None or entry.qos != wanted or (wanted == 1) != isinstance(packet, codec.Puback):
            return None
        del (self.inflight if wanted == 1 else self.released)[packet_id]
        self._give_back()
        self._finish(entry, packet)
        return entry

    def on_pubacks(self, acknowledged: list[int], ended: list[Any]) -> int:
        """PUBACK packets without properties as `codec.Decoder.run` gives them; `ended` gets their messages. How many nobody waited for."""
        inflight, free, add = self.inflight, self.ids.free, ended.append
        unclaimed = 0
        for told in acknowledged:
            packet_id = told & 0xFFFF
            entry = inflight.get(packet_id)
            if entry is None or entry.qos != 1:
                unclaimed += 1
                continue
            del inflight[packet_id]
            free(packet_id)
            entry.stage = _DONE
            if self._remembers:
                self._store.done(entry)
            if told > 0xFFFF:
                self._said(entry, told >> 16, NO_PROPERTIES)
            add(entry)
        self._window = min(self._window + len(acknowledged) - unclaimed, self._window_maximum)
        return unclaimed

    def on_pubrec(self, packet: codec.Pubrec) -> tuple[Outgoing | None, bool]:
        """The message that has ended, because it was refused; and whether PUBREL is due with SUCCESS (else the identifier is unknown)."""
        packet_id = packet.packet_id
        entry = self.inflight.get(packet_id)
        if entry is None or entry.qos != 2:
            return None, packet_id in self.released
        del self.inflight[packet_id]
        if packet.reason_code >= 0x80:
            self._give_back()
            self._finish(entry, packet)
            return entry, False
        entry.stage = Stage.RELEASED
        if packet.reason_code or packet.properties:
            entry.result = PublishResult(packet.reason_code, packet.properties)
        self.released[packet_id] = entry
        self._store.staged(entry)
        return None, True

    def withdraw(self, entry: Outgoing) -> bool:
        """Takes back what was not sent yet. False: it is too late."""
        if entry.stage != Stage.QUEUED or entry not in self._queue:
            return False
        self._queue.remove(entry)
        self.queued_bytes -= entry.cost_bytes
        entry.stage = Stage.DONE
        self._store.done(entry)
        return True

    def fail(self, entry: Outgoing, error: MqttError) -> None:
        """It cannot be sent to this broker."""
        if entry.packet_id:
            self.inflight.pop(entry.packet_id, None)
            self._give_back()
        entry.error = error
        self._finish(entry)

    def restore(self, entry: Outgoing) -> None:
        """From the store, in the order of their numbers."""
        self._last_number = max(self._last_number, entry.number)
        if entry.stage == Stage.QUEUED:
            self._queue.append(entry)
            self._expires(entry)
            self.queued_bytes += entry.cost_bytes
            return
        self.ids.claim(entry.packet_id)
        entry.sent_before = True
        (self.released if entry.stage == Stage.RELEASED else self.inflight)[entry.packet_id] = entry

    def entries(self) -> Iterator[Outgoing]:
        """All that are not done."""
        yield from self.released.values()
        yield from self.inflight.values()
        yield from self._queue

    def _number(self, entry: Outgoing) -> None:
        self._last_number += 1
        entry.number = self._last_number

    def _give_back(self) -> None:
        if self._window < self._window_maximum:
            self._window += 1

    def _finish(self, entry: Outgoing, packet: codec.Ack | None = None) -> None:
        entry.stage = _DONE
        if entry.packet_id:
            self.ids.free(entry.packet_id)
        self._store.done(entry)
        if packet is None or isinstance(packet, codec.Pubcomp):
            return  # PUBREC has decided; PACKET_IDENTIFIER_NOT_FOUND in PUBCOMP is what a lost PUBCOMP leaves behind (section 3.7.2.1)
        self._said(entry, packet.reason_code, packet.properties)

    def _said(self, entry: Outgoing, code: int, properties: Properties) -> None:
        """What PUBACK or PUBREC makes of a message."""
        if code >= 0x80:
            text = f"the broker refused a message to {entry.topic!r}: {reason_text(code, properties)}"
            entry.error = PublishError(text, ReasonCode(code), properties)
        elif properties:
            entry.result = PublishResult(ReasonCode(code), properties)
        else:
            entry.result = RESULTS[code]
