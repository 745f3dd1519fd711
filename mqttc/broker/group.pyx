from libc.stdint cimport uint32_t, uint64_t

from mqttc.base.alloc cimport mem_alloc_zeroed, mem_free
from mqttc.base.map cimport hash_bytes, map_find, map_insert, map_remove
from mqttc.base.msg cimport Msg, msg_drop
from mqttc.base.ring cimport ring_at, ring_free, ring_init, ring_pop_front, ring_push, ring_push_front, ring_trim
from mqttc.base.types cimport ST_NO_MEMORY, ST_OK, span_make
from mqttc.base.vec cimport vec_at, vec_free, vec_init, vec_push, vec_swap_remove
from mqttc.broker.durable cimport note_group_done, note_group_end
from mqttc.broker.state cimport LEAST_IN_FLIGHT, Group, GroupMail, Member, Worker
from mqttc.broker.stats cimport (
    C_DROPPED_EXPIRED, C_DROPPED_GROUP_END, C_DROPPED_GROUP_FULL, C_DROPPED_NO_MEMORY, C_GROUP_BACKLOG, stat, stat_sub,
)


cdef uint32_t group_hash(uint64_t group) noexcept nogil:
    return hash_bytes(span_make(&group, sizeof(uint64_t)))


cdef Group *group_find(Worker *worker, uint64_t group) noexcept nogil:
    cdef uint64_t value = 0
    if not map_find(&worker.groups, group_hash(group), &group, &value):
        return NULL
    return <Group *> value


cdef Member *member_find(Group *group, uint64_t session) noexcept nogil:
    cdef uint32_t i
    cdef Member *member
    for i in range(group.members.count):
        member = <Member *> vec_at(&group.members, i)
        if member.session == session:
            return member
    return NULL


cdef int group_join(Worker *worker, const GroupMail *mail) noexcept nogil:
    cdef Group *group = group_find(worker, mail.group)
    cdef Member *member
    if group == NULL:
        group = <Group *> mem_alloc_zeroed(1, sizeof(Group))
        if group == NULL:
            return ST_NO_MEMORY
        group.id = mail.group
        vec_init(&group.members, sizeof(Member))
        ring_init(&group.backlog, sizeof(Msg *))
        if map_insert(&worker.groups, group_hash(mail.group), <uint64_t> group) != ST_OK:
            mem_free(group)
            return ST_NO_MEMORY
    member = member_find(group, mail.session)
    if member == NULL:
        member = <Member *> vec_push(&group.members)
        if member == NULL:
            if group.members.count == 0:
                map_remove(&worker.groups, group_hash(mail.group), &mail.group, NULL)
                group_free(worker, group)
            return ST_NO_MEMORY
        member.session = mail.session
        member.credit = 0
        member.in_flight = 0
        member.online = False
    member.qos = mail.qos
    member.subscription_id = mail.subscription_id
    member.retain_as_published = mail.retain_as_published
    group.joined += mail.noted
    if mail.online and not member.online:       # a repeated SUBSCRIBE changes options, not credit
        group_online(group, mail.session, mail.credit)
    return ST_OK


cdef void group_leave(Worker *worker, uint64_t id, uint64_t session) noexcept nogil:
    cdef Group *group = group_find(worker, id)
    cdef Member *member
    if group == NULL:
        return
    member = member_find(group, session)
    if member == NULL:
        return
    group_offline(group, session)
    vec_swap_remove(&group.members, <uint32_t> (member - <Member *> group.members.items))
    if group.members.count == 0 and group.backlog.count == 0:
        group_close(worker, group)


cdef void group_close(Worker *worker, Group *group) noexcept nogil:
    cdef uint64_t id = group.id
    cdef uint32_t i
    map_remove(&worker.groups, group_hash(id), &id, NULL)
    for i in range(group.backlog.count):
        note_group_done(worker, id, (<Msg **> ring_at(&group.backlog, i))[0])
    note_group_end(worker, id, group.joined)
    group_free(worker, group)


cdef void group_free(Worker *worker, Group *group) noexcept nogil:
    cdef uint32_t i
    for i in range(group.backlog.count):
        stat(&worker.stats, C_DROPPED_GROUP_END)
        msg_drop(&worker.msgs, (<Msg **> ring_at(&group.backlog, i))[0])
    stat_sub(&worker.stats, C_GROUP_BACKLOG, group.backlog.count)
    ring_free(&group.backlog)
    vec_free(&group.members)
    mem_free(group)


