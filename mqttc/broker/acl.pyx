from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from mqttc.base.alloc cimport mem_alloc, mem_alloc_zeroed, mem_free
from mqttc.base.types cimport (
    Span, atomic_add_u32_relaxed, atomic_add_u64_relaxed, atomic_load_u64_relaxed, atomic_sub_u32_acq_rel, span_make,
)
from mqttc.proto.topic cimport level_next

cdef enum:
    VERSION = 2                        # of the bytes that acl_build reads

cdef struct Reader:
    const uint8_t *p
    const uint8_t *end
    bint bad

# debug counters of the process, atomic
cdef uint64_t tables_made = 0
cdef uint64_t tables_freed = 0


# ---- matching ----------------------------------------------------------------------------------------------------------------------

cdef bint name_unsafe(Span name) noexcept nogil:
    cdef uint32_t i
    if name.n == 0 or name.p[0] == c'$':
        return True
    for i in range(name.n):
        if name.p[i] == c'/' or name.p[i] == c'+' or name.p[i] == c'#' or name.p[i] == 0:
            return True
    return False


cdef bint take(Span *text, Span part) noexcept nogil:
    """Takes `part` off the front; false: it does not stand there."""
    if text.n < part.n or (part.n and memcmp(text.p, part.p, part.n) != 0):
        return False
    text.p += part.n
    text.n -= part.n
    return True


cdef bint level_equals(Span pattern, Span level, const Names *names) noexcept nogil:
    """A level of a rule against one of a topic or filter. names NULL: nothing is substituted."""
    cdef uint32_t i = 0
    cdef uint32_t first
    if names == NULL:
        return pattern.n == level.n and (level.n == 0 or memcmp(pattern.p, level.p, level.n) == 0)
    while i < pattern.n:
        if pattern.p[i] == c'%' and i + 1 < pattern.n:
            if pattern.p[i + 1] == c'%':
                if not take(&level, span_make(pattern.p + i, 1)):
                    return False
            elif not take(&level, names.client_id if pattern.p[i + 1] == c'c' else names.user):
                return False
            i += 2
            continue
        first = i
        while i < pattern.n and pattern.p[i] != c'%':
            i += 1
        if i == first:                  # a percent sign at the end; filters are checked, so there is none
            return False
        if not take(&level, span_make(pattern.p + first, i - first)):
            return False
    return level.n == 0


cdef inline bint is_alone(Span level, uint8_t wildcard) noexcept nogil:
    return level.n == 1 and level.p[0] == wildcard


cdef inline bint is_wild(Span level) noexcept nogil:
    return is_alone(level, c'+') or is_alone(level, c'#')


cdef inline bint hides(Span wild, Span other) noexcept nogil:
    """A wildcard in the first level is not for names that begin with $. [MQTT-4.7.2-1]"""
    return is_wild(wild) and other.n != 0 and other.p[0] == c'$'


cdef bint filter_covers(Span filter, Span text, const Names *names) noexcept nogil:
    """Whether all topics of `text`, a topic or a filter, are topics of `filter`."""
    cdef Span level, other
    cdef bint first = True
    cdef bint more
    while level_next(&filter, &level):
        more = level_next(&text, &other)
        if is_alone(level, c'#'):
            return not (first and more and hides(level, other))
        if not more or is_alone(other, c'#'):
            return False
        if is_alone(level, c'+'):
            if first and hides(level, other):
                return False
        elif is_alone(other, c'+') or not level_equals(level, other, names):
            return False
        first = False
    return not level_next(&text, &other)


cdef bint filters_meet(Span filter, Span text, const Names *names) noexcept nogil:
    """Whether a topic exists that both filters match."""
    cdef Span level, other
    cdef bint first = True
    cdef bint more, others
    level = other = span_make(NULL, 0)
    while True:
        more = level_next(&filter, &level)
        others = level_next(&text, &other)
        if more and others and first and (hides(level, other) or hides(other, level)):
            return False
        if (more and is_alone(level, c'#')) or (others and is_alone(other, c'#')):
            return True
        if not more or not others:
            return more == others
        if not is_alone(level, c'+') and not is_alone(other, c'+') and not level_equals(level, other, names):
            return False
        first = False


