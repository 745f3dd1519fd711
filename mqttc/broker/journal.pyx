"""Read it from `journal_main` on: take, cancel, write, commit, tell.

A batch that cannot be committed is written again later, so applying a record must not depend on having been applied before: what a record changes in
memory (known, window) is noted and taken back with the transaction.
"""

from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from posix.time cimport CLOCK_MONOTONIC, CLOCK_REALTIME, clock_gettime, nanosleep, timespec

from mqttc.base.alloc cimport mem_alloc_zeroed, mem_free
from mqttc.base.inbox cimport Mail, inbox_drain_wake, inbox_free, inbox_init, inbox_post, inbox_take, inbox_waits, inbox_wake
from mqttc.base.msg cimport MsgPool, msg_come_home, msg_drop, msg_take_strays, pool_free, pool_init
from mqttc.base.types cimport (
    ST_ERROR, ST_NO_MEMORY, ST_OK, atomic_add_u64_relaxed, atomic_load_i64_relaxed, atomic_load_u32_acquire, atomic_load_u64_relaxed,
    atomic_store_u32_release, atomic_store_u64_relaxed, counter_add, thread_slack,
)
from mqttc.broker.checkpoint cimport Checkpoint, checkpoint_committed, checkpoint_look, checkpoint_start, checkpoint_stop, pthread_t
from mqttc.broker.known cimport Known, Names, count_set, known_add, known_find, names_settle, names_undo
from mqttc.broker.pace cimport pace_company, pace_gather
from mqttc.broker.record cimport (
    RECORD_BLOCKS, RECORD_EVENTS, RECORD_MESSAGE, RECORD_READ, RECORD_SESSION_END, Body, Record, record_data, record_release,
)
from mqttc.broker.rows cimport (
    SQL_BEGIN, SQL_COMMIT, SQL_EXPIRED, SQL_META, SQL_ROLLBACK, Rows, message_read, record_write, rows_failed, rows_free, rows_open, rows_run, rows_sync,
    run_1, run_2,
)
from mqttc.broker.sqlite cimport SQLITE_CHECKPOINT_TRUNCATE, sqlite3_wal_checkpoint_v2, sqlite3_wal_hook
from mqttc.broker.window cimport (
    Window, window_cancel, window_events, window_finish, window_fold, window_free, window_has, window_holds, window_init, window_message, window_settle,
    window_take, window_undo,
)

cdef extern from "<poll.h>" nogil:
    cdef struct pollfd:
        int fd
        short events
        short revents
    const short POLLIN
    int poll(pollfd *fds, unsigned long n, int timeout_ms)

cdef extern from "<pthread.h>" nogil:
    int pthread_create(pthread_t *thread, const void *attributes, void *(*start)(void *) noexcept nogil, void *argument)
    int pthread_join(pthread_t thread, void **result)

cdef extern from "<signal.h>" nogil:
    ctypedef struct sigset_t:
        pass
    int sigfillset(sigset_t *set)
    int pthread_sigmask(int how, const sigset_t *set, sigset_t *old)
    const int SIG_SETMASK

cdef enum:
    CLOCK_MS = 1000                    # how often the file is told the time at most
    EXPIRED_MS = 60000                 # how often retained messages whose time is over are looked for
    GATHER_LEAST = 64                  # ends of deliveries (`over`) from which on it is worth waiting for more of them
    SLACK_NS = 1000                    # by which the kernel may lengthen a rest: its own 50 µs are half a commit

cdef struct Private:
    Rows rows
    Window window
    Checkpoint checkpoint
    MsgPool pool                       # of the journal thread, whose blocks are nobody's: its number is the one behind the last worker
    int64_t expired_ms                 # when retained messages whose time is over were looked for last
    Record *pending                    # taken, not committed
    Record *pending_last
    uint64_t pending_bytes
    int64_t told_clock_ms
    uint64_t sequences[256]            # of this batch, per worker
    bint started
    bint made_inbox
    uint32_t stopping                  # atomic
    uint32_t at_work                   # atomic: a batch is under way
    bint reads                         # this batch has messages read back, which somebody waits for
    uint64_t gather_ns                 # rest before a batch of deliveries that end soon, see pace_gather
    bint gathers                       # the next batch is to have it
    uint64_t company_ns                # rest before the first batch after idleness, see pace_company
    uint32_t first_chains              # in the batch, if it is such a one; else 0
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


