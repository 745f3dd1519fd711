from libc.stdint cimport uint32_t
from posix.time cimport nanosleep, timespec

from mqttc.base.types cimport atomic_load_u32_acquire, atomic_store_u32_release, thread_slack
from mqttc.broker.sqlite cimport (
    SQLITE_CHECKPOINT_PASSIVE, SQLITE_FCNTL_FILE_POINTER, SQLITE_OK, SQLITE_OPEN_NOMUTEX, SQLITE_OPEN_READWRITE, SQLITE_SYNC_NORMAL, sqlite3, sqlite3_close,
    sqlite3_exec, sqlite3_file, sqlite3_file_control, sqlite3_int64, sqlite3_open_v2, sqlite3_wal_checkpoint_v2,
)

cdef extern from "<pthread.h>" nogil:
    int pthread_create(pthread_t *thread, const void *attributes, void *(*start)(void *) noexcept nogil, void *argument)
    int pthread_join(pthread_t thread, void **result)
    int pthread_mutex_init(pthread_mutex_t *mutex, const void *attributes)
    int pthread_mutex_destroy(pthread_mutex_t *mutex)
    int pthread_mutex_lock(pthread_mutex_t *mutex)
    int pthread_mutex_unlock(pthread_mutex_t *mutex)
    int pthread_cond_init(pthread_cond_t *condition, const void *attributes)
    int pthread_cond_destroy(pthread_cond_t *condition)
    int pthread_cond_wait(pthread_cond_t *condition, pthread_mutex_t *mutex)
    int pthread_cond_signal(pthread_cond_t *condition)

cdef extern from "<signal.h>" nogil:
    ctypedef struct sigset_t:
        pass
    int sigfillset(sigset_t *set)
    int pthread_sigmask(int how, const sigset_t *set, sigset_t *old)
    const int SIG_SETMASK

cdef enum:
    SYNC_PAGES = 64                    # so many at a time: a commit's sync that comes meanwhile waits for them, too
    SYNC_PAGES_BUSY = 256              # where commits come one after the other
    GIVE_WAY_NS = 200000               # between looks whether somebody waits for a commit
    GIVE_WAY_MOST = 10                 # looks; after that
    UNYIELDING_PAGES = 128             # are written all the same, or the WAL would grow without end
    SLACK_NS = 1000                    # by which the kernel may lengthen a rest

cdef enum State:
    AT_REST = 0
    WANTED = 1
    BULK_DONE = 2


cdef void carry(sqlite3 *file) noexcept nogil:
    """What fails here (a full disk, a reader that holds on) is tried again when the WAL has grown; the WAL has it."""
    cdef int frames = 0
    cdef int done = 0
    sqlite3_wal_checkpoint_v2(file, NULL, SQLITE_CHECKPOINT_PASSIVE, &frames, &done)


cdef void give_way(Checkpoint *checkpoint) noexcept nogil:
    cdef timespec time
    cdef uint32_t i
    if checkpoint.unyielding:
        checkpoint.unyielding -= 1
        return
    time.tv_sec = 0
    time.tv_nsec = GIVE_WAY_NS
    for i in range(GIVE_WAY_MOST):
        if not checkpoint.busy(checkpoint.context):
            return
        nanosleep(&time, NULL)
    checkpoint.unyielding = UNYIELDING_PAGES


cdef int pages_sync(Checkpoint *checkpoint) noexcept nogil:
    checkpoint.unsynced = 0
    return checkpoint.own.xSync(checkpoint.database, SQLITE_SYNC_NORMAL)


cdef int page_write(sqlite3_file *database, const void *bytes, int count, sqlite3_int64 offset) noexcept nogil:
    """xWrite of the file. A sync that fails fails the checkpoint, for the next one would hear nothing of it."""
    cdef Checkpoint *checkpoint = <Checkpoint *> database.pMethods
    cdef int result
    give_way(checkpoint)
    result = checkpoint.own.xWrite(database, bytes, count, offset)
    checkpoint.unsynced += 1
    if result == SQLITE_OK and checkpoint.unsynced >= (SYNC_PAGES_BUSY if checkpoint.unyielding else SYNC_PAGES):
        result = pages_sync(checkpoint)
    return result


