"""Face of the retained store. The loops run without the GIL, so that threads really meet. A pool belongs to one thread."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from mqttc.base.alloc cimport mem_alloc, mem_free
from mqttc.base.msg cimport (
    Msg, MsgPool, msg_alloc, msg_come_home, msg_data, msg_drop, msg_payload, msg_take_strays, msg_topic, pool_free, pool_init
)
from mqttc.base.types cimport ST_OK, Span, atomic_load_u64_relaxed, span_make
from mqttc.broker.retain cimport (
    RetainCursor, RetainStore, retain_build, retain_cursor_free, retain_cursor_init, retain_done, retain_free, retain_next, retain_set,
    retain_step, retain_sweep
)


cdef class Pool:
    cdef MsgPool pool
    cdef uint32_t owners

    def __cinit__(self, uint16_t owner=0, uint32_t owners=1):
        self.owners = owners
        if pool_init(&self.pool, owner, owners) != ST_OK:
            raise MemoryError

    def __dealloc__(self):
        pool_free(&self.pool)

    def send_home(self, Pool other) -> int:
        """Blocks of the other pool that died here; how many."""
        cdef uint32_t count = 0
        cdef Msg *chain = msg_take_strays(&self.pool, other.pool.owner, &count)
        msg_come_home(&other.pool, chain)
        return count

    @property
    def made(self) -> int:
        return self.pool.made

    @property
    def freed(self) -> int:
        return self.pool.freed


cdef Msg *msg_make(MsgPool *pool, Span topic, Span payload, int64_t expires_at_ms) noexcept nogil:
    cdef Msg *msg = msg_alloc(pool, topic.n + payload.n)
    if msg == NULL:
        return NULL
    msg.expires_at_ms = expires_at_ms
    msg.topic_bytes = <uint16_t> topic.n
    msg.payload_offset = topic.n
    msg.payload_bytes = payload.n
    memcpy(msg_data(msg), topic.p, topic.n)
    memcpy(msg_data(msg) + topic.n, payload.p, payload.n)
    return msg


cdef Span span_of(bytes text):
    return span_make(<const char *> text, len(text))


cdef class Store:
    cdef RetainStore *store
    cdef Pool last

    def __cinit__(self, Pool last, uint64_t max_count=0, uint64_t max_bytes=0):
        """last: the pool that takes what is left at the end."""
        self.last = last
        self.store = retain_build(max_count, max_bytes)
        if self.store == NULL:
            raise MemoryError

    def __dealloc__(self):
        self.close()

    def close(self) -> None:
        retain_free(self.store, &self.last.pool)
        self.store = NULL

    def set(self, Pool pool, bytes topic, bytes payload, int64_t expires_at_ms=0) -> int:
        cdef Msg *msg = msg_make(&pool.pool, span_of(topic), span_of(payload), expires_at_ms)
        if msg == NULL:
            raise MemoryError
        cdef int status = retain_set(self.store, &pool.pool, msg, NULL)
        msg_drop(&pool.pool, msg)
        return status

    def sweep(self, Pool pool, int64_t now_ms, uint32_t budget) -> int:
        return retain_sweep(self.store, &pool.pool, now_ms, budget)

    @property
    def count(self) -> int:
        return atomic_load_u64_relaxed(&self.store.count)

    @property
    def bytes(self) -> int:
        return atomic_load_u64_relaxed(&self.store.bytes)

    @staticmethod
    def cost(Pool pool, bytes topic, bytes payload) -> int:
        """The bytes that a store with nothing but this message counts."""
        cdef Store other = Store(pool)
        other.set(pool, topic, payload)
        return other.bytes

    def fill(self, Pool pool, bytes prefix, uint32_t first, uint32_t count, uint32_t fan) -> int:
        """Topics prefix/i%fan/i, payload 4 bytes; the number stored."""
        cdef uint8_t topic[256]
        cdef uint32_t i, n
        cdef int stored = 0
        cdef Msg *msg
        cdef Span head = span_of(prefix)
        with nogil:
            for i in range(first, first + count):
                memcpy(topic, head.p, head.n)
                n = head.n
                topic[n] = c'/'
                n += 1 + decimal(topic + n + 1, i % fan)
                topic[n] = c'/'
                n += 1 + decimal(topic + n + 1, i)
                msg = msg_make(&pool.pool, span_make(topic, n), span_make(&i, 4), 0)
                if msg != NULL:
                    stored += retain_set(self.store, &pool.pool, msg, NULL) == ST_OK
                    msg_drop(&pool.pool, msg)
        return stored

    def hammer(self, Pool pool, list topics, uint32_t rounds, uint32_t seed, bint clear) -> int:
        """Sets (and now and then clears) topics at random; the number refused by a limit."""
        cdef uint32_t n = len(topics)
        cdef Span *spans = <Span *> mem_alloc(n * sizeof(Span))
        cdef uint64_t state = seed * <uint64_t> 0x9E3779B97F4A7C15 + 1
        cdef uint8_t payload[64]
        cdef uint32_t i, size
        cdef int refused = 0
        cdef Msg *msg
        if spans == NULL:
            raise MemoryError
        for i in range(n):
            spans[i] = span_of(topics[i])
        with nogil:
            for i in range(64):
                payload[i] = c'x'
            for i in range(rounds):
                state = state * <uint64_t> 6364136223846793005 + <uint64_t> 1442695040888963407
                size = 0 if clear and (state >> 40) % 4 == 0 else <uint32_t> (1 + (state >> 45) % 64)
                msg = msg_make(&pool.pool, spans[(state >> 33) % n], span_make(payload, size), 0)
                if msg != NULL:
                    refused += retain_set(self.store, &pool.pool, msg, NULL) != ST_OK
                    msg_drop(&pool.pool, msg)
        mem_free(spans)
        return refused

    def count_often(self, Pool pool, bytes filter, uint32_t times) -> int:
        """All that match, counted, so many times; the last number."""
        cdef RetainCursor cursor
        cdef Msg *out[64]
        cdef Span span = span_of(filter)
        cdef uint32_t i
        cdef int found, j, total = 0
        with nogil:
            for i in range(times):
                total = 0
                if retain_cursor_init(&cursor, span) != ST_OK:
                    break
                while True:
                    found = retain_next(self.store, &cursor, &pool.pool, 0, out, 64)
                    for j in range(found):
                        msg_drop(&pool.pool, out[j])
                    if found <= 0:
                        break
                    total += found
                retain_cursor_free(&cursor)
        return total


cdef uint32_t decimal(uint8_t *out, uint32_t value) noexcept nogil:
    cdef uint32_t n = 1, i
    cdef uint32_t rest = value
    while rest >= 10:
        rest //= 10
        n += 1
    for i in range(n):
        out[n - 1 - i] = <uint8_t> (c'0' + value % 10)
        value //= 10
    return n


cdef class Cursor:
    cdef RetainCursor cursor
    cdef Store store

    def __cinit__(self, Store store, bytes filter):
        self.store = store
        if retain_cursor_init(&self.cursor, span_of(filter)) != ST_OK:
            raise MemoryError

    def __dealloc__(self):
        retain_cursor_free(&self.cursor)

    cdef object handed(self, Pool pool, Msg **out, int count):
        if count < 0:
            return count
        found = []
        for i in range(count):
            topic = msg_topic(out[i])
            payload = msg_payload(out[i])
            found.append(((<const char *> topic.p)[:topic.n], (<const char *> payload.p)[:payload.n]))
            msg_drop(&pool.pool, out[i])
        return found

    def next(self, Pool pool, int64_t now_ms=0, int room=64):
        """[(topic, payload)], empty at the end, or a status below 0"""
        cdef Msg *out[256]
        cdef int count
        assert 0 <= room <= 256
        with nogil:
            count = retain_next(self.store.store, &self.cursor, &pool.pool, now_ms, out, room)
        return self.handed(pool, out, count)

    def step(self, Pool pool, uint32_t budget, int64_t now_ms=0, int room=64):
        cdef Msg *out[256]
        cdef int count
        assert 0 <= room <= 256
        with nogil:
            count = retain_step(self.store.store, &self.cursor, &pool.pool, now_ms, out, room, budget)
        return self.handed(pool, out, count)

    @property
    def done(self) -> bool:
        return retain_done(&self.cursor)
