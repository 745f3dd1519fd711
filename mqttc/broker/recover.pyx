from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memcpy, memset

from mqttc.base.alloc cimport mem_alloc, mem_alloc_zeroed, mem_free
from mqttc.base.map cimport Map, hash_bytes, hash_pair, map_find, map_free, map_init, map_insert, map_next
from mqttc.base.msg cimport Msg, MsgPool, msg_alloc, msg_data, msg_drop, msg_journal_set
from mqttc.base.ring cimport ring_push
from mqttc.base.types cimport ST_ERROR, ST_LIMIT, ST_NO_MEMORY, ST_OK, Span, counter_add, span_make
from mqttc.base.vec cimport Vec, vec_at, vec_free, vec_init, vec_push
from mqttc.broker.group cimport backlog_push, group_find, group_join
from mqttc.broker.handle cimport handle_worker
from mqttc.broker.journal cimport journal_continue, journal_counts, journal_file, journal_joined, journal_knows, journal_owes, journal_target
from mqttc.broker.record cimport DELIVERY_LENT, DELIVERY_QUEUED, DELIVERY_RELEASED, DELIVERY_RETAIN, DELIVERY_SENT, HANDOUT_PENDING, LENT_SHIFT
from mqttc.broker.on_subscribe cimport handout_add
from mqttc.broker.presence cimport session_rest
from mqttc.broker.replay cimport log_replay
from mqttc.broker.retain cimport retain_set
from mqttc.broker.routes cimport OPTION_DURABLE, SubscriptionIds, subscription_ids_build
from mqttc.broker.session cimport (
    client_hash, group_home, inbound_add, membership_add, membership_left, queue_push, session_build, session_handle, session_of, subscription_add, will_count,
)
from mqttc.broker.sqlite cimport (
    SQLITE_DONE, SQLITE_OK, SQLITE_ROW, sqlite3, sqlite3_bind_blob, sqlite3_bind_int64, sqlite3_column_blob, sqlite3_column_bytes, sqlite3_column_int64,
    sqlite3_errmsg, sqlite3_exec, sqlite3_finalize, sqlite3_prepare_v3, sqlite3_reset, sqlite3_step, sqlite3_stmt,
)
from mqttc.broker.state cimport (
    NEVER, OUT_RELEASED, OUT_SENT, QE_JOURNALED, QE_RETAIN, QE_STORED, SESSION_SPARSE, Engine, Group, GroupMail, QueueEntry, Session, Subscription, Will, Worker,
)
from mqttc.broker.stats cimport C_DROPPED_RETAINED_LIMIT, C_INFLIGHT, stat
from mqttc.broker.trie cimport trie_group_join, trie_subscribe
from mqttc.proto.packet cimport OPT_QOS_MASK, OPT_RETAIN_AS_PUBLISHED
from mqttc.proto.topic cimport share_split

cdef struct Named:                     # a session or group of this run, by its id in the file
    uint64_t id
    uint64_t handle
    bint group

cdef struct Text:                      # a shared group's id, by its filter
    uint64_t id
    uint64_t handle                    # 0: nobody has joined it
    uint32_t n
    uint8_t bytes[1]

cdef struct Gone:
    uint64_t message
    uint64_t target

cdef struct Lent:                      # what a group had lent to a session that left it
    uint64_t message
    uint64_t target
    uint64_t group                     # whose it is now, for the session has ended; 0: the session's for good, for the group has

cdef struct Work:
    Engine *engine
    sqlite3 *file
    Recovery *found
    Map named
    Map groups                         # by filter
    Vec gone
    Vec lent
    int64_t now_ms                     # wall clock, not before the file's
    uint64_t last_message
    char *why


cdef int fail(Work *work) noexcept nogil:
    snprintf(work.why, 200, "%s", sqlite3_errmsg(work.file))
    return ST_ERROR


cdef sqlite3_stmt *query(Work *work, const char *sql) noexcept nogil:
    """NULL: failed, and why is set."""
    cdef sqlite3_stmt *prepared = NULL
    if sqlite3_prepare_v3(work.file, sql, -1, 0, &prepared, NULL) != SQLITE_OK:
        fail(work)
        return NULL
    return prepared


cdef int finish(Work *work, sqlite3_stmt *prepared, int result, int status) noexcept nogil:
    """The end of a walk over rows: result is what sqlite3_step gave last."""
    if status == ST_OK and result != SQLITE_DONE:
        status = fail(work)
    sqlite3_finalize(prepared)
    return status


