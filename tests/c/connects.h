/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A scenario of its own: a client connects by jmk_connect to a server that takes it in by hand, and
 * receives one message
 */
#ifndef JMK_CONNECTS_H
#define JMK_CONNECTS_H

#include "scenario.h"

#include <stdio.h>
#include <sys/un.h>

static int listener;
static char address[32];

static void listen_somewhere(void) {
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    int size = snprintf(address, sizeof address, "@jumiks-faults-%d", (int)getpid());

    memcpy(at.sun_path + 1, address + 1, (size_t)size - 1);
    listener = __real_socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    CHECK(listener >= 0);
    CHECK_EQUAL(bind(listener, (struct sockaddr *)&at,
                     (socklen_t)(offsetof(struct sockaddr_un, sun_path) + (size_t)size)),
                0);
    CHECK_EQUAL(listen(listener, 8), 0);
}

static void send_welcome(int fd, const struct jmk_attached *attached, int shared) {
    uint64_t words[3] = {(uint64_t)(shared ? 3 : 1) << 16, attached->first_id,
                         attached->first_offset};
    int fds[2] = {jmk_server_log_fd(server), attached->cursor_fd};
    _Alignas(struct cmsghdr) uint8_t space[CMSG_SPACE(sizeof fds)] = {0};
    struct iovec part = {words, shared ? 24 : 16};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    struct cmsghdr *rights = (void *)space;

    rights->cmsg_len = CMSG_LEN(sizeof fds);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    memcpy(CMSG_DATA(rights), fds, sizeof fds);
    if (shared) {
        message.msg_control = space;
        message.msg_controllen = sizeof space;
    }
    __real_sendmsg(fd, &message, MSG_NOSIGNAL);
}

/* Shake hands with one client, which may go at any time. */
static void take_in(int fd) {
    uint8_t hello[48] = {1, 0, 0, 0, 0, 0, 3, 0, 1}, reply[64] = {0};
    struct jmk_attached attached = {.cursor_fd = -1};
    uint32_t packet = 0;
    uint64_t start;
    ssize_t size;

    jmk_socket_prepare(server, fd, &packet);
    usleep(2000); /* so that it waits for the hello, and then for the welcome */
    __real_send(fd, hello, sizeof hello, MSG_NOSIGNAL);
    size = __real_recv(fd, reply, sizeof reply, 0);
    usleep(2000);
    memcpy(&start, reply + 8, sizeof start);
    if (size == 24 && jmk_server_attach(server, fd, reply[6] & 2 ? JMK_SHARED : JMK_FRAMED, packet,
                                        start, &attached) == 0) {
        send_welcome(fd, &attached, reply[6] & 2);
        jmk_server_release(server, attached.key);
    } else {
        __real_close(fd);
    }
    if (attached.cursor_fd >= 0)
        __real_close(attached.cursor_fd);
}

static void *serve(void *nothing) {
    int fd;

    (void)nothing;
    while ((fd = accept(listener, NULL, NULL)) >= 0)
        take_in(fd);
    return NULL;
}

/* 1: it has what was published. */
static int receive_it(jmk_client *client) {
    struct jmk_batch batch = {0};
    int code, tries = 0;

    do
        code = jmk_client_receive(client, 0, SECOND, &batch);
    while (code < 0 && tries++ < GIVE_UP);
    WRONG_IF(!code && (batch.count != 1 || batch.items[0].size != 5), "another message came");
    return code == 0;
}

static int connect_and_receive(void) {
    struct jmk_connect_options options = {.address = address};
    struct jmk_connected facts;
    jmk_client *client = NULL;
    int code, had = 0;

    options.delivery = scenario->deliveries & 1u << JMK_SHARED ? JMK_SHARED : JMK_FRAMED;
    options.timeout = 5 * SECOND;
    options.start = JMK_FIRST_ID + 1000; /* which the server does not have: it hangs up */
    code = jmk_connect(&client, &options, &facts);
    WRONG_IF(!code || client, "a start beyond the end gives %d", code);
    options.start = JMK_START_OLDEST;
    code = jmk_connect(&client, &options, &facts);
    WRONG_IF(!code != !!client, "a client and code %d", code);
    WRONG_IF(code && !atomic_load(&ledger->fired), "jmk_connect gives %d with no fault", code);
    if (fault.call == pidfd_open_ && atomic_load(&ledger->fired))
        WRONG_IF(code != (fault.error == ESRCH ? JMK_E_LOST : 0),
                 "jmk_connect gives %d where its server cannot be watched", code);
    if (!client)
        return 0;
    had = receive_it(client);
    WRONG_IF(!had && !atomic_load(&ledger->fired), "nothing came");
    jmk_client_free(client);
    return had;
}

static enum outcome play_connect(void) {
    int before = count_descriptors(), had = 0;
    pthread_t thread;
    uint64_t id;

    atomic_store(&faults_on, 1);
    listen_somewhere();
    if (make_server() == 0) {
        CHECK_EQUAL(jmk_server_append(server, "hello", 5, &id), 0);
        CHECK_EQUAL(__real_pthread_create(&thread, NULL, serve, NULL), 0);
        had = connect_and_receive();
        __real_shutdown(listener, SHUT_RDWR);
        pthread_join(thread, NULL);
        jmk_server_close(server, 0);
        jmk_server_join(server, 8 * SECOND);
        jmk_server_free(server);
    }
    __real_close(listener);
    atomic_store(&faults_on, 0);
    wait_for_the_thread(before);
    WRONG_IF(count_descriptors() != before, "%d descriptors leak", count_descriptors() - before);
    WRONG_IF(atomic_load(&ledger->blocks), "%ld blocks leak", atomic_load(&ledger->blocks));
    WRONG_IF(atomic_load(&ledger->mapped), "%ld mapped bytes leak", atomic_load(&ledger->mapped));
    if (!atomic_load(&ledger->fired))
        return UNTOUCHED;
    return had ? RECOVERED : TOLD;
}

#endif
