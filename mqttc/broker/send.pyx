from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t, uint8_t
from libc.string cimport memcpy

from mqttc.base.alloc cimport mem_alloc, mem_free
from mqttc.base.map cimport hash_bytes
from mqttc.base.msg cimport Msg, msg_drop, msg_expiry_left, msg_journal, msg_payload, msg_properties, msg_topic
from mqttc.base.ring cimport ring_at
from mqttc.base.types cimport ST_OK, Span, span_equal, span_make, unlikely
from mqttc.broker.durable cimport note_done, note_sent, wait_add
from mqttc.broker.port cimport inside_due, is_inside
from mqttc.broker.reply cimport conn_disconnect
from mqttc.broker.report cimport EV_MESSAGES_DROPPED, LOG_WARNING, report, text
from mqttc.broker.routes cimport subscription_ids_drop
from mqttc.broker.session cimport inflight_push, membership_release, queue_push, queue_remove, session_handle, window_free
from mqttc.broker.state cimport (
    DISCONNECT_SLOW, DROP_NEWEST, DROP_QOS0_FIRST, OUT_HELD, OUT_READY, OUT_SENT, QE_COUNTED, QE_JOURNALED, QE_RETAIN, QE_STORED, WAIT_SESSION,
    AliasOut, AliasesOut, Conn, QueueEntry, Session, Settings, Wait, Worker,
)
from mqttc.broker.stats cimport (
    C_DROPPED_EXPIRED, C_DROPPED_NO_MEMORY, C_DROPPED_OUTPUT_FULL, C_DROPPED_OVERLOAD, C_DROPPED_QUEUE_FULL, C_DROPPED_TOO_LARGE, C_MESSAGES_OUT, C_SENT, stat,
)
from mqttc.net.outq cimport outq_reserve
from mqttc.net.reactor cimport END_NO_MEMORY, LINK_NOTIFY, link_close, link_dirty
from mqttc.proto.encode cimport PublishParts, encode_publish, publish_size
from mqttc.proto.packet cimport PUBLISH, RC_QUOTA_EXCEEDED


# ---- loss is never silent

cdef int session_drop(Worker *worker, Session *session, int counter) noexcept nogil:
    stat(&worker.stats, counter)
    session.dropped += 1
    if session.dropped & (session.dropped - 1) == 0:        # the 1st, 2nd, 4th, 8th, ... of this session
        report(worker, LOG_WARNING, EV_MESSAGES_DROPPED, 0, session.conn, session, text(drop_name(counter)))
    return 0


cdef const char *drop_name(int counter) noexcept nogil:
    if counter == C_DROPPED_QUEUE_FULL:
        return "queue full"
    if counter == C_DROPPED_OUTPUT_FULL:
        return "output full"
    if counter == C_DROPPED_EXPIRED:
        return "message expired"
    if counter == C_DROPPED_TOO_LARGE:
        return "larger than the client's maximum packet size"
    if counter == C_DROPPED_OVERLOAD:
        return "the broker's memory is used up"
    return "no memory"


# ---- encoding for one receiver

cdef void parts_of(PublishParts *parts, Span topic, Span properties, Span payload, uint8_t qos, uint8_t retain) noexcept nogil:
    parts.qos = qos
    parts.dup = 0
    parts.retain = retain
    parts.has_message_expiry = False
    parts.packet_id = 0
    parts.topic_alias = 0
    parts.message_expiry = 0
    parts.subscription_id_count = 0
    parts.subscription_ids = NULL
    parts.topic = topic
    parts.properties = properties
    parts.payload = payload


cdef void alias_apply(Conn *conn, PublishParts *parts) noexcept nogil:
    """Replaces the topic by an alias the client knows, or teaches it one, the least recently used giving way. [MQTT-3.3.2-9..11]"""
    cdef AliasesOut *aliases = conn.aliases_out
    cdef uint32_t i
    cdef uint32_t oldest = 0
    cdef AliasOut *alias
    cdef uint8_t *copy
    cdef uint32_t hash
    if aliases.capacity == 0:
        return
    hash = hash_bytes(parts.topic)
    aliases.stamp += 1
    for i in range(aliases.count):
        alias = &aliases.items[i]
        if alias.hash == hash and span_equal(span_make(alias.topic, alias.topic_bytes), parts.topic):
            alias.used = aliases.stamp
            parts.topic_alias = alias.alias
            parts.topic = span_make(NULL, 0)
            return
        if aliases.stamp - alias.used > aliases.stamp - aliases.items[oldest].used:
            oldest = i
    copy = <uint8_t *> mem_alloc(parts.topic.n if parts.topic.n else 1)
    if copy == NULL:
        return
    memcpy(copy, parts.topic.p, parts.topic.n)
    if aliases.count < aliases.capacity:
        alias = &aliases.items[aliases.count]
        aliases.count += 1
        alias.alias = <uint16_t> aliases.count
    else:
        alias = &aliases.items[oldest]
        mem_free(alias.topic)
    alias.topic = copy
    alias.topic_bytes = <uint16_t> parts.topic.n
    alias.hash = hash
    alias.used = aliases.stamp
    parts.topic_alias = alias.alias


