"""Send: one message to one session: at once where window and output allow, else to its queue, by policy when that is full."""

from libc.stdint cimport uint8_t, uint32_t

from mqttc.base.types cimport Span
from mqttc.broker.session cimport window_free
from mqttc.broker.state cimport CONN_UP, SESSION_QOS0_QUEUED, Conn, QueueEntry, Session, Worker
from mqttc.proto.encode cimport PublishParts

cdef enum:
    OUT_HIGH = 262144                  # unsent bytes of a connection from which queues wait for it to drain
    PATIENCE_MS = 1000                 # for how long a receiver that stands still slows its publishers

cdef int session_drop(Worker *worker, Session *session, int counter) noexcept nogil            # counts a loss; gives 0
cdef void parts_of(PublishParts *parts, Span topic, Span properties, Span payload, uint8_t qos, uint8_t retain) noexcept nogil
cdef void parts_of_entry(Worker *worker, const QueueEntry *entry, PublishParts *parts) noexcept nogil
cdef bint fits(const Conn *conn, const PublishParts *parts) noexcept nogil                     # whether the client takes a packet of that size
cdef bint send_parts(Worker *worker, Conn *conn, PublishParts *parts) noexcept nogil           # for this client alone; it fits. False: no memory, the connection closes
cdef void offer_entry(Worker *worker, Session *session, QueueEntry *entry) noexcept nogil      # sends or queues; takes the entry's references over
cdef bint hold_entry(Worker *worker, Session *session, QueueEntry *entry) noexcept nogil       # QoS 2: its packet id first. False: no memory, it is the caller's still
cdef void entry_drop(Worker *worker, Session *session, QueueEntry *entry) noexcept nogil       # gives its references up, and tells the journal
cdef bint under_pressure(Worker *worker, Session *session, uint8_t qos) noexcept nogil         # its publishers are to be slowed

cdef inline bint qos0_waits(const Session *session) noexcept nogil:
    """Older QoS 0 messages are queued still (those of when the client was off line): the order is kept. [MQTT-4.6.0-5, MQTT-4.6.0-6]"""
    return session.queue.count != 0 and session.flags & SESSION_QOS0_QUEUED

cdef inline Conn *conn_at(const Session *session) noexcept nogil:
    """The session's connection if packets may still go to it: after DISCONNECT nothing may, though its end comes only with the turn's. [MQTT-3.14.4-1]"""
    cdef Conn *conn = session.conn
    return conn if conn != NULL and conn.phase == CONN_UP else NULL

cdef inline uint32_t out_high(const Worker *worker) noexcept nogil:
    return OUT_HIGH if worker.engine.settings.max_output_bytes > OUT_HIGH else worker.engine.settings.max_output_bytes

cdef inline bint may_send_now(const Worker *worker, const Session *session, const Conn *conn) noexcept nogil:
    return (session.queue.count == 0 and session.resend == session.inflight.count and conn.link.out.bytes < out_high(worker) and window_free(session) > 0)
