/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every call to the operating system fails, at every place in the core that makes it
 *
 * A scenario is a server with clients of each mode, from its making to its end. It runs once to see
 * which places (sites, faults.h) it comes to; then once for each of them, each error that the call may
 * give there, and each of some occasions (the first time, later, from then on for ever), in a child
 * of its own with a deadline. Whatever fails: nobody hangs, no message is torn, doubled or lost without
 * a word, nothing leaks; and a failure that passes costs one connection at most, with its reason.
 *
 * Options: -v shows what became of each failure; -s lists the sites, for tests/core/test_c.py to find
 * those that were never come to; -f SCENARIO:CALL:SITE:ERROR:NTH:TIMES, as it is named when it
 * fails, runs that one in this process, for a debugger.
 */
#include "faults.h"

#include <dirent.h>
#include <sched.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>

#include "check.h"

#define LOG_SIZE 131072
#define MAX_LAG 40
#define MOST_CLIENTS 16
#define SEND_BUFFER 16384
#define LARGE 12000 /* more than a packet takes */
#define BATCH 60    /* more than may be on the way at a time */
#define MILLISECOND INT64_C(1000000)
#define SECOND (1000 * MILLISECOND)
#define DEADLINE 20 /* s for a child; it takes milliseconds */
#define CHILDREN 4  /* at a time */
#define MEMORY_HITS 16 /* each of them, as memory for different things is taken at the same site */
#ifndef SO_PASSRIGHTS
#define SO_PASSRIGHTS 83
#endif
#define GIVE_UP 10 /* errors of a receive in a row */

enum role {
    KEEN, /* receives all, waiting without a limit */
    PATIENT, /* likewise with a limit; holds batches and acks by hand */
    LAZY, /* receives nothing until the policy has acted */
    LEAVER, /* closes in the middle */
    KICKED, /* is disconnected in the middle */
    MOURNER, /* watches the server's process, and finds it dead in the middle */
    ROLES
};

struct scenario {
    const char *name;
    enum jmk_policy policy;
    unsigned modes; /* bits 1 << jmk_mode */
    unsigned roles; /* bits 1 << role: one client of each in each mode */
    struct fault condition; /* what this system lacks */
    enum jmk_guard guard; /* of all sockets: whether descriptors could come to them */
};

#define ALL_MODES (1u << JMK_CLASSIC | 1u << JMK_FRAMED | 1u << JMK_SHARED)
#define PACKETS (1u << JMK_CLASSIC | 1u << JMK_FRAMED)
#define STEADY (1u << KEEN | 1u << PATIENT)
#define GOING (1u << LEAVER | 1u << KICKED | 1u << MOURNER)