cdef bint filter_may_begin(Span filter, Span beginning) noexcept nogil:
    """Whether a topic of `filter` begins with these bytes."""
    cdef Span level, wanted, after
    cdef bint first = True
    cdef bint more = level_next(&beginning, &wanted)
    while more:
        if not level_next(&filter, &level) or (first and hides(level, wanted)):
            return False
        if is_alone(level, c'#'):
            return True
        more = level_next(&beginning, &after)
        if not is_alone(level, c'+'):
            if level.n < wanted.n or (more and level.n != wanted.n) or (wanted.n and memcmp(level.p, wanted.p, wanted.n) != 0):
                return False
        wanted = after
        first = False
    return True


cdef uint32_t character_bytes(Span text, uint32_t at) noexcept nogil:
    cdef uint32_t n = 1
    while at + n < text.n and text.p[at + n] & 0xC0 == 0x80:
        n += 1
    return n


cdef uint32_t piece_matches(Span pattern, uint32_t at, Span rest, Span user, uint32_t *taken) noexcept nogil:
    """One piece of a pattern, no star, at the front of rest: how long the piece is, and what it took. 0: it does not match."""
    if pattern.p[at] == c'%' and at + 1 < pattern.n:
        if pattern.p[at + 1] == c'u':
            taken[0] = user.n
            return 2 if user.p != NULL and take(&rest, user) else 0
        taken[0] = 1
        return 2 if rest.n and rest.p[0] == c'%' else 0
    if rest.n == 0:
        return 0
    if pattern.p[at] == c'?':
        taken[0] = character_bytes(rest, 0)
        return 1
    taken[0] = 1
    return 1 if rest.p[0] == pattern.p[at] else 0


cdef bint glob_matches(Span pattern, Span text, Span user) noexcept nogil:
    cdef uint32_t at = 0
    cdef uint32_t i = 0
    cdef uint32_t star = 0             # behind the last star; 0: none yet
    cdef uint32_t star_text = 0
    cdef uint32_t taken, n
    while at < pattern.n or i < text.n:
        if at < pattern.n and pattern.p[at] == c'*':
            at += 1
            star = at
            star_text = i
            continue
        taken = 0
        n = piece_matches(pattern, at, span_make(text.p + i, text.n - i), user, &taken) if at < pattern.n else 0
        if n:
            at += n
            i += taken
        elif star and star_text < text.n:
            star_text += 1              # the star takes one byte more
            i = star_text
            at = star
        else:
            return False
    return True


cdef int span_order(Span a, Span b) noexcept nogil:
    cdef uint32_t n = a.n if a.n < b.n else b.n
    cdef int order = memcmp(a.p, b.p, n) if n else 0
    if order:
        return order
    return (a.n > b.n) - (a.n < b.n)


# ---- tables ------------------------------------------------------------------------------------------------------------------------

cdef uint32_t read_number(Reader *reader, uint32_t size) noexcept nogil:
    cdef uint32_t value = 0
    cdef uint32_t i
    if <size_t> (reader.end - reader.p) < size:
        reader.bad = True
        return 0
    for i in range(size):
        value |= <uint32_t> reader.p[i] << (8 * i)
    reader.p += size
    return value


cdef Span read_text(Reader *reader) noexcept nogil:
    cdef uint32_t n = read_number(reader, 4)
    cdef Span text = span_make(NULL, 0)
    if n > <size_t> (reader.end - reader.p):
        reader.bad = True
    if reader.bad:
        return text
    text = span_make(reader.p, n)
    reader.p += n
    return text


cdef Span *read_texts(Reader *reader, Span **room, const Span *room_end, uint32_t *count) noexcept nogil:
    cdef Span *texts = room[0]
    cdef uint32_t i
    count[0] = read_number(reader, 4)
    if count[0] > <size_t> (room_end - texts):
        reader.bad = True
    if reader.bad:
        count[0] = 0
        return texts
    for i in range(count[0]):
        texts[i] = read_text(reader)
    room[0] += count[0]
    return texts


