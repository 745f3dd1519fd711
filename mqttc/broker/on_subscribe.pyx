from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from mqttc.base.alloc cimport mem_alloc, mem_free
from mqttc.base.map cimport hash_bytes
from mqttc.base.types cimport ST_LIMIT, ST_OK, Span, atomic_load_u32_relaxed, span_equal, span_make
from mqttc.base.vec cimport Vec, vec_at, vec_free, vec_init, vec_push
from mqttc.broker.acl cimport ACL_RECEIVE, ACL_SUBSCRIBE
from mqttc.broker.durable cimport note_filter, note_group, note_subscribe, until_now
from mqttc.broker.parked cimport park
from mqttc.broker.permit cimport session_denied, session_may
from mqttc.broker.pump cimport session_pump
from mqttc.broker.record cimport HANDOUT_PENDING, RECORD_UNSUBSCRIBE
from mqttc.broker.reply cimport conn_fail, packet_clear, send_packet_after
from mqttc.broker.report cimport EV_SUBSCRIBED, EV_UNSUBSCRIBED, LOG_DEBUG, report, text
from mqttc.broker.retain cimport retain_cursor_init
from mqttc.broker.routes cimport OPTION_DURABLE, subscription_ids_build
from mqttc.broker.session cimport (
    TAKE_UNSENT, group_credit_of, groups_keep, groups_take_back, handout_end, membership_add, session_handle, subscription_add, subscription_find, subscription_remove,
)
from mqttc.broker.shared cimport tell_group
from mqttc.broker.state cimport (
    GROUP_JOIN, GROUP_LEAVE, HOOK_CHANGE, HOOKS_ALLOW, HOOKS_SUBSCRIBE, QUESTION_SUBSCRIBE, Conn, GroupMail, Handout, HookMail, Membership, Session, Settings, Subscription,
    Worker,
)
from mqttc.broker.stats cimport C_DENIED_SUBSCRIBE, C_SUBSCRIPTIONS_REFUSED, stat
from mqttc.broker.trie cimport trie_group_join, trie_group_leave, trie_subscribe, trie_unsubscribe
from mqttc.net.reactor cimport END_NO_MEMORY, link_close
from mqttc.proto.decode cimport decode_packet, filter_next
from mqttc.proto.packet cimport (
    HAS_SUBSCRIPTION_ID, OPT_NO_LOCAL, OPT_QOS_MASK, OPT_RETAIN_AS_PUBLISHED, OPT_RETAIN_HANDLING_MASK, RC_IMPLEMENTATION_SPECIFIC_ERROR, RC_NO_SUBSCRIPTION_EXISTED,
    RC_NOT_AUTHORIZED, RC_PROTOCOL_ERROR, RC_QUOTA_EXCEEDED,
    RC_SHARED_SUBSCRIPTIONS_NOT_SUPPORTED, RC_SUBSCRIPTION_IDENTIFIERS_NOT_SUPPORTED, RC_SUCCESS, RC_TOPIC_FILTER_INVALID,
    RC_WILDCARD_SUBSCRIPTIONS_NOT_SUPPORTED, SUBACK, SUBSCRIBE, UNSUBACK, UNSUBSCRIBE, Filter, Frame, Packet,
)
from mqttc.proto.topic cimport filter_check, filter_has_wildcard, level_count, share_split


cdef uint32_t wildcard_count(Span filter) noexcept nogil:
    cdef uint32_t i
    cdef uint32_t count = 0
    for i in range(filter.n):
        count += filter.p[i] == c'+' or filter.p[i] == c'#'
    return count


cdef bint filter_permitted(Worker *worker, Session *session, Span plain, bint shared) noexcept nogil:
    """The filter lies inside what may be subscribed to. What a group gets is not looked at message by message, for one that its member may not have
    would be lost to the others: so all of its filter must be allowed to be received."""
    return session_may(worker, session, ACL_SUBSCRIBE, plain, False) and (not shared or session_may(worker, session, ACL_RECEIVE, plain, True))


