"""The retained store, see retain.pxd.

A topic is an entry: its bytes and the message that stands for it now, so that replacing one changes a pointer and neither map nor index. The
index of a stripe is a sorted list cut into leaves of up to 256 entries, with a directory of leaves: 11 bytes a topic, two binary searches to
seek. '/' sorts below every other byte, so that a topic and all below it stand together, and a filter with '+' leaps from subtree to subtree.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memmove

from mqttc.base.alloc cimport mem_alloc, mem_alloc_zeroed, mem_free, mem_resize
from mqttc.base.map cimport Map, hash_bytes, map_find, map_free, map_init, map_insert, map_remove
from mqttc.base.msg cimport Msg, MsgPool, msg_drop, msg_share, msg_topic
from mqttc.base.types cimport ST_LIMIT, ST_NO_MEMORY, ST_OK, Span, atomic_add_u64_relaxed, atomic_load_u64_relaxed, atomic_store_u64_relaxed, span_make
from mqttc.broker.trie cimport trie_stripe
from mqttc.proto.topic cimport filter_has_wildcard, level_next

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *mutex, void *attributes) noexcept
    int pthread_mutex_destroy(pthread_mutex_t *mutex) noexcept
    int pthread_mutex_lock(pthread_mutex_t *mutex) noexcept
    int pthread_mutex_unlock(pthread_mutex_t *mutex) noexcept

cdef extern from "mqttc/base/native.h" nogil:
    uint64_t load_u64_native(const uint8_t *p) noexcept

cdef extern from *:
    void __builtin_prefetch(const void *p) noexcept nogil

cdef enum:
    STRIPES = 16
    MAPS = 32                  # per stripe, by the high bits of the hash, so that none is large when it grows under the lock
    LEAF_ENTRIES = 256
    LEAF_LOW = 64              # a leaf below it joins a neighbour
    LEAF_JOINED = 192          # if both together are not above this
    HOLD_TOPICS = 512          # looked at in one hold of a stripe's lock; a seek counts as 4
    HOLD_EXPIRED = 32          # removed in one hold
    STEPS_BEFORE_SEEK = 3      # neighbours tried before a binary search
    KEY_BYTES = 512            # longest composed key; with a longer one the index is walked instead
    TOPIC_ROOM = 64            # first capacity of a cursor's topic

cdef struct Entry:             # the topic's bytes follow
    Msg *msg
    uint32_t hash
    uint16_t topic_bytes
    uint8_t expires            # the message has an expiry

cdef struct Leaf:
    uint32_t count
    Entry *entries[256]

cdef struct Stripe:
    pthread_mutex_t lock
    Map maps[32]               # topic to Entry
    Leaf **leaves              # none of them empty
    uint32_t leaf_count
    uint32_t leaf_capacity
    uint32_t expiring          # entries whose message has an expiry

cdef struct Core:              # RetainStore.private
    Stripe stripes[16]
    pthread_mutex_t gauge_lock     # taken inside a stripe's lock: count and bytes change together and exactly
    pthread_mutex_t sweep_lock     # taken before a stripe's lock
    RetainCursor sweep             # where the sweep goes on

cdef struct Place:
    uint32_t leaf
    uint32_t index

cdef enum Seek:
    SEEK_FROM = 0              # the first topic not below the key
    SEEK_BEHIND = 1            # the first above it
    SEEK_OUT = 2               # the first above it and all that is below it in the tree

cdef enum Verdict:
    VERDICT_MATCH = 0
    VERDICT_NEXT = 1           # not this one
    VERDICT_FROM = 2           # nothing before the first `cut` bytes of the topic followed by `level`
    VERDICT_OUT = 3            # nothing more below the first `cut` bytes of the topic
    VERDICT_END = 4            # nothing more at all


# ---- order ------------------------------------------------------------------------------------------------------------------------

cdef inline Span entry_topic(const Entry *entry) noexcept nogil:
    return span_make(<const uint8_t *> entry + sizeof(Entry), entry.topic_bytes)


cdef inline int topic_compare(Span a, Span b) noexcept nogil:
    """As bytes, with '/' below all others; a prefix comes first. U+0000 stands in no topic [MQTT-4.7.3-2], so '/' may count as 0."""
    cdef uint32_t n = a.n if a.n < b.n else b.n
    cdef uint32_t i = 0
    cdef int x, y
    while n - i >= 8 and load_u64_native(a.p + i) == load_u64_native(b.p + i):
        i += 8
    while i < n and a.p[i] == b.p[i]:
        i += 1
    x = -1 if i == a.n else 0 if a.p[i] == c'/' else a.p[i]
    y = -1 if i == b.n else 0 if b.p[i] == c'/' else b.p[i]
    return x - y


cdef inline bint entry_before(const Entry *entry, Span key, int seek) noexcept nogil:
    cdef Span topic = entry_topic(entry)
    cdef int order
    if seek == SEEK_OUT and topic.n > key.n and topic.p[key.n] == c'/' and memcmp(topic.p, key.p, key.n) == 0:
        return True
    order = topic_compare(topic, key)
    return order < 0 or (order == 0 and seek != SEEK_FROM)


cdef Place index_seek(const Stripe *stripe, Span key, int seek) noexcept nogil:
    """The last leaf that begins before the place, and the index in it, which may be its count."""
    cdef Place place
    cdef uint32_t low = 0, high = stripe.leaf_count, middle
    cdef const Leaf *leaf
    place.leaf = 0
    place.index = 0
    if high == 0:
        return place
    while low < high:
        middle = (low + high) >> 1
        if entry_before(stripe.leaves[middle].entries[0], key, seek):
            low = middle + 1
        else:
            high = middle
    if low == 0:
        return place
    place.leaf = low - 1
    leaf = stripe.leaves[place.leaf]
    low = 1
    high = leaf.count
    while low < high:
        middle = (low + high) >> 1
        if entry_before(leaf.entries[middle], key, seek):
            low = middle + 1
        else:
            high = middle
    place.index = low
    return place


cdef inline Entry *index_at(const Stripe *stripe, Place *place) noexcept nogil:
    """NULL at the end. Moves on to the next leaf when this one is through."""
    if place.leaf < stripe.leaf_count and place.index >= stripe.leaves[place.leaf].count:
        place.leaf += 1
        place.index = 0
    if place.leaf >= stripe.leaf_count:
        return NULL
    return stripe.leaves[place.leaf].entries[place.index]


cdef inline void index_prefetch(const Stripe *stripe, Place place) noexcept nogil:
    """A walk in order meets entries and messages wherever they lie in memory: ask for them some steps ahead."""
    cdef const Leaf *leaf = stripe.leaves[place.leaf]
    if place.index + 8 < leaf.count:
        __builtin_prefetch(leaf.entries[place.index + 8])
        __builtin_prefetch(&leaf.entries[place.index + 4].msg.refs)


cdef Leaf *leaf_open(Stripe *stripe, uint32_t at) noexcept nogil:
    """An empty leaf at this place of the directory; NULL: no memory, nothing changed."""
    cdef uint32_t capacity
    cdef Leaf **leaves
    cdef Leaf *leaf
    if stripe.leaf_count == stripe.leaf_capacity:
        capacity = stripe.leaf_capacity * 2 if stripe.leaf_capacity else 4
        leaves = <Leaf **> mem_resize(stripe.leaves, capacity, sizeof(void *))
        if leaves == NULL:
            return NULL
        stripe.leaves = leaves
        stripe.leaf_capacity = capacity
    leaf = <Leaf *> mem_alloc(sizeof(Leaf))
    if leaf == NULL:
        return NULL
    leaf.count = 0
    memmove(&stripe.leaves[at + 1], &stripe.leaves[at], (stripe.leaf_count - at) * sizeof(void *))
    stripe.leaves[at] = leaf
    stripe.leaf_count += 1
    return leaf


cdef void leaf_close(Stripe *stripe, uint32_t at) noexcept nogil:
    mem_free(stripe.leaves[at])
    stripe.leaf_count -= 1
    memmove(&stripe.leaves[at], &stripe.leaves[at + 1], (stripe.leaf_count - at) * sizeof(void *))


cdef int index_insert(Stripe *stripe, Entry *entry) noexcept nogil:
    cdef Place place = index_seek(stripe, entry_topic(entry), SEEK_FROM)
    cdef Leaf *leaf
    cdef Leaf *upper
    if stripe.leaf_count == 0 and leaf_open(stripe, 0) == NULL:
        return ST_NO_MEMORY
    leaf = stripe.leaves[place.leaf]
    if leaf.count == LEAF_ENTRIES:
        upper = leaf_open(stripe, place.leaf + 1)
        if upper == NULL:
            return ST_NO_MEMORY
        # Topics that come in order leave full leaves behind them.
        if place.index < LEAF_ENTRIES or place.leaf + 2 < stripe.leaf_count:
            upper.count = LEAF_ENTRIES // 2
            leaf.count = LEAF_ENTRIES - upper.count
            memcpy(upper.entries, &leaf.entries[leaf.count], upper.count * sizeof(void *))
        if place.index > leaf.count or leaf.count == LEAF_ENTRIES:
            place.index -= leaf.count
            leaf = upper
    memmove(&leaf.entries[place.index + 1], &leaf.entries[place.index], (leaf.count - place.index) * sizeof(void *))
    leaf.entries[place.index] = entry
    leaf.count += 1
    return ST_OK


cdef void leaf_join(Stripe *stripe, uint32_t at) noexcept nogil:
    """The leaf behind this one goes into it, if both are small."""
    cdef Leaf *leaf
    cdef Leaf *upper
    if at + 1 >= stripe.leaf_count:
        return
    leaf = stripe.leaves[at]
    upper = stripe.leaves[at + 1]
    if leaf.count + upper.count > LEAF_JOINED:
        return
    memcpy(&leaf.entries[leaf.count], upper.entries, upper.count * sizeof(void *))
    leaf.count += upper.count
    leaf_close(stripe, at + 1)


cdef void index_remove(Stripe *stripe, const Entry *entry) noexcept nogil:
    """It is in there."""
    cdef Place place = index_seek(stripe, entry_topic(entry), SEEK_FROM)
    cdef Leaf *leaf
    index_at(stripe, &place)
    leaf = stripe.leaves[place.leaf]
    leaf.count -= 1
    memmove(&leaf.entries[place.index], &leaf.entries[place.index + 1], (leaf.count - place.index) * sizeof(void *))
    if leaf.count == 0:
        leaf_close(stripe, place.leaf)
    elif leaf.count < LEAF_LOW:
        leaf_join(stripe, place.leaf)
        if place.leaf > 0 and place.leaf < stripe.leaf_count and stripe.leaves[place.leaf].count < LEAF_LOW:
            leaf_join(stripe, place.leaf - 1)


# ---- entries ------------------------------------------------------------------------------------------------------------------------

cdef bint entry_has_topic(void *context, uint64_t value, const void *key) noexcept nogil:
    cdef const Entry *entry = <const Entry *> <size_t> value
    cdef const Span *topic = <const Span *> key
    return entry.topic_bytes == topic.n and memcmp(<const uint8_t *> entry + sizeof(Entry), topic.p, topic.n) == 0


cdef inline Map *entry_map(Stripe *stripe, uint32_t hash) noexcept nogil:
    return &stripe.maps[hash >> 27]


cdef inline Stripe *stripe_of(RetainStore *store, Span topic) noexcept nogil:
    return &(<Core *> store.private).stripes[trie_stripe(topic) % STRIPES]


cdef Entry *entry_find(Stripe *stripe, Span topic, uint32_t hash) noexcept nogil:
    cdef uint64_t value
    if map_find(entry_map(stripe, hash), hash, &topic, &value):
        return <Entry *> <size_t> value
    return NULL


cdef inline uint64_t msg_cost(const Msg *msg) noexcept nogil:
    return sizeof(Msg) + msg.capacity + sizeof(Entry) + msg.topic_bytes


cdef inline bint msg_expired(const Msg *msg, int64_t now_ms) noexcept nogil:
    return msg.expires_at_ms != 0 and msg.expires_at_ms <= now_ms


cdef bint gauge_change(RetainStore *store, int count, int64_t more_bytes, bint limited) noexcept nogil:
    """False: a limit is in the way, nothing changed."""
    cdef Core *core = <Core *> store.private
    cdef uint64_t new_count, new_bytes
    cdef bint fits = True
    pthread_mutex_lock(&core.gauge_lock)
    new_count = atomic_load_u64_relaxed(&store.count) + <uint64_t> <int64_t> count
    new_bytes = atomic_load_u64_relaxed(&store.bytes) + <uint64_t> more_bytes
    if limited:
        fits = ((count <= 0 or store.max_count == 0 or new_count <= store.max_count)
                and (more_bytes <= 0 or store.max_bytes == 0 or new_bytes <= store.max_bytes))
    if fits:
        atomic_store_u64_relaxed(&store.count, new_count)
        atomic_store_u64_relaxed(&store.bytes, new_bytes)
    pthread_mutex_unlock(&core.gauge_lock)
    return fits


cdef Msg *entry_remove(RetainStore *store, Stripe *stripe, Entry *entry) noexcept nogil:
    """Under the stripe's lock. Gives the store's reference of the message to the caller, to be dropped without the lock."""
    cdef Msg *msg = entry.msg
    cdef Span topic = entry_topic(entry)
    index_remove(stripe, entry)
    map_remove(entry_map(stripe, entry.hash), entry.hash, &topic, NULL)
    stripe.expiring -= entry.expires
    gauge_change(store, -1, -<int64_t> msg_cost(msg), False)
    mem_free(entry)
    return msg


# ---- the contract --------------------------------------------------------------------------------------------------------------------

cdef RetainStore *retain_build(uint64_t max_count, uint64_t max_bytes) noexcept nogil:
    cdef RetainStore *store = <RetainStore *> mem_alloc_zeroed(1, sizeof(RetainStore))
    cdef Core *core = <Core *> mem_alloc_zeroed(1, sizeof(Core))
    cdef uint32_t i, j
    if store == NULL or core == NULL:
        mem_free(store)
        mem_free(core)
        return NULL
    for i in range(<uint32_t> STRIPES):
        pthread_mutex_init(&core.stripes[i].lock, NULL)
        for j in range(<uint32_t> MAPS):
            map_init(&core.stripes[i].maps[j], entry_has_topic, NULL)
    pthread_mutex_init(&core.gauge_lock, NULL)
    pthread_mutex_init(&core.sweep_lock, NULL)
    store.max_count = max_count
    store.max_bytes = max_bytes
    store.private = core
    return store


cdef void retain_free(RetainStore *store, MsgPool *pool) noexcept nogil:
    cdef Core *core
    cdef Stripe *stripe
    cdef uint32_t i, j, k
    if store == NULL:
        return
    core = <Core *> store.private
    for i in range(<uint32_t> STRIPES):
        stripe = &core.stripes[i]
        for j in range(stripe.leaf_count):
            for k in range(stripe.leaves[j].count):
                msg_drop(pool, stripe.leaves[j].entries[k].msg)
                mem_free(stripe.leaves[j].entries[k])
            mem_free(stripe.leaves[j])
        mem_free(stripe.leaves)
        for j in range(<uint32_t> MAPS):
            map_free(&stripe.maps[j])
        pthread_mutex_destroy(&stripe.lock)
    pthread_mutex_destroy(&core.gauge_lock)
    pthread_mutex_destroy(&core.sweep_lock)
    mem_free(core.sweep.topic)
    mem_free(core)
    mem_free(store)


cdef inline void version_next(RetainStore *store, uint64_t *version) noexcept nogil:
    """Under the topic's stripe lock."""
    if version != NULL:
        version[0] = atomic_add_u64_relaxed(store.versions, 1) if store.versions != NULL else 0