cdef bint row_next(Work *work, sqlite3_stmt *row, int *status) noexcept nogil:
    """The next row of a walk while all is well; else the walk is over, `row` is gone, and `status` that of the whole walk. NULL: its query failed."""
    cdef int result = SQLITE_DONE
    if row == NULL:
        status[0] = ST_ERROR
        return False
    if status[0] == ST_OK:
        result = sqlite3_step(row)
        if result == SQLITE_ROW:
            return True
    status[0] = finish(work, row, result, status[0])
    return False


cdef Span column(sqlite3_stmt *row, int at) noexcept nogil:
    return span_make(sqlite3_column_blob(row, at), <size_t> sqlite3_column_bytes(row, at))


cdef int64_t number(Work *work, const char *sql, int64_t none) noexcept nogil:
    """The one value of a query; `none` where there is none, or it fails (the walk over the table will tell)."""
    cdef sqlite3_stmt *prepared = query(work, sql)
    cdef int64_t value = none
    if prepared == NULL:
        return none
    if sqlite3_step(prepared) == SQLITE_ROW:
        value = sqlite3_column_int64(prepared, 0)
    sqlite3_finalize(prepared)
    return value


cdef int run_at(Work *work, const char *sql) noexcept nogil:
    """A statement whose one parameter is the time."""
    cdef sqlite3_stmt *prepared = query(work, sql)
    cdef int result
    if prepared == NULL:
        return ST_ERROR
    sqlite3_bind_int64(prepared, 1, work.now_ms)
    result = sqlite3_step(prepared)
    return finish(work, prepared, result, ST_OK)


# ---------------------------------------------------------------------------------------------- names

cdef bint named_equals(void *context, uint64_t value, const void *key) noexcept nogil:
    return (<Named *> value).id == (<const uint64_t *> key)[0]


cdef bint text_equals(void *context, uint64_t value, const void *key) noexcept nogil:
    cdef const Text *text = <const Text *> value
    cdef const Span *wanted = <const Span *> key
    cdef uint32_t i
    if text.n != wanted.n:
        return False
    for i in range(text.n):
        if text.bytes[i] != wanted.p[i]:
            return False
    return True


cdef Named *named_find(Work *work, uint64_t id) noexcept nogil:
    cdef uint64_t value = 0
    return <Named *> value if map_find(&work.named, hash_pair(id, 0), &id, &value) else NULL


cdef int named_add(Work *work, uint64_t id, bint group, uint64_t handle) noexcept nogil:
    cdef Named *named = <Named *> mem_alloc(sizeof(Named))
    if named == NULL:
        return ST_NO_MEMORY
    named.id = id
    named.handle = handle
    named.group = group
    if map_insert(&work.named, hash_pair(id, 0), <uint64_t> named) != ST_OK:
        mem_free(named)
        return ST_NO_MEMORY
    return journal_knows(work.engine.journal, group, handle, id)


cdef Worker *worker_of(Work *work, uint64_t handle) noexcept nogil:
    return work.engine.workers[handle_worker(handle)]


cdef Session *session_named(Work *work, uint64_t id, Worker **worker) noexcept nogil:
    cdef Named *named = named_find(work, id)
    if named == NULL or named.group:
        return NULL
    worker[0] = worker_of(work, named.handle)
    return session_of(worker[0], named.handle)


# ---------------------------------------------------------------------------------------------- table by table

cdef int read_sessions(Work *work) noexcept nogil:
    cdef sqlite3_stmt *row = query(work, "SELECT id, client_id, expiry_s, offline_since_ms FROM session")
    cdef Worker *worker
    cdef Session *session
    cdef Span client_id
    cdef uint32_t hash
    cdef int64_t away_ms
    cdef int status = ST_OK
    while row_next(work, row, &status):
        client_id = column(row, 1)
        hash = client_hash(client_id)
        worker = work.engine.workers[hash % work.engine.settings.workers]
        session = session_build(worker, client_id, hash)
        if session == NULL:
            status = ST_NO_MEMORY
            if work.engine.settings.max_sessions and work.found.sessions >= work.engine.settings.max_sessions:
                snprintf(work.why, 200, "there are more sessions than limits.max_sessions allows")
                status = ST_ERROR
            continue
        session.durable = True
        session.expiry_s = <uint32_t> sqlite3_column_int64(row, 2)
        away_ms = work.now_ms - sqlite3_column_int64(row, 3) if sqlite3_column_int64(row, 3) else 0
        if away_ms < 0:
            away_ms = 0
        session.offline_since_ms = worker.reactor.now_ms - away_ms
        status = named_add(work, <uint64_t> sqlite3_column_int64(row, 0), False, session_handle(worker, session))
        counter_add(&work.found.sessions, 1)
    return status


