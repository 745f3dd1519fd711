"""Alloc: the one door to malloc for everything that a peer's input makes grow. Any thread.

A release build adds nothing to malloc, realloc and free. A debug or sanitizer build (MQTTC_DEBUG) counts blocks (made, freed) and lets a test refuse
allocations, so that every "no memory" branch can be walked.
"""

from libc.stdint cimport int64_t, uint64_t

cdef void *mem_alloc(size_t n) noexcept nogil                      # not zeroed; NULL: no memory
cdef void *mem_alloc_zeroed(size_t count, size_t item_bytes) noexcept nogil     # NULL: no memory, or the product overflows
cdef void *mem_resize(void *block, size_t count, size_t item_bytes) noexcept nogil   # NULL: no memory or overflow, block unchanged; block may be NULL
cdef void mem_free(void *block) noexcept nogil                     # NULL is fine

# debug builds; in release builds: false, nothing, 0
cdef bint mem_tested() noexcept nogil                              # whether this build counts and can refuse
cdef void mem_fail_after(int64_t granted, bint once) noexcept nogil     # so many are granted, then one (or all) refused; below 0: grant all again
cdef uint64_t mem_made() noexcept nogil
cdef uint64_t mem_freed() noexcept nogil