cdef int retain_clear(RetainStore *store, MsgPool *pool, Span topic, uint64_t *version) noexcept nogil:
    cdef Stripe *stripe = stripe_of(store, topic)
    cdef uint32_t hash = hash_bytes(topic)
    cdef Msg *old = NULL
    cdef Entry *entry
    pthread_mutex_lock(&stripe.lock)
    entry = entry_find(stripe, topic, hash)
    if entry != NULL:
        old = entry_remove(store, stripe, entry)
    version_next(store, version)
    pthread_mutex_unlock(&stripe.lock)
    if old != NULL:
        msg_drop(pool, old)
    return ST_OK


cdef int entry_replace(RetainStore *store, Stripe *stripe, Entry *entry, Msg *msg, Msg **old) noexcept nogil:
    cdef int64_t more = <int64_t> msg_cost(msg) - <int64_t> msg_cost(entry.msg)
    if more != 0 and not gauge_change(store, 0, more, True):
        return ST_LIMIT
    old[0] = entry.msg
    msg_share(msg, 1)
    entry.msg = msg
    stripe.expiring -= entry.expires
    entry.expires = msg.expires_at_ms != 0
    stripe.expiring += entry.expires
    return ST_OK


cdef int entry_add(RetainStore *store, Stripe *stripe, Entry *entry, Msg *msg) noexcept nogil:
    """Takes the entry over with ST_OK."""
    if not gauge_change(store, 1, <int64_t> msg_cost(msg), True):
        return ST_LIMIT
    if index_insert(stripe, entry) != ST_OK:
        gauge_change(store, -1, -<int64_t> msg_cost(msg), False)
        return ST_NO_MEMORY
    if map_insert(entry_map(stripe, entry.hash), entry.hash, <uint64_t> <size_t> entry) != ST_OK:
        index_remove(stripe, entry)
        gauge_change(store, -1, -<int64_t> msg_cost(msg), False)
        return ST_NO_MEMORY
    msg_share(msg, 1)
    entry.msg = msg
    entry.expires = msg.expires_at_ms != 0
    stripe.expiring += entry.expires
    return ST_OK


