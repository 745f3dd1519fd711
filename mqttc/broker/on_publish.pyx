from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from mqttc.base.alloc cimport mem_alloc, mem_alloc_zeroed, mem_free
from mqttc.base.msg cimport Msg, msg_alloc, msg_data, msg_journal, msg_payload, msg_properties, msg_share, msg_topic
from mqttc.base.ring cimport ring_at
from mqttc.base.timer cimport wheel_add
from mqttc.base.types cimport ST_OK, Span, atomic_load_u32_relaxed, likely, span_equal, span_make, unlikely
from mqttc.base.vec cimport vec_at, vec_push, vec_swap_remove
from mqttc.broker.acl cimport ACL_PUBLISH, ACL_RETAIN
from mqttc.broker.deliver cimport fan_out
from mqttc.broker.durable cimport journal_crowded, journal_fails, journaled, note_inbound_done, note_message, note_released, until_now, wait_add
from mqttc.broker.overload cimport overload_sheds
from mqttc.broker.parked cimport park
from mqttc.broker.permit cimport session_denied, session_may
from mqttc.broker.port cimport inside_refused
from mqttc.broker.publication cimport Publication, publication_clear, publication_init, publication_msg
from mqttc.broker.pump cimport session_pump
from mqttc.broker.record cimport DURABILITY_OFF
from mqttc.broker.reply cimport acknowledge, acks_held, acks_release, answer, conn_disconnect, conn_fail
from mqttc.broker.report cimport EV_RETAINED_LIMIT, LOG_WARNING, report, text
from mqttc.broker.retain cimport retain_set
from mqttc.broker.routes cimport PERMIT_PUBLISH, PERMIT_RETAIN, PERMIT_RETAIN_KNOWN, Route, route_drop, route_fresh, route_lookup, route_share
from mqttc.broker.session cimport entry_release, inbound_add, inbound_count, inbound_has, inbound_remove, inflight_done, inflight_find, session_handle, session_of
from mqttc.broker.state cimport (
    CONN_BRAKE_JOURNAL, CONN_BRAKE_PAUSED, CONN_BRAKED, CONN_DONE, CONN_INSIDE, HOOK_PASS, HOOK_REFUSE, HOOKS_ALLOW, HOOKS_PUBLISH, OUT_RELEASED, OVERLOAD_SHED, QE_COUNTED, QE_JOURNALED,
    QE_STORED, QUESTION_INSIDE, QUESTION_PUBLISH, WAIT_OFFER, AliasesIn, AliasIn, Conn, HeldAck, HookMail, QueueEntry, Session, Settings, Wait, Worker,
)
from mqttc.broker.stats cimport (
    C_BRAKED, C_DENIED_PUBLISH, C_DENIED_RETAIN, C_DROPPED_NO_MEMORY, C_DROPPED_RETAINED_LIMIT, C_JOURNAL_REFUSED, C_MESSAGES_IN, C_REJECTED_BY_CLIENT, stat,
)
from mqttc.net.reactor cimport END_NO_MEMORY, link_close, link_pause, link_resume
from mqttc.proto.decode cimport decode_ack, decode_publish, frame_next, publish_forward
from mqttc.proto.dialect cimport dialect_for
from mqttc.proto.packet cimport (
    HAS_MESSAGE_EXPIRY, HAS_SUBSCRIPTION_ID, HAS_TOPIC_ALIAS, PUBACK, PUBCOMP, PUBLISH, PUBREC, PUBREL, RC_IMPLEMENTATION_SPECIFIC_ERROR, RC_NO_MATCHING_SUBSCRIBERS,
    RC_NOT_AUTHORIZED, RC_PACKET_IDENTIFIER_NOT_FOUND,
    RC_PROTOCOL_ERROR, RC_QOS_NOT_SUPPORTED, RC_QUOTA_EXCEEDED, RC_RECEIVE_MAXIMUM_EXCEEDED, RC_RETAIN_NOT_SUPPORTED, RC_SUCCESS, RC_TOPIC_ALIAS_INVALID,
    RC_TOPIC_NAME_INVALID, Frame, Packet,
)
from mqttc.proto.topic cimport level_count

