from libc.stdint cimport uint16_t, uint32_t, uint64_t, uint8_t
from libc.string cimport memcpy, memset

from mqttc.base.msg cimport Msg, msg_drop, msg_journal, msg_share
from mqttc.base.types cimport ST_OK, likely, unlikely
from mqttc.broker.durable cimport journaled, note_done, note_message, note_sent
from mqttc.broker.mail cimport post_publish
from mqttc.broker.permit cimport entry_permitted
from mqttc.broker.port cimport is_inside
from mqttc.broker.publication cimport Publication, publication_clear, publication_msg, publication_of
from mqttc.broker.report cimport EV_RETAINED_LIMIT, LOG_WARNING, report
from mqttc.broker.retain cimport retain_set
from mqttc.broker.routes cimport (
    ENTRY_NOT_OWN, ENTRY_OWN_ONLY, ENTRY_RETAIN_AS_PUBLISHED, Route, RouteEntry, RouteSlice, entry_applies, route_lookup, subscription_ids_share,
)
from mqttc.broker.send cimport conn_at, may_send_now, offer_entry, parts_of, qos0_waits, session_drop, under_pressure
from mqttc.broker.session cimport inflight_done, inflight_push, session_of
from mqttc.broker.shared cimport group_offer
from mqttc.broker.state cimport QE_JOURNALED, QE_RETAIN, Conn, QueueEntry, Run, Session, Worker
from mqttc.broker.stats cimport (
    C_DROPPED_NO_MEMORY, C_DROPPED_OUTPUT_FULL, C_DROPPED_RETAINED_LIMIT, C_DROPPED_TOO_LARGE, C_JOURNAL_LOST, C_MESSAGES_OUT, C_SENT, stat, stat_add,
)
from mqttc.net.outq cimport Chunk, chunk_build, chunk_data, chunk_drop, outq_reserve, outq_share
from mqttc.net.reactor cimport END_NO_MEMORY, link_close, link_dirty
from mqttc.proto.dialect cimport Dialect
from mqttc.proto.encode cimport PublishParts, encode_publish, publish_id_offset, publish_size
from mqttc.proto.packet cimport PUBLISH, RC_QUOTA_EXCEEDED

cdef enum:
    RUN_CHUNK = 65536


cdef bint run_encode(Worker *worker, Publication *pub, const Dialect *dialect, uint32_t variant) noexcept nogil:
    """Encodes as QoS 0 into the worker's run of that layout and retain flag. False: no memory."""
    cdef PublishParts parts
    cdef Run *run = &worker.runs[variant]
    cdef Chunk *chunk = run.chunk
    cdef uint32_t n
    parts_of(&parts, pub.topic, pub.properties, pub.payload, 0, variant & 1)
    parts.has_message_expiry = pub.has_expiry
    parts.message_expiry = pub.message_expiry
    n = publish_size(dialect, &parts)
    if chunk != NULL and chunk.refs == 1:
        chunk.used = 0                  # all receivers have sent what they shared
    if chunk == NULL or chunk.capacity - chunk.used < n:
        chunk = chunk_build(&worker.reactor.chunks, n if n > RUN_CHUNK else RUN_CHUNK)
        if chunk == NULL:
            stat(&worker.stats, C_DROPPED_NO_MEMORY)
            return False
        if run.chunk != NULL:
            chunk_drop(&worker.reactor.chunks, run.chunk)
        run.chunk = chunk
    encode_publish(dialect, &parts, chunk_data(chunk) + chunk.used)
    pub.run_chunk[variant] = chunk
    pub.run_offset[variant] = chunk.used
    pub.run_bytes[variant] = n
    chunk.used += n
    return True


cdef bint send_qos0(Worker *worker, Publication *pub, Session *session, Conn *conn, uint32_t variant) noexcept nogil:
    """Shares the run's packet with this receiver; true: it was sent."""
    cdef uint32_t n
    if pub.run_bytes[variant] == 0 and not run_encode(worker, pub, conn.dialect, variant):
        return False
    n = pub.run_bytes[variant]
    if unlikely(conn.maximum_packet_size != 0 and n > conn.maximum_packet_size):
        session_drop(worker, session, C_DROPPED_TOO_LARGE)
        return False
    if unlikely(conn.link.out.bytes + n > worker.engine.settings.max_output_bytes):
        session_drop(worker, session, C_DROPPED_OUTPUT_FULL)
        return False
    if unlikely(outq_share(&conn.link.out, pub.run_chunk[variant], pub.run_offset[variant], n) != ST_OK):
        link_close(worker.reactor, &conn.link, END_NO_MEMORY)
        return False
    link_dirty(worker.reactor, &conn.link)
    return True


