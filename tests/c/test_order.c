/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Delays wherever the models say that an order matters (docs/models)
 *
 * Each thread waits for a moment, of a length that chance says, at the core's points (csrc/common/point.h):
 * between what it stores for others and what it looks at then. In one part clients go to sleep just when
 * two publishers publish: each has to find its socket readable, as nothing else would wake it. In the
 * other a publisher runs over slow clients who copy with a pause in the middle: what they take for
 * whole has to be.
 */
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"
#include "common/point.h"
#include "jumiks.h"

#define CLIENTS 2
#define PUBLISHERS 2
#define ROUNDS 400
#define LARGE 4000
#define OVERTAKEN 30 /* batches, then there was a chance to take torn ones */
#define HANGS 60000 /* ms, for what takes microseconds */

static jmk_server *server;
static atomic_int round_number, arrived, overtaken;
static atomic_bool over;

static void pause_a_little(void) {
    static atomic_uint seeds;
    static _Thread_local unsigned seed;

    if (!seed)
        seed = 1 + atomic_fetch_add(&seeds, 1);
    if (rand_r(&seed) % 16 == 0)
        sched_yield();
    for (volatile int i = rand_r(&seed) % 4 ? 0 : rand_r(&seed) % 2000; i > 0; i--)
        ;
}

static void at_point(enum jmk_point point) {
    (void)point;
    pause_a_little();
}

static void make_server(enum jmk_policy policy, int64_t patience, uint64_t log_size) {
    struct jmk_config config = {.log_size = log_size,
                                .patience = patience,
                                .policy = policy,
                                .max_message = LARGE,
                                .max_clients = 8,
                                .send_buffer = 65536};

    CHECK(jmk_server_new(&server, &config) == 0);
}

static jmk_client *connect_client(uint32_t delivery, int *fd) {
    struct jmk_client_config config = {
        .arena_size = 1 << 20, .delivery = delivery, .max_message = LARGE};
    struct jmk_attached attached;
    uint32_t max_packet = 0;
    jmk_client *client;
    int ends[2];

    CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends) == 0);
    CHECK(jmk_socket_prepare(server, ends[0], &max_packet) == 0);
    CHECK(jmk_server_attach(server, ends[0], delivery, max_packet, 0, &attached) == 0);
    config.first_id = attached.first_id;
    config.max_packet = max_packet;
    config.log_fd = jmk_server_log_fd(server);
    config.cursor_fd = attached.cursor_fd;
    config.first_offset = attached.first_offset;
    CHECK(jmk_client_new(&client, ends[1], &config) == 0);
    if (attached.cursor_fd >= 0)
        close(attached.cursor_fd);
    CHECK(jmk_server_release(server, attached.key) == 0);
    *fd = ends[1];
    return client;
}

/* ---- going to sleep just when something is published ---- */

static void wait_for(atomic_int *number, int goal) {
    while (atomic_load(number) < goal)
        sched_yield();
}

static void *sleeper(void *argument) {
    uint32_t delivery = (uintptr_t)argument ? JMK_FRAMED : JMK_SHARED;
    uint64_t last = 0, got = 0;
    struct jmk_batch batch;
    struct pollfd polled = {.events = POLLIN};
    jmk_client *client = connect_client(delivery, &polled.fd);

    for (int i = 1; i <= ROUNDS; i++) {
        atomic_fetch_add(&arrived, 1);
        while (got < (uint64_t)i * PUBLISHERS) {
            int error = jmk_client_receive(client, last, 0, &batch);
            if (error == JMK_E_TIMEOUT) {
                CHECK(poll(&polled, 1, HANGS) == 1);
                continue;
            }
            CHECK(error == 0);
            CHECK_EQUAL(batch.lost, 0);
            got += batch.count;
            last = batch.first_id + batch.count - 1;
        }
    }
    jmk_client_free(client);
    return NULL;
}