cdef enum:
    BRAKE_MS = 100


# ---- topic aliases of the client

cdef void aliases_in_free(Conn *conn) noexcept nogil:
    cdef uint32_t i
    if conn.aliases_in == NULL:
        return
    for i in range(conn.aliases_in.count):
        mem_free(conn.aliases_in.items[i].topic)
        if conn.aliases_in.items[i].route != NULL:
            route_drop(conn.aliases_in.items[i].route)
    mem_free(conn.aliases_in)
    conn.aliases_in = NULL


cdef int alias_resolve(Worker *worker, Conn *conn, Packet *packet, AliasIn **found) noexcept nogil:
    """Sets packet.topic from the alias, or the alias from the topic. ST_OK or a negated reason code. [MQTT-3.3.2-8..12]"""
    cdef uint32_t maximum = worker.engine.settings.topic_alias_maximum
    cdef AliasIn *alias
    cdef uint8_t *copy
    if packet.props.topic_alias == 0 or packet.props.topic_alias > maximum:
        return -RC_TOPIC_ALIAS_INVALID
    if conn.aliases_in == NULL:
        conn.aliases_in = <AliasesIn *> mem_alloc_zeroed(1, sizeof(AliasesIn) + maximum * sizeof(AliasIn))
        if conn.aliases_in == NULL:
            return -RC_QUOTA_EXCEEDED
        conn.aliases_in.count = maximum
    alias = &conn.aliases_in.items[packet.props.topic_alias - 1]
    found[0] = alias
    if packet.topic.n == 0:
        if alias.topic == NULL:
            return -RC_PROTOCOL_ERROR
        packet.topic = span_make(alias.topic, alias.topic_bytes)
        return ST_OK
    if alias.topic != NULL and span_equal(span_make(alias.topic, alias.topic_bytes), packet.topic):
        return ST_OK
    copy = <uint8_t *> mem_alloc(packet.topic.n)
    if copy == NULL:
        return -RC_QUOTA_EXCEEDED
    memcpy(copy, packet.topic.p, packet.topic.n)
    mem_free(alias.topic)
    if alias.route != NULL:
        route_drop(alias.route)
        alias.route = NULL
    alias.topic = copy
    alias.topic_bytes = packet.topic.n
    return ST_OK


# ---- the route: at hand for the same topic as before, else from the cache, else from the tree

cdef Route *route_fetch(Worker *worker, Conn *conn, Span topic, AliasIn *alias, bint same) noexcept nogil:
    cdef Route **hand = &conn.last_route if alias == NULL else &alias.route
    cdef uint32_t *kept = &conn.permit_epoch if alias == NULL else &alias.permit_epoch
    cdef uint8_t *permit = &conn.permit if alias == NULL else &alias.permit
    cdef Route *route = route_lookup(&worker.routes, topic)
    if route == NULL:
        return NULL
    route_share(route, 1)
    if hand[0] != NULL:
        route_drop(hand[0])
    hand[0] = route
    if not same:                        # of another topic, whoever was asked about it last
        kept[0] = route.permit_epoch if route.permit_session == session_handle(worker, conn.session) else 0
        permit[0] = route.permit
    return route


cdef inline Route *route_for(Worker *worker, Conn *conn, Span topic, AliasIn *alias) noexcept nogil:
    cdef Route *route = conn.last_route if alias == NULL else alias.route
    cdef bint same = route != NULL and span_equal(span_make(route.topic, route.topic_bytes), topic)
    if likely(same and route_fresh(worker.engine.trie, route)):
        return route
    return route_fetch(worker, conn, topic, alias, same)


