"""Mail of a worker to the others: collected during the turn, posted at its end (before the flush, so that what a client is told has been told to the
other workers first). Order per pair of workers is the order of posting."""

from libc.stdint cimport uint8_t, uint16_t

from mqttc.base.inbox cimport Mail
from mqttc.base.msg cimport Msg
from mqttc.broker.routes cimport Route
from mqttc.broker.state cimport GroupMail, PublishMail, Worker

cdef void post(Worker *worker, uint16_t to, Mail *mail) noexcept nogil
# Takes a reference of msg and of route. ST_NO_MEMORY: nothing was taken.
cdef int post_publish(Worker *worker, uint16_t to, Msg *msg, Route *route) noexcept nogil
cdef GroupMail *post_group(Worker *worker, uint16_t to, uint8_t verb) noexcept nogil       # zeroed but mail and verb, to be filled in; NULL: no memory
cdef void publish_mail_done(Worker *worker, const PublishMail *mail) noexcept nogil       # its publications no longer count as being on their way
cdef void post_all(Worker *worker) noexcept nogil                                          # end of turn
cdef void mail_discard(Worker *worker, Mail *mail) noexcept nogil                          # frees mail and what it holds (shutdown)