cdef Text *text_add(Work *work, uint64_t id, Span filter) noexcept nogil:
    cdef Text *text = <Text *> mem_alloc(sizeof(Text) + filter.n)
    if text == NULL:
        return NULL
    text.id = id
    text.handle = 0
    text.n = filter.n
    if filter.n:
        memcpy(text.bytes, filter.p, filter.n)
    if map_insert(&work.groups, hash_bytes(filter), <uint64_t> text) != ST_OK:
        mem_free(text)
        return NULL
    return text


cdef int read_groups(Work *work) noexcept nogil:
    cdef sqlite3_stmt *row = query(work, "SELECT id, filter FROM share_group")
    cdef Text *text
    cdef Span filter
    cdef int status = ST_OK
    while row_next(work, row, &status):
        filter = column(row, 1)
        if map_find(&work.groups, hash_bytes(filter), &filter, NULL):
            continue                    # twice: the first one holds, and the other is nobody's
        text = text_add(work, <uint64_t> sqlite3_column_int64(row, 0), filter)
        if text == NULL:
            status = ST_NO_MEMORY
    return status


cdef int group_name(Work *work, uint64_t group, Span filter) noexcept nogil:
    """The file's id for a group that has members again; a new one where the file has none."""
    cdef uint64_t value = 0
    cdef sqlite3_stmt *insert
    cdef Text *text
    cdef uint64_t id
    cdef int result
    if map_find(&work.groups, hash_bytes(filter), &filter, &value):
        if (<Text *> value).handle:
            return ST_OK
        (<Text *> value).handle = group
        return named_add(work, (<Text *> value).id, True, group)
    id = journal_target(work.engine.journal)
    insert = query(work, "INSERT INTO share_group VALUES (?, ?)")
    if insert == NULL:
        return ST_ERROR
    sqlite3_bind_int64(insert, 1, <int64_t> id)
    sqlite3_bind_blob(insert, 2, filter.p, <int> filter.n, NULL)
    result = sqlite3_step(insert)
    if finish(work, insert, result, ST_OK) != ST_OK:
        return ST_ERROR
    text = text_add(work, id, filter)
    if text == NULL:
        return ST_NO_MEMORY
    text.handle = group
    return named_add(work, id, True, group)


cdef int join(Work *work, Worker *worker, Session *session, Subscription *subscription, Span group, Span plain) noexcept nogil:
    cdef GroupMail mail
    cdef uint64_t id = 0
    cdef uint16_t home = <uint16_t> ((hash_bytes(group) ^ hash_bytes(plain)) % work.engine.settings.workers)
    cdef int status
    if trie_group_join(work.engine.trie, group, plain, home, &id) != ST_OK:
        return ST_NO_MEMORY
    subscription.membership = membership_add(session, id)
    if subscription.membership == 0:
        return ST_NO_MEMORY
    status = group_name(work, id, span_make(subscription.filter, subscription.filter_bytes))
    if status != ST_OK:
        return status
    memset(&mail, 0, sizeof(GroupMail))
    mail.group = id
    mail.session = session_handle(worker, session)
    mail.qos = subscription.options & OPT_QOS_MASK
    mail.subscription_id = subscription.id
    mail.retain_as_published = subscription.options & OPT_RETAIN_AS_PUBLISHED != 0
    mail.noted = 1
    journal_joined(work.engine.journal, id)
    return group_join(work.engine.workers[group_home(id)], &mail)


