from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset, strlen
from posix.unistd cimport close, usleep

from mqttc.base.alloc cimport mem_alloc, mem_alloc_zeroed, mem_free
from mqttc.base.inbox cimport Mail, inbox_free, inbox_init, inbox_post, inbox_take, inbox_wake
from mqttc.base.logring cimport LogRecord, log_text, logring_abandon, logring_build, logring_free, logring_push
from mqttc.base.map cimport map_free, map_init, map_next
from mqttc.base.msg cimport Msg, msg_come_home, msg_drop, msg_take_strays, pool_free, pool_init
from mqttc.base.ring cimport ring_at, ring_init, ring_pop_front, ring_trim
from mqttc.base.timer cimport TimerNode, wheel_add
from mqttc.base.types cimport (
    ST_ERROR, ST_LIMIT, ST_NO_MEMORY, ST_OK, Span, atomic_add_u32_relaxed, atomic_load_u32_acquire, atomic_load_u64_relaxed, atomic_store_i64_relaxed, atomic_store_u32_release, span_equal,
    span_make,
)
from mqttc.base.vec cimport vec_at, vec_free, vec_init
from mqttc.broker.acl cimport Acl, acl_drop, acl_share, grant_drop
from mqttc.broker.conn cimport conn_data, conn_ended, conn_release, conn_timer, conn_uncount
from mqttc.broker.deliver cimport fan_out, fan_out_slice
from mqttc.broker.durable cimport journal_flush, journal_forget
from mqttc.broker.gate cimport gate_free, gate_init
from mqttc.broker.group cimport group_free
from mqttc.broker.guard cimport guard_accept, guard_free, guard_init, guard_leave, rates_flushed, rates_release
from mqttc.broker.handle cimport handle_worker
from mqttc.broker.inside cimport inside_answered, inside_free, inside_pump_all, on_request
from mqttc.broker.journal cimport JournalHooks, journal_free, journal_start, journal_stop
from mqttc.broker.publication cimport Publication, publication_clear, publication_of
from mqttc.broker.pump cimport bodies_arrived, delivery_ready, session_pump
from mqttc.broker.record cimport DURABILITY_SYNCED, Body
from mqttc.broker.mail cimport mail_discard, post, post_all, publish_mail_done
from mqttc.broker.on_connect cimport conn_init, connect_adopt, connect_welcome, on_answer
from mqttc.broker.on_head cimport on_head_answer, tunnel_drained
from mqttc.broker.on_publish cimport brakes_release, conn_brake, publish_answered
from mqttc.broker.overload cimport overload_look
from mqttc.broker.on_subscribe cimport rights_recheck, subscribe_answered
from mqttc.broker.parked cimport unpark
from mqttc.broker.permit cimport rights_changed
from mqttc.broker.port cimport delivery_free, port_flush
from mqttc.broker.presence cimport session_timer
from mqttc.broker.reply cimport END_REFUSED, conn_disconnect, conn_of, replies_release
from mqttc.broker.report cimport (
    EV_ACCEPT_ERROR, EV_CONNECTION_LIMIT, EV_JOURNAL_FAILS, EV_JOURNAL_HOLDS, EV_NO_MEMORY, EV_SHUTTING_DOWN, LOG_ERROR, LOG_INFO, LOG_WARNING, report, text,
)
from mqttc.broker.retain cimport retain_build, retain_free, retain_sweep
from mqttc.broker.routes cimport route_drop, routes_free, routes_init
from mqttc.broker.session cimport SESSION_PAGE, session_discard, session_of
from mqttc.broker.shared cimport credits_grant, on_group_mail, own_mail
from mqttc.broker.state cimport (
    CONN_COUNTED, CONN_DONE, CONN_HEAD, CONN_REMOTE, CONN_TUNNEL, MAIL_ACL, MAIL_ADOPT, MAIL_ANSWER, MAIL_BLOCKS, MAIL_BODIES, MAIL_BRAKE, MAIL_COMMITTED, MAIL_DELIVERY, MAIL_GROUP, MAIL_HEAD,
    MAIL_HOOK, MAIL_LINK, MAIL_PUBLISH, MAIL_REQUEST, MAIL_SHUTDOWN, MAX_WORKERS, TIMER_BRAKE, TIMER_CONN, TIMER_SESSION, TIMER_SHUTDOWN, TIMER_SWEEP, TIMER_THROTTLE, WAIT_INSIDE, WAIT_OFFER, WAIT_SESSION, AclMail, AdoptMail,
    AnswerMail, BlocksMail, BodiesMail, BrakeMail, CommittedMail, Conn, DeliveryMail, Engine, Group, GroupMail, HeadMail, HookMail, LinkMail, Listener, Parked, PlainMail, PublishMail, RequestMail, Session,
    Settings, Wait, Worker,
)
from mqttc.broker.stats cimport C_REFUSED_LIMIT, stat
from mqttc.broker.trie cimport trie_build, trie_free
from mqttc.broker.verdicts cimport verdicts_free, verdicts_init
from mqttc.net.outq cimport chunk_drop
from mqttc.net.proxy cimport proxy_accept
from mqttc.net.reactor cimport (
    Link, LinkHooks, clock_hold, clock_move, clock_now_ms, clock_release, clock_wall_ms, link_close, link_open, reactor_abandon, reactor_build, reactor_clock, reactor_ending, reactor_free, reactor_link, reactor_listen, reactor_next_link, reactor_run, reactor_turn, reactor_unlisten,
)
from mqttc.net.tcp cimport PeerAddress, tcp_ops
from mqttc.net.vouched cimport Proofs, vouched_wrap
from mqttc.net.ws cimport ws_accept
from mqttc.proto.packet cimport RC_QUOTA_EXCEEDED, RC_SERVER_SHUTTING_DOWN, SUBSCRIBE, Frame

