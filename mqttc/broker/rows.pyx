from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t, uint8_t
from libc.stdio cimport snprintf
from libc.string cimport memcpy

from mqttc.base.alloc cimport mem_alloc_zeroed, mem_free
from mqttc.base.map cimport hash_bytes64
from mqttc.base.msg cimport Msg, MsgPool, msg_alloc_for, msg_data, msg_payload, msg_properties, msg_topic
from mqttc.base.types cimport Span, span_make
from mqttc.base.vec cimport vec_at, vec_free, vec_init, vec_push
from mqttc.broker.known cimport (
    COUNT_MOST, Known, count_change, count_get, known_find, known_forget, known_make, known_owes, known_touch, names_free, names_init,
)
from mqttc.broker.record cimport (
    DELIVERY_LENT, DELIVERY_RELEASED, EVENT_AT_QOS_1, EVENT_DONE, EVENT_INBOUND_DONE, EVENT_NOTHING, EVENT_OF_GROUP, EVENT_RESERVED, EVENT_RETURNED, EVENT_SENT,
    EVENT_WAS_RELEASED, LENT_SHIFT, RECORD_GROUP, RECORD_GROUP_END, RECORD_HANDED_OUT, RECORD_PRESENCE, RECORD_SESSION, RECORD_SESSION_END, RECORD_SUBSCRIBE, RECORD_UNSUBSCRIBE, RECORD_WILL,
    RECORD_WILL_DONE, Event, Record, RecordTarget, record_data, record_targets,
)
from mqttc.broker.sqlite cimport (
    SQLITE_DONE, SQLITE_OK, SQLITE_OPEN_NOMUTEX, SQLITE_OPEN_READWRITE, SQLITE_PREPARE_PERSISTENT, SQLITE_ROW, sqlite3, sqlite3_bind_blob,
    sqlite3_bind_int64, sqlite3_bind_null, sqlite3_bind_zeroblob, sqlite3_busy_timeout, sqlite3_changes, sqlite3_close, sqlite3_column_blob,
    sqlite3_column_bytes, sqlite3_column_int64, sqlite3_errmsg, sqlite3_exec, sqlite3_finalize, sqlite3_open_v2, sqlite3_prepare_v3, sqlite3_reset,
    sqlite3_step, sqlite3_stmt,
)

cdef enum:
    CLEARED_SLOTS = 4096
    BUSY_MS = 5000                     # for a backup or an export that reads

cdef struct Cleared:                   # a topic whose retained message was removed
    uint64_t hash
    uint64_t version

cdef struct Left:                      # a delivery whose session or group has ended
    uint64_t message
    uint64_t target
    int state


cdef const char *delivery_text(int which) noexcept nogil:
    if which == SQL_MESSAGE:
        return "INSERT OR REPLACE INTO message VALUES (?, ?, ?, ?, ?, ?, ?)"
    if which == SQL_DELIVERY:
        return "INSERT OR REPLACE INTO delivery VALUES (?, ?, ?, ?, ?, ?, ?)"
    if which == SQL_DELIVERY_DONE:
        return "DELETE FROM delivery WHERE message = ? AND target = ?"
    if which == SQL_MESSAGE_DONE:
        return "DELETE FROM message WHERE id = ?"
    if which == SQL_SENT:
        return "UPDATE delivery SET state = 1, packet_id = ?3 WHERE message = ?1 AND target = ?2"
    if which == SQL_MOVED:
        return "UPDATE OR REPLACE delivery SET target = ?4, state = 1, packet_id = ?3, qos = ?5, flags = ?6, identifiers = ?7 WHERE message = ?1 AND target = ?2"
    if which == SQL_RETURNED:
        return "UPDATE OR REPLACE delivery SET target = ?3, state = 0, packet_id = 0, flags = 0, identifiers = NULL WHERE message = ?1 AND target = ?2"
    if which == SQL_RELEASED:
        return "UPDATE delivery SET state = 2 WHERE message = ? AND target = ? AND state < 2"
    if which == SQL_RESERVED:
        return "INSERT OR REPLACE INTO delivery VALUES (0, ?1, 2, 0, 2, ?2, NULL)"
    if which == SQL_INBOUND:
        return "INSERT OR REPLACE INTO inbound VALUES (?, ?)"
    return "DELETE FROM inbound WHERE session = ? AND packet_id = ?"


