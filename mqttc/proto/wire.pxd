"""Wire: a cursor over borrowed bytes, and the scalars of the standard (section 1.5) read and written inline.

`take_*` answers true and advances, or answers false and leaves the cursor where it was: the bytes end inside the item, or it is ill-formed.
Checks read `n > end - p`, so nothing is read past the end and no sum overflows. `put_*` writes unchecked into room whose size was computed
before, and gives the place after it.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from mqttc.base.types cimport Span, likely, unlikely

cdef enum:
    VARINT_MAXIMUM = 268435455              # section 1.5.5
    STRING_MAXIMUM = 65535

cdef enum TextFlag:
    TEXT_BAD = 1                            # ill-formed UTF-8, a surrogate or U+0000 [MQTT-1.5.4-1, MQTT-1.5.4-2]
    TEXT_WILDCARD = 2                       # holds + or #

cdef struct Cursor:
    const uint8_t *p
    const uint8_t *end

# The whole truth about a text, character by character; the inline checks below come here when they see anything but plain ASCII.
cdef uint32_t text_scan(const uint8_t *p, uint32_t n) noexcept nogil


cdef inline uint64_t _load_8(const uint8_t *p) noexcept nogil:
    cdef uint64_t word
    memcpy(&word, p, 8)
    return word


cdef inline uint64_t _load_short(const uint8_t *p, uint32_t n) noexcept nogil:
    """1 to 7 bytes as a word, filled up with repeats of its own bytes or with letters; overlapping loads instead of a loop."""
    cdef uint32_t low, high
    if n >= 4:
        memcpy(&low, p, 4)
        memcpy(&high, p + n - 4, 4)
        return (<uint64_t> high << 32) | low
    return 0x6161616161000000ULL | (<uint64_t> p[0] << 16) | (<uint64_t> p[n >> 1] << 8) | p[n - 1]


cdef inline uint64_t _plain(uint64_t word) noexcept nogil:
    """High bit kept in each byte that is not 0 (exact for ASCII bytes)."""
    return word + 0x7F7F7F7F7F7F7F7FULL


cdef inline uint32_t text_flags(const uint8_t *p, uint32_t n) noexcept nogil:
    """TextFlag bits of a topic name; 8 bytes a step while it is ASCII without NUL and wildcards."""
    cdef const uint8_t *last
    cdef const uint8_t *at = p
    cdef uint64_t word
    cdef uint64_t high = 0
    cdef uint64_t good = 0x8080808080808080ULL
    if n >= 8:
        last = p + (n - 8)
        while at < last:
            word = _load_8(at)
            high |= word
            good &= _plain(word) & _plain(word ^ 0x2B2B2B2B2B2B2B2BULL) & _plain(word ^ 0x2323232323232323ULL)
            at += 8
        word = _load_8(last)
    elif n > 0:
        word = _load_short(p, n)
    else:
        return 0
    high |= word
    good &= _plain(word) & _plain(word ^ 0x2B2B2B2B2B2B2B2BULL) & _plain(word ^ 0x2323232323232323ULL)
    if likely(good & ~high & 0x8080808080808080ULL == 0x8080808080808080ULL):
        return 0
    return text_scan(p, n)


cdef inline bint text_valid(const uint8_t *p, uint32_t n) noexcept nogil:
    """Well-formed UTF-8 without U+0000; wildcards allowed. 8 bytes a step while it is ASCII."""
    cdef const uint8_t *last
    cdef const uint8_t *at = p
    cdef uint64_t word
    cdef uint64_t high = 0
    cdef uint64_t good = 0x8080808080808080ULL
    if n >= 8:
        last = p + (n - 8)
        while at < last:
            word = _load_8(at)
            high |= word
            good &= _plain(word)
            at += 8
        word = _load_8(last)
    elif n > 0:
        word = _load_short(p, n)
    else:
        return True
    high |= word
    good &= _plain(word)
    if likely(good & ~high & 0x8080808080808080ULL == 0x8080808080808080ULL):
        return True
    return text_scan(p, n) & TEXT_BAD == 0


cdef inline bint take_u8(Cursor *cursor, uint8_t *value) noexcept nogil:
    if unlikely(cursor.p == cursor.end):
        return False
    value[0] = cursor.p[0]
    cursor.p += 1
    return True


cdef inline bint take_u16(Cursor *cursor, uint16_t *value) noexcept nogil:
    if unlikely(2 > cursor.end - cursor.p):
        return False
    value[0] = <uint16_t> ((cursor.p[0] << 8) | cursor.p[1])
    cursor.p += 2
    return True


cdef inline bint take_u32(Cursor *cursor, uint32_t *value) noexcept nogil:
    if unlikely(4 > cursor.end - cursor.p):
        return False
    value[0] = (<uint32_t> cursor.p[0] << 24) | (<uint32_t> cursor.p[1] << 16) | (<uint32_t> cursor.p[2] << 8) | cursor.p[3]
    cursor.p += 4
    return True


cdef inline bint take_varint(Cursor *cursor, uint32_t *value) noexcept nogil:
    """Variable Byte Integer. False also for a fifth byte and for more bytes than needed [MQTT-1.5.5-1]."""
    cdef const uint8_t *p = cursor.p
    cdef uint32_t shift = 0
    cdef uint32_t result = 0
    cdef uint8_t byte
    while shift <= 21:
        if unlikely(p == cursor.end):
            return False
        byte = p[0]
        p += 1
        result |= <uint32_t> (byte & 0x7F) << shift
        if byte < 0x80:
            if unlikely(byte == 0 and shift > 0):
                return False
            value[0] = result
            cursor.p = p
            return True
        shift += 7
    return False


cdef inline bint take_binary(Cursor *cursor, Span *span) noexcept nogil:
    """Binary Data, section 1.5.6."""
    cdef uint32_t n
    if unlikely(2 > cursor.end - cursor.p):
        return False
    n = (<uint32_t> cursor.p[0] << 8) | cursor.p[1]
    if unlikely(n > cursor.end - cursor.p - 2):
        return False
    span.p = cursor.p + 2
    span.n = n
    cursor.p += 2 + n
    return True


cdef inline bint take_text(Cursor *cursor, Span *span) noexcept nogil:
    """UTF-8 Encoded String, section 1.5.4, checked."""
    cdef const uint8_t *start = cursor.p
    if unlikely(not take_binary(cursor, span)):
        return False
    if unlikely(not text_valid(span.p, span.n)):
        cursor.p = start
        return False
    return True


cdef inline uint32_t varint_bytes(uint32_t value) noexcept nogil:
    """1 to 4 for values up to VARINT_MAXIMUM."""
    return 1 + (value > 127) + (value > 16383) + (value > 2097151)


cdef inline uint8_t *put_u8(uint8_t *out, uint8_t value) noexcept nogil:
    out[0] = value
    return out + 1


cdef inline uint8_t *put_u16(uint8_t *out, uint16_t value) noexcept nogil:
    out[0] = <uint8_t> (value >> 8)
    out[1] = <uint8_t> value
    return out + 2


cdef inline uint8_t *put_u32(uint8_t *out, uint32_t value) noexcept nogil:
    out[0] = <uint8_t> (value >> 24)
    out[1] = <uint8_t> (value >> 16)
    out[2] = <uint8_t> (value >> 8)
    out[3] = <uint8_t> value
    return out + 4


cdef inline uint8_t *put_varint(uint8_t *out, uint32_t value) noexcept nogil:
    while value > 127:
        out[0] = <uint8_t> (value | 0x80)
        value >>= 7
        out += 1
    out[0] = <uint8_t> value
    return out + 1


cdef inline uint8_t *put_bytes(uint8_t *out, Span span) noexcept nogil:
    """Without a length in front."""
    if span.n:
        memcpy(out, span.p, span.n)
    return out + span.n


cdef inline uint8_t *put_span(uint8_t *out, Span span) noexcept nogil:
    """With a two-byte length in front: a string or Binary Data."""
    return put_bytes(put_u16(out, <uint16_t> span.n), span)
