from libc.errno cimport errno
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memcpy, memset, strerror
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from mqttc.base.alloc cimport mem_alloc, mem_alloc_zeroed, mem_free
from mqttc.base.inbox cimport Mail, inbox_post, inbox_take, inbox_wake
from mqttc.base.msg cimport pool_free, pool_init
from mqttc.base.timer cimport TimerNode, wheel_add
from mqttc.base.types cimport (
    ST_ERROR, ST_NEED_MORE, ST_NO_MEMORY, ST_OK, Span, atomic_add_u64_relaxed, atomic_load_u32_acquire, atomic_load_u64_relaxed, atomic_store_u32_release, counter_add, counter_sub, likely, span_make, unlikely,
)
from mqttc.base.vec cimport Vec, vec_at, vec_free, vec_init, vec_push
from mqttc.loadgen.hist cimport Hist, hist_add, hist_reset
from mqttc.net.outq cimport outq_reserve
from mqttc.net.reactor cimport (
    END_NO_MEMORY, LINK_NOTIFY, Link, LinkHooks, link_close, link_dirty, link_open, reactor_build, reactor_free, reactor_turn,
)
from mqttc.net.tcp cimport PeerAddress, tcp_dial, tcp_ops, tcp_tune
from mqttc.net.tls cimport tls_dial
from mqttc.net.tls_client cimport tls_client_drop, tls_client_share
from mqttc.net.transport cimport Transport, transport_failure
from mqttc.net.ws cimport ws_dial
from mqttc.proto.decode cimport decode_packet, frame_next
from mqttc.proto.encode cimport PublishParts, encode_ack, encode_packet, encode_publish, packet_size, publish_size
from mqttc.proto.packet cimport (
    CONNACK, CONNECT, DISCONNECT, HAS_SESSION_EXPIRY, PINGREQ, PUBACK, PUBCOMP, PUBLISH, PUBREC, PUBREL, SUBACK, SUBSCRIBE, Frame, Packet,
)

cdef extern from "<signal.h>" nogil:
    ctypedef struct sigset_t:
        pass
    int sigfillset(sigset_t *set)
    int pthread_sigmask(int how, const sigset_t *set, sigset_t *old)
    const int SIG_SETMASK

cdef extern from "<pthread.h>" nogil:
    int pthread_create(pthread_t *thread, const void *attributes, void *(*start)(void *) noexcept nogil, void *argument)
    int pthread_join(pthread_t thread, void **result)

cdef enum:
    TURN_BYTES = 1 << 20
    SUBSCRIBE_BYTES = 60000
    UNSENT_HIGH = 1 << 20              # a publisher waits for its socket from here
    END_ACTOR = 16
    TIMER_PING = 1


cdef uint64_t clock_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <uint64_t> now.tv_sec * 1000000000 + <uint64_t> now.tv_nsec


cdef inline Actor *actor_of(Link *link) noexcept nogil:
    return (<ActorLink *> link).actor


cdef inline void total(Crew *crew, int which, uint64_t n) noexcept nogil:
    counter_add(&crew.totals[which], n)


# ---- making and freeing

cdef Actor *actor_build() noexcept nogil:
    cdef Actor *actor = <Actor *> mem_alloc_zeroed(1, sizeof(Actor))
    if actor != NULL:
        vec_init(&actor.filters, sizeof(ActorFilter))
    return actor


cdef void actor_free(Actor *actor) noexcept nogil:
    cdef uint32_t i
    for i in range(actor.filters.count):
        mem_free((<ActorFilter *> vec_at(&actor.filters, i)).text)
    vec_free(&actor.filters)
    if actor.publishing != NULL:
        mem_free(actor.publishing.topics)
        mem_free(actor.publishing.topic_ends)
        mem_free(actor.publishing.stamps)
        mem_free(actor.publishing)
    for i in range(actor.seen_count):
        mem_free(actor.seen[i].bits)
    mem_free(actor.seen)
    mem_free(actor.client_id)
    mem_free(actor.username)
    mem_free(actor.password)
    mem_free(actor)


# ---- connecting

cdef int send_packet(Actor *actor, const Packet *packet) noexcept nogil:
    cdef Crew *crew = actor.crew
    cdef uint32_t n = packet_size(crew.field.dialect, packet)
    cdef uint8_t *out = outq_reserve(&crew.reactor.chunks, &actor.link.out, n) if n else NULL
    if out == NULL:
        link_close(crew.reactor, actor.link, END_NO_MEMORY)
        return ST_NO_MEMORY
    encode_packet(crew.field.dialect, packet, out)
    link_dirty(crew.reactor, actor.link)
    return ST_OK


