from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from mqttc.base.alloc cimport mem_alloc_zeroed, mem_free, mem_resize
from mqttc.base.map cimport Map, hash_pair, map_find, map_free, map_init, map_insert, map_next, map_remove
from mqttc.base.msg cimport Msg, MsgPool, msg_payload, msg_properties, msg_topic
from mqttc.base.types cimport ST_OK
from mqttc.base.vec cimport Vec, vec_at, vec_free, vec_init, vec_push
from mqttc.broker.known cimport Known, known_find
from mqttc.broker.record cimport (
    DELIVERY_SENT, EVENT_DONE, EVENT_NOTHING, EVENT_OF_GROUP, EVENT_SENT, RECORD_EVENTS, RECORD_MESSAGE, Event, Record, RecordTarget, record_events,
    record_release, record_targets,
)
from mqttc.broker.rows cimport SQL_LOG, SQL_LOG_END, Rows, event_write, message_write, rows_run, run_1, statement
from mqttc.broker.sqlite cimport sqlite3_bind_blob, sqlite3_bind_int64

cdef enum:
    MESSAGE_MOST = 4096                # bytes of a message that goes to the log: what is larger would be written twice for too little
    OWED_MOST = 256                    # rows of a receiver that is behind: from then on its messages become rows at once
    ROWS_MOST = 512                    # of the log
    BYTES_MOST = 4194304               # of the log, and of the records that are kept for it
    ROW_MOST = 1048576                 # bytes of one row

cdef struct Wanted:
    uint64_t message
    uint64_t handle
    uint8_t group

cdef struct Note:
    uint64_t row                       # that has the message
    uint64_t message
    uint64_t target
    uint16_t packet_id
    uint8_t kind


cdef inline Record *record_of(const RecordTarget *target) noexcept nogil:
    return <Record *> target.record


cdef inline LogRow *row_of(const RecordTarget *target) noexcept nogil:
    return <LogRow *> record_of(target).log_row


# ---- the map of what is under way

cdef inline uint32_t wanted_hash(const Wanted *wanted) noexcept nogil:
    return hash_pair(wanted.message, wanted.handle)


cdef bint wanted_equals(void *context, uint64_t value, const void *key) noexcept nogil:
    cdef const RecordTarget *target = <const RecordTarget *> value
    cdef const Wanted *wanted = <const Wanted *> key
    return record_of(target).message == wanted.message and target.handle == wanted.handle and target.group == wanted.group


cdef RecordTarget *open_find(Window *window, const Event *event) noexcept nogil:
    """The delivery that an event is about; NULL: it is not of this batch, nor in the log."""
    cdef Wanted wanted
    cdef uint64_t value = 0
    if (event.kind != EVENT_DONE and event.kind != EVENT_SENT) or event.group:
        return NULL
    wanted.message = event.message
    wanted.handle = event.handle
    wanted.group = event.flags & EVENT_OF_GROUP
    return <RecordTarget *> value if map_find(&window.open, wanted_hash(&wanted), &wanted, &value) else NULL


cdef bint open_add(Window *window, Record *record, RecordTarget *target) noexcept nogil:
    if not target.mapped:
        target.record = record
        target.mapped = map_insert(&window.open, hash_pair(record.message, target.handle), <uint64_t> target) == ST_OK
    return target.mapped


cdef void open_remove(Window *window, RecordTarget *target) noexcept nogil:
    cdef Wanted wanted
    if not target.mapped:
        return
    wanted.message = record_of(target).message
    wanted.handle = target.handle
    wanted.group = target.group
    map_remove(&window.open, wanted_hash(&wanted), &wanted, NULL)
    target.mapped = 0


cdef void open_remove_all(Window *window, Record *record) noexcept nogil:
    cdef uint32_t i
    for i in range(record.count):
        open_remove(window, &record_targets(record)[i])


cdef void window_init(Window *window) noexcept nogil:
    memset(window, 0, sizeof(Window))
    map_init(&window.open, wanted_equals, NULL)
    vec_init(&window.marks, sizeof(RecordTarget *))
    vec_init(&window.notes, sizeof(Note))
    vec_init(&window.news, sizeof(Record *))
    window.next_row = 1


cdef void row_free(Window *window, MsgPool *pool, LogRow *row) noexcept nogil:
    cdef Record *record = row.first
    cdef Record *next
    while record != NULL:
        next = <Record *> record.mail.next
        open_remove_all(window, record)
        record_release(pool, record)
        record = next
    mem_free(row)