cdef void record_free(Journal *journal, Record *record) noexcept nogil:
    record_release(&private_of(journal).pool, record)


cdef void journal_post(Journal *journal, Record *first, Record *last, uint64_t bytes) noexcept nogil:
    atomic_add_u64_relaxed(&journal.stats.backlog_bytes, bytes)
    if inbox_post(&journal.inbox, &first.mail, &last.mail):
        inbox_wake(&journal.inbox)


cdef int journal_knows(Journal *journal, bint group, uint64_t handle, uint64_t id) noexcept nogil:
    return ST_OK if known_add(&private_of(journal).rows.names, group, handle, id) != NULL else ST_NO_MEMORY


cdef int journal_counts(Journal *journal, uint64_t message, uint32_t deliveries) noexcept nogil:
    return count_set(&private_of(journal).rows.names, message, deliveries)


cdef void journal_owes(Journal *journal, bint group, uint64_t handle, bint lent) noexcept nogil:
    cdef Names *names = &private_of(journal).rows.names
    cdef Known *known = known_find(names, group, handle)
    if known != NULL:
        known.owed += 1
    if lent:
        names.lent += 1
        names.lent_committed += 1


cdef void journal_joined(Journal *journal, uint64_t group) noexcept nogil:
    cdef Known *known = known_find(&private_of(journal).rows.names, True, group)
    if known != NULL:
        known.joined += 1


# ---- a batch

cdef void read_bodies(Journal *journal, Record *record) noexcept nogil:
    cdef Private *private = private_of(journal)
    cdef Rows *rows = &private.rows
    cdef uint64_t *ids = <uint64_t *> record_data(record)
    cdef Body *bodies = <Body *> mem_alloc_zeroed(record.count, sizeof(Body))
    cdef uint32_t i
    private.reads = True
    if bodies == NULL:
        rows.error = -1
        return
    for i in range(record.count):
        if window_has(&private.window, ids[i], record.handle):
            window_fold(&private.window, rows)
        bodies[i].message = ids[i]
        bodies[i].msg = message_read(rows, &private.pool, ids[i], record.worker, &bodies[i].expires_wall_ms)
        if rows_failed(rows):
            break
    if rows_failed(rows):                                  # asked again with the batch
        for i in range(record.count):
            if bodies[i].msg != NULL:
                msg_drop(&private.pool, bodies[i].msg)
        mem_free(bodies)
        return
    counter_add(&journal.stats.reads, 1)
    journal.hooks.bodies(journal.context, record.worker, record.handle, bodies, record.count)
    record.cancelled = True                                # answered, also when the batch comes again


cdef void reads_serve(Journal *journal) noexcept nogil:
    """While nothing can be committed, queues are read back all the same, as far as what they ask for is in the file."""
    cdef Private *private = private_of(journal)
    cdef Record *record = private.pending
    cdef uint64_t *ids
    cdef Body *bodies
    cdef uint32_t count
    while record != NULL:
        if record.mail.kind == RECORD_READ and not record.cancelled:
            ids = <uint64_t *> record_data(record)
            bodies = <Body *> mem_alloc_zeroed(record.count, sizeof(Body))
            if bodies == NULL:
                return
            count = 0
            private.rows.error = 0
            while count < record.count:
                bodies[count].message = ids[count]
                bodies[count].msg = message_read(&private.rows, &private.pool, ids[count], record.worker, &bodies[count].expires_wall_ms)
                if bodies[count].msg == NULL:
                    break               # it waits to be written, or is in the log
                count += 1
            if count:
                counter_add(&journal.stats.reads, 1)
                journal.hooks.bodies(journal.context, record.worker, record.handle, bodies, count)
                record.cancelled = True
            else:
                mem_free(bodies)
        record = <Record *> record.mail.next


