from libc.stdint cimport uint8_t, uintptr_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy


cdef class Targets:
    def __cinit__(self):
        self.addresses = {}

    cdef int add(self, str name, Target target) except -1:
        self.addresses[name] = <uintptr_t> target
        return 0

    def __iter__(self):
        return iter(self.addresses)

    def address(self, str name) -> int:
        """Of the function, for the fuzzer's driver."""
        return self.addresses[name]

    def run(self, str name, bytes data):
        """None, or which promise was broken. The data lies in a block of exactly its size."""
        cdef Target target = <Target> <uintptr_t> self.addresses[name]
        cdef size_t n = <size_t> len(data)
        cdef uint8_t *p = <uint8_t *> malloc(n if n else 1)
        cdef const char *why
        if p == NULL:
            raise MemoryError
        memcpy(p, <const char *> data, n)
        with nogil:
            why = target(p, n)
        free(p)
        return None if why == NULL else why.decode()
