from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from mqttc.base.alloc cimport mem_alloc, mem_alloc_zeroed, mem_free
from mqttc.base.types cimport Span, span_make
from mqttc.broker.acl cimport (
    ACL_ALLOW, ACL_DENY, ACL_PUBLISH, ACL_RECEIVE, ACL_RETAIN, ACL_SUBSCRIBE, ACL_UNDECIDED, ACL_WILL, USES_CLIENT_ID, USES_USER, Acl, AclOwner, AclRule,
    AclWho, Grant, Names, acl_drop, acl_share, filter_covers, filter_may_begin, filters_meet, glob_matches, grant_drop, grant_share, name_unsafe, span_order,
)

cdef enum:
    LISTED = 64                        # rules of a client that are listed in its fit
    NOT_LISTED = 0xFFFFFFFF


# ---- a table as one client sees it ---------------------------------------------------------------------------------------------------

cdef Span user_of(const Rights *rights) noexcept nogil:
    return span_make(&rights.user[0], rights.user_bytes) if rights.has_user else span_make(NULL, 0)


cdef bint span_listed(const Span *names, uint32_t count, Span name) noexcept nogil:
    """In a sorted list."""
    cdef uint32_t low = 0
    cdef uint32_t high = count
    cdef uint32_t middle
    cdef int order
    while low < high:
        middle = (low + high) // 2
        order = span_order(names[middle], name)
        if order == 0:
            return True
        if order < 0:
            low = middle + 1
        else:
            high = middle
    return False


cdef bint user_listed(const AclWho *who, Span user) noexcept nogil:
    cdef uint32_t i
    if span_listed(who.users, who.user_count, user):
        return True
    for i in range(who.user_pattern_count):
        if glob_matches(who.user_patterns[i], user, user):
            return True
    return False


cdef bint in_group(const AclWho *who, const Grant *grant) noexcept nogil:
    cdef uint32_t i
    if grant == NULL or grant.group_count == 0:
        return False
    for i in range(who.group_count):
        if span_listed(grant.groups, grant.group_count, who.groups[i]):
            return True
    return False


cdef bint is_subject(const AclWho *who, const Rights *rights, Span user) noexcept nogil:
    if user.p == NULL and who.anonymous:
        return True
    return (user.p != NULL and user_listed(who, user)) or in_group(who, rights.grant)


cdef bint who_is(const AclWho *who, const Rights *rights, Span client_id) noexcept nogil:
    cdef uint32_t i
    cdef Span user = user_of(rights)
    if who.has_subject and not is_subject(who, rights, user):
        return False
    if who.has_listeners and not (rights.listener < 256 and who.listeners[rights.listener >> 3] >> (rights.listener & 7) & 1):
        return False
    if who.client_count == 0:
        return True
    for i in range(who.client_count):
        if glob_matches(who.clients[i], client_id, user):
            return True
    return False


cdef inline bint fit_concerns(const AclFit *fit, uint32_t who) noexcept nogil:
    return who == 0 or fit.concerns[(who - 1) >> 3] >> ((who - 1) & 7) & 1


cdef inline bint can_take_in(const AclRule *rule, const Rights *rights) noexcept nogil:
    """A rule with %u is not about clients without user name."""
    return not rule.uses & USES_USER or rights.has_user


cdef AclFit *fit_build(Acl *acl, const Rights *rights, Span client_id) noexcept nogil:
    cdef AclFit *fit
    cdef uint32_t listed[LISTED]
    cdef uint32_t count = 0
    cdef uint32_t i
    cdef size_t bits = (acl.who_count + 7) // 8
    fit = <AclFit *> mem_alloc_zeroed(1, sizeof(AclFit) + bits)
    if fit == NULL:
        return NULL
    fit.concerns = <uint8_t *> (fit + 1)
    for i in range(acl.who_count):
        if who_is(&acl.whos[i], rights, client_id):
            fit.concerns[i >> 3] |= <uint8_t> (1 << (i & 7))
    for i in range(acl.rule_count):
        if fit_concerns(fit, acl.rules[i].who) and can_take_in(&acl.rules[i], rights):
            if count < LISTED:
                listed[count] = i
            count += 1
    fit.rule_count = NOT_LISTED
    if count <= LISTED:
        fit.rules = <uint32_t *> mem_alloc((count + 1) * sizeof(uint32_t))
        if fit.rules != NULL:           # else the table is gone through
            fit.rule_count = count
            memcpy(fit.rules, listed, count * sizeof(uint32_t))
    fit.superuser = acl.superusers and fit_concerns(fit, acl.superusers)
    fit.acl = acl_share(acl)
    return fit


