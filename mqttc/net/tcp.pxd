"""Plain stream sockets, TCP and Unix: transport ops and socket options."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t

from mqttc.base.types cimport Span
from mqttc.net.transport cimport Transport, TransportOps

cdef struct PeerAddress:       # compact; v4 is held v4-mapped
    uint8_t address[16]
    uint16_t port
    uint8_t family             # 0: unknown, 4, 6, 1: unix

cdef const TransportOps *tcp_ops() noexcept nogil
# Accepts one: the descriptor (non-blocking, close-on-exec) or -1 with errno.
cdef int tcp_accept(int listen_fd, PeerAddress *peer) noexcept nogil
# A socket on its way to an address, or to a Unix socket's path (target.family 1); source: NULL, or where to connect from. -1: errno.
cdef int tcp_dial(const PeerAddress *target, Span path, const PeerAddress *source) noexcept nogil
# TCP_NODELAY; SO_KEEPALIVE with idle seconds and TCP_USER_TIMEOUT where > 0. Errors are ignored on purpose: the options are advice (Unix sockets have none).
cdef void tcp_tune(int fd, const PeerAddress *peer) noexcept nogil
cdef void tcp_keep_alive(int fd, uint32_t idle_s, uint32_t user_timeout_ms) noexcept nogil
cdef bint peer_is_loopback(const PeerAddress *peer) noexcept nogil            # 127/8, ::1, v4-mapped 127/8, and Unix sockets
cdef uint32_t peer_text(const PeerAddress *peer, uint8_t *out, uint32_t n) noexcept nogil     # "127.0.0.1:5123", "[::1]:5123", "unix"; bytes written
