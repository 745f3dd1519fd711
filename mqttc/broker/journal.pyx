"""Read it from `journal_main` on: take, cancel, write, commit, tell.

A batch that cannot be committed is written again later, so applying a record must not depend on having been applied before: what a record changes in
memory (which id a handle has, how many deliveries hold a message) is noted in `undo` and taken back with the transaction.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memcpy
from posix.time cimport CLOCK_MONOTONIC, CLOCK_REALTIME, clock_gettime, nanosleep, timespec

from mqttc.base.alloc cimport mem_alloc, mem_alloc_zeroed, mem_free
from mqttc.base.inbox cimport Mail, inbox_drain_wake, inbox_free, inbox_init, inbox_post, inbox_take, inbox_wake
from mqttc.base.map cimport Map, hash_bytes64, hash_pair, map_find, map_free, map_init, map_insert, map_next, map_remove, map_replace
from mqttc.base.msg cimport (
    Msg, MsgPool, msg_alloc_for, msg_come_home, msg_data, msg_drop, msg_payload, msg_properties, msg_take_strays, msg_topic, pool_free, pool_init,
)
from mqttc.base.types cimport (
    ST_ERROR, ST_NO_MEMORY, ST_OK, Span, atomic_add_u64_relaxed, atomic_load_i64_relaxed, atomic_load_u32_acquire, atomic_load_u64_relaxed, atomic_store_u32_release,
    atomic_store_u64_relaxed, counter_add, span_make,
)
from mqttc.base.vec cimport Vec, vec_at, vec_free, vec_init, vec_push
from mqttc.broker.sqlite cimport (
    SQLITE_CHECKPOINT_TRUNCATE, SQLITE_DONE, SQLITE_OK, SQLITE_OPEN_NOMUTEX, SQLITE_OPEN_READWRITE, SQLITE_PREPARE_PERSISTENT, SQLITE_ROW, sqlite3,
    sqlite3_bind_blob, sqlite3_bind_int64, sqlite3_bind_null, sqlite3_bind_zeroblob, sqlite3_busy_timeout, sqlite3_changes, sqlite3_close,
    sqlite3_column_blob, sqlite3_column_bytes, sqlite3_column_int64, sqlite3_errmsg, sqlite3_exec, sqlite3_finalize, sqlite3_open_v2, sqlite3_prepare_v3,
    sqlite3_reset, sqlite3_step, sqlite3_stmt, sqlite3_wal_checkpoint_v2,
)

cdef extern from "<poll.h>" nogil:
    cdef struct pollfd:
        int fd
        short events
        short revents
    const short POLLIN
    int poll(pollfd *fds, unsigned long n, int timeout_ms)

cdef extern from "<pthread.h>" nogil:
    ctypedef unsigned long pthread_t
    int pthread_create(pthread_t *thread, const void *attributes, void *(*start)(void *) noexcept nogil, void *argument)
    int pthread_join(pthread_t thread, void **result)

cdef extern from "<signal.h>" nogil:
    ctypedef struct sigset_t:
        pass
    int sigfillset(sigset_t *set)
    int pthread_sigmask(int how, const sigset_t *set, sigset_t *old)
    const int SIG_SETMASK

cdef enum:
    MAX_WORKERS = 255
    CLOCK_MS = 1000                    # how often the file is told the time at most
    BUSY_MS = 5000                     # for a backup or an export that reads
    COUNT_BITS = 20                    # of a message's deliveries, beside its id
    COUNT_MOST = 1048575
    CLEARED_SLOTS = 4096
    EXPIRED_MS = 60000                 # how often retained messages whose time is over are looked for
    GATHER_LEAST = 64                  # ends of deliveries (`over`) from which on it is worth waiting for more of them
    GATHER_MOST_US = 2000

cdef enum Sql:
    SQL_MESSAGE = 0
    SQL_DELIVERY
    SQL_DELIVERY_DONE
    SQL_MESSAGE_DONE
    SQL_SENT
    SQL_MOVED
    SQL_RELEASED
    SQL_INBOUND
    SQL_INBOUND_DONE
    SQL_SESSION
    SQL_SESSION_END
    SQL_SUBSCRIPTIONS_END
    SQL_INBOUNDS_END
    SQL_WILL_DONE
    SQL_PRESENCE
    SQL_SUBSCRIBE
    SQL_UNSUBSCRIBE
    SQL_HANDED_OUT
    SQL_WILL
    SQL_GROUP
    SQL_GROUP_END
    SQL_RETAIN
    SQL_RETAIN_CLEAR
    SQL_READ
    SQL_META
    SQL_TARGET_ROWS
    SQL_EXPIRED
    SQL_BEGIN
    SQL_COMMIT
    SQL_ROLLBACK
    SQL_COUNT

cdef const char *statement_text(int which) noexcept nogil:
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
        return "UPDATE OR REPLACE delivery SET target = ?4, state = 1, packet_id = ?3 WHERE message = ?1 AND target = ?2"
    if which == SQL_RELEASED:
        return "UPDATE delivery SET state = 2 WHERE message = ? AND target = ? AND state < 2"
    if which == SQL_INBOUND:
        return "INSERT OR REPLACE INTO inbound VALUES (?, ?)"
    if which == SQL_INBOUND_DONE:
        return "DELETE FROM inbound WHERE session = ? AND packet_id = ?"
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
    if which == SQL_BEGIN:
        return "BEGIN IMMEDIATE"
    if which == SQL_COMMIT:
        return "COMMIT"
    return "ROLLBACK"

cdef struct Known:                     # a session or group that rows name
    uint64_t handle
    uint64_t id
    int64_t owed                       # its deliveries in the file, committed
    int64_t owed_change                # by this batch
    int64_t joined                     # RECORD_GROUPs of a group, committed
    int64_t joined_change
    bint touched
    Known *touched_next

cdef struct Cleared:                   # a topic whose retained message was removed
    uint64_t hash
    uint64_t version

cdef struct Left:                      # a delivery whose session or group has ended
    uint64_t message
    uint64_t target
    int state

cdef enum UndoKind:
    UNDO_COUNT = 0                     # key: message, before: packed, or 0
    UNDO_KNOWN = 1                     # forget what was added
    UNDO_FORGOTTEN = 2                 # know again

cdef struct Undo:
    uint8_t kind
    uint8_t group
    uint64_t key
    uint64_t before
    Known *known

cdef struct Private:
    sqlite3 *file
    sqlite3_stmt *statements[30]
    MsgPool pool                       # of the journal thread, whose blocks are nobody's: its number is the one behind the last worker
    Map sessions                       # handle -> Known *
    Map groups                         # group id -> Known *
    Map counts                         # message << 20 | deliveries
    Vec undo                           # Undo
    Vec left                           # Left: scratch
    Known *touched                     # by this batch
    uint64_t lent                      # deliveries under LENT_SHIFT
    uint64_t lent_committed
    Cleared *cleared                   # CLEARED_SLOTS of them, by hash; NULL: none was cleared yet
    int64_t last_expiry_ms             # of retained messages
    int64_t expired_ms                 # when they were looked for last
    char why[200]                      # the first error of this batch
    Record *pending                    # taken, not committed
    Record *pending_last
    uint64_t pending_bytes
    uint64_t next_target
    int64_t told_clock_ms
    uint64_t sequences[256]            # of this batch, per worker
    bint synced_pragma                 # what the connection is set to
    bint started
    bint made_inbox
    uint32_t stopping                  # atomic
    int error                          # of this batch
    uint64_t begun                     # deliveries of this batch and, at half their weight each time, of those before it
    uint64_t over                      # the same of their ends: of its own, and of such that had been written in vain
    bint reads                         # this batch has messages read back, which somebody waits for
    uint64_t gather_ns                 # rest before the next batch, see gather_judge
    pthread_t thread


cdef inline Private *private_of(Journal *journal) noexcept nogil:
    return <Private *> journal.private


cdef uint64_t clock_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <uint64_t> now.tv_sec * 1000000000 + <uint64_t> now.tv_nsec


cdef int64_t store_ms(const Journal *journal) noexcept nogil:
    """The store's time."""
    cdef int64_t offset = atomic_load_i64_relaxed(journal.mono_offset_ms) if journal.mono_offset_ms != NULL else 0
    return <int64_t> (clock_ns() // 1000000) + offset + journal.store_time_ms


cdef int64_t wall_ms() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_REALTIME, &now)
    return <int64_t> now.tv_sec * 1000 + now.tv_nsec // 1000000


