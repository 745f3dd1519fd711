/* A stand-in for the BSD header, for tests only: as much of kqueue()/kevent() as the poller uses, over poll(2).
 *
 * What it copies from the real one: one filter per (descriptor, kind); EV_ADD of a filter that is there changes its udata but not its EV_CLEAR;
 * EV_DELETE of one that is not there fails with ENOENT; EV_EOF on the read filter when the peer's stream has ended, with the socket's error in
 * fflags; EV_CLEAR reports a state once, until it changes. State is static in the one test module that includes this. Waiting polls in slices of a
 * few milliseconds, so that filters reported once do not spin; changes from another thread are seen at the next slice. */
#ifndef TESTS_FACE_SYS_EVENT_H
#define TESTS_FACE_SYS_EVENT_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <time.h>

#define EVFILT_READ (-1)
#define EVFILT_WRITE (-2)
#define EV_ADD 0x0001
#define EV_DELETE 0x0002
#define EV_CLEAR 0x0020
#define EV_ERROR 0x4000
#define EV_EOF 0x8000

struct kevent {
    uintptr_t ident;
    short filter;
    unsigned short flags;
    unsigned int fflags;
    int64_t data;
    void *udata;
};

typedef struct Knote {
    int kq, fd, filter, clear, used;
    void *udata;
    int told, told_flags;   /* EV_CLEAR: the state that was reported last */
    int64_t told_data;
} Knote;

static pthread_mutex_t knotes_lock = PTHREAD_MUTEX_INITIALIZER;
static Knote *knotes;       /* under the lock */
static int knotes_count;    /* under the lock; slots, used or not */

static inline int kqueue(void)
{
    int i, kq = eventfd(0, EFD_CLOEXEC);
    if (kq < 0)
        return -1;
    pthread_mutex_lock(&knotes_lock);
    for (i = 0; i < knotes_count; i++) /* of an earlier queue with that number, closed since */
        if (knotes[i].kq == kq)
            knotes[i].used = 0;
    pthread_mutex_unlock(&knotes_lock);
    return kq;
}

static inline Knote *knote_find(int kq, int fd, int filter)
{
    int i;
    for (i = 0; i < knotes_count; i++)
        if (knotes[i].used && knotes[i].kq == kq && knotes[i].fd == fd && knotes[i].filter == filter)
            return &knotes[i];
    return NULL;
}

static inline int knote_apply(int kq, const struct kevent *change)
{
    Knote *note = knote_find(kq, (int)change->ident, change->filter);
    struct pollfd probe = {(int)change->ident, 0, 0};
    int i;
    if (poll(&probe, 1, 0) == 1 && (probe.revents & POLLNVAL)) {
        errno = EBADF;
        return -1;
    }
    if (change->flags & EV_DELETE) {
        if (note == NULL) {
            errno = ENOENT;
            return -1;
        }
        note->used = 0;
        return 0;
    }
    if (note != NULL) {
        note->udata = change->udata;
        return 0;
    }
    for (i = 0; i < knotes_count && knotes[i].used; i++)
        ;
    if (i == knotes_count) {
        int count = knotes_count ? knotes_count * 2 : 64;
        Knote *grown = realloc(knotes, count * sizeof *grown);
        if (grown == NULL) {
            errno = ENOMEM;
            return -1;
        }
        memset(grown + knotes_count, 0, (count - knotes_count) * sizeof *grown);
        knotes = grown;
        knotes_count = count;
    }
    memset(&knotes[i], 0, sizeof knotes[i]);
    knotes[i].used = 1;
    knotes[i].kq = kq;
    knotes[i].fd = (int)change->ident;
    knotes[i].filter = change->filter;
    knotes[i].clear = (change->flags & EV_CLEAR) != 0;
    knotes[i].udata = change->udata;
    return 0;
}

/* Under the lock. Whether the filter has something to report, which is written to `out`. */
static inline int knote_report(Knote *note, struct kevent *out)
{
    struct pollfd one = {note->fd, note->filter == EVFILT_READ ? POLLIN | POLLRDHUP : POLLOUT, 0};
    int unread = 0, error, flags = 0;
    if (poll(&one, 1, 0) != 1 || (one.revents & POLLNVAL)) {
        note->told = 0;
        return 0;
    }
    error = one.revents & POLLERR ? ECONNRESET : 0; /* which one cannot be asked without clearing it for the next read */
    if (one.revents & (POLLHUP | POLLERR | POLLRDHUP))
        flags |= EV_EOF;
    if (note->filter == EVFILT_READ)
        (void)ioctl(note->fd, FIONREAD, &unread);
    if (note->clear && note->told && note->told_flags == (flags | error << 16) && note->told_data == unread)
        return 0;
    note->told = 1;
    note->told_flags = flags | error << 16;
    note->told_data = unread;
    memset(out, 0, sizeof *out);
    out->ident = (uintptr_t)note->fd;
    out->filter = (short)note->filter;
    out->flags = (unsigned short)(flags | (note->clear ? EV_CLEAR : 0));
    out->fflags = flags & EV_EOF ? (unsigned)error : 0;
    out->data = unread;
    out->udata = note->udata;
    return 1;
}

static inline int kevent(int kq, const struct kevent *changes, int changes_count, struct kevent *events, int events_count,
                         const struct timespec *timeout)
{
    int64_t left_ms = timeout == NULL ? INT64_MAX : (int64_t)timeout->tv_sec * 1000 + timeout->tv_nsec / 1000000;
    const struct timespec slice = {0, 2000000};
    int i, found = 0;
    pthread_mutex_lock(&knotes_lock);
    for (i = 0; i < changes_count; i++) {
        if (knote_apply(kq, &changes[i]) < 0) {
            pthread_mutex_unlock(&knotes_lock);
            return -1;
        }
    }
    pthread_mutex_unlock(&knotes_lock);
    if (events_count == 0)
        return 0;
    for (;;) {
        pthread_mutex_lock(&knotes_lock);
        for (i = 0; i < knotes_count && found < events_count; i++)
            if (knotes[i].used && knotes[i].kq == kq)
                found += knote_report(&knotes[i], &events[found]);
        pthread_mutex_unlock(&knotes_lock);
        if (found != 0 || left_ms <= 0)
            return found;
        nanosleep(&slice, NULL);
        if (timeout != NULL)
            left_ms -= 2;
    }
}
#endif
