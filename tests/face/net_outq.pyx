"""Face of the output queue, with a transport that writes to memory and takes as much at a time as the test allows."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from mqttc.base.alloc cimport mem_alloc, mem_fail_after, mem_free, mem_tested
from mqttc.base.types cimport ST_AGAIN, ST_CLOSED, ST_NO_MEMORY, ST_OK
from mqttc.net.outq cimport (
    Chunk, ChunkPool, GatherBuffer, OutQ, chunk_build, chunk_data, chunk_drop, chunk_pool_free, chunk_pool_init, outq_clear, outq_flush,
    outq_reserve, outq_share,
)
from mqttc.net.transport cimport IO_AGAIN, IO_FAILED, Transport, TransportOps, iovec

OK = ST_OK
AGAIN = ST_AGAIN
CLOSED = ST_CLOSED
NO_MEMORY = ST_NO_MEMORY
alloc_tested = mem_tested()


def fail_allocations(int64_t granted) -> None:
    """So many are granted, then one is refused; -1: grant all again."""
    mem_fail_after(granted, True)

cdef enum:
    SINK_BYTES = 4 << 20

cdef struct Sink:              # state of the transport
    uint8_t *bytes
    uint32_t used
    int64_t room               # bytes it still takes; below 0: any number
    bint broken
    uint32_t writes
    uint32_t parts             # of the last write


cdef int64_t sink_write(Transport *transport, const iovec *parts, int count) noexcept nogil:
    cdef Sink *sink = <Sink *> transport.state
    cdef int64_t n, taken = 0
    cdef int i
    sink.writes += 1
    sink.parts = count
    if sink.broken:
        return IO_FAILED
    if sink.room == 0:
        return IO_AGAIN
    for i in range(count):
        n = <int64_t> parts[i].iov_len
        if sink.room >= 0 and n > sink.room:
            n = sink.room
        if n > SINK_BYTES - sink.used:
            return IO_FAILED
        memcpy(sink.bytes + sink.used, parts[i].iov_base, n)
        sink.used += <uint32_t> n
        taken += n
        if sink.room >= 0:
            sink.room -= n
            if sink.room == 0:
                break
    return taken


cdef class Pool:
    """Chunks and a gather buffer of one thread."""
    cdef ChunkPool pool
    cdef GatherBuffer gather

    def __cinit__(self):
        chunk_pool_init(&self.pool)
        self.gather.bytes = <uint8_t *> mem_alloc(65536)
        self.gather.capacity = 65536

    def __dealloc__(self):
        chunk_pool_free(&self.pool)
        mem_free(self.gather.bytes)

    @property
    def live(self) -> int:
        """Chunks made and not freed."""
        return self.pool.made - self.pool.freed

    @property
    def made(self) -> int:
        return self.pool.made

    @property
    def kept(self) -> int:
        return self.pool.free_count[0] + self.pool.free_count[1] + self.pool.free_count[2]

    @property
    def rings_kept(self) -> list:
        return [self.pool.ring_count[0], self.pool.ring_count[1], self.pool.ring_count[2]]


cdef class Run:
    """A chunk that queues share."""
    cdef Pool pool
    cdef Chunk *chunk

    def __cinit__(self, Pool pool not None, uint32_t capacity):
        self.pool = pool
        self.chunk = chunk_build(&pool.pool, capacity)
        if self.chunk == NULL:
            raise MemoryError

    def __dealloc__(self):
        self.drop()

    def drop(self) -> None:
        if self.chunk != NULL:
            chunk_drop(&self.pool.pool, self.chunk)
            self.chunk = NULL

    def append(self, bytes data) -> tuple:
        """(offset, bytes) of what was appended."""
        cdef uint32_t offset = self.chunk.used
        assert len(data) <= self.chunk.capacity - offset
        memcpy(chunk_data(self.chunk) + offset, <const uint8_t *> data, len(data))
        self.chunk.used += <uint32_t> len(data)
        return offset, len(data)

    @property
    def refs(self) -> int:
        return self.chunk.refs

    @property
    def capacity(self) -> int:
        return self.chunk.capacity


cdef class Queue:
    cdef Pool pool
    cdef OutQ queue
    cdef Sink sink
    cdef TransportOps ops
    cdef Transport transport

    def __cinit__(self, Pool pool not None):
        self.pool = pool
        memset(&self.queue, 0, sizeof(OutQ))
        memset(&self.ops, 0, sizeof(TransportOps))
        self.sink.bytes = <uint8_t *> mem_alloc(SINK_BYTES)
        self.sink.room = -1
        self.ops.write = sink_write
        self.transport.ops = &self.ops
        self.transport.state = &self.sink
        self.transport.fd = -1

    def __dealloc__(self):
        outq_clear(&self.pool.pool, &self.queue)
        mem_free(self.sink.bytes)

    def append(self, bytes data) -> bool:
        cdef uint8_t *out = outq_reserve(&self.pool.pool, &self.queue, <uint32_t> len(data))
        if out == NULL:
            return False
        memcpy(out, <const uint8_t *> data, len(data))
        return True

    def share(self, Run run not None, uint32_t offset, uint32_t n) -> int:
        return outq_share(&self.queue, run.chunk, offset, n)

    def flush(self) -> tuple:
        """(status, bytes written)."""
        cdef uint64_t written = 0
        cdef int status = outq_flush(&self.pool.pool, &self.queue, &self.transport, &self.pool.gather, &written)
        return status, written

    def clear(self) -> None:
        outq_clear(&self.pool.pool, &self.queue)

    def allow(self, int64_t room) -> None:
        self.sink.room = room

    def break_transport(self) -> None:
        self.sink.broken = True

    def sent(self) -> bytes:
        """What was written since the last call."""
        data = self.sink.bytes[:self.sink.used]
        self.sink.used = 0
        return data

    @property
    def bytes(self) -> int:
        return self.queue.bytes

    @property
    def extents(self) -> int:
        return self.queue.count

    @property
    def writes(self) -> int:
        return self.sink.writes

    @property
    def parts(self) -> int:
        return self.sink.parts

    @property
    def owns(self) -> bool:
        return self.queue.extents != NULL or self.queue.tail != NULL or self.queue.capacity != 0


cdef class Bench:
    """A turn of `receivers` queues that each get `messages` packets of `size` bytes and are flushed to a transport that takes everything."""
    cdef Pool pool
    cdef OutQ queue
    cdef TransportOps ops
    cdef Transport transport

    def __cinit__(self):
        self.pool = Pool()
        memset(&self.queue, 0, sizeof(OutQ))
        memset(&self.ops, 0, sizeof(TransportOps))
        self.ops.write = swallow
        self.transport.ops = &self.ops

    def private(self, uint32_t messages, uint32_t size, uint32_t turns) -> int:
        """Bytes appended by outq_reserve, as for acks and QoS > 0."""
        cdef uint32_t i, turn
        cdef uint8_t *out
        cdef uint64_t written = 0, total = 0
        with nogil:
            for turn in range(turns):
                for i in range(messages):
                    out = outq_reserve(&self.pool.pool, &self.queue, size)
                    if out != NULL:
                        memset(out, <int> (i & 255), size)
                outq_flush(&self.pool.pool, &self.queue, &self.transport, &self.pool.gather, &written)
                total += written
        return total

    def shared(self, uint32_t messages, uint32_t size, uint32_t turns, bint neighbours) -> int:
        """Extents of a run, which merge (one stream) or do not (every other packet is for somebody else)."""
        cdef uint32_t i, turn, step = size if neighbours else 2 * size
        cdef uint64_t written = 0, total = 0
        cdef Chunk *run = chunk_build(&self.pool.pool, messages * step)
        if run == NULL:
            raise MemoryError
        memset(chunk_data(run), 120, messages * step)
        with nogil:
            for turn in range(turns):
                for i in range(messages):
                    outq_share(&self.queue, run, i * step, size)
                outq_flush(&self.pool.pool, &self.queue, &self.transport, &self.pool.gather, &written)
                total += written
            chunk_drop(&self.pool.pool, run)
        return total


cdef int64_t swallow(Transport *transport, const iovec *parts, int count) noexcept nogil:
    cdef int64_t n = 0
    cdef int i
    for i in range(count):
        n += <int64_t> parts[i].iov_len
    return n
