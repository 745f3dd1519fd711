"""Rights: what one session may do: who its client is, its grant, and what the grant's rules and the broker's table say of that client.

Grant before table; in each the rules on the action itself before those on the action that speaks for it (`AclAction`); among these the first one that
matches decides. An `AclFit` is a table seen by one client: which of its rules concern it.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t

from mqttc.base.types cimport Span
from mqttc.broker.acl cimport Acl, AclRule, Grant

cdef enum AclSource:                   # what decided
    BY_RULE = 0
    BY_DEFAULT = 1
    BY_SUPERUSER = 2
    BY_NAME = 3                        # the rule would have taken in a client id or user name that must not stand in a filter
    BY_EXPIRY = 4                      # of the grant
    BY_LOSS = 5                        # no memory for the client's view of the table
    BY_NOTHING = 6                     # there are no rules

cdef struct AclFit:
    Acl *acl                           # one reference
    uint8_t superuser
    uint32_t rule_count                # of `rules`; NOT_LISTED: too many, the table is gone through and `concerns` asked
    uint32_t *rules                    # owned: indices, in order
    uint8_t *concerns                  # a bit for each who

cdef struct Rights:
    AclFit *file                       # of the broker's table; NULL: there is none, or see `lost`
    AclFit *given                      # of the grant's rules; NULL: none
    Grant *grant                       # one reference; NULL: none
    int64_t expires_at_ms              # monotonic; 0: never
    int64_t renew_at_ms                # when the control plane is asked for another grant; 0: it is not, or was
    uint16_t listener
    uint8_t has_user
    uint8_t unsafe                     # AclUse: must not stand in a filter
    uint8_t expired
    uint8_t lost
    uint32_t user_bytes
    uint8_t user[1]                    # user_bytes of them

cdef struct AclDecision:
    uint8_t source                     # AclSource
    uint8_t granted                    # by the grant
    uint32_t number
    const AclRule *rule                # borrowed from the rights' tables; NULL: no rule decides

# user.p NULL: anonymous. acl and grant are shared, both may be NULL. NULL: no memory.
cdef Rights *rights_build(Acl *acl, Grant *grant, Span client_id, Span user, uint16_t listener, int64_t now_ms) noexcept nogil
cdef void rights_free(Rights *rights) noexcept nogil                           # NULL is fine
cdef void rights_renew(Rights *rights, Acl *acl, Span client_id) noexcept nogil        # the table is another now; without memory nothing is allowed any more
# May this client do that? text: a topic, or (ACL_SUBSCRIBE) a filter, all of which must lie inside. whole: of a filter, nothing inside it may be denied
# by any rule. out may be NULL.
cdef bint rights_allow(const Rights *rights, Span client_id, uint8_t action, Span text, bint whole, AclDecision *out) noexcept nogil
cdef bint rights_own(const Rights *rights, Span client_id, AclDecision *out) noexcept nogil    # may this user use this client id?