cdef void window_free(Window *window, MsgPool *pool) noexcept nogil:
    cdef LogRow *row
    while window.first != NULL:
        row = window.first
        window.first = row.next
        row_free(window, pool, row)
    mem_free(window.fresh)
    mem_free(window.buffer)
    map_free(&window.open)
    vec_free(&window.marks)
    vec_free(&window.notes)
    vec_free(&window.news)


# ---- what comes and goes within a batch

cdef void events_cancel(Window *window, Rows *rows, Record *record) noexcept nogil:
    cdef Event *event
    cdef RecordTarget *target
    cdef uint32_t i
    for i in range(record.count):
        event = &record_events(record)[i]
        target = open_find(window, event)
        if target == NULL or row_of(target) != NULL:
            continue
        if event.kind == EVENT_SENT:
            target.state = DELIVERY_SENT
            target.packet_id = event.packet_id
        else:
            target.cancelled = True
            open_remove(window, target)
            rows.over += 1
            window.cancelled += 1
        event.kind = EVENT_NOTHING


cdef void window_cancel(Window *window, Rows *rows, Record *pending) noexcept nogil:
    """QoS 1 deliveries whose end lies in the same batch are not written; one that was only sent is written as that. Without memory all is written."""
    cdef Record *record
    cdef RecordTarget *target
    cdef uint32_t count = 0
    cdef uint32_t events = 0
    cdef uint32_t i
    record = pending
    while record != NULL:
        if record.mail.kind == RECORD_MESSAGE:
            count += record.count
        elif record.mail.kind == RECORD_EVENTS:
            events += record.count
        record = <Record *> record.mail.next
    window.begun += count
    if count == 0 or events == 0:
        return
    record = pending
    while record != NULL:
        if record.mail.kind == RECORD_MESSAGE:
            for i in range(record.count):
                target = &record_targets(record)[i]
                if target.qos == 1 and not target.cancelled:
                    open_add(window, record, target)
        elif record.mail.kind == RECORD_EVENTS:
            events_cancel(window, rows, record)
        record = <Record *> record.mail.next


# ---- a row of the log

cdef void put(Window *window, const void *bytes, size_t n) noexcept nogil:
    """There is room, see reserve."""
    if n:
        memcpy(window.buffer + window.used, bytes, n)
        window.used += n


cdef bint reserve(Window *window, uint64_t n) noexcept nogil:
    cdef uint64_t room = window.room if window.room else 16384
    cdef uint8_t *buffer
    while room < window.used + n:
        room *= 2
    if room == window.room:
        return True
    buffer = <uint8_t *> mem_resize(window.buffer, room, 1)
    if buffer == NULL:
        return False
    window.buffer = buffer
    window.room = room
    return True


cdef LogRow *fresh_row(Window *window) noexcept nogil:
    if window.fresh == NULL:
        window.fresh = <LogRow *> mem_alloc_zeroed(1, sizeof(LogRow))
        if window.fresh != NULL:
            window.fresh.id = window.next_row
    return window.fresh


cdef uint32_t soon_over(Rows *rows, Record *record, uint64_t *bytes) noexcept nogil:
    """How many deliveries of a message are to be written, if all of them will probably be over soon; else 0. bytes: room for it in the log."""
    cdef RecordTarget *target
    cdef Known *known
    cdef uint32_t live = 0
    cdef uint32_t i
    bytes[0] = sizeof(LogItem) + record.msg.topic_bytes + record.msg.properties_bytes + record.msg.payload_bytes
    if record.version or record.packet_id or bytes[0] > MESSAGE_MOST:
        return 0
    for i in range(record.count):
        target = &record_targets(record)[i]
        if target.cancelled:
            continue
        known = known_find(&rows.names, target.group, target.handle)
        if known == NULL:
            continue
        if target.qos != 1 or target.group or not known.online or known.owed + known.owed_change > OWED_MOST:
            return 0
        live += 1
        bytes[0] += sizeof(LogTarget)
        if target.identifiers != NULL:
            bytes[0] += target.identifiers[0] * sizeof(uint32_t)
    return live


cdef bint targets_open(Window *window, Rows *rows, Record *record) noexcept nogil:
    """False: no memory."""
    cdef RecordTarget *target
    cdef uint32_t i
    for i in range(record.count):
        target = &record_targets(record)[i]
        if not target.cancelled and known_find(&rows.names, False, target.handle) != NULL and not open_add(window, record, target):
            return False
    return True


