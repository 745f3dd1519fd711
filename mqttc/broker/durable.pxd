"""Durable: the worker's side of the journal: what it notes during a turn, and what it holds until that is committed.

Notes of a turn form one chain, posted before the turn's mail. Whatever promises something (acknowledgements, SUBACK, a CONNACK for a new session) is held
with the number of the chain that the promise rests on; see HeldAck and Wait.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from mqttc.base.msg cimport Msg
from mqttc.base.types cimport Span, atomic_load_u32_relaxed
from mqttc.broker.record cimport Record
from mqttc.broker.routes cimport Route, SubscriptionIds
from mqttc.broker.state cimport QE_JOURNALED, Conn, QueueEntry, Session, Wait, Will, Worker

cdef inline bint journaled(const Worker *worker) noexcept nogil:
    return worker.engine.journal != NULL

cdef inline bint journal_fails(const Worker *worker) noexcept nogil:
    """Nothing new can be promised at the moment."""
    return worker.engine.journal != NULL and atomic_load_u32_relaxed(&worker.engine.journal.failing) != 0

cdef inline bint knows(const Session *session) noexcept nogil:
    return session.durable != 0

cdef inline uint64_t entry_id(const QueueEntry *entry) noexcept nogil:
    """Of an entry with QE_STORED."""
    return <uint64_t> entry.msg

cdef bint journal_crowded(const Worker *worker) noexcept nogil          # so much waits for the disk that publishers are slowed
cdef void journal_flush(Worker *worker) noexcept nogil                  # end of turn, before mail leaves
cdef void journal_forget(Worker *worker) noexcept nogil                 # all were joined: frees what was noted and what waits
# A message for the durable among the route's receivers, and as retained where version is not 0; of an inbound QoS 2 exchange where packet_id is not 0 (then
# publisher is its session). Gives it its id. False: no memory, nothing was noted.
cdef bint note_message(
    Worker *worker, Msg *msg, const Route *route, uint8_t durability, uint64_t publisher, uint16_t packet_id, uint64_t version,
) noexcept nogil
cdef void note_over(Worker *worker, const Session *session, const QueueEntry *entry) noexcept nogil       # by note_done
cdef void note_group_done(Worker *worker, uint64_t group, const Msg *msg) noexcept nogil                  # a group's message that reaches nobody
cdef void note_sent(Worker *worker, const Session *session, const QueueEntry *entry) noexcept nogil       # it has a packet id; at QoS 2 also one that is not kept
cdef void note_kept(Worker *worker, const Session *session, const QueueEntry *entry) noexcept nogil       # a group's, sent: its member has left and completes it
cdef void note_returned(Worker *worker, const Session *session, const QueueEntry *entry, uint64_t group) noexcept nogil  # such a one: the session has ended before, and the group has it again
cdef void note_released(Worker *worker, const Session *session, const QueueEntry *entry) noexcept nogil
cdef bint note_handout(Worker *worker, const Session *session, Msg *msg, const QueueEntry *entry) noexcept nogil  # retained, to that session alone; its id
cdef void note_inbound_done(Worker *worker, const Session *session, uint16_t packet_id) noexcept nogil
cdef bint note_session(Worker *worker, Session *session) noexcept nogil                                   # new; False: no memory
cdef void note_session_end(Worker *worker, const Session *session) noexcept nogil
cdef void note_presence(Worker *worker, const Session *session, bint online) noexcept nogil
cdef bint note_subscribe(Worker *worker, const Session *session, Span filter, uint8_t options, uint32_t identifier) noexcept nogil
cdef void note_filter(Worker *worker, uint32_t kind, const Session *session, Span filter) noexcept nogil  # RECORD_UNSUBSCRIBE, RECORD_HANDED_OUT
cdef void note_will(Worker *worker, const Session *session, const Will *will) noexcept nogil
cdef void note_will_done(Worker *worker, const Session *session) noexcept nogil
cdef bint note_group(Worker *worker, uint64_t group, Span filter) noexcept nogil                          # a durable member joins a shared group
cdef void note_group_end(Worker *worker, uint64_t group, uint32_t joined) noexcept nogil                  # joined: by note_group, as its home knows
cdef bint note_read(Worker *worker, Session *session, const uint64_t *ids, uint32_t count) noexcept nogil # answered by BodiesMail

cdef inline uint64_t until_now(const Worker *worker) noexcept nogil:
    """What was noted so far is committed when this sequence is. A turn that has noted nothing yet may post nothing: then it is the last one's."""
    if worker.journal_first == NULL and worker.journal_events == NULL:
        return worker.journal_sequence - 1
    return worker.journal_sequence

cdef Wait *wait_add(Worker *worker, uint8_t kind) noexcept nogil        # for what was noted so far; NULL: nothing to wait for, or no memory
cdef void wait_conn(Worker *worker, Conn *conn, uint64_t until) noexcept nogil                            # its held replies

cdef inline void note_done(Worker *worker, const Session *session, const QueueEntry *entry) noexcept nogil:
    """This delivery is over: of one that is kept, and of a packet id that is kept without its message (QoS 2), the file hears."""
    if entry.state & (QE_JOURNALED << 4) or (session.durable and entry.qos == 2 and entry.packet_id):
        note_over(worker, session, entry)
