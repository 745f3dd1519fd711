"""Ring: a growable first-in first-out array (capacity a power of two). An empty ring owns no memory after ring_trim."""

from libc.stdint cimport uint32_t

cdef struct Ring:
    void *items
    uint32_t head          # index of the front item, modulo capacity
    uint32_t count
    uint32_t capacity
    uint32_t item_bytes

cdef void ring_init(Ring *ring, uint32_t item_bytes) noexcept nogil
cdef void ring_free(Ring *ring) noexcept nogil
cdef void *ring_grow_push(Ring *ring) noexcept nogil                       # slow path of ring_push: grows first (4, 8, 16, ...)
cdef void *ring_push_front(Ring *ring) noexcept nogil                      # room before the front; NULL: no memory
cdef void ring_remove(Ring *ring, uint32_t index) noexcept nogil           # removes the index-th from the front, order kept (moves the shorter side)
cdef void ring_trim(Ring *ring) noexcept nogil                             # gives memory back: all when empty, half when under a quarter full

cdef inline void *ring_at(const Ring *ring, uint32_t index) noexcept nogil:
    """The index-th item from the front; index < count."""
    return <char *> ring.items + <size_t> ((ring.head + index) & (ring.capacity - 1)) * ring.item_bytes

cdef inline void *ring_push(Ring *ring) noexcept nogil:
    """Room for one more at the back, not zeroed; NULL: no memory, unchanged."""
    if ring.count == ring.capacity:
        return ring_grow_push(ring)
    ring.count += 1
    return ring_at(ring, ring.count - 1)

cdef inline void ring_pop_front(Ring *ring, uint32_t n) noexcept nogil:
    ring.head = (ring.head + n) & (ring.capacity - 1)
    ring.count -= n