cdef void batch_write(Journal *journal, Record *record) noexcept nogil:
    cdef Private *private = private_of(journal)
    cdef uint32_t kind = record.mail.kind
    if record.sequence:
        private.sequences[record.worker] = record.sequence
    if record.cancelled:
        return
    if kind == RECORD_MESSAGE:
        window_message(&private.window, &private.rows, record)
    elif kind == RECORD_EVENTS:
        window_events(&private.window, &private.rows, record)
    elif kind == RECORD_READ:
        read_bodies(journal, record)
    else:
        if kind == RECORD_SESSION_END and window_holds(&private.window, record.handle):
            window_fold(&private.window, &private.rows)
        record_write(&private.rows, record)


cdef uint32_t batch_take(Journal *journal) noexcept nogil:
    """Everything that waits goes behind what could not be committed yet. How many chains of workers' it was."""
    cdef Private *private = private_of(journal)
    cdef Mail *chain
    cdef Record *record
    cdef uint32_t chains = 0
    inbox_drain_wake(&journal.inbox)
    chain = inbox_take(&journal.inbox)
    if chain == NULL:
        return 0
    if private.pending == NULL:
        private.pending = <Record *> chain
    else:
        private.pending_last.mail.next = chain
    record = <Record *> chain
    while True:
        chains += record.sequence != 0
        private.pending_bytes += record.bytes
        counter_add(&journal.stats.records, 1)
        if record.mail.kind == RECORD_BLOCKS:
            msg_come_home(&private.pool, record.msg)
            record.msg = NULL
            record.cancelled = True
        private.pending_last = record
        if record.mail.next == NULL:
            return chains
        record = <Record *> record.mail.next


cdef void meta_write(Journal *journal, int64_t now, bint clean) noexcept nogil:
    cdef Rows *rows = &private_of(journal).rows
    run_2(rows, SQL_META, 0, <uint64_t> now)
    run_2(rows, SQL_META, 1, atomic_load_u64_relaxed(&journal.next_message))
    run_2(rows, SQL_META, 2, clean)


cdef bint batch_commit(Journal *journal) noexcept nogil:
    """Writes what is pending in one transaction; false: nothing of it is in the file."""
    cdef Private *private = private_of(journal)
    cdef Rows *rows = &private.rows
    cdef Record *record = private.pending
    cdef bint synced = False
    cdef int64_t now = store_ms(journal)
    cdef bint telling = now >= private.told_clock_ms + CLOCK_MS
    cdef bint expiring = telling and private.expired_ms < rows.last_expiry_ms and now >= private.expired_ms + EXPIRED_MS
    while record != NULL:
        synced |= record.synced
        record = <Record *> record.mail.next
    rows.error = 0
    rows.names.no_memory = False
    if not rows_sync(rows, synced) or not rows_run(rows, SQL_BEGIN):
        return False
    record = private.pending
    while record != NULL and not rows_failed(rows):
        batch_write(journal, record)
        record = <Record *> record.mail.next
    if not rows_failed(rows):
        window_finish(&private.window, rows)
    if not rows_failed(rows) and telling:
        meta_write(journal, now, False)
        if expiring:
            run_1(rows, SQL_EXPIRED, <uint64_t> now)
    if not rows_failed(rows) and rows_run(rows, SQL_COMMIT):
        if telling:
            private.told_clock_ms = now
        if expiring:
            private.expired_ms = now
        if synced:
            counter_add(&journal.stats.syncs, 1)
        return True
    rows_run(rows, SQL_ROLLBACK)
    return False