cdef bint send_qos(Worker *worker, Publication *pub, Session *session, Conn *conn, uint8_t qos, uint8_t retain, bint lasting) noexcept nogil:
    """QoS 1 or 2 to a receiver whose window is open: copies the packet encoded for the first of its layout. True: a reference of pub.msg was used."""
    cdef uint8_t layout = conn.layout
    cdef PublishParts parts
    cdef QueueEntry *entry
    cdef uint8_t *out
    cdef uint32_t n = pub.encoded_bytes[layout]
    if n == 0:
        parts_of(&parts, pub.topic, pub.properties, pub.payload, qos, retain)
        parts.has_message_expiry = pub.has_expiry
        parts.message_expiry = pub.message_expiry
        n = publish_size(conn.dialect, &parts)
    if unlikely(conn.maximum_packet_size != 0 and n > conn.maximum_packet_size):
        session_drop(worker, session, C_DROPPED_TOO_LARGE)
        return False
    entry = inflight_push(worker, session)
    if entry == NULL:
        link_close(worker.reactor, &conn.link, END_NO_MEMORY)
        return False
    entry.msg = NULL
    entry.subscription_ids = NULL
    entry.member = 0
    entry.qos = qos
    out = outq_reserve(&worker.reactor.chunks, &conn.link.out, n)
    if out == NULL:
        inflight_done(worker, session, entry)
        link_close(worker.reactor, &conn.link, END_NO_MEMORY)
        return False
    entry.msg = pub.msg
    if retain:
        entry.state |= QE_RETAIN << 4
    if lasting:
        entry.state |= QE_JOURNALED << 4
        note_sent(worker, session, entry)
    if pub.encoded_bytes[layout] == 0:
        parts.packet_id = entry.packet_id
        encode_publish(conn.dialect, &parts, out)
        pub.encoded[layout] = out
        pub.encoded_bytes[layout] = n
        pub.id_offset[layout] = publish_id_offset(out)
    else:
        memcpy(out, pub.encoded[layout], n)
        out[0] = PUBLISH << 4 | qos << 1 | retain
        out[pub.id_offset[layout]] = <uint8_t> (entry.packet_id >> 8)
        out[pub.id_offset[layout] + 1] = <uint8_t> entry.packet_id
    link_dirty(worker.reactor, &conn.link)
    return True


cdef void delivery_void(Worker *worker, const Publication *pub, const Session *session, const RouteEntry *route_entry) noexcept nogil:
    """The publisher's worker, which does not know the rights of others' sessions, has noted this delivery; it is through."""
    cdef QueueEntry entry
    memset(&entry, 0, sizeof(QueueEntry))
    entry.msg = pub.msg
    entry.qos = route_entry.qos if route_entry.qos < pub.qos else pub.qos
    if entry.qos and entry_applies(route_entry, pub.publisher):
        entry.state = QE_JOURNALED << 4
        note_done(worker, session, &entry)


