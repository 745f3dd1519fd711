"""Face of the subscription tree and of routes. What crosses threads runs without the GIL, so that threads really meet."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from mqttc.base.alloc cimport mem_fail_after, mem_freed, mem_made, mem_tested
from mqttc.base.types cimport ST_OK, Span, atomic_load_u64_acquire, atomic_load_u64_relaxed, span_make
from mqttc.base.vec cimport Vec, vec_at, vec_free, vec_init
from mqttc.broker.handle cimport handle_make
from mqttc.broker.routes cimport (
    ENTRY_NOT_OWN, ENTRY_OWN_ONLY, ENTRY_RETAIN_AS_PUBLISHED, Route, RouteCache, RouteEntry, RouteSlice, SubscriptionIds, route_drop, route_fresh,
    route_lookup, route_share, routes_free, routes_init, routes_live, subscription_ids_drop, subscription_ids_live, subscription_ids_share,
)
from mqttc.broker.trie cimport (
    TRIE_STRIPES, Trie, TrieMatch, trie_build, trie_free, trie_group_join, trie_group_leave, trie_match, trie_stripe, trie_subscribe,
    trie_unsubscribe,
)

cdef extern from "<unistd.h>" nogil:
    int usleep(unsigned int microseconds) noexcept

NOT_OWN = ENTRY_NOT_OWN
OWN_ONLY = ENTRY_OWN_ONLY
RETAIN_AS_PUBLISHED = ENTRY_RETAIN_AS_PUBLISHED
STRIPES = TRIE_STRIPES


def alloc_tested() -> bool:
    return mem_tested()


def alloc_live() -> int:
    return mem_made() - mem_freed()


def alloc_fail_after(granted: int, once: bool = True) -> None:
    mem_fail_after(granted, once)


def live_routes() -> int:
    return routes_live()


def live_ids() -> int:
    return subscription_ids_live()


def handle(uint16_t worker, uint32_t slot, uint32_t generation=1) -> int:
    return handle_make(worker, slot, generation)


def stripe(bytes topic) -> int:
    return trie_stripe(span_of(topic))


cdef Span span_of(bytes text):
    return span_make(<const char *> text, len(text))


cdef list matches_of(Vec *matches):
    cdef TrieMatch *match
    cdef uint32_t i
    found = []
    for i in range(matches.count):
        match = <TrieMatch *> vec_at(matches, i)
        found.append((match.session, match.group, match.subscription_id, match.options))
    return found


cdef class TrieFace:
    cdef Trie *trie
    cdef Vec matches

    def __cinit__(self, uint32_t max_levels=0):
        self.trie = trie_build(max_levels)
        if self.trie == NULL:
            raise MemoryError
        vec_init(&self.matches, sizeof(TrieMatch))

    def __dealloc__(self):
        trie_free(self.trie)
        vec_free(&self.matches)

    def subscribe(self, bytes filter, uint64_t session, uint8_t options=0, uint32_t subscription_id=0) -> tuple:
        """(status, existed)"""
        cdef bint existed = False
        cdef int status = trie_subscribe(self.trie, span_of(filter), session, options, subscription_id, &existed)
        return status, existed

    def unsubscribe(self, bytes filter, uint64_t session) -> bool:
        return trie_unsubscribe(self.trie, span_of(filter), session)

    def group_join(self, bytes group, bytes filter, uint16_t home=0) -> tuple:
        """(status, group id)"""
        cdef uint64_t group_id = 0
        cdef int status = trie_group_join(self.trie, span_of(group), span_of(filter), home, &group_id)
        return status, group_id

    def group_leave(self, bytes group, bytes filter) -> None:
        trie_group_leave(self.trie, span_of(group), span_of(filter))

    def match(self, bytes topic) -> list:
        """[(session, group, subscription id, options)]"""
        return self.match_with_generations(topic)[0]

    def match_with_generations(self, bytes topic) -> tuple:
        cdef Vec matches
        cdef uint64_t wild = 0
        cdef uint64_t generation = 0
        cdef int status
        cdef Span span = span_of(topic)
        vec_init(&matches, sizeof(TrieMatch))
        with nogil:
            status = trie_match(self.trie, span, &matches, &wild, &generation)
        found = matches_of(&matches)
        vec_free(&matches)
        if status != ST_OK:
            raise MemoryError
        return found, wild, generation

    def generations(self, bytes topic) -> tuple:
        cdef uint32_t index = trie_stripe(span_of(topic))
        return atomic_load_u64_acquire(&self.trie.wild_generation), atomic_load_u64_acquire(&self.trie.generations[index])

    @property
    def subscription_count(self) -> int:
        return atomic_load_u64_relaxed(&self.trie.subscription_count)

    @property
    def node_count(self) -> int:
        return atomic_load_u64_relaxed(&self.trie.node_count)

    @property
    def lock_waits(self) -> int:
        return atomic_load_u64_relaxed(&self.trie.lock_waits)

    def match_often(self, bytes topic, uint32_t times) -> int:
        """The number of matches of the last one: what a benchmark measures."""
        cdef uint64_t wild = 0
        cdef uint64_t generation = 0
        cdef uint32_t i
        cdef Span span = span_of(topic)
        with nogil:
            for i in range(times):
                self.matches.count = 0
                trie_match(self.trie, span, &self.matches, &wild, &generation)
        return self.matches.count

    def churn(self, bytes filter, uint64_t first_session, uint32_t sessions, uint32_t rounds) -> int:
        """Subscribes so many sessions and takes them away again, so many times. Gives what went wrong."""
        cdef Span span = span_of(filter)
        cdef uint32_t round, i
        cdef int wrong = 0
        cdef bint existed = False
        with nogil:
            for round in range(rounds):
                for i in range(sessions):
                    wrong += trie_subscribe(self.trie, span, first_session + i, 1, i, &existed) != ST_OK
                    wrong += existed
                for i in range(sessions):
                    wrong += not trie_unsubscribe(self.trie, span, first_session + i)
        return wrong

    def churn_group(self, bytes group, bytes filter, uint32_t rounds) -> int:
        cdef Span group_span = span_of(group)
        cdef Span span = span_of(filter)
        cdef uint64_t group_id = 0
        cdef uint32_t round
        cdef int wrong = 0
        with nogil:
            for round in range(rounds):
                wrong += trie_group_join(self.trie, group_span, span, 0, &group_id) != ST_OK
                trie_group_leave(self.trie, group_span, span)
        return wrong

    def watch(self, bytes topic, uint64_t steady_below, uint32_t steady, uint32_t times) -> int:
        """Matches while others write. Counts the matches that did not find exactly `steady` subscriptions of sessions below steady_below."""
        cdef Vec matches
        cdef Span span = span_of(topic)
        cdef uint64_t wild = 0
        cdef uint64_t generation = 0
        cdef uint32_t i, j, found
        cdef int wrong = 0
        vec_init(&matches, sizeof(TrieMatch))
        with nogil:
            for i in range(times):
                matches.count = 0
                if trie_match(self.trie, span, &matches, &wild, &generation) != ST_OK:
                    wrong += 1
                    continue
                found = 0
                for j in range(matches.count):
                    found += 0 < (<TrieMatch *> vec_at(&matches, j)).session < steady_below
                wrong += found != steady
        vec_free(&matches)
        return wrong


    def churn_slowly(self, bytes filter, uint64_t session, uint32_t rounds, uint32_t pause_us) -> int:
        """One session comes and goes with pauses, so that matches of one generation can be compared."""
        cdef Span span = span_of(filter)
        cdef uint32_t round
        cdef bint existed = False
        cdef int wrong = 0
        with nogil:
            for round in range(rounds):
                wrong += trie_subscribe(self.trie, span, session, 1, 0, &existed) != ST_OK
                usleep(pause_us)
                wrong += not trie_unsubscribe(self.trie, span, session)
                usleep(pause_us)
        return wrong

    def watch_generations(self, bytes topic, uint32_t times) -> int:
        """Matches while others write. Counts the matches that found something else than the one before although both tell the same generations."""
        cdef Vec matches
        cdef Span span = span_of(topic)
        cdef uint64_t[2] wild
        cdef uint64_t[2] generation
        cdef uint64_t[2] total
        cdef uint32_t i, j, now
        cdef int wrong = 0
        vec_init(&matches, sizeof(TrieMatch))
        with nogil:
            for i in range(times):
                now = i & 1
                matches.count = 0
                wrong += trie_match(self.trie, span, &matches, &wild[now], &generation[now]) != ST_OK
                total[now] = matches.count
                for j in range(matches.count):
                    total[now] += (<TrieMatch *> vec_at(&matches, j)).session * <uint64_t> 0x9E3779B97F4A7C15
                wrong += i > 0 and wild[0] == wild[1] and generation[0] == generation[1] and total[0] != total[1]
        vec_free(&matches)
        return wrong


cdef class RouteHold:
    """A counted reference on a route."""
    cdef Route *route

    def __dealloc__(self):
        self.drop()

    def drop(self) -> None:
        if self.route != NULL:
            route_drop(self.route)
        self.route = NULL

    def read(self) -> list:
        return slices_of(self.route)

    @property
    def refs(self) -> int:
        return self.route.refs


cdef class IdsHold:
    """A counted reference on subscription identifiers."""
    cdef SubscriptionIds *ids

    def __dealloc__(self):
        self.drop()

    def drop(self) -> None:
        subscription_ids_drop(self.ids)
        self.ids = NULL

    def read(self) -> list:
        return ids_of(self.ids)


cdef list ids_of(SubscriptionIds *ids):
    return [] if ids == NULL else [ids.ids[i] for i in range(ids.count)]


cdef list slices_of(Route *route):
    """Per worker: ([(session, QoS, flags, subscription ids)], [group id])"""
    cdef RouteSlice *slice
    cdef RouteEntry *entry
    cdef uint32_t i, j
    found = []
    for i in range(route.worker_count):
        slice = &route.slices[i]
        entries = []
        for j in range(slice.first, slice.first + slice.count):
            entry = &route.entries[j]
            entries.append((entry.session, entry.qos, entry.flags, ids_of(entry.subscription_ids)))
        groups = [route.groups[j] for j in range(slice.first_group, slice.first_group + slice.group_count)]
        found.append((entries, groups))
    assert sum(len(entries) for entries, _ in found) == route.entry_count
    assert sum(len(groups) for _, groups in found) == route.group_count
    return found


cdef class RoutesFace:
    cdef RouteCache cache
    cdef readonly TrieFace tree

    def __cinit__(self, TrieFace tree, uint32_t workers=1, uint32_t capacity=64):
        self.tree = tree
        if routes_init(&self.cache, tree.trie, workers, capacity) != ST_OK:
            raise MemoryError

    def __dealloc__(self):
        routes_free(&self.cache)

    cdef Route *find(self, bytes topic) except NULL:
        cdef Route *route = route_lookup(&self.cache, span_of(topic))
        if route == NULL:
            raise MemoryError
        return route

    def lookup(self, bytes topic) -> list:
        return slices_of(self.find(topic))

    def hold(self, bytes topic) -> RouteHold:
        cdef RouteHold hold = RouteHold()
        cdef Route *route = self.find(topic)
        route_share(route, 1)
        hold.route = route
        return hold

    def hold_ids(self, bytes topic) -> IdsHold:
        """Of the first entry."""
        cdef IdsHold hold = IdsHold()
        cdef Route *route = self.find(topic)
        hold.ids = route.entries[0].subscription_ids
        subscription_ids_share(hold.ids)
        return hold

    def fresh(self, RouteHold hold) -> bool:
        return route_fresh(self.tree.trie, hold.route)

    def lookup_often(self, bytes topic, uint32_t times) -> int:
        """The entries of the last one: what a benchmark measures."""
        cdef Route *route = NULL
        cdef Span span = span_of(topic)
        cdef uint32_t i
        with nogil:
            for i in range(times):
                route = route_lookup(&self.cache, span)
        return route.entry_count

    def watch(self, bytes topic, uint32_t at_least, uint32_t times) -> int:
        """Looks up while others write; counts the routes with fewer entries than there must always be."""
        cdef Route *route
        cdef Span span = span_of(topic)
        cdef uint32_t i
        cdef int wrong = 0
        with nogil:
            for i in range(times):
                route = route_lookup(&self.cache, span)
                wrong += route == NULL or route.entry_count < at_least
        return wrong

    def limit_bytes(self, uint64_t max_bytes) -> None:
        self.cache.max_bytes = max_bytes

    @property
    def counters(self) -> tuple:
        """(hits, misses, made, freed)"""
        return self.cache.hits, self.cache.misses, self.cache.made, self.cache.freed

    @property
    def count(self) -> int:
        """Routes in the cache, whose books are looked through as well."""
        cdef Route *route
        cdef uint32_t i
        cdef uint64_t total = 0
        for i in range(self.cache.ring.count):
            route = (<Route **> vec_at(&self.cache.ring, i))[0]
            assert route.ring_index == i
            total += route.bytes
        assert self.cache.map.count == self.cache.ring.count
        assert self.cache.bytes == total
        return self.cache.ring.count

    @property
    def bytes(self) -> int:
        return self.cache.bytes