cdef int retain_set(RetainStore *store, MsgPool *pool, Msg *msg, uint64_t *version) noexcept nogil:
    cdef Span topic = msg_topic(msg)
    cdef Stripe *stripe
    cdef Entry *entry
    cdef Entry *spare = NULL
    cdef Msg *old = NULL
    cdef uint32_t hash
    cdef int status
    if msg.payload_bytes == 0:
        return retain_clear(store, pool, topic, version)
    stripe = stripe_of(store, topic)
    hash = hash_bytes(topic)
    pthread_mutex_lock(&stripe.lock)
    entry = entry_find(stripe, topic, hash)
    if entry == NULL:          # build one without the lock, then look again
        pthread_mutex_unlock(&stripe.lock)
        spare = <Entry *> mem_alloc(sizeof(Entry) + topic.n)
        if spare == NULL:
            return ST_NO_MEMORY
        spare.msg = NULL
        spare.hash = hash
        spare.topic_bytes = <uint16_t> topic.n
        spare.expires = 0
        memcpy(<uint8_t *> spare + sizeof(Entry), topic.p, topic.n)
        pthread_mutex_lock(&stripe.lock)
        entry = entry_find(stripe, topic, hash)
    if entry != NULL:
        status = entry_replace(store, stripe, entry, msg, &old)
    else:
        status = entry_add(store, stripe, spare, msg)
        if status == ST_OK:
            spare = NULL
    if status == ST_OK:
        version_next(store, version)
    elif version != NULL:
        version[0] = 0
    pthread_mutex_unlock(&stripe.lock)
    mem_free(spare)
    if old != NULL:
        msg_drop(pool, old)
    return status


