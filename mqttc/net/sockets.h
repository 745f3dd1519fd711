/* Differences between systems in the socket calls, and the reading of a sockaddr. Static inline functions only, no state. */
#ifndef MQTTC_NET_SOCKETS_H
#define MQTTC_NET_SOCKETS_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1 /* accept4 */
#endif
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#ifdef MSG_NOSIGNAL
#define MQTTC_SEND_FLAGS MSG_NOSIGNAL
#else
#define MQTTC_SEND_FLAGS 0 /* SO_NOSIGPIPE is set when the socket is accepted */
#endif

#if defined(MQTTC_DEBUG)
#define MQTTC_NET_DEBUG 1
#else
#define MQTTC_NET_DEBUG 0
#endif

/* Fills in 16 address bytes (v4 as v4-mapped v6), the port in host order, and the family: 4, 6, 1 for Unix, 0 for others. */
static inline void socket_peer(const struct sockaddr_storage *from, uint8_t *address, uint16_t *port, uint8_t *family)
{
    memset(address, 0, 16);
    *port = 0;
    *family = 0;
    if (from->ss_family == AF_INET) {
        struct sockaddr_in in4;
        memcpy(&in4, from, sizeof in4);
        address[10] = address[11] = 0xff;
        memcpy(address + 12, &in4.sin_addr, 4);
        *port = ntohs(in4.sin_port);
        *family = 4;
    } else if (from->ss_family == AF_INET6) {
        struct sockaddr_in6 in6;
        memcpy(&in6, from, sizeof in6);
        memcpy(address, &in6.sin6_addr, 16);
        *port = ntohs(in6.sin6_port);
        *family = IN6_IS_ADDR_V4MAPPED(&in6.sin6_addr) ? 4 : 6;
    } else if (from->ss_family == AF_UNIX) {
        *family = 1;
    }
}

/* accept: non-blocking, close-on-exec. The descriptor, or -1 with errno. */
static inline int socket_accept(int listen_fd, uint8_t *address, uint16_t *port, uint8_t *family)
{
    struct sockaddr_storage from;
    socklen_t from_bytes = sizeof from;
    int fd;
    memset(&from, 0, sizeof from);
#if defined(__APPLE__)
    fd = accept(listen_fd, (struct sockaddr *)&from, &from_bytes);
    if (fd >= 0) {
        int one = 1;
        if (fcntl(fd, F_SETFD, FD_CLOEXEC) < 0 || fcntl(fd, F_SETFL, O_NONBLOCK) < 0 ||
            setsockopt(fd, SOL_SOCKET, SO_NOSIGPIPE, &one, sizeof one) < 0) {
            int error = errno;
            close(fd);
            errno = error;
            return -1;
        }
    }
#else
    fd = accept4(listen_fd, (struct sockaddr *)&from, &from_bytes, SOCK_NONBLOCK | SOCK_CLOEXEC);
#endif
    if (fd >= 0)
        socket_peer(&from, address, port, family);
    return fd;
}

static inline ssize_t socket_send(int fd, const struct iovec *parts, int count)
{
    struct msghdr message;
    if (count == 1)
        return send(fd, parts[0].iov_base, parts[0].iov_len, MQTTC_SEND_FLAGS);
    memset(&message, 0, sizeof message);
    message.msg_iov = (struct iovec *)parts;
    message.msg_iovlen = count;
    return sendmsg(fd, &message, MQTTC_SEND_FLAGS);
}

static inline void socket_set(int fd, int level, int option, int value)
{
    /* Advice: a socket that lacks the option works without it. */
    (void)setsockopt(fd, level, option, &value, sizeof value);
}

static inline void socket_no_delay(int fd) { socket_set(fd, IPPROTO_TCP, TCP_NODELAY, 1); }

static inline void socket_keep_alive(int fd, uint32_t idle_s, uint32_t user_timeout_ms)
{
    socket_set(fd, SOL_SOCKET, SO_KEEPALIVE, idle_s != 0);
    if (idle_s != 0) {
#if defined(TCP_KEEPIDLE)
        socket_set(fd, IPPROTO_TCP, TCP_KEEPIDLE, (int)idle_s);
#elif defined(TCP_KEEPALIVE)
        socket_set(fd, IPPROTO_TCP, TCP_KEEPALIVE, (int)idle_s);
#endif
#if defined(TCP_KEEPINTVL) && defined(TCP_KEEPCNT)
        socket_set(fd, IPPROTO_TCP, TCP_KEEPINTVL, idle_s > 15 ? 15 : (int)idle_s);
        socket_set(fd, IPPROTO_TCP, TCP_KEEPCNT, 4);
#endif
    }
#if defined(TCP_USER_TIMEOUT)
    if (user_timeout_ms != 0)
        socket_set(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, (int)user_timeout_ms);
#else
    (void)user_timeout_ms;
#endif
}

