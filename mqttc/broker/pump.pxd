"""Pump: a session's way to its client: what was in flight before this connection, its queue, and retained messages for its new subscriptions."""

from libc.stdint cimport uint16_t, uint32_t

from mqttc.broker.record cimport Body
from mqttc.broker.state cimport Session, Worker

cdef void session_pump(Worker *worker, Session *session) noexcept nogil                        # sends what window and output allow: resends, queue, retained hand-outs
cdef void delivery_ready(Worker *worker, Session *session, uint16_t packet_id) noexcept nogil          # the journal has that packet id: it may be sent
cdef void bodies_arrived(Worker *worker, Session *session, Body *bodies, uint32_t count) noexcept nogil   # takes the messages it needs out of them
