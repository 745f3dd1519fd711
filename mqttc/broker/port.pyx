from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy

from mqttc.base.alloc cimport mem_alloc_zeroed, mem_free
from mqttc.base.inbox cimport Mail, inbox_post, inbox_wake
from mqttc.base.msg cimport msg_drop
from mqttc.base.ring cimport ring_at, ring_pop_front
from mqttc.base.types cimport Span, atomic_add_u32_relaxed, span_make
from mqttc.broker.routes cimport subscription_ids_drop
from mqttc.broker.state cimport CONN_INSIDE, MAIL_EVENT, Conn, DeliveryItem, DeliveryMail, EventMail, Inside, RequestMail, Session, Worker
from mqttc.broker.stats cimport C_EVENTS_LOST, stat
from mqttc.net.tcp cimport peer_text


cdef void port_put(Worker *worker, Mail *mail) noexcept nogil:
    mail.next = NULL
    if worker.port_last == NULL:
        worker.port_first = mail
    else:
        worker.port_last.next = mail
    worker.port_last = mail


cdef void port_flush(Worker *worker) noexcept nogil:
    cdef Mail *first = worker.port_first
    if first == NULL:
        return
    if inbox_post(&worker.engine.port, first, worker.port_last):
        inbox_wake(&worker.engine.port)
    worker.port_first = NULL
    worker.port_last = NULL


cdef void request_answer(Worker *worker, RequestMail *request, uint8_t reason) noexcept nogil:
    if request.ticket == 0:
        request_free(request)
        return
    request.reason = reason
    port_put(worker, &request.mail)


cdef void request_free(RequestMail *request) noexcept nogil:
    mem_free(request.result)
    mem_free(request)


cdef void delivery_free(Worker *worker, DeliveryMail *delivery) noexcept nogil:
    cdef DeliveryItem *item
    cdef uint32_t i
    for i in range(delivery.count):
        item = &delivery.items[i]
        msg_drop(&worker.msgs, item.msg)
        subscription_ids_drop(item.subscription_ids)
    mem_free(delivery)


cdef void inside_acked(Worker *worker, Conn *conn, uint8_t reason) noexcept nogil:
    cdef Inside *inside = <Inside *> conn
    cdef RequestMail *request
    if inside.awaiting.count == 0:
        return
    request = (<RequestMail **> ring_at(&inside.awaiting, 0))[0]
    ring_pop_front(&inside.awaiting, 1)
    request_answer(worker, request, reason)


cdef void inside_refused(Conn *conn, uint8_t reason) noexcept nogil:
    cdef Inside *inside = <Inside *> conn
    if inside.refused == 0:
        inside.refused = reason


cdef void event_text(uint8_t **room, Span text) noexcept nogil:
    if text.n:
        memcpy(room[0], text.p, text.n)
    room[0] += text.n


cdef void port_event(Worker *worker, uint16_t event, uint8_t reason, Conn *conn, Session *session, Span detail) noexcept nogil:
    cdef EventMail *mail = NULL
    cdef Span client_id = span_make(session.client_id, session.client_id_bytes) if session != NULL else span_make(NULL, 0)
    cdef Span username = span_make(conn.username, conn.username_bytes) if conn != NULL else span_make(NULL, 0)
    cdef uint8_t *room
    if atomic_add_u32_relaxed(&worker.engine.events_waiting, 1) < <uint32_t> EVENTS_WAITING:
        mail = <EventMail *> mem_alloc_zeroed(1, sizeof(EventMail) + client_id.n + username.n + detail.n)
    if mail == NULL:
        atomic_add_u32_relaxed(&worker.engine.events_waiting, <uint32_t> -1)
        stat(&worker.stats, C_EVENTS_LOST)
        return
    mail.mail.kind = MAIL_EVENT
    mail.wall_ms = worker.reactor.wall_ms
    mail.event = event
    mail.reason = reason
    if session != NULL:
        mail.dropped = session.dropped
    if conn != NULL and conn.phase != CONN_INSIDE:
        mail.listener = conn.link.listener
        mail.level = conn.dialect.level if conn.dialect != NULL else 0
        mail.peer_bytes = <uint8_t> peer_text(&conn.link.peer, mail.peer, sizeof(mail.peer))
    mail.client_id_bytes = client_id.n
    mail.username_bytes = username.n
    mail.detail_bytes = detail.n
    room = mail.data
    event_text(&room, client_id)
    event_text(&room, username)
    event_text(&room, detail)
    port_put(worker, &mail.mail)
