from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from mqttc.base.alloc cimport mem_alloc, mem_free
from mqttc.base.msg cimport Msg, msg_drop, msg_journal, msg_journal_set, msg_share
from mqttc.base.ring cimport ring_at, ring_free, ring_push
from mqttc.base.types cimport Span, atomic_add_u64_relaxed, atomic_load_u64_relaxed
from mqttc.base.vec cimport vec_at
from mqttc.broker.handle cimport handle_make
from mqttc.broker.journal cimport journal_post, record_free
from mqttc.broker.record cimport (
    DURABILITY_SYNCED, EVENT_AT_QOS_1, EVENT_DONE, EVENT_INBOUND_DONE, EVENT_OF_GROUP, EVENT_RELEASED, EVENT_RESERVED, EVENT_RETURNED, EVENT_SENT,
    EVENT_WAS_RELEASED, EVENTS_PER_RECORD,
    RECORD_EVENTS, RECORD_GROUP, RECORD_GROUP_END, RECORD_MESSAGE, RECORD_PRESENCE, RECORD_READ, RECORD_SESSION, RECORD_SESSION_END, RECORD_SUBSCRIBE,
    RECORD_WILL, RECORD_WILL_DONE, Event, Record, RecordTarget, record_build, record_data, record_events, record_targets,
)
from mqttc.broker.routes cimport ENTRY_DURABLE, ENTRY_RETAIN_AS_PUBLISHED, Route, RouteEntry, SubscriptionIds, entry_applies, route_drop
from mqttc.broker.state cimport (
    CONN_INSIDE, NEVER, OUT_RELEASED, QE_JOURNALED, QE_STORED, WAIT_CONN, WAIT_INSIDE, Conn, Membership, QueueEntry, Session, Wait, Will, Worker,
)
from mqttc.broker.stats cimport C_JOURNAL_LOST, stat


cdef bint journal_crowded(const Worker *worker) noexcept nogil:
    return worker.engine.journal != NULL and atomic_load_u64_relaxed(&worker.engine.journal.stats.backlog_bytes) > worker.engine.journal.max_backlog_bytes


# ---- the turn's chain

cdef void link(Worker *worker, Record *record) noexcept nogil:
    record.mail.next = NULL
    record.worker = worker.index
    if worker.journal_last == NULL:
        worker.journal_first = record
    else:
        worker.journal_last.mail.next = &record.mail
    worker.journal_last = record
    worker.journal_bytes += record.bytes


cdef void events_close(Worker *worker) noexcept nogil:
    if worker.journal_events != NULL:
        link(worker, worker.journal_events)
        worker.journal_events = NULL


cdef Record *note(Worker *worker, uint32_t kind, uint32_t data_bytes) noexcept nogil:
    """A record at the end of the chain. Events so far stand before it; those of messages are behind it (a page is linked when it is closed)."""
    cdef Record *record = record_build(kind, data_bytes)
    if record == NULL:
        stat(&worker.stats, C_JOURNAL_LOST)
        return NULL
    if kind != RECORD_MESSAGE:
        events_close(worker)
    record.synced = worker.engine.settings.durability == DURABILITY_SYNCED
    link(worker, record)
    return record


cdef Event *note_event(Worker *worker, uint8_t kind, bint told) noexcept nogil:
    """told: somebody is told of it as soon as it is committed, so that a loss of power must not undo it."""
    cdef Record *page = worker.journal_events
    cdef Event *event
    if page == NULL or page.count == EVENTS_PER_RECORD:
        events_close(worker)
        page = record_build(RECORD_EVENTS, EVENTS_PER_RECORD * <uint32_t> sizeof(Event))
        if page == NULL:
            stat(&worker.stats, C_JOURNAL_LOST)
            return NULL
        worker.journal_events = page
    event = &record_events(page)[page.count]
    page.count += 1
    page.synced |= told and worker.engine.synced
    event.kind = kind
    return event


cdef void journal_flush(Worker *worker) noexcept nogil:
    cdef Record *first
    events_close(worker)
    first = worker.journal_first
    if first == NULL:
        return
    worker.journal_last.sequence = worker.journal_sequence
    worker.journal_sequence += 1
    journal_post(worker.engine.journal, first, worker.journal_last, worker.journal_bytes)
    worker.journal_first = NULL
    worker.journal_last = NULL
    worker.journal_bytes = 0


