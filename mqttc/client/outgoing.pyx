"""Messages of the application on their way out: queued, sent and not acknowledged, released; in the order in which they were given.

The window is that of section 4.9: one is taken from it for each PUBLISH of QoS 1 or 2, and given back by PUBACK, PUBCOMP or a PUBREC that
refuses. What does not fit, and all that is given while there is no connection, waits in one bounded queue.
"""

import enum
from collections import deque

from libc.stdint cimport uint16_t, uint32_t

from mqttc.client.packet_ids cimport PACKET_IDS, PacketIds

from mqttc import codec
from mqttc.client.message import NO_PROPERTIES, RESULTS, SENT, PublishResult
from mqttc.client.store import MemoryStore
from mqttc.codec import ReasonCode
from mqttc.errors import ExpiredError, PublishError, QueueFullError, reason_text

cdef enum:
    OVERHEAD_BYTES = 128                    # what a queued message is counted with beside its topic and payload
    REFUSED = 0x80                          # reason codes from here on, section 2.4

cdef enum:
    STAGE_QUEUED
    STAGE_SENT
    STAGE_RELEASED                          # QoS 2: PUBREC has come, PUBREL is sent
    STAGE_DONE


class Stage(enum.IntEnum):
    """What `Outgoing.stage` is one of."""

    QUEUED = STAGE_QUEUED
    SENT = STAGE_SENT
    RELEASED = STAGE_RELEASED
    DONE = STAGE_DONE


cdef class Outgoing:
    """One message. When `stage` is DONE, `error` or `result` says how it ended; `waiter` belongs to whoever drives the core."""
    cdef public str topic
    cdef public bytes payload
    cdef public int qos
    cdef public bint retain
    cdef public object properties           # codec.Properties, or None
    cdef public uint16_t packet_id          # 0: none
    cdef public long long number
    cdef public int stage
    cdef public bint sent_before
    cdef public object expires_at           # on the core's clock, or None
    cdef public object result
    cdef public object error
    cdef public object waiter

    def __cinit__(self, str topic not None, bytes payload not None, int qos, bint retain, properties):
        self.topic = topic
        self.payload = payload
        self.qos = qos
        self.retain = retain
        self.properties = properties
        self.result = SENT

    cdef Py_ssize_t cost(self) except -1:
        """Bytes that it is counted with while it is queued."""
        return OVERHEAD_BYTES + len(self.topic) + len(self.payload)


