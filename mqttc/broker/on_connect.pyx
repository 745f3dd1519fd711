from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from mqttc.base.alloc cimport mem_alloc, mem_alloc_zeroed, mem_free
from mqttc.base.map cimport random_bytes
from mqttc.base.msg cimport msg_alloc, msg_data
from mqttc.base.timer cimport wheel_add, wheel_cancel
from mqttc.base.types cimport ST_LIMIT, ST_OK, Span, atomic_add_u32_relaxed, atomic_load_u32_acquire, atomic_load_u64_relaxed, span_equal, span_make
from mqttc.broker.acl cimport grant_drop, grant_share
from mqttc.broker.admit cimport admit_again, admit_begin, admit_rights, on_grant
from mqttc.broker.gate cimport gate_ask
from mqttc.broker.guard cimport guard_early, guard_free_of, guard_settle, guard_user, guard_verdict, rates_start
from mqttc.broker.mail cimport post
from mqttc.broker.overload cimport worker_busy
from mqttc.broker.presence cimport session_finish, session_offline, session_online, session_rejoin, session_timer, will_free
from mqttc.broker.durable cimport journal_fails, journaled, note_presence, note_session, note_will, until_now
from mqttc.broker.pump cimport session_pump
from mqttc.broker.reply cimport conn_disconnect, conn_fail, packet_clear, refuse_connect, replies_drop, send_packet, send_packet_after
from mqttc.broker.report cimport EV_CONNECTED, EV_TAKEN_OVER, LOG_INFO, report, text
from mqttc.broker.rights cimport Rights, rights_free
from mqttc.broker.session cimport client_hash, session_build, session_find, session_handle, will_count
from mqttc.broker.state cimport (
    CONN_ASKED, CONN_ASKED_AGAIN, CONN_AUTHENTICATING, CONN_COMMITTING, CONN_COUNTED, CONN_INSIDE, CONN_NEW, CONN_QUESTION_OPEN, CONN_QUIET, CONN_REMOTE, CONN_UP, GRANT_NUMBER, MAIL_ADOPT, QUESTION_AUTH, QUESTION_CONNECT, TIMER_CONN,
    Admission, AdoptMail, AliasesOut, AliasOut, AnswerMail, Conn, Listener, PendingConnect, Session, Settings, VerdictEntry, Will, Worker,
)
from mqttc.broker.stats cimport C_CONNECTS_ACCEPTED, C_REFUSED_OVERLOAD, C_REFUSED_PENDING, C_SESSIONS_RESUMED, C_TAKEOVERS, C_VERDICTS_REUSED, C_WILLS, stat
from mqttc.broker.verdicts cimport verdict_find, verdict_keep, verdict_key
from mqttc.net.reactor cimport END_NO_MEMORY, Link, link_adopt, link_close, link_detach, link_pause, link_resume, reactor_link
from mqttc.net.tcp cimport peer_is_loopback, tcp_keep_alive
from mqttc.net.transport cimport transport_proves
from mqttc.proto.decode cimport decode_connect, forward_size, frame_next, publish_forward
from mqttc.proto.dialect cimport dialect_for
from mqttc.proto.packet cimport (
    AUTH, CONNACK, HAS_ASSIGNED_CLIENT_ID, HAS_AUTH_DATA, HAS_AUTH_METHOD, HAS_MAXIMUM_PACKET_SIZE, HAS_MAXIMUM_QOS, HAS_MESSAGE_EXPIRY, HAS_PAYLOAD_FORMAT,
    HAS_RECEIVE_MAXIMUM, HAS_RESPONSE_INFO, HAS_RETAIN_AVAILABLE, HAS_SERVER_KEEP_ALIVE, HAS_SESSION_EXPIRY, HAS_SHARED_AVAILABLE, HAS_SUBSCRIPTION_ID_AVAILABLE,
    HAS_TOPIC_ALIAS_MAXIMUM, HAS_WILDCARD_AVAILABLE, RC_BAD_AUTHENTICATION_METHOD, RC_BAD_USER_NAME_OR_PASSWORD, RC_CLIENT_IDENTIFIER_NOT_VALID, RC_CONTINUE_AUTHENTICATION, RC_NOT_AUTHORIZED,
    RC_PAYLOAD_FORMAT_INVALID, RC_PROTOCOL_ERROR, RC_QOS_NOT_SUPPORTED, RC_QUOTA_EXCEEDED, RC_REAUTHENTICATE, RC_RETAIN_NOT_SUPPORTED, RC_SERVER_BUSY,
    RC_SERVER_UNAVAILABLE, RC_SESSION_TAKEN_OVER, RC_SUCCESS, RC_TOPIC_NAME_INVALID, RC_UNSUPPORTED_PROTOCOL_VERSION, RC_USE_ANOTHER_SERVER, Frame, Packet,
)
from mqttc.proto.topic cimport level_count, topic_check, utf8_check

cdef Span nothing() noexcept nogil:
    return span_make(NULL, 0)


