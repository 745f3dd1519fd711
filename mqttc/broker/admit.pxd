"""Admit: the rights that a client comes in with, and what they say of its CONNECT: client id, will."""

from mqttc.base.types cimport Span
from mqttc.broker.acl cimport Grant
from mqttc.broker.rights cimport Rights
from mqttc.broker.state cimport Admission, AnswerMail, Conn, Worker
from mqttc.proto.packet cimport Packet

# rights: the caller's now; NULL: the client needs none. False: the CONNECT was refused.
cdef bint admit_rights(Worker *worker, Conn *conn, const Packet *packet, Span client_id, const Admission *admission, Rights **rights) noexcept nogil
cdef void admit_begin(Worker *worker, Conn *conn, Rights *rights) noexcept nogil       # takes the rights over for the connection's session; keep alive runs already
cdef void admit_again(Worker *worker, Conn *conn, Grant *grant) noexcept nogil         # after a re-authentication; grant is shared, NULL: none
cdef void admit_renew(Worker *worker, Conn *conn) noexcept nogil               # its grant ends soon: another one is asked for, once
cdef void on_grant(Worker *worker, Conn *conn, const AnswerMail *mail) noexcept nogil  # an answer with a GRANT_NUMBER: that grant in place of the client's
