/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Each wake-up by itself
 *
 * A scenario of the table puts one waiter to sleep, or stops it at a point on its way there; does what has
 * to wake it, and nothing else that could; and looks at what it found. waiters.h has who waits, and what
 * becomes of one that nobody wakes.
 */
#include "publishers.h"
#include "server/ends.h"
#include "sockets.h"
#include "waiters.h"

/* ---- waits for acks, and for the end ---- */

/* The client has looked what is asked of it by then, so the server has to look again itself. */
static void an_ack_just_before_it_is_asked_for(enum wait wait, uint32_t delivery) {
    struct waiter waiter = {.wait = wait};
    struct peer peer;

    make_server(JMK_BLOCK, 1, -1);
    peer = join(delivery);
    waiter.id = publish(SIZE, 1);
    receive_to(&peer, waiter.id);
    await_parked();
    start_and_stop(&waiter, JMK_AT_ASKS);
    ack(&peer, waiter.id);
    go();
    wakes(&waiter, 0);
    leave(&peer);
}

static void an_ack_just_before_it_is_awaited(uint32_t delivery) {
    an_ack_just_before_it_is_asked_for(ROOM, delivery);
    jmk_server_free(server);
    an_ack_just_before_it_is_asked_for(ACKED, delivery);
}

/* A wait begins with a look at the word progress, so that what happens behind that look ends it. */
static void an_ack_just_before_a_look(uint32_t delivery) {
    struct waiter waiter = {.wait = ACKED};
    struct peer peer;

    make_server(JMK_BLOCK, 1, -1);
    peer = join(delivery);
    waiter.id = publish(SIZE, 1);
    receive_to(&peer, waiter.id);
    start_and_stop(&waiter, JMK_AT_WAITS);
    ack(&peer, waiter.id);
    go();
    wakes(&waiter, 0);
    leave(&peer);
}

static void an_ack_that_is_awaited(uint32_t delivery) {
    struct waiter waiter = {.wait = ACKED};
    struct peer slow, fast;

    make_server(JMK_BLOCK, 0, -1);
    slow = join(delivery);
    fast = join(delivery);
    waiter.id = publish(SIZE, 3);
    receive_to(&fast, waiter.id);
    receive_to(&slow, waiter.id);
    ack(&fast, waiter.id);
    start(&waiter);
    ack(&slow, waiter.id);
    wakes(&waiter, 0);
    leave(&slow);
    leave(&fast);
}

/* Nobody waits for it, so nothing told of it. */
static void an_ack_counts_in_figures(uint32_t delivery) {
    struct jmk_account account;
    struct peer peer;
    size_t count;
    uint64_t id;

    make_server(JMK_BLOCK, 0, -1);
    peer = join(delivery);
    id = publish_slowly(SIZE, 20);
    receive_to(&peer, id);
    ack(&peer, id);
    CHECK_EQUAL(jmk_server_accounts(server, &account, 1, &count), 0);
    CHECK_EQUAL(account.acked_id, id);
    leave(&peer);
}

/* In a slow stream the thread does not wake for acks; somebody who waits for one changes that. */
static void an_ack_that_is_ignored_until_then(uint32_t delivery) {
    struct waiter waiter = {.wait = ACKED};
    struct peer peer;

    make_server(JMK_BLOCK, 0, -1);
    peer = join(delivery);
    waiter.id = publish_slowly(SIZE, 20);
    receive_to(&peer, waiter.id);
    start(&waiter);
    ack(&peer, waiter.id);
    wakes(&waiter, 0);
    leave(&peer);
}

/* It is skipped while another is half way, and acks part of what it got: it skips on, and needs nothing. */
static struct peer skip_one(uint32_t delivery, struct peer *fast, uint64_t *id) {
    struct peer slow;

    make_server(JMK_SKIP, 2, 0);
    slow = join(delivery);
    *fast = join(delivery);
    *id = publish(SIZE, 2);
    receive_to(&slow, *id);
    receive_to(fast, *id);
    ack(fast, *id);
    for (uint64_t next = *id + 1; next < *id + 3; next++) {
        struct jmk_account holder;
        CHECK_EQUAL(jmk_server_wait_room(server, SIZE, -1, &holder, NULL), 0);
        CHECK_EQUAL(publish(SIZE, 1), next);
        receive_to(fast, next);
        ack(fast, next);
    }
    return slow;
}

