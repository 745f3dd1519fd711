"""The subscription tree, see trie.pxd.

One node per level of a filter. Literal children stand in hash maps shared by the whole tree, keyed (parent, name); the '+' child and what
subscribes to `.../#` hang on the node itself, so that a filter costs about 150 bytes. The maps are 256 small ones chosen by the hash, and a
node's subscriptions are linear-hash buckets: neither ever rehashes as a whole, so that no writer holds the lock for longer than a few
microseconds, whatever the number of filters or of subscribers of one filter.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from mqttc.base.alloc cimport mem_alloc, mem_alloc_zeroed, mem_free, mem_resize
from mqttc.base.map cimport Map, hash_bytes, map_find, map_free, map_init, map_insert, map_next, map_remove
from mqttc.base.types cimport (
    ST_LIMIT, ST_NO_MEMORY, ST_OK, Span, atomic_add_u64_relaxed, atomic_load_u64_relaxed, atomic_store_u64_release, counter_add,
    counter_sub, unlikely
)
from mqttc.base.vec cimport Vec, vec_reserve
from mqttc.proto.topic cimport level_next

cdef extern from "mqttc/broker/rwlock.h" nogil:
    ctypedef struct RwLock:
        pass
    int rwlock_init(RwLock *lock) noexcept
    void rwlock_destroy(RwLock *lock) noexcept
    bint rwlock_read(RwLock *lock) noexcept        # true: it was taken
    bint rwlock_write(RwLock *lock) noexcept
    void rwlock_unlock(RwLock *lock) noexcept

cdef enum:
    LEVELS_MAX = 512           # no filter has more levels, whatever max_levels says: paths stand on the C stack
    MAP_COUNT = 256
    MATCH_BUDGET = 2048        # nodes visited (and groups of 16 subscriptions copied) in one hold of the lock
    RESTARTS_MAX = 3           # then a match goes through without letting go
    BUCKET_LOAD = 16           # subscriptions per bucket, on average, before one is split
    BUCKET_LOW = 6             # below it one is merged

cdef enum Kind:
    KIND_LITERAL = 0
    KIND_PLUS = 1
    KIND_GROUP = 2             # a shared group of the filter that ends in its parent
    KIND_GROUP_DEEP = 3        # of the filter parent/#

cdef struct Head:              # what the maps hold: first member of nodes and groups; the name's bytes follow the whole struct
    Node *parent
    uint32_t count             # literal children of a node, members of a group
    uint16_t name_bytes
    uint8_t kind

cdef struct Node:
    Head head
    Node *plus                 # the '+' child
    Tail *own                  # of the filter that ends here; NULL: none
    Tail *deep                 # of this filter + "/#"

cdef struct Group:
    Head head
    Group *next                # groups of one tail
    Group *previous
    uint64_t id

cdef struct Item:              # one subscription
    uint64_t session
    uint32_t subscription_id
    uint8_t options

cdef struct Bucket:
    uint32_t count
    uint32_t capacity
    Item items[1]

cdef struct Tail:              # all subscriptions of one filter
    uint32_t count             # items, without groups
    uint32_t bucket_count      # 0: `only` is the item, if count is 1
    void *buckets              # 1: the Bucket itself; more: an array of pointers to them, room for the next power of two
    Group *groups
    Item only

cdef struct Core:              # Trie.private
    RwLock lock
    Map maps[256]
    Node root
    uint32_t max_levels
    uint64_t groups_made

cdef struct Key:
    const Node *parent
    Span name
    uint32_t kind

cdef struct Path:              # a filter taken apart; '#' is no level but `deep`
    Span levels[512]
    uint32_t hashes[512]
    Node *spare[512]           # built before the lock is taken: for levels from `built_from` on
    uint32_t count
    uint32_t built_from
    uint32_t stripe
    bint wild                  # the first level is a wildcard
    bint deep
    Node *node                 # where it ends
    Tail *spare_tail


# ---- nodes and maps ---------------------------------------------------------------------------------------------------------

cdef inline const uint8_t *head_name(const Head *head) noexcept nogil:
    return <const uint8_t *> head + (sizeof(Node) if head.kind < KIND_GROUP else sizeof(Group))


cdef inline uint32_t key_hash(const Node *parent, uint32_t name_hash, uint32_t kind) noexcept nogil:
    cdef uint64_t x = (<uint64_t> <size_t> parent >> 4) * <uint64_t> 0x9E3779B97F4A7C15
    x = (x ^ name_hash ^ (<uint64_t> kind << 40)) * <uint64_t> 0xD6E8FEB86659FD93
    return <uint32_t> ((x >> 32) ^ (x >> 16))


cdef bint head_equals(void *context, uint64_t value, const void *key) noexcept nogil:
    cdef const Head *head = <const Head *> <size_t> value
    cdef const Key *wanted = <const Key *> key
    return (head.parent == wanted.parent and head.name_bytes == wanted.name.n and head.kind == wanted.kind
            and (wanted.name.n == 0 or memcmp(head_name(head), wanted.name.p, wanted.name.n) == 0))


cdef inline Head *head_find(Core *core, const Node *parent, Span name, uint32_t name_hash, uint32_t kind) noexcept nogil:
    cdef Key key
    cdef uint64_t value
    cdef uint32_t h = key_hash(parent, name_hash, kind)
    key.parent = parent
    key.name = name
    key.kind = kind
    if map_find(&core.maps[h >> 24], h, &key, &value):
        return <Head *> <size_t> value
    return NULL


cdef void head_unmap(Core *core, Head *head) noexcept nogil:
    cdef Key key
    key.parent = head.parent
    key.name.p = head_name(head)
    key.name.n = head.name_bytes
    key.kind = head.kind
    cdef uint32_t h = key_hash(head.parent, hash_bytes(key.name), head.kind)
    map_remove(&core.maps[h >> 24], h, &key, NULL)


cdef inline bint is_plus(Span level) noexcept nogil:
    return level.n == 1 and level.p[0] == c'+'


cdef Head *head_build(size_t struct_bytes, Span name, uint32_t kind) noexcept nogil:
    cdef Head *head = <Head *> mem_alloc(struct_bytes + name.n)
    if head == NULL:
        return NULL
    head.parent = NULL
    head.count = 0
    head.name_bytes = <uint16_t> name.n
    head.kind = <uint8_t> kind
    if name.n:
        memcpy(<uint8_t *> head + struct_bytes, name.p, name.n)
    return head


cdef Node *node_build(Span level) noexcept nogil:
    cdef Span none
    cdef Node *node
    if is_plus(level):
        none.p = NULL
        none.n = 0
        node = <Node *> head_build(sizeof(Node), none, KIND_PLUS)
    else:
        node = <Node *> head_build(sizeof(Node), level, KIND_LITERAL)
    if node != NULL:
        node.plus = NULL
        node.own = NULL
        node.deep = NULL
    return node


cdef int node_link(Core *core, Node *parent, Node *node, uint32_t name_hash) noexcept nogil:
    """Under the write lock."""
    cdef uint32_t h
    node.head.parent = parent
    if node.head.kind == KIND_PLUS:
        parent.plus = node
        return ST_OK
    h = key_hash(parent, name_hash, KIND_LITERAL)
    if map_insert(&core.maps[h >> 24], h, <uint64_t> <size_t> node) != ST_OK:
        return ST_NO_MEMORY
    parent.head.count += 1
    return ST_OK


cdef Node *node_prune(Trie *trie, Node *node) noexcept nogil:
    """Takes empty nodes out, from this one up, under the write lock. Gives them chained by `parent`, to be freed after it."""
    cdef Core *core = <Core *> trie.private
    cdef Node *chain = NULL
    cdef Node *parent
    while node != &core.root and node.head.count == 0 and node.plus == NULL and node.own == NULL and node.deep == NULL:
        parent = node.head.parent
        if node.head.kind == KIND_PLUS:
            parent.plus = NULL
        else:
            head_unmap(core, &node.head)
            parent.head.count -= 1
        node.head.parent = chain
        chain = node
        counter_sub(&trie.node_count, 1)
        node = parent
    return chain


cdef void chain_free(Node *chain) noexcept nogil:
    cdef Node *node
    while chain != NULL:
        node = chain
        chain = node.head.parent
        mem_free(node)


# ---- tails: the subscriptions of one filter -----------------------------------------------------------------------------------

cdef inline uint32_t session_hash(uint64_t session) noexcept nogil:
    return <uint32_t> ((session * <uint64_t> 0x9E3779B97F4A7C15) >> 32)


cdef inline uint32_t power_below(uint32_t n) noexcept nogil:
    """The largest power of two that is not above n (n > 0)."""
    cdef uint32_t power = 1
    while power <= n >> 1:
        power <<= 1
    return power


cdef inline Bucket **bucket_slot(Tail *tail, uint32_t index) noexcept nogil:
    if tail.bucket_count == 1:
        return <Bucket **> &tail.buckets
    return <Bucket **> tail.buckets + index


cdef inline uint32_t bucket_index(uint32_t h, uint32_t bucket_count) noexcept nogil:
    """Linear hashing: the buckets from the last power of two on are splits of the first ones."""
    cdef uint32_t base = power_below(bucket_count)
    cdef uint32_t index = h & (2 * base - 1)
    return index if index < bucket_count else index - base


cdef int bucket_push(Bucket **slot, const Item *item) noexcept nogil:
    cdef Bucket *bucket = slot[0]
    cdef uint32_t capacity
    if bucket == NULL or bucket.count == bucket.capacity:
        capacity = 4 if bucket == NULL else bucket.capacity + bucket.capacity // 2
        bucket = <Bucket *> mem_resize(bucket, 1, sizeof(Bucket) + (capacity - 1) * sizeof(Item))
        if bucket == NULL:
            return ST_NO_MEMORY
        if slot[0] == NULL:
            bucket.count = 0
        bucket.capacity = capacity
        slot[0] = bucket
    bucket.items[bucket.count] = item[0]
    bucket.count += 1
    return ST_OK


cdef Item *tail_find(Tail *tail, uint64_t session) noexcept nogil:
    cdef Bucket *bucket
    cdef uint32_t i
    if tail.bucket_count == 0:
        return &tail.only if tail.count == 1 and tail.only.session == session else NULL
    bucket = bucket_slot(tail, bucket_index(session_hash(session), tail.bucket_count))[0]
    for i in range(bucket.count):
        if bucket.items[i].session == session:
            return &bucket.items[i]
    return NULL


cdef void tail_split(Tail *tail) noexcept nogil:
    """One more bucket. Without memory the buckets just stay longer."""
    cdef uint32_t new = tail.bucket_count
    cdef uint32_t base = power_below(new)
    cdef Bucket *source = bucket_slot(tail, new - base)[0]
    cdef Bucket *target
    cdef Bucket **table
    cdef uint32_t i, moving = 0, kept = 0
    for i in range(source.count):
        moving += (session_hash(source.items[i].session) & (2 * base - 1)) == new
    target = <Bucket *> mem_alloc(sizeof(Bucket) + (moving + 3) * sizeof(Item))
    if target == NULL:
        return
    if new == base:            # the table is full
        table = <Bucket **> mem_resize(NULL if new == 1 else tail.buckets, 2 * new, sizeof(void *))
        if table == NULL:
            mem_free(target)
            return
        if new == 1:
            table[0] = <Bucket *> tail.buckets
        tail.buckets = table
    target.count = 0
    target.capacity = moving + 4
    for i in range(source.count):
        if (session_hash(source.items[i].session) & (2 * base - 1)) == new:
            target.items[target.count] = source.items[i]
            target.count += 1
        else:
            source.items[kept] = source.items[i]
            kept += 1
    source.count = kept
    (<Bucket **> tail.buckets)[new] = target
    tail.bucket_count = new + 1


cdef void tail_merge(Tail *tail) noexcept nogil:
    """One bucket less: the last goes back to the one it was split from. Without memory it stays."""
    cdef uint32_t last = tail.bucket_count - 1
    cdef Bucket **table = <Bucket **> tail.buckets
    cdef Bucket **target = &table[last - power_below(last)]
    cdef Bucket *source = table[last]
    cdef Bucket *grown
    cdef uint32_t need = target[0].count + source.count
    if need > target[0].capacity or target[0].capacity > 4 * need + 8:
        grown = <Bucket *> mem_resize(target[0], 1, sizeof(Bucket) + (need + 3) * sizeof(Item))
        if grown == NULL:
            return
        grown.capacity = need + 4
        target[0] = grown
    memcpy(&target[0].items[target[0].count], source.items, source.count * sizeof(Item))
    target[0].count = need
    mem_free(source)
    tail.bucket_count = last
    if last == 1:
        tail.buckets = table[0]
        mem_free(table)


cdef int tail_add(Tail *tail, const Item *item) noexcept nogil:
    """The session has none here yet."""
    cdef Bucket *first = NULL
    if tail.bucket_count == 0:
        if tail.count == 0:
            tail.only = item[0]
            tail.count = 1
            return ST_OK
        if bucket_push(&first, &tail.only) != ST_OK:
            return ST_NO_MEMORY
        tail.buckets = first
        tail.bucket_count = 1
    if bucket_push(bucket_slot(tail, bucket_index(session_hash(item.session), tail.bucket_count)), item) != ST_OK:
        return ST_NO_MEMORY
    tail.count += 1
    if tail.count > tail.bucket_count * BUCKET_LOAD:
        tail_split(tail)
    return ST_OK


cdef bint tail_remove(Tail *tail, uint64_t session) noexcept nogil:
    cdef Bucket *bucket
    cdef Item *item = tail_find(tail, session)
    if item == NULL:
        return False
    tail.count -= 1
    if tail.bucket_count == 0:
        return True
    bucket = bucket_slot(tail, bucket_index(session_hash(session), tail.bucket_count))[0]
    bucket.count -= 1
    item[0] = bucket.items[bucket.count]
    if tail.bucket_count > 1 and tail.count < tail.bucket_count * BUCKET_LOW:
        tail_merge(tail)
    if tail.bucket_count == 1 and tail.count <= 1:
        bucket = <Bucket *> tail.buckets
        if tail.count:
            tail.only = bucket.items[0]
        tail.buckets = NULL
        tail.bucket_count = 0
        mem_free(bucket)
    return True


cdef void tail_free(Tail *tail) noexcept nogil:
    """Without its groups: the maps own these."""
    cdef uint32_t i
    if tail == NULL:
        return
    for i in range(tail.bucket_count):
        mem_free(bucket_slot(tail, i)[0])
    if tail.bucket_count > 1:
        mem_free(tail.buckets)
    mem_free(tail)


cdef int tail_emit(const Tail *tail, Vec *matches) noexcept nogil:
    cdef TrieMatch *out
    cdef const Bucket *bucket
    cdef const Group *group
    cdef uint32_t i, b
    # A hand-out of any size costs one check here; growth is amortised by doubling.
    if vec_room(matches, tail.count) != ST_OK:
        return ST_NO_MEMORY
    out = <TrieMatch *> matches.items + matches.count
    if tail.bucket_count == 0:
        if tail.count:
            match_fill(out, &tail.only)
    else:
        for b in range(tail.bucket_count):
            bucket = bucket_slot(<Tail *> tail, b)[0]
            for i in range(bucket.count):
                match_fill(out, &bucket.items[i])
                out += 1
    matches.count += tail.count
    group = tail.groups
    while group != NULL:
        if vec_room(matches, 1) != ST_OK:
            return ST_NO_MEMORY
        out = <TrieMatch *> matches.items + matches.count
        out.session = 0
        out.group = group.id
        out.subscription_id = 0
        out.options = 0
        matches.count += 1
        group = group.next
    return ST_OK


cdef inline int vec_room(Vec *vec, uint32_t more) noexcept nogil:
    cdef uint64_t need = <uint64_t> vec.count + more
    cdef uint64_t capacity
    if need <= vec.capacity:
        return ST_OK
    capacity = <uint64_t> vec.capacity * 2
    if capacity < need:
        capacity = need
    if capacity < 16:
        capacity = 16
    if capacity > <uint64_t> 0xFFFFFFFF:
        return ST_NO_MEMORY
    return vec_reserve(vec, <uint32_t> capacity)


cdef inline void match_fill(TrieMatch *out, const Item *item) noexcept nogil:
    out.session = item.session
    out.group = 0
    out.subscription_id = item.subscription_id
    out.options = item.options


# ---- paths ---------------------------------------------------------------------------------------------------------------------

cdef int path_split(const Core *core, Span filter, Path *path) noexcept nogil:
    """ST_OK, or ST_LIMIT: more levels than may be."""
    cdef Span rest = filter
    cdef Span level
    cdef uint32_t n = 0, seen = 0
    path.deep = False
    path.wild = False
    path.stripe = 0
    path.node = NULL
    path.spare_tail = NULL
    while level_next(&rest, &level):
        if seen == core.max_levels:
            return ST_LIMIT
        seen += 1
        if level.n == 1 and level.p[0] == c'#':
            path.deep = True
            path.wild = path.wild or n == 0
            break
        if is_plus(level):
            path.wild = path.wild or n == 0
            path.hashes[n] = 0
        else:
            path.hashes[n] = hash_bytes(level)
            if n == 0:
                path.stripe = path.hashes[0] % TRIE_STRIPES
        path.levels[n] = level
        path.spare[n] = NULL
        n += 1
    path.count = n
    path.built_from = n
    return ST_OK


cdef uint32_t path_walk(Core *core, Path *path) noexcept nogil:
    """Sets path.node to the deepest node there is on the way; gives the number of levels that it stands for. Under the lock."""
    cdef Node *node = &core.root
    cdef Node *child
    cdef uint32_t i = 0
    while i < path.count:
        if is_plus(path.levels[i]):
            child = node.plus
        else:
            child = <Node *> head_find(core, node, path.levels[i], path.hashes[i], KIND_LITERAL) if node.head.count else NULL
        if child == NULL:
            break
        node = child
        i += 1
    path.node = node
    return i


cdef void path_free(Path *path) noexcept nogil:
    """Frees what was built and not used."""
    cdef uint32_t i
    for i in range(path.built_from, path.count):
        mem_free(path.spare[i])
    mem_free(path.spare_tail)


cdef int path_build_from(Path *path, uint32_t first) noexcept nogil:
    while path.built_from > first:
        path.spare[path.built_from - 1] = node_build(path.levels[path.built_from - 1])
        if path.spare[path.built_from - 1] == NULL:
            return ST_NO_MEMORY
        path.built_from -= 1
    return ST_OK


cdef inline Tail **path_tail(Path *path) noexcept nogil:
    return &path.node.deep if path.deep else &path.node.own


cdef void trie_read(Trie *trie) noexcept nogil:
    if unlikely(rwlock_read(&(<Core *> trie.private).lock)):
        atomic_add_u64_relaxed(&trie.lock_waits, 1)


cdef void trie_write(Trie *trie) noexcept nogil:
    if unlikely(rwlock_write(&(<Core *> trie.private).lock)):
        atomic_add_u64_relaxed(&trie.lock_waits, 1)


cdef void trie_unlock(Trie *trie) noexcept nogil:
    rwlock_unlock(&(<Core *> trie.private).lock)


cdef int path_open(Trie *trie, Path *path) noexcept nogil:
    """With ST_OK the write lock is held and path.node is the filter's node, made if need be, with a tail. Else it is not held."""
    cdef Core *core = <Core *> trie.private
    cdef Node *chain
    cdef uint32_t depth
    trie_read(trie)
    depth = path_walk(core, path)
    trie_unlock(trie)
    path.spare_tail = <Tail *> mem_alloc_zeroed(1, sizeof(Tail))
    if path.spare_tail == NULL:
        return ST_NO_MEMORY
    while True:
        if path_build_from(path, depth) != ST_OK:
            return ST_NO_MEMORY
        trie_write(trie)
        depth = path_walk(core, path)
        if depth >= path.built_from:
            break
        trie_unlock(trie)      # others took nodes away meanwhile
    while depth < path.count:
        if node_link(core, path.node, path.spare[depth], path.hashes[depth]) != ST_OK:
            chain = node_prune(trie, path.node)
            trie_unlock(trie)
            chain_free(chain)
            return ST_NO_MEMORY
        path.node = path.spare[depth]
        path.spare[depth] = NULL
        counter_add(&trie.node_count, 1)
        depth += 1
    if path_tail(path)[0] == NULL:
        path_tail(path)[0] = path.spare_tail
        path.spare_tail = NULL
    return ST_OK


