/* Power shim: what a process does to the files of one directory, as a log. For LD_PRELOAD; Linux.

   Every call that changes a file or a name below MQTTC_POWER_DIR goes into the file MQTTC_POWER_LOG, in the order in which the calls were made
   (one lock), with the time at which each began. Not logged: files whose name ends in -shm or .lock, which nothing reads after a power cut.

   MQTTC_POWER_LIE=-wal     fsync and fdatasync of files whose name ends like this do nothing and are not logged, and say that they did.
   MQTTC_POWER_SYNC_US=n    each of them takes n microseconds longer.

   A record: struct Header, the name (two, one after the other, for a rename), the data. tests/store/power_image.py reads it. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum Kind { WRITE = 1, SYNC, TRUNCATE, CREATE, RENAME, UNLINK, SYNC_DIRECTORY };

struct Header {
    uint64_t began_ns; /* CLOCK_MONOTONIC */
    uint64_t inode;
    uint64_t offset; /* TRUNCATE: the new size */
    uint32_t kind;
    uint32_t data_bytes;
    uint16_t name_bytes;
    uint16_t other_bytes;
    uint32_t unused;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char directory[PATH_MAX];
static size_t directory_bytes;
static int log_fd = -1;
static const char *lie; /* NULL: none */
static unsigned sync_us;

static ssize_t (*real_write)(int, const void *, size_t);
static ssize_t (*real_pwrite)(int, const void *, size_t, off_t);
static ssize_t (*real_pwrite64)(int, const void *, size_t, off64_t);
static int (*real_fsync)(int);
static int (*real_fdatasync)(int);
static int (*real_ftruncate)(int, off_t);
static int (*real_ftruncate64)(int, off64_t);
static int (*real_open)(const char *, int, ...);
static int (*real_open64)(const char *, int, ...);
static int (*real_openat)(int, const char *, int, ...);
static int (*real_openat64)(int, const char *, int, ...);
static int (*real_rename)(const char *, const char *);
static int (*real_unlink)(const char *);

__attribute__((constructor)) static void start(void) {
    const char *where = getenv("MQTTC_POWER_DIR");
    const char *log = getenv("MQTTC_POWER_LOG");
    const char *delay = getenv("MQTTC_POWER_SYNC_US");
    real_write = dlsym(RTLD_NEXT, "write");
    real_pwrite = dlsym(RTLD_NEXT, "pwrite");
    real_pwrite64 = dlsym(RTLD_NEXT, "pwrite64");
    real_fsync = dlsym(RTLD_NEXT, "fsync");
    real_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
    real_ftruncate = dlsym(RTLD_NEXT, "ftruncate");
    real_ftruncate64 = dlsym(RTLD_NEXT, "ftruncate64");
    real_open = dlsym(RTLD_NEXT, "open");
    real_open64 = dlsym(RTLD_NEXT, "open64");
    real_openat = dlsym(RTLD_NEXT, "openat");
    real_openat64 = dlsym(RTLD_NEXT, "openat64");
    real_rename = dlsym(RTLD_NEXT, "rename");
    real_unlink = dlsym(RTLD_NEXT, "unlink");
    lie = getenv("MQTTC_POWER_LIE");
    sync_us = delay ? (unsigned) atoi(delay) : 0;
    if (where == NULL || realpath(where, directory) == NULL)
        return;
    directory_bytes = strlen(directory);
    if (log != NULL)
        log_fd = real_open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t) now.tv_sec * 1000000000u + (uint64_t) now.tv_nsec;
}

/* What is logged has a path in the directory, or is the directory: 1 or 2. 0: none of our business. */
static int ours(const char *path) {
    size_t n = strlen(path);
    if (directory_bytes == 0 || n < directory_bytes || memcmp(path, directory, directory_bytes) != 0)
        return 0;
    if (n == directory_bytes)
        return 2;
    if (path[directory_bytes] != '/')
        return 0;
    if ((n > 4 && strcmp(path + n - 4, "-shm") == 0) || (n > 5 && strcmp(path + n - 5, ".lock") == 0))
        return 0;
    return 1;
}

static int ours_fd(int fd, struct stat *status, char *path) {
    char link[64];
    ssize_t n;
    if (directory_bytes == 0 || fd < 0 || fd == log_fd || fstat(fd, status) != 0 || !(S_ISREG(status->st_mode) || S_ISDIR(status->st_mode)))
        return 0;
    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    n = readlink(link, path, PATH_MAX - 1);
    if (n <= 0)
        return 0;
    path[n] = 0;
    return ours(path);
}

