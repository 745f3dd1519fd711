"""Loops over base/ for bench/micro: each call does so many operations without the GIL and returns something that depends on all of them."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from mqttc.base.alloc cimport mem_alloc_zeroed, mem_free
from mqttc.base.inbox cimport Inbox, Mail, inbox_free, inbox_init, inbox_post, inbox_take
from mqttc.base.map cimport Map, hash_bytes, hash_pair, map_find, map_free, map_init, map_insert, map_remove
from mqttc.base.msg cimport Msg, MsgPool, msg_alloc, msg_come_home, msg_drop, msg_share, msg_take_strays, pool_free, pool_init
from mqttc.base.ring cimport Ring, ring_at, ring_free, ring_init, ring_pop_front, ring_push
from mqttc.base.timer cimport TimerNode, TimerWheel, wheel_add, wheel_build, wheel_cancel, wheel_expire, wheel_free, wheel_next_ms
from mqttc.base.types cimport ST_OK, Span
from mqttc.base.vec cimport Vec, vec_at, vec_free, vec_init, vec_push


def hash_topics(bytes topic, uint32_t operations) -> int:
    cdef Span key
    cdef uint32_t mixed = 0
    cdef uint32_t i
    key.p = <const uint8_t *> <const char *> topic
    key.n = <uint32_t> len(topic)
    with nogil:
        for i in range(operations):
            mixed += hash_bytes(key)
    return mixed


cdef bint number_equals(void *context, uint64_t value, const void *key) noexcept nogil:
    return value == (<const uint64_t *> key)[0]


cdef class MapBench:
    """A table of the numbers below count; what is looked up is picked by a multiplicative walk, so that the cache has to work."""
    cdef Map map
    cdef uint32_t count

    def __cinit__(self, uint32_t count):
        cdef uint64_t i
        map_init(&self.map, number_equals, NULL)
        self.count = count
        for i in range(count):
            if map_insert(&self.map, hash_pair(i, 0), i) != ST_OK:
                raise MemoryError

    def __dealloc__(self):
        map_free(&self.map)

    def find(self, uint32_t operations, uint32_t first=0) -> int:
        """Keys at and above count are absent."""
        cdef uint64_t value = 0
        cdef uint32_t found = 0
        cdef uint32_t i
        cdef uint64_t key
        with nogil:
            for i in range(operations):
                key = first + (<uint64_t> i * 2654435761U) % self.count
                found += map_find(&self.map, hash_pair(key, 0), &key, &value)
        return found

    def remove_and_insert(self, uint32_t operations) -> int:
        cdef uint32_t done = 0
        cdef uint32_t i
        cdef uint64_t key
        cdef uint32_t hash
        with nogil:
            for i in range(operations):
                key = (<uint64_t> i * 2654435761U) % self.count
                hash = hash_pair(key, 0)
                done += map_remove(&self.map, hash, &key, NULL)
                done += map_insert(&self.map, hash, key) == ST_OK
        return done


def ring_pass(uint32_t depth, uint32_t operations) -> int:
    """Push one, pop one, with so many in between: an in-flight window in steady state."""
    cdef Ring ring
    cdef uint64_t total = 0
    cdef uint32_t i
    cdef uint64_t *item
    ring_init(&ring, sizeof(uint64_t))
    with nogil:
        for i in range(operations + depth):
            item = <uint64_t *> ring_push(&ring)
            if item == NULL:
                break
            item[0] = i
            if i >= depth:
                total += (<uint64_t *> ring_at(&ring, 0))[0]
                ring_pop_front(&ring, 1)
    ring_free(&ring)
    return total


def vec_fill(uint32_t operations) -> int:
    cdef Vec vec
    cdef uint64_t total = 0
    cdef uint32_t i
    cdef uint64_t *item
    vec_init(&vec, sizeof(uint64_t))
    with nogil:
        for i in range(operations):
            item = <uint64_t *> vec_push(&vec)
            if item == NULL:
                break
            item[0] = i
        for i in range(vec.count):
            total += (<uint64_t *> vec_at(&vec, i))[0]
    vec_free(&vec)
    return total


cdef class MsgBench:
    cdef MsgPool home
    cdef MsgPool away

    def __cinit__(self):
        if pool_init(&self.home, 0, 2) != ST_OK or pool_init(&self.away, 1, 2) != ST_OK:
            raise MemoryError

    def __dealloc__(self):
        pool_free(&self.home)
        pool_free(&self.away)

    def alloc_and_drop(self, uint32_t capacity, uint32_t operations) -> int:
        cdef uint32_t done = 0
        cdef uint32_t i
        cdef Msg *msg
        with nogil:
            for i in range(operations):
                msg = msg_alloc(&self.home, capacity)
                if msg == NULL:
                    break
                msg_drop(&self.home, msg)
                done += 1
        return done

    def share_and_drop(self, uint32_t receivers, uint32_t operations) -> int:
        """One alloc, one share, then a drop for each receiver and the maker's own; counted in drops."""
        cdef uint32_t done = 0
        cdef uint32_t i
        cdef Msg *msg
        with nogil:
            while done < operations:
                msg = msg_alloc(&self.home, 100)
                if msg == NULL:
                    break
                msg_share(msg, receivers)
                for i in range(receivers + 1):
                    msg_drop(&self.home, msg)
                done += receivers + 1
        return done

    def drop_away_and_come_home(self, uint32_t batch, uint32_t operations) -> int:
        cdef uint32_t done = 0
        cdef uint32_t i
        cdef Msg *msg
        with nogil:
            while done < operations:
                for i in range(batch):
                    msg = msg_alloc(&self.home, 100)
                    if msg == NULL:
                        break
                    msg_drop(&self.away, msg)
                    done += 1
                msg_come_home(&self.home, msg_take_strays(&self.away, 0, NULL))
        return done


