/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Calls to the operating system that fail when they are told to
 *
 * The linker sends each call that the core makes through a wrapper here (--wrap, test_faults.flags),
 * so nothing in csrc knows of it. A site is the address that a call returns to: what is counted and
 * made to fail is that one place in the code, whichever thread comes there.
 *
 * A failure is only told where the kernel could tell it, and is then made as true as can be: a socket
 * that is said to be broken is shut, an eventfd that is said to be full is filled, and a descriptor
 * whose close fails is closed nevertheless.
 */
#ifndef JMK_FAULTS_H
#define JMK_FAULTS_H

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "common/frame.h"

#ifndef SYS_futex_waitv
#define SYS_futex_waitv 449
#endif

#define SITES 512
#define FOR_EVER 1000000000u
#define SHORT (-1) /* instead of an errno: half of what was asked for is done */

/* Also the index of `calls`. A system call that goes through syscall() counts by itself. */
enum call {
    ANY_CALL,
    calloc_,
    malloc_,
    realloc_,
    mmap_,
    mremap_,
    madvise_,
    memfd_create_,
    fallocate_,
    fcntl_,
    fstat_,
    fstatfs_,
    epoll_create1_,
    eventfd_,
    inotify_init1_,
    inotify_add_watch_,
    epoll_ctl_,
    epoll_wait_,
    epoll_pwait2_,
    futex_,
    futex_waitv_,
    pidfd_open_,
    pthread_create_,
    socket_,
    connect_,
    setsockopt_,
    getsockopt_,
    ioctl_,
    send_,
    sendmsg_,
    sendmmsg_,
    recv_,
    recvmmsg_,
    recvmsg_,
    poll_,
    ppoll_,
    read_,
    write_,
    shutdown_,
    close_,
    CALLS
};

struct call_kind {
    const char *name;
    int errors[8]; /* what its manual page has, as far as it can come up here; 0 is the end */
};

static const struct call_kind calls[CALLS] = {
    [calloc_] = {"calloc", {ENOMEM}},
    [malloc_] = {"malloc", {ENOMEM}},
    [realloc_] = {"realloc", {ENOMEM}},
    [mmap_] = {"mmap", {ENOMEM, EAGAIN}},
    [mremap_] = {"mremap", {ENOMEM, EINVAL}},
    [madvise_] = {"madvise", {ENOMEM, EAGAIN}},
    [memfd_create_] = {"memfd_create", {EMFILE, ENFILE, ENOMEM, ENOSYS, EPERM, EACCES, EINVAL}},
    [fallocate_] = {"fallocate", {ENOSPC, EINTR, EPERM, EOPNOTSUPP}},
    [fcntl_] = {"fcntl", {EPERM, EINVAL, EBUSY}},
    [fstat_] = {"fstat", {ENOMEM}},
    [fstatfs_] = {"fstatfs", {ENOMEM, ENOSYS, EPERM}},
    [epoll_create1_] = {"epoll_create1", {EMFILE, ENFILE, ENOMEM}},
    [eventfd_] = {"eventfd", {EMFILE, ENFILE, ENOMEM}},
    [inotify_init1_] = {"inotify_init1", {EMFILE, ENFILE, ENOMEM}},
    [inotify_add_watch_] = {"inotify_add_watch", {EACCES, ENOENT, ENOMEM, ENOSPC}},
    [epoll_ctl_] = {"epoll_ctl", {ENOSPC, ENOMEM}},
    [epoll_wait_] = {"epoll_wait", {EINTR}},
    [epoll_pwait2_] = {"epoll_pwait2", {EINTR, ENOSYS, EPERM}},
    [futex_] = {"futex", {EINTR, EAGAIN}},
    [futex_waitv_] = {"futex_waitv", {EINTR, EAGAIN, ENOMEM, ENOSYS, EPERM}},
    [pidfd_open_] = {"pidfd_open", {EMFILE, ENOSYS, EPERM, ESRCH}},
    [pthread_create_] = {"pthread_create", {EAGAIN, EPERM}},
    [socket_] = {"socket", {EMFILE, ENFILE, ENOMEM, ENOBUFS, EACCES}},
    [connect_] = {"connect", {EAGAIN, EINTR, ECONNREFUSED, EACCES, ENOENT}},
    [setsockopt_] = {"setsockopt", {ENOMEM, ENOBUFS}},
    [getsockopt_] = {"getsockopt", {ENOBUFS}},
    [ioctl_] = {"ioctl", {EINVAL}},
    [send_] = {"send", {EAGAIN, EINTR, ENOBUFS, ENOMEM, EPIPE, ECONNRESET}},
    [sendmsg_] = {"sendmsg", {EAGAIN, EINTR, ENOBUFS, ENOMEM, EPIPE, ECONNRESET}},
    [sendmmsg_] = {"sendmmsg", {EAGAIN, EINTR, ENOBUFS, EPIPE, ECONNRESET, ENOSYS, EPERM, SHORT}},
    [recv_] = {"recv", {EAGAIN, EINTR, ENOMEM, ECONNRESET}},
    [recvmmsg_] = {"recvmmsg", {EAGAIN, EINTR, ENOMEM, ECONNRESET, ENOSYS, EPERM, SHORT}},
    [recvmsg_] = {"recvmsg", {EAGAIN, EINTR, ENOMEM, ECONNRESET}},
    [poll_] = {"poll", {EINTR, ENOMEM}},
    [ppoll_] = {"ppoll", {EINTR, ENOMEM}},
    [read_] = {"read", {EAGAIN, EINTR}},
    [write_] = {"write", {EAGAIN}},
    [shutdown_] = {"shutdown", {0}}, /* of a local socket that is open: it cannot fail */
    [close_] = {"close", {EINTR, EIO, EDQUOT}},
};

