"""Transport: how the bytes of one connection travel. Plain sockets now; TLS and WebSocket framing put their own ops and state here."""

from libc.stdint cimport int64_t, uint8_t, uint32_t

cdef enum IoResult:
    IO_END = 0                 # orderly end of the stream
    IO_AGAIN = -1              # would block
    IO_FAILED = -2             # errno says why; the link is dead

cdef extern from "<sys/uio.h>" nogil:
    cdef struct iovec:
        void *iov_base
        size_t iov_len

cdef struct TransportOps:
    int64_t (*read)(Transport *transport, uint8_t *out, uint32_t n) noexcept nogil                    # > 0: bytes; else IoResult
    int64_t (*write)(Transport *transport, const iovec *parts, int count) noexcept nogil              # >= 0: bytes taken, may be short; else IoResult
    void (*finish)(Transport *transport) noexcept nogil                                               # no more writing: shutdown(SHUT_WR), close_notify
    void (*close)(Transport *transport) noexcept nogil                                                # frees state, closes the descriptor

cdef struct Transport:
    const TransportOps *ops
    void *state                # of TLS or framing; NULL for plain sockets
    int fd