cdef bint fits(const Conn *conn, const PublishParts *parts) noexcept nogil:
    """Whether the client takes a packet of that size. [MQTT-3.1.2-24]"""
    return conn.maximum_packet_size == 0 or publish_size(conn.dialect, parts) <= conn.maximum_packet_size


cdef bint send_parts(Worker *worker, Conn *conn, PublishParts *parts) noexcept nogil:
    """Encodes for this client alone; it fits (see fits). False: no memory, the connection closes."""
    cdef uint32_t n
    cdef uint8_t *out
    # An alias can make it 5 bytes longer: its property, and a byte more for each of the two lengths.
    if conn.aliases_out != NULL and (conn.maximum_packet_size == 0 or publish_size(conn.dialect, parts) + 5 <= conn.maximum_packet_size):
        alias_apply(conn, parts)
    n = publish_size(conn.dialect, parts)
    out = outq_reserve(&worker.reactor.chunks, &conn.link.out, n)
    if out == NULL:
        link_close(worker.reactor, &conn.link, END_NO_MEMORY)
        return False
    encode_publish(conn.dialect, parts, out)
    if unlikely(conn.guard != NULL):
        conn.guard.rates.sent += 1
    link_dirty(worker.reactor, &conn.link)
    stat(&worker.stats, C_MESSAGES_OUT)
    stat(&worker.stats, C_SENT + PUBLISH)
    return True


cdef void parts_of_entry(Worker *worker, const QueueEntry *entry, PublishParts *parts) noexcept nogil:
    cdef Msg *msg = entry.msg
    parts_of(parts, msg_topic(msg), msg_properties(msg), msg_payload(msg), entry.qos, 1 if entry.state & (QE_RETAIN << 4) else 0)
    parts.packet_id = entry.packet_id
    if msg.expires_at_ms:                                    # [MQTT-3.3.2-6]
        parts.has_message_expiry = True
        parts.message_expiry = msg_expiry_left(msg, worker.reactor.now_ms)
    if entry.subscription_ids != NULL:
        parts.subscription_ids = entry.subscription_ids.ids
        parts.subscription_id_count = entry.subscription_ids.count


# ---- one session, one message

cdef void offer_entry(Worker *worker, Session *session, QueueEntry *entry) noexcept nogil:
    """Sends or queues; takes the entry's references over. Any QoS, any flags: the general way, which the fan-out loop shortens."""
    cdef Conn *conn = conn_at(session)
    cdef PublishParts parts
    cdef QueueEntry *place
    if conn != NULL:
        parts_of_entry(worker, entry, &parts)
        if not fits(conn, &parts):
            session_drop(worker, session, C_DROPPED_TOO_LARGE)
            entry_drop(worker, session, entry)
            return
        if entry.qos == 0 and not qos0_waits(session):
            if conn.link.out.bytes < worker.engine.settings.max_output_bytes:
                send_parts(worker, conn, &parts)
            else:
                session_drop(worker, session, C_DROPPED_OUTPUT_FULL)
            entry_drop(worker, session, entry)
            return
        if entry.qos == 2 and session.durable:
            if may_hold_now(worker, session, conn) and hold_entry(worker, session, entry):
                return
        elif entry.qos and may_send_now(worker, session, conn):
            place = inflight_push(worker, session)
            if place != NULL:
                parts.packet_id = place.packet_id
                entry.packet_id = place.packet_id
                entry.state = (entry.state & 0xF0) | OUT_SENT | (QE_COUNTED << 4)
                place[0] = entry[0]
                note_sent(worker, session, place)
                send_parts(worker, conn, &parts)
                return
    queue_entry(worker, session, entry)


cdef inline bint may_hold_now(const Worker *worker, const Session *session, const Conn *conn) noexcept nogil:
    """As may_send_now; also behind others that wait for the journal."""
    if session.queue.count or conn.link.out.bytes >= out_high(worker) or window_free(session) == 0:
        return False
    return session.resend == session.inflight.count or (<QueueEntry *> ring_at(&session.inflight, session.resend)).state & 15 == OUT_HELD


cdef bint hold_entry(Worker *worker, Session *session, QueueEntry *entry) noexcept nogil:
    """A QoS 2 delivery gets its packet id, and is sent when the journal has it. False: no memory; the entry is the caller's still."""
    cdef Wait *wait
    cdef QueueEntry *place = inflight_push(worker, session)
    if place == NULL:
        return False
    session.resend -= 1                 # not sent
    entry.packet_id = place.packet_id
    entry.state = (entry.state & 0xF0) | OUT_HELD | (QE_COUNTED << 4)
    place[0] = entry[0]
    note_sent(worker, session, place)
    wait = wait_add(worker, WAIT_SESSION)
    if wait == NULL:                    # no memory: it is sent at once, and may come twice after a crash rather than never
        place.state = (place.state & 0xF0) | OUT_READY
        session.conn.link.flags |= LINK_NOTIFY
        link_dirty(worker.reactor, &session.conn.link)
        return True
    wait.session = session_handle(worker, session)
    wait.packet_id = place.packet_id
    return True