cdef class WheelBench:
    """So many connections with a keep alive each, spread over 100 s."""
    cdef TimerWheel *wheel
    cdef TimerNode *nodes
    cdef uint32_t count
    cdef int64_t now_ms

    def __cinit__(self, uint32_t count):
        self.count = count
        self.nodes = <TimerNode *> mem_alloc_zeroed(count, sizeof(TimerNode))
        self.wheel = wheel_build(0)
        if self.nodes == NULL or self.wheel == NULL:
            raise MemoryError
        for i in range(count):
            wheel_add(self.wheel, &self.nodes[i], 1000 + i * 100_000 // count)

    def __dealloc__(self):
        wheel_free(self.wheel)
        mem_free(self.nodes)

    def move(self, uint32_t operations) -> int:
        """Cancels and adds again."""
        cdef uint32_t i
        cdef TimerNode *node
        with nogil:
            for i in range(operations):
                node = &self.nodes[(<uint64_t> i * 2654435761U) % self.count]
                wheel_cancel(self.wheel, node)
                wheel_add(self.wheel, node, self.now_ms + 1000 + (i & 0xFFFF))
        return operations

    def fire(self, uint32_t operations) -> int:
        """Time goes on, and what fires is armed again 90 s later: counts the nodes that fired, cascades included."""
        cdef uint32_t fired = 0
        cdef TimerNode *node
        with nogil:
            while fired < operations:
                self.now_ms = wheel_next_ms(self.wheel, self.now_ms)
                node = wheel_expire(self.wheel, self.now_ms)
                while node != NULL:
                    fired += 1
                    wheel_add(self.wheel, node, self.now_ms + 90_000)
                    node = wheel_expire(self.wheel, self.now_ms)
        return fired

    def next_ms(self, uint32_t operations) -> int:
        cdef int64_t total = 0
        cdef uint32_t i
        with nogil:
            for i in range(operations):
                total += wheel_next_ms(self.wheel, self.now_ms)
        return total


cdef class InboxBench:
    cdef Inbox inbox

    def __cinit__(self):
        if inbox_init(&self.inbox) != ST_OK:
            raise OSError("inbox_init")

    def __dealloc__(self):
        inbox_free(&self.inbox)

    def post_and_take(self, uint32_t operations) -> int:
        """One thread, so uncontended, and without the wake-up call."""
        cdef Mail mail
        cdef uint32_t done = 0
        cdef uint32_t i
        with nogil:
            for i in range(operations):
                inbox_post(&self.inbox, &mail, &mail)
                done += inbox_take(&self.inbox) == &mail
        return done