cdef void conn_init(Worker *worker, Conn *conn) noexcept nogil:
    memset(<uint8_t *> conn + sizeof(Link), 0, sizeof(Conn) - sizeof(Link))
    conn.maximum_qos = worker.engine.listeners[conn.link.listener].maximum_qos
    conn.keep_will = 1
    conn.link.timer.kind = TIMER_CONN
    conn.last_packet_ms = worker.reactor.now_ms


# ---- what can be decided from the packet alone

cdef bint wills_full(const Worker *worker) noexcept nogil:
    cdef uint64_t count = 0
    cdef uint32_t i
    if worker.engine.settings.max_wills == 0:
        return False
    for i in range(worker.engine.settings.workers):
        count += atomic_load_u64_relaxed(&worker.engine.workers[i].stats.v[<int> C_WILLS])
    return count >= worker.engine.settings.max_wills


cdef uint8_t connect_verdict(Worker *worker, Conn *conn, const Packet *packet) noexcept nogil:
    """RC_SUCCESS, or why the CONNECT is refused."""
    cdef Settings *settings = &worker.engine.settings
    if atomic_load_u32_acquire(&worker.engine.stopping):
        return RC_SERVER_UNAVAILABLE
    if worker_busy(worker):
        stat(&worker.stats, C_REFUSED_OVERLOAD)
        return RC_SERVER_BUSY
    if packet.client_id.n == 0:
        if not conn.dialect.empty_client_id or (conn.dialect.empty_client_id_needs_clean and not packet.clean_start):
            return RC_CLIENT_IDENTIFIER_NOT_VALID               # [MQTT-3.1.3-8]
    elif packet.client_id.n > settings.max_client_id_bytes:
        return RC_CLIENT_IDENTIFIER_NOT_VALID
    if packet.has_will:
        if packet.will_qos > conn.maximum_qos:
            return RC_QOS_NOT_SUPPORTED                         # [MQTT-3.2.2-12]
        if packet.will_retain and not settings.retain_available:
            return RC_RETAIN_NOT_SUPPORTED                      # [MQTT-3.2.2-13]
        if not topic_check(packet.will_topic) or packet.will_topic.n > settings.max_topic_bytes or level_count(packet.will_topic) > settings.max_topic_levels:
            return RC_TOPIC_NAME_INVALID
        if packet.will_props.present & HAS_PAYLOAD_FORMAT and packet.will_props.payload_format and not utf8_check(packet.will_payload):
            return RC_PAYLOAD_FORMAT_INVALID
        if packet.will_topic.n + packet.will_props.raw.n + packet.will_payload.n > settings.max_will_bytes or wills_full(worker):
            return RC_QUOTA_EXCEEDED
    return RC_SUCCESS


cdef uint8_t native_verdict(Worker *worker, Conn *conn, const Packet *packet, bint *ask, PendingConnect *remembered) noexcept nogil:
    """Who may come in without the gate: RC_SUCCESS with ask false is in, with ask true the gate decides. remembered: how its verdict is kept then."""
    cdef Listener *listener = worker.engine.listeners[conn.link.listener]
    cdef bint admitted = listener.anonymous == 1 or (listener.anonymous == 2 and not conn.flags & CONN_REMOTE and peer_is_loopback(&conn.link.peer))
    cdef VerdictEntry *entry
    remembered.remembers = False
    ask[0] = listener.ask_gate and (
        listener.ask_gate == 2 or packet.has_username or packet.has_password or packet.props.present & HAS_AUTH_METHOD or transport_proves(&conn.link.transport)
    )
    if ask[0]:
        remembered.remembers = verdict_key(worker, conn, packet, admitted, remembered.verdict_key, &remembered.verdict_epoch)
        entry = verdict_find(worker, remembered.verdict_key, remembered.verdict_epoch) if remembered.remembers else NULL
        if entry == NULL or (entry.ends_ms and worker.reactor.now_ms >= entry.ends_ms):
            return RC_SUCCESS
        ask[0] = False
        conn.ends_ms = entry.ends_ms
        stat(&worker.stats, C_VERDICTS_REUSED)
        return entry.reason
    if packet.props.present & HAS_AUTH_METHOD:
        return RC_BAD_AUTHENTICATION_METHOD
    return RC_SUCCESS if admitted else RC_NOT_AUTHORIZED


cdef bint ask(Worker *worker, Conn *conn, uint8_t kind, const Packet *packet) noexcept nogil:
    """Puts a question; False: the connection was refused."""
    cdef int status
    conn.question += 1
    status = gate_ask(worker, conn, kind, conn.question, packet)
    if status == ST_OK:
        conn.flags |= CONN_QUESTION_OPEN
        conn.question_due_ms = worker.reactor.now_ms + worker.engine.settings.auth_timeout_ms
        return True
    if conn.phase == CONN_UP:
        conn_fail(worker, conn, RC_SERVER_BUSY, text("too many open questions"))
    else:
        refuse_connect(worker, conn, conn.dialect.level, RC_SERVER_BUSY, nothing(), text("too many open questions"))
    return False


cdef void park(Worker *worker, Conn *conn) noexcept nogil:
    conn.phase = CONN_ASKED
    link_pause(worker.reactor, &conn.link)
    wheel_add(worker.reactor.wheel, &conn.link.timer, conn.question_due_ms)


