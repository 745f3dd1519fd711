"""Acl: who may do what on which topics: immutable counted tables, and matching.

A table comes from the control plane as bytes (mqttc/auth/acl.py writes them, `acl_build` checks them) and is swapped whole. What a table says of one
client is rights' matter.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from mqttc.base.types cimport Span

cdef enum AclAction:
    ACL_PUBLISH = 1                    # speaks for RETAIN and WILL too
    ACL_SUBSCRIBE = 2                  # speaks for RECEIVE too
    ACL_RECEIVE = 4
    ACL_RETAIN = 8
    ACL_WILL = 16

cdef enum AclVerdict:
    ACL_UNDECIDED = 0
    ACL_ALLOW = 1
    ACL_DENY = 2

cdef enum AclUse:                      # what a filter takes in
    USES_CLIENT_ID = 1
    USES_USER = 2

cdef struct AclWho:                    # (users, user_patterns, groups or anonymous, where has_subject) and clients, where any, and listeners, where has_listeners
    Span *users                        # sorted
    Span *user_patterns
    Span *clients                      # patterns
    Span *groups                       # names, for clients whose grant says that they are in them; the users of the file's own groups stand in users
    uint32_t group_count
    uint32_t user_count
    uint32_t user_pattern_count
    uint32_t client_count
    uint8_t has_subject
    uint8_t anonymous
    uint8_t has_listeners
    uint8_t listeners[32]              # a bit for each index

cdef struct AclRule:
    uint64_t prefix                    # the first bytes of the literal beginning, zeros behind
    uint64_t mask                      # FF for each of them
    Span filter
    uint32_t literal_bytes             # of the beginning without wildcards and substitutions
    uint32_t who                       # 1 + index; 0: everybody
    uint32_t number                    # for people: which rule of the file
    uint8_t allow
    uint8_t actions                    # AclAction
    uint8_t uses                       # AclUse; 0: the filter stands for itself

cdef struct AclOwner:                  # which client ids may be used
    Span *patterns
    uint32_t pattern_count
    uint32_t who                       # 1 + index; 0: everybody
    uint32_t number

cdef struct Acl:                       # immutable but refs
    uint32_t refs                      # atomic
    uint8_t otherwise                  # AclVerdict where no rule matches
    uint8_t disconnect                 # a 3.x client whose PUBLISH with QoS > 0 is denied is cut off, else acknowledged
    uint8_t uses                       # of all rules
    uint32_t superusers                # 1 + index of who; 0: nobody
    uint32_t who_count
    uint32_t rule_count
    uint32_t owner_count
    AclWho *whos
    AclRule *rules
    AclOwner *owners
    Span *texts
    uint8_t *bytes                     # owned: what the spans lie in

cdef struct Grant:                     # of an authenticator for one client; immutable but refs
    uint32_t refs                      # atomic
    uint32_t username_bytes
    Acl *rules                         # one reference; NULL: none
    int64_t ttl_ms                     # -1: no end
    int64_t renew_ms                   # after which another one is asked for; -1: never
    Span *groups                       # owned: names, sorted; they lie in group_bytes
    uint8_t *group_bytes               # owned; group_total of them
    uint32_t group_total
    uint32_t group_count
    uint8_t superuser
    uint8_t has_username
    uint8_t username[1]                # username_bytes of them

cdef struct Names:                     # what substitutions take in
    Span client_id
    Span user                          # p NULL: none

cdef Acl *acl_build(Span bytes) noexcept nogil                                 # one reference. NULL: no memory, or not what mqttc/auth/acl.py writes
cdef Acl *acl_share(Acl *acl) noexcept nogil                                   # [any thread] NULL is fine
cdef void acl_drop(Acl *acl) noexcept nogil                                    # [any thread] NULL is fine
cdef uint64_t acl_live() noexcept nogil                                        # debug: tables made less freed, of the process

cdef Grant *grant_build(Acl *rules, int64_t ttl_ms, bint superuser, bint has_username, Span username) noexcept nogil   # takes the table's reference over; NULL: no memory
cdef bint grant_join(Grant *grant, Span bytes) noexcept nogil                  # the groups, as mqttc/auth/acl.py writes them; False: no memory, or not what it writes
cdef int span_order(Span a, Span b) noexcept nogil                             # by bytes, the shorter first: below 0, 0, above 0
cdef Grant *grant_share(Grant *grant) noexcept nogil                           # [any thread] NULL is fine
cdef void grant_drop(Grant *grant) noexcept nogil                              # [any thread] NULL is fine

cdef bint name_unsafe(Span name) noexcept nogil                                # must not stand in a filter: / + # NUL, a $ in front, nothing at all
cdef bint glob_matches(Span pattern, Span text, Span user) noexcept nogil      # * any bytes, ? one character, %u the user name, %% a percent sign
# names: for %c, %u and %%; NULL: the filter stands for itself
cdef bint filter_covers(Span filter, Span text, const Names *names) noexcept nogil     # all topics of text, a topic or a filter, are topics of filter
cdef bint filters_meet(Span filter, Span text, const Names *names) noexcept nogil      # some topic is one of both
cdef bint filter_may_begin(Span filter, Span beginning) noexcept nogil                 # some topic of filter begins with these bytes
