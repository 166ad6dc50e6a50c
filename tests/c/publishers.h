/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What wakes a publisher: the scenarios of test_wakes.c that are about room, the turn and the lock
 */
#ifndef JMK_PUBLISHERS_H
#define JMK_PUBLISHERS_H

#include "waiters.h"

static void end_of_a_reservation(bool commit) {
    struct waiter waiter = {.wait = ROOM};
    void *where;
    uint64_t id;

    make_server(JMK_BLOCK, 0, -1);
    CHECK_EQUAL(jmk_server_reserve(server, SIZE, &where), 0);
    memset(where, 0, SIZE);
    start(&waiter);
    CHECK_EQUAL(commit ? jmk_server_commit(server, &id) : jmk_server_discard(server), 0);
    wakes(&waiter, 0);
}

static void a_commit(uint32_t delivery) {
    (void)delivery;
    end_of_a_reservation(true);
}

static void a_discard(uint32_t delivery) {
    (void)delivery;
    end_of_a_reservation(false);
}

/* The batch keeps the turn as it does not fit; once it is given up, the other finds no room and waits. */
static void a_batch_that_is_given_up(uint32_t delivery) {
    struct jmk_slice slices[4] = {{"1", 1}, {"2", 1}, {"3", 1}, {"4", 1}};
    struct waiter waiter = {.wait = ROOM};
    struct peer peer;
    uint64_t first;
    size_t done = 0;

    make_server(JMK_BLOCK, 2, -1);
    peer = join(delivery);
    CHECK_EQUAL(jmk_server_append_many(server, slices, 4, &done, &first), JMK_E_FULL);
    start(&waiter);
    jmk_server_yield(server);
    await_sleeps(2);
    receive_to(&peer, first + 1);
    ack(&peer, first + 1);
    wakes(&waiter, 0);
    leave(&peer);
}

static void an_ack_that_makes_room(uint32_t delivery) {
    struct waiter waiter = {.wait = ROOM};
    struct peer peer;
    uint64_t id;

    make_server(JMK_BLOCK, 2, -1);
    peer = join(delivery);
    id = publish(SIZE, 2);
    start(&waiter);
    receive_to(&peer, id);
    ack(&peer, id - 1);
    wakes(&waiter, 0);
    leave(&peer);
}

/* The ack of the first makes no room, and it is the other's that the publisher waits for then. */
static void acks_of_two_that_are_equally_far(uint32_t delivery, bool other_first, enum wait wait) {
    struct waiter waiter = {.wait = wait};
    struct peer peers[2];
    uint64_t id;

    make_server(JMK_BLOCK, 2, -1);
    peers[0] = join(other_first ? JMK_SHARED : delivery);
    peers[1] = join(other_first ? delivery : JMK_SHARED);
    id = publish(SIZE, 2);
    waiter.id = id;
    receive_to(&peers[0], id);
    receive_to(&peers[1], id);
    start(&waiter);
    ack(&peers[0], id);
    await_acked(&peers[0], id);
    await_parked();
    ack(&peers[1], id);
    wakes(&waiter, 0);
    leave(&peers[0]);
    leave(&peers[1]);
}

static void acks_that_make_room_together(uint32_t delivery) {
    acks_of_two_that_are_equally_far(delivery, false, ROOM);
}

static void acks_that_make_room_in_another_order(uint32_t delivery) {
    acks_of_two_that_are_equally_far(delivery, true, ROOM);
}

static void acks_that_are_awaited_together(uint32_t delivery) {
    acks_of_two_that_are_equally_far(delivery, false, ACKED);
}

/* Then it changes neither what may enter the log nor what has to stay. */
static void an_ack_of_the_fastest(uint32_t delivery) {
    struct waiter waiter = {.wait = ROOM};
    struct peer slow, fast;
    uint64_t id;

    make_server(JMK_DISCONNECT, 4, -1);
    slow = join(delivery);
    fast = join(delivery);
    id = publish(SIZE, 4);
    receive_to(&fast, id);
    start(&waiter);
    ack(&fast, id);
    wakes(&waiter, 0);
    await_event(JMK_EVENT_GONE);
    leave(&fast);
    leave(&slow);
}

static void a_client_that_leaves(uint32_t delivery) {
    struct waiter waiter = {.wait = ROOM};
    struct peer peer;

    make_server(JMK_BLOCK, 1, -1);
    peer = join(delivery);
    publish(SIZE, 1);
    start(&waiter);
    leave(&peer);
    wakes(&waiter, 0);
    await_event(JMK_EVENT_GONE);
}

static void a_client_that_is_sent_away(uint32_t delivery) {
    struct waiter waiter = {.wait = ROOM};
    struct peer peer;

    make_server(JMK_BLOCK, 1, -1);
    peer = join(delivery);
    publish(SIZE, 1);
    start(&waiter);
    CHECK_EQUAL(jmk_server_disconnect(server, peer.key, JMK_R_KICKED), 0);
    wakes(&waiter, 0);
    leave(&peer);
}

/* A publisher may only try to take the lock. Here it misses it, and there is room by then. */
static void the_holder_of_the_lock(uint32_t delivery) {
    struct waiter waiter = {.wait = ROOM};

    (void)delivery;
    make_server(JMK_BLOCK, 0, -1);
    await_parked();
    jmk_server_lock(server);
    start(&waiter);
    jmk_server_unlock(server);
    wakes(&waiter, 0);
}

/* It gives the lock back, and looks whether somebody missed it, before the publisher says so. */
static void the_holder_of_the_lock_a_moment_before(uint32_t delivery) {
    struct waiter waiter = {.wait = ROOM};

    (void)delivery;
    make_server(JMK_BLOCK, 0, -1);
    await_parked();
    jmk_server_lock(server);
    start_and_stop(&waiter, JMK_POINT_COUNT);
    jmk_server_unlock(server);
    go();
    wakes(&waiter, 0);
}

#endif