cdef void *checkpoint_main(void *argument) noexcept nogil:
    cdef Checkpoint *checkpoint = <Checkpoint *> argument
    thread_slack(SLACK_NS)
    pthread_mutex_lock(&checkpoint.lock)
    while not checkpoint.stopping:
        if atomic_load_u32_acquire(&checkpoint.state) != WANTED:
            pthread_cond_wait(&checkpoint.wanted, &checkpoint.lock)
            continue
        pthread_mutex_unlock(&checkpoint.lock)
        carry(checkpoint.file)
        if checkpoint.unsynced:
            pages_sync(checkpoint)
        atomic_store_u32_release(&checkpoint.state, BULK_DONE)
        checkpoint.done(checkpoint.context)
        pthread_mutex_lock(&checkpoint.lock)
    pthread_mutex_unlock(&checkpoint.lock)
    return NULL


cdef void checkpoint_start(
    Checkpoint *checkpoint, const char *path, void (*done)(void *context) noexcept nogil, bint (*busy)(void *context) noexcept nogil, void *context,
) noexcept nogil:
    cdef sigset_t all_signals, old
    checkpoint.done = done
    checkpoint.busy = busy
    checkpoint.context = context
    checkpoint.next = CHECKPOINT_PAGES
    if sqlite3_open_v2(path, &checkpoint.file, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX, NULL) != SQLITE_OK or sqlite3_exec(
        checkpoint.file, "PRAGMA wal_autocheckpoint = 0; PRAGMA synchronous = NORMAL; PRAGMA cache_size = 10", NULL, NULL, NULL,
    ) != SQLITE_OK or sqlite3_file_control(checkpoint.file, "main", SQLITE_FCNTL_FILE_POINTER, &checkpoint.database) != SQLITE_OK:
        sqlite3_close(checkpoint.file)
        checkpoint.file = NULL
        return
    checkpoint.own = checkpoint.database.pMethods
    checkpoint.methods = checkpoint.own[0]
    checkpoint.methods.xWrite = page_write
    checkpoint.database.pMethods = &checkpoint.methods
    pthread_mutex_init(&checkpoint.lock, NULL)
    pthread_cond_init(&checkpoint.wanted, NULL)
    sigfillset(&all_signals)
    pthread_sigmask(SIG_SETMASK, &all_signals, &old)
    checkpoint.started = pthread_create(&checkpoint.thread, NULL, checkpoint_main, checkpoint) == 0
    pthread_sigmask(SIG_SETMASK, &old, NULL)


cdef void checkpoint_stop(Checkpoint *checkpoint) noexcept nogil:
    if checkpoint.file == NULL:
        return
    if checkpoint.started:
        pthread_mutex_lock(&checkpoint.lock)
        checkpoint.stopping = True
        pthread_cond_signal(&checkpoint.wanted)
        pthread_mutex_unlock(&checkpoint.lock)
        pthread_join(checkpoint.thread, NULL)
        checkpoint.started = False
    pthread_cond_destroy(&checkpoint.wanted)
    pthread_mutex_destroy(&checkpoint.lock)
    sqlite3_close(checkpoint.file)
    checkpoint.file = NULL


cdef int checkpoint_committed(void *context, sqlite3 *file, const char *name, int pages) noexcept nogil:
    (<Checkpoint *> context).pages = pages
    return SQLITE_OK


cdef void checkpoint_look(Checkpoint *checkpoint, sqlite3 *file) noexcept nogil:
    cdef uint32_t state = atomic_load_u32_acquire(&checkpoint.state)
    if state == BULK_DONE:
        carry(file)
        checkpoint.next = checkpoint.pages + CHECKPOINT_PAGES       # less again when the next commit begins the WAL anew
        atomic_store_u32_release(&checkpoint.state, AT_REST)
        return
    if checkpoint.pages < checkpoint.next - CHECKPOINT_PAGES:
        checkpoint.next = CHECKPOINT_PAGES
    if state != AT_REST or checkpoint.pages < checkpoint.next:
        return
    if not checkpoint.started:
        carry(file)
        checkpoint.next = checkpoint.pages + CHECKPOINT_PAGES
        return
    pthread_mutex_lock(&checkpoint.lock)
    atomic_store_u32_release(&checkpoint.state, WANTED)
    pthread_cond_signal(&checkpoint.wanted)
    pthread_mutex_unlock(&checkpoint.lock)
