from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from mqttc.base.alloc cimport mem_alloc, mem_free
from mqttc.base.ring cimport Ring, ring_at, ring_free, ring_init, ring_pop_front, ring_push
from mqttc.base.types cimport ST_LIMIT, ST_NO_MEMORY, ST_OK, Span, span_make
from mqttc.broker.durable cimport wait_conn
from mqttc.broker.port cimport inside_acked, inside_refused
from mqttc.broker.report cimport EV_PROTOCOL_ERROR, EV_REFUSED, LOG_WARNING, report
from mqttc.broker.state cimport CONN_BRAKED, CONN_DONE, CONN_INSIDE, CONN_QUIET, CONN_UP, Conn, HeldAck, Worker
from mqttc.broker.stats cimport C_CONNECTS_REFUSED, C_PROTOCOL_ERRORS, C_SENT, stat
from mqttc.net.outq cimport outq_reserve
from mqttc.net.reactor cimport END_NO_MEMORY, link_close, link_dirty
from mqttc.net.ws cimport ws_going_away
from mqttc.proto.dialect cimport dialect_for
from mqttc.proto.encode cimport encode_ack, encode_packet, packet_size
from mqttc.proto.packet cimport (
    CONNACK, DISCONNECT, HAS_REASON_STRING, HAS_SERVER_REFERENCE, RC_SERVER_SHUTTING_DOWN, RC_SERVER_UNAVAILABLE, RC_SESSION_TAKEN_OVER, Packet,
)


cdef void packet_clear(Packet *packet, uint8_t packet_type) noexcept nogil:
    memset(packet, 0, sizeof(Packet))
    packet.type = packet_type
    packet.props.receive_maximum = 65535
    packet.props.maximum_qos = 2
    packet.props.retain_available = 1
    packet.props.wildcard_available = 1
    packet.props.subscription_id_available = 1
    packet.props.shared_available = 1
    packet.props.request_problem_info = 1


cdef int send_packet(Worker *worker, Conn *conn, const Packet *packet) noexcept nogil:
    cdef uint32_t n = packet_size(conn.dialect, packet)
    cdef uint8_t *out
    if n == 0 or (conn.maximum_packet_size and n > conn.maximum_packet_size):
        return ST_LIMIT
    conn.reply_bytes = (conn.reply_bytes if conn.link.out.bytes else 0) + n
    out = outq_reserve(&worker.reactor.chunks, &conn.link.out, n)
    if out == NULL:
        link_close(worker.reactor, &conn.link, END_NO_MEMORY)
        return ST_NO_MEMORY
    encode_packet(conn.dialect, packet, out)
    link_dirty(worker.reactor, &conn.link)
    stat(&worker.stats, C_SENT + packet.type)
    return ST_OK


cdef void send_ack(Worker *worker, Conn *conn, uint8_t packet_type, uint16_t packet_id, uint8_t reason) noexcept nogil:
    cdef uint8_t *out
    cdef uint8_t scratch[8]
    cdef uint32_t n, i
    if conn.phase == CONN_DONE:         # nothing follows our DISCONNECT [MQTT-3.14.4-1]
        return
    if conn.phase == CONN_INSIDE:
        inside_acked(worker, conn, reason)
        return
    n = encode_ack(conn.dialect, packet_type, packet_id, reason, scratch)
    conn.reply_bytes = (conn.reply_bytes if conn.link.out.bytes else 0) + n
    out = outq_reserve(&worker.reactor.chunks, &conn.link.out, n)
    if out == NULL:
        link_close(worker.reactor, &conn.link, END_NO_MEMORY)
        return
    for i in range(n):
        out[i] = scratch[i]
    link_dirty(worker.reactor, &conn.link)
    stat(&worker.stats, C_SENT + packet_type)


cdef HeldAck *held_push(Worker *worker, Conn *conn, uint64_t until) noexcept nogil:
    """NULL: no memory, and the connection closes."""
    cdef HeldAck *held = NULL
    if conn.held_acks == NULL:
        conn.held_acks = <Ring *> mem_alloc(sizeof(Ring))
        if conn.held_acks != NULL:
            ring_init(conn.held_acks, sizeof(HeldAck))
    if conn.held_acks != NULL:
        held = <HeldAck *> ring_push(conn.held_acks)
    if held == NULL:
        link_close(worker.reactor, &conn.link, END_NO_MEMORY)
        return NULL
    memset(held, 0, sizeof(HeldAck))
    if until > worker.journal_committed:
        held.until = until
        wait_conn(worker, conn, until)
    return held