cdef void rights_recheck(Worker *worker, Session *session) noexcept nogil:
    cdef Subscription *subscription
    cdef Span filter, group, plain
    cdef uint32_t i = 0
    if session.rights == NULL or session.memberships == NULL:
        return
    while session.subscriptions != NULL and i < session.subscriptions.count:
        subscription = <Subscription *> vec_at(session.subscriptions, i)
        filter = span_make(subscription.filter, subscription.filter_bytes)
        if subscription.membership and share_split(filter, &group, &plain) == 1 and not filter_permitted(worker, session, plain, True):
            session_denied(worker, session, C_DENIED_SUBSCRIBE, filter)
            unsubscribe_one(worker, session, filter)    # the last one takes its place
        else:
            i += 1


cdef uint8_t filter_verdict(Worker *worker, Conn *conn, Span filter, Span *group, Span *plain, bint *shared) noexcept nogil:
    """Whether the filter may be subscribed to: RC_SUCCESS or the SUBACK's reason code."""
    cdef Settings *settings = &worker.engine.settings
    cdef int split = share_split(filter, group, plain)
    shared[0] = split == 1
    if split < 0:                                               # [MQTT-4.8.2-1, MQTT-4.8.2-2]
        return RC_TOPIC_FILTER_INVALID
    if split == 0:
        plain[0] = filter
    elif not settings.shared_available:
        return RC_SHARED_SUBSCRIPTIONS_NOT_SUPPORTED
    if not filter_check(plain[0]) or plain[0].n > settings.max_topic_bytes or level_count(plain[0]) > settings.max_topic_levels:
        return RC_TOPIC_FILTER_INVALID
    if filter_has_wildcard(plain[0]):
        if not settings.wildcard_available:
            return RC_WILDCARD_SUBSCRIPTIONS_NOT_SUPPORTED
        if wildcard_count(plain[0]) > settings.max_filter_wildcards:
            return RC_QUOTA_EXCEEDED
    if conn.session.rights != NULL and not filter_permitted(worker, conn.session, plain[0], shared[0]):
        session_denied(worker, conn.session, C_DENIED_SUBSCRIBE, filter)
        return RC_NOT_AUTHORIZED
    return RC_SUCCESS


cdef uint8_t group_join_tree(Worker *worker, Session *session, Subscription *subscription, Span group, Span plain, bint fresh) noexcept nogil:
    """Enters the group in the tree (once per session) and tells its home about this member."""
    cdef GroupMail mail
    cdef Membership *membership
    cdef uint64_t id = 0
    cdef uint16_t home
    if fresh:
        home = <uint16_t> ((hash_bytes(group) ^ hash_bytes(plain)) % worker.engine.settings.workers)
        if trie_group_join(worker.engine.trie, group, plain, home, &id) != ST_OK:
            return RC_QUOTA_EXCEEDED
        if not session.durable or note_group(worker, id, span_make(subscription.filter, subscription.filter_bytes)):
            subscription.membership = membership_add(session, id)
        if subscription.membership == 0:
            trie_group_leave(worker.engine.trie, group, plain)
            return RC_QUOTA_EXCEEDED
    membership = <Membership *> vec_at(session.memberships, subscription.membership - 1)
    memset(&mail, 0, sizeof(GroupMail))
    mail.verb = GROUP_JOIN
    mail.session = session_handle(worker, session)
    mail.qos = subscription.options & OPT_QOS_MASK
    mail.subscription_id = subscription.id
    mail.retain_as_published = subscription.options & OPT_RETAIN_AS_PUBLISHED != 0
    mail.credit = group_credit_of(session, membership)
    mail.online = 1
    mail.noted = fresh and session.durable
    tell_group(worker, &mail, membership.group)
    return RC_SUCCESS


cdef void handout_drop(Session *session, Span filter) noexcept nogil:
    """Ends the hand-out of that filter, if one is under way: nothing new for a subscription that is gone [MQTT-3.10.4-1]."""
    cdef uint32_t i
    cdef Handout *handout
    if session.handouts == NULL:
        return
    for i in range(session.handouts.count):
        handout = <Handout *> vec_at(session.handouts, i)
        if span_equal(span_make(handout.cursor.filter, handout.cursor.filter_bytes), filter):
            handout_end(session, i)
            return


