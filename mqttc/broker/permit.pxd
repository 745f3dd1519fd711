"""Permit: a session's rights at work: asked for, kept up to date, counted and logged where they deny.

`session.rights_epoch` changes whenever the rights may have: it is what cached verdicts (of a route's entries, of a connection's last topic) are kept
under. 0: the session has no rights to look at, so everything is allowed.
"""

from libc.stdint cimport uint8_t

from mqttc.base.types cimport Span
from mqttc.broker.rights cimport AclDecision, Rights
from mqttc.broker.routes cimport RouteEntry
from mqttc.broker.state cimport Session, Worker

cdef bint session_may(Worker *worker, Session *session, uint8_t action, Span text, bint whole) noexcept nogil  # see rights_allow
cdef bint session_decide(Worker *worker, Session *session, uint8_t action, Span text, bint whole, AclDecision *decision) noexcept nogil     # the same, for people: nothing is counted
cdef bint session_may_will(Worker *worker, Session *session) noexcept nogil    # its will, which a grant's end does not take away
cdef bint entry_permitted(Worker *worker, Session *session, RouteEntry *entry, Span topic) noexcept nogil   # kept in the entry, which its session's worker alone looks at
cdef void session_denied(Worker *worker, Session *session, int counter, Span topic) noexcept nogil          # counts; logs the 1st, 2nd, 4th, 8th, ... of the session
cdef void rights_take(Worker *worker, Session *session, Rights *rights) noexcept nogil        # takes them over, NULL: none, instead of those before
cdef void rights_changed(Worker *worker, Session *session) noexcept nogil      # cached verdicts die; what is queued is looked at again when it is sent
cdef void rights_expire(Worker *worker, Session *session) noexcept nogil       # the grant's time is up
