/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Times, sizes and what is done where the system refuses a call
 *
 * A time is tried on a clock that stands still, where that can be; where the kernel measures it, it
 * has a lower bound, and an upper one of some seconds.
 */
#include <sys/mman.h>

#include "server/pump.h"
#include "waiters.h"

#define MOMENT (JMK_SECOND / 20)

static char packet[1 << 18];
static const char large[(1 << 17) + 1];

/* ---- a clock that stands still for this thread, and a call that fails ---- */

static _Thread_local int64_t the_time; /* 0: as it is */

int __real_clock_gettime(clockid_t clock, struct timespec *out);
int __wrap_clock_gettime(clockid_t clock, struct timespec *out);

int __wrap_clock_gettime(clockid_t clock, struct timespec *out) {
    if (!the_time)
        return __real_clock_gettime(clock, out);
    *out = (struct timespec){the_time / JMK_SECOND, the_time % JMK_SECOND};
    return 0;
}

static bool no_such_flag; /* as on kernels before Linux 6.3 */

int __real_memfd_create(const char *name, unsigned flags);
int __wrap_memfd_create(const char *name, unsigned flags);

int __wrap_memfd_create(const char *name, unsigned flags) {
    if (no_such_flag && flags & ~(MFD_CLOEXEC | MFD_ALLOW_SEALING)) {
        errno = EINVAL;
        return -1;
    }
    return __real_memfd_create(name, flags);
}

/* ---- acks ---- */

static uint64_t acked_by(const struct peer *peer) {
    return jmk_client_acked_id(peer->client);
}

/* In a slow stream what was handled is acked with the first receive that is 10 ms behind the last ack. */
static void acks_go_out_every_ten_ms(void) {
    struct jmk_batch batch;
    struct peer peer;
    uint64_t id;

    make_server(JMK_BLOCK, 0, -1);
    peer = join(JMK_FRAMED);
    the_time = jmk_now() + JMK_SECOND;
    id = publish(SIZE, 1);
    receive_to(&peer, id);
    ack(&peer, id);
    the_time += 9999999;
    for (int i = 0; i < 2; i++) {
        id = publish(SIZE, 2);
        await_sent(&peer, id);
        CHECK_EQUAL(jmk_client_receive(peer.client, 0, -1, &batch), 0);
        /* It has the next message, so it does not wait, and would ack before that. */
        publish(SIZE, 1);
        await_sent(&peer, id + 1);
        CHECK_EQUAL(jmk_client_receive(peer.client, id, -1, &batch), 0);
        CHECK_EQUAL(acked_by(&peer), i == 0 ? JMK_FIRST_ID : id);
        the_time++;
    }
    the_time = 0;
    leave(&peer);
}

/* An ack by hand waits for as long as it may for a socket that takes no more, and then gives up. */
static void an_ack_waits_for_its_time(void) {
    struct jmk_client_config config = {.arena_size = 1 << 20,
                                       .delivery = JMK_CLASSIC,
                                       .max_message = 100,
                                       .max_packet = 262144,
                                       .first_id = JMK_FIRST_ID};
    uint64_t word = 0, id = JMK_FIRST_ID;
    struct jmk_batch batch;
    jmk_client *client;
    int64_t begin;
    int ends[2];

    CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends) == 0);
    while (send(ends[1], &word, sizeof word, MSG_DONTWAIT) > 0)
        ;
    CHECK_EQUAL(jmk_client_new(&client, ends[1], &config), 0);
    id = htole64(id);
    CHECK(send(ends[0], &id, sizeof id, 0) == sizeof id);
    CHECK_EQUAL(jmk_client_receive(client, 0, -1, &batch), 0);
    begin = jmk_now();
    CHECK_EQUAL(jmk_client_ack(client, batch.first_id, MOMENT), 0);
    CHECK(jmk_now() - begin > MOMENT * 9 / 10 && jmk_now() - begin < 5 * JMK_SECOND);
    CHECK(jmk_client_acked_id(client) < batch.first_id);
    close(ends[0]); /* and for nobody who is gone */
    CHECK_EQUAL(jmk_client_ack(client, batch.first_id, FAR_OFF), 0);
    jmk_client_free(client);
}

