/* A read-write lock on which writers take precedence: a stream of readers never starves one. Types and static inline functions only.
 *
 * glibc has it as a kind of pthread_rwlock. Elsewhere a gate does it: who wants in passes a mutex first, and a waiting writer stands in
 * it, so that readers that come later queue behind. Not recursive. The lock functions say whether they found the lock taken. */
#ifndef MQTTC_RWLOCK_H
#define MQTTC_RWLOCK_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif
#include <pthread.h>

#if !defined(__GLIBC__) && !defined(MQTTC_RWLOCK_GATE)
#define MQTTC_RWLOCK_GATE 1
#endif

typedef struct RwLock {
    pthread_rwlock_t lock;
#ifdef MQTTC_RWLOCK_GATE
    pthread_mutex_t gate;
#endif
} RwLock;

/* 0, or an errno. */
static inline int rwlock_init(RwLock *rw) {
#ifdef MQTTC_RWLOCK_GATE
    int failed = pthread_mutex_init(&rw->gate, NULL);
    if (failed)
        return failed;
    failed = pthread_rwlock_init(&rw->lock, NULL);
    if (failed)
        pthread_mutex_destroy(&rw->gate);
    return failed;
#else
    pthread_rwlockattr_t kind;
    int failed = pthread_rwlockattr_init(&kind);
    if (failed)
        return failed;
    failed = pthread_rwlockattr_setkind_np(&kind, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    if (!failed)
        failed = pthread_rwlock_init(&rw->lock, &kind);
    pthread_rwlockattr_destroy(&kind);
    return failed;
#endif
}

static inline void rwlock_destroy(RwLock *rw) {
    pthread_rwlock_destroy(&rw->lock);
#ifdef MQTTC_RWLOCK_GATE
    pthread_mutex_destroy(&rw->gate);
#endif
}

static inline int rwlock_read(RwLock *rw) {
#ifdef MQTTC_RWLOCK_GATE
    int waited = 0;
    if (pthread_mutex_trylock(&rw->gate) != 0) {
        waited = 1;
        pthread_mutex_lock(&rw->gate);
    }
    if (pthread_rwlock_tryrdlock(&rw->lock) != 0) {
        waited = 1;
        pthread_rwlock_rdlock(&rw->lock);
    }
    pthread_mutex_unlock(&rw->gate);
    return waited;
#else
    if (pthread_rwlock_tryrdlock(&rw->lock) == 0)
        return 0;
    pthread_rwlock_rdlock(&rw->lock);
    return 1;
#endif
}

static inline int rwlock_write(RwLock *rw) {
#ifdef MQTTC_RWLOCK_GATE
    int waited = 0;
    if (pthread_mutex_trylock(&rw->gate) != 0) {
        waited = 1;
        pthread_mutex_lock(&rw->gate);
    }
    if (pthread_rwlock_trywrlock(&rw->lock) != 0) {
        waited = 1;
        pthread_rwlock_wrlock(&rw->lock);
    }
    pthread_mutex_unlock(&rw->gate);
    return waited;
#else
    if (pthread_rwlock_trywrlock(&rw->lock) == 0)
        return 0;
    pthread_rwlock_wrlock(&rw->lock);
    return 1;
#endif
}

static inline void rwlock_unlock(RwLock *rw) { pthread_rwlock_unlock(&rw->lock); }

#endif