cdef void path_close(Trie *trie, Path *path, bint changed) noexcept nogil:
    """Takes away what stands empty, bumps the generation, lets the write lock go, frees."""
    cdef Tail **place = path_tail(path)
    cdef Tail *tail = place[0]
    cdef Node *chain = NULL
    cdef uint64_t *generation
    if tail != NULL and tail.count == 0 and tail.groups == NULL:
        place[0] = NULL
        chain = node_prune(trie, path.node)
    else:
        tail = NULL
    if changed:
        generation = &trie.wild_generation if path.wild else &trie.generations[path.stripe]
        atomic_store_u64_release(generation, atomic_load_u64_relaxed(generation) + 1)
    trie_unlock(trie)
    tail_free(tail)
    chain_free(chain)


# ---- the contract --------------------------------------------------------------------------------------------------------------

cdef Trie *trie_build(uint32_t max_levels) noexcept nogil:
    cdef Trie *trie = <Trie *> mem_alloc_zeroed(1, sizeof(Trie))
    cdef Core *core = <Core *> mem_alloc_zeroed(1, sizeof(Core))
    cdef uint32_t i
    if trie == NULL or core == NULL or rwlock_init(&core.lock) != 0:
        mem_free(trie)
        mem_free(core)
        return NULL
    core.max_levels = LEVELS_MAX if max_levels == 0 or max_levels > LEVELS_MAX else max_levels
    core.root.head.kind = KIND_LITERAL
    for i in range(MAP_COUNT):
        map_init(&core.maps[i], head_equals, NULL)
    trie.private = core
    return trie


