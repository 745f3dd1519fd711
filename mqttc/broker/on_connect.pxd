"""CONNECT and AUTH: from the first packet to CONNACK.

Checked and decided on the worker that accepted (on_connect); a question to the gate parks the connection with a copy of its CONNECT; once accepted it
moves to its client id's home worker (connect_adopt) and is finished there: take-over, session, will, CONNACK.
"""

from libc.stdint cimport uint8_t, uint32_t

from mqttc.broker.state cimport AdoptMail, AnswerMail, Conn, Worker
from mqttc.proto.packet cimport Frame, Packet

cdef enum:
    ASSIGNED_BYTES = 28                # of a client id that the server makes: "mqttc-" and 22 letters and digits, 131 bits

cdef bint client_id_make(Worker *worker, uint8_t *out) noexcept nogil             # ASSIGNED_BYTES that live on this worker; False: no randomness
cdef void conn_init(Worker *worker, Conn *conn) noexcept nogil                    # of a fresh link
# packet_start: the first byte of the CONNECT; rest: what follows it in the input. True: the connection has left this worker, do not touch it.
cdef bint on_connect(Worker *worker, Conn *conn, const Frame *frame, const uint8_t *packet_start, const uint8_t *rest, uint32_t rest_bytes) noexcept nogil
cdef void on_auth(Worker *worker, Conn *conn, const Packet *packet) noexcept nogil
cdef void on_answer(Worker *worker, AnswerMail *mail) noexcept nogil
cdef void connect_welcome(Worker *worker, Conn *conn) noexcept nogil              # its CONNACK, which waited for the journal, has been sent
cdef void connect_adopt(Worker *worker, AdoptMail *mail) noexcept nogil           # takes the connection; what else the mail holds stays its own