cdef void acknowledge(Worker *worker, Conn *conn, uint8_t packet_type, uint16_t packet_id, uint8_t reason, uint64_t until) noexcept nogil:
    cdef HeldAck *held
    if conn.phase == CONN_DONE:
        return
    if conn.held_acks == NULL and not conn.flags & CONN_BRAKED and until <= worker.journal_committed:
        send_ack(worker, conn, packet_type, packet_id, reason)
        return
    held = held_push(worker, conn, until)
    if held != NULL:
        held.packet_id = packet_id
        held.packet_type = packet_type
        held.reason = reason


cdef void answer(Worker *worker, Conn *conn, uint8_t packet_type, uint16_t packet_id, uint8_t reason, uint64_t until) noexcept nogil:
    if until <= worker.journal_committed and (conn.held_acks == NULL or conn.flags & CONN_BRAKED):
        send_ack(worker, conn, packet_type, packet_id, reason)
    else:
        acknowledge(worker, conn, packet_type, packet_id, reason, until)


cdef int send_packet_after(Worker *worker, Conn *conn, const Packet *packet, uint64_t until) noexcept nogil:
    cdef HeldAck *held
    cdef uint32_t n
    if until <= worker.journal_committed:
        return send_packet(worker, conn, packet)
    n = packet_size(conn.dialect, packet)
    if n == 0 or (conn.maximum_packet_size and n > conn.maximum_packet_size):
        return ST_LIMIT
    held = held_push(worker, conn, until)
    if held == NULL:
        return ST_NO_MEMORY
    held.packet_type = packet.type
    held.packet_bytes = n
    held.packet = <uint8_t *> mem_alloc(n)
    if held.packet == NULL:
        link_close(worker.reactor, &conn.link, END_NO_MEMORY)
        return ST_NO_MEMORY
    encode_packet(conn.dialect, packet, held.packet)
    return ST_OK


cdef void held_send(Worker *worker, Conn *conn, HeldAck *held) noexcept nogil:
    cdef uint8_t *out
    if held.packet == NULL:
        send_ack(worker, conn, held.packet_type, held.packet_id, held.reason)
        return
    if conn.phase != CONN_DONE:
        conn.reply_bytes = (conn.reply_bytes if conn.link.out.bytes else 0) + held.packet_bytes
        out = outq_reserve(&worker.reactor.chunks, &conn.link.out, held.packet_bytes)
        if out == NULL:
            link_close(worker.reactor, &conn.link, END_NO_MEMORY)
        else:
            memcpy(out, held.packet, held.packet_bytes)
            link_dirty(worker.reactor, &conn.link)
            stat(&worker.stats, C_SENT + held.packet_type)
    mem_free(held.packet)
    held.packet = NULL


cdef void held_free(Conn *conn) noexcept nogil:
    ring_free(conn.held_acks)
    mem_free(conn.held_acks)
    conn.held_acks = NULL


cdef bint replies_release(Worker *worker, Conn *conn) noexcept nogil:
    cdef HeldAck *held
    cdef bint welcome = False
    if conn.held_acks == NULL or conn.flags & CONN_BRAKED:
        return False
    while conn.held_acks.count:
        held = <HeldAck *> ring_at(conn.held_acks, 0)
        if held.until > worker.journal_committed:
            return welcome
        welcome |= held.packet_type == CONNACK
        held_send(worker, conn, held)
        ring_pop_front(conn.held_acks, 1)
    held_free(conn)
    return welcome


cdef uint32_t acks_held(const Conn *conn) noexcept nogil:
    return conn.held_acks.count if conn.held_acks != NULL else 0


cdef void acks_release(Worker *worker, Conn *conn) noexcept nogil:
    conn.flags &= ~CONN_BRAKED
    replies_release(worker, conn)


cdef void replies_drop(Conn *conn) noexcept nogil:
    cdef uint32_t i
    if conn.held_acks == NULL:
        return
    for i in range(conn.held_acks.count):
        mem_free((<HeldAck *> ring_at(conn.held_acks, i)).packet)
    held_free(conn)


