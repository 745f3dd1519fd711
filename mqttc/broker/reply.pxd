"""Reply: what the broker says to one client beside messages: acknowledgements, CONNACK, DISCONNECT, and how a connection is ended."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from mqttc.base.types cimport Span
from mqttc.broker.state cimport Conn, Worker
from mqttc.net.reactor cimport Link
from mqttc.proto.packet cimport Packet

cdef enum BrokerEnd:                   # reasons given to link_close; see reactor.EndReason for those below 16
    END_DISCONNECT = 16                # the client said DISCONNECT
    END_REFUSED = 17                   # CONNECT was refused
    END_FAILED = 18                    # we ended it, conn.disconnect_reason says why

cdef inline Conn *conn_of(Link *link) noexcept nogil:
    return <Conn *> link

cdef void packet_clear(Packet *packet, uint8_t packet_type) noexcept nogil                     # defaults
cdef int send_packet(Worker *worker, Conn *conn, const Packet *packet) noexcept nogil          # ST_OK; ST_LIMIT: larger than the client takes, not sent; ST_NO_MEMORY
# Acknowledgements leave in the order in which they are given: PUBACK and PUBREC are held back while the connection is braked, and each one until the
# journal has committed what it rests on (a sequence of this worker; 0: nothing).
cdef void acknowledge(Worker *worker, Conn *conn, uint8_t packet_type, uint16_t packet_id, uint8_t reason, uint64_t until) noexcept nogil
cdef void answer(Worker *worker, Conn *conn, uint8_t packet_type, uint16_t packet_id, uint8_t reason, uint64_t until) noexcept nogil     # the same, whatever the brake says
cdef int send_packet_after(Worker *worker, Conn *conn, const Packet *packet, uint64_t until) noexcept nogil    # any packet; as send_packet
cdef bint replies_release(Worker *worker, Conn *conn) noexcept nogil                           # what nothing holds any more; true: CONNACK was among it
cdef void acks_release(Worker *worker, Conn *conn) noexcept nogil                              # the brake is off
cdef void replies_drop(Conn *conn) noexcept nogil                                              # what is held is not sent any more
cdef uint32_t acks_held(const Conn *conn) noexcept nogil
cdef void send_ack(Worker *worker, Conn *conn, uint8_t packet_type, uint16_t packet_id, uint8_t reason) noexcept nogil     # at once
# Ends the connection in the way its state and version allow: CONNACK with the reason before it is up, DISCONNECT with it after (5.0), then close.
# Reported as a protocol error when loud. detail: for the log and, where the client wants it, the reason string. May be called twice; the first counts.
cdef void conn_fail(Worker *worker, Conn *conn, uint8_t reason, Span detail) noexcept nogil
cdef void conn_disconnect(Worker *worker, Conn *conn, uint8_t reason) noexcept nogil           # the same, quietly (take-over, shutdown, administration)
cdef void refuse_connect(Worker *worker, Conn *conn, uint8_t level, uint8_t reason, Span server_reference, Span detail) noexcept nogil   # CONNACK and close; level 0: unknown
