/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A scenario: a server with clients of each delivery, from its making to its end
 */
#ifndef JMK_SCENARIO_H
#define JMK_SCENARIO_H

#include "followers.h"

#include <dirent.h>

#define SEND_BUFFER 16384
#define BATCH 60 /* more than may be on the way at a time */
#define STEADY (1u << KEEN | 1u << PATIENT)

/* ---- publishing ---- */

/* Wait for what an append needs; false once that takes too long. */
static int wait_room(int code, size_t size) {
    struct jmk_account holder;

    WRONG_IF(code != JMK_E_FULL, "append gives %d", code);
    code = jmk_server_wait_room(server, size, patience(), &holder, NULL);
    WRONG_IF(code > 0 && code != JMK_E_TIMEOUT, "wait_room gives %d", code);
    if (code == JMK_E_TIMEOUT)
        note_late("room");
    else if (code != -EINTR)
        note(code, "wait_room");
    return code != JMK_E_TIMEOUT;
}

static void publish(void) {
    static uint8_t data[LOG_SIZE / 4];
    size_t size = size_of(published + 1);
    uint64_t id = 0;
    int code;

    make_message(published + 1, data);
    while ((code = jmk_server_append(server, data, size, &id)) != 0) {
        if (!wait_room(code, size))
            return;
    }
    WRONG_IF(id != published + 1, "id %llu is not the next", (unsigned long long)id);
    published = id;
    jmk_server_kick(server);
}

/* Whoever wrote in place keeps the memory, and writes there later: not into the log. */
static int keep_what_was_lent(void *where, size_t size) {
    void *area;
    size_t length;
    int code = jmk_server_take_back(server, where, size, &area, &length);

    if (code < 0) {
        note(code, "take_back");
        return 0;
    }
    memset(area, 0xff, length);
    munmap(area, length);
    return 1;
}

static void publish_in_place(int keep) {
    size_t size = size_of(published + 1);
    uint64_t id = 0;
    void *where;
    int code;

    while ((code = jmk_server_reserve(server, size, &where)) != 0) {
        if (code < 0) { /* no map for it: nothing was reserved */
            note(code, "reserve");
            return;
        }
        if (!wait_room(code, size))
            return;
    }
    make_message(published + 1, where);
    if (keep && published % 2)
        keep = keep_what_was_lent(where, size);
    CHECK_EQUAL(keep ? jmk_server_commit(server, &id) : jmk_server_discard(server), 0);
    if (keep)
        WRONG_IF(id != ++published, "id %llu is not the next", (unsigned long long)id);
    jmk_server_kick(server);
}

static void publish_batch(size_t count) {
    static uint8_t data[BATCH][LARGE];
    struct jmk_slice slices[BATCH];
    uint64_t first = 0;
    size_t done = 0;
    int code;

    for (size_t i = 0; i < count; i++) {
        make_message(published + 1 + i, data[i]);
        slices[i] = (struct jmk_slice){data[i], size_of(published + 1 + i)};
    }
    while ((code = jmk_server_append_many(server, slices, count, &done, &first)) != 0) {
        if (!wait_room(code, slices[done].size)) {
            jmk_server_yield(server);
            break;
        }
    }
    WRONG_IF(done && first != published + 1, "a batch begins at another id than the next");
    published += done;
}

/* Have all clients with these roles what was published, but for those that are no more? */
static int have_all(unsigned roles) {
    for (size_t i = 0; i < follower_count; i++) {
        const struct follower *follower = &followers[i];

        if (roles & 1u << follower->role && !atomic_load(&follower->done) &&
            atomic_load(&follower->next) <= published)
            return 0;
    }
    return 1;
}

static void wait_received(unsigned roles) {
    int64_t deadline = now() + patience();

    while (!have_all(roles)) {
        if (now() > deadline) {
            note_late("a client's messages");
            return;
        }
        pause_shortly();
    }
}

static void wait_acked(void) {
    int64_t deadline = now() + patience();
    struct jmk_account holder;
    int code;

    do
        code = jmk_server_wait_acked(server, published, deadline - now(), &holder);
    while (code == -EINTR);
    if (code == JMK_E_TIMEOUT)
        note_late("acks");
    else
        note(code, "wait_acked");
}

/* ---- what the server says ---- */

static struct follower *find(uint64_t key) {
    for (size_t i = 0; i < follower_count; i++) {
        if (followers[i].key == key)
            return &followers[i];
    }
    return NULL;
}

static unsigned skips;

