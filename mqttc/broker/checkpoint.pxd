"""Checkpoint: a native thread with a connection of its own that carries what is committed from the WAL into the file, so that commits go on meanwhile.

It does the bulk, the journal thread what has been committed since, which is little: only when all of the WAL is in the file does the next commit begin it anew,
and writing over it is what makes a sync cheap. SQLite syncs the file at the end, which would be the journal thread's part; so this one does it piece by piece
while it carries, and gives way to whoever waits for a commit: between pages it looks whether a batch is under way. Without that thread (no memory, no
descriptor) the journal's does all of it.
"""

from libc.stdint cimport uint32_t

from mqttc.broker.sqlite cimport sqlite3, sqlite3_file, sqlite3_io_methods

cdef extern from "<pthread.h>" nogil:
    ctypedef unsigned long pthread_t
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass

cdef enum:
    CHECKPOINT_PAGES = 4000            # of the WAL, from which on it is carried over

cdef struct Checkpoint:
    sqlite3_io_methods methods         # of `database`: SQLite's own, but page_write. First, for page_write finds the Checkpoint by them
    const sqlite3_io_methods *own
    sqlite3_file *database             # of `file`, see SQLITE_FCNTL_FILE_POINTER
    uint32_t unsynced                  # [checkpoint thread] pages that it has written since its last sync
    uint32_t unyielding                # [checkpoint thread] pages that it writes next without giving way: it has for long enough
    sqlite3 *file                      # of the thread's own; NULL: there is none
    pthread_t thread
    pthread_mutex_t lock
    pthread_cond_t wanted              # under lock: state is 1, or stopping
    bint stopping                      # under lock
    bint started
    uint32_t state                     # atomic: 0 at rest, 1 wanted, 2 the bulk is done
    int pages                          # [journal thread] of the WAL, after the last commit
    int next                           # [journal thread] so many are looked after next
    void (*done)(void *context) noexcept nogil         # [checkpoint thread] wakes the journal's
    bint (*busy)(void *context) noexcept nogil         # [checkpoint thread] whether somebody waits for a commit
    void *context

cdef void checkpoint_start(
    Checkpoint *checkpoint, const char *path, void (*done)(void *context) noexcept nogil, bint (*busy)(void *context) noexcept nogil, void *context,
) noexcept nogil
cdef void checkpoint_stop(Checkpoint *checkpoint) noexcept nogil
# [journal thread] After each commit, between transactions, with the journal's connection.
cdef void checkpoint_look(Checkpoint *checkpoint, sqlite3 *file) noexcept nogil
# [journal thread] For its connection's sqlite3_wal_hook, with the Checkpoint as context.
cdef int checkpoint_committed(void *context, sqlite3 *file, const char *name, int pages) noexcept nogil
