/* A bare relay: what moving MQTT packets through sockets costs when nothing else is done. It is the yardstick of the speed comparison, not a broker.
 *
 * It cuts the input into packets by their fixed headers, copies each PUBLISH as received to the connections that subscribed to exactly its topic (or to
 * "#"), answers with the acknowledgements the handshakes need, and writes once per connection and turn. No checks, no sessions, no queues, no limits,
 * packet ids of the publisher. 3.1.1 only.
 *
 *     cc -O2 -o relay relay.c && ./relay PORT
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { CONNECTIONS = 1 << 17, TOPICS = 1 << 16, READ_BYTES = 128 << 10, EVENTS = 256 };

typedef struct Connection {
    uint8_t *in, *out;
    size_t in_bytes, in_room, out_bytes, out_room;
    int dirty_next, dirty, waits, subscribed;
} Connection;

typedef struct Topic {
    uint8_t *name;
    uint32_t bytes, hash;
    int *subscribers;
    int count, room;
} Topic;

static Connection connections[CONNECTIONS];
static Topic topics[TOPICS];
static Topic everything;
static uint8_t buffer[READ_BYTES];
static int poller, dirty = -1;

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void *grown(void *memory, size_t bytes) {
    memory = realloc(memory, bytes);
    if (!memory)
        fail("realloc");
    return memory;
}

static uint8_t *append(int fd, size_t n) {
    Connection *c = &connections[fd];
    uint8_t *place;
    if (c->out_bytes + n > c->out_room) {
        while (c->out_bytes + n > c->out_room)
            c->out_room = c->out_room ? c->out_room * 2 : 4096;
        c->out = grown(c->out, c->out_room);
    }
    if (!c->dirty) {
        c->dirty = 1;
        c->dirty_next = dirty;
        dirty = fd;
    }
    place = c->out + c->out_bytes;
    c->out_bytes += n;
    return place;
}

static void answer(int fd, uint8_t first, const uint8_t *id, int n, uint8_t last) {
    uint8_t *out = append(fd, 4 + (n > 2));
    out[0] = first;
    out[1] = (uint8_t)n;
    out[2] = id[0];
    out[3] = id[1];
    if (n > 2)
        out[4] = last;
}

static Topic *topic_at(const uint8_t *name, uint32_t bytes, int make) {
    uint32_t hash = 2166136261u, i;
    Topic *t;
    for (i = 0; i < bytes; i++)
        hash = (hash ^ name[i]) * 16777619u;
    for (i = hash;; i++) {
        t = &topics[i % TOPICS];
        if (t->name && t->hash == hash && t->bytes == bytes && !memcmp(t->name, name, bytes))
            return t;
        if (!t->name)
            break;
    }
    if (!make)
        return NULL;
    t->name = grown(NULL, bytes + 1);
    memcpy(t->name, name, bytes);
    t->bytes = bytes;
    t->hash = hash;
    return t;
}

static void subscribe(Topic *t, int fd) {
    if (t->count == t->room) {
        t->room = t->room ? t->room * 2 : 4;
        t->subscribers = grown(t->subscribers, sizeof(int) * (size_t)t->room);
    }
    t->subscribers[t->count++] = fd;
}

static void leave(Topic *t, int fd) {
    for (int i = 0; i < t->count; i++)
        if (t->subscribers[i] == fd)
            t->subscribers[i--] = t->subscribers[--t->count];
}

static void drop(int fd) {
    Connection *c = &connections[fd];
    for (int i = 0; c->subscribed && i < TOPICS; i++)
        leave(&topics[i], fd);
    leave(&everything, fd);
    free(c->in);
    free(c->out);
    *c = (Connection){.dirty_next = c->dirty_next}; /* it may stand in the list of this turn */
    close(fd);
}

static void copy_out(const Topic *t, const uint8_t *packet, size_t bytes) {
    for (int i = 0; t && i < t->count; i++)
        memcpy(append(t->subscribers[i], bytes), packet, bytes);
}