/* A relative path, and one below a directory that is named by a link. The last part need not exist. */
static int absolute(int at, const char *path, char *out) {
    char parent[PATH_MAX], whole[PATH_MAX];
    const char *slash;
    char link[64];
    ssize_t n;
    if (path[0] == '/') {
        snprintf(whole, sizeof(whole), "%s", path);
    } else if (at == AT_FDCWD) {
        if (getcwd(parent, sizeof(parent)) == NULL)
            return 0;
        if (snprintf(whole, sizeof(whole), "%s/%s", parent, path) >= (int) sizeof(whole))
            return 0;
    } else {
        snprintf(link, sizeof(link), "/proc/self/fd/%d", at);
        n = readlink(link, parent, sizeof(parent) - 1);
        if (n <= 0)
            return 0;
        parent[n] = 0;
        if (snprintf(whole, sizeof(whole), "%s/%s", parent, path) >= (int) sizeof(whole))
            return 0;
    }
    slash = strrchr(whole, '/');
    if (slash == NULL || slash == whole)
        return 0;
    snprintf(parent, sizeof(parent), "%.*s", (int) (slash - whole), whole);
    if (realpath(parent, out) == NULL || strlen(out) + strlen(slash) + 1 > PATH_MAX)
        return 0;
    strcat(out, slash);
    return 1;
}

static const char *name_of(const char *path) {
    return path + directory_bytes + 1;
}

static void note(uint64_t began_ns, enum Kind kind, uint64_t inode, uint64_t offset, const void *data, size_t data_bytes, const char *name, const char *other) {
    struct Header header;
    struct iovec parts[4];
    memset(&header, 0, sizeof(header));
    header.began_ns = began_ns;
    header.inode = inode;
    header.offset = offset;
    header.kind = kind;
    header.data_bytes = (uint32_t) data_bytes;
    header.name_bytes = name ? (uint16_t) strlen(name) : 0;
    header.other_bytes = other ? (uint16_t) strlen(other) : 0;
    parts[0] = (struct iovec) {&header, sizeof(header)};
    parts[1] = (struct iovec) {(void *) name, header.name_bytes};
    parts[2] = (struct iovec) {(void *) other, header.other_bytes};
    parts[3] = (struct iovec) {(void *) data, data_bytes};
    if (log_fd >= 0 && writev(log_fd, parts, 4) != (ssize_t) (sizeof(header) + header.name_bytes + header.other_bytes + data_bytes))
        abort(); /* a log with a hole proves nothing */
}

/* -------------------------------------------------------------------------------------------- files */

static ssize_t do_write(int fd, const void *data, size_t n, off64_t offset, int positioned) {
    struct stat status;
    char path[PATH_MAX];
    uint64_t began;
    ssize_t done;
    if (ours_fd(fd, &status, path) != 1)
        return positioned ? real_pwrite64(fd, data, n, offset) : real_write(fd, data, n);
    pthread_mutex_lock(&lock);
    began = now_ns();
    if (!positioned)
        offset = fcntl(fd, F_GETFL) & O_APPEND ? status.st_size : lseek64(fd, 0, SEEK_CUR);
    done = positioned ? real_pwrite64(fd, data, n, offset) : real_write(fd, data, n);
    if (done > 0)
        note(began, WRITE, status.st_ino, (uint64_t) offset, data, (size_t) done, NULL, NULL);
    pthread_mutex_unlock(&lock);
    return done;
}

ssize_t write(int fd, const void *data, size_t n) {
    return do_write(fd, data, n, 0, 0);
}

ssize_t pwrite(int fd, const void *data, size_t n, off_t offset) {
    return do_write(fd, data, n, offset, 1);
}

ssize_t pwrite64(int fd, const void *data, size_t n, off64_t offset) {
    return do_write(fd, data, n, offset, 1);
}

static int do_sync(int fd, int (*real)(int)) {
    struct stat status;
    char path[PATH_MAX];
    uint64_t began;
    int what = ours_fd(fd, &status, path);
    int result;
    if (what == 0)
        return real(fd);
    if (sync_us)
        usleep(sync_us);
    if (what == 1 && lie != NULL && strlen(path) >= strlen(lie) && strcmp(path + strlen(path) - strlen(lie), lie) == 0)
        return 0;
    pthread_mutex_lock(&lock);
    began = now_ns();
    result = real(fd);
    if (result == 0)
        note(began, what == 2 ? SYNC_DIRECTORY : SYNC, status.st_ino, 0, NULL, 0, NULL, NULL);
    pthread_mutex_unlock(&lock);
    return result;
}

