/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What has the thread read and send: the scenarios of test_wakes.c that are about full sockets, and acks in slow
 * and fast streams
 */
#ifndef JMK_SOCKETS_H
#define JMK_SOCKETS_H

#include "waiters.h"

/* Fill the socket of a client that is played by hand; returns the last message that went in. */
static uint64_t fill(const struct peer *peer, bool slowly) {
    uint64_t sent = 0, before;

    do {
        before = sent;
        if (slowly)
            publish_slowly(LARGE, 1);
        else
            publish(LARGE, 1);
        await_parked();
        sent = account_of(peer).sent_id;
    } while (sent != before);
    return sent;
}

static char packet[1 << 18];

static void take_one(const struct peer *peer) {
    CHECK(recv(peer->fd, packet, sizeof packet, 0) > 0);
}

static void take_all(const struct peer *peer, uint64_t id) {
    await_sent(peer, id);
    while (recv(peer->fd, packet, sizeof packet, MSG_DONTWAIT) > 0)
        ;
}

/* The kernel says that a socket is writable once most of it is free. An ack tells earlier. */
static void an_ack_of_part_of_a_full_socket(uint32_t delivery, bool slowly) {
    uint64_t word = htole64(JMK_FIRST_ID), sent;
    struct peer peer;

    make_server(JMK_BLOCK, 0, -1);
    peer = attach(delivery, true, true);
    if (slowly) {
        take_all(&peer, publish_slowly(SIZE, 20));
    }
    sent = fill(&peer, slowly);
    if (slowly)
        publish_slowly(SIZE, 20);
    take_one(&peer);
    CHECK(send(peer.fd, &word, sizeof word, 0) == sizeof word);
    await_sent(&peer, sent + 1);
    leave(&peer);
}

static void an_ack_to_a_full_socket(uint32_t delivery) {
    an_ack_of_part_of_a_full_socket(delivery, false);
}

static void an_ack_to_a_full_socket_in_a_slow_stream(uint32_t delivery) {
    an_ack_of_part_of_a_full_socket(delivery, true);
}

static void a_socket_that_is_read(uint32_t delivery) {
    struct peer peer;
    uint64_t sent;

    make_server(JMK_BLOCK, 0, -1);
    peer = attach(delivery, true, true);
    sent = fill(&peer, false);
    take_all(&peer, sent);
    await_sent(&peer, sent + 1);
    take_all(&peer, sent + 1);
    await_parked();
    CHECK(rounds_within(5) < 20);
    leave(&peer);
}

/* It is far behind in a slow stream, in which acks are ignored, and acks when nobody publishes any more. */
static void a_late_ack_of_many(uint32_t delivery) {
    struct peer peer;
    uint64_t word;

    make_server(JMK_BLOCK, 0, -1);
    peer = attach(delivery, true, true);
    word = htole64(publish_slowly(SIZE, 60));
    for (int i = 0; i < 20; i++) {
        await_parked();
        jmk_server_lock(server);
        CHECK(!server->acks_ignored);
        jmk_server_unlock(server);
        word = htole64(publish_slowly(SIZE, 1));
    }
    await_parked();
    CHECK(send(peer.fd, &word, sizeof word, 0) == sizeof word);
    await_acked(&peer, le64toh(word));
    leave(&peer);
}

/* The stream became fast: the thread has to see to acks by itself again. */
static void an_ack_after_a_fast_stream(uint32_t delivery) {
    struct peer peer;
    uint64_t word;

    make_server(JMK_BLOCK, 0, -1);
    peer = attach(delivery, true, true);
    publish_slowly(SIZE, 20);
    atomic_store(&server->last_inline, jmk_now() + FAR_OFF);
    word = htole64(publish(SIZE, 1));
    await_sent(&peer, le64toh(word));
    CHECK(send(peer.fd, &word, sizeof word, 0) == sizeof word);
    await_acked(&peer, le64toh(word));
    leave(&peer);
}

/* As many as get it muted, and some that wait meanwhile. */
static void flood(const struct peer *peer) {
    uint64_t word = htole64(JMK_FIRST_ID - 1);

    for (int i = 0; i < 160; i++)
        CHECK(send(peer->fd, &word, sizeof word, 0) == sizeof word);
}

/* Two send too much that tells nothing; what they send later is read after a moment all the same. */
static void an_ack_behind_a_flood(uint32_t delivery) {
    uint64_t word = htole64(JMK_FIRST_ID);
    struct peer peers[2];

    make_server(JMK_BLOCK, 0, -1);
    for (int i = 0; i < 2; i++)
        peers[i] = attach(delivery, true, true);
    publish(SIZE, 1);
    for (int i = 0; i < 2; i++) {
        flood(&peers[i]);
        CHECK(rounds_within(5) < 200);
    }
    await_parked();
    for (int i = 0; i < 2; i++)
        CHECK(send(peers[i].fd, &word, sizeof word, 0) == sizeof word);
    for (int i = 0; i < 2; i++)
        await_acked(&peers[i], JMK_FIRST_ID);
    CHECK(rounds_within(5) < 20);
    for (int i = 0; i < 2; i++)
        leave(&peers[i]);
}

/* A publisher reads so much that tells nothing, while the thread sleeps; it has to read on after a moment. */
static void an_ack_behind_a_flood_in_a_slow_stream(uint32_t delivery) {
    struct waiter waiter = {.wait = ACKED};
    struct peer peer;
    uint64_t word;

    make_server(JMK_BLOCK, 64, -1);
    peer = attach(delivery, true, true);
    publish_slowly(SIZE, 20);
    await_parked();
    flood(&peer);
    waiter.id = publish_slowly(SIZE, 1);
    word = htole64(waiter.id);
    CHECK(send(peer.fd, &word, sizeof word, 0) == sizeof word);
    start(&waiter);
    wakes(&waiter, 0);
    leave(&peer);
}

/* Publishers send, and take acks when they are many: the thread wakes for neither. */
static void a_slow_stream_wakes_nobody(uint32_t delivery) {
    struct peer peer;
    uint64_t before;

    make_server(JMK_BLOCK, 0, -1);
    peer = join(delivery);
    publish_slowly(SIZE, 10);
    before = atomic_load(&server->rounds);
    for (int i = 0; i < 100; i++) {
        uint64_t id = publish_slowly(SIZE, 1);
        receive_to(&peer, id);
        ack(&peer, id);
    }
    CHECK(atomic_load(&server->rounds) - before < 50);
    leave(&peer);
}

/* The publisher wakes them all, so the thread has nothing to do. */
static void a_slow_stream_to_many_wakes_nobody(uint32_t delivery) {
    struct peer peers[16];
    uint64_t before, id;

    make_server(JMK_BLOCK, 0, -1);
    for (int i = 0; i < 16; i++)
        peers[i] = join(delivery);
    id = publish_slowly(SIZE, 10);
    await_parked();
    before = atomic_load(&server->rounds);
    for (int i = 0; i < 50; i++)
        id = publish_slowly(SIZE, 1);
    for (int i = 0; i < 16; i++)
        CHECK_EQUAL(account_of(&peers[i]).sent_id, id);
    CHECK(atomic_load(&server->rounds) - before < 25);
    for (int i = 0; i < 16; i++)
        leave(&peers[i]);
}

#endif
