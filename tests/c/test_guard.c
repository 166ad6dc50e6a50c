/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sockets whose peers send descriptors, and closes that take long
 *
 * The descriptor is a TCP socket that lingers over unsent data before a closed window: whoever closes
 * it last sleeps for LINGER, or until the other end is closed.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "common/guard.h"

#define LINGER 40      /* s */
#define SOON 10        /* s: far below that, and far above what anything here takes */
#define THREADS 32     /* of the disposer */
#define MANY (2 * THREADS)

static time_t now(void) {
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec;
}

static void nap(void) {
    nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
}

#define WAIT_UNTIL(condition)                                                                      \
    do {                                                                                           \
        time_t deadline_ = now() + 2 * SOON;                                                       \
        while (!(condition)) {                                                                     \
            CHECK(now() < deadline_);                                                              \
            nap();                                                                                 \
        }                                                                                          \
    } while (0)

/* A socket that lingers; *other ends that once it is closed. */
static int make_lingering(int *other) {
    static const char data[65536];
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    struct linger linger = {1, LINGER};
    socklen_t size = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM, 0), fd = socket(AF_INET, SOCK_STREAM, 0);

    CHECK_EQUAL(bind(listener, (struct sockaddr *)&address, size), 0);
    CHECK_EQUAL(listen(listener, 1), 0);
    CHECK_EQUAL(getsockname(listener, (struct sockaddr *)&address, &size), 0);
    CHECK_EQUAL(connect(fd, (struct sockaddr *)&address, size), 0);
    *other = accept(listener, NULL, NULL);
    CHECK(*other >= 0);
    close(listener);
    while (send(fd, data, sizeof data, MSG_DONTWAIT) > 0)
        continue;
    CHECK_EQUAL(setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger), 0);
    return fd;
}

static void send_with(int sock, const int *fds, size_t count) {
    char room[CMSG_SPACE(253 * sizeof(int))] = {0};
    struct iovec part = {"packet", 6};
    struct msghdr packet = {.msg_iov = &part, .msg_iovlen = 1};

    if (count) {
        packet.msg_control = room;
        packet.msg_controllen = CMSG_SPACE(count * sizeof(int));
        *CMSG_FIRSTHDR(&packet) = (struct cmsghdr){.cmsg_len = CMSG_LEN(count * sizeof(int)),
                                                   .cmsg_level = SOL_SOCKET,
                                                   .cmsg_type = SCM_RIGHTS};
        memcpy(CMSG_DATA(CMSG_FIRSTHDR(&packet)), fds, count * sizeof(int));
    }
    /* musl's sendmsg refuses as many descriptors as the kernel takes. */
    CHECK_EQUAL(syscall(SYS_sendmsg, sock, &packet, MSG_NOSIGNAL), 6);
}

static int count(const char *directory) {
    DIR *all = opendir(directory);
    int found = 0;

    CHECK(all != NULL);
    while (readdir(all))
        found++;
    closedir(all);
    return found;
}

