/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Publishers x clients x cuts x close on the core alone
 *
 * Meant to be built with -fsanitize=thread, which the Python tests cannot be. Three publishers (one
 * by one, in batches, by reservations) against nine clients, classic, framed and shared, some of which
 * are slow, ack by hand or leave in the middle, under each policy. One more thread disconnects clients,
 * closes them under their receiver's hands, waits for acks and asks for figures. The server is closed
 * when all is published, and in another run in the middle of it. Every client checks that the ids it
 * gets never go back, and that nothing is missing but what is told.
 */
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"
#include "jumiks.h"

#define CLIENTS 9
#define PUBLISHERS 3
#define ROUNDS 6000
#define LARGE 100000

static jmk_server *server;
static atomic_int over;
static pthread_mutex_t clients_lock = PTHREAD_MUTEX_INITIALIZER;
static jmk_client *clients[CLIENTS]; /* that nobody frees as long as the lock is held */

/* Wait for room; false once the server closes. */
static int wait_for_room(size_t size) {
    struct jmk_account holder;

    return jmk_server_wait_room(server, size, -1, &holder, NULL) <= 0;
}

static int publish_batch(const void *data, size_t size) {
    struct jmk_slice slices[100];
    size_t done = 0;
    uint64_t first;

    for (int i = 0; i < 100; i++)
        slices[i] = (struct jmk_slice){data, size};
    while (jmk_server_append_many(server, slices, 100, &done, &first)) {
        if (!wait_for_room(size)) {
            jmk_server_yield(server);
            return 0;
        }
    }
    return 1;
}

static void publish_in_place(int keep) {
    uint64_t id;
    void *where;

    if (jmk_server_reserve(server, LARGE, &where))
        return;
    memset(where, 1, LARGE);
    if (keep)
        jmk_server_commit(server, &id);
    else
        jmk_server_discard(server);
    jmk_server_kick(server);
}

static void *publisher(void *argument) {
    unsigned seed = (unsigned)(uintptr_t)argument;
    char data[300] = {7};
    uint64_t id;

    for (int i = 0; i < ROUNDS; i++) {
        size_t size = (size_t)rand_r(&seed) % sizeof data;

        if (i % 50 == 0 && !publish_batch(data, size))
            break;
        if (i % 1000 == 0)
            publish_in_place(i % 2000);
        while (jmk_server_append(server, data, size, &id)) {
            if (!wait_for_room(size))
                return NULL;
        }
        jmk_server_kick(server);
    }
    return NULL;
}

static jmk_client *connect_client(uint32_t delivery, uint64_t start, uint64_t *first_id) {
    struct jmk_client_config config = {
        .max_lag = 1000, .arena_size = 1 << 20, .delivery = delivery, .max_message = 1 << 20};
    struct jmk_attached attached;
    uint32_t max_packet = 0;
    jmk_client *client;
    int ends[2];

    CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends) == 0);
    CHECK(jmk_socket_prepare(server, ends[0], &max_packet) == 0);
    if (jmk_server_attach(server, ends[0], delivery, delivery == JMK_CLASSIC ? 0 : max_packet,
                          start, &attached)) {
        close(ends[0]);
        close(ends[1]);
        return NULL;
    }
    config.first_id = *first_id = attached.first_id;
    config.max_packet = delivery == JMK_FRAMED ? max_packet : 262144;
    config.log_fd = jmk_server_log_fd(server);
    config.cursor_fd = attached.cursor_fd;
    config.first_offset = attached.first_offset;
    CHECK(jmk_client_new(&client, ends[1], &config) == 0);
    if (attached.cursor_fd >= 0)
        close(attached.cursor_fd);
    jmk_server_release(server, attached.key);
    return client;
}

/* Receive until the end, or until it pleases to leave. */
static void follow(jmk_client *client, unsigned number, uint64_t next, unsigned *seed) {
    struct jmk_batch batch;
    struct jmk_stats stats;
    uint64_t last = 0;

    while (jmk_client_receive(client, last, 1000000000, &batch) == 0) {
        CHECK(batch.count > 0 && batch.first_id - batch.lost == next);
        if (rand_r(seed) % 10 == 0)
            jmk_held_free(jmk_client_hold_batch(client));
        if (!jmk_client_batch_is_intact(client)) {
            jmk_client_drop_batch(client);
            continue;
        }
        last = batch.first_id + batch.count - 1;
        next = last + 1;
        if (number % 3 == number / 3 && rand_r(seed) % 50 == 0)
            break;
        if (rand_r(seed) % 20 == 0)
            jmk_client_ack(client, last, 1000000);
        if (number == 5)
            poll(NULL, 0, 5);
        if (rand_r(seed) % 100 == 0)
            jmk_server_stats(server, &stats);
    }
}

