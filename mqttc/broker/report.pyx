from libc.stdint cimport uint8_t, uint16_t
from libc.string cimport memset, strlen

from mqttc.base.logring cimport LogRecord, log_text, logring_push
from mqttc.base.types cimport Span, span_make
from mqttc.broker.port cimport port_event, port_hears
from mqttc.broker.state cimport CONN_INSIDE, Conn, Session, Worker
from mqttc.net.tcp cimport peer_text


cdef Span text(const char *constant) noexcept nogil:
    return span_make(constant, strlen(constant))


cdef void report(Worker *worker, uint8_t level, uint16_t event, uint8_t reason, Conn *conn, Session *session, Span detail) noexcept nogil:
    cdef LogRecord record
    if port_hears(worker, event) and (conn == NULL or conn.phase != CONN_INSIDE or event == EV_MESSAGES_DROPPED):      # the program knows what it does itself
        port_event(worker, event, reason, conn, session, detail)
    if level < worker.engine.settings.log_level:
        return
    memset(&record, 0, sizeof(LogRecord))
    record.wall_ms = worker.reactor.wall_ms
    record.event = event
    record.level = level
    record.reason = reason
    record.worker = worker.index
    if conn != NULL and conn.phase != CONN_INSIDE:
        record.listener = conn.link.listener
        record.peer_bytes = <uint8_t> peer_text(&conn.link.peer, record.peer, sizeof(record.peer))
    if session != NULL:
        log_text(record.client_id, &record.client_id_bytes, sizeof(record.client_id), span_make(session.client_id, session.client_id_bytes))
    log_text(record.detail, &record.detail_bytes, sizeof(record.detail), detail)
    logring_push(worker.engine.log, &record)
