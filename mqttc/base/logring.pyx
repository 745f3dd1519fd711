"""Bounded ring of log records under a mutex; see logring.pxd for who may call what."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from mqttc.base.alloc cimport mem_alloc_zeroed, mem_free
from mqttc.base.inbox cimport pthread_mutex_t
from mqttc.base.types cimport Span, atomic_load_u64_relaxed, counter_add, unlikely

cdef extern from "<pthread.h>" nogil:
    int pthread_mutex_init(pthread_mutex_t *lock, const void *attributes) noexcept
    int pthread_mutex_destroy(pthread_mutex_t *lock) noexcept
    int pthread_mutex_lock(pthread_mutex_t *lock) noexcept
    int pthread_mutex_unlock(pthread_mutex_t *lock) noexcept

cdef extern from "mqttc/base/native.h" nogil:
    int wake_open(int *read_fd, int *write_fd) noexcept
    void wake_close(int *read_fd, int *write_fd) noexcept
    void wake_signal(int write_fd) noexcept
    void wake_drain(int read_fd) noexcept

cdef struct LogRing:
    LogRecord *records         # immutable after build, as are capacity and the descriptors; what it points to: under lock
    uint32_t capacity
    int read_fd
    int write_fd
    pthread_mutex_t lock
    uint32_t head              # under lock
    uint32_t count             # under lock
    uint64_t dropped           # written under lock, read by any thread


cdef LogRing *logring_build(uint32_t capacity) noexcept nogil:
    cdef LogRing *ring = <LogRing *> mem_alloc_zeroed(1, sizeof(LogRing))
    if unlikely(ring == NULL):
        return NULL
    ring.capacity = capacity
    ring.records = <LogRecord *> mem_alloc_zeroed(capacity, sizeof(LogRecord))
    if unlikely(ring.records == NULL):
        mem_free(ring)
        return NULL
    if unlikely(wake_open(&ring.read_fd, &ring.write_fd) != 0):
        mem_free(ring.records)
        mem_free(ring)
        return NULL
    if unlikely(pthread_mutex_init(&ring.lock, NULL) != 0):
        wake_close(&ring.read_fd, &ring.write_fd)
        mem_free(ring.records)
        mem_free(ring)
        return NULL
    return ring


cdef void logring_free(LogRing *ring) noexcept nogil:
    """NULL is fine. No other thread may still hold the ring."""
    if ring == NULL:
        return
    pthread_mutex_destroy(&ring.lock)
    wake_close(&ring.read_fd, &ring.write_fd)
    mem_free(ring.records)
    mem_free(ring)


cdef void logring_abandon(LogRing *ring) noexcept nogil:
    wake_close(&ring.read_fd, &ring.write_fd)


cdef bint logring_push(LogRing *ring, const LogRecord *record) noexcept nogil:
    cdef uint32_t at
    cdef bint was_empty
    pthread_mutex_lock(&ring.lock)
    if ring.count == ring.capacity:
        counter_add(&ring.dropped, 1)
        pthread_mutex_unlock(&ring.lock)
        return False
    at = ring.head + ring.count
    if at >= ring.capacity or at < ring.head:
        at -= ring.capacity
    memcpy(&ring.records[at], record, sizeof(LogRecord))
    was_empty = ring.count == 0
    ring.count += 1
    pthread_mutex_unlock(&ring.lock)
    if was_empty:
        wake_signal(ring.write_fd)
    return True


cdef bint logring_pop(LogRing *ring, LogRecord *out) noexcept nogil:
    pthread_mutex_lock(&ring.lock)
    if ring.count == 0:
        pthread_mutex_unlock(&ring.lock)
        return False
    memcpy(out, &ring.records[ring.head], sizeof(LogRecord))
    ring.head += 1
    if ring.head == ring.capacity:
        ring.head = 0
    ring.count -= 1
    pthread_mutex_unlock(&ring.lock)
    return True


cdef int logring_fd(const LogRing *ring) noexcept nogil:
    return ring.read_fd


cdef void logring_wake(LogRing *ring) noexcept nogil:
    wake_signal(ring.write_fd)


cdef void logring_drain_wake(LogRing *ring) noexcept nogil:
    wake_drain(ring.read_fd)


cdef uint64_t logring_dropped(const LogRing *ring) noexcept nogil:
    return atomic_load_u64_relaxed(&ring.dropped)


cdef void log_text(uint8_t *room, uint8_t *room_bytes, uint32_t room_capacity, Span text) noexcept nogil:
    """A cut moves back over at most three continuation bytes, to the start of the code point that it would have split; bytes that are not UTF-8
    are cut where the room ends."""
    cdef uint32_t n = text.n
    cdef uint32_t back = 0
    if room_capacity > 255:
        room_capacity = 255
    if n > room_capacity:
        n = room_capacity
        while back < 3 and back < n and (text.p[n - back] & 0xC0) == 0x80:
            back += 1
        if (text.p[n - back] & 0xC0) != 0x80:
            n -= back
    if n != 0:
        memcpy(room, text.p, n)
    room_bytes[0] = <uint8_t> n
