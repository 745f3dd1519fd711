from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from mqttc.base.alloc cimport mem_alloc, mem_free
from mqttc.base.inbox cimport Mail, inbox_post, inbox_wake
from mqttc.base.map cimport hash_bytes
from mqttc.base.msg cimport Msg, msg_alloc, msg_data, msg_drop, msg_journal, msg_journal_set, msg_payload, msg_properties, msg_share, msg_topic
from mqttc.base.ring cimport ring_at
from mqttc.base.types cimport ST_OK, Span, likely, span_equal, span_make, unlikely
from mqttc.base.vec cimport vec_at
from mqttc.broker.durable cimport (
    entry_id, journaled, note_done, note_filter, note_group_done, note_message, note_handout, note_read, note_sent, until_now, wait_add,
)
from mqttc.broker.group cimport (
    backlog_pop, backlog_push, backlog_push_front, group_close, group_credit, group_find, group_join, group_leave, group_offline, group_online, group_pick,
)
from mqttc.broker.handle cimport handle_worker
from mqttc.broker.journal cimport RECORD_HANDED_OUT, Body
from mqttc.broker.mail cimport post_group, post_publish
from mqttc.broker.port cimport inside_due, is_inside
from mqttc.broker.reply cimport answer, conn_disconnect
from mqttc.broker.report cimport EV_MESSAGES_DROPPED, EV_RETAINED_LIMIT, LOG_WARNING, report, text
from mqttc.broker.retain cimport retain_done, retain_set, retain_step
from mqttc.broker.routes cimport (
    ENTRY_NOT_OWN, ENTRY_OWN_ONLY, ENTRY_RETAIN_AS_PUBLISHED, Route, RouteEntry, RouteSlice, route_lookup, subscription_ids_build,
    subscription_ids_drop, subscription_ids_share,
)
from mqttc.broker.session cimport (
    group_home, handout_end, inflight_done, inflight_find, inflight_push, membership_find, membership_release, queue_pop, queue_push, queue_remove, session_handle, session_of, window_free,
)
from mqttc.broker.state cimport (
    CONN_UP, DISCONNECT_SLOW, DROP_NEWEST, DROP_QOS0_FIRST, GROUP_CLOSE, GROUP_CREDIT, GROUP_DELIVER, GROUP_JOIN, GROUP_LEAVE, GROUP_OFFER, GROUP_OFFLINE, GROUP_ONLINE,
    GROUP_RETURN, MAIL_GROUP, OUT_DONE, OUT_HELD, OUT_READY, OUT_RELEASED, OUT_SENT, QE_COUNTED, QE_JOURNALED, QE_RETAIN, QE_STORED, SESSION_CREDIT_DIRTY, SESSION_HANDOUT_TURN, SESSION_QOS0_QUEUED, AliasesOut, AliasOut,
    Conn, Group, GroupMail, Handout, Member, Membership, QueueEntry, Run,
    Session, Settings, Wait, WAIT_SESSION, Worker,
)
from mqttc.broker.stats cimport (
    C_JOURNAL_LOST, C_DROPPED_EXPIRED, C_DROPPED_GROUP_END, C_DROPPED_NO_MEMORY, C_DROPPED_OUTPUT_FULL, C_DROPPED_QUEUE_FULL, C_DROPPED_RETAINED_LIMIT, C_DROPPED_TOO_LARGE, C_MESSAGES_OUT, C_MESSAGES_RESENT,
    C_RETAINED_HANDED_OUT, C_SENT, stat, stat_add,
)
from mqttc.net.outq cimport Chunk, chunk_build, chunk_data, chunk_drop, outq_reserve, outq_share
from mqttc.net.reactor cimport END_NO_MEMORY, LINK_NOTIFY, link_close, link_dirty
from mqttc.proto.dialect cimport Dialect
from mqttc.proto.encode cimport PublishParts, encode_publish, publish_id_offset, publish_size
from mqttc.proto.packet cimport PUBLISH, PUBREL, RC_QUOTA_EXCEEDED, RC_SUCCESS

cdef enum:
    RUN_CHUNK = 65536
    HANDOUT_BATCH = 32                 # retained messages read under one lock hold
    PATIENCE_MS = 1000                 # for how long a receiver that stands still slows its publishers
    HANDOUT_BUDGET = 4096              # topics looked at for them in one turn
    BODIES_BATCH = 128                 # messages read back at a time
    BODIES_BYTES = 1 << 20


# ---- the publication

cdef void publication_init(Publication *pub) noexcept nogil:
    memset(pub, 0, sizeof(Publication))