cdef extern from "<signal.h>" nogil:
    ctypedef struct sigset_t:
        pass
    int sigfillset(sigset_t *set)
    int pthread_sigmask(int how, const sigset_t *set, sigset_t *old)
    const int SIG_SETMASK

cdef extern from "<pthread.h>" nogil:
    ctypedef unsigned long pthread_t
    int pthread_create(pthread_t *thread, const void *attributes, void *(*start)(void *) noexcept nogil, void *argument)
    int pthread_join(pthread_t thread, void **result)

cdef extern from "<string.h>" nogil:
    char *strerror_r(int error, char *room, size_t n)

cdef enum:
    LOG_RECORDS = 4096
    OPEN_QUESTIONS = 65536             # bounds of the gate's list
    OPEN_QUESTION_BYTES = 64 << 20
    ADVANCE_WAIT_US = 50
    ADVANCE_ATTEMPTS = 40000           # until every worker has seen the moved clock
    SWEEP_MS = 2000
    SWEEP_TOPICS = 20000               # retained messages looked at for expiry per sweep
    SHUTDOWN_TICK_MS = 50
    SHUTDOWN_LINGER_MS = 200           # for peers to read our last words once everything is sent


# ---- hooks of the reactor

cdef bint gauge_take(uint32_t *gauge, uint32_t limit) noexcept nogil:
    """Counts one more unless that is past the limit (0: none), however many workers count at once."""
    if atomic_add_u32_relaxed(gauge, 1) < limit or limit == 0:
        return True
    atomic_add_u32_relaxed(gauge, <uint32_t> -1)
    return False


cdef bint conn_admit(Worker *worker, Conn *conn) noexcept nogil:
    """Counts a new connection unless a limit is met, and sets its CONNECT a deadline."""
    cdef Engine *engine = worker.engine
    cdef Listener *listener = engine.listeners[conn.link.listener]
    cdef const char *why = NULL
    if not gauge_take(&engine.connections, engine.settings.max_connections):
        stat(&worker.stats, C_REFUSED_LIMIT)
        report(worker, LOG_WARNING, EV_CONNECTION_LIMIT, RC_QUOTA_EXCEEDED, conn, NULL, text("too many connections"))
        return False
    if not gauge_take(&listener.open_count, listener.max_connections):
        atomic_add_u32_relaxed(&engine.connections, <uint32_t> -1)
        stat(&worker.stats, C_REFUSED_LIMIT)
        report(worker, LOG_WARNING, EV_CONNECTION_LIMIT, RC_QUOTA_EXCEEDED, conn, NULL, text("too many connections on this listener"))
        return False
    conn.flags |= CONN_COUNTED
    if not guard_accept(worker, conn, &why):
        report(worker, LOG_WARNING, EV_CONNECTION_LIMIT, RC_QUOTA_EXCEEDED, conn, NULL, text(why))
        conn_uncount(worker, conn)
        guard_leave(worker, conn)
        return False
    wheel_add(worker.reactor.wheel, &conn.link.timer, worker.reactor.now_ms + engine.settings.connect_timeout_ms)
    return True


cdef int on_open(void *context, Link *link) noexcept nogil:
    cdef Worker *worker = <Worker *> context
    cdef Conn *conn = conn_of(link)
    cdef Listener *listener = worker.engine.listeners[link.listener]
    cdef int status = ST_OK
    conn_init(worker, conn)
    if not conn_admit(worker, conn):
        return ST_LIMIT
    if listener.proxy != NULL:
        status = proxy_accept(listener.proxy, &link.transport, &link.peer)
    elif listener.upgrade != NULL:
        status = listener.upgrade(listener.upgrade_context, &link.transport)
    if status != ST_OK:
        conn_uncount(worker, conn)
        guard_leave(worker, conn)
        if status == ST_LIMIT:
            report(worker, LOG_WARNING, EV_CONNECTION_LIMIT, RC_QUOTA_EXCEEDED, conn, NULL, text("too many TLS handshakes at once"))
        else:
            report(worker, LOG_WARNING, EV_NO_MEMORY, 0, conn, NULL, text("no memory for the connection's transport"))
        return status
    if listener.http:
        conn.phase = CONN_HEAD
    return ST_OK


cdef uint32_t on_data(void *context, Link *link, const uint8_t *bytes, uint32_t n) noexcept nogil:
    return conn_data(<Worker *> context, conn_of(link), bytes, n)


cdef void on_end(void *context, Link *link, int reason) noexcept nogil:
    conn_ended(<Worker *> context, conn_of(link), reason)