static void an_ack_of_one_that_skips(uint32_t delivery) {
    struct waiter waiter = {.wait = ACKED};
    struct peer slow, fast;
    uint64_t id;

    slow = skip_one(delivery, &fast, &id);
    waiter.id = id - 1;
    start(&waiter);
    ack(&slow, id - 1);
    wakes(&waiter, 0);
    leave(&slow);
    leave(&fast);
}

static void the_end_of_one_that_skips(uint32_t delivery) {
    struct waiter waiter = {.wait = ACKED};
    struct peer slow, fast;

    slow = skip_one(delivery, &fast, &waiter.id);
    start(&waiter);
    leave(&slow);
    wakes(&waiter, 0);
    leave(&fast);
}

/* It lingers, as a welcome is still to come: only the word of the close itself can wake the others. */
static void a_close(enum wait wait, int result) {
    struct waiter waiter = {.wait = wait};
    struct peer peer;

    make_server(JMK_BLOCK, 1, -1);
    peer = attach(JMK_FRAMED, false, false);
    waiter.id = publish(SIZE, 1);
    start(&waiter);
    CHECK_EQUAL(jmk_server_close(server, FAR_OFF), 0);
    if (wait == END)
        jmk_server_release(server, peer.key);
    wakes(&waiter, result);
    leave(&peer);
}

static void a_close_of_one_that_waits_for_room(uint32_t delivery) {
    (void)delivery;
    a_close(ROOM, JMK_E_CLOSED);
}

static void a_close_of_one_that_waits_for_acks(uint32_t delivery) {
    (void)delivery;
    a_close(ACKED, JMK_E_CLOSED);
}

static void a_close_of_one_that_waits_for_the_end(uint32_t delivery) {
    (void)delivery;
    a_close(END, 0);
}

/* The control plane may wait for it too. */
static void the_end_is_told(uint32_t delivery) {
    struct pollfd polled = {.events = POLLIN};

    (void)delivery;
    make_server(JMK_BLOCK, 1, -1);
    await_parked();
    polled.fd = jmk_server_event_fd(server);
    CHECK_EQUAL(jmk_server_close(server, FAR_OFF), 0);
    CHECK_EQUAL(poll(&polled, 1, SOON), 1);
    CHECK_EQUAL(jmk_server_join(server, -1), 0);
}

/* Its term begins with its welcome, and here is over then. Under JMK_BLOCK that changes no admission. */
static void welcome_at_the_limit(enum jmk_policy policy, uint32_t delivery) {
    struct waiter waiter = {.wait = ROOM};
    struct peer peer;

    make_server(policy, 1, 0);
    peer = attach(delivery, false, false);
    publish(SIZE, 1);
    start(&waiter);
    CHECK_EQUAL(jmk_server_release(server, peer.key), 0);
    wakes(&waiter, 0);
    leave(&peer);
}

static void a_welcome_to_one_at_its_limit(uint32_t delivery) {
    welcome_at_the_limit(JMK_DISCONNECT, delivery);
}

static void a_welcome_to_one_that_is_waited_for(uint32_t delivery) {
    welcome_at_the_limit(JMK_BLOCK, delivery);
}

static void a_welcome_behind_a_message(uint32_t delivery) {
    struct waiter waiter = {.wait = MESSAGE};
    struct peer peer;

    make_server(JMK_BLOCK, 0, -1);
    peer = attach(delivery, false, false);
    publish(SIZE, 1);
    await_parked();
    waiter.peer = &peer;
    if (delivery != JMK_SHARED) /* that one finds it in the log, and does not sleep */
        start(&waiter);
    CHECK_EQUAL(jmk_server_release(server, peer.key), 0);
    if (delivery != JMK_SHARED)
        wakes(&waiter, 0);
    await_sent(&peer, JMK_FIRST_ID);
    leave(&peer);
}