cdef void group_online(Group *group, uint64_t session, uint32_t credit) noexcept nogil:
    cdef Member *member = member_find(group, session)
    if member == NULL:
        return
    if not member.online:
        member.online = True
        group.online_count += 1
    group.credit_total += credit - member.credit
    member.credit = credit
    member.in_flight = 0


cdef void group_offline(Group *group, uint64_t session) noexcept nogil:
    cdef Member *member = member_find(group, session)
    if member == NULL or not member.online:
        return
    member.online = False
    group.online_count -= 1
    group.credit_total -= member.credit
    member.credit = 0
    member.in_flight = 0


cdef void group_credit(Group *group, uint64_t session, uint32_t n) noexcept nogil:
    cdef Member *member = member_find(group, session)
    if member == NULL or not member.online:
        return
    member.credit += n
    group.credit_total += n
    member.in_flight = member.in_flight - n if member.in_flight > n else 0


cdef Member *group_pick(Worker *worker, Group *group) noexcept nogil:
    cdef uint32_t i, index
    cdef uint32_t n = group.members.count
    cdef Member *member
    cdef Member *best = NULL
    if group.credit_total == 0:
        return NULL
    for i in range(n):
        index = (group.next + i) % n
        member = <Member *> vec_at(&group.members, index)
        if member.credit == 0:
            continue
        if best == NULL or member.in_flight < best.in_flight:
            best = member
        if worker.engine.settings.group_strategy != LEAST_IN_FLIGHT or best.in_flight == 0:
            break
    if best == NULL:
        return NULL
    group.next = (<uint32_t> (best - <Member *> group.members.items) + 1) % n
    best.credit -= 1
    best.in_flight += 1
    group.credit_total -= 1
    return best


cdef void backlog_push(Worker *worker, Group *group, Msg *msg) noexcept nogil:
    cdef Msg **place
    if group.backlog.count >= worker.engine.settings.max_group_backlog:
        note_group_done(worker, group.id, (<Msg **> ring_at(&group.backlog, 0))[0])
        msg_drop(&worker.msgs, (<Msg **> ring_at(&group.backlog, 0))[0])
        ring_pop_front(&group.backlog, 1)
        stat(&worker.stats, C_DROPPED_GROUP_FULL)
        stat_sub(&worker.stats, C_GROUP_BACKLOG, 1)
    place = <Msg **> ring_push(&group.backlog)
    if place == NULL:
        stat(&worker.stats, C_DROPPED_NO_MEMORY)
        note_group_done(worker, group.id, msg)
        msg_drop(&worker.msgs, msg)
        return
    place[0] = msg
    stat(&worker.stats, C_GROUP_BACKLOG)


cdef void backlog_push_front(Worker *worker, Group *group, Msg *msg) noexcept nogil:
    cdef Msg **place
    if group.backlog.count >= worker.engine.settings.max_group_backlog:
        stat(&worker.stats, C_DROPPED_GROUP_FULL)       # it is the oldest
        note_group_done(worker, group.id, msg)
        msg_drop(&worker.msgs, msg)
        return
    place = <Msg **> ring_push_front(&group.backlog)
    if place == NULL:
        stat(&worker.stats, C_DROPPED_NO_MEMORY)
        note_group_done(worker, group.id, msg)
        msg_drop(&worker.msgs, msg)
        return
    place[0] = msg
    stat(&worker.stats, C_GROUP_BACKLOG)


cdef Msg *backlog_pop(Worker *worker, Group *group) noexcept nogil:
    cdef Msg *msg
    while group.backlog.count:
        msg = (<Msg **> ring_at(&group.backlog, 0))[0]
        ring_pop_front(&group.backlog, 1)
        stat_sub(&worker.stats, C_GROUP_BACKLOG, 1)
        if group.backlog.count == 0:
            ring_trim(&group.backlog)
        if msg.expires_at_ms == 0 or msg.expires_at_ms > worker.reactor.now_ms:
            return msg
        stat(&worker.stats, C_DROPPED_EXPIRED)
        note_group_done(worker, group.id, msg)
        msg_drop(&worker.msgs, msg)
    return NULL
