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
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
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
