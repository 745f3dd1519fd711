from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from mqttc.base.msg cimport Msg, msg_drop, msg_journal_set, msg_payload, msg_properties, msg_topic
from mqttc.base.ring cimport ring_at
from mqttc.base.types cimport span_make
from mqttc.base.vec cimport vec_at
from mqttc.broker.acl cimport ACL_RECEIVE
from mqttc.broker.durable cimport entry_id, note_filter, note_handout, note_read, note_sent, until_now
from mqttc.broker.permit cimport session_may
from mqttc.broker.publication cimport Publication, publication_clear, publication_init, publication_msg
from mqttc.broker.record cimport RECORD_HANDED_OUT, Body
from mqttc.broker.reply cimport answer
from mqttc.broker.retain cimport retain_done, retain_step
from mqttc.broker.routes cimport subscription_ids_share
from mqttc.broker.send cimport conn_at, entry_drop, fits, hold_entry, out_high, parts_of_entry, send_parts, session_drop
from mqttc.broker.session cimport handout_end, inflight_done, inflight_find, inflight_push, queue_pop, queue_remove, window_free
from mqttc.broker.state cimport (
    OUT_DONE, OUT_HELD, OUT_READY, OUT_RELEASED, OUT_SENT, QE_COUNTED, QE_JOURNALED, QE_RETAIN, QE_STORED, SESSION_HANDOUT_TURN, SESSION_RECHECK, Conn, Handout,
    QueueEntry, Session, Worker,
)
from mqttc.broker.stats cimport (
    C_DENIED_RECEIVE, C_DROPPED_EXPIRED, C_DROPPED_NO_MEMORY, C_DROPPED_TOO_LARGE, C_JOURNAL_LOST, C_MESSAGES_RESENT, C_RETAINED_HANDED_OUT, stat,
)
from mqttc.net.reactor cimport END_NO_MEMORY, LINK_NOTIFY, link_close, link_dirty
from mqttc.proto.encode cimport PublishParts
from mqttc.proto.packet cimport PUBREL, RC_SUCCESS

cdef enum:
    HANDOUT_BATCH = 32                 # retained messages read under one lock hold
    HANDOUT_BUDGET = 4096              # topics looked at for them in one turn
    BODIES_BATCH = 128                 # messages read back at a time
    BODIES_BYTES = 1 << 20


# ---- retained messages

cdef void handout_note(Worker *worker, Session *session, QueueEntry *entry) noexcept nogil:
    """A retained message that a durable session must acknowledge is one of its own from now on: the journal knows it beside the retained one, so that a
    crash neither loses it nor gives its packet id to another one. Without memory for that it is sent all the same."""
    cdef Publication pub
    cdef Msg *retained = entry.msg
    publication_init(&pub)
    pub.topic = msg_topic(retained)
    pub.properties = msg_properties(retained)
    pub.payload = msg_payload(retained)
    pub.publisher = retained.publisher
    pub.qos = retained.qos
    pub.retain = 1
    pub.expires_at_ms = retained.expires_at_ms
    if publication_msg(worker, &pub) != NULL and note_handout(worker, session, pub.msg, entry):
        msg_drop(&worker.msgs, retained)
        entry.msg = pub.msg
        entry.state |= QE_JOURNALED << 4
        return
    stat(&worker.stats, C_JOURNAL_LOST)
    publication_clear(worker, &pub)


