"""Session: what a client id keeps between connections: subscriptions, the queue, the in-flight ring, QoS 2 ids, will, retained hand-outs.

All of it belongs to the worker that the client id hashes to. This module holds the data operations; sending is deliver's.
"""

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from mqttc.base.types cimport Span
from mqttc.broker.handle cimport handle_generation, handle_make, handle_slot
from mqttc.broker.state cimport Membership, QueueEntry, Session, Subscription, Will, Worker

cdef enum:
    SESSION_PAGE = 64

cdef enum TakeBack:                    # of the messages that shared groups have lent to a session
    TAKE_UNSENT = 0
    TAKE_SENT = 1                      # and those that were sent at QoS 1 and not acknowledged, of groups that it is a member of: its connection has ended
    TAKE_LEFT = 2                      # and of those that it has left: it ends itself

cdef inline Session *session_of(const Worker *worker, uint64_t handle) noexcept nogil:
    """The session that the handle names, which must be of this worker; NULL when it has ended."""
    cdef uint32_t slot = handle_slot(handle)
    cdef Session *session
    if unlikely_slot(worker, slot):
        return NULL
    session = (<Session **> worker.session_pages.items)[slot // SESSION_PAGE] + (slot % SESSION_PAGE)
    if session.generation != handle_generation(handle) or session.client_id == NULL:
        return NULL
    return session

cdef inline bint unlikely_slot(const Worker *worker, uint32_t slot) noexcept nogil:
    return slot // SESSION_PAGE >= worker.session_pages.count

cdef inline uint64_t session_handle(const Worker *worker, const Session *session) noexcept nogil:
    return handle_make(worker.index, session.slot, session.generation)

cdef uint32_t client_hash(Span client_id) noexcept nogil
cdef Session *session_find(Worker *worker, Span client_id, uint32_t hash) noexcept nogil
cdef Session *session_build(Worker *worker, Span client_id, uint32_t hash) noexcept nogil       # NULL: no memory, or max_sessions
# Ends it: subscriptions leave the tree, group messages go back to their groups, everything else is dropped and counted. conn must be NULL.
cdef void session_end(Worker *worker, Session *session) noexcept nogil
cdef void session_discard(Worker *worker, Session *session) noexcept nogil                      # frees its memory only (shutdown)

# Entries own a reference each of msg and subscription_ids.
cdef void entry_release(Worker *worker, Session *session, QueueEntry *entry) noexcept nogil     # gives them up, and its place in the shared group
cdef uint32_t window_free(const Session *session) noexcept nogil                                # messages with QoS > 0 that may be sent now
cdef QueueEntry *inflight_push(Worker *worker, Session *session) noexcept nogil                 # takes the next packet id; fields to be filled but packet_id; NULL: no memory
cdef QueueEntry *inflight_find(Session *session, uint16_t packet_id) noexcept nogil             # not acknowledged yet; NULL
cdef void inflight_done(Worker *worker, Session *session, QueueEntry *entry) noexcept nogil     # complete: releases it and frees its window slot
cdef void queue_pop(Worker *worker, Session *session, QueueEntry *out) noexcept nogil           # the front; its references are the caller's now
cdef int queue_push(Worker *worker, Session *session, const QueueEntry *entry) noexcept nogil   # no policy here; ST_NO_MEMORY: unchanged
cdef void queue_remove(Worker *worker, Session *session, uint32_t index) noexcept nogil         # and release

cdef void will_count(Worker *worker, const Will *will) noexcept nogil                             # in the gauges
cdef void will_uncount(Worker *worker, const Will *will) noexcept nogil

cdef bint inbound_has(const Session *session, uint16_t packet_id) noexcept nogil
cdef int inbound_add(Session *session, uint16_t packet_id) noexcept nogil
cdef bint inbound_remove(Session *session, uint16_t packet_id) noexcept nogil
cdef inline uint32_t inbound_count(const Session *session) noexcept nogil:
    return session.inbound.count if session.inbound != NULL else 0

cdef Subscription *subscription_find(Session *session, Span filter) noexcept nogil
cdef Subscription *subscription_add(Worker *worker, Session *session, Span filter) noexcept nogil     # copies the filter; NULL: no memory
cdef void subscription_remove(Worker *worker, Session *session, Subscription *subscription) noexcept nogil   # the session's record only
cdef uint32_t membership_add(Session *session, uint64_t group) noexcept nogil                         # 1 + index; 0: no memory
cdef uint32_t membership_left(Session *session, uint64_t group) noexcept nogil                        # of a group that it left before this run, for one more message; as membership_add
cdef uint32_t membership_find(const Session *session, uint64_t group) noexcept nogil                  # 1 + index; 0: none
cdef void membership_release(Worker *worker, Session *session, uint32_t member) noexcept nogil        # one message of the group is through: credit is owed
cdef uint16_t group_home(uint64_t group) noexcept nogil

cdef inline uint32_t group_credit_of(const Session *session, const Membership *membership) noexcept nogil:
    """What a group may send to this on-line session: its window, less what the group has in it. What other traffic fills waits in the queue, and goes
    back to the group if the client leaves."""
    return session.receive_maximum - membership.outstanding if session.receive_maximum > membership.outstanding else 1

# The session's client went off line or left: gives what the group may send to another back to it. only: 0 all groups, else that member index.
# QoS 2 that was sent is nobody else's [MQTT-4.8.2-5].
cdef void groups_take_back(Worker *worker, Session *session, uint32_t only, int what) noexcept nogil
cdef void groups_keep(Worker *worker, Session *session, uint32_t only) noexcept nogil                 # it leaves that group, and completes what was sent [MQTT-3.10.4-3]
cdef void handout_end(Session *session, uint32_t index) noexcept nogil                                # the last one takes its place
cdef void handouts_clear(Session *session) noexcept nogil
