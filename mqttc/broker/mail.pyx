from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from posix.unistd cimport close

from mqttc.base.alloc cimport mem_alloc, mem_alloc_zeroed, mem_free
from mqttc.base.inbox cimport Mail, inbox_post, inbox_wake
from mqttc.base.msg cimport Msg, msg_drop, msg_share
from mqttc.base.types cimport ST_NO_MEMORY, ST_OK, atomic_add_u64_relaxed, atomic_load_u64_relaxed
from mqttc.broker.acl cimport acl_drop, grant_drop
from mqttc.broker.port cimport delivery_free, request_free
from mqttc.broker.routes cimport Route, route_drop, route_share
from mqttc.broker.state cimport (
    MAIL_ACL, MAIL_ADOPT, MAIL_ANSWER, MAIL_BLOCKS, MAIL_BODIES, MAIL_DELIVERY, MAIL_GROUP, MAIL_HEAD, MAIL_LINK, MAIL_PUBLISH, MAIL_REQUEST, MAIL_SHUTDOWN, PUBLISH_MAIL_ITEMS, AclMail,
    AdoptMail, AnswerMail, BlocksMail, BodiesMail, DeliveryMail, GroupMail, HeadMail, LinkMail, PublishMail, RequestMail, Worker,
)
from mqttc.broker.stats cimport C_MAIL_SENT, stat

cdef enum:
    STRAYS_WORTH_A_MAIL = 64
    CROWDED_BYTES = 64 << 20           # of publications on their way to a worker, from which those who publish to it are braked
    ITEM_BYTES = 64                    # counted per publication beside its body


cdef void post(Worker *worker, uint16_t to, Mail *mail) noexcept nogil:
    mail.next = NULL
    if worker.post_last[to] == NULL:
        worker.post_first[to] = mail
    else:
        worker.post_last[to].next = mail
    worker.post_last[to] = mail


cdef int post_publish(Worker *worker, uint16_t to, Msg *msg, Route *route) noexcept nogil:
    cdef PublishMail *batch = <PublishMail *> worker.post_last[to]
    if batch == NULL or batch.mail.kind != MAIL_PUBLISH or batch.count == PUBLISH_MAIL_ITEMS:
        batch = <PublishMail *> mem_alloc(sizeof(PublishMail))
        if batch == NULL:
            return ST_NO_MEMORY
        batch.mail.kind = MAIL_PUBLISH
        batch.count = 0
        batch.bytes = 0
        post(worker, to, &batch.mail)
    msg_share(msg, 1)
    route_share(route, 1)
    batch.items[batch.count].msg = msg
    batch.items[batch.count].route = route
    batch.count += 1
    batch.bytes += ITEM_BYTES + msg.capacity
    worker.post_bytes[to] += ITEM_BYTES + msg.capacity
    return ST_OK


cdef void publish_mail_done(Worker *worker, const PublishMail *mail) noexcept nogil:
    atomic_add_u64_relaxed(&worker.mail_bytes, <uint64_t> 0 - mail.bytes)


cdef GroupMail *post_group(Worker *worker, uint16_t to, uint8_t verb) noexcept nogil:
    cdef GroupMail *mail = <GroupMail *> mem_alloc_zeroed(1, sizeof(GroupMail))
    if mail == NULL:
        return NULL
    mail.mail.kind = MAIL_GROUP
    mail.verb = verb
    post(worker, to, &mail.mail)
    return mail


cdef void post_strays(Worker *worker, uint16_t to) noexcept nogil:
    """Dead blocks of another worker go home: with mail that leaves anyway, or when there are many."""
    cdef BlocksMail *mail
    if worker.msgs.stray_count[to] == 0 or (worker.post_first[to] == NULL and worker.msgs.stray_count[to] < STRAYS_WORTH_A_MAIL):
        return
    mail = <BlocksMail *> mem_alloc(sizeof(BlocksMail))
    if mail == NULL:
        return                          # they wait for the next turn
    mail.mail.kind = MAIL_BLOCKS
    mail.chain = worker.msgs.strays[to]
    worker.msgs.strays[to] = NULL
    worker.msgs.stray_count[to] = 0
    post(worker, to, &mail.mail)


