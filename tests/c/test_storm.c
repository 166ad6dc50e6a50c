/* SPDX-License-Identifier: Apache-2.0 */
/*
 * All wake-ups together, under delays
 *
 * Publishers, clients and waiters do whatever they do, with short sleeps at every store, lock and call to
 * the system (delays.h), of lengths that a seed gives. No wait looks again by itself (waiters.h), so a
 * wake-up that comes a moment too early, or not at all, leaves somebody hanging.
 *
 *     test_storm [seed [storms]]      another seed, or more of them
 */
#include "waiters.h"

#define PUBLISHERS 3
#define CLIENTS 4
#define MESSAGES 400

static atomic_bool over;
static enum jmk_policy storm_policy;

static void wait_for_room(size_t size) {
    struct jmk_account holder;

    CHECK_EQUAL(jmk_server_wait_room(server, size, -1, &holder, NULL), 0);
}

static void publish_waiting(const void *data, size_t size) {
    uint64_t id;

    while (jmk_server_append(server, data, size, &id))
        wait_for_room(size);
    jmk_server_kick(server);
}

static void publish_batch(const void *data, size_t size) {
    struct jmk_slice slices[10];
    size_t done = 0;
    uint64_t first;

    for (int i = 0; i < 10; i++)
        slices[i] = (struct jmk_slice){data, size};
    while (jmk_server_append_many(server, slices, 10, &done, &first))
        wait_for_room(size);
}

static void publish_in_place(size_t size, bool keep) {
    void *where;
    uint64_t id;
    int error;

    while ((error = jmk_server_reserve(server, size, &where)) > 0)
        wait_for_room(size);
    CHECK_EQUAL(error, 0);
    memset(where, 0, size);
    if (keep)
        CHECK_EQUAL(jmk_server_commit(server, &id), 0);
    else
        CHECK_EQUAL(jmk_server_discard(server), 0);
    jmk_server_kick(server);
}

static void *storming_publisher(void *argument) {
    unsigned seed = atomic_load(&delay_seed) + (unsigned)(uintptr_t)argument;
    static const char data[5000];

    for (int i = 0; i < MESSAGES; i++) {
        size_t size = (size_t)rand_r(&seed) % (rand_r(&seed) % 8 ? 100 : sizeof data);
        unsigned kind = (unsigned)rand_r(&seed) % 16;

        if (kind == 0)
            publish_batch(data, size);
        else if (kind == 1)
            publish_in_place(size, rand_r(&seed) % 2);
        else
            publish_waiting(data, size);
        if (rand_r(&seed) % 32 == 0)
            poll(NULL, 0, 1);
    }
    return NULL;
}

static void *storming_client(void *argument) {
    static const uint32_t deliveries[] = {JMK_SHARED, JMK_FRAMED, JMK_CLASSIC};
    unsigned number = (unsigned)(uintptr_t)argument;
    unsigned seed = atomic_load(&delay_seed) + 100 + number;
    bool stays = storm_policy == JMK_BLOCK && number < 2;

    while (!atomic_load(&over)) {
        struct jmk_batch batch;
        struct peer peer;
        uint64_t last = 0;
        int error;

        if (!try_attach(&peer, deliveries[number % 3], false, true))
            break;
        while ((error = jmk_client_receive(peer.client, last, -1, &batch)) == 0) {
            if (!jmk_client_batch_is_intact(peer.client))
                jmk_client_drop_batch(peer.client);
            else
                last = batch.first_id + batch.count - 1;
            if (rand_r(&seed) % 8 == 0)
                ack(&peer, last);
            if (!stays && rand_r(&seed) % 100 == 0)
                break;
        }
        CHECK(error == 0 || error == JMK_E_END || error == JMK_E_LOST);
        leave(&peer);
        if (error)
            break;
    }
    return NULL;
}

static void *storming_waiter(void *argument) {
    struct jmk_account holder;
    struct jmk_stats stats;
    int error;

    (void)argument;
    do {
        CHECK_EQUAL(jmk_server_stats(server, &stats), 0);
        error = jmk_server_wait_acked(server, stats.next_id - 1, -1, &holder);
    } while (!error);
    CHECK_EQUAL(error, JMK_E_CLOSED);
    return NULL;
}

static void storm(enum jmk_policy policy, unsigned seed) {
    pthread_t publishers[PUBLISHERS], clients[CLIENTS], waiter;

    atomic_store(&delay_seed, seed);
    atomic_store(&over, false);
    storm_policy = policy;
    begin("the storm");
    make_server(policy, 20, policy == JMK_BLOCK ? -1 : JMK_SECOND / 1000);
    for (uintptr_t i = 0; i < CLIENTS; i++)
        CHECK(pthread_create(&clients[i], NULL, storming_client, (void *)i) == 0);
    CHECK(pthread_create(&waiter, NULL, storming_waiter, NULL) == 0);
    for (uintptr_t i = 0; i < PUBLISHERS; i++)
        CHECK(pthread_create(&publishers[i], NULL, storming_publisher, (void *)i) == 0);
    for (int i = 0; i < PUBLISHERS; i++)
        pthread_join(publishers[i], NULL);
    atomic_store(&over, true);
    CHECK_EQUAL(jmk_server_close(server, FAR_OFF), 0);
    pthread_join(waiter, NULL);
    for (int i = 0; i < CLIENTS; i++)
        pthread_join(clients[i], NULL);
    CHECK_EQUAL(jmk_server_join(server, -1), 0);
    jmk_server_free(server);
    atomic_store(&delay_seed, 0);
}

int main(int argc, char **argv) {
    unsigned seed = argc > 1 ? (unsigned)strtoul(argv[1], NULL, 10) : 1;
    unsigned storms = argc > 2 ? (unsigned)strtoul(argv[2], NULL, 10) : 9;

    prepare();
    for (unsigned i = 0; i < storms; i++) {
        atomic_store(&jmk_no_futex_waitv, i % 2);
        storm((enum jmk_policy)(i % 3), seed + i);
    }
    return 0;
}