/* A send finds out that the client is gone, before anybody has read what it sent. */
static void acks_count_that_came_before_the_end(void) {
    static const uint32_t deliveries[] = {JMK_CLASSIC, JMK_FRAMED};

    for (size_t i = 0; i < 2; i++) {
        uint64_t id, word = htole64(JMK_FIRST_ID);
        struct jmk_event event;
        struct peer peer;

        make_server(JMK_BLOCK, 0, -1);
        peer = attach(deliveries[i], true, true);
        await_sent(&peer, publish(SIZE, 1));
        await_parked();
        jmk_server_lock(server);
        CHECK(send(peer.fd, &word, sizeof word, 0) == sizeof word);
        leave(&peer);
        CHECK_EQUAL(jmk_server_append(server, zeros, SIZE, &id), 0);
        jmk_pump_send(server);
        jmk_server_unlock(server);
        CHECK_EQUAL(jmk_server_next_event(server, &event), 0);
        CHECK_EQUAL(event.kind, JMK_EVENT_GONE);
        CHECK_EQUAL(event.account.reason, JMK_R_LEFT);
        CHECK_EQUAL(event.account.acked_id, JMK_FIRST_ID);
        server = jmk_server_free(server);
    }
}

/* ---- waits ---- */

static int wait_for_a_moment(enum wait wait, struct peer *peer, uint64_t id, int64_t timeout) {
    struct jmk_account holder;
    struct jmk_batch batch;

    if (wait == ROOM)
        return jmk_server_wait_room(server, SIZE, timeout, &holder, NULL);
    if (wait == ACKED)
        return jmk_server_wait_acked(server, id, timeout, &holder);
    if (wait == END)
        return jmk_server_join(server, timeout);
    return jmk_client_receive(peer->client, id, timeout, &batch);
}

static void a_wait_ends_at_its_deadline(void) {
    static const uint32_t modes[] = {JMK_CLASSIC, JMK_FRAMED, JMK_SHARED};
    struct peer peer;
    uint64_t id;

    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++) {
        make_server(JMK_BLOCK, 1, -1);
        peer = join(modes[i]);
        id = publish(SIZE, 1);
        receive_to(&peer, id);
        for (enum wait wait = ROOM; wait <= MESSAGE; wait++) {
            int64_t begin = jmk_now();
            if (modes[i] != JMK_SHARED && wait != MESSAGE)
                continue;
            CHECK_EQUAL(wait_for_a_moment(wait, &peer, id, MOMENT), JMK_E_TIMEOUT);
            CHECK(jmk_now() - begin >= MOMENT && jmk_now() - begin < 5 * JMK_SECOND);
        }
        leave(&peer);
        jmk_server_free(server);
    }
    make_server(JMK_BLOCK, 0, -1);
}

/*
 * A signal may come right before a wait, or to another thread: each ends within a second for a look, and a
 * publisher's within a tenth.
 */
static void *look_at_signals(void *argument) {
    struct waiter *waiter = argument;
    int64_t begin = jmk_now();

    do
        waiter->result = wait_for_a_moment(waiter->wait, waiter->peer, waiter->id, FAR_OFF);
    while (waiter->result == 0);
    CHECK_EQUAL(waiter->result, -EINTR);
    CHECK(jmk_now() - begin < (waiter->wait == MESSAGE ? 5 : 2) * JMK_SECOND);
    return NULL;
}