cdef void who_read(Reader *reader, AclWho *who, Span **room, const Span *room_end) noexcept nogil:
    cdef uint32_t flags = read_number(reader, 1)
    cdef uint32_t listener, i
    cdef uint32_t count
    who.has_subject = flags & 1 != 0
    who.anonymous = flags & 2 != 0
    who.has_listeners = flags & 4 != 0
    who.users = read_texts(reader, room, room_end, &who.user_count)
    who.user_patterns = read_texts(reader, room, room_end, &who.user_pattern_count)
    who.clients = read_texts(reader, room, room_end, &who.client_count)
    who.groups = read_texts(reader, room, room_end, &who.group_count)
    count = read_number(reader, 4)
    i = 0
    while i < count and not reader.bad:
        listener = read_number(reader, 1)
        who.listeners[listener >> 3] |= <uint8_t> (1 << (listener & 7))
        i += 1


cdef void rule_prepare(AclRule *rule) noexcept nogil:
    """What lets most rules be passed over at a glance."""
    cdef uint32_t n = 0
    cdef uint8_t c
    while n < rule.filter.n:
        c = rule.filter.p[n]
        if c == c'#' or c == c'+' or (c == c'%' and rule.uses):
            break
        n += 1
    if n and n < rule.filter.n and rule.filter.p[n] == c'#':
        n -= 1                          # a/# is a too
    rule.literal_bytes = n
    rule.prefix = 0
    rule.mask = 0
    if n > 8:
        n = 8
    memcpy(&rule.prefix, rule.filter.p, n)
    memset(&rule.mask, 0xFF, n)


cdef void rule_read(Reader *reader, AclRule *rule, uint32_t who_count) noexcept nogil:
    rule.allow = read_number(reader, 1) != 0
    rule.actions = <uint8_t> read_number(reader, 1)
    rule.uses = <uint8_t> read_number(reader, 1)
    rule.number = read_number(reader, 4)
    rule.who = read_number(reader, 4)
    rule.filter = read_text(reader)
    if rule.who > who_count or rule.filter.n == 0:
        reader.bad = True
    if not reader.bad:
        rule_prepare(rule)


cdef bint tables_make(Acl *acl, Reader *reader, uint32_t text_count) noexcept nogil:
    cdef size_t most = reader.end - reader.p       # each of them takes more than a byte, so more cannot be there
    if acl.who_count > most or acl.rule_count > most or acl.owner_count > most or text_count > most:
        return False
    acl.whos = <AclWho *> mem_alloc_zeroed(acl.who_count + 1, sizeof(AclWho))
    acl.rules = <AclRule *> mem_alloc_zeroed(acl.rule_count + 1, sizeof(AclRule))
    acl.owners = <AclOwner *> mem_alloc_zeroed(acl.owner_count + 1, sizeof(AclOwner))
    acl.texts = <Span *> mem_alloc_zeroed(text_count + 1, sizeof(Span))
    return acl.whos != NULL and acl.rules != NULL and acl.owners != NULL and acl.texts != NULL


