from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp

from mqttc.base.alloc cimport mem_free
from mqttc.base.timer cimport wheel_add
from mqttc.base.types cimport ST_NEED_MORE, ST_OK, Span, atomic_add_u32_relaxed, atomic_load_i64_relaxed, likely, span_make, unlikely
from mqttc.broker.admit cimport admit_renew
from mqttc.broker.guard cimport guard_early, guard_leave, rates_exhausted, rates_received
from mqttc.broker.on_connect cimport on_auth, on_connect
from mqttc.broker.on_head cimport head_data, tunnel_ended
from mqttc.broker.on_publish cimport aliases_in_free, conn_slow, on_ack, on_publish
from mqttc.broker.on_subscribe cimport on_subscribe, on_unsubscribe
from mqttc.broker.overload cimport conn_yield, turn_spent
from mqttc.broker.presence cimport session_offline
from mqttc.broker.permit cimport rights_expire
from mqttc.broker.reply cimport END_DISCONNECT, END_REFUSED, conn_disconnect, conn_fail, packet_clear, refuse_connect, replies_drop, send_packet
from mqttc.broker.report cimport EV_AUTH_EXPIRED, EV_CONNECTION_LIMIT, EV_CONNECT_TIMEOUT, EV_CONNECTION_LOST, EV_DISCONNECTED, EV_KEEP_ALIVE_TIMEOUT, EV_TRANSPORT_FAILED, LOG_INFO, LOG_WARNING, report, text
from mqttc.broker.routes cimport route_drop
from mqttc.broker.state cimport (
    CONN_ASKED, CONN_AUTHENTICATING, CONN_BRAKE_PAUSED, CONN_COMMITTING, CONN_COUNTED, CONN_DONE, CONN_HEAD, CONN_HEAD_ASKED, CONN_NEW, CONN_QUESTION_OPEN, CONN_UP, Conn,
    ConnGuard, Session, Worker,
)
from mqttc.broker.stats cimport (
    C_AUTH_EXPIRED, C_CONNECT_TIMEOUTS, C_DISCONNECTS_ABRUPT, C_DISCONNECTS_CLEAN, C_ENDED_RATE, C_GATE_TIMEOUTS, C_HOOKS_ABANDONED, C_KEEP_ALIVE_TIMEOUTS, C_RECEIVED,
    C_REFUSED_PENDING, stat,
)
from mqttc.net.reactor cimport LINK_NO_LINGER, LINK_PAUSED, link_close
from mqttc.net.tcp cimport tcp_ops
from mqttc.net.transport cimport transport_failure
from mqttc.proto.decode cimport decode_packet, frame_next
from mqttc.proto.packet cimport (
    AUTH, CONNECT, DISCONNECT, HAS_SESSION_EXPIRY, PINGREQ, PINGRESP, PUBACK, PUBCOMP, PUBLISH, RC_KEEP_ALIVE_TIMEOUT, RC_MALFORMED_PACKET, RC_MAXIMUM_CONNECT_TIME, RC_MESSAGE_RATE_TOO_HIGH, RC_NOT_AUTHORIZED,
    RC_PROTOCOL_ERROR, RC_QUOTA_EXCEEDED, RC_SUCCESS, SUBSCRIBE, UNSUBSCRIBE, Frame, Packet,
)

cdef enum:
    COMMITTING_MS = 1000
    CLOCK_EVERY = 32                   # packets of one connection between two looks at how long the turn has lasted