static void *publisher(void *argument) {
    uint64_t id;

    (void)argument;
    for (int i = 1; i <= ROUNDS; i++) {
        wait_for(&round_number, i);
        pause_a_little();
        CHECK(jmk_server_append(server, &i, sizeof i, &id) == 0);
        jmk_server_kick(server);
    }
    return NULL;
}

static void nobody_is_left_asleep(void) {
    pthread_t clients[CLIENTS], publishers[PUBLISHERS];

    make_server(JMK_BLOCK, INT64_C(60000000000), 1 << 20);
    for (uintptr_t i = 0; i < CLIENTS; i++)
        CHECK(pthread_create(&clients[i], NULL, sleeper, (void *)i) == 0);
    for (int i = 0; i < PUBLISHERS; i++)
        CHECK(pthread_create(&publishers[i], NULL, publisher, NULL) == 0);
    for (int i = 1; i <= ROUNDS; i++) {
        wait_for(&arrived, i * CLIENTS);
        if (i % 2) /* let the stream be slow, or not */
            poll(NULL, 0, 1);
        atomic_store(&round_number, i);
    }
    for (int i = 0; i < PUBLISHERS; i++)
        pthread_join(publishers[i], NULL);
    for (int i = 0; i < CLIENTS; i++)
        pthread_join(clients[i], NULL);
    jmk_server_free(server);
}

/* ---- copying while it is overwritten ---- */

/* True if all of the copy is the first byte over and over. */
static bool is_one(const uint8_t *copy, size_t size) {
    return memcmp(copy, copy + 1, size - 1) == 0;
}

static bool take_batch(jmk_client *client, const struct jmk_batch *batch) {
    static _Thread_local uint8_t copies[64][LARGE];
    size_t count = batch->count < 64 ? batch->count : 64;

    for (size_t i = 0; i < count; i++) {
        memcpy(copies[i], batch->items[i].data, LARGE / 2);
        pause_a_little();
        memcpy(copies[i] + LARGE / 2, (const uint8_t *)batch->items[i].data + LARGE / 2, LARGE / 2);
    }
    if (!jmk_client_batch_is_intact(client))
        return false;
    for (size_t i = 0; i < count; i++)
        CHECK(is_one(copies[i], LARGE));
    return true;
}

static void *slow(void *argument) {
    struct jmk_batch batch;
    uint64_t last = 0;
    int fd;
    jmk_client *client = connect_client(JMK_SHARED, &fd);

    (void)argument;
    atomic_fetch_add(&arrived, 1);
    while (!atomic_load(&over)) {
        if (jmk_client_receive(client, last, 1000000, &batch) != 0)
            continue;
        if (take_batch(client, &batch)) {
            last = batch.first_id + batch.count - 1;
        } else {
            atomic_fetch_add(&overtaken, 1);
            jmk_client_drop_batch(client);
        }
    }
    jmk_client_free(client);
    return NULL;
}

static void flood(void) {
    uint8_t message[LARGE];
    struct jmk_account holder;
    uint64_t id;

    for (int i = 0; atomic_load(&overtaken) < OVERTAKEN; i++) {
        memset(message, i, sizeof message);
        while (jmk_server_append(server, message, sizeof message, &id))
            CHECK(jmk_server_wait_room(server, sizeof message, -1, &holder, NULL) <= 0);
        jmk_server_kick(server);
    }
}

static void no_torn_message_is_taken(void) {
    pthread_t clients[CLIENTS];

    atomic_store(&arrived, 0);
    make_server(JMK_SKIP, 0, 1 << 16);
    for (int i = 0; i < CLIENTS; i++)
        CHECK(pthread_create(&clients[i], NULL, slow, NULL) == 0);
    wait_for(&arrived, CLIENTS);
    flood();
    atomic_store(&over, true);
    for (int i = 0; i < CLIENTS; i++)
        pthread_join(clients[i], NULL);
    jmk_server_free(server);
}

int main(void) {
    jmk_at_point = at_point;
    nobody_is_left_asleep();
    no_torn_message_is_taken();
    return 0;
}