cdef bint on_connect(Worker *worker, Conn *conn, const Frame *frame, const uint8_t *packet_start, const uint8_t *rest, uint32_t rest_bytes) noexcept nogil:
    cdef Packet packet
    cdef PendingConnect *pending
    cdef PendingConnect remembered
    cdef Listener *listener = worker.engine.listeners[conn.link.listener]
    cdef uint8_t reason
    cdef Admission admission
    cdef bint asking = False
    cdef int status
    if conn.phase != CONN_NEW:                                  # [MQTT-3.1.0-2]
        conn_fail(worker, conn, RC_PROTOCOL_ERROR, text("second CONNECT"))
        return False
    status = decode_connect(frame, &packet)
    if status == -RC_UNSUPPORTED_PROTOCOL_VERSION:              # [MQTT-3.1.2-2]
        refuse_connect(worker, conn, 5 if packet.protocol_level > 5 else 4, RC_UNSUPPORTED_PROTOCOL_VERSION, nothing(), text("unsupported protocol version"))
        return False
    conn.dialect = dialect_for(packet.protocol_level)
    if status != ST_OK or conn.dialect == NULL:
        conn_fail(worker, conn, <uint8_t> -status, text("CONNECT cannot be read"))
        return False
    conn.layout = conn.dialect.layout
    if not packet.props.request_problem_info:
        conn.flags |= CONN_QUIET
    if listener.server_reference != NULL:                       # [MQTT-4.13.2]
        refuse_connect(worker, conn, conn.dialect.level, RC_USE_ANOTHER_SERVER, span_make(listener.server_reference, listener.server_reference_bytes), nothing())
        return False
    reason = guard_verdict(worker, conn)
    if reason == RC_SUCCESS:
        reason = connect_verdict(worker, conn, &packet)
    if reason == RC_SUCCESS:
        reason = native_verdict(worker, conn, &packet, &asking, &remembered)
    if reason != RC_SUCCESS:
        refuse_connect(worker, conn, conn.dialect.level, reason, nothing(), nothing())
        return False
    if packet.props.present & HAS_AUTH_METHOD:
        conn.auth_method = <uint8_t *> mem_alloc(packet.props.auth_method.n if packet.props.auth_method.n else 1)
        if conn.auth_method == NULL:
            link_close(worker.reactor, &conn.link, END_NO_MEMORY)
            return False
        memcpy(conn.auth_method, packet.props.auth_method.p, packet.props.auth_method.n)
        conn.auth_method_bytes = <uint16_t> packet.props.auth_method.n
    if not asking:
        memset(&admission, 0, sizeof(Admission))
        admission.checked = remembered.remembers                # by the gate, when it was asked last
        return connect_admit(worker, conn, &packet, packet_start, frame.total_bytes, rest, rest_bytes, &admission)
    if not guard_early(worker, conn, frame.total_bytes * 2):    # here and with the gate
        stat(&worker.stats, C_REFUSED_PENDING)
        refuse_connect(worker, conn, conn.dialect.level, RC_SERVER_BUSY, nothing(), text("too much waits to be decided"))
        return False
    pending = <PendingConnect *> mem_alloc(sizeof(PendingConnect) + frame.total_bytes)
    if pending == NULL:
        link_close(worker.reactor, &conn.link, END_NO_MEMORY)
        return False
    pending[0] = remembered
    pending.bytes = frame.total_bytes
    memcpy(pending.packet, packet_start, frame.total_bytes)
    conn.pending = pending
    if ask(worker, conn, QUESTION_CONNECT, &packet):
        park(worker, conn)
    return False


# ---- enhanced authentication, and answers

cdef void send_auth(Worker *worker, Conn *conn, uint8_t reason, Span data) noexcept nogil:
    cdef Packet packet
    packet_clear(&packet, AUTH)
    packet.reason = reason
    packet.props.present = HAS_AUTH_METHOD                      # [MQTT-4.12.0-5]
    packet.props.auth_method = span_make(conn.auth_method, conn.auth_method_bytes)
    if data.p != NULL:
        packet.props.present |= HAS_AUTH_DATA
        packet.props.auth_data = data
    send_packet(worker, conn, &packet)


cdef void on_auth(Worker *worker, Conn *conn, const Packet *packet) noexcept nogil:
    if conn.auth_method == NULL or not packet.props.present & HAS_AUTH_METHOD or not span_equal(
        packet.props.auth_method, span_make(conn.auth_method, conn.auth_method_bytes)
    ):                                                          # [MQTT-4.12.0-6, MQTT-4.12.1-1]
        conn_fail(worker, conn, RC_PROTOCOL_ERROR, text("AUTH without the method of CONNECT"))
        return
    if conn.phase == CONN_AUTHENTICATING and packet.reason == RC_CONTINUE_AUTHENTICATION:
        if ask(worker, conn, QUESTION_AUTH, packet):
            park(worker, conn)
        return
    if conn.flags & CONN_QUESTION_OPEN:                         # one question at a time, so that nobody can pile them up
        conn_fail(worker, conn, RC_PROTOCOL_ERROR, text("AUTH before the last one was answered"))
        return
    if conn.phase == CONN_UP and (packet.reason == RC_REAUTHENTICATE or (packet.reason == RC_CONTINUE_AUTHENTICATION and conn.flags & CONN_ASKED_AGAIN)):
        if ask(worker, conn, QUESTION_AUTH, packet):
            conn.flags |= CONN_ASKED_AGAIN
            if conn.keep_alive_ms == 0 or conn.question_due_ms < conn.last_packet_ms + conn.keep_alive_ms:
                wheel_add(worker.reactor.wheel, &conn.link.timer, conn.question_due_ms)
        return
    conn_fail(worker, conn, RC_PROTOCOL_ERROR, text("AUTH out of place"))


