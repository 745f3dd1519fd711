"""Growable first-in first-out array. Owner thread only; see ring.pxd."""

from libc.stdint cimport uint32_t
from libc.string cimport memcpy, memmove

from mqttc.base.alloc cimport mem_free, mem_resize
from mqttc.base.types cimport ST_NO_MEMORY, ST_OK, unlikely

cdef enum:
    FIRST_CAPACITY = 4
    LAST_CAPACITY = 0x40000000     # doubled once more, a count plus a head would no longer fit


cdef inline char *slot_at(Ring *ring, uint32_t slot) noexcept nogil:
    """By place in memory, not by place in the queue."""
    return <char *> ring.items + <size_t> slot * ring.item_bytes


cdef int ring_grow(Ring *ring) noexcept nogil:
    """Doubles a full ring. What had wrapped round then stands in two runs again: the shorter one moves into the new half."""
    cdef uint32_t old = ring.capacity
    cdef uint32_t front
    cdef uint32_t capacity = old * 2 if old != 0 else FIRST_CAPACITY
    cdef void *items
    if unlikely(old >= LAST_CAPACITY or ring.item_bytes == 0):
        return ST_NO_MEMORY
    items = mem_resize(ring.items, capacity, ring.item_bytes)
    if unlikely(items == NULL):
        return ST_NO_MEMORY
    ring.items = items
    ring.capacity = capacity
    if ring.head != 0:
        front = old - ring.head
        if ring.head <= front:
            memcpy(slot_at(ring, old), slot_at(ring, 0), <size_t> ring.head * ring.item_bytes)
        else:
            memcpy(slot_at(ring, capacity - front), slot_at(ring, ring.head), <size_t> front * ring.item_bytes)
            ring.head = capacity - front
    return ST_OK


cdef void ring_init(Ring *ring, uint32_t item_bytes) noexcept nogil:
    ring.items = NULL
    ring.head = 0
    ring.count = 0
    ring.capacity = 0
    ring.item_bytes = item_bytes


cdef void ring_free(Ring *ring) noexcept nogil:
    mem_free(ring.items)
    ring_init(ring, ring.item_bytes)


cdef void *ring_grow_push(Ring *ring) noexcept nogil:
    if ring.count == ring.capacity and ring_grow(ring) != ST_OK:
        return NULL
    ring.count += 1
    return ring_at(ring, ring.count - 1)


cdef void *ring_push_front(Ring *ring) noexcept nogil:
    if ring.count == ring.capacity and ring_grow(ring) != ST_OK:
        return NULL
    ring.head = (ring.head - 1) & (ring.capacity - 1)
    ring.count += 1
    return ring_at(ring, 0)


cdef void ring_remove(Ring *ring, uint32_t index) noexcept nogil:
    cdef uint32_t mask = ring.capacity - 1
    cdef uint32_t hole = (ring.head + index) & mask
    cdef uint32_t first = ring.head
    cdef uint32_t last = (ring.head + ring.count - 1) & mask
    cdef size_t item = ring.item_bytes
    if index < ring.count - 1 - index:         # those before it move up by one
        if first <= hole:
            memmove(slot_at(ring, first + 1), slot_at(ring, first), (hole - first) * item)
        else:
            memmove(slot_at(ring, 1), slot_at(ring, 0), hole * item)
            memcpy(slot_at(ring, 0), slot_at(ring, mask), item)
            memmove(slot_at(ring, first + 1), slot_at(ring, first), (mask - first) * item)
        ring.head = (first + 1) & mask
    else:                                      # those behind it move down by one
        if hole <= last:
            memmove(slot_at(ring, hole), slot_at(ring, hole + 1), (last - hole) * item)
        else:
            memmove(slot_at(ring, hole), slot_at(ring, hole + 1), (mask - hole) * item)
            memcpy(slot_at(ring, mask), slot_at(ring, 0), item)
            memmove(slot_at(ring, 0), slot_at(ring, 1), last * item)
    ring.count -= 1


cdef void ring_trim(Ring *ring) noexcept nogil:
    """Where memory for the smaller array is refused, the larger one stays: no harm done."""
    cdef uint32_t capacity = ring.capacity >> 1
    cdef uint32_t front
    cdef char *items
    if ring.count == 0:
        ring_free(ring)
        return
    if ring.capacity <= FIRST_CAPACITY or ring.count >= ring.capacity >> 2:
        return
    items = <char *> mem_resize(NULL, capacity, ring.item_bytes)
    if unlikely(items == NULL):
        return
    front = ring.capacity - ring.head
    if front > ring.count:
        front = ring.count
    memcpy(items, slot_at(ring, ring.head), <size_t> front * ring.item_bytes)
    memcpy(items + <size_t> front * ring.item_bytes, ring.items, <size_t> (ring.count - front) * ring.item_bytes)
    mem_free(ring.items)
    ring.items = items
    ring.head = 0
    ring.capacity = capacity
