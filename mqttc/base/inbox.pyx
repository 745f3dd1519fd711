"""Mail between threads; see inbox.pxd for who may call what."""

from mqttc.base.types cimport ST_ERROR, ST_OK

cdef extern from "<pthread.h>" nogil:
    int pthread_mutex_init(pthread_mutex_t *lock, const void *attributes) noexcept
    int pthread_mutex_destroy(pthread_mutex_t *lock) noexcept
    int pthread_mutex_lock(pthread_mutex_t *lock) noexcept
    int pthread_mutex_unlock(pthread_mutex_t *lock) noexcept

cdef extern from "<errno.h>" nogil:
    int errno

cdef extern from "mqttc/base/native.h" nogil:
    int wake_open(int *read_fd, int *write_fd) noexcept
    void wake_close(int *read_fd, int *write_fd) noexcept
    void wake_signal(int write_fd) noexcept
    void wake_drain(int read_fd) noexcept


cdef int inbox_init(Inbox *inbox) noexcept nogil:
    global errno
    cdef int refused
    inbox.head = NULL
    inbox.tail = NULL
    if wake_open(&inbox.wake_read_fd, &inbox.wake_write_fd) != 0:
        return ST_ERROR
    refused = pthread_mutex_init(&inbox.lock, NULL)
    if refused != 0:
        wake_close(&inbox.wake_read_fd, &inbox.wake_write_fd)
        errno = refused
        return ST_ERROR
    return ST_OK


cdef void inbox_free(Inbox *inbox) noexcept nogil:
    pthread_mutex_destroy(&inbox.lock)
    wake_close(&inbox.wake_read_fd, &inbox.wake_write_fd)
    inbox.head = NULL
    inbox.tail = NULL


cdef bint inbox_post(Inbox *inbox, Mail *first, Mail *last) noexcept nogil:
    cdef bint was_empty
    last.next = NULL
    pthread_mutex_lock(&inbox.lock)
    was_empty = inbox.head == NULL
    if was_empty:
        inbox.head = first
    else:
        inbox.tail.next = first
    inbox.tail = last
    pthread_mutex_unlock(&inbox.lock)
    return was_empty


cdef void inbox_wake(Inbox *inbox) noexcept nogil:
    wake_signal(inbox.wake_write_fd)


cdef void inbox_drain_wake(Inbox *inbox) noexcept nogil:
    wake_drain(inbox.wake_read_fd)


cdef Mail *inbox_take(Inbox *inbox) noexcept nogil:
    cdef Mail *chain
    pthread_mutex_lock(&inbox.lock)
    chain = inbox.head
    inbox.head = NULL
    inbox.tail = NULL
    pthread_mutex_unlock(&inbox.lock)
    return chain


cdef bint inbox_waits(Inbox *inbox) noexcept nogil:
    cdef bint waits
    pthread_mutex_lock(&inbox.lock)
    waits = inbox.head != NULL
    pthread_mutex_unlock(&inbox.lock)
    return waits