cdef void on_drained(void *context, Link *link) noexcept nogil:
    if conn_of(link).partner != NULL:
        tunnel_drained(<Worker *> context, conn_of(link))
    elif conn_of(link).session != NULL:
        session_pump(<Worker *> context, conn_of(link).session)


cdef void on_timer(void *context, TimerNode *node) noexcept nogil:
    cdef Worker *worker = <Worker *> context
    if node.kind == TIMER_CONN:
        conn_timer(worker, <Conn *> node)
    elif node.kind == TIMER_SESSION:
        session_timer(worker, <Session *> node)
    elif node.kind == TIMER_BRAKE:
        brakes_release(worker)
    elif node.kind == TIMER_SWEEP:
        retain_sweep(worker.engine.retain, &worker.msgs, worker.reactor.turn_ms, SWEEP_TOPICS)
        wheel_add(worker.reactor.wheel, node, worker.reactor.turn_ms + SWEEP_MS)     # once, however far the clock has jumped
    elif node.kind == TIMER_THROTTLE:
        rates_release(worker)
    elif node.kind == TIMER_SHUTDOWN:
        shutdown_tick(worker)


cdef void on_turn_end(void *context) noexcept nogil:
    cdef Worker *worker = <Worker *> context
    credits_grant(worker)
    own_mail(worker)
    inside_pump_all(worker)
    if worker.engine.journal != NULL:
        journal_flush(worker)
    post_all(worker)
    port_flush(worker)
    overload_look(worker)


cdef void on_flushed(void *context, Link *link, uint64_t written) noexcept nogil:
    rates_flushed(<Worker *> context, conn_of(link), written)


cdef void on_accept_error(void *context, uint16_t listener, int error) noexcept nogil:
    cdef Worker *worker = <Worker *> context
    cdef char room[96]
    cdef const char *why = strerror_r(error, room, sizeof(room))
    report(worker, LOG_WARNING, EV_ACCEPT_ERROR, 0, NULL, NULL, span_make(why, strlen(why)))


# ---- mail

cdef void on_publish_mail(Worker *worker, PublishMail *mail) noexcept nogil:
    cdef Publication pub
    cdef BrakeMail *brake
    cdef uint64_t braked = 0
    cdef uint32_t i
    for i in range(mail.count):
        publication_of(worker, &pub, mail.items[i].msg)
        fan_out_slice(worker, &pub, mail.items[i].route)
        if pub.pressure and pub.publisher and pub.publisher != braked:
            brake = <BrakeMail *> mem_alloc(sizeof(BrakeMail))
            if brake != NULL:
                braked = pub.publisher
                brake.mail.kind = MAIL_BRAKE
                brake.session = pub.publisher
                brake.pause = pub.qos == 0
                post(worker, handle_worker(pub.publisher), &brake.mail)
        publication_clear(worker, &pub)
        route_drop(mail.items[i].route)
    publish_mail_done(worker, mail)


cdef void on_hook_mail(Worker *worker, HookMail *mail) noexcept nogil:
    cdef Conn *conn
    cdef Parked *parked
    cdef Frame frame
    if mail.session:
        inside_answered(worker, mail)
        return
    conn = <Conn *> reactor_link(worker.reactor, mail.slot, mail.generation)
    parked = unpark(worker, conn, mail, &frame) if conn != NULL else NULL
    if parked == NULL:
        return
    if parked.type == SUBSCRIBE:
        subscribe_answered(worker, conn, &frame, mail)
    else:
        publish_answered(worker, conn, &frame, mail)
    mem_free(parked)


cdef void on_brake_mail(Worker *worker, BrakeMail *mail) noexcept nogil:
    cdef Session *session = session_of(worker, mail.session)
    if session != NULL and session.conn != NULL:
        conn_brake(worker, session.conn, mail.pause)


# ---- the journal

cdef void wait_over(Worker *worker, Wait *wait) noexcept nogil:
    cdef Publication pub
    cdef Session *session
    cdef Conn *conn
    if wait.kind == WAIT_OFFER:
        publication_of(worker, &pub, wait.msg)
        fan_out(worker, &pub, wait.route)
        publication_clear(worker, &pub)
        route_drop(wait.route)
    elif wait.kind == WAIT_SESSION:
        session = session_of(worker, wait.session)
        if session != NULL:
            delivery_ready(worker, session, wait.packet_id)
    elif wait.kind == WAIT_INSIDE:
        session = session_of(worker, wait.session)
        if session != NULL and session.conn != NULL:
            replies_release(worker, session.conn)
    else:
        conn = <Conn *> reactor_link(worker.reactor, <uint32_t> wait.session, <uint32_t> (wait.session >> 32))
        if conn == NULL:
            return
        if replies_release(worker, conn):
            connect_welcome(worker, conn)
        elif conn.session != NULL and conn.session.handouts != NULL:
            session_pump(worker, conn.session)


