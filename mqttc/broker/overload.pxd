"""Overload: what a worker does when there is too much of everything. It looks, at most every 10 ms, at the end of a turn.

- Memory is counted, not measured: blocks of messages, output, retained messages' index, sessions, subscriptions, connections, and what waits for
  CONNECT. From 80 % of limits.max_memory no new sessions and subscriptions are taken; from 90 % QoS 0 and retained messages are not either; at the limit
  the session for which most waits is emptied and its client let go, one a worker each 100 ms, and QoS 1 and 2 of 5.0 clients are refused.
- What waits for all sessions together has limits of its own; once met, queues behave as if they were full.
- Turns: one that has lasted limits.turn_time leaves the rest of each connection's input for the next; after one that took limits.busy_turn_time no new
  client is taken for a second.
"""

from libc.stdint cimport uint8_t, uint64_t

from mqttc.broker.state cimport Conn, Engine, Worker
from mqttc.proto.packet cimport Packet

cdef uint64_t engine_memory(const Engine *engine) noexcept nogil       # bytes, as counted [any thread]
cdef void overload_look(Worker *worker) noexcept nogil                 # at the end of a turn
# Whether this PUBLISH is given up for want of memory, counted. Called only where worker.overload is at least OVERLOAD_SHED.
cdef bint overload_sheds(Worker *worker, const Packet *packet) noexcept nogil
cdef bint turn_spent(Worker *worker) noexcept nogil                    # this turn has lasted limits.turn_time; reads the clock
cdef bint worker_busy(const Worker *worker) noexcept nogil             # no new client is taken
cdef void conn_yield(Worker *worker, Conn *conn) noexcept nogil        # the rest of its input waits for the next turn
cdef void yielded_resume(Worker *worker) noexcept nogil                # at the end of a turn
