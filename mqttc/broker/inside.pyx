from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from mqttc.base.alloc cimport mem_alloc, mem_alloc_zeroed, mem_free
from mqttc.base.inbox cimport inbox_wake
from mqttc.base.msg cimport Msg, msg_drop, msg_expiry_left
from mqttc.base.ring cimport ring_at, ring_free, ring_init, ring_push
from mqttc.base.types cimport ST_OK, Span, span_make
from mqttc.base.vec cimport vec_at
from mqttc.broker.admin cimport on_admin
from mqttc.broker.conn cimport conn_release
from mqttc.broker.durable cimport note_done
from mqttc.broker.on_connect cimport ASSIGNED_BYTES, client_id_make
from mqttc.broker.on_publish cimport on_publish, publish_answered
from mqttc.broker.on_subscribe cimport subscribe_one, unsubscribe_one
from mqttc.broker.parked cimport unpark
from mqttc.broker.port cimport inside_due, is_inside, port_put, request_answer, request_free
from mqttc.broker.presence cimport session_offline, session_online
from mqttc.broker.reply cimport acknowledge, acks_held
from mqttc.broker.retain cimport retain_done, retain_step
from mqttc.broker.routes cimport route_drop, subscription_ids_drop, subscription_ids_share
from mqttc.broker.send cimport session_drop
from mqttc.broker.session cimport (
    client_hash, handout_end, inbound_remove, membership_release, queue_pop, session_build, session_handle, session_of,
)
from mqttc.broker.state cimport (
    CONN_INSIDE, DELIVERY_ITEMS, HOOK_REFUSE, INSIDE_WINDOW, INSIDE_WINDOW_BYTES, MAIL_DELIVERY, REQUEST_CLOSE, REQUEST_OPEN, REQUEST_PUBLISH, REQUEST_SUBSCRIBE,
    QE_RETAIN, REQUEST_TAKEN, REQUEST_UNSUBSCRIBE, SESSION_CREDIT_DIRTY, SESSION_HANDOUT_TURN, Conn, DeliveryItem, DeliveryMail, Handout, HookMail, Inside, Parked, QueueEntry, RequestMail, Session, Worker,
)
from mqttc.broker.stats cimport C_DROPPED_EXPIRED, C_RETAINED_HANDED_OUT, stat
from mqttc.proto.decode cimport frame_next
from mqttc.proto.dialect cimport dialect_for
from mqttc.proto.packet cimport (
    PUBACK, PUBLISH, RC_NO_MATCHING_SUBSCRIBERS, RC_NO_SUBSCRIPTION_EXISTED, RC_PACKET_TOO_LARGE, RC_PROTOCOL_ERROR, RC_QUOTA_EXCEEDED, RC_SERVER_SHUTTING_DOWN, RC_SUCCESS, Filter, Frame,
)

cdef enum:
    HANDOUT_BUDGET = 4096              # retained topics looked at in one turn
    DELIVERY_BYTES = 1 << 20           # of a batch, from which the next one begins


# ---- requests

cdef Session *session_asked(Worker *worker, const RequestMail *request) noexcept nogil:
    """The in-process client that the request names; NULL: it is closed."""
    cdef Session *session = session_of(worker, request.session)
    return session if session != NULL and is_inside(session) else NULL


cdef void on_request(Worker *worker, RequestMail *request) noexcept nogil:
    cdef Session *session
    if request.verb == REQUEST_OPEN:
        request_answer(worker, request, inside_open(worker, request))
        return
    if request.verb > REQUEST_TAKEN:
        request_answer(worker, request, on_admin(worker, request))
        return
    session = session_asked(worker, request)
    if session == NULL:
        request_answer(worker, request, RC_NO_SUBSCRIPTION_EXISTED)
    elif session.conn.parked != NULL and (request.verb == REQUEST_PUBLISH or request.verb == REQUEST_CLOSE):
        inside_later(<Inside *> session.conn, request)
    elif request.verb == REQUEST_PUBLISH:
        inside_publish(worker, <Inside *> session.conn, request)
    elif request.verb == REQUEST_SUBSCRIBE:
        request_answer(worker, request, inside_subscribe(worker, session, request))
    elif request.verb == REQUEST_UNSUBSCRIBE:
        request_answer(worker, request, unsubscribe_one(worker, session, span_make(request.data, request.data_bytes)))
    elif request.verb == REQUEST_TAKEN:
        inside_taken(worker, session, request)
    elif request.verb == REQUEST_CLOSE:
        inside_close(worker, <Inside *> session.conn)
        request_answer(worker, request, RC_SUCCESS)
    else:
        request_answer(worker, request, RC_PROTOCOL_ERROR)