/* One place in the core that makes a call, as far as it was come to. */
struct site {
    _Atomic uintptr_t at;
    enum call call;
    atomic_uint hits;
};

/* From its nth hit on, a site fails `times` times. at = 0: any site of that call. */
struct fault {
    enum call call;
    uintptr_t at;
    int error;
    unsigned nth, times;
};

/* What a child fills in, and its parent reads. */
struct ledger {
    struct site sites[SITES];
    atomic_uint fired; /* of the fault, not of the condition */
    atomic_long blocks, mapped; /* what the core holds now */
};

static struct ledger *ledger;
static struct fault condition; /* how this system is, all the time */
static struct fault fault;     /* what happens to it */
static atomic_uint condition_hits;
static atomic_int faults_on;

static struct site *site_at(uintptr_t at, enum call call) {
    for (size_t i = (at / 4) % SITES;; i = (i + 1) % SITES) {
        struct site *site = &ledger->sites[i];
        uintptr_t none = 0;

        if (atomic_compare_exchange_strong(&site->at, &none, at)) {
            site->call = call;
            return site;
        }
        if (none == at)
            return site;
    }
}

static int within(const struct fault *wanted, unsigned hit) {
    return hit >= wanted->nth && hit - wanted->nth < wanted->times;
}

/* How this call is to fail: an errno, SHORT, or 0: not at all. `possible` errors alone. */
static int failure(enum call call, const void *from, int possible) {
    uintptr_t at = (uintptr_t)from;
    unsigned hit;

    if (!atomic_load(&faults_on))
        return 0;
    hit = atomic_fetch_add(&site_at(at, call)->hits, 1) + 1;
    if (!possible)
        return 0;
    if (call == fault.call && at == fault.at && within(&fault, hit)) {
        atomic_fetch_add(&ledger->fired, 1);
        return errno = fault.error;
    }
    if (call == condition.call && within(&condition, atomic_fetch_add(&condition_hits, 1) + 1))
        return errno = condition.error;
    return 0;
}

#define HERE __builtin_return_address(0)

/* A call that just fails. */
#define WRAP(result, failed, name, parameters, arguments)                                          \
    result __real_##name parameters;                                                               \
    result __wrap_##name parameters;                                                               \
    result __wrap_##name parameters {                                                              \
        return failure(name##_, HERE, 1) ? failed : __real_##name arguments;                       \
    }

WRAP(int, -1, madvise, (void *at, size_t size, int advice), (at, size, advice))
WRAP(int, -1, memfd_create, (const char *name, unsigned flags), (name, flags))
WRAP(int, -1, fallocate, (int fd, int mode, off_t from, off_t size), (fd, mode, from, size))
WRAP(int, -1, fstat, (int fd, struct stat *out), (fd, out))
WRAP(int, -1, fstatfs, (int fd, struct statfs *out), (fd, out))
WRAP(int, -1, epoll_create1, (int flags), (flags))
WRAP(int, -1, eventfd, (unsigned count, int flags), (count, flags))
WRAP(int, -1, inotify_init1, (int flags), (flags))
WRAP(int, -1, inotify_add_watch, (int fd, const char *path, uint32_t events), (fd, path, events))
WRAP(int, -1, epoll_wait, (int fd, struct epoll_event *out, int most, int timeout),
     (fd, out, most, timeout))
WRAP(int, -1, socket, (int domain, int type, int protocol), (domain, type, protocol))
WRAP(int, -1, connect, (int fd, const struct sockaddr *to, socklen_t size), (fd, to, size))
WRAP(int, -1, setsockopt, (int fd, int level, int name, const void *value, socklen_t size),
     (fd, level, name, value, size))