cdef void send_connect(Actor *actor) noexcept nogil:
    cdef Packet packet
    memset(&packet, 0, sizeof(Packet))
    packet.type = CONNECT
    packet.protocol_level = actor.crew.field.dialect.level
    packet.clean_start = actor.clean
    packet.keep_alive = actor.keep_alive
    packet.client_id = span_make(actor.client_id, actor.client_id_bytes)
    packet.has_username = actor.username != NULL
    packet.username = span_make(actor.username, actor.username_bytes)
    packet.has_password = actor.password != NULL
    packet.password = span_make(actor.password, actor.password_bytes)
    if actor.session_expiry and actor.crew.field.dialect.properties:
        packet.props.present = HAS_SESSION_EXPIRY
        packet.props.session_expiry = actor.session_expiry
    send_packet(actor, &packet)


cdef void actor_wait(Actor *actor) noexcept nogil:
    """Into the line of those who are to connect."""
    cdef Crew *crew = actor.crew
    actor.unwanted = False
    if actor.state != ACTOR_IDLE or actor.link != NULL:
        return
    actor.state = ACTOR_WAITING
    actor.next_waiting = NULL
    if crew.waiting == NULL:
        crew.waiting = actor
    else:
        crew.waiting_tail.next_waiting = actor
    crew.waiting_tail = actor


cdef void failure_note(Crew *crew, const char *what) noexcept nogil:
    """The first reason is kept for Python to read."""
    if what == NULL or crew.failure_known:
        return
    snprintf(crew.failure, FAILURE_BYTES, "%s", what)
    atomic_store_u32_release(&crew.failure_known, 1)


cdef int road_dial(Field *field, const PeerAddress *source, Transport *transport) noexcept nogil:
    """A connection on its way, with all its layers. ST_ERROR (errno) or ST_NO_MEMORY: nothing is left of it."""
    cdef Road *road = &field.road
    cdef int status = ST_OK
    transport.fd = tcp_dial(&road.target, road.unix_path, source)
    if transport.fd < 0:
        return ST_ERROR
    tcp_tune(transport.fd, &road.target)
    transport.ops = tcp_ops()
    transport.state = NULL
    transport.wants = 0
    if road.tls != NULL:
        status = tls_dial(road.tls, transport)
    if status == ST_OK and road.ws_request.n:
        status = ws_dial(transport, road.ws_request, road.ws_accept, road.ws_frame_most)
    if status != ST_OK:
        transport.ops.close(transport)
    return status


cdef void connect_more(Crew *crew) noexcept nogil:
    cdef Actor *actor
    cdef Transport transport
    cdef PeerAddress *source
    cdef Link *link
    cdef int status
    while crew.waiting != NULL and crew.connecting < crew.field.connect_batch:
        actor = crew.waiting
        crew.waiting = actor.next_waiting
        actor.state = ACTOR_IDLE
        if actor.unwanted:
            continue
        source = &actor.source if actor.source.family else NULL
        status = road_dial(crew.field, source, &transport)
        if status != ST_OK:
            failure_note(crew, <const char *> strerror(errno) if status == ST_ERROR else <const char *> "no memory")
            total(crew, T_REFUSED, 1)
            continue
        link = link_open(crew.reactor, &transport, &crew.field.road.target, 0)
        if link == NULL:
            transport.ops.close(&transport)
            failure_note(crew, "no memory, or the poller takes no more descriptors")
            total(crew, T_REFUSED, 1)
            continue
        (<ActorLink *> link).actor = actor
        actor.link = link
        actor.state = ACTOR_CONNECTING
        actor.quitting = False
        crew.connecting += 1
        send_connect(actor)


cdef void send_subscriptions(Actor *actor) noexcept nogil:
    cdef Packet packet
    cdef ActorFilter *filter
    cdef uint8_t *list = actor.crew.scratch
    cdef uint32_t n = 0
    cdef uint32_t i
    memset(&packet, 0, sizeof(Packet))
    packet.type = SUBSCRIBE
    for i in range(actor.filters.count):
        filter = <ActorFilter *> vec_at(&actor.filters, i)
        list[n] = <uint8_t> (filter.bytes >> 8)
        list[n + 1] = <uint8_t> filter.bytes
        memcpy(list + n + 2, filter.text, filter.bytes)
        list[n + 2 + filter.bytes] = filter.qos
        n += 3 + filter.bytes
        if n > SUBSCRIBE_BYTES or i + 1 == actor.filters.count:
            packet.packet_id = <uint16_t> (i % 65535 + 1)
            packet.list = span_make(list, n)
            if send_packet(actor, &packet) != ST_OK:
                return
            n = 0


