"""Inside: the program around the broker as a client: what it asks of a worker, and the messages that it gets.

An in-process client is a session whose connection has no link (Inside in state.pxd). It publishes through on_publish, whose acknowledgements become answers
to its requests; so brakes, limits and the journal treat it like any client. It subscribes through subscribe_one. What is sent to it is queued in its
session, within the bounds and by the policy of every session, and handed over at the turn's end, INSIDE_WINDOW messages at a time: counted blocks in
batches, which come back by mail to be freed.
"""

from mqttc.broker.state cimport HookMail, RequestMail, Session, Worker

cdef void on_request(Worker *worker, RequestMail *request) noexcept nogil      # takes it over
cdef void inside_answered(Worker *worker, const HookMail *mail) noexcept nogil  # what hooks say of a publication; later ones follow
cdef void inside_pump_all(Worker *worker) noexcept nogil                       # end of turn
cdef void inside_free(Worker *worker, Session *session) noexcept nogil         # shutdown: the in-process client of this session, if it has one