WRAP(int, -1, getsockopt, (int fd, int level, int name, void *value, socklen_t *size),
     (fd, level, name, value, size))
WRAP(int, -1, poll, (struct pollfd * fds, nfds_t count, int timeout), (fds, count, timeout))
WRAP(int, -1, ppoll,
     (struct pollfd * fds, nfds_t count, const struct timespec *limit, const sigset_t *mask),
     (fds, count, limit, mask))
WRAP(ssize_t, -1, read, (int fd, void *to, size_t size), (fd, to, size))
WRAP(int, -1, shutdown, (int fd, int how), (fd, how))

/* It returns its error. */
int __real_pthread_create(pthread_t *out, const pthread_attr_t *how, void *(*run)(void *),
                          void *argument);
int __wrap_pthread_create(pthread_t *out, const pthread_attr_t *how, void *(*run)(void *),
                          void *argument);
int __wrap_pthread_create(pthread_t *out, const pthread_attr_t *how, void *(*run)(void *),
                          void *argument) {
    int error = failure(pthread_create_, HERE, 1);

    return error ? error : __real_pthread_create(out, how, run, argument);
}

/* What is watched can be let go of, always. */
int __real_epoll_ctl(int fd, int what, int other, struct epoll_event *event);
int __wrap_epoll_ctl(int fd, int what, int other, struct epoll_event *event);
int __wrap_epoll_ctl(int fd, int what, int other, struct epoll_event *event) {
    return failure(epoll_ctl_, HERE, what != EPOLL_CTL_DEL)
               ? -1
               : __real_epoll_ctl(fd, what, other, event);
}

/* ---- those with a variable number of arguments: as the core uses them ---- */

int __real_fcntl(int fd, int what, ...);
int __wrap_fcntl(int fd, int what, int value);
int __wrap_fcntl(int fd, int what, int value) {
    return failure(fcntl_, HERE, 1) ? -1 : __real_fcntl(fd, what, value);
}

int __real_ioctl(int fd, unsigned long what, ...);
int __wrap_ioctl(int fd, unsigned long what, void *out);
int __wrap_ioctl(int fd, unsigned long what, void *out) {
    return failure(ioctl_, HERE, 1) ? -1 : __real_ioctl(fd, what, out);
}

long __real_syscall(long number, ...);
long __wrap_syscall(long number, long a, long b, long c, long d, long e, long f);
long __wrap_syscall(long number, long a, long b, long c, long d, long e, long f) {
    enum call call = number == SYS_futex         ? futex_
                     : number == SYS_futex_waitv ? futex_waitv_
                     : number == SYS_pidfd_open  ? pidfd_open_
                                                 : epoll_pwait2_;
    int wakes = call == futex_ && (b & 127) == 1; /* FUTEX_WAKE has nothing that could fail */

    return failure(call, HERE, !wakes) ? -1 : __real_syscall(number, a, b, c, d, e, f);
}

/* ---- memory: what is taken has to be given back ---- */

