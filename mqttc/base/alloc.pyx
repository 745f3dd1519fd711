"""The door to malloc. The only state is the debug builds' counters and countdown; see alloc.pxd."""

from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc

from mqttc.base.types cimport (
    atomic_add_i64_relaxed, atomic_add_u64_relaxed, atomic_load_i64_relaxed, atomic_load_u64_relaxed,
    atomic_store_i64_relaxed, unlikely,
)

cdef extern from "mqttc/base/native.h" nogil:
    bint MQTTC_ALLOC_TESTED
    bint size_multiply(size_t count, size_t item_bytes, size_t *out) noexcept

cdef int64_t granted_left = -1     # below 0 and not refusing: no limit. Any thread, atomic
cdef int64_t refusing = 0          # 0 grants all; 1 refuses one when granted_left is used up; 2 refuses every one from then on
cdef uint64_t blocks_made = 0
cdef uint64_t blocks_freed = 0


cdef inline bint alloc_refused() noexcept nogil:
    """Debug builds: whether the test that runs wants this allocation to fail."""
    cdef int64_t mode = atomic_load_i64_relaxed(&refusing)
    if mode == 0:
        return False
    if atomic_add_i64_relaxed(&granted_left, -1) > 0:
        return False
    if mode == 1:
        atomic_store_i64_relaxed(&refusing, 0)
    return True


cdef inline void *block_count(void *block) noexcept nogil:
    if MQTTC_ALLOC_TESTED and block != NULL:
        atomic_add_u64_relaxed(&blocks_made, 1)
    return block


cdef void *mem_alloc(size_t n) noexcept nogil:
    if MQTTC_ALLOC_TESTED and alloc_refused():
        return NULL
    return block_count(malloc(n if n != 0 else 1))


cdef void *mem_alloc_zeroed(size_t count, size_t item_bytes) noexcept nogil:
    cdef size_t n = 0
    if unlikely(not size_multiply(count, item_bytes, &n)):
        return NULL
    if MQTTC_ALLOC_TESTED and alloc_refused():
        return NULL
    return block_count(calloc(1, n if n != 0 else 1))


cdef void *mem_resize(void *block, size_t count, size_t item_bytes) noexcept nogil:
    cdef size_t n = 0
    cdef void *resized
    if unlikely(not size_multiply(count, item_bytes, &n)):
        return NULL
    if MQTTC_ALLOC_TESTED and alloc_refused():
        return NULL
    resized = realloc(block, n if n != 0 else 1)
    if block == NULL:
        return block_count(resized)
    return resized


cdef void mem_free(void *block) noexcept nogil:
    if MQTTC_ALLOC_TESTED and block != NULL:
        atomic_add_u64_relaxed(&blocks_freed, 1)
    free(block)


cdef bint mem_tested() noexcept nogil:
    return MQTTC_ALLOC_TESTED


cdef void mem_fail_after(int64_t granted, bint once) noexcept nogil:
    if granted < 0:
        atomic_store_i64_relaxed(&refusing, 0)
        return
    atomic_store_i64_relaxed(&granted_left, granted)
    atomic_store_i64_relaxed(&refusing, 1 if once else 2)


cdef uint64_t mem_made() noexcept nogil:
    return atomic_load_u64_relaxed(&blocks_made)


cdef uint64_t mem_freed() noexcept nogil:
    return atomic_load_u64_relaxed(&blocks_freed)