cdef void actor_leave(Actor *actor) noexcept nogil:
    cdef Packet packet
    if actor.link == NULL or actor.quitting:
        return
    actor.quitting = True
    memset(&packet, 0, sizeof(Packet))
    packet.type = DISCONNECT
    send_packet(actor, &packet)
    link_close(actor.crew.reactor, actor.link, END_ACTOR)


# ---- publishing

cdef uint64_t through(const Actor *actor) noexcept nogil:
    """Messages that are no longer under way: acknowledged and delivered in all copies, as far as that is waited for."""
    cdef const Publishing *publishing = actor.publishing
    cdef uint64_t done = publishing.acknowledged if publishing.qos else publishing.sequence
    cdef uint64_t delivered
    if publishing.loop:
        delivered = <uint64_t> (<double> atomic_load_u64_relaxed(&actor.crew.field.delivered[actor.index]) / publishing.copies)
        if delivered < done:
            done = delivered
    return done if done < publishing.sequence else publishing.sequence


cdef bint publish_one(Actor *actor, uint64_t stamp_ns) noexcept nogil:
    """The publisher's next message; False: no memory."""
    cdef Crew *crew = actor.crew
    cdef Publishing *publishing = actor.publishing
    cdef PublishParts parts
    cdef uint32_t topic = <uint32_t> (publishing.sequence % publishing.topic_count)
    cdef uint32_t start = publishing.topic_ends[topic - 1] if topic else 0
    cdef uint32_t n = publishing.payload_least
    cdef uint32_t tag[2]
    cdef uint8_t *out
    if publishing.payload_most > n:                             # xorshift: sizes need no better
        publishing.random ^= publishing.random << 13
        publishing.random ^= publishing.random >> 7
        publishing.random ^= publishing.random << 17
        n += <uint32_t> (publishing.random % (publishing.payload_most - n + 1))
    counter_add(&publishing.sequence, 1)        # read by `published` of other threads
    tag[0] = PAYLOAD_MAGIC
    tag[1] = actor.index
    memcpy(crew.scratch, tag, 8)
    memcpy(crew.scratch + 8, &publishing.sequence, 8)
    memcpy(crew.scratch + 16, &stamp_ns, 8)
    memset(&parts, 0, sizeof(PublishParts))
    parts.qos = publishing.qos
    parts.retain = publishing.retain
    if publishing.qos:
        parts.packet_id = publishing.next_packet_id
        if publishing.stamps != NULL:
            publishing.stamps[parts.packet_id] = stamp_ns
        publishing.next_packet_id = 1 if publishing.next_packet_id == 65535 else publishing.next_packet_id + 1
    parts.topic = span_make(publishing.topics + start, publishing.topic_ends[topic] - start)
    parts.payload = span_make(crew.scratch, n)
    out = outq_reserve(&crew.reactor.chunks, &actor.link.out, publish_size(crew.field.dialect, &parts))
    if out == NULL:
        link_close(crew.reactor, actor.link, END_NO_MEMORY)
        return False
    encode_publish(crew.field.dialect, &parts, out)
    return True


cdef void publisher_finish(Actor *actor) noexcept nogil:
    actor.publishing.running = False
    total(actor.crew, T_FINISHED, 1)


cdef void publisher_try(Actor *actor) noexcept nogil:
    """Closed loop: fills the window in whole bursts."""
    cdef Publishing *publishing = actor.publishing
    cdef uint64_t under_way, room, i
    cdef uint64_t now
    if not publishing.running or actor.state != ACTOR_UP or actor.quitting:
        return
    if actor.link.out.bytes > UNSENT_HIGH:
        actor.link.flags |= LINK_NOTIFY
        return
    under_way = publishing.sequence - through(actor)
    room = publishing.window - under_way if publishing.window > under_way else 0
    room -= room % publishing.burst
    if publishing.until and publishing.until - publishing.sequence < room:
        room = publishing.until - publishing.sequence
    elif publishing.until and publishing.until - publishing.sequence < publishing.burst and publishing.window > under_way:
        room = publishing.until - publishing.sequence           # the last, incomplete burst
    if room == 0:
        if publishing.until and publishing.sequence == publishing.until:
            publisher_finish(actor)
        return
    now = clock_ns()
    for i in range(room):
        if not publish_one(actor, now):
            return
    total(actor.crew, T_PUBLISHED, room)
    link_dirty(actor.crew.reactor, actor.link)
    if publishing.until and publishing.sequence == publishing.until:
        publisher_finish(actor)
    elif not publishing.loop and publishing.qos == 0:
        actor.link.flags |= LINK_NOTIFY                         # as fast as the socket takes it