cdef int handout_add(Session *session, const Subscription *subscription, Span filter) noexcept nogil:
    """The filter's retained messages are due to this session; the cursor reads them as the client takes them."""
    cdef Handout *handout
    handout_drop(session, filter)       # one that is under way starts again with the new options
    if session.handouts == NULL:
        session.handouts = <Vec *> mem_alloc(sizeof(Vec))
        if session.handouts == NULL:
            return RC_QUOTA_EXCEEDED
        vec_init(session.handouts, sizeof(Handout))
    handout = <Handout *> vec_push(session.handouts)
    if handout != NULL:
        memset(handout, 0, sizeof(Handout))
        handout.qos = subscription.options & OPT_QOS_MASK
        if retain_cursor_init(&handout.cursor, filter) == ST_OK:
            if subscription.id == 0:
                return RC_SUCCESS
            handout.subscription_ids = subscription_ids_build(1)
            if handout.subscription_ids != NULL:
                handout.subscription_ids.ids[0] = subscription.id
            return RC_SUCCESS
        session.handouts.count -= 1
    if session.handouts.count == 0:
        vec_free(session.handouts)
        mem_free(session.handouts)
        session.handouts = NULL
    return RC_QUOTA_EXCEEDED


cdef uint8_t subscribe_one(Worker *worker, Conn *conn, const Filter *filter, uint32_t id) noexcept nogil:
    """One filter of a SUBSCRIBE: the reason code for SUBACK."""
    cdef Session *session = conn.session
    cdef Subscription *subscription
    cdef Span group, plain
    cdef uint8_t options = filter.options
    cdef uint8_t reason
    cdef bint shared = False
    cdef bint existed = False
    cdef bint fresh, handing_out
    reason = filter_verdict(worker, conn, filter.text, &group, &plain, &shared)
    if reason != RC_SUCCESS:
        return reason
    if options & OPT_QOS_MASK > conn.maximum_qos:               # granted lower [MQTT-3.2.2-9, MQTT-3.9.3]
        options = (options & ~OPT_QOS_MASK) | conn.maximum_qos
    subscription = subscription_find(session, filter.text)
    fresh = subscription == NULL
    if fresh:
        if session.subscriptions != NULL and session.subscriptions.count >= worker.engine.settings.max_subscriptions:
            return RC_QUOTA_EXCEEDED
        if worker.overload:
            return RC_QUOTA_EXCEEDED
        subscription = subscription_add(worker, session, filter.text)
        if subscription == NULL:
            return RC_QUOTA_EXCEEDED
    subscription.options = options
    subscription.id = id
    if shared:
        reason = group_join_tree(worker, session, subscription, group, plain, fresh)
    elif trie_subscribe(
        worker.engine.trie, plain, session_handle(worker, session), options | (OPTION_DURABLE if session.durable else 0), id, &existed,
    ) != ST_OK:
        reason = RC_QUOTA_EXCEEDED
    if reason != RC_SUCCESS:
        if fresh:
            subscription_remove(worker, session, subscription)
        return reason
    handing_out = not shared and (options & OPT_RETAIN_HANDLING_MASK == 0x00 or (options & OPT_RETAIN_HANDLING_MASK == 0x10 and fresh))
    if not note_subscribe(worker, session, filter.text, options | (HANDOUT_PENDING if handing_out else 0), id):
        handing_out = False             # it is in force, but a crash may lose it: rather none
        if shared:
            unsubscribe_one(worker, session, filter.text)
            return RC_QUOTA_EXCEEDED
        trie_unsubscribe(worker.engine.trie, plain, session_handle(worker, session))
        subscription_remove(worker, session, subscription)
        return RC_QUOTA_EXCEEDED
    # Retained messages: not for shared subscriptions [MQTT-4.8.2], else by retain handling [MQTT-3.3.1-9..11]
    if handing_out:
        reason = handout_add(session, subscription, plain)
        if reason != RC_SUCCESS:
            if fresh:                   # what is refused is not in force
                note_filter(worker, RECORD_UNSUBSCRIBE, session, filter.text)
                trie_unsubscribe(worker.engine.trie, plain, session_handle(worker, session))
                subscription_remove(worker, session, subscription)
            return reason
    report(worker, LOG_DEBUG, EV_SUBSCRIBED, options & OPT_QOS_MASK, conn, session, filter.text)
    return options & OPT_QOS_MASK


