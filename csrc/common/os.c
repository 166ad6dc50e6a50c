/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the core asks of the operating system
 *
 * Fork: a child gets copies of every handle but none of the threads, and the maps of the log are
 * not inherited at all (MADV_DONTFORK), so touching a handle there would hang or fault. A counter
 * that the fork itself raises in the child makes every entry point refuse instead.
 */
#include "common/os.h"
#include "common/page.h"
#include "common/point.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifdef JMK_POINTS
void (*jmk_at_point)(enum jmk_point point);
bool jmk_no_polls;
#endif

atomic_bool jmk_no_sendmmsg, jmk_no_recvmmsg, jmk_no_futex_waitv;

static atomic_uint process = 1;
static pthread_once_t process_once = PTHREAD_ONCE_INIT;

static void after_fork_in_child(void) {
    atomic_fetch_add_explicit(&process, 1, memory_order_relaxed);
}

static void watch_fork(void) {
    pthread_atfork(NULL, NULL, after_fork_in_child);
}

unsigned jmk_process(void) {
    pthread_once(&process_once, watch_fork);
    return atomic_load_explicit(&process, memory_order_relaxed);
}

uintptr_t jmk_thread(void) {
    static _Thread_local char place;

    return (uintptr_t)&place;
}

/* A robust_list_head: its first entry, futex_offset, and list_op_pending, which is none. */
void jmk_testament_open(struct jmk_testament *testament, _Atomic uint32_t *word) {
    long id = syscall(SYS_gettid);

    testament->entry = testament->head;
    testament->head[0] = &testament->entry;
    testament->head[1] = (void *)((uintptr_t)word - (uintptr_t)&testament->entry);
    testament->head[2] = NULL;
    testament->word = NULL;
    if (id <= 0 || syscall(SYS_get_robust_list, 0, &testament->before, &testament->size) < 0 ||
        syscall(SYS_set_robust_list, testament->head, sizeof testament->head) < 0)
        return;
    testament->word = word;
    atomic_store(word, (uint32_t)id | JMK_OWNER_WAKES);
}

void jmk_testament_close(struct jmk_testament *testament) {
    if (!testament->word)
        return;
    atomic_store(testament->word, 0);
    testament->head[0] = testament->head; /* empty, should the next call fail */
    syscall(SYS_set_robust_list, testament->before, testament->size);
}

int64_t jmk_now(void) {
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * JMK_SECOND + now.tv_nsec;
}

int64_t jmk_deadline(int64_t timeout) {
    int64_t now = jmk_now();

    if (timeout < 0 || timeout > INT64_MAX - now)
        return INT64_MAX;
    return now + timeout;
}

int jmk_futex_wait(atomic_uint *word, unsigned seen, int64_t deadline) {
    struct timespec until = {deadline / JMK_SECOND, deadline % JMK_SECOND};
    const struct timespec *limit = deadline == INT64_MAX ? NULL : &until;

    /* WAIT_BITSET takes an absolute time, so a wait that is repeated does not grow. */
    if (syscall(SYS_futex, word, FUTEX_WAIT_BITSET | FUTEX_PRIVATE_FLAG, seen, limit, NULL,
                FUTEX_BITSET_MATCH_ANY) < 0 &&
        errno == EINTR)
        return -EINTR;
    return 0;
}

void jmk_futex_wake_all(atomic_uint *word) {
    syscall(SYS_futex, word, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, INT32_MAX, NULL, NULL, 0);
}

#ifndef SYS_futex_waitv
#define SYS_futex_waitv 449
#endif

/* struct futex_waitv, which the headers of Linux before 5.16 do not have; and its flag FUTEX2_SIZE_U32. */
struct waited {
    uint64_t value, address;
    uint32_t flags, zero;
};
#define SIZE_U32 2u

int jmk_futex_wait_two(const struct jmk_seen seen[2], int64_t deadline) {
    int64_t until[2] = {deadline / JMK_SECOND, deadline % JMK_SECOND};
    struct waited words[2];
    long found;

    for (int i = 0; i < 2; i++)
        words[i] = (struct waited){seen[i].value, (uintptr_t)seen[i].word, SIZE_U32, 0};
    found = syscall(SYS_futex_waitv, words, 2, 0, deadline == INT64_MAX ? NULL : until,
                    CLOCK_MONOTONIC, 0);
    if (found >= 0)
        return (int)found;
    if (errno == EAGAIN)
        return JMK_SEEN_CHANGED;
    jmk_refused(&jmk_no_futex_waitv);
    return -errno;
}

void jmk_futex_wake(const _Atomic uint32_t *word, int most) {
    syscall(SYS_futex, word, FUTEX_WAKE, most, NULL, NULL, 0);
}

#ifndef SYS_epoll_pwait2
#define SYS_epoll_pwait2 441
#endif

int jmk_epoll_wait(int epoll_fd, struct epoll_event *events, int most, int64_t timeout) {
    struct timespec limit = {timeout / JMK_SECOND, timeout % JMK_SECOND};
    long count = syscall(SYS_epoll_pwait2, epoll_fd, events, most, &limit, NULL, 0);

    /* Older kernels do not have it, and sandboxes that do not know it forbid it. */
    if (count < 0 && errno != EINTR)
        return epoll_wait(epoll_fd, events, most, (int)((timeout + 999999) / 1000000));
    return (int)count;
}

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif

/* Kernels have had it for longer than glibc. */
#ifdef __GLIBC__
#if !__GLIBC_PREREQ(2, 27)
static int memfd_create(const char *name, unsigned flags) {
    return (int)syscall(SYS_memfd_create, name, flags);
}
#endif
#endif

int jmk_memfd(const char *name, uint64_t size) {
    JMK_CLEANUP(jmk_close_fd) int fd = -1;

    /* Some systems allow none that could be executed (memfd_noexec); older ones know no such flag. */
    fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);
    if (fd < 0 && errno == EINVAL)
        fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return -errno;
    if (fallocate(fd, 0, 0, (off_t)size) < 0)
        return -errno;
    return jmk_take_fd(&fd);
}

bool jmk_stream_ended(int fd) {
    struct pollfd poll_fd = {.fd = fd, .events = POLLRDHUP};

    /* poll is asked for the end alone. Where it fails, the end is the likelier of the two. */
    return poll(&poll_fd, 1, 0) != 0;
}

void jmk_close_fd(int *fd) {
    int saved = errno;

    if (*fd >= 0)
        close(*fd);
    *fd = -1;
    errno = saved;
}
