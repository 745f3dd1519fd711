from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from mqttc.base.alloc cimport mem_alloc_zeroed, mem_free
from mqttc.base.map cimport Map, hash_pair, map_find, map_free, map_init, map_insert, map_next, map_remove, map_replace
from mqttc.base.types cimport ST_NO_MEMORY, ST_OK
from mqttc.base.vec cimport Vec, vec_at, vec_free, vec_init, vec_push

cdef enum:
    COUNT_BITS = 20                    # of a message's deliveries, beside its id

cdef enum UndoKind:
    UNDO_COUNT = 0                     # key: message, before: the count
    UNDO_KNOWN = 1                     # forget what was added
    UNDO_FORGOTTEN = 2                 # know again

cdef struct Undo:
    uint8_t kind
    uint8_t group
    uint64_t key
    uint64_t before
    Known *known


cdef void names_init(Names *names) noexcept nogil:
    map_init(&names.sessions, known_equals, NULL)
    map_init(&names.groups, known_equals, NULL)
    map_init(&names.counts, count_equals, NULL)
    vec_init(&names.undo, sizeof(Undo))
    names.next_target = 1


cdef void names_free(Names *names) noexcept nogil:
    names_undo(names)
    known_map_free(&names.sessions)
    known_map_free(&names.groups)
    map_free(&names.counts)
    vec_free(&names.undo)


cdef uint32_t handle_hash(uint64_t handle) noexcept nogil:
    return hash_pair(handle, 0)


cdef bint known_equals(void *context, uint64_t value, const void *key) noexcept nogil:
    return (<Known *> value).handle == (<const uint64_t *> key)[0]


cdef bint count_equals(void *context, uint64_t value, const void *key) noexcept nogil:
    return value >> COUNT_BITS == (<const uint64_t *> key)[0]


cdef inline Map *known_map(Names *names, bint group) noexcept nogil:
    return &names.groups if group else &names.sessions


cdef Known *known_find(Names *names, bint group, uint64_t handle) noexcept nogil:
    cdef uint64_t value = 0
    return <Known *> value if map_find(known_map(names, group), handle_hash(handle), &handle, &value) else NULL


cdef Known *known_add(Names *names, bint group, uint64_t handle, uint64_t id) noexcept nogil:
    cdef Known *known = <Known *> mem_alloc_zeroed(1, sizeof(Known))
    if known == NULL:
        return NULL
    known.handle = handle
    known.id = id
    if map_insert(known_map(names, group), handle_hash(handle), <uint64_t> known) != ST_OK:
        mem_free(known)
        return NULL
    return known


cdef void known_touch(Names *names, Known *known) noexcept nogil:
    if not known.touched:
        known.touched = True
        known.touched_next = names.touched
        names.touched = known


cdef void known_owes(Names *names, Known *known, int n) noexcept nogil:
    known_touch(names, known)
    known.owed_change += n


cdef void touched_settle(Names *names, bint committed) noexcept nogil:
    """The batch is committed, or taken back: before anything that is known is freed."""
    cdef Known *known = names.touched
    while known != NULL:
        if committed:
            known.owed += known.owed_change
            known.joined += known.joined_change
        known.owed_change = 0
        known.joined_change = 0
        known.touched = False
        known = known.touched_next
    names.touched = NULL
    if committed:
        names.lent_committed = names.lent
    else:
        names.lent = names.lent_committed


cdef uint64_t count_get(Names *names, uint64_t message) noexcept nogil:
    cdef uint64_t value = 0
    return value & COUNT_MOST if map_find(&names.counts, handle_hash(message), &message, &value) else 0


cdef int count_set(Names *names, uint64_t message, uint64_t count) noexcept nogil:
    cdef uint64_t value = message << COUNT_BITS | (count if count < <uint64_t> COUNT_MOST else <uint64_t> COUNT_MOST)
    if count == 0:
        map_remove(&names.counts, handle_hash(message), &message, NULL)
        return ST_OK
    if map_replace(&names.counts, handle_hash(message), &message, value):
        return ST_OK
    return map_insert(&names.counts, handle_hash(message), value)


cdef Undo *undo_note(Names *names, uint8_t kind) noexcept nogil:
    cdef Undo *undo = <Undo *> vec_push(&names.undo)
    if undo == NULL:
        names.no_memory = True
        return NULL
    undo.kind = kind
    return undo


cdef void count_change(Names *names, uint64_t message, uint64_t count) noexcept nogil:
    cdef Undo *undo = undo_note(names, UNDO_COUNT)
    if undo == NULL:
        return
    undo.key = message
    undo.before = count_get(names, message)
    if count_set(names, message, count) != ST_OK:
        names.undo.count -= 1
        names.no_memory = True


cdef void names_undo(Names *names) noexcept nogil:
    cdef Undo *undo
    touched_settle(names, False)
    while names.undo.count:
        names.undo.count -= 1
        undo = <Undo *> vec_at(&names.undo, names.undo.count)
        if undo.kind == UNDO_COUNT:
            count_set(names, undo.key, undo.before)      # no growth: it stood there before, or goes
        elif undo.kind == UNDO_KNOWN:
            map_remove(known_map(names, undo.group), handle_hash(undo.key), &undo.key, NULL)
            mem_free(undo.known)
        else:
            map_insert(known_map(names, undo.group), handle_hash(undo.key), <uint64_t> undo.known)


cdef void names_settle(Names *names) noexcept nogil:
    """The batch is committed: what was taken out is gone for good."""
    cdef Undo *undo
    cdef uint32_t i
    touched_settle(names, True)
    for i in range(names.undo.count):
        undo = <Undo *> vec_at(&names.undo, i)
        if undo.kind == UNDO_FORGOTTEN:
            mem_free(undo.known)
    names.undo.count = 0


cdef Known *known_make(Names *names, bint group, uint64_t handle) noexcept nogil:
    """A new session or group; NULL: no memory, and the batch has failed."""
    cdef Known *known = known_find(names, group, handle)
    cdef Undo *undo
    if known != NULL:
        return known
    undo = undo_note(names, UNDO_KNOWN)
    if undo == NULL:
        return NULL
    known = known_add(names, group, handle, names.next_target)
    if known == NULL:
        names.undo.count -= 1
        names.no_memory = True
        return NULL
    names.next_target += 1
    undo.group = group
    undo.key = handle
    undo.known = known
    return known


cdef Known *known_forget(Names *names, bint group, uint64_t handle) noexcept nogil:
    """What it was; it lives until the batch is committed."""
    cdef Known *known = known_find(names, group, handle)
    cdef Undo *undo
    if known == NULL:
        return NULL
    undo = undo_note(names, UNDO_FORGOTTEN)
    if undo == NULL:
        return NULL
    undo.group = group
    undo.key = handle
    undo.known = known
    map_remove(known_map(names, group), handle_hash(handle), &handle, NULL)
    return known


cdef void known_map_free(Map *map) noexcept nogil:
    cdef uint32_t cursor = 0
    cdef uint64_t value = 0
    while map_next(map, &cursor, &value):
        mem_free(<Known *> value)
    map_free(map)