cdef void batch_tell(Journal *journal) noexcept nogil:
    """The batch holds: workers hear of it, and get their blocks back."""
    cdef Private *private = private_of(journal)
    cdef Record *record = private.pending
    cdef Record *next
    cdef uint32_t i
    cdef uint32_t count = 0
    names_settle(&private.rows.names)
    window_settle(&private.window, &private.pool)
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
        if record.log_row != NULL:
            window_take(&private.window, record)
        else:
            record_release(&private.pool, record)
        record = next
    atomic_store_u64_relaxed(&journal.stats.logged, private.window.logged)
    atomic_store_u64_relaxed(&journal.stats.folded, private.window.folded)
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
    elif private.rows.names.no_memory or private.rows.error < 0:
        journal.hooks.state(journal.context, failing, "no memory")
    else:
        journal.hooks.state(journal.context, failing, private.rows.why)


cdef void rest(uint64_t ns, uint64_t *counter) noexcept nogil:
    cdef timespec time
    if ns == 0:
        return
    time.tv_sec = 0
    time.tv_nsec = <long> ns
    counter_add(counter, 1)
    nanosleep(&time, NULL)


cdef void gather(Journal *journal) noexcept nogil:
    cdef Private *private = private_of(journal)
    if private.gathers:
        private.gathers = False         # once: what follows it is judged again
        rest(private.gather_ns, &journal.stats.gathers)


cdef bint gather_wanted(const Private *private) noexcept nogil:
    """Whether the end of what begins comes soon after it, and often: not where somebody waits for what is read back."""
    cdef uint64_t begun = private.window.begun
    cdef uint64_t over = private.rows.over
    return not private.reads and over >= GATHER_LEAST and over <= 2 * begun and begun <= 2 * over


cdef bint batch_try(Journal *journal) noexcept nogil:
    cdef Private *private = private_of(journal)
    cdef uint64_t begun = clock_ns()
    cdef uint64_t spent, before, ended
    private.window.begun //= 2
    private.rows.over //= 2
    private.reads = False
    before = private.window.begun
    ended = private.window.cancelled
    window_cancel(&private.window, &private.rows, private.pending)
    atomic_store_u64_relaxed(&journal.stats.cancelled, private.window.cancelled)
    if not batch_commit(journal):
        names_undo(&private.rows.names)
        window_undo(&private.window)
        counter_add(&journal.stats.failures, 1)
        failing_set(journal, True)
        reads_serve(journal)
        return False
    spent = clock_ns() - begun
    counter_add(&journal.stats.commits, 1)
    counter_add(&journal.stats.commit_ns, spent)
    atomic_store_u64_relaxed(&journal.stats.last_commit_ns, spent)
    if spent > journal.stats.longest_commit_ns:
        atomic_store_u64_relaxed(&journal.stats.longest_commit_ns, spent)
    failing_set(journal, False)
    private.gathers = gather_wanted(private)
    if private.gathers:
        private.gather_ns = pace_gather(private.gather_ns, spent, private.window.begun - before, private.window.cancelled - ended)
    if private.first_chains:            # before anybody is told, who would answer
        private.company_ns = pace_company(private.company_ns, spent, private.first_chains, inbox_waits(&journal.inbox))
    batch_tell(journal)
    return True


cdef void *journal_main(void *argument) noexcept nogil:
    cdef Journal *journal = <Journal *> argument
    cdef Private *private = private_of(journal)
    cdef pollfd waiting
    cdef uint32_t chains, stopping
    cdef bint idle = False
    cdef bint done
    waiting.fd = journal.inbox.wake_read_fd
    waiting.events = POLLIN
    thread_slack(SLACK_NS)
    while True:
        gather(journal)
        stopping = atomic_load_u32_acquire(&private.stopping)      # before taking: nothing is posted after it was set
        atomic_store_u32_release(&private.at_work, 1)
        chains = batch_take(journal)
        private.first_chains = chains if idle else 0
        idle = False
        done = private.pending != NULL and batch_try(journal)
        if not done:
            atomic_store_u32_release(&private.at_work, 0)
        checkpoint_look(&private.checkpoint, private.rows.file)
        if done:
            continue
        if stopping:
            return NULL
        waiting.revents = 0
        if private.pending != NULL:
            poll(NULL, 0, <int> journal.retry_ms)                  # what comes meanwhile goes with it
        else:
            poll(&waiting, 1, -1)
            idle = True
            rest(private.company_ns, &journal.stats.rests)