cdef void fit_free(AclFit *fit) noexcept nogil:
    if fit == NULL:
        return
    acl_drop(fit.acl)
    mem_free(fit.rules)
    mem_free(fit)


cdef inline uint64_t first_bytes(Span text) noexcept nogil:
    cdef uint64_t value = 0
    memcpy(&value, text.p, text.n if text.n < 8 else 8)
    return value


cdef uint8_t rule_says(const AclRule *rule, const Rights *rights, const Names *names, Span text, bint whole, uint8_t *source) noexcept nogil:
    """ACL_ALLOW or ACL_DENY where it matches."""
    cdef Span beginning
    source[0] = BY_RULE
    if rule.uses & rights.unsafe:
        # What it would mean is not known, so that what may belong to it is denied.
        source[0] = BY_NAME
        beginning = span_make(rule.filter.p, rule.literal_bytes)
        if text.n >= beginning.n and memcmp(text.p, beginning.p, beginning.n) == 0:
            return ACL_DENY
        if whole and filter_may_begin(text, beginning):
            return ACL_DENY
        return ACL_UNDECIDED
    if filter_covers(rule.filter, text, names if rule.uses else NULL):
        return ACL_ALLOW if rule.allow else ACL_DENY
    if whole and not rule.allow and filters_meet(rule.filter, text, names if rule.uses else NULL):
        return ACL_DENY
    return ACL_UNDECIDED


cdef uint8_t fit_says(
    const AclFit *fit, const Rights *rights, const Names *names, uint8_t action, Span text, bint whole, AclDecision *out,
) noexcept nogil:
    """What the rules on this very action say."""
    cdef const AclRule *rules = fit.acl.rules
    cdef const AclRule *rule
    cdef uint64_t first = first_bytes(text)
    cdef bint listed = fit.rule_count != NOT_LISTED
    cdef uint32_t count = fit.rule_count if listed else fit.acl.rule_count
    cdef uint32_t i
    cdef uint8_t verdict
    for i in range(count):
        rule = &rules[fit.rules[i]] if listed else &rules[i]
        if not rule.actions & action or ((first ^ rule.prefix) & rule.mask and not whole):
            continue
        if not listed and not (fit_concerns(fit, rule.who) and can_take_in(rule, rights)):
            continue
        verdict = rule_says(rule, rights, names, text, whole, &out.source)
        if verdict != ACL_UNDECIDED:
            out.number = rule.number
            out.rule = rule
            return verdict
    return ACL_UNDECIDED


cdef uint8_t decide_in(const AclFit *fit, const Rights *rights, const Names *names, uint8_t action, Span text, bint whole, AclDecision *out) noexcept nogil:
    cdef uint8_t verdict = fit_says(fit, rights, names, action, text, whole, out)
    if verdict == ACL_UNDECIDED and action == ACL_RECEIVE:
        verdict = fit_says(fit, rights, names, ACL_SUBSCRIBE, text, whole, out)
    elif verdict == ACL_UNDECIDED and (action == ACL_RETAIN or action == ACL_WILL):
        verdict = fit_says(fit, rights, names, ACL_PUBLISH, text, whole, out)
    if verdict == ACL_UNDECIDED:
        out.source = BY_DEFAULT
        verdict = fit.acl.otherwise
    return verdict


# ---- rights ------------------------------------------------------------------------------------------------------------------------