cdef int read_subscriptions(Work *work) noexcept nogil:
    cdef sqlite3_stmt *row = query(work, "SELECT session, filter, options, identifier FROM subscription")
    cdef Worker *worker = NULL
    cdef Session *session
    cdef Subscription *subscription
    cdef Span filter, group, plain
    cdef uint8_t options
    cdef bint existed = False
    cdef int status = ST_OK
    while row_next(work, row, &status):
        session = session_named(work, <uint64_t> sqlite3_column_int64(row, 0), &worker)
        if session == NULL:
            continue
        filter = column(row, 1)
        options = <uint8_t> sqlite3_column_int64(row, 2)
        subscription = subscription_add(worker, session, filter)
        if subscription == NULL:
            status = ST_NO_MEMORY
            continue
        subscription.options = options & ~<uint8_t> HANDOUT_PENDING
        subscription.id = <uint32_t> sqlite3_column_int64(row, 3)
        filter = span_make(subscription.filter, subscription.filter_bytes)
        if share_split(filter, &group, &plain) == 1:
            status = join(work, worker, session, subscription, group, plain)
        else:
            status = trie_subscribe(
                work.engine.trie, filter, session_handle(worker, session), subscription.options | OPTION_DURABLE, subscription.id, &existed,
            )
            if status == ST_LIMIT:
                snprintf(work.why, 200, "a stored subscription has more levels than limits.max_topic_levels allows")
                status = ST_ERROR
            if status == ST_OK and options & HANDOUT_PENDING:
                handout_add(session, subscription, filter)
        counter_add(&work.found.subscriptions, 1)
    return status


cdef Msg *message_build(MsgPool *pool, Span topic, Span properties, Span payload) noexcept nogil:
    cdef Msg *msg = msg_alloc(pool, topic.n + properties.n + payload.n)
    cdef uint8_t *data
    if msg == NULL:
        return NULL
    data = msg_data(msg)
    memcpy(data, topic.p, topic.n)
    if properties.n:
        memcpy(data + topic.n, properties.p, properties.n)
    if payload.n:
        memcpy(data + topic.n + properties.n, payload.p, payload.n)
    msg.topic_bytes = <uint16_t> topic.n
    msg.properties_offset = topic.n
    msg.properties_bytes = properties.n
    msg.payload_offset = topic.n + properties.n
    msg.payload_bytes = payload.n
    return msg


cdef int64_t expiry_of(Work *work, Worker *worker, int64_t wall) noexcept nogil:
    """On the monotonic clock; 0: never."""
    cdef int64_t at
    if wall == 0:
        return 0
    at = worker.reactor.now_ms + wall - work.now_ms
    return at if at > 0 else 1


cdef int read_retained(Work *work) noexcept nogil:
    cdef sqlite3_stmt *row = query(work, "SELECT topic, properties, payload, qos, expires_ms FROM retained")
    cdef Worker *worker = work.engine.workers[0]
    cdef Msg *msg
    cdef int result
    cdef int status = ST_OK
    while row_next(work, row, &status):
        msg = message_build(&worker.msgs, column(row, 0), column(row, 1), column(row, 2))
        if msg == NULL:
            status = ST_NO_MEMORY
            continue
        msg.qos = <uint8_t> sqlite3_column_int64(row, 3)
        msg.retain = 1
        msg.expires_at_ms = expiry_of(work, worker, sqlite3_column_int64(row, 4))
        result = retain_set(work.engine.retain, &worker.msgs, msg, NULL)
        if result == ST_NO_MEMORY:
            status = ST_NO_MEMORY
        elif result != ST_OK:           # a limit was lowered: it stays in the file
            stat(&worker.stats, C_DROPPED_RETAINED_LIMIT)
        else:
            counter_add(&work.found.retained, 1)
        msg_drop(&worker.msgs, msg)
    return status


cdef int gone_add(Work *work, uint64_t message, uint64_t target) noexcept nogil:
    cdef Gone *gone = <Gone *> vec_push(&work.gone)
    if gone == NULL:
        return ST_NO_MEMORY
    gone.message = message
    gone.target = target
    return ST_OK


cdef int lent_add(Work *work, sqlite3_stmt *row, uint64_t group) noexcept nogil:
    cdef Lent *lent = <Lent *> vec_push(&work.lent)
    if lent == NULL:
        return ST_NO_MEMORY
    lent.message = <uint64_t> sqlite3_column_int64(row, 0)
    lent.target = <uint64_t> sqlite3_column_int64(row, 1)
    lent.group = group
    return ST_OK