cdef uint8_t inside_open(Worker *worker, RequestMail *request) noexcept nogil:
    cdef uint8_t name[ASSIGNED_BYTES]
    cdef Span client_id = span_make(name, ASSIGNED_BYTES)
    cdef Session *session
    cdef Inside *inside = <Inside *> mem_alloc_zeroed(1, sizeof(Inside))
    if inside == NULL:
        return RC_QUOTA_EXCEEDED
    session = session_build(worker, client_id, client_hash(client_id)) if client_id_make(worker, name) else NULL
    if session == NULL:
        mem_free(inside)
        return RC_QUOTA_EXCEEDED
    inside.conn.phase = CONN_INSIDE
    inside.conn.dialect = dialect_for(5)
    inside.conn.layout = inside.conn.dialect.layout
    inside.conn.maximum_qos = 2
    inside.conn.connected_wall_s = <uint32_t> (worker.reactor.wall_ms // 1000)
    ring_init(&inside.awaiting, sizeof(RequestMail *))
    session.receive_maximum = INSIDE_WINDOW         # what a shared group may lend it
    session_online(worker, session, &inside.conn)
    request.session = session_handle(worker, session)
    return RC_SUCCESS


cdef void due_forget(Inside **first, Inside *inside) noexcept nogil:
    while first[0] != NULL and first[0] != inside:
        first = &first[0].next
    if first[0] == inside:
        first[0] = inside.next


cdef void inside_end(Worker *worker, Inside *inside) noexcept nogil:
    """What it owns beside its session."""
    cdef uint32_t i
    for i in range(inside.awaiting.count):
        request_answer(worker, (<RequestMail **> ring_at(&inside.awaiting, i))[0], RC_SERVER_SHUTTING_DOWN)
    ring_free(&inside.awaiting)
    while inside.later_first != NULL:
        request_answer(worker, later_take(inside), RC_SERVER_SHUTTING_DOWN)
    due_forget(&worker.inside_due, inside)
    due_forget(&worker.inside_later, inside)
    conn_release(&inside.conn)
    mem_free(inside)


cdef void inside_close(Worker *worker, Inside *inside) noexcept nogil:
    session_offline(worker, &inside.conn, True, False)
    inside_end(worker, inside)


cdef void inside_free(Worker *worker, Session *session) noexcept nogil:
    cdef Inside *inside
    cdef uint32_t i
    if not is_inside(session):
        return
    inside = <Inside *> session.conn
    session.conn = NULL
    for i in range(inside.awaiting.count):
        request_free((<RequestMail **> ring_at(&inside.awaiting, i))[0])
    ring_free(&inside.awaiting)
    while inside.later_first != NULL:
        request_free(later_take(inside))
    conn_release(&inside.conn)
    mem_free(inside)


cdef void inside_later(Inside *inside, RequestMail *request) noexcept nogil:
    """It waits for what hooks say of a publication before it: bounded by what a publisher may have on its way."""
    request.mail.next = NULL
    if inside.later_first == NULL:
        inside.later_first = request
    else:
        inside.later_last.mail.next = &request.mail
    inside.later_last = request


cdef RequestMail *later_take(Inside *inside) noexcept nogil:
    cdef RequestMail *request = inside.later_first
    inside.later_first = <RequestMail *> request.mail.next
    return request


cdef uint8_t inside_subscribe(Worker *worker, Session *session, RequestMail *request) noexcept nogil:
    cdef Filter filter
    cdef uint8_t reason
    filter.text = span_make(request.data, request.data_bytes)
    filter.options = request.options
    reason = subscribe_one(worker, session.conn, &filter, request.number)
    if session.handouts != NULL:
        inside_due(worker, session)
    return reason


cdef void inside_taken(Worker *worker, Session *session, RequestMail *request) noexcept nogil:
    cdef Inside *inside = <Inside *> session.conn
    inside.taken -= request.number if request.number < inside.taken else inside.taken
    inside.taken_bytes -= request.cursor if request.cursor < inside.taken_bytes else inside.taken_bytes
    request_free(request)
    if session.queue.count or session.handouts != NULL:
        inside_due(worker, session)


# ---- publishing

cdef void inside_publish(Worker *worker, Inside *inside, RequestMail *request) noexcept nogil:
    """Through on_publish; the answer goes when the acknowledgement would, QoS 0 with those before it. The request has a ticket."""
    cdef Conn *conn = &inside.conn
    cdef RequestMail **place
    cdef Frame frame
    cdef uint32_t held, awaiting
    cdef uint8_t qos
    if frame_next(request.data, request.data + request.data_bytes, worker.engine.settings.max_packet_size, &frame) != ST_OK or frame.type != PUBLISH:
        request_answer(worker, request, RC_PACKET_TOO_LARGE)
        return
    place = <RequestMail **> ring_push(&inside.awaiting)
    if place == NULL:
        request_answer(worker, request, RC_QUOTA_EXCEEDED)
        return
    place[0] = request
    qos = frame.flags >> 1 & 3
    held = acks_held(conn)
    awaiting = inside.awaiting.count
    inside.refused = RC_SUCCESS
    on_publish(worker, conn, &frame)
    if conn.parked != NULL:             # goes on in inside_answered
        inside.asked = request
        return
    published(worker, inside, request, &frame, qos, held, awaiting)


cdef void inside_answered(Worker *worker, const HookMail *mail) noexcept nogil:
    cdef Session *session = session_of(worker, mail.session)
    cdef Inside *inside
    cdef RequestMail *request
    cdef Parked *parked
    cdef Frame frame
    cdef uint32_t held, awaiting
    if session == NULL or not is_inside(session):
        return
    inside = <Inside *> session.conn
    parked = unpark(worker, &inside.conn, mail, &frame)
    if parked == NULL:
        return
    request = inside.asked
    inside.asked = NULL
    held = acks_held(&inside.conn)
    awaiting = inside.awaiting.count
    inside.refused = RC_SUCCESS
    publish_answered(worker, &inside.conn, &frame, mail)
    if mail.verdict == HOOK_REFUSE and inside.conn.last_route != NULL:         # it has gone to nobody, whatever was at hand for its topic
        route_drop(inside.conn.last_route)
        inside.conn.last_route = NULL
    published(worker, inside, request, &frame, frame.flags >> 1 & 3, held, awaiting)
    mem_free(parked)
    while session_of(worker, mail.session) == session and is_inside(session) and inside.conn.parked == NULL and inside.later_first != NULL:
        request = later_take(inside)
        if request.verb == REQUEST_PUBLISH:
            inside_publish(worker, inside, request)
        else:
            inside_close(worker, inside)
            request_answer(worker, request, RC_SUCCESS)
            return


cdef void published(Worker *worker, Inside *inside, RequestMail *request, const Frame *frame, uint8_t qos, uint32_t held, uint32_t awaiting) noexcept nogil:
    """held, awaiting: how many there were before it."""
    cdef Conn *conn = &inside.conn
    if qos == 2:                        # the program does not repeat: what it sent is released at once
        inbound_remove(conn.session, inside_packet_id(frame))
    if inside.refused == RC_SUCCESS and conn.last_route != NULL:               # an answer leaves with the turn's end
        request.count = conn.last_route.entry_count + conn.last_route.group_count
    if acks_held(conn) > held or inside.awaiting.count < awaiting:
        return                          # acknowledged, or that is held back
    if qos == 0 and inside.refused == RC_SUCCESS:
        acknowledge(worker, conn, PUBACK, 0, RC_SUCCESS if request.count else RC_NO_MATCHING_SUBSCRIBERS, 0)
        return
    acknowledge(worker, conn, PUBACK, 0, inside.refused if inside.refused else RC_QUOTA_EXCEEDED, 0)    # without one: there was no memory


cdef uint16_t inside_packet_id(const Frame *frame) noexcept nogil:
    """Behind the topic."""
    cdef uint32_t topic_bytes
    if frame.body_bytes < 4:
        return 0
    topic_bytes = <uint32_t> frame.body[0] << 8 | frame.body[1]
    if frame.body_bytes - 4 < topic_bytes:
        return 0
    return <uint16_t> (frame.body[2 + topic_bytes] << 8 | frame.body[3 + topic_bytes])


# ---- messages for it

cdef DeliveryMail *delivery_build(Worker *worker, Session *session) noexcept nogil:
    cdef DeliveryMail *delivery = <DeliveryMail *> mem_alloc(sizeof(DeliveryMail))
    if delivery == NULL:
        return NULL
    delivery.mail.kind = MAIL_DELIVERY
    delivery.session = session_handle(worker, session)
    delivery.worker = worker.index
    delivery.bytes = 0
    delivery.count = 0
    return delivery


cdef DeliveryItem *delivery_add(Worker *worker, DeliveryMail *delivery, Msg *msg) noexcept nogil:
    """Takes the reference over."""
    cdef DeliveryItem *item = &delivery.items[delivery.count]
    memset(item, 0, sizeof(DeliveryItem))
    item.msg = msg
    if msg.expires_at_ms:
        item.has_expiry = True
        item.message_expiry = msg_expiry_left(msg, worker.reactor.now_ms)
    delivery.count += 1
    delivery.bytes += <uint64_t> msg.topic_bytes + msg.properties_bytes + msg.payload_bytes
    return item


cdef bint take_handout(Worker *worker, Session *session, DeliveryMail *delivery, uint32_t most) noexcept nogil:
    """Some retained messages of the first hand-out. False: none was near, it goes on in the next turn."""
    cdef Handout *handout = <Handout *> vec_at(session.handouts, 0)
    cdef Msg *batch[DELIVERY_ITEMS]
    cdef DeliveryItem *item
    cdef int room = <int> (most - delivery.count)
    cdef int count, i
    count = retain_step(worker.engine.retain, &handout.cursor, &worker.msgs, worker.reactor.now_ms, batch, room, HANDOUT_BUDGET)
    for i in range(count):
        item = delivery_add(worker, delivery, batch[i])
        item.qos = handout.qos if handout.qos < batch[i].qos else batch[i].qos
        item.retain = 1
        item.subscription_ids = handout.subscription_ids
        subscription_ids_share(item.subscription_ids)
        stat(&worker.stats, C_RETAINED_HANDED_OUT)
    if count == 0 and retain_done(&handout.cursor):
        handout_end(session, 0)
        return True
    return count > 0


cdef void take_queued(Worker *worker, Session *session, DeliveryMail *delivery) noexcept nogil:
    cdef QueueEntry entry
    cdef DeliveryItem *item
    queue_pop(worker, session, &entry)
    note_done(worker, session, &entry)
    if entry.member:
        membership_release(worker, session, entry.member)
    session.next_packet_id += 1         # see under_pressure: it goes on taking
    if entry.msg.expires_at_ms and entry.msg.expires_at_ms <= worker.reactor.now_ms:    # [MQTT-3.3.2-5]
        session_drop(worker, session, C_DROPPED_EXPIRED)
        msg_drop(&worker.msgs, entry.msg)
        subscription_ids_drop(entry.subscription_ids)
        return
    item = delivery_add(worker, delivery, entry.msg)
    item.subscription_ids = entry.subscription_ids
    item.qos = entry.qos
    item.retain = 1 if entry.state & (QE_RETAIN << 4) else 0


cdef void inside_pump(Worker *worker, Inside *inside) noexcept nogil:
    cdef Session *session = inside.conn.session
    cdef DeliveryMail *delivery
    cdef uint32_t most
    cdef bint later = False
    while not later and (session.queue.count or session.handouts != NULL) and inside.taken < INSIDE_WINDOW and inside.taken_bytes < INSIDE_WINDOW_BYTES:
        delivery = delivery_build(worker, session)
        if delivery == NULL:
            later = True
            break
        most = <uint32_t> INSIDE_WINDOW - inside.taken
        if most > <uint32_t> DELIVERY_ITEMS:
            most = DELIVERY_ITEMS
        while not later and delivery.count < most and delivery.bytes < DELIVERY_BYTES and (session.queue.count or session.handouts != NULL):
            if session.handouts != NULL and (session.queue.count == 0 or session.flags & SESSION_HANDOUT_TURN):
                session.flags &= ~SESSION_HANDOUT_TURN
                later = not take_handout(worker, session, delivery, most)
            else:
                session.flags |= SESSION_HANDOUT_TURN
                take_queued(worker, session, delivery)
        delivery.dropped = session.dropped
        inside.taken += delivery.count
        inside.taken_bytes += delivery.bytes
        if delivery.count:
            port_put(worker, &delivery.mail)
        else:
            mem_free(delivery)
    if later:
        inside.due = True
        inside.next = worker.inside_later
        worker.inside_later = inside


cdef bint pump_list(Worker *worker, Inside *inside) noexcept nogil:
    """True: shared groups are owed credit for what was taken."""
    cdef Inside *next
    cdef bint owed = False
    while inside != NULL:
        next = inside.next
        inside.due = False
        inside_pump(worker, inside)
        owed |= inside.conn.session.flags & SESSION_CREDIT_DIRTY != 0
        inside = next
    return owed


cdef void inside_pump_all(Worker *worker) noexcept nogil:
    cdef Inside *due = worker.inside_due
    cdef Inside *later = worker.inside_later
    cdef bint owed
    worker.inside_due = NULL
    worker.inside_later = NULL
    owed = pump_list(worker, due)
    owed |= pump_list(worker, later)
    if owed or worker.inside_later != NULL:
        inbox_wake(&worker.reactor.inbox)           # another turn