cdef const char *statement_text(int which) noexcept nogil:
    if which <= SQL_INBOUND_DONE:
        return delivery_text(which)
    if which == SQL_SESSION:
        return "INSERT OR REPLACE INTO session VALUES (?, ?, ?, 0)"
    if which == SQL_SESSION_END:
        return "DELETE FROM session WHERE id = ?"
    if which == SQL_SUBSCRIPTIONS_END:
        return "DELETE FROM subscription WHERE session = ?"
    if which == SQL_INBOUNDS_END:
        return "DELETE FROM inbound WHERE session = ?"
    if which == SQL_WILL_DONE:
        return "DELETE FROM will WHERE session = ?"
    if which == SQL_PRESENCE:
        return "UPDATE session SET offline_since_ms = ?2, expiry_s = ?3 WHERE id = ?1"
    if which == SQL_SUBSCRIBE:
        return "INSERT OR REPLACE INTO subscription VALUES (?, ?, ?, ?)"
    if which == SQL_UNSUBSCRIBE:
        return "DELETE FROM subscription WHERE session = ? AND filter = ?"
    if which == SQL_HANDED_OUT:
        return "UPDATE subscription SET options = options & 127 WHERE session = ? AND filter = ?"
    if which == SQL_WILL:
        return "INSERT OR REPLACE INTO will VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
    if which == SQL_GROUP:
        return "INSERT OR REPLACE INTO share_group VALUES (?, ?)"
    if which == SQL_GROUP_END:
        return "DELETE FROM share_group WHERE id = ?"
    if which == SQL_RETAIN:
        return "INSERT INTO retained VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT (topic) DO UPDATE SET version = ?2, properties = ?3, payload = ?4, qos = ?5, expires_ms = ?6 WHERE version < ?2"
    if which == SQL_RETAIN_CLEAR:
        return "DELETE FROM retained WHERE topic = ? AND version < ?"
    if which == SQL_READ:
        return "SELECT topic, properties, payload, qos, retain, expires_ms FROM message WHERE id = ?"
    if which == SQL_META:
        return "INSERT OR REPLACE INTO meta VALUES (CASE ?1 WHEN 0 THEN 'clock' WHEN 1 THEN 'next_id' ELSE 'clean' END, ?2)"
    if which == SQL_TARGET_ROWS:
        return "SELECT message, target, state FROM delivery WHERE target & ?2 = ?1"
    if which == SQL_EXPIRED:
        return "DELETE FROM retained WHERE expires_ms > 0 AND expires_ms <= ?"
    if which == SQL_LOG:
        return "INSERT OR REPLACE INTO log VALUES (?, ?)"
    if which == SQL_LOG_END:
        return "DELETE FROM log WHERE id <= ?"
    if which == SQL_BEGIN:
        return "BEGIN IMMEDIATE"
    if which == SQL_COMMIT:
        return "COMMIT"
    return "ROLLBACK"


# ---- the file

cdef bint rows_open(Rows *rows, const char *path, char *why) noexcept nogil:
    cdef int i
    cdef int result
    names_init(&rows.names)
    vec_init(&rows.left, sizeof(Left))
    result = sqlite3_open_v2(path, &rows.file, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX, NULL)
    if result == SQLITE_OK:
        result = sqlite3_exec(
            rows.file,
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA wal_autocheckpoint = 0; PRAGMA cache_size = -65536; PRAGMA secure_delete = OFF",
            NULL, NULL, NULL,
        )
    for i in range(SQL_COUNT):
        if result == SQLITE_OK:
            result = sqlite3_prepare_v3(rows.file, statement_text(i), -1, SQLITE_PREPARE_PERSISTENT, &rows.statements[i], NULL)
    if result != SQLITE_OK:
        snprintf(why, 200, "%s", sqlite3_errmsg(rows.file))
        return False
    sqlite3_busy_timeout(rows.file, BUSY_MS)
    return True


