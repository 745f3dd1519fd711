"""Plain stream sockets: one system call per operation, no state of their own."""

from libc.errno cimport EAGAIN, EINTR, ENOTCONN, errno
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memcmp

from mqttc.base.types cimport Span
from mqttc.net.transport cimport IO_AGAIN, IO_END, IO_FAILED, Transport, TransportOps, iovec

cdef extern from "<sys/types.h>" nogil:
    ctypedef long ssize_t

cdef extern from "<errno.h>" nogil:
    const int EWOULDBLOCK

cdef extern from "<unistd.h>" nogil:
    int c_close "close"(int fd)

cdef extern from "mqttc/net/sockets.h" nogil:
    ssize_t recv(int fd, void *out, size_t n, int flags)
    int shutdown(int fd, int how)
    const int SHUT_WR
    int socket_accept(int listen_fd, uint8_t *address, uint16_t *port, uint8_t *family)
    int socket_dial(
        const uint8_t *address, uint16_t port, uint8_t family, const uint8_t *path, uint32_t path_bytes, const uint8_t *source, uint8_t source_family
    )
    ssize_t socket_send(int fd, const iovec *parts, int count)
    void socket_no_delay(int fd)
    void socket_keep_alive(int fd, uint32_t idle_s, uint32_t user_timeout_ms)
    uint32_t socket_text(const uint8_t *address, uint16_t port, uint8_t family, uint8_t *out, uint32_t n)

cdef TransportOps tcp_operations = TransportOps(tcp_read, tcp_write, tcp_finish, tcp_close, NULL, NULL)     # constant from import on


cdef const TransportOps *tcp_ops() noexcept nogil:
    return &tcp_operations


cdef int64_t tcp_read(Transport *transport, uint8_t *out, uint32_t n) noexcept nogil:
    cdef ssize_t got
    while True:
        got = recv(transport.fd, out, n, 0)
        if got > 0:
            return got
        if got == 0:
            return IO_END
        if errno == EAGAIN or errno == EWOULDBLOCK:
            return IO_AGAIN
        if errno != EINTR:
            return IO_FAILED


cdef int64_t tcp_write(Transport *transport, const iovec *parts, int count) noexcept nogil:
    cdef ssize_t taken
    while True:
        taken = socket_send(transport.fd, parts, count)
        if taken >= 0:
            return taken
        if errno == EAGAIN or errno == EWOULDBLOCK or errno == ENOTCONN:
            return IO_AGAIN             # ENOTCONN: still connecting; a dead socket reports hangup
        if errno != EINTR:
            return IO_FAILED


cdef void tcp_finish(Transport *transport) noexcept nogil:
    shutdown(transport.fd, SHUT_WR)     # fails only where the peer is gone, which the next read tells


cdef void tcp_close(Transport *transport) noexcept nogil:
    if transport.fd >= 0:
        c_close(transport.fd)
        transport.fd = -1


cdef int tcp_accept(int listen_fd, PeerAddress *peer) noexcept nogil:
    return socket_accept(listen_fd, peer.address, &peer.port, &peer.family)


cdef int tcp_dial(const PeerAddress *target, Span path, const PeerAddress *source) noexcept nogil:
    if source == NULL:
        return socket_dial(target.address, target.port, target.family, path.p, path.n, target.address, 0)
    return socket_dial(target.address, target.port, target.family, path.p, path.n, source.address, source.family)


cdef void tcp_tune(int fd, const PeerAddress *peer) noexcept nogil:
    if peer.family != 1:
        socket_no_delay(fd)


cdef void tcp_keep_alive(int fd, uint32_t idle_s, uint32_t user_timeout_ms) noexcept nogil:
    socket_keep_alive(fd, idle_s, user_timeout_ms)


cdef bint peer_is_loopback(const PeerAddress *peer) noexcept nogil:
    cdef uint8_t[16] one                # ::1
    cdef int i
    if peer.family == 1:
        return True
    if peer.family == 4:
        return peer.address[12] == 127
    if peer.family == 6:
        for i in range(15):
            one[i] = 0
        one[15] = 1
        return memcmp(peer.address, one, 16) == 0
    return False


cdef uint32_t peer_text(const PeerAddress *peer, uint8_t *out, uint32_t n) noexcept nogil:
    return socket_text(peer.address, peer.port, peer.family, out, n)
