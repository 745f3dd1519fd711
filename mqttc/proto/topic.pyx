"""Topic names and filters, section 4.7."""

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memchr, memcmp

from mqttc.base.types cimport Span, span_equal, span_make
from mqttc.proto.wire cimport TEXT_WILDCARD, text_flags, text_valid


cdef bint utf8_check(Span text) noexcept nogil:
    return text_valid(text.p, text.n)


cdef bint topic_check(Span topic) noexcept nogil:
    return topic.n > 0 and text_flags(topic.p, topic.n) == 0


cdef bint filter_check(Span filter) noexcept nogil:
    cdef uint32_t i
    cdef uint8_t byte
    if filter.n == 0:
        return False                        # [MQTT-4.7.3-1]
    if text_flags(filter.p, filter.n) & TEXT_WILDCARD == 0:
        return True
    for i in range(filter.n):
        byte = filter.p[i]
        if byte != c'#' and byte != c'+':
            continue
        if i > 0 and filter.p[i - 1] != c'/':
            return False                    # a wildcard takes a whole level [MQTT-4.7.1-1, MQTT-4.7.1-2]
        if i + 1 < filter.n and (byte == c'#' or filter.p[i + 1] != c'/'):
            return False                    # and # only the last
    return True


cdef bint filter_has_wildcard(Span filter) noexcept nogil:
    return text_flags(filter.p, filter.n) & TEXT_WILDCARD != 0


cdef uint32_t level_count(Span text) noexcept nogil:
    cdef uint32_t count = 1
    cdef uint32_t i
    for i in range(text.n):
        count += text.p[i] == c'/'
    return count


cdef bint topic_matches(Span filter, Span topic) noexcept nogil:
    cdef Span rest = filter
    cdef Span wanted, level
    if filter.n == 0 or topic.n == 0:
        return False
    if topic.p[0] == c'$' and (filter.p[0] == c'#' or filter.p[0] == c'+'):
        return False                        # [MQTT-4.7.2-1]
    while level_next(&rest, &wanted):
        if wanted.n == 1 and wanted.p[0] == c'#':
            return True                     # the parent too: a/# matches a
        if not level_next(&topic, &level):
            return False
        if not (wanted.n == 1 and wanted.p[0] == c'+') and not span_equal(wanted, level):
            return False
    return topic.p == NULL


cdef int share_split(Span filter, Span *group, Span *plain) noexcept nogil:
    cdef const uint8_t *slash
    cdef const uint8_t *start
    cdef uint32_t rest
    if filter.n < 7 or memcmp(filter.p, "$share/", 7) != 0:
        return 0
    start = filter.p + 7
    rest = filter.n - 7
    if rest == 0:
        return -1
    slash = <const uint8_t *> memchr(start, c'/', rest)
    if slash == NULL or slash == start or slash + 1 == filter.p + filter.n:
        return -1                           # a group of at least one character [MQTT-4.8.2-1], then / and a filter [MQTT-4.8.2-2]
    group[0] = span_make(start, <size_t> (slash - start))
    if text_flags(group.p, group.n) & TEXT_WILDCARD:
        return -1
    plain[0] = span_make(slash + 1, <size_t> (filter.p + filter.n - slash - 1))
    return 1