cdef void answer_take(Worker *worker, Conn *conn, AnswerMail *mail) noexcept nogil:
    """What an answer says beside the verdict: whom it admits and for how long; and whether the next one need not be asked."""
    cdef PendingConnect *pending = conn.pending
    cdef int64_t ends_ms = worker.reactor.now_ms + mail.lasts_ms if mail.lasts_ms else 0
    if mail.reason == RC_SUCCESS:
        conn.ends_ms = ends_ms
        if conn.auth_method != NULL and mail.user != NULL:
            mem_free(conn.user)
            conn.user = mail.user
            conn.user_bytes = mail.user_bytes
            mail.user = NULL
    if pending != NULL and pending.remembers and mail.keep_ms and mail.reason != RC_CONTINUE_AUTHENTICATION:
        verdict_keep(worker, pending.verdict_key, pending.verdict_epoch, mail.reason, worker.reactor.now_ms + mail.keep_ms, ends_ms)


cdef void on_answer(Worker *worker, AnswerMail *mail) noexcept nogil:
    cdef Conn *conn = <Conn *> reactor_link(worker.reactor, mail.slot, mail.generation)
    cdef Span data = span_make(mail.auth_data, mail.auth_data_bytes)
    cdef PendingConnect *pending
    cdef Admission admission
    cdef Packet packet
    cdef Frame frame
    cdef bint moved
    if conn == NULL:
        return                          # it is gone
    if mail.question & <uint32_t> GRANT_NUMBER:
        on_grant(worker, conn, mail)
        return
    if conn.question != mail.question:
        return                          # answered by its deadline
    conn.flags &= ~CONN_QUESTION_OPEN
    if mail.reason < 0x80 and mail.reason != RC_SUCCESS and mail.reason != RC_CONTINUE_AUTHENTICATION:
        mail.reason = RC_NOT_AUTHORIZED # not a verdict
    if conn.phase == CONN_UP and conn.flags & CONN_ASKED_AGAIN:
        if mail.reason == RC_SUCCESS or mail.reason == RC_CONTINUE_AUTHENTICATION:
            send_auth(worker, conn, mail.reason, data)
            if mail.reason == RC_SUCCESS:
                conn.flags &= ~CONN_ASKED_AGAIN
                answer_take(worker, conn, mail)
                wheel_add(worker.reactor.wheel, &conn.link.timer, worker.reactor.now_ms + 1)     # its deadline is worked out anew
                admit_again(worker, conn, mail.grant)
        else:                                                   # [MQTT-4.12.1-2]; DISCONNECT has not all of CONNACK's codes
            if mail.reason == RC_BAD_USER_NAME_OR_PASSWORD:
                mail.reason = RC_NOT_AUTHORIZED
            elif mail.reason == RC_SERVER_UNAVAILABLE:
                mail.reason = RC_SERVER_BUSY
            conn_fail(worker, conn, mail.reason, text("re-authentication failed"))
        return
    if conn.phase != CONN_ASKED:
        return
    if mail.reason == RC_CONTINUE_AUTHENTICATION and conn.auth_method == NULL:
        mail.reason = RC_NOT_AUTHORIZED # there is no exchange to go on with
    answer_take(worker, conn, mail)
    if mail.reason == RC_CONTINUE_AUTHENTICATION:
        conn.phase = CONN_AUTHENTICATING
        send_auth(worker, conn, RC_CONTINUE_AUTHENTICATION, data)
        link_resume(worker.reactor, &conn.link)
        return
    if mail.reason != RC_SUCCESS:
        refuse_connect(worker, conn, conn.dialect.level, mail.reason, nothing(), nothing())
        return
    pending = conn.pending
    conn.pending = NULL
    if frame_next(pending.packet, pending.packet + pending.bytes, 0, &frame) == ST_OK and decode_connect(&frame, &packet) == ST_OK:
        admission.auth_data = data
        admission.grant = mail.grant
        admission.checked = True
        moved = connect_admit(worker, conn, &packet, pending.packet, pending.bytes, NULL, 0, &admission)
        if not moved and conn.phase == CONN_UP:
            link_resume(worker.reactor, &conn.link)
    mem_free(pending)


# ---- accepted: to the home worker