cdef void publisher_pace(Actor *actor, uint64_t now) noexcept nogil:
    """Open loop: everything that is due, stamped with when it was."""
    cdef Publishing *publishing = actor.publishing
    cdef uint64_t due
    cdef uint64_t sent = 0
    if not publishing.running or actor.state != ACTOR_UP or actor.quitting:
        return
    while True:
        due = publishing.first_due_ns + <uint64_t> (<double> publishing.due_count * publishing.interval_ns)
        if due > now or actor.link.out.bytes > UNSENT_HIGH:     # what the socket does not take stays due, with its time
            break
        if publishing.until and publishing.sequence == publishing.until:
            publisher_finish(actor)
            break
        publishing.due_count += 1
        if not publish_one(actor, due):
            break
        sent += 1
    if sent:
        total(actor.crew, T_PUBLISHED, sent)
        link_dirty(actor.crew.reactor, actor.link)


cdef inline void publisher_ready(Actor *actor) noexcept nogil:
    cdef Publishing *publishing = actor.publishing
    if publishing.running and not publishing.in_ready and publishing.interval_ns == 0:
        publishing.in_ready = True
        publishing.next_ready = actor.crew.ready
        actor.crew.ready = actor


cdef void publisher_start(Actor *actor, uint64_t messages) noexcept nogil:
    cdef Publishing *publishing = actor.publishing
    cdef Actor **place
    cdef uint32_t i
    publishing.running = True
    publishing.until = publishing.sequence + messages if messages else 0
    if publishing.interval_ns == 0:
        publisher_ready(actor)
        return
    # Publishers of one rate start spread over an interval, not all at once.
    publishing.first_due_ns = clock_ns() + <uint64_t> (publishing.interval_ns * (<double> (actor.index % 1009) / 1009))
    publishing.due_count = 0
    for i in range(actor.crew.paced.count):
        if (<Actor **> vec_at(&actor.crew.paced, i))[0] == actor:
            return
    place = <Actor **> vec_push(&actor.crew.paced)
    if place != NULL:
        place[0] = actor
    else:
        total(actor.crew, T_ERRORS, 1)


# ---- receiving

cdef bint bit_before(Actor *actor, Seen *seen, uint64_t sequence) noexcept nogil:
    """seen_before for deliveries in any order. The caller has checked that the sequence is one that was published."""
    cdef uint64_t word = sequence >> 6
    cdef uint64_t bit = <uint64_t> 1 << (sequence & 63)
    cdef uint64_t words
    cdef uint64_t *bits
    if word >= seen.bit_words:
        words = 2 * word + 16
        bits = <uint64_t *> mem_alloc_zeroed(words, sizeof(uint64_t))
        if bits == NULL:
            total(actor.crew, T_ERRORS, 1)
            return False
        if seen.bits != NULL:
            memcpy(bits, seen.bits, seen.bit_words * sizeof(uint64_t))
            mem_free(seen.bits)
        seen.bits = bits
        seen.bit_words = words
    if seen.bits[word] & bit:
        total(actor.crew, T_DUPLICATES, 1)
        return True
    seen.bits[word] |= bit
    return False


cdef bint seen_before(Actor *actor, uint32_t publisher, uint64_t sequence) noexcept nogil:
    """Notes a delivery: counts repeats (true) and those out of order."""
    cdef Seen *seen
    cdef uint64_t back
    if actor.seen == NULL:
        actor.seen = <Seen *> mem_alloc_zeroed(actor.crew.field.actor_count, sizeof(Seen))
        if actor.seen == NULL:
            total(actor.crew, T_ERRORS, 1)
            return False
        actor.seen_count = actor.crew.field.actor_count
    seen = &actor.seen[publisher]
    if unlikely(actor.unordered):
        return bit_before(actor, seen, sequence)
    if likely(sequence > seen.last):
        back = sequence - seen.last
        seen.window = seen.window << back | 1 if back < 64 else 1
        seen.last = sequence
        return False
    back = seen.last - sequence
    if back >= 64 or seen.window >> back & 1:
        total(actor.crew, T_DUPLICATES, 1)
        return True
    seen.window |= <uint64_t> 1 << back
    total(actor.crew, T_REORDERED, 1)
    return False