cdef void node_free_tails(Node *node) noexcept nogil:
    """What hangs on a node that stands in a map (or the root), and its '+' descendants, which stand in none."""
    cdef Node *plus = node.plus
    tail_free(node.own)
    tail_free(node.deep)
    while plus != NULL:
        node = plus
        plus = node.plus
        tail_free(node.own)
        tail_free(node.deep)
        mem_free(node)


cdef void trie_free(Trie *trie) noexcept nogil:
    cdef Core *core
    cdef Head *head
    cdef uint64_t value
    cdef uint32_t i, cursor
    if trie == NULL:
        return
    core = <Core *> trie.private
    for i in range(MAP_COUNT):
        cursor = 0
        while map_next(&core.maps[i], &cursor, &value):
            head = <Head *> <size_t> value
            if head.kind == KIND_LITERAL:
                node_free_tails(<Node *> head)
            mem_free(head)
        map_free(&core.maps[i])
    node_free_tails(&core.root)
    rwlock_destroy(&core.lock)
    mem_free(core)
    mem_free(trie)


cdef int trie_subscribe(Trie *trie, Span filter, uint64_t session, uint8_t options, uint32_t subscription_id, bint *existed) noexcept nogil:
    cdef Path path
    cdef Item item
    cdef Item *old
    cdef int status = path_split(<Core *> trie.private, filter, &path)
    cdef bint changed = True
    existed[0] = False
    if status != ST_OK:
        return status
    status = path_open(trie, &path)
    if status != ST_OK:
        path_free(&path)
        return status
    item.session = session
    item.subscription_id = subscription_id
    item.options = options
    old = tail_find(path_tail(&path)[0], session)
    if old != NULL:
        existed[0] = True
        changed = old.options != options or old.subscription_id != subscription_id
        old[0] = item
    else:
        status = tail_add(path_tail(&path)[0], &item)
        changed = status == ST_OK
        if changed:
            counter_add(&trie.subscription_count, 1)
    path_close(trie, &path, changed)
    path_free(&path)
    return status


