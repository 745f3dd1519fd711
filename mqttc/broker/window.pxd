"""Window: QoS 1 deliveries to sessions that are on line, which are over a moment after they began.

What is over before its batch is taken is not written at all. What is not yet over by then must be in the file before its publisher is answered, but seldom for
long: so it does not become rows, but part of one row of the table `log`, which holds all such messages of a batch, and that they were sent or are over in
later ones. A row of the log is deleted when it and all before it have nothing in them that is not over; what is not over when the log has grown too long (a
client that does not acknowledge) becomes rows then. An orderly end leaves no log, after a crash `replay` makes rows of it, in its order.

A row's `records` are, in little-endian order on all machines that the broker runs on, any number of LogItems, each behind the other: a message with LOG_MESSAGE, the
LogTargets behind it, each with its subscription identifiers (uint32), and then topic, properties and payload.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from mqttc.base.map cimport Map
from mqttc.base.msg cimport MsgPool
from mqttc.base.vec cimport Vec
from mqttc.broker.record cimport Record
from mqttc.broker.rows cimport Rows

cdef enum LogKind:
    LOG_MESSAGE = 1
    LOG_SENT = 2                       # target, packet_id
    LOG_DONE = 3                       # target

cdef struct LogItem:
    uint8_t kind
    uint8_t qos
    uint8_t retain
    uint8_t reserved
    uint16_t packet_id
    uint16_t topic_bytes
    uint64_t message
    uint64_t target                    # LOG_MESSAGE: how many LogTargets follow
    int64_t expires_ms
    uint32_t properties_bytes
    uint32_t payload_bytes

cdef struct LogTarget:
    uint64_t target
    uint16_t packet_id
    uint8_t flags
    uint8_t state
    uint32_t identifiers               # how many follow

cdef struct LogRow:                    # one of the file, or of the batch that is being written
    uint64_t id
    Record *first                      # its messages, for as long as the row is there
    Record *last
    uint64_t bytes                     # of the row, and of the records
    uint32_t live                      # deliveries in it
    uint32_t over                      # of these, committed
    uint32_t over_now                  # by this batch
    bint folded                        # by this batch: they became rows
    LogRow *next

cdef struct Window:
    Map open                           # RecordTarget *, by message and handle: of this batch, or in the log
    LogRow *first                      # of the file, the oldest first
    LogRow *last
    uint32_t count
    uint64_t bytes
    LogRow *fresh                      # this batch's; NULL: none yet
    uint64_t next_row
    uint64_t dropped                   # rows up to that one are deleted by this batch; 0: none
    Vec marks                          # RecordTarget *: over by this batch
    Vec notes                          # Note: sent or over by this batch
    Vec news                           # Record *: the messages of the fresh row
    uint8_t *buffer                    # its bytes
    uint64_t used
    uint64_t room
    uint64_t begun                     # deliveries of this batch and, at half their weight each time, of those before it
    uint64_t cancelled                 # in all: deliveries that were over before their batch was written
    uint64_t logged                    # in all: deliveries that went to the log
    uint64_t folded                    # in all: of these, the ones that became rows

cdef void window_init(Window *window) noexcept nogil
cdef void window_free(Window *window, MsgPool *pool) noexcept nogil
cdef void window_cancel(Window *window, Rows *rows, Record *pending) noexcept nogil        # what comes and goes within the batch is marked as over
# Within the transaction. A message or events, and at the end of all.
cdef void window_message(Window *window, Rows *rows, Record *record) noexcept nogil
cdef void window_events(Window *window, Rows *rows, Record *record) noexcept nogil
cdef bint window_has(Window *window, uint64_t message, uint64_t handle) noexcept nogil    # in the log, and not over
cdef bint window_holds(Window *window, uint64_t session) noexcept nogil                   # the log has something for it; looks at all
cdef void window_fold(Window *window, Rows *rows) noexcept nogil                          # all of the log becomes rows
cdef void window_finish(Window *window, Rows *rows) noexcept nogil
# The transaction is committed, or taken back. After a commit each record with log_row is the window's: see window_take.
cdef void window_settle(Window *window, MsgPool *pool) noexcept nogil
cdef void window_undo(Window *window) noexcept nogil
cdef void window_take(Window *window, Record *record) noexcept nogil