cdef void delivered_add(Crew *crew, uint32_t publisher, uint64_t n) noexcept nogil:
    cdef Field *field = crew.field
    cdef Actor *actor = field.actors[publisher]
    atomic_add_u64_relaxed(&field.delivered[publisher], n)
    if actor.publishing == NULL or not actor.publishing.loop:
        return
    if actor.crew == crew:
        publisher_ready(actor)
    else:
        inbox_wake(&actor.crew.reactor.inbox)                   # its thread looks at all its publishers, see on_turn_end


cdef struct Batch:                     # deliveries of one publisher in a row
    uint64_t count
    uint64_t bytes
    uint64_t run
    uint32_t publisher


cdef const uint8_t *properties_skip(const uint8_t *p, const uint8_t *end) noexcept nogil:
    """Behind the properties; NULL: they do not end in the packet."""
    cdef uint32_t n = 0
    cdef uint32_t shift = 0
    while p < end:
        n |= <uint32_t> (p[0] & 127) << shift
        shift += 7
        p += 1
        if (p - 1)[0] < 128:
            return p + n if <uint32_t> (end - p) >= n else NULL
    return NULL


cdef bint delivery_note(Actor *actor, const uint8_t *payload, uint32_t n, Batch *batch, bint look) noexcept nogil:
    """Counts a delivery; look: its sequence and time are read."""
    cdef Crew *crew = actor.crew
    cdef uint32_t tag[2]
    cdef uint64_t sequence, stamp
    cdef const Publishing *sender
    if n < PAYLOAD_HEADER:
        total(crew, T_FOREIGN, 1)
        return True
    memcpy(tag, payload, 8)
    if tag[0] != PAYLOAD_MAGIC or tag[1] >= crew.field.actor_count:
        total(crew, T_FOREIGN, 1)
        return True
    if look:
        memcpy(&sequence, payload + 8, 8)
        memcpy(&stamp, payload + 16, 8)
        sender = crew.field.actors[tag[1]].publishing
        if unlikely(sender == NULL or sequence == 0 or (actor.unordered and sequence > atomic_load_u64_relaxed(&sender.sequence))):
            total(crew, T_FOREIGN, 1)
            return True
        if seen_before(actor, tag[1], sequence):
            return True
        hist_add(crew.latency, crew.now_ns - stamp if crew.now_ns > stamp else 0, 1)
    if tag[1] != batch.publisher:
        if batch.run:
            delivered_add(crew, batch.publisher, batch.run)
        batch.run = 0
        batch.publisher = tag[1]
    batch.run += 1
    batch.count += 1
    batch.bytes += n
    return True


cdef bint on_delivery(Actor *actor, const Frame *frame, Batch *batch, bint look) noexcept nogil:
    """One PUBLISH; False: it cannot be read. Only lengths are checked: the broker under load is not on trial for its UTF-8."""
    cdef const uint8_t *p = frame.body
    cdef const uint8_t *end = frame.body + frame.body_bytes
    cdef const uint8_t *id = NULL
    cdef uint8_t qos = (frame.flags >> 1) & 3
    cdef uint32_t n
    cdef uint8_t *out
    if end - p < 2:
        return False
    n = (<uint32_t> p[0] << 8 | p[1]) + 2
    if <uint32_t> (end - p) < n + (2 if qos else 0):
        return False
    p += n
    if qos:
        id = p
        p += 2
    if actor.crew.field.dialect.properties:
        p = properties_skip(p, end)
        if p == NULL:
            return False
    if qos:
        out = outq_reserve(&actor.crew.reactor.chunks, &actor.link.out, 4)
        if out == NULL:
            return False
        out[0] = PUBACK << 4 if qos == 1 else PUBREC << 4
        out[1] = 2
        out[2] = id[0]
        out[3] = id[1]
        link_dirty(actor.crew.reactor, actor.link)
    return delivery_note(actor, p, <uint32_t> (end - p), batch, look)


