"""Conn: the state machine of one connection: bytes in, packets to their handlers, deadlines, the end."""

from libc.stdint cimport uint8_t, uint32_t

from mqttc.broker.state cimport Conn, Worker

cdef uint32_t conn_data(Worker *worker, Conn *conn, const uint8_t *bytes, uint32_t n) noexcept nogil   # see LinkHooks.on_data
cdef void conn_timer(Worker *worker, Conn *conn) noexcept nogil                # CONNECT, question or keep alive deadline
cdef void conn_ended(Worker *worker, Conn *conn, int reason) noexcept nogil    # see LinkHooks.on_end
cdef void conn_uncount(Worker *worker, Conn *conn) noexcept nogil              # no longer one of the connections that limits are about
cdef void conn_release(Conn *conn) noexcept nogil                             # gives up what the connection owns beside its session
