"""Message blocks: eight size classes with bounded free lists per worker. Pools: owner thread only; blocks: any thread that holds a reference. See
msg.pxd."""

from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from mqttc.base.alloc cimport mem_alloc, mem_alloc_zeroed, mem_free
from mqttc.base.types cimport (
    ST_NO_MEMORY, ST_OK, atomic_load_u32_acquire, atomic_sub_u32_acq_rel, counter_add, likely, unlikely,
)

cdef extern from "mqttc/base/native.h" nogil:
    uint32_t bit_highest_u64(uint64_t v) noexcept

cdef enum:
    SMALLEST_BITS = 7              # the smallest class is 128 bytes with its header, each next one twice that, the largest 16 KiB
    CLASS_COUNT = 8
    ALONE = 255
    CACHED_BYTES_MAX = 1 << 20     # per class and worker: beyond that a dead block goes back to malloc


cdef inline uint32_t class_of(size_t total) noexcept nogil:
    if total <= (1 << SMALLEST_BITS):
        return 0
    return bit_highest_u64(total - 1) + 1 - SMALLEST_BITS


cdef inline void block_keep(MsgPool *pool, Msg *msg) noexcept nogil:
    """A dead block of this worker's making: to the free list, or to malloc when that is full or the block is of no class."""
    cdef uint32_t size_class = msg.size_class
    if size_class >= CLASS_COUNT or pool.free_count[size_class] >= <uint32_t> CACHED_BYTES_MAX >> (size_class + SMALLEST_BITS):
        mem_free(msg)
        return
    msg.next = pool.free[size_class]
    pool.free[size_class] = msg
    pool.free_count[size_class] += 1


cdef void chain_free(Msg *chain) noexcept nogil:
    cdef Msg *msg
    while chain != NULL:
        msg = chain
        chain = msg.next
        mem_free(msg)


cdef int pool_init(MsgPool *pool, uint16_t owner, uint32_t owners_count) noexcept nogil:
    memset(pool, 0, sizeof(MsgPool))
    pool.owner = owner
    pool.strays = <Msg **> mem_alloc_zeroed(owners_count, sizeof(Msg *))
    pool.stray_count = <uint32_t *> mem_alloc_zeroed(owners_count, sizeof(uint32_t))
    if unlikely(pool.strays == NULL or pool.stray_count == NULL):
        pool_free(pool)
        return ST_NO_MEMORY
    pool.owners_count = owners_count
    return ST_OK


cdef void pool_free(MsgPool *pool) noexcept nogil:
    cdef uint32_t i
    for i in range(<uint32_t> CLASS_COUNT):
        chain_free(pool.free[i])
        pool.free[i] = NULL
        pool.free_count[i] = 0
    for i in range(pool.owners_count):
        chain_free(pool.strays[i])
    mem_free(pool.strays)
    mem_free(pool.stray_count)
    pool.strays = NULL
    pool.stray_count = NULL
    pool.owners_count = 0


cdef Msg *msg_alloc(MsgPool *pool, uint32_t capacity) noexcept nogil:
    cdef size_t total = sizeof(Msg) + <size_t> capacity
    cdef uint32_t size_class
    cdef Msg *msg
    if unlikely(total < sizeof(Msg)):          # where size_t has 32 bits
        return NULL
    size_class = class_of(total)
    if likely(size_class < CLASS_COUNT):
        msg = pool.free[size_class]
        if likely(msg != NULL):
            pool.free[size_class] = msg.next
            pool.free_count[size_class] -= 1
        else:
            msg = <Msg *> mem_alloc(<size_t> 1 << (size_class + SMALLEST_BITS))
        capacity = (<uint32_t> 1 << (size_class + SMALLEST_BITS)) - <uint32_t> sizeof(Msg)
    else:
        size_class = ALONE
        msg = <Msg *> mem_alloc(total)
    if unlikely(msg == NULL):
        return NULL
    memset(msg, 0, sizeof(Msg))
    msg.capacity = capacity
    msg.owner = pool.owner
    msg.size_class = <unsigned char> size_class
    msg.refs = 1
    counter_add(&pool.made, 1)
    counter_add(&pool.bytes_made, sizeof(Msg) + <size_t> msg.capacity)
    return msg


cdef Msg *msg_alloc_for(MsgPool *pool, uint32_t capacity, uint16_t owner) noexcept nogil:
    cdef Msg *msg = <Msg *> mem_alloc(sizeof(Msg) + <size_t> capacity)
    if msg == NULL:
        return NULL
    memset(msg, 0, sizeof(Msg))
    msg.capacity = capacity
    msg.owner = owner
    msg.size_class = ALONE
    msg.refs = 1
    counter_add(&pool.made, 1)
    counter_add(&pool.bytes_made, sizeof(Msg) + <size_t> msg.capacity)
    return msg


cdef void msg_drop(MsgPool *pool, Msg *msg) noexcept nogil:
    """Who sees 1 holds the only reference, and nobody can add one: that saves the locked subtraction."""
    if atomic_load_u32_acquire(&msg.refs) != 1 and atomic_sub_u32_acq_rel(&msg.refs, 1) != 1:
        return
    counter_add(&pool.freed, 1)
    counter_add(&pool.bytes_freed, sizeof(Msg) + <size_t> msg.capacity)
    if likely(msg.owner == pool.owner):
        block_keep(pool, msg)
    elif msg.size_class < CLASS_COUNT and msg.owner < pool.owners_count:
        msg.next = pool.strays[msg.owner]
        pool.strays[msg.owner] = msg
        pool.stray_count[msg.owner] += 1
    else:
        mem_free(msg)                          # its maker would do nothing else with it, or has no pool in this set


cdef Msg *msg_take_strays(MsgPool *pool, uint16_t owner, uint32_t *count) noexcept nogil:
    cdef Msg *chain = pool.strays[owner]
    if count != NULL:
        count[0] = pool.stray_count[owner]
    pool.strays[owner] = NULL
    pool.stray_count[owner] = 0
    return chain


cdef void msg_come_home(MsgPool *pool, Msg *chain) noexcept nogil:
    cdef Msg *msg
    while chain != NULL:
        msg = chain
        chain = msg.next
        block_keep(pool, msg)
