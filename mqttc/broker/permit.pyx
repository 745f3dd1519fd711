from libc.stdint cimport uint8_t, uint16_t
from libc.string cimport memset

from mqttc.base.msg cimport msg_topic
from mqttc.base.types cimport Span, span_make
from mqttc.broker.acl cimport ACL_RECEIVE, ACL_RETAIN, ACL_WILL
from mqttc.broker.report cimport (
    EV_GRANT_EXPIRED, EV_PUBLISH_DENIED, EV_RETAIN_DENIED, EV_SUBSCRIBE_DENIED, EV_WILL_DENIED, LOG_INFO, LOG_WARNING, report,
)
from mqttc.broker.rights cimport BY_NAME, BY_NOTHING, AclDecision, Rights, rights_allow, rights_free, rights_renew
from mqttc.broker.routes cimport RouteEntry
from mqttc.broker.state cimport SESSION_RECHECK, Session, Worker
from mqttc.broker.stats cimport (
    C_DENIED_PUBLISH, C_DENIED_RECEIVE, C_DENIED_RETAIN, C_DENIED_UNSAFE_NAME, C_DENIED_WILL, C_GRANTS_EXPIRED, stat,
)
from mqttc.proto.packet cimport RC_NOT_AUTHORIZED


cdef inline Span client_of(const Session *session) noexcept nogil:
    return span_make(session.client_id, session.client_id_bytes)


cdef bint session_decide(Worker *worker, Session *session, uint8_t action, Span text, bint whole, AclDecision *decision) noexcept nogil:
    cdef Rights *rights = session.rights
    if rights == NULL:
        memset(decision, 0, sizeof(AclDecision))
        decision.source = BY_NOTHING
        return True
    if rights.file == NULL or rights.file.acl != worker.acl:
        if rights.file != NULL or worker.acl != NULL:
            rights_renew(rights, worker.acl, client_of(session))
    return rights_allow(rights, client_of(session), action, text, whole, decision)


cdef bint session_may(Worker *worker, Session *session, uint8_t action, Span text, bint whole) noexcept nogil:
    cdef AclDecision decision
    if session.rights == NULL or session_decide(worker, session, action, text, whole, &decision):
        return True
    if decision.source == BY_NAME:
        stat(&worker.stats, C_DENIED_UNSAFE_NAME)
    return False


cdef bint session_may_will(Worker *worker, Session *session) noexcept nogil:
    cdef uint8_t expired
    cdef bint may
    cdef Span topic = msg_topic(session.will.msg)
    if session.rights == NULL:
        return True
    expired = session.rights.expired
    session.rights.expired = False
    may = session_may(worker, session, ACL_WILL, topic, False) and (
        not session.will.msg.retain or session_may(worker, session, ACL_RETAIN, topic, False)
    )
    session.rights.expired = expired
    return may


cdef bint entry_permitted(Worker *worker, Session *session, RouteEntry *entry, Span topic) noexcept nogil:
    if entry.epoch != session.rights_epoch:
        entry.denied = not session_may(worker, session, ACL_RECEIVE, topic, False)
        entry.epoch = session.rights_epoch
    if entry.denied:
        stat(&worker.stats, C_DENIED_RECEIVE)   # a filter may be wider than what its client gets: nothing to tell the log
    return not entry.denied


cdef uint16_t event_of(int counter) noexcept nogil:
    if counter == C_DENIED_PUBLISH:
        return EV_PUBLISH_DENIED
    if counter == C_DENIED_RETAIN:
        return EV_RETAIN_DENIED
    if counter == C_DENIED_WILL:
        return EV_WILL_DENIED
    return EV_SUBSCRIBE_DENIED


cdef void session_denied(Worker *worker, Session *session, int counter, Span topic) noexcept nogil:
    stat(&worker.stats, counter)
    session.denied += 1
    if session.denied & (session.denied - 1) == 0:
        report(worker, LOG_WARNING, event_of(counter), RC_NOT_AUTHORIZED, session.conn, session, topic)


cdef void rights_changed(Worker *worker, Session *session) noexcept nogil:
    worker.rights_epoch += 1
    if worker.rights_epoch == 0:
        worker.rights_epoch = 1
    session.rights_epoch = worker.rights_epoch if session.rights != NULL else 0
    if session.queue.count and session.rights != NULL:
        session.flags |= SESSION_RECHECK


cdef void rights_take(Worker *worker, Session *session, Rights *rights) noexcept nogil:
    rights_free(session.rights)
    session.rights = rights
    rights_changed(worker, session)


cdef void rights_expire(Worker *worker, Session *session) noexcept nogil:
    session.rights.expired = True
    stat(&worker.stats, C_GRANTS_EXPIRED)
    report(worker, LOG_INFO, EV_GRANT_EXPIRED, RC_NOT_AUTHORIZED, session.conn, session, span_make(NULL, 0))
    rights_changed(worker, session)
