"""Face of the journal: records by hand, as if from workers, and what its thread tells. One Python thread uses it."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memcpy, memset
from posix.unistd cimport usleep

from mqttc.base.alloc cimport mem_alloc, mem_free
from mqttc.base.inbox cimport Mail
from mqttc.base.msg cimport Msg, MsgPool, msg_alloc, msg_come_home, msg_data, msg_drop, msg_journal_set, msg_payload, msg_share, msg_topic, pool_free, pool_init
from mqttc.base.types cimport ST_OK, Span, atomic_add_u64_relaxed, atomic_load_u32_acquire, atomic_load_u64_relaxed, atomic_store_u32_release, atomic_store_u64_relaxed
from mqttc.broker.journal cimport (
    Journal as NativeJournal, JournalHooks, journal_free, journal_open, journal_post, journal_start, journal_stop, record_free,
)
from mqttc.broker.record cimport (
    EVENT_AT_QOS_1, EVENT_DONE, EVENT_INBOUND_DONE, EVENT_OF_GROUP, EVENT_RELEASED, EVENT_RETURNED, EVENT_SENT, EVENT_WAS_RELEASED, RECORD_EVENTS, RECORD_GROUP, RECORD_GROUP_END,
    RECORD_HANDED_OUT, RECORD_MESSAGE, RECORD_PRESENCE, RECORD_READ, RECORD_SESSION, RECORD_SESSION_END, RECORD_SUBSCRIBE, RECORD_UNSUBSCRIBE,
    RECORD_WILL, RECORD_WILL_DONE, Body, Event, Record, RecordTarget, record_build, record_data, record_events, record_targets,
)

cdef enum:
    WORKERS = 2
    BODIES_MOST = 64
    STATES_MOST = 64


cdef struct Told:                      # [journal thread writes, the face reads]
    uint64_t committed[2]              # atomic
    uint32_t body_count                # atomic
    uint32_t state_count               # atomic
    uint64_t handles[64]
    uint32_t counts[64]
    Body *bodies[64]
    uint8_t failing[64]
    char why[64][200]


cdef void on_committed(void *context, uint16_t worker, uint64_t sequence) noexcept nogil:
    atomic_store_u64_relaxed(&(<Told *> context).committed[worker], sequence)


cdef void on_bodies(void *context, uint16_t worker, uint64_t handle, Body *bodies, uint32_t count) noexcept nogil:
    cdef Told *told = <Told *> context
    cdef uint32_t at = told.body_count % BODIES_MOST
    told.handles[at] = handle
    told.counts[at] = count
    told.bodies[at] = bodies
    atomic_store_u32_release(&told.body_count, told.body_count + 1)


cdef void on_strays(void *context, uint16_t worker, Msg *chain) noexcept nogil:
    cdef Msg *next
    while chain != NULL:
        next = chain.next
        mem_free(chain)
        chain = next


cdef void on_state(void *context, bint failing, const char *why) noexcept nogil:
    cdef Told *told = <Told *> context
    cdef uint32_t at = told.state_count % STATES_MOST
    told.failing[at] = failing
    snprintf(told.why[at], 200, "%s", why)
    atomic_store_u32_release(&told.state_count, told.state_count + 1)


cdef JournalHooks hooks
hooks.committed = on_committed
hooks.bodies = on_bodies
hooks.strays = on_strays
hooks.state = on_state


cdef class Journal:
    """On a file that mqttc.store has made. Records are gathered and posted as one chain of a worker by `post`."""

    cdef NativeJournal *journal
    cdef MsgPool pool
    cdef Told *told
    cdef Record *first
    cdef Record *last
    cdef uint64_t bytes
    cdef uint64_t sequences[2]
    cdef uint32_t bodies_taken

    def __cinit__(self, str path, uint32_t retry_ms=5):
        cdef char[200] why
        cdef bytes name = path.encode()
        if pool_init(&self.pool, 0, WORKERS + 1) != ST_OK:
            raise MemoryError
        self.told = <Told *> mem_alloc(sizeof(Told))
        if self.told == NULL:
            raise MemoryError
        memset(self.told, 0, sizeof(Told))
        self.journal = journal_open(name, WORKERS, 1 << 20, retry_ms, why)
        if self.journal == NULL:
            raise OSError((<bytes> why).decode())

    def __dealloc__(self):
        if self.journal != NULL:
            self.forget()
            journal_free(self.journal)
        mem_free(self.told)
        pool_free(&self.pool)

    cdef forget(self):
        cdef Record *next
        while self.first != NULL:
            next = <Record *> self.first.mail.next
            record_free(self.journal, self.first)
            self.first = next
        self.last = NULL

    def start(self):
        if journal_start(self.journal, &hooks, self.told) != ST_OK:
            raise OSError("no thread")

    def stop(self) -> bool:
        cdef bint done
        with nogil:
            done = journal_stop(self.journal)
        return done

    def close(self):
        self.forget()
        journal_free(self.journal)
        self.journal = NULL

    # ------------------------------------------------------------------------------------------ records

    cdef Record *add(self, uint32_t kind, uint32_t data_bytes) except NULL:
        cdef Record *record = record_build(kind, data_bytes)
        if record == NULL:
            raise MemoryError
        if self.last == NULL:
            self.first = record
        else:
            self.last.mail.next = &record.mail
        self.last = record
        self.bytes += record.bytes
        return record

    cdef Record *add_of(self, uint32_t kind, uint64_t handle, bytes data) except NULL:
        cdef Record *record = self.add(kind, <uint32_t> len(data))
        record.handle = handle
        record.count = <uint32_t> len(data)
        memcpy(record_data(record), <const char *> data, len(data))
        return record

    cdef Event *event(self, uint8_t kind, uint64_t message, uint64_t handle) except NULL:
        cdef Record *record = self.add(RECORD_EVENTS, <uint32_t> sizeof(Event))
        cdef Event *event = record_events(record)
        record.count = 1
        event.kind = kind
        event.message = message
        event.handle = handle
        return event

    cdef Msg *make(self, bytes topic, bytes payload, uint8_t qos) except NULL:
        cdef Msg *msg = msg_alloc(&self.pool, <uint32_t> (len(topic) + len(payload)))
        if msg == NULL:
            raise MemoryError
        memcpy(msg_data(msg), <const char *> topic, len(topic))
        memcpy(msg_data(msg) + len(topic), <const char *> payload, len(payload))
        msg.topic_bytes = <uint16_t> len(topic)
        msg.payload_offset = <uint32_t> len(topic)
        msg.payload_bytes = <uint32_t> len(payload)
        msg.qos = qos
        return msg

    def session(self, uint64_t handle, bytes client_id, uint32_t expiry_s=100):
        self.add_of(RECORD_SESSION, handle, client_id).expiry_s = expiry_s

    def session_end(self, uint64_t handle):
        self.add_of(RECORD_SESSION_END, handle, b"")

    def presence(self, uint64_t handle, int64_t time_ms, uint32_t expiry_s):
        cdef Record *record = self.add_of(RECORD_PRESENCE, handle, b"")
        record.time_ms = time_ms
        record.expiry_s = expiry_s

    def subscribe(self, uint64_t handle, bytes filter, uint8_t options, uint32_t identifier=0):
        cdef Record *record = self.add_of(RECORD_SUBSCRIBE, handle, filter)
        record.options = options
        record.number = identifier

    def unsubscribe(self, uint64_t handle, bytes filter):
        self.add_of(RECORD_UNSUBSCRIBE, handle, filter)

    def handed_out(self, uint64_t handle, bytes filter):
        self.add_of(RECORD_HANDED_OUT, handle, filter)

    def group(self, uint64_t group, bytes filter):
        self.add_of(RECORD_GROUP, group, filter)

    def group_end(self, uint64_t group, uint32_t joined):
        self.add_of(RECORD_GROUP_END, group, b"").count = joined

    def will(self, uint64_t handle, bytes topic, bytes payload, uint32_t delay_s):
        cdef Record *record = self.add_of(RECORD_WILL, handle, b"")
        record.msg = self.make(topic, payload, 1)
        record.number = delay_s

    def will_done(self, uint64_t handle):
        self.add_of(RECORD_WILL_DONE, handle, b"")

    def message(self, bytes topic, bytes payload, targets=(), *, uint8_t qos=1, uint64_t publisher=0, uint16_t packet_id=0, uint64_t version=0, bint synced=False) -> int:
        """targets: (handle, is a group, qos). The message's id."""
        cdef Record *record = self.add(RECORD_MESSAGE, <uint32_t> (len(targets) * sizeof(RecordTarget)))
        cdef RecordTarget *target
        for handle, is_group, target_qos in targets:
            target = &record_targets(record)[record.count]
            target.handle = handle
            target.group = is_group
            target.qos = target_qos
            record.count += 1
        record.msg = self.make(topic, payload, qos)
        record.message = atomic_add_u64_relaxed(&self.journal.next_message, 1)
        msg_journal_set(record.msg, record.message)
        record.handle = publisher
        record.packet_id = packet_id
        record.version = version
        record.synced = synced
        return record.message

    def done(self, uint64_t message, uint64_t handle, *, bint group=False, uint16_t packet_id=0, bint released=False):
        cdef Event *event = self.event(EVENT_DONE, message, handle)
        event.packet_id = packet_id
        event.flags = (EVENT_OF_GROUP if group else 0) | (EVENT_WAS_RELEASED if released else 0)

    def sent(self, uint64_t message, uint64_t handle, uint16_t packet_id, *, uint64_t group=0, uint8_t qos=2):
        cdef Event *event = self.event(EVENT_SENT, message, handle)
        event.packet_id = packet_id
        event.group = group
        event.flags = EVENT_AT_QOS_1 if group and qos == 1 else 0

    def returned(self, uint64_t message, uint64_t handle, uint16_t packet_id, uint64_t group):
        cdef Event *event = self.event(EVENT_RETURNED, message, handle)
        event.packet_id = packet_id
        event.group = group

    def released(self, uint64_t message, uint64_t handle, uint16_t packet_id):
        self.event(EVENT_RELEASED, message, handle).packet_id = packet_id

    def inbound_done(self, uint64_t handle, uint16_t packet_id):
        self.event(EVENT_INBOUND_DONE, 0, handle).packet_id = packet_id

    def read(self, uint64_t handle, list ids, uint16_t worker=0):
        cdef Record *record = self.add(RECORD_READ, <uint32_t> (len(ids) * sizeof(uint64_t)))
        cdef uint64_t id
        record.handle = handle
        for id in ids:
            (<uint64_t *> record_data(record))[record.count] = id
            record.count += 1

    def post(self, uint16_t worker=0) -> int:
        """The chain's sequence."""
        cdef Record *record = self.first
        while record != NULL:
            record.worker = worker
            record = <Record *> record.mail.next
        self.sequences[worker] += 1
        self.last.sequence = self.sequences[worker]
        journal_post(self.journal, self.first, self.last, self.bytes)
        self.first = NULL
        self.last = NULL
        self.bytes = 0
        return self.sequences[worker]

    # ------------------------------------------------------------------------------------------ what it tells

    def committed(self, uint16_t worker=0) -> int:
        return atomic_load_u64_relaxed(&self.told.committed[worker])

    def states(self) -> list:
        """(failing, why) so far."""
        return [(bool(self.told.failing[i]), self.told.why[i].decode()) for i in range(atomic_load_u32_acquire(&self.told.state_count))]

    def bodies(self):
        """The next answer to `read`: [(id, topic, payload) or (id, None, None)]; None: none came yet."""
        cdef uint32_t at
        cdef uint32_t i
        cdef Body *bodies
        cdef Span topic, payload
        if self.bodies_taken == atomic_load_u32_acquire(&self.told.body_count):
            return None
        at = self.bodies_taken % BODIES_MOST
        self.bodies_taken += 1
        bodies = self.told.bodies[at]
        found = []
        for i in range(self.told.counts[at]):
            if bodies[i].msg == NULL:
                found.append((bodies[i].message, None, None))
                continue
            topic = msg_topic(bodies[i].msg)
            payload = msg_payload(bodies[i].msg)
            found.append((bodies[i].message, topic.p[:topic.n], payload.p[:payload.n]))
            msg_drop(&self.pool, bodies[i].msg)
        mem_free(bodies)
        return found

    @property
    def failing(self) -> bool:
        return atomic_load_u32_acquire(&self.journal.failing) != 0

    @property
    def stats(self) -> dict:
        cdef NativeJournal *journal = self.journal
        return {
            "commits": atomic_load_u64_relaxed(&journal.stats.commits), "syncs": atomic_load_u64_relaxed(&journal.stats.syncs),
            "records": atomic_load_u64_relaxed(&journal.stats.records), "cancelled": atomic_load_u64_relaxed(&journal.stats.cancelled),
            "logged": atomic_load_u64_relaxed(&journal.stats.logged), "folded": atomic_load_u64_relaxed(&journal.stats.folded),
            "failures": atomic_load_u64_relaxed(&journal.stats.failures), "backlog": atomic_load_u64_relaxed(&journal.stats.backlog_bytes),
        }