cdef void rows_free(Rows *rows) noexcept nogil:
    cdef int i
    for i in range(SQL_COUNT):
        sqlite3_finalize(rows.statements[i])
    sqlite3_close(rows.file)
    names_free(&rows.names)
    vec_free(&rows.left)
    mem_free(rows.cleared)


cdef bint rows_sync(Rows *rows, bint synced) noexcept nogil:
    cdef int result
    if rows.synced == synced:
        return True
    result = sqlite3_exec(rows.file, "PRAGMA synchronous = FULL" if synced else "PRAGMA synchronous = NORMAL", NULL, NULL, NULL)
    if result != SQLITE_OK:
        rows_fail(rows, result)
        return False
    rows.synced = synced
    return True


# ---- statements

cdef bint rows_run(Rows *rows, int which) noexcept nogil:
    cdef sqlite3_stmt *prepared = rows.statements[which]
    cdef int result = sqlite3_step(prepared)
    sqlite3_reset(prepared)
    if result == SQLITE_DONE or result == SQLITE_ROW:
        return True
    if rows.error == 0:
        rows_fail(rows, result)
    return False


cdef void rows_fail(Rows *rows, int error) noexcept nogil:
    """With SQLite's word for it, which the roll-back would replace."""
    rows.error = error
    snprintf(rows.why, sizeof(rows.why), "%s", sqlite3_errmsg(rows.file))


cdef inline void bind(sqlite3_stmt *prepared, int at, uint64_t value) noexcept nogil:
    sqlite3_bind_int64(prepared, at, <int64_t> value)


cdef void bind_span(sqlite3_stmt *prepared, int at, Span span) noexcept nogil:
    """Borrowed until the statement has run."""
    if span.n:
        sqlite3_bind_blob(prepared, at, span.p, <int> span.n, NULL)
    else:
        sqlite3_bind_zeroblob(prepared, at, 0)


cdef void run_2(Rows *rows, int which, uint64_t a, uint64_t b) noexcept nogil:
    bind(statement(rows, which), 1, a)
    bind(statement(rows, which), 2, b)
    rows_run(rows, which)


cdef void run_1(Rows *rows, int which, uint64_t a) noexcept nogil:
    bind(statement(rows, which), 1, a)
    rows_run(rows, which)


# ---- records become rows

cdef void message_done(Rows *rows, uint64_t message) noexcept nogil:
    """One delivery less; the last one takes the message along."""
    cdef uint64_t count = count_get(&rows.names, message)
    if count == 0 or count == <uint64_t> COUNT_MOST:       # unknown, or more than were counted: the next start looks after it
        return
    count_change(&rows.names, message, count - 1)
    if count == 1:
        run_1(rows, SQL_MESSAGE_DONE, message)


cdef void put_message(Rows *rows, uint64_t id, Msg *msg, int64_t expires_ms) noexcept nogil:
    cdef sqlite3_stmt *prepared = statement(rows, SQL_MESSAGE)
    bind(prepared, 1, id)
    bind_span(prepared, 2, msg_topic(msg))
    bind_span(prepared, 3, msg_properties(msg))
    bind_span(prepared, 4, msg_payload(msg))
    bind(prepared, 5, msg.qos)
    bind(prepared, 6, msg.retain)
    bind(prepared, 7, <uint64_t> expires_ms)
    rows_run(rows, SQL_MESSAGE)


cdef bint cleared_since(Rows *rows, Record *record) noexcept nogil:
    """Two workers may post a retained message and its removal the other way round: whether the removal, which leaves no row behind, came first."""
    cdef uint64_t hash = hash_bytes64(msg_topic(record.msg))
    cdef Cleared *cleared = &(<Cleared *> rows.cleared)[hash % CLEARED_SLOTS] if rows.cleared != NULL else NULL
    return cleared != NULL and cleared.hash == hash and cleared.version > record.version


