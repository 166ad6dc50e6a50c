/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The clients of a scenario, and what may be seen while a call fails
 *
 * Each client is a thread that receives in its own way (enum role) and holds every message against
 * what was published.
 */
#ifndef JMK_FOLLOWERS_H
#define JMK_FOLLOWERS_H

#include "faults.h"

#include <time.h>

#include "check.h"

#define LOG_SIZE 131072
#define MAX_LAG 40
#define MOST_CLIENTS 16
#define LARGE 12000 /* more than a packet takes */
#define MILLISECOND INT64_C(1000000)
#define SECOND (1000 * MILLISECOND)
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
    unsigned deliveries; /* bits 1 << jmk_delivery */
    unsigned roles; /* bits 1 << role: one client of each in each delivery */
    struct fault condition; /* what this system lacks */
    enum jmk_guard guard; /* of all sockets: whether descriptors could come to them */
};

/* What a child says in its exit status. */
enum outcome { UNTOUCHED, RECOVERED, TOLD, ENDED, WRONG, OUTCOMES };

struct follower {
    enum jmk_delivery delivery;
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
                                       .delivery = follower->delivery,
                                       .guard = scenario->guard,
                                       .max_packet = attached->max_packet,
                                       .max_message = LOG_SIZE / 4,
                                       .log_fd = jmk_server_log_fd(server),
                                       .cursor_fd = attached->cursor_fd,
                                       .first_offset = attached->first_offset};
    int code;

    if (follower->delivery == JMK_CLASSIC)
        config.max_packet = LOG_SIZE / 4;
    if (follower->delivery == JMK_CLASSIC && follower->role == KEEN &&
        scenario->policy == JMK_BLOCK) {
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
    if (follower->delivery == JMK_SHARED) {
        code = jmk_server_attach(server, fd, JMK_SHARED, max_packet, 0, attached);
        if (code >= 0)
            return code;
        if (code != -EOPNOTSUPP)
            note(code, "attach");
        follower->delivery = JMK_FRAMED;
    }
    return jmk_server_attach(server, fd, follower->delivery,
                             follower->delivery == JMK_CLASSIC ? 0 : max_packet, 0, attached);
}

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

/* One more client, unless a fault is in its way. */
static void enter(enum jmk_delivery delivery, enum role role) {
    struct follower *follower = &followers[follower_count];
    struct jmk_attached attached;
    int ends[2], code, released, passed = 0;

    memset(follower, 0, sizeof *follower);
    follower->delivery = delivery;
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
    released = jmk_server_release(server, attached.key);
    CHECK(released == 0 || released == JMK_E_GONE); /* a fault may have ended it already */
    if (code) {
        follower->code = code;
        atomic_store(&follower->done, 1);
        return;
    }
    if (role == MOURNER)
        watch(follower);
    CHECK_EQUAL(__real_pthread_create(&follower->thread, NULL, follow, follower), 0);
}

#endif