# ---- cursors -------------------------------------------------------------------------------------------------------------------------

cdef inline bint wild_level(const uint8_t *p, uint32_t n) noexcept nogil:
    return n > 0 and (p[0] == c'+' or p[0] == c'#') and (n == 1 or p[1] == c'/')


cdef int retain_cursor_init(RetainCursor *cursor, Span filter) noexcept nogil:
    cursor.topic = NULL
    cursor.topic_bytes = 0
    cursor.topic_capacity = 0
    cursor.filter_bytes = <uint16_t> filter.n
    cursor.stripe = RETAIN_END
    cursor.filter = <uint8_t *> mem_alloc(filter.n)
    if cursor.filter == NULL:
        return ST_NO_MEMORY
    memcpy(cursor.filter, filter.p, filter.n)
    cursor.stripe = 0 if wild_level(filter.p, filter.n) else <uint16_t> (trie_stripe(filter) % STRIPES)
    return ST_OK


cdef int retain_cursor_seek(RetainCursor *cursor, Span topic) noexcept nogil:
    if topic.n == 0 or topic.n > 65535:
        return ST_OK
    if cursor_reserve(cursor, topic.n) != ST_OK:
        return ST_NO_MEMORY
    memcpy(cursor.topic, topic.p, topic.n)
    cursor.topic_bytes = <uint16_t> topic.n
    if wild_level(cursor.filter, cursor.filter_bytes):
        cursor.stripe = <uint16_t> (trie_stripe(topic) % STRIPES)
    return ST_OK


