/* SPDX-License-Identifier: Apache-2.0 */
/* What the core asks of the operating system: clock, futex, fork, cleanup. */
#ifndef JMK_OS_H
#define JMK_OS_H

#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#include "jumiks.h"

#define JMK_CLEANUP(function) __attribute__((cleanup(function)))
#define JMK_SECOND 1000000000LL

/*
 * A word that the kernel marks with FUTEX_OWNER_DIED when this thread dies, however it does. The thread
 * that called open calls close before it ends. Where the system refuses, nothing is marked.
 */
struct jmk_testament {
    void *head[3]; /* struct robust_list_head */
    void *entry;   /* the one in that list */
    _Atomic uint32_t *word;
    void *before; /* what the C library had registered */
    size_t size;
};

void jmk_testament_open(struct jmk_testament *testament, _Atomic uint32_t *word);
void jmk_testament_close(struct jmk_testament *testament);

/* CLOCK_MONOTONIC, ns. */
int64_t jmk_now(void);

/* A number that differs in a forked child, for handles to tell whose they are. */
unsigned jmk_process(void);

/* A number for the calling thread, which no other thread has while it lives. */
uintptr_t jmk_thread(void);

/* Sleep while *word == seen, until deadline. 0 or -EINTR; any return means "look again". */
int jmk_futex_wait(atomic_uint *word, unsigned seen, int64_t deadline);
void jmk_futex_wake_all(atomic_uint *word);

/* A word that processes share, and the value that it was seen with. */
struct jmk_seen {
    const _Atomic uint32_t *word;
    uint32_t value;
};

/*
 * Sleep while both words are as they were seen, until deadline. The number of the one that was woken;
 * JMK_SEEN_CHANGED; or -errno: -ETIMEDOUT, -EINTR after a signal, another: this cannot be waited for.
 */
enum { JMK_SEEN_CHANGED = 2 };
int jmk_futex_wait_two(const struct jmk_seen seen[2], int64_t deadline);

/* Wake those that sleep so, `most` at most. */
void jmk_futex_wake(const _Atomic uint32_t *word, int most);

/* A memfd of size bytes, its pages allocated, that can be sealed; or -errno. */
int jmk_memfd(const char *name, uint64_t size);

struct epoll_event;

/* epoll_wait with a timeout in ns; in whole ms, rounded up, where the kernel has no finer one. */
int jmk_epoll_wait(int epoll_fd, struct epoll_event *events, int most, int64_t timeout);

/* Set once a sandbox has refused the call: it will refuse it always. */
extern atomic_bool jmk_no_sendmmsg, jmk_no_recvmmsg, jmk_no_futex_waitv;

static inline bool jmk_refused(atomic_bool *refused) {
    if (errno == ENOSYS || errno == EPERM)
        atomic_store_explicit(refused, true, memory_order_relaxed);
    return atomic_load_explicit(refused, memory_order_relaxed);
}

/* sendmmsg, or one packet after the other where that is refused. Inline, so that each caller is a
 * place of its own to tests/c/faults.h. */
__attribute__((always_inline)) static inline int jmk_sendmmsg(int fd, struct mmsghdr *packets,
                                                              unsigned count, int flags) {
    unsigned sent = 0;

    if (!atomic_load_explicit(&jmk_no_sendmmsg, memory_order_relaxed)) {
        int found = sendmmsg(fd, packets, count, flags);
        if (found >= 0 || !jmk_refused(&jmk_no_sendmmsg))
            return found;
    }
    for (; sent < count; sent++) {
        ssize_t length = sendmsg(fd, &packets[sent].msg_hdr, flags);
        if (length < 0)
            return sent ? (int)sent : -1;
        packets[sent].msg_len = (unsigned)length;
    }
    return (int)sent;
}

/* The same for recvmmsg. flags: MSG_DONTWAIT, or MSG_WAITFORONE to wait for the first packet. */
__attribute__((always_inline)) static inline int jmk_recvmmsg(int fd, struct mmsghdr *packets,
                                                              unsigned count, int flags) {
    unsigned received = 0;

    if (!atomic_load_explicit(&jmk_no_recvmmsg, memory_order_relaxed)) {
        int found = recvmmsg(fd, packets, count, flags, NULL);
        if (found >= 0 || !jmk_refused(&jmk_no_recvmmsg))
            return found;
    }
    for (; received < count; received++) {
        ssize_t length = recvmsg(fd, &packets[received].msg_hdr,
                                 received ? flags | MSG_DONTWAIT : flags & ~MSG_WAITFORONE);
        if (length < 0)
            return received ? (int)received : -1;
        packets[received].msg_len = (unsigned)length;
    }
    return (int)received;
}

/* A read of a socket gave 0. True: its stream has ended. False: it was an empty packet. */
bool jmk_stream_ended(int fd);

/* Cleanup for a local descriptor; -1 is none. */
void jmk_close_fd(int *fd);

static inline int jmk_take_fd(int *fd) {
    int taken = *fd;
    *fd = -1;
    return taken;
}

#endif