cdef void on_disconnect(Worker *worker, Conn *conn, const Packet *packet) noexcept nogil:
    cdef Session *session = conn.session
    if packet.props.present & HAS_SESSION_EXPIRY:
        if session.expiry_s == 0 and packet.props.session_expiry != 0:          # [MQTT-3.14.2-2]: not a valid DISCONNECT, the will goes out
            conn_fail(worker, conn, RC_PROTOCOL_ERROR, text("session expiry cannot be set in DISCONNECT when it was 0 in CONNECT"))
            return
        session.expiry_s = packet.props.session_expiry
        if session.expiry_s > worker.engine.settings.session_expiry_s:
            session.expiry_s = worker.engine.settings.session_expiry_s
    conn.keep_will = packet.reason != RC_SUCCESS                                # [MQTT-3.14.4-3]; 0x04 and every failure keep it
    conn.disconnect_reason = packet.reason
    conn.phase = CONN_DONE
    if conn.link.transport.ops == tcp_ops():
        conn.link.flags |= LINK_NO_LINGER           # others still have something to say: close_notify, or a close frame (RFC 6455 section 7.1.1)
    link_close(worker.reactor, &conn.link, END_DISCONNECT)


cdef void on_other(Worker *worker, Conn *conn, const Frame *frame) noexcept nogil:
    """The rarer packets of a connection that is up."""
    cdef Packet packet
    cdef int status = decode_packet(conn.dialect, frame, &packet)
    if status != ST_OK:
        conn_fail(worker, conn, <uint8_t> -status, text("packet cannot be read"))
        return
    if frame.type == SUBSCRIBE:
        on_subscribe(worker, conn, frame, &packet)
    elif frame.type == UNSUBSCRIBE:
        on_unsubscribe(worker, conn, &packet)
    elif frame.type == PINGREQ:
        packet_clear(&packet, PINGRESP)                                         # [MQTT-3.12.4-1]
        send_packet(worker, conn, &packet)
    elif frame.type == DISCONNECT:
        on_disconnect(worker, conn, &packet)
    elif frame.type == AUTH and conn.dialect.auth:
        on_auth(worker, conn, &packet)
    else:                                                                       # a server's packet, or a second CONNECT [MQTT-3.1.0-2]
        conn_fail(worker, conn, RC_PROTOCOL_ERROR, text("packet out of place"))


cdef void on_early(Worker *worker, Conn *conn, const Frame *frame) noexcept nogil:
    """Between an enhanced CONNECT and its CONNACK only AUTH and DISCONNECT may come. [MQTT-3.1.2-30]"""
    cdef Packet packet
    cdef int status
    if conn.phase == CONN_AUTHENTICATING and (frame.type == AUTH or frame.type == DISCONNECT):
        status = decode_packet(conn.dialect, frame, &packet)
        if status != ST_OK:
            conn_fail(worker, conn, <uint8_t> -status, text("packet cannot be read"))
        elif frame.type == AUTH:
            on_auth(worker, conn, &packet)
        else:
            conn.phase = CONN_DONE
            link_close(worker.reactor, &conn.link, END_DISCONNECT)
        return
    conn_fail(worker, conn, RC_PROTOCOL_ERROR, text("the first packet is not CONNECT"))     # [MQTT-3.1.0-1]


cdef Span unreadable(const Conn *conn, const uint8_t *bytes, uint32_t n) noexcept nogil:
    """What to say of bytes that are no packet: mostly somebody has taken one port for another."""
    if conn.phase == CONN_NEW and n >= 3:
        if bytes[0] == 0x16 and bytes[1] == 3:                                  # a TLS handshake record, RFC 8446 section 5.1
            return text("frame cannot be read: the client speaks TLS, this listener does not")
        if memcmp(bytes, b"GET", 3) == 0:
            return text("frame cannot be read: the client speaks HTTP, this listener plain MQTT")
    return text("frame cannot be read")


cdef uint32_t packet_limit(const Worker *worker, const Conn *conn) noexcept nogil:
    """Bytes of a packet that this connection may send now."""
    cdef uint32_t most = worker.engine.settings.max_packet_size
    cdef uint32_t early = worker.engine.settings.max_connect_packet
    return most if conn.phase == CONN_UP or most < early else early