cdef void journal_forget(Worker *worker) noexcept nogil:
    cdef Record *record
    cdef Record *next
    cdef Wait *wait
    cdef uint32_t i
    if worker.engine.journal != NULL:
        events_close(worker)
        record = worker.journal_first
        while record != NULL:
            next = <Record *> record.mail.next
            record_free(worker.engine.journal, record)
            record = next
    for i in range(worker.waits.count):
        wait = <Wait *> ring_at(&worker.waits, i)
        if wait.msg != NULL:
            msg_drop(&worker.msgs, wait.msg)
        if wait.route != NULL:
            route_drop(wait.route)
    ring_free(&worker.waits)


# ---- messages

cdef bint target_add(RecordTarget *target, const RouteEntry *entry, const Msg *msg) noexcept nogil:
    cdef const SubscriptionIds *ids = entry.subscription_ids
    target.handle = entry.session
    target.qos = entry.qos if entry.qos < msg.qos else msg.qos
    target.flags = 1 if entry.flags & ENTRY_RETAIN_AS_PUBLISHED and msg.retain else 0
    if ids != NULL:
        target.identifiers = <uint32_t *> mem_alloc((<size_t> ids.count + 1) * sizeof(uint32_t))
        if target.identifiers == NULL:
            return False
        target.identifiers[0] = ids.count
        memcpy(target.identifiers + 1, ids.ids, <size_t> ids.count * sizeof(uint32_t))
    return True


cdef void message_link(Worker *worker, Record *record, Msg *msg, bint synced) noexcept nogil:
    """Gives the message its id, and the record the message."""
    record.message = atomic_add_u64_relaxed(&worker.engine.journal.next_message, 1)
    msg_journal_set(msg, record.message)
    msg_share(msg, 1)
    record.msg = msg
    record.synced = synced
    if msg.expires_at_ms:
        record.time_ms = msg.expires_at_ms + worker.engine.journal.store_time_ms
    record.bytes += msg.capacity
    link(worker, record)


cdef bint note_message(
    Worker *worker, Msg *msg, const Route *route, uint8_t durability, uint64_t publisher, uint16_t packet_id, uint64_t version,
) noexcept nogil:
    cdef Record *record
    cdef RecordTarget *targets
    cdef RouteEntry *entry
    cdef uint32_t room = route.durable_count + route.group_count if route != NULL and msg.qos else 0
    cdef uint32_t i
    record = record_build(RECORD_MESSAGE, room * <uint32_t> sizeof(RecordTarget))
    if record == NULL:
        return False
    if packet_id:
        events_close(worker)            # the same id may have been released before
    targets = record_targets(record)
    if room:
        for i in range(route.entry_count):
            entry = &route.entries[i]
            if entry.flags & ENTRY_DURABLE and entry.qos and entry_applies(entry, publisher):
                if not target_add(&targets[record.count], entry, msg):
                    record_free(worker.engine.journal, record)
                    return False
                record.count += 1
        for i in range(route.group_count):
            targets[record.count].handle = route.groups[i]
            targets[record.count].qos = msg.qos
            targets[record.count].group = 1
            record.count += 1
    record.handle = publisher
    record.packet_id = packet_id
    record.version = version
    message_link(worker, record, msg, durability == DURABILITY_SYNCED)
    return True


cdef bint note_handout(Worker *worker, const Session *session, Msg *msg, const QueueEntry *entry) noexcept nogil:
    cdef RouteEntry route
    cdef Record *record = record_build(RECORD_MESSAGE, sizeof(RecordTarget))
    if record == NULL:
        return False
    memset(&route, 0, sizeof(RouteEntry))
    route.session = handle_make(worker.index, session.slot, session.generation)
    route.subscription_ids = entry.subscription_ids
    route.qos = entry.qos
    route.flags = ENTRY_RETAIN_AS_PUBLISHED
    if not target_add(record_targets(record), &route, msg):
        record_free(worker.engine.journal, record)
        return False
    record.count = 1
    message_link(worker, record, msg, worker.engine.synced)
    return True


cdef uint64_t group_of(const Session *session, const QueueEntry *entry) noexcept nogil:
    """The shared group that the journal has the delivery under; 0: the session. QoS 2 that was sent stays with the session."""
    if entry.member == 0 or entry.state & (QE_STORED << 4):
        return 0
    return (<Membership *> vec_at(session.memberships, entry.member - 1)).origin