static void a_long_wait_looks_at_signals(void) {
    struct peer held, peers[3];
    struct waiter waiters[] = {{.wait = ROOM},
                               {.wait = ACKED},
                               {.wait = MESSAGE, .peer = &peers[0]},
                               {.wait = MESSAGE, .peer = &peers[1]},
                               {.wait = MESSAGE, .peer = &peers[2]}};
    size_t count = sizeof waiters / sizeof *waiters;

    jmk_no_polls = false;
    make_server(JMK_BLOCK, 1, -1);
    held = join(JMK_FRAMED);
    waiters[1].id = publish(SIZE, 1);
    for (uint32_t mode = JMK_CLASSIC; mode <= JMK_SHARED; mode++)
        peers[mode] = join(mode);
    for (size_t i = 0; i < count; i++)
        CHECK(pthread_create(&waiters[i].thread, NULL, look_at_signals, &waiters[i]) == 0);
    for (size_t i = 0; i < count; i++)
        pthread_join(waiters[i].thread, NULL);
    jmk_no_polls = true;
    for (int i = 0; i < 3; i++)
        leave(&peers[i]);
    leave(&held);
}

/* ---- sizes ---- */

/* Two packets go into an empty socket, or a client that reads one would wait for the other. */
static void a_socket_takes_two_packets(void) {
    for (uint32_t buffer = 4096; buffer <= 1 << 18; buffer *= 2) {
        static const char data[1 << 17];
        uint32_t most = 0;
        int ends[2];

        make_server(JMK_BLOCK, 0, -1);
        server->config.send_buffer = buffer;
        CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends) == 0);
        CHECK_EQUAL(jmk_socket_prepare(server, ends[0], &most), 0);
        CHECK(most >= JMK_LEAST_PACKET && most <= sizeof data);
        for (int i = 0; i < 2; i++)
            CHECK(send(ends[0], data, most, MSG_DONTWAIT) == (ssize_t)most);
        most = JMK_LEAST_PACKET + 8; /* it is asked for */
        CHECK_EQUAL(jmk_socket_prepare(server, ends[0], &most), 0);
        CHECK_EQUAL(most, JMK_LEAST_PACKET + 8);
        close(ends[0]);
        close(ends[1]);
        jmk_server_free(server);
    }
    make_server(JMK_BLOCK, 0, -1);
}

static void the_largest_message_comes_in_fragments(void) {
    struct jmk_slice batch[] = {{large, sizeof large - 1}, {large, sizeof large}};
    struct peer peer;
    size_t done = 0;
    uint64_t id;

    make_server(JMK_BLOCK, 0, -1);
    server->config.send_buffer = 8192;
    peer = join(JMK_FRAMED);
    CHECK_EQUAL(jmk_server_append(server, large, sizeof large - 1, &id), 0);
    jmk_server_kick(server);
    receive_to(&peer, id);
    ack(&peer, id);
    CHECK_EQUAL(jmk_server_append(server, large, sizeof large, &id), JMK_E_TOO_LARGE);
    CHECK_EQUAL(jmk_server_append_many(server, &batch[0], 1, &done, &id), 0);
    receive_to(&peer, id);
    ack(&peer, id);
    done = 0;
    CHECK_EQUAL(jmk_server_append_many(server, &batch[1], 1, &done, &id), JMK_E_TOO_LARGE);
    leave(&peer);
}

/* ---- limits ---- */

/* As a publisher does that waits for nobody. */
static uint64_t publish_at_once(int count) {
    struct jmk_account holder;
    uint64_t id = 0;

    for (int i = 0; i < count; i++) {
        CHECK_EQUAL(jmk_server_wait_room(server, SIZE, 0, &holder, NULL), 0);
        id = publish(SIZE, 1);
    }
    return id;
}