cdef Acl *acl_build(Span bytes) noexcept nogil:
    cdef Acl *acl = <Acl *> mem_alloc_zeroed(1, sizeof(Acl))
    cdef Reader reader
    cdef Span *room
    cdef const Span *room_end
    cdef uint32_t i, text_count
    if acl == NULL:
        return NULL
    acl.refs = 1
    atomic_add_u64_relaxed(&tables_made, 1)
    acl.bytes = <uint8_t *> mem_alloc(bytes.n if bytes.n else 1)
    if acl.bytes == NULL:
        acl_drop(acl)
        return NULL
    if bytes.n:
        memcpy(acl.bytes, bytes.p, bytes.n)
    reader.p = acl.bytes
    reader.end = acl.bytes + bytes.n
    reader.bad = read_number(&reader, 1) != VERSION
    acl.otherwise = <uint8_t> read_number(&reader, 1)
    acl.disconnect = read_number(&reader, 1) != 0
    acl.superusers = read_number(&reader, 4)
    acl.who_count = read_number(&reader, 4)
    acl.rule_count = read_number(&reader, 4)
    acl.owner_count = read_number(&reader, 4)
    text_count = read_number(&reader, 4)
    if reader.bad or acl.otherwise > ACL_DENY or acl.superusers > acl.who_count or not tables_make(acl, &reader, text_count):
        acl_drop(acl)
        return NULL
    room = acl.texts
    room_end = room + text_count
    for i in range(acl.who_count):
        who_read(&reader, &acl.whos[i], &room, room_end)
    for i in range(acl.rule_count):
        rule_read(&reader, &acl.rules[i], acl.who_count)
        acl.uses |= acl.rules[i].uses
    for i in range(acl.owner_count):
        acl.owners[i].number = i
        acl.owners[i].who = read_number(&reader, 4)
        acl.owners[i].patterns = read_texts(&reader, &room, room_end, &acl.owners[i].pattern_count)
        reader.bad |= acl.owners[i].who > acl.who_count
    if reader.bad or reader.p != reader.end:
        acl_drop(acl)
        return NULL
    return acl


cdef Acl *acl_share(Acl *acl) noexcept nogil:
    if acl != NULL:
        atomic_add_u32_relaxed(&acl.refs, 1)
    return acl


cdef void acl_drop(Acl *acl) noexcept nogil:
    if acl == NULL or atomic_sub_u32_acq_rel(&acl.refs, 1) != 1:
        return
    mem_free(acl.whos)
    mem_free(acl.rules)
    mem_free(acl.owners)
    mem_free(acl.texts)
    mem_free(acl.bytes)
    mem_free(acl)
    atomic_add_u64_relaxed(&tables_freed, 1)


cdef uint64_t acl_live() noexcept nogil:
    return atomic_load_u64_relaxed(&tables_made) - atomic_load_u64_relaxed(&tables_freed)


cdef Grant *grant_build(Acl *rules, int64_t ttl_ms, bint superuser, bint has_username, Span username) noexcept nogil:
    cdef Grant *grant = <Grant *> mem_alloc_zeroed(1, sizeof(Grant) + username.n)
    if grant == NULL:
        acl_drop(rules)
        return NULL
    grant.refs = 1
    grant.rules = rules
    grant.ttl_ms = ttl_ms
    grant.renew_ms = -1
    grant.superuser = superuser
    grant.has_username = has_username
    grant.username_bytes = username.n
    if username.n:
        memcpy(grant.username, username.p, username.n)
    return grant


cdef bint grant_join(Grant *grant, Span bytes) noexcept nogil:
    cdef Reader reader
    cdef Span *room
    cdef uint32_t count
    if bytes.n == 0:
        return True
    grant.group_bytes = <uint8_t *> mem_alloc(bytes.n)
    if grant.group_bytes == NULL:
        return False
    memcpy(grant.group_bytes, bytes.p, bytes.n)
    grant.group_total = bytes.n
    reader.p = grant.group_bytes
    reader.end = grant.group_bytes + bytes.n
    reader.bad = False
    count = read_number(&reader, 4)
    if reader.bad or count > <size_t> (reader.end - reader.p):
        return False
    grant.groups = <Span *> mem_alloc_zeroed(count + 1, sizeof(Span))
    if grant.groups == NULL:
        return False
    room = grant.groups
    reader.p = grant.group_bytes
    read_texts(&reader, &room, grant.groups + count, &grant.group_count)
    return not reader.bad and reader.p == reader.end


cdef Grant *grant_share(Grant *grant) noexcept nogil:
    if grant != NULL:
        atomic_add_u32_relaxed(&grant.refs, 1)
    return grant


cdef void grant_drop(Grant *grant) noexcept nogil:
    if grant == NULL or atomic_sub_u32_acq_rel(&grant.refs, 1) != 1:
        return
    acl_drop(grant.rules)
    mem_free(grant.groups)
    mem_free(grant.group_bytes)
    mem_free(grant)
