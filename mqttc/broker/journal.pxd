"""Journal: one native thread that writes what must outlive the process to a SQLite file, in the order in which workers hand it over.

Workers collect records during a turn and post them, one chain a turn, before the turn's mail: what another worker does about a message comes behind the
record that holds it. The thread takes everything that waits, writes it in one transaction, and tells each worker up to which of its chains the file now
holds: acknowledgements and the like wait for that. While a commit is under way the next batch grows, so that a slow disk makes large batches.

What comes and goes within a batch is not written: a QoS 1 delivery that was acknowledged before its commit leaves no trace; what is over soon after goes to
a log (window.pxd). A commit that fails (a full disk) is tried again with all that has come since, until it holds; meanwhile `failing` is set and workers
refuse what they cannot promise.

The file's tables are those of mqttc.store.schema, which makes them; rows.pxd writes them, known.pxd knows their ids.

Times in the file are the store's: the monotonic clock from where the wall clock stood at the start, or from where the store's stood, if that is ahead.
So a wall clock that is set while the broker runs makes nothing older or younger.
"""

from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t

from mqttc.base.inbox cimport Inbox
from mqttc.base.msg cimport Msg
from mqttc.broker.record cimport Body, Record

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
    uint64_t logged                    # deliveries that were written to the log
    uint64_t folded                    # of these, the ones that became rows
    uint64_t failures
    uint64_t reads
    uint64_t gathers                   # rests before a batch, for ends of deliveries
    uint64_t rests                     # rests before the first batch after idleness, for others that speak at the same moment
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