cdef void note_reserved(Worker *worker, const Session *session, const QueueEntry *entry) noexcept nogil:
    cdef Event *event = note_event(worker, EVENT_RESERVED, True)
    if event != NULL:
        event.handle = handle_make(worker.index, session.slot, session.generation)
        event.packet_id = entry.packet_id


cdef void note_over(Worker *worker, const Session *session, const QueueEntry *entry) noexcept nogil:
    cdef uint64_t group
    cdef Event *event = note_event(worker, EVENT_DONE, False)
    if event == NULL:
        return
    event.packet_id = entry.packet_id
    if not entry.state & (QE_JOURNALED << 4):
        event.handle = handle_make(worker.index, session.slot, session.generation)
        event.flags = EVENT_WAS_RELEASED
        return
    group = group_of(session, entry)
    if entry.state & 15 == OUT_RELEASED:
        event.flags = EVENT_WAS_RELEASED
        event.message = entry_id(entry)
        group = 0
    elif entry.state & (QE_STORED << 4):
        event.message = entry_id(entry)
    else:
        event.message = msg_journal(entry.msg)
        if entry.qos == 2 and entry.packet_id:
            group = 0
    event.handle = group if group else handle_make(worker.index, session.slot, session.generation)
    if group:
        event.flags |= EVENT_OF_GROUP


cdef void note_group_done(Worker *worker, uint64_t group, const Msg *msg) noexcept nogil:
    cdef Event *event
    if worker.engine.journal == NULL or msg_journal(msg) == 0 or msg.qos == 0:
        return
    event = note_event(worker, EVENT_DONE, False)
    if event != NULL:
        event.message = msg_journal(msg)
        event.handle = group
        event.flags = EVENT_OF_GROUP


cdef void note_sent(Worker *worker, const Session *session, const QueueEntry *entry) noexcept nogil:
    if not entry.state & (QE_JOURNALED << 4):
        if entry.qos == 2 and session.durable:
            note_reserved(worker, session, entry)
        return
    if group_of(session, entry) and entry.qos != 2:
        return                          # it is the group's until it is acknowledged
    note_kept(worker, session, entry)


cdef void note_kept(Worker *worker, const Session *session, const QueueEntry *entry) noexcept nogil:
    cdef Event *event
    if not entry.state & (QE_JOURNALED << 4):
        return
    event = note_event(worker, EVENT_SENT, entry.qos == 2)
    if event == NULL:
        return
    event.message = msg_journal(entry.msg)
    event.handle = handle_make(worker.index, session.slot, session.generation)
    event.packet_id = entry.packet_id
    event.group = group_of(session, entry)
    if event.group and entry.qos == 1:
        event.flags = EVENT_AT_QOS_1


cdef void note_returned(Worker *worker, const Session *session, const QueueEntry *entry, uint64_t group) noexcept nogil:
    cdef Event *event
    if not entry.state & (QE_JOURNALED << 4) or group_of(session, entry):
        return                          # the journal has it under its group
    event = note_event(worker, EVENT_RETURNED, False)
    if event == NULL:
        return
    event.message = msg_journal(entry.msg)
    event.handle = handle_make(worker.index, session.slot, session.generation)
    event.packet_id = entry.packet_id
    event.group = group


cdef void note_released(Worker *worker, const Session *session, const QueueEntry *entry) noexcept nogil:
    cdef Event *event
    if not entry.state & (QE_JOURNALED << 4):
        return
    event = note_event(worker, EVENT_RELEASED, True)
    if event != NULL:
        event.packet_id = entry.packet_id
        event.message = msg_journal(entry.msg)
        event.handle = handle_make(worker.index, session.slot, session.generation)


cdef void note_inbound_done(Worker *worker, const Session *session, uint16_t packet_id) noexcept nogil:
    cdef Event *event
    if not session.durable:
        return
    event = note_event(worker, EVENT_INBOUND_DONE, True)
    if event != NULL:
        event.handle = handle_make(worker.index, session.slot, session.generation)
        event.packet_id = packet_id


# ---- sessions

cdef Record *note_of(Worker *worker, uint32_t kind, const Session *session, Span data) noexcept nogil:
    cdef Record *record = note(worker, kind, data.n)
    if record == NULL:
        return NULL
    record.handle = handle_make(worker.index, session.slot, session.generation)
    record.count = data.n
    if data.n:
        memcpy(record_data(record), data.p, data.n)
    return record


cdef Span no_data() noexcept nogil:
    cdef Span span
    span.p = NULL
    span.n = 0
    return span


