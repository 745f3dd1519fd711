"""Vec: a growable array of items of one size, with checked growth. Zeroed memory is an empty Vec of unknown item size: call vec_init."""

from libc.stdint cimport uint32_t

cdef struct Vec:
    void *items
    uint32_t count
    uint32_t capacity
    uint32_t item_bytes

cdef void vec_init(Vec *vec, uint32_t item_bytes) noexcept nogil
cdef void vec_free(Vec *vec) noexcept nogil                                # frees the items' memory, not what they own; then empty
cdef int vec_reserve(Vec *vec, uint32_t capacity) noexcept nogil           # ST_OK or ST_NO_MEMORY (also on overflow)
cdef void *vec_push(Vec *vec) noexcept nogil                               # room for one more, not zeroed; NULL: no memory, unchanged
cdef void vec_swap_remove(Vec *vec, uint32_t index) noexcept nogil         # the last item takes its place

cdef inline void *vec_at(const Vec *vec, uint32_t index) noexcept nogil:
    return <char *> vec.items + <size_t> index * vec.item_bytes