cdef void retain_cursor_free(RetainCursor *cursor) noexcept nogil:
    mem_free(cursor.filter)
    mem_free(cursor.topic)
    cursor.filter = NULL
    cursor.topic = NULL
    cursor.stripe = RETAIN_END


cdef int cursor_reserve(RetainCursor *cursor, uint32_t topic_bytes) noexcept nogil:
    cdef uint32_t capacity = TOPIC_ROOM
    cdef uint8_t *topic
    if topic_bytes <= cursor.topic_capacity:
        return ST_OK
    while capacity < topic_bytes:
        capacity *= 2
    if capacity > 65535:
        capacity = 65535
    topic = <uint8_t *> mem_resize(cursor.topic, capacity, 1)
    if topic == NULL:
        return ST_NO_MEMORY
    cursor.topic = topic
    cursor.topic_capacity = <uint16_t> capacity
    return ST_OK


cdef inline void cursor_save(RetainCursor *cursor, const Entry *entry) noexcept nogil:
    """There is room: see cursor_reserve."""
    memcpy(cursor.topic, <const uint8_t *> entry + sizeof(Entry), entry.topic_bytes)
    cursor.topic_bytes = entry.topic_bytes


cdef int topic_judge(Span filter, Span topic, uint32_t *cut, Span *level) noexcept nogil:
    """Whether it matches, and if not where the next one that may stands. The filter has a wildcard and the $ rule was seen to."""
    cdef Span filter_rest = filter
    cdef Span topic_rest = topic
    cdef Span wanted, found
    cdef bint plus = False
    cdef int order
    while level_next(&filter_rest, &wanted):
        if wanted.n == 1 and wanted.p[0] == c'#':
            return VERDICT_MATCH
        if not level_next(&topic_rest, &found):
            return VERDICT_NEXT            # a parent of what may match
        if wanted.n == 1 and wanted.p[0] == c'+':
            plus = True
            cut[0] = <uint32_t> (found.p + found.n - topic.p)
            continue
        order = topic_compare(found, wanted)
        if order < 0:
            cut[0] = <uint32_t> (found.p - topic.p)
            level[0] = wanted
            return VERDICT_FROM
        if order > 0:
            return VERDICT_OUT if plus else VERDICT_END
    if topic_rest.p == NULL:
        return VERDICT_MATCH
    return VERDICT_OUT if plus else VERDICT_END


