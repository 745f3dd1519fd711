from libc.stdint cimport int64_t, uint8_t, uint32_t

from mqttc.base.timer cimport wheel_add
from mqttc.base.types cimport ST_OK, Span, span_make
from mqttc.broker.acl cimport ACL_RETAIN, ACL_WILL, USES_CLIENT_ID, USES_USER, Grant
from mqttc.broker.gate cimport gate_ask_grant
from mqttc.broker.on_subscribe cimport rights_recheck
from mqttc.broker.permit cimport rights_take
from mqttc.broker.pump cimport session_pump
from mqttc.broker.reply cimport refuse_connect
from mqttc.broker.report cimport EV_UNSAFE_NAME, LOG_WARNING, report, text
from mqttc.broker.rights cimport BY_NAME, AclDecision, Rights, rights_allow, rights_build, rights_free, rights_own
from mqttc.broker.state cimport CONN_UP, GRANT_ANY, GRANT_NUMBER, Admission, AnswerMail, Conn, Session, Worker
from mqttc.broker.stats cimport C_DENIED_CLIENT_ID, C_DENIED_UNSAFE_NAME, C_DENIED_WILL, C_GRANTS_RENEWED, C_HOOKS_UNASKED, stat
from mqttc.net.reactor cimport END_NO_MEMORY, link_close
from mqttc.proto.packet cimport RC_CLIENT_IDENTIFIER_NOT_VALID, RC_NOT_AUTHORIZED, RC_SUCCESS, Packet


cdef uint8_t rights_verdict(Worker *worker, const Packet *packet, const Rights *rights, Span client_id, const char **why) noexcept nogil:
    """What the client's rights say of its CONNECT: RC_SUCCESS, or why it is refused."""
    cdef AclDecision decision
    if rights.expires_at_ms and rights.expires_at_ms <= worker.reactor.now_ms:
        why[0] = "the grant has expired"
        return RC_NOT_AUTHORIZED
    if packet.client_id.n and not rights_own(rights, client_id, &decision):    # one that we made belongs to nobody else
        stat(&worker.stats, C_DENIED_CLIENT_ID)
        why[0] = "this user may not use this client id"
        return RC_CLIENT_IDENTIFIER_NOT_VALID
    if packet.has_will and not (rights_allow(rights, client_id, ACL_WILL, packet.will_topic, False, &decision) and (
        not packet.will_retain or rights_allow(rights, client_id, ACL_RETAIN, packet.will_topic, False, &decision)
    )):                                                         # 5.0, section 3.1.3.2: refused now rather than silent later
        stat(&worker.stats, C_DENIED_WILL)
        if decision.source == BY_NAME:
            stat(&worker.stats, C_DENIED_UNSAFE_NAME)
        why[0] = "the will is not allowed"
        return RC_NOT_AUTHORIZED
    return RC_SUCCESS


cdef bint admit_rights(Worker *worker, Conn *conn, const Packet *packet, Span client_id, const Admission *admission, Rights **rights) noexcept nogil:
    """Where the client needs rights. A user name that nobody has checked counts for nothing. False: the CONNECT was refused."""
    cdef Span user = packet.username if admission.checked and packet.has_username else span_make(NULL, 0)
    cdef const char *why = ""
    cdef uint8_t reason
    rights[0] = NULL
    if admission.grant == NULL and not worker.engine.guarded:
        return True
    rights[0] = rights_build(worker.acl, admission.grant, client_id, user, conn.link.listener, worker.reactor.now_ms)
    if rights[0] == NULL:
        link_close(worker.reactor, &conn.link, END_NO_MEMORY)
        return False
    reason = rights_verdict(worker, packet, rights[0], client_id, &why)
    if reason != RC_SUCCESS:
        rights_free(rights[0])
        refuse_connect(worker, conn, conn.dialect.level, reason, span_make(NULL, 0), text(why))
        return False
    if worker.acl != NULL and rights[0].unsafe & worker.acl.uses & (USES_CLIENT_ID | (USES_USER if rights[0].has_user else 0)):
        report(worker, LOG_WARNING, EV_UNSAFE_NAME, RC_SUCCESS, conn, NULL, client_id)
    return True


cdef void admit_begin(Worker *worker, Conn *conn, Rights *rights) noexcept nogil:
    """They are the session's, and their end is waited for."""
    cdef int64_t due_ms
    rights_take(worker, conn.session, rights)
    rights_recheck(worker, conn.session)
    if rights == NULL or rights.expires_at_ms == 0:
        return
    due_ms = rights.renew_at_ms if rights.renew_at_ms else rights.expires_at_ms
    if conn.ends_ms and conn.ends_ms <= due_ms:
        return                          # the connection's own end comes first, and is waited for
    if conn.keep_alive_ms == 0 or due_ms < worker.reactor.now_ms + conn.keep_alive_ms:
        wheel_add(worker.reactor.wheel, &conn.link.timer, due_ms)


cdef void admit_again(Worker *worker, Conn *conn, Grant *grant) noexcept nogil:
    """After a re-authentication: the new grant is instead of the old one, the user the same unless it names another."""
    cdef Session *session = conn.session
    cdef Rights *old = session.rights
    cdef Rights *rights
    cdef Span user = span_make(NULL, 0)
    if old == NULL and grant == NULL:
        return
    if old != NULL:
        user = span_make(old.user, old.user_bytes) if old.has_user else user
    elif conn.user != NULL:
        user = span_make(conn.user, conn.user_bytes)
    else:
        user = span_make(conn.username, conn.username_bytes)
    rights = rights_build(worker.acl, grant, span_make(session.client_id, session.client_id_bytes), user, conn.link.listener, worker.reactor.now_ms)
    if rights == NULL:
        link_close(worker.reactor, &conn.link, END_NO_MEMORY)
        return
    admit_begin(worker, conn, rights)
    session_pump(worker, session)


cdef uint32_t grant_number(const Rights *rights) noexcept nogil:
    """Of its end; never GRANT_ANY."""
    return <uint32_t> GRANT_NUMBER | (<uint32_t> rights.expires_at_ms & (<uint32_t> GRANT_NUMBER - 2))


cdef void admit_renew(Worker *worker, Conn *conn) noexcept nogil:
    conn.session.rights.renew_at_ms = 0
    if gate_ask_grant(worker, conn, grant_number(conn.session.rights)) != ST_OK:
        stat(&worker.stats, C_HOOKS_UNASKED)    # it ends as any other


cdef void on_grant(Worker *worker, Conn *conn, const AnswerMail *mail) noexcept nogil:
    cdef Session *session = conn.session
    if conn.phase != CONN_UP or session == NULL or mail.grant == NULL:
        return
    if mail.question != <uint32_t> GRANT_ANY and (session.rights == NULL or grant_number(session.rights) != mail.question):
        return                          # a re-authentication was quicker
    stat(&worker.stats, C_GRANTS_RENEWED)
    wheel_add(worker.reactor.wheel, &conn.link.timer, worker.reactor.now_ms + 1)     # its deadline is worked out anew
    admit_again(worker, conn, mail.grant)
