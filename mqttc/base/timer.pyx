"""Timer wheel of ten levels with 64 slots each: they span every 64-bit time, so no deadline needs a special case. See timer.pxd.

A node stands on the level of the highest base-64 digit in which its tick differs from the wheel's current tick, in the slot of its own digit
there. So the earliest slot is always the lowest bit of the lowest level in use: the next deadline is two bit scans away, and a clock that
jumps by days costs as many steps as slots are occupied, not as ticks went by. When the wheel reaches a slot above level 0, its nodes move to
lower levels.
"""

from libc.stdint cimport INT64_MAX, int64_t, uint32_t, uint64_t

from mqttc.base.alloc cimport mem_alloc_zeroed, mem_free
from mqttc.base.types cimport unlikely

cdef extern from "mqttc/base/native.h" nogil:
    uint32_t bit_lowest_u64(uint64_t v) noexcept
    uint32_t bit_highest_u64(uint64_t v) noexcept

cdef enum:
    TICK_BITS = 6                  # 64 ms
    DIGIT_BITS = 6
    SLOTS = 64
    LEVELS = 10                    # a tick has 58 bits
    DUE = 640                      # behind the last slot: the list of those whose tick has come

cdef struct TimerWheel:
    int64_t origin_ms
    uint64_t last_tick             # the last one that begins at or before INT64_MAX
    uint64_t tick                  # whole ticks since origin that wheel_expire has gone through
    uint64_t levels_used           # bit n: level n has an occupied slot
    uint64_t slots_used[10]
    TimerNode heads[641]           # ring lists; only next and prev are used


cdef inline void list_init(TimerNode *head) noexcept nogil:
    head.next = head
    head.prev = head


cdef inline void list_append(TimerNode *head, TimerNode *node) noexcept nogil:
    node.next = head
    node.prev = head.prev
    head.prev.next = node
    head.prev = node


cdef inline void node_place(TimerWheel *wheel, TimerNode *node) noexcept nogil:
    """Into the slot that its deadline, rounded up to a whole tick, asks for as seen from the wheel's tick."""
    cdef uint64_t tick, since_origin_ms
    cdef uint32_t level, slot
    if node.deadline_ms <= wheel.origin_ms:
        list_append(&wheel.heads[DUE], node)
        return
    since_origin_ms = <uint64_t> node.deadline_ms - <uint64_t> wheel.origin_ms
    tick = (since_origin_ms >> TICK_BITS) + ((since_origin_ms & ((1 << TICK_BITS) - 1)) != 0)
    if unlikely(tick > wheel.last_tick):
        tick = wheel.last_tick
    if tick <= wheel.tick:
        list_append(&wheel.heads[DUE], node)
        return
    level = bit_highest_u64(tick ^ wheel.tick) // DIGIT_BITS
    slot = <uint32_t> (tick >> (level * DIGIT_BITS)) & (SLOTS - 1)
    list_append(&wheel.heads[level * SLOTS + slot], node)
    wheel.slots_used[level] |= <uint64_t> 1 << slot
    wheel.levels_used |= <uint64_t> 1 << level


cdef inline void slot_mark_empty(TimerWheel *wheel, uint32_t level, uint32_t slot) noexcept nogil:
    wheel.slots_used[level] &= ~(<uint64_t> 1 << slot)
    if wheel.slots_used[level] == 0:
        wheel.levels_used &= ~(<uint64_t> 1 << level)


cdef inline uint64_t slot_first_tick(TimerWheel *wheel, uint32_t level, uint32_t slot) noexcept nogil:
    """The tick at which the wheel reaches the slot: the digits above are the wheel's own, those below are 0."""
    cdef uint32_t shift = level * DIGIT_BITS
    return (((wheel.tick >> shift) & ~<uint64_t> (SLOTS - 1)) | slot) << shift


cdef void slot_open(TimerWheel *wheel, uint32_t level, uint32_t slot) noexcept nogil:
    """The wheel has reached this slot: what is due goes to the due list, the rest to lower levels."""
    cdef TimerNode *head = &wheel.heads[level * SLOTS + slot]
    cdef TimerNode *node = head.next
    cdef TimerNode *following
    cdef TimerNode *due = &wheel.heads[DUE]
    slot_mark_empty(wheel, level, slot)
    if level == 0:
        head.next.prev = due.prev
        due.prev.next = head.next
        head.prev.next = due
        due.prev = head.prev
        list_init(head)
        return
    list_init(head)
    while node != head:
        following = node.next
        node_place(wheel, node)
        node = following