cdef uint8_t permit_for(Worker *worker, Conn *conn, const Packet *packet, AliasIn *alias, Route **found) noexcept nogil:
    """What this client may do on this topic (PublishPermit): what was found out before, unless its rights have changed, else by its rules."""
    cdef Session *session = conn.session
    cdef Route *route = route_for(worker, conn, packet.topic, alias)
    cdef uint32_t *kept = &conn.permit_epoch if alias == NULL else &alias.permit_epoch
    cdef uint8_t *permit = &conn.permit if alias == NULL else &alias.permit
    found[0] = route
    if likely(route != NULL and kept[0] == session.rights_epoch and (not packet.retain or permit[0] & PERMIT_RETAIN_KNOWN)):
        return permit[0]
    permit[0] = PERMIT_PUBLISH if session_may(worker, session, ACL_PUBLISH, packet.topic, False) else 0
    if packet.retain:
        permit[0] |= PERMIT_RETAIN_KNOWN
        if session_may(worker, session, ACL_RETAIN, packet.topic, False):
            permit[0] |= PERMIT_RETAIN
    kept[0] = session.rights_epoch if route != NULL else 0
    if route != NULL:
        route.permit = permit[0]
        route.permit_epoch = session.rights_epoch
        route.permit_session = session_handle(worker, session)
    return permit[0]


cdef bint message_build(Worker *worker, Conn *conn, Publication *pub, const Packet *packet) noexcept nogil:
    """The message at once, where it will be needed: a large packet stays in the block it was received into; one whose properties must lose an alias or an
    expiry is copied without them. False: no memory."""
    cdef Msg *block = conn.link.block
    cdef uint8_t *data
    cdef Msg *msg
    if block != NULL and packet.forward_bytes == packet.props.raw.n and (packet.topic.p >= msg_data(block) and packet.topic.p < msg_data(block) + block.capacity):
        conn.link.block = NULL
        data = msg_data(block)
        msg = block
        msg.topic_offset = <uint32_t> (packet.topic.p - data)
        msg.properties_offset = <uint32_t> (packet.props.raw.p - data) if packet.props.raw.n else 0
        msg.payload_offset = <uint32_t> (packet.payload.p - data) if packet.payload.n else 0
    else:
        msg = msg_alloc(&worker.msgs, packet.topic.n + packet.forward_bytes + packet.payload.n)
        if msg == NULL:
            return False
        data = msg_data(msg)
        memcpy(data, packet.topic.p, packet.topic.n)
        if packet.forward_bytes:
            publish_forward(packet.props.raw, data + packet.topic.n)
        if packet.payload.n:
            memcpy(data + packet.topic.n + packet.forward_bytes, packet.payload.p, packet.payload.n)
        msg.topic_offset = 0
        msg.properties_offset = packet.topic.n
        msg.payload_offset = packet.topic.n + packet.forward_bytes
    msg.topic_bytes = <uint16_t> packet.topic.n
    msg.properties_bytes = packet.forward_bytes
    msg.payload_bytes = packet.payload.n
    msg.publisher = pub.publisher
    msg.qos = pub.qos
    msg.retain = pub.retain
    msg.expires_at_ms = pub.expires_at_ms
    pub.msg = msg
    pub.topic = msg_topic(msg)
    pub.properties = msg_properties(msg)
    pub.payload = msg_payload(msg)
    return True


# ---- PUBLISH

cdef uint32_t receive_used(Conn *conn) noexcept nogil:
    """The client's PUBLISH that are not answered yet. A PUBREC that is held belongs to an id that stands in the session already."""
    cdef uint32_t used = inbound_count(conn.session)
    cdef uint32_t i
    cdef HeldAck *held
    for i in range(acks_held(conn)):
        held = <HeldAck *> ring_at(conn.held_acks, i)
        if held.packet_type == PUBACK or held.reason >= 0x80:
            used += 1
    return used


