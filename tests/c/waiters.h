/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A server without polls, its clients, and threads that wait
 *
 * No wait looks again by itself here (jmk_no_polls), and none has an end of its own: whoever is not woken
 * hangs, and the alarm says in which scenario.
 */
#ifndef JMK_WAITERS_H
#define JMK_WAITERS_H

#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>

#include "check.h"
#include "common/os.h"
#include "delays.h"
#include "server/state.h"

#define HANGS 20 /* s, for what takes some ms */
#define SOON 8000 /* ms, for what is promised within a second */
#define SIZE 8
#define LARGE 50000
#define FAR_OFF (600 * JMK_SECOND)

static jmk_server *server;
static const char zeros[LARGE];
static const char *scenario = "none";

static inline void say_what_hangs(int number) {
    (void)number;
    fprintf(stderr, "nobody wakes what waits: %s, seed %u\n", scenario, atomic_load(&delay_seed));
    _exit(1);
}

static inline void begin(const char *name) {
    scenario = name;
    atomic_store(&sleeps, 0);
    alarm(HANGS);
}

/* ---- a server and its clients ---- */

static inline void make_server(enum jmk_policy policy, uint64_t max_lag, int64_t patience) {
    struct jmk_config config = {.log_size = 1 << 20,
                                .max_lag = max_lag,
                                .patience = patience,
                                .policy = policy,
                                .max_message = 1 << 17,
                                .max_clients = 16,
                                .send_buffer = 196608};

    CHECK_EQUAL(jmk_server_new(&server, &config), 0);
}

struct peer {
    jmk_client *client; /* NULL if it is played by hand */
    uint64_t key;
    int fd;
};

/* False if the server closes. */
static inline bool try_attach(struct peer *peer, uint32_t delivery, bool by_hand, bool release) {
    struct jmk_client_config config = {
        .arena_size = 1 << 20, .delivery = delivery, .max_message = 1 << 17, .max_packet = 262144};
    struct jmk_attached attached;
    uint32_t max_packet = 0;
    int ends[2], error;

    CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends) == 0);
    CHECK_EQUAL(jmk_socket_prepare(server, ends[0], &max_packet), 0);
    error = jmk_server_attach(server, ends[0], delivery, delivery == JMK_CLASSIC ? 0 : max_packet,
                              0, &attached);
    if (error == JMK_E_CLOSED) {
        close(ends[0]);
        close(ends[1]);
        return false;
    }
    CHECK_EQUAL(error, 0);
    *peer = (struct peer){NULL, attached.key, ends[1]};
    config.first_id = attached.first_id;
    config.log_fd = jmk_server_log_fd(server);
    config.cursor_fd = attached.cursor_fd;
    config.first_offset = attached.first_offset;
    if (!by_hand)
        CHECK_EQUAL(jmk_client_new(&peer->client, peer->fd, &config), 0);
    if (attached.cursor_fd >= 0)
        close(attached.cursor_fd);
    if (release)
        jmk_server_release(server,
                           attached.key); /* in a storm the server may have closed meanwhile */
    return true;
}

static inline struct peer attach(uint32_t delivery, bool by_hand, bool release) {
    struct peer peer;

    CHECK(try_attach(&peer, delivery, by_hand, release));
    return peer;
}

static inline struct peer join(uint32_t delivery) {
    return attach(delivery, false, true);
}

static inline void leave(struct peer *peer) {
    if (peer->client)
        jmk_client_free(peer->client);
    else
        close(peer->fd);
}

static inline uint64_t publish(size_t size, int count) {
    uint64_t id = 0;

    for (int i = 0; i < count; i++) {
        CHECK_EQUAL(jmk_server_append(server, zeros, size, &id), 0);
        jmk_server_kick(server);
    }
    return id;
}

/* Publish as slowly as a stream in which the thread ignores acks, until it does. */
static inline uint64_t publish_slowly(size_t size, int count) {
    uint64_t id = 0;

    for (int i = 0; i < count; i++) {
        poll(NULL, 0, 1);
        id = publish(size, 1);
    }
    return id;
}