cdef TimerWheel *wheel_build(int64_t now_ms) noexcept nogil:
    cdef TimerWheel *wheel = <TimerWheel *> mem_alloc_zeroed(1, sizeof(TimerWheel))
    cdef uint32_t i
    if unlikely(wheel == NULL):
        return NULL
    wheel.origin_ms = now_ms
    wheel.last_tick = (<uint64_t> INT64_MAX - <uint64_t> now_ms) >> TICK_BITS
    for i in range(DUE + 1):
        list_init(&wheel.heads[i])
    return wheel


cdef void wheel_free(TimerWheel *wheel) noexcept nogil:
    mem_free(wheel)


cdef void wheel_add(TimerWheel *wheel, TimerNode *node, int64_t deadline_ms) noexcept nogil:
    wheel_cancel(wheel, node)
    node.deadline_ms = deadline_ms
    node_place(wheel, node)


cdef void wheel_cancel(TimerWheel *wheel, TimerNode *node) noexcept nogil:
    cdef uint32_t index
    if node.next == NULL:
        return
    if node.next == node.prev and node.next >= &wheel.heads[0] and node.next < &wheel.heads[DUE]:
        index = <uint32_t> (node.next - &wheel.heads[0])       # it was alone: what stands on both sides is its slot's head
        slot_mark_empty(wheel, index // SLOTS, index % SLOTS)
    node.next.prev = node.prev
    node.prev.next = node.next
    node.next = NULL
    node.prev = NULL


cdef TimerNode *wheel_expire(TimerWheel *wheel, int64_t now_ms) noexcept nogil:
    cdef TimerNode *due = &wheel.heads[DUE]
    cdef TimerNode *node
    cdef uint64_t now_tick = 0
    cdef uint64_t tick
    cdef uint32_t level, slot
    if now_ms > wheel.origin_ms:
        now_tick = (<uint64_t> now_ms - <uint64_t> wheel.origin_ms) >> TICK_BITS
    while due.next == due:
        if wheel.levels_used != 0:
            level = bit_lowest_u64(wheel.levels_used)
            slot = bit_lowest_u64(wheel.slots_used[level])
            tick = slot_first_tick(wheel, level, slot)
            if tick <= now_tick:
                wheel.tick = tick
                slot_open(wheel, level, slot)
                continue
        if now_tick > wheel.tick:
            wheel.tick = now_tick
        return NULL
    node = due.next
    due.next = node.next
    node.next.prev = due
    node.next = NULL
    node.prev = NULL
    return node


cdef TimerNode *wheel_expire_exact(TimerWheel *wheel, int64_t now_ms) noexcept nogil:
    # The tick that now_ms stands in is opened before its end; what is due later in it waits in the due list.
    cdef TimerNode *due = &wheel.heads[DUE]
    cdef TimerNode *node
    cdef TimerNode *first
    cdef uint64_t up_to = 0
    cdef uint64_t tick
    cdef uint32_t level, slot
    if now_ms > wheel.origin_ms:
        up_to = (<uint64_t> now_ms - <uint64_t> wheel.origin_ms + ((1 << TICK_BITS) - 1)) >> TICK_BITS
    while True:
        first = NULL
        node = due.next
        while node != due:
            if node.deadline_ms <= now_ms and (first == NULL or node.deadline_ms < first.deadline_ms):
                first = node
            node = node.next
        if first != NULL:
            wheel_cancel(wheel, first)
            return first
        if wheel.levels_used == 0:
            break
        level = bit_lowest_u64(wheel.levels_used)
        slot = bit_lowest_u64(wheel.slots_used[level])
        tick = slot_first_tick(wheel, level, slot)
        if tick > up_to:
            break
        wheel.tick = tick
        slot_open(wheel, level, slot)
    if up_to > wheel.tick:
        wheel.tick = up_to
    return NULL


cdef int64_t wheel_next_ms(TimerWheel *wheel, int64_t now_ms) noexcept nogil:
    cdef uint32_t level
    cdef uint64_t since_origin_ms
    if wheel.heads[DUE].next != &wheel.heads[DUE]:
        return now_ms
    if wheel.levels_used == 0:
        return -1
    level = bit_lowest_u64(wheel.levels_used)
    since_origin_ms = slot_first_tick(wheel, level, bit_lowest_u64(wheel.slots_used[level])) << TICK_BITS
    return <int64_t> (<uint64_t> wheel.origin_ms + since_origin_ms)