static const struct scenario scenarios[] = {
    {"block", JMK_BLOCK, ALL_MODES, STEADY | GOING, {0}, JMK_GUARD_NONE},
    {"disconnect", JMK_DISCONNECT, ALL_MODES, 1u << KEEN | 1u << LAZY, {0}, JMK_GUARD_NONE},
    {"skip", JMK_SKIP, ALL_MODES, STEADY | 1u << LAZY, {0}, JMK_GUARD_NONE},
    {"shared alone", JMK_BLOCK, 1u << JMK_SHARED, STEADY, {0}, JMK_GUARD_NONE},
    {"no memfd",
     JMK_BLOCK,
     PACKETS,
     STEADY,
     {memfd_create_, 0, ENOSYS, 1, FOR_EVER},
     JMK_GUARD_NONE},
    {"old memfd", JMK_BLOCK, ALL_MODES, STEADY, {memfd_create_, 0, EINVAL, 1, 1}, JMK_GUARD_NONE},
    {"no pwait2",
     JMK_BLOCK,
     1u << JMK_SHARED,
     STEADY,
     {epoll_pwait2_, 0, EPERM, 1, FOR_EVER},
     JMK_GUARD_NONE},
    {"no sendmmsg",
     JMK_BLOCK,
     PACKETS,
     STEADY,
     {sendmmsg_, 0, ENOSYS, 1, FOR_EVER},
     JMK_GUARD_NONE},
    {"no recvmmsg", JMK_BLOCK, PACKETS, STEADY, {recvmmsg_, 0, EPERM, 1, FOR_EVER}, JMK_GUARD_NONE},
    {"full sockets", JMK_BLOCK, PACKETS, 1u << PATIENT, {send_, 0, EAGAIN, 1, 40}, JMK_GUARD_NONE},
    {"guarded", JMK_BLOCK, ALL_MODES, STEADY | 1u << LEAVER | 1u << KICKED, {0}, JMK_GUARD_ALWAYS},
    {"guarded and cut",
     JMK_DISCONNECT,
     1u << JMK_FRAMED,
     1u << KEEN | 1u << LAZY,
     {0},
     JMK_GUARD_ALWAYS},
    {"guarded at first", JMK_BLOCK, ALL_MODES, STEADY, {0}, JMK_GUARD_UNTIL_EMPTY},
    {"no more threads",
     JMK_BLOCK,
     PACKETS,
     STEADY,
     {pthread_create_, 0, EAGAIN, 2, FOR_EVER},
     JMK_GUARD_ALWAYS},
};

#define SCENARIOS (sizeof scenarios / sizeof *scenarios)

/* What a child says in its exit status. */
enum outcome { UNTOUCHED, RECOVERED, TOLD, ENDED, WRONG, OUTCOMES };

static const char *const outcome_names[OUTCOMES] = {[UNTOUCHED] = "not come to",
                                                    [RECOVERED] = "recovered",
                                                    [TOLD] = "told to the caller",
                                                    [ENDED] = "connections ended",
                                                    [WRONG] = "WRONG"};

struct follower {
    enum jmk_mode mode;
    enum role role;
    jmk_client *client;
    pthread_t thread;
    uint64_t key;
    int process; /* MOURNER: stands for the server's pidfd, readable once it is dead */
    _Atomic uint64_t next; /* the id it waits for */
    uint64_t lost; /* messages it was told of */
    int code; /* how it ended */
    atomic_int done;
    unsigned gone; /* GONE events */
    unsigned closed; /* CLOSED events */
    enum jmk_reason reason;
};

static const struct scenario *scenario;
static jmk_server *server;
static struct follower followers[MOST_CLIENTS];
static size_t follower_count;
static uint64_t published; /* the last id */
static atomic_int go; /* the lazy ones may receive */
static atomic_int holding; /* the patient ones hold batches */
static atomic_int told; /* a call gave the fault's error to its caller */
static int late; /* something did not happen in time; only for what fails for ever */

/* ---- what may be ---- */

static int for_ever(void) {
    return fault.times == FOR_EVER;
}

#define WRONG_IF(condition, ...)                                                                   \
    do {                                                                                           \
        if (condition) {                                                                           \
            fprintf(stderr, "%s: ", scenario->name);                                               \
            fprintf(stderr, __VA_ARGS__);                                                          \
            fprintf(stderr, " (%s:%d)\n", __FILE__, __LINE__);                                     \
            _exit(WRONG);                                                                          \
        }                                                                                          \
    } while (0)

/* A call failed: it may say so, in the system's own words, or say that there is no memory. */
static void note(int code, const char *what) {
    if (code == 0)
        return;
    WRONG_IF(!atomic_load(&ledger->fired), "%s gives %d with no fault", what, code);
    WRONG_IF(code < 0 && code != -fault.error && !(code == -ENOMEM && fault.call == mmap_),
             "%s gives %d", what, code);
    atomic_store(&told, 1);
}

static void note_late(const char *what) {
    WRONG_IF(!for_ever(), "late: %s", what);
    late = 1;
}