cdef void early_refuse(Worker *worker, Conn *conn) noexcept nogil:
    """What all connections together may take before they are accepted is used up."""
    stat(&worker.stats, C_REFUSED_PENDING)
    report(worker, LOG_WARNING, EV_CONNECTION_LIMIT, RC_QUOTA_EXCEEDED, conn, NULL, text("too many bytes of connections that are not accepted yet"))
    conn.phase = CONN_DONE
    link_close(worker.reactor, &conn.link, END_REFUSED)


cdef void rates_spend(Worker *worker, Conn *conn, uint32_t messages, uint64_t bytes) noexcept nogil:
    """Slows a client down, and ends it when that has not helped for long enough."""
    cdef uint32_t wait = rates_received(worker, conn, messages, bytes)
    if wait == 0 or conn.phase != CONN_UP:
        return
    if rates_exhausted(worker, conn):
        stat(&worker.stats, C_ENDED_RATE)
        conn_fail(worker, conn, RC_MESSAGE_RATE_TOO_HIGH, text("more than the rates allow for longer than limits.rate_patience"))
        return
    conn_slow(worker, conn, wait)


cdef uint32_t conn_data(Worker *worker, Conn *conn, const uint8_t *bytes, uint32_t n) noexcept nogil:
    cdef const uint8_t *p = bytes
    cdef const uint8_t *end = bytes + n
    cdef ConnGuard *guard = conn.guard
    cdef uint32_t most = packet_limit(worker, conn)
    cdef uint32_t count = 0
    cdef Frame frame
    cdef int status
    if unlikely(conn.phase >= CONN_HEAD):
        return head_data(worker, conn, bytes, n)
    while p < end:
        if unlikely(conn.phase == CONN_DONE):
            return n
        status = frame_next(p, end, most, &frame)
        if status != ST_OK:
            if status == ST_NEED_MORE:
                conn.link.want_bytes = frame.total_bytes
                if unlikely(conn.phase != CONN_UP) and not guard_early(worker, conn, frame.total_bytes):
                    early_refuse(worker, conn)
                    return n
                break
            conn_fail(worker, conn, <uint8_t> -status, unreadable(conn, bytes, n))
            return n
        stat(&worker.stats, C_RECEIVED + frame.type)
        if likely(conn.phase == CONN_UP):
            if frame.type == PUBLISH:
                on_publish(worker, conn, &frame)
            elif PUBACK <= frame.type <= PUBCOMP:
                on_ack(worker, conn, &frame)
            else:
                on_other(worker, conn, &frame)
        elif frame.type == CONNECT:
            if unlikely(p[0] != CONNECT << 4):                                  # [MQTT-2.1.3-1]
                conn_fail(worker, conn, RC_MALFORMED_PACKET, unreadable(conn, p, <uint32_t> (end - p)))
                return n
            if on_connect(worker, conn, &frame, p, p + frame.total_bytes, <uint32_t> (end - p) - frame.total_bytes):
                return 0                                                        # it lives on another worker now
            most = packet_limit(worker, conn)
            guard = conn.guard
        else:
            on_early(worker, conn, &frame)
        p += frame.total_bytes
        count += 1
        if unlikely(guard != NULL) and guard.rated and conn.phase == CONN_UP:
            rates_spend(worker, conn, frame.type == PUBLISH or frame.type == SUBSCRIBE or frame.type == UNSUBSCRIBE, frame.total_bytes)
        if unlikely(conn.link.flags & LINK_PAUSED):
            break
        if unlikely(count % CLOCK_EVERY == 0 or worker.turn_over) and p < end and conn.phase == CONN_UP and turn_spent(worker):
            conn_yield(worker, conn)
            if conn.link.flags & LINK_PAUSED:
                break
    if p > bytes:
        conn.last_packet_ms = worker.reactor.now_ms
        # Messages are bounded where they are sent, replies are not: a client that goes on asking and never reads is let go.
        if unlikely(conn.reply_bytes > worker.engine.settings.max_output_bytes) and conn.link.out.bytes > worker.engine.settings.max_output_bytes and conn.phase == CONN_UP:
            conn_fail(worker, conn, RC_QUOTA_EXCEEDED, text("the client does not read what is sent to it"))
    return <uint32_t> (p - bytes)


