"""The engine's Python object, for the other module of its border (`inside`): see native.pyi for what it promises."""

from libc.stdint cimport uint64_t

from mqttc.broker.recover cimport Recovery
from mqttc.broker.state cimport Engine as NativeEngine

cdef class Engine:
    cdef NativeEngine *engine
    cdef object process
    cdef readonly bint started
    cdef readonly bint stopped
    cdef Recovery recovery
    cdef uint64_t adopted               # connections, so that workers take turns
    cdef set hooked                     # filters of on_publish hooks, as they stand in the tree
    cdef int inside                     # threads that are in the engine without the GIL
    cdef double started_at              # time.monotonic
    cdef object store                   # the path of its file; None: there is none
    cdef object __weakref__
    cdef NativeEngine *alive(self) except NULL
    cdef int answer_head(self, question, int verdict, bytes response, int fd, peer, bint remote) except -1
