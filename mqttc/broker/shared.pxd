"""Shared: messages of shared subscriptions on their way from the group's home to a member, and back where the member left or broke off."""

from libc.stdint cimport uint64_t

from mqttc.broker.publication cimport Publication
from mqttc.broker.state cimport GroupMail, Worker

cdef void group_offer(Worker *worker, Publication *pub, uint64_t id) noexcept nogil            # at the group's home: to a member with credit, else to the backlog
cdef void on_group_mail(Worker *worker, GroupMail *mail) noexcept nogil                        # at the group's home, or at the member's; takes mail.msg over
cdef void tell_group(Worker *worker, GroupMail *mail, uint64_t group) noexcept nogil           # at once when the group lives here, else by mail (copied)
cdef void own_mail(Worker *worker) noexcept nogil                                              # what this worker's sessions told groups that live here
cdef void credits_grant(Worker *worker) noexcept nogil                                         # end of turn