cdef void log_message(Window *window, Rows *rows, Record *record, uint32_t live) noexcept nogil:
    """Behind the others of the fresh row, which has room for it."""
    cdef Msg *msg = record.msg
    cdef RecordTarget *target
    cdef Known *known
    cdef LogItem item
    cdef LogTarget to
    cdef uint32_t i
    memset(&item, 0, sizeof(LogItem))
    item.kind = LOG_MESSAGE
    item.qos = msg.qos
    item.retain = msg.retain
    item.message = record.message
    item.target = live
    item.expires_ms = record.time_ms
    item.topic_bytes = msg.topic_bytes
    item.properties_bytes = msg.properties_bytes
    item.payload_bytes = msg.payload_bytes
    put(window, &item, sizeof(LogItem))
    for i in range(record.count):
        target = &record_targets(record)[i]
        known = known_find(&rows.names, False, target.handle) if not target.cancelled else NULL
        if known == NULL:
            continue
        to.target = known.id
        to.packet_id = target.packet_id
        to.flags = target.flags
        to.state = target.state
        to.identifiers = target.identifiers[0] if target.identifiers != NULL else 0
        put(window, &to, sizeof(LogTarget))
        if to.identifiers:
            put(window, target.identifiers + 1, to.identifiers * sizeof(uint32_t))
    put(window, msg_topic(msg).p, msg.topic_bytes)
    put(window, msg_properties(msg).p, msg.properties_bytes)
    put(window, msg_payload(msg).p, msg.payload_bytes)
    record.log_row = window.fresh
    window.fresh.live += live
    window.fresh.bytes += record.bytes


cdef void window_message(Window *window, Rows *rows, Record *record) noexcept nogil:
    cdef uint64_t bytes = 0
    cdef uint32_t live = soon_over(rows, record, &bytes)
    cdef Record **place
    if live and window.used + bytes <= ROW_MOST and fresh_row(window) != NULL and reserve(window, bytes) and targets_open(window, rows, record):
        place = <Record **> vec_push(&window.news)
        if place != NULL:
            place[0] = record
            log_message(window, rows, record, live)
            return
    open_remove_all(window, record)
    message_write(rows, record)


# ---- what happens to deliveries that are in the log

cdef void note(Window *window, Rows *rows, RecordTarget *target, uint8_t kind) noexcept nogil:
    cdef Known *known = known_find(&rows.names, False, target.handle)
    cdef Note *noted
    if known == NULL:
        return                          # the session has ended: after a crash nobody asks for it
    noted = <Note *> vec_push(&window.notes)
    if noted == NULL:
        rows.names.no_memory = True
        return
    noted.row = row_of(target).id
    noted.message = record_of(target).message
    noted.target = known.id
    noted.packet_id = target.packet_id
    noted.kind = kind


cdef void log_event(Window *window, Rows *rows, RecordTarget *target, const Event *event) noexcept nogil:
    cdef RecordTarget **mark
    if event.kind == EVENT_SENT:
        target.state = DELIVERY_SENT    # also if the batch comes again
        target.packet_id = event.packet_id
        note(window, rows, target, LOG_SENT)
        return
    if target.cancelled:
        return
    mark = <RecordTarget **> vec_push(&window.marks)
    if mark == NULL:
        rows.names.no_memory = True
        return
    mark[0] = target
    target.cancelled = True
    row_of(target).over_now += 1
    rows.over += 1
    note(window, rows, target, LOG_DONE)


cdef void window_events(Window *window, Rows *rows, Record *record) noexcept nogil:
    cdef RecordTarget *target
    cdef Event *event
    cdef uint32_t i
    for i in range(record.count):
        event = &record_events(record)[i]
        if event.kind == EVENT_NOTHING:
            continue
        target = open_find(window, event)
        if target != NULL and row_of(target) != NULL and not row_of(target).folded:
            log_event(window, rows, target, event)
        else:
            event_write(rows, event)


cdef bint window_has(Window *window, uint64_t message, uint64_t handle) noexcept nogil:
    cdef Wanted wanted
    cdef uint64_t value = 0
    wanted.message = message
    wanted.handle = handle
    wanted.group = 0
    return map_find(&window.open, wanted_hash(&wanted), &wanted, &value) and row_of(<RecordTarget *> value) != NULL


cdef bint window_holds(Window *window, uint64_t session) noexcept nogil:
    cdef uint32_t cursor = 0
    cdef uint64_t value = 0
    cdef const RecordTarget *target
    while map_next(&window.open, &cursor, &value):
        target = <const RecordTarget *> value
        if target.handle == session and not target.group and not target.cancelled and row_of(target) != NULL:
            return True
    return False


