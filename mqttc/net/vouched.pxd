"""Vouched: a transport whose peer identity somebody trusted vouches for: a proxy that has ended the client's TLS, or an adapter of the control plane.

It wraps the transport that carries the bytes and answers `proof` by itself: what that transport could prove is the messenger's identity, not the client's.
"""

from libc.stdint cimport uint64_t

from mqttc.base.types cimport Span
from mqttc.net.transport cimport Transport

cdef struct Proofs:                # by PeerProof; empty spans: none
    Span of[3]

cdef int vouched_wrap(Transport *transport, const Proofs *proofs) noexcept nogil    # copies; ST_OK, also where there is nothing to vouch for; ST_NO_MEMORY: unchanged
cdef uint64_t vouched_live() noexcept nogil                        # made and not yet freed, in this process
