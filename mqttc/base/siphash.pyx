"""See siphash.pxd. Words are little-endian by definition; they are put together byte by byte, so the machine's order does not matter."""

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t


cdef inline uint64_t rotated(uint64_t value, int bits) noexcept nogil:
    return (value << bits) | (value >> (64 - bits))


cdef inline void rounds(SipHash *sip, int count) noexcept nogil:
    cdef int i
    for i in range(count):
        sip.v0 += sip.v1
        sip.v1 = rotated(sip.v1, 13) ^ sip.v0
        sip.v0 = rotated(sip.v0, 32)
        sip.v2 += sip.v3
        sip.v3 = rotated(sip.v3, 16) ^ sip.v2
        sip.v0 += sip.v3
        sip.v3 = rotated(sip.v3, 21) ^ sip.v0
        sip.v2 += sip.v1
        sip.v1 = rotated(sip.v1, 17) ^ sip.v2
        sip.v2 = rotated(sip.v2, 32)


cdef inline void word_add(SipHash *sip, uint64_t word) noexcept nogil:
    sip.v3 ^= word
    rounds(sip, 2)
    sip.v0 ^= word


cdef void sip_begin(SipHash *sip, const uint64_t *key) noexcept nogil:
    sip.v0 = key[0] ^ <uint64_t> 0x736f6d6570736575
    sip.v1 = key[1] ^ <uint64_t> 0x646f72616e646f6d ^ 0xee
    sip.v2 = key[0] ^ <uint64_t> 0x6c7967656e657261
    sip.v3 = key[1] ^ <uint64_t> 0x7465646279746573
    sip.tail = 0
    sip.tail_bytes = 0
    sip.total = 0


cdef void sip_add(SipHash *sip, const uint8_t *bytes, size_t n) noexcept nogil:
    cdef size_t i
    sip.total += n
    for i in range(n):
        sip.tail |= <uint64_t> bytes[i] << (8 * sip.tail_bytes)
        sip.tail_bytes += 1
        if sip.tail_bytes == 8:
            word_add(sip, sip.tail)
            sip.tail = 0
            sip.tail_bytes = 0


cdef void sip_end(SipHash *sip, uint64_t *out) noexcept nogil:
    word_add(sip, sip.tail | sip.total << 56)
    sip.v2 ^= 0xee
    rounds(sip, 4)
    out[0] = sip.v0 ^ sip.v1 ^ sip.v2 ^ sip.v3
    sip.v1 ^= 0xdd
    rounds(sip, 4)
    out[1] = sip.v0 ^ sip.v1 ^ sip.v2 ^ sip.v3