cdef bint on_control(Actor *actor, const Frame *frame) noexcept nogil:
    """Everything but PUBLISH. False: it cannot be read, or the connection ends."""
    cdef Crew *crew = actor.crew
    cdef Packet packet
    cdef uint8_t *out
    cdef uint64_t stamp
    cdef uint32_t i
    if decode_packet(crew.field.dialect, frame, &packet) != ST_OK:
        return False
    if frame.type == CONNACK:
        crew.connecting -= 1
        if packet.reason >= 0x80 or actor.state != ACTOR_CONNECTING:
            actor.state = ACTOR_IDLE
            total(crew, T_REFUSED, 1)
            link_close(crew.reactor, actor.link, END_ACTOR)
            return True
        actor.state = ACTOR_UP
        total(crew, T_CONNECTED, 1)
        total(crew, T_CONNECTS, 1)
        if actor.again:
            actor_leave(actor)
            return True
        if actor.keep_alive:
            actor.link.timer.kind = TIMER_PING
            wheel_add(crew.reactor.wheel, &actor.link.timer, crew.reactor.now_ms + actor.keep_alive * 800)
        if actor.filters.count:
            send_subscriptions(actor)
        if actor.publishing != NULL:
            publisher_ready(actor)
    elif frame.type == SUBACK:
        for i in range(packet.list.n):
            total(crew, T_SUBSCRIBED if packet.list.p[i] < 0x80 else T_ERRORS, 1)
    elif frame.type == PUBACK or frame.type == PUBCOMP:
        if actor.publishing == NULL:
            return False
        if packet.reason >= 0x80:
            total(crew, T_ERRORS, 1)
        actor.publishing.acknowledged += 1
        if actor.publishing.stamps != NULL:
            stamp = actor.publishing.stamps[packet.packet_id]
            hist_add(crew.acknowledging, crew.now_ns - stamp if crew.now_ns > stamp else 0, 1)
        total(crew, T_ACKNOWLEDGED, 1)
        publisher_ready(actor)
    elif frame.type == PUBREC or frame.type == PUBREL:
        out = outq_reserve(&crew.reactor.chunks, &actor.link.out, 4)
        if out == NULL:
            return False
        encode_ack(crew.field.dialect, PUBREL if frame.type == PUBREC else PUBCOMP, packet.packet_id, 0, out)
        link_dirty(crew.reactor, actor.link)
    elif frame.type == DISCONNECT:
        link_close(crew.reactor, actor.link, END_ACTOR)
    return True


cdef uint32_t on_data(void *context, Link *link, const uint8_t *bytes, uint32_t n) noexcept nogil:
    cdef Crew *crew = <Crew *> context
    cdef Actor *actor = actor_of(link)
    cdef const uint8_t *p = bytes
    cdef const uint8_t *end = bytes + n
    cdef Frame frame, last
    cdef Batch batch
    cdef bint good = True
    cdef int status
    memset(&batch, 0, sizeof(Batch))
    crew.now_ns = clock_ns()
    while p < end and good:
        status = frame_next(p, end, 0, &frame)
        if status == ST_NEED_MORE:
            link.want_bytes = frame.total_bytes
            break
        if status != ST_OK:
            good = False
            break
        p += frame.total_bytes
        if likely(frame.type == PUBLISH):
            # Without verification the payload of one delivery per read is looked at; the others are counted for the same publisher.
            good = on_delivery(actor, &frame, &batch, actor.verify or p == end)
        else:
            good = on_control(actor, &frame)
    if batch.run:
        delivered_add(crew, batch.publisher, batch.run)
    if batch.count:
        counter_add(&actor.received, batch.count)
        total(crew, T_RECEIVED, batch.count)
        total(crew, T_BYTES_RECEIVED, batch.bytes)
    if not good:
        total(crew, T_ERRORS, 1)
        link_close(crew.reactor, link, END_ACTOR)
        return n
    return <uint32_t> (p - bytes)


# ---- the reactor's other hooks

cdef int on_open(void *context, Link *link) noexcept nogil:
    return ST_ERROR                     # nothing listens here


cdef void on_end(void *context, Link *link, int reason) noexcept nogil:
    cdef Crew *crew = <Crew *> context
    cdef Actor *actor = actor_of(link)
    if actor.state == ACTOR_UP:
        counter_sub(&crew.totals[<int> T_CONNECTED], 1)
        if not actor.quitting:
            total(crew, T_LOST_CONNECTIONS, 1)
    elif actor.state == ACTOR_CONNECTING:
        crew.connecting -= 1
        if not actor.quitting:          # else it was told to leave meanwhile
            failure_note(crew, transport_failure(&link.transport))
            total(crew, T_REFUSED, 1)
    actor.link = NULL
    actor.state = ACTOR_IDLE
    if actor.again and actor.quitting:
        actor_wait(actor)


cdef void on_drained(void *context, Link *link) noexcept nogil:
    if actor_of(link).publishing != NULL:
        publisher_ready(actor_of(link))


cdef void on_timer(void *context, TimerNode *node) noexcept nogil:
    cdef Crew *crew = <Crew *> context
    cdef Actor *actor = actor_of(<Link *> node)
    cdef Packet packet
    memset(&packet, 0, sizeof(Packet))
    packet.type = PINGREQ
    send_packet(actor, &packet)
    wheel_add(crew.reactor.wheel, node, crew.reactor.now_ms + actor.keep_alive * 800)