# ---------------------------------------------------------------------------------------------- records

cdef Record *record_build(uint32_t kind, uint32_t data_bytes) noexcept nogil:
    cdef Record *record = <Record *> mem_alloc_zeroed(1, sizeof(Record) + <size_t> data_bytes)
    if record == NULL:
        return NULL
    record.mail.kind = kind
    record.bytes = <uint32_t> sizeof(Record) + data_bytes
    return record


cdef void record_release(MsgPool *pool, Record *record) noexcept nogil:
    cdef RecordTarget *targets
    cdef uint32_t i
    if record.mail.kind == RECORD_MESSAGE:
        targets = record_targets(record)
        for i in range(record.count):
            mem_free(targets[i].identifiers)
    if record.msg != NULL:
        msg_drop(pool, record.msg)
    mem_free(record)


cdef void record_free(Journal *journal, Record *record) noexcept nogil:
    record_release(&private_of(journal).pool, record)


cdef void journal_post(Journal *journal, Record *first, Record *last, uint64_t bytes) noexcept nogil:
    atomic_add_u64_relaxed(&journal.stats.backlog_bytes, bytes)
    if inbox_post(&journal.inbox, &first.mail, &last.mail):
        inbox_wake(&journal.inbox)


# ---------------------------------------------------------------------------------------------- what is known

cdef uint32_t handle_hash(uint64_t handle) noexcept nogil:
    return hash_pair(handle, 0)


cdef bint known_equals(void *context, uint64_t value, const void *key) noexcept nogil:
    return (<Known *> value).handle == (<const uint64_t *> key)[0]


cdef bint count_equals(void *context, uint64_t value, const void *key) noexcept nogil:
    return value >> COUNT_BITS == (<const uint64_t *> key)[0]


cdef inline Map *known_map(Private *private, bint group) noexcept nogil:
    return &private.groups if group else &private.sessions


cdef Known *known_find(Private *private, bint group, uint64_t handle) noexcept nogil:
    cdef uint64_t value = 0
    return <Known *> value if map_find(known_map(private, group), handle_hash(handle), &handle, &value) else NULL


cdef Known *known_add(Private *private, bint group, uint64_t handle, uint64_t id) noexcept nogil:
    cdef Known *known = <Known *> mem_alloc_zeroed(1, sizeof(Known))
    if known == NULL:
        return NULL
    known.handle = handle
    known.id = id
    if map_insert(known_map(private, group), handle_hash(handle), <uint64_t> known) != ST_OK:
        mem_free(known)
        return NULL
    return known


cdef int journal_knows(Journal *journal, bint group, uint64_t handle, uint64_t id) noexcept nogil:
    return ST_OK if known_add(private_of(journal), group, handle, id) != NULL else ST_NO_MEMORY


cdef void known_touch(Private *private, Known *known) noexcept nogil:
    if not known.touched:
        known.touched = True
        known.touched_next = private.touched
        private.touched = known


cdef void known_owes(Private *private, Known *known, int n) noexcept nogil:
    known_touch(private, known)
    known.owed_change += n


cdef void touched_settle(Private *private, bint committed) noexcept nogil:
    """The batch is committed, or taken back: before anything that is known is freed."""
    cdef Known *known = private.touched
    while known != NULL:
        if committed:
            known.owed += known.owed_change
            known.joined += known.joined_change
        known.owed_change = 0
        known.joined_change = 0
        known.touched = False
        known = known.touched_next
    private.touched = NULL
    if committed:
        private.lent_committed = private.lent
    else:
        private.lent = private.lent_committed