cdef void row_fold(Window *window, Rows *rows, LogRow *row) noexcept nogil:
    cdef Record *record = row.first
    while record != NULL:
        message_write(rows, record)
        record = <Record *> record.mail.next
    row.folded = True


cdef void window_fold(Window *window, Rows *rows) noexcept nogil:
    cdef LogRow *row = window.first
    cdef Record *record
    cdef uint32_t i
    while row != NULL:
        if not row.folded:
            row_fold(window, rows, row)
        row = row.next
    for i in range(window.news.count):
        record = (<Record **> vec_at(&window.news, i))[0]
        message_write(rows, record)
        record.log_row = NULL
        open_remove_all(window, record)
    window.news.count = 0
    window.notes.count = 0
    window.used = 0
    mem_free(window.fresh)
    window.fresh = NULL


cdef void notes_put(Window *window, Rows *rows) noexcept nogil:
    """Those about rows that stay."""
    cdef LogItem item
    cdef Note *noted
    cdef uint32_t i
    if not reserve(window, <uint64_t> window.notes.count * sizeof(LogItem)):
        rows.names.no_memory = True
        return
    memset(&item, 0, sizeof(LogItem))
    for i in range(window.notes.count):
        noted = <Note *> vec_at(&window.notes, i)
        if noted.row <= window.dropped:
            continue
        item.kind = noted.kind
        item.message = noted.message
        item.target = noted.target
        item.packet_id = noted.packet_id
        put(window, &item, sizeof(LogItem))


cdef void window_finish(Window *window, Rows *rows) noexcept nogil:
    cdef LogRow *row = window.first
    cdef uint32_t count = window.count
    cdef uint64_t bytes = window.bytes
    window.dropped = 0
    while row != NULL:
        if not row.folded and row.live > row.over + row.over_now:
            if count < ROWS_MOST and bytes < BYTES_MOST:
                break
            row_fold(window, rows, row)
        window.dropped = row.id
        count -= 1
        bytes -= row.bytes
        row = row.next
    if window.dropped:
        run_1(rows, SQL_LOG_END, window.dropped)
    notes_put(window, rows)
    if window.used == 0:
        return
    if fresh_row(window) == NULL:
        rows.names.no_memory = True
        return
    sqlite3_bind_int64(statement(rows, SQL_LOG), 1, <int64_t> window.fresh.id)
    sqlite3_bind_blob(statement(rows, SQL_LOG), 2, window.buffer, <int> window.used, NULL)
    rows_run(rows, SQL_LOG)


# ---- the batch is committed, or taken back

cdef void batch_forget(Window *window) noexcept nogil:
    window.used = 0
    window.dropped = 0
    window.fresh = NULL
    window.marks.count = 0
    window.notes.count = 0
    window.news.count = 0


cdef void window_settle(Window *window, MsgPool *pool) noexcept nogil:
    cdef LogRow *row
    cdef uint32_t i
    for i in range(window.marks.count):
        open_remove(window, (<RecordTarget **> vec_at(&window.marks, i))[0])
    row = window.first
    while row != NULL:
        row.over += row.over_now
        row.over_now = 0
        row = row.next
    while window.first != NULL and window.first.id <= window.dropped:
        row = window.first
        window.first = row.next
        window.folded += row.live - row.over
        window.count -= 1
        window.bytes -= row.bytes
        row_free(window, pool, row)
    row = window.fresh
    if row != NULL and window.used:
        row.bytes += window.used
        row.over = row.over_now
        row.over_now = 0
        if window.first == NULL:
            window.first = row
        else:
            window.last.next = row
        window.last = row
        window.count += 1
        window.bytes += row.bytes
        window.logged += row.live
        window.next_row += 1
    else:
        mem_free(row)
    batch_forget(window)


cdef void window_undo(Window *window) noexcept nogil:
    cdef LogRow *row = window.first
    cdef uint32_t i
    for i in range(window.marks.count):
        (<RecordTarget **> vec_at(&window.marks, i))[0].cancelled = False
    for i in range(window.news.count):
        (<Record **> vec_at(&window.news, i))[0].log_row = NULL
    while row != NULL:
        row.over_now = 0
        row.folded = False
        row = row.next
    mem_free(window.fresh)
    batch_forget(window)


cdef void window_take(Window *window, Record *record) noexcept nogil:
    cdef LogRow *row = <LogRow *> record.log_row
    record.mail.next = NULL
    if row.first == NULL:
        row.first = record
    else:
        row.last.mail.next = &record.mail
    row.last = record