# ---- open, start, stop

cdef void bulk_done(void *context) noexcept nogil:
    """[checkpoint thread]"""
    inbox_wake(&(<Journal *> context).inbox)


cdef bint journal_busy(void *context) noexcept nogil:
    """[checkpoint thread]"""
    cdef Journal *journal = <Journal *> context
    return atomic_load_u32_acquire(&private_of(journal).at_work) != 0 or inbox_waits(&journal.inbox)


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
    window_init(&private.window)
    private.made_inbox = inbox_init(&journal.inbox) == ST_OK
    if not private.made_inbox:
        snprintf(why, 200, "no descriptor")
    elif rows_open(&private.rows, path, why):
        sqlite3_wal_hook(private.rows.file, checkpoint_committed, &private.checkpoint)
        checkpoint_start(&private.checkpoint, path, bulk_done, journal_busy, journal)
        return journal
    journal_free(journal)
    return NULL


cdef void *journal_file(Journal *journal) noexcept nogil:
    return private_of(journal).rows.file


cdef void journal_continue(Journal *journal, uint64_t next_message, uint64_t next_target, uint64_t next_version, int64_t last_expiry_ms) noexcept nogil:
    journal.next_message = next_message
    journal.next_version = next_version
    private_of(journal).rows.last_expiry_ms = last_expiry_ms
    private_of(journal).rows.names.next_target = next_target


cdef uint64_t journal_target(Journal *journal) noexcept nogil:
    cdef Names *names = &private_of(journal).rows.names
    names.next_target += 1
    return names.next_target - 1


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


cdef bint end_write(Journal *journal) noexcept nogil:
    """The last transaction: an orderly end leaves no log."""
    cdef Private *private = private_of(journal)
    cdef Rows *rows = &private.rows
    rows.error = 0
    rows.names.no_memory = False
    if not rows_sync(rows, True) or not rows_run(rows, SQL_BEGIN):
        return False
    window_fold(&private.window, rows)
    window_finish(&private.window, rows)
    meta_write(journal, store_ms(journal), True)
    if not rows_failed(rows) and rows_run(rows, SQL_COMMIT):
        return True
    rows_run(rows, SQL_ROLLBACK)
    return False


cdef bint journal_stop(Journal *journal) noexcept nogil:
    cdef Private *private = private_of(journal)
    cdef bint ended
    cdef int frames = 0
    cdef int done = 0
    if not private.started:
        return True
    atomic_store_u32_release(&private.stopping, 1)
    inbox_wake(&journal.inbox)
    pthread_join(private.thread, NULL)
    private.started = False
    checkpoint_stop(&private.checkpoint)
    if private.pending != NULL:
        return False
    ended = end_write(journal)
    sqlite3_wal_checkpoint_v2(private.rows.file, NULL, SQLITE_CHECKPOINT_TRUNCATE, &frames, &done)
    return ended


cdef void chain_free(Private *private, Record *record) noexcept nogil:
    cdef Record *next
    while record != NULL:
        next = <Record *> record.mail.next
        record_release(&private.pool, record)
        record = next


cdef uint64_t journal_block_bytes(const Journal *journal) noexcept nogil:
    cdef const MsgPool *pool = &private_of(<Journal *> journal).pool
    return atomic_load_u64_relaxed(&pool.bytes_made) - atomic_load_u64_relaxed(&pool.bytes_freed)


cdef void journal_free(Journal *journal) noexcept nogil:
    cdef Private *private = private_of(journal)
    checkpoint_stop(&private.checkpoint)
    if private.made_inbox:
        chain_free(private, private.pending)
        chain_free(private, <Record *> inbox_take(&journal.inbox))
        inbox_free(&journal.inbox)
    window_free(&private.window, &private.pool)
    rows_free(&private.rows)
    pool_free(&private.pool)
    mem_free(private)
    mem_free(journal)
