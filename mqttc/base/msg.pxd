"""Msg: one immutable, reference-counted block: topic, forwardable properties, payload.

`data` holds the bytes; topic, properties and payload are three runs inside it, anywhere (a large packet is received straight into a block and
stays where it lies). `properties` are v5 wire bytes that are forwarded untouched: everything but topic alias, subscription identifiers and
message expiry, without a length in front. Immutable after build, but for `refs`. A block goes back to its maker: see msg_drop.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from mqttc.base.types cimport Span

cdef struct Msg:
    # immutable after build
    int64_t expires_at_ms      # monotonic; 0: never
    uint64_t publisher         # session handle, 0: none (for no local)
    uint32_t topic_offset
    uint32_t properties_offset
    uint32_t payload_offset
    uint32_t properties_bytes
    uint32_t payload_bytes
    uint16_t topic_bytes
    uint8_t qos
    uint8_t retain             # as published
    uint32_t capacity          # bytes in data
    uint16_t owner             # the worker that made it
    uint8_t size_class         # of the maker's free lists; 255: malloc'ed for itself
    # any thread
    uint32_t refs              # atomic: relaxed add, acq_rel sub
    # the list it stands in when dead; alive: see msg_journal
    Msg *next

cdef struct MsgPool:           # one per worker, owner thread only
    Msg *free[8]
    uint32_t free_count[8]
    uint16_t owner
    uint64_t made              # counters of this thread; any thread may read. Over all pools made - freed is the number of live blocks
    uint64_t freed             # counted where the last reference is dropped, not where the block comes to rest
    uint64_t bytes_made        # the same in bytes: over all pools bytes_made - bytes_freed is the memory of live blocks
    uint64_t bytes_freed
    Msg **strays               # per other worker: blocks to mail home (array of owners_count lists)
    uint32_t *stray_count
    uint32_t owners_count

cdef int pool_init(MsgPool *pool, uint16_t owner, uint32_t owners_count) noexcept nogil
cdef void pool_free(MsgPool *pool) noexcept nogil                          # frees the cached blocks
cdef Msg *msg_alloc(MsgPool *pool, uint32_t capacity) noexcept nogil       # refs 1, fields zero but capacity, owner, size_class; NULL: no memory
cdef Msg *msg_alloc_for(MsgPool *pool, uint32_t capacity, uint16_t owner) noexcept nogil   # the same, a block for itself that belongs to that worker
cdef void msg_drop(MsgPool *pool, Msg *msg) noexcept nogil                 # gives one reference up; the last one sends the block home or to free list
cdef Msg *msg_take_strays(MsgPool *pool, uint16_t owner, uint32_t *count) noexcept nogil   # dead blocks to mail to that worker; NULL: none; count may be NULL
cdef void msg_come_home(MsgPool *pool, Msg *chain) noexcept nogil          # a chain of dead blocks that other workers mailed back

cdef inline uint8_t *msg_data(Msg *msg) noexcept nogil:
    return <uint8_t *> msg + sizeof(Msg)

cdef inline uint32_t msg_expiry_left(const Msg *msg, int64_t now_ms) noexcept nogil:
    """Seconds of a message that expires: what was given less what it has waited [MQTT-3.3.2-6]; at least 1 until it has expired, then 0.

    To the nearest: where the receiver's worker has read its clock a little earlier than the publisher's, not more than was given.
    """
    cdef int64_t left_ms = msg.expires_at_ms - now_ms
    if left_ms <= 0:
        return 0
    return <uint32_t> ((left_ms + 500) // 1000) if left_ms >= 1000 else 1

cdef inline uint64_t msg_journal(const Msg *msg) noexcept nogil:
    """Its id in the journal; 0: it is not there. Immutable after build, like all that is said of a message."""
    return <uint64_t> msg.next

cdef inline void msg_journal_set(Msg *msg, uint64_t id) noexcept nogil:
    msg.next = <Msg *> id

cdef inline Span msg_topic(const Msg *msg) noexcept nogil:
    cdef Span span
    span.p = <const uint8_t *> msg + sizeof(Msg) + msg.topic_offset
    span.n = msg.topic_bytes
    return span

cdef inline Span msg_properties(const Msg *msg) noexcept nogil:
    cdef Span span
    span.p = <const uint8_t *> msg + sizeof(Msg) + msg.properties_offset
    span.n = msg.properties_bytes
    return span

cdef inline Span msg_payload(const Msg *msg) noexcept nogil:
    cdef Span span
    span.p = <const uint8_t *> msg + sizeof(Msg) + msg.payload_offset
    span.n = msg.payload_bytes
    return span

cdef extern from "mqttc/base/native.h" nogil:
    uint32_t _refs_add "atomic_add_u32_relaxed" (uint32_t *p, uint32_t v) noexcept

cdef inline void msg_share(Msg *msg, uint32_t n) noexcept nogil:
    """n further references, in one atomic step."""
    _refs_add(&msg.refs, n)
