/* SPDX-License-Identifier: Apache-2.0 */
/* What the core asks of the operating system: clock, futex, fork, cleanup. */
#ifndef JMK_OS_H
#define JMK_OS_H

#include <stdatomic.h>
#include <stdint.h>

#define JMK_CLEANUP(function) __attribute__((cleanup(function)))
#define JMK_SECOND 1000000000LL

/* CLOCK_MONOTONIC, ns. */
int64_t jmk_now(void);

/* now + timeout; a negative timeout, or one too far to count, is INT64_MAX: never. */
int64_t jmk_deadline(int64_t timeout);

/* A number that differs in a forked child, for handles to tell whose they are. */
unsigned jmk_process(void);

/* Sleep while *word == seen, until deadline. 0 or -EINTR; any return means "look again". */
int jmk_futex_wait(atomic_uint *word, unsigned seen, int64_t deadline);
void jmk_futex_wake_all(atomic_uint *word);

/* A memfd of size bytes, its pages allocated, that can be sealed; or -errno. */
int jmk_memfd(const char *name, uint64_t size);

struct epoll_event;

/* epoll_wait with a timeout in ns; in whole ms, rounded up, where the kernel has no finer one. */
int jmk_epoll_wait(int epoll_fd, struct epoll_event *events, int most, int64_t timeout);

/* Cleanup for a local descriptor; -1 is none. */
void jmk_close_fd(int *fd);

static inline int jmk_take_fd(int *fd) {
    int taken = *fd;
    *fd = -1;
    return taken;
}

#endif