cdef bint trie_unsubscribe(Trie *trie, Span filter, uint64_t session) noexcept nogil:
    cdef Path path
    cdef Tail *tail
    if path_split(<Core *> trie.private, filter, &path) != ST_OK:
        return False
    trie_write(trie)
    if path_walk(<Core *> trie.private, &path) == path.count:
        tail = path_tail(&path)[0]
        if tail != NULL and tail_remove(tail, session):
            counter_sub(&trie.subscription_count, 1)
            path_close(trie, &path, True)
            return True
    trie_unlock(trie)
    return False


cdef int trie_group_join(Trie *trie, Span group, Span filter, uint16_t home, uint64_t *group_id) noexcept nogil:
    cdef Core *core = <Core *> trie.private
    cdef Path path
    cdef Group *spare
    cdef Group *found
    cdef Tail *tail
    cdef uint32_t name_hash, kind, h
    cdef bint made = False
    cdef int status = path_split(core, filter, &path)
    if status != ST_OK:
        return status
    kind = KIND_GROUP_DEEP if path.deep else KIND_GROUP
    name_hash = hash_bytes(group)
    spare = <Group *> head_build(sizeof(Group), group, kind)
    if spare == NULL:
        return ST_NO_MEMORY
    status = path_open(trie, &path)
    if status != ST_OK:
        mem_free(spare)
        path_free(&path)
        return status
    tail = path_tail(&path)[0]
    found = <Group *> head_find(core, path.node, group, name_hash, kind) if tail.groups != NULL else NULL
    if found == NULL:
        spare.head.parent = path.node
        h = key_hash(path.node, name_hash, kind)
        status = map_insert(&core.maps[h >> 24], h, <uint64_t> <size_t> spare)
        if status != ST_OK:
            path_close(trie, &path, False)
            mem_free(spare)
            path_free(&path)
            return status
        made = True
        core.groups_made += 1
        spare.id = (<uint64_t> home << 56) | (core.groups_made & <uint64_t> 0xFFFFFFFFFFFFFF)
        spare.previous = NULL
        spare.next = tail.groups
        if tail.groups != NULL:
            tail.groups.previous = spare
        tail.groups = spare
        found = spare
        spare = NULL
    found.head.count += 1
    group_id[0] = found.id
    counter_add(&trie.subscription_count, 1)
    path_close(trie, &path, made)
    mem_free(spare)
    path_free(&path)
    return ST_OK