cdef inline int publish_check(Worker *worker, Conn *conn, Packet *packet, AliasIn **alias) noexcept nogil:
    """ST_OK, or the negated reason for which the connection ends."""
    cdef Settings *settings = &worker.engine.settings
    cdef int status
    if unlikely(packet.qos > conn.maximum_qos):
        return -RC_QOS_NOT_SUPPORTED                            # [MQTT-3.2.2-11]
    if unlikely(packet.retain and not settings.retain_available):
        return -RC_RETAIN_NOT_SUPPORTED                         # [MQTT-3.2.2-14]
    if unlikely(packet.props.present & HAS_SUBSCRIPTION_ID):
        return -RC_PROTOCOL_ERROR                               # [MQTT-3.3.4-6]
    if packet.props.present & HAS_TOPIC_ALIAS:
        status = alias_resolve(worker, conn, packet, alias)
        if status != ST_OK:
            return status
    if unlikely(packet.topic.n == 0):
        return -RC_PROTOCOL_ERROR                               # [MQTT-4.7.3-1]
    if packet.qos and conn.dialect.properties:                  # [MQTT-3.3.4-7]: 3.x clients were told no receive maximum
        if unlikely(inbound_count(conn.session) + acks_held(conn) >= settings.receive_maximum and receive_used(conn) >= settings.receive_maximum):
            if packet.qos == 1 or not inbound_has(conn.session, packet.packet_id):
                return -RC_RECEIVE_MAXIMUM_EXCEEDED
    elif unlikely(packet.qos == 2 and inbound_count(conn.session) >= settings.max_unreleased) and not inbound_has(conn.session, packet.packet_id):
        return -RC_RECEIVE_MAXIMUM_EXCEEDED
    return ST_OK


cdef bint topic_in_limits(Worker *worker, Span topic) noexcept nogil:
    cdef Settings *settings = &worker.engine.settings
    return topic.n <= settings.max_topic_bytes and (topic.n <= settings.max_topic_levels or level_count(topic) <= settings.max_topic_levels)


cdef void publish_refuse(Worker *worker, Conn *conn, const Packet *packet, uint8_t reason) noexcept nogil:
    """This message is not taken, the connection goes on where the version has a word for it."""
    if packet.qos == 0:
        if conn.phase == CONN_INSIDE:
            inside_refused(conn, reason)
        return
    if not conn.dialect.ack_reasons:                            # 3.x: acknowledged or cut off [MQTT-3.3.5-2]
        conn_fail(worker, conn, reason, text("message refused"))
        return
    acknowledge(worker, conn, PUBACK if packet.qos == 1 else PUBREC, packet.packet_id, reason, 0)


cdef bint publish_denied(Worker *worker, Conn *conn, const Packet *packet, uint8_t permit) noexcept nogil:
    """True: it was not allowed, and is answered: 5.0 is told, 3.x as the ACL says acknowledged or cut off [MQTT-3.3.5-2], QoS 0 dropped."""
    if likely(permit & PERMIT_PUBLISH and (not packet.retain or permit & PERMIT_RETAIN)):
        return False
    session_denied(worker, conn.session, C_DENIED_RETAIN if permit & PERMIT_PUBLISH else C_DENIED_PUBLISH, packet.topic)
    if packet.qos == 0:
        return True
    if conn.dialect.ack_reasons:
        acknowledge(worker, conn, PUBACK if packet.qos == 1 else PUBREC, packet.packet_id, RC_NOT_AUTHORIZED, 0)
    elif worker.acl != NULL and worker.acl.disconnect:
        conn_disconnect(worker, conn, RC_NOT_AUTHORIZED)
    else:
        acknowledge(worker, conn, PUBACK if packet.qos == 1 else PUBREC, packet.packet_id, RC_SUCCESS, 0)
    return True


cdef void publisher_lost(Worker *worker, Conn *conn) noexcept nogil:
    """There is no memory for what it publishes."""
    if conn.phase == CONN_INSIDE:
        inside_refused(conn, RC_QUOTA_EXCEEDED)
    else:
        link_close(worker.reactor, &conn.link, END_NO_MEMORY)


cdef bint must_last(Worker *worker, Conn *conn, const Packet *packet, const Packet *content, const Route *route, uint8_t *durability) noexcept nogil:
    """Whether something of this message must outlive the process, and how."""
    cdef uint8_t least = DURABILITY_OFF if conn.phase == CONN_INSIDE else worker.engine.listeners[conn.link.listener].durability
    durability[0] = route.durability if route.durability > least else least
    if content.retain:                  # what is retained is always written: another message of the topic may have been
        return True
    if durability[0] == DURABILITY_OFF:
        return False
    return (content.qos and (route.durable_count != 0 or route.group_count != 0)) or (packet.qos == 2 and conn.session.durable)


