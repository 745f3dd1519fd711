"""Output queues. Chunks and arrays of extents come from free lists of their thread, so that a queue which fills and empties once per turn
never reaches malloc."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from mqttc.base.alloc cimport mem_alloc, mem_free
from mqttc.base.types cimport ST_AGAIN, ST_CLOSED, ST_NO_MEMORY, ST_OK, counter_add, counter_sub
from mqttc.net.transport cimport IO_AGAIN, Transport, iovec

cdef extern from "mqttc/net/sockets.h" nogil:
    const bint MQTTC_NET_DEBUG

cdef enum:
    CLASS_COUNT = 3
    CLASS_OWN_SIZE = 3         # malloc'ed to size, never kept
    RING_COUNT = 3
    RING_FIRST = 8             # extents; each class has four times the one before
    PARTS = 64                 # iovecs per write
    GATHER_BELOW = 1024        # shorter extents are copied together: at 2 KiB copy and reference cost the same
    FLUSH_BYTES = 1 << 20      # per flush: more waits for the next turn, as after a short write


cdef inline uint32_t class_bytes(uint32_t size_class) noexcept nogil:
    return 2048 if size_class == 0 else 16384 if size_class == 1 else 65536


cdef inline uint32_t class_kept(uint32_t size_class) noexcept nogil:
    """How many free chunks a pool keeps: up to 2 MiB of each class."""
    return (2 << 20) // class_bytes(size_class)


cdef inline uint32_t ring_extents(uint32_t ring_class) noexcept nogil:
    return RING_FIRST << (2 * ring_class)


cdef inline uint32_t ring_kept(uint32_t ring_class) noexcept nogil:
    return 1024 >> (2 * ring_class)


cdef void chunk_pool_init(ChunkPool *pool) noexcept nogil:
    memset(pool, 0, sizeof(ChunkPool))


cdef void chunk_pool_free(ChunkPool *pool) noexcept nogil:
    cdef Chunk *chunk
    cdef Extent *ring
    cdef uint32_t i
    for i in range(CLASS_COUNT):
        while pool.free[i] != NULL:
            chunk = pool.free[i]
            pool.free[i] = chunk.next
            mem_free(chunk)
        pool.free_count[i] = 0
    for i in range(RING_COUNT):
        while pool.rings[i] != NULL:
            ring = pool.rings[i]
            pool.rings[i] = (<Extent **> ring)[0]
            mem_free(ring)
        pool.ring_count[i] = 0


cdef Chunk *chunk_build(ChunkPool *pool, uint32_t capacity) noexcept nogil:
    cdef uint32_t size_class = 0
    cdef size_t total
    cdef Chunk *chunk
    while size_class < CLASS_COUNT and class_bytes(size_class) - sizeof(Chunk) < capacity:
        size_class += 1
    if size_class < CLASS_COUNT and pool.free[size_class] != NULL:
        chunk = pool.free[size_class]
        pool.free[size_class] = chunk.next
        pool.free_count[size_class] -= 1
    else:
        total = class_bytes(size_class) if size_class < CLASS_COUNT else sizeof(Chunk) + <size_t> capacity
        chunk = <Chunk *> mem_alloc(total)
        if chunk == NULL:
            return NULL
        chunk.size_class = size_class
        chunk.capacity = <uint32_t> (total - sizeof(Chunk))
        chunk.pool = pool
    chunk.next = NULL
    chunk.refs = 1
    chunk.used = 0
    pool.made += 1
    counter_add(&pool.bytes, chunk.capacity)
    return chunk


cdef void chunk_free(ChunkPool *pool, Chunk *chunk) noexcept nogil:
    cdef uint32_t size_class = chunk.size_class
    pool.freed += 1
    counter_sub(&pool.bytes, chunk.capacity)
    if MQTTC_NET_DEBUG:
        memset(chunk_data(chunk), 0xDD, chunk.capacity)
    if size_class == CLASS_OWN_SIZE or pool.free_count[size_class] >= class_kept(size_class):
        mem_free(chunk)
        return
    chunk.next = pool.free[size_class]
    pool.free[size_class] = chunk
    pool.free_count[size_class] += 1


cdef Extent *ring_take(ChunkPool *pool, uint32_t capacity) noexcept nogil:
    cdef Extent *ring
    cdef uint32_t i
    for i in range(RING_COUNT):
        if ring_extents(i) == capacity and pool.rings[i] != NULL:
            ring = pool.rings[i]
            pool.rings[i] = (<Extent **> ring)[0]
            pool.ring_count[i] -= 1
            return ring
    return <Extent *> mem_alloc(<size_t> capacity * sizeof(Extent))


cdef void ring_give(ChunkPool *pool, Extent *ring, uint32_t capacity) noexcept nogil:
    cdef uint32_t i
    for i in range(RING_COUNT):
        if ring_extents(i) == capacity and pool.ring_count[i] < ring_kept(i):
            (<Extent **> ring)[0] = pool.rings[i]
            pool.rings[i] = ring
            pool.ring_count[i] += 1
            return
    mem_free(ring)


cdef int outq_grow(ChunkPool *pool, OutQ *queue) noexcept nogil:
    """A larger array of extents. ST_NO_MEMORY: unchanged."""
    cdef uint32_t capacity = queue.capacity * 4 if queue.capacity else RING_FIRST
    cdef uint32_t first
    cdef Extent *ring
    if capacity > (1 << 26):
        return ST_NO_MEMORY
    ring = ring_take(pool, capacity)
    if ring == NULL:
        return ST_NO_MEMORY
    if queue.extents != NULL:
        first = queue.capacity - queue.head
        if first > queue.count:
            first = queue.count
        memcpy(ring, queue.extents + queue.head, <size_t> first * sizeof(Extent))
        memcpy(ring + first, queue.extents, <size_t> (queue.count - first) * sizeof(Extent))
        ring_give(pool, queue.extents, queue.capacity)
    queue.extents = ring
    queue.capacity = capacity
    queue.head = 0
    return ST_OK


cdef int outq_push_extent(OutQ *queue, Chunk *chunk, uint32_t offset, uint32_t n) noexcept nogil:
    cdef Extent *extent
    if n == 0:
        return ST_OK
    if queue.count == queue.capacity and outq_grow(chunk.pool, queue) != ST_OK:
        return ST_NO_MEMORY
    extent = &queue.extents[(queue.head + queue.count) & (queue.capacity - 1)]
    extent.chunk = chunk
    extent.offset = offset
    extent.bytes = n
    queue.count += 1
    queue.bytes += n
    chunk.refs += 1
    return ST_OK


cdef uint8_t *outq_reserve_slow(ChunkPool *pool, OutQ *queue, uint32_t n) noexcept nogil:
    """A new extent for private bytes, in the tail chunk or in a new one."""
    cdef Chunk *tail = queue.tail
    cdef Chunk *made = NULL
    cdef uint32_t room
    if tail == NULL or tail.capacity - tail.used < n:
        # A queue that grows gets larger chunks; a large packet fills one of its own size.
        room = class_bytes(0 if queue.bytes < 4096 else 1 if queue.bytes < 65536 else 2) - <uint32_t> sizeof(Chunk)
        made = chunk_build(pool, n if n > room else room)
        if made == NULL:
            return NULL
        tail = made
    if outq_push_extent(queue, tail, tail.used, n) != ST_OK:
        if made != NULL:
            chunk_drop(pool, made)
        return NULL
    if made != NULL:
        if queue.tail != NULL:
            chunk_drop(pool, queue.tail)
        queue.tail = made
    tail.used += n
    return chunk_data(tail) + tail.used - n


cdef void outq_release(ChunkPool *pool, OutQ *queue) noexcept nogil:
    """An empty queue owns nothing."""
    if queue.tail != NULL:
        chunk_drop(pool, queue.tail)
        queue.tail = NULL
    if queue.extents != NULL:
        ring_give(pool, queue.extents, queue.capacity)
        queue.extents = NULL
    queue.head = 0
    queue.capacity = 0


cdef void outq_clear(ChunkPool *pool, OutQ *queue) noexcept nogil:
    cdef uint32_t i
    for i in range(queue.count):
        chunk_drop(pool, queue.extents[(queue.head + i) & (queue.capacity - 1)].chunk)
    queue.count = 0
    queue.bytes = 0
    outq_release(pool, queue)


cdef void outq_consume(ChunkPool *pool, OutQ *queue, uint64_t taken) noexcept nogil:
    """Gives up what the transport took from the front."""
    cdef Extent *extent
    queue.bytes -= <uint32_t> taken
    while taken != 0:
        extent = &queue.extents[queue.head]
        if taken < extent.bytes:
            extent.offset += <uint32_t> taken
            extent.bytes -= <uint32_t> taken
            return
        taken -= extent.bytes
        chunk_drop(pool, extent.chunk)
        queue.head = (queue.head + 1) & (queue.capacity - 1)
        queue.count -= 1


cdef int outq_gather(OutQ *queue, GatherBuffer *gather, uint64_t limit, iovec *parts, uint64_t *total) noexcept nogil:
    """Lists the front of the queue in `parts`; returns their number, and in `total` their bytes."""
    cdef Extent *extent
    cdef uint32_t i, gathered = 0
    cdef int count = 0
    cdef bint joined = False            # the last part ends where the gather buffer is filled to
    cdef uint64_t bytes = 0
    for i in range(queue.count):
        if bytes >= limit:
            break
        extent = &queue.extents[(queue.head + i) & (queue.capacity - 1)]
        if extent.bytes < GATHER_BELOW and queue.count > 1:
            if extent.bytes > gather.capacity - gathered or (not joined and count == PARTS):
                break
            memcpy(gather.bytes + gathered, chunk_data(extent.chunk) + extent.offset, extent.bytes)
            if joined:
                parts[count - 1].iov_len += extent.bytes
            else:
                parts[count].iov_base = gather.bytes + gathered
                parts[count].iov_len = extent.bytes
                count += 1
                joined = True
            gathered += extent.bytes
        else:
            if count == PARTS:
                break
            parts[count].iov_base = chunk_data(extent.chunk) + extent.offset
            parts[count].iov_len = extent.bytes
            count += 1
            joined = False
        bytes += extent.bytes
    total[0] = bytes
    return count


cdef int outq_flush(ChunkPool *pool, OutQ *queue, Transport *transport, GatherBuffer *gather, uint64_t *written) noexcept nogil:
    cdef iovec[PARTS] parts
    cdef uint64_t total
    cdef int64_t taken
    cdef int count
    written[0] = 0
    while queue.count:
        if written[0] >= FLUSH_BYTES:
            return ST_AGAIN
        count = outq_gather(queue, gather, FLUSH_BYTES - written[0], parts, &total)
        taken = transport.ops.write(transport, parts, count)
        if taken < 0:
            return ST_AGAIN if taken == IO_AGAIN else ST_CLOSED
        written[0] += <uint64_t> taken
        outq_consume(pool, queue, <uint64_t> taken)
        if <uint64_t> taken < total:
            return ST_AGAIN
    outq_release(pool, queue)
    return ST_OK
