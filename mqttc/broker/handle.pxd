"""Handles: how threads name what belongs to another: worker, slot, generation in 64 bits. 0 names nothing (generations start at 1)."""

from libc.stdint cimport uint16_t, uint32_t, uint64_t

cdef inline uint64_t handle_make(uint16_t worker, uint32_t slot, uint32_t generation) noexcept nogil:
    return (<uint64_t> worker << 56) | (<uint64_t> (generation & 0xFFFFFF) << 32) | slot

cdef inline uint16_t handle_worker(uint64_t handle) noexcept nogil:
    return <uint16_t> (handle >> 56)

cdef inline uint32_t handle_generation(uint64_t handle) noexcept nogil:
    return <uint32_t> (handle >> 32) & 0xFFFFFF

cdef inline uint32_t handle_slot(uint64_t handle) noexcept nogil:
    return <uint32_t> handle
