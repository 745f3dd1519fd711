from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from mqttc.base.alloc cimport mem_alloc_zeroed, mem_free
from mqttc.base.map cimport map_find, map_free, map_init, map_insert, map_next, map_remove, random_bytes
from mqttc.base.siphash cimport SipHash, sip_add, sip_begin, sip_end
from mqttc.base.timer cimport wheel_add
from mqttc.base.types cimport ST_OK, Span, atomic_add_u32_relaxed, atomic_add_u64_relaxed, unlikely
from mqttc.base.vec cimport vec_at, vec_push, vec_swap_remove
from mqttc.broker.state cimport (
    GUARD_OVER_NUMBER, GUARD_OVER_RATE, GUARD_PENDING, GUARD_THROTTLED, AliasesOut, Bucket, Conn, ConnGuard, Guard, GuardEntry, GuardTable, Listener, Rates, Settings, Worker, pthread_mutex_t,
)
from mqttc.broker.stats cimport C_ADDRESSES_FORGOTTEN, C_REFUSED_ADDRESS, C_REFUSED_PENDING, C_REFUSED_RATE, C_REFUSED_USER, C_SLOWED, C_THROTTLED, stat
from mqttc.net.reactor cimport LINK_METERED, LINK_THROTTLED, link_unthrottle, reactor_link
from mqttc.net.tcp cimport PeerAddress
from mqttc.proto.packet cimport RC_CONNECTION_RATE_EXCEEDED, RC_QUOTA_EXCEEDED, RC_SUCCESS

cdef extern from "<pthread.h>" nogil:
    int pthread_mutex_init(pthread_mutex_t *mutex, const void *attributes)
    int pthread_mutex_destroy(pthread_mutex_t *mutex)
    int pthread_mutex_lock(pthread_mutex_t *mutex)
    int pthread_mutex_unlock(pthread_mutex_t *mutex)

cdef enum:
    EARLY_CONN = 2048                  # bytes that a connection is counted with before its CONNECT is accepted,
    EARLY_TLS = 40960                  # and with TLS beside that: about what OpenSSL takes during a handshake
    SLOW_MOST_MS = 10000               # for which a client is not read or written to at a time
    THROTTLE_TICK_MS = 20
    EARLY_MOST_KIB = 65535


# ---- buckets

cdef inline void tokens_refill(int64_t *tokens, int64_t *stamp_ms, int64_t now_ms, uint32_t rate) noexcept nogil:
    """`rate` a second, at most a second's worth. A token is 1000; so many come in a millisecond as the rate says."""
    cdef int64_t full = <int64_t> rate * 1000
    cdef int64_t passed = now_ms - stamp_ms[0]
    if passed > 3600000:                # no overflow, and full in any case but that of a debt that nobody can have made
        passed = 3600000
    if passed > 0:
        tokens[0] += passed * rate
        stamp_ms[0] = now_ms
    if tokens[0] > full:
        tokens[0] = full


cdef bint rate_take(int64_t *tokens, int64_t *stamp_ms, int64_t now_ms, uint32_t rate, bint *far) noexcept nogil:
    """Takes one token. False: there was none. far: for as long as a second's worth was owed already, which is not owed further."""
    tokens_refill(tokens, stamp_ms, now_ms, rate)
    far[0] = tokens[0] <= -(<int64_t> rate * 1000)
    if not far[0]:
        tokens[0] -= 1000
    return tokens[0] >= 0


# ---- tables

cdef bint entry_equals(void *context, uint64_t value, const void *key) noexcept nogil:
    cdef GuardEntry *entry = <GuardEntry *> value
    cdef const uint64_t *wanted = <const uint64_t *> key
    return entry.key[0] == wanted[0] and entry.key[1] == wanted[1]


cdef int table_init(GuardTable *table) noexcept nogil:
    pthread_mutex_init(&table.lock, NULL)
    map_init(&table.entries, entry_equals, NULL)
    return random_bytes(<uint8_t *> table.key, sizeof(table.key))


cdef void table_free(GuardTable *table) noexcept nogil:
    cdef uint32_t cursor = 0
    cdef uint64_t value = 0
    while map_next(&table.entries, &cursor, &value):
        mem_free(<GuardEntry *> value)
    map_free(&table.entries)
    pthread_mutex_destroy(&table.lock)