/* The server takes a moment to welcome it. What is published meanwhile is behind it at its start, as history. */
static void a_client_without_its_welcome_holds_nobody_up(void) {
    for (uint32_t mode = JMK_CLASSIC; mode <= JMK_SHARED; mode++) {
        for (enum jmk_policy policy = JMK_DISCONNECT; policy <= JMK_SKIP; policy++) {
            struct jmk_account holder;
            struct jmk_batch batch;
            struct peer peer;
            uint64_t id;

            make_server(policy, 4, 0);
            peer = attach(mode, false, false);
            publish(SIZE, 4);
            CHECK_EQUAL(jmk_server_append(server, zeros, SIZE, &id), JMK_E_FULL);
            publish_at_once(6);
            CHECK_EQUAL(jmk_server_release(server, peer.key), 0);
            id = publish(SIZE, 4);
            CHECK_EQUAL(jmk_server_append(server, zeros, SIZE, &id), JMK_E_FULL);
            while (acked_by(&peer) < id) { /* it is offered max_lag at a time */
                CHECK_EQUAL(jmk_client_receive(peer.client, acked_by(&peer), -1, &batch), 0);
                ack(&peer, batch.first_id + batch.count - 1);
            }
            CHECK_EQUAL(jmk_server_wait_acked(server, id, FAR_OFF, &holder), 0);
            publish(SIZE, 4);
            CHECK_EQUAL(jmk_server_append(server, zeros, SIZE, &id), JMK_E_FULL);
            leave(&peer);
            jmk_server_free(server);
        }
    }
    make_server(JMK_BLOCK, 0, -1);
}

/* ---- ends that other processes' copies of a socket must not hide ---- */

enum end { SERVERS, CLIENTS, HALF }; /* HALF: the client says that it sends no more, and reads on */

static void a_copy_hides_no_end(uint32_t mode, enum end end) {
    struct pollfd polled = {.events = POLLIN};
    struct peer peer;
    int copy;

    make_server(JMK_BLOCK, 0, -1);
    peer = attach(mode, end != CLIENTS, true);
    await_parked();
    jmk_server_lock(server);
    copy = dup(end != CLIENTS ? jmk_server_find(server, peer.key)->fd : peer.fd);
    jmk_server_unlock(server);
    polled.fd = peer.fd;
    if (end == HALF) {
        shutdown(peer.fd, SHUT_WR);
        CHECK_EQUAL(poll(&polled, 1, SOON), 1);
        CHECK(recv(peer.fd, packet, sizeof packet, MSG_DONTWAIT) == 0);
    } else if (end == SERVERS) {
        jmk_server_disconnect(server, peer.key, JMK_R_KICKED);
        CHECK_EQUAL(poll(&polled, 1, 0), 1);
        if (mode != JMK_CLASSIC)
            CHECK(recv(peer.fd, packet, sizeof packet, MSG_DONTWAIT) > 0); /* the goodbye */
        CHECK(recv(peer.fd, packet, sizeof packet, MSG_DONTWAIT) == 0);
    }
    leave(&peer);
    if (end == CLIENTS)
        await_event(JMK_EVENT_GONE);
    close(copy);
}

static void no_end_is_hidden(void) {
    for (uint32_t mode = JMK_CLASSIC; mode <= JMK_SHARED; mode++) {
        for (enum end end = SERVERS; end <= HALF; end++) {
            a_copy_hides_no_end(mode, end);
            jmk_server_free(server);
        }
    }
    make_server(JMK_BLOCK, 0, -1);
}

/* ---- figures ---- */

static void rounds_are_those_of_the_thread_and_of_publishers(void) {
    struct peer peers[8];
    struct jmk_stats stats;

    make_server(JMK_BLOCK, 0, -1);
    peers[0] = join(JMK_FRAMED);
    do {
        publish_slowly(SIZE, 1);
        CHECK_EQUAL(jmk_server_stats(server, &stats), 0);
    } while (stats.inline_rounds <= atomic_load(&server->rounds));
    CHECK(stats.rounds > stats.inline_rounds || atomic_load(&server->rounds) == 0);
    for (int i = 1; i < 8; i++) /* for so many the thread does it */
        peers[i] = join(JMK_FRAMED);
    await_sent(&peers[7], publish_slowly(SIZE, 1));
    await_parked();
    CHECK_EQUAL(jmk_server_stats(server, &stats), 0);
    CHECK(stats.rounds > stats.inline_rounds);
    for (int i = 0; i < 8; i++)
        leave(&peers[i]);
}

