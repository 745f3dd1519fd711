"""Growable array: checked growth by half again, so that a freed neighbour can be reused. Owner thread only; see vec.pxd."""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from mqttc.base.alloc cimport mem_free, mem_resize
from mqttc.base.types cimport ST_ERROR, ST_NO_MEMORY, ST_OK, unlikely

cdef enum:
    FIRST_CAPACITY = 4
    COUNT_MAX = 0xFFFFFFFF


cdef void vec_init(Vec *vec, uint32_t item_bytes) noexcept nogil:
    vec.items = NULL
    vec.count = 0
    vec.capacity = 0
    vec.item_bytes = item_bytes


cdef void vec_free(Vec *vec) noexcept nogil:
    mem_free(vec.items)
    vec_init(vec, vec.item_bytes)


cdef int vec_reserve(Vec *vec, uint32_t capacity) noexcept nogil:
    cdef void *items
    if capacity <= vec.capacity:
        return ST_OK
    if unlikely(vec.item_bytes == 0):
        return ST_ERROR
    items = mem_resize(vec.items, capacity, vec.item_bytes)
    if unlikely(items == NULL):
        return ST_NO_MEMORY
    vec.items = items
    vec.capacity = capacity
    return ST_OK


cdef void *vec_push(Vec *vec) noexcept nogil:
    cdef uint64_t capacity
    if unlikely(vec.count == vec.capacity):
        if unlikely(<uint64_t> vec.count == <uint64_t> COUNT_MAX):
            return NULL
        capacity = <uint64_t> vec.capacity + (vec.capacity >> 1) + 1
        if capacity < FIRST_CAPACITY:
            capacity = FIRST_CAPACITY
        if capacity > <uint64_t> COUNT_MAX:
            capacity = <uint64_t> COUNT_MAX
        if vec_reserve(vec, <uint32_t> capacity) != ST_OK:
            return NULL
    vec.count += 1
    return vec_at(vec, vec.count - 1)


cdef void vec_swap_remove(Vec *vec, uint32_t index) noexcept nogil:
    vec.count -= 1
    if index != vec.count:
        memcpy(vec_at(vec, index), vec_at(vec, vec.count), vec.item_bytes)
