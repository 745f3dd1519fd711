from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from mqttc.base.ring cimport ring_at
from mqttc.base.types cimport atomic_load_u32_relaxed, atomic_load_u64_relaxed, atomic_store_u64_relaxed, unlikely
from mqttc.base.vec cimport vec_at, vec_push
from mqttc.broker.journal cimport journal_block_bytes
from mqttc.broker.reply cimport END_FAILED, conn_disconnect
from mqttc.broker.report cimport EV_OVERLOAD, LOG_WARNING, report, text
from mqttc.broker.send cimport session_drop
from mqttc.broker.session cimport SESSION_PAGE, queue_remove
from mqttc.broker.state cimport (
    CONN_BRAKE_PAUSED, CONN_DONE, CONN_UP, GUARD_YIELDED, OVERLOAD_DROP, OVERLOAD_NONE, OVERLOAD_REFUSE, OVERLOAD_SHED, QE_STORED, Conn, Engine,
    QueueEntry, Session, Settings, Worker,
)
from mqttc.broker.stats cimport (
    C_DROPPED_OVERLOAD, C_ENDED_OVERLOAD, C_INFLIGHT, C_QUEUED, C_QUEUED_BYTES, C_SUBSCRIPTIONS, C_TURNS_CUT, stat,
)
from mqttc.net.outq cimport outq_clear
from mqttc.net.reactor cimport link_close, link_pause, link_resume, reactor_link, reactor_spent_ns
from mqttc.proto.packet cimport RC_QUOTA_EXCEEDED, Packet

cdef enum:
    LOOK_MS = 10
    BUSY_MS = 1000                     # for which no new client is taken after a turn that was too long
    SHED_MS = 100                      # between two that are dropped
    SHED_SESSIONS = 20000              # looked at for the one that keeps most waiting
    SHED_LEAST = 16384                 # bytes that must wait for it
    CLEAR_ABOVE = 65536                # unsent bytes that are not waited for when a client is dropped
    # What things take beside the blocks of messages: bytes, measured roughly, so that the sum follows what the process takes.
    SESSION_BYTES = 512
    CONN_BYTES = 640
    SUBSCRIPTION_BYTES = 192
    NODE_BYTES = 96
    ENTRY_BYTES = 40
    RETAINED_BYTES = 160


cdef uint64_t engine_memory(const Engine *engine) noexcept nogil:
    cdef uint64_t total = atomic_load_u64_relaxed(&engine.guard.early_bytes)
    cdef Worker *worker
    cdef uint32_t i
    for i in range(engine.settings.workers):
        worker = engine.workers[i]
        total += atomic_load_u64_relaxed(&worker.msgs.bytes_made) - atomic_load_u64_relaxed(&worker.msgs.bytes_freed)
        total += atomic_load_u64_relaxed(&worker.reactor.chunks.bytes)
        total += atomic_load_u64_relaxed(&worker.reactor.stats.links_open) * CONN_BYTES
        total += (atomic_load_u64_relaxed(&worker.stats.v[<int> C_QUEUED]) + atomic_load_u64_relaxed(&worker.stats.v[<int> C_INFLIGHT])) * ENTRY_BYTES
        total += atomic_load_u64_relaxed(&worker.stats.v[<int> C_SUBSCRIPTIONS]) * SUBSCRIPTION_BYTES
    if engine.journal != NULL:
        total += journal_block_bytes(engine.journal)
    total += <uint64_t> atomic_load_u32_relaxed(&engine.sessions) * SESSION_BYTES
    total += atomic_load_u64_relaxed(&engine.trie.node_count) * NODE_BYTES
    total += atomic_load_u64_relaxed(&engine.retain.count) * RETAINED_BYTES
    # Counters of several threads, read one after the other: blocks on their way may be seen freed and not yet made.
    return 0 if <int64_t> total < 0 else total


