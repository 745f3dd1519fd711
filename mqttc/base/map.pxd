"""Map: a flat hash map (open addressing) of uint64 values, which are pointers or handles; the key lives in what the value names.

The caller hashes (hash_bytes with the per-process random seed) and compares (equals), so that a key may be a span, a (parent, level) pair,
or an integer. One slot is 16 bytes; load at most 7/8; deletion leaves no tombstones (backward shift).
"""

from libc.stdint cimport uint32_t, uint64_t

from mqttc.base.types cimport Span

ctypedef bint (*MapEquals)(void *context, uint64_t value, const void *key) noexcept nogil

cdef struct MapSlot:
    uint64_t value
    uint32_t hash
    uint32_t used

cdef struct Map:
    MapSlot *slots
    uint32_t count
    uint32_t capacity      # a power of two, or 0
    MapEquals equals
    void *context

cdef void map_init(Map *map, MapEquals equals, void *context) noexcept nogil
cdef void map_free(Map *map) noexcept nogil
cdef bint map_find(const Map *map, uint32_t hash, const void *key, uint64_t *value) noexcept nogil       # value may be NULL
cdef int map_insert(Map *map, uint32_t hash, uint64_t value) noexcept nogil                              # key must be absent; ST_NO_MEMORY
cdef bint map_remove(Map *map, uint32_t hash, const void *key, uint64_t *value) noexcept nogil
cdef bint map_replace(Map *map, uint32_t hash, const void *key, uint64_t value) noexcept nogil           # of a present key
cdef bint map_next(const Map *map, uint32_t *cursor, uint64_t *value) noexcept nogil                     # start with cursor 0; no change meanwhile

cdef uint32_t hash_bytes(Span key) noexcept nogil                          # seeded; good and fast for 4..100 bytes; never 0-length special
cdef uint64_t hash_bytes64(Span key) noexcept nogil
cdef uint32_t hash_pair(uint64_t a, uint64_t b) noexcept nogil             # of two integers, say (parent, level) or (handle, packet id)
cdef uint64_t hash_seed() noexcept nogil
cdef int random_bytes(void *out, uint32_t n) noexcept nogil                # from the system's generator (getrandom / arc4random)
