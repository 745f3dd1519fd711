"""Face of base/alloc, vec, ring and map: what Python tests need to drive them. Items are uint32 values, or wider ones filled with them."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from mqttc.base.alloc cimport mem_fail_after, mem_freed, mem_made, mem_tested
from mqttc.base.map cimport (
    Map, hash_bytes, hash_bytes64, hash_pair, map_find, map_free, map_init, map_insert, map_next, map_remove, map_replace, random_bytes,
)
from mqttc.base.ring cimport (
    Ring, ring_at, ring_free, ring_init, ring_pop_front, ring_push, ring_push_front, ring_remove, ring_trim,
)
from mqttc.base.types cimport ST_OK, span_make
from mqttc.base.vec cimport Vec, vec_at, vec_free, vec_init, vec_push, vec_reserve, vec_swap_remove


cdef extern from "mqttc/base/native.h" nogil:
    uint64_t multiply_u64_wide(uint64_t a, uint64_t b, uint64_t *high) noexcept
    uint64_t multiply_u64_wide_portable(uint64_t a, uint64_t b, uint64_t *high) noexcept


def multiply(uint64_t a, uint64_t b) -> list:
    """By the compiler's wide integer, and by the code for compilers without one: (high, low) each."""
    cdef uint64_t high = 0
    cdef uint64_t low = multiply_u64_wide(a, b, &high)
    first = high, low
    low = multiply_u64_wide_portable(a, b, &high)
    return [first, (high, low)]


def alloc_tested() -> bool:
    return mem_tested()


def alloc_fail_after(int64_t granted, bint once=True) -> None:
    mem_fail_after(granted, once)


def alloc_live() -> int:
    return mem_made() - mem_freed()


def alloc_made() -> int:
    return mem_made()


cdef void item_write(void *item, uint32_t item_bytes, uint32_t value) noexcept nogil:
    memset(item, value & 0xFF, item_bytes)
    memcpy(item, &value, 4)


cdef int64_t item_read(const void *item, uint32_t item_bytes) noexcept nogil:
    """-1 when the bytes behind the value are not what item_write left there."""
    cdef uint32_t value = 0
    cdef uint32_t i
    memcpy(&value, item, 4)
    for i in range(4, item_bytes):
        if (<const uint8_t *> item)[i] != (value & 0xFF):
            return -1
    return value


cdef class VecFace:
    cdef Vec vec

    def __cinit__(self, uint32_t item_bytes=4):
        vec_init(&self.vec, item_bytes)

    def __dealloc__(self):
        vec_free(&self.vec)

    def push(self, uint32_t value) -> bool:
        cdef void *item = vec_push(&self.vec)
        if item == NULL:
            return False
        item_write(item, self.vec.item_bytes, value)
        return True

    def reserve(self, uint32_t capacity) -> int:
        return vec_reserve(&self.vec, capacity)

    def swap_remove(self, uint32_t index) -> None:
        vec_swap_remove(&self.vec, index)

    def free(self) -> None:
        vec_free(&self.vec)

    def values(self) -> list:
        return [item_read(vec_at(&self.vec, i), self.vec.item_bytes) for i in range(self.vec.count)]

    @property
    def capacity(self) -> int:
        return self.vec.capacity


cdef class RingFace:
    cdef Ring ring

    def __cinit__(self, uint32_t item_bytes=4):
        ring_init(&self.ring, item_bytes)

    def __dealloc__(self):
        ring_free(&self.ring)

    def push(self, uint32_t value) -> bool:
        cdef void *item = ring_push(&self.ring)
        if item == NULL:
            return False
        item_write(item, self.ring.item_bytes, value)
        return True

    def push_front(self, uint32_t value) -> bool:
        cdef void *item = ring_push_front(&self.ring)
        if item == NULL:
            return False
        item_write(item, self.ring.item_bytes, value)
        return True

    def pop_front(self, uint32_t n) -> None:
        ring_pop_front(&self.ring, n)

    def remove(self, uint32_t index) -> None:
        ring_remove(&self.ring, index)

    def trim(self) -> None:
        ring_trim(&self.ring)

    def values(self) -> list:
        return [item_read(ring_at(&self.ring, i), self.ring.item_bytes) for i in range(self.ring.count)]

    @property
    def capacity(self) -> int:
        return self.ring.capacity


cdef bint key_equals(void *context, uint64_t value, const void *key) noexcept nogil:
    (<uint64_t *> context)[0] += 1
    return (value >> 32) == (<const uint32_t *> key)[0]


cdef class MapFace:
    """Keys and values are uint32; both stand in the map's value. The caller gives the hash, so that tests can force collisions."""
    cdef Map map
    cdef uint64_t compared

    def __cinit__(self):
        map_init(&self.map, key_equals, &self.compared)

    def __dealloc__(self):
        map_free(&self.map)

    def insert(self, uint32_t key, uint32_t hash, uint32_t value) -> int:
        return map_insert(&self.map, hash, <uint64_t> key << 32 | value)

    def find(self, uint32_t key, uint32_t hash) -> int | None:
        cdef uint64_t value = 0
        if not map_find(&self.map, hash, &key, &value):
            return None
        assert map_find(&self.map, hash, &key, NULL)
        return value & 0xFFFFFFFF

    def remove(self, uint32_t key, uint32_t hash) -> int | None:
        cdef uint64_t value = 0
        if not map_remove(&self.map, hash, &key, &value):
            return None
        return value & 0xFFFFFFFF

    def replace(self, uint32_t key, uint32_t hash, uint32_t value) -> bool:
        return map_replace(&self.map, hash, &key, <uint64_t> key << 32 | value)

    def items(self) -> list:
        cdef uint32_t cursor = 0
        cdef uint64_t value = 0
        found = []
        while map_next(&self.map, &cursor, &value):
            found.append((value >> 32, value & 0xFFFFFFFF))
        return found

    def longest_way(self) -> int:
        """Of any slot from home, by a scan of the table; -1 when a slot does not know its own way."""
        cdef uint32_t longest = 0
        cdef uint32_t way
        cdef uint32_t i
        for i in range(self.map.capacity):
            if self.map.slots[i].used:
                way = (i - self.map.slots[i].hash) & (self.map.capacity - 1)
                if self.map.slots[i].used != way + 1:
                    return -1
                longest = max(longest, way)
        return longest

    def free(self) -> None:
        map_free(&self.map)

    @property
    def count(self) -> int:
        return self.map.count

    @property
    def capacity(self) -> int:
        return self.map.capacity


def hash32(const uint8_t[::1] key) -> int:
    return hash_bytes(span_make(&key[0] if len(key) else NULL, len(key)))


def hash64(const uint8_t[::1] key) -> int:
    return hash_bytes64(span_make(&key[0] if len(key) else NULL, len(key)))


def hash_of_pair(uint64_t a, uint64_t b) -> int:
    return hash_pair(a, b)


def random(uint32_t n) -> bytes:
    cdef bytearray out = bytearray(n)
    cdef uint8_t *p = out
    assert random_bytes(p, n) == ST_OK
    return bytes(out)