cdef bint totals_met(const Engine *engine) noexcept nogil:
    cdef const Settings *settings = &engine.settings
    cdef uint64_t messages = 0
    cdef uint64_t bytes = 0
    cdef uint32_t i
    if settings.max_total_queued_messages == 0 and settings.max_total_queued_bytes == 0:
        return False
    for i in range(settings.workers):
        messages += atomic_load_u64_relaxed(&engine.workers[i].stats.v[<int> C_QUEUED])
        bytes += atomic_load_u64_relaxed(&engine.workers[i].stats.v[<int> C_QUEUED_BYTES])
    return (settings.max_total_queued_messages and messages >= settings.max_total_queued_messages) or (
        settings.max_total_queued_bytes and bytes >= settings.max_total_queued_bytes
    )


# ---- memory

cdef uint8_t stage_of(const Settings *settings, uint64_t used) noexcept nogil:
    if settings.max_memory == 0 or used < settings.max_memory // 10 * 8:
        return OVERLOAD_NONE
    if used < settings.max_memory // 10 * 9:
        return OVERLOAD_REFUSE
    return OVERLOAD_SHED if used < settings.max_memory else OVERLOAD_DROP


cdef void stage_enter(Worker *worker, uint8_t stage) noexcept nogil:
    """Told by one worker for all, when it gets worse and when it is over."""
    cdef uint8_t before = worker.overload
    worker.overload = stage
    if worker.index:
        return
    atomic_store_u64_relaxed(&worker.engine.guard.overload, stage)
    if stage == OVERLOAD_NONE:
        report(worker, LOG_WARNING, EV_OVERLOAD, 0, NULL, NULL, text("memory is below its limits again"))
    elif stage <= before:
        return
    elif stage == OVERLOAD_REFUSE:
        report(worker, LOG_WARNING, EV_OVERLOAD, RC_QUOTA_EXCEEDED, NULL, NULL, text("80 % of max_memory: no new sessions and subscriptions"))
    elif stage == OVERLOAD_SHED:
        report(worker, LOG_WARNING, EV_OVERLOAD, RC_QUOTA_EXCEEDED, NULL, NULL, text("90 % of max_memory: QoS 0 and retained messages are given up"))
    else:
        report(worker, LOG_WARNING, EV_OVERLOAD, RC_QUOTA_EXCEEDED, NULL, NULL, text("max_memory: those who keep most waiting are dropped"))


cdef inline uint64_t waiting_bytes(const Session *session) noexcept nogil:
    cdef uint64_t n = session.queued_bytes
    if session.conn != NULL and session.conn.phase == CONN_UP:
        n += session.conn.link.out.bytes
    return n


