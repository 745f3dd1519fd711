from libc.stdint cimport uint16_t, uint32_t, uint64_t, uint8_t
from libc.string cimport memset

from mqttc.base.alloc cimport mem_alloc, mem_free
from mqttc.base.inbox cimport Mail, inbox_post, inbox_wake
from mqttc.base.msg cimport Msg, msg_drop, msg_journal, msg_share
from mqttc.base.types cimport ST_OK
from mqttc.base.vec cimport vec_at
from mqttc.broker.durable cimport note_group_done
from mqttc.broker.group cimport (
    backlog_pop, backlog_push, backlog_push_front, group_close, group_credit, group_find, group_join, group_leave, group_offline, group_online,
    group_pick,
)
from mqttc.broker.handle cimport handle_worker
from mqttc.broker.mail cimport post_group
from mqttc.broker.publication cimport Publication, publication_msg
from mqttc.broker.routes cimport subscription_ids_build
from mqttc.broker.send cimport PATIENCE_MS, offer_entry, out_high
from mqttc.broker.session cimport group_home, membership_find, session_handle, session_of
from mqttc.broker.state cimport (
    GROUP_CLOSE, GROUP_CREDIT, GROUP_DELIVER, GROUP_JOIN, GROUP_LEAVE, GROUP_OFFER, GROUP_OFFLINE, GROUP_ONLINE, GROUP_RETURN, MAIL_GROUP,
    QE_JOURNALED, QE_RETAIN, SESSION_CREDIT_DIRTY, Group, GroupMail, Member, Membership, QueueEntry, Session, Worker,
)
from mqttc.broker.stats cimport C_DROPPED_GROUP_END, C_DROPPED_NO_MEMORY, stat
from mqttc.net.reactor cimport LINK_NOTIFY


cdef void own_mail(Worker *worker) noexcept nogil:
    cdef Mail *mail
    while worker.post_first[worker.index] != NULL:
        mail = worker.post_first[worker.index]
        worker.post_first[worker.index] = mail.next
        if mail.next == NULL:
            worker.post_last[worker.index] = NULL
        on_group_mail(worker, <GroupMail *> mail)
        mem_free(mail)


cdef void tell_group(Worker *worker, GroupMail *mail, uint64_t group) noexcept nogil:
    cdef GroupMail *posted
    cdef uint16_t home = group_home(group)
    mail.group = group
    if home == worker.index:
        own_mail(worker)                # what was said before comes first
        on_group_mail(worker, mail)
        return
    posted = post_group(worker, home, mail.verb)
    if posted == NULL:
        stat(&worker.stats, C_DROPPED_NO_MEMORY)
        if mail.msg != NULL:
            msg_drop(&worker.msgs, mail.msg)
        return
    posted.group = group
    posted.session = mail.session
    posted.msg = mail.msg
    posted.credit = mail.credit
    posted.subscription_id = mail.subscription_id
    posted.qos = mail.qos
    posted.online = mail.online
    posted.noted = mail.noted
    posted.retain_as_published = mail.retain_as_published


cdef bint group_is_deserted(const Group *group, uint8_t qos) noexcept nogil:
    return group == NULL or (qos == 0 and group.online_count == 0)


cdef bint look_again(Worker *worker, uint8_t verb, uint64_t group, Msg *msg) noexcept nogil:
    """Mail to the worker itself, behind all that other workers posted before."""
    cdef GroupMail *mail = <GroupMail *> mem_alloc(sizeof(GroupMail))
    if mail == NULL:
        return False
    memset(mail, 0, sizeof(GroupMail))
    mail.mail.kind = MAIL_GROUP
    mail.verb = verb
    mail.group = group
    mail.msg = msg
    if inbox_post(&worker.reactor.inbox, &mail.mail, &mail.mail):
        inbox_wake(&worker.reactor.inbox)
    return True


cdef void group_take(Worker *worker, Group *group, Msg *msg) noexcept nogil:
    """Takes the reference over."""
    cdef Member *member
    if group.backlog.count == 0:
        member = group_pick(worker, group)
        if member != NULL:
            group_send(worker, group, member, msg)
            return
    backlog_push(worker, group, msg)