static void take_events(void) {
    struct jmk_event event;
    int code;

    while ((code = jmk_server_next_event(server, &event)) == 0) {
        struct follower *follower = find(event.account.key);

        WRONG_IF(!follower, "an event for nobody");
        if (event.kind == JMK_EVENT_SKIPPED) {
            WRONG_IF(follower->role != LAZY, "one that keeps up was skipped");
            skips++;
            continue;
        }
        if (event.kind == JMK_EVENT_CLOSED) {
            WRONG_IF(!follower->gone, "one is closed that is not gone");
            WRONG_IF(follower->closed++, "one is closed twice");
            continue;
        }
        WRONG_IF(follower->gone++, "one is gone twice");
        follower->reason = (enum jmk_reason)event.account.reason;
        if (follower->reason == JMK_R_ERROR)
            WRONG_IF(event.account.error != fault.error, "gone with errno %d", event.account.error);
    }
    if (code != JMK_E_GONE)
        note(code, "next_event");
}

static void look_around(void) {
    struct jmk_account accounts[MOST_CLIENTS];
    struct jmk_stats stats;
    size_t count = 0;

    CHECK_EQUAL(jmk_server_accounts(server, accounts, MOST_CLIENTS, &count), 0);
    CHECK_EQUAL(jmk_server_stats(server, &stats), 0);
    WRONG_IF(count > follower_count, "more clients than there are");
    WRONG_IF(stats.published != published + 1 - JMK_FIRST_ID, "another number was published");
    take_events();
}

/* ---- the scenario ---- */

static void in_a_slow_stream(unsigned roles) {
    for (int i = 0; i < 20 && !late; i++) {
        publish();
        wait_received(roles);
        if (i % 3 == 0 && scenario->policy == JMK_BLOCK && !late)
            wait_acked();
    }
    look_around();
}

/* Batches of more than may be on the way at a time; where that would cost a client, of less. */
static void in_a_fast_stream(unsigned roles) {
    int waits = scenario->policy == JMK_BLOCK;

    for (int i = 0; i < 6 && !late; i++) {
        publish_batch(waits ? BATCH : 10);
        publish_in_place(i % 3);
        if (!waits)
            wait_received(roles);
    }
    wait_received(roles);
    look_around();
}

/* One after the other without a pause: here the pump naps. */
static void at_full_speed(unsigned roles) {
    for (int i = 0; i < 100 && !late; i++)
        publish();
    wait_received(roles);
    wait_acked();
}

/* The lazy ones are found at their limit, and then go on. */
static void over_the_limit(void) {
    int64_t deadline;

    for (int i = 0; i < 3 * MAX_LAG && !late; i++) {
        publish();
        wait_received(STEADY);
    }
    look_around();
    atomic_store(&go, 1);
    deadline = now() + patience();
    do { /* a gap shows with the first message behind it */
        publish();
        wait_received(STEADY);
        pause_shortly();
        if (now() > deadline)
            note_late("the lazy ones");
    } while (!have_all(1u << LAZY) && !late);
}

static void some_go(void) {
    for (size_t i = 0; i < follower_count; i++) {
        struct follower *follower = &followers[i];

        if (follower->role == LEAVER && follower->client)
            jmk_client_close(follower->client);
        if (follower->role == KICKED) {
            int code = jmk_server_disconnect(server, follower->key, JMK_R_KICKED);
            if (code != JMK_E_GONE || !for_ever()) /* patience is short then, and may have cut it */
                note(code, "disconnect");
        }
        if (follower->role == MOURNER && follower->client)
            eventfd_write(follower->process, 1);
    }
}

static void publish_all(void) {
    unsigned roles = scenario->roles & ~(1u << LAZY);

    in_a_slow_stream(roles);
    atomic_store(&holding, 1);
    in_a_fast_stream(roles);
    atomic_store(&holding, 0);
    if (scenario->roles & 1u << LAZY)
        over_the_limit();
    some_go();
    roles &= STEADY;
    if (scenario->policy == JMK_BLOCK && !late)
        at_full_speed(roles);
    in_a_slow_stream(scenario->policy == JMK_SKIP ? roles | 1u << LAZY : roles);
}

static void end_all(void) {
    int code = jmk_server_close(server, for_ever() ? 50 * MILLISECOND : 5 * SECOND);

    CHECK_EQUAL(code, 0);
    do
        code = jmk_server_join(server, 8 * SECOND);
    while (code == -EINTR);
    CHECK_EQUAL(code, 0);
    for (size_t i = 0; i < follower_count; i++) {
        if (followers[i].client)
            pthread_join(followers[i].thread, NULL);
    }
    take_events();
}

/* ---- the ledgers ---- */

static enum jmk_reason expected(const struct follower *follower) {
    if (follower->role == LAZY && scenario->policy == JMK_DISCONNECT)
        return JMK_R_LAGGED;
    if (condition.error == EMSGSIZE)
        return JMK_R_TOO_LARGE;
    if (follower->role == LEAVER || follower->role == MOURNER)
        return JMK_R_LEFT;
    return follower->role == KICKED ? JMK_R_KICKED : JMK_R_CLOSING;
}