cdef class OutgoingMessages:
    """The sending half of a session. The core sends what `next` gives, and tells it of answers."""

    cdef readonly PacketIds ids
    cdef readonly Py_ssize_t queued_bytes
    cdef readonly dict inflight             # PUBLISH sent, by identifier, in the order of the first sending
    cdef readonly dict released             # in the order in which PUBREC came [MQTT-4.6.0-4]
    cdef readonly object next_expiry        # nothing that is queued expires earlier; None: nothing does
    cdef object store
    cdef bint remembers
    cdef Py_ssize_t max_messages
    cdef Py_ssize_t max_bytes
    cdef int max_inflight
    cdef object queue
    cdef object again                       # sent on an earlier connection of the session, to be sent again before anything else
    cdef int window
    cdef int window_maximum
    cdef long long last_number

    def __cinit__(self, PacketIds ids not None, store, Py_ssize_t max_messages, Py_ssize_t max_bytes, int max_inflight):
        self.ids = ids
        self.inflight = {}
        self.released = {}
        self.store = store
        self.remembers = not isinstance(store, MemoryStore)
        self.max_messages = max_messages
        self.max_bytes = max_bytes
        self.max_inflight = max_inflight
        self.queue = deque()
        self.again = deque()

    @property
    def queued(self):
        return len(self.queue)

    @property
    def unfinished(self):
        """QoS 1 and 2 without their last acknowledgement, and all that is queued."""
        return len(self.queue) + len(self.inflight) + len(self.released)

    @property
    def idle_window(self):
        """Whether a new message may be sent at once: nothing waits, and the window has room."""
        return self.window > 0 and not self.queue and not self.again and self.ids.count < PACKET_IDS

    def full_for(self, Outgoing entry not None):
        return len(self.queue) >= self.max_messages or self.queued_bytes + entry.cost() > self.max_bytes

    def enqueue(self, Outgoing entry not None):
        """Raises ``QueueFullError``."""
        if self.full_for(entry):
            raise QueueFullError(
                f"{len(self.queue)} messages of {self.queued_bytes} bytes wait to be sent"
                f" (max_queued_messages {self.max_messages}, max_queued_bytes {self.max_bytes})"
            )
        self.number(entry)
        self.queue.append(entry)
        self.queued_bytes += entry.cost()
        self.expires(entry)
        self.store.queued(entry)

    def expire(self, double now):
        """Takes out of the queue what is to be sent no more; those have ended."""
        cdef Outgoing entry
        cdef list gone = []
        if self.next_expiry is None or now < self.next_expiry:
            return []
        self.next_expiry = None
        kept = deque()
        for entry in self.queue:
            if entry.expires_at is None or now < entry.expires_at:
                kept.append(entry)
                self.expires(entry)
                continue
            self.queued_bytes -= entry.cost()
            entry.error = ExpiredError(f"a message to {entry.topic!r} was not sent before its message_expiry_interval ended")
            self.finish(entry)
            gone.append(entry)
        self.queue = kept
        return gone

    def start(self, Outgoing entry not None):
        """A new message of QoS 1 or 2 that is sent at once; only where `idle_window`."""
        self.number(entry)
        self.send(entry)
        entry.sent_before = True
        if self.remembers:
            self.store.queued(entry)

    cdef int send(self, Outgoing entry) except -1:
        """Takes an identifier, and a place in the window."""
        entry.packet_id = self.ids.next()
        self.inflight[entry.packet_id] = entry
        entry.stage = STAGE_SENT
        self.window -= 1
        return 0

    def next(self):
        """The next to be sent, taken from queue and window; `sent_before` says whether DUP is to be set."""
        cdef Outgoing entry
        while self.again:
            entry = self.again[0]
            if entry.stage == STAGE_DONE:
                self.again.popleft()
                continue
            if not self.window:
                return None
            self.window -= 1
            return self.again.popleft()
        if not self.queue:
            return None
        entry = self.queue[0]
        if entry.qos:
            if not self.window or self.ids.count == PACKET_IDS:
                return None
            self.send(entry)
            self.store.staged(entry)
        else:
            entry.stage = STAGE_DONE
            self.store.done(entry)
        self.queue.popleft()
        self.queued_bytes -= entry.cost()
        return entry

    def connected(self, int receive_maximum, bint session_present):
        """Opens the window. Without the session, what was sent becomes new again; those are returned that count as done: the broker had
        them, and asked for their release."""
        cdef Outgoing entry
        self.window = self.window_maximum = min(receive_maximum, self.max_inflight)
        self.again.clear()
        if session_present:
            self.again.extend(self.inflight.values())
            return []
        finished = list(self.released.values())
        for entry in finished:
            self.finish(entry)
        self.released.clear()
        for entry in reversed(self.inflight.values()):
            self.ids.give_back(entry.packet_id)
            entry.packet_id, entry.stage, entry.sent_before = 0, STAGE_QUEUED, False
            self.queue.appendleft(entry)
            self.expires(entry)
            self.queued_bytes += entry.cost()
            self.store.staged(entry)
        self.inflight.clear()
        return finished

    def lost(self):
        self.window = self.window_maximum = 0
        self.again.clear()

    def on_ack(self, packet):
        """PUBACK or PUBCOMP: the message that has ended. None for an identifier that nobody waits for."""
        cdef bint puback = isinstance(packet, codec.Puback)
        cdef dict waiting = self.inflight if puback else self.released
        cdef Outgoing entry = waiting.get(packet.packet_id)
        if entry is None or entry.qos != (1 if puback else 2):
            return None
        del waiting[packet.packet_id]
        self.widen(1)
        self.finish(entry, packet)
        return entry

    def on_pubacks(self, list acknowledged not None, list ended not None):
        """PUBACK packets without properties as `codec.Decoder.run` gives them; `ended` gets their messages. How many nobody waited for."""
        cdef Outgoing entry
        cdef uint32_t told
        cdef Py_ssize_t unclaimed = 0
        for told in acknowledged:
            entry = self.inflight.get(told & 0xFFFF)
            if entry is None or entry.qos != 1:
                unclaimed += 1
                continue
            del self.inflight[told & 0xFFFF]
            self.ids.give_back(entry.packet_id)
            entry.stage = STAGE_DONE
            if self.remembers:
                self.store.done(entry)
            if told > 0xFFFF:
                self.said(entry, told >> 16, NO_PROPERTIES)
            ended.append(entry)
        self.widen(len(acknowledged) - unclaimed)
        return unclaimed

    def on_pubrec(self, packet):
        """The message that has ended, because it was refused; and whether PUBREL is due with SUCCESS (else the identifier is unknown)."""
        cdef int packet_id = packet.packet_id
        cdef Outgoing entry = self.inflight.get(packet_id)
        if entry is None or entry.qos != 2:
            return None, packet_id in self.released
        del self.inflight[packet_id]
        if packet.reason_code >= REFUSED:
            self.widen(1)
            self.finish(entry, packet)
            return entry, False
        entry.stage = STAGE_RELEASED
        if packet.reason_code or packet.properties:
            entry.result = PublishResult(packet.reason_code, packet.properties)
        self.released[packet_id] = entry
        self.store.staged(entry)
        return None, True

    def withdraw(self, Outgoing entry not None):
        """Takes back what was not sent yet. False: it is too late."""
        if entry.stage != STAGE_QUEUED or entry not in self.queue:
            return False
        self.queue.remove(entry)
        self.queued_bytes -= entry.cost()
        entry.stage = STAGE_DONE
        self.store.done(entry)
        return True

    def fail(self, Outgoing entry not None, error):
        """It cannot be sent to this broker."""
        if entry.packet_id:
            self.inflight.pop(entry.packet_id, None)
            self.widen(1)
        entry.error = error
        self.finish(entry)

    def restore(self, Outgoing entry not None):
        """From the store, in the order of their numbers."""
        self.last_number = max(self.last_number, entry.number)
        if entry.stage == STAGE_QUEUED:
            self.queue.append(entry)
            self.expires(entry)
            self.queued_bytes += entry.cost()
            return
        self.ids.claim(entry.packet_id)
        entry.sent_before = True
        (self.released if entry.stage == STAGE_RELEASED else self.inflight)[entry.packet_id] = entry

    def entries(self):
        """All that are not done."""
        yield from self.released.values()
        yield from self.inflight.values()
        yield from self.queue

    cdef int number(self, Outgoing entry) except -1:
        self.last_number += 1
        entry.number = self.last_number
        return 0

    cdef int expires(self, Outgoing entry) except -1:
        if entry.expires_at is not None and (self.next_expiry is None or entry.expires_at < self.next_expiry):
            self.next_expiry = entry.expires_at
        return 0

    cdef int widen(self, Py_ssize_t places) except -1:
        """Never beyond what CONNACK has given [MQTT-4.9.0-2]."""
        self.window = <int> min(self.window + places, self.window_maximum)
        return 0

    cdef int finish(self, Outgoing entry, packet=None) except -1:
        entry.stage = STAGE_DONE
        self.ids.give_back(entry.packet_id)
        self.store.done(entry)
        if packet is not None and not isinstance(packet, codec.Pubcomp):
            # PUBREC has decided; PACKET_IDENTIFIER_NOT_FOUND in PUBCOMP is what a lost PUBCOMP leaves behind (section 3.7.2.1)
            self.said(entry, packet.reason_code, packet.properties)
        return 0

    cdef int said(self, Outgoing entry, int code, properties) except -1:
        """What PUBACK or PUBREC makes of a message."""
        if code >= REFUSED:
            text = f"the broker refused a message to {entry.topic!r}: {reason_text(code, properties)}"
            entry.error = PublishError(text, ReasonCode(code), properties)
        elif properties:
            entry.result = PublishResult(ReasonCode(code), properties)
        else:
            entry.result = RESULTS[code]
        return 0


def run_end(list events not None, Py_ssize_t first, list waiters not None):
    """Of the messages (Outgoing) that have ended and stand together from `first` on: the index behind the last; `waiters` gets theirs."""
    cdef Py_ssize_t at = first
    while at < len(events) and isinstance(events[at], Outgoing):
        if (<Outgoing> events[at]).waiter is not None:
            waiters.append((<Outgoing> events[at]).waiter)
        at += 1
    return at
