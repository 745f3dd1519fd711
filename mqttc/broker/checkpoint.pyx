from libc.stdint cimport uint32_t

from mqttc.base.types cimport atomic_load_u32_acquire, atomic_store_u32_release
from mqttc.broker.sqlite cimport (
    SQLITE_CHECKPOINT_PASSIVE, SQLITE_OK, SQLITE_OPEN_NOMUTEX, SQLITE_OPEN_READWRITE, sqlite3, sqlite3_close, sqlite3_exec, sqlite3_open_v2,
    sqlite3_wal_checkpoint_v2,
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

cdef enum State:
    AT_REST = 0
    WANTED = 1
    BULK_DONE = 2


cdef void carry(sqlite3 *file) noexcept nogil:
    """What fails here (a full disk, a reader that holds on) is tried again when the WAL has grown; the WAL has it."""
    cdef int frames = 0
    cdef int done = 0
    sqlite3_wal_checkpoint_v2(file, NULL, SQLITE_CHECKPOINT_PASSIVE, &frames, &done)


cdef void *checkpoint_main(void *argument) noexcept nogil:
    cdef Checkpoint *checkpoint = <Checkpoint *> argument
    pthread_mutex_lock(&checkpoint.lock)
    while not checkpoint.stopping:
        if atomic_load_u32_acquire(&checkpoint.state) != WANTED:
            pthread_cond_wait(&checkpoint.wanted, &checkpoint.lock)
            continue
        pthread_mutex_unlock(&checkpoint.lock)
        carry(checkpoint.file)
        atomic_store_u32_release(&checkpoint.state, BULK_DONE)
        checkpoint.done(checkpoint.context)
        pthread_mutex_lock(&checkpoint.lock)
    pthread_mutex_unlock(&checkpoint.lock)
    return NULL


cdef void checkpoint_start(Checkpoint *checkpoint, const char *path, void (*done)(void *context) noexcept nogil, void *context) noexcept nogil:
    cdef sigset_t all_signals, old
    checkpoint.done = done
    checkpoint.context = context
    checkpoint.next = CHECKPOINT_PAGES
    if sqlite3_open_v2(path, &checkpoint.file, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX, NULL) != SQLITE_OK or sqlite3_exec(
        checkpoint.file, "PRAGMA wal_autocheckpoint = 0; PRAGMA synchronous = NORMAL; PRAGMA cache_size = 10", NULL, NULL, NULL,
    ) != SQLITE_OK:
        sqlite3_close(checkpoint.file)
        checkpoint.file = NULL
        return
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
