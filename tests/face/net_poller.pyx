"""Face of a poller: of whichever module implements the contract, through the functions that Cython exports from it."""

from cpython.pycapsule cimport PyCapsule_GetName, PyCapsule_GetPointer
from libc.stdint cimport uint32_t, uint64_t

from mqttc.base.types cimport ST_OK
from mqttc.net.poller cimport READY_HANGUP, READY_IN, READY_OUT, READY_SHARED, PollEvent, Poller

IN = READY_IN
OUT = READY_OUT
HANGUP = READY_HANGUP
SHARED = READY_SHARED

ctypedef int (*OpenFn)(Poller *poller) noexcept nogil
ctypedef void (*CloseFn)(Poller *poller) noexcept nogil
ctypedef int (*RegisterFn)(Poller *poller, int fd, uint32_t interest, uint64_t token) noexcept nogil
ctypedef void (*RemoveFn)(Poller *poller, int fd) noexcept nogil
ctypedef int (*WaitFn)(Poller *poller, PollEvent *events, int count, int timeout_ms) noexcept nogil


cdef void *exported(module, name: str) except NULL:
    capsule = module.__pyx_capi__[name]
    return PyCapsule_GetPointer(capsule, PyCapsule_GetName(capsule))


cdef class PollerFace:
    cdef Poller poller
    cdef CloseFn close_fn
    cdef RegisterFn add_fn
    cdef RegisterFn change_fn
    cdef RemoveFn remove_fn
    cdef WaitFn wait_fn

    def __cinit__(self, module):
        self.poller.fd = -1
        self.close_fn = <CloseFn> exported(module, "poller_close")
        self.add_fn = <RegisterFn> exported(module, "poller_add")
        self.change_fn = <RegisterFn> exported(module, "poller_change")
        self.remove_fn = <RemoveFn> exported(module, "poller_remove")
        self.wait_fn = <WaitFn> exported(module, "poller_wait")
        if (<OpenFn> exported(module, "poller_open"))(&self.poller) != ST_OK:
            raise OSError("poller_open")

    def close(self) -> None:
        if self.poller.fd >= 0:
            self.close_fn(&self.poller)

    def __dealloc__(self):
        if self.poller.fd >= 0:
            self.close_fn(&self.poller)

    @property
    def fd(self) -> int:
        return self.poller.fd

    def add(self, int fd, uint32_t interest, uint64_t token) -> bool:
        return self.add_fn(&self.poller, fd, interest, token) == ST_OK

    def change(self, int fd, uint32_t interest, uint64_t token) -> bool:
        return self.change_fn(&self.poller, fd, interest, token) == ST_OK

    def remove(self, int fd) -> None:
        self.remove_fn(&self.poller, fd)

    def wait(self, int timeout_ms=0, int count=64) -> dict:
        """Token to readiness; the events of both directions together. Fails below 0."""
        cdef PollEvent[64] events
        cdef int n
        assert 0 < count <= 64
        with nogil:
            n = self.wait_fn(&self.poller, events, count, timeout_ms)
        if n < 0:
            raise OSError("poller_wait")
        ready = {}
        for event in events[:n]:
            ready[event.token] = ready.get(event.token, 0) | event.ready
        return ready