cdef Named *lender_of(Work *work, sqlite3_stmt *row) noexcept nogil:
    """The group that has lent what this row is about to a session that has left it; NULL: none, or it has ended."""
    cdef Span bytes
    cdef Named *named
    cdef uint64_t id
    if not sqlite3_column_int64(row, 3) & DELIVERY_LENT or sqlite3_column_int64(row, 4) != DELIVERY_SENT:
        return NULL
    bytes = column(row, 6)
    if bytes.n != sizeof(uint64_t):
        return NULL
    memcpy(&id, bytes.p, sizeof(uint64_t))
    named = named_find(work, id)
    return named if named != NULL and named.group else NULL


cdef int delivery_take(Work *work, sqlite3_stmt *row, bint *kept) noexcept nogil:
    """One row becomes an entry of a queue, of an in-flight ring, or of a group's backlog."""
    cdef uint64_t message = <uint64_t> sqlite3_column_int64(row, 0)
    cdef uint64_t target = <uint64_t> sqlite3_column_int64(row, 1)
    cdef int state = <int> sqlite3_column_int64(row, 4)
    cdef int flags = <int> sqlite3_column_int64(row, 3)
    cdef Named *named = named_find(work, target & (((<uint64_t> 1) << LENT_SHIFT) - 1))
    cdef Named *lender = lender_of(work, row)
    cdef Worker *worker
    cdef Group *group
    cdef Msg *msg = NULL
    cdef int64_t expires = sqlite3_column_int64(row, 11)
    cdef bint there = sqlite3_column_int64(row, 7) != 0
    kept[0] = False
    if named == NULL and lender != NULL:        # its session ended while nobody ran
        named = lender
        state = DELIVERY_QUEUED
        target = lender.id
    if named == NULL or (not there and state != DELIVERY_RELEASED):
        counter_add(&work.found.orphans, 1)
        return ST_OK
    if expires and expires <= work.now_ms and state == DELIVERY_QUEUED:
        counter_add(&work.found.expired, 1)
        return ST_OK
    worker = worker_of(work, named.handle)
    kept[0] = True
    if (named == lender or (lender == NULL and flags & DELIVERY_LENT)) and lent_add(work, row, lender.id if lender != NULL else 0) != ST_OK:
        return ST_NO_MEMORY
    journal_owes(work.engine.journal, named.group, named.handle, target >> LENT_SHIFT != 0)
    counter_add(&work.found.deliveries, 1)
    if named.group or state == DELIVERY_SENT:
        msg = message_build(&worker.msgs, column(row, 8), column(row, 9), column(row, 10))
        if msg == NULL:
            return ST_NO_MEMORY
        msg.qos = <uint8_t> sqlite3_column_int64(row, 12)
        msg.retain = <uint8_t> sqlite3_column_int64(row, 13)
        msg.expires_at_ms = expiry_of(work, worker, expires)
        msg_journal_set(msg, message)
    if named.group:
        group = group_find(worker, named.handle)
        if group == NULL:
            msg_drop(&worker.msgs, msg)
            return ST_OK
        backlog_push(worker, group, msg)
        return ST_OK
    return entry_take(worker, session_of(worker, named.handle), row, message, msg, lender.handle if lender != NULL else 0)


