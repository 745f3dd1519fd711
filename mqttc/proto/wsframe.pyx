from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from mqttc.base.types cimport ST_NEED_MORE, ST_OK, span_make
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