cdef bint offer_later(Worker *worker, Publication *pub, Route *route) noexcept nogil:
    """A QoS 2 message of a durable publisher reaches nobody before a crash can no longer make it a new one. False: no memory."""
    cdef Wait *wait = wait_add(worker, WAIT_OFFER)
    if wait == NULL:
        return False
    msg_share(pub.msg, 1)
    route_share(route, 1)
    wait.msg = pub.msg
    wait.route = route
    return True


cdef void on_publish(Worker *worker, Conn *conn, const Frame *frame) noexcept nogil:
    cdef Packet packet
    cdef Route *route = NULL
    cdef AliasIn *alias = NULL
    cdef uint8_t durability = DURABILITY_OFF
    cdef int status = decode_publish(conn.dialect, frame, &packet)
    if unlikely(status != ST_OK):
        conn_fail(worker, conn, <uint8_t> -status, text("PUBLISH cannot be read"))
        return
    if unlikely(not conn.dialect.properties):
        packet.props.present = 0
    status = publish_check(worker, conn, &packet, &alias)
    if unlikely(status != ST_OK):
        conn_fail(worker, conn, <uint8_t> -status, text("PUBLISH not allowed"))
        return
    if unlikely(not topic_in_limits(worker, packet.topic)):
        publish_refuse(worker, conn, &packet, RC_TOPIC_NAME_INVALID)
        return
    if unlikely(worker.overload >= OVERLOAD_SHED) and (packet.qos == 0 or conn.dialect.ack_reasons) and overload_sheds(worker, &packet):
        publish_refuse(worker, conn, &packet, RC_QUOTA_EXCEEDED)
        return
    if conn.session.rights != NULL and not (packet.qos == 2 and inbound_has(conn.session, packet.packet_id)):
        if publish_denied(worker, conn, &packet, permit_for(worker, conn, &packet, alias, &route)):
            return
    if unlikely(journal_fails(worker)) and conn.dialect.ack_reasons and (packet.qos or packet.retain):
        route = route_for(worker, conn, packet.topic, alias)    # 3.x has no word for it: its acknowledgement waits until the disk takes it
        if route == NULL or must_last(worker, conn, &packet, &packet, route, &durability):
            stat(&worker.stats, C_JOURNAL_REFUSED)
            publish_refuse(worker, conn, &packet, RC_QUOTA_EXCEEDED)
            return
    if packet.qos == 2 and inbound_has(conn.session, packet.packet_id):         # repeated: acknowledged again, not published again [MQTT-4.3.3-10]
        acknowledge(worker, conn, PUBREC, packet.packet_id, RC_SUCCESS, until_now(worker) if conn.session.durable else 0)
        return
    if unlikely(atomic_load_u32_relaxed(&worker.engine.hooks) & HOOKS_PUBLISH):
        route = route_for(worker, conn, packet.topic, alias)
        if route != NULL and route.hooked:
            if park(worker, conn, QUESTION_INSIDE if conn.phase == CONN_INSIDE else QUESTION_PUBLISH, frame, &packet):
                return
            if not atomic_load_u32_relaxed(&worker.engine.hooks) & HOOKS_ALLOW:
                publish_vetoed(worker, conn, &packet, RC_QUOTA_EXCEEDED)
                return
    publish_take(worker, conn, &packet, &packet, conn.dialect.properties, alias, route)


