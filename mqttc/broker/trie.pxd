"""Trie: the one subscription tree that all workers share: filters to sessions and shared groups.

Writers take precedence on its lock; matching read-locks, stops at a cap of visited nodes, lets writers pass and goes on (starting over when the
structure changed meanwhile). Every change bumps the generation of the filter's stripe (hash of its first level), or of the wildcard
stripe when the first level is a wildcard; a cached route stands while both generations of its topic stand. All functions [any thread].
Nodes are built before the lock is taken and freed after it is let go.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from mqttc.base.types cimport Span, atomic_load_u64_acquire
from mqttc.base.vec cimport Vec

cdef enum:
    TRIE_STRIPES = 256

cdef struct Trie:
    uint64_t wild_generation                   # atomic, release by writers under the lock
    uint64_t generations[256]                  # atomic, likewise
    uint64_t subscription_count                # atomic gauge, shared ones (a member each) included
    uint64_t node_count                        # atomic gauge
    uint64_t lock_waits                        # atomic counter: a matcher or writer found it taken
    void *private

cdef struct TrieMatch:                         # one subscription that matched
    uint64_t session                           # handle; 0: a shared group
    uint64_t group                             # group id; 0: not shared
    uint32_t subscription_id                   # 0: none
    uint8_t options                            # SubscriptionOption

cdef Trie *trie_build(uint32_t max_levels) noexcept nogil                      # NULL: no memory
cdef void trie_free(Trie *trie) noexcept nogil
# The filter was checked. existed: the session had that very filter (options and id are replaced). ST_OK, ST_NO_MEMORY, ST_LIMIT (levels).
cdef int trie_subscribe(Trie *trie, Span filter, uint64_t session, uint8_t options, uint32_t subscription_id, bint *existed) noexcept nogil
cdef bint trie_unsubscribe(Trie *trie, Span filter, uint64_t session) noexcept nogil              # false: was not there
# A member joins group/filter: one tree entry per group, counted; group_id is (home << 56 | number), new when the group is new. home: the worker of it.
cdef int trie_group_join(Trie *trie, Span group, Span filter, uint16_t home, uint64_t *group_id) noexcept nogil
cdef void trie_group_leave(Trie *trie, Span group, Span filter) noexcept nogil                    # the last one takes the entry away
# Appends a TrieMatch per matching subscription to matches (vec of TrieMatch), wild and stripe generation as they stood for the whole match. ST_OK, ST_NO_MEMORY.
cdef int trie_match(Trie *trie, Span topic, Vec *matches, uint64_t *wild_generation, uint64_t *generation) noexcept nogil
cdef uint32_t trie_stripe(Span topic) noexcept nogil                                              # of a topic's first level
