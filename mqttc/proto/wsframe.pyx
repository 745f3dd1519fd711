from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from mqttc.base.types cimport ST_NEED_MORE, ST_OK, Span, span_equal, span_make
from mqttc.proto.topic cimport utf8_check

cdef enum:
    FIN = 0x80
    RESERVED = 0x70                # bits of extensions, of which we agree to none
    OPCODE = 0x0F
    CONTROL = 0x08
    MASKED = 0x80
    SHORT = 0x7F
    TWO_BYTES = 126
    EIGHT_BYTES = 127


cdef int ws_header_next(const uint8_t *p, const uint8_t *end, WsHeader *header) noexcept nogil:
    cdef uint32_t i, length_bytes
    cdef uint8_t short_length
    if end - p < 2:
        return ST_NEED_MORE
    if p[0] & RESERVED:
        return -WS_PROTOCOL_ERROR
    header.opcode = p[0] & OPCODE
    header.fin = p[0] & FIN != 0
    header.masked = p[1] & MASKED != 0
    short_length = p[1] & SHORT
    if header.opcode & CONTROL:
        if header.opcode > WS_PONG or not header.fin or short_length > WS_CONTROL_MOST:       # section 5.5
            return -WS_PROTOCOL_ERROR
    elif header.opcode > WS_BINARY:
        return -WS_PROTOCOL_ERROR
    length_bytes = 0 if short_length < TWO_BYTES else 2 if short_length == TWO_BYTES else 8
    header.header_bytes = 2 + length_bytes + (4 if header.masked else 0)
    if <uint32_t> (end - p) < header.header_bytes:
        return ST_NEED_MORE
    p += 2
    header.payload_bytes = short_length
    if length_bytes:
        header.payload_bytes = 0
        for i in range(length_bytes):
            header.payload_bytes = header.payload_bytes << 8 | p[i]
        p += length_bytes
        # Section 5.2: the least number of bytes, and the highest bit is 0.
        if header.payload_bytes < TWO_BYTES or (length_bytes == 8 and (header.payload_bytes < 65536 or header.payload_bytes >> 63)):
            return -WS_PROTOCOL_ERROR
    if header.masked:
        memcpy(header.mask, p, 4)
    return ST_OK


cdef int ws_header_check(const WsHeader *header, bint masked, bint fragmented, uint64_t most) noexcept nogil:
    if header.masked != masked:                                                 # section 5.1
        return -WS_PROTOCOL_ERROR
    if header.opcode & CONTROL:
        return ST_OK
    if (header.opcode == WS_CONTINUATION) != fragmented:                        # section 5.4
        return -WS_PROTOCOL_ERROR
    if header.opcode == WS_TEXT:
        return -WS_UNSUPPORTED
    return ST_OK if header.payload_bytes <= most else -WS_TOO_BIG


cdef uint32_t ws_header_put(uint8_t *out, uint8_t opcode, uint64_t payload_bytes, const uint8_t *mask) noexcept nogil:
    cdef uint32_t n = 2
    cdef uint32_t length_bytes, i
    out[0] = FIN | opcode
    if payload_bytes < TWO_BYTES:
        length_bytes = 0
        out[1] = <uint8_t> payload_bytes
    else:
        length_bytes = 2 if payload_bytes < 65536 else 8
        out[1] = TWO_BYTES if length_bytes == 2 else EIGHT_BYTES
        for i in range(length_bytes):
            out[n + i] = <uint8_t> (payload_bytes >> (8 * (length_bytes - 1 - i)))
        n += length_bytes
    if mask != NULL:
        out[1] |= MASKED
        memcpy(out + n, mask, 4)
        n += 4
    return n


cdef void ws_mask(uint8_t *to, const uint8_t *source, size_t n, const uint8_t *mask, uint32_t phase) noexcept nogil:
    cdef uint8_t turned[8]
    cdef uint64_t key, first, second
    cdef size_t i
    for i in range(8):
        turned[i] = mask[(phase + i) & 3]
    memcpy(&key, turned, 8)
    i = 0
    # Both words are read before one is written: where the ranges overlap, no byte is written that was not read.
    while n - i >= 16:
        memcpy(&first, source + i, 8)
        memcpy(&second, source + i + 8, 8)
        first ^= key
        second ^= key
        memcpy(to + i, &first, 8)
        memcpy(to + i + 8, &second, 8)
        i += 16
    if n - i >= 8:
        memcpy(&first, source + i, 8)
        first ^= key
        memcpy(to + i, &first, 8)
        i += 8
    while i < n:
        to[i] = source[i] ^ turned[i & 7]
        i += 1