cdef void on_turn_end(void *context) noexcept nogil:
    cdef Crew *crew = <Crew *> context
    cdef Actor *actor
    cdef uint64_t now
    cdef uint32_t i
    connect_more(crew)
    if crew.field.thread_count > 1:     # deliveries on other threads open windows here
        for i in range(crew.field.actor_count):
            actor = crew.field.actors[i]
            if actor.crew == crew and actor.publishing != NULL and actor.publishing.loop:
                publisher_ready(actor)
    while crew.ready != NULL:
        actor = crew.ready
        crew.ready = actor.publishing.next_ready
        actor.publishing.in_ready = False
        publisher_try(actor)
    if crew.paced.count:
        now = clock_ns()
        for i in range(crew.paced.count):
            publisher_pace((<Actor **> vec_at(&crew.paced, i))[0], now)


cdef void on_accept_error(void *context, uint16_t listener, int error) noexcept nogil:
    pass                                # nothing listens here


cdef void command(Crew *crew, const Command *mail) noexcept nogil:
    cdef Actor *actor
    cdef uint32_t i
    if mail.verb == VERB_RESET:
        hist_reset(crew.latency)
        hist_reset(crew.acknowledging)
    for i in range(mail.first, mail.end):
        actor = crew.field.actors[i]
        if actor.crew != crew:
            continue
        if mail.verb == VERB_CONNECT:
            actor_wait(actor)
        elif mail.verb == VERB_DISCONNECT:
            actor.again = False
            actor.unwanted = True
            if actor.link != NULL:
                actor_leave(actor)
        elif mail.verb == VERB_ABORT:
            actor.again = False
            actor.unwanted = True
            if actor.link != NULL:
                actor.quitting = True
                link_close(crew.reactor, actor.link, END_NO_MEMORY)     # at once, without flushing
        elif actor.publishing != NULL:
            if mail.verb == VERB_PUBLISH:
                publisher_start(actor, mail.messages)
            elif mail.verb == VERB_STOP_PUBLISHING:
                actor.publishing.running = False


cdef void on_mail(void *context, Mail *chain) noexcept nogil:
    cdef Mail *next
    while chain != NULL:
        next = chain.next
        command(<Crew *> context, <Command *> chain)
        mem_free(chain)
        chain = next


cdef LinkHooks crew_hooks
crew_hooks.on_open = on_open
crew_hooks.on_data = on_data
crew_hooks.on_end = on_end
crew_hooks.on_drained = on_drained
crew_hooks.on_timer = on_timer
crew_hooks.on_mail = on_mail
crew_hooks.on_turn_end = on_turn_end
crew_hooks.on_accept_error = on_accept_error


# ---- threads

cdef bint pacing(const Crew *crew) noexcept nogil:
    cdef uint32_t i
    for i in range(crew.paced.count):
        if (<Actor **> vec_at(&crew.paced, i))[0].publishing.running:
            return True
    return False


cdef void *crew_main(void *argument) noexcept nogil:
    cdef Crew *crew = <Crew *> argument
    while not atomic_load_u32_acquire(&crew.quit):
        reactor_turn(crew.reactor, 0 if pacing(crew) else 1000)        # a fixed rate spins: a millisecond's sleep would be in the latency
    return NULL


cdef Crew *crew_build(Field *field, uint32_t index) noexcept nogil:
    cdef Crew *crew = <Crew *> mem_alloc_zeroed(1, sizeof(Crew))
    if crew == NULL:
        return NULL
    crew.field = field
    crew.index = index
    vec_init(&crew.paced, sizeof(Actor *))
    crew.latency = <Hist *> mem_alloc_zeroed(1, sizeof(Hist))
    crew.acknowledging = <Hist *> mem_alloc_zeroed(1, sizeof(Hist))
    crew.scratch = <uint8_t *> mem_alloc_zeroed(1, (field.payload_most if field.payload_most > 2 * SUBSCRIBE_BYTES else 2 * SUBSCRIBE_BYTES) + 65536)
    if crew.latency == NULL or crew.acknowledging == NULL or crew.scratch == NULL or pool_init(&crew.msgs, <uint16_t> index, field.thread_count) != ST_OK:
        mem_free(crew.latency)
        mem_free(crew.acknowledging)
        mem_free(crew.scratch)
        mem_free(crew)
        return NULL
    crew.reactor = reactor_build(&crew_hooks, crew, &crew.msgs, &field.clock, sizeof(ActorLink), TURN_BYTES)
    if crew.reactor == NULL:
        pool_free(&crew.msgs)
        mem_free(crew.latency)
        mem_free(crew.acknowledging)
        mem_free(crew.scratch)
        mem_free(crew)
        return NULL
    return crew


