"""Timer wheel: intrusive nodes, hierarchical, 64 ms a tick; adding and cancelling cost a few pointer writes. Time is an argument.

A node fires at the first wheel_expire whose now_ms >= deadline_ms (never early, at most a tick late), earlier ticks first. A node that is
added already due fires in the same round of wheel_expire: to re-arm at or before now in every round never ends. Owner thread only.
"""

from libc.stdint cimport int64_t, uint32_t

cdef struct TimerNode:
    TimerNode *next        # NULL when not armed
    TimerNode *prev
    int64_t deadline_ms    # monotonic
    uint32_t kind          # for the owner: which struct holds this node

cdef struct TimerWheel     # private layout: see timer.pyx; made by wheel_build

cdef TimerWheel *wheel_build(int64_t now_ms) noexcept nogil                # NULL: no memory
cdef void wheel_free(TimerWheel *wheel) noexcept nogil
cdef void wheel_add(TimerWheel *wheel, TimerNode *node, int64_t deadline_ms) noexcept nogil   # moves the node if it is armed
cdef void wheel_cancel(TimerWheel *wheel, TimerNode *node) noexcept nogil                     # harmless when not armed
cdef TimerNode *wheel_expire(TimerWheel *wheel, int64_t now_ms) noexcept nogil                # one due node, disarmed; NULL: none left. Call until NULL
# The earliest due node, not a millisecond late: for a clock that stands still between jumps. The wheel is not for wheel_expire any more until a tick later.
cdef TimerNode *wheel_expire_exact(TimerWheel *wheel, int64_t now_ms) noexcept nogil
cdef int64_t wheel_next_ms(TimerWheel *wheel, int64_t now_ms) noexcept nogil                  # a time not after the next deadline + one tick; -1: nothing armed
