"""PROXY protocol, versions 1 and 2, as proxies send it before the bytes of a client (the HAProxy specification, proxy-protocol.txt of 2020 and later).

A listener behind a proxy expects the header from trusted addresses, and nothing at all from others: guessing would let a client name its own address.
The header is read byte for byte, so that TLS may follow it; then the transport makes way for the one below, and costs nothing any more.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from mqttc.net.tcp cimport PeerAddress
from mqttc.net.transport cimport Transport

cdef struct Network:               # of trusted peers; v4 is held v4-mapped, its prefix counted from there
    uint8_t address[16]
    uint8_t prefix_bits            # 0 to 128

cdef struct ProxyRules:            # of a listener; immutable once it is served
    Network *trusted               # owned
    uint32_t trusted_count
    int (*upgrade)(void *context, Transport *transport) noexcept nogil     # what follows the header; NULL: plain bytes
    void *upgrade_context

cdef bint proxy_trusts(const ProxyRules *rules, const PeerAddress *peer) noexcept nogil      # Unix sockets always: who reaches them was let in by permissions
# An accepted plain socket begins with a PROXY header. `rules` and `peer` are borrowed until that is read; peer is then overwritten with the client's
# address. ST_NO_MEMORY: unchanged.
cdef int proxy_accept(const ProxyRules *rules, Transport *transport, PeerAddress *peer) noexcept nogil
cdef uint64_t proxy_live() noexcept nogil                          # made and not yet freed, in this process