cdef Place place_leap(const Stripe *stripe, Place here, int verdict, Span topic, uint32_t cut, Span level) noexcept nogil:
    """Where a verdict says that the next match may be."""
    cdef uint8_t key[512]
    if verdict == VERDICT_OUT:
        return index_seek(stripe, span_make(topic.p, cut), SEEK_OUT)
    if cut + level.n > KEY_BYTES:
        here.index += 1
        return here
    memcpy(key, topic.p, cut)
    memcpy(key + cut, level.p, level.n)
    return index_seek(stripe, span_make(key, cut + level.n), SEEK_FROM)


cdef Place place_first(const Stripe *stripe, const RetainCursor *cursor) noexcept nogil:
    """Behind the cursor's topic, or where the filter's levels before its first wildcard begin."""
    cdef Span rest = span_make(cursor.filter, cursor.filter_bytes)
    cdef Span level
    cdef Span prefix = rest
    cdef Place place
    if cursor.topic_bytes:
        return index_seek(stripe, span_make(cursor.topic, cursor.topic_bytes), SEEK_BEHIND)
    prefix.n = 0
    while level_next(&rest, &level) and not wild_level(level.p, cursor.filter_bytes - <uint32_t> (level.p - cursor.filter)):
        prefix.n = <uint32_t> (level.p + level.n - prefix.p)
    if prefix.n == 0:
        place.leaf = 0
        place.index = 0
        return place
    return index_seek(stripe, prefix, SEEK_FROM)