static inline void receive_to(struct peer *peer, uint64_t id) {
    struct jmk_batch batch;
    uint64_t last = 0;

    while (last < id) {
        CHECK_EQUAL(jmk_client_receive(peer->client, 0, -1, &batch), 0);
        last = batch.first_id + batch.count - 1;
    }
}

static inline void ack(struct peer *peer, uint64_t id) {
    CHECK_EQUAL(jmk_client_ack(peer->client, id, JMK_SECOND), 0);
}

static inline struct jmk_account account_of(const struct peer *peer) {
    struct jmk_account account;

    CHECK_EQUAL(jmk_server_account(server, peer->key, &account), 0);
    return account;
}

static inline void await_sent(const struct peer *peer, uint64_t id) {
    while (account_of(peer).sent_id < id)
        poll(NULL, 0, 1);
}

static inline void await_acked(const struct peer *peer, uint64_t id) {
    while (account_of(peer).acked_id < id)
        poll(NULL, 0, 1);
}

/* Let the thread park, so that nothing but a wake-up has it look. */
static inline void await_parked(void) {
    do
        poll(NULL, 0, 2);
    while (!atomic_load(&server->parked));
}

/* The thread has nothing to do, and so does nothing: it does not look over and over. */
static inline uint64_t rounds_within(int ms) {
    uint64_t before = atomic_load(&server->rounds);

    poll(NULL, 0, ms);
    return atomic_load(&server->rounds) - before;
}

/* Wait for an event of a client; it has to be told of. */
static inline void await_event(enum jmk_event_kind kind) {
    struct pollfd polled = {.fd = jmk_server_event_fd(server), .events = POLLIN};
    struct jmk_event event;

    for (;;) {
        CHECK_EQUAL(poll(&polled, 1, SOON), 1);
        while (jmk_server_next_event(server, &event) == 0) {
            if (event.kind == (uint32_t)kind)
                return;
        }
    }
}

/* ---- those who wait ---- */

enum wait { ROOM, ACKED, END, MESSAGE };

struct waiter {
    pthread_t thread;
    enum wait wait;
    uint64_t id;
    struct peer *peer;
    int result;
};

static inline void *wait_in_thread(void *argument) {
    struct waiter *waiter = argument;
    struct jmk_account holder;
    struct jmk_batch batch;

    counted = true;
    if (waiter->wait == ROOM)
        waiter->result = jmk_server_wait_room(server, SIZE, -1, &holder, NULL);
    else if (waiter->wait == ACKED)
        waiter->result = jmk_server_wait_acked(server, waiter->id, -1, &holder);
    else if (waiter->wait == END)
        waiter->result = jmk_server_join(server, -1);
    else
        waiter->result = jmk_client_receive(waiter->peer->client, 0, -1, &batch);
    return NULL;
}

static inline void await_sleeps(int count) {
    while (atomic_load(&sleeps) < count)
        poll(NULL, 0, 1);
}

/* Have it wait, and asleep: what it looked at last cannot have been what wakes it. */
static inline void start(struct waiter *waiter) {
    int before = atomic_load(&sleeps);

    CHECK(pthread_create(&waiter->thread, NULL, wait_in_thread, waiter) == 0);
    await_sleeps(before + 1);
}

/* Have it wait, but stop it at a point on its way; go() lets it go on. */
static inline void start_and_stop(struct waiter *waiter, int point) {
    atomic_store(&stopped, false);
    atomic_store(&may_go, false);
    atomic_store(&stop_at, point);
    CHECK(pthread_create(&waiter->thread, NULL, wait_in_thread, waiter) == 0);
    while (!atomic_load(&stopped))
        poll(NULL, 0, 1);
}

static inline void go(void) {
    atomic_store(&may_go, true);
}

static inline void wakes(struct waiter *waiter, int result) {
    CHECK(pthread_join(waiter->thread, NULL) == 0);
    CHECK_EQUAL(waiter->result, result);
}

/* Turn polls off, and whoever hangs into a failure. */
static inline void prepare(void) {
    signal(SIGALRM, say_what_hangs);
    jmk_no_polls = true;
    jmk_at_point = at_point;
}

#endif