cdef void group_offer(Worker *worker, Publication *pub, uint64_t id) noexcept nogil:
    """At the group's home: to a member with credit, else to the backlog. QoS 0 for a group that nobody of is on line is not kept.

    A member's SUBACK can be read, and this PUBLISH be its consequence, while its JOIN still lies in our inbox: before a message is
    given up for want of members it goes behind that mail once.
    """
    cdef Group *group
    cdef Msg *msg
    own_mail(worker)
    group = group_find(worker, id)
    msg = publication_msg(worker, pub)
    if msg == NULL:
        return
    msg_share(msg, 1)
    if group_is_deserted(group, pub.qos):
        if not look_again(worker, GROUP_OFFER, id, msg):
            stat(&worker.stats, C_DROPPED_NO_MEMORY)
            msg_drop(&worker.msgs, msg)
        return
    group_take(worker, group, msg)
    group = group_find(worker, id)      # handing out may have ended it
    if group == NULL:
        return
    if group.online_count == 0 or group.backlog.count < worker.engine.settings.max_group_backlog // 4 * 3 + 1:
        group.pressure_since_ms = 0
        return
    if group.pressure_since_ms == 0:
        group.pressure_since_ms = worker.reactor.now_ms
    pub.pressure |= worker.reactor.now_ms - group.pressure_since_ms < PATIENCE_MS       # see under_pressure; handing out begins it anew


cdef void group_send(Worker *worker, Group *group, Member *member, Msg *msg) noexcept nogil:
    """To the home of a member that was picked; takes the reference over."""
    cdef GroupMail here
    cdef GroupMail *mail
    cdef uint16_t home = handle_worker(member.session)
    if home == worker.index:
        here.verb = GROUP_DELIVER
        here.group = group.id
        here.session = member.session
        here.msg = msg
        here.qos = member.qos
        here.subscription_id = member.subscription_id
        here.retain_as_published = member.retain_as_published
        member_deliver(worker, &here)
        return
    mail = post_group(worker, home, GROUP_DELIVER)
    if mail == NULL:
        stat(&worker.stats, C_DROPPED_NO_MEMORY)
        msg_drop(&worker.msgs, msg)
        return
    mail.group = group.id
    mail.session = member.session
    mail.msg = msg
    mail.qos = member.qos
    mail.subscription_id = member.subscription_id
    mail.retain_as_published = member.retain_as_published


cdef void group_dispatch(Worker *worker, uint64_t id) noexcept nogil:
    """Hands the backlog out as far as credit goes."""
    cdef Group *group = group_find(worker, id)
    cdef Member *member
    cdef Msg *msg
    while group != NULL and group.backlog.count and group.credit_total:
        msg = backlog_pop(worker, group)
        if msg == NULL:
            return
        member = group_pick(worker, group)
        if member == NULL:
            backlog_push_front(worker, group, msg)
            return
        group.pressure_since_ms = 0
        group_send(worker, group, member, msg)
        group = group_find(worker, id)


cdef void member_deliver(Worker *worker, const GroupMail *mail) noexcept nogil:
    """At the member's home: the group's message becomes one of the session's, marked as lent. Takes mail.msg over."""
    cdef Session *session = session_of(worker, mail.session)
    cdef uint32_t member = membership_find(session, mail.group) if session != NULL else 0
    cdef Membership *membership
    cdef QueueEntry entry
    cdef GroupMail back
    if member == 0 or session.conn == NULL:     # one that is closing queues it, and gives it back when it goes off line: no member after member from here
        memset(&back, 0, sizeof(GroupMail))
        back.verb = GROUP_RETURN        # it left or broke off meanwhile: another one gets it
        back.session = mail.session
        back.msg = mail.msg
        tell_group(worker, &back, mail.group)
        back.verb = GROUP_OFFLINE if member else GROUP_LEAVE
        back.msg = NULL
        tell_group(worker, &back, mail.group)
        return
    membership = <Membership *> vec_at(session.memberships, member - 1)
    membership.outstanding += 1
    entry.msg = mail.msg
    entry.subscription_ids = NULL
    if mail.subscription_id and session.conn.layout:
        entry.subscription_ids = subscription_ids_build(1)
        if entry.subscription_ids != NULL:
            entry.subscription_ids.ids[0] = mail.subscription_id
    entry.member = member
    entry.packet_id = 0
    entry.qos = mail.qos if mail.qos < mail.msg.qos else mail.msg.qos
    entry.state = QE_RETAIN << 4 if mail.retain_as_published and mail.msg.retain else 0     # [MQTT-3.3.1-12, MQTT-3.3.1-13]
    if msg_journal(mail.msg) and entry.qos:
        entry.state |= QE_JOURNALED << 4
    elif mail.msg.qos:
        note_group_done(worker, mail.group, mail.msg)           # at QoS 0 it is through
    offer_entry(worker, session, &entry)


