"""SipHash for tests."""

from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy

from mqttc.base.siphash cimport SipHash, sip_add, sip_begin, sip_end


def sip128(bytes key, list parts):
    """16 bytes: of the parts, one after the other."""
    cdef SipHash sip
    cdef uint64_t[2] words
    cdef uint64_t[2] out
    cdef bytes part
    assert len(key) == 16
    memcpy(words, <const char *> key, 16)
    sip_begin(&sip, words)
    for part in parts:
        sip_add(&sip, <const uint8_t *> <const char *> part, len(part))
    sip_end(&sip, out)
    return (<const char *> out)[:16]