/* ---- calls that are refused ---- */

/* The time is in ns with one call and in ms with the other, and no wait becomes shorter. */
static void epoll_waits_with_either_call(void) {
    static const int errors[] = {0, ENOSYS, EPERM};
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = 7}, found;
    int epoll_fd = epoll_create1(0), fd = eventfd(0, 0);
    uint64_t one = 1;

    make_server(JMK_BLOCK, 0, -1);
    CHECK(epoll_fd >= 0 && fd >= 0);
    CHECK(epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0);
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++) {
        int64_t begin = jmk_now();
        refused_call = errors[i] ? 441 /* epoll_pwait2 */ : -1;
        refused_with = errors[i];
        CHECK_EQUAL(jmk_epoll_wait(epoll_fd, &found, 1, MOMENT + 1), 0);
        CHECK(jmk_now() - begin > MOMENT && jmk_now() - begin < 5 * JMK_SECOND);
        begin = jmk_now();
        CHECK_EQUAL(jmk_epoll_wait(epoll_fd, &found, 1, 1), 0);
        CHECK(!errors[i] || jmk_now() - begin > JMK_SECOND / 2000);
        CHECK(write(fd, &one, sizeof one) == sizeof one);
        CHECK_EQUAL(jmk_epoll_wait(epoll_fd, &found, 1, FAR_OFF), 1);
        CHECK_EQUAL(found.data.u64, 7);
        CHECK(read(fd, &one, sizeof one) == sizeof one);
    }
    refused_with = EINTR;
    CHECK_EQUAL(jmk_epoll_wait(epoll_fd, &found, 1, FAR_OFF), -1);
    refused_call = -1;
    close(fd);
    close(epoll_fd);
}

/* Else each sleep would begin with a call in vain. */
static void a_wait_for_two_words_that_is_refused_is_not_tried_again(void) {
    static const int errors[] = {ENOSYS, EPERM};
    _Atomic uint32_t word = 1;
    struct jmk_seen seen[2] = {{&word, 1}, {&word, 1}};

    make_server(JMK_BLOCK, 0, -1);
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++) {
        refused_call = SYS_futex_waitv;
        refused_with = errors[i];
        CHECK_EQUAL(jmk_futex_wait_two(seen, jmk_now() + FAR_OFF), -errors[i]);
        CHECK(atomic_load(&jmk_no_futex_waitv));
        atomic_store(&jmk_no_futex_waitv, false);
    }
    refused_call = -1;
}

static void memory_is_shared_on_older_kernels(void) {
    struct peer peer;

    no_such_flag = true;
    make_server(JMK_BLOCK, 0, -1);
    CHECK(jmk_server_log_fd(server) >= 0);
    peer = join(JMK_SHARED);
    receive_to(&peer, publish(SIZE, 1));
    leave(&peer);
    no_such_flag = false;
}

#define UNIT(function) {#function, function}

static const struct {
    const char *name;
    void (*run)(void);
} units[] = {
    UNIT(acks_go_out_every_ten_ms),
    UNIT(an_ack_waits_for_its_time),
    UNIT(acks_count_that_came_before_the_end),
    UNIT(a_wait_ends_at_its_deadline),
    UNIT(a_long_wait_looks_at_signals),
    UNIT(a_socket_takes_two_packets),
    UNIT(the_largest_message_comes_in_fragments),
    UNIT(a_client_without_its_welcome_holds_nobody_up),
    UNIT(no_end_is_hidden),
    UNIT(rounds_are_those_of_the_thread_and_of_publishers),
    UNIT(epoll_waits_with_either_call),
    UNIT(a_wait_for_two_words_that_is_refused_is_not_tried_again),
    UNIT(memory_is_shared_on_older_kernels),
};

int main(void) {
    prepare();
    for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
        begin(units[i].name);
        units[i].run();
        server = jmk_server_free(server);
    }
    return 0;
}