cdef bint note_session(Worker *worker, Session *session) noexcept nogil:
    cdef Span client_id
    cdef Record *record
    client_id.p = session.client_id
    client_id.n = session.client_id_bytes
    record = note_of(worker, RECORD_SESSION, session, client_id)
    if record == NULL:
        return False
    record.expiry_s = session.expiry_s
    session.durable = True
    session.made = worker.journal_sequence
    return True


cdef void note_session_end(Worker *worker, const Session *session) noexcept nogil:
    if session.durable:
        note_of(worker, RECORD_SESSION_END, session, no_data())


cdef void note_presence(Worker *worker, const Session *session, bint online) noexcept nogil:
    cdef Record *record
    if not session.durable:
        return
    record = note_of(worker, RECORD_PRESENCE, session, no_data())
    if record != NULL:
        record.expiry_s = session.expiry_s
        record.time_ms = 0 if online else worker.reactor.now_ms + worker.engine.journal.store_time_ms
        record.synced = False           # nobody is told anything that rests on it


cdef bint note_subscribe(Worker *worker, const Session *session, Span filter, uint8_t options, uint32_t identifier) noexcept nogil:
    cdef Record *record
    if not session.durable:
        return True
    record = note_of(worker, RECORD_SUBSCRIBE, session, filter)
    if record == NULL:
        return False
    record.options = options
    record.number = identifier
    return True


cdef void note_filter(Worker *worker, uint32_t kind, const Session *session, Span filter) noexcept nogil:
    if session.durable:
        note_of(worker, kind, session, filter)


cdef void note_will(Worker *worker, const Session *session, const Will *will) noexcept nogil:
    cdef Record *record
    if not session.durable or will == NULL:
        return
    record = note_of(worker, RECORD_WILL, session, no_data())
    if record == NULL:
        return
    msg_share(will.msg, 1)
    record.msg = will.msg
    record.number = will.delay_s
    record.expiry_s = will.expiry_s
    record.has_expiry = will.has_expiry


cdef void note_will_done(Worker *worker, const Session *session) noexcept nogil:
    if session.durable:
        note_of(worker, RECORD_WILL_DONE, session, no_data())


cdef bint note_group(Worker *worker, uint64_t group, Span filter) noexcept nogil:
    cdef Record *record = note(worker, RECORD_GROUP, filter.n)
    if record == NULL:
        return False
    record.handle = group
    record.count = filter.n
    memcpy(record_data(record), filter.p, filter.n)
    return True


cdef void note_group_end(Worker *worker, uint64_t group, uint32_t joined) noexcept nogil:
    cdef Record *record
    if worker.engine.journal == NULL:
        return
    record = note(worker, RECORD_GROUP_END, 0)
    if record != NULL:
        record.handle = group
        record.count = joined


cdef bint note_read(Worker *worker, Session *session, const uint64_t *ids, uint32_t count) noexcept nogil:
    cdef Record *record = note(worker, RECORD_READ, count * <uint32_t> sizeof(uint64_t))
    if record == NULL:
        return False
    record.handle = handle_make(worker.index, session.slot, session.generation)
    record.count = count
    record.synced = False
    memcpy(record_data(record), ids, <size_t> count * sizeof(uint64_t))
    return True


# ---- waiting

cdef Wait *wait_for(Worker *worker, uint8_t kind, uint64_t until) noexcept nogil:
    cdef Wait *wait = <Wait *> ring_push(&worker.waits)
    if wait == NULL:
        return NULL
    memset(wait, 0, sizeof(Wait))
    wait.kind = kind
    wait.until = until
    return wait


cdef Wait *wait_add(Worker *worker, uint8_t kind) noexcept nogil:
    cdef uint64_t until = until_now(worker)
    return wait_for(worker, kind, until) if until > worker.journal_committed else NULL


cdef void wait_conn(Worker *worker, Conn *conn, uint64_t until) noexcept nogil:
    cdef Wait *wait
    if conn.waits_until >= until:
        return
    wait = wait_for(worker, WAIT_INSIDE if conn.phase == CONN_INSIDE else WAIT_CONN, until)
    if wait == NULL:
        stat(&worker.stats, C_JOURNAL_LOST)     # the next turn's release takes its replies along
        return
    if conn.phase == CONN_INSIDE:
        wait.session = handle_make(worker.index, conn.session.slot, conn.session.generation)
    else:
        wait.session = handle_make(0, conn.link.slot, 0) | <uint64_t> conn.link.generation << 32
    conn.waits_until = until