cdef void cleared_note(Rows *rows, Record *record) noexcept nogil:
    """For as long as its slot is not needed; what may come late is of the same moment."""
    cdef uint64_t hash = hash_bytes64(msg_topic(record.msg))
    cdef Cleared *cleared
    if rows.cleared == NULL:
        rows.cleared = mem_alloc_zeroed(CLEARED_SLOTS, sizeof(Cleared))
        if rows.cleared == NULL:
            rows.error = -1
            return
    cleared = &(<Cleared *> rows.cleared)[hash % CLEARED_SLOTS]
    if cleared.hash != hash or cleared.version < record.version:
        cleared.hash = hash
        cleared.version = record.version


cdef void put_retained(Rows *rows, Record *record) noexcept nogil:
    cdef sqlite3_stmt *prepared
    cdef Msg *msg = record.msg
    if msg.payload_bytes == 0:                             # [MQTT-3.3.1-6]
        cleared_note(rows, record)
        prepared = statement(rows, SQL_RETAIN_CLEAR)
        bind_span(prepared, 1, msg_topic(msg))
        bind(prepared, 2, record.version)
        rows_run(rows, SQL_RETAIN_CLEAR)
        return
    if cleared_since(rows, record):
        return
    if record.time_ms > rows.last_expiry_ms:
        rows.last_expiry_ms = record.time_ms
    prepared = statement(rows, SQL_RETAIN)
    bind_span(prepared, 1, msg_topic(msg))
    bind(prepared, 2, record.version)
    bind_span(prepared, 3, msg_properties(msg))
    bind_span(prepared, 4, msg_payload(msg))
    bind(prepared, 5, msg.qos)
    bind(prepared, 6, <uint64_t> record.time_ms)
    rows_run(rows, SQL_RETAIN)


cdef void message_write(Rows *rows, Record *record) noexcept nogil:
    cdef RecordTarget *targets = record_targets(record)
    cdef RecordTarget *target
    cdef sqlite3_stmt *prepared
    cdef Known *known
    cdef uint32_t i
    cdef uint64_t live = 0
    for i in range(record.count):
        target = &targets[i]
        if target.cancelled:
            continue
        known = known_find(&rows.names, target.group, target.handle)
        if known == NULL:
            continue                                       # it ends with its connection, or has ended
        prepared = statement(rows, SQL_DELIVERY)
        bind(prepared, 1, record.message)
        bind(prepared, 2, known.id)
        bind(prepared, 3, target.qos)
        bind(prepared, 4, target.flags)
        bind(prepared, 5, target.state)
        bind(prepared, 6, target.packet_id)
        if target.identifiers != NULL:
            sqlite3_bind_blob(prepared, 7, target.identifiers + 1, <int> (target.identifiers[0] * sizeof(uint32_t)), NULL)
        else:
            sqlite3_bind_null(prepared, 7)
        rows_run(rows, SQL_DELIVERY)
        known_owes(&rows.names, known, 1)
        live += 1
    if live:
        put_message(rows, record.message, record.msg, record.time_ms)
        count_change(&rows.names, record.message, live)
    if record.packet_id:
        known = known_find(&rows.names, False, record.handle)
        if known != NULL:
            run_2(rows, SQL_INBOUND, known.id, record.packet_id)
    if record.version:
        put_retained(rows, record)


cdef bint row_run(Rows *rows, int which, uint64_t message, uint64_t target) noexcept nogil:
    """Whether there was such a delivery."""
    run_2(rows, which, message, target)
    return not rows_failed(rows) and sqlite3_changes(rows.file) != 0


cdef inline uint64_t lent_target(const Known *known, uint16_t packet_id) noexcept nogil:
    return known.id | <uint64_t> packet_id << LENT_SHIFT


cdef void write_done(Rows *rows, uint64_t message, bint group, uint64_t handle, uint16_t packet_id, bint released) noexcept nogil:
    cdef Known *known = known_find(&rows.names, group, handle)
    if known == NULL:
        return
    if not group and packet_id and rows.names.lent and row_run(rows, SQL_DELIVERY_DONE, message, lent_target(known, packet_id)):
        rows.names.lent -= 1
    elif not row_run(rows, SQL_DELIVERY_DONE, message, known.id):
        return
    known_owes(&rows.names, known, -1)
    if not released:
        rows.over += 1
        message_done(rows, message)