cdef void journal_owes(Journal *journal, bint group, uint64_t handle, bint lent) noexcept nogil:
    cdef Private *private = private_of(journal)
    cdef Known *known = known_find(private, group, handle)
    if known != NULL:
        known.owed += 1
    if lent:
        private.lent += 1
        private.lent_committed += 1


cdef void journal_joined(Journal *journal, uint64_t group) noexcept nogil:
    cdef Known *known = known_find(private_of(journal), True, group)
    if known != NULL:
        known.joined += 1


cdef uint64_t count_get(Private *private, uint64_t message) noexcept nogil:
    cdef uint64_t value = 0
    return value & COUNT_MOST if map_find(&private.counts, handle_hash(message), &message, &value) else 0


cdef int count_set(Private *private, uint64_t message, uint64_t count) noexcept nogil:
    cdef uint64_t value = message << COUNT_BITS | (count if count < <uint64_t> COUNT_MOST else <uint64_t> COUNT_MOST)
    if count == 0:
        map_remove(&private.counts, handle_hash(message), &message, NULL)
        return ST_OK
    if map_replace(&private.counts, handle_hash(message), &message, value):
        return ST_OK
    return map_insert(&private.counts, handle_hash(message), value)


cdef int journal_counts(Journal *journal, uint64_t message, uint32_t deliveries) noexcept nogil:
    return count_set(private_of(journal), message, deliveries)


cdef Undo *undo_note(Private *private, uint8_t kind) noexcept nogil:
    cdef Undo *undo = <Undo *> vec_push(&private.undo)
    if undo == NULL:
        private.error = -1
        return NULL
    undo.kind = kind
    return undo


cdef void count_change(Private *private, uint64_t message, uint64_t count) noexcept nogil:
    cdef Undo *undo = undo_note(private, UNDO_COUNT)
    if undo == NULL:
        return
    undo.key = message
    undo.before = count_get(private, message)
    if count_set(private, message, count) != ST_OK:
        private.undo.count -= 1
        private.error = -1


cdef void undo_all(Private *private) noexcept nogil:
    cdef Undo *undo
    touched_settle(private, False)
    while private.undo.count:
        private.undo.count -= 1
        undo = <Undo *> vec_at(&private.undo, private.undo.count)
        if undo.kind == UNDO_COUNT:
            count_set(private, undo.key, undo.before)      # no growth: it stood there before, or goes
        elif undo.kind == UNDO_KNOWN:
            map_remove(known_map(private, undo.group), handle_hash(undo.key), &undo.key, NULL)
            mem_free(undo.known)
        else:
            map_insert(known_map(private, undo.group), handle_hash(undo.key), <uint64_t> undo.known)


cdef void undo_forget(Private *private) noexcept nogil:
    """The batch is committed: what was taken out is gone for good."""
    cdef Undo *undo
    cdef uint32_t i
    touched_settle(private, True)
    for i in range(private.undo.count):
        undo = <Undo *> vec_at(&private.undo, i)
        if undo.kind == UNDO_FORGOTTEN:
            mem_free(undo.known)
    private.undo.count = 0


# ---------------------------------------------------------------------------------------------- statements

cdef inline sqlite3_stmt *statement(Private *private, int which) noexcept nogil:
    return private.statements[which]


cdef bint run(Private *private, int which) noexcept nogil:
    """Steps a statement whose parameters are bound, to its end. False: this batch has failed."""
    cdef sqlite3_stmt *prepared = private.statements[which]
    cdef int result = sqlite3_step(prepared)
    sqlite3_reset(prepared)
    if result == SQLITE_DONE or result == SQLITE_ROW:
        return True
    if private.error == 0:
        batch_fails(private, result)
    return False


cdef void batch_fails(Private *private, int error) noexcept nogil:
    """With SQLite's word for it, which the roll-back would replace."""
    private.error = error
    snprintf(private.why, sizeof(private.why), "%s", sqlite3_errmsg(private.file))


cdef inline void bind(sqlite3_stmt *prepared, int at, uint64_t value) noexcept nogil:
    sqlite3_bind_int64(prepared, at, <int64_t> value)


cdef void bind_span(sqlite3_stmt *prepared, int at, Span span) noexcept nogil:
    """Borrowed until the statement has run."""
    if span.n:
        sqlite3_bind_blob(prepared, at, span.p, <int> span.n, NULL)
    else:
        sqlite3_bind_zeroblob(prepared, at, 0)


cdef void run_2(Private *private, int which, uint64_t a, uint64_t b) noexcept nogil:
    bind(statement(private, which), 1, a)
    bind(statement(private, which), 2, b)
    run(private, which)


cdef void run_1(Private *private, int which, uint64_t a) noexcept nogil:
    bind(statement(private, which), 1, a)
    run(private, which)


# ---------------------------------------------------------------------------------------------- records become rows

cdef void message_done(Private *private, uint64_t message) noexcept nogil:
    """One delivery less; the last one takes the message along."""
    cdef uint64_t count = count_get(private, message)
    if count == 0 or count == <uint64_t> COUNT_MOST:       # unknown, or more than were counted: the next start looks after it
        return
    count_change(private, message, count - 1)
    if count == 1:
        run_1(private, SQL_MESSAGE_DONE, message)


cdef void put_message(Private *private, uint64_t id, Msg *msg, int64_t expires_ms) noexcept nogil:
    cdef sqlite3_stmt *prepared = statement(private, SQL_MESSAGE)
    bind(prepared, 1, id)
    bind_span(prepared, 2, msg_topic(msg))
    bind_span(prepared, 3, msg_properties(msg))
    bind_span(prepared, 4, msg_payload(msg))
    bind(prepared, 5, msg.qos)
    bind(prepared, 6, msg.retain)
    bind(prepared, 7, <uint64_t> expires_ms)
    run(private, SQL_MESSAGE)


cdef bint cleared_since(Private *private, Record *record) noexcept nogil:
    """Two workers may post a retained message and its removal the other way round: whether the removal, which leaves no row behind, came first."""
    cdef uint64_t hash = hash_bytes64(msg_topic(record.msg))
    cdef Cleared *cleared = &private.cleared[hash % CLEARED_SLOTS] if private.cleared != NULL else NULL
    return cleared != NULL and cleared.hash == hash and cleared.version > record.version


