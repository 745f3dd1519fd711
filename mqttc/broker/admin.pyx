from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from mqttc.base.alloc cimport mem_free, mem_resize
from mqttc.base.msg cimport Msg, msg_alloc, msg_data, msg_drop, msg_expiry_left, msg_payload, msg_properties, msg_topic
from mqttc.base.types cimport ST_OK, Span, span_make
from mqttc.base.vec cimport vec_at
from mqttc.broker.acl cimport ACL_RECEIVE, AclRule
from mqttc.broker.durable cimport journaled, note_message
from mqttc.broker.permit cimport session_decide
from mqttc.broker.port cimport is_inside
from mqttc.broker.presence cimport session_finish, session_offline, session_timer
from mqttc.broker.reply cimport conn_disconnect
from mqttc.broker.retain cimport RETAIN_END, RetainCursor, retain_cursor_free, retain_cursor_init, retain_cursor_seek, retain_done, retain_set, retain_step
from mqttc.broker.rights cimport AclDecision, AclFit, Rights
from mqttc.broker.session cimport SESSION_PAGE, client_hash, inbound_count, session_find
from mqttc.broker.state cimport (
    CONN_UP, DECIDE_WHOLE, REQUEST_CLEAR, REQUEST_DECIDE, REQUEST_DISCONNECT, REQUEST_END, REQUEST_LIST, REQUEST_LOOK, REQUEST_RECEIVERS, REQUEST_RETAINED,
    Conn, RequestMail, Session, Subscription, Worker,
)
from mqttc.net.tcp cimport peer_text
from mqttc.proto.packet cimport RC_ADMINISTRATIVE_ACTION, RC_PROTOCOL_ERROR, RC_QUOTA_EXCEEDED, RC_SUCCESS, RC_TOPIC_NAME_INVALID
from mqttc.proto.topic cimport share_split, topic_check, topic_matches

cdef enum:
    SLOTS_PER_REQUEST = 8192           # sessions looked at
    TOPICS_PER_REQUEST = 16384         # retained messages looked at
    RETAINED_BATCH = 8
    RESULT_BYTES = 1 << 20             # from which a page ends
    WORK_PER_REQUEST = 32768           # of REQUEST_RECEIVERS, in units of some 50 ns
    BYTES_PER_WORK = 64                # of a filter that is matched
    RULES_PER_WORK = 16                # that are gone through
    MATCHES_LISTED = 32                # filters of a receiver; the others are counted

cdef enum ReceiverFlag:
    RECEIVER_ONLINE = 1
    RECEIVER_INSIDE = 2                # the program's own
    RECEIVER_CONTINUED = 4             # more of the session that the page before ended with
    RECEIVER_UNCERTAIN = 8             # came back from the store, and its client has not: who it is nobody knows yet
    RECEIVER_QUEUES = 16               # it is off line and outlives its connection

cdef struct Rows:
    uint8_t *bytes
    uint32_t count
    uint32_t capacity
    bint failed                        # no memory: what follows is not written

cdef struct Matches:                   # of one session's filters, by one topic
    const Subscription *listed[MATCHES_LISTED]
    uint32_t count                     # listed or not
    uint32_t next                      # subscription to go on with; 0: through
    uint32_t work


# ---- rows

cdef void rows_init(Rows *rows) noexcept nogil:
    rows.bytes = NULL
    rows.count = 0
    rows.capacity = 0
    rows.failed = False


cdef void put(Rows *rows, const void *value, uint32_t n) noexcept nogil:
    cdef void *grown
    cdef uint32_t capacity
    if n > rows.capacity - rows.count:
        capacity = rows.capacity * 2 + n + 512
        grown = mem_resize(rows.bytes, capacity, 1)
        if grown == NULL:
            rows.failed = True
            return
        rows.bytes = <uint8_t *> grown
        rows.capacity = capacity
    if n and not rows.failed:
        memcpy(rows.bytes + rows.count, value, n)
        rows.count += n


cdef void put_u8(Rows *rows, uint8_t value) noexcept nogil:
    put(rows, &value, 1)


cdef void put_u16(Rows *rows, uint16_t value) noexcept nogil:
    put(rows, &value, 2)


cdef void put_u32(Rows *rows, uint32_t value) noexcept nogil:
    put(rows, &value, 4)


cdef void put_u64(Rows *rows, uint64_t value) noexcept nogil:
    put(rows, &value, 8)