cdef bint handout_send(Worker *worker, Session *session, Conn *conn, QueueEntry *entry) noexcept nogil:
    """One retained message; takes the entry's references over. False: no memory, the connection closes."""
    cdef QueueEntry *place = NULL
    cdef PublishParts parts
    cdef bint behind
    if session.rights != NULL and not session_may(worker, session, ACL_RECEIVE, msg_topic(entry.msg), False):
        stat(&worker.stats, C_DENIED_RECEIVE)
        entry_drop(worker, session, entry)
        return True
    parts_of_entry(worker, entry, &parts)
    if not fits(conn, &parts):
        session_drop(worker, session, C_DROPPED_TOO_LARGE)
        entry_drop(worker, session, entry)
        return True
    stat(&worker.stats, C_RETAINED_HANDED_OUT)
    if entry.qos == 0:
        send_parts(worker, conn, &parts)
        entry_drop(worker, session, entry)
        return True
    if session.durable:
        handout_note(worker, session, entry)
    behind = session.resend != session.inflight.count           # one that waits for the journal
    if entry.qos != 2 or not session.durable:
        place = inflight_push(worker, session)
    elif hold_entry(worker, session, entry):
        return True
    if place == NULL:
        entry_drop(worker, session, entry)
        link_close(worker.reactor, &conn.link, END_NO_MEMORY)
        return False
    entry.packet_id = place.packet_id
    entry.state |= (OUT_READY if behind else OUT_SENT) | QE_COUNTED << 4
    place[0] = entry[0]
    note_sent(worker, session, place)
    if behind:
        session.resend -= 1             # not sent
        return True
    parts_of_entry(worker, place, &parts)
    send_parts(worker, conn, &parts)
    return True


cdef bint handout_step(Worker *worker, Session *session) noexcept nogil:
    """Sends some retained messages of the first hand-out; false: none may be sent now. The hand-out ends when its cursor does. [MQTT-3.3.1-9]"""
    cdef Handout *handout = <Handout *> vec_at(session.handouts, 0)
    cdef Conn *conn = session.conn
    cdef Msg *batch[HANDOUT_BATCH]
    cdef QueueEntry entry
    cdef uint32_t room = HANDOUT_BATCH
    cdef int count, i, k
    if handout.qos:
        room = window_free(session)
        if room > HANDOUT_BATCH:
            room = HANDOUT_BATCH
        if room == 0:
            return False
    if conn.link.out.bytes > out_high(worker) // 4:
        room = 1                        # large messages: look after each
    count = retain_step(worker.engine.retain, &handout.cursor, &worker.msgs, worker.reactor.now_ms, batch, <int> room, HANDOUT_BUDGET)
    if count < 0:
        link_close(worker.reactor, &conn.link, END_NO_MEMORY)
        return False                    # the cursor stands where it stood: goes on with the next connection
    if count == 0 and not retain_done(&handout.cursor):
        conn.link.flags |= LINK_NOTIFY  # a long way to the next match: other connections first
        link_dirty(worker.reactor, &conn.link)
        return False
    if count == 0:
        note_filter(worker, RECORD_HANDED_OUT, session, span_make(handout.cursor.filter, handout.cursor.filter_bytes))
        handout_end(session, 0)
        return True
    for i in range(count):
        entry.msg = batch[i]
        entry.subscription_ids = handout.subscription_ids
        subscription_ids_share(entry.subscription_ids)
        entry.member = 0
        entry.packet_id = 0
        entry.qos = handout.qos if handout.qos < batch[i].qos else batch[i].qos
        entry.state = QE_RETAIN << 4
        if not handout_send(worker, session, conn, &entry):
            for k in range(i + 1, count):
                msg_drop(&worker.msgs, batch[k])
            return False
    return True


# ---- what was in flight, and the queue