/* More than a client gets in one round: somebody has to make another. */
static void a_welcome_behind_many_messages(uint32_t delivery) {
    struct peer peer;
    uint64_t id;

    make_server(JMK_BLOCK, 0, -1);
    peer = attach(delivery, true, false);
    id = publish(1, 300);
    await_parked();
    CHECK_EQUAL(jmk_server_release(server, peer.key), 0);
    await_sent(&peer, id);
    leave(&peer);
}

/* The end waits for the welcome of one that was attached, and would for as long as linger allows. */
static void a_welcome_behind_a_close(uint32_t delivery) {
    struct waiter waiter = {.wait = END};
    struct peer peer;

    make_server(JMK_BLOCK, 0, -1);
    peer = attach(delivery, false, false);
    CHECK_EQUAL(jmk_server_close(server, FAR_OFF), 0);
    await_parked();
    start(&waiter);
    jmk_server_release(server, peer.key);
    if (delivery == JMK_CLASSIC)
        leave(&peer);
    wakes(&waiter, 0);
    if (delivery != JMK_CLASSIC)
        leave(&peer);
}

/* ---- the thread ---- */

static void a_receive(uint32_t delivery, bool fast, int others) {
    struct waiter waiter = {.wait = MESSAGE};
    struct peer peer, more[8];

    make_server(JMK_BLOCK, 0, -1);
    peer = join(delivery);
    for (int i = 0; i < others; i++)
        more[i] = join(JMK_FRAMED);
    waiter.peer = &peer;
    start(&waiter);
    await_parked();
    if (fast) /* a publish right before this one: the thread sends, and has to be woken */
        atomic_store(&server->last_inline, jmk_now() + FAR_OFF);
    publish(SIZE, 1);
    wakes(&waiter, 0);
    for (int i = 0; i < others; i++)
        leave(&more[i]);
    leave(&peer);
}

static void a_publish(uint32_t delivery) {
    a_receive(delivery, false, 0);
}

/* The client found nothing, and does not say yet that it sleeps: nobody will wake it for this. */
static void a_publish_just_before_the_sleep(uint32_t delivery) {
    struct waiter waiter = {.wait = MESSAGE};
    struct peer peer;

    make_server(JMK_BLOCK, 0, -1);
    peer = join(delivery);
    waiter.peer = &peer;
    start_and_stop(&waiter, JMK_AT_EMPTY);
    publish(SIZE, 1);
    await_sent(&peer, JMK_FIRST_ID);
    go();
    wakes(&waiter, 0);
    leave(&peer);
}

/* Its user waits for the socket: before the first receive, and behind one that found nothing. */
static void a_publish_to_one_that_polls(uint32_t delivery) {
    struct pollfd polled = {.events = POLLIN};
    struct jmk_batch batch;
    struct peer peer;

    make_server(JMK_BLOCK, 0, -1);
    peer = join(delivery);
    polled.fd = peer.fd;
    for (int i = 0; i < 3; i++) {
        uint64_t id = publish(SIZE, 1);
        CHECK_EQUAL(poll(&polled, 1, SOON), 1);
        receive_to(&peer, id);
        CHECK_EQUAL(jmk_client_receive(peer.client, id, 0, &batch), JMK_E_TIMEOUT);
        CHECK_EQUAL(poll(&polled, 1, 0), 0);
    }
    leave(&peer);
}

static void a_publish_in_a_fast_stream(uint32_t delivery) {
    a_receive(delivery, true, 0);
}

static void a_publish_to_many(uint32_t delivery) {
    a_receive(delivery, false, 8);
}

/* The publisher does not get the lock, and the thread does not look: the holder has to. */
static void a_publish_while_others_hold_the_lock(uint32_t delivery) {
    struct waiter waiter = {.wait = MESSAGE};
    struct peer peer;

    make_server(JMK_BLOCK, 0, -1);
    peer = join(delivery);
    waiter.peer = &peer;
    start(&waiter);
    await_parked();
    jmk_server_lock(server);
    publish(SIZE, 1);
    jmk_server_unlock(server);
    wakes(&waiter, 0);
    leave(&peer);
}