cdef void write_sent(Rows *rows, const Event *event) noexcept nogil:
    cdef Known *known = known_find(&rows.names, False, event.handle)
    cdef Known *group
    cdef sqlite3_stmt *prepared
    if event.group:
        group = known_find(&rows.names, True, event.group)
        if group == NULL:
            return
        if known == NULL:
            write_done(rows, event.message, True, event.group, 0, False)     # what a session holds ends with it [MQTT-4.8.2-5]
            return
        prepared = statement(rows, SQL_MOVED)
        bind(prepared, 3, event.packet_id)
        bind(prepared, 4, lent_target(known, event.packet_id))
        bind(prepared, 5, 1 if event.flags & EVENT_AT_QOS_1 else 2)
        bind(prepared, 6, DELIVERY_LENT if event.flags & EVENT_AT_QOS_1 else 0)
        if event.flags & EVENT_AT_QOS_1:
            sqlite3_bind_blob(prepared, 7, &group.id, sizeof(uint64_t), NULL)
        else:
            sqlite3_bind_null(prepared, 7)
        if row_run(rows, SQL_MOVED, event.message, group.id):
            rows.names.lent += 1
            known_owes(&rows.names, group, -1)
            known_owes(&rows.names, known, 1)
    elif known != NULL:
        prepared = statement(rows, SQL_SENT)
        bind(prepared, 1, event.message)
        bind(prepared, 2, known.id)
        bind(prepared, 3, event.packet_id)
        rows_run(rows, SQL_SENT)


cdef void write_returned(Rows *rows, const Event *event) noexcept nogil:
    cdef Known *known = known_find(&rows.names, False, event.handle)
    cdef Known *group = known_find(&rows.names, True, event.group)
    if group == NULL:
        write_done(rows, event.message, False, event.handle, event.packet_id, False)     # the group has ended meanwhile, and its messages with it
        return
    if known == NULL:
        return
    bind(statement(rows, SQL_RETURNED), 3, group.id)
    if row_run(rows, SQL_RETURNED, event.message, lent_target(known, event.packet_id)):
        rows.names.lent -= 1
        known_owes(&rows.names, known, -1)
        known_owes(&rows.names, group, 1)


cdef void event_write(Rows *rows, const Event *event) noexcept nogil:
    cdef Known *known
    if event.kind == EVENT_DONE:
        write_done(rows, event.message, event.flags & EVENT_OF_GROUP, event.handle, event.packet_id, event.flags & EVENT_WAS_RELEASED != 0)
        return
    if event.kind == EVENT_SENT:
        write_sent(rows, event)
        return
    if event.kind == EVENT_RETURNED:
        write_returned(rows, event)
        return
    known = known_find(&rows.names, False, event.handle)
    if known == NULL or event.kind == EVENT_NOTHING:
        return
    if event.kind == EVENT_RESERVED:
        run_2(rows, SQL_RESERVED, lent_target(known, event.packet_id), event.packet_id)
        rows.names.lent += 1
        known_owes(&rows.names, known, 1)
        return
    if event.kind == EVENT_INBOUND_DONE:
        run_2(rows, SQL_INBOUND_DONE, known.id, event.packet_id)
        return
    if (rows.names.lent and row_run(rows, SQL_RELEASED, event.message, lent_target(known, event.packet_id))) or (
        row_run(rows, SQL_RELEASED, event.message, known.id)
    ):
        message_done(rows, event.message)