cdef bint resend_step(Worker *worker, Session *session) noexcept nogil:
    """One in-flight entry of before this connection, in the original order [MQTT-4.4.0-1, MQTT-4.6.0-1]; false: window or output is full."""
    cdef Conn *conn = session.conn
    cdef QueueEntry *entry = <QueueEntry *> ring_at(&session.inflight, session.resend)
    cdef PublishParts parts
    if entry.state & 15 == OUT_DONE:
        session.resend += 1
        return True
    if entry.state & 15 == OUT_RELEASED:
        # Its PUBREC may have come in this turn, on the connection before this one.
        answer(worker, conn, PUBREL, entry.packet_id, RC_SUCCESS, until_now(worker) if entry.state & (QE_JOURNALED << 4) else 0)
        session.resend += 1
        return True
    if entry.state & 15 == OUT_HELD:
        return False
    if not entry.state & (QE_COUNTED << 4) and session.window_used >= session.receive_maximum:
        return False
    parts_of_entry(worker, entry, &parts)
    if entry.state & 15 != OUT_READY:
        parts.dup = 1                   # [MQTT-3.3.1-1]
        stat(&worker.stats, C_MESSAGES_RESENT)
    if not fits(conn, &parts):
        session_drop(worker, session, C_DROPPED_TOO_LARGE)
        inflight_done(worker, session, entry)
        return True
    if not entry.state & (QE_COUNTED << 4):
        session.window_used += 1
    entry.state = (entry.state & 0xF0) | OUT_SENT | (QE_COUNTED << 4)
    session.resend += 1
    return send_parts(worker, conn, &parts)


cdef void session_pump(Worker *worker, Session *session) noexcept nogil:
    cdef Conn *conn = conn_at(session)
    cdef QueueEntry entry
    cdef QueueEntry *front
    if conn == NULL:
        return
    while True:
        if session.resend == session.inflight.count and session.queue.count == 0 and session.handouts == NULL:
            return
        if conn.link.out.bytes >= out_high(worker):
            conn.link.flags |= LINK_NOTIFY
            return
        if session.resend < session.inflight.count:
            if resend_step(worker, session):
                continue
            if (<QueueEntry *> ring_at(&session.inflight, session.resend)).state & 15 == OUT_HELD:
                hold_queued(worker, session)
            return
        if session.handouts != NULL and (<Handout *> vec_at(session.handouts, 0)).after <= worker.journal_committed and (
            session.queue.count == 0 or session.flags & SESSION_HANDOUT_TURN
        ):
            session.flags &= ~SESSION_HANDOUT_TURN
            if handout_step(worker, session):
                continue
        if session.queue.count == 0:
            return
        front = <QueueEntry *> ring_at(&session.queue, 0)
        if front.qos and window_free(session) == 0:
            return
        if front.state & (QE_STORED << 4):
            bodies_ask(worker, session)
            return
        queue_pop(worker, session, &entry)
        session.flags |= SESSION_HANDOUT_TURN
        if entry.msg.expires_at_ms and entry.msg.expires_at_ms <= worker.reactor.now_ms:    # [MQTT-3.3.2-5]
            session_drop(worker, session, C_DROPPED_EXPIRED)
            entry_drop(worker, session, &entry)
            continue
        if session.flags & SESSION_RECHECK and not permitted_still(worker, session, &entry):
            continue
        send_queued(worker, session, conn, &entry)


cdef void delivery_ready(Worker *worker, Session *session, uint16_t packet_id) noexcept nogil:
    cdef QueueEntry *entry = inflight_find(session, packet_id)
    if entry != NULL and entry.state & 15 == OUT_HELD:
        entry.state = (entry.state & 0xF0) | OUT_READY
    session_pump(worker, session)


cdef bint permitted_still(Worker *worker, Session *session, QueueEntry *entry) noexcept nogil:
    """Of a queued message, when the rights are others than when it came. False: it is gone."""
    if session.queue.count == 0:
        session.flags &= ~<uint8_t> SESSION_RECHECK
    if entry.member or session_may(worker, session, ACL_RECEIVE, msg_topic(entry.msg), False):      # of a shared group: it is a member still
        return True
    stat(&worker.stats, C_DENIED_RECEIVE)
    entry_drop(worker, session, entry)
    return False