cdef int guard_init(Guard *guard) noexcept nogil:
    cdef int status = table_init(&guard.addresses)
    return table_init(&guard.users) | status


cdef void guard_free(Guard *guard) noexcept nogil:
    table_free(&guard.addresses)
    table_free(&guard.users)


cdef void idle_take(GuardTable *table, GuardEntry *entry) noexcept nogil:
    if entry.older != NULL:
        entry.older.newer = entry.newer
    else:
        table.oldest = entry.newer
    if entry.newer != NULL:
        entry.newer.older = entry.older
    else:
        table.newest = entry.older
    entry.older = NULL
    entry.newer = NULL
    table.idle_count -= 1


cdef void entry_forget(GuardTable *table, GuardEntry *entry) noexcept nogil:
    map_remove(&table.entries, entry.hash, entry.key, NULL)
    mem_free(entry)


cdef bint idle_add(GuardTable *table, GuardEntry *entry, uint32_t most) noexcept nogil:
    """True: the oldest was forgotten to make room."""
    cdef GuardEntry *oldest = table.oldest
    cdef bint full = table.idle_count >= most
    if full:
        idle_take(table, oldest)
        entry_forget(table, oldest)
    entry.older = table.newest
    if table.newest != NULL:
        table.newest.newer = entry
    else:
        table.oldest = entry
    table.newest = entry
    table.idle_count += 1
    return full


cdef GuardEntry *entry_of(GuardTable *table, const uint64_t *key, int64_t now_ms, uint32_t rate) noexcept nogil:
    """With one connection more than before. NULL: no memory."""
    cdef uint64_t value = 0
    cdef GuardEntry *entry
    if map_find(&table.entries, <uint32_t> key[0], key, &value):
        entry = <GuardEntry *> value
        if entry.count == 0:
            idle_take(table, entry)
    else:
        entry = <GuardEntry *> mem_alloc_zeroed(1, sizeof(GuardEntry))
        if entry == NULL:
            return NULL
        entry.key[0] = key[0]
        entry.key[1] = key[1]
        entry.hash = <uint32_t> key[0]
        entry.stamp_ms = now_ms
        entry.tokens = <int64_t> rate * 1000
        if map_insert(&table.entries, entry.hash, <uint64_t> entry) != ST_OK:
            mem_free(entry)
            return NULL
    entry.count += 1
    return entry


cdef bint entry_leave(GuardTable *table, GuardEntry *entry, uint32_t most) noexcept nogil:
    """One connection less. most: entries without one that are remembered for their rate; 0: there is no rate. True: another was forgotten for this one."""
    cdef bint forgotten = False
    pthread_mutex_lock(&table.lock)
    entry.count -= 1
    if entry.count == 0:
        if most:
            forgotten = idle_add(table, entry, most)
        else:
            entry_forget(table, entry)
    pthread_mutex_unlock(&table.lock)
    return forgotten


cdef void key_of(GuardTable *table, const uint8_t *bytes, uint32_t n, uint64_t *key) noexcept nogil:
    cdef SipHash sip
    sip_begin(&sip, table.key)
    sip_add(&sip, bytes, n)
    sip_end(&sip, key)


# ---- connections

cdef ConnGuard *guard_of(Conn *conn) noexcept nogil:
    """NULL: no memory; then it goes uncounted."""
    if conn.guard == NULL:
        conn.guard = <ConnGuard *> mem_alloc_zeroed(1, sizeof(ConnGuard))
    return conn.guard


cdef uint8_t address_count(Worker *worker, Conn *conn, bint *far) noexcept nogil:
    cdef Settings *settings = &worker.engine.settings
    cdef GuardTable *table = &worker.engine.guard.addresses
    cdef PeerAddress *peer = &conn.link.peer
    cdef uint64_t key[2]
    cdef GuardEntry *entry
    cdef uint8_t reason = RC_SUCCESS
    cdef bint too_fast = False
    far[0] = False
    if (peer.family != 4 and peer.family != 6) or guard_of(conn) == NULL:
        return RC_SUCCESS
    key_of(table, peer.address, 16 if peer.family == 4 else 8, key)
    pthread_mutex_lock(&table.lock)
    entry = entry_of(table, key, worker.reactor.now_ms, settings.connect_rate_per_address)
    if entry != NULL:
        if settings.connect_rate_per_address and not rate_take(
            &entry.tokens, &entry.stamp_ms, worker.reactor.now_ms, settings.connect_rate_per_address, &too_fast,
        ):
            reason = RC_CONNECTION_RATE_EXCEEDED
        if settings.max_connections_per_address and entry.count > settings.max_connections_per_address:
            reason = RC_QUOTA_EXCEEDED
            far[0] = entry.count // 2 > settings.max_connections_per_address
    pthread_mutex_unlock(&table.lock)
    far[0] |= too_fast
    conn.guard.address = entry
    if reason == RC_QUOTA_EXCEEDED:
        stat(&worker.stats, C_REFUSED_ADDRESS)
    elif reason != RC_SUCCESS:
        stat(&worker.stats, C_REFUSED_RATE)
    return reason


