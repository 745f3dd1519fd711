from libc.stdint cimport uint8_t, uint16_t
from libc.string cimport memset, strlen

from mqttc.base.logring cimport LogRecord, log_text, logring_push
from mqttc.base.types cimport Span, span_make
from mqttc.broker.state cimport Conn, Session, Worker
from mqttc.net.tcp cimport peer_text


cdef Span text(const char *constant) noexcept nogil:
    return span_make(constant, strlen(constant))


cdef void report(Worker *worker, uint8_t level, uint16_t event, uint8_t reason, Conn *conn, Session *session, Span detail) noexcept nogil:
    cdef LogRecord record
    if level < worker.engine.settings.log_level:
        return
    memset(&record, 0, sizeof(LogRecord))
    record.wall_ms = worker.reactor.wall_ms
    record.event = event
    record.level = level
    record.reason = reason
    record.worker = worker.index
    if conn != NULL:
        record.listener = conn.link.listener
        record.peer_bytes = <uint8_t> peer_text(&conn.link.peer, record.peer, sizeof(record.peer))
    if session != NULL:
        log_text(record.client_id, &record.client_id_bytes, sizeof(record.client_id), span_make(session.client_id, session.client_id_bytes))
    log_text(record.detail, &record.detail_bytes, sizeof(record.detail), detail)
    logring_push(worker.engine.log, &record)
