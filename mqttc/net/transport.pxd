"""Transport: how the bytes of one connection travel. Plain sockets, TLS, WebSocket frames over either; each puts its own ops and state here.

Transports stack: one that wraps another holds it in its state, with the same descriptor.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t

cdef enum IoResult:
    IO_END = 0                 # orderly end of the stream
    IO_AGAIN = -1              # would block
    IO_FAILED = -2             # errno says why; the link is dead
    IO_REFUSED = -3            # of a read: the peer broke a rule of the transport and was told so; the link ends, what else it sends is of no interest

cdef enum TransportWants:      # the first two are set and cleared by read, the last by write; the reactor acts on them when that returns
    WANTS_OUT = 1              # read goes on when the descriptor takes output again. With bytes read: there is output of the transport's own, which a write
                               # of this turn takes along and clears; else it leaves by a read then
    WANTS_READ = 2             # what was held back (bytes, an end, a failure) raises no event: read again
    WANTS_IN = 4               # write said IO_AGAIN and goes on when read has got further (a handshake), not when the descriptor takes output

cdef enum PeerProof:           # what a transport can prove about its peer
    PROOF_CERTIFICATE = 0      # X.509, DER, verified
    PROOF_KEY_NAME = 1         # name of a pre-shared key that the peer holds
    PROOF_COMMON_NAME = 2      # of a certificate that a trusted proxy has verified, UTF-8
    PROOF_COUNT = 3

cdef extern from "<sys/uio.h>" nogil:
    cdef struct iovec:
        void *iov_base
        size_t iov_len

cdef struct TransportOps:
    int64_t (*read)(Transport *transport, uint8_t *out, uint32_t n) noexcept nogil                    # > 0: bytes; else IoResult
    int64_t (*write)(Transport *transport, const iovec *parts, int count) noexcept nogil              # >= 0: bytes taken, may be short; else IoResult
    void (*finish)(Transport *transport) noexcept nogil                                               # no more writing: shutdown(SHUT_WR), close_notify
    void (*close)(Transport *transport) noexcept nogil                                                # frees state, closes the descriptor
    # NULL where a transport has none:
    uint32_t (*proof)(Transport *transport, int kind, uint8_t *out, uint32_t n) noexcept nogil        # PeerProof: its size, 0: none; written to out if n is enough
    const char *(*failure)(Transport *transport) noexcept nogil                                       # why it cannot carry, or does not yet; NULL: no such reason. Lives with state

cdef struct Transport:
    const TransportOps *ops
    void *state                # of TLS or framing; NULL for plain sockets
    int fd
    uint32_t wants             # TransportWants

cdef inline uint32_t transport_proof(Transport *transport, int kind, uint8_t *out, uint32_t n) noexcept nogil:
    return transport.ops.proof(transport, kind, out, n) if transport.ops.proof != NULL else 0

cdef inline bint transport_proves(Transport *transport) noexcept nogil:
    """Whether it can prove anything."""
    cdef int kind
    for kind in range(PROOF_COUNT):
        if transport_proof(transport, kind, NULL, 0):
            return True
    return False

cdef inline const char *transport_failure(Transport *transport) noexcept nogil:
    return transport.ops.failure(transport) if transport.ops.failure != NULL else NULL