cdef Session *slowest(Worker *worker) noexcept nogil:
    """For whom most waits, of those looked at; NULL: for nobody enough to be worth it."""
    cdef Session *session
    cdef Session *worst = NULL
    cdef uint64_t most = SHED_LEAST
    cdef uint32_t slots = worker.session_pages.count * SESSION_PAGE
    cdef uint32_t i
    for i in range(slots if slots < SHED_SESSIONS else SHED_SESSIONS):
        if worker.shed_slot >= slots:
            worker.shed_slot = 0
        session = (<Session **> worker.session_pages.items)[worker.shed_slot // SESSION_PAGE] + (worker.shed_slot % SESSION_PAGE)
        worker.shed_slot += 1
        if session.client_id != NULL and waiting_bytes(session) > most:
            most = waiting_bytes(session)
            worst = session
    return worst


cdef void session_empty(Worker *worker, Session *session) noexcept nogil:
    """What waits for it is given up, but for what shared groups have lent it, which goes back to them when its client leaves."""
    cdef uint32_t i = 0
    cdef QueueEntry *entry
    while i < session.queue.count:
        entry = <QueueEntry *> ring_at(&session.queue, i)
        if entry.member and not entry.state & (QE_STORED << 4):
            i += 1
            continue
        session_drop(worker, session, C_DROPPED_OVERLOAD)
        queue_remove(worker, session, i)


cdef void shed(Worker *worker) noexcept nogil:
    cdef Session *session = slowest(worker)
    cdef Conn *conn
    if session == NULL:
        return
    conn = session.conn
    session_empty(worker, session)
    if conn == NULL or conn.phase != CONN_UP:
        return
    stat(&worker.stats, C_ENDED_OVERLOAD)
    report(worker, LOG_WARNING, EV_OVERLOAD, RC_QUOTA_EXCEEDED, conn, session, text("dropped: it keeps most waiting"))
    if conn.link.out.bytes <= CLEAR_ABOVE:
        conn_disconnect(worker, conn, RC_QUOTA_EXCEEDED)
        return
    # It has not read what was sent, so it would not read a DISCONNECT behind that either.
    outq_clear(&worker.reactor.chunks, &conn.link.out)
    conn.disconnect_reason = RC_QUOTA_EXCEEDED
    conn.phase = CONN_DONE
    link_close(worker.reactor, &conn.link, END_FAILED)


cdef bint overload_sheds(Worker *worker, const Packet *packet) noexcept nogil:
    if packet.qos and not packet.retain and worker.overload < OVERLOAD_DROP:
        return False
    if packet.retain and packet.payload.n == 0:     # gives memory back
        return False
    stat(&worker.stats, C_DROPPED_OVERLOAD)
    return True


# ---- turns

cdef bint turn_spent(Worker *worker) noexcept nogil:
    cdef uint32_t most = worker.engine.settings.turn_time_ms
    if most and reactor_spent_ns(worker.reactor) >= <int64_t> most * 1000000:
        worker.turn_over = True
    return worker.turn_over


cdef inline bint turn_long(const Worker *worker) noexcept nogil:
    """The turn before this one."""
    cdef uint32_t limit_ms = worker.engine.settings.busy_turn_time_ms
    return limit_ms != 0 and worker.reactor.stats.turn_last_us >= <uint64_t> limit_ms * 1000


cdef bint worker_busy(const Worker *worker) noexcept nogil:
    return worker.reactor.now_ms < worker.busy_until_ms or turn_long(worker)


cdef void conn_yield(Worker *worker, Conn *conn) noexcept nogil:
    cdef uint64_t *place
    if conn.guarded & GUARD_YIELDED:
        return
    place = <uint64_t *> vec_push(&worker.yielded)
    if place == NULL:
        return                          # without memory it goes on at once
    place[0] = <uint64_t> conn.link.generation << 32 | conn.link.slot
    conn.guarded |= GUARD_YIELDED
    stat(&worker.stats, C_TURNS_CUT)
    link_pause(worker.reactor, &conn.link)


cdef void yielded_resume(Worker *worker) noexcept nogil:
    cdef uint64_t token
    cdef uint32_t i
    cdef Conn *conn
    worker.turn_over = False
    for i in range(worker.yielded.count):
        token = (<uint64_t *> vec_at(&worker.yielded, i))[0]
        conn = <Conn *> reactor_link(worker.reactor, <uint32_t> token, <uint32_t> (token >> 32))
        if conn == NULL:
            continue
        conn.guarded &= ~<uint8_t> GUARD_YIELDED
        if not conn.flags & CONN_BRAKE_PAUSED and conn.parked == NULL:      # else the brake, or the answer, lets it go
            link_resume(worker.reactor, &conn.link)
    worker.yielded.count = 0


cdef void overload_look(Worker *worker) noexcept nogil:
    cdef Settings *settings = &worker.engine.settings
    cdef uint8_t stage
    if unlikely(worker.yielded.count or worker.turn_over):
        yielded_resume(worker)
    if unlikely(turn_long(worker)):
        worker.busy_until_ms = worker.reactor.now_ms + BUSY_MS
    if worker.reactor.now_ms - worker.looked_ms < LOOK_MS:
        return
    worker.looked_ms = worker.reactor.now_ms
    worker.queues_full = totals_met(worker.engine)
    if settings.max_memory == 0:
        return
    stage = stage_of(settings, engine_memory(worker.engine))
    if unlikely(stage != worker.overload):
        stage_enter(worker, stage)
    if unlikely(stage == OVERLOAD_DROP) and worker.reactor.now_ms - worker.shed_ms >= SHED_MS:
        worker.shed_ms = worker.reactor.now_ms
        shed(worker)