cdef void handouts_wait(Session *session, uint64_t until) noexcept nogil:
    """Retained messages follow the SUBACK, which waits for its commit."""
    cdef uint32_t i
    if session.handouts != NULL:
        for i in range(session.handouts.count):
            (<Handout *> vec_at(session.handouts, i)).after = until


cdef bint reply_with_codes(Worker *worker, Conn *conn, uint8_t packet_type, uint16_t packet_id, Span codes) noexcept nogil:
    cdef Packet reply
    packet_clear(&reply, packet_type)
    reply.packet_id = packet_id
    reply.list = codes
    if packet_type == SUBACK and conn.session.durable:
        handouts_wait(conn.session, until_now(worker))
    if send_packet_after(worker, conn, &reply, until_now(worker) if conn.session.durable else 0) == ST_LIMIT:   # it takes less than its own request's answer
        link_close(worker.reactor, &conn.link, END_NO_MEMORY)
        return False
    return True


cdef uint8_t *codes_room(Conn *conn, uint8_t packet_type, Span list, uint8_t *here, uint32_t here_bytes, uint32_t *count) noexcept nogil:
    """Room for a reason code per filter: `here` when that is enough, else malloc'ed. NULL: no memory."""
    cdef Filter filter
    count[0] = 0
    while filter_next(conn.dialect, packet_type, &list, &filter):
        count[0] += 1
    return here if count[0] <= here_bytes else <uint8_t *> mem_alloc(count[0])


cdef void on_subscribe(Worker *worker, Conn *conn, const Frame *frame, Packet *packet) noexcept nogil:
    cdef Span list = packet.list
    cdef Filter filter
    cdef Span group, plain
    cdef uint32_t hooks = atomic_load_u32_relaxed(&worker.engine.hooks)
    cdef uint32_t id = packet.props.subscription_id if packet.props.present & HAS_SUBSCRIPTION_ID else 0
    if id and not worker.engine.settings.subscription_ids_available:
        conn_fail(worker, conn, RC_SUBSCRIPTION_IDENTIFIERS_NOT_SUPPORTED, text("subscription identifiers are switched off"))
        return
    while filter_next(conn.dialect, SUBSCRIBE, &list, &filter):
        if filter.options & OPT_NO_LOCAL and share_split(filter.text, &group, &plain) != 0:
            conn_fail(worker, conn, RC_PROTOCOL_ERROR, text("No Local on a shared subscription"))       # [MQTT-3.8.3-4]
            return
    if not hooks & HOOKS_SUBSCRIBE:
        subscribe_all(worker, conn, packet, NULL, RC_SUCCESS)
    elif not park(worker, conn, QUESTION_SUBSCRIBE, frame, packet):
        subscribe_all(worker, conn, packet, NULL, RC_SUCCESS if hooks & HOOKS_ALLOW else RC_QUOTA_EXCEEDED)


cdef bint told_next(Span *told, Filter *filter, uint8_t *reason) noexcept nogil:
    """What hooks say of the next filter, see HOOK_CHANGE: its reason, and the filter in place of the client's."""
    cdef uint32_t n
    if told.n < 4:
        return False
    n = <uint32_t> told.p[2] << 8 | told.p[3]
    if told.n - 4 < n:
        return False
    reason[0] = told.p[0]
    if reason[0] < 0x80:
        filter.options = told.p[1]
        filter.text = span_make(told.p + 4, n)
    told[0] = span_make(told.p + 4 + n, told.n - 4 - n)
    return True


cdef void subscribe_answered(Worker *worker, Conn *conn, const Frame *frame, const HookMail *mail) noexcept nogil:
    cdef Packet packet
    cdef Span told = span_make(mail.data, mail.data_bytes)
    if decode_packet(conn.dialect, frame, &packet) == ST_OK:
        subscribe_all(worker, conn, &packet, &told if mail.verdict == HOOK_CHANGE else NULL, RC_SUCCESS)