cdef struct Hold:              # what one hold of a stripe's lock brings
    Msg **out
    uint32_t room
    uint32_t count
    uint32_t looked
    uint32_t need              # of the cursor's topic room, to go on
    uint32_t expired_count
    Entry *expired[32]         # during the hold
    Msg *dropped[32]           # after it
    bint ended                 # nothing more in this stripe


cdef void hold_scan(const Stripe *stripe, RetainCursor *cursor, int64_t now_ms, uint32_t budget, Hold *hold) noexcept nogil:
    """Under the lock; changes nothing but the cursor. First level wild: $-topics are left out [MQTT-4.7.2-1]."""
    cdef Span filter = span_make(cursor.filter, cursor.filter_bytes)
    cdef bint wild = wild_level(filter.p, filter.n)
    cdef Place place = place_first(stripe, cursor)
    cdef const Entry *last = NULL
    cdef Entry *entry
    cdef Span topic, level
    cdef uint32_t cut = 0, steps = 0
    cdef int verdict
    while hold.count < hold.room and hold.looked < budget and hold.expired_count < HOLD_EXPIRED:
        entry = index_at(stripe, &place)
        if entry == NULL:
            hold.ended = True
            break
        if entry.topic_bytes > cursor.topic_capacity:
            hold.need = entry.topic_bytes
            break
        topic = entry_topic(entry)
        if wild and topic.p[0] == c'$':
            place = index_seek(stripe, span_make(<const char *> "%", 1), SEEK_FROM)    # '$' + 1
            continue
        index_prefetch(stripe, place)
        hold.looked += 1
        verdict = topic_judge(filter, topic, &cut, &level)
        if verdict == VERDICT_END:
            hold.ended = True
            break
        last = entry
        if verdict == VERDICT_MATCH:
            steps = 0
            if msg_expired(entry.msg, now_ms):
                hold.expired[hold.expired_count] = entry
                hold.expired_count += 1
            else:
                msg_share(entry.msg, 1)
                hold.out[hold.count] = entry.msg
                hold.count += 1
        elif verdict != VERDICT_NEXT:
            steps += 1
            if steps > STEPS_BEFORE_SEEK:
                steps = 0
                hold.looked += 4
                place = place_leap(stripe, place, verdict, topic, cut, level)
                continue
        place.index += 1
    if hold.ended:
        cursor.topic_bytes = 0
    elif last != NULL:
        cursor_save(cursor, last)


cdef void hold_expire(RetainStore *store, Stripe *stripe, Hold *hold) noexcept nogil:
    cdef uint32_t i
    for i in range(hold.expired_count):
        hold.dropped[i] = entry_remove(store, stripe, hold.expired[i])


cdef void hold_drop(MsgPool *pool, Hold *hold) noexcept nogil:
    """Without the lock."""
    cdef uint32_t i
    for i in range(hold.expired_count):
        msg_drop(pool, hold.dropped[i])


cdef void hold_init(Hold *hold, Msg **out, uint32_t room) noexcept nogil:
    hold.out = out
    hold.room = room
    hold.count = 0
    hold.looked = 0
    hold.need = 0
    hold.expired_count = 0
    hold.ended = False


cdef int retain_exact(RetainStore *store, RetainCursor *cursor, MsgPool *pool, int64_t now_ms, Msg **out) noexcept nogil:
    cdef Span topic = span_make(cursor.filter, cursor.filter_bytes)
    cdef Stripe *stripe = &(<Core *> store.private).stripes[cursor.stripe]
    cdef Msg *old = NULL
    cdef Entry *entry
    cdef int count = 0
    pthread_mutex_lock(&stripe.lock)
    entry = entry_find(stripe, topic, hash_bytes(topic))
    if entry != NULL:
        if msg_expired(entry.msg, now_ms):
            old = entry_remove(store, stripe, entry)
        else:
            msg_share(entry.msg, 1)
            out[0] = entry.msg
            count = 1
    pthread_mutex_unlock(&stripe.lock)
    cursor.stripe = RETAIN_END
    if old != NULL:
        msg_drop(pool, old)
    return count