cdef int64_t conn_deadline(Worker *worker, Conn *conn) noexcept nogil:
    """Of a connection that is up: keep alive, an open re-authentication, the end of its authentication, or of its grant. 0: none."""
    cdef int64_t deadline = 0
    if conn.keep_alive_ms:
        deadline = max(conn.last_packet_ms, atomic_load_i64_relaxed(&worker.engine.heard_ms)) + conn.keep_alive_ms
        if conn.flags & CONN_BRAKE_PAUSED or conn.parked != NULL:               # we do not read, so the client cannot be late
            deadline = worker.reactor.now_ms + conn.keep_alive_ms
    if conn.flags & CONN_QUESTION_OPEN and (deadline == 0 or conn.question_due_ms < deadline):
        deadline = conn.question_due_ms
    if conn.session != NULL and conn.session.rights != NULL and conn.session.rights.expires_at_ms and (deadline == 0 or conn.session.rights.expires_at_ms < deadline):
        deadline = conn.session.rights.expires_at_ms
    if conn.session != NULL and conn.session.rights != NULL and conn.session.rights.renew_at_ms and (deadline == 0 or conn.session.rights.renew_at_ms < deadline):
        deadline = conn.session.rights.renew_at_ms
    if conn.ends_ms and (deadline == 0 or conn.ends_ms < deadline):
        deadline = conn.ends_ms
    return deadline


cdef void conn_timer(Worker *worker, Conn *conn) noexcept nogil:
    cdef int64_t deadline
    if conn.phase == CONN_UP:
        if conn.flags & CONN_QUESTION_OPEN and worker.reactor.now_ms >= conn.question_due_ms:
            stat(&worker.stats, C_GATE_TIMEOUTS)
            conn.question += 1
            conn_fail(worker, conn, RC_NOT_AUTHORIZED, text("re-authentication took too long"))
            return
        if conn.session != NULL and conn.session.rights != NULL and conn.session.rights.expires_at_ms and worker.reactor.now_ms >= conn.session.rights.expires_at_ms:
            rights_expire(worker, conn.session)
            conn_disconnect(worker, conn, RC_NOT_AUTHORIZED)
            return
        if conn.session != NULL and conn.session.rights != NULL and conn.session.rights.renew_at_ms and worker.reactor.now_ms >= conn.session.rights.renew_at_ms:
            admit_renew(worker, conn)
        if conn.ends_ms and worker.reactor.now_ms >= conn.ends_ms:
            stat(&worker.stats, C_AUTH_EXPIRED)
            report(worker, LOG_INFO, EV_AUTH_EXPIRED, RC_MAXIMUM_CONNECT_TIME, conn, conn.session, span_make(NULL, 0))
            conn_disconnect(worker, conn, RC_MAXIMUM_CONNECT_TIME)
            return
        deadline = conn_deadline(worker, conn)
        if deadline == 0:
            return
        if worker.reactor.now_ms < deadline:
            wheel_add(worker.reactor.wheel, &conn.link.timer, deadline)
            return
        stat(&worker.stats, C_KEEP_ALIVE_TIMEOUTS)                              # [MQTT-3.1.2-22]
        report(worker, LOG_INFO, EV_KEEP_ALIVE_TIMEOUT, RC_KEEP_ALIVE_TIMEOUT, conn, conn.session, span_make(NULL, 0))
        conn_fail(worker, conn, RC_KEEP_ALIVE_TIMEOUT, text("keep alive"))
    elif conn.phase == CONN_ASKED:
        stat(&worker.stats, C_GATE_TIMEOUTS)
        conn.question += 1                                                      # an answer that still comes is stale
        refuse_connect(worker, conn, conn.dialect.level, RC_NOT_AUTHORIZED, span_make(NULL, 0), text("authentication took too long"))
    elif conn.phase == CONN_AUTHENTICATING:
        stat(&worker.stats, C_CONNECT_TIMEOUTS)
        refuse_connect(worker, conn, conn.dialect.level, RC_NOT_AUTHORIZED, span_make(NULL, 0), text("authentication took too long"))
    elif conn.phase == CONN_COMMITTING:         # the client's patience decides: what it was promised is not safe yet
        wheel_add(worker.reactor.wheel, &conn.link.timer, worker.reactor.now_ms + COMMITTING_MS)
    elif conn.phase == CONN_NEW or conn.phase >= CONN_HEAD:
        if conn.phase == CONN_HEAD_ASKED:
            stat(&worker.stats, C_GATE_TIMEOUTS)
        stat(&worker.stats, C_CONNECT_TIMEOUTS)
        report(worker, LOG_INFO, EV_CONNECT_TIMEOUT, 0, conn, NULL, failure_text(conn))
        conn.phase = CONN_DONE
        link_close(worker.reactor, &conn.link, END_DISCONNECT)


