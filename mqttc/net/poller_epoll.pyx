"""The poller over epoll (Linux): this file is the module mqttc.net.poller there."""

from libc.errno cimport EINTR, errno
from libc.stdint cimport uint32_t, uint64_t

from mqttc.base.types cimport ST_ERROR, ST_OK
# Its own contract, named so that the build sees what this file depends on: Cython pairs a .pyx with a .pxd of the same name.
from mqttc.net.poller cimport READY_HANGUP, READY_IN, READY_OUT, READY_SHARED, PollEvent, Poller

cdef extern from "<unistd.h>" nogil:
    int c_close "close"(int fd)

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        uint64_t u64
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epfd, int op, int fd, epoll_event *event)
    int epoll_wait(int epfd, epoll_event *events, int count, int timeout_ms)
    const int EPOLL_CLOEXEC
    const int EPOLL_CTL_ADD
    const int EPOLL_CTL_MOD
    const int EPOLL_CTL_DEL
    const uint32_t EPOLLIN
    const uint32_t EPOLLOUT
    const uint32_t EPOLLERR
    const uint32_t EPOLLHUP
    const uint32_t EPOLLEXCLUSIVE

cdef enum:
    EVENTS_AT_ONCE = 256


cdef int poller_open(Poller *poller) noexcept nogil:
    poller.fd = epoll_create1(EPOLL_CLOEXEC)
    return ST_OK if poller.fd >= 0 else ST_ERROR


cdef void poller_close(Poller *poller) noexcept nogil:
    if poller.fd >= 0:
        c_close(poller.fd)
        poller.fd = -1


cdef int poller_control(Poller *poller, int op, int fd, uint32_t interest, uint64_t token) noexcept nogil:
    cdef epoll_event event
    # No EPOLLRDHUP: the end of the peer's stream shows as EPOLLIN, so that a paused half-closed link stays silent.
    event.events = 0
    if interest & READY_IN:
        event.events |= EPOLLIN
    if interest & READY_OUT:
        event.events |= EPOLLOUT
    if interest & READY_SHARED:
        event.events |= EPOLLEXCLUSIVE
    event.data.u64 = token
    return ST_OK if epoll_ctl(poller.fd, op, fd, &event) == 0 else ST_ERROR


cdef int poller_add(Poller *poller, int fd, uint32_t interest, uint64_t token) noexcept nogil:
    return poller_control(poller, EPOLL_CTL_ADD, fd, interest, token)


cdef int poller_change(Poller *poller, int fd, uint32_t interest, uint64_t token) noexcept nogil:
    return poller_control(poller, EPOLL_CTL_MOD, fd, interest, token)


cdef void poller_remove(Poller *poller, int fd) noexcept nogil:
    cdef epoll_event event
    event.events = 0
    event.data.u64 = 0
    epoll_ctl(poller.fd, EPOLL_CTL_DEL, fd, &event)     # fails only where it was not registered: removed all the same


cdef int poller_wait(Poller *poller, PollEvent *events, int count, int timeout_ms) noexcept nogil:
    cdef epoll_event[EVENTS_AT_ONCE] got
    cdef uint32_t ready
    cdef int i, n
    n = epoll_wait(poller.fd, got, count if count < EVENTS_AT_ONCE else EVENTS_AT_ONCE, timeout_ms)
    if n < 0:
        return 0 if errno == EINTR else -1
    for i in range(n):
        ready = 0
        if got[i].events & EPOLLIN:
            ready |= READY_IN
        if got[i].events & EPOLLOUT:
            ready |= READY_OUT
        if got[i].events & (EPOLLHUP | EPOLLERR):
            ready |= READY_HANGUP
        events[i].token = got[i].data.u64
        events[i].ready = ready
    return n
