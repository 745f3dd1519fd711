"""Presence: a session's client comes and goes: going off line, wills and their delay, session expiry, coming back.

Off line a session has one timer, for whichever is first: the will delay's end or the session's expiry. A session with expiry 0 ends with its connection.
"""


from mqttc.broker.state cimport Conn, Session, Will, Worker

# The connection no longer has the session: will and expiry take their course. ending: the session ends now whatever its expiry (clean start of a new client).
# cancel_delayed: a will with a delay is cancelled, for the client is back already (take-over) [MQTT-3.1.3-9].
cdef void session_offline(Worker *worker, Conn *conn, bint ending, bint cancel_delayed) noexcept nogil
cdef void session_rest(Worker *worker, Session *session) noexcept nogil                         # off line since offline_since_ms: arms its timer
cdef void session_online(Worker *worker, Session *session, Conn *conn) noexcept nogil          # resumed or new; sends nothing yet
cdef void session_rejoin(Worker *worker, Session *session) noexcept nogil                       # after CONNACK: its shared groups may send to it again
cdef void session_timer(Worker *worker, Session *session) noexcept nogil                       # TIMER_SESSION is due
cdef void will_free(Worker *worker, Will *will) noexcept nogil
cdef void session_finish(Worker *worker, Session *session) noexcept nogil                      # a session that is off line ends: its will goes out if it is still due
