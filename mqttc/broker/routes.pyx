"""Routes and their cache, see routes.pxd.

A route is one block: header, entries, group ids, slices, topic. Only subscription identifiers are blocks of their own, because queued messages
hold on to them after the route is gone.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from mqttc.base.alloc cimport mem_alloc, mem_alloc_zeroed, mem_free
from mqttc.base.map cimport hash_bytes, map_find, map_free, map_init, map_insert, map_remove, map_replace
from mqttc.base.types cimport (
    ST_NO_MEMORY, ST_OK, Span, atomic_add_u32_relaxed, atomic_add_u64_relaxed, atomic_load_u64_relaxed, atomic_sub_u32_acq_rel, counter_add,
    likely, span_make, unlikely
)
from mqttc.base.vec cimport Vec, vec_at, vec_free, vec_init, vec_push, vec_swap_remove
from mqttc.broker.handle cimport handle_worker
from mqttc.broker.trie cimport Trie, TrieMatch, trie_match, trie_stripe
from mqttc.proto.packet cimport OPT_NO_LOCAL, OPT_QOS_MASK, OPT_RETAIN_AS_PUBLISHED
from mqttc.proto.topic cimport topic_matches

cdef enum:
    ROUTE_BYTES_MEAN = 2048        # max_bytes is capacity times this by default
    SCRATCH_MAX = 4096             # matches: a larger scratch is given back after use
    NOTHING = 0xFFFFFFFF

cdef struct Merged:                # one session's matches, chained in match order by `following`
    uint64_t session
    uint32_t first
    uint32_t last
    uint32_t total
    uint32_t no_local

cdef struct Scratch:               # of one build
    const TrieMatch *matches
    uint32_t match_count
    Merged *merged
    uint32_t merged_count
    uint32_t group_count
    uint32_t entry_count
    uint32_t *following            # match to next match of the same session
    uint8_t hooked
    uint32_t *table                # hash of session to index in merged + 1
    uint32_t table_mask

# debug counters of the process, atomic
cdef uint64_t routes_made = 0
cdef uint64_t routes_freed = 0
cdef uint64_t ids_made = 0
cdef uint64_t ids_freed = 0


# ---- subscription identifiers ----------------------------------------------------------------------------------------------------

cdef SubscriptionIds *subscription_ids_build(uint32_t count) noexcept nogil:
    cdef SubscriptionIds *ids = <SubscriptionIds *> mem_alloc(sizeof(SubscriptionIds) + <size_t> count * sizeof(uint32_t))
    if ids == NULL:
        return NULL
    ids.refs = 1
    ids.count = count
    atomic_add_u64_relaxed(&ids_made, 1)
    return ids


cdef void subscription_ids_share(SubscriptionIds *ids) noexcept nogil:
    if ids != NULL:
        atomic_add_u32_relaxed(&ids.refs, 1)


cdef void subscription_ids_drop(SubscriptionIds *ids) noexcept nogil:
    if ids != NULL and atomic_sub_u32_acq_rel(&ids.refs, 1) == 1:
        atomic_add_u64_relaxed(&ids_freed, 1)
        mem_free(ids)


cdef uint64_t subscription_ids_live() noexcept nogil:
    return atomic_load_u64_relaxed(&ids_made) - atomic_load_u64_relaxed(&ids_freed)


# ---- routes ------------------------------------------------------------------------------------------------------------------------

cdef uint64_t routes_live() noexcept nogil:
    return atomic_load_u64_relaxed(&routes_made) - atomic_load_u64_relaxed(&routes_freed)


cdef void route_share(Route *route, uint32_t n) noexcept nogil:
    atomic_add_u32_relaxed(&route.refs, n)


cdef void route_drop(Route *route) noexcept nogil:
    cdef uint32_t i
    if atomic_sub_u32_acq_rel(&route.refs, 1) != 1:
        return
    for i in range(route.entry_count):
        subscription_ids_drop(route.entries[i].subscription_ids)
    atomic_add_u64_relaxed(&routes_freed, 1)
    mem_free(route)


cdef inline bint no_local(const TrieMatch *match) noexcept nogil:
    return (match.options & OPT_NO_LOCAL) != 0


cdef int scratch_open(Scratch *scratch, const Vec *matches) noexcept nogil:
    """One block for all three arrays, freed through `merged`."""
    cdef size_t n = matches.count
    cdef size_t slots = 8
    cdef uint8_t *block
    while slots < 2 * n:
        slots <<= 1
    block = <uint8_t *> mem_alloc_zeroed(1, n * sizeof(Merged) + n * sizeof(uint32_t) + slots * sizeof(uint32_t))
    if block == NULL:
        return ST_NO_MEMORY
    scratch.matches = <const TrieMatch *> matches.items
    scratch.match_count = matches.count
    scratch.merged = <Merged *> block
    scratch.merged_count = 0
    scratch.group_count = 0
    scratch.entry_count = 0
    scratch.hooked = 0
    scratch.following = <uint32_t *> (block + n * sizeof(Merged))
    scratch.table = scratch.following + n
    scratch.table_mask = <uint32_t> (slots - 1)
    return ST_OK


cdef inline bint mixed(const Merged *merged) noexcept nogil:
    """Some of the session's subscriptions have No Local and some have not: it needs two entries."""
    return merged.no_local != 0 and merged.no_local != merged.total


