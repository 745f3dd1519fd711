"""Topic names and filters: checks and matching on bytes."""

from libc.stdint cimport uint8_t, uint32_t

from mqttc.base.types cimport Span

cdef bint utf8_check(Span text) noexcept nogil                 # well-formed, no surrogates, no U+0000 [MQTT-1.5.4-1, MQTT-1.5.4-2]; ASCII quick
cdef bint topic_check(Span topic) noexcept nogil               # not empty, no wildcards [MQTT-3.3.2-2]; UTF-8 was checked by the decoder
cdef bint filter_check(Span filter) noexcept nogil             # wildcard placement [MQTT-4.7.1-1..3], not empty
cdef bint filter_has_wildcard(Span filter) noexcept nogil
cdef uint32_t level_count(Span text) noexcept nogil
cdef bint topic_matches(Span filter, Span topic) noexcept nogil    # with the $ rule [MQTT-4.7.2-1]

# $share/group/filter [MQTT-4.8.2-1,2]: 1 and the two parts; 0: not shared; -1: shared but ill-formed
cdef int share_split(Span filter, Span *group, Span *plain) noexcept nogil

cdef inline bint level_next(Span *rest, Span *level) noexcept nogil:
    """Takes the next level off rest; false when there is none left. rest.p NULL marks the end (an empty last level is a level)."""
    cdef uint32_t i = 0
    if rest.p == NULL:
        return False
    while i < rest.n and rest.p[i] != c'/':
        i += 1
    level.p = rest.p
    level.n = i
    if i < rest.n:
        rest.p += i + 1
        rest.n -= i + 1
    else:
        rest.p = NULL
        rest.n = 0
    return True