cdef int entry_take(Worker *worker, Session *session, sqlite3_stmt *row, uint64_t message, Msg *msg, uint64_t lender) noexcept nogil:
    """A session's delivery; `msg` for one that was sent, whose reference it takes over. lender: the group that gets it when the session ends."""
    cdef int state = <int> sqlite3_column_int64(row, 4)
    cdef int flags = <int> sqlite3_column_int64(row, 3)
    cdef Span ids = column(row, 6) if not flags & DELIVERY_LENT else span_make(NULL, 0)
    cdef QueueEntry entry
    cdef QueueEntry *place
    memset(&entry, 0, sizeof(QueueEntry))
    entry.qos = <uint8_t> sqlite3_column_int64(row, 2)
    entry.packet_id = <uint16_t> sqlite3_column_int64(row, 5)
    if ids.n >= sizeof(uint32_t):
        entry.subscription_ids = subscription_ids_build(ids.n // <uint32_t> sizeof(uint32_t))
        if entry.subscription_ids == NULL:
            if msg != NULL:
                msg_drop(&worker.msgs, msg)
            return ST_NO_MEMORY
        memcpy(entry.subscription_ids.ids, ids.p, ids.n - ids.n % sizeof(uint32_t))
    entry.state = <uint8_t> ((QE_JOURNALED | (QE_RETAIN if flags & DELIVERY_RETAIN else 0)) << 4)
    if state == DELIVERY_QUEUED:
        entry.msg = <Msg *> message
        entry.member = <uint32_t> sqlite3_column_int64(row, 14)
        entry.state |= QE_STORED << 4
        return queue_push(worker, session, &entry)
    if lender:
        entry.member = membership_left(session, lender)
    place = <QueueEntry *> ring_push(&session.inflight)
    if place == NULL or (lender and entry.member == 0):
        if msg != NULL:
            msg_drop(&worker.msgs, msg)
        return ST_NO_MEMORY
    if state == DELIVERY_RELEASED:
        entry.msg = <Msg *> message
        entry.state |= QE_STORED << 4 | OUT_RELEASED
    else:
        entry.msg = msg
        entry.state |= OUT_SENT
    place[0] = entry
    session.flags |= SESSION_SPARSE
    session.next_packet_id = 1 if entry.packet_id == 65535 else entry.packet_id + 1
    stat(&worker.stats, C_INFLIGHT)
    return ST_OK


cdef int read_deliveries(Work *work) noexcept nogil:
    # Bodies are looked at only where they are needed at once: not those of queues.
    cdef sqlite3_stmt *row = query(
        work,
        "SELECT d.message, d.target, d.qos, d.flags, d.state, d.packet_id, d.identifiers, m.id IS NOT NULL,"
        " CASE WHEN d.state = 1 OR g.id IS NOT NULL THEN m.topic END, CASE WHEN d.state = 1 OR g.id IS NOT NULL THEN m.properties END,"
        " CASE WHEN d.state = 1 OR g.id IS NOT NULL THEN m.payload END, m.expires_ms, m.qos, m.retain,"
        " length(m.topic) + length(m.properties) + length(m.payload)"
        " FROM delivery d LEFT JOIN message m ON m.id = d.message LEFT JOIN share_group g ON g.id = d.target ORDER BY d.message, d.target",
    )
    cdef uint64_t message
    cdef uint32_t count = 0
    cdef bint kept = False
    cdef int status = ST_OK
    while row_next(work, row, &status):
        message = <uint64_t> sqlite3_column_int64(row, 0)
        if message != work.last_message:
            if count:
                status = journal_counts(work.engine.journal, work.last_message, count)
            work.last_message = message
            count = 0
        if status == ST_OK:
            status = delivery_take(work, row, &kept)
        if status == ST_OK and not kept:
            status = gone_add(work, message, <uint64_t> sqlite3_column_int64(row, 1))
        elif sqlite3_column_int64(row, 4) != DELIVERY_RELEASED:
            count += 1
    if status == ST_OK and count:
        status = journal_counts(work.engine.journal, work.last_message, count)
    return status


cdef int read_inbound(Work *work) noexcept nogil:
    cdef sqlite3_stmt *row = query(work, "SELECT session, packet_id FROM inbound")
    cdef Worker *worker = NULL
    cdef Session *session
    cdef int status = ST_OK
    while row_next(work, row, &status):
        session = session_named(work, <uint64_t> sqlite3_column_int64(row, 0), &worker)
        if session != NULL:
            status = inbound_add(session, <uint16_t> sqlite3_column_int64(row, 1))
    return status


cdef int read_wills(Work *work) noexcept nogil:
    cdef sqlite3_stmt *row = query(work, "SELECT session, topic, properties, payload, qos, retain, delay_s, expiry_s FROM will")
    cdef Worker *worker = NULL
    cdef Session *session
    cdef Will *will
    cdef int status = ST_OK
    while row_next(work, row, &status):
        session = session_named(work, <uint64_t> sqlite3_column_int64(row, 0), &worker)
        if session == NULL or session.will != NULL:
            continue
        will = <Will *> mem_alloc_zeroed(1, sizeof(Will))
        if will != NULL:
            will.msg = message_build(&worker.msgs, column(row, 1), column(row, 2), column(row, 3))
        if will == NULL or will.msg == NULL:
            mem_free(will)
            status = ST_NO_MEMORY
            continue
        will.msg.qos = <uint8_t> sqlite3_column_int64(row, 4)
        will.msg.retain = <uint8_t> sqlite3_column_int64(row, 5)
        will.msg.publisher = session_handle(worker, session)
        will.delay_s = <uint32_t> sqlite3_column_int64(row, 6)
        will.has_expiry = sqlite3_column_int64(row, 7) >= 0
        will.expiry_s = <uint32_t> sqlite3_column_int64(row, 7) if will.has_expiry else 0
        session.will = will
        will_count(worker, will)
    return status


# ---------------------------------------------------------------------------------------------- what is over, and what comes next

cdef int expire(Work *work) noexcept nogil:
    """Sessions and retained messages whose time was over while nobody ran; a session with a will ends in due form, by its timer."""
    cdef int64_t before = number(work, "SELECT count(*) FROM session", 0) + number(work, "SELECT count(*) FROM retained", 0)
    cdef int status = run_at(
        work,
        "DELETE FROM session WHERE offline_since_ms > 0 AND expiry_s < 4294967295 AND offline_since_ms + expiry_s * 1000 <= ?"
        " AND id NOT IN (SELECT session FROM will)",
    )
    if status == ST_OK:
        status = run_at(work, "DELETE FROM retained WHERE expires_ms > 0 AND expires_ms <= ?")
    if status == ST_OK and sqlite3_exec(
        work.file,
        "DELETE FROM subscription WHERE session NOT IN (SELECT id FROM session); DELETE FROM inbound WHERE session NOT IN (SELECT id FROM session);"
        " DELETE FROM will WHERE session NOT IN (SELECT id FROM session)", NULL, NULL, NULL,
    ) != SQLITE_OK:
        status = fail(work)
    before -= number(work, "SELECT count(*) FROM session", 0) + number(work, "SELECT count(*) FROM retained", 0)
    counter_add(&work.found.expired, <uint64_t> before if before > 0 else 0)
    return status


cdef int settle_lent(Work *work) noexcept nogil:
    """Rows of what was lent say whose it is now: ids of groups that are not there any more are given to others."""
    cdef sqlite3_stmt *change = query(
        work,
        "UPDATE OR REPLACE delivery SET flags = flags & ~?4, identifiers = NULL, target = CASE ?3 WHEN 0 THEN target ELSE ?3 END,"
        " state = CASE ?3 WHEN 0 THEN state ELSE 0 END, packet_id = CASE ?3 WHEN 0 THEN packet_id ELSE 0 END WHERE message = ?1 AND target = ?2",
    )
    cdef Lent *lent
    cdef uint32_t i
    cdef int result
    cdef int status = ST_OK
    if change == NULL:
        return ST_ERROR
    for i in range(work.lent.count):
        lent = <Lent *> vec_at(&work.lent, i)
        sqlite3_bind_int64(change, 1, <int64_t> lent.message)
        sqlite3_bind_int64(change, 2, <int64_t> lent.target)
        sqlite3_bind_int64(change, 3, <int64_t> lent.group)
        sqlite3_bind_int64(change, 4, DELIVERY_LENT)
        result = sqlite3_step(change)
        sqlite3_reset(change)
        if result != SQLITE_DONE:
            status = fail(work)
            break
    sqlite3_finalize(change)
    return status


cdef int forget_gone(Work *work) noexcept nogil:
    """Deletes the deliveries that came to nothing, and what nobody waits for any more."""
    cdef sqlite3_stmt *remove
    cdef Gone *gone
    cdef uint32_t i
    cdef int result
    cdef int status = ST_OK
    remove = query(work, "DELETE FROM delivery WHERE message = ? AND target = ?")
    if remove == NULL:
        return ST_ERROR
    for i in range(work.gone.count):
        gone = <Gone *> vec_at(&work.gone, i)
        sqlite3_bind_int64(remove, 1, <int64_t> gone.message)
        sqlite3_bind_int64(remove, 2, <int64_t> gone.target)
        result = sqlite3_step(remove)
        sqlite3_reset(remove)
        if result != SQLITE_DONE:
            status = fail(work)
            break
    sqlite3_finalize(remove)
    if status == ST_OK and sqlite3_exec(
        work.file,
        "DELETE FROM message WHERE id NOT IN (SELECT message FROM delivery WHERE state < 2);"
        " DELETE FROM share_group WHERE id NOT IN (SELECT target FROM delivery) AND filter NOT IN (SELECT filter FROM subscription);"
        " DELETE FROM share_group WHERE id NOT IN (SELECT min(id) FROM share_group GROUP BY filter)", NULL, NULL, NULL,
    ) != SQLITE_OK:
        status = fail(work)
    return status


cdef void rest_all(Engine *engine) noexcept nogil:
    cdef Worker *worker
    cdef uint32_t cursor, i
    cdef uint64_t value = 0
    for i in range(engine.settings.workers):
        worker = engine.workers[i]
        cursor = 0
        while map_next(&worker.clients, &cursor, &value):
            session_rest(worker, <Session *> value)


cdef int replay(Work *work) noexcept nogil:
    """What the log of a crashed run holds becomes rows."""
    cdef int status = log_replay(work.file)
    if status == ST_ERROR:
        return fail(work)
    if status != ST_OK:
        snprintf(work.why, 200, "a row of table log has an impossible value")
        return ST_ERROR
    return ST_OK


cdef void go_on(Work *work) noexcept nogil:
    """Where the journal goes on counting."""
    cdef int64_t next_id, next_target, next_version, last_expiry
    next_id = number(work, "SELECT max(coalesce((SELECT value FROM meta WHERE key = 'next_id'), 1), coalesce((SELECT max(id) FROM message), 0) + 1, coalesce((SELECT max(message) FROM delivery), 0) + 1)", 1)
    next_target = number(work, "SELECT max(coalesce((SELECT max(id) FROM session), 0), coalesce((SELECT max(id) FROM share_group), 0), coalesce((SELECT max(target & 1099511627775) FROM delivery), 0)) + 1", 1)
    next_version = number(work, "SELECT coalesce(max(version), 0) + 1 FROM retained", 1)
    last_expiry = number(work, "SELECT coalesce(max(expires_ms), 0) FROM retained", 0)
    journal_continue(work.engine.journal, <uint64_t> next_id, <uint64_t> next_target, <uint64_t> next_version, last_expiry)


cdef int read_all(Work *work) noexcept nogil:
    cdef int status = expire(work)
    if status == ST_OK:
        status = replay(work)
    go_on(work)
    if status == ST_OK:
        status = read_sessions(work)
    if status == ST_OK:
        status = read_groups(work)
    if status == ST_OK:
        status = read_subscriptions(work)
    if status == ST_OK:
        status = read_retained(work)
    if status == ST_OK:
        status = read_deliveries(work)
    if status == ST_OK:
        status = read_inbound(work)
    if status == ST_OK:
        status = read_wills(work)
    if status == ST_OK:
        status = settle_lent(work)
    if status == ST_OK:
        status = forget_gone(work)
    return status


cdef void map_empty(Map *map) noexcept nogil:
    cdef uint32_t cursor = 0
    cdef uint64_t value = 0
    while map_next(map, &cursor, &value):
        mem_free(<void *> value)
    map_free(map)


cdef int engine_recover(Engine *engine, Recovery *found, char *why) noexcept nogil:
    cdef Work work
    cdef int64_t told
    cdef int status
    memset(&work, 0, sizeof(Work))
    work.engine = engine
    work.file = <sqlite3 *> journal_file(engine.journal)
    work.found = found
    work.why = why
    snprintf(why, 200, "no memory")
    map_init(&work.named, named_equals, NULL)
    map_init(&work.groups, text_equals, NULL)
    vec_init(&work.gone, sizeof(Gone))
    vec_init(&work.lent, sizeof(Lent))
    told = number(&work, "SELECT value FROM meta WHERE key = 'clock'", 0)
    work.now_ms = engine.workers[0].reactor.wall_ms if engine.workers[0].reactor.wall_ms > told else told
    engine.journal.store_time_ms = work.now_ms - engine.workers[0].reactor.now_ms
    engine.journal.mono_offset_ms = &engine.clock.mono_offset_ms
    if sqlite3_exec(work.file, "BEGIN IMMEDIATE", NULL, NULL, NULL) != SQLITE_OK:
        status = fail(&work)
    else:
        status = read_all(&work)
        if status == ST_OK and sqlite3_exec(work.file, "COMMIT", NULL, NULL, NULL) != SQLITE_OK:
            status = fail(&work)
        if status != ST_OK:
            sqlite3_exec(work.file, "ROLLBACK", NULL, NULL, NULL)
    map_empty(&work.named)
    map_empty(&work.groups)
    vec_free(&work.gone)
    vec_free(&work.lent)
    if status == ST_OK:
        engine.retain.versions = &engine.journal.next_version
        rest_all(engine)
    return status
