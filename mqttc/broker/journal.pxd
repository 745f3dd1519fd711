"""Journal: one native thread that writes what must outlive the process to a SQLite file, in the order in which workers hand it over.

Workers collect records during a turn and post them, one chain a turn, before the turn's mail: what another worker does about a message comes behind the
record that holds it. The thread takes everything that waits, writes it in one transaction, and tells each worker up to which of its chains the file now
holds: acknowledgements and the like wait for that. While a commit is under way the next batch grows, so that a slow disk makes large batches.

What comes and goes within a batch is not written: a QoS 1 delivery that was acknowledged before its commit leaves no trace. A commit that fails (a full
disk) is tried again with all that has come since, until it holds; meanwhile `failing` is set and workers refuse what they cannot promise.

The file's tables are those of mqttc.store.schema, which makes them; rows name sessions and shared groups by ids that live longer than handles. What a
shared group has lent to a session for good stands under the session's id with the packet id above it (LENT_SHIFT): the session may have the same message
for a subscription of its own, or for another group.

Times in the file are the store's: the monotonic clock from where the wall clock stood at the start, or from where the store's stood, if that is ahead.
So a wall clock that is set while the broker runs makes nothing older or younger.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from mqttc.base.inbox cimport Inbox, Mail
from mqttc.base.msg cimport Msg

cdef enum Durability:                  # of a message: the strongest of those that apply
    DURABILITY_OFF = 0
    DURABILITY_WRITTEN = 1             # survives the process
    DURABILITY_SYNCED = 2              # survives the power

cdef enum RecordKind:                  # Mail.kind of a Record, and what its fields mean there
    RECORD_MESSAGE = 1                 # message, msg, targets (count); handle and packet_id: QoS 2 of that session; version: retained; time_ms: expiry
    RECORD_EVENTS = 2                  # count Events in data
    RECORD_SESSION = 6                 # handle, expiry_s, data: client id
    RECORD_SESSION_END = 7             # handle
    RECORD_PRESENCE = 8                # handle, expiry_s, time_ms: off line since then; 0: on line
    RECORD_SUBSCRIBE = 9               # handle, options, number: identifier, data: filter
    RECORD_UNSUBSCRIBE = 10            # handle, data: filter
    RECORD_HANDED_OUT = 11             # handle, data: filter: its retained messages were
    RECORD_WILL = 12                   # handle, msg, number: delay, expiry_s; has_expiry
    RECORD_WILL_DONE = 13              # handle
    RECORD_GROUP = 14                  # handle: group, data: $share/group/filter
    RECORD_GROUP_END = 15              # handle: group, count: the RECORD_GROUPs that its home knows of
    RECORD_READ = 16                   # handle, worker, count ids in data: answered by `bodies`
    RECORD_BLOCKS = 17                 # msg: a chain of dead blocks of the journal's making

cdef enum DeliveryState:
    DELIVERY_QUEUED = 0
    DELIVERY_SENT = 1
    DELIVERY_RELEASED = 2

cdef enum:
    HANDOUT_PENDING = 0x80             # in the options of a stored subscription
    LENT_SHIFT = 40                    # of the packet id in delivery.target; below it the id of a session or group

cdef struct RecordTarget:
    uint64_t handle                    # session, or group
    uint32_t *identifiers              # owned, their count before them; NULL: none
    uint16_t packet_id
    uint8_t qos
    uint8_t flags                      # 1: RETAIN
    uint8_t group
    uint8_t state                      # DeliveryState
    uint8_t cancelled                  # came and went within the batch

cdef enum EventKind:
    EVENT_DONE = 1                     # the delivery is over
    EVENT_SENT = 2                     # with packet_id; from group: the session has it for good
    EVENT_RELEASED = 3                 # PUBREC came
    EVENT_INBOUND_DONE = 4             # PUBREL came: handle, packet_id
    EVENT_NOTHING = 5                  # came and went within the batch

cdef enum EventFlag:
    EVENT_OF_GROUP = 1                 # handle is a group
    EVENT_WAS_RELEASED = 2             # the message was given up at PUBREC

cdef struct Event:                     # of one delivery
    uint64_t message
    uint64_t handle                    # session or group
    uint64_t group                     # SENT: of that group until now; 0: of the session
    uint16_t packet_id                 # 0: none was given yet
    uint8_t kind
    uint8_t flags

cdef enum:
    EVENTS_PER_RECORD = 128

cdef struct Record:                    # then data: targets, events, bytes or ids
    Mail mail
    uint64_t sequence                  # of the worker's chain, on its last record; else 0
    uint64_t message
    uint64_t handle
    uint64_t version
    int64_t time_ms                    # wall clock
    Msg *msg                           # one reference; NULL: none
    uint32_t count
    uint32_t bytes                     # counted in the backlog
    uint32_t expiry_s
    uint32_t number
    uint16_t worker
    uint16_t packet_id
    uint8_t synced                     # the commit must reach the disk
    uint8_t options
    uint8_t has_expiry
    uint8_t cancelled                  # nothing to do

cdef struct Body:                      # of a message that was read back
    uint64_t message
    Msg *msg                           # one reference; NULL: it is not there
    int64_t expires_wall_ms            # 0: never

cdef struct JournalHooks:              # [journal thread]
    void (*committed)(void *context, uint16_t worker, uint64_t sequence) noexcept nogil     # all chains of that worker up to that one
    void (*bodies)(void *context, uint16_t worker, uint64_t handle, Body *bodies, uint32_t count) noexcept nogil    # takes the array (mem_alloc) over
    void (*strays)(void *context, uint16_t worker, Msg *chain) noexcept nogil               # dead blocks of that worker's making
    void (*state)(void *context, bint failing, const char *why) noexcept nogil              # commits fail from now on, or hold again

cdef struct JournalStats:              # [any thread]
    uint64_t commits
    uint64_t syncs                     # of these, the ones that reached the disk
    uint64_t records
    uint64_t cancelled                 # deliveries that were over before their commit
    uint64_t failures
    uint64_t reads
    uint64_t gathers                   # rests before a batch
    uint64_t commit_ns                 # in all
    uint64_t last_commit_ns
    uint64_t longest_commit_ns
    uint64_t backlog_bytes             # gauge: handed over, not committed

cdef struct Journal:
    Inbox inbox                        # [any thread] posts records
    JournalStats stats
    uint64_t next_message              # atomic: ids of messages
    uint64_t next_version              # atomic: of retained messages
    uint64_t max_backlog_bytes
    int64_t store_time_ms              # added to the monotonic clock: the store's time
    const int64_t *mono_offset_ms      # atomic: how far tests have moved that clock; NULL: they cannot
    uint32_t failing                   # atomic: 1 while commits fail
    uint32_t workers
    uint32_t retry_ms
    const JournalHooks *hooks
    void *context
    void *private

# Opens the file, which mqttc.store has made and checked. NULL: why says what is wrong (200 bytes).
cdef Journal *journal_open(const char *path, uint32_t workers, uint64_t max_backlog_bytes, uint32_t retry_ms, char *why) noexcept nogil
cdef int journal_start(Journal *journal, const JournalHooks *hooks, void *context) noexcept nogil      # ST_OK, ST_ERROR (errno)
# Workers have ended: writes what waits, marks the file as closed in order, joins the thread. False: what waits could not be written.
cdef bint journal_stop(Journal *journal) noexcept nogil
cdef uint64_t journal_block_bytes(const Journal *journal) noexcept nogil          # bytes of blocks that its thread made, less of those that it freed [any thread]
cdef void journal_free(Journal *journal) noexcept nogil                                                # stopped, or never started
cdef Record *record_build(uint32_t kind, uint32_t data_bytes) noexcept nogil                           # zeroed; NULL: no memory
cdef void record_free(Journal *journal, Record *record) noexcept nogil                                # one that was not posted; gives its message up
cdef void journal_post(Journal *journal, Record *first, Record *last, uint64_t bytes) noexcept nogil   # [any thread]
cdef void *journal_file(Journal *journal) noexcept nogil                                               # sqlite3 *, for recovery before the start
# Recovery tells what names what: ids of the file for handles of this run, and how many deliveries hold a message. ST_OK, ST_NO_MEMORY.
cdef int journal_knows(Journal *journal, bint group, uint64_t handle, uint64_t id) noexcept nogil
cdef int journal_counts(Journal *journal, uint64_t message, uint32_t deliveries) noexcept nogil
cdef void journal_owes(Journal *journal, bint group, uint64_t handle, bint lent) noexcept nogil        # one delivery of it is in the file
cdef void journal_joined(Journal *journal, uint64_t group) noexcept nogil                              # a member, as by RECORD_GROUP
cdef void journal_continue(Journal *journal, uint64_t next_message, uint64_t next_target, uint64_t next_version, int64_t last_expiry_ms) noexcept nogil
cdef uint64_t journal_target(Journal *journal) noexcept nogil                                          # the next id for a session or group (recovery)

cdef inline uint8_t *record_data(Record *record) noexcept nogil:
    return <uint8_t *> (record + 1)

cdef inline Event *record_events(Record *record) noexcept nogil:
    return <Event *> (record + 1)

cdef inline RecordTarget *record_targets(Record *record) noexcept nogil:
    return <RecordTarget *> (record + 1)
