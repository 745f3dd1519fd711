"""Report: what a worker tells the log. Events are numbers here; their text stands in native.pyx, in the same order."""

from libc.stdint cimport uint8_t, uint16_t

from mqttc.base.types cimport Span
from mqttc.broker.state cimport Conn, Session, Worker

cdef enum LogEvent:
    EV_CONNECTED = 0
    EV_DISCONNECTED
    EV_REFUSED
    EV_PROTOCOL_ERROR
    EV_TAKEN_OVER
    EV_KEEP_ALIVE_TIMEOUT
    EV_CONNECT_TIMEOUT
    EV_CONNECTION_LOST
    EV_SESSION_EXPIRED
    EV_MESSAGES_DROPPED
    EV_ACCEPT_ERROR
    EV_CONNECTION_LIMIT
    EV_NO_MEMORY
    EV_SHUTTING_DOWN
    EV_SUBSCRIBED
    EV_UNSUBSCRIBED
    EV_RETAINED_LIMIT
    EV_TRANSPORT_FAILED
    EV_HTTP_REFUSED
    EV_JOURNAL_FAILS
    EV_JOURNAL_HOLDS
    EV_AUTH_EXPIRED
    EV_PUBLISH_DENIED
    EV_RETAIN_DENIED
    EV_WILL_DENIED
    EV_SUBSCRIBE_DENIED
    EV_GRANT_EXPIRED
    EV_UNSAFE_NAME
    EV_OVERLOAD

cdef enum LogLevel:
    LOG_DEBUG = 10
    LOG_INFO = 20
    LOG_WARNING = 30
    LOG_ERROR = 40

cdef void report(Worker *worker, uint8_t level, uint16_t event, uint8_t reason, Conn *conn, Session *session, Span detail) noexcept nogil   # conn, session may be NULL
cdef Span text(const char *constant) noexcept nogil            # of a C string constant
