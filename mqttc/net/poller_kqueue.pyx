"""The poller over kqueue (macOS, BSD): this file is the module mqttc.net.poller there, and tests.face.kqueue_poller in the suite elsewhere.

A descriptor has a read and a write filter. Interest in input is a level-triggered read filter. Without it the read filter stays, edge-triggered
(EV_CLEAR): input that nobody reads raises nothing again, and only an error is passed on, so that a reset is seen whatever the interest. kqueue
keeps EV_CLEAR from the first registration on, therefore a change deletes the filter first. Both filters of one descriptor may report in one wait,
as two events with the same token. The token is the filter's udata, so pointers must have 64 bits.
"""

from libc.errno cimport EINTR, errno
from libc.stdint cimport int64_t, intptr_t, uint16_t, uint32_t, uint64_t
from posix.time cimport timespec

from mqttc.base.types cimport ST_ERROR, ST_OK
# Its own contract, named so that the build sees what this file depends on: Cython pairs a .pyx with a .pxd of the same name.
from mqttc.net.poller cimport READY_HANGUP, READY_IN, READY_OUT, PollEvent, Poller

cdef extern from "<fcntl.h>" nogil:
    int fcntl(int fd, int command, ...)
    const int F_SETFD
    const int FD_CLOEXEC

cdef extern from "<unistd.h>" nogil:
    int c_close "close"(int fd)

cdef extern from *:
    """
    #include <sys/types.h>
    #include <sys/event.h>
    #include <sys/time.h>
    _Static_assert(sizeof(void *) >= 8, "a poller token needs 64-bit udata");
    /* The fields' types differ between the systems; the assignments convert. */
    static inline int kqueue_change(int kq, int fd, int filter, unsigned flags, uint64_t token)
    {
        struct kevent change;
        memset(&change, 0, sizeof change);
        change.ident = (uintptr_t)fd;
        change.filter = filter;
        change.flags = flags;
        change.udata = (void *)(uintptr_t)token;
        return kevent(kq, &change, 1, NULL, 0, NULL);
    }
    static inline uint64_t kqueue_token(const struct kevent *event) { return (uint64_t)(uintptr_t)event->udata; }
    """
    cdef struct kevent:
        int filter
        unsigned int flags
        unsigned int fflags
    int kqueue() nogil
    int kevent_wait "kevent"(int kq, const kevent *changes, int changes_count, kevent *events, int events_count, const timespec *timeout) nogil
    int kqueue_change(int kq, int fd, int filter, unsigned int flags, uint64_t token) nogil
    uint64_t kqueue_token(const kevent *event) nogil
    const int EVFILT_READ
    const int EVFILT_WRITE
    const unsigned int EV_ADD
    const unsigned int EV_CLEAR
    const unsigned int EV_DELETE
    const unsigned int EV_EOF
    const unsigned int EV_ERROR

cdef enum:
    EVENTS_AT_ONCE = 256


cdef int poller_open(Poller *poller) noexcept nogil:
    poller.fd = kqueue()
    if poller.fd < 0:
        return ST_ERROR
    fcntl(poller.fd, F_SETFD, FD_CLOEXEC)       # not inherited by fork anyway
    return ST_OK


cdef void poller_close(Poller *poller) noexcept nogil:
    if poller.fd >= 0:
        c_close(poller.fd)
        poller.fd = -1


cdef int poller_add(Poller *poller, int fd, uint32_t interest, uint64_t token) noexcept nogil:
    cdef unsigned int edge = 0 if interest & READY_IN else EV_CLEAR
    if kqueue_change(poller.fd, fd, EVFILT_READ, EV_ADD | edge, token) < 0:
        return ST_ERROR
    if interest & READY_OUT and kqueue_change(poller.fd, fd, EVFILT_WRITE, EV_ADD, token) < 0:
        kqueue_change(poller.fd, fd, EVFILT_READ, EV_DELETE, 0)
        return ST_ERROR
    return ST_OK


cdef int poller_change(Poller *poller, int fd, uint32_t interest, uint64_t token) noexcept nogil:
    poller_remove(poller, fd)
    return poller_add(poller, fd, interest, token)


cdef void poller_remove(Poller *poller, int fd) noexcept nogil:
    # Either fails where that filter was not registered: removed all the same.
    kqueue_change(poller.fd, fd, EVFILT_READ, EV_DELETE, 0)
    kqueue_change(poller.fd, fd, EVFILT_WRITE, EV_DELETE, 0)


cdef inline uint32_t ready_of(const kevent *event) noexcept nogil:
    """What the event means; 0: nothing that was asked for."""
    if event.flags & EV_ERROR or (event.flags & EV_EOF and event.fflags != 0):
        return READY_HANGUP                 # fflags is the socket's error
    if event.filter == EVFILT_WRITE:
        return READY_OUT
    return 0 if event.flags & EV_CLEAR else READY_IN


cdef int poller_wait(Poller *poller, PollEvent *events, int count, int timeout_ms) noexcept nogil:
    cdef kevent[EVENTS_AT_ONCE] got
    cdef timespec timeout
    cdef uint32_t ready
    cdef int i, n, out = 0
    timeout.tv_sec = timeout_ms // 1000 if timeout_ms > 0 else 0
    timeout.tv_nsec = <long> (timeout_ms % 1000) * 1000000 if timeout_ms > 0 else 0
    n = kevent_wait(poller.fd, NULL, 0, got, count if count < EVENTS_AT_ONCE else EVENTS_AT_ONCE, NULL if timeout_ms < 0 else &timeout)
    if n < 0:
        return 0 if errno == EINTR else -1
    for i in range(n):
        ready = ready_of(&got[i])
        if ready:
            events[out].token = kqueue_token(&got[i])
            events[out].ready = ready
            out += 1
    return out