cdef bint client_id_make(Worker *worker, uint8_t *out) noexcept nogil:
    """A client id that cannot be guessed and that lives on this worker."""
    cdef const char *letters = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    cdef uint8_t noise[64]
    cdef uint32_t i, filled
    while True:
        memcpy(out, <const char *> "mqttc-", 6)
        filled = 6
        while filled < ASSIGNED_BYTES:
            if random_bytes(noise, sizeof(noise)) != ST_OK:
                return False
            for i in range(sizeof(noise)):
                if noise[i] < 248 and filled < ASSIGNED_BYTES:  # 248 = 4 x 62: no letter is likelier than another
                    out[filled] = <uint8_t> letters[noise[i] % 62]
                    filled += 1
        if client_hash(span_make(out, ASSIGNED_BYTES)) % worker.engine.settings.workers == worker.index:
            return True


cdef bint connect_admit(
    Worker *worker, Conn *conn, const Packet *packet, const uint8_t *packet_start, uint32_t packet_bytes, const uint8_t *rest, uint32_t rest_bytes, const Admission *admission,
) noexcept nogil:
    """True: the connection moved to another worker."""
    cdef uint8_t assigned[ASSIGNED_BYTES]
    cdef Span client_id = packet.client_id
    cdef uint32_t hash
    cdef uint16_t home
    cdef AdoptMail *mail
    if client_id.n == 0:
        if not client_id_make(worker, assigned):
            refuse_connect(worker, conn, conn.dialect.level, RC_SERVER_UNAVAILABLE, nothing(), nothing())
            return False
        client_id = span_make(assigned, ASSIGNED_BYTES)
    hash = client_hash(client_id)
    home = <uint16_t> (hash % worker.engine.settings.workers)
    if home == worker.index:
        connect_finish(worker, conn, packet, client_id, hash, admission)
        return False
    mail = <AdoptMail *> mem_alloc_zeroed(1, sizeof(AdoptMail) + packet_bytes)
    if mail == NULL:
        link_close(worker.reactor, &conn.link, END_NO_MEMORY)
        return False
    mail.mail.kind = MAIL_ADOPT
    mail.bytes = packet_bytes
    memcpy(mail.packet, packet_start, packet_bytes)
    if admission.auth_data.p != NULL:
        mail.auth_data = <uint8_t *> mem_alloc(admission.auth_data.n if admission.auth_data.n else 1)
        if mail.auth_data == NULL:
            mem_free(mail)
            link_close(worker.reactor, &conn.link, END_NO_MEMORY)
            return False
        memcpy(mail.auth_data, admission.auth_data.p, admission.auth_data.n)
        mail.auth_data_bytes = admission.auth_data.n
    mail.grant = grant_share(admission.grant)
    mail.checked = admission.checked
    wheel_cancel(worker.reactor.wheel, &conn.link.timer)
    mem_free(conn.auth_method)
    conn.auth_method = NULL
    mail.user = conn.user
    mail.user_bytes = conn.user_bytes
    mail.ends_ms = conn.ends_ms
    conn.user = NULL
    guard_settle(worker, conn)
    mail.guard = conn.guard
    conn.guard = NULL
    if link_detach(worker.reactor, &conn.link, rest, rest_bytes, &mail.parcel) != ST_OK:
        conn.guard = mail.guard
        mem_free(mail.auth_data)
        grant_drop(mail.grant)
        mem_free(mail.user)
        mem_free(mail)
        link_close(worker.reactor, &conn.link, END_NO_MEMORY)
        return False
    post(worker, home, &mail.mail)
    return True


cdef void connect_adopt(Worker *worker, AdoptMail *mail) noexcept nogil:
    cdef Conn *conn = <Conn *> link_adopt(worker.reactor, &mail.parcel)
    cdef Packet packet
    cdef Frame frame
    cdef Span client_id
    cdef Admission admission
    if conn == NULL:
        mail.parcel.transport.ops.close(&mail.parcel.transport)
        mem_free(mail.parcel.leftover)
        mem_free(mail.user)
        guard_free_of(worker, mail.guard)
        atomic_add_u32_relaxed(&worker.engine.connections, <uint32_t> -1)
        atomic_add_u32_relaxed(&worker.engine.listeners[mail.parcel.listener].open_count, <uint32_t> -1)
        return
    conn_init(worker, conn)
    conn.flags |= CONN_COUNTED          # by the worker that accepted it
    conn.guard = mail.guard
    conn.user = mail.user
    conn.user_bytes = mail.user_bytes
    conn.ends_ms = mail.ends_ms
    if frame_next(mail.packet, mail.packet + mail.bytes, 0, &frame) == ST_OK and decode_connect(&frame, &packet) == ST_OK:
        conn.dialect = dialect_for(packet.protocol_level)
        conn.layout = conn.dialect.layout
        if not packet.props.request_problem_info:
            conn.flags |= CONN_QUIET
        if packet.props.present & HAS_AUTH_METHOD:
            conn.auth_method = <uint8_t *> mem_alloc(packet.props.auth_method.n if packet.props.auth_method.n else 1)
            if conn.auth_method == NULL:
                link_close(worker.reactor, &conn.link, END_NO_MEMORY)
                return
            memcpy(conn.auth_method, packet.props.auth_method.p, packet.props.auth_method.n)
            conn.auth_method_bytes = <uint16_t> packet.props.auth_method.n
        client_id = packet.client_id
        if worker.shutting_down:        # it was on its way when the others were told
            refuse_connect(worker, conn, conn.dialect.level, RC_SERVER_UNAVAILABLE, nothing(), nothing())
            return
        admission.auth_data = span_make(mail.auth_data, mail.auth_data_bytes)
        admission.grant = mail.grant
        admission.checked = mail.checked
        connect_finish(worker, conn, &packet, client_id, client_hash(client_id), &admission)
        if conn.phase == CONN_UP:
            link_resume(worker.reactor, &conn.link)