/* The places of clients that do not close their ends are given up after a second, welcome or not. */
static void a_goodbye_that_is_not_answered(uint32_t delivery) {
    uint64_t word = htole64(JMK_FIRST_ID - 1);
    struct peer peer, newcomer;
    int64_t begin;

    make_server(JMK_BLOCK, 0, -1);
    peer = attach(delivery, true, true);
    newcomer = attach(delivery, true, false);
    await_parked();
    begin = jmk_now();
    CHECK_EQUAL(jmk_server_disconnect(server, peer.key, JMK_R_KICKED), 0);
    CHECK_EQUAL(jmk_server_disconnect(server, newcomer.key, JMK_R_KICKED), 0);
    CHECK(send(peer.fd, &word, sizeof word, 0) == sizeof word); /* which is read, and no more */
    await_parked();
    CHECK(rounds_within(5) < 20);
    await_event(JMK_EVENT_CLOSED);
    CHECK(jmk_now() - begin >= JMK_SECOND * 9 / 10);
    await_event(JMK_EVENT_CLOSED);
    leave(&peer);
    leave(&newcomer);
}

/* Nor does it say anything, so nothing else has the thread look. */
static void a_goodbye_to_one_that_is_silent(uint32_t delivery) {
    struct peer peer;

    make_server(JMK_BLOCK, 0, -1);
    peer = attach(delivery, true, true);
    await_parked();
    CHECK_EQUAL(jmk_server_disconnect(server, peer.key, JMK_R_KICKED), 0);
    await_event(JMK_EVENT_CLOSED);
    leave(&peer);
}

/* A client that never sleeps looks at its socket when `control` is another. */
static void a_skip_is_told(uint32_t delivery) {
    const _Atomic uint64_t *control;
    struct peer slow, fast;
    uint64_t id;

    slow = skip_one(delivery, &fast, &id);
    control = &server->log.page->control;
    CHECK_EQUAL(atomic_load(control), delivery == JMK_SHARED);
    ack(&slow, id);
    await_event(JMK_EVENT_SKIPPED);
    receive_to(&slow, id + 2);
    CHECK_EQUAL(atomic_load(control), delivery == JMK_SHARED ? 2 : 0);
    CHECK_EQUAL(jmk_server_disconnect(server, fast.key, JMK_R_KICKED), 0);
    CHECK_EQUAL(atomic_load(control), delivery == JMK_SHARED ? 3 : delivery == JMK_FRAMED);
    leave(&slow);
    leave(&fast);
}

/* It was sent no whole message, so it has nothing to ack: it goes on at once. */
static void a_skip_of_one_that_got_nothing(uint32_t delivery) {
    struct jmk_account holder;
    struct peer peer;
    uint64_t id;

    make_server(JMK_SKIP, 0, 0);
    server->config.send_buffer = 4096;
    peer = attach(delivery, true, true);
    while (jmk_server_append(server, zeros, LARGE, &id) == 0)
        jmk_server_kick(server);
    CHECK_EQUAL(jmk_server_wait_room(server, LARGE, -1, &holder, NULL), 0);
    CHECK_EQUAL(account_of(&peer).messages, 0);
    CHECK(account_of(&peer).skipped > 0);
    publish(LARGE, 1);
    while (account_of(&peer).messages == 0)
        take_one(&peer);
    leave(&peer);
}

/* ---- clients ---- */

static void a_receive_that_ends(uint32_t delivery, int how) {
    static const int results[] = {JMK_E_CLOSED, JMK_E_END, JMK_E_END};
    struct waiter waiter = {.wait = MESSAGE};
    struct peer peer;

    make_server(JMK_BLOCK, 0, -1);
    peer = join(delivery);
    waiter.peer = &peer;
    start(&waiter);
    if (how == 0)
        jmk_client_close(peer.client);
    else if (how == 1)
        jmk_server_disconnect(server, peer.key, JMK_R_KICKED);
    else
        jmk_server_close(server, FAR_OFF);
    wakes(&waiter, delivery == JMK_CLASSIC && how ? JMK_E_LOST : results[how]);
    leave(&peer);
}

static void a_close_of_a_client_that_receives(uint32_t delivery) {
    a_receive_that_ends(delivery, 0);
}

static void a_receive_that_is_cut(uint32_t delivery) {
    a_receive_that_ends(delivery, 1);
}

static void a_receive_at_the_servers_end(uint32_t delivery) {
    a_receive_that_ends(delivery, 2);
}

