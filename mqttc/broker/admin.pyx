from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from mqttc.base.alloc cimport mem_free, mem_resize
from mqttc.base.msg cimport Msg, msg_alloc, msg_data, msg_drop, msg_expiry_left, msg_payload, msg_properties, msg_topic
from mqttc.base.types cimport ST_OK, Span, span_make
from mqttc.base.vec cimport vec_at
from mqttc.broker.durable cimport journaled, note_message
from mqttc.broker.port cimport is_inside
from mqttc.broker.presence cimport session_finish, session_offline, session_timer
from mqttc.broker.reply cimport conn_disconnect
from mqttc.broker.retain cimport RETAIN_END, RetainCursor, retain_cursor_free, retain_cursor_init, retain_cursor_seek, retain_done, retain_set, retain_step
from mqttc.broker.session cimport SESSION_PAGE, client_hash, inbound_count, session_find
from mqttc.broker.state cimport (
    CONN_UP, REQUEST_CLEAR, REQUEST_DISCONNECT, REQUEST_END, REQUEST_LIST, REQUEST_LOOK, REQUEST_RETAINED, Conn, RequestMail, Session, Subscription, Worker,
)
from mqttc.net.tcp cimport peer_text
from mqttc.proto.packet cimport RC_ADMINISTRATIVE_ACTION, RC_PROTOCOL_ERROR, RC_QUOTA_EXCEEDED, RC_SUCCESS

cdef enum:
    SLOTS_PER_REQUEST = 8192           # sessions looked at
    TOPICS_PER_REQUEST = 16384         # retained messages looked at
    RETAINED_BATCH = 8
    RESULT_BYTES = 1 << 20             # from which a page ends

cdef struct Rows:
    uint8_t *bytes
    uint32_t count
    uint32_t capacity
    bint failed                        # no memory: what follows is not written


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
            put_retained(worker, &rows, batch[i])
            msg_drop(&worker.msgs, batch[i])
        request.count += <uint32_t> count
    return cursor_give(&cursor, &rows, request)


cdef void put_retained(Worker *worker, Rows *rows, const Msg *msg) noexcept nogil:
    put_u8(rows, msg.qos)
    put_u64(rows, <uint64_t> msg_expiry_left(msg, worker.reactor.now_ms) if msg.expires_at_ms else <uint64_t> -1)
    put_u32(rows, msg.properties_bytes)
    put_u32(rows, msg.payload_bytes)
    put_text(rows, msg_topic(msg))
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
    return RC_PROTOCOL_ERROR