cdef void post_all(Worker *worker) noexcept nogil:
    """After journal_flush: what a peer does about a message comes behind the record that holds it."""
    cdef uint32_t to
    cdef Mail *first
    cdef Worker *peer
    for to in range(worker.engine.settings.workers):
        if to == worker.index:
            continue
        peer = worker.engine.workers[to]
        post_strays(worker, <uint16_t> to)
        if worker.post_bytes[to] or worker.crowded[to]:
            atomic_add_u64_relaxed(&peer.mail_bytes, worker.post_bytes[to])
            worker.post_bytes[to] = 0
            worker.crowded[to] = atomic_load_u64_relaxed(&peer.mail_bytes) > <uint64_t> CROWDED_BYTES
        first = worker.post_first[to]
        if first != NULL:
            stat(&worker.stats, C_MAIL_SENT)
            if inbox_post(&peer.reactor.inbox, first, worker.post_last[to]):
                inbox_wake(&peer.reactor.inbox)
            worker.post_first[to] = NULL
            worker.post_last[to] = NULL


cdef void adopt_discard(AdoptMail *adopt) noexcept nogil:
    adopt.parcel.transport.ops.close(&adopt.parcel.transport)
    mem_free(adopt.parcel.leftover)
    mem_free(adopt.auth_data)
    grant_drop(adopt.grant)
    mem_free(adopt.user)
    mem_free(adopt.guard)               # what it counts ends with the engine


cdef void mail_discard(Worker *worker, Mail *mail) noexcept nogil:
    cdef PublishMail *batch
    cdef GroupMail *group
    cdef AnswerMail *answer
    cdef LinkMail *link
    cdef BodiesMail *bodies
    cdef Msg *msg
    cdef Msg *next
    cdef uint32_t i
    if mail.kind == MAIL_SHUTDOWN:
        return                          # the worker's own
    if mail.kind == MAIL_REQUEST:
        request_free(<RequestMail *> mail)
        return
    if mail.kind == MAIL_DELIVERY:
        delivery_free(worker, <DeliveryMail *> mail)
        return
    if mail.kind == MAIL_PUBLISH:
        batch = <PublishMail *> mail
        for i in range(batch.count):
            msg_drop(&worker.msgs, batch.items[i].msg)
            route_drop(batch.items[i].route)
    elif mail.kind == MAIL_ADOPT:
        adopt_discard(<AdoptMail *> mail)
    elif mail.kind == MAIL_GROUP:
        group = <GroupMail *> mail
        if group.msg != NULL:
            msg_drop(&worker.msgs, group.msg)
    elif mail.kind == MAIL_ANSWER:
        answer = <AnswerMail *> mail
        mem_free(answer.auth_data)
        mem_free(answer.user)
        grant_drop(answer.grant)
    elif mail.kind == MAIL_ACL:
        acl_drop((<AclMail *> mail).acl)
    elif mail.kind == MAIL_HEAD:
        if (<HeadMail *> mail).fd >= 0:
            close((<HeadMail *> mail).fd)
    elif mail.kind == MAIL_LINK:
        link = <LinkMail *> mail
        link.transport.ops.close(&link.transport)
    elif mail.kind == MAIL_BODIES:
        bodies = <BodiesMail *> mail
        for i in range(bodies.count):
            if bodies.bodies[i].msg != NULL:
                msg_drop(&worker.msgs, bodies.bodies[i].msg)
        mem_free(bodies.bodies)
    elif mail.kind == MAIL_BLOCKS:
        msg = (<BlocksMail *> mail).chain
        while msg != NULL:
            next = msg.next
            mem_free(msg)               # dead, and counted as such where it died
            msg = next
    mem_free(mail)