int fsync(int fd) {
    return do_sync(fd, real_fsync);
}

int fdatasync(int fd) {
    return do_sync(fd, real_fdatasync);
}

static int do_truncate(int fd, off64_t size) {
    struct stat status;
    char path[PATH_MAX];
    uint64_t began;
    int result;
    if (ours_fd(fd, &status, path) != 1)
        return real_ftruncate64(fd, size);
    pthread_mutex_lock(&lock);
    began = now_ns();
    result = real_ftruncate64(fd, size);
    if (result == 0)
        note(began, TRUNCATE, status.st_ino, (uint64_t) size, NULL, 0, NULL, NULL);
    pthread_mutex_unlock(&lock);
    return result;
}

int ftruncate(int fd, off_t size) {
    return do_truncate(fd, size);
}

int ftruncate64(int fd, off64_t size) {
    return do_truncate(fd, size);
}

/* -------------------------------------------------------------------------------------------- names */

static int do_open(int at, const char *path, int flags, mode_t mode) {
    char whole[PATH_MAX];
    struct stat before, status;
    uint64_t began;
    int existed, fd;
    if (!(flags & (O_CREAT | O_TRUNC)) || directory_bytes == 0 || !absolute(at, path, whole) || ours(whole) != 1)
        return real_openat64(at, path, flags, mode);
    pthread_mutex_lock(&lock);
    began = now_ns();
    existed = lstat(whole, &before) == 0;
    fd = real_openat64(at, path, flags, mode);
    if (fd >= 0 && fstat(fd, &status) == 0) {
        if (!existed)
            note(began, CREATE, status.st_ino, 0, NULL, 0, name_of(whole), NULL);
        else if (flags & O_TRUNC && before.st_size)
            note(began, TRUNCATE, status.st_ino, 0, NULL, 0, NULL, NULL);
    }
    pthread_mutex_unlock(&lock);
    return fd;
}

#define MODE_OF(flags)                                                                                                                                 \
    mode_t mode = 0;                                                                                                                                   \
    if ((flags) & (O_CREAT | O_TMPFILE)) {                                                                                                             \
        va_list more;                                                                                                                                  \
        va_start(more, flags);                                                                                                                         \
        mode = va_arg(more, mode_t);                                                                                                                   \
        va_end(more);                                                                                                                                  \
    }

int open(const char *path, int flags, ...) {
    MODE_OF(flags)
    return do_open(AT_FDCWD, path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    MODE_OF(flags)
    return do_open(AT_FDCWD, path, flags | O_LARGEFILE, mode);
}

int openat(int at, const char *path, int flags, ...) {
    MODE_OF(flags)
    return do_open(at, path, flags, mode);
}

int openat64(int at, const char *path, int flags, ...) {
    MODE_OF(flags)
    return do_open(at, path, flags | O_LARGEFILE, mode);
}

int rename(const char *from, const char *to) {
    char whole_from[PATH_MAX], whole_to[PATH_MAX];
    struct stat status;
    uint64_t began;
    int result;
    if (directory_bytes == 0 || !absolute(AT_FDCWD, from, whole_from) || !absolute(AT_FDCWD, to, whole_to) || ours(whole_from) != 1 || ours(whole_to) != 1)
        return real_rename(from, to);
    pthread_mutex_lock(&lock);
    began = now_ns();
    memset(&status, 0, sizeof(status));
    lstat(whole_from, &status);
    result = real_rename(from, to);
    if (result == 0)
        note(began, RENAME, status.st_ino, 0, NULL, 0, name_of(whole_from), name_of(whole_to));
    pthread_mutex_unlock(&lock);
    return result;
}

int unlink(const char *path) {
    char whole[PATH_MAX];
    uint64_t began;
    int result;
    if (directory_bytes == 0 || !absolute(AT_FDCWD, path, whole) || ours(whole) != 1)
        return real_unlink(path);
    pthread_mutex_lock(&lock);
    began = now_ns();
    result = real_unlink(path);
    if (result == 0)
        note(began, UNLINK, 0, 0, NULL, 0, name_of(whole), NULL);
    pthread_mutex_unlock(&lock);
    return result;
}