cdef void on_committed(Worker *worker, uint64_t sequence) noexcept nogil:
    cdef Wait wait
    worker.journal_committed = sequence
    while worker.waits.count and (<Wait *> ring_at(&worker.waits, 0)).until <= sequence:
        wait = (<Wait *> ring_at(&worker.waits, 0))[0]
        ring_pop_front(&worker.waits, 1)
        wait_over(worker, &wait)
    if worker.waits.count == 0 and worker.waits.capacity > 256:
        ring_trim(&worker.waits)


cdef void on_bodies_mail(Worker *worker, BodiesMail *mail) noexcept nogil:
    cdef Session *session = session_of(worker, mail.session)
    cdef uint32_t i
    if session != NULL:
        bodies_arrived(worker, session, mail.bodies, mail.count)
    for i in range(mail.count):
        if mail.bodies[i].msg != NULL:
            msg_drop(&worker.msgs, mail.bodies[i].msg)
    mem_free(mail.bodies)


cdef void engine_post(Engine *engine, uint16_t worker, Mail *mail) noexcept nogil:
    """[any thread]"""
    mail.next = NULL
    if inbox_post(&engine.workers[worker].reactor.inbox, mail, mail):
        inbox_wake(&engine.workers[worker].reactor.inbox)


cdef void journal_committed(void *context, uint16_t worker, uint64_t sequence) noexcept nogil:
    cdef CommittedMail *mail = <CommittedMail *> mem_alloc(sizeof(CommittedMail))
    while mail == NULL:                 # nothing else can tell it
        usleep(1000)
        mail = <CommittedMail *> mem_alloc(sizeof(CommittedMail))
    mail.mail.kind = MAIL_COMMITTED
    mail.sequence = sequence
    engine_post(<Engine *> context, worker, &mail.mail)


cdef void journal_bodies(void *context, uint16_t worker, uint64_t handle, Body *bodies, uint32_t count) noexcept nogil:
    cdef BodiesMail *mail = <BodiesMail *> mem_alloc(sizeof(BodiesMail))
    while mail == NULL:
        usleep(1000)
        mail = <BodiesMail *> mem_alloc(sizeof(BodiesMail))
    mail.mail.kind = MAIL_BODIES
    mail.session = handle
    mail.bodies = bodies
    mail.count = count
    engine_post(<Engine *> context, worker, &mail.mail)


cdef void journal_strays(void *context, uint16_t worker, Msg *chain) noexcept nogil:
    cdef BlocksMail *mail = <BlocksMail *> mem_alloc(sizeof(BlocksMail))
    cdef Msg *next
    if mail == NULL:                    # dead and counted: the system gets them
        while chain != NULL:
            next = chain.next
            mem_free(chain)
            chain = next
        return
    mail.mail.kind = MAIL_BLOCKS
    mail.chain = chain
    engine_post(<Engine *> context, worker, &mail.mail)


cdef void journal_state(void *context, bint failing, const char *why) noexcept nogil:
    cdef Engine *engine = <Engine *> context
    cdef LogRecord record
    memset(&record, 0, sizeof(LogRecord))
    record.wall_ms = clock_wall_ms(&engine.clock)
    record.event = EV_JOURNAL_FAILS if failing else EV_JOURNAL_HOLDS
    record.level = LOG_ERROR if failing else LOG_WARNING
    log_text(record.detail, &record.detail_bytes, sizeof(record.detail), text(why))
    logring_push(engine.log, &record)


cdef JournalHooks journal_hooks
journal_hooks.committed = journal_committed
journal_hooks.bodies = journal_bodies
journal_hooks.strays = journal_strays
journal_hooks.state = journal_state


cdef void on_link_mail(Worker *worker, LinkMail *mail) noexcept nogil:
    cdef Conn *conn = <Conn *> link_open(worker.reactor, &mail.transport, &mail.peer, mail.listener)
    if conn == NULL:
        mail.transport.ops.close(&mail.transport)
        return
    conn_init(worker, conn)
    if mail.remote:
        conn.flags |= CONN_REMOTE
    if worker.shutting_down or not conn_admit(worker, conn):
        conn.phase = CONN_DONE
        link_close(worker.reactor, &conn.link, END_REFUSED)


cdef void acl_take(Worker *worker, Acl *acl) noexcept nogil:
    """Another table, whole, between two turns: what was cached of the old one dies here. Takes the reference over."""
    cdef Session *page
    cdef uint32_t i, k
    acl_drop(worker.acl)
    worker.acl = acl
    for i in range(worker.session_pages.count):
        page = (<Session **> vec_at(&worker.session_pages, i))[0]
        for k in range(SESSION_PAGE):
            if page[k].client_id != NULL and page[k].rights != NULL:
                rights_changed(worker, &page[k])
                rights_recheck(worker, &page[k])


