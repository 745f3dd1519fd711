"""Port: from the workers to the program that the broker lives in. Mail of a turn is collected and posted at its end into one inbox for all workers, whose
owner is the control plane: answers to requests, messages for in-process clients, events. No worker waits for it or takes the GIL."""

from libc.stdint cimport uint8_t, uint16_t

from mqttc.base.inbox cimport Mail
from mqttc.base.types cimport Span, atomic_load_u32_relaxed
from mqttc.broker.state cimport CONN_INSIDE, Conn, DeliveryMail, Inside, RequestMail, Session, Worker

cdef enum:
    EVENTS_WAITING = 65536             # that the program has not taken yet; more are lost, and counted

cdef inline bint is_inside(const Session *session) noexcept nogil:
    """Whether it is an in-process client's."""
    return session.conn != NULL and session.conn.phase == CONN_INSIDE

cdef inline void inside_due(Worker *worker, Session *session) noexcept nogil:
    """There is something for this in-process client, to be handed over at the turn's end."""
    cdef Inside *inside = <Inside *> session.conn
    if not inside.due:
        inside.due = True
        inside.next = worker.inside_due
        worker.inside_due = inside

cdef inline bint port_hears(const Worker *worker, uint16_t event) noexcept nogil:
    """Whether the program wants to hear of this LogEvent."""
    return atomic_load_u32_relaxed(&worker.engine.heard) >> event & 1

cdef void port_put(Worker *worker, Mail *mail) noexcept nogil                  # takes it over
cdef void port_flush(Worker *worker) noexcept nogil                            # end of turn, after mail to the workers
cdef void request_answer(Worker *worker, RequestMail *request, uint8_t reason) noexcept nogil      # takes it over
cdef void request_free(RequestMail *request) noexcept nogil
cdef void delivery_free(Worker *worker, DeliveryMail *delivery) noexcept nogil # with the references it holds
cdef void inside_acked(Worker *worker, Conn *conn, uint8_t reason) noexcept nogil          # the oldest unanswered publication of an in-process client
cdef void inside_refused(Conn *conn, uint8_t reason) noexcept nogil            # what a network client would be disconnected for; the first reason counts
cdef void port_event(Worker *worker, uint16_t event, uint8_t reason, Conn *conn, Session *session, Span detail) noexcept nogil   # conn, session may be NULL
