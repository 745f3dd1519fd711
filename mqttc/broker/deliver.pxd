"""Deliver: from one publication to every session that its route names, and from a session's queue to its client.

A Publication lives for one turn. Its bytes are the read buffer's (spans) until somebody must keep the message: then, and only then, one Msg is built.
QoS 0 is encoded once per layout and retain flag into the worker's run and shared by extent; QoS > 0 is encoded once per layout into the first receiver's
queue, copied from there for the others, and gets its packet id patched.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from mqttc.base.msg cimport Msg
from mqttc.base.types cimport Span
from mqttc.broker.record cimport Body
from mqttc.broker.routes cimport Route
from mqttc.broker.state cimport GroupMail, Session, Worker
from mqttc.net.outq cimport Chunk

cdef enum:
    OUT_HIGH = 262144                  # unsent bytes of a connection from which queues wait for it to drain

cdef struct Publication:
    Span topic
    Span properties
    Span payload
    Msg *msg                           # one reference of the publication's own; NULL: not built yet
    int64_t expires_at_ms              # monotonic; 0: never
    uint64_t publisher                 # session handle; 0: none
    uint32_t message_expiry            # seconds remaining, where has_expiry
    bint has_expiry
    bint pressure                      # a receiver's queue is nearly full: brake the publisher
    uint8_t qos
    uint8_t retain
    # encoded forms of this turn, made when first needed; 0 bytes: not yet
    uint32_t run_bytes[4]              # [layout * 2 + retain], QoS 0
    uint32_t run_offset[4]
    Chunk *run_chunk[4]
    uint32_t encoded_bytes[2]          # [layout], QoS > 0
    uint32_t id_offset[2]
    uint8_t *encoded[2]

cdef void publication_init(Publication *pub) noexcept nogil
cdef void publication_of(Worker *worker, Publication *pub, Msg *msg) noexcept nogil            # spans of msg; takes the caller's reference over
cdef Msg *publication_msg(Worker *worker, Publication *pub) noexcept nogil                     # builds it once; borrowed. NULL: no memory
cdef void publication_clear(Worker *worker, Publication *pub) noexcept nogil
cdef void fan_out(Worker *worker, Publication *pub, Route *route) noexcept nogil               # local sessions and groups directly, mail to the others
cdef void fan_out_slice(Worker *worker, Publication *pub, Route *route) noexcept nogil         # this worker's part only
cdef void publish_message(Worker *worker, Msg *msg) noexcept nogil                             # a will, or a message from inside: retained, route, fan-out; msg is borrowed

cdef void session_pump(Worker *worker, Session *session) noexcept nogil                        # sends what window and output allow: resends, queue, retained hand-outs
cdef void delivery_ready(Worker *worker, Session *session, uint16_t packet_id) noexcept nogil          # the journal has that packet id: it may be sent
cdef void bodies_arrived(Worker *worker, Session *session, Body *bodies, uint32_t count) noexcept nogil   # takes the messages it needs out of them
cdef int session_drop(Worker *worker, Session *session, int counter) noexcept nogil            # counts a loss; gives 0
cdef void on_group_mail(Worker *worker, GroupMail *mail) noexcept nogil                        # at the group's home, or at the member's; takes mail.msg over
cdef void tell_group(Worker *worker, GroupMail *mail, uint64_t group) noexcept nogil           # at once when the group lives here, else by mail (copied)
cdef void own_mail(Worker *worker) noexcept nogil                                              # what this worker's sessions told groups that live here
cdef void credits_grant(Worker *worker) noexcept nogil                                         # end of turn
