"""Flat hash map (Robin Hood, linear probing, backward-shift deletion) and the seeded hash. Maps: owner thread or the owner's lock; hashes: any
thread. See map.pxd.

MapSlot.used is 0 in an empty slot, else 1 + the distance from the slot that the hash asks for. Distances along a probe never fall by more than
the map's order allows, so a look-up ends at the first slot whose own distance is smaller than the way come so far: 4 to 5 slots on average even
for an absent key at the highest load.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from mqttc.base.alloc cimport mem_alloc_zeroed, mem_free
from mqttc.base.types cimport ST_ERROR, ST_NO_MEMORY, ST_OK, Span, likely, unlikely

cdef extern from "mqttc/base/native.h" nogil:
    int system_random(void *out, size_t n) noexcept
    uint64_t load_u64_native(const uint8_t *p) noexcept
    uint32_t load_u32_native(const uint8_t *p) noexcept
    uint64_t multiply_u64_wide(uint64_t a, uint64_t b, uint64_t *high) noexcept

cdef enum:
    FIRST_CAPACITY = 8
    SHRINK_CAPACITY = 128          # smaller maps never give memory back before map_free
    LAST_CAPACITY = 0x40000000

# Drawn once, when the module is loaded; constant ever after. All four words are secret: a peer that knew a word could make one factor of a product 0.
cdef uint64_t secret[4]


cdef void map_init(Map *map, MapEquals equals, void *context) noexcept nogil:
    map.slots = NULL
    map.count = 0
    map.capacity = 0
    map.equals = equals
    map.context = context


cdef void map_free(Map *map) noexcept nogil:
    mem_free(map.slots)
    map_init(map, map.equals, map.context)


cdef inline MapSlot *slot_find(const Map *map, uint32_t hash, const void *key) noexcept nogil:
    cdef uint32_t mask = map.capacity - 1
    cdef uint32_t at = hash & mask
    cdef uint32_t way = 0
    cdef MapSlot *slot
    if unlikely(map.count == 0):
        return NULL
    while True:
        slot = &map.slots[at]
        if slot.used <= way:
            return NULL
        if slot.hash == hash and likely(map.equals(map.context, slot.value, key)):
            return slot
        at = (at + 1) & mask
        way += 1


cdef inline void slot_place(MapSlot *slots, uint32_t mask, uint32_t hash, uint64_t value) noexcept nogil:
    """There is an empty slot. The one that has come further takes the place, the other one walks on."""
    cdef uint32_t at = hash & mask
    cdef uint32_t used = 1
    cdef MapSlot moved
    cdef MapSlot *slot
    while True:
        slot = &slots[at]
        if slot.used < used:
            moved = slot[0]
            slot.value = value
            slot.hash = hash
            slot.used = used
            if moved.used == 0:
                return
            value = moved.value
            hash = moved.hash
            used = moved.used
        at = (at + 1) & mask
        used += 1


cdef int map_resize(Map *map, uint32_t capacity) noexcept nogil:
    cdef MapSlot *slots
    cdef uint32_t i
    slots = <MapSlot *> mem_alloc_zeroed(capacity, sizeof(MapSlot))
    if unlikely(slots == NULL):
        return ST_NO_MEMORY
    for i in range(map.capacity):
        if map.slots[i].used != 0:
            slot_place(slots, capacity - 1, map.slots[i].hash, map.slots[i].value)
    mem_free(map.slots)
    map.slots = slots
    map.capacity = capacity
    return ST_OK


cdef bint map_find(const Map *map, uint32_t hash, const void *key, uint64_t *value) noexcept nogil:
    cdef MapSlot *slot = slot_find(map, hash, key)
    if slot == NULL:
        return False
    if value != NULL:
        value[0] = slot.value
    return True


cdef int map_insert(Map *map, uint32_t hash, uint64_t value) noexcept nogil:
    if unlikely(map.count >= map.capacity - (map.capacity >> 3)):
        if unlikely(map.capacity >= LAST_CAPACITY):
            return ST_NO_MEMORY
        if map_resize(map, map.capacity * 2 if map.capacity != 0 else FIRST_CAPACITY) != ST_OK:
            return ST_NO_MEMORY
    slot_place(map.slots, map.capacity - 1, hash, value)
    map.count += 1
    return ST_OK


cdef bint map_remove(Map *map, uint32_t hash, const void *key, uint64_t *value) noexcept nogil:
    cdef MapSlot *slot = slot_find(map, hash, key)
    cdef uint32_t mask = map.capacity - 1
    cdef uint32_t at, behind
    if slot == NULL:
        return False
    if value != NULL:
        value[0] = slot.value
    at = <uint32_t> (slot - map.slots)
    while True:
        behind = (at + 1) & mask
        if map.slots[behind].used <= 1:        # empty, or at home: nobody wants to come nearer
            break
        map.slots[at] = map.slots[behind]
        map.slots[at].used -= 1
        at = behind
    map.slots[at].used = 0
    map.count -= 1
    if unlikely(map.capacity > SHRINK_CAPACITY and map.count < map.capacity >> 4):
        map_resize(map, map.capacity >> 1)     # refused: the larger table goes on to serve
    return True


cdef bint map_replace(Map *map, uint32_t hash, const void *key, uint64_t value) noexcept nogil:
    cdef MapSlot *slot = slot_find(map, hash, key)
    if slot == NULL:
        return False
    slot.value = value
    return True


cdef bint map_next(const Map *map, uint32_t *cursor, uint64_t *value) noexcept nogil:
    cdef uint32_t at = cursor[0]
    while at < map.capacity:
        if map.slots[at].used != 0:
            value[0] = map.slots[at].value
            cursor[0] = at + 1
            return True
        at += 1
    cursor[0] = at
    return False


cdef inline uint64_t fold(uint64_t a, uint64_t b) noexcept nogil:
    """Both halves of the product, one over the other: every input bit reaches every output bit."""
    cdef uint64_t high
    cdef uint64_t low = multiply_u64_wide(a, b, &high)
    return low ^ high


cdef inline uint64_t finish(uint64_t a, uint64_t b, uint64_t state) noexcept nogil:
    cdef uint64_t high
    cdef uint64_t low = multiply_u64_wide(a ^ secret[1], b ^ state, &high)
    return fold(low ^ secret[2], high ^ secret[3])


cdef uint64_t hash_bytes64(Span key) noexcept nogil:
    cdef const uint8_t *p = key.p
    cdef uint32_t left = key.n
    cdef uint64_t state = secret[0] + <uint64_t> key.n * 0x9E3779B97F4A7C15U
    cdef uint64_t other
    if likely(left <= 16):
        if left >= 8:
            return finish(load_u64_native(p), load_u64_native(p + left - 8), state)
        if left >= 4:
            return finish(load_u32_native(p), load_u32_native(p + left - 4), state)
        if left > 0:
            return finish(p[0] | <uint64_t> p[left >> 1] << 8 | <uint64_t> p[left - 1] << 16, 0, state)
        return finish(0, 0, state)
    if left > 32:
        other = state ^ secret[2]
        while left > 32:
            state = fold(load_u64_native(p) ^ secret[1], load_u64_native(p + 8) ^ state)
            other = fold(load_u64_native(p + 16) ^ secret[3], load_u64_native(p + 24) ^ other)
            p += 32
            left -= 32
        state ^= other
    if left > 16:
        state = fold(load_u64_native(p) ^ secret[1], load_u64_native(p + 8) ^ state)
        p += 16
        left -= 16
    # The last 16 bytes, which overlap what is folded in already when fewer are left.
    return finish(load_u64_native(p + left - 16), load_u64_native(p + left - 8), state)


cdef uint32_t hash_bytes(Span key) noexcept nogil:
    return <uint32_t> (hash_bytes64(key) >> 32)


cdef uint32_t hash_pair(uint64_t a, uint64_t b) noexcept nogil:
    return <uint32_t> (finish(a, b, secret[0]) >> 32)


cdef uint64_t hash_seed() noexcept nogil:
    return secret[0]


cdef int random_bytes(void *out, uint32_t n) noexcept nogil:
    return ST_OK if system_random(out, n) == 0 else ST_ERROR


if random_bytes(secret, sizeof(secret)) != ST_OK:
    raise ImportError("mqttc: the system's random generator gave no seed for the hash tables")