static void set_client(unsigned number, jmk_client *client) {
    pthread_mutex_lock(&clients_lock);
    clients[number] = client;
    pthread_mutex_unlock(&clients_lock);
}

static void *consumer(void *argument) {
    unsigned number = (unsigned)(uintptr_t)argument, seed = number;

    while (!atomic_load(&over)) {
        uint64_t first_id;
        jmk_client *client = connect_client(number % 3, number % 4 ? 0 : 1, &first_id);

        if (!client)
            break;
        set_client(number, client);
        follow(client, number, first_id, &seed);
        set_client(number, NULL);
        jmk_client_free(client);
    }
    return NULL;
}

static void close_one(unsigned number) {
    pthread_mutex_lock(&clients_lock);
    if (clients[number])
        jmk_client_close(clients[number]);
    pthread_mutex_unlock(&clients_lock);
}

static void disconnect_one(unsigned number) {
    struct jmk_account accounts[CLIENTS];
    size_t count = 0;

    jmk_server_accounts(server, accounts, CLIENTS, &count);
    if (count > number)
        jmk_server_disconnect(server, accounts[number].key, JMK_R_KICKED);
}

/* What any thread may do at any time. */
static void *meddler(void *argument) {
    unsigned seed = 99;

    (void)argument;
    while (!atomic_load(&over)) {
        struct jmk_account holder;
        struct jmk_stats stats;

        if (rand_r(&seed) % 4 == 0)
            close_one((unsigned)rand_r(&seed) % CLIENTS);
        if (rand_r(&seed) % 4 == 0)
            disconnect_one((unsigned)rand_r(&seed) % CLIENTS);
        if (jmk_server_stats(server, &stats) == 0)
            jmk_server_wait_acked(server, stats.next_id - 1, 1000000, &holder);
        poll(NULL, 0, 1);
    }
    return NULL;
}

static void take_events(void) {
    struct jmk_event event;

    while (jmk_server_next_event(server, &event) == 0)
        CHECK(event.account.key != 0);
}

static int published_half(void) {
    struct jmk_stats stats;

    return jmk_server_stats(server, &stats) == 0 && stats.published > PUBLISHERS * ROUNDS / 2;
}

/* With early, the server is closed while everybody publishes. */
static void run(int early) {
    pthread_t publishers[PUBLISHERS], consumers[CLIENTS], meddling;
    struct pollfd events = {.fd = jmk_server_event_fd(server), .events = POLLIN};

    for (uintptr_t i = 0; i < CLIENTS; i++)
        CHECK(pthread_create(&consumers[i], NULL, consumer, (void *)i) == 0);
    for (uintptr_t i = 0; i < PUBLISHERS; i++)
        CHECK(pthread_create(&publishers[i], NULL, publisher, (void *)(i + 1)) == 0);
    CHECK(pthread_create(&meddling, NULL, meddler, NULL) == 0);
    for (int i = 0; i < PUBLISHERS; i++) {
        while (pthread_tryjoin_np(publishers[i], NULL)) {
            poll(&events, 1, 1);
            take_events();
            if (early && published_half())
                jmk_server_close(server, 200000000);
        }
    }
    atomic_store(&over, 1);
    jmk_server_close(server, 200000000);
    while (jmk_server_join(server, 10000000) == JMK_E_TIMEOUT)
        take_events();
    pthread_join(meddling, NULL);
    for (int i = 0; i < CLIENTS; i++)
        pthread_join(consumers[i], NULL);
    take_events();
}

int main(void) {
    for (uint32_t n = 0; n < 6; n++) {
        uint32_t policy = JMK_DISCONNECT + n / 2;
        struct jmk_config config = {.log_size = 1 << 20,
                                    .max_lag = 1000,
                                    .patience = policy == JMK_BLOCK ? 50000000 : 20000000,
                                    .policy = policy,
                                    .max_message = 1 << 18,
                                    .max_clients = 64,
                                    .send_buffer = 196608};

        atomic_store(&over, 0);
        CHECK(jmk_server_new(&server, &config) == 0);
        run(n % 2);
        jmk_server_free(server);
    }
    return 0;
}
