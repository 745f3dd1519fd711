from libc.stdint cimport int64_t, uint32_t
from libc.string cimport memset

from mqttc.base.alloc cimport mem_free
from mqttc.base.msg cimport msg_drop, msg_topic
from mqttc.base.ring cimport ring_at
from mqttc.base.timer cimport wheel_add, wheel_cancel
from mqttc.base.types cimport span_make
from mqttc.base.vec cimport vec_at
from mqttc.broker.deliver cimport publish_message
from mqttc.broker.durable cimport note_presence, note_will_done
from mqttc.broker.permit cimport rights_expire, session_denied, session_may_will
from mqttc.broker.report cimport EV_SESSION_EXPIRED, LOG_INFO, report
from mqttc.broker.session cimport TAKE_SENT, group_credit_of, groups_take_back, session_end, session_handle, will_uncount
from mqttc.broker.shared cimport tell_group
from mqttc.broker.state cimport (
    GROUP_OFFLINE, GROUP_ONLINE, NEVER, OUT_DONE, QE_COUNTED, Conn, GroupMail, Membership, QueueEntry, Session, Will, Worker,
)
from mqttc.broker.stats cimport C_DENIED_WILL, C_SESSIONS_EXPIRED, C_WILLS_PUBLISHED, stat


cdef void will_free(Worker *worker, Will *will) noexcept nogil:
    if will == NULL:
        return
    will_uncount(worker, will)
    if will.msg != NULL:
        msg_drop(&worker.msgs, will.msg)
    mem_free(will)


cdef void will_drop(Worker *worker, Session *session) noexcept nogil:
    note_will_done(worker, session)
    will_free(worker, session.will)
    session.will = NULL


cdef void will_publish(Worker *worker, Session *session) noexcept nogil:
    """[MQTT-3.1.2-8]; the message's expiry counts from now."""
    cdef Will *will = session.will
    cdef bint may
    if will == NULL:
        return
    may = session_may_will(worker, session)     # again: rules may be others than at CONNECT
    session.will = NULL
    note_will_done(worker, session)
    if not may:
        session_denied(worker, session, C_DENIED_WILL, msg_topic(will.msg))
        will_free(worker, will)
        return
    if will.has_expiry:
        will.msg.expires_at_ms = worker.reactor.now_ms + <int64_t> will.expiry_s * 1000
    stat(&worker.stats, C_WILLS_PUBLISHED)
    publish_message(worker, will.msg)
    will_free(worker, will)


cdef void groups_tell(Worker *worker, Session *session, int verb) noexcept nogil:
    """ONLINE grants the whole window less what each group has in it still (QoS 2), which gives its credit back when it is through."""
    cdef uint32_t i
    cdef Membership *membership
    cdef GroupMail mail
    if session.memberships == NULL:
        return
    for i in range(session.memberships.count):
        membership = <Membership *> vec_at(session.memberships, i)
        membership.owed = 0
        if membership.group == 0:
            continue
        memset(&mail, 0, sizeof(GroupMail))
        mail.verb = <unsigned char> verb
        mail.session = session_handle(worker, session)
        mail.credit = group_credit_of(session, membership)
        tell_group(worker, &mail, membership.group)


cdef void session_finish(Worker *worker, Session *session) noexcept nogil:
    will_publish(worker, session)       # at session end at the latest [MQTT-3.1.3-9]
    session_end(worker, session)


cdef void session_rest(Worker *worker, Session *session) noexcept nogil:
    cdef int64_t deadline = -1
    cdef int64_t will_due
    if session.expiry_s != NEVER:
        deadline = session.offline_since_ms + <int64_t> session.expiry_s * 1000
    if session.will != NULL:
        will_due = session.offline_since_ms + <int64_t> session.will.delay_s * 1000
        if deadline < 0 or will_due < deadline:
            deadline = will_due
    if session.rights != NULL and session.rights.expires_at_ms and not session.rights.expired and (deadline < 0 or session.rights.expires_at_ms < deadline):
        deadline = session.rights.expires_at_ms
    if deadline >= 0:
        wheel_add(worker.reactor.wheel, &session.timer, deadline)
    else:
        wheel_cancel(worker.reactor.wheel, &session.timer)


cdef void session_offline(Worker *worker, Conn *conn, bint ending, bint cancel_delayed) noexcept nogil:
    cdef Session *session = conn.session
    cdef uint32_t i
    cdef QueueEntry *entry
    conn.session = NULL
    if session == NULL:
        return
    session.conn = NULL
    session.offline_since_ms = worker.reactor.now_ms
    # Window slots belong to the connection; groups hear it first, get back what they may give to others, and then go on.
    for i in range(session.inflight.count):
        entry = <QueueEntry *> ring_at(&session.inflight, i)
        entry.state &= ~(QE_COUNTED << 4)
    session.window_used = 0
    session.resend = 0
    if session.memberships != NULL:
        groups_tell(worker, session, GROUP_OFFLINE)
        groups_take_back(worker, session, 0, TAKE_SENT)
        groups_tell(worker, session, GROUP_OFFLINE)
    if session.expiry_s == 0:
        ending = True
    if session.will != NULL:
        if not conn.keep_will:          # [MQTT-3.14.4-3]
            will_drop(worker, session)
        elif ending or session.will.delay_s == 0:
            will_publish(worker, session)
        elif cancel_delayed:
            will_drop(worker, session)
    if ending:
        session_end(worker, session)
        return
    note_presence(worker, session, False)
    session_rest(worker, session)


cdef void session_online(Worker *worker, Session *session, Conn *conn) noexcept nogil:
    wheel_cancel(worker.reactor.wheel, &session.timer)
    if session.will != NULL:            # the client is back before the delay's end [MQTT-3.1.3-9]
        will_drop(worker, session)
    session.conn = conn
    conn.session = session
    session.window_used = 0
    session.resend = 0


cdef void session_rejoin(Worker *worker, Session *session) noexcept nogil:
    groups_tell(worker, session, GROUP_ONLINE)


cdef void session_timer(Worker *worker, Session *session) noexcept nogil:
    if session.conn != NULL:
        return
    if session.rights != NULL and session.rights.expires_at_ms and not session.rights.expired and worker.reactor.now_ms >= session.rights.expires_at_ms:
        rights_expire(worker, session)
    if session.expiry_s != NEVER and worker.reactor.now_ms >= session.offline_since_ms + <int64_t> session.expiry_s * 1000:
        stat(&worker.stats, C_SESSIONS_EXPIRED)
        report(worker, LOG_INFO, EV_SESSION_EXPIRED, 0, NULL, session, span_make(NULL, 0))
        session_finish(worker, session)
        return
    if session.will != NULL and worker.reactor.now_ms >= session.offline_since_ms + <int64_t> session.will.delay_s * 1000:
        will_publish(worker, session)
    session_rest(worker, session)