cdef void left_end(Rows *rows, Known *known) noexcept nogil:
    """Deliveries that were on their way to what has ended meanwhile: nobody else knows of them. It takes a walk over all, and is rare."""
    cdef sqlite3_stmt *prepared = statement(rows, SQL_TARGET_ROWS)
    cdef Left *left
    cdef int result = SQLITE_DONE
    cdef uint32_t i
    if known.owed + known.owed_change <= 0 or rows_failed(rows):
        return
    rows.left.count = 0
    bind(prepared, 1, known.id)
    bind(prepared, 2, (<uint64_t> 1 << LENT_SHIFT) - 1)
    while not rows_failed(rows):
        result = sqlite3_step(prepared)
        if result != SQLITE_ROW:
            break
        left = <Left *> vec_push(&rows.left)
        if left == NULL:
            rows.error = -1
            break
        left.message = <uint64_t> sqlite3_column_int64(prepared, 0)
        left.target = <uint64_t> sqlite3_column_int64(prepared, 1)
        left.state = <int> sqlite3_column_int64(prepared, 2)
    if not rows_failed(rows) and result != SQLITE_DONE:
        rows_fail(rows, result)
    sqlite3_reset(prepared)
    for i in range(rows.left.count):
        left = <Left *> vec_at(&rows.left, i)
        if not row_run(rows, SQL_DELIVERY_DONE, left.message, left.target):
            break
        if left.target >> LENT_SHIFT:
            rows.names.lent -= 1
        if left.state != DELIVERY_RELEASED:
            message_done(rows, left.message)
    vec_free(&rows.left)


cdef void write_session(Rows *rows, Record *record) noexcept nogil:
    cdef Known *known = known_make(&rows.names, False, record.handle)
    cdef sqlite3_stmt *prepared = statement(rows, SQL_SESSION)
    if known == NULL:
        return
    known.online = True                 # until PRESENCE says otherwise
    bind(prepared, 1, known.id)
    bind_span(prepared, 2, span_make(record_data(record), record.count))
    bind(prepared, 3, record.expiry_s)
    rows_run(rows, SQL_SESSION)


cdef void write_session_end(Rows *rows, Record *record) noexcept nogil:
    cdef Known *known = known_forget(&rows.names, False, record.handle)
    if known == NULL:
        return
    run_1(rows, SQL_SESSION_END, known.id)
    run_1(rows, SQL_SUBSCRIPTIONS_END, known.id)
    run_1(rows, SQL_INBOUNDS_END, known.id)
    run_1(rows, SQL_WILL_DONE, known.id)
    left_end(rows, known)


cdef void write_filter(Rows *rows, Record *record, int which) noexcept nogil:
    cdef Known *known = known_find(&rows.names, False, record.handle)
    cdef sqlite3_stmt *prepared = statement(rows, which)
    if known == NULL:
        return
    bind(prepared, 1, known.id)
    bind_span(prepared, 2, span_make(record_data(record), record.count))
    if which == SQL_SUBSCRIBE:
        bind(prepared, 3, record.options)
        bind(prepared, 4, record.number)
    rows_run(rows, which)


cdef void write_will(Rows *rows, Record *record) noexcept nogil:
    cdef Known *known = known_find(&rows.names, False, record.handle)
    cdef sqlite3_stmt *prepared = statement(rows, SQL_WILL)
    cdef Msg *msg = record.msg
    if known == NULL:
        return
    bind(prepared, 1, known.id)
    bind_span(prepared, 2, msg_topic(msg))
    bind_span(prepared, 3, msg_properties(msg))
    bind_span(prepared, 4, msg_payload(msg))
    bind(prepared, 5, msg.qos)
    bind(prepared, 6, msg.retain)
    bind(prepared, 7, record.number)
    sqlite3_bind_int64(prepared, 8, <int64_t> record.expiry_s if record.has_expiry else -1)
    rows_run(rows, SQL_WILL)


cdef void write_group(Rows *rows, Record *record) noexcept nogil:
    cdef Known *known = known_make(&rows.names, True, record.handle)
    cdef sqlite3_stmt *prepared = statement(rows, SQL_GROUP)
    if known == NULL:
        return
    known_touch(&rows.names, known)
    known.joined_change += 1
    bind(prepared, 1, known.id)
    bind_span(prepared, 2, span_make(record_data(record), record.count))
    rows_run(rows, SQL_GROUP)


cdef void write_group_end(Rows *rows, Record *record) noexcept nogil:
    """Unless somebody has joined of whom the group's home does not know yet: then it goes on."""
    cdef Known *known = known_find(&rows.names, True, record.handle)
    if known == NULL:
        return
    if known.joined + known.joined_change > <int64_t> record.count:
        known_touch(&rows.names, known)
        known.joined_change -= <int64_t> record.count
        return
    known = known_forget(&rows.names, True, record.handle)
    if known == NULL:
        return
    run_1(rows, SQL_GROUP_END, known.id)
    left_end(rows, known)