cdef void on_group_mail(Worker *worker, GroupMail *mail) noexcept nogil:
    cdef Group *group
    if mail.verb == GROUP_DELIVER:
        member_deliver(worker, mail)
        return
    if mail.verb == GROUP_JOIN:
        if group_join(worker, mail) != ST_OK:
            stat(&worker.stats, C_DROPPED_NO_MEMORY)
    elif mail.verb == GROUP_LEAVE:
        group_leave(worker, mail.group, mail.session)
        group = group_find(worker, mail.group)
        if group != NULL and group.members.count == 0 and not look_again(worker, GROUP_CLOSE, mail.group, NULL):
            group_close(worker, group)
            return
    else:
        group = group_find(worker, mail.group)
        if mail.verb == GROUP_OFFER:
            if group_is_deserted(group, mail.msg.qos):
                note_group_done(worker, mail.group, mail.msg)
                msg_drop(&worker.msgs, mail.msg)
            else:
                group_take(worker, group, mail.msg)
            return
        if group == NULL:
            if mail.verb == GROUP_RETURN:
                stat(&worker.stats, C_DROPPED_GROUP_END)
                note_group_done(worker, mail.group, mail.msg)
                msg_drop(&worker.msgs, mail.msg)
            return
        if mail.verb == GROUP_CLOSE:
            if group.members.count == 0:
                group_close(worker, group)
            return
        if mail.verb == GROUP_ONLINE:
            group_online(group, mail.session, mail.credit)
        elif mail.verb == GROUP_OFFLINE:
            group_offline(group, mail.session)
        elif mail.verb == GROUP_CREDIT:
            group_credit(group, mail.session, mail.credit)
        elif mail.verb == GROUP_RETURN:
            backlog_push_front(worker, group, mail.msg)     # dispatched by the OFFLINE or LEAVE of its former holder that follows
            return
    group_dispatch(worker, mail.group)


cdef void credits_grant(Worker *worker) noexcept nogil:
    cdef Session *session
    cdef Session *next
    cdef Session *waiting = NULL
    cdef Membership *membership
    cdef GroupMail mail
    cdef uint32_t i
    own_mail(worker)
    while worker.credit_dirty != NULL:
        session = worker.credit_dirty
        worker.credit_dirty = NULL
        while session != NULL:
            next = session.credit_next
            if session.conn != NULL and session.conn.link.out.bytes >= out_high(worker):
                session.conn.link.flags |= LINK_NOTIFY      # a slow reader gets no new credit until it has drained
                session.credit_next = waiting
                waiting = session
                session = next
                continue
            session.flags &= ~SESSION_CREDIT_DIRTY
            i = 0
            while session.memberships != NULL and i < session.memberships.count:
                membership = <Membership *> vec_at(session.memberships, i)
                i += 1
                if membership.owed == 0:
                    continue
                memset(&mail, 0, sizeof(GroupMail))
                mail.verb = GROUP_CREDIT
                mail.session = session_handle(worker, session)
                mail.credit = membership.owed
                membership.owed = 0
                if membership.group and session.conn != NULL:
                    tell_group(worker, &mail, membership.group)
            session = next
    worker.credit_dirty = waiting
