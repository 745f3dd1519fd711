/* What Cython cannot say: atomics with a named order, layouts, small system wrappers. Types and static inline functions only, no state. */
#ifndef MQTTC_NATIVE_H
#define MQTTC_NATIVE_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/random.h>
#endif

#define MQTTC_LIKELY(x) __builtin_expect(!!(x), 1)
#define MQTTC_UNLIKELY(x) __builtin_expect(!!(x), 0)

/* A borrowed run of bytes. It dies with the turn (or the call) that handed it out. */
typedef struct Span {
    const uint8_t *p;
    uint32_t n;
} Span;

static inline Span span_make(const void *p, size_t n) {
    Span s;
    s.p = (const uint8_t *)p;
    s.n = (uint32_t)n;
    return s;
}
static inline int span_equal(Span a, Span b) { return a.n == b.n && (a.n == 0 || memcmp(a.p, b.p, a.n) == 0); }

/* Atomics: the order is in the name. */
static inline uint32_t atomic_load_u32_relaxed(const uint32_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
static inline uint32_t atomic_load_u32_acquire(const uint32_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline void atomic_store_u32_relaxed(uint32_t *p, uint32_t v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }
static inline void atomic_store_u32_release(uint32_t *p, uint32_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
static inline uint32_t atomic_add_u32_relaxed(uint32_t *p, uint32_t v) { return __atomic_fetch_add(p, v, __ATOMIC_RELAXED); }
static inline uint32_t atomic_sub_u32_acq_rel(uint32_t *p, uint32_t v) { return __atomic_fetch_sub(p, v, __ATOMIC_ACQ_REL); }
static inline uint64_t atomic_load_u64_relaxed(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
static inline uint64_t atomic_load_u64_acquire(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline void atomic_store_u64_relaxed(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }
static inline void atomic_store_u64_release(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
static inline uint64_t atomic_add_u64_relaxed(uint64_t *p, uint64_t v) { return __atomic_fetch_add(p, v, __ATOMIC_RELAXED); }
static inline void *atomic_load_ptr_acquire(void *const *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline int atomic_claim_ptr(void **p, void *v) { void *empty = 0; return __atomic_compare_exchange_n(p, &empty, v, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE); }
static inline int64_t atomic_load_i64_relaxed(const int64_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
static inline void atomic_store_i64_relaxed(int64_t *p, int64_t v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }
static inline int64_t atomic_add_i64_relaxed(int64_t *p, int64_t v) { return __atomic_fetch_add(p, v, __ATOMIC_RELAXED); }

/* One writer, any reader: a counter that only its owner thread adds to (no lock prefix). */
static inline void counter_add(uint64_t *p, uint64_t v) {
    __atomic_store_n(p, __atomic_load_n(p, __ATOMIC_RELAXED) + v, __ATOMIC_RELAXED);
}
static inline void counter_sub(uint64_t *p, uint64_t v) {
    __atomic_store_n(p, __atomic_load_n(p, __ATOMIC_RELAXED) - v, __ATOMIC_RELAXED);
}

/* Debug and sanitizer builds count blocks and can refuse allocations: see base/alloc. A constant, so that release builds fold it away. */
#if defined(MQTTC_DEBUG) || defined(MQTTC_TEST_ALLOC)
#define MQTTC_ALLOC_TESTED 1
#else
#define MQTTC_ALLOC_TESTED 0
#endif

/* count * item_bytes into *out; 0: it would pass PTRDIFF_MAX (no malloc grants more). */
static inline int size_multiply(size_t count, size_t item_bytes, size_t *out) {
    return !__builtin_mul_overflow(count, item_bytes, out) && *out <= (size_t)PTRDIFF_MAX;
}

/* Index of the lowest and the highest set bit; the argument is not 0. */
static inline uint32_t bit_lowest_u64(uint64_t v) { return (uint32_t)__builtin_ctzll(v); }
static inline uint32_t bit_highest_u64(uint64_t v) { return 63u - (uint32_t)__builtin_clzll(v); }

/* Unaligned loads in the machine's own order: for hashing only. */
static inline uint64_t load_u64_native(const uint8_t *p) {
    uint64_t v;
    memcpy(&v, p, 8);
    return v;
}
static inline uint32_t load_u32_native(const uint8_t *p) {
    uint32_t v;
    memcpy(&v, p, 4);
    return v;
}

/* 64 x 64 -> 128 bits: high half in *high, low half returned. The first is for compilers without a 128-bit integer. */
static inline uint64_t multiply_u64_wide_portable(uint64_t a, uint64_t b, uint64_t *high) {
    uint64_t a0 = (uint32_t)a, a1 = a >> 32, b0 = (uint32_t)b, b1 = b >> 32;
    uint64_t low = a0 * b0, cross = a1 * b0 + (low >> 32), middle = a0 * b1 + (uint32_t)cross;
    *high = a1 * b1 + (cross >> 32) + (middle >> 32);
    return (middle << 32) | (uint32_t)low;
}
static inline uint64_t multiply_u64_wide(uint64_t a, uint64_t b, uint64_t *high) {
#ifdef __SIZEOF_INT128__
    __extension__ typedef unsigned __int128 Wide;
    Wide product = (Wide)a * b;
    *high = (uint64_t)(product >> 64);
    return (uint64_t)product;
#else
    return multiply_u64_wide_portable(a, b, high);
#endif
}

/* The system's generator; 0 or -1 (errno). */
static inline int system_random(void *out, size_t n) {
#ifdef __linux__
    uint8_t *p = (uint8_t *)out;
    while (n > 0) {
        ssize_t got = getrandom(p, n, 0);
        if (got < 0) {
            if (errno == EINTR) continue;
            return -1;
        }
        p += got;
        n -= (size_t)got;
    }
#else
    arc4random_buf(out, n);
#endif
    return 0;
}

/* A wake-up descriptor: an eventfd where there is one (both ends are the same), else a pipe; non-blocking, close-on-exec. 0 or -1 (errno). */
static inline int wake_open_pipe(int *read_fd, int *write_fd) {
    int ends[2], i, saved;
    *read_fd = -1;
    *write_fd = -1;
    if (pipe(ends) != 0) return -1;
    for (i = 0; i < 2; i++) {
        int flags = fcntl(ends[i], F_GETFL);
        if (flags < 0 || fcntl(ends[i], F_SETFL, flags | O_NONBLOCK) < 0 || fcntl(ends[i], F_SETFD, FD_CLOEXEC) < 0) {
            saved = errno;
            close(ends[0]);
            close(ends[1]);
            errno = saved;
            return -1;
        }
    }
    *read_fd = ends[0];
    *write_fd = ends[1];
    return 0;
}
static inline int wake_open(int *read_fd, int *write_fd) {
#ifdef __linux__
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    *read_fd = fd;
    *write_fd = fd;
    return fd < 0 ? -1 : 0;
#else
    return wake_open_pipe(read_fd, write_fd);
#endif
}
static inline void wake_close(int *read_fd, int *write_fd) {
    if (*read_fd >= 0) close(*read_fd);
    if (*write_fd >= 0 && *write_fd != *read_fd) close(*write_fd);
    *read_fd = -1;
    *write_fd = -1;
}
/* By how much the kernel may lengthen this thread's sleeps, where that can be said. */
static inline void thread_slack(unsigned long ns) {
#ifdef PR_SET_TIMERSLACK
    prctl(PR_SET_TIMERSLACK, ns, 0, 0, 0);
#else
    (void)ns;
#endif
}
/* Eight bytes, as an eventfd wants them. EAGAIN means that it is readable already: that is what was asked for. */
static inline void wake_signal(int write_fd) {
    uint64_t one = 1;
    while (write(write_fd, &one, sizeof one) < 0 && errno == EINTR) {
    }
}
/* An eventfd gives eight bytes and is empty; a pipe is empty after a read that did not fill the buffer. */
static inline void wake_drain(int read_fd) {
    uint8_t bytes[512];
    ssize_t got;
    do {
        got = read(read_fd, bytes, sizeof bytes);
    } while (got == (ssize_t)sizeof bytes || (got < 0 && errno == EINTR));
}
#endif