cdef void trie_group_leave(Trie *trie, Span group, Span filter) noexcept nogil:
    cdef Core *core = <Core *> trie.private
    cdef Path path
    cdef Group *found = NULL
    cdef Tail *tail
    if path_split(core, filter, &path) != ST_OK:
        return
    trie_write(trie)
    if path_walk(core, &path) == path.count:
        tail = path_tail(&path)[0]
        if tail != NULL and tail.groups != NULL:
            found = <Group *> head_find(core, path.node, group, hash_bytes(group), KIND_GROUP_DEEP if path.deep else KIND_GROUP)
    if found == NULL:
        trie_unlock(trie)
        return
    counter_sub(&trie.subscription_count, 1)
    found.head.count -= 1
    if found.head.count:
        trie_unlock(trie)
        return
    head_unmap(core, &found.head)
    if found.previous != NULL:
        found.previous.next = found.next
    else:
        tail.groups = found.next
    if found.next != NULL:
        found.next.previous = found.previous
    path_close(trie, &path, True)
    mem_free(found)


cdef struct Visit:
    const Node *node
    uint32_t depth


cdef int trie_match(Trie *trie, Span topic, Vec *matches, uint64_t *wild_generation, uint64_t *generation) noexcept nogil:
    """An explicit stack instead of recursion: a node leaves at most two children on it, so that it never holds more than depth + 1.

    Whoever changes what this topic's walk can meet bumps one of its two generations; so when both stand after the lock was let go,
    the nodes on the stack are there still.
    """
    cdef Core *core = <Core *> trie.private
    cdef Span levels[512]
    cdef uint32_t hashes[512]
    cdef Visit stack[514]
    cdef Span rest = topic
    cdef const Node *node
    cdef const Node *child
    cdef uint32_t n = 0, top, depth, work = 0, restarts = 0, stripe
    cdef uint32_t first = matches.count
    cdef uint32_t before
    cdef bint dollar = topic.n > 0 and topic.p[0] == c'$'          # [MQTT-4.7.2-1]
    cdef bint longer
    while n < core.max_levels and level_next(&rest, &levels[n]):
        hashes[n] = hash_bytes(levels[n])
        n += 1
    longer = rest.p != NULL        # than any filter: only '#' can match what follows
    stripe = hashes[0] % TRIE_STRIPES
    trie_read(trie)
    wild_generation[0] = atomic_load_u64_relaxed(&trie.wild_generation)
    generation[0] = atomic_load_u64_relaxed(&trie.generations[stripe])
    stack[0].node = &core.root
    stack[0].depth = 0
    top = 1
    while top:
        top -= 1
        node = stack[top].node
        depth = stack[top].depth
        before = matches.count
        if node.deep != NULL and not (dollar and depth == 0):      # the parent level included [MQTT-4.7.1-2]
            if tail_emit(node.deep, matches) != ST_OK:
                trie_unlock(trie)
                return ST_NO_MEMORY
        if depth < n:
            if node.plus != NULL and not (dollar and depth == 0):
                stack[top].node = node.plus
                stack[top].depth = depth + 1
                top += 1
            if node.head.count:
                child = <const Node *> head_find(core, node, levels[depth], hashes[depth], KIND_LITERAL)
                if child != NULL:
                    stack[top].node = child
                    stack[top].depth = depth + 1
                    top += 1
        elif node.own != NULL and not longer:
            if tail_emit(node.own, matches) != ST_OK:
                trie_unlock(trie)
                return ST_NO_MEMORY
        work += 1 + (matches.count - before) // 16
        if unlikely(work >= MATCH_BUDGET and top > 0 and restarts < RESTARTS_MAX):
            trie_unlock(trie)      # whoever wants to write comes in between
            trie_read(trie)
            work = 0
            if (wild_generation[0] != atomic_load_u64_relaxed(&trie.wild_generation)
                    or generation[0] != atomic_load_u64_relaxed(&trie.generations[stripe])):
                restarts += 1
                wild_generation[0] = atomic_load_u64_relaxed(&trie.wild_generation)
                generation[0] = atomic_load_u64_relaxed(&trie.generations[stripe])
                matches.count = first
                stack[0].node = &core.root
                stack[0].depth = 0
                top = 1
    trie_unlock(trie)
    return ST_OK


cdef uint32_t trie_stripe(Span topic) noexcept nogil:
    cdef Span rest = topic
    cdef Span level
    if not level_next(&rest, &level):
        return 0
    return hash_bytes(level) % TRIE_STRIPES