static void pair(int *ends) {
    CHECK_EQUAL(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
}

static void a_close_that_takes_long_is_not_waited_for(void) {
    int other, fd = make_lingering(&other);
    time_t begin = now();

    jmk_dispose(fd);
    CHECK(now() - begin < SOON);
    WAIT_UNTIL(fcntl(fd, F_GETFD) < 0); /* its number is free at once */
    CHECK_EQUAL(jmk_dispose_pending(), 1);
    close(other);
    WAIT_UNTIL(jmk_dispose_pending() == 0);
}

static void threads_are_bounded_and_end(void) {
    int others[MANY], before = count("/proc/self/task"), ends[2];
    time_t begin = now();

    for (int i = 0; i < MANY; i++)
        jmk_dispose(make_lingering(&others[i]));
    CHECK(now() - begin < SOON);
    CHECK_EQUAL(jmk_dispose_pending(), MANY);
    CHECK(count("/proc/self/task") <= before + THREADS);
    pair(ends);
    jmk_dispose(ends[0]);
    CHECK_EQUAL(jmk_dispose_pending(), MANY + 1); /* behind the others */
    for (int i = 0; i < MANY; i++)
        close(others[i]);
    WAIT_UNTIL(jmk_dispose_pending() == 0);
    WAIT_UNTIL(count("/proc/self/task") <= before);
    CHECK(recv(ends[1], &begin, 1, MSG_DONTWAIT) == 0);
    close(ends[1]);
}

#ifndef __SANITIZE_THREAD__ /* which lets a child of threads start none */
/* What the parent has under way is its own; a child's are closed. */
static void a_forked_child_closes_too(void) {
    int other, fd = make_lingering(&other), ends[2], status;
    pid_t child;

    pair(ends);
    jmk_dispose(fd);
    WAIT_UNTIL(fcntl(fd, F_GETFD) < 0); /* a child has copies of what waits */
    child = fork();
    CHECK(child >= 0);
    if (!child) {
        alarm(SOON);
        jmk_dispose(ends[0]);
        while (fcntl(ends[0], F_GETFD) >= 0 || jmk_dispose_pending())
            nap();
        _exit(0);
    }
    CHECK_EQUAL(waitpid(child, &status, 0), child);
    CHECK_EQUAL(status, 0);
    close(other);
    WAIT_UNTIL(jmk_dispose_pending() == 0);
    close(ends[0]);
    close(ends[1]);
}

static void without_a_thread_it_closes_here(void) {
    struct rlimit before, none = {0, 0};
    int ends[2], status;
    pid_t child = fork();

    CHECK(child >= 0);
    if (!child) {
        pair(ends);
        CHECK_EQUAL(getrlimit(RLIMIT_NPROC, &before), 0);
        none.rlim_max = before.rlim_max;
        /* Root may start any number. */
        if (geteuid() != 0 || setuid(65534) == 0)
            CHECK_EQUAL(setrlimit(RLIMIT_NPROC, &none), 0);
        jmk_dispose(ends[0]);
        WAIT_UNTIL(recv(ends[1], &status, 1, MSG_DONTWAIT) == 0);
        CHECK(fcntl(ends[0], F_GETFD) < 0);
        CHECK_EQUAL(jmk_dispose_pending(), 0);
        _exit(0);
    }
    CHECK_EQUAL(waitpid(child, &status, 0), child);
    CHECK_EQUAL(status, 0);
}
#endif

static void nothing_is_disposed_of_as_nothing(void) {
    errno = 7;
    jmk_dispose(-1);
    CHECK_EQUAL(errno, 7);
    CHECK_EQUAL(jmk_dispose_pending(), 0);
}

static void a_packet_with_descriptors_is_seen_and_stays_unread(void) {
    enum jmk_guard guard;
    int ends[2], other, fd = make_lingering(&other), before;
    time_t begin;

    pair(ends);
    guard = jmk_guard_of(ends[0]);
    CHECK_EQUAL(guard, JMK_GUARD_ALWAYS);
    CHECK(jmk_guard_check(&guard, ends[0], MSG_DONTWAIT) == -EAGAIN);
    send_with(ends[1], NULL, 0);
    send_with(ends[1], &fd, 1);
    close(fd);
    before = count("/proc/self/fd");
    begin = now();
    CHECK_EQUAL(jmk_guard_check(&guard, ends[0], MSG_DONTWAIT), 0);
    CHECK_EQUAL(recv(ends[0], NULL, 0, MSG_DONTWAIT | MSG_TRUNC), 6);
    for (int i = 0; i < 3; i++)
        CHECK_EQUAL(jmk_guard_check(&guard, ends[0], MSG_DONTWAIT), JMK_E_PROTOCOL);
    CHECK_EQUAL(count("/proc/self/fd"), before);
    jmk_guard_close(guard, &ends[0]);
    CHECK(ends[0] < 0 && now() - begin < SOON);
    close(ends[1]);
    close(other);
    WAIT_UNTIL(jmk_dispose_pending() == 0);
}

/* Also where there is no descriptor to spare, and a packet brings the most that there can be. */
static void a_full_table_closes_nothing_here(void) {
    struct rlimit before, full;
    enum jmk_guard guard = JMK_GUARD_ALWAYS;
    int ends[2], other, fds[253];
    time_t begin;

    pair(ends);
    fds[0] = make_lingering(&other);
    for (int i = 1; i < 253; i++)
        fds[i] = fds[0];
    send_with(ends[1], fds, 253);
    close(fds[0]);
    CHECK_EQUAL(getrlimit(RLIMIT_NOFILE, &before), 0);
    full = (struct rlimit){3, before.rlim_max};
    CHECK_EQUAL(setrlimit(RLIMIT_NOFILE, &full), 0);
    begin = now();
    CHECK_EQUAL(jmk_guard_check(&guard, ends[0], MSG_DONTWAIT), JMK_E_PROTOCOL);
    jmk_guard_close(guard, &ends[0]);
    CHECK(now() - begin < SOON);
    CHECK_EQUAL(setrlimit(RLIMIT_NOFILE, &before), 0);
    close(ends[1]);
    close(other);
    WAIT_UNTIL(jmk_dispose_pending() == 0);
}

static void an_empty_packet_with_a_descriptor_is_seen(void) {
    enum jmk_guard guard = JMK_GUARD_ALWAYS;
    char room[CMSG_SPACE(sizeof(int))] = {0};
    struct msghdr packet = {.msg_control = room, .msg_controllen = sizeof room};
    int ends[2];

    pair(ends);
    *CMSG_FIRSTHDR(&packet) = (struct cmsghdr){
        .cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
    memcpy(CMSG_DATA(CMSG_FIRSTHDR(&packet)), &ends[1], sizeof(int));
    CHECK_EQUAL(sendmsg(ends[1], &packet, 0), 0);
    CHECK_EQUAL(jmk_guard_check(&guard, ends[0], MSG_DONTWAIT), JMK_E_PROTOCOL);
    jmk_guard_close(guard, &ends[0]);
    close(ends[1]);
    WAIT_UNTIL(jmk_dispose_pending() == 0);
}

static void a_guard_goes_once_its_socket_was_found_empty(void) {
    enum jmk_guard guard = JMK_GUARD_UNTIL_EMPTY;
    int ends[2];

    pair(ends);
    send_with(ends[1], NULL, 0);
    CHECK_EQUAL(jmk_guard_check(&guard, ends[0], MSG_DONTWAIT), 0);
    CHECK_EQUAL(guard, JMK_GUARD_UNTIL_EMPTY);
    CHECK_EQUAL(recv(ends[0], NULL, 0, 0), 0);
    CHECK(jmk_guard_check(&guard, ends[0], MSG_DONTWAIT) == -EAGAIN);
    CHECK_EQUAL(guard, JMK_GUARD_NONE);
    jmk_guard_close(guard, &ends[0]);
    CHECK_EQUAL(jmk_dispose_pending(), 0);
    close(ends[1]);
}

int main(void) {
    a_close_that_takes_long_is_not_waited_for();
    threads_are_bounded_and_end();
#ifndef __SANITIZE_THREAD__
    a_forked_child_closes_too();
    without_a_thread_it_closes_here();
#endif
    nothing_is_disposed_of_as_nothing();
    a_packet_with_descriptors_is_seen_and_stays_unread();
    a_full_table_closes_nothing_here();
    an_empty_packet_with_a_descriptor_is_seen();
    a_guard_goes_once_its_socket_was_found_empty();
    return 0;
}
