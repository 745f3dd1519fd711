"""Face of base/timer: a wheel with a fixed number of nodes, named by their number."""

from libc.stdint cimport int64_t, uint32_t

from mqttc.base.alloc cimport mem_alloc_zeroed, mem_free
from mqttc.base.timer cimport TimerNode, TimerWheel, wheel_add, wheel_build, wheel_cancel, wheel_expire, wheel_expire_exact, wheel_free, wheel_next_ms


cdef class WheelFace:
    cdef TimerWheel *wheel
    cdef TimerNode *nodes
    cdef uint32_t node_count

    def __cinit__(self, int64_t now_ms, uint32_t node_count):
        self.nodes = <TimerNode *> mem_alloc_zeroed(node_count, sizeof(TimerNode))
        self.node_count = node_count
        if self.nodes != NULL:
            self.wheel = wheel_build(now_ms)
        if self.wheel == NULL:
            raise MemoryError

    def __dealloc__(self):
        wheel_free(self.wheel)
        mem_free(self.nodes)

    def add(self, uint32_t node, int64_t deadline_ms) -> None:
        assert node < self.node_count
        wheel_add(self.wheel, &self.nodes[node], deadline_ms)

    def cancel(self, uint32_t node) -> None:
        assert node < self.node_count
        wheel_cancel(self.wheel, &self.nodes[node])

    def armed(self, uint32_t node) -> bool:
        assert node < self.node_count
        return self.nodes[node].next != NULL

    def expire_one(self, int64_t now_ms) -> int | None:
        cdef TimerNode *node = wheel_expire(self.wheel, now_ms)
        return None if node == NULL else node - self.nodes

    def expire(self, int64_t now_ms) -> list:
        fired = []
        cdef TimerNode *node = wheel_expire(self.wheel, now_ms)
        while node != NULL:
            fired.append(node - self.nodes)
            node = wheel_expire(self.wheel, now_ms)
        return fired

    def expire_exact(self, int64_t now_ms) -> list:
        fired = []
        cdef TimerNode *node = wheel_expire_exact(self.wheel, now_ms)
        while node != NULL:
            fired.append(node - self.nodes)
            node = wheel_expire_exact(self.wheel, now_ms)
        return fired

    def next_ms(self, int64_t now_ms) -> int:
        return wheel_next_ms(self.wheel, now_ms)