void *__real_calloc(size_t count, size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_calloc(size_t count, size_t size) {
    void *at = failure(calloc_, HERE, 1) ? NULL : __real_calloc(count, size);

    atomic_fetch_add(&ledger->blocks, at != NULL);
    return at;
}

void *__real_malloc(size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_malloc(size_t size) {
    void *at = failure(malloc_, HERE, 1) ? NULL : __real_malloc(size);

    atomic_fetch_add(&ledger->blocks, at != NULL);
    return at;
}

void *__real_realloc(void *before, size_t size);
void *__wrap_realloc(void *before, size_t size);
void *__wrap_realloc(void *before, size_t size) {
    int first = before == NULL;
    void *at = failure(realloc_, HERE, 1) ? NULL : __real_realloc(before, size);

    atomic_fetch_add(&ledger->blocks, first && at);
    return at;
}

void __real_free(void *at);
void __wrap_free(void *at);
void __wrap_free(void *at) {
    atomic_fetch_sub(&ledger->blocks, at != NULL);
    __real_free(at);
}

void *__real_mmap(void *at, size_t size, int prot, int flags, int fd, off_t offset);
void *__wrap_mmap(void *at, size_t size, int prot, int flags, int fd, off_t offset);
void *__wrap_mmap(void *at, size_t size, int prot, int flags, int fd, off_t offset) {
    if (failure(mmap_, HERE, 1))
        return MAP_FAILED;
    at = __real_mmap(at, size, prot, flags, fd, offset);
    if (!(flags & MAP_FIXED) && at != MAP_FAILED)
        atomic_fetch_add(&ledger->mapped, (long)size);
    return at;
}

void *__real_mremap(void *at, size_t before, size_t size, int flags, ...);
void *__wrap_mremap(void *at, size_t before, size_t size, int flags, void *to);
void *__wrap_mremap(void *at, size_t before, size_t size, int flags, void *to) {
    return failure(mremap_, HERE, 1) ? MAP_FAILED : __real_mremap(at, before, size, flags, to);
}

int __real_munmap(void *at, size_t size);
int __wrap_munmap(void *at, size_t size);
int __wrap_munmap(void *at, size_t size) {
    atomic_fetch_sub(&ledger->mapped, (long)size);
    return __real_munmap(at, size);
}

int __real_close(int fd);
int __wrap_close(int fd);
int __wrap_close(int fd) {
    int error = failure(close_, HERE, 1), done = __real_close(fd);

    if (error)
        errno = error;
    return error ? -1 : done;
}

/* ---- sockets ---- */

/* The other end is gone, it is said: let it be so. */
static int broken(int fd, int error) {
    if (error == EPIPE || error == ECONNRESET)
        __real_shutdown(fd, SHUT_RDWR);
    errno = error;
    return -1;
}

/* A socket takes no wake-up only if it is full, and then its reader has something to read. */
static int is_wake_up(const void *data, size_t size) {
    return size == JMK_FRAME_HEADER && jmk_frame_decode(data).kind == JMK_KIND_WAKE;
}

ssize_t __real_send(int fd, const void *data, size_t size, int flags);
ssize_t __wrap_send(int fd, const void *data, size_t size, int flags);
ssize_t __wrap_send(int fd, const void *data, size_t size, int flags) {
    int possible = !(fault.error == EAGAIN || condition.error == EAGAIN) || !is_wake_up(data, size);
    int error = failure(send_, HERE, possible);

    return error ? broken(fd, error) : __real_send(fd, data, size, flags);
}

ssize_t __real_sendmsg(int fd, const struct msghdr *packet, int flags);
ssize_t __wrap_sendmsg(int fd, const struct msghdr *packet, int flags);
ssize_t __wrap_sendmsg(int fd, const struct msghdr *packet, int flags) {
    int error = failure(sendmsg_, HERE, 1);

    return error ? broken(fd, error) : __real_sendmsg(fd, packet, flags);
}

int __real_sendmmsg(int fd, struct mmsghdr *packets, unsigned count, int flags);
int __wrap_sendmmsg(int fd, struct mmsghdr *packets, unsigned count, int flags);
int __wrap_sendmmsg(int fd, struct mmsghdr *packets, unsigned count, int flags) {
    int error = failure(sendmmsg_, HERE, fault.error != SHORT || count > 1);

    if (error == SHORT)
        return __real_sendmmsg(fd, packets, count / 2, flags);
    return error ? broken(fd, error) : __real_sendmmsg(fd, packets, count, flags);
}

ssize_t __real_recv(int fd, void *to, size_t size, int flags);
ssize_t __wrap_recv(int fd, void *to, size_t size, int flags);
ssize_t __wrap_recv(int fd, void *to, size_t size, int flags) {
    return failure(recv_, HERE, 1) ? -1 : __real_recv(fd, to, size, flags);
}

ssize_t __real_recvmsg(int fd, struct msghdr *packet, int flags);
ssize_t __wrap_recvmsg(int fd, struct msghdr *packet, int flags);
ssize_t __wrap_recvmsg(int fd, struct msghdr *packet, int flags) {
    return failure(recvmsg_, HERE, 1) ? -1 : __real_recvmsg(fd, packet, flags);
}

int __real_recvmmsg(int fd, struct mmsghdr *packets, unsigned count, int flags,
                    struct timespec *limit);
int __wrap_recvmmsg(int fd, struct mmsghdr *packets, unsigned count, int flags,
                    struct timespec *limit);
int __wrap_recvmmsg(int fd, struct mmsghdr *packets, unsigned count, int flags,
                    struct timespec *limit) {
    int error = failure(recvmmsg_, HERE, 1);

    if (error == SHORT)
        return __real_recvmmsg(fd, packets, 1, flags, limit);
    return error ? -1 : __real_recvmmsg(fd, packets, count, flags, limit);
}

ssize_t __real_write(int fd, const void *data, size_t size);
ssize_t __wrap_write(int fd, const void *data, size_t size);
ssize_t __wrap_write(int fd, const void *data, size_t size) {
    uint64_t most = UINT64_MAX - 1, before;

    if (failure(write_, HERE, 1)) {
        do
            eventfd_read(fd, &before);
        while (__real_write(fd, &most, sizeof most) < 0);
    }
    return __real_write(fd, data, size);
}

#endif
