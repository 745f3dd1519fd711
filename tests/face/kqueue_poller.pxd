"""The kqueue poller as a module of the suite, over the stand-in for <sys/event.h>: same contract, and the structs of mqttc.net.poller, so that it can
take that module's place."""

from libc.stdint cimport uint32_t, uint64_t

from mqttc.net.poller cimport READY_HANGUP, READY_IN, READY_OUT, PollEvent, Poller

cdef int poller_open(Poller *poller) noexcept nogil
cdef void poller_close(Poller *poller) noexcept nogil
cdef int poller_add(Poller *poller, int fd, uint32_t interest, uint64_t token) noexcept nogil
cdef int poller_change(Poller *poller, int fd, uint32_t interest, uint64_t token) noexcept nogil
cdef void poller_remove(Poller *poller, int fd) noexcept nogil
cdef int poller_wait(Poller *poller, PollEvent *events, int count, int timeout_ms) noexcept nogil