cdef Rights *rights_build(Acl *acl, Grant *grant, Span client_id, Span user, uint16_t listener, int64_t now_ms) noexcept nogil:
    cdef Rights *rights
    if grant != NULL and grant.has_username:
        user = span_make(grant.username, grant.username_bytes)
    rights = <Rights *> mem_alloc_zeroed(1, sizeof(Rights) + user.n)
    if rights == NULL:
        return NULL
    rights.listener = listener
    rights.has_user = user.p != NULL
    rights.user_bytes = user.n
    if user.n:
        memcpy(rights.user, user.p, user.n)
    if name_unsafe(client_id):
        rights.unsafe |= USES_CLIENT_ID
    if name_unsafe(user):
        rights.unsafe |= USES_USER
    rights.grant = grant_share(grant)
    if grant != NULL:
        if grant.ttl_ms >= 0:
            rights.expires_at_ms = now_ms + grant.ttl_ms if now_ms + grant.ttl_ms > 0 else 1
            if 0 <= grant.renew_ms < grant.ttl_ms and now_ms + grant.renew_ms > 0:
                rights.renew_at_ms = now_ms + grant.renew_ms
        if grant.rules != NULL:
            rights.given = fit_build(grant.rules, rights, client_id)
    if acl != NULL:
        rights.file = fit_build(acl, rights, client_id)
    if (acl != NULL and rights.file == NULL) or (grant != NULL and grant.rules != NULL and rights.given == NULL):
        rights_free(rights)
        return NULL
    return rights


cdef void rights_free(Rights *rights) noexcept nogil:
    if rights == NULL:
        return
    fit_free(rights.file)
    fit_free(rights.given)
    grant_drop(rights.grant)
    mem_free(rights)


cdef void rights_renew(Rights *rights, Acl *acl, Span client_id) noexcept nogil:
    cdef AclFit *old = rights.file
    rights.file = fit_build(acl, rights, client_id) if acl != NULL else NULL
    rights.lost = acl != NULL and rights.file == NULL
    fit_free(old)


cdef bint rights_super(const Rights *rights) noexcept nogil:
    return (rights.grant != NULL and rights.grant.superuser) or (rights.file != NULL and rights.file.superuser)


cdef bint rights_allow(const Rights *rights, Span client_id, uint8_t action, Span text, bint whole, AclDecision *out) noexcept nogil:
    cdef AclDecision unread
    cdef Names names
    cdef uint8_t verdict = ACL_UNDECIDED
    if out == NULL:
        out = &unread
    memset(out, 0, sizeof(AclDecision))
    if rights.expired or rights.lost:
        out.source = BY_EXPIRY if rights.expired else BY_LOSS
        return False
    if rights_super(rights):
        out.source = BY_SUPERUSER
        return True
    names.client_id = client_id
    names.user = user_of(rights)
    if rights.given != NULL:
        out.granted = True
        verdict = decide_in(rights.given, rights, &names, action, text, whole, out)
    if verdict == ACL_UNDECIDED:
        out.granted = False
        if rights.file == NULL:
            out.source = BY_NOTHING
            return True
        verdict = decide_in(rights.file, rights, &names, action, text, whole, out)
    return verdict == ACL_ALLOW


cdef bint rights_own(const Rights *rights, Span client_id, AclDecision *out) noexcept nogil:
    cdef const AclOwner *owner
    cdef AclDecision unread
    cdef uint32_t i, k
    if out == NULL:
        out = &unread
    memset(out, 0, sizeof(AclDecision))
    if rights.file == NULL or rights_super(rights):
        out.source = BY_NOTHING if rights.file == NULL else BY_SUPERUSER
        return not rights.lost
    for i in range(rights.file.acl.owner_count):
        owner = &rights.file.acl.owners[i]
        if not fit_concerns(rights.file, owner.who):
            continue
        out.number = owner.number
        for k in range(owner.pattern_count):
            if glob_matches(owner.patterns[k], client_id, user_of(rights)):
                return True
        return False
    out.source = BY_DEFAULT
    return True