cdef Msg *message_read(Rows *rows, MsgPool *pool, uint64_t id, uint16_t owner, int64_t *expires_wall_ms) noexcept nogil:
    cdef sqlite3_stmt *prepared = statement(rows, SQL_READ)
    cdef Msg *msg = NULL
    cdef int result
    bind(prepared, 1, id)
    result = sqlite3_step(prepared)
    if result == SQLITE_ROW:
        msg = message_of_row(pool, prepared, 0, owner, expires_wall_ms)
        if msg == NULL:
            rows.error = -1
    elif result != SQLITE_DONE:
        rows_fail(rows, result)
    sqlite3_reset(prepared)
    return msg


cdef Msg *message_of_row(MsgPool *pool, sqlite3_stmt *row, int at, uint16_t owner, int64_t *expires_wall_ms) noexcept nogil:
    cdef uint32_t topic_bytes = <uint32_t> sqlite3_column_bytes(row, at)
    cdef uint32_t property_bytes = <uint32_t> sqlite3_column_bytes(row, at + 1)
    cdef uint32_t payload_bytes = <uint32_t> sqlite3_column_bytes(row, at + 2)
    cdef Msg *msg = msg_alloc_for(pool, topic_bytes + property_bytes + payload_bytes, owner)
    cdef uint8_t *data
    if msg == NULL:
        return NULL
    data = msg_data(msg)
    if topic_bytes:
        memcpy(data, sqlite3_column_blob(row, at), topic_bytes)
    if property_bytes:
        memcpy(data + topic_bytes, sqlite3_column_blob(row, at + 1), property_bytes)
    if payload_bytes:
        memcpy(data + topic_bytes + property_bytes, sqlite3_column_blob(row, at + 2), payload_bytes)
    msg.topic_bytes = <uint16_t> topic_bytes
    msg.properties_offset = topic_bytes
    msg.properties_bytes = property_bytes
    msg.payload_offset = topic_bytes + property_bytes
    msg.payload_bytes = payload_bytes
    msg.qos = <uint8_t> sqlite3_column_int64(row, at + 3)
    msg.retain = <uint8_t> sqlite3_column_int64(row, at + 4)
    expires_wall_ms[0] = sqlite3_column_int64(row, at + 5)
    return msg


cdef void write_presence(Rows *rows, Record *record) noexcept nogil:
    cdef Known *known = known_find(&rows.names, False, record.handle)
    cdef sqlite3_stmt *prepared = statement(rows, SQL_PRESENCE)
    if known == NULL:
        return
    known.online = record.time_ms == 0
    bind(prepared, 1, known.id)
    bind(prepared, 2, <uint64_t> record.time_ms)
    bind(prepared, 3, record.expiry_s)
    rows_run(rows, SQL_PRESENCE)


cdef void record_write(Rows *rows, Record *record) noexcept nogil:
    cdef uint32_t kind = record.mail.kind
    cdef Known *known
    if kind == RECORD_SESSION:
        write_session(rows, record)
    elif kind == RECORD_SESSION_END:
        write_session_end(rows, record)
    elif kind == RECORD_PRESENCE:
        write_presence(rows, record)
    elif kind == RECORD_SUBSCRIBE:
        write_filter(rows, record, SQL_SUBSCRIBE)
    elif kind == RECORD_UNSUBSCRIBE:
        write_filter(rows, record, SQL_UNSUBSCRIBE)
    elif kind == RECORD_HANDED_OUT:
        write_filter(rows, record, SQL_HANDED_OUT)
    elif kind == RECORD_WILL:
        write_will(rows, record)
    elif kind == RECORD_WILL_DONE:
        known = known_find(&rows.names, False, record.handle)
        if known != NULL:
            run_1(rows, SQL_WILL_DONE, known.id)
    elif kind == RECORD_GROUP:
        write_group(rows, record)
    elif kind == RECORD_GROUP_END:
        write_group_end(rows, record)