cdef void fan_out_slice(Worker *worker, Publication *pub, Route *route) noexcept nogil:
    cdef RouteSlice *slice = &route.slices[worker.index]
    cdef RouteEntry *entries = route.entries + slice.first
    cdef RouteEntry *route_entry
    cdef Session *session
    cdef Conn *conn
    cdef QueueEntry entry
    cdef uint32_t i
    cdef uint32_t sent = 0
    cdef uint32_t shares = 0           # references of the message that may still be given out
    cdef uint8_t qos, retain
    cdef bint lasting = pub.qos != 0 and pub.msg != NULL and msg_journal(pub.msg) != 0
    if pub.qos and slice.count:
        if publication_msg(worker, pub) == NULL:
            return
        shares = slice.count
        msg_share(pub.msg, shares)      # one atomic step for all receivers; the rest is given back below
    for i in range(slice.count):
        route_entry = &entries[i]
        session = session_of(worker, route_entry.session)
        if unlikely(session == NULL):
            continue
        if unlikely(route_entry.epoch != session.rights_epoch or route_entry.denied) and not entry_permitted(worker, session, route_entry, pub.topic):
            if lasting and session.durable:
                delivery_void(worker, pub, session, route_entry)
            continue
        retain = 0
        if route_entry.flags:
            if route_entry.session == pub.publisher:
                if route_entry.flags & ENTRY_NOT_OWN:
                    continue
            elif route_entry.flags & ENTRY_OWN_ONLY:
                continue
            if route_entry.flags & ENTRY_RETAIN_AS_PUBLISHED:
                retain = pub.retain     # [MQTT-3.3.1-12, MQTT-3.3.1-13]
        qos = route_entry.qos if route_entry.qos < pub.qos else pub.qos
        conn = conn_at(session)
        if likely(conn != NULL and conn.aliases_out == NULL and (route_entry.subscription_ids == NULL or conn.layout == 0)):
            if qos == 0 and not qos0_waits(session):
                sent += send_qos0(worker, pub, session, conn, conn.layout * 2 + retain)
                if unlikely(conn.link.out.bytes >= worker.engine.settings.max_output_bytes // 4 * 3 or session.pressure_since_ms != 0):
                    pub.pressure |= under_pressure(worker, session, 0)
                continue
            if likely(qos and may_send_now(worker, session, conn) and not (qos == 2 and session.durable)):
                if send_qos(worker, pub, session, conn, qos, retain, lasting and session.durable):
                    shares -= 1
                    sent += 1
                continue
        elif conn == NULL and qos == 0 and not worker.engine.settings.queue_qos0_offline and not is_inside(session):
            continue
        if publication_msg(worker, pub) == NULL:
            break
        if shares:
            shares -= 1
        else:
            msg_share(pub.msg, 1)
        entry.msg = pub.msg
        entry.subscription_ids = route_entry.subscription_ids
        subscription_ids_share(entry.subscription_ids)
        entry.member = 0
        entry.packet_id = 0
        entry.qos = qos
        entry.state = QE_RETAIN << 4 if retain else 0
        if lasting and qos and session.durable:
            entry.state |= QE_JOURNALED << 4
        offer_entry(worker, session, &entry)
        pub.pressure |= under_pressure(worker, session, qos)
    while shares:                       # unused ones: the publication's own reference keeps the count above 0
        msg_drop(&worker.msgs, pub.msg)
        shares -= 1
    if sent:
        stat_add(&worker.stats, C_MESSAGES_OUT, sent)
        stat_add(&worker.stats, C_SENT + PUBLISH, sent)
    for i in range(slice.group_count):
        group_offer(worker, pub, route.groups[slice.first_group + i])


cdef void fan_out(Worker *worker, Publication *pub, Route *route) noexcept nogil:
    cdef uint32_t peer
    cdef RouteSlice *slice
    if route.slices[worker.index].count or route.slices[worker.index].group_count:
        fan_out_slice(worker, pub, route)
    if worker.engine.settings.workers == 1:
        return
    for peer in range(route.worker_count):
        slice = &route.slices[peer]
        if peer == worker.index or (slice.count == 0 and slice.group_count == 0):
            continue
        if publication_msg(worker, pub) == NULL:
            return
        if post_publish(worker, <uint16_t> peer, pub.msg, route) != ST_OK:
            stat(&worker.stats, C_DROPPED_NO_MEMORY)
        if unlikely(worker.crowded[peer]):
            pub.pressure = True


cdef void publish_message(Worker *worker, Msg *msg) noexcept nogil:
    cdef Publication pub
    cdef Route *route
    cdef uint64_t version = 0
    msg_share(msg, 1)
    publication_of(worker, &pub, msg)
    if msg.retain and worker.engine.settings.retain_available:
        if retain_set(worker.engine.retain, &worker.msgs, msg, &version) != ST_OK:
            stat(&worker.stats, C_DROPPED_RETAINED_LIMIT)
            report(worker, LOG_WARNING, EV_RETAINED_LIMIT, RC_QUOTA_EXCEEDED, NULL, NULL, pub.topic)
    route = route_lookup(&worker.routes, pub.topic)
    if route == NULL:
        stat(&worker.stats, C_DROPPED_NO_MEMORY)
    else:
        if journaled(worker) and (version or (msg.qos and route.durability and (route.durable_count or route.group_count))):
            if not note_message(worker, msg, route, route.durability, pub.publisher, 0, version):
                stat(&worker.stats, C_JOURNAL_LOST)
        fan_out(worker, &pub, route)
    publication_clear(worker, &pub)