cdef int span_keep(Span *span, Span given) noexcept nogil:
    cdef uint8_t *copy
    span[0] = span_make(NULL, 0)
    if given.n:
        copy = <uint8_t *> mem_alloc(given.n)
        if copy == NULL:
            return ST_NO_MEMORY
        memcpy(copy, given.p, given.n)
        span[0] = span_make(copy, given.n)
    return ST_OK


cdef void road_free(Road *road) noexcept nogil:
    mem_free(<void *> road.unix_path.p)
    mem_free(<void *> road.ws_request.p)
    mem_free(<void *> road.ws_accept.p)
    if road.tls != NULL:
        tls_client_drop(road.tls)


cdef Field *field_build(const Dialect *dialect, const Road *road, uint32_t threads, uint32_t connect_batch) noexcept nogil:
    cdef Field *field = <Field *> mem_alloc_zeroed(1, sizeof(Field))
    cdef int path, request, accept
    if field == NULL:
        return NULL
    path = span_keep(&field.road.unix_path, road.unix_path)
    request = span_keep(&field.road.ws_request, road.ws_request)
    accept = span_keep(&field.road.ws_accept, road.ws_accept)
    if path != ST_OK or request != ST_OK or accept != ST_OK:
        road_free(&field.road)
        mem_free(field)
        return NULL
    field.dialect = dialect
    field.road.target = road.target
    field.road.ws_frame_most = road.ws_frame_most
    field.road.tls = tls_client_share(road.tls) if road.tls != NULL else NULL
    field.thread_count = threads
    field.connect_batch = connect_batch
    return field


cdef int field_start(Field *field, Actor **actors, uint32_t count) noexcept nogil:
    cdef sigset_t all_signals, old
    cdef uint32_t i
    cdef int status = 0
    field.actors = actors
    field.actor_count = count
    field.delivered = <uint64_t *> mem_alloc_zeroed(count if count else 1, sizeof(uint64_t))
    if field.delivered == NULL:
        return ST_NO_MEMORY
    for i in range(field.thread_count):
        field.crews[i] = crew_build(field, i)
        if field.crews[i] == NULL:
            return ST_NO_MEMORY
    for i in range(count):
        actors[i].crew = field.crews[actors[i].thread]
    sigfillset(&all_signals)
    pthread_sigmask(SIG_SETMASK, &all_signals, &old)
    for i in range(field.thread_count):
        status = pthread_create(&field.crews[i].thread, NULL, crew_main, field.crews[i])
        if status != 0:
            break
        field.crews[i].started = True
    pthread_sigmask(SIG_SETMASK, &old, NULL)
    return ST_OK if status == 0 else ST_ERROR


cdef int field_tell(Field *field, uint32_t verb, uint32_t first, uint32_t end, uint64_t messages) noexcept nogil:
    cdef Command *mail
    cdef uint32_t i
    for i in range(field.thread_count):
        mail = <Command *> mem_alloc_zeroed(1, sizeof(Command))
        if mail == NULL:
            return ST_NO_MEMORY
        mail.verb = verb
        mail.first = first
        mail.end = end
        mail.messages = messages
        if inbox_post(&field.crews[i].reactor.inbox, &mail.mail, &mail.mail):
            inbox_wake(&field.crews[i].reactor.inbox)
    return ST_OK


cdef void field_free(Field *field) noexcept nogil:
    cdef Crew *crew
    cdef Mail *mail
    cdef Mail *next
    cdef uint32_t i
    for i in range(field.thread_count):
        crew = field.crews[i]
        if crew != NULL and crew.started:
            atomic_store_u32_release(&crew.quit, 1)
            inbox_wake(&crew.reactor.inbox)
    for i in range(field.thread_count):
        crew = field.crews[i]
        if crew == NULL:
            continue
        if crew.started:
            pthread_join(crew.thread, NULL)
        mail = inbox_take(&crew.reactor.inbox)
        while mail != NULL:
            next = mail.next
            mem_free(mail)
            mail = next
        reactor_free(crew.reactor)
        pool_free(&crew.msgs)
        vec_free(&crew.paced)
        mem_free(crew.latency)
        mem_free(crew.acknowledging)
        mem_free(crew.scratch)
        mem_free(crew)
    for i in range(field.actor_count):
        actor_free(field.actors[i])
    road_free(&field.road)
    mem_free(field.actors)
    mem_free(field.delivered)
    mem_free(field)
