"""Retained messages of all versions: one store, striped by the topic's first level, a lock per stripe.

A stripe holds a hash map (exact topic, O(1) update) and an ordered index of topics, so that a subscriber's cursor is nothing but a filter
and the last topic handed out: it survives changes, reconnects and back-pressure, and a message is read when it is encoded.
PUBLISH sets here before it looks its route up; SUBSCRIBE inserts in the tree before it reads here; the stripe's lock orders the two. [any thread]
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from mqttc.base.msg cimport Msg, MsgPool
from mqttc.base.types cimport Span

cdef struct RetainStore:
    uint64_t count                         # atomic gauges
    uint64_t bytes                         # of memory held: blocks, index entries and topics
    uint64_t max_count                     # limits; 0: none
    uint64_t max_bytes
    uint64_t *versions                     # atomic: counts changes; NULL: nobody asks
    void *private

cdef struct RetainCursor:                  # of one hand-out; owner thread only
    uint8_t *filter                        # owned copy, without $share
    uint8_t *topic                         # owned: the last topic handed out or passed over
    uint16_t filter_bytes
    uint16_t topic_bytes                   # 0: none yet in this stripe
    uint16_t topic_capacity
    uint16_t stripe                        # the next to read; RETAIN_END: at the end

cdef enum:
    RETAIN_END = 0xFFFF

cdef RetainStore *retain_build(uint64_t max_count, uint64_t max_bytes) noexcept nogil
cdef void retain_free(RetainStore *store, MsgPool *pool) noexcept nogil
# Sets (takes a reference of its own) or, when the payload is empty, clears [MQTT-3.3.1-6]. ST_OK, ST_NO_MEMORY, ST_LIMIT (not stored: a new topic over a limit,
# or a larger message over max_bytes; what stood there stands). The replaced message is dropped into pool after the lock is let go.
# version: of two changes to one topic the later one's is higher; 0 where the store counts none. May be NULL.
cdef int retain_set(RetainStore *store, MsgPool *pool, Msg *msg, uint64_t *version) noexcept nogil
cdef int retain_cursor_init(RetainCursor *cursor, Span filter) noexcept nogil          # ST_OK, ST_NO_MEMORY
# A fresh cursor goes on behind that topic, in the store's order. ST_OK, ST_NO_MEMORY.
cdef int retain_cursor_seek(RetainCursor *cursor, Span topic) noexcept nogil
cdef void retain_cursor_free(RetainCursor *cursor) noexcept nogil
# Up to room messages that match, in topic order inside a stripe, each with a reference for the caller; expired ones are left out (and removed).
# Gives the number; 0: the end; ST_NO_MEMORY: the cursor stands where it stood. A bounded number of topics is looked at under one lock hold.
cdef int retain_next(RetainStore *store, RetainCursor *cursor, MsgPool *pool, int64_t now_ms, Msg **out, int room) noexcept nogil
# The same, but looks at about budget topics at most: 0 is the end only when retain_done says so, else come again in a later turn.
cdef int retain_step(RetainStore *store, RetainCursor *cursor, MsgPool *pool, int64_t now_ms, Msg **out, int room, uint32_t budget) noexcept nogil
# Removes expired messages, looking at most at budget entries; goes on where it stopped. Gives the number removed.
cdef uint32_t retain_sweep(RetainStore *store, MsgPool *pool, int64_t now_ms, uint32_t budget) noexcept nogil

cdef inline bint retain_done(const RetainCursor *cursor) noexcept nogil:
    return cursor.stripe == RETAIN_END