cdef void scratch_merge(Scratch *scratch, uint32_t worker_count) noexcept nogil:
    cdef uint32_t i, at
    cdef const TrieMatch *match
    cdef Merged *merged
    for i in range(scratch.match_count):
        match = &scratch.matches[i]
        if match.session == 0:
            scratch.group_count += handle_worker(match.group) < worker_count
            continue
        if handle_worker(match.session) >= worker_count:
            scratch.hooked |= handle_worker(match.session) == HOOKS_WORKER
            continue
        at = <uint32_t> ((match.session * <uint64_t> 0x9E3779B97F4A7C15) >> 32) & scratch.table_mask
        while scratch.table[at] and scratch.merged[scratch.table[at] - 1].session != match.session:
            at = (at + 1) & scratch.table_mask
        scratch.following[i] = NOTHING
        if scratch.table[at] == 0:
            merged = &scratch.merged[scratch.merged_count]
            merged.session = match.session
            merged.first = i
            scratch.merged_count += 1
            scratch.table[at] = scratch.merged_count
        else:
            merged = &scratch.merged[scratch.table[at] - 1]
            scratch.following[merged.last] = i
        merged.last = i
        merged.total += 1
        merged.no_local += no_local(match)
    for i in range(scratch.merged_count):
        scratch.entry_count += 2 if mixed(&scratch.merged[i]) else 1


cdef int entry_fill(RouteEntry *entry, const Scratch *scratch, const Merged *merged, uint8_t whose) noexcept nogil:
    """whose: 0, ENTRY_NOT_OWN (all matches merged) or ENTRY_OWN_ONLY (those without No Local)."""
    cdef const TrieMatch *match
    cdef uint32_t i = merged.first, id_count = 0
    entry.session = merged.session
    entry.flags = whose
    while i != NOTHING:
        match = &scratch.matches[i]
        if not (whose == ENTRY_OWN_ONLY and no_local(match)):
            if (match.options & OPT_QOS_MASK) > entry.qos:
                entry.qos = match.options & OPT_QOS_MASK           # the highest [MQTT-3.3.4-2]
            if match.options & OPTION_DURABLE:
                entry.flags |= ENTRY_DURABLE
            if match.options & OPT_RETAIN_AS_PUBLISHED:
                entry.flags |= ENTRY_RETAIN_AS_PUBLISHED
            id_count += match.subscription_id != 0
        i = scratch.following[i]
    if id_count == 0:
        return ST_OK
    entry.subscription_ids = subscription_ids_build(id_count)      # all of them [MQTT-3.3.4-4]
    if entry.subscription_ids == NULL:
        return ST_NO_MEMORY
    id_count = 0
    i = merged.first
    while i != NOTHING:
        match = &scratch.matches[i]
        if match.subscription_id != 0 and not (whose == ENTRY_OWN_ONLY and no_local(match)):
            entry.subscription_ids.ids[id_count] = match.subscription_id
            id_count += 1
        i = scratch.following[i]
    return ST_OK