/* The time for something to happen in; when nothing works any more there is no point in more. */
static int64_t patience(void) {
    if (late)
        return MILLISECOND;
    return for_ever() ? 200 * MILLISECOND : 5 * SECOND;
}

static int64_t now(void) {
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * SECOND + time.tv_nsec;
}

/* Between two looks at a condition. */
static void pause_shortly(void) {
    struct timespec moment = {0, 50000};

    nanosleep(&moment, NULL);
}

/* ---- messages that tell whether they are whole ---- */

static uint32_t size_of(uint64_t id) {
    return (uint32_t)(id % 32 == 7 ? LARGE : id * 2654435761u % 300);
}

static void make_message(uint64_t id, uint8_t *out) {
    for (uint32_t at = 0; at < size_of(id); at++)
        out[at] = (uint8_t)(id * 13 + at * 5);
}

static int is_message(uint64_t id, const struct jmk_slice *slice) {
    const uint8_t *data = slice->data;

    if (slice->size != size_of(id))
        return 0;
    for (uint32_t at = 0; at < slice->size; at++) {
        if (data[at] != (uint8_t)(id * 13 + at * 5))
            return 0;
    }
    return 1;
}

/* ---- clients ---- */

/* Take a batch into the account. False: it was overtaken, and counts as not received. */
static int take_batch(struct follower *follower, const struct jmk_batch *batch) {
    uint64_t next = atomic_load(&follower->next);
    int whole = 1;

    for (size_t i = 0; i < batch->count; i++)
        whole = whole && is_message(batch->first_id + i, &batch->items[i]);
    if (!jmk_client_batch_is_intact(follower->client)) {
        jmk_client_drop_batch(follower->client);
        return 0;
    }
    WRONG_IF(!whole, "a message is not what was published");
    WRONG_IF(batch->count == 0, "an empty batch");
    WRONG_IF(batch->first_id - batch->lost != next, "ids jump from %llu to %llu less %llu lost",
             (unsigned long long)next, (unsigned long long)batch->first_id,
             (unsigned long long)batch->lost);
    follower->lost += batch->lost;
    atomic_store(&follower->next, batch->first_id + batch->count);
    return 1;
}

/* What was handled when this client was received from first. */
static uint64_t handled(const struct follower *follower) {
    return jmk_client_last_id(follower->client) ? atomic_load(&follower->next) - 1 : 0;
}

static int is_final(int code) {
    return code == JMK_E_END || code == JMK_E_LOST || code == JMK_E_CLOSED;
}

static int64_t timeout_of(enum role role) {
    if (role == MOURNER)
        return MILLISECOND / 10; /* it looks at the server's process when that is over */
    return role == PATIENT ? 20 * MILLISECOND : -1;
}

/* Receive until the end; an error of the system may pass, so it tries again. */
static void receive_all(struct follower *follower) {
    int64_t timeout = timeout_of(follower->role);
    jmk_held *held = NULL;
    struct jmk_batch batch;
    int failures = 0;

    while (failures < GIVE_UP) {
        int code = jmk_client_receive(follower->client, handled(follower), timeout, &batch);

        jmk_held_free(held);
        held = NULL;
        follower->code = code;
        WRONG_IF(code == JMK_E_PROTOCOL, "it blames the server: fault %u",
                 fault_of(follower->client));
        if (is_final(code))
            break;
        if (code == -EINTR) /* after a second without a message, too */
            continue;
        failures = code < 0 ? failures + 1 : 0;
        if (code && code != JMK_E_TIMEOUT)
            note(code, "receive");
        if (code == 0 && take_batch(follower, &batch) && follower->role == PATIENT) {
            if (atomic_load(&holding))
                held = jmk_client_hold_batch(follower->client);
            note(jmk_client_ack(follower->client, handled(follower), 5 * SECOND), "ack");
        }
    }
}

static void *follow(void *argument) {
    struct follower *follower = argument;

    while (follower->role == LAZY && !atomic_load(&go))
        pause_shortly();
    receive_all(follower);
    jmk_client_close(follower->client);
    atomic_store(&follower->done, 1);
    return NULL;
}