cdef void publish_take(Worker *worker, Conn *conn, const Packet *packet, Packet *content, bint properties, AliasIn *alias, Route *route) noexcept nogil:
    """What was published is `content`, written with properties or without; `packet` is what came, and is answered. route: NULL: to be looked up."""
    cdef Publication pub
    cdef uint8_t reason = RC_SUCCESS
    cdef uint8_t durability = DURABILITY_OFF
    cdef uint64_t until = 0
    cdef uint64_t version = 0
    cdef bint lasting = False
    cdef int status
    if packet.qos == 2 and inbound_add(conn.session, packet.packet_id) != ST_OK:
        publisher_lost(worker, conn)
        return
    stat(&worker.stats, C_MESSAGES_IN)
    publication_init(&pub)
    pub.topic = content.topic
    pub.payload = content.payload
    pub.properties = content.props.raw if properties else span_make(NULL, 0)
    pub.publisher = session_handle(worker, conn.session)
    pub.qos = content.qos
    pub.retain = content.retain
    pub.pressure = worker.overload != 0
    if content.props.present & HAS_MESSAGE_EXPIRY:
        pub.has_expiry = True
        pub.message_expiry = content.props.message_expiry
        pub.expires_at_ms = worker.reactor.now_ms + <int64_t> content.props.message_expiry * 1000
    if not properties:
        content.props.raw = pub.properties
        content.forward_bytes = 0
    if content.retain or conn.link.block != NULL or content.forward_bytes != content.props.raw.n:
        if not message_build(worker, conn, &pub, content):
            if packet.qos == 2:
                inbound_remove(conn.session, packet.packet_id)  # it comes again, and then it is not a duplicate
            publisher_lost(worker, conn)
            return
    if content.retain:                  # before the route is looked up: see retain.pxd
        status = retain_set(worker.engine.retain, &worker.msgs, pub.msg, &version)
        if status != ST_OK:
            stat(&worker.stats, C_DROPPED_RETAINED_LIMIT)
            report(worker, LOG_WARNING, EV_RETAINED_LIMIT, RC_QUOTA_EXCEEDED, conn, conn.session, pub.topic)
            # It still reaches its subscribers, so it is acknowledged: that it is not retained is in the log and the counters.
    if route == NULL or content.retain: # not the one from before the retained message stood there
        route = route_for(worker, conn, pub.topic, alias)
    if unlikely(route == NULL):
        stat(&worker.stats, C_DROPPED_NO_MEMORY)
        publication_clear(worker, &pub)
        if packet.qos == 2:
            inbound_remove(conn.session, packet.packet_id)      # [MQTT-4.3.3-9]
        publish_refuse(worker, conn, packet, RC_QUOTA_EXCEEDED)
        return
    if journaled(worker):
        lasting = must_last(worker, conn, packet, content, route, &durability)
        if lasting:
            if publication_msg(worker, &pub) == NULL or not note_message(
                worker, pub.msg, route, durability, pub.publisher, packet.packet_id if packet.qos == 2 and conn.session.durable else 0, version,
            ):
                publication_clear(worker, &pub)
                if packet.qos == 2:
                    inbound_remove(conn.session, packet.packet_id)
                publish_refuse(worker, conn, packet, RC_QUOTA_EXCEEDED)
                return
            until = until_now(worker)
            pub.pressure |= journal_crowded(worker)
    if not route.entry_count and not route.group_count:
        reason = RC_NO_MATCHING_SUBSCRIBERS
    elif not (lasting and packet.qos == 2 and conn.session.durable and offer_later(worker, &pub, route)):
        fan_out(worker, &pub, route)
    if unlikely(pub.pressure or conn.flags & CONN_BRAKED):      # braked already: so that held acknowledgements stay bounded for 3.x clients too
        conn_brake(worker, conn, pub.pressure and (packet.qos == 0 or journal_crowded(worker)))
        if lasting and journal_crowded(worker) and conn.flags & CONN_BRAKE_PAUSED:
            conn.flags |= CONN_BRAKE_JOURNAL
    if packet.qos:
        acknowledge(worker, conn, PUBACK if packet.qos == 1 else PUBREC, packet.packet_id, reason, until)
    publication_clear(worker, &pub)


# ---- hooks

cdef void publish_vetoed(Worker *worker, Conn *conn, const Packet *packet, uint8_t reason) noexcept nogil:
    """It goes nowhere. 3.x has no word for that and would send it again and again if it were cut off, so it is acknowledged [MQTT-3.3.5-2]."""
    if packet.qos and (reason < 0x80 or not conn.dialect.ack_reasons):
        if packet.qos == 2 and inbound_add(conn.session, packet.packet_id) != ST_OK:
            publisher_lost(worker, conn)
            return
        acknowledge(worker, conn, PUBACK if packet.qos == 1 else PUBREC, packet.packet_id, reason if conn.dialect.ack_reasons else RC_SUCCESS, 0)
    elif reason >= 0x80:
        publish_refuse(worker, conn, packet, reason)


