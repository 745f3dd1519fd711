/* What two cores pay for working on the same memory, in ns: transfer [CORE CORE]. Compile: cc -O2 -pthread -o transfer transfer.c
 *
 * line       a cache line from one core's cache into the other's: half a round of two threads that answer each other
 * add        a locked addition to a line that this core has
 * add_both   the same while the other core does it too, processor time for each
 * lock       a mutex nobody else wants, locked and unlocked
 * wake       a thread that sleeps in epoll is woken by an eventfd: processor time of both sides, for each
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

enum { ROUNDS = 2000000, WAKES = 100000 };

static int cores[2] = {0, 1};
static _Alignas(128) _Atomic uint64_t ball;
static _Alignas(128) _Atomic uint64_t sum;
static int events[2], pollers[2];

static double now(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}

static void pin(int side)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cores[side], &set);
    if (sched_setaffinity(0, sizeof set, &set) != 0) {
        perror("sched_setaffinity");
        exit(1);
    }
}

static void play(int side)
{
    for (uint64_t i = 0; i < ROUNDS; i++) {
        while (atomic_load_explicit(&ball, memory_order_acquire) != 2 * i + side)
            ;
        atomic_store_explicit(&ball, 2 * i + side + 1, memory_order_release);
    }
}

static void add(int side)
{
    (void)side;
    for (int i = 0; i < ROUNDS; i++)
        atomic_fetch_add_explicit(&sum, 1, memory_order_relaxed);
}

static void wake(int side)
{
    uint64_t value = 1;
    struct epoll_event event;
    for (int i = 0; i < WAKES; i++) {
        if (side == 0 && write(events[1], &value, sizeof value) != sizeof value)
            exit(1);
        if (epoll_wait(pollers[side], &event, 1, -1) != 1 || read(events[side], &value, sizeof value) != sizeof value)
            exit(1);
        value = 1;
        if (side == 1 && write(events[0], &value, sizeof value) != sizeof value)
            exit(1);
    }
}

static void (*work)(int);
static double spent[2];

static void *run(void *argument)
{
    int side = (int)(intptr_t)argument;
    pin(side);
    double before = now(CLOCK_THREAD_CPUTIME_ID);
    work(side);
    spent[side] = now(CLOCK_THREAD_CPUTIME_ID) - before;
    return NULL;
}

static double both(void (*what)(int))
{
    pthread_t threads[2];
    work = what;
    double before = now(CLOCK_MONOTONIC);
    for (intptr_t side = 0; side < 2; side++)
        if (pthread_create(&threads[side], NULL, run, (void *)side) != 0)
            exit(1);
    for (int side = 0; side < 2; side++)
        pthread_join(threads[side], NULL);
    return now(CLOCK_MONOTONIC) - before;
}

int main(int argc, char **argv)
{
    pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    struct epoll_event event = {.events = EPOLLIN};
    if (argc == 3)
        for (int side = 0; side < 2; side++)
            cores[side] = atoi(argv[1 + side]);
    for (int side = 0; side < 2; side++) {
        events[side] = eventfd(0, EFD_NONBLOCK);
        pollers[side] = epoll_create1(0);
        if (events[side] < 0 || pollers[side] < 0 || epoll_ctl(pollers[side], EPOLL_CTL_ADD, events[side], &event) != 0)
            return 1;
    }
    printf("line %.0f\n", both(play) / ROUNDS / 2);
    pin(0);
    double before = now(CLOCK_MONOTONIC);
    add(0);
    printf("add %.1f\n", (now(CLOCK_MONOTONIC) - before) / ROUNDS);
    both(add);
    printf("add_both %.1f\n", (spent[0] + spent[1]) / ROUNDS / 2);
    before = now(CLOCK_MONOTONIC);
    for (int i = 0; i < ROUNDS; i++) {
        pthread_mutex_lock(&mutex);
        pthread_mutex_unlock(&mutex);
    }
    printf("lock %.1f\n", (now(CLOCK_MONOTONIC) - before) / ROUNDS);
    both(wake);
    printf("wake %.0f\n", (spent[0] + spent[1]) / WAKES / 2);
    return 0;
}
