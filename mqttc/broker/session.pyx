from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from mqttc.base.alloc cimport mem_alloc, mem_alloc_zeroed, mem_free
from mqttc.base.map cimport Map, hash_bytes, map_find, map_free, map_init, map_insert, map_remove, map_replace
from mqttc.base.msg cimport msg_drop
from mqttc.base.ring cimport Ring, ring_at, ring_free, ring_init, ring_pop_front, ring_push, ring_remove, ring_trim
from mqttc.base.timer cimport wheel_cancel
from mqttc.base.types cimport ST_NO_MEMORY, ST_OK, Span, atomic_add_u32_relaxed, span_equal, span_make
from mqttc.base.vec cimport Vec, vec_at, vec_free, vec_init, vec_push, vec_swap_remove
from mqttc.broker.durable cimport knows, note_done, note_kept, note_returned, note_session_end
from mqttc.broker.mail cimport post_group
from mqttc.broker.retain cimport retain_cursor_free
from mqttc.broker.rights cimport rights_free
from mqttc.broker.routes cimport subscription_ids_drop
from mqttc.broker.state cimport (
    GROUP_LEAVE, GROUP_RETURN, OUT_DONE, OUT_RELEASED, OUT_SENT, QE_COUNTED, QE_JOURNALED, QE_STORED, SESSION_CREDIT_DIRTY, SESSION_QOS0_QUEUED, SESSION_SPARSE, TIMER_SESSION, GroupMail,
    Handout, Membership, QueueEntry, Session, Subscription, Worker,
)
from mqttc.broker.stats cimport (
    C_DROPPED_SESSION_END, C_INFLIGHT, C_QUEUED, C_QUEUED_BYTES, C_SUBSCRIPTIONS, C_WILL_BYTES, C_WILLS, stat, stat_add, stat_sub,
)
from mqttc.broker.trie cimport trie_group_leave, trie_unsubscribe
from mqttc.proto.topic cimport share_split

cdef enum:
    MAP_FROM = 32                      # subscriptions from which a session keeps a map of them
    ENTRY_OVERHEAD = 32                # bytes counted per queued message beside its body
    SPARSE_FROM = 1024                 # entries beyond two windows, from which acknowledged ones in the middle are taken out
    INFLIGHT_LIMIT = 65534             # one id stays free, so that a search for one ends


# ---- the table of sessions

cdef uint32_t client_hash(Span client_id) noexcept nogil:
    return hash_bytes(client_id)


cdef Session *session_find(Worker *worker, Span client_id, uint32_t hash) noexcept nogil:
    cdef uint64_t value = 0
    if not map_find(&worker.clients, hash, &client_id, &value):
        return NULL
    return <Session *> value


cdef int page_add(Worker *worker) noexcept nogil:
    """64 more slots; pages never move, so pointers to sessions stay good."""
    cdef Session **place
    cdef Session *page
    cdef uint32_t *slot
    cdef uint32_t i
    cdef uint32_t first = worker.session_pages.count * SESSION_PAGE
    page = <Session *> mem_alloc_zeroed(SESSION_PAGE, sizeof(Session))
    if page == NULL:
        return ST_NO_MEMORY
    place = <Session **> vec_push(&worker.session_pages)
    if place == NULL:
        mem_free(page)
        return ST_NO_MEMORY
    place[0] = page
    for i in range(SESSION_PAGE):
        slot = <uint32_t *> vec_push(&worker.session_free)
        if slot == NULL:
            break                       # the rest of this page stays unused
        slot[0] = first + SESSION_PAGE - 1 - i
    return ST_OK if worker.session_free.count else ST_NO_MEMORY