cdef void publish_answered(Worker *worker, Conn *conn, const Frame *frame, const HookMail *mail) noexcept nogil:
    cdef Packet packet, changed
    cdef AliasIn *alias = NULL
    cdef Frame other
    # It was checked before it was set aside, and its connection has not been read since: the alias means what it meant.
    if decode_publish(conn.dialect, frame, &packet) != ST_OK:
        return
    if not conn.dialect.properties:
        packet.props.present = 0
    if publish_check(worker, conn, &packet, &alias) != ST_OK:
        return
    if mail.verdict == HOOK_REFUSE:
        publish_vetoed(worker, conn, &packet, mail.reason)
    elif mail.verdict == HOOK_PASS:
        publish_take(worker, conn, &packet, &packet, conn.dialect.properties, alias, NULL)
    elif frame_next(mail.data, mail.data + mail.data_bytes, worker.engine.settings.max_packet_size, &other) != ST_OK or other.type != PUBLISH or (
        decode_publish(dialect_for(5), &other, &changed) != ST_OK or changed.topic.n == 0 or not topic_in_limits(worker, changed.topic)
        or (changed.retain and not worker.engine.settings.retain_available)
    ):
        publish_vetoed(worker, conn, &packet, RC_IMPLEMENTATION_SPECIFIC_ERROR)
    else:
        publish_take(worker, conn, &packet, &changed, True, NULL, NULL)


# ---- acknowledgements

cdef void on_ack(Worker *worker, Conn *conn, const Frame *frame) noexcept nogil:
    cdef Packet packet
    cdef Session *session = conn.session
    cdef QueueEntry *entry
    cdef int status = decode_ack(conn.dialect, frame, &packet)
    if unlikely(status != ST_OK):
        conn_fail(worker, conn, <uint8_t> -status, text("acknowledgement cannot be read"))
        return
    if frame.type == PUBREL:                                    # [MQTT-4.3.3-11]
        if inbound_remove(session, packet.packet_id):
            note_inbound_done(worker, session, packet.packet_id)
            answer(worker, conn, PUBCOMP, packet.packet_id, RC_SUCCESS, until_now(worker) if session.durable else 0)
        else:
            # Perhaps since its last PUBREL, whose end is not committed: until then the id is not free.
            answer(worker, conn, PUBCOMP, packet.packet_id, RC_PACKET_IDENTIFIER_NOT_FOUND, until_now(worker) if session.durable else 0)
        return
    entry = inflight_find(session, packet.packet_id)
    if entry == NULL:
        if frame.type == PUBREC:                                # [MQTT-4.3.3-4] state is gone: 5.0 says so, 3.x is let go on
            answer(worker, conn, PUBREL, packet.packet_id, RC_PACKET_IDENTIFIER_NOT_FOUND, 0)
        return
    if frame.type == PUBACK and entry.qos == 1:
        if unlikely(packet.reason >= 0x80):
            stat(&worker.stats, C_REJECTED_BY_CLIENT)
        inflight_done(worker, session, entry)
    elif frame.type == PUBREC and entry.qos == 2:
        if unlikely(packet.reason >= 0x80):
            stat(&worker.stats, C_REJECTED_BY_CLIENT)
            inflight_done(worker, session, entry)
        else:
            pubrec_done(worker, session, entry)
            answer(worker, conn, PUBREL, packet.packet_id, RC_SUCCESS, until_now(worker) if entry.state & (QE_JOURNALED << 4) else 0)
            return
    elif frame.type == PUBCOMP and entry.qos == 2 and entry.state & 15 == OUT_RELEASED:
        inflight_done(worker, session, entry)
    else:
        conn_fail(worker, conn, RC_PROTOCOL_ERROR, text("acknowledgement of the wrong kind"))
        return
    if session.queue.count or session.handouts != NULL or session.resend < session.inflight.count:
        session_pump(worker, session)