static int on_packet(int fd, const uint8_t *packet, const uint8_t *body, size_t bytes, size_t total) {
    static Topic *last;
    const uint8_t *id = body;
    uint32_t n;
    int qos = packet[0] >> 1 & 3;
    switch (packet[0] >> 4) {
    case 1:
        answer(fd, 0x20, (const uint8_t *)"\0\0", 2, 0);
        return 0;
    case 3:
        n = (uint32_t)body[0] << 8 | body[1];
        if (!last || last->bytes != n || memcmp(last->name, body + 2, n))
            last = topic_at(body + 2, n, 1);
        copy_out(last, packet, total);
        if (everything.count)
            copy_out(&everything, packet, total);
        if (qos)
            answer(fd, qos == 1 ? 0x40 : 0x50, body + 2 + n, 2, 0);
        return 0;
    case 5:
        answer(fd, 0x62, id, 2, 0);
        return 0;
    case 6:
        answer(fd, 0x70, id, 2, 0);
        return 0;
    case 8:
        for (const uint8_t *p = body + 2; p < body + bytes; p += n + 3) {
            n = (uint32_t)p[0] << 8 | p[1];
            subscribe(n == 1 && p[2] == '#' ? &everything : topic_at(p + 2, n, 1), fd);
            answer(fd, 0x90, id, 3, p[n + 2]);
        }
        connections[fd].subscribed = 1;
        return 0;
    case 12:
        memcpy(append(fd, 2), "\xd0\0", 2);
        return 0;
    case 14:
        return -1;
    default:
        return 0;
    }
}

static void on_input(int fd) {
    Connection *c = &connections[fd];
    const uint8_t *p, *end, *body;
    size_t length;
    int shift;
    ssize_t n;
    if (c->in_bytes)
        memcpy(buffer, c->in, c->in_bytes);
    n = recv(fd, buffer + c->in_bytes, READ_BYTES - c->in_bytes, 0);
    if (n <= 0) {
        if (n == 0 || errno != EAGAIN)
            drop(fd);
        return;
    }
    for (p = buffer, end = buffer + c->in_bytes + n; p < end; p = body + length) {
        body = p + 1;
        length = 0;
        for (shift = 0; body < end; shift += 7) {
            length |= (size_t)(*body & 127) << shift;
            if (*body++ < 128)
                break;
        }
        if (body > end || body == p + 1 || body[-1] > 127 || length > (size_t)(end - body))
            break;
        if (on_packet(fd, p, body, length, (size_t)(body - p) + length) < 0) {
            drop(fd);
            return;
        }
    }
    c->in_bytes = (size_t)(end - p);
    if (c->in_bytes == READ_BYTES) {
        fprintf(stderr, "packet larger than %d bytes\n", READ_BYTES);
        drop(fd);
        return;
    }
    if (c->in_bytes) {
        if (c->in_room < c->in_bytes) {
            c->in_room = READ_BYTES;
            c->in = grown(c->in, c->in_room);
        }
        memcpy(c->in, p, c->in_bytes);
    }
}

static void on_output(int fd) {
    Connection *c = &connections[fd];
    struct epoll_event event = {.data.fd = fd};
    ssize_t n;
    if (!c->out_bytes)
        return;
    n = send(fd, c->out, c->out_bytes, MSG_NOSIGNAL);
    if (n < 0 && errno != EAGAIN) {
        drop(fd);
        return;
    }
    if (n > 0) {
        c->out_bytes -= (size_t)n;
        memmove(c->out, c->out + n, c->out_bytes);
    }
    if (c->waits != (c->out_bytes != 0)) {
        c->waits = c->out_bytes != 0;
        event.events = EPOLLIN | (c->waits ? EPOLLOUT : 0);
        epoll_ctl(poller, EPOLL_CTL_MOD, fd, &event);
    }
}

int main(int argc, char **argv) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct rlimit files = {CONNECTIONS, CONNECTIONS};
    struct epoll_event event = {.events = EPOLLIN}, events[EVENTS];
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), yes = 1, fd, n;
    socklen_t bytes = sizeof address;
    setrlimit(RLIMIT_NOFILE, &files);
    address.sin_port = htons((uint16_t)(argc > 1 ? atoi(argv[1]) : 0));
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096))
        fail("listen");
    getsockname(listener, (struct sockaddr *)&address, &bytes);
    fprintf(stderr, "listening on tcp://127.0.0.1:%d\nready\n", ntohs(address.sin_port));
    poller = epoll_create1(0);
    event.data.fd = listener;
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        n = epoll_wait(poller, events, EVENTS, -1);
        for (int i = 0; i < n; i++) {
            fd = events[i].data.fd;
            if (fd == listener) {
                while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                    if (fd >= CONNECTIONS) {
                        close(fd);
                        continue;
                    }
                    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
                    event.events = EPOLLIN;
                    event.data.fd = fd;
                    epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
                }
            } else if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
                on_input(fd);
            } else {
                on_output(fd);
            }
        }
        while (dirty >= 0) {
            fd = dirty;
            dirty = connections[fd].dirty_next;
            if (connections[fd].dirty) {
                connections[fd].dirty = 0;
                on_output(fd);
            }
        }
    }
}
