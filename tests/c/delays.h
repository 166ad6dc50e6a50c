/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Short sleeps wherever another thread may come in between, of lengths that a seed gives
 *
 * Delays are made at the core's points (csrc/common/point.h), which stand at its stores, and before each lock
 * and each call to the system, which the linker sends through a wrapper here (--wrap, test_wakes.flags, test_storm.flags).
 * A wait that may last is counted as it begins, if the thread asked for that. Such a thread can also be made
 * to stop at a point, so that something happens just then.
 */
#ifndef JMK_DELAYS_H
#define JMK_DELAYS_H

#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "common/point.h"

#ifndef SYS_futex_waitv
#define SYS_futex_waitv 449
#endif

static atomic_uint delay_seed; /* 0: no delays */
static atomic_uint delayed_threads;
static atomic_int sleeps; /* waits that have begun in threads that are counted */
static _Thread_local bool counted;
static _Thread_local long refused_call = -1; /* a number of syscall() that fails here ... */
static _Thread_local int refused_with; /* ... with this errno */

static void delay(void) {
    static _Thread_local unsigned state, seed;
    unsigned now = atomic_load_explicit(&delay_seed, memory_order_relaxed);

    if (!now)
        return;
    if (seed != now) {
        seed = now;
        state = now * 1000 + atomic_fetch_add(&delayed_threads, 1);
    }
    switch (rand_r(&state) % 64) {
    case 0:
        clock_nanosleep(CLOCK_MONOTONIC, 0, &(struct timespec){0, 1000 * (rand_r(&state) % 100)},
                        NULL);
        break;
    case 1:
    case 2:
        sched_yield();
        break;
    case 3:
    case 4:
    case 5:
        for (volatile int i = rand_r(&state) % 2000; i > 0; i--)
            ;
    }
}

/* A counted thread that comes to this point for the first time stays there until it may go on. */
static atomic_int stop_at = -1;
static atomic_bool stopped, may_go;

static void stop_if_told(enum jmk_point point) {
    int here = (int)point;

    if (!counted || !atomic_compare_exchange_strong(&stop_at, &here, -1))
        return;
    atomic_store(&stopped, true);
    while (!atomic_load(&may_go))
        sched_yield();
}

static void at_point(enum jmk_point point) {
    stop_if_told(point);
    delay();
}

static void count_sleep(bool sleep) {
    if (counted && sleep)
        atomic_fetch_add(&sleeps, 1);
}

/* `type name(parameters)` after a delay, and counted as a sleep if that is true. */
#define DELAYED(type, name, parameters, arguments, sleep)                                          \
    type __real_##name parameters;                                                                 \
    type __wrap_##name parameters;                                                                 \
    type __wrap_##name parameters {                                                                \
        delay();                                                                                   \
        count_sleep(sleep);                                                                        \
        return __real_##name arguments;                                                            \
    }

DELAYED(int, pthread_mutex_lock, (pthread_mutex_t * lock), (lock), false)
DELAYED(int, pthread_mutex_unlock, (pthread_mutex_t * lock), (lock), false)
DELAYED(int, epoll_ctl, (int fd, int call, int of, struct epoll_event *event),
        (fd, call, of, event), false)
DELAYED(int, epoll_wait, (int fd, struct epoll_event *events, int most, int timeout),
        (fd, events, most, timeout), timeout != 0)
DELAYED(ssize_t, send, (int fd, const void *data, size_t size, int flags), (fd, data, size, flags),
        false)
DELAYED(int, sendmmsg, (int fd, struct mmsghdr *packets, unsigned count, int flags),
        (fd, packets, count, flags), false)
DELAYED(ssize_t, recv, (int fd, void *data, size_t size, int flags), (fd, data, size, flags),
        !(flags & MSG_DONTWAIT))
DELAYED(int, recvmmsg,
        (int fd, struct mmsghdr *packets, unsigned count, int flags, struct timespec *limit),
        (fd, packets, count, flags, limit), !(flags & MSG_DONTWAIT))
DELAYED(int, ppoll,
        (struct pollfd * polled, nfds_t count, const struct timespec *limit, const sigset_t *mask),
        (polled, count, limit, mask), true)
DELAYED(ssize_t, read, (int fd, void *data, size_t size), (fd, data, size), false)
DELAYED(ssize_t, write, (int fd, const void *data, size_t size), (fd, data, size), false)

int __real_pthread_mutex_trylock(pthread_mutex_t *lock);
int __wrap_pthread_mutex_trylock(pthread_mutex_t *lock);

/* Behind a try that failed is a point of its own, JMK_POINT_COUNT: the core has said nothing yet. */
int __wrap_pthread_mutex_trylock(pthread_mutex_t *lock) {
    int error;

    delay();
    error = __real_pthread_mutex_trylock(lock);
    if (error)
        stop_if_told(JMK_POINT_COUNT);
    return error;
}

long __real_syscall(long number, ...);
long __wrap_syscall(long number, ...);

long __wrap_syscall(long number, ...) {
    long words[6];
    va_list rest;

    va_start(rest, number);
    for (int i = 0; i < 6; i++)
        words[i] = va_arg(rest, long);
    va_end(rest);
    delay();
    if (number == refused_call) {
        errno = refused_with;
        return -1;
    }
    count_sleep(number == SYS_futex_waitv ||
                (number == SYS_futex && (words[1] & FUTEX_CMD_MASK) == FUTEX_WAIT_BITSET));
    return __real_syscall(number, words[0], words[1], words[2], words[3], words[4], words[5]);
}

#endif