cdef Route *route_alloc(const Scratch *scratch, Span topic, uint32_t worker_count) noexcept nogil:
    """refs 1, zeroed but for what lies where."""
    cdef size_t entries = sizeof(Route)
    cdef size_t groups = entries + <size_t> scratch.entry_count * sizeof(RouteEntry)
    cdef size_t slices = groups + <size_t> scratch.group_count * sizeof(uint64_t)
    cdef size_t name = slices + <size_t> worker_count * sizeof(RouteSlice)
    cdef Route *route = <Route *> mem_alloc_zeroed(1, name + topic.n)
    cdef uint8_t *block = <uint8_t *> route
    if route == NULL:
        return NULL
    route.refs = 1
    route.entry_count = scratch.entry_count
    route.group_count = scratch.group_count
    route.worker_count = worker_count
    route.topic_bytes = topic.n
    route.bytes = name + topic.n
    route.entries = <RouteEntry *> (block + entries)
    route.groups = <uint64_t *> (block + groups)
    route.slices = <RouteSlice *> (block + slices)
    route.topic = block + name
    memcpy(route.topic, topic.p, topic.n)
    atomic_add_u64_relaxed(&routes_made, 1)
    return route


cdef int route_fill(Route *route, const Scratch *scratch) noexcept nogil:
    """Counts per worker, then places each entry and group in its worker's slice."""
    cdef uint32_t i, entry = 0, group = 0, at
    cdef const Merged *merged
    cdef RouteSlice *slice
    for i in range(scratch.merged_count):
        merged = &scratch.merged[i]
        route.slices[handle_worker(merged.session)].count += 2 if mixed(merged) else 1
    for i in range(scratch.match_count):
        if scratch.matches[i].session == 0 and handle_worker(scratch.matches[i].group) < route.worker_count:
            route.slices[handle_worker(scratch.matches[i].group)].group_count += 1
    for i in range(route.worker_count):
        slice = &route.slices[i]
        slice.first = entry
        slice.first_group = group
        entry += slice.count
        group += slice.group_count
        slice.count = 0
        slice.group_count = 0
    for i in range(scratch.merged_count):
        merged = &scratch.merged[i]
        slice = &route.slices[handle_worker(merged.session)]
        at = slice.first + slice.count
        if entry_fill(&route.entries[at], scratch, merged, ENTRY_NOT_OWN if merged.no_local else 0) != ST_OK:
            return ST_NO_MEMORY
        slice.count += 1
        if mixed(merged):
            if entry_fill(&route.entries[at + 1], scratch, merged, ENTRY_OWN_ONLY) != ST_OK:
                return ST_NO_MEMORY
            slice.count += 1
    for i in range(scratch.match_count):
        if scratch.matches[i].session == 0 and handle_worker(scratch.matches[i].group) < route.worker_count:
            slice = &route.slices[handle_worker(scratch.matches[i].group)]
            route.groups[slice.first_group + slice.group_count] = scratch.matches[i].group
            slice.group_count += 1
    return ST_OK


cdef void route_rate(Route *route, const RouteRules *rules) noexcept nogil:
    """What durability asks for."""
    cdef Span topic = span_make(route.topic, route.topic_bytes)
    cdef uint32_t i
    for i in range(route.entry_count):
        route.durable_count += route.entries[i].flags & ENTRY_DURABLE != 0
    route.durability = rules.durability
    for i in range(rules.filter_count):
        if rules.filters[i].durability > route.durability and topic_matches(span_make(rules.filters[i].text, rules.filters[i].bytes), topic):
            route.durability = rules.filters[i].durability


cdef Route *route_build(RouteCache *cache, Span topic, uint32_t hash) noexcept nogil:
    cdef Scratch scratch
    cdef Route *route = NULL
    cdef uint64_t wild_generation = 0, generation = 0
    cache.matches.count = 0
    if (trie_match(cache.trie, topic, &cache.matches, &wild_generation, &generation) == ST_OK
            and scratch_open(&scratch, &cache.matches) == ST_OK):
        scratch_merge(&scratch, cache.worker_count)
        route = route_alloc(&scratch, topic, cache.worker_count)
        if route != NULL:
            route.hash = hash
            route.stripe = trie_stripe(topic)
            route.wild_generation = wild_generation
            route.generation = generation
            route.hooked = scratch.hooked
            if route_fill(route, &scratch) != ST_OK:
                route_drop(route)
                route = NULL
            elif cache.rules != NULL:
                route_rate(route, cache.rules)
        mem_free(scratch.merged)
    if cache.matches.capacity > SCRATCH_MAX:
        vec_free(&cache.matches)
    return route


# ---- the cache ---------------------------------------------------------------------------------------------------------------------

cdef bint route_has_topic(void *context, uint64_t value, const void *key) noexcept nogil:
    cdef const Route *route = <const Route *> <size_t> value
    cdef const Span *topic = <const Span *> key
    return route.topic_bytes == topic.n and memcmp(route.topic, topic.p, topic.n) == 0