/* "127.0.0.1:5123" or "[::1]:5123" into out, not terminated; the bytes written, at most n. */
static inline uint32_t socket_text(const uint8_t *address, uint16_t port, uint8_t family, uint8_t *out, uint32_t n)
{
    char host[INET6_ADDRSTRLEN] = "", text[INET6_ADDRSTRLEN + 16];
    int length;
    if (family == 4) {
        inet_ntop(AF_INET, address + 12, host, sizeof host);
        length = snprintf(text, sizeof text, "%s:%u", host, (unsigned)port);
    } else if (family == 6) {
        inet_ntop(AF_INET6, address, host, sizeof host);
        length = snprintf(text, sizeof text, "[%s]:%u", host, (unsigned)port);
    } else {
        length = snprintf(text, sizeof text, "%s", family == 1 ? "unix" : "unknown");
    }
    if (length < 0)
        return 0;
    if ((uint32_t)length > n)
        length = (int)n;
    memcpy(out, text, (size_t)length);
    return (uint32_t)length;
}

/* A socket on its way to an address (family 4 or 6) or to a Unix socket's path (family 1; a leading NUL: abstract), from `source` where source_family is
 * not 0. Non-blocking, close-on-exec; it may still be connecting. -1: errno. */
static inline int socket_dial(const uint8_t *address, uint16_t port, uint8_t family, const uint8_t *path, uint32_t path_bytes, const uint8_t *source,
                              uint8_t source_family)
{
    struct sockaddr_storage to, from;
    socklen_t bytes;
    int fd, error;
    memset(&to, 0, sizeof to);
    memset(&from, 0, sizeof from);
    if (family == 1) {
        struct sockaddr_un *un = (struct sockaddr_un *)&to;
        if (path_bytes > sizeof un->sun_path) {
            errno = ENAMETOOLONG;
            return -1;
        }
        un->sun_family = AF_UNIX;
        memcpy(un->sun_path, path, path_bytes);
        bytes = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + path_bytes);
    } else if (family == 4) {
        struct sockaddr_in *in4 = (struct sockaddr_in *)&to;
        in4->sin_family = AF_INET;
        in4->sin_port = htons(port);
        memcpy(&in4->sin_addr, address + 12, 4);
        memcpy(&((struct sockaddr_in *)&from)->sin_addr, source + 12, 4);
        bytes = sizeof *in4;
    } else {
        struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)&to;
        in6->sin6_family = AF_INET6;
        in6->sin6_port = htons(port);
        memcpy(&in6->sin6_addr, address, 16);
        memcpy(&((struct sockaddr_in6 *)&from)->sin6_addr, source, 16);
        bytes = sizeof *in6;
    }
    fd = socket(to.ss_family, SOCK_STREAM, 0);
    if (fd < 0)
        return -1;
    if (fcntl(fd, F_SETFD, FD_CLOEXEC) < 0 || fcntl(fd, F_SETFL, O_NONBLOCK) < 0)
        goto failed;
#if defined(SO_NOSIGPIPE)
    socket_set(fd, SOL_SOCKET, SO_NOSIGPIPE, 1);
#endif
    if (source_family != 0 && source_family == family) {
        from.ss_family = to.ss_family;
#if defined(IP_BIND_ADDRESS_NO_PORT)
        socket_set(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1); /* the port is chosen by connect: 28 000 for each source and target, not for all */
#endif
        if (bind(fd, (struct sockaddr *)&from, bytes) < 0)
            goto failed;
    }
    if (connect(fd, (struct sockaddr *)&to, bytes) < 0 && errno != EINPROGRESS)
        goto failed;
    return fd;
failed:
    error = errno;
    close(fd);
    errno = error;
    return -1;
}

/* The socket's pending error (0: none), which reading it clears. */
static inline int socket_error(int fd)
{
    int error = 0;
    socklen_t bytes = sizeof error;
    return getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &bytes) < 0 ? errno : error;
}

/* Bytes that wait to be read. */
static inline int socket_unread(int fd)
{
    int bytes = 0;
    return ioctl(fd, FIONREAD, &bytes) < 0 ? 0 : bytes;
}
#endif