cdef void cleared_note(Private *private, Record *record) noexcept nogil:
    """For as long as its slot is not needed; what may come late is of the same moment."""
    cdef uint64_t hash = hash_bytes64(msg_topic(record.msg))
    cdef Cleared *cleared
    if private.cleared == NULL:
        private.cleared = <Cleared *> mem_alloc_zeroed(CLEARED_SLOTS, sizeof(Cleared))
        if private.cleared == NULL:
            private.error = -1
            return
    cleared = &private.cleared[hash % CLEARED_SLOTS]
    if cleared.hash != hash or cleared.version < record.version:
        cleared.hash = hash
        cleared.version = record.version


cdef void put_retained(Private *private, Record *record) noexcept nogil:
    cdef sqlite3_stmt *prepared
    cdef Msg *msg = record.msg
    if msg.payload_bytes == 0:                             # [MQTT-3.3.1-6]
        cleared_note(private, record)
        prepared = statement(private, SQL_RETAIN_CLEAR)
        bind_span(prepared, 1, msg_topic(msg))
        bind(prepared, 2, record.version)
        run(private, SQL_RETAIN_CLEAR)
        return
    if cleared_since(private, record):
        return
    if record.time_ms > private.last_expiry_ms:
        private.last_expiry_ms = record.time_ms
    prepared = statement(private, SQL_RETAIN)
    bind_span(prepared, 1, msg_topic(msg))
    bind(prepared, 2, record.version)
    bind_span(prepared, 3, msg_properties(msg))
    bind_span(prepared, 4, msg_payload(msg))
    bind(prepared, 5, msg.qos)
    bind(prepared, 6, <uint64_t> record.time_ms)
    run(private, SQL_RETAIN)


cdef void write_message(Private *private, Record *record) noexcept nogil:
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
        known = known_find(private, target.group, target.handle)
        if known == NULL:
            continue                                       # it ends with its connection, or has ended
        prepared = statement(private, SQL_DELIVERY)
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
        run(private, SQL_DELIVERY)
        known_owes(private, known, 1)
        live += 1
    if live:
        put_message(private, record.message, record.msg, record.time_ms)
        count_change(private, record.message, live)
    if record.packet_id:
        known = known_find(private, False, record.handle)
        if known != NULL:
            run_2(private, SQL_INBOUND, known.id, record.packet_id)
    if record.version:
        put_retained(private, record)


cdef bint row_run(Private *private, int which, uint64_t message, uint64_t target) noexcept nogil:
    """Whether there was such a delivery."""
    run_2(private, which, message, target)
    return private.error == 0 and sqlite3_changes(private.file) != 0


cdef inline uint64_t lent_target(const Known *known, uint16_t packet_id) noexcept nogil:
    return known.id | <uint64_t> packet_id << LENT_SHIFT


cdef void write_done(Private *private, uint64_t message, bint group, uint64_t handle, uint16_t packet_id, bint released) noexcept nogil:
    cdef Known *known = known_find(private, group, handle)
    if known == NULL:
        return
    if not group and packet_id and private.lent and row_run(private, SQL_DELIVERY_DONE, message, lent_target(known, packet_id)):
        private.lent -= 1
    elif not row_run(private, SQL_DELIVERY_DONE, message, known.id):
        return
    known_owes(private, known, -1)
    if not released:
        private.over += 1
        message_done(private, message)


cdef void write_sent(Private *private, const Event *event) noexcept nogil:
    cdef Known *known = known_find(private, False, event.handle)
    cdef Known *group
    cdef sqlite3_stmt *prepared
    if event.group:
        group = known_find(private, True, event.group)
        if group == NULL:
            return
        if known == NULL:
            write_done(private, event.message, True, event.group, 0, False)     # what a session holds ends with it [MQTT-4.8.2-5]
            return
        prepared = statement(private, SQL_MOVED)
        bind(prepared, 3, event.packet_id)
        bind(prepared, 4, lent_target(known, event.packet_id))
        if row_run(private, SQL_MOVED, event.message, group.id):
            private.lent += 1
            known_owes(private, group, -1)
            known_owes(private, known, 1)
    elif known != NULL:
        prepared = statement(private, SQL_SENT)
        bind(prepared, 1, event.message)
        bind(prepared, 2, known.id)
        bind(prepared, 3, event.packet_id)
        run(private, SQL_SENT)


cdef void write_events(Private *private, Record *record) noexcept nogil:
    cdef Event *event
    cdef Known *known
    cdef uint32_t i
    for i in range(record.count):
        event = &record_events(record)[i]
        if event.kind == EVENT_DONE:
            write_done(
                private, event.message, event.flags & EVENT_OF_GROUP, event.handle, event.packet_id, event.flags & EVENT_WAS_RELEASED != 0,
            )
        elif event.kind == EVENT_SENT:
            write_sent(private, event)
        elif event.kind != EVENT_NOTHING:
            known = known_find(private, False, event.handle)
            if known == NULL:
                continue
            if event.kind == EVENT_INBOUND_DONE:
                run_2(private, SQL_INBOUND_DONE, known.id, event.packet_id)
                continue
            if (private.lent and row_run(private, SQL_RELEASED, event.message, lent_target(known, event.packet_id))) or (
                row_run(private, SQL_RELEASED, event.message, known.id)
            ):
                message_done(private, event.message)


cdef Known *make_known(Private *private, bint group, uint64_t handle) noexcept nogil:
    """A new session or group; NULL: no memory, and the batch has failed."""
    cdef Known *known = known_find(private, group, handle)
    cdef Undo *undo
    if known != NULL:
        return known
    undo = undo_note(private, UNDO_KNOWN)
    if undo == NULL:
        return NULL
    known = known_add(private, group, handle, private.next_target)
    if known == NULL:
        private.undo.count -= 1
        private.error = -1
        return NULL
    private.next_target += 1
    undo.group = group
    undo.key = handle
    undo.known = known
    return known


