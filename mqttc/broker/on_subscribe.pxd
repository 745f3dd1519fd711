"""SUBSCRIBE and UNSUBSCRIBE."""

from libc.stdint cimport uint8_t, uint32_t

from mqttc.base.types cimport Span
from mqttc.broker.state cimport Conn, HookMail, Session, Subscription, Worker
from mqttc.proto.packet cimport Filter, Frame, Packet

cdef void on_subscribe(Worker *worker, Conn *conn, const Frame *frame, Packet *packet) noexcept nogil
cdef void subscribe_answered(Worker *worker, Conn *conn, const Frame *frame, const HookMail *mail) noexcept nogil     # what hooks say of one that was set aside
cdef void on_unsubscribe(Worker *worker, Conn *conn, Packet *packet) noexcept nogil
cdef void rights_recheck(Worker *worker, Session *session) noexcept nogil       # rights have changed: it leaves the shared groups that it may not be in any more
cdef int handout_add(Session *session, const Subscription *subscription, Span filter) noexcept nogil   # retained messages are due; RC_SUCCESS or RC_QUOTA_EXCEEDED
# One filter; the reason code of SUBACK or UNSUBACK. Retained messages are due then, and not sent yet.
cdef uint8_t subscribe_one(Worker *worker, Conn *conn, const Filter *filter, uint32_t id) noexcept nogil
cdef uint8_t unsubscribe_one(Worker *worker, Session *session, Span filter) noexcept nogil