# ---- at home

cdef Will *will_build(Worker *worker, Conn *conn, const Packet *packet, uint64_t publisher) noexcept nogil:
    cdef uint32_t forward = forward_size(packet.will_props.raw)
    cdef uint8_t *data
    cdef Will *will = <Will *> mem_alloc_zeroed(1, sizeof(Will))
    if will == NULL:
        return NULL
    will.msg = msg_alloc(&worker.msgs, packet.will_topic.n + forward + packet.will_payload.n)
    if will.msg == NULL:
        mem_free(will)
        return NULL
    data = msg_data(will.msg)
    memcpy(data, packet.will_topic.p, packet.will_topic.n)
    if forward:
        publish_forward(packet.will_props.raw, data + packet.will_topic.n)
    if packet.will_payload.n:
        memcpy(data + packet.will_topic.n + forward, packet.will_payload.p, packet.will_payload.n)
    will.msg.topic_bytes = <uint16_t> packet.will_topic.n
    will.msg.properties_offset = packet.will_topic.n
    will.msg.properties_bytes = forward
    will.msg.payload_offset = packet.will_topic.n + forward
    will.msg.payload_bytes = packet.will_payload.n
    will.msg.qos = packet.will_qos
    will.msg.retain = packet.will_retain
    will.msg.publisher = publisher
    will.delay_s = packet.will_props.will_delay
    will.has_expiry = packet.will_props.present & HAS_MESSAGE_EXPIRY != 0
    will.expiry_s = packet.will_props.message_expiry
    will_count(worker, will)
    return will


cdef Session *session_claim(Worker *worker, const Packet *packet, Span client_id, uint32_t hash, bint *present, bint *discarded) noexcept nogil:
    """Take-over and clean start [MQTT-3.1.4-3, MQTT-3.1.4-4]: the session for this client, with nobody connected to it. NULL: no room for a new one."""
    cdef Session *session = session_find(worker, client_id, hash)
    cdef Conn *loser
    cdef bint ending
    if session != NULL and session.conn == NULL:
        session_timer(worker, session)  # its end or its will may be due, and the wheel not have turned yet [MQTT-4.1.0-2]
        session = session_find(worker, client_id, hash)
    discarded[0] = False                # a durable one; or whether there is one must be committed first
    if session != NULL and session.conn != NULL:
        loser = session.conn
        ending = packet.clean_start or session.expiry_s == 0
        discarded[0] = loser.phase == CONN_COMMITTING           # it was not told of the session either
        stat(&worker.stats, C_TAKEOVERS)
        report(worker, LOG_INFO, EV_TAKEN_OVER, RC_SESSION_TAKEN_OVER, loser, session, nothing())
        replies_drop(loser)             # its unsent acknowledgements: the client will repeat
        conn_disconnect(worker, loser, RC_SESSION_TAKEN_OVER)
        if ending and session.durable:
            discarded[0] = True
        session_offline(worker, loser, ending, True)
        if ending:
            session = NULL
    elif session != NULL and packet.clean_start:
        discarded[0] = session.durable
        session_finish(worker, session)
        session = NULL
    present[0] = session != NULL
    if session == NULL:
        return session_build(worker, client_id, hash)
    stat(&worker.stats, C_SESSIONS_RESUMED)
    return session


cdef bint aliases_out_make(Worker *worker, Conn *conn, uint32_t maximum) noexcept nogil:
    cdef uint32_t capacity = worker.engine.settings.topic_alias_out
    if maximum < capacity:
        capacity = maximum
    if capacity == 0:
        return True
    conn.aliases_out = <AliasesOut *> mem_alloc_zeroed(1, sizeof(AliasesOut) + capacity * sizeof(AliasOut))
    if conn.aliases_out == NULL:
        return False
    conn.aliases_out.capacity = capacity
    return True


cdef void keep_alive_start(Worker *worker, Conn *conn, const Packet *packet, Packet *connack) noexcept nogil:
    """[MQTT-3.1.2-24, MQTT-3.2.2-21]: 5.0 clients are told the server's; 3.x clients cannot be, so theirs holds."""
    cdef uint32_t seconds = packet.keep_alive
    cdef uint32_t cap = worker.engine.settings.max_keep_alive_s
    cdef Listener *listener = worker.engine.listeners[conn.link.listener]
    if conn.dialect.properties and cap < 65535 and (seconds == 0 or seconds > cap):
        seconds = cap
        connack.props.present |= HAS_SERVER_KEEP_ALIVE
        connack.props.server_keep_alive = <uint16_t> cap
    conn.keep_alive_ms = seconds * 1500
    conn.last_packet_ms = worker.reactor.now_ms
    if seconds:
        wheel_add(worker.reactor.wheel, &conn.link.timer, worker.reactor.now_ms + conn.keep_alive_ms)
    else:
        wheel_cancel(worker.reactor.wheel, &conn.link.timer)
        tcp_keep_alive(conn.link.transport.fd, listener.keepalive_idle_s, listener.tcp_user_timeout_ms)
    if conn.ends_ms and (conn.keep_alive_ms == 0 or conn.ends_ms < conn.last_packet_ms + conn.keep_alive_ms):
        wheel_add(worker.reactor.wheel, &conn.link.timer, conn.ends_ms)