/* Anything that can be polled does for a pidfd. */
static void watch(struct follower *follower) {
    follower->process = __real_eventfd(0, EFD_CLOEXEC);
    jmk_client_watch(follower->client, dup(follower->process));
}

static int make_client(struct follower *follower, int fd, const struct jmk_attached *attached) {
    struct jmk_client_config config = {.first_id = attached->first_id,
                                       .max_lag = MAX_LAG,
                                       .arena_size = 65536,
                                       .mode = follower->mode,
                                       .guard = scenario->guard,
                                       .max_packet = attached->max_packet,
                                       .max_message = LOG_SIZE / 4,
                                       .log_fd = jmk_server_log_fd(server),
                                       .cursor_fd = attached->cursor_fd,
                                       .first_offset = attached->first_offset};
    int code;

    if (follower->mode == JMK_CLASSIC)
        config.max_packet = LOG_SIZE / 4;
    if (follower->mode == JMK_CLASSIC && follower->role == KEEN && scenario->policy == JMK_BLOCK) {
        config.labels = 1; /* as if of a plain server, which loses none */
        config.first_id = 0;
    }
    follower->client = jmk_client_make(fd, &config, &code); /* fd is closed if that fails */
    if (attached->cursor_fd >= 0)
        __real_close(attached->cursor_fd);
    return code;
}

/* As the control plane does: who cannot have the log gets packets. */
static int attach(struct follower *follower, int fd, struct jmk_attached *attached) {
    uint32_t max_packet = 0;
    int code = jmk_socket_prepare(server, fd, &max_packet);

    if (code)
        return code;
    if (follower->mode == JMK_SHARED) {
        code = jmk_server_attach(server, fd, JMK_SHARED, max_packet, 0, attached);
        if (code >= 0)
            return code;
        if (code != -EOPNOTSUPP)
            note(code, "attach");
        follower->mode = JMK_FRAMED;
    }
    return jmk_server_attach(server, fd, follower->mode,
                             follower->mode == JMK_CLASSIC ? 0 : max_packet, 0, attached);
}

/* One more client, unless a fault is in its way. */
/* A page whose end cannot be told of is one all the same. */
static void watch_page(int page_fd) {
    int watch_fd = jmk_page_watch_new(), watch;

    note(watch_fd < 0 ? watch_fd : 0, "page_watch_new");
    if (watch_fd < 0)
        return;
    watch = jmk_page_watch(watch_fd, page_fd);
    note(watch < 0 ? watch : 0, "page_watch");
    __real_close(watch_fd);
}