cdef Session *session_build(Worker *worker, Span client_id, uint32_t hash) noexcept nogil:
    cdef Session *session
    cdef uint32_t slot, generation
    cdef uint8_t *copy
    cdef uint32_t limit = worker.engine.settings.max_sessions
    if worker.session_free.count == 0 and page_add(worker) != ST_OK:
        return NULL
    copy = <uint8_t *> mem_alloc(client_id.n if client_id.n else 1)
    if copy == NULL:
        return NULL
    if atomic_add_u32_relaxed(&worker.engine.sessions, 1) >= limit and limit:       # other workers count at the same time
        atomic_add_u32_relaxed(&worker.engine.sessions, <uint32_t> -1)
        mem_free(copy)
        return NULL
    slot = (<uint32_t *> vec_at(&worker.session_free, worker.session_free.count - 1))[0]
    session = (<Session **> worker.session_pages.items)[slot // SESSION_PAGE] + (slot % SESSION_PAGE)
    if map_insert(&worker.clients, hash, <uint64_t> session) != ST_OK:
        atomic_add_u32_relaxed(&worker.engine.sessions, <uint32_t> -1)
        mem_free(copy)
        return NULL
    worker.session_free.count -= 1
    generation = (session.generation + 1) & 0xFFFFFF
    memset(session, 0, sizeof(Session))
    session.slot = slot
    session.generation = generation if generation else 1
    memcpy(copy, client_id.p, client_id.n)
    session.client_id = copy
    session.client_id_bytes = <uint16_t> client_id.n
    session.client_hash = hash
    session.next_packet_id = 1
    session.timer.kind = TIMER_SESSION
    ring_init(&session.inflight, sizeof(QueueEntry))
    ring_init(&session.queue, sizeof(QueueEntry))
    worker.session_count += 1
    return session


cdef void entries_release(Worker *worker, Session *session, Ring *ring, int gauge) noexcept nogil:
    cdef uint32_t i
    cdef QueueEntry *entry
    for i in range(ring.count):
        entry = <QueueEntry *> ring_at(ring, i)
        if entry.msg != NULL and entry.state & 15 != OUT_RELEASED:
            stat(&worker.stats, C_DROPPED_SESSION_END)
        if entry.state & 15 != OUT_DONE or gauge == C_QUEUED:
            stat_sub(&worker.stats, gauge, 1)
        entry_release(worker, session, entry)
    ring_free(ring)


cdef void session_discard(Worker *worker, Session *session) noexcept nogil:
    """Everything it owns, but not its timer, its map entry and its slot."""
    cdef uint32_t i
    cdef Subscription *subscription
    entries_release(worker, session, &session.inflight, C_INFLIGHT)
    entries_release(worker, session, &session.queue, C_QUEUED)
    stat_sub(&worker.stats, C_QUEUED_BYTES, session.queued_bytes)
    session.queued_bytes = 0
    if session.subscriptions != NULL:
        for i in range(session.subscriptions.count):
            subscription = <Subscription *> vec_at(session.subscriptions, i)
            mem_free(subscription.filter)
        stat_sub(&worker.stats, C_SUBSCRIPTIONS, session.subscriptions.count)
        vec_free(session.subscriptions)
        mem_free(session.subscriptions)
        session.subscriptions = NULL
    if session.subscription_map != NULL:
        map_free(session.subscription_map)
        mem_free(session.subscription_map)
        session.subscription_map = NULL
    handouts_clear(session)
    if session.memberships != NULL:
        vec_free(session.memberships)
        mem_free(session.memberships)
        session.memberships = NULL
    if session.inbound != NULL:
        vec_free(session.inbound)
        mem_free(session.inbound)
        session.inbound = NULL
    if session.will != NULL:
        will_uncount(worker, session.will)
        if session.will.msg != NULL:
            msg_drop(&worker.msgs, session.will.msg)
        mem_free(session.will)
        session.will = NULL
    rights_free(session.rights)
    session.rights = NULL
    mem_free(session.client_id)
    session.client_id = NULL


cdef void credit_forget(Worker *worker, Session *session) noexcept nogil:
    cdef Session **place = &worker.credit_dirty
    if not session.flags & SESSION_CREDIT_DIRTY:
        return
    while place[0] != session:
        place = &place[0].credit_next
    place[0] = session.credit_next
    session.flags &= ~SESSION_CREDIT_DIRTY


cdef void session_end(Worker *worker, Session *session) noexcept nogil:
    cdef uint32_t i
    cdef uint32_t *slot
    cdef Subscription *subscription
    cdef Membership *membership
    cdef GroupMail *mail
    cdef Span filter, group, plain
    cdef uint64_t handle = session_handle(worker, session)
    cdef uint64_t left
    wheel_cancel(worker.reactor.wheel, &session.timer)
    if session.memberships != NULL:
        groups_take_back(worker, session, 0, TAKE_LEFT)
        for i in range(session.memberships.count):
            membership = <Membership *> vec_at(session.memberships, i)
            left = group_lender(membership)
            if left:                    # also a group that it left before: it hands out what came back
                mail = post_group(worker, group_home(left), GROUP_LEAVE)
                if mail != NULL:
                    mail.group = left
                    mail.session = handle
                membership.group = 0    # what is still outstanding (QoS 2) ends with the session and owes nobody
                membership.left = 0
    credit_forget(worker, session)      # after all that may owe credit
    for i in range(session.inflight.count):
        note_done(worker, session, <QueueEntry *> ring_at(&session.inflight, i))
    for i in range(session.queue.count):
        note_done(worker, session, <QueueEntry *> ring_at(&session.queue, i))
    note_session_end(worker, session)
    if session.subscriptions != NULL:
        for i in range(session.subscriptions.count):
            subscription = <Subscription *> vec_at(session.subscriptions, i)
            filter = span_make(subscription.filter, subscription.filter_bytes)
            if share_split(filter, &group, &plain) == 1:
                trie_group_leave(worker.engine.trie, group, plain)
            else:
                trie_unsubscribe(worker.engine.trie, filter, handle)
    filter = span_make(session.client_id, session.client_id_bytes)
    map_remove(&worker.clients, session.client_hash, &filter, NULL)
    session_discard(worker, session)
    worker.session_count -= 1
    atomic_add_u32_relaxed(&worker.engine.sessions, <uint32_t> -1)
    slot = <uint32_t *> vec_push(&worker.session_free)
    if slot != NULL:                    # without memory for the free list the slot stays unused
        slot[0] = session.slot


# ---- queue and in-flight ring

cdef void entry_release(Worker *worker, Session *session, QueueEntry *entry) noexcept nogil:
    if entry.state & (QE_STORED << 4):
        entry.msg = NULL
        entry.member = 0
    if entry.msg != NULL:
        msg_drop(&worker.msgs, entry.msg)
        entry.msg = NULL
    if entry.subscription_ids != NULL:
        subscription_ids_drop(entry.subscription_ids)
        entry.subscription_ids = NULL
    if entry.member:
        membership_release(worker, session, entry.member)
        entry.member = 0


cdef uint32_t window_free(const Session *session) noexcept nogil:
    if session.window_used >= session.receive_maximum or session.inflight.count >= INFLIGHT_LIMIT:
        return 0
    return session.receive_maximum - session.window_used


cdef void inflight_compact(Session *session) noexcept nogil:
    """A client that acknowledges out of order and leaves the front open: acknowledged entries go, and with them the consecutive ids."""
    cdef uint32_t i
    cdef uint32_t kept = 0
    cdef uint32_t resend = 0
    cdef QueueEntry *entry
    for i in range(session.inflight.count):
        entry = <QueueEntry *> ring_at(&session.inflight, i)
        if entry.state & 15 == OUT_DONE:
            continue
        if i < session.resend:
            resend += 1
        (<QueueEntry *> ring_at(&session.inflight, kept))[0] = entry[0]
        kept += 1
    session.inflight.count = kept
    session.resend = resend
    session.flags |= SESSION_SPARSE


cdef QueueEntry *inflight_push(Worker *worker, Session *session) noexcept nogil:
    cdef QueueEntry *entry
    if session.inflight.count > 2 * <uint32_t> session.receive_maximum + SPARSE_FROM:
        inflight_compact(session)
    if session.flags & SESSION_SPARSE:
        while inflight_find(session, session.next_packet_id) != NULL:       # in use still [MQTT-2.2.1-3]
            session.next_packet_id = 1 if session.next_packet_id == 65535 else session.next_packet_id + 1
    entry = <QueueEntry *> ring_push(&session.inflight)
    if entry == NULL:
        return NULL
    entry.packet_id = session.next_packet_id
    session.next_packet_id = 1 if session.next_packet_id == 65535 else session.next_packet_id + 1
    entry.state = OUT_SENT | QE_COUNTED << 4
    session.window_used += 1
    session.resend += 1
    stat(&worker.stats, C_INFLIGHT)
    return entry


cdef QueueEntry *inflight_find(Session *session, uint16_t packet_id) noexcept nogil:
    cdef QueueEntry *entry
    cdef uint32_t distance
    cdef uint16_t first
    if session.inflight.count == 0 or packet_id == 0:
        return NULL
    if session.flags & SESSION_SPARSE:
        for distance in range(session.inflight.count):
            entry = <QueueEntry *> ring_at(&session.inflight, distance)
            if entry.packet_id == packet_id and entry.state & 15 != OUT_DONE:
                return entry
        return NULL
    first = (<QueueEntry *> ring_at(&session.inflight, 0)).packet_id
    distance = packet_id - first if packet_id >= first else <uint32_t> packet_id + 65535 - first
    if distance >= session.inflight.count:
        return NULL
    entry = <QueueEntry *> ring_at(&session.inflight, distance)
    return NULL if entry.state & 15 == OUT_DONE else entry


cdef void inflight_done(Worker *worker, Session *session, QueueEntry *entry) noexcept nogil:
    note_done(worker, session, entry)
    if entry.state & (QE_COUNTED << 4):
        session.window_used -= 1
    entry.state = (entry.state & (QE_STORED << 4)) | OUT_DONE
    entry_release(worker, session, entry)
    entry.state = OUT_DONE
    stat_sub(&worker.stats, C_INFLIGHT, 1)
    while session.inflight.count and (<QueueEntry *> ring_at(&session.inflight, 0)).state & 15 == OUT_DONE:
        ring_pop_front(&session.inflight, 1)
        if session.resend:
            session.resend -= 1
    if session.inflight.count == 0:
        session.flags &= ~SESSION_SPARSE
        if session.inflight.capacity > 64:
            ring_trim(&session.inflight)


cdef uint64_t entry_bytes(const QueueEntry *entry) noexcept nogil:
    if entry.state & (QE_STORED << 4):
        return ENTRY_OVERHEAD + entry.member
    return ENTRY_OVERHEAD + entry.msg.topic_bytes + entry.msg.properties_bytes + entry.msg.payload_bytes


cdef int queue_push(Worker *worker, Session *session, const QueueEntry *entry) noexcept nogil:
    cdef QueueEntry *place = <QueueEntry *> ring_push(&session.queue)
    if place == NULL:
        return ST_NO_MEMORY
    place[0] = entry[0]
    if session.queue.count == 1:
        session.flags &= ~SESSION_QOS0_QUEUED
    if entry.qos == 0:
        session.flags |= SESSION_QOS0_QUEUED
    session.queued_bytes += entry_bytes(entry)
    stat(&worker.stats, C_QUEUED)
    stat_add(&worker.stats, C_QUEUED_BYTES, entry_bytes(entry))
    return ST_OK


cdef void queue_pop(Worker *worker, Session *session, QueueEntry *out) noexcept nogil:
    out[0] = (<QueueEntry *> ring_at(&session.queue, 0))[0]
    ring_pop_front(&session.queue, 1)
    if session.queue.count == 0:
        ring_trim(&session.queue)
    session.queued_bytes -= entry_bytes(out)
    stat_sub(&worker.stats, C_QUEUED, 1)
    stat_sub(&worker.stats, C_QUEUED_BYTES, entry_bytes(out))


cdef void queue_remove(Worker *worker, Session *session, uint32_t index) noexcept nogil:
    cdef QueueEntry entry = (<QueueEntry *> ring_at(&session.queue, index))[0]
    cdef uint64_t n = entry_bytes(&entry)
    ring_remove(&session.queue, index)
    session.queued_bytes -= n
    stat_sub(&worker.stats, C_QUEUED, 1)
    stat_sub(&worker.stats, C_QUEUED_BYTES, n)
    note_done(worker, session, &entry)
    entry_release(worker, session, &entry)


# ---- wills

cdef uint64_t will_bytes(const Will *will) noexcept nogil:
    return will.msg.topic_bytes + will.msg.properties_bytes + will.msg.payload_bytes


cdef void will_count(Worker *worker, const Will *will) noexcept nogil:
    stat(&worker.stats, C_WILLS)
    stat_add(&worker.stats, C_WILL_BYTES, will_bytes(will))


cdef void will_uncount(Worker *worker, const Will *will) noexcept nogil:
    stat_sub(&worker.stats, C_WILLS, 1)
    stat_sub(&worker.stats, C_WILL_BYTES, will_bytes(will))


# ---- QoS 2 towards us

cdef bint inbound_has(const Session *session, uint16_t packet_id) noexcept nogil:
    cdef uint32_t i
    cdef const uint16_t *ids
    if session.inbound == NULL:
        return False
    ids = <const uint16_t *> session.inbound.items
    for i in range(session.inbound.count):
        if ids[i] == packet_id:
            return True
    return False


cdef int inbound_add(Session *session, uint16_t packet_id) noexcept nogil:
    cdef uint16_t *place
    if session.inbound == NULL:
        session.inbound = <Vec *> mem_alloc(sizeof(Vec))
        if session.inbound == NULL:
            return ST_NO_MEMORY
        vec_init(session.inbound, sizeof(uint16_t))
    place = <uint16_t *> vec_push(session.inbound)
    if place == NULL:
        return ST_NO_MEMORY
    place[0] = packet_id
    return ST_OK


cdef bint inbound_remove(Session *session, uint16_t packet_id) noexcept nogil:
    cdef uint32_t i
    if session.inbound == NULL:
        return False
    for i in range(session.inbound.count):
        if (<uint16_t *> vec_at(session.inbound, i))[0] == packet_id:
            vec_swap_remove(session.inbound, i)
            return True
    return False


# ---- subscriptions

cdef struct FilterKey:
    Session *session
    Span filter


cdef bint subscription_equals(void *context, uint64_t value, const void *key) noexcept nogil:
    cdef const FilterKey *wanted = <const FilterKey *> key
    cdef Subscription *subscription = <Subscription *> vec_at(wanted.session.subscriptions, <uint32_t> value)
    return subscription.filter_bytes == wanted.filter.n and same_bytes(subscription.filter, wanted.filter)


cdef bint same_bytes(const uint8_t *bytes, Span span) noexcept nogil:
    return span_equal(span_make(bytes, span.n), span)


cdef Subscription *subscription_find(Session *session, Span filter) noexcept nogil:
    cdef FilterKey key
    cdef Subscription *subscription
    cdef uint64_t index = 0
    cdef uint32_t i
    cdef uint32_t hash = hash_bytes(filter)
    if session.subscriptions == NULL:
        return NULL
    if session.subscription_map != NULL:
        key.session = session
        key.filter = filter
        if map_find(session.subscription_map, hash, &key, &index):
            return <Subscription *> vec_at(session.subscriptions, <uint32_t> index)
        return NULL
    for i in range(session.subscriptions.count):
        subscription = <Subscription *> vec_at(session.subscriptions, i)
        if subscription.hash == hash and subscription.filter_bytes == filter.n and same_bytes(subscription.filter, filter):
            return subscription
    return NULL


cdef int map_subscriptions(Session *session) noexcept nogil:
    """Many subscriptions get a map, so that a SUBSCRIBE does not walk them all."""
    cdef uint32_t i
    cdef Map *map = <Map *> mem_alloc(sizeof(Map))
    if map == NULL:
        return ST_NO_MEMORY
    map_init(map, subscription_equals, NULL)
    for i in range(session.subscriptions.count):
        if map_insert(map, (<Subscription *> vec_at(session.subscriptions, i)).hash, i) != ST_OK:
            map_free(map)
            mem_free(map)
            return ST_NO_MEMORY
    session.subscription_map = map
    return ST_OK


cdef Subscription *subscription_add(Worker *worker, Session *session, Span filter) noexcept nogil:
    cdef Subscription *subscription
    cdef uint8_t *copy
    if session.subscriptions == NULL:
        session.subscriptions = <Vec *> mem_alloc(sizeof(Vec))
        if session.subscriptions == NULL:
            return NULL
        vec_init(session.subscriptions, sizeof(Subscription))
    if session.subscription_map == NULL and session.subscriptions.count >= MAP_FROM and map_subscriptions(session) != ST_OK:
        return NULL
    copy = <uint8_t *> mem_alloc(filter.n if filter.n else 1)
    if copy == NULL:
        return NULL
    memcpy(copy, filter.p, filter.n)
    subscription = <Subscription *> vec_push(session.subscriptions)
    if subscription == NULL:
        mem_free(copy)
        return NULL
    memset(subscription, 0, sizeof(Subscription))
    subscription.filter = copy
    subscription.filter_bytes = <uint16_t> filter.n
    subscription.hash = hash_bytes(filter)
    if session.subscription_map != NULL and map_insert(session.subscription_map, subscription.hash, session.subscriptions.count - 1) != ST_OK:
        session.subscriptions.count -= 1
        mem_free(copy)
        return NULL
    stat(&worker.stats, C_SUBSCRIPTIONS)
    return subscription


cdef void subscription_remove(Worker *worker, Session *session, Subscription *subscription) noexcept nogil:
    cdef FilterKey key
    cdef Subscription *last = <Subscription *> vec_at(session.subscriptions, session.subscriptions.count - 1)
    cdef uint32_t index = <uint32_t> (subscription - <Subscription *> session.subscriptions.items)
    cdef uint8_t *filter = subscription.filter
    key.session = session
    if session.subscription_map != NULL:
        key.filter = span_make(subscription.filter, subscription.filter_bytes)
        map_remove(session.subscription_map, subscription.hash, &key, NULL)
        if last != subscription:
            key.filter = span_make(last.filter, last.filter_bytes)
            map_replace(session.subscription_map, last.hash, &key, index)
    vec_swap_remove(session.subscriptions, index)
    mem_free(filter)
    stat_sub(&worker.stats, C_SUBSCRIPTIONS, 1)
    if session.subscriptions.count == 0:
        vec_free(session.subscriptions)
        mem_free(session.subscriptions)
        session.subscriptions = NULL
        if session.subscription_map != NULL:
            map_free(session.subscription_map)
            mem_free(session.subscription_map)
            session.subscription_map = NULL


# ---- shared groups, the member's side

cdef uint16_t group_home(uint64_t group) noexcept nogil:
    return <uint16_t> (group >> 56)


cdef uint32_t membership_find(const Session *session, uint64_t group) noexcept nogil:
    cdef uint32_t i
    if session.memberships == NULL:
        return 0
    for i in range(session.memberships.count):
        if (<Membership *> vec_at(session.memberships, i)).group == group:
            return i + 1
    return 0


cdef uint32_t membership_add(Session *session, uint64_t group) noexcept nogil:
    cdef Membership *membership = NULL
    cdef uint32_t i
    if session.memberships == NULL:
        session.memberships = <Vec *> mem_alloc(sizeof(Vec))
        if session.memberships == NULL:
            return 0
        vec_init(session.memberships, sizeof(Membership))
    for i in range(session.memberships.count):
        membership = <Membership *> vec_at(session.memberships, i)
        if membership.group == 0 and membership.outstanding == 0:
            break
    else:
        i = session.memberships.count
        membership = <Membership *> vec_push(session.memberships)
        if membership == NULL:
            return 0
    memset(membership, 0, sizeof(Membership))
    membership.group = group
    membership.origin = group
    return i + 1


cdef uint32_t membership_left(Session *session, uint64_t group) noexcept nogil:
    cdef Membership *membership
    cdef uint32_t i
    if session.memberships != NULL:
        for i in range(session.memberships.count):
            membership = <Membership *> vec_at(session.memberships, i)
            if membership.left == group and membership.outstanding:
                membership.outstanding += 1
                return i + 1
    i = membership_add(session, group)
    if i == 0:
        return 0
    membership = <Membership *> vec_at(session.memberships, i - 1)
    membership.group = 0
    membership.origin = 0
    membership.left = group
    membership.outstanding = 1
    return i


cdef inline uint64_t group_lender(const Membership *membership) noexcept nogil:
    """Whose the messages are that came by this membership; 0: nobody else's."""
    return membership.group if membership.group else membership.left


cdef void membership_release(Worker *worker, Session *session, uint32_t member) noexcept nogil:
    cdef Membership *membership = <Membership *> vec_at(session.memberships, member - 1)
    membership.outstanding -= 1
    if membership.group == 0:
        return
    membership.owed += 1
    if not session.flags & SESSION_CREDIT_DIRTY:
        session.flags |= SESSION_CREDIT_DIRTY
        session.credit_next = worker.credit_dirty
        worker.credit_dirty = session


cdef bint give_back(Worker *worker, Session *session, QueueEntry *entry) noexcept nogil:
    """Mails the entry's message back to its group, reference and all; false: it was dropped for want of memory."""
    cdef uint64_t group = group_lender(<Membership *> vec_at(session.memberships, entry.member - 1))
    cdef GroupMail *mail = post_group(worker, group_home(group), GROUP_RETURN) if group else NULL
    if mail == NULL:
        return False
    note_returned(worker, session, entry, group)
    mail.group = group
    mail.session = session_handle(worker, session)
    mail.msg = entry.msg
    entry.msg = NULL
    return True


cdef bint goes_back(const Session *session, const QueueEntry *entry, bint with_left) noexcept nogil:
    """Of an entry in flight: whether the group that has lent it may give it to another member. One that was left does so when the session ends: until then
    the session completes it [MQTT-3.10.4-3]."""
    cdef const Membership *membership
    if entry.member == 0 or entry.qos != 1 or entry.state & 15 != OUT_SENT:
        return False
    membership = <Membership *> vec_at(session.memberships, entry.member - 1)
    return membership.group != 0 or (with_left and membership.left != 0)


cdef void groups_take_back(Worker *worker, Session *session, uint32_t only, int what) noexcept nogil:
    # From the youngest to the oldest: each goes to the front of the group's backlog, so their order is kept there.
    cdef uint32_t i
    cdef QueueEntry *entry
    if session.memberships == NULL:
        return
    i = session.queue.count
    while i:
        i -= 1
        entry = <QueueEntry *> ring_at(&session.queue, i)
        if entry.member and not entry.state & (QE_STORED << 4) and (only == 0 or entry.member == only):
            session.queued_bytes -= entry_bytes(entry)
            stat_sub(&worker.stats, C_QUEUED, 1)
            stat_sub(&worker.stats, C_QUEUED_BYTES, entry_bytes(entry))
            if give_back(worker, session, entry):
                entry.state &= ~(QE_JOURNALED << 4)             # it is the group's again, as the journal has it
            else:
                stat(&worker.stats, C_DROPPED_SESSION_END)
            note_done(worker, session, entry)
            entry_release(worker, session, entry)
            ring_remove(&session.queue, i)
    if what == TAKE_UNSENT:
        return
    i = session.inflight.count
    while i:
        i -= 1
        if i >= session.inflight.count:
            continue                    # acknowledged ones at the front were removed with it
        entry = <QueueEntry *> ring_at(&session.inflight, i)
        if (only == 0 or entry.member == only) and goes_back(session, entry, what == TAKE_LEFT):
            if give_back(worker, session, entry):
                entry.state &= ~(QE_JOURNALED << 4)
            else:
                stat(&worker.stats, C_DROPPED_SESSION_END)
            inflight_done(worker, session, entry)


cdef void groups_keep(Worker *worker, Session *session, uint32_t only) noexcept nogil:
    cdef uint32_t i
    cdef QueueEntry *entry
    cdef Membership *membership = <Membership *> vec_at(session.memberships, only - 1)
    membership.left = membership.group
    if not knows(session):
        return                          # it ends with this run at the latest: to the journal it is the group's all along
    for i in range(session.inflight.count):
        entry = <QueueEntry *> ring_at(&session.inflight, i)
        if entry.member == only and entry.qos == 1 and entry.state & 15 == OUT_SENT:
            note_kept(worker, session, entry)
    membership.origin = 0


cdef void handout_end(Session *session, uint32_t index) noexcept nogil:
    cdef Handout *handout = <Handout *> vec_at(session.handouts, index)
    retain_cursor_free(&handout.cursor)
    subscription_ids_drop(handout.subscription_ids)
    vec_swap_remove(session.handouts, index)
    if session.handouts.count == 0:
        vec_free(session.handouts)
        mem_free(session.handouts)
        session.handouts = NULL


cdef void handouts_clear(Session *session) noexcept nogil:
    cdef uint32_t i
    cdef Handout *handout
    if session.handouts == NULL:
        return
    for i in range(session.handouts.count):
        handout = <Handout *> vec_at(session.handouts, i)
        retain_cursor_free(&handout.cursor)
        subscription_ids_drop(handout.subscription_ids)
    vec_free(session.handouts)
    mem_free(session.handouts)
    session.handouts = NULL