cdef void entry_drop(Worker *worker, Session *session, QueueEntry *entry) noexcept nogil:
    note_done(worker, session, entry)
    if entry.state & (QE_STORED << 4):
        entry.msg = NULL
        entry.member = 0
    if entry.msg != NULL:
        msg_drop(&worker.msgs, entry.msg)
        entry.msg = NULL
    subscription_ids_drop(entry.subscription_ids)
    entry.subscription_ids = NULL
    if entry.member:
        membership_release(worker, session, entry.member)
        entry.member = 0


cdef void queue_entry(Worker *worker, Session *session, QueueEntry *entry) noexcept nogil:
    """To the session's queue, by policy when it is full; takes the entry's references over."""
    cdef uint32_t policy = worker.engine.settings.queue_policy
    cdef uint32_t i
    cdef uint64_t n = 32 + entry.msg.topic_bytes + entry.msg.properties_bytes + entry.msg.payload_bytes
    cdef uint64_t id
    cdef bint full = worker.queues_full         # of all sessions together: one message gives way to it
    if entry.member == 0 and (n > worker.engine.settings.max_queued_bytes or (full and session.queue.count == 0)):     # nothing gives way to it
        session_drop(worker, session, C_DROPPED_QUEUE_FULL)
        entry_drop(worker, session, entry)
        return
    while session.queue.count and entry.member == 0 and (
        full or session.queue.count >= worker.engine.settings.max_queued_messages or session.queued_bytes + n > worker.engine.settings.max_queued_bytes
    ):
        full = False
        session_drop(worker, session, C_DROPPED_QUEUE_FULL)
        if policy == DROP_NEWEST or policy == DISCONNECT_SLOW:
            if policy == DISCONNECT_SLOW and session.conn != NULL:
                conn_disconnect(worker, session.conn, RC_QUOTA_EXCEEDED)
            entry_drop(worker, session, entry)
            return
        i = 0
        if policy == DROP_QOS0_FIRST:
            while i < session.queue.count and (<QueueEntry *> ring_at(&session.queue, i)).qos:
                i += 1
            if i == session.queue.count:
                i = 0
        if lent(<QueueEntry *> ring_at(&session.queue, i)):
            i = droppable(session)
            if i == session.queue.count:
                entry_drop(worker, session, entry)
                return
        queue_remove(worker, session, i)
    if session.conn == NULL and entry.state & (QE_JOURNALED << 4) and entry.member == 0 and session.queue.count >= worker.engine.settings.spill_after:
        id = msg_journal(entry.msg)     # the journal has it, or gets it before it is asked for it
        msg_drop(&worker.msgs, entry.msg)
        entry.msg = <Msg *> id
        entry.member = <uint32_t> (n - 32)
        entry.state |= QE_STORED << 4
    if queue_push(worker, session, entry) != ST_OK:
        session_drop(worker, session, C_DROPPED_NO_MEMORY)
        entry_drop(worker, session, entry)
        return
    if session.conn != NULL:
        session.conn.link.flags |= LINK_NOTIFY              # goes on when the output has drained
        if is_inside(session):
            inside_due(worker, session)


cdef inline bint lent(const QueueEntry *entry) noexcept nogil:
    """By a shared group."""
    return entry.member != 0 and not entry.state & (QE_STORED << 4)


cdef uint32_t droppable(const Session *session) noexcept nogil:
    """The oldest queued message that no shared group lent; the queue's length if there is none."""
    cdef uint32_t i = 0
    while i < session.queue.count and lent(<QueueEntry *> ring_at(&session.queue, i)):
        i += 1
    return i


cdef bint under_pressure(Worker *worker, Session *session, uint8_t qos) noexcept nogil:
    """Three quarters of a bound of an on-line session: its publishers are slowed before anything is lost. For PATIENCE_MS, and with QoS > 0 for as long
    as its client goes on acknowledging; a client that stands still stops nobody else for longer, and the queue's policy acts."""
    cdef const Conn *conn = session.conn if is_inside(session) else conn_at(session)
    cdef Settings *settings = &worker.engine.settings
    if conn == NULL:
        return False
    if (session.queue.count < settings.max_queued_messages // 4 * 3 + 1 and session.queued_bytes < settings.max_queued_bytes // 4 * 3
            and conn.link.out.bytes < settings.max_output_bytes // 4 * 3):
        session.pressure_since_ms = 0
        return False
    if session.pressure_since_ms == 0 or (qos and session.pressure_id != session.next_packet_id):
        session.pressure_since_ms = worker.reactor.now_ms
    session.pressure_id = session.next_packet_id
    return worker.reactor.now_ms - session.pressure_since_ms < PATIENCE_MS