cdef inline Route **ring_slot(RouteCache *cache, uint32_t index) noexcept nogil:
    return <Route **> vec_at(&cache.ring, index)


cdef int routes_init(RouteCache *cache, Trie *trie, uint32_t worker_count, uint32_t capacity) noexcept nogil:
    map_init(&cache.map, route_has_topic, NULL)
    vec_init(&cache.ring, sizeof(void *))
    vec_init(&cache.matches, sizeof(TrieMatch))
    cache.hand = 0
    cache.capacity = capacity if capacity else 1
    cache.worker_count = worker_count
    cache.trie = trie
    cache.rules = NULL
    cache.bytes = 0
    cache.max_bytes = <uint64_t> cache.capacity * ROUTE_BYTES_MEAN
    cache.hits = 0
    cache.misses = 0
    cache.made = 0
    cache.freed = 0
    return ST_OK


cdef void routes_free(RouteCache *cache) noexcept nogil:
    cdef uint32_t i
    for i in range(cache.ring.count):
        route_drop(ring_slot(cache, i)[0])
    counter_add(&cache.freed, cache.ring.count)
    vec_free(&cache.ring)
    vec_free(&cache.matches)
    map_free(&cache.map)
    cache.bytes = 0


cdef void routes_evict(RouteCache *cache, const Route *newest) noexcept nogil:
    """The clock: whoever was not used since the hand came by, or is stale, goes."""
    cdef Route *route
    cdef Span topic
    cdef uint32_t index
    while cache.ring.count > 1 and (cache.ring.count > cache.capacity or cache.bytes > cache.max_bytes):
        if cache.hand >= cache.ring.count:
            cache.hand = 0
        index = cache.hand
        route = ring_slot(cache, index)[0]
        if route == newest:
            cache.hand += 1
            continue
        if route.age and route_fresh(cache.trie, route):
            route.age = 0
            cache.hand += 1
            continue
        topic = span_make(route.topic, route.topic_bytes)
        map_remove(&cache.map, route.hash, &topic, NULL)
        vec_swap_remove(&cache.ring, index)
        if index < cache.ring.count:
            ring_slot(cache, index)[0].ring_index = index
        cache.bytes -= route.bytes
        counter_add(&cache.freed, 1)
        route_drop(route)


cdef int route_enter(RouteCache *cache, Route *route, Route *stale) noexcept nogil:
    """Takes the reference over with ST_OK. stale: what stands there for the topic now; NULL: nothing."""
    cdef Route **slot
    cdef Span topic = span_make(route.topic, route.topic_bytes)
    if stale != NULL:
        route.ring_index = stale.ring_index
        map_replace(&cache.map, route.hash, &topic, <uint64_t> <size_t> route)
        ring_slot(cache, route.ring_index)[0] = route
        cache.bytes -= stale.bytes
        counter_add(&cache.freed, 1)
        route_drop(stale)
    else:
        route.ring_index = cache.ring.count
        slot = <Route **> vec_push(&cache.ring)
        if slot == NULL:
            return ST_NO_MEMORY
        slot[0] = route
        if map_insert(&cache.map, route.hash, <uint64_t> <size_t> route) != ST_OK:
            cache.ring.count -= 1
            return ST_NO_MEMORY
    cache.bytes += route.bytes
    counter_add(&cache.made, 1)
    return ST_OK


cdef Route *route_miss(RouteCache *cache, Span topic, uint32_t hash, Route *stale) noexcept nogil:
    cdef Route *route = route_build(cache, topic, hash)
    cdef uint32_t stale_age = 0 if stale == NULL else 1
    counter_add(&cache.misses, 1)
    if route == NULL:
        return NULL
    if route_enter(cache, route, stale) != ST_OK:
        route_drop(route)
        return NULL
    route.age = stale_age          # a topic seen for the first time has yet to show that it comes again
    routes_evict(cache, route)
    return route


cdef Route *route_lookup(RouteCache *cache, Span topic) noexcept nogil:
    cdef uint32_t hash = hash_bytes(topic)
    cdef uint64_t value
    cdef Route *route = NULL
    if likely(map_find(&cache.map, hash, &topic, &value)):
        route = <Route *> <size_t> value
        if likely(route_fresh(cache.trie, route)):
            counter_add(&cache.hits, 1)
            route.age = 1
            return route
    return route_miss(cache, topic, hash, route)
