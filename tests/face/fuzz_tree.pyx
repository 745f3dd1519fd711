"""Fuzz target of the subscription tree: any history of subscriptions, next to a list of them. See fuzz_target.pxd for what a target is."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from mqttc.base.types cimport ST_OK, Span, atomic_load_u64_acquire, atomic_load_u64_relaxed, span_equal, span_make
from mqttc.base.vec cimport Vec, vec_at, vec_free, vec_init
from mqttc.broker.trie cimport (
    Trie, TrieMatch, trie_build, trie_free, trie_group_join, trie_group_leave, trie_match, trie_stripe, trie_subscribe, trie_unsubscribe,
)
from mqttc.proto.topic cimport filter_check, topic_check, topic_matches
from tests.face.fuzz_target cimport Targets

cdef enum:
    ENTRIES = 48                   # subscriptions and groups of one history
    TEXT = 15                      # bytes of a filter or topic
    STEPS = 400
    PROBES = 4                     # topics whose routes might be cached

# Texts are spelled in these, so that filters meet.
cdef const char *LETTERS = b"a/b+/#$a"

cdef struct Entry:                 # of the list
    uint8_t text[16]
    uint32_t n
    uint32_t members               # 0: free; of a group more than one
    uint64_t session               # 0: a group
    uint64_t group
    uint32_t subscription_id
    uint8_t options
    uint8_t name                   # of the group, a letter

cdef struct Probe:
    uint64_t wild
    uint64_t generation
    uint64_t sum                   # of what matched

cdef struct World:
    Trie *trie
    Vec matches
    Entry entries[48]
    Probe probes[4]


cdef Span entry_text(const Entry *entry) noexcept nogil:
    return span_make(entry.text, entry.n)


cdef Span probe_topic(int which) noexcept nogil:
    if which == 0:
        return span_make(b"a", 1)
    if which == 1:
        return span_make(b"a/b", 3)
    if which == 2:
        return span_make(b"/", 1)
    return span_make(b"$a/b", 4)


cdef Entry *entry_find(World *world, Span text, uint64_t session, uint8_t name) noexcept nogil:
    cdef uint32_t i
    for i in range(ENTRIES):
        if world.entries[i].members and world.entries[i].session == session and world.entries[i].name == name:
            if span_equal(entry_text(&world.entries[i]), text):
                return &world.entries[i]
    return NULL


cdef Entry *entry_new(World *world, Span text) noexcept nogil:
    cdef uint32_t i
    for i in range(ENTRIES):
        if world.entries[i].members == 0:
            memset(&world.entries[i], 0, sizeof(Entry))
            memcpy(world.entries[i].text, text.p, text.n)
            world.entries[i].n = text.n
            return &world.entries[i]
    return NULL


cdef uint64_t match_sum(uint64_t session, uint64_t group, uint32_t subscription_id, uint8_t options) noexcept nogil:
    """Sums of these tell sets apart, whatever their order."""
    cdef uint64_t value = session * 0x9E3779B97F4A7C15ULL + group * 0xC2B2AE3D27D4EB4FULL + subscription_id * 0x165667B19E3779F9ULL + options + 1
    value ^= value >> 29
    value *= 0xBF58476D1CE4E5B9ULL
    return value ^ (value >> 32)


cdef const char *match_check(World *world, Span topic, Probe *probe) noexcept nogil:
    cdef uint64_t expected = 0
    cdef uint32_t count = 0
    cdef uint32_t i
    cdef TrieMatch *match
    cdef const Entry *entry
    world.matches.count = 0
    if trie_match(world.trie, topic, &world.matches, &probe.wild, &probe.generation) != ST_OK:
        return NULL                             # no memory
    probe.sum = 0
    for i in range(world.matches.count):
        match = <TrieMatch *> vec_at(&world.matches, i)
        probe.sum += match_sum(match.session, match.group, match.subscription_id, match.options)
    for i in range(ENTRIES):
        entry = &world.entries[i]
        if entry.members and topic_matches(entry_text(entry), topic):
            count += 1
            expected += match_sum(entry.session, entry.group, entry.subscription_id, entry.options)
    if count != world.matches.count:
        return "another number of subscriptions matches than in the list"
    if expected != probe.sum:
        return "other subscriptions match than in the list"
    return NULL


cdef const char *subscription_change(World *world, Span text, uint64_t session, uint8_t op, uint8_t options) noexcept nogil:
    cdef Entry *entry = entry_find(world, text, session, 0)
    cdef bint existed = False
    if op == 3:
        if trie_unsubscribe(world.trie, text, session) != (entry != NULL):
            return "unsubscribing does not tell whether there was one"
        if entry != NULL:
            entry.members = 0
        return NULL
    if entry == NULL:
        entry = entry_new(world, text)
        if entry == NULL:
            return NULL
    if trie_subscribe(world.trie, text, session, options, options >> 3, &existed) != ST_OK:
        return NULL
    if existed != (entry.members != 0):
        return "subscribing does not tell whether there was one"
    entry.members = 1
    entry.session = session
    entry.options = options
    entry.subscription_id = options >> 3
    return NULL


cdef const char *group_change(World *world, Span text, uint8_t name, bint joining) noexcept nogil:
    cdef Entry *entry = entry_find(world, text, 0, name)
    cdef uint64_t group_id = 0
    if not joining:
        if entry != NULL:
            trie_group_leave(world.trie, span_make(&name, 1), text)
            entry.members -= 1
        return NULL
    if entry == NULL:
        entry = entry_new(world, text)
        if entry == NULL:
            return NULL
        entry.name = name
    if trie_group_join(world.trie, span_make(&name, 1), text, 1, &group_id) != ST_OK:
        return NULL
    if entry.members and entry.group != group_id:
        return "joining a group gives another identifier"
    entry.group = group_id
    entry.members += 1
    return NULL


cdef const char *probes_check(World *world) noexcept nogil:
    """What matches may only change with a generation that a cached route would notice."""
    cdef Probe before
    cdef const char *why
    cdef int i
    for i in range(PROBES):
        before = world.probes[i]
        why = match_check(world, probe_topic(i), &world.probes[i])
        if why != NULL:
            return why
        if before.sum != world.probes[i].sum and before.wild == world.probes[i].wild and before.generation == world.probes[i].generation:
            return "a cached route would not have noticed the change"
        if atomic_load_u64_acquire(&world.trie.wild_generation) != world.probes[i].wild:
            return "the generation that a match tells is not the tree's"
        if atomic_load_u64_acquire(&world.trie.generations[trie_stripe(probe_topic(i))]) != world.probes[i].generation:
            return "the generation of a stripe that a match tells is not the tree's"
    return NULL


cdef const char *counts_check(const World *world) noexcept nogil:
    cdef uint64_t members = 0
    cdef uint32_t i
    for i in range(ENTRIES):
        members += world.entries[i].members
    if atomic_load_u64_relaxed(&world.trie.subscription_count) != members:
        return "the gauge of subscriptions is wrong"
    return NULL


cdef const char *history_play(World *world, const uint8_t *p, const uint8_t *end) noexcept nogil:
    cdef uint8_t[16] room
    cdef Probe probe
    cdef Span text
    cdef const char *why = NULL
    cdef uint32_t n, i
    cdef uint32_t steps = 0
    cdef uint8_t op
    while end - p >= 3 and steps < STEPS and why == NULL:
        steps += 1
        op = p[0] & 7
        n = 1 + (p[0] >> 3) % TEXT
        i = p[1]
        p += 2
        if n > <size_t> (end - p):
            n = <uint32_t> (end - p)
        text = span_make(room, n)
        for i in range(n):
            room[i] = <uint8_t> LETTERS[p[i] & 7]
        if op >= 6:
            if topic_check(text):
                why = match_check(world, text, &probe)
        elif filter_check(text):
            if op <= 3:
                why = subscription_change(world, text, 1 + ((p - 1)[0] & 7), op, (p - 1)[0] >> 2)
            else:
                why = group_change(world, text, <uint8_t> (c'g' + ((p - 1)[0] & 1)), op == 4)
            if why == NULL:
                why = probes_check(world)
        p += n
    return why if why != NULL else counts_check(world)


cdef void world_empty(World *world) noexcept nogil:
    cdef Entry *entry
    cdef uint32_t i
    for i in range(ENTRIES):
        entry = &world.entries[i]
        while entry.members:
            if entry.session:
                trie_unsubscribe(world.trie, entry_text(entry), entry.session)
            else:
                trie_group_leave(world.trie, span_make(&entry.name, 1), entry_text(entry))
            entry.members -= 1


cdef const char *fuzz_tree(const uint8_t *data, size_t n) noexcept nogil:
    """Steps: what and how long a text, who with which options, the text's letters."""
    cdef World *world = <World *> malloc(sizeof(World))
    cdef const char *why = NULL
    cdef uint64_t nodes
    if world == NULL:
        return NULL
    memset(world, 0, sizeof(World))
    vec_init(&world.matches, sizeof(TrieMatch))
    world.trie = trie_build(0)
    if world.trie != NULL:
        nodes = atomic_load_u64_relaxed(&world.trie.node_count)
        why = history_play(world, data, data + n)
        world_empty(world)
        if why == NULL and atomic_load_u64_relaxed(&world.trie.node_count) != nodes:
            why = "nodes are left in a tree without subscriptions"
        trie_free(world.trie)
    vec_free(&world.matches)
    free(world)
    return why


# ---------------------------------------------------------------------------------------------- by name

cdef Targets targets = Targets()
targets.add("tree", fuzz_tree)
TARGETS = targets