cdef void hold_queued(Worker *worker, Session *session) noexcept nogil:
    """QoS 2 messages at the queue's front get their packet ids in the same commit as those before them."""
    cdef QueueEntry entry
    cdef QueueEntry *front
    while session.queue.count and window_free(session) and not session.flags & SESSION_RECHECK:
        front = <QueueEntry *> ring_at(&session.queue, 0)
        if front.qos != 2 or front.state & (QE_STORED << 4):
            return
        queue_pop(worker, session, &entry)
        if not hold_entry(worker, session, &entry):
            session_drop(worker, session, C_DROPPED_NO_MEMORY)
            entry_drop(worker, session, &entry)
            return


cdef void send_queued(Worker *worker, Session *session, Conn *conn, QueueEntry *entry) noexcept nogil:
    """An entry just taken from the queue, with room in the window."""
    cdef PublishParts parts
    cdef QueueEntry *place
    parts_of_entry(worker, entry, &parts)
    if not fits(conn, &parts):
        session_drop(worker, session, C_DROPPED_TOO_LARGE)
        entry_drop(worker, session, entry)
        return
    if entry.qos == 2 and session.durable:
        if not hold_entry(worker, session, entry):
            session_drop(worker, session, C_DROPPED_NO_MEMORY)
            entry_drop(worker, session, entry)
        return
    if entry.qos:
        place = inflight_push(worker, session)
        if place == NULL:
            session_drop(worker, session, C_DROPPED_NO_MEMORY)
            entry_drop(worker, session, entry)
            return
        parts.packet_id = place.packet_id
        entry.packet_id = place.packet_id
        entry.state = (entry.state & 0xF0) | OUT_SENT | (QE_COUNTED << 4)
        place[0] = entry[0]
        note_sent(worker, session, place)
        send_parts(worker, conn, &parts)
        return
    send_parts(worker, conn, &parts)
    entry_drop(worker, session, entry)


# ---- bodies that lie in the store

cdef void bodies_ask(Worker *worker, Session *session) noexcept nogil:
    """The next messages of the queue lie in the journal's file: asks for a batch of them, unless that is under way."""
    cdef uint64_t ids[BODIES_BATCH]
    cdef QueueEntry *entry
    cdef uint64_t bytes = 0
    cdef uint32_t count = 0
    cdef uint32_t i
    if session.reading:
        return
    for i in range(session.queue.count):
        entry = <QueueEntry *> ring_at(&session.queue, i)
        if count == BODIES_BATCH or not entry.state & (QE_STORED << 4) or (count and bytes + entry.member > BODIES_BYTES):
            break
        ids[count] = entry_id(entry)
        bytes += entry.member
        count += 1
    session.reading = note_read(worker, session, ids, count)
    if not session.reading and session.conn != NULL:
        session.conn.link.flags |= LINK_NOTIFY      # no memory: tried again
        link_dirty(worker.reactor, &session.conn.link)


cdef void bodies_arrived(Worker *worker, Session *session, Body *bodies, uint32_t count) noexcept nogil:
    """Fills in what was asked for; what is not in the file any more is dropped and counted."""
    cdef QueueEntry *entry
    cdef Body *body
    cdef uint32_t i = 0
    cdef uint32_t k
    session.reading = False
    for k in range(count):
        body = &bodies[k]
        while i < session.queue.count:              # the queue's front may have been dropped meanwhile, by policy
            entry = <QueueEntry *> ring_at(&session.queue, i)
            if entry.state & (QE_STORED << 4) and entry_id(entry) == body.message:
                break
            i += 1
        if i >= session.queue.count:
            i = 0
            continue
        if body.msg == NULL:
            session_drop(worker, session, C_DROPPED_NO_MEMORY)
            queue_remove(worker, session, i)
            continue
        msg_journal_set(body.msg, body.message)
        if body.expires_wall_ms:
            body.msg.expires_at_ms = body.expires_wall_ms - worker.engine.journal.store_time_ms
            if body.msg.expires_at_ms <= 0:
                body.msg.expires_at_ms = 1
        entry.state &= ~(QE_STORED << 4)
        entry.member = 0
        entry.msg = body.msg
        body.msg = NULL
        i += 1
    session_pump(worker, session)