cdef inline bint addresses_count(const Settings *settings) noexcept nogil:
    return settings.max_connections_per_address != 0 or settings.connect_rate_per_address != 0


cdef uint32_t early_base(const Worker *worker, const Listener *listener) noexcept nogil:
    cdef uint32_t bytes = EARLY_CONN
    if listener.upgrade != NULL:
        bytes += EARLY_TLS
    if listener.http:
        bytes += worker.engine.settings.max_request_head
    return bytes


cdef bint pending_add(Worker *worker, Conn *conn) noexcept nogil:
    cdef Settings *settings = &worker.engine.settings
    conn.guarded |= GUARD_PENDING
    if atomic_add_u32_relaxed(&worker.engine.guard.pending, 1) >= settings.max_pending_connections and settings.max_pending_connections:
        return False
    return guard_early(worker, conn, 0)


cdef bint guard_accept(Worker *worker, Conn *conn, const char **why) noexcept nogil:
    cdef Settings *settings = &worker.engine.settings
    cdef Guard *guard = &worker.engine.guard
    cdef Listener *listener = worker.engine.listeners[conn.link.listener]
    cdef uint8_t reason = RC_SUCCESS
    cdef bint far = False
    if not pending_add(worker, conn):
        stat(&worker.stats, C_REFUSED_PENDING)
        why[0] = "too many connections are not accepted yet"
        return False
    if unlikely(settings.connect_rate != 0):
        pthread_mutex_lock(&guard.addresses.lock)
        if not rate_take(&guard.tokens, &guard.stamp_ms, worker.reactor.now_ms, settings.connect_rate, &far):
            reason = RC_CONNECTION_RATE_EXCEEDED
        pthread_mutex_unlock(&guard.addresses.lock)
        if reason != RC_SUCCESS:
            stat(&worker.stats, C_REFUSED_RATE)
    if unlikely(addresses_count(settings)) and reason == RC_SUCCESS and not listener.proxied:
        reason = address_count(worker, conn, &far)
    if far:
        why[0] = "too many connections of this address" if reason == RC_QUOTA_EXCEEDED else "connections come too fast"
    elif reason != RC_SUCCESS:
        conn.guarded |= GUARD_OVER_NUMBER if reason == RC_QUOTA_EXCEEDED else GUARD_OVER_RATE
    return not far


cdef uint8_t guard_verdict(Worker *worker, Conn *conn) noexcept nogil:
    cdef bint far = False
    if conn.guarded & GUARD_OVER_NUMBER:
        return RC_QUOTA_EXCEEDED
    if conn.guarded & GUARD_OVER_RATE:
        return RC_CONNECTION_RATE_EXCEEDED
    if unlikely(addresses_count(&worker.engine.settings)) and worker.engine.listeners[conn.link.listener].proxied:
        return address_count(worker, conn, &far)    # behind a proxy the address is known only now
    return RC_SUCCESS


cdef uint8_t guard_user(Worker *worker, Conn *conn, Span user, const Conn *loser) noexcept nogil:
    cdef Settings *settings = &worker.engine.settings
    cdef GuardTable *table = &worker.engine.guard.users
    cdef GuardEntry *entry
    cdef uint64_t key[2]
    cdef bint full
    if settings.max_connections_per_user == 0 or user.n == 0 or guard_of(conn) == NULL:
        return RC_SUCCESS
    key_of(table, user.p, user.n, key)
    pthread_mutex_lock(&table.lock)
    entry = entry_of(table, key, worker.reactor.now_ms, 0)
    full = entry == NULL or entry.count - (loser != NULL and loser.guard != NULL and loser.guard.user == entry) > settings.max_connections_per_user
    pthread_mutex_unlock(&table.lock)
    if full:
        if entry != NULL:
            entry_leave(table, entry, 0)
        stat(&worker.stats, C_REFUSED_USER)
        return RC_QUOTA_EXCEEDED
    conn.guard.user = entry
    return RC_SUCCESS