/* It has read all it was sent, and acked none of it: it has to answer before it is told where to go on. */
static void a_skip_of_one_that_sleeps(uint32_t delivery) {
    struct waiter waiter = {.wait = MESSAGE};
    struct jmk_account holder;
    struct peer slow, fast;
    uint64_t id;

    make_server(JMK_SKIP, 2, 0);
    slow = join(delivery);
    fast = join(delivery);
    id = publish(SIZE, 2);
    receive_to(&slow, id);
    receive_to(&fast, id);
    waiter.peer = &slow;
    start(&waiter);
    ack(&fast, id);
    CHECK_EQUAL(jmk_server_wait_room(server, SIZE, -1, &holder, NULL), 0);
    publish(SIZE, 1);
    wakes(&waiter, 0);
    leave(&slow);
    leave(&fast);
}

/* It is told nothing: the end of the stream is all there is. */
static void a_receive_whose_connection_fails(uint32_t delivery) {
    struct waiter waiter = {.wait = MESSAGE};
    struct peer peer;

    make_server(JMK_BLOCK, 0, -1);
    peer = join(delivery);
    waiter.peer = &peer;
    start(&waiter);
    jmk_server_lock(server);
    jmk_ends_end(server, jmk_server_find(server, peer.key), JMK_R_ERROR, EIO);
    jmk_server_unlock(server);
    wakes(&waiter, JMK_E_LOST);
    leave(&peer);
}

/* The server does not see it: nobody but the one that closes wakes it. */
static void close_beside_a_server_that_stands_still(uint32_t delivery, int point) {
    struct waiter waiter = {.wait = MESSAGE};
    struct peer peer;

    make_server(JMK_BLOCK, 0, -1);
    peer = join(delivery);
    waiter.peer = &peer;
    await_parked();
    if (point)
        start_and_stop(&waiter, point);
    else
        start(&waiter);
    jmk_server_lock(server);
    jmk_client_close(peer.client);
    go();
    wakes(&waiter, JMK_E_CLOSED);
    jmk_server_unlock(server);
    leave(&peer);
}

static void a_close_of_one_that_sleeps(uint32_t delivery) {
    close_beside_a_server_that_stands_still(delivery, 0);
}

static void a_close_just_before_the_look(uint32_t delivery) {
    close_beside_a_server_that_stands_still(delivery, JMK_AT_SLEEP);
}

static void a_close_just_behind_the_look(uint32_t delivery) {
    if (!jmk_no_futex_waitv) /* a socket that is shut is no word that has to be raised */
        close_beside_a_server_that_stands_still(delivery, JMK_AT_LOOKED);
}

/* It has looked once more, and does not sleep yet: the word has to be another then. */
static void a_publish_just_behind_the_look(uint32_t delivery) {
    struct waiter waiter = {.wait = MESSAGE};
    struct peer peer;

    if (jmk_no_futex_waitv)
        return;
    make_server(JMK_BLOCK, 0, -1);
    peer = join(delivery);
    waiter.peer = &peer;
    await_parked();
    start_and_stop(&waiter, JMK_AT_LOOKED);
    publish(SIZE, 1);
    await_sent(&peer, JMK_FIRST_ID);
    go();
    wakes(&waiter, 0);
    leave(&peer);
}

/* ---- the table ---- */

enum deliveries { ONCE = 1, CLASSIC, FRAMED, SHARED, PACKETS, ALL };

#define SCENARIO(of, function) {of, #function, function}