cdef Span failure_text(Conn *conn) noexcept nogil:
    """Why the transport does not carry; empty: it does, or says nothing."""
    cdef const char *failure = transport_failure(&conn.link.transport)
    return text(failure) if failure != NULL else span_make(NULL, 0)


cdef void conn_ended(Worker *worker, Conn *conn, int reason) noexcept nogil:
    cdef Span failure
    if conn.parked != NULL:
        stat(&worker.stats, C_HOOKS_ABANDONED)
    if conn.session != NULL:
        if reason == END_DISCONNECT:
            stat(&worker.stats, C_DISCONNECTS_CLEAN)
            report(worker, LOG_INFO, EV_DISCONNECTED, conn.disconnect_reason, conn, conn.session, span_make(NULL, 0))
        else:
            stat(&worker.stats, C_DISCONNECTS_ABRUPT)
            report(worker, LOG_INFO, EV_CONNECTION_LOST, conn.disconnect_reason, conn, conn.session, failure_text(conn))
        session_offline(worker, conn, False, False)
    elif conn.phase == CONN_NEW or conn.phase == CONN_HEAD:
        failure = failure_text(conn)
        if failure.n:
            report(worker, LOG_INFO, EV_TRANSPORT_FAILED, 0, conn, NULL, failure)
    tunnel_ended(worker, conn)
    conn.phase = CONN_DONE
    conn_uncount(worker, conn)
    guard_leave(worker, conn)
    conn_release(conn)


cdef void conn_uncount(Worker *worker, Conn *conn) noexcept nogil:
    if conn.flags & CONN_COUNTED:
        conn.flags &= ~<uint8_t> CONN_COUNTED
        atomic_add_u32_relaxed(&worker.engine.connections, <uint32_t> -1)
        atomic_add_u32_relaxed(&worker.engine.listeners[conn.link.listener].open_count, <uint32_t> -1)


cdef void conn_release(Conn *conn) noexcept nogil:
    cdef uint32_t i
    if conn.last_route != NULL:
        route_drop(conn.last_route)
        conn.last_route = NULL
    aliases_in_free(conn)
    if conn.aliases_out != NULL:
        for i in range(conn.aliases_out.count):
            mem_free(conn.aliases_out.items[i].topic)
        mem_free(conn.aliases_out)
        conn.aliases_out = NULL
    replies_drop(conn)
    mem_free(conn.guard)
    conn.guard = NULL
    mem_free(conn.pending)
    conn.pending = NULL
    mem_free(conn.parked)
    conn.parked = NULL
    mem_free(conn.auth_method)
    conn.auth_method = NULL
    mem_free(conn.user)
    conn.user = NULL
    mem_free(conn.username)
    conn.username = NULL