cdef bint guard_early(Worker *worker, Conn *conn, uint32_t bytes) noexcept nogil:
    cdef uint64_t limit = worker.engine.settings.max_unauthenticated_bytes
    cdef uint32_t kib, more
    if not conn.guarded & GUARD_PENDING:
        return True
    kib = (bytes + early_base(worker, worker.engine.listeners[conn.link.listener]) + 1023) // 1024
    if kib > EARLY_MOST_KIB:
        kib = EARLY_MOST_KIB
    if kib <= conn.early_kib:
        return True
    more = (kib - conn.early_kib) * 1024
    conn.early_kib = <uint16_t> kib
    return atomic_add_u64_relaxed(&worker.engine.guard.early_bytes, more) + more <= limit or limit == 0


cdef void guard_settle(Worker *worker, Conn *conn) noexcept nogil:
    if conn.guarded & GUARD_PENDING:
        conn.guarded &= ~<uint8_t> GUARD_PENDING
        atomic_add_u32_relaxed(&worker.engine.guard.pending, <uint32_t> -1)
        atomic_add_u64_relaxed(&worker.engine.guard.early_bytes, <uint64_t> 0 - <uint64_t> conn.early_kib * 1024)
        conn.early_kib = 0


cdef void guard_free_of(Worker *worker, ConnGuard *guard) noexcept nogil:
    cdef const Settings *settings = &worker.engine.settings
    if guard == NULL:
        return
    if guard.address != NULL and entry_leave(
        &worker.engine.guard.addresses, guard.address, settings.connect_rate_addresses if settings.connect_rate_per_address else 0,
    ):
        stat(&worker.stats, C_ADDRESSES_FORGOTTEN)
    if guard.user != NULL:
        entry_leave(&worker.engine.guard.users, guard.user, 0)
    mem_free(guard)


cdef void guard_leave(Worker *worker, Conn *conn) noexcept nogil:
    guard_settle(worker, conn)
    guard_free_of(worker, conn.guard)
    conn.guard = NULL


# ---- rates

cdef void bucket_fill(Bucket *bucket, int64_t now_ms, uint32_t rate) noexcept nogil:
    bucket.tokens = <int64_t> rate * 1000
    bucket.stamp_ms = now_ms


cdef bint rates_start(Worker *worker, Conn *conn) noexcept nogil:
    cdef Settings *settings = &worker.engine.settings
    cdef int64_t now_ms = worker.reactor.now_ms
    if not (settings.max_message_rate or settings.max_byte_rate or settings.max_message_rate_out or settings.max_byte_rate_out):
        return True
    if guard_of(conn) == NULL:
        return False
    conn.guard.rated = True
    bucket_fill(&conn.guard.rates.messages_in, now_ms, settings.max_message_rate)
    bucket_fill(&conn.guard.rates.bytes_in, now_ms, settings.max_byte_rate)
    bucket_fill(&conn.guard.rates.messages_out, now_ms, settings.max_message_rate_out)
    bucket_fill(&conn.guard.rates.bytes_out, now_ms, settings.max_byte_rate_out)
    if settings.max_message_rate_out or settings.max_byte_rate_out:
        conn.link.flags |= LINK_METERED
        if conn.aliases_out == NULL:    # its messages are counted on the general way: the short one of the fan-out pays nothing
            conn.aliases_out = <AliasesOut *> mem_alloc_zeroed(1, sizeof(AliasesOut))
            return conn.aliases_out != NULL
    return True


cdef uint32_t bucket_spend(Bucket *bucket, int64_t now_ms, uint32_t rate, uint64_t count, bint *idle) noexcept nogil:
    """Milliseconds until what is owed has come in. idle: the bucket was full before."""
    cdef int64_t wait
    if rate == 0:
        return 0
    tokens_refill(&bucket.tokens, &bucket.stamp_ms, now_ms, rate)
    idle[0] &= bucket.tokens == <int64_t> rate * 1000
    bucket.tokens -= <int64_t> count * 1000
    if bucket.tokens >= 0:
        return 0
    wait = -bucket.tokens // rate + 1
    return <uint32_t> wait if wait < SLOW_MOST_MS else SLOW_MOST_MS