cdef void put_text(Rows *rows, Span text) noexcept nogil:
    """At most 65535 bytes."""
    put_u16(rows, <uint16_t> text.n)
    put(rows, text.p, text.n)


cdef uint8_t rows_give(Rows *rows, RequestMail *request) noexcept nogil:
    if rows.failed:
        mem_free(rows.bytes)
        return RC_QUOTA_EXCEEDED
    request.result = rows.bytes
    request.result_bytes = rows.count
    return RC_SUCCESS


cdef void put_session(Worker *worker, Rows *rows, const Session *session, bint detail) noexcept nogil:
    cdef const Conn *conn = session.conn
    cdef uint8_t peer[64]
    cdef uint32_t i
    cdef uint32_t subscriptions = session.subscriptions.count if session.subscriptions != NULL else 0
    cdef Subscription *subscription
    put_u8(rows, conn != NULL)
    put_u8(rows, conn.dialect.level if conn != NULL else 0)
    put_u8(rows, session.durable)
    put_u8(rows, session.will != NULL)
    put_u16(rows, conn.link.listener if conn != NULL else 0)
    put_u16(rows, session.receive_maximum)
    put_u32(rows, conn.keep_alive_ms // 1500 if conn != NULL else 0)
    put_u32(rows, session.expiry_s)
    put_u32(rows, subscriptions)
    put_u32(rows, session.queue.count)
    put_u32(rows, session.inflight.count)
    put_u32(rows, inbound_count(session))
    put_u32(rows, session.dropped)
    put_u64(rows, session.queued_bytes)
    put_u64(rows, <uint64_t> conn.connected_wall_s * 1000 if conn != NULL else 0)
    put_u64(rows, 0 if conn != NULL else <uint64_t> (worker.reactor.now_ms - session.offline_since_ms))
    put_u32(rows, conn.link.out.bytes if conn != NULL else 0)
    put_text(rows, span_make(session.client_id, session.client_id_bytes))
    put_text(rows, span_make(conn.username, conn.username_bytes) if conn != NULL else span_make(NULL, 0))
    put_text(rows, span_make(peer, peer_text(&conn.link.peer, peer, sizeof(peer))) if conn != NULL else span_make(NULL, 0))
    put_u32(rows, subscriptions if detail else 0)
    for i in range(subscriptions if detail else 0):
        subscription = <Subscription *> vec_at(session.subscriptions, i)
        put_u8(rows, subscription.options)
        put_u32(rows, subscription.id)
        put_text(rows, span_make(subscription.filter, subscription.filter_bytes))


# ---- sessions

cdef uint8_t session_list(Worker *worker, RequestMail *request) noexcept nogil:
    """In the order of their slots, so that a page's end is a number; who comes or goes meanwhile may be missed, nobody is told twice."""
    cdef Rows rows
    cdef Session *session
    cdef uint64_t slots = <uint64_t> worker.session_pages.count * SESSION_PAGE
    cdef uint64_t last = request.cursor + SLOTS_PER_REQUEST
    rows_init(&rows)
    request.count = 0
    while request.cursor < slots and request.cursor < last and request.count < request.number and rows.count < <uint32_t> RESULT_BYTES:
        session = (<Session **> worker.session_pages.items)[request.cursor // SESSION_PAGE] + (request.cursor % SESSION_PAGE)
        request.cursor += 1
        if session.client_id == NULL or is_inside(session) or (request.options and not on_line(session)):
            continue
        put_session(worker, &rows, session, False)
        request.count += 1
    if request.cursor >= slots:
        request.cursor = 0              # through
    return rows_give(&rows, request)


cdef bint on_line(const Session *session) noexcept nogil:
    return session.conn != NULL and session.conn.phase == CONN_UP


cdef Session *session_named(Worker *worker, const RequestMail *request) noexcept nogil:
    """NULL: there is none, or it is the program's own."""
    cdef Span client_id = span_make(request.data, request.data_bytes)
    cdef uint32_t hash = client_hash(client_id)
    cdef Session *session = session_find(worker, client_id, hash)
    if session != NULL and session.conn == NULL:
        session_timer(worker, session)  # its end may be due, and the wheel not have turned yet
        session = session_find(worker, client_id, hash)
    return NULL if session == NULL or is_inside(session) else session


cdef uint8_t session_look(Worker *worker, RequestMail *request) noexcept nogil:
    cdef Session *session = session_named(worker, request)
    cdef Rows rows
    if session == NULL:
        return RC_SUCCESS
    rows_init(&rows)
    put_session(worker, &rows, session, True)
    request.count = 1
    return rows_give(&rows, request)


cdef uint8_t client_disconnect(Worker *worker, RequestMail *request) noexcept nogil:
    cdef Session *session = session_named(worker, request)
    if session != NULL and on_line(session):
        conn_disconnect(worker, session.conn, request.options)
        request.count = 1
    return RC_SUCCESS


cdef uint8_t session_delete(Worker *worker, RequestMail *request) noexcept nogil:
    """Its client, if it is here, is disconnected; its will goes out, as at every session's end [MQTT-3.1.3-9]."""
    cdef Session *session = session_named(worker, request)
    cdef Conn *conn
    if session == NULL:
        return RC_SUCCESS
    request.count = 1
    conn = session.conn
    if conn == NULL:
        session_finish(worker, session)
        return RC_SUCCESS
    conn_disconnect(worker, conn, RC_ADMINISTRATIVE_ACTION)
    session_offline(worker, conn, True, False)
    return RC_SUCCESS


# ---- who would receive, and who may

cdef void put_decision(Rows *rows, bint allowed, const AclDecision *decision) noexcept nogil:
    cdef const AclRule *rule = decision.rule
    put_u8(rows, allowed)
    put_u8(rows, decision.source)
    put_u8(rows, decision.granted)
    put_u8(rows, rule.allow if rule != NULL else 0)
    put_u8(rows, rule.actions if rule != NULL else 0)
    put_u32(rows, decision.number)
    put_text(rows, rule.filter if rule != NULL else span_make(NULL, 0))


cdef Span user_of(const Session *session) noexcept nogil:
    """Whom the rules know; where there are none, what CONNECT says."""
    cdef const Rights *rights = session.rights
    if rights != NULL:
        return span_make(&rights.user[0], rights.user_bytes if rights.has_user else 0)
    if session.conn != NULL and not is_inside(session):
        return span_make(session.conn.username, session.conn.username_bytes)
    return span_make(NULL, 0)


cdef uint8_t session_rule(Worker *worker, RequestMail *request) noexcept nogil:
    cdef Rows rows
    cdef AclDecision decision
    cdef Span text
    cdef Session *session
    cdef bint allowed
    cdef uint32_t data_bytes = request.data_bytes
    text = span_make(request.data + request.split, data_bytes - request.split)
    request.data_bytes = request.split
    session = session_named(worker, request)
    request.data_bytes = data_bytes
    request.count = 0
    if session == NULL or not on_line(session):
        return RC_SUCCESS               # off line nobody knows who comes
    allowed = session_decide(worker, session, request.options & ~<uint8_t> DECIDE_WHOLE, text, request.options & DECIDE_WHOLE != 0, &decision)
    rows_init(&rows)
    put_decision(&rows, allowed, &decision)
    put_u16(&rows, session.conn.link.listener)
    put_text(&rows, user_of(session))
    request.count = 1
    return rows_give(&rows, request)


cdef void matches_find(const Session *session, Span topic, uint32_t first, uint32_t room, Matches *matches) noexcept nogil:
    """From a subscription on, until about so much work is done."""
    cdef uint32_t count = session.subscriptions.count if session.subscriptions != NULL else 0
    cdef uint32_t i = first
    cdef const Subscription *subscription
    cdef Span filter, group, plain
    matches.count = 0
    matches.work = 1
    while i < count and matches.work <= room:
        subscription = <const Subscription *> vec_at(session.subscriptions, i)
        i += 1
        matches.work += 1 + subscription.filter_bytes // BYTES_PER_WORK
        filter = span_make(subscription.filter, subscription.filter_bytes)
        if subscription.membership == 0 or share_split(filter, &group, &plain) != 1:
            plain = filter
        if topic_matches(plain, topic):
            if matches.count < <uint32_t> MATCHES_LISTED:
                matches.listed[matches.count] = subscription
            matches.count += 1
    matches.next = i if i < count else 0


cdef uint32_t fit_work(const AclFit *fit) noexcept nogil:
    return 4 if fit == NULL or fit.rules != NULL else 4 + fit.acl.rule_count // RULES_PER_WORK


cdef uint32_t decision_work(const Worker *worker, const Rights *rights) noexcept nogil:
    """What it takes to ask them."""
    cdef uint32_t work
    if rights == NULL:
        return 1
    work = fit_work(rights.file) + fit_work(rights.given)
    if worker.acl != NULL and (rights.file == NULL or rights.file.acl != worker.acl):
        work += (worker.acl.rule_count + worker.acl.who_count) // RULES_PER_WORK     # they are made anew
    return work


cdef void put_receiver(Worker *worker, Rows *rows, Session *session, const Matches *matches, Span topic, bint continued) noexcept nogil:
    cdef AclDecision decision
    cdef const Rights *rights = session.rights
    cdef const Conn *conn = session.conn
    cdef const Subscription *subscription
    cdef uint32_t listed = matches.count if matches.count < <uint32_t> MATCHES_LISTED else <uint32_t> MATCHES_LISTED
    cdef uint32_t i
    cdef uint8_t flags = RECEIVER_CONTINUED if continued else 0
    cdef bint allowed
    if is_inside(session):
        flags |= RECEIVER_INSIDE | RECEIVER_ONLINE
    elif conn != NULL:
        flags |= RECEIVER_ONLINE
    else:
        flags |= RECEIVER_QUEUES
        if rights == NULL and worker.acl != NULL:
            flags |= RECEIVER_UNCERTAIN
    allowed = session_decide(worker, session, ACL_RECEIVE, topic, False, &decision)
    put_u8(rows, flags)
    put_u32(rows, session.queue.count)
    put_u32(rows, matches.count)
    put_u32(rows, listed)
    put_decision(rows, allowed, &decision)
    put_text(rows, span_make(session.client_id, session.client_id_bytes))
    put_text(rows, user_of(session))
    for i in range(listed):
        subscription = matches.listed[i]
        put_u8(rows, subscription.options)
        put_u32(rows, subscription.id)
        put_text(rows, span_make(subscription.filter, subscription.filter_bytes))


cdef uint8_t receivers_list(Worker *worker, RequestMail *request) noexcept nogil:
    """As session_list, those whose filters match; of one with very many filters, a part at a time."""
    cdef Rows rows
    cdef Matches matches
    cdef Session *session
    cdef Span topic = span_make(request.data, request.data_bytes)
    cdef uint64_t slots = <uint64_t> worker.session_pages.count * SESSION_PAGE
    cdef uint64_t slot = <uint32_t> request.cursor
    cdef uint64_t last = slot + SLOTS_PER_REQUEST
    cdef uint32_t first = <uint32_t> (request.cursor >> 32)
    cdef uint32_t work = 0
    request.count = 0
    if not topic_check(topic):
        return RC_TOPIC_NAME_INVALID
    rows_init(&rows)
    while slot < slots and slot < last and work < <uint32_t> WORK_PER_REQUEST and request.count < request.number and rows.count < <uint32_t> RESULT_BYTES:
        session = (<Session **> worker.session_pages.items)[slot // SESSION_PAGE] + (slot % SESSION_PAGE)
        matches.next = 0
        if session.client_id != NULL:
            matches_find(session, topic, first, WORK_PER_REQUEST - work, &matches)
            work += matches.work
            if matches.count:
                work += decision_work(worker, session.rights)
                put_receiver(worker, &rows, session, &matches, topic, first != 0)
                request.count += 1
        first = matches.next
        if first == 0:
            slot += 1
    request.cursor = slot | <uint64_t> first << 32 if slot < slots else 0
    return rows_give(&rows, request)


# ---- retained messages

cdef bint cursor_of(RetainCursor *cursor, const RequestMail *request) noexcept nogil:
    """Behind the request's topic, which is in its own stripe or, where an answer said one, in that. False: no memory."""
    if retain_cursor_init(cursor, span_make(request.data, request.split)) != ST_OK:
        return False
    if retain_cursor_seek(cursor, span_make(request.data + request.split, request.data_bytes - request.split)) != ST_OK:
        retain_cursor_free(cursor)
        return False
    if request.cursor != RETAIN_END:
        cursor.stripe = <uint16_t> request.cursor
    return True


cdef uint8_t cursor_give(RetainCursor *cursor, Rows *rows, RequestMail *request) noexcept nogil:
    """Says where to go on, behind the rows."""
    request.cursor = cursor.stripe
    request.split = 0
    if cursor.stripe != RETAIN_END:
        request.split = cursor.topic_bytes
        put(rows, cursor.topic, cursor.topic_bytes)
    retain_cursor_free(cursor)
    return rows_give(rows, request)


cdef uint8_t retained_list(Worker *worker, RequestMail *request) noexcept nogil:
    cdef RetainCursor cursor
    cdef Rows rows
    cdef Msg *batch[RETAINED_BATCH]
    cdef uint32_t looked = 0
    cdef int room, count, i
    rows_init(&rows)
    request.count = 0
    if not cursor_of(&cursor, request):
        return RC_QUOTA_EXCEEDED
    while request.count < request.number and rows.count < <uint32_t> RESULT_BYTES and looked < <uint32_t> TOPICS_PER_REQUEST and not retain_done(&cursor):
        room = RETAINED_BATCH if request.number - request.count > RETAINED_BATCH else <int> (request.number - request.count)
        count = retain_step(worker.engine.retain, &cursor, &worker.msgs, worker.reactor.now_ms, batch, room, TOPICS_PER_REQUEST // 4)
        if count < 0:
            rows.failed = True
            break
        looked += TOPICS_PER_REQUEST // 4 if count == 0 else <uint32_t> count
        for i in range(count):
            put_retained(worker, &rows, batch[i], request.options != 0)
            msg_drop(&worker.msgs, batch[i])
        request.count += <uint32_t> count
    return cursor_give(&cursor, &rows, request)


cdef void put_retained(Worker *worker, Rows *rows, const Msg *msg, bint sizes_only) noexcept nogil:
    put_u8(rows, msg.qos)
    put_u64(rows, <uint64_t> msg_expiry_left(msg, worker.reactor.now_ms) if msg.expires_at_ms else <uint64_t> -1)
    put_u32(rows, msg.properties_bytes)
    put_u32(rows, msg.payload_bytes)
    put_text(rows, msg_topic(msg))
    if sizes_only:
        return
    put(rows, msg_properties(msg).p, msg.properties_bytes)
    put(rows, msg_payload(msg).p, msg.payload_bytes)


cdef bint retained_clear(Worker *worker, Span topic) noexcept nogil:
    """As an empty retained message does [MQTT-3.3.1-6], but nobody is told. False: no memory."""
    cdef uint64_t version = 0
    cdef bint cleared
    cdef Msg *msg = msg_alloc(&worker.msgs, topic.n)
    if msg == NULL:
        return False
    memcpy(msg_data(msg), topic.p, topic.n)
    msg.topic_bytes = <uint16_t> topic.n
    msg.retain = 1
    cleared = retain_set(worker.engine.retain, &worker.msgs, msg, &version) == ST_OK
    if cleared and journaled(worker):
        cleared = note_message(worker, msg, NULL, <uint8_t> worker.engine.settings.durability, 0, 0, version)
    msg_drop(&worker.msgs, msg)
    return cleared


cdef uint8_t retained_delete(Worker *worker, RequestMail *request) noexcept nogil:
    """Some of the filter's; count: how many, and as retained_list where to go on."""
    cdef RetainCursor cursor
    cdef Rows rows
    cdef Msg *batch[RETAINED_BATCH]
    cdef uint32_t looked = 0
    cdef int count, i
    rows_init(&rows)
    request.count = 0
    if not cursor_of(&cursor, request):
        return RC_QUOTA_EXCEEDED
    while request.count < request.number and looked < <uint32_t> TOPICS_PER_REQUEST and not retain_done(&cursor) and not rows.failed:
        count = retain_step(worker.engine.retain, &cursor, &worker.msgs, worker.reactor.now_ms, batch, RETAINED_BATCH, TOPICS_PER_REQUEST // 4)
        rows.failed |= count < 0
        looked += TOPICS_PER_REQUEST // 4 if count == 0 else <uint32_t> count
        for i in range(count):
            if not rows.failed and retained_clear(worker, msg_topic(batch[i])):
                request.count += 1
            else:
                rows.failed = True
            msg_drop(&worker.msgs, batch[i])
    return cursor_give(&cursor, &rows, request)


cdef uint8_t on_admin(Worker *worker, RequestMail *request) noexcept nogil:
    if request.verb == REQUEST_LIST:
        return session_list(worker, request)
    if request.verb == REQUEST_LOOK:
        return session_look(worker, request)
    if request.verb == REQUEST_DISCONNECT:
        return client_disconnect(worker, request)
    if request.verb == REQUEST_END:
        return session_delete(worker, request)
    if request.verb == REQUEST_RETAINED:
        return retained_list(worker, request)
    if request.verb == REQUEST_CLEAR:
        return retained_delete(worker, request)
    if request.verb == REQUEST_RECEIVERS:
        return receivers_list(worker, request)
    if request.verb == REQUEST_DECIDE:
        return session_rule(worker, request)
    return RC_PROTOCOL_ERROR
