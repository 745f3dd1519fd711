"""The slow half of the text check."""

from libc.stdint cimport uint8_t, uint32_t

from mqttc.base.types cimport unlikely


cdef uint32_t text_scan(const uint8_t *p, uint32_t n) noexcept nogil:
    cdef const uint8_t *end = p + n
    cdef uint32_t flags = 0
    cdef uint32_t need, code, least
    cdef uint8_t byte
    while p < end:
        byte = p[0]
        p += 1
        if byte < 0x80:
            if unlikely(byte == 0):
                return TEXT_BAD
            if unlikely(byte == c'+' or byte == c'#'):
                flags |= TEXT_WILDCARD
            continue
        if byte < 0xC2:                     # a continuation byte, or an overlong form of two bytes
            return TEXT_BAD
        elif byte < 0xE0:
            need = 1
            code = byte & 0x1F
            least = 0x80
        elif byte < 0xF0:
            need = 2
            code = byte & 0x0F
            least = 0x800
        elif byte < 0xF5:
            need = 3
            code = byte & 0x07
            least = 0x10000
        else:
            return TEXT_BAD
        if need > end - p:
            return TEXT_BAD
        while need:
            if p[0] & 0xC0 != 0x80:
                return TEXT_BAD
            code = (code << 6) | (p[0] & 0x3F)
            p += 1
            need -= 1
        if code < least or code > 0x10FFFF or (0xD800 <= code <= 0xDFFF):
            return TEXT_BAD
    return flags