cdef void connack_properties(Worker *worker, Conn *conn, const Packet *packet, Packet *connack) noexcept nogil:
    """Only what differs from the standard's defaults."""
    cdef Settings *settings = &worker.engine.settings
    if settings.receive_maximum < 65535:
        connack.props.present |= HAS_RECEIVE_MAXIMUM
        connack.props.receive_maximum = <uint16_t> settings.receive_maximum
    if conn.maximum_qos < 2:
        connack.props.present |= HAS_MAXIMUM_QOS
        connack.props.maximum_qos = conn.maximum_qos
    if not settings.retain_available:
        connack.props.present |= HAS_RETAIN_AVAILABLE
        connack.props.retain_available = 0
    if settings.max_packet_size:
        connack.props.present |= HAS_MAXIMUM_PACKET_SIZE
        connack.props.maximum_packet_size = settings.max_packet_size
    if settings.topic_alias_maximum:
        connack.props.present |= HAS_TOPIC_ALIAS_MAXIMUM
        connack.props.topic_alias_maximum = <uint16_t> settings.topic_alias_maximum
    if not settings.wildcard_available:
        connack.props.present |= HAS_WILDCARD_AVAILABLE
        connack.props.wildcard_available = 0
    if not settings.subscription_ids_available:
        connack.props.present |= HAS_SUBSCRIPTION_ID_AVAILABLE
        connack.props.subscription_id_available = 0
    if not settings.shared_available:
        connack.props.present |= HAS_SHARED_AVAILABLE
        connack.props.shared_available = 0
    if packet.props.request_response_info and worker.engine.response_information != NULL:      # [MQTT-3.1.2-28]
        connack.props.present |= HAS_RESPONSE_INFO
        connack.props.response_info = span_make(worker.engine.response_information, worker.engine.response_information_bytes)
    if conn.auth_method != NULL:
        connack.props.present |= HAS_AUTH_METHOD
        connack.props.auth_method = span_make(conn.auth_method, conn.auth_method_bytes)


cdef bint may_keep(Worker *worker, const Packet *packet, Session *session) noexcept nogil:
    """Notes a new session that outlives its connection. While commits fail one that must be kept is not promised; with Clean Start its CONNACK waits."""
    return (packet.clean_start or not journal_fails(worker)) and note_session(worker, session)


