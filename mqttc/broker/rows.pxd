"""Rows: what a record changes in the tables of the file, within the transaction that the caller has begun.

What is known of the file (known.pxd) changes along with them. A failure is noted in `error` with SQLite's word for it, or is one of memory; then nothing of
the transaction may be committed.

Rows name sessions and shared groups by ids that live longer than handles. What a shared group has lent to a session for good stands under the session's id
with the packet id above it (LENT_SHIFT): the session may have the same message for a subscription of its own, or for another group. Of QoS 1 the row also says
which group it was (DELIVERY_LENT): what a session has left unacknowledged when it ends is that group's again. A packet id that a
session has given to a QoS 2 message that is not kept stands there in the same way, as a delivery of message 0 that was released: after a crash it is brought to
its end, before another message can have it.
"""

from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t

from mqttc.base.msg cimport Msg, MsgPool
from mqttc.base.vec cimport Vec
from mqttc.broker.known cimport Names
from mqttc.broker.record cimport Event, Record
from mqttc.broker.sqlite cimport sqlite3, sqlite3_stmt

cdef enum Sql:
    SQL_MESSAGE = 0
    SQL_DELIVERY
    SQL_DELIVERY_DONE
    SQL_MESSAGE_DONE
    SQL_SENT
    SQL_MOVED
    SQL_RETURNED
    SQL_RELEASED
    SQL_RESERVED
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
    SQL_LOG
    SQL_LOG_END
    SQL_BEGIN
    SQL_COMMIT
    SQL_ROLLBACK
    SQL_COUNT

cdef struct Rows:
    sqlite3 *file
    sqlite3_stmt *statements[34]
    Names names
    Vec left                           # Left: scratch
    void *cleared                      # topics whose retained message was removed; NULL: none was yet
    int64_t last_expiry_ms             # of retained messages
    uint64_t over                      # deliveries that have ended which had been written
    int error                          # of this transaction: SQLite's, -1 for memory, 0
    bint synced                        # commits reach the disk
    char why[200]                      # the first error

cdef inline bint rows_failed(const Rows *rows) noexcept nogil:
    return rows.error != 0 or rows.names.no_memory

cdef inline sqlite3_stmt *statement(Rows *rows, int which) noexcept nogil:
    return rows.statements[which]

# Opens the file. False: why says what is wrong (200 bytes); rows_free in both cases.
cdef bint rows_open(Rows *rows, const char *path, char *why) noexcept nogil
cdef void rows_free(Rows *rows) noexcept nogil
cdef bint rows_sync(Rows *rows, bint synced) noexcept nogil            # in WAL mode FULL syncs each commit; NORMAL keeps the file whole and leaves the time to the system
cdef bint rows_run(Rows *rows, int which) noexcept nogil               # a statement whose parameters are bound, to its end
cdef void run_1(Rows *rows, int which, uint64_t a) noexcept nogil
cdef void run_2(Rows *rows, int which, uint64_t a, uint64_t b) noexcept nogil
cdef void message_write(Rows *rows, Record *record) noexcept nogil     # RECORD_MESSAGE, without the targets that are over
cdef void event_write(Rows *rows, const Event *event) noexcept nogil
cdef void record_write(Rows *rows, Record *record) noexcept nogil      # any other but RECORD_EVENTS and RECORD_READ
# A message of the file as a block of that worker's; NULL: it is not there, or the transaction has failed.
cdef Msg *message_read(Rows *rows, MsgPool *pool, uint64_t id, uint16_t owner, int64_t *expires_wall_ms) noexcept nogil
