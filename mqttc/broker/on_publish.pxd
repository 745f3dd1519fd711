"""PUBLISH and its acknowledgements, both directions."""

from libc.stdint cimport uint32_t

from mqttc.broker.state cimport Conn, HookMail, Worker
from mqttc.proto.packet cimport Frame

cdef void on_publish(Worker *worker, Conn *conn, const Frame *frame) noexcept nogil
cdef void on_ack(Worker *worker, Conn *conn, const Frame *frame) noexcept nogil        # PUBACK, PUBREC, PUBREL, PUBCOMP
cdef void publish_answered(Worker *worker, Conn *conn, const Frame *frame, const HookMail *mail) noexcept nogil       # what hooks say of one that was set aside
cdef void aliases_in_free(Conn *conn) noexcept nogil
cdef void conn_brake(Worker *worker, Conn *conn, bint pause) noexcept nogil            # a receiver is slow: acks are held, QoS 0 publishers paused, for a bounded time
cdef void brakes_release(Worker *worker) noexcept nogil                                # TIMER_BRAKE
cdef void conn_slow(Worker *worker, Conn *conn, uint32_t wait_ms) noexcept nogil            # its client is not read for so long, because of its rates