cdef int ws_close_check(const uint8_t *payload, uint32_t n) noexcept nogil:
    cdef uint32_t status
    if n == 0:
        return WS_NORMAL
    if n == 1:
        return -WS_PROTOCOL_ERROR
    status = <uint32_t> payload[0] << 8 | payload[1]
    # Sections 7.4.1 and 7.4.2, and the registry: 1012 to 1014 were added there.
    if not (1000 <= status <= 1003 or 1007 <= status <= 1014 or 3000 <= status <= 4999):
        return -WS_PROTOCOL_ERROR
    if not utf8_check_with_null(payload + 2, n - 2):
        return -WS_NOT_TEXT
    return <int> status


cdef bint utf8_check_with_null(const uint8_t *p, uint32_t n) noexcept nogil:
    """MQTT forbids U+0000 in a text, a close frame's reason may have it."""
    cdef uint32_t start = 0
    cdef uint32_t i
    for i in range(n):
        if p[i] == 0:
            if not utf8_check(span_make(p + start, i - start)):
                return False
            start = i + 1
    return utf8_check(span_make(p + start, n - start))


# ---------------------------------------------------------------------------------------------- the answer to a client's handshake

cdef bint same_letters(const uint8_t *p, const char *lower, uint32_t n) noexcept nogil:
    cdef uint32_t i
    for i in range(n):
        if (p[i] + 32 if 65 <= p[i] <= 90 else p[i]) != <uint8_t> lower[i]:
            return False
    return True


cdef Span span_trim(const uint8_t *p, const uint8_t *end) noexcept nogil:
    while p < end and (p[0] == c' ' or p[0] == c'\t'):
        p += 1
    while p < end and ((end - 1)[0] == c' ' or (end - 1)[0] == c'\t'):
        end -= 1
    return span_make(p, <size_t> (end - p))


cdef bint line_value(const uint8_t *p, const uint8_t *end, const char *name, uint32_t name_bytes, Span *value) noexcept nogil:
    """The value of a header line, if it has that name."""
    if end - p < name_bytes + 1 or p[name_bytes] != c':' or not same_letters(p, name, name_bytes):
        return False
    value[0] = span_trim(p + name_bytes + 1, end)
    return True


cdef bint list_has(Span listed, const char *token, uint32_t n) noexcept nogil:
    """Whether it is one of the words between commas."""
    cdef const uint8_t *p = listed.p
    cdef const uint8_t *end = listed.p + listed.n
    cdef const uint8_t *start
    cdef Span word
    while True:
        start = p
        while p < end and p[0] != c',':
            p += 1
        word = span_trim(start, p)
        if word.n == n and same_letters(word.p, token, n):
            return True
        if p == end:
            return False
        p += 1


cdef int ws_answer_check(const uint8_t *p, const uint8_t *end, Span accept) noexcept nogil:
    cdef const uint8_t *line
    cdef Span value
    cdef bint upgraded = False
    cdef bint connected = False
    cdef bint accepted = False
    if end - p < 12 or memcmp(p, b"HTTP/1.1 101", 12) != 0 or (end - p > 12 and p[12] != c' ' and p[12] != c'\r'):
        return WS_ANSWER_REFUSAL
    while p < end:
        line = p
        while p < end and p[0] != c'\r':
            p += 1
        if line_value(line, p, "upgrade", 7, &value):
            upgraded = list_has(value, "websocket", 9)
        elif line_value(line, p, "connection", 10, &value):
            connected = connected or list_has(value, "upgrade", 7)
        elif line_value(line, p, "sec-websocket-accept", 20, &value):
            accepted = span_equal(value, accept)
        elif line_value(line, p, "sec-websocket-extensions", 24, &value):
            return WS_ANSWER_WRONG
        if end - p < 2:
            break
        p += 2
    return WS_ANSWER_GOOD if upgraded and connected and accepted else WS_ANSWER_WRONG
