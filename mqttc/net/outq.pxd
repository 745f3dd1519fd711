"""OutQ: what a connection still has to send, as extents of chunks.

A chunk is written once and never changed where an extent covers it. Private bytes (acks, QoS > 0 packets) are appended to the queue's own tail
chunk; a broker's *run* of packets that many receivers share is a chunk too, and neighbouring extents of it merge. Everything here belongs to one
thread: reference counts are plain. An empty queue owns nothing.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from mqttc.net.transport cimport Transport

cdef struct Chunk:
    Chunk *next                # in a free list
    ChunkPool *pool            # where it came from; also gives a queue its array of extents
    uint32_t refs              # extents, plus one of a queue's tail or of the run's owner
    uint32_t capacity
    uint32_t used
    uint32_t size_class        # 0: 2 KiB, 1: 16 KiB, 2: 64 KiB, 3: malloc'ed to size

cdef struct ChunkPool:         # one per thread
    Chunk *free[3]
    uint32_t free_count[3]
    Extent *rings[3]           # arrays of 8, 32 and 128 extents; the first bytes of each point to the next
    uint32_t ring_count[3]
    uint64_t made              # chunks in use, ever
    uint64_t freed             # of these, given back: to a free list or to the system
    uint64_t bytes             # gauge of the chunks in use; any thread may read

cdef struct Extent:
    Chunk *chunk
    uint32_t offset
    uint32_t bytes

cdef struct OutQ:
    Extent *extents            # a ring; NULL while the queue is empty
    Chunk *tail                # private, with room; one reference
    uint32_t head
    uint32_t count
    uint32_t capacity          # a power of two
    uint32_t bytes             # unsent, in all extents

cdef struct GatherBuffer:      # one per thread: scratch of a flush
    uint8_t *bytes
    uint32_t capacity

cdef void chunk_pool_init(ChunkPool *pool) noexcept nogil
cdef void chunk_pool_free(ChunkPool *pool) noexcept nogil
cdef Chunk *chunk_build(ChunkPool *pool, uint32_t capacity) noexcept nogil         # refs 1, used 0, at least that capacity; NULL: no memory
cdef void chunk_free(ChunkPool *pool, Chunk *chunk) noexcept nogil                 # called by chunk_drop at the last reference
cdef uint8_t *outq_reserve_slow(ChunkPool *pool, OutQ *queue, uint32_t n) noexcept nogil
cdef int outq_push_extent(OutQ *queue, Chunk *chunk, uint32_t offset, uint32_t n) noexcept nogil    # takes a reference of its own; ST_NO_MEMORY
cdef void outq_clear(ChunkPool *pool, OutQ *queue) noexcept nogil
# Writes as much as the transport takes: long extents by reference, short ones gathered. ST_OK: empty now; ST_AGAIN: short write; ST_CLOSED: failed.
# written: bytes taken.
cdef int outq_flush(ChunkPool *pool, OutQ *queue, Transport *transport, GatherBuffer *gather, uint64_t *written) noexcept nogil

cdef inline uint8_t *chunk_data(Chunk *chunk) noexcept nogil:
    return <uint8_t *> chunk + sizeof(Chunk)

cdef inline void chunk_drop(ChunkPool *pool, Chunk *chunk) noexcept nogil:
    chunk.refs -= 1
    if chunk.refs == 0:
        chunk_free(pool, chunk)

cdef inline uint8_t *outq_reserve(ChunkPool *pool, OutQ *queue, uint32_t n) noexcept nogil:
    """Room for exactly n contiguous private bytes at the end of the queue, which the caller fills at once. NULL: no memory, unchanged."""
    cdef Chunk *tail = queue.tail
    cdef Extent *last
    cdef uint8_t *out
    if tail != NULL and queue.count and tail.capacity - tail.used >= n:
        last = &queue.extents[(queue.head + queue.count - 1) & (queue.capacity - 1)]
        if last.chunk == tail and last.offset + last.bytes == tail.used:
            out = chunk_data(tail) + tail.used
            tail.used += n
            last.bytes += n
            queue.bytes += n
            return out
    return outq_reserve_slow(pool, queue, n)

cdef inline int outq_share(OutQ *queue, Chunk *chunk, uint32_t offset, uint32_t n) noexcept nogil:
    """Appends n bytes of a shared chunk by reference; merges with the last extent where they are neighbours. ST_OK or ST_NO_MEMORY."""
    cdef Extent *last
    if queue.count:
        last = &queue.extents[(queue.head + queue.count - 1) & (queue.capacity - 1)]
        if last.chunk == chunk and last.offset + last.bytes == offset:
            last.bytes += n
            queue.bytes += n
            return 0
    return outq_push_extent(queue, chunk, offset, n)
