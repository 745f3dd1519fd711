"""The harness of native fuzz targets: each is a nogil function, which libFuzzer calls directly by its address and the suite by `run`."""

from libc.stdint cimport uint8_t

# NULL, or which promise was broken. Memory is left to AddressSanitizer: blocks have exactly the size that they need.
ctypedef const char *(*Target)(const uint8_t *data, size_t n) noexcept nogil

cdef class Targets:                # of one module, by their names
    cdef dict addresses
    cdef int add(self, str name, Target target) except -1
