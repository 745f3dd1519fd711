"""SUBSCRIBE and UNSUBSCRIBE."""

from mqttc.base.types cimport Span
from mqttc.broker.state cimport Conn, Session, Subscription, Worker
from mqttc.proto.packet cimport Packet

cdef void on_subscribe(Worker *worker, Conn *conn, Packet *packet) noexcept nogil
cdef void on_unsubscribe(Worker *worker, Conn *conn, Packet *packet) noexcept nogil
cdef void rights_recheck(Worker *worker, Session *session) noexcept nogil       # rights have changed: it leaves the shared groups that it may not be in any more
cdef int handout_add(Session *session, const Subscription *subscription, Span filter) noexcept nogil   # retained messages are due; RC_SUCCESS or RC_QUOTA_EXCEEDED