cdef Known *forget_known(Private *private, bint group, uint64_t handle) noexcept nogil:
    """What it was; it lives until the batch is committed."""
    cdef Known *known = known_find(private, group, handle)
    cdef Undo *undo
    if known == NULL:
        return NULL
    undo = undo_note(private, UNDO_FORGOTTEN)
    if undo == NULL:
        return NULL
    undo.group = group
    undo.key = handle
    undo.known = known
    map_remove(known_map(private, group), handle_hash(handle), &handle, NULL)
    return known


cdef void left_end(Private *private, Known *known) noexcept nogil:
    """Deliveries that were on their way to what has ended meanwhile: nobody else knows of them. It takes a walk over all, and is rare."""
    cdef sqlite3_stmt *prepared = statement(private, SQL_TARGET_ROWS)
    cdef Left *left
    cdef int result = SQLITE_DONE
    cdef uint32_t i
    if known.owed + known.owed_change <= 0 or private.error != 0:
        return
    private.left.count = 0
    bind(prepared, 1, known.id)
    bind(prepared, 2, (<uint64_t> 1 << LENT_SHIFT) - 1)
    while private.error == 0:
        result = sqlite3_step(prepared)
        if result != SQLITE_ROW:
            break
        left = <Left *> vec_push(&private.left)
        if left == NULL:
            private.error = -1
            break
        left.message = <uint64_t> sqlite3_column_int64(prepared, 0)
        left.target = <uint64_t> sqlite3_column_int64(prepared, 1)
        left.state = <int> sqlite3_column_int64(prepared, 2)
    if private.error == 0 and result != SQLITE_DONE:
        batch_fails(private, result)
    sqlite3_reset(prepared)
    for i in range(private.left.count):
        left = <Left *> vec_at(&private.left, i)
        if not row_run(private, SQL_DELIVERY_DONE, left.message, left.target):
            break
        if left.target >> LENT_SHIFT:
            private.lent -= 1
        if left.state != DELIVERY_RELEASED:
            message_done(private, left.message)
    vec_free(&private.left)


cdef void write_session(Private *private, Record *record) noexcept nogil:
    cdef Known *known = make_known(private, False, record.handle)
    cdef sqlite3_stmt *prepared = statement(private, SQL_SESSION)
    if known == NULL:
        return
    bind(prepared, 1, known.id)
    bind_span(prepared, 2, span_make(record_data(record), record.count))
    bind(prepared, 3, record.expiry_s)
    run(private, SQL_SESSION)


cdef void write_session_end(Private *private, Record *record) noexcept nogil:
    cdef Known *known = forget_known(private, False, record.handle)
    if known == NULL:
        return
    run_1(private, SQL_SESSION_END, known.id)
    run_1(private, SQL_SUBSCRIPTIONS_END, known.id)
    run_1(private, SQL_INBOUNDS_END, known.id)
    run_1(private, SQL_WILL_DONE, known.id)
    left_end(private, known)


cdef void write_filter(Private *private, Record *record, int which) noexcept nogil:
    cdef Known *known = known_find(private, False, record.handle)
    cdef sqlite3_stmt *prepared = statement(private, which)
    if known == NULL:
        return
    bind(prepared, 1, known.id)
    bind_span(prepared, 2, span_make(record_data(record), record.count))
    if which == SQL_SUBSCRIBE:
        bind(prepared, 3, record.options)
        bind(prepared, 4, record.number)
    run(private, which)


cdef void write_will(Private *private, Record *record) noexcept nogil:
    cdef Known *known = known_find(private, False, record.handle)
    cdef sqlite3_stmt *prepared = statement(private, SQL_WILL)
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
    run(private, SQL_WILL)


cdef void write_group(Private *private, Record *record) noexcept nogil:
    cdef Known *known = make_known(private, True, record.handle)
    cdef sqlite3_stmt *prepared = statement(private, SQL_GROUP)
    if known == NULL:
        return
    known_touch(private, known)
    known.joined_change += 1
    bind(prepared, 1, known.id)
    bind_span(prepared, 2, span_make(record_data(record), record.count))
    run(private, SQL_GROUP)


cdef void write_group_end(Private *private, Record *record) noexcept nogil:
    """Unless somebody has joined of whom the group's home does not know yet: then it goes on."""
    cdef Known *known = known_find(private, True, record.handle)
    if known == NULL:
        return
    if known.joined + known.joined_change > <int64_t> record.count:
        known_touch(private, known)
        known.joined_change -= <int64_t> record.count
        return
    known = forget_known(private, True, record.handle)
    if known == NULL:
        return
    run_1(private, SQL_GROUP_END, known.id)
    left_end(private, known)


cdef Msg *message_read(Private *private, uint64_t id, uint16_t owner, int64_t *expires_wall_ms) noexcept nogil:
    """A message of the file as a block of that worker's; NULL: it is not there, or the batch has failed."""
    cdef sqlite3_stmt *prepared = statement(private, SQL_READ)
    cdef Msg *msg = NULL
    cdef int result
    bind(prepared, 1, id)
    result = sqlite3_step(prepared)
    if result == SQLITE_ROW:
        msg = message_of_row(&private.pool, prepared, 0, owner, expires_wall_ms)
        if msg == NULL:
            private.error = -1
    elif result != SQLITE_DONE:
        batch_fails(private, result)
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


cdef void read_bodies(Journal *journal, Record *record) noexcept nogil:
    cdef Private *private = private_of(journal)
    cdef uint64_t *ids = <uint64_t *> record_data(record)
    cdef Body *bodies = <Body *> mem_alloc_zeroed(record.count, sizeof(Body))
    cdef uint32_t i
    private.reads = True
    if bodies == NULL:
        private.error = -1
        return
    for i in range(record.count):
        bodies[i].message = ids[i]
        bodies[i].msg = message_read(private, ids[i], record.worker, &bodies[i].expires_wall_ms)
        if private.error != 0:
            break
    if private.error != 0:                                 # asked again with the batch
        for i in range(record.count):
            if bodies[i].msg != NULL:
                msg_drop(&private.pool, bodies[i].msg)
        mem_free(bodies)
        return
    counter_add(&journal.stats.reads, 1)
    journal.hooks.bodies(journal.context, record.worker, record.handle, bodies, record.count)
    record.cancelled = True                                # answered, also when the batch comes again