cdef void username_keep(Worker *worker, Conn *conn, const Packet *packet) noexcept nogil:
    """For those who ask who is connected; without memory they are not told."""
    conn.connected_wall_s = <uint32_t> (worker.reactor.wall_ms // 1000)
    if not packet.has_username or packet.username.n == 0:
        return
    conn.username = <uint8_t *> mem_alloc(packet.username.n)
    if conn.username != NULL:
        memcpy(conn.username, packet.username.p, packet.username.n)
        conn.username_bytes = <uint16_t> packet.username.n


cdef Span user_of(const Conn *conn, const Packet *packet) noexcept nogil:
    """Whom connections are counted for."""
    if conn.user != NULL:
        return span_make(conn.user, conn.user_bytes)
    return packet.username if packet.has_username else nothing()


cdef bint over_limits(Worker *worker, Conn *conn, const Packet *packet, Span client_id, uint32_t hash) noexcept nogil:
    """There is no memory for a new session, or its user has enough connections. True: refused."""
    cdef Session *session = session_find(worker, client_id, hash)
    if session == NULL and worker.overload:
        stat(&worker.stats, C_REFUSED_OVERLOAD)
        refuse_connect(worker, conn, conn.dialect.level, RC_QUOTA_EXCEEDED, nothing(), text("the broker's memory is nearly used up"))
        return True
    if guard_user(worker, conn, user_of(conn, packet), session.conn if session != NULL else NULL) == RC_SUCCESS:
        return False
    refuse_connect(worker, conn, conn.dialect.level, RC_QUOTA_EXCEEDED, nothing(), text("too many connections of this user"))
    return True


cdef void expiry_set(Worker *worker, const Conn *conn, Session *session, const Packet *packet, Packet *connack) noexcept nogil:
    """5.0 clients say when their sessions expire, and are told where that is cut; 3.x sessions have the broker's."""
    cdef uint32_t most = worker.engine.settings.session_expiry_s
    if not conn.dialect.session_expiry:
        session.expiry_s = 0 if packet.clean_start else most
        return
    session.expiry_s = packet.props.session_expiry
    if session.expiry_s > most:
        session.expiry_s = most
        connack.props.present |= HAS_SESSION_EXPIRY
        connack.props.session_expiry = most


cdef bint programs_own(Worker *worker, Conn *conn, Span client_id, uint32_t hash) noexcept nogil:
    """Nobody takes the program's own clients over. True: refused."""
    cdef Session *session = session_find(worker, client_id, hash)
    if session == NULL or session.conn == NULL or session.conn.phase != CONN_INSIDE:
        return False
    refuse_connect(worker, conn, conn.dialect.level, RC_CLIENT_IDENTIFIER_NOT_VALID, nothing(), nothing())
    return True


cdef void connect_finish(Worker *worker, Conn *conn, const Packet *packet, Span client_id, uint32_t hash, const Admission *admission) noexcept nogil:
    cdef Settings *settings = &worker.engine.settings
    cdef Session *session
    cdef Will *will
    cdef Rights *rights
    cdef Packet connack
    cdef bint present = False
    cdef bint waits = False             # for the store: it discards a session or changes a will there
    if programs_own(worker, conn, client_id, hash) or over_limits(worker, conn, packet, client_id, hash) or not admit_rights(worker, conn, packet, client_id, admission, &rights):
        return
    session = session_claim(worker, packet, client_id, hash, &present, &waits)
    if session == NULL:
        rights_free(rights)
        refuse_connect(worker, conn, conn.dialect.level, RC_QUOTA_EXCEEDED, nothing(), text("no room for another session"))
        return
    will = will_build(worker, conn, packet, session_handle(worker, session)) if packet.has_will else NULL
    if (packet.has_will and will == NULL) or not aliases_out_make(worker, conn, packet.props.topic_alias_maximum) or not rates_start(worker, conn):
        will_free(worker, will)
        rights_free(rights)
        if not present:
            session_finish(worker, session)
        link_close(worker.reactor, &conn.link, END_NO_MEMORY)
        return
    waits |= session.durable != 0 and (will != NULL or session.will != NULL)
    packet_clear(&connack, CONNACK)
    connack.session_present = present                           # [MQTT-3.2.2-2, MQTT-3.2.2-3]
    conn.maximum_packet_size = packet.props.maximum_packet_size
    session.receive_maximum = packet.props.receive_maximum
    if session.receive_maximum > settings.max_inflight:
        session.receive_maximum = <uint16_t> settings.max_inflight
    expiry_set(worker, conn, session, packet, &connack)
    if present:
        note_presence(worker, session, True)
    elif journaled(worker) and session.expiry_s and not may_keep(worker, packet, session):
        will_free(worker, will)
        rights_free(rights)
        session_finish(worker, session)
        refuse_connect(worker, conn, conn.dialect.level, RC_QUOTA_EXCEEDED, nothing(), text("the session cannot be kept"))
        return
    session_online(worker, session, conn)
    guard_settle(worker, conn)
    username_keep(worker, conn, packet)
    session.will = will
    note_will(worker, session, will)
    keep_alive_start(worker, conn, packet, &connack)
    admit_begin(worker, conn, rights)
    if conn.dialect.properties:
        if packet.client_id.n == 0:                             # [MQTT-3.2.2-16]
            connack.props.present |= HAS_ASSIGNED_CLIENT_ID
            connack.props.assigned_client_id = client_id
        connack_properties(worker, conn, packet, &connack)
        if admission.auth_data.p != NULL:
            connack.props.present |= HAS_AUTH_DATA
            connack.props.auth_data = admission.auth_data
    stat(&worker.stats, C_CONNECTS_ACCEPTED)
    connack_send(worker, conn, &connack, waits or (session.durable and session.made > worker.journal_committed))


cdef void connack_send(Worker *worker, Conn *conn, const Packet *connack, bint committed) noexcept nogil:
    """`committed`: what it says must be so in the store before it is said."""
    cdef int status
    if committed:
        conn.phase = CONN_COMMITTING
        conn.keep_will = 0              # a connection that was not accepted leaves none
        link_pause(worker.reactor, &conn.link)
        status = send_packet_after(worker, conn, connack, until_now(worker))
    else:
        conn.phase = CONN_UP
        status = send_packet(worker, conn, connack)
    if status == ST_LIMIT:                                      # it takes less than our shortest CONNACK [MQTT-3.1.2-24]
        link_close(worker.reactor, &conn.link, END_NO_MEMORY)
    elif status == ST_OK and (conn.phase == CONN_UP or conn.held_acks == NULL):     # NULL: nothing could be noted, so nothing is waited for
        connect_welcome(worker, conn)


cdef void connect_welcome(Worker *worker, Conn *conn) noexcept nogil:
    """CONNACK has been sent."""
    if conn.phase == CONN_COMMITTING:
        conn.phase = CONN_UP
        conn.keep_will = 1
        conn.last_packet_ms = worker.reactor.now_ms             # keep alive counts from here: nothing was read before
        link_resume(worker.reactor, &conn.link)
    if conn.phase != CONN_UP or conn.session == NULL:
        return
    report(worker, LOG_INFO, EV_CONNECTED, RC_SUCCESS, conn, conn.session, nothing())
    session_pump(worker, conn.session)
    session_rejoin(worker, conn.session)