/* Whether a goodbye names what its reader did not get, and nothing else. */
static void check_goodbye(const struct follower *follower) {
    uint64_t next = atomic_load(&follower->next);
    struct jmk_goodbye words;

    jmk_client_goodbye(follower->client, &words);
    WRONG_IF(words.reason != follower->reason, "the goodbye says %u, the event %u", words.reason,
             (unsigned)follower->reason);
    WRONG_IF(words.last_lost && words.first_lost != next, "lost from %llu on, but %llu was next",
             (unsigned long long)words.first_lost, (unsigned long long)next);
    WRONG_IF(follower->reason == JMK_R_CLOSING && next <= published && words.last_lost != published,
             "lost up to %llu, but %llu was published", (unsigned long long)words.last_lost,
             (unsigned long long)published);
}

/* True if this client went the way it should. */
static int check_follower(const struct follower *follower) {
    int as_expected = follower->reason == expected(follower);

    WRONG_IF(follower->gone != 1, "%u events say that a client is gone", follower->gone);
    WRONG_IF(follower->closed != 1, "%u events say that one is closed", follower->closed);
    WRONG_IF(follower->reason == JMK_R_PROTOCOL, "it blames a client");
    WRONG_IF(follower->lost && follower->role != LAZY, "one that keeps up has a gap");
    if (!follower->client)
        return 0;
    if (follower->code == JMK_E_END)
        check_goodbye(follower);
    if (as_expected && follower->reason == JMK_R_CLOSING && !for_ever())
        WRONG_IF(atomic_load(&follower->next) != published + 1, "%llu messages are missing",
                 (unsigned long long)(published + 1 - atomic_load(&follower->next)));
    if (follower->reason == JMK_R_LAGGED && !as_expected)
        WRONG_IF(!for_ever(), "one that keeps up is said to lag");
    return as_expected;
}

static unsigned check_followers(void) {
    unsigned ended = 0;

    for (size_t i = 0; i < follower_count; i++)
        ended += !check_follower(&followers[i]);
    WRONG_IF(ended && !atomic_load(&ledger->fired) && !for_ever(),
             "a connection ended with no fault");
    WRONG_IF(ended > 1 && fault.times == 1, "%u connections ended", ended);
    return ended;
}

static int count_descriptors(void) {
    DIR *all = opendir("/proc/self/fd");
    int count = 0;

    CHECK(all != NULL);
    while (readdir(all))
        count++;
    closedir(all);
    return count;
}

static void free_all(void) {
    for (size_t i = 0; i < follower_count; i++) {
        jmk_client_free(followers[i].client);
        if (followers[i].process)
            __real_close(followers[i].process);
    }
    jmk_server_free(server);
}

static int make_server(void) {
    struct jmk_config config = {.log_size = LOG_SIZE,
                                .max_lag = MAX_LAG,
                                .patience = scenario->policy == JMK_BLOCK
                                                ? (for_ever() ? 50 * MILLISECOND : 5 * SECOND)
                                                : 0,
                                .policy = scenario->policy,
                                .max_message = LOG_SIZE / 4,
                                .max_clients = MOST_CLIENTS,
                                .send_buffer = SEND_BUFFER};
    int code = jmk_server_new(&server, &config);

    note(code, "server_new");
    return code;
}

/* The server's thread may still be giving back what was its. */
static void wait_for_the_thread(int before) {
    for (int turn = 0; turn < 100000; turn++) {
        if (count_descriptors() == before && !atomic_load(&ledger->blocks) &&
            !atomic_load(&ledger->mapped))
            return;
        usleep(100);
    }
}

static enum outcome play(void) {
    int before = count_descriptors();
    unsigned ended = 0;

    published = JMK_FIRST_ID - 1;
    atomic_store(&faults_on, 1);
    if (make_server() == 0) {
        for (unsigned role = 0; role < ROLES; role++) {
            for (unsigned delivery = JMK_CLASSIC; delivery <= JMK_SHARED; delivery++) {
                if (scenario->deliveries & 1u << delivery && scenario->roles & 1u << role)
                    enter((enum jmk_delivery)delivery, (enum role)role);
            }
        }
        publish_all();
        end_all();
        ended = check_followers();
        free_all();
    }
    atomic_store(&faults_on, 0);
    wait_for_the_thread(before);
    WRONG_IF(count_descriptors() != before, "%d descriptors leak", count_descriptors() - before);
    WRONG_IF(atomic_load(&ledger->blocks), "%ld blocks leak", atomic_load(&ledger->blocks));
    WRONG_IF(atomic_load(&ledger->mapped), "%ld mapped bytes leak", atomic_load(&ledger->mapped));
    if (!atomic_load(&ledger->fired))
        return UNTOUCHED;
    return ended ? ENDED : atomic_load(&told) ? TOLD : RECOVERED;
}

#endif