cdef void record_write(Journal *journal, Record *record) noexcept nogil:
    cdef Private *private = private_of(journal)
    cdef uint32_t kind = record.mail.kind
    cdef Known *known
    cdef sqlite3_stmt *prepared
    if record.sequence:
        private.sequences[record.worker] = record.sequence
    if record.cancelled:
        return
    if kind == RECORD_MESSAGE:
        write_message(private, record)
    elif kind == RECORD_EVENTS:
        write_events(private, record)
    elif kind == RECORD_SESSION:
        write_session(private, record)
    elif kind == RECORD_SESSION_END:
        write_session_end(private, record)
    elif kind == RECORD_PRESENCE:
        known = known_find(private, False, record.handle)
        if known != NULL:
            prepared = statement(private, SQL_PRESENCE)
            bind(prepared, 1, known.id)
            bind(prepared, 2, <uint64_t> record.time_ms)
            bind(prepared, 3, record.expiry_s)
            run(private, SQL_PRESENCE)
    elif kind == RECORD_SUBSCRIBE:
        write_filter(private, record, SQL_SUBSCRIBE)
    elif kind == RECORD_UNSUBSCRIBE:
        write_filter(private, record, SQL_UNSUBSCRIBE)
    elif kind == RECORD_HANDED_OUT:
        write_filter(private, record, SQL_HANDED_OUT)
    elif kind == RECORD_WILL:
        write_will(private, record)
    elif kind == RECORD_WILL_DONE:
        known = known_find(private, False, record.handle)
        if known != NULL:
            run_1(private, SQL_WILL_DONE, known.id)
    elif kind == RECORD_GROUP:
        write_group(private, record)
    elif kind == RECORD_GROUP_END:
        write_group_end(private, record)
    elif kind == RECORD_READ:
        read_bodies(journal, record)


# ---------------------------------------------------------------------------------------------- what comes and goes within a batch

cdef struct Wanted:
    uint64_t message
    uint64_t handle


cdef struct Fresh:                     # a QoS 1 delivery of this batch
    Wanted key
    RecordTarget *target


cdef bint fresh_equals(void *context, uint64_t value, const void *key) noexcept nogil:
    cdef const Fresh *fresh = <const Fresh *> value
    cdef const Wanted *wanted = <const Wanted *> key
    return fresh.key.message == wanted.message and fresh.key.handle == wanted.handle


cdef void events_cancel(Journal *journal, Map *fresh, Record *record) noexcept nogil:
    cdef Event *event
    cdef RecordTarget *target
    cdef Wanted wanted
    cdef uint64_t value = 0
    cdef uint32_t i
    for i in range(record.count):
        event = &record_events(record)[i]
        if (event.kind != EVENT_DONE and event.kind != EVENT_SENT) or event.group:
            continue
        wanted.message = event.message
        wanted.handle = event.handle
        if not map_find(fresh, hash_pair(wanted.message, wanted.handle), &wanted, &value):
            continue
        target = (<Fresh *> value).target
        if target.group != event.flags & EVENT_OF_GROUP:
            continue
        if event.kind == EVENT_SENT:
            target.state = DELIVERY_SENT
            target.packet_id = event.packet_id
        else:
            target.cancelled = True
            private_of(journal).over += 1
            counter_add(&journal.stats.cancelled, 1)
        event.kind = EVENT_NOTHING


cdef void batch_cancel(Journal *journal) noexcept nogil:
    """QoS 1 deliveries whose end lies in the same batch are not written; one that was only sent is written as that. Without memory all is written."""
    cdef Private *private = private_of(journal)
    cdef Record *record
    cdef RecordTarget *target
    cdef Fresh *room
    cdef Map fresh
    cdef uint32_t count = 0
    cdef uint32_t events = 0
    cdef uint32_t i
    record = private.pending
    while record != NULL:
        if record.mail.kind == RECORD_MESSAGE:
            count += record.count
        elif record.mail.kind == RECORD_EVENTS:
            events += record.count
        record = <Record *> record.mail.next
    private.begun += count
    if count == 0 or events == 0:
        return
    room = <Fresh *> mem_alloc(count * sizeof(Fresh))
    if room == NULL:
        return
    map_init(&fresh, fresh_equals, NULL)
    count = 0
    record = private.pending
    while record != NULL:
        if record.mail.kind == RECORD_MESSAGE:
            for i in range(record.count):
                target = &record_targets(record)[i]
                if target.qos == 1 and not target.cancelled:
                    room[count].key.message = record.message
                    room[count].key.handle = target.handle
                    room[count].target = target
                    if map_insert(&fresh, hash_pair(record.message, target.handle), <uint64_t> &room[count]) == ST_OK:
                        count += 1
        elif record.mail.kind == RECORD_EVENTS and count:
            events_cancel(journal, &fresh, record)
        record = <Record *> record.mail.next
    map_free(&fresh)
    mem_free(room)


# ---------------------------------------------------------------------------------------------- a batch

cdef void batch_take(Journal *journal) noexcept nogil:
    """Everything that waits goes behind what could not be committed yet."""
    cdef Private *private = private_of(journal)
    cdef Mail *chain
    cdef Record *record
    inbox_drain_wake(&journal.inbox)
    chain = inbox_take(&journal.inbox)
    if chain == NULL:
        return
    if private.pending == NULL:
        private.pending = <Record *> chain
    else:
        private.pending_last.mail.next = chain
    record = <Record *> chain
    while True:
        private.pending_bytes += record.bytes
        counter_add(&journal.stats.records, 1)
        if record.mail.kind == RECORD_BLOCKS:
            msg_come_home(&private.pool, record.msg)
            record.msg = NULL
            record.cancelled = True
        private.pending_last = record
        if record.mail.next == NULL:
            return
        record = <Record *> record.mail.next


