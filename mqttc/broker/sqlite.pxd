"""What of SQLite's C interface the store uses (sqlite.org/c3ref)."""

from libc.stdint cimport int64_t

cdef extern from "<sqlite3.h>" nogil:
    ctypedef struct sqlite3:
        pass
    ctypedef struct sqlite3_stmt:
        pass
    ctypedef void (*sqlite3_destructor_type)(void *)
    ctypedef long long sqlite3_int64
    ctypedef struct sqlite3_io_methods:
        int (*xWrite)(sqlite3_file *file, const void *bytes, int count, sqlite3_int64 offset) noexcept nogil
        int (*xSync)(sqlite3_file *file, int flags) noexcept nogil
    ctypedef struct sqlite3_file:
        const sqlite3_io_methods *pMethods
    const int SQLITE_OK
    const int SQLITE_ROW
    const int SQLITE_DONE
    const int SQLITE_OPEN_READWRITE
    const int SQLITE_OPEN_NOMUTEX
    const int SQLITE_SYNC_NORMAL
    const int SQLITE_FCNTL_FILE_POINTER
    const int SQLITE_CHECKPOINT_PASSIVE
    const int SQLITE_CHECKPOINT_TRUNCATE
    const unsigned int SQLITE_PREPARE_PERSISTENT
    int sqlite3_open_v2(const char *path, sqlite3 **out, int flags, const char *vfs)
    int sqlite3_close(sqlite3 *file)
    int sqlite3_file_control(sqlite3 *file, const char *name, int operation, void *argument)
    int sqlite3_exec(sqlite3 *file, const char *sql, void *callback, void *context, char **error)
    int sqlite3_prepare_v3(sqlite3 *file, const char *sql, int n, unsigned int flags, sqlite3_stmt **out, const char **tail)
    int sqlite3_finalize(sqlite3_stmt *statement)
    int sqlite3_step(sqlite3_stmt *statement)
    int sqlite3_reset(sqlite3_stmt *statement)
    int sqlite3_changes(sqlite3 *file)
    int sqlite3_busy_timeout(sqlite3 *file, int ms)
    int sqlite3_extended_errcode(sqlite3 *file)
    const char *sqlite3_errmsg(sqlite3 *file)
    int sqlite3_bind_int64(sqlite3_stmt *statement, int at, int64_t value)
    int sqlite3_bind_blob(sqlite3_stmt *statement, int at, const void *bytes, int n, sqlite3_destructor_type destructor)
    int sqlite3_bind_zeroblob(sqlite3_stmt *statement, int at, int n)
    int sqlite3_bind_null(sqlite3_stmt *statement, int at)
    int64_t sqlite3_column_int64(sqlite3_stmt *statement, int at)
    const void *sqlite3_column_blob(sqlite3_stmt *statement, int at)
    int sqlite3_column_bytes(sqlite3_stmt *statement, int at)
    int sqlite3_wal_checkpoint_v2(sqlite3 *file, const char *name, int mode, int *frames, int *done)
    void *sqlite3_wal_hook(sqlite3 *file, int (*hook)(void *, sqlite3 *, const char *, int) noexcept nogil, void *context)