cdef void on_mail(void *context, Mail *chain) noexcept nogil:
    cdef Worker *worker = <Worker *> context
    cdef Mail *mail = chain
    cdef Mail *next
    while mail != NULL:
        next = mail.next
        if mail.kind == MAIL_PUBLISH:
            on_publish_mail(worker, <PublishMail *> mail)
        elif mail.kind == MAIL_BLOCKS:
            msg_come_home(&worker.msgs, (<BlocksMail *> mail).chain)
        elif mail.kind == MAIL_GROUP:
            own_mail(worker)
            on_group_mail(worker, <GroupMail *> mail)
        elif mail.kind == MAIL_ADOPT:
            connect_adopt(worker, <AdoptMail *> mail)
            mem_free((<AdoptMail *> mail).auth_data)
            grant_drop((<AdoptMail *> mail).grant)
        elif mail.kind == MAIL_ANSWER:
            on_answer(worker, <AnswerMail *> mail)
            mem_free((<AnswerMail *> mail).auth_data)
            mem_free((<AnswerMail *> mail).user)
            grant_drop((<AnswerMail *> mail).grant)
        elif mail.kind == MAIL_ACL:
            acl_take(worker, (<AclMail *> mail).acl)
            atomic_add_u32_relaxed(&worker.engine.acl_swaps, 1)
        elif mail.kind == MAIL_COMMITTED:
            on_committed(worker, (<CommittedMail *> mail).sequence)
        elif mail.kind == MAIL_BODIES:
            on_bodies_mail(worker, <BodiesMail *> mail)
        elif mail.kind == MAIL_HEAD:
            on_head_answer(worker, <HeadMail *> mail)
        elif mail.kind == MAIL_LINK:
            on_link_mail(worker, <LinkMail *> mail)
        elif mail.kind == MAIL_HOOK:
            on_hook_mail(worker, <HookMail *> mail)
        elif mail.kind == MAIL_BRAKE:
            on_brake_mail(worker, <BrakeMail *> mail)
        elif mail.kind == MAIL_REQUEST:
            on_request(worker, <RequestMail *> mail)
            mail = next                 # it is on its way back, or freed
            continue
        elif mail.kind == MAIL_DELIVERY:
            delivery_free(worker, <DeliveryMail *> mail)
            mail = next
            continue
        elif mail.kind == MAIL_SHUTDOWN:
            shutdown_begin(worker)
            mail = next                 # the worker's own, not freed
            continue
        mem_free(mail)
        mail = next


# ---- shutdown

cdef void shutdown_begin(Worker *worker) noexcept nogil:
    cdef uint32_t cursor = 0
    cdef Link *link
    reactor_unlisten(worker.reactor)
    worker.shutting_down = True
    report(worker, LOG_INFO, EV_SHUTTING_DOWN, RC_SERVER_SHUTTING_DOWN, NULL, NULL, span_make(NULL, 0))
    link = reactor_next_link(worker.reactor, &cursor)
    while link != NULL:
        if conn_of(link).phase != CONN_TUNNEL:      # these carry the last words of other connections; the control plane ends them
            conn_disconnect(worker, conn_of(link), RC_SERVER_SHUTTING_DOWN)
        link = reactor_next_link(worker.reactor, &cursor)
    worker.shutdown_since_ms = worker.reactor.now_ms
    shutdown_tick(worker)


cdef void shutdown_tick(Worker *worker) noexcept nogil:
    """Ends the loop when all output has left and peers had a moment to read it, or when the time is up."""
    cdef uint32_t unsent = 0
    cdef uint32_t ending = reactor_ending(worker.reactor, &unsent)
    cdef uint32_t cursor = 0
    cdef bint tunnels = reactor_next_link(worker.reactor, &cursor) != NULL
    cdef int64_t waited = worker.reactor.now_ms - worker.shutdown_since_ms
    cdef uint32_t bound = worker.engine.settings.shutdown_timeout_ms
    worker.unsent = unsent
    if waited >= bound or (not tunnels and (ending == 0 or (unsent == 0 and waited >= SHUTDOWN_LINGER_MS))):
        worker.reactor.stopping = True
        return
    wheel_add(worker.reactor.wheel, &worker.shutdown_timer, worker.reactor.now_ms + SHUTDOWN_TICK_MS)


# ---- a worker

cdef bint client_equals(void *context, uint64_t value, const void *key) noexcept nogil:
    cdef Session *session = <Session *> value
    return span_equal(span_make(session.client_id, session.client_id_bytes), (<const Span *> key)[0])


cdef bint group_equals(void *context, uint64_t value, const void *key) noexcept nogil:
    return (<Group *> value).id == (<const uint64_t *> key)[0]


cdef LinkHooks worker_hooks
worker_hooks.on_open = on_open
worker_hooks.on_data = on_data
worker_hooks.on_end = on_end
worker_hooks.on_drained = on_drained
worker_hooks.on_timer = on_timer
worker_hooks.on_mail = on_mail
worker_hooks.on_turn_end = on_turn_end
worker_hooks.on_accept_error = on_accept_error
worker_hooks.on_flushed = on_flushed


