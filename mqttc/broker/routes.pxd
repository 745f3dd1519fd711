"""Routes: what a topic leads to, immutable and counted, and each worker's bounded cache of them.

A route has one entry per session that matches (highest QoS, all subscription identifiers, retain as published), grouped by home worker, so that a
remote worker gets {message, route} once and reads its own slice. When only some of a session's matching subscriptions have No Local, the session
has two entries: one for messages of others (all merged) and one for its own (those without No Local merged) [MQTT-3.8.3-3].
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from mqttc.base.map cimport Map
from mqttc.base.types cimport Span, atomic_load_u64_acquire
from mqttc.base.vec cimport Vec
from mqttc.broker.trie cimport Trie

cdef struct SubscriptionIds:       # immutable after build but refs; shared by routes and queue entries
    uint32_t refs                  # atomic
    uint32_t count
    uint32_t ids[1]                # count of them

cdef enum EntryFlag:
    ENTRY_NOT_OWN = 1              # not for messages that this session published itself
    ENTRY_OWN_ONLY = 2             # only for those
    ENTRY_RETAIN_AS_PUBLISHED = 4
    ENTRY_DURABLE = 8              # the session outlives its connection

cdef enum PublishPermit:           # what a session may do on a topic, as far as it was asked
    PERMIT_PUBLISH = 1
    PERMIT_RETAIN = 2
    PERMIT_RETAIN_KNOWN = 4

cdef enum:
    OPTION_DURABLE = 0x40          # beside SubscriptionOption in the tree: the subscriber is such a session

cdef enum:
    HOOKS_WORKER = 255             # of the handle under which filters of on_publish hooks stand in the tree: no worker has that number

cdef struct DurableFilter:         # messages whose topic matches are at least that durable
    uint8_t *text                  # owned
    uint32_t bytes
    uint8_t durability

cdef struct RouteRules:            # immutable while routes are built
    DurableFilter *filters         # owned
    uint32_t filter_count
    uint8_t durability             # of every topic

cdef struct RouteEntry:
    uint64_t session               # handle
    SubscriptionIds *subscription_ids      # NULL: none. The route holds the reference
    uint8_t qos
    uint8_t flags                  # EntryFlag
    # of the session's worker alone, which is the only one to read its slice (and so the only fields not immutable)
    uint8_t denied                 # ACL verdict, under
    uint32_t epoch                 # session.rights_epoch; 0: not asked

cdef struct RouteSlice:            # of one worker
    uint32_t first
    uint32_t count
    uint32_t first_group
    uint32_t group_count

cdef struct Route:
    uint32_t refs                  # atomic
    uint32_t stripe
    uint64_t wild_generation
    uint64_t generation
    uint32_t entry_count
    uint32_t group_count
    uint32_t worker_count
    uint32_t topic_bytes
    uint32_t hash
    uint32_t age                   # of the cache: 1 since it was used last
    uint32_t ring_index            # of the cache
    uint32_t durable_count         # entries with ENTRY_DURABLE
    uint8_t durability             # Durability by the topic
    uint8_t hooked                 # a hook is asked about what is published to the topic
    uint8_t permit                 # of the cache's owner: PublishPermit of
    uint32_t permit_epoch          # the session below, under its rights_epoch
    uint64_t permit_session        # who published to the topic last
    uint64_t bytes                 # of this block; subscription identifiers not counted
    RouteSlice *slices             # worker_count of them
    RouteEntry *entries
    uint64_t *groups               # group ids
    uint8_t *topic

cdef struct RouteCache:            # one per worker, owner thread only
    Map map
    Vec ring                       # of Route*: for eviction by clock
    Vec matches                    # scratch
    uint32_t hand
    uint32_t capacity              # routes
    uint32_t worker_count
    Trie *trie
    const RouteRules *rules        # NULL: none
    uint64_t bytes                 # of all routes in it
    uint64_t max_bytes             # routes_init sets a default; the newest route stays whatever its size
    uint64_t hits                  # counters of the owner, any reader
    uint64_t misses                # absent or stale
    uint64_t made                  # routes
    uint64_t freed                 # routes that the cache has let go: replaced or evicted (who shared one may hold it still, see routes_live)

# worker_count: sessions and groups of workers beyond it are left out. ST_OK, ST_NO_MEMORY.
cdef int routes_init(RouteCache *cache, Trie *trie, uint32_t worker_count, uint32_t capacity) noexcept nogil
cdef void routes_free(RouteCache *cache) noexcept nogil
cdef Route *route_lookup(RouteCache *cache, Span topic) noexcept nogil         # borrowed, good until the next look-up; share it to keep it. NULL: no memory
cdef void route_share(Route *route, uint32_t n) noexcept nogil                 # [any thread]
cdef void route_drop(Route *route) noexcept nogil                              # [any thread]
cdef void subscription_ids_share(SubscriptionIds *ids) noexcept nogil          # [any thread]; NULL is fine
cdef void subscription_ids_drop(SubscriptionIds *ids) noexcept nogil           # [any thread]; NULL is fine
cdef SubscriptionIds *subscription_ids_build(uint32_t count) noexcept nogil    # refs 1, ids to be filled; NULL: no memory
cdef uint64_t routes_live() noexcept nogil                                     # debug: routes made less freed, of the process
cdef uint64_t subscription_ids_live() noexcept nogil

cdef inline bint entry_applies(const RouteEntry *entry, uint64_t publisher) noexcept nogil:
    """Whether it is for what this session has published. [MQTT-3.8.3-3]"""
    if entry.session == publisher:
        return not entry.flags & ENTRY_NOT_OWN
    return not entry.flags & ENTRY_OWN_ONLY

cdef inline bint route_fresh(const Trie *trie, const Route *route) noexcept nogil:
    """Whether the route still says what the tree says."""
    return (route.generation == atomic_load_u64_acquire(&trie.generations[route.stripe])
            and route.wild_generation == atomic_load_u64_acquire(&trie.wild_generation))