static void enter(enum jmk_mode mode, enum role role) {
    struct follower *follower = &followers[follower_count];
    struct jmk_attached attached;
    int ends[2], code, passed = 0;

    memset(follower, 0, sizeof *follower);
    follower->mode = mode;
    follower->role = role;
    CHECK_EQUAL(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
    if (!scenario->guard) /* where the kernel cannot, the server has a guard after all */
        __real_setsockopt(ends[0], SOL_SOCKET, SO_PASSRIGHTS, &passed, sizeof passed);
    code = jmk_server_attach(server, ends[0], JMK_CLASSIC, 0, published + 2, &attached);
    if (code != JMK_E_START)
        note(code, "attach beyond the end");
    code = attach(follower, ends[0], &attached);
    note(code, "attach");
    if (code) {
        __real_close(ends[0]);
        __real_close(ends[1]);
        return;
    }
    follower->key = attached.key;
    atomic_store(&follower->next, attached.first_id);
    follower_count++;
    if (attached.cursor_fd >= 0)
        watch_page(attached.cursor_fd);
    code = make_client(follower, ends[1], &attached);
    note(code, "client_new");
    CHECK_EQUAL(jmk_server_release(server, attached.key), 0);
    if (code) {
        follower->code = code;
        atomic_store(&follower->done, 1);
        return;
    }
    if (role == MOURNER)
        watch(follower);
    CHECK_EQUAL(__real_pthread_create(&follower->thread, NULL, follow, follower), 0);
}

/* ---- publishing ---- */

/* Wait for what an append needs; false once that takes too long. */
static int wait_room(int code, size_t size) {
    struct jmk_account holder;

    WRONG_IF(code != JMK_E_FULL, "append gives %d", code);
    code = jmk_server_wait_room(server, size, patience(), &holder);
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
            for (unsigned mode = JMK_CLASSIC; mode <= JMK_SHARED; mode++) {
                if (scenario->modes & 1u << mode && scenario->roles & 1u << role)
                    enter((enum jmk_mode)mode, (enum role)role);
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

static struct ledger *new_ledger(void) {
    void *at = __real_mmap(NULL, sizeof(struct ledger), PROT_READ | PROT_WRITE,
                           MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    CHECK(at != MAP_FAILED);
    return at;
}

/* ---- a packet that was read, and has no place ---- */

static void send_frame(int fd, const uint8_t *frame, size_t size) {
    CHECK_EQUAL(__real_send(fd, frame, size, MSG_NOSIGNAL), size);
}

/* A message, and the first half of another. */
static void send_one_and_a_half(int fd) {
    struct jmk_header header = {8, JMK_KIND_DATA, 0, JMK_FIRST_ID};
    uint8_t frame[40] = {0};

    jmk_frame_encode(frame, &header);
    send_frame(fd, frame, JMK_FRAME_HEADER + 8);
    jmk_fragment_encode(frame, JMK_FIRST_ID + 1, 16, 32, 0);
    send_frame(fd, frame, JMK_FRAGMENT_HEADER + 16);
}

/* It is read to where the second half would go, while the arena that it belongs in is held. */
static void a_goodbye_is_kept_until_there_is_memory(void) {
    struct jmk_client_config config = {.first_id = JMK_FIRST_ID,
                                       .arena_size = 4096,
                                       .mode = JMK_FRAMED,
                                       .max_packet = 1024,
                                       .max_message = 1024};
    struct jmk_goodbye words = {.reason = JMK_R_CLOSING};
    uint8_t frame[JMK_FRAME_HEADER + JMK_BYE_SIZE];
    struct jmk_batch batch;
    jmk_client *client;
    jmk_held *held;
    int ends[2];

    CHECK_EQUAL(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
    CHECK_EQUAL(jmk_client_new(&client, ends[0], &config), 0);
    send_one_and_a_half(ends[1]);
    CHECK_EQUAL(jmk_client_receive(client, 0, 0, &batch), 0);
    CHECK_EQUAL(batch.count, 1);
    held = jmk_client_hold_batch(client);
    jmk_bye_encode(frame, JMK_FIRST_ID, &words);
    send_frame(ends[1], frame, sizeof frame);
    condition = (struct fault){mmap_, 0, ENOMEM, 2, 1}; /* the first is for the other message */
    atomic_store(&faults_on, 1);
    CHECK(jmk_client_receive(client, 0, 0, &batch) == -ENOMEM);
    CHECK_EQUAL(jmk_client_receive(client, 0, 0, &batch), JMK_E_END);
    atomic_store(&faults_on, 0);
    atomic_store(&condition_hits, 0);
    jmk_held_free(held);
    jmk_client_free(client);
    __real_close(ends[1]);
}

/* ---- what only the client of a plain 1.0 server has ---- */

static void a_client_without_memory_for_labels_is_not_made(void) {
    struct jmk_client_config config = {
        .arena_size = 4096, .mode = JMK_CLASSIC, .labels = 1, .max_packet = 1024};
    jmk_client *client;
    int ends[2];

    CHECK_EQUAL(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
    for (unsigned nth = 1; nth <= 3; nth++) { /* the client, its pool, its labels */
        condition = (struct fault){calloc_, 0, ENOMEM, nth, 1};
        atomic_store(&faults_on, 1);
        CHECK_EQUAL(jmk_client_new(&client, ends[0], &config), -ENOMEM);
        atomic_store(&faults_on, 0);
        CHECK_EQUAL(atomic_load(&condition_hits), nth);
        atomic_store(&condition_hits, 0);
    }
    __real_close(ends[0]);
    __real_close(ends[1]);
}

/* ---- all of them ---- */

struct run {
    const struct scenario *scenario;
    struct fault fault;
    struct ledger *ledger;
    pid_t process;
};

static struct run runs[CHILDREN];
static unsigned results[CALLS][8][2][OUTCOMES]; /* call, its error, for ever, outcome */
static unsigned failures;

static void begin(struct run *run) {
    memset(run->ledger, 0, sizeof *run->ledger);
    run->process = fork();
    CHECK(run->process >= 0);
    if (run->process)
        return;
    alarm(DEADLINE);
    scenario = run->scenario;
    condition = scenario->condition;
    fault = run->fault;
    ledger = run->ledger;
    _exit(play());
}

static const char *error_text(int error) {
    return error == SHORT ? "less than asked for" : strerror(error);
}

static void show(const struct run *run, const char *what) {
    const struct fault *that = &run->fault;

    fprintf(stderr, "%s: %s with %s: -f '%s:%u:%#lx:%d:%u:%u'\n", what, calls[that->call].name,
            error_text(that->error), run->scenario->name, (unsigned)that->call,
            (unsigned long)that->at, that->error, that->nth, that->times);
}

static void finish(struct run *run, int status) {
    enum outcome outcome = WIFEXITED(status) ? (enum outcome)WEXITSTATUS(status) : WRONG;
    size_t error = 0;

    run->process = 0;
    if (outcome >= WRONG) {
        outcome = WRONG;
        failures++;
        show(run, WIFEXITED(status)             ? "not as it should be"
                  : WTERMSIG(status) == SIGALRM ? "hangs"
                                                : "crashes");
    }
    if (!run->fault.call)
        return;
    while (calls[run->fault.call].errors[error] != run->fault.error)
        error++;
    results[run->fault.call][error][run->fault.times == FOR_EVER][outcome]++;
}

/* A place for one more child; waits for one to end if there is none. */
static struct run *take_run(void) {
    for (size_t i = 0; i < CHILDREN; i++) {
        if (!runs[i].process)
            return &runs[i];
    }
    for (;;) {
        int status;
        pid_t process = waitpid(-1, &status, 0);

        for (size_t i = 0; i < CHILDREN; i++) {
            if (runs[i].process == process) {
                finish(&runs[i], status);
                return &runs[i];
            }
        }
    }
}

static void finish_all(void) {
    for (size_t i = 0; i < CHILDREN; i++) {
        int status;

        if (runs[i].process) {
            CHECK(waitpid(runs[i].process, &status, 0) == runs[i].process);
            finish(&runs[i], status);
        }
    }
}

static void try(const struct scenario *which, const struct site *site, int error, unsigned nth,
                unsigned times) {
    struct run *run = take_run();

    run->scenario = which;
    run->fault = (struct fault){site->call, atomic_load(&site->at), error, nth, times};
    begin(run);
}

/* What fails for want of something may do so for ever; the rest passes. */
static int may_last(int error) {
    return error != EINTR && error != EPIPE && error != ECONNRESET && error != EAGAIN;
}

static void try_site(const struct scenario *which, const struct site *site) {
    unsigned hits = atomic_load(&site->hits);

    for (size_t i = 0; i < 8 && calls[site->call].errors[i]; i++) {
        int error = calls[site->call].errors[i];

        try(which, site, error, 1, 1);
        for (unsigned nth = 2; site->call <= mmap_ && nth <= hits && nth <= MEMORY_HITS; nth++)
            try(which, site, error, nth, 1);
        if (hits > 1)
            try(which, site, error, 1 + hits / 2, 1);
        if (hits > 3)
            try(which, site, error, 2, 2);
        if (may_last(error))
            try(which, site, error, 1, FOR_EVER);
    }
}

/* Run a scenario with nothing failing. What it comes to stands in the ledger then. */
static void explore(const struct scenario *which, struct ledger *into) {
    struct run run = {.scenario = which, .ledger = into};
    int status;

    begin(&run);
    CHECK(waitpid(run.process, &status, 0) == run.process);
    finish(&run, status);
}

static int known(const struct ledger *ledgers, size_t count, uintptr_t at) {
    for (size_t n = 0; n < count; n++) {
        for (size_t i = 0; i < SITES; i++) {
            if (atomic_load(&ledgers[n].sites[i].at) == at)
                return 1;
        }
    }
    return 0;
}

static void show_results(void) {
    for (size_t call = 1; call < CALLS; call++) {
        for (size_t n = 0; n < 16; n++) {
            const unsigned *result = results[call][n / 2][n % 2];
            int error = calls[call].errors[n / 2];

            if (!error || !(result[0] || result[1] || result[2] || result[3] || result[4]))
                continue;
            printf("%-14s %-34s%s", calls[call].name, error_text(error),
                   n % 2 ? " for ever" : "         ");
            for (size_t outcome = 0; outcome < OUTCOMES; outcome++) {
                if (result[outcome])
                    printf("  %u %s", result[outcome], outcome_names[outcome]);
            }
            putchar('\n');
        }
    }
}

static void try_all(const struct ledger *ledgers, int verbose) {
    for (size_t n = 0; n < SCENARIOS; n++) {
        for (size_t i = 0; i < SITES; i++) {
            const struct site *site = &ledgers[n].sites[i];

            if (site->call && !known(ledgers, n, atomic_load(&site->at)))
                try_site(&scenarios[n], site);
        }
    }
    finish_all();
    if (verbose)
        show_results();
}

static void list_sites(const struct ledger *ledgers) {
    for (size_t n = 0; n < SCENARIOS; n++) {
        for (size_t i = 0; i < SITES; i++) {
            uintptr_t at = atomic_load(&ledgers[n].sites[i].at);

            if (at && !known(ledgers, n, at))
                printf("%#lx\n", (unsigned long)at);
        }
    }
}

/* The one that -f names, in this process. */
static int run_one(const char *words) {
    char name[64];
    unsigned long at;

    ledger = new_ledger();
    if (sscanf(words, "%63[^:]:%u:%lx:%d:%u:%u", name, &fault.call, &at, &fault.error, &fault.nth,
               &fault.times) != 6)
        return 2;
    fault.at = at;
    for (size_t n = 0; n < SCENARIOS; n++) {
        if (strcmp(scenarios[n].name, name) == 0)
            scenario = &scenarios[n];
    }
    CHECK(scenario != NULL);
    condition = scenario->condition;
    puts(outcome_names[play()]);
    return 0;
}

int main(int count, char **words) {
    const char *option = count > 1 ? words[1] : "";
    static struct ledger ledgers[SCENARIOS];

    if (strcmp(option, "-f") == 0 && count > 2)
        return run_one(words[2]);
    ledger = new_ledger();
    a_goodbye_is_kept_until_there_is_memory();
    a_client_without_memory_for_labels_is_not_made();
    for (size_t i = 0; i < CHILDREN; i++)
        runs[i].ledger = new_ledger();
    for (size_t n = 0; n < SCENARIOS; n++) {
        explore(&scenarios[n], runs[0].ledger);
        memcpy(&ledgers[n], runs[0].ledger, sizeof *ledgers);
    }
    if (strcmp(option, "-s") == 0)
        list_sites(ledgers);
    else
        try_all(ledgers, strcmp(option, "-v") == 0);
    return failures ? 1 : 0;
}