cdef void pubrec_done(Worker *worker, Session *session, QueueEntry *entry) noexcept nogil:
    """The client has it: the message goes, the packet id stays until PUBCOMP. [MQTT-4.3.3-5]"""
    cdef uint64_t id = 0
    if entry.state & (QE_JOURNALED << 4) and entry.state & 15 != OUT_RELEASED:
        id = msg_journal(entry.msg)
        note_released(worker, session, entry)
    elif entry.state & 15 == OUT_RELEASED:
        return                          # PUBREC once more
    entry_release(worker, session, entry)
    entry.state = (entry.state & (QE_COUNTED << 4)) | OUT_RELEASED
    if id:                              # until PUBCOMP the journal knows it by this
        entry.msg = <Msg *> id
        entry.state |= (QE_JOURNALED | QE_STORED) << 4


# ---- brakes

cdef void conn_brake(Worker *worker, Conn *conn, bint pause) noexcept nogil:
    cdef uint64_t *place
    if conn.phase == CONN_DONE or conn.session == NULL:
        return
    if not conn.flags & CONN_BRAKED:
        place = <uint64_t *> vec_push(&worker.braked)
        if place == NULL:
            return                      # unbraked, the queue's policy acts
        place[0] = session_handle(worker, conn.session)
        conn.flags |= CONN_BRAKED
        conn.brake_until_ms = worker.reactor.now_ms + BRAKE_MS
        stat(&worker.stats, C_BRAKED)
        if worker.brake_timer.next == NULL:
            wheel_add(worker.reactor.wheel, &worker.brake_timer, conn.brake_until_ms)
    if not conn.flags & CONN_BRAKE_PAUSED and (pause or acks_held(conn) >= worker.engine.settings.receive_maximum):
        conn.flags |= CONN_BRAKE_PAUSED
        link_pause(worker.reactor, &conn.link)


cdef void conn_slow(Worker *worker, Conn *conn, uint32_t wait_ms) noexcept nogil:
    cdef uint64_t *place
    cdef int64_t until_ms = worker.reactor.now_ms + wait_ms
    if not conn.flags & CONN_BRAKED:
        place = <uint64_t *> vec_push(&worker.braked)
        if place == NULL:
            return
        place[0] = session_handle(worker, conn.session)
        conn.flags |= CONN_BRAKED
        conn.brake_until_ms = until_ms
        if worker.brake_timer.next == NULL:         # never later than for others, who are braked for less
            wheel_add(worker.reactor.wheel, &worker.brake_timer, worker.reactor.now_ms + (wait_ms if wait_ms < BRAKE_MS else BRAKE_MS))
    elif until_ms > conn.brake_until_ms:
        conn.brake_until_ms = until_ms
    if not conn.flags & CONN_BRAKE_PAUSED:
        conn.flags |= CONN_BRAKE_PAUSED
        link_pause(worker.reactor, &conn.link)


cdef void brakes_release(Worker *worker) noexcept nogil:
    cdef uint32_t i = 0
    cdef Session *session
    cdef Conn *conn
    while i < worker.braked.count:
        session = session_of(worker, (<uint64_t *> vec_at(&worker.braked, i))[0])
        conn = session.conn if session != NULL else NULL
        if conn != NULL and conn.flags & CONN_BRAKED and (
            conn.brake_until_ms > worker.reactor.now_ms or (conn.flags & CONN_BRAKE_JOURNAL and journal_crowded(worker))
        ):
            i += 1
            continue
        vec_swap_remove(&worker.braked, i)
        if conn == NULL or not conn.flags & CONN_BRAKED:
            continue
        conn.flags &= ~<uint8_t> CONN_BRAKE_JOURNAL
        conn.last_packet_ms = worker.reactor.now_ms             # keep alive stood still meanwhile
        acks_release(worker, conn)
        if conn.flags & CONN_BRAKE_PAUSED:
            conn.flags &= ~CONN_BRAKE_PAUSED
            if conn.parked == NULL:
                link_resume(worker.reactor, &conn.link)
    if worker.braked.count:
        wheel_add(worker.reactor.wheel, &worker.brake_timer, worker.reactor.now_ms + BRAKE_MS // 2)