cdef void publication_of(Worker *worker, Publication *pub, Msg *msg) noexcept nogil:
    cdef int64_t left_ms
    publication_init(pub)
    pub.msg = msg
    pub.topic = msg_topic(msg)
    pub.properties = msg_properties(msg)
    pub.payload = msg_payload(msg)
    pub.publisher = msg.publisher
    pub.qos = msg.qos
    pub.retain = msg.retain
    pub.expires_at_ms = msg.expires_at_ms
    if msg.expires_at_ms:
        left_ms = msg.expires_at_ms - worker.reactor.now_ms
        pub.has_expiry = True
        pub.message_expiry = <uint32_t> ((left_ms + 999) // 1000) if left_ms > 0 else 0


cdef Msg *publication_msg(Worker *worker, Publication *pub) noexcept nogil:
    cdef Msg *msg = pub.msg
    cdef uint8_t *data
    cdef uint64_t n
    if msg != NULL:
        return msg
    n = <uint64_t> pub.topic.n + pub.properties.n + pub.payload.n
    msg = msg_alloc(&worker.msgs, <uint32_t> n)
    if msg == NULL:
        stat(&worker.stats, C_DROPPED_NO_MEMORY)
        return NULL
    data = msg_data(msg)
    memcpy(data, pub.topic.p, pub.topic.n)
    if pub.properties.n:
        memcpy(data + pub.topic.n, pub.properties.p, pub.properties.n)
    if pub.payload.n:
        memcpy(data + pub.topic.n + pub.properties.n, pub.payload.p, pub.payload.n)
    msg.topic_bytes = <uint16_t> pub.topic.n
    msg.properties_offset = pub.topic.n
    msg.properties_bytes = pub.properties.n
    msg.payload_offset = pub.topic.n + pub.properties.n
    msg.payload_bytes = pub.payload.n
    msg.publisher = pub.publisher
    msg.qos = pub.qos
    msg.retain = pub.retain
    msg.expires_at_ms = pub.expires_at_ms
    pub.msg = msg
    return msg


cdef void publication_clear(Worker *worker, Publication *pub) noexcept nogil:
    if pub.msg != NULL:
        msg_drop(&worker.msgs, pub.msg)
        pub.msg = NULL


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
    cdef uint32_t hash = hash_bytes(parts.topic)
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
    if unlikely(conn.rates != NULL):
        conn.rates.sent += 1
    link_dirty(worker.reactor, &conn.link)
    stat(&worker.stats, C_MESSAGES_OUT)
    stat(&worker.stats, C_SENT + PUBLISH)
    return True


cdef void parts_of_entry(Worker *worker, const QueueEntry *entry, PublishParts *parts) noexcept nogil:
    cdef Msg *msg = entry.msg
    cdef int64_t left_ms
    parts_of(parts, msg_topic(msg), msg_properties(msg), msg_payload(msg), entry.qos, 1 if entry.state & (QE_RETAIN << 4) else 0)
    parts.packet_id = entry.packet_id
    if msg.expires_at_ms:                                    # [MQTT-3.3.2-6]
        left_ms = msg.expires_at_ms - worker.reactor.now_ms
        parts.has_message_expiry = True
        parts.message_expiry = <uint32_t> ((left_ms + 999) // 1000) if left_ms > 0 else 0
    if entry.subscription_ids != NULL:
        parts.subscription_ids = entry.subscription_ids.ids
        parts.subscription_id_count = entry.subscription_ids.count


# ---- one session, one message

cdef inline bint qos0_waits(const Session *session) noexcept nogil:
    """Older QoS 0 messages are queued still (those of when the client was off line): the order is kept. [MQTT-4.6.0-5, MQTT-4.6.0-6]"""
    return session.queue.count != 0 and session.flags & SESSION_QOS0_QUEUED


cdef inline Conn *conn_at(const Session *session) noexcept nogil:
    """The session's connection if packets may still go to it: after DISCONNECT nothing may, though its end comes only with the turn's. [MQTT-3.14.4-1]"""
    cdef Conn *conn = session.conn
    return conn if conn != NULL and conn.phase == CONN_UP else NULL


cdef inline uint32_t out_high(const Worker *worker) noexcept nogil:
    return OUT_HIGH if worker.engine.settings.max_output_bytes > OUT_HIGH else worker.engine.settings.max_output_bytes


cdef inline bint may_send_now(const Worker *worker, const Session *session, const Conn *conn) noexcept nogil:
    return (session.queue.count == 0 and session.resend == session.inflight.count and conn.link.out.bytes < out_high(worker) and window_free(session) > 0)


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
        if entry.qos == 2 and entry.state & (QE_JOURNALED << 4):
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


cdef void delivery_ready(Worker *worker, Session *session, uint16_t packet_id) noexcept nogil:
    cdef QueueEntry *entry = inflight_find(session, packet_id)
    if entry != NULL and entry.state & 15 == OUT_HELD:
        entry.state = (entry.state & 0xF0) | OUT_READY
    session_pump(worker, session)


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


# ---- fan-out

cdef bint run_encode(Worker *worker, Publication *pub, const Dialect *dialect, uint32_t variant) noexcept nogil:
    """Encodes as QoS 0 into the worker's run of that layout and retain flag. False: no memory."""
    cdef PublishParts parts
    cdef Run *run = &worker.runs[variant]
    cdef Chunk *chunk = run.chunk
    cdef uint32_t n
    parts_of(&parts, pub.topic, pub.properties, pub.payload, 0, variant & 1)
    parts.has_message_expiry = pub.has_expiry
    parts.message_expiry = pub.message_expiry
    n = publish_size(dialect, &parts)
    if chunk != NULL and chunk.refs == 1:
        chunk.used = 0                  # all receivers have sent what they shared
    if chunk == NULL or chunk.capacity - chunk.used < n:
        chunk = chunk_build(&worker.reactor.chunks, n if n > RUN_CHUNK else RUN_CHUNK)
        if chunk == NULL:
            stat(&worker.stats, C_DROPPED_NO_MEMORY)
            return False
        if run.chunk != NULL:
            chunk_drop(&worker.reactor.chunks, run.chunk)
        run.chunk = chunk
    encode_publish(dialect, &parts, chunk_data(chunk) + chunk.used)
    pub.run_chunk[variant] = chunk
    pub.run_offset[variant] = chunk.used
    pub.run_bytes[variant] = n
    chunk.used += n
    return True


cdef bint send_qos0(Worker *worker, Publication *pub, Session *session, Conn *conn, uint32_t variant) noexcept nogil:
    """Shares the run's packet with this receiver; true: it was sent."""
    cdef uint32_t n
    if pub.run_bytes[variant] == 0 and not run_encode(worker, pub, conn.dialect, variant):
        return False
    n = pub.run_bytes[variant]
    if unlikely(conn.maximum_packet_size != 0 and n > conn.maximum_packet_size):
        session_drop(worker, session, C_DROPPED_TOO_LARGE)
        return False
    if unlikely(conn.link.out.bytes + n > worker.engine.settings.max_output_bytes):
        session_drop(worker, session, C_DROPPED_OUTPUT_FULL)
        return False
    if unlikely(outq_share(&conn.link.out, pub.run_chunk[variant], pub.run_offset[variant], n) != ST_OK):
        link_close(worker.reactor, &conn.link, END_NO_MEMORY)
        return False
    if unlikely(conn.rates != NULL):
        conn.rates.sent += 1
    link_dirty(worker.reactor, &conn.link)
    return True


cdef bint send_qos(Worker *worker, Publication *pub, Session *session, Conn *conn, uint8_t qos, uint8_t retain, bint lasting) noexcept nogil:
    """QoS 1 or 2 to a receiver whose window is open: copies the packet encoded for the first of its layout. True: a reference of pub.msg was used."""
    cdef uint8_t layout = conn.layout
    cdef PublishParts parts
    cdef QueueEntry *entry
    cdef uint8_t *out
    cdef uint32_t n = pub.encoded_bytes[layout]
    if n == 0:
        parts_of(&parts, pub.topic, pub.properties, pub.payload, qos, retain)
        parts.has_message_expiry = pub.has_expiry
        parts.message_expiry = pub.message_expiry
        n = publish_size(conn.dialect, &parts)
    if unlikely(conn.maximum_packet_size != 0 and n > conn.maximum_packet_size):
        session_drop(worker, session, C_DROPPED_TOO_LARGE)
        return False
    entry = inflight_push(worker, session)
    if entry == NULL:
        link_close(worker.reactor, &conn.link, END_NO_MEMORY)
        return False
    entry.msg = NULL
    entry.subscription_ids = NULL
    entry.member = 0
    entry.qos = qos
    out = outq_reserve(&worker.reactor.chunks, &conn.link.out, n)
    if out == NULL:
        inflight_done(worker, session, entry)
        link_close(worker.reactor, &conn.link, END_NO_MEMORY)
        return False
    entry.msg = pub.msg
    if retain:
        entry.state |= QE_RETAIN << 4
    if lasting:
        entry.state |= QE_JOURNALED << 4
        note_sent(worker, session, entry)
    if pub.encoded_bytes[layout] == 0:
        parts.packet_id = entry.packet_id
        encode_publish(conn.dialect, &parts, out)
        pub.encoded[layout] = out
        pub.encoded_bytes[layout] = n
        pub.id_offset[layout] = publish_id_offset(out)
    else:
        memcpy(out, pub.encoded[layout], n)
        out[0] = PUBLISH << 4 | qos << 1 | retain
        out[pub.id_offset[layout]] = <uint8_t> (entry.packet_id >> 8)
        out[pub.id_offset[layout] + 1] = <uint8_t> entry.packet_id
    if unlikely(conn.rates != NULL):
        conn.rates.sent += 1
    link_dirty(worker.reactor, &conn.link)
    return True


cdef void fan_out_slice(Worker *worker, Publication *pub, Route *route) noexcept nogil:
    cdef RouteSlice *slice = &route.slices[worker.index]
    cdef RouteEntry *entries = route.entries + slice.first
    cdef RouteEntry *route_entry
    cdef Session *session
    cdef Conn *conn
    cdef QueueEntry entry
    cdef uint32_t i
    cdef uint32_t sent = 0
    cdef uint32_t shares = 0           # references of the message that may still be given out
    cdef uint8_t qos, retain
    cdef bint lasting = pub.qos != 0 and pub.msg != NULL and msg_journal(pub.msg) != 0
    if pub.qos and slice.count:
        if publication_msg(worker, pub) == NULL:
            return
        shares = slice.count
        msg_share(pub.msg, shares)      # one atomic step for all receivers; the rest is given back below
    for i in range(slice.count):
        route_entry = &entries[i]
        session = session_of(worker, route_entry.session)
        if unlikely(session == NULL):
            continue
        retain = 0
        if route_entry.flags:
            if route_entry.session == pub.publisher:
                if route_entry.flags & ENTRY_NOT_OWN:
                    continue
            elif route_entry.flags & ENTRY_OWN_ONLY:
                continue
            if route_entry.flags & ENTRY_RETAIN_AS_PUBLISHED:
                retain = pub.retain     # [MQTT-3.3.1-12, MQTT-3.3.1-13]
        qos = route_entry.qos if route_entry.qos < pub.qos else pub.qos
        conn = conn_at(session)
        if likely(conn != NULL and conn.aliases_out == NULL and (route_entry.subscription_ids == NULL or conn.layout == 0)):
            if qos == 0 and not qos0_waits(session):
                sent += send_qos0(worker, pub, session, conn, conn.layout * 2 + retain)
                if unlikely(conn.link.out.bytes >= worker.engine.settings.max_output_bytes // 4 * 3 or session.pressure_since_ms != 0):
                    pub.pressure |= under_pressure(worker, session, 0)
                continue
            if likely(qos and may_send_now(worker, session, conn) and not (lasting and qos == 2 and session.durable)):
                if send_qos(worker, pub, session, conn, qos, retain, lasting and session.durable):
                    shares -= 1
                    sent += 1
                continue
        elif conn == NULL and qos == 0 and not worker.engine.settings.queue_qos0_offline and not is_inside(session):
            continue
        if publication_msg(worker, pub) == NULL:
            break
        if shares:
            shares -= 1
        else:
            msg_share(pub.msg, 1)
        entry.msg = pub.msg
        entry.subscription_ids = route_entry.subscription_ids
        subscription_ids_share(entry.subscription_ids)
        entry.member = 0
        entry.packet_id = 0
        entry.qos = qos
        entry.state = QE_RETAIN << 4 if retain else 0
        if lasting and qos and session.durable:
            entry.state |= QE_JOURNALED << 4
        offer_entry(worker, session, &entry)
        pub.pressure |= under_pressure(worker, session, qos)
    while shares:                       # unused ones: the publication's own reference keeps the count above 0
        msg_drop(&worker.msgs, pub.msg)
        shares -= 1
    if sent:
        stat_add(&worker.stats, C_MESSAGES_OUT, sent)
        stat_add(&worker.stats, C_SENT + PUBLISH, sent)
    for i in range(slice.group_count):
        group_offer(worker, pub, route.groups[slice.first_group + i])


cdef void fan_out(Worker *worker, Publication *pub, Route *route) noexcept nogil:
    cdef uint32_t peer
    cdef RouteSlice *slice
    if route.slices[worker.index].count or route.slices[worker.index].group_count:
        fan_out_slice(worker, pub, route)
    if worker.engine.settings.workers == 1:
        return
    for peer in range(route.worker_count):
        slice = &route.slices[peer]
        if peer == worker.index or (slice.count == 0 and slice.group_count == 0):
            continue
        if publication_msg(worker, pub) == NULL:
            return
        if post_publish(worker, <uint16_t> peer, pub.msg, route) != ST_OK:
            stat(&worker.stats, C_DROPPED_NO_MEMORY)
        if unlikely(worker.crowded[peer]):
            pub.pressure = True


cdef void publish_message(Worker *worker, Msg *msg) noexcept nogil:
    cdef Publication pub
    cdef Route *route
    cdef uint64_t version = 0
    msg_share(msg, 1)
    publication_of(worker, &pub, msg)
    if msg.retain and worker.engine.settings.retain_available:
        if retain_set(worker.engine.retain, &worker.msgs, msg, &version) != ST_OK:
            stat(&worker.stats, C_DROPPED_RETAINED_LIMIT)
            report(worker, LOG_WARNING, EV_RETAINED_LIMIT, RC_QUOTA_EXCEEDED, NULL, NULL, pub.topic)
    route = route_lookup(&worker.routes, pub.topic)
    if route == NULL:
        stat(&worker.stats, C_DROPPED_NO_MEMORY)
    else:
        if journaled(worker) and (version or (msg.qos and route.durability and (route.durable_count or route.group_count))):
            if not note_message(worker, msg, route, route.durability, pub.publisher, 0, version):
                stat(&worker.stats, C_JOURNAL_LOST)
        fan_out(worker, &pub, route)
    publication_clear(worker, &pub)


# ---- a session's way to its client

cdef void handout_note(Worker *worker, Session *session, QueueEntry *entry) noexcept nogil:
    """A retained message that a durable session must acknowledge is one of its own from now on: the journal knows it beside the retained one, so that a
    crash neither loses it nor gives its packet id to another one. Without memory for that it is sent all the same."""
    cdef Publication pub
    cdef Msg *retained = entry.msg
    publication_init(&pub)
    pub.topic = msg_topic(retained)
    pub.properties = msg_properties(retained)
    pub.payload = msg_payload(retained)
    pub.publisher = retained.publisher
    pub.qos = retained.qos
    pub.retain = 1
    pub.expires_at_ms = retained.expires_at_ms
    if publication_msg(worker, &pub) != NULL and note_handout(worker, session, pub.msg, entry):
        msg_drop(&worker.msgs, retained)
        entry.msg = pub.msg
        entry.state |= QE_JOURNALED << 4
        return
    stat(&worker.stats, C_JOURNAL_LOST)
    publication_clear(worker, &pub)


cdef bint handout_step(Worker *worker, Session *session) noexcept nogil:
    """Sends some retained messages of the first hand-out; false: none may be sent now. The hand-out ends when its cursor does. [MQTT-3.3.1-9]"""
    cdef Handout *handout = <Handout *> vec_at(session.handouts, 0)
    cdef Conn *conn = session.conn
    cdef Msg *batch[HANDOUT_BATCH]
    cdef QueueEntry entry
    cdef QueueEntry *place
    cdef PublishParts parts
    cdef uint32_t room = HANDOUT_BATCH
    cdef bint behind
    cdef int count, i
    if handout.qos:
        room = window_free(session)
        if room > HANDOUT_BATCH:
            room = HANDOUT_BATCH
        if room == 0:
            return False
    if conn.link.out.bytes > out_high(worker) // 4:
        room = 1                        # large messages: look after each
    count = retain_step(worker.engine.retain, &handout.cursor, &worker.msgs, worker.reactor.now_ms, batch, <int> room, HANDOUT_BUDGET)
    if count < 0:
        link_close(worker.reactor, &conn.link, END_NO_MEMORY)
        return False                    # the cursor stands where it stood: goes on with the next connection
    if count == 0 and not retain_done(&handout.cursor):
        conn.link.flags |= LINK_NOTIFY  # a long way to the next match: other connections first
        link_dirty(worker.reactor, &conn.link)
        return False
    if count == 0:
        note_filter(worker, RECORD_HANDED_OUT, session, span_make(handout.cursor.filter, handout.cursor.filter_bytes))
        handout_end(session, 0)
        return True
    for i in range(count):
        entry.msg = batch[i]
        entry.subscription_ids = handout.subscription_ids
        subscription_ids_share(entry.subscription_ids)
        entry.member = 0
        entry.packet_id = 0
        entry.qos = handout.qos if handout.qos < batch[i].qos else batch[i].qos
        entry.state = QE_RETAIN << 4
        parts_of_entry(worker, &entry, &parts)
        if not fits(conn, &parts):
            session_drop(worker, session, C_DROPPED_TOO_LARGE)
            entry_drop(worker, session, &entry)
            continue
        stat(&worker.stats, C_RETAINED_HANDED_OUT)
        if entry.qos == 0:
            send_parts(worker, conn, &parts)
            entry_drop(worker, session, &entry)
            continue
        if session.durable:
            handout_note(worker, session, &entry)
        behind = session.resend != session.inflight.count       # one that waits for the journal
        place = NULL
        if entry.qos != 2 or not entry.state & (QE_JOURNALED << 4):
            place = inflight_push(worker, session)
        elif hold_entry(worker, session, &entry):
            continue
        if place == NULL:
            entry_drop(worker, session, &entry)
            link_close(worker.reactor, &conn.link, END_NO_MEMORY)
            return False
        entry.packet_id = place.packet_id
        entry.state |= (OUT_READY if behind else OUT_SENT) | QE_COUNTED << 4
        place[0] = entry
        note_sent(worker, session, place)
        if behind:
            session.resend -= 1         # not sent
            continue
        parts_of_entry(worker, place, &parts)
        send_parts(worker, conn, &parts)
    return True


cdef bint resend_step(Worker *worker, Session *session) noexcept nogil:
    """One in-flight entry of before this connection, in the original order [MQTT-4.4.0-1, MQTT-4.6.0-1]; false: window or output is full."""
    cdef Conn *conn = session.conn
    cdef QueueEntry *entry = <QueueEntry *> ring_at(&session.inflight, session.resend)
    cdef PublishParts parts
    if entry.state & 15 == OUT_DONE:
        session.resend += 1
        return True
    if entry.state & 15 == OUT_RELEASED:
        # Its PUBREC may have come in this turn, on the connection before this one.
        answer(worker, conn, PUBREL, entry.packet_id, RC_SUCCESS, until_now(worker) if entry.state & (QE_JOURNALED << 4) else 0)
        session.resend += 1
        return True
    if entry.state & 15 == OUT_HELD:
        return False
    if not entry.state & (QE_COUNTED << 4) and session.window_used >= session.receive_maximum:
        return False
    parts_of_entry(worker, entry, &parts)
    if entry.state & 15 != OUT_READY:
        parts.dup = 1                   # [MQTT-3.3.1-1]
        stat(&worker.stats, C_MESSAGES_RESENT)
    if not fits(conn, &parts):
        session_drop(worker, session, C_DROPPED_TOO_LARGE)
        inflight_done(worker, session, entry)
        return True
    if not entry.state & (QE_COUNTED << 4):
        session.window_used += 1
    entry.state = (entry.state & 0xF0) | OUT_SENT | (QE_COUNTED << 4)
    session.resend += 1
    return send_parts(worker, conn, &parts)


cdef void session_pump(Worker *worker, Session *session) noexcept nogil:
    cdef Conn *conn = conn_at(session)
    cdef QueueEntry entry
    cdef QueueEntry *front
    if conn == NULL:
        return
    while True:
        if session.resend == session.inflight.count and session.queue.count == 0 and session.handouts == NULL:
            return
        if conn.link.out.bytes >= out_high(worker):
            conn.link.flags |= LINK_NOTIFY
            return
        if session.resend < session.inflight.count:
            if resend_step(worker, session):
                continue
            if (<QueueEntry *> ring_at(&session.inflight, session.resend)).state & 15 == OUT_HELD:
                hold_queued(worker, session)
            return
        if session.handouts != NULL and conn.suback_until <= worker.journal_committed and (
            session.queue.count == 0 or session.flags & SESSION_HANDOUT_TURN
        ):
            session.flags &= ~SESSION_HANDOUT_TURN
            if handout_step(worker, session):
                continue
        if session.queue.count == 0:
            return
        front = <QueueEntry *> ring_at(&session.queue, 0)
        if front.qos and window_free(session) == 0:
            return
        if front.state & (QE_STORED << 4):
            bodies_ask(worker, session)
            return
        queue_pop(worker, session, &entry)
        session.flags |= SESSION_HANDOUT_TURN
        if entry.msg.expires_at_ms and entry.msg.expires_at_ms <= worker.reactor.now_ms:    # [MQTT-3.3.2-5]
            session_drop(worker, session, C_DROPPED_EXPIRED)
            entry_drop(worker, session, &entry)
            continue
        send_queued(worker, session, conn, &entry)


cdef void hold_queued(Worker *worker, Session *session) noexcept nogil:
    """QoS 2 messages at the queue's front get their packet ids in the same commit as those before them."""
    cdef QueueEntry entry
    cdef QueueEntry *front
    while session.queue.count and window_free(session):
        front = <QueueEntry *> ring_at(&session.queue, 0)
        if front.qos != 2 or not front.state & (QE_JOURNALED << 4) or front.state & (QE_STORED << 4):
            return
        queue_pop(worker, session, &entry)
        if not hold_entry(worker, session, &entry):
            session_drop(worker, session, C_DROPPED_NO_MEMORY)
            entry_drop(worker, session, &entry)
            return


cdef void bodies_ask(Worker *worker, Session *session) noexcept nogil:
    """The next messages of the queue lie in the journal's file: asks for a batch of them, unless that is under way."""
    cdef uint64_t ids[BODIES_BATCH]
    cdef QueueEntry *entry
    cdef uint64_t bytes = 0
    cdef uint32_t count = 0
    cdef uint32_t i
    if session.reading:
        return
    for i in range(session.queue.count):
        entry = <QueueEntry *> ring_at(&session.queue, i)
        if count == BODIES_BATCH or not entry.state & (QE_STORED << 4) or (count and bytes + entry.member > BODIES_BYTES):
            break
        ids[count] = entry_id(entry)
        bytes += entry.member
        count += 1
    session.reading = note_read(worker, session, ids, count)
    if not session.reading and session.conn != NULL:
        session.conn.link.flags |= LINK_NOTIFY      # no memory: tried again
        link_dirty(worker.reactor, &session.conn.link)


cdef void bodies_arrived(Worker *worker, Session *session, Body *bodies, uint32_t count) noexcept nogil:
    """Fills in what was asked for; what is not in the file any more is dropped and counted."""
    cdef QueueEntry *entry
    cdef Body *body
    cdef uint32_t i = 0
    cdef uint32_t k
    session.reading = False
    for k in range(count):
        body = &bodies[k]
        while i < session.queue.count:              # the queue's front may have been dropped meanwhile, by policy
            entry = <QueueEntry *> ring_at(&session.queue, i)
            if entry.state & (QE_STORED << 4) and entry_id(entry) == body.message:
                break
            i += 1
        if i >= session.queue.count:
            i = 0
            continue
        if body.msg == NULL:
            session_drop(worker, session, C_DROPPED_NO_MEMORY)
            queue_remove(worker, session, i)
            continue
        msg_journal_set(body.msg, body.message)
        if body.expires_wall_ms:
            body.msg.expires_at_ms = body.expires_wall_ms - worker.engine.journal.store_time_ms
            if body.msg.expires_at_ms <= 0:
                body.msg.expires_at_ms = 1
        entry.state &= ~(QE_STORED << 4)
        entry.member = 0
        entry.msg = body.msg
        body.msg = NULL
        i += 1
    session_pump(worker, session)


cdef void send_queued(Worker *worker, Session *session, Conn *conn, QueueEntry *entry) noexcept nogil:
    """An entry just taken from the queue, with room in the window."""
    cdef PublishParts parts
    cdef QueueEntry *place
    parts_of_entry(worker, entry, &parts)
    if not fits(conn, &parts):
        session_drop(worker, session, C_DROPPED_TOO_LARGE)
        entry_drop(worker, session, entry)
        return
    if entry.qos == 2 and entry.state & (QE_JOURNALED << 4):
        if not hold_entry(worker, session, entry):
            session_drop(worker, session, C_DROPPED_NO_MEMORY)
            entry_drop(worker, session, entry)
        return
    if entry.qos:
        place = inflight_push(worker, session)
        if place == NULL:
            session_drop(worker, session, C_DROPPED_NO_MEMORY)
            entry_drop(worker, session, entry)
            return
        parts.packet_id = place.packet_id
        entry.packet_id = place.packet_id
        entry.state = (entry.state & 0xF0) | OUT_SENT | (QE_COUNTED << 4)
        place[0] = entry[0]
        note_sent(worker, session, place)
        send_parts(worker, conn, &parts)
        return
    send_parts(worker, conn, &parts)
    entry_drop(worker, session, entry)


# ---- shared groups

cdef void own_mail(Worker *worker) noexcept nogil:
    cdef Mail *mail
    while worker.post_first[worker.index] != NULL:
        mail = worker.post_first[worker.index]
        worker.post_first[worker.index] = mail.next
        if mail.next == NULL:
            worker.post_last[worker.index] = NULL
        on_group_mail(worker, <GroupMail *> mail)
        mem_free(mail)


cdef void tell_group(Worker *worker, GroupMail *mail, uint64_t group) noexcept nogil:
    cdef GroupMail *posted
    cdef uint16_t home = group_home(group)
    mail.group = group
    if home == worker.index:
        own_mail(worker)                # what was said before comes first
        on_group_mail(worker, mail)
        return
    posted = post_group(worker, home, mail.verb)
    if posted == NULL:
        stat(&worker.stats, C_DROPPED_NO_MEMORY)
        if mail.msg != NULL:
            msg_drop(&worker.msgs, mail.msg)
        return
    posted.group = group
    posted.session = mail.session
    posted.msg = mail.msg
    posted.credit = mail.credit
    posted.subscription_id = mail.subscription_id
    posted.qos = mail.qos
    posted.online = mail.online
    posted.noted = mail.noted
    posted.retain_as_published = mail.retain_as_published


cdef bint group_is_deserted(const Group *group, uint8_t qos) noexcept nogil:
    return group == NULL or (qos == 0 and group.online_count == 0)


cdef bint look_again(Worker *worker, uint8_t verb, uint64_t group, Msg *msg) noexcept nogil:
    """Mail to the worker itself, behind all that other workers posted before."""
    cdef GroupMail *mail = <GroupMail *> mem_alloc(sizeof(GroupMail))
    if mail == NULL:
        return False
    memset(mail, 0, sizeof(GroupMail))
    mail.mail.kind = MAIL_GROUP
    mail.verb = verb
    mail.group = group
    mail.msg = msg
    if inbox_post(&worker.reactor.inbox, &mail.mail, &mail.mail):
        inbox_wake(&worker.reactor.inbox)
    return True


cdef void group_take(Worker *worker, Group *group, Msg *msg) noexcept nogil:
    """Takes the reference over."""
    cdef Member *member
    if group.backlog.count == 0:
        member = group_pick(worker, group)
        if member != NULL:
            group_send(worker, group, member, msg)
            return
    backlog_push(worker, group, msg)


cdef void group_offer(Worker *worker, Publication *pub, uint64_t id) noexcept nogil:
    """At the group's home: to a member with credit, else to the backlog. QoS 0 for a group that nobody of is on line is not kept.

    A member's SUBACK can be read, and this PUBLISH be its consequence, while its JOIN still lies in our inbox: before a message is
    given up for want of members it goes behind that mail once.
    """
    cdef Group *group
    cdef Msg *msg
    own_mail(worker)
    group = group_find(worker, id)
    msg = publication_msg(worker, pub)
    if msg == NULL:
        return
    msg_share(msg, 1)
    if group_is_deserted(group, pub.qos):
        if not look_again(worker, GROUP_OFFER, id, msg):
            stat(&worker.stats, C_DROPPED_NO_MEMORY)
            msg_drop(&worker.msgs, msg)
        return
    group_take(worker, group, msg)
    group = group_find(worker, id)      # handing out may have ended it
    if group == NULL:
        return
    if group.online_count == 0 or group.backlog.count < worker.engine.settings.max_group_backlog // 4 * 3 + 1:
        group.pressure_since_ms = 0
        return
    if group.pressure_since_ms == 0:
        group.pressure_since_ms = worker.reactor.now_ms
    pub.pressure |= worker.reactor.now_ms - group.pressure_since_ms < PATIENCE_MS       # see under_pressure; handing out begins it anew


cdef void group_send(Worker *worker, Group *group, Member *member, Msg *msg) noexcept nogil:
    """To the home of a member that was picked; takes the reference over."""
    cdef GroupMail here
    cdef GroupMail *mail
    cdef uint16_t home = handle_worker(member.session)
    if home == worker.index:
        here.verb = GROUP_DELIVER
        here.group = group.id
        here.session = member.session
        here.msg = msg
        here.qos = member.qos
        here.subscription_id = member.subscription_id
        here.retain_as_published = member.retain_as_published
        member_deliver(worker, &here)
        return
    mail = post_group(worker, home, GROUP_DELIVER)
    if mail == NULL:
        stat(&worker.stats, C_DROPPED_NO_MEMORY)
        msg_drop(&worker.msgs, msg)
        return
    mail.group = group.id
    mail.session = member.session
    mail.msg = msg
    mail.qos = member.qos
    mail.subscription_id = member.subscription_id
    mail.retain_as_published = member.retain_as_published


cdef void group_dispatch(Worker *worker, uint64_t id) noexcept nogil:
    """Hands the backlog out as far as credit goes."""
    cdef Group *group = group_find(worker, id)
    cdef Member *member
    cdef Msg *msg
    while group != NULL and group.backlog.count and group.credit_total:
        msg = backlog_pop(worker, group)
        if msg == NULL:
            return
        member = group_pick(worker, group)
        if member == NULL:
            backlog_push_front(worker, group, msg)
            return
        group.pressure_since_ms = 0
        group_send(worker, group, member, msg)
        group = group_find(worker, id)


cdef void member_deliver(Worker *worker, const GroupMail *mail) noexcept nogil:
    """At the member's home: the group's message becomes one of the session's, marked as lent. Takes mail.msg over."""
    cdef Session *session = session_of(worker, mail.session)
    cdef uint32_t member = membership_find(session, mail.group) if session != NULL else 0
    cdef Membership *membership
    cdef QueueEntry entry
    cdef GroupMail back
    if member == 0 or session.conn == NULL:     # one that is closing queues it, and gives it back when it goes off line: no member after member from here
        memset(&back, 0, sizeof(GroupMail))
        back.verb = GROUP_RETURN        # it left or broke off meanwhile: another one gets it
        back.session = mail.session
        back.msg = mail.msg
        tell_group(worker, &back, mail.group)
        back.verb = GROUP_OFFLINE if member else GROUP_LEAVE
        back.msg = NULL
        tell_group(worker, &back, mail.group)
        return
    membership = <Membership *> vec_at(session.memberships, member - 1)
    membership.outstanding += 1
    entry.msg = mail.msg
    entry.subscription_ids = NULL
    if mail.subscription_id and session.conn.layout:
        entry.subscription_ids = subscription_ids_build(1)
        if entry.subscription_ids != NULL:
            entry.subscription_ids.ids[0] = mail.subscription_id
    entry.member = member
    entry.packet_id = 0
    entry.qos = mail.qos if mail.qos < mail.msg.qos else mail.msg.qos
    entry.state = QE_RETAIN << 4 if mail.retain_as_published and mail.msg.retain else 0     # [MQTT-3.3.1-12, MQTT-3.3.1-13]
    if msg_journal(mail.msg) and entry.qos:
        entry.state |= QE_JOURNALED << 4
    elif mail.msg.qos:
        note_group_done(worker, mail.group, mail.msg)           # at QoS 0 it is through
    offer_entry(worker, session, &entry)


cdef void on_group_mail(Worker *worker, GroupMail *mail) noexcept nogil:
    cdef Group *group
    if mail.verb == GROUP_DELIVER:
        member_deliver(worker, mail)
        return
    if mail.verb == GROUP_JOIN:
        if group_join(worker, mail) != ST_OK:
            stat(&worker.stats, C_DROPPED_NO_MEMORY)
    elif mail.verb == GROUP_LEAVE:
        group_leave(worker, mail.group, mail.session)
        group = group_find(worker, mail.group)
        if group != NULL and group.members.count == 0 and not look_again(worker, GROUP_CLOSE, mail.group, NULL):
            group_close(worker, group)
            return
    else:
        group = group_find(worker, mail.group)
        if mail.verb == GROUP_OFFER:
            if group_is_deserted(group, mail.msg.qos):
                note_group_done(worker, mail.group, mail.msg)
                msg_drop(&worker.msgs, mail.msg)
            else:
                group_take(worker, group, mail.msg)
            return
        if group == NULL:
            if mail.verb == GROUP_RETURN:
                stat(&worker.stats, C_DROPPED_GROUP_END)
                note_group_done(worker, mail.group, mail.msg)
                msg_drop(&worker.msgs, mail.msg)
            return
        if mail.verb == GROUP_CLOSE:
            if group.members.count == 0:
                group_close(worker, group)
            return
        if mail.verb == GROUP_ONLINE:
            group_online(group, mail.session, mail.credit)
        elif mail.verb == GROUP_OFFLINE:
            group_offline(group, mail.session)
        elif mail.verb == GROUP_CREDIT:
            group_credit(group, mail.session, mail.credit)
        elif mail.verb == GROUP_RETURN:
            backlog_push_front(worker, group, mail.msg)     # dispatched by the OFFLINE or LEAVE of its former holder that follows
            return
    group_dispatch(worker, mail.group)


cdef void credits_grant(Worker *worker) noexcept nogil:
    cdef Session *session
    cdef Session *next
    cdef Session *waiting = NULL
    cdef Membership *membership
    cdef GroupMail mail
    cdef uint32_t i
    own_mail(worker)
    while worker.credit_dirty != NULL:
        session = worker.credit_dirty
        worker.credit_dirty = NULL
        while session != NULL:
            next = session.credit_next
            if session.conn != NULL and session.conn.link.out.bytes >= out_high(worker):
                session.conn.link.flags |= LINK_NOTIFY      # a slow reader gets no new credit until it has drained
                session.credit_next = waiting
                waiting = session
                session = next
                continue
            session.flags &= ~SESSION_CREDIT_DIRTY
            i = 0
            while session.memberships != NULL and i < session.memberships.count:
                membership = <Membership *> vec_at(session.memberships, i)
                i += 1
                if membership.owed == 0:
                    continue
                memset(&mail, 0, sizeof(GroupMail))
                mail.verb = GROUP_CREDIT
                mail.session = session_handle(worker, session)
                mail.credit = membership.owed
                membership.owed = 0
                if membership.group and session.conn != NULL:
                    tell_group(worker, &mail, membership.group)
            session = next
    worker.credit_dirty = waiting