cdef Worker *worker_build(Engine *engine, uint16_t index) noexcept nogil:
    cdef Settings *settings = &engine.settings
    cdef Worker *worker = <Worker *> mem_alloc_zeroed(1, sizeof(Worker))
    if worker == NULL:
        return NULL
    worker.engine = engine
    worker.index = index
    worker.brake_timer.kind = TIMER_BRAKE
    worker.sweep_timer.kind = TIMER_SWEEP
    worker.shutdown_timer.kind = TIMER_SHUTDOWN
    worker.throttle_timer.kind = TIMER_THROTTLE
    map_init(&worker.clients, client_equals, NULL)
    map_init(&worker.groups, group_equals, NULL)
    vec_init(&worker.session_pages, sizeof(Session *))
    vec_init(&worker.session_free, sizeof(uint32_t))
    vec_init(&worker.braked, sizeof(uint64_t))
    vec_init(&worker.throttled, sizeof(uint64_t))
    vec_init(&worker.yielded, sizeof(uint64_t))
    ring_init(&worker.waits, sizeof(Wait))
    worker.journal_sequence = 1
    if pool_init(&worker.msgs, index, settings.workers + 1) != ST_OK:          # one more: blocks of the journal's
        mem_free(worker)
        return NULL
    if routes_init(&worker.routes, engine.trie, settings.workers, settings.route_cache_entries) != ST_OK:
        pool_free(&worker.msgs)
        mem_free(worker)
        return NULL
    worker.routes.rules = &engine.rules
    worker.reactor = reactor_build(&worker_hooks, worker, &worker.msgs, &engine.clock, sizeof(Conn), settings.turn_bytes)
    if worker.reactor == NULL:
        routes_free(&worker.routes)
        pool_free(&worker.msgs)
        mem_free(worker)
        return NULL
    if index == 0:
        wheel_add(worker.reactor.wheel, &worker.sweep_timer, worker.reactor.now_ms + SWEEP_MS)
    return worker


cdef void *worker_main(void *argument) noexcept nogil:
    cdef Worker *worker = <Worker *> argument
    reactor_run(worker.reactor)
    reactor_turn(worker.reactor, 0)
    while worker.reactor.closing != NULL:       # what the last turn ended
        reactor_turn(worker.reactor, 0)
    return NULL


cdef void worker_empty(Worker *worker) noexcept nogil:
    """Gives up everything it holds of others: mail, sessions, groups, connections, routes. All workers have been joined."""
    cdef Mail *mail = inbox_take(&worker.reactor.inbox)
    cdef Mail *next
    cdef Link *link
    cdef Session *page
    cdef uint64_t value = 0
    cdef uint32_t cursor = 0
    cdef uint32_t i, k
    while mail != NULL:
        next = mail.next
        mail_discard(worker, mail)
        mail = next
    for i in range(worker.engine.settings.workers):
        mail = worker.post_first[i]
        while mail != NULL:
            next = mail.next
            mail_discard(worker, mail)
            mail = next
    mail = worker.port_first
    while mail != NULL:
        next = mail.next
        mail_discard(worker, mail)
        mail = next
    link = reactor_next_link(worker.reactor, &cursor)
    while link != NULL:
        conn_release(conn_of(link))
        link = reactor_next_link(worker.reactor, &cursor)
    for i in range(4):
        if worker.runs[i].chunk != NULL:
            chunk_drop(&worker.reactor.chunks, worker.runs[i].chunk)
    for i in range(worker.session_pages.count):
        page = (<Session **> vec_at(&worker.session_pages, i))[0]
        for k in range(SESSION_PAGE):
            if page[k].client_id != NULL:
                inside_free(worker, &page[k])
                session_discard(worker, &page[k])
        mem_free(page)
    cursor = 0
    while map_next(&worker.groups, &cursor, &value):
        group_free(worker, <Group *> value)
    journal_forget(worker)
    map_free(&worker.groups)
    map_free(&worker.clients)
    vec_free(&worker.session_pages)
    vec_free(&worker.session_free)
    vec_free(&worker.braked)
    vec_free(&worker.throttled)
    vec_free(&worker.yielded)
    acl_drop(worker.acl)
    verdicts_free(&worker.verdicts)
    routes_free(&worker.routes)
    reactor_free(worker.reactor)


# ---- the engine

cdef Engine *engine_build(const Settings *settings) noexcept nogil:
    cdef Engine *engine = <Engine *> mem_alloc_zeroed(1, sizeof(Engine))
    cdef uint32_t i
    if engine == NULL:
        return NULL
    engine.settings = settings[0]
    gate_init(&engine.gate, OPEN_QUESTIONS, OPEN_QUESTION_BYTES)
    if guard_init(&engine.guard) != ST_OK:
        engine_free(engine)
        return NULL
    engine.log = logring_build(LOG_RECORDS)
    engine.trie = trie_build(settings.max_topic_levels)
    engine.retain = retain_build(settings.max_retained_messages, settings.max_retained_bytes)
    engine.port_open = inbox_init(&engine.port) == ST_OK
    if engine.log == NULL or engine.trie == NULL or engine.retain == NULL or not engine.port_open or verdicts_init(&engine.verdict_rules) != ST_OK:
        engine_free(engine)
        return NULL
    for i in range(settings.workers):
        engine.workers[i] = worker_build(engine, <uint16_t> i)
        if engine.workers[i] == NULL:
            engine_free(engine)
            return NULL
    return engine


cdef int engine_listen(Engine *engine, Listener *listener) noexcept nogil:
    if engine.listener_count == 256:
        return ST_LIMIT
    engine.listeners[engine.listener_count] = listener
    engine.listener_count += 1
    return <int> engine.listener_count - 1