cdef bint pragma_set(Private *private, bint synced) noexcept nogil:
    """In WAL mode FULL syncs each commit; NORMAL keeps the file whole and leaves the time to the system."""
    cdef int result
    if private.synced_pragma == synced:
        return True
    result = sqlite3_exec(private.file, "PRAGMA synchronous = FULL" if synced else "PRAGMA synchronous = NORMAL", NULL, NULL, NULL)
    if result != SQLITE_OK:
        batch_fails(private, result)
        return False
    private.synced_pragma = synced
    return True


cdef bint batch_commit(Journal *journal) noexcept nogil:
    """Writes what is pending in one transaction; false: nothing of it is in the file."""
    cdef Private *private = private_of(journal)
    cdef Record *record = private.pending
    cdef bint synced = False
    cdef int64_t now = store_ms(journal)
    while record != NULL:
        synced |= record.synced
        record = <Record *> record.mail.next
    private.error = 0
    if not pragma_set(private, synced) or not run(private, SQL_BEGIN):
        return False
    record = private.pending
    while record != NULL and private.error == 0:
        record_write(journal, record)
        record = <Record *> record.mail.next
    if private.error == 0 and now >= private.told_clock_ms + CLOCK_MS:
        run_2(private, SQL_META, 0, now)
        run_2(private, SQL_META, 1, atomic_load_u64_relaxed(&journal.next_message))
        run_2(private, SQL_META, 2, 0)
        if private.expired_ms < private.last_expiry_ms and now >= private.expired_ms + EXPIRED_MS:
            run_1(private, SQL_EXPIRED, now)
    if private.error == 0 and run(private, SQL_COMMIT):
        if now >= private.told_clock_ms + CLOCK_MS:
            private.told_clock_ms = now
            if private.expired_ms < private.last_expiry_ms and now >= private.expired_ms + EXPIRED_MS:
                private.expired_ms = now
        if synced:
            counter_add(&journal.stats.syncs, 1)
        return True
    run(private, SQL_ROLLBACK)
    return False


cdef void batch_tell(Journal *journal) noexcept nogil:
    """The batch holds: workers hear of it, and get their blocks back."""
    cdef Private *private = private_of(journal)
    cdef Record *record = private.pending
    cdef Record *next
    cdef uint32_t i
    cdef uint32_t count = 0
    undo_forget(private)
    private.pending = NULL
    private.pending_last = NULL
    atomic_add_u64_relaxed(&journal.stats.backlog_bytes, <uint64_t> 0 - private.pending_bytes)
    private.pending_bytes = 0
    for i in range(journal.workers):
        if private.sequences[i]:
            journal.hooks.committed(journal.context, <uint16_t> i, private.sequences[i])
            private.sequences[i] = 0
    while record != NULL:
        next = <Record *> record.mail.next
        record_release(&private.pool, record)
        record = next
    for i in range(journal.workers):
        if private.pool.stray_count[i]:
            journal.hooks.strays(journal.context, <uint16_t> i, msg_take_strays(&private.pool, <uint16_t> i, &count))


cdef void failing_set(Journal *journal, bint failing) noexcept nogil:
    cdef Private *private = private_of(journal)
    if atomic_load_u32_acquire(&journal.failing) == <uint32_t> failing:
        return
    atomic_store_u32_release(&journal.failing, failing)
    if not failing:
        journal.hooks.state(journal.context, failing, "")
    elif private.error < 0:
        journal.hooks.state(journal.context, failing, "no memory")
    else:
        journal.hooks.state(journal.context, failing, private.why)


cdef void gather_judge(Private *private, uint64_t spent_ns) noexcept nogil:
    """Whether the next batch is to grow before it is taken: where receivers are on line, a delivery is over a moment after it began, and one whose end
    comes into its own batch is never written. Never longer than a commit takes, so that no acknowledgement waits for more than three."""
    private.gather_ns = 0
    if private.reads or private.over < GATHER_LEAST or private.over > 2 * private.begun or private.begun > 2 * private.over:
        return
    private.gather_ns = spent_ns if spent_ns < GATHER_MOST_US * 1000 else GATHER_MOST_US * 1000


cdef void gather(Journal *journal) noexcept nogil:
    cdef Private *private = private_of(journal)
    cdef timespec rest
    if private.gather_ns == 0:
        return
    rest.tv_sec = 0
    rest.tv_nsec = <long> private.gather_ns
    private.gather_ns = 0               # once: what follows it is judged again
    counter_add(&journal.stats.gathers, 1)
    nanosleep(&rest, NULL)


cdef bint batch_try(Journal *journal) noexcept nogil:
    cdef Private *private = private_of(journal)
    cdef uint64_t begun = clock_ns()
    cdef uint64_t spent
    private.begun //= 2
    private.over //= 2
    private.reads = False
    batch_cancel(journal)
    if not batch_commit(journal):
        undo_all(private)
        counter_add(&journal.stats.failures, 1)
        failing_set(journal, True)
        return False
    spent = clock_ns() - begun
    counter_add(&journal.stats.commits, 1)
    counter_add(&journal.stats.commit_ns, spent)
    atomic_store_u64_relaxed(&journal.stats.last_commit_ns, spent)
    if spent > journal.stats.longest_commit_ns:
        atomic_store_u64_relaxed(&journal.stats.longest_commit_ns, spent)
    failing_set(journal, False)
    gather_judge(private, spent)
    batch_tell(journal)
    return True


cdef void *journal_main(void *argument) noexcept nogil:
    cdef Journal *journal = <Journal *> argument
    cdef Private *private = private_of(journal)
    cdef pollfd waiting
    cdef uint32_t stopping
    waiting.fd = journal.inbox.wake_read_fd
    waiting.events = POLLIN
    while True:
        gather(journal)
        stopping = atomic_load_u32_acquire(&private.stopping)      # before taking: nothing is posted after it was set
        batch_take(journal)
        if private.pending != NULL and batch_try(journal):
            continue
        if stopping:
            return NULL
        waiting.revents = 0
        if private.pending != NULL:
            poll(NULL, 0, <int> journal.retry_ms)                  # what comes meanwhile goes with it
        else:
            poll(&waiting, 1, -1)