cdef void subscribe_all(Worker *worker, Conn *conn, const Packet *packet, Span *told, uint8_t refused) noexcept nogil:
    """And SUBACK. told: by hooks; NULL: nothing. refused: a failure for all of them."""
    cdef Span list = packet.list
    cdef Filter filter
    cdef uint8_t here[256]
    cdef uint8_t *codes
    cdef uint32_t count = 0
    cdef uint32_t i = 0
    cdef uint32_t id = packet.props.subscription_id if packet.props.present & HAS_SUBSCRIPTION_ID else 0
    cdef bint vetoed
    codes = codes_room(conn, SUBSCRIBE, packet.list, here, sizeof(here), &count)
    if codes == NULL:
        link_close(worker.reactor, &conn.link, END_NO_MEMORY)
        return
    list = packet.list
    while i < count and filter_next(conn.dialect, SUBSCRIBE, &list, &filter):
        codes[i] = refused
        if told != NULL and not told_next(told, &filter, &codes[i]):
            codes[i] = RC_IMPLEMENTATION_SPECIFIC_ERROR
        vetoed = codes[i] >= 0x80
        if not vetoed:
            codes[i] = subscribe_one(worker, conn, &filter, id)
            if codes[i] == RC_QUOTA_EXCEEDED:
                stat(&worker.stats, C_SUBSCRIPTIONS_REFUSED)
        if (vetoed or codes[i] == RC_NOT_AUTHORIZED) and not conn.dialect.suback_failure:
            codes[i] = filter.options & OPT_QOS_MASK            # 3.1, section 3.8: acknowledged, for it cannot be told; it gets nothing
        if codes[i] >= 0x80 and not conn.dialect.suback_failure:
            conn_fail(worker, conn, codes[i], text("subscription refused"))     # 3.1 has no word for it
            break
        i += 1
    if i == count and reply_with_codes(worker, conn, SUBACK, packet.packet_id, span_make(codes, count)):
        session_pump(worker, conn.session)
    if codes != here:
        mem_free(codes)


cdef uint8_t unsubscribe_one(Worker *worker, Session *session, Span filter) noexcept nogil:
    cdef Subscription *subscription = subscription_find(session, filter)
    cdef Membership *membership
    cdef GroupMail mail
    cdef Span group, plain
    cdef uint64_t id
    if subscription == NULL:
        return RC_NO_SUBSCRIPTION_EXISTED
    if subscription.membership:
        # What was not sent goes to another member; what was sent is completed here [MQTT-3.10.4-3].
        groups_take_back(worker, session, subscription.membership, TAKE_UNSENT)
        membership = <Membership *> vec_at(session.memberships, subscription.membership - 1)
        id = membership.group
        groups_keep(worker, session, subscription.membership)
        membership.group = 0
        membership.owed = 0
        memset(&mail, 0, sizeof(GroupMail))
        mail.verb = GROUP_LEAVE
        mail.session = session_handle(worker, session)
        tell_group(worker, &mail, id)
        share_split(filter, &group, &plain)
        trie_group_leave(worker.engine.trie, group, plain)
    else:
        trie_unsubscribe(worker.engine.trie, filter, session_handle(worker, session))
        handout_drop(session, filter)
    note_filter(worker, RECORD_UNSUBSCRIBE, session, filter)
    subscription_remove(worker, session, subscription)
    return RC_SUCCESS


cdef void on_unsubscribe(Worker *worker, Conn *conn, Packet *packet) noexcept nogil:
    cdef Span list = packet.list
    cdef Filter filter
    cdef uint8_t here[256]
    cdef uint32_t count = 0
    cdef uint32_t i = 0
    cdef uint8_t *codes = codes_room(conn, UNSUBSCRIBE, packet.list, here, sizeof(here), &count)
    if codes == NULL:
        link_close(worker.reactor, &conn.link, END_NO_MEMORY)
        return
    while i < count and filter_next(conn.dialect, UNSUBSCRIBE, &list, &filter):
        codes[i] = unsubscribe_one(worker, conn.session, filter.text)
        report(worker, LOG_DEBUG, EV_UNSUBSCRIBED, codes[i], conn, conn.session, filter.text)
        i += 1
    reply_with_codes(worker, conn, UNSUBACK, packet.packet_id, span_make(codes, count))
    if codes != here:
        mem_free(codes)