static const struct {
    enum deliveries of; /* each of these, or once as it is the same for all */
    const char *name;
    void (*run)(uint32_t delivery);
} scenarios[] = {
    SCENARIO(ONCE, a_commit),
    SCENARIO(ONCE, a_discard),
    SCENARIO(ALL, a_batch_that_is_given_up),
    SCENARIO(ALL, an_ack_that_makes_room),
    SCENARIO(ALL, acks_that_make_room_together),
    SCENARIO(ALL, acks_that_make_room_in_another_order),
    SCENARIO(ALL, acks_that_are_awaited_together),
    SCENARIO(ALL, an_ack_of_the_fastest),
    SCENARIO(ALL, a_client_that_leaves),
    SCENARIO(ALL, a_client_that_is_sent_away),
    SCENARIO(ONCE, the_holder_of_the_lock),
    SCENARIO(ONCE, the_holder_of_the_lock_a_moment_before),
    SCENARIO(SHARED, an_ack_just_before_it_is_awaited),
    SCENARIO(ALL, an_ack_just_before_a_look),
    SCENARIO(ALL, an_ack_that_is_awaited),
    SCENARIO(ALL, an_ack_counts_in_figures),
    SCENARIO(ALL, an_ack_that_is_ignored_until_then),
    SCENARIO(PACKETS, an_ack_of_one_that_skips),
    SCENARIO(ALL, the_end_of_one_that_skips),
    SCENARIO(ONCE, a_close_of_one_that_waits_for_room),
    SCENARIO(ONCE, a_close_of_one_that_waits_for_acks),
    SCENARIO(ONCE, a_close_of_one_that_waits_for_the_end),
    SCENARIO(ONCE, the_end_is_told),
    SCENARIO(ALL, a_welcome_to_one_at_its_limit),
    SCENARIO(ALL, a_welcome_to_one_that_is_waited_for),
    SCENARIO(ALL, a_welcome_behind_a_message),
    SCENARIO(CLASSIC, a_welcome_behind_many_messages),
    SCENARIO(ALL, a_welcome_behind_a_close),
    SCENARIO(ALL, a_publish),
    SCENARIO(SHARED, a_publish_just_before_the_sleep),
    SCENARIO(ALL, a_publish_to_one_that_polls),
    SCENARIO(ALL, a_publish_in_a_fast_stream),
    SCENARIO(ALL, a_publish_to_many),
    SCENARIO(ALL, a_publish_while_others_hold_the_lock),
    SCENARIO(PACKETS, an_ack_to_a_full_socket),
    SCENARIO(PACKETS, an_ack_to_a_full_socket_in_a_slow_stream),
    SCENARIO(PACKETS, a_socket_that_is_read),
    SCENARIO(PACKETS, a_late_ack_of_many),
    SCENARIO(PACKETS, an_ack_after_a_fast_stream),
    SCENARIO(PACKETS, an_ack_behind_a_flood),
    SCENARIO(PACKETS, an_ack_behind_a_flood_in_a_slow_stream),
    SCENARIO(PACKETS, a_slow_stream_wakes_nobody),
    SCENARIO(SHARED, a_slow_stream_to_many_wakes_nobody),
    SCENARIO(CLASSIC, a_goodbye_that_is_not_answered),
    SCENARIO(CLASSIC, a_goodbye_to_one_that_is_silent),
    SCENARIO(ALL, a_skip_is_told),
    SCENARIO(FRAMED, a_skip_of_one_that_got_nothing),
    SCENARIO(ALL, a_close_of_a_client_that_receives),
    SCENARIO(ALL, a_receive_that_is_cut),
    SCENARIO(ALL, a_receive_at_the_servers_end),
    SCENARIO(SHARED, a_skip_of_one_that_sleeps),
    SCENARIO(ALL, a_receive_whose_connection_fails),
    SCENARIO(ALL, a_close_of_one_that_sleeps),
    SCENARIO(SHARED, a_close_just_before_the_look),
    SCENARIO(SHARED, a_close_just_behind_the_look),
    SCENARIO(SHARED, a_publish_just_behind_the_look),
};

static void run_scenario(size_t i, uint32_t delivery) {
    begin(scenarios[i].name);
    scenarios[i].run(delivery);
    jmk_server_free(server);
    server = NULL;
}

int main(void) {
    prepare();
    for (size_t i = 0; i < sizeof scenarios / sizeof *scenarios; i++) {
        enum deliveries of = scenarios[i].of;

        if (of == ONCE || of == FRAMED || of == PACKETS || of == ALL)
            run_scenario(i, JMK_FRAMED);
        if (of == CLASSIC || of == PACKETS || of == ALL)
            run_scenario(i, JMK_CLASSIC);
        for (int way = 0; way < 2 && (of == SHARED || of == ALL); way++) {
            atomic_store(&jmk_no_futex_waitv, way); /* it sleeps on words, and on the socket */
            run_scenario(i, JMK_SHARED);
        }
    }
    return 0;
}