cdef bint synced_somewhere(const Engine *engine) noexcept nogil:
    cdef uint32_t i
    for i in range(engine.listener_count):
        if engine.listeners[i].durability == DURABILITY_SYNCED:
            return True
    for i in range(engine.rules.filter_count):
        if engine.rules.filters[i].durability == DURABILITY_SYNCED:
            return True
    return engine.settings.durability == DURABILITY_SYNCED


cdef int engine_start(Engine *engine) noexcept nogil:
    cdef uint32_t i, k
    cdef int status = ST_OK
    cdef sigset_t all_signals, old
    for i in range(engine.settings.workers):
        for k in range(engine.listener_count):
            if status == ST_OK and engine.listeners[k].fd >= 0:
                status = reactor_listen(engine.workers[i].reactor, engine.listeners[k].fd, <uint16_t> k)
    if status != ST_OK:
        return status
    if engine.journal != NULL:
        engine.synced = synced_somewhere(engine)
        status = journal_start(engine.journal, &journal_hooks, engine)
        if status != ST_OK:
            return status
        for i in range(engine.settings.workers):
            journal_flush(engine.workers[i])    # what recovery has given up: a first turn may be long in coming
    sigfillset(&all_signals)
    pthread_sigmask(SIG_SETMASK, &all_signals, &old)
    for i in range(engine.settings.workers):
        status = pthread_create(&engine.workers[i].thread, NULL, worker_main, engine.workers[i])
        if status != 0:
            break
        engine.workers[i].thread_started = True
    pthread_sigmask(SIG_SETMASK, &old, NULL)
    return ST_OK if status == 0 else ST_ERROR


cdef bint engine_stop(Engine *engine, uint32_t timeout_ms) noexcept nogil:
    cdef uint32_t i
    cdef bint flushed = True
    cdef PlainMail *mail
    cdef Worker *worker
    engine.settings.shutdown_timeout_ms = timeout_ms
    clock_release(&engine.clock)        # last words are waited for in real time
    atomic_store_u32_release(&engine.stopping, 1)
    for i in range(engine.settings.workers):
        worker = engine.workers[i]
        if not worker.thread_started:
            continue
        mail = &worker.shutdown_mail
        mail.mail.kind = MAIL_SHUTDOWN
        mail.mail.next = NULL
        if inbox_post(&worker.reactor.inbox, &mail.mail, &mail.mail):
            inbox_wake(&worker.reactor.inbox)
    for i in range(engine.settings.workers):
        worker = engine.workers[i]
        if worker.thread_started:
            pthread_join(worker.thread, NULL)
            worker.thread_started = False
            if worker.unsent:
                flushed = False
    for i in range(engine.listener_count):
        if engine.listeners[i].fd >= 0:
            close(engine.listeners[i].fd)
            engine.listeners[i].fd = -1
    if engine.journal != NULL and not journal_stop(engine.journal):
        flushed = False
    return flushed


cdef void engine_free(Engine *engine) noexcept nogil:
    cdef uint32_t i, k
    cdef uint32_t count = 0
    cdef Mail *mail = inbox_take(&engine.port) if engine.port_open else NULL
    cdef Mail *next
    while mail != NULL:
        next = mail.next
        mail_discard(engine.workers[0], mail)
        mail = next
    for i in range(engine.settings.workers):
        if engine.workers[i] != NULL:
            worker_empty(engine.workers[i])
    if engine.retain != NULL:
        retain_free(engine.retain, &engine.workers[0].msgs if engine.workers[0] != NULL else NULL)
    for i in range(engine.settings.workers):        # blocks go home before the homes go
        for k in range(engine.settings.workers):
            if engine.workers[i] != NULL and engine.workers[k] != NULL and i != k:
                msg_come_home(&engine.workers[k].msgs, msg_take_strays(&engine.workers[i].msgs, <uint16_t> k, &count))
    for i in range(engine.settings.workers):
        if engine.workers[i] != NULL:
            pool_free(&engine.workers[i].msgs)
            mem_free(engine.workers[i])
    if engine.journal != NULL:
        journal_free(engine.journal)
    for i in range(engine.rules.filter_count):
        mem_free(engine.rules.filters[i].text)
    mem_free(engine.rules.filters)
    if engine.trie != NULL:
        trie_free(engine.trie)
    if engine.log != NULL:
        logring_free(engine.log)
    gate_free(&engine.gate)
    guard_free(&engine.guard)
    if engine.port_open:
        inbox_free(&engine.port)
    for i in range(engine.listener_count):
        if engine.listeners[i].fd >= 0:
            close(engine.listeners[i].fd)
        if engine.listeners[i].upgrade_drop != NULL:
            engine.listeners[i].upgrade_drop(engine.listeners[i].upgrade_context)
        if engine.listeners[i].proxy != NULL:
            mem_free(engine.listeners[i].proxy.trusted)
        mem_free(engine.listeners[i].proxy)
        mem_free(engine.listeners[i].server_reference)
        mem_free(engine.listeners[i])
    mem_free(engine.response_information)
    mem_free(engine)