cdef void refuse_connect(Worker *worker, Conn *conn, uint8_t level, uint8_t reason, Span server_reference, Span detail) noexcept nogil:
    cdef Packet packet
    if conn.phase == CONN_DONE:
        return
    conn.dialect = dialect_for(level)
    conn.disconnect_reason = reason
    if conn.dialect == NULL:            # an unknown version: 3.1.1's CONNACK 0x01 is what every client can read [MQTT-3.1.2-2]
        conn.dialect = dialect_for(4)
    packet_clear(&packet, CONNACK)
    packet.reason = reason
    if server_reference.n:
        packet.props.present |= HAS_SERVER_REFERENCE
        packet.props.server_reference = server_reference
    if detail.n and not conn.flags & CONN_QUIET:
        packet.props.present |= HAS_REASON_STRING
        packet.props.reason_string = detail
    if send_packet(worker, conn, &packet) == ST_LIMIT:      # [MQTT-3.2.2-19, MQTT-3.2.2-20]
        packet.props.present = 0
        send_packet(worker, conn, &packet)
    conn.phase = CONN_DONE
    stat(&worker.stats, C_CONNECTS_REFUSED)
    report(worker, LOG_WARNING, EV_REFUSED, reason, conn, NULL, detail)
    link_close(worker.reactor, &conn.link, END_REFUSED)


cdef void conn_end(Worker *worker, Conn *conn, uint8_t reason, Span detail) noexcept nogil:
    cdef Packet packet
    conn.disconnect_reason = reason
    if conn.dialect != NULL and conn.dialect.server_disconnect:
        acks_release(worker, conn)
        packet_clear(&packet, DISCONNECT)
        packet.reason = reason
        if detail.n and not conn.flags & CONN_QUIET:
            packet.props.present |= HAS_REASON_STRING
            packet.props.reason_string = detail
        if send_packet(worker, conn, &packet) == ST_LIMIT:  # [MQTT-3.14.2-3]
            packet.props.present = 0
            send_packet(worker, conn, &packet)
    conn.phase = CONN_DONE
    link_close(worker.reactor, &conn.link, END_FAILED)


cdef void conn_fail(Worker *worker, Conn *conn, uint8_t reason, Span detail) noexcept nogil:
    if conn.phase == CONN_DONE:
        return
    if conn.phase == CONN_INSIDE:       # there is no connection to end: the program is told
        inside_refused(conn, reason)
        return
    stat(&worker.stats, C_PROTOCOL_ERRORS)
    if conn.phase != CONN_UP:
        if conn.dialect != NULL and conn.dialect.server_disconnect:
            refuse_connect(worker, conn, conn.dialect.level, reason, span_make(NULL, 0), detail)
            return
        # 3.x has no return code for it, and before a version is known nothing can be said: a bare close [MQTT-4.8.0-1]
        conn.disconnect_reason = reason
        conn.phase = CONN_DONE
        report(worker, LOG_WARNING, EV_PROTOCOL_ERROR, reason, conn, NULL, detail)
        link_close(worker.reactor, &conn.link, END_FAILED)
        return
    report(worker, LOG_WARNING, EV_PROTOCOL_ERROR, reason, conn, conn.session, detail)
    conn_end(worker, conn, reason, detail)


cdef void conn_disconnect(Worker *worker, Conn *conn, uint8_t reason) noexcept nogil:
    if conn.phase == CONN_DONE or conn.phase == CONN_INSIDE:
        return
    if reason == RC_SERVER_SHUTTING_DOWN:
        ws_going_away(&conn.link.transport)
    if conn.dialect == NULL:            # no CONNECT came yet, so there is nothing to answer
        conn.disconnect_reason = reason
        conn.phase = CONN_DONE
        link_close(worker.reactor, &conn.link, END_FAILED)
        return
    if conn.phase != CONN_UP:           # CONNACK has no 0x8B and no 0x8E
        if reason == RC_SERVER_SHUTTING_DOWN or reason == RC_SESSION_TAKEN_OVER:
            reason = RC_SERVER_UNAVAILABLE
        refuse_connect(worker, conn, conn.dialect.level, reason, span_make(NULL, 0), span_make(NULL, 0))
        return
    conn_end(worker, conn, reason, span_make(NULL, 0))
