"""Group: a shared subscription at its home worker: members, their credit, and the backlog that is the group's own.

A message goes only to a member with credit; what no member can take waits here, so that no member's queue strands it. [MQTT-4.8.2-4..6]
"""

from libc.stdint cimport uint32_t, uint64_t

from mqttc.base.msg cimport Msg
from mqttc.broker.state cimport Group, GroupMail, Member, Worker

cdef Group *group_find(Worker *worker, uint64_t group) noexcept nogil
cdef int group_join(Worker *worker, const GroupMail *mail) noexcept nogil              # makes the group with its first member; ST_NO_MEMORY
cdef void group_leave(Worker *worker, uint64_t group, uint64_t session) noexcept nogil # the last one ends the group, unless it has a backlog
cdef void group_close(Worker *worker, Group *group) noexcept nogil                     # its members are gone
cdef void group_online(Group *group, uint64_t session, uint32_t credit) noexcept nogil
cdef void group_offline(Group *group, uint64_t session) noexcept nogil
cdef void group_credit(Group *group, uint64_t session, uint32_t n) noexcept nogil
cdef Member *group_pick(Worker *worker, Group *group) noexcept nogil                   # takes one of its credit; NULL: nobody has any
# The backlog: takes the reference over. At its bound the oldest is dropped and counted.
cdef void backlog_push(Worker *worker, Group *group, Msg *msg) noexcept nogil
cdef void backlog_push_front(Worker *worker, Group *group, Msg *msg) noexcept nogil
cdef Msg *backlog_pop(Worker *worker, Group *group) noexcept nogil                     # expired ones are dropped; NULL: empty
cdef void group_free(Worker *worker, Group *group) noexcept nogil                      # with its backlog, counted as dropped