cdef bint acl_give(Engine *engine, Acl *acl, AclMail **mails) noexcept nogil:
    """A mail for each worker. False: no memory, and none."""
    cdef uint32_t i
    for i in range(engine.settings.workers):
        mails[i] = <AclMail *> mem_alloc_zeroed(1, sizeof(AclMail))
        if mails[i] == NULL:
            while i:
                i -= 1
                acl_drop(mails[i].acl)
                mem_free(mails[i])
            return False
        mails[i].mail.kind = MAIL_ACL
        mails[i].acl = acl_share(acl)
    return True


cdef int engine_acl(Engine *engine, Acl *acl, bint running) noexcept nogil:
    cdef AclMail *mails[MAX_WORKERS]
    cdef uint32_t i, before
    cdef uint32_t attempt = 0
    if not running:
        engine.guarded = True
        for i in range(engine.settings.workers):
            acl_drop(engine.workers[i].acl)
            engine.workers[i].acl = acl_share(acl)
        return ST_OK
    if not acl_give(engine, acl, mails):
        return ST_NO_MEMORY
    before = atomic_load_u32_acquire(&engine.acl_swaps)
    for i in range(engine.settings.workers):
        engine_post(engine, <uint16_t> i, &mails[i].mail)
    while atomic_load_u32_acquire(&engine.acl_swaps) - before < engine.settings.workers and attempt < ADVANCE_ATTEMPTS:     # one that has stopped takes none
        usleep(100)
        attempt += 1
    return ST_OK


cdef int engine_adopt(
    Engine *engine, uint16_t worker, int fd, uint16_t listener, const PeerAddress *peer, const Proofs *proofs, bint websocket, bint remote,
) noexcept nogil:
    cdef LinkMail *mail = <LinkMail *> mem_alloc_zeroed(1, sizeof(LinkMail))
    if mail == NULL:
        return ST_NO_MEMORY
    mail.mail.kind = MAIL_LINK
    mail.listener = listener
    mail.remote = remote
    mail.peer = peer[0]
    mail.transport.ops = tcp_ops()
    mail.transport.fd = fd
    if vouched_wrap(&mail.transport, proofs) != ST_OK or (
        websocket and ws_accept(&mail.transport, span_make(NULL, 0), span_make(NULL, 0), engine.settings.max_frame_size) != ST_OK
    ):
        mail.transport.ops.close(&mail.transport)
        mem_free(mail)
        return ST_NO_MEMORY
    if inbox_post(&engine.workers[worker].reactor.inbox, &mail.mail, &mail.mail):
        inbox_wake(&engine.workers[worker].reactor.inbox)
    return ST_OK


cdef void engine_abandon(Engine *engine) noexcept nogil:
    cdef uint32_t i
    for i in range(engine.settings.workers):
        reactor_abandon(engine.workers[i].reactor)
    close(engine.port.wake_read_fd)
    if engine.port.wake_write_fd != engine.port.wake_read_fd:
        close(engine.port.wake_write_fd)
    if engine.log != NULL:
        logring_abandon(engine.log)
    if engine.journal != NULL:          # its file is closed by name, see native
        close(engine.journal.inbox.wake_read_fd)
        if engine.journal.inbox.wake_write_fd != engine.journal.inbox.wake_read_fd:
            close(engine.journal.inbox.wake_write_fd)
    for i in range(engine.listener_count):
        if engine.listeners[i].fd >= 0:
            close(engine.listeners[i].fd)


cdef void engine_hold(Engine *engine, int64_t wall_ms) noexcept nogil:
    cdef uint32_t i
    clock_hold(&engine.clock, wall_ms)
    for i in range(engine.settings.workers):
        reactor_clock(engine.workers[i].reactor)


cdef void workers_turn(Engine *engine) noexcept nogil:
    """Returns when each worker has begun and ended a turn since: its timers that were due have run, and it has read what had arrived."""
    cdef uint64_t[256] turns
    cdef uint32_t i, attempt
    cdef bint waiting = True
    for i in range(engine.settings.workers):
        turns[i] = atomic_load_u64_relaxed(&engine.workers[i].reactor.stats.turns)
    for attempt in range(ADVANCE_ATTEMPTS):             # a worker that has stopped makes no turns
        waiting = False
        for i in range(engine.settings.workers):
            if atomic_load_u64_relaxed(&engine.workers[i].reactor.stats.turns) - turns[i] < 2:
                inbox_wake(&engine.workers[i].reactor.inbox)
                waiting = True
        if not waiting:
            return
        usleep(ADVANCE_WAIT_US)


cdef void engine_advance(Engine *engine, int64_t mono_ms, int64_t wall_ms, bint heard) noexcept nogil:
    """Returns when no worker is still in a turn that read the clock before, and what they have told each other has arrived."""
    if heard:
        atomic_store_i64_relaxed(&engine.heard_ms, clock_now_ms(&engine.clock) + mono_ms)
    clock_move(&engine.clock, mono_ms, wall_ms)
    workers_turn(engine)
    if engine.settings.workers > 1:
        workers_turn(engine)


cdef uint64_t engine_counter(const Engine *engine, int counter) noexcept nogil:
    cdef uint64_t total = 0
    cdef uint32_t i
    for i in range(engine.settings.workers):
        total += atomic_load_u64_relaxed(&engine.workers[i].stats.v[counter])
    return total