# ---------------------------------------------------------------------------------------------- open, start, stop

cdef bint statements_prepare(Private *private, char *why) noexcept nogil:
    cdef int i
    for i in range(SQL_COUNT):
        if sqlite3_prepare_v3(private.file, statement_text(i), -1, SQLITE_PREPARE_PERSISTENT, &private.statements[i], NULL) != SQLITE_OK:
            snprintf(why, 200, "%s", sqlite3_errmsg(private.file))
            return False
    return True


cdef Journal *journal_open(const char *path, uint32_t workers, uint64_t max_backlog_bytes, uint32_t retry_ms, char *why) noexcept nogil:
    cdef Journal *journal = <Journal *> mem_alloc_zeroed(1, sizeof(Journal))
    cdef Private *private = <Private *> mem_alloc_zeroed(1, sizeof(Private))
    snprintf(why, 200, "no memory")
    if journal == NULL or private == NULL or pool_init(&private.pool, <uint16_t> workers, workers + 1) != ST_OK:
        mem_free(journal)
        mem_free(private)
        return NULL
    journal.private = private
    journal.workers = workers
    journal.max_backlog_bytes = max_backlog_bytes
    journal.retry_ms = retry_ms
    journal.store_time_ms = wall_ms() - <int64_t> (clock_ns() // 1000000)
    journal.next_message = 1
    journal.next_version = 1
    private.next_target = 1
    map_init(&private.sessions, known_equals, NULL)
    map_init(&private.groups, known_equals, NULL)
    map_init(&private.counts, count_equals, NULL)
    vec_init(&private.undo, sizeof(Undo))
    vec_init(&private.left, sizeof(Left))
    private.made_inbox = inbox_init(&journal.inbox) == ST_OK
    if not private.made_inbox:
        snprintf(why, 200, "no descriptor")
    elif sqlite3_open_v2(path, &private.file, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX, NULL) != SQLITE_OK:
        snprintf(why, 200, "%s", sqlite3_errmsg(private.file))
    elif sqlite3_exec(private.file, "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA wal_autocheckpoint = 2000; PRAGMA cache_size = -65536", NULL, NULL, NULL) != SQLITE_OK:
        snprintf(why, 200, "%s", sqlite3_errmsg(private.file))
    elif statements_prepare(private, why):
        sqlite3_busy_timeout(private.file, BUSY_MS)
        return journal
    journal_free(journal)
    return NULL


cdef void *journal_file(Journal *journal) noexcept nogil:
    return private_of(journal).file


cdef void journal_continue(Journal *journal, uint64_t next_message, uint64_t next_target, uint64_t next_version, int64_t last_expiry_ms) noexcept nogil:
    journal.next_message = next_message
    journal.next_version = next_version
    private_of(journal).last_expiry_ms = last_expiry_ms
    private_of(journal).next_target = next_target


cdef uint64_t journal_target(Journal *journal) noexcept nogil:
    cdef Private *private = private_of(journal)
    private.next_target += 1
    return private.next_target - 1


cdef int journal_start(Journal *journal, const JournalHooks *hooks, void *context) noexcept nogil:
    cdef sigset_t all_signals, old
    cdef int result
    journal.hooks = hooks
    journal.context = context
    sigfillset(&all_signals)
    pthread_sigmask(SIG_SETMASK, &all_signals, &old)
    result = pthread_create(&private_of(journal).thread, NULL, journal_main, journal)
    pthread_sigmask(SIG_SETMASK, &old, NULL)
    if result != 0:
        return ST_ERROR
    private_of(journal).started = True
    return ST_OK


cdef bint journal_stop(Journal *journal) noexcept nogil:
    cdef Private *private = private_of(journal)
    cdef int frames = 0
    cdef int done = 0
    if not private.started:
        return True
    atomic_store_u32_release(&private.stopping, 1)
    inbox_wake(&journal.inbox)
    pthread_join(private.thread, NULL)
    private.started = False
    if private.pending != NULL:
        return False
    private.error = 0
    pragma_set(private, True)
    if run(private, SQL_BEGIN):
        run_2(private, SQL_META, 0, store_ms(journal))
        run_2(private, SQL_META, 1, atomic_load_u64_relaxed(&journal.next_message))
        run_2(private, SQL_META, 2, 1)
        run(private, SQL_COMMIT if private.error == 0 else SQL_ROLLBACK)
    sqlite3_wal_checkpoint_v2(private.file, NULL, SQLITE_CHECKPOINT_TRUNCATE, &frames, &done)
    return private.error == 0


cdef void known_free(Map *map) noexcept nogil:
    cdef uint32_t cursor = 0
    cdef uint64_t value = 0
    while map_next(map, &cursor, &value):
        mem_free(<Known *> value)
    map_free(map)


cdef uint64_t journal_block_bytes(const Journal *journal) noexcept nogil:
    cdef const MsgPool *pool = &private_of(<Journal *> journal).pool
    return atomic_load_u64_relaxed(&pool.bytes_made) - atomic_load_u64_relaxed(&pool.bytes_freed)


cdef void journal_free(Journal *journal) noexcept nogil:
    cdef Private *private = private_of(journal)
    cdef Record *record
    cdef Record *next
    cdef Mail *chain
    cdef int i
    if private.made_inbox:
        chain = inbox_take(&journal.inbox)
        record = private.pending
        while record != NULL:
            next = <Record *> record.mail.next
            record_release(&private.pool, record)
            record = next
        record = <Record *> chain
        while record != NULL:
            next = <Record *> record.mail.next
            record_release(&private.pool, record)
            record = next
        inbox_free(&journal.inbox)
    for i in range(SQL_COUNT):
        sqlite3_finalize(private.statements[i])
    sqlite3_close(private.file)
    undo_all(private)
    known_free(&private.sessions)
    known_free(&private.groups)
    map_free(&private.counts)
    vec_free(&private.undo)
    vec_free(&private.left)
    mem_free(private.cleared)
    pool_free(&private.pool)
    mem_free(private)
    mem_free(journal)
