from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from mqttc.base.types cimport ST_ERROR, ST_LIMIT, ST_OK
from mqttc.broker.record cimport DELIVERY_SENT
from mqttc.broker.sqlite cimport (
    SQLITE_DONE, SQLITE_OK, SQLITE_ROW, sqlite3, sqlite3_bind_blob, sqlite3_bind_int64, sqlite3_bind_null, sqlite3_bind_zeroblob, sqlite3_column_blob,
    sqlite3_column_bytes, sqlite3_exec, sqlite3_finalize, sqlite3_prepare_v3, sqlite3_reset, sqlite3_step, sqlite3_stmt,
)
from mqttc.broker.window cimport LOG_DONE, LOG_MESSAGE, LOG_SENT, LogItem, LogTarget

cdef enum:                             # statements
    RE_MESSAGE = 0
    RE_DELIVERY
    RE_SENT
    RE_DONE
    RE_READ
    RE_COUNT

cdef struct Reader:
    sqlite3_stmt *statements[5]
    const uint8_t *at
    uint64_t left


cdef const char *replay_text(int which) noexcept nogil:
    if which == RE_MESSAGE:
        return "INSERT OR REPLACE INTO message VALUES (?, ?, ?, ?, ?, ?, ?)"
    if which == RE_DELIVERY:
        return "INSERT OR REPLACE INTO delivery SELECT ?1, ?2, 1, ?3, ?4, ?5, ?6 FROM session WHERE id = ?2"
    if which == RE_SENT:
        return "UPDATE delivery SET state = 1, packet_id = ?3 WHERE message = ?1 AND target = ?2"
    if which == RE_DONE:
        return "DELETE FROM delivery WHERE message = ? AND target = ?"
    return "SELECT records FROM log ORDER BY id"


cdef const uint8_t *take(Reader *reader, uint64_t n) noexcept nogil:
    """NULL: the row ends before."""
    cdef const uint8_t *at = reader.at
    if n > reader.left:
        return NULL
    reader.at += n
    reader.left -= n
    return at


cdef void bind_bytes(sqlite3_stmt *prepared, int at, const uint8_t *bytes, uint32_t n) noexcept nogil:
    if n:
        sqlite3_bind_blob(prepared, at, bytes, <int> n, NULL)
    else:
        sqlite3_bind_zeroblob(prepared, at, 0)


cdef int replayed(sqlite3_stmt *prepared) noexcept nogil:
    cdef int result = sqlite3_step(prepared)
    sqlite3_reset(prepared)
    return ST_OK if result == SQLITE_DONE else ST_ERROR


cdef int replay_targets(Reader *reader, const LogItem *item) noexcept nogil:
    cdef sqlite3_stmt *prepared = reader.statements[RE_DELIVERY]
    cdef const uint8_t *bytes
    cdef LogTarget to
    cdef uint64_t i
    for i in range(item.target):
        bytes = take(reader, sizeof(LogTarget))
        if bytes == NULL:
            return ST_LIMIT
        memcpy(&to, bytes, sizeof(LogTarget))
        bytes = take(reader, <uint64_t> to.identifiers * sizeof(uint32_t))
        if bytes == NULL or to.state > DELIVERY_SENT or (to.state == DELIVERY_SENT and to.packet_id == 0):
            return ST_LIMIT
        sqlite3_bind_int64(prepared, 1, <int64_t> item.message)
        sqlite3_bind_int64(prepared, 2, <int64_t> to.target)
        sqlite3_bind_int64(prepared, 3, to.flags)
        sqlite3_bind_int64(prepared, 4, to.state)
        sqlite3_bind_int64(prepared, 5, to.packet_id)
        if to.identifiers:
            bind_bytes(prepared, 6, bytes, to.identifiers * <uint32_t> sizeof(uint32_t))
        else:
            sqlite3_bind_null(prepared, 6)
        if replayed(prepared) != ST_OK:
            return ST_ERROR
    return ST_OK


cdef int replay_message(Reader *reader, const LogItem *item) noexcept nogil:
    cdef sqlite3_stmt *prepared = reader.statements[RE_MESSAGE]
    cdef const uint8_t *topic
    cdef const uint8_t *properties
    cdef const uint8_t *payload
    cdef int status = replay_targets(reader, item)
    if status != ST_OK:
        return status
    topic = take(reader, item.topic_bytes)
    properties = take(reader, item.properties_bytes)
    payload = take(reader, item.payload_bytes)
    if topic == NULL or properties == NULL or payload == NULL or item.topic_bytes == 0:
        return ST_LIMIT
    sqlite3_bind_int64(prepared, 1, <int64_t> item.message)
    bind_bytes(prepared, 2, topic, item.topic_bytes)
    bind_bytes(prepared, 3, properties, item.properties_bytes)
    bind_bytes(prepared, 4, payload, item.payload_bytes)
    sqlite3_bind_int64(prepared, 5, item.qos)
    sqlite3_bind_int64(prepared, 6, item.retain)
    sqlite3_bind_int64(prepared, 7, item.expires_ms)
    return replayed(prepared)


cdef int replay_item(Reader *reader) noexcept nogil:
    cdef const uint8_t *bytes = take(reader, sizeof(LogItem))
    cdef sqlite3_stmt *prepared
    cdef LogItem item
    if bytes == NULL:
        return ST_LIMIT
    memcpy(&item, bytes, sizeof(LogItem))
    if item.kind == LOG_MESSAGE:
        return replay_message(reader, &item)
    if item.kind != LOG_SENT and item.kind != LOG_DONE:
        return ST_LIMIT
    prepared = reader.statements[RE_SENT if item.kind == LOG_SENT else RE_DONE]
    sqlite3_bind_int64(prepared, 1, <int64_t> item.message)
    sqlite3_bind_int64(prepared, 2, <int64_t> item.target)
    if item.kind == LOG_SENT:
        sqlite3_bind_int64(prepared, 3, item.packet_id)
    return replayed(prepared)


cdef int log_replay(sqlite3 *file) noexcept nogil:
    cdef Reader reader
    cdef sqlite3_stmt *row
    cdef int status = ST_OK
    cdef int result = SQLITE_DONE
    cdef int i
    memset(&reader, 0, sizeof(Reader))
    for i in range(RE_COUNT):
        if status == ST_OK and sqlite3_prepare_v3(file, replay_text(i), -1, 0, &reader.statements[i], NULL) != SQLITE_OK:
            status = ST_ERROR
    row = reader.statements[RE_READ]
    while status == ST_OK:
        result = sqlite3_step(row)
        if result != SQLITE_ROW:
            break
        reader.at = <const uint8_t *> sqlite3_column_blob(row, 0)
        reader.left = <uint64_t> sqlite3_column_bytes(row, 0)
        while status == ST_OK and reader.left:
            status = replay_item(&reader)
    if status == ST_OK and result != SQLITE_DONE:
        status = ST_ERROR
    for i in range(RE_COUNT):
        sqlite3_finalize(reader.statements[i])
    if status == ST_OK and sqlite3_exec(file, "DELETE FROM log", NULL, NULL, NULL) != SQLITE_OK:
        status = ST_ERROR
    return status