cdef int retain_step(RetainStore *store, RetainCursor *cursor, MsgPool *pool, int64_t now_ms, Msg **out, int room, uint32_t budget) noexcept nogil:
    cdef Span filter = span_make(cursor.filter, cursor.filter_bytes)
    cdef bint wild
    cdef Stripe *stripe
    cdef Hold hold
    cdef uint32_t looked = 0, left
    cdef int count = 0
    if cursor.stripe == RETAIN_END or room <= 0:
        return 0
    if not filter_has_wildcard(filter):
        return retain_exact(store, cursor, pool, now_ms, out)
    wild = wild_level(filter.p, filter.n)
    while cursor.stripe != RETAIN_END and count < room and looked < budget:
        hold_init(&hold, out + count, room - count)
        left = budget - looked
        stripe = &(<Core *> store.private).stripes[cursor.stripe]
        pthread_mutex_lock(&stripe.lock)
        hold_scan(stripe, cursor, now_ms, left if left < HOLD_TOPICS else HOLD_TOPICS, &hold)
        hold_expire(store, stripe, &hold)
        pthread_mutex_unlock(&stripe.lock)
        hold_drop(pool, &hold)
        count += hold.count
        looked += hold.looked + 1
        if hold.need and cursor_reserve(cursor, hold.need) != ST_OK:
            return count if count else ST_NO_MEMORY
        if hold.ended:
            cursor.stripe = RETAIN_END if not wild or cursor.stripe + 1 == STRIPES else cursor.stripe + 1
    return count


cdef int retain_next(RetainStore *store, RetainCursor *cursor, MsgPool *pool, int64_t now_ms, Msg **out, int room) noexcept nogil:
    cdef int count = 0
    while count == 0 and cursor.stripe != RETAIN_END and room > 0:
        count = retain_step(store, cursor, pool, now_ms, out, room, <uint32_t> 0x40000000)
    return count


# ---- expiry ----------------------------------------------------------------------------------------------------------------------------

cdef void sweep_scan(const Stripe *stripe, RetainCursor *cursor, int64_t now_ms, uint32_t budget, Hold *hold) noexcept nogil:
    """As hold_scan, but all topics, and only for what has expired."""
    cdef Place place
    cdef const Entry *last = NULL
    cdef Entry *entry
    place.leaf = 0
    place.index = 0
    if stripe.expiring == 0:
        hold.ended = True
    elif cursor.topic_bytes:
        place = index_seek(stripe, span_make(cursor.topic, cursor.topic_bytes), SEEK_BEHIND)
    while not hold.ended and hold.looked < budget and hold.expired_count < HOLD_EXPIRED:
        entry = index_at(stripe, &place)
        if entry == NULL:
            hold.ended = True
            break
        if entry.topic_bytes > cursor.topic_capacity:
            hold.need = entry.topic_bytes
            break
        hold.looked += 1
        last = entry
        if entry.expires and msg_expired(entry.msg, now_ms):
            hold.expired[hold.expired_count] = entry
            hold.expired_count += 1
        place.index += 1
    if hold.ended:
        cursor.topic_bytes = 0
    elif last != NULL:
        cursor_save(cursor, last)


cdef uint32_t retain_sweep(RetainStore *store, MsgPool *pool, int64_t now_ms, uint32_t budget) noexcept nogil:
    cdef Core *core = <Core *> store.private
    cdef RetainCursor *cursor = &core.sweep
    cdef Stripe *stripe
    cdef Hold hold
    cdef uint32_t looked = 0, removed = 0, left, stripes_left
    pthread_mutex_lock(&core.sweep_lock)
    stripes_left = STRIPES + (cursor.topic_bytes != 0)     # one round, back to where it began
    while looked < budget and stripes_left:
        hold_init(&hold, NULL, 0)
        left = budget - looked
        stripe = &core.stripes[cursor.stripe]
        pthread_mutex_lock(&stripe.lock)
        sweep_scan(stripe, cursor, now_ms, left if left < HOLD_TOPICS else HOLD_TOPICS, &hold)
        hold_expire(store, stripe, &hold)
        pthread_mutex_unlock(&stripe.lock)
        hold_drop(pool, &hold)
        removed += hold.expired_count
        looked += hold.looked
        if hold.need and cursor_reserve(cursor, hold.need) != ST_OK:
            break
        if hold.ended:
            stripes_left -= 1
            cursor.stripe = (cursor.stripe + 1) % STRIPES
    pthread_mutex_unlock(&core.sweep_lock)
    return removed
