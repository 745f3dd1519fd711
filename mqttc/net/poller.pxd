"""Poller: readiness of descriptors, level-triggered. One source file is compiled as this module: poller_epoll on Linux, poller_kqueue on macOS/BSD.

Events carry the 64-bit token given at registration. HUP and errors are always reported, whatever the interest.
"""

from libc.stdint cimport uint32_t, uint64_t

cdef enum Readiness:
    READY_IN = 1
    READY_OUT = 2
    READY_HANGUP = 4           # error, or both directions closed: the link is dead
    READY_SHARED = 8           # interest only: a listening socket in several pollers (EPOLLEXCLUSIVE); cannot be changed, only removed

cdef struct PollEvent:
    uint64_t token
    uint32_t ready

cdef struct Poller:
    int fd

cdef int poller_open(Poller *poller) noexcept nogil                                            # ST_OK, ST_ERROR
cdef void poller_close(Poller *poller) noexcept nogil
cdef int poller_add(Poller *poller, int fd, uint32_t interest, uint64_t token) noexcept nogil
cdef int poller_change(Poller *poller, int fd, uint32_t interest, uint64_t token) noexcept nogil   # interest 0: only hangup
cdef void poller_remove(Poller *poller, int fd) noexcept nogil
cdef int poller_wait(Poller *poller, PollEvent *events, int count, int timeout_ms) noexcept nogil  # events given; 0 on time out or EINTR; -1 error
