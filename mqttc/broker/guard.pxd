"""Guard: how many connections there may be and how fast they may come, by address and by user; what those may take that are not accepted yet; and the
rates of a client's messages and bytes.

Connections of an address and of a user are counted in two tables with a lock each, which only CONNECT and the end of a connection take, and only where
such a limit is set. An IPv6 address counts by its first 64 bits, which is what one subscriber has. Rates are token buckets on the turn's clock, a second
deep: they cost a test for NULL where there are none.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from mqttc.base.types cimport Span
from mqttc.broker.state cimport Conn, ConnGuard, Guard, Worker

cdef int guard_init(Guard *guard) noexcept nogil                               # ST_OK, or < 0: no randomness
cdef void guard_free(Guard *guard) noexcept nogil

# A connection was accepted: counted among those whose CONNECT is due, and by its address where that is the client's. False: close it unread; why says
# for which limit. True does not mean that its CONNECT will be taken: guard_verdict.
cdef bint guard_accept(Worker *worker, Conn *conn, const char **why) noexcept nogil
cdef uint8_t guard_verdict(Worker *worker, Conn *conn) noexcept nogil          # its CONNECT is there: RC_SUCCESS, or why it is refused
# Counts it: RC_SUCCESS, or RC_QUOTA_EXCEEDED. loser: whose place it takes, NULL: nobody's.
cdef uint8_t guard_user(Worker *worker, Conn *conn, Span user, const Conn *loser) noexcept nogil
cdef bint guard_early(Worker *worker, Conn *conn, uint32_t bytes) noexcept nogil    # its packets need so many now; False: too many of all connections do
cdef void guard_settle(Worker *worker, Conn *conn) noexcept nogil              # its CONNECT was accepted, or it ends: harmless when called again
cdef void guard_leave(Worker *worker, Conn *conn) noexcept nogil               # it ends
cdef void guard_free_of(Worker *worker, ConnGuard *guard) noexcept nogil       # of a connection that was lost on its way to another worker; NULL is fine

cdef bint rates_start(Worker *worker, Conn *conn) noexcept nogil               # when it is up; False: no memory
# The client sent that much: milliseconds for which it should not be read, 0: none.
cdef uint32_t rates_received(Worker *worker, Conn *conn, uint32_t messages, uint64_t bytes) noexcept nogil
cdef bint rates_exhausted(Worker *worker, const Conn *conn) noexcept nogil     # slowing it has not helped for limits.rate_patience
cdef void rates_flushed(Worker *worker, Conn *conn, uint64_t bytes) noexcept nogil  # that much was written: throttles the link when it was too much
cdef void rates_release(Worker *worker) noexcept nogil                         # timer: those that may be written to again