cdef uint32_t rates_received(Worker *worker, Conn *conn, uint32_t messages, uint64_t bytes) noexcept nogil:
    cdef Settings *settings = &worker.engine.settings
    cdef Rates *rates = &conn.guard.rates
    cdef int64_t now_ms = worker.reactor.now_ms
    cdef bint idle = True
    cdef uint32_t wait = bucket_spend(&rates.messages_in, now_ms, settings.max_message_rate, messages, &idle)
    cdef uint32_t wait_bytes = bucket_spend(&rates.bytes_in, now_ms, settings.max_byte_rate, bytes, &idle)
    if wait_bytes > wait:
        wait = wait_bytes
    if idle:
        rates.over_since_ms = 0
    if wait:
        stat(&worker.stats, C_SLOWED)
        if rates.over_since_ms == 0:
            rates.over_since_ms = now_ms
    return wait


cdef bint rates_exhausted(Worker *worker, const Conn *conn) noexcept nogil:
    cdef const Rates *rates = &conn.guard.rates
    cdef uint32_t patience = worker.engine.settings.rate_patience_ms
    return patience != 0 and rates.over_since_ms != 0 and worker.reactor.now_ms - rates.over_since_ms >= patience


cdef void rates_flushed(Worker *worker, Conn *conn, uint64_t bytes) noexcept nogil:
    cdef Settings *settings = &worker.engine.settings
    cdef Rates *rates
    cdef uint64_t *place
    cdef bint idle = True
    cdef uint32_t wait, wait_bytes
    if conn.guard == NULL or not conn.guard.rated:
        return
    rates = &conn.guard.rates
    wait = bucket_spend(&rates.messages_out, worker.reactor.now_ms, settings.max_message_rate_out, rates.sent, &idle)
    wait_bytes = bucket_spend(&rates.bytes_out, worker.reactor.now_ms, settings.max_byte_rate_out, bytes, &idle)
    rates.sent = 0
    if (wait == 0 and wait_bytes == 0) or conn.guarded & GUARD_THROTTLED:
        return
    place = <uint64_t *> vec_push(&worker.throttled)
    if place == NULL:
        return                          # without memory it goes unthrottled
    place[0] = <uint64_t> conn.link.generation << 32 | conn.link.slot
    conn.guarded |= GUARD_THROTTLED
    conn.link.flags |= LINK_THROTTLED
    stat(&worker.stats, C_THROTTLED)
    if worker.throttle_timer.next == NULL:
        wheel_add(worker.reactor.wheel, &worker.throttle_timer, worker.reactor.now_ms + THROTTLE_TICK_MS)


cdef bint bucket_owes(Bucket *bucket, int64_t now_ms, uint32_t rate) noexcept nogil:
    if rate == 0:
        return False
    tokens_refill(&bucket.tokens, &bucket.stamp_ms, now_ms, rate)
    return bucket.tokens < 0


cdef void rates_release(Worker *worker) noexcept nogil:
    cdef Settings *settings = &worker.engine.settings
    cdef uint64_t token
    cdef uint32_t i = 0
    cdef Conn *conn
    while i < worker.throttled.count:
        token = (<uint64_t *> vec_at(&worker.throttled, i))[0]
        conn = <Conn *> reactor_link(worker.reactor, <uint32_t> token, <uint32_t> (token >> 32))
        if conn != NULL and conn.guard != NULL and (
            bucket_owes(&conn.guard.rates.messages_out, worker.reactor.now_ms, settings.max_message_rate_out)
            or bucket_owes(&conn.guard.rates.bytes_out, worker.reactor.now_ms, settings.max_byte_rate_out)
        ):
            i += 1
            continue
        vec_swap_remove(&worker.throttled, i)
        if conn != NULL:
            conn.guarded &= ~<uint8_t> GUARD_THROTTLED
            link_unthrottle(worker.reactor, &conn.link)
    if worker.throttled.count:
        wheel_add(worker.reactor.wheel, &worker.throttle_timer, worker.reactor.now_ms + THROTTLE_TICK_MS)
