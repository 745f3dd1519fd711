"""PUBLISH and its acknowledgements, both directions."""


from libc.stdint cimport uint8_t

from mqttc.broker.state cimport Conn, HookMail, Parked, Worker
from mqttc.proto.packet cimport Frame, Packet

cdef void on_publish(Worker *worker, Conn *conn, const Frame *frame) noexcept nogil
cdef void on_ack(Worker *worker, Conn *conn, const Frame *frame) noexcept nogil        # PUBACK, PUBREC, PUBREL, PUBCOMP
# Sets it aside and asks hooks about it; reading pauses. False: it cannot be asked, and HOOKS_ALLOW decides. kind: QuestionKind; packet: decoded, resolved.
cdef bint park(Worker *worker, Conn *conn, uint8_t kind, const Frame *frame, const Packet *packet) noexcept nogil
# What hooks say of it: the packet that was set aside, taken over from the connection, which is read again; NULL: that is no answer for it.
cdef Parked *unpark(Worker *worker, Conn *conn, const HookMail *mail, Frame *frame) noexcept nogil
cdef void publish_answered(Worker *worker, Conn *conn, const Frame *frame, const HookMail *mail) noexcept nogil
cdef void aliases_in_free(Conn *conn) noexcept nogil
cdef void conn_brake(Worker *worker, Conn *conn, bint pause) noexcept nogil            # a receiver is slow: acks are held, QoS 0 publishers paused, for a bounded time
cdef void brakes_release(Worker *worker) noexcept nogil                                # TIMER_BRAKE
