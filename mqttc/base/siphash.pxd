"""SipHash-2-4 with 128 bits of result (Aumasson and Bernstein, 2012): a keyed hash of several spans, for what must not be guessed or made to collide.

Whoever does not know the key cannot tell its results from random ones. Feed lengths too where spans could be shifted against each other.
"""

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef struct SipHash:
    uint64_t v0
    uint64_t v1
    uint64_t v2
    uint64_t v3
    uint64_t tail                      # bytes that make no word yet, the first one lowest
    uint32_t tail_bytes
    uint64_t total                     # bytes so far

cdef void sip_begin(SipHash *sip, const uint64_t *key) noexcept nogil                    # key: two words
cdef void sip_add(SipHash *sip, const uint8_t *bytes, size_t n) noexcept nogil
cdef void sip_end(SipHash *sip, uint64_t *out) noexcept nogil                            # two words; begin again afterwards
