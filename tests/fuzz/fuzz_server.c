/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A server with hostile clients, of every delivery and under every policy
 *
 * The input says what is published and what up to three clients send, write into their cursor pages,
 * and leave undone. One more client keeps all rules: whatever the others do, it gets every message,
 * in order, and is never cut. What the others are sent is looked at too, for as long as they read.
 *
 * A server outlives a run, for each policy one; some runs have one of their own, and close it. The
 * log begins a run at the start of its ring, so that an input meets the same places again.
 */
#include <endian.h>
#include <errno.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "common/page.h"
#include "fuzz.h"
#include "jumiks.h"

#define LOG_SIZE 16384u
#define MAX_MESSAGE (LOG_SIZE / 4)
#define MAX_LAG 12
#define POLICIES 3
#define KINDS (2 * POLICIES) /* each policy with the patience it is for, and with next to none */
#define CLIENTS 4
#define MAX_CLIENTS 16 /* some that left may not be known to have, so it is a bound too */
#define HONEST (CLIENTS - 1)
#define SIZES 65536 /* how many messages' sizes are remembered */
#define PATIENCE 10 /* s, in which anything here has happened */
#define LARGEST_PACKET 131072

enum life { NOT_THERE, OPEN };

struct client {
    enum life life;
    uint32_t delivery;
    int fd;
    struct jmk_attached attached;
    struct jmk_cursor_page *cursor;
    uint64_t next; /* the id it gets next */
    uint32_t have; /* bytes of that one, in fragments */
    bool over;     /* a BYE came */
};

/* A server, and what was published by it. */
struct shop {
    jmk_server *server;
    enum jmk_policy policy;
    uint64_t next, offset;
    uint16_t sizes[SIZES];
};

static struct {
    struct input input;
    struct shop kept[KINDS], own, *shop;
    struct client clients[CLIENTS];
    struct client *one; /* whose turn it is */
    unsigned attached, gone;
} run;

static void open_shop(struct shop *shop, uint64_t kind) {
    uint64_t policy = kind % POLICIES;
    struct jmk_config config = {.log_size = LOG_SIZE,
                                .max_lag = MAX_LAG,
                                .patience = kind >= POLICIES      ? 1
                                            : policy == JMK_BLOCK ? -1
                                                                  : 0,
                                .policy = (uint32_t)policy,
                                .max_message = MAX_MESSAGE,
                                .max_clients = MAX_CLIENTS,
                                .send_buffer = 65536};

    CHECK_EQUAL(jmk_server_new(&shop->server, &config), 0);
    shop->policy = (enum jmk_policy)policy;
    shop->next = JMK_FIRST_ID;
    shop->offset = 0;
}

/* ---- what is published ---- */

static uint8_t byte_of(uint64_t id, uint64_t at) {
    return (uint8_t)(id * 13 + at * 5);
}

static uint64_t length_of(uint64_t size) {
    return (16 + size + 7) / 8 * 8;
}

/* False if somebody is in the way. */
static bool append(size_t size) {
    struct shop *shop = run.shop;
    struct jmk_account holder;
    uint8_t message[MAX_MESSAGE];
    uint64_t id;
    int code;

    for (size_t at = 0; at < size; at++)
        message[at] = byte_of(shop->next, at);
    code = jmk_server_append(shop->server, message, size, &id);
    if (code == JMK_E_FULL) {
        code = jmk_server_wait_room(shop->server, size, 0, &holder, NULL);
        CHECK(code == 0 || code == JMK_E_TIMEOUT);
        code = jmk_server_append(shop->server, message, size, &id);
    }
    CHECK(code == 0 || code == JMK_E_FULL);
    if (code)
        return false;
    CHECK_EQUAL(id, shop->next);
    shop->sizes[id % SIZES] = (uint16_t)size;
    shop->next++;
    shop->offset += length_of(size);
    return true;
}

/* Nobody is there: bring the log to the start of its ring. */
static void fill_ring(void) {
    while (run.shop->offset % LOG_SIZE) {
        uint64_t left = LOG_SIZE - run.shop->offset % LOG_SIZE;
        uint64_t part = left < MAX_MESSAGE ? left : MAX_MESSAGE;
        CHECK(append(part < 16 ? 0 : part - 16)); /* if 8 are left, once more around */
    }
}

/* ---- what clients are sent ---- */

static uint64_t number_at(const uint8_t *at, size_t size) {
    return take(&(struct input){at, size}, size);
}

static void check_content(uint64_t id, uint64_t from, const uint8_t *data, uint64_t size) {
    CHECK(from + size <= run.shop->sizes[id % SIZES]);
    for (uint64_t at = 0; at < size; at++)
        CHECK_EQUAL(data[at], byte_of(id, from + at));
}

static void check_message(struct client *client, uint64_t id, const uint8_t *data, uint64_t size) {
    CHECK(id < run.shop->next && id >= client->next);
    CHECK(id == client->next || run.shop->policy == JMK_SKIP);
    CHECK(client->have == 0 || id > client->next);
    CHECK_EQUAL(size, run.shop->sizes[id % SIZES]);
    check_content(id, 0, data, size);
    client->next = id + 1;
    client->have = 0;
}

static void check_fragment(struct client *client, uint64_t id, const uint8_t *data, uint64_t size) {
    uint64_t total = number_at(data, 4), offset = number_at(data + 4, 4);

    if (id > client->next) {
        CHECK_EQUAL(run.shop->policy, JMK_SKIP);
        client->next = id;
        client->have = 0;
    }
    CHECK(id == client->next && offset == client->have);
    CHECK_EQUAL(total, run.shop->sizes[id % SIZES]);
    check_content(id, offset, data + 8, size - 8);
    client->have += (uint32_t)size - 8;
    if (client->have == total) {
        client->next++;
        client->have = 0;
    }
}

static void check_frames(struct client *client, const uint8_t *at, size_t left) {
    while (left) {
        uint64_t size, kind, flags;

        CHECK(left >= JMK_FRAME_HEADER);
        size = number_at(at, 4);
        kind = number_at(at + 4, 2);
        flags = number_at(at + 6, 2);
        CHECK(left >= length_of(size) && !client->over);
        if (kind == JMK_KIND_BYE)
            client->over = true;
        else if (client->delivery == JMK_SHARED)
            CHECK(kind >= JMK_KIND_WAKE && kind <= JMK_KIND_RESUME);
        else if (flags & JMK_FLAG_FRAGMENT)
            check_fragment(client, number_at(at + 8, 8), at + 16, size);
        else
            check_message(client, number_at(at + 8, 8), at + 16, size);
        at += length_of(size);
        left -= length_of(size);
    }
}

static void read_all(struct client *client) {
    static uint8_t packet[LARGEST_PACKET];
    ssize_t size;

    if (client->life != OPEN)
        return;
    while ((size = recv(client->fd, packet, sizeof packet, MSG_DONTWAIT | MSG_TRUNC)) > 0) {
        CHECK((size_t)size <= sizeof packet);
        CHECK(!client->attached.max_packet || (size_t)size <= client->attached.max_packet);
        if (client->delivery != JMK_CLASSIC)
            check_frames(client, packet, (size_t)size);
        else
            check_message(client, number_at(packet, 8), packet + 8, (size_t)size - 8);
    }
}

/* ---- the one that keeps the rules ---- */

static void check_accounts(void) {
    uint64_t published = run.shop->next - JMK_FIRST_ID;
    struct jmk_account accounts[MAX_CLIENTS];
    size_t count;

    CHECK_EQUAL(jmk_server_accounts(run.shop->server, accounts, MAX_CLIENTS, &count), 0);
    CHECK(count <= MAX_CLIENTS);
    for (size_t i = 0; i < count; i++) {
        const struct jmk_account *account = &accounts[i];

        CHECK_EQUAL(account->reason, JMK_R_NONE);
        CHECK(account->acked_id < run.shop->next && account->sent_id < run.shop->next);
        CHECK(account->lag <= published && account->queued <= published);
        CHECK(account->unacked <= published && account->skipped <= published);
        CHECK(account->lag_bytes <= LOG_SIZE);
        CHECK_EQUAL(account->first_lost, 0);
    }
}

/* All that was published goes out; the honest client gets it, and acks. */
static void go_round(void) {
    struct client *honest = &run.clients[HONEST];
    uint64_t ack;

    check_accounts();
    read_all(honest);
    CHECK_EQUAL(honest->next, run.shop->next);
    ack = htole64(honest->next - 1);
    CHECK_EQUAL(send(honest->fd, &ack, sizeof ack, MSG_DONTWAIT | MSG_NOSIGNAL), sizeof ack);
}

static void publish(size_t size) {
    if (append(size))
        go_round();
}

/* ---- what the others do ---- */

static void attach(struct client *client, uint32_t delivery, uint64_t start, uint32_t max_packet,
                   bool narrow, bool guarded) {
    int fds[2], least = 1, code;

    CHECK_EQUAL(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds), 0);
    CHECK_EQUAL(jmk_socket_prepare(run.shop->server, fds[0], &max_packet), 0);
    if (!guarded)
        refuse_descriptors(fds[0]);
    if (narrow) /* a socket that a few packets fill */
        setsockopt(fds[0], SOL_SOCKET, SO_SNDBUF, &least, sizeof least);
    *client = (struct client){.delivery = delivery, .fd = fds[1]};
    code =
        jmk_server_attach(run.shop->server, fds[0], delivery, max_packet, start, &client->attached);
    if (code) {
        CHECK(code == JMK_E_NO_SLOT || (code == JMK_E_START && start > run.shop->next));
        close(fds[0]);
        close(fds[1]);
        return;
    }
    run.attached++;
    client->life = OPEN;
    client->next = client->attached.first_id;
    CHECK(client->next <= run.shop->next && client->next >= JMK_FIRST_ID);
    if (delivery != JMK_SHARED)
        return;
    client->cursor = mmap(NULL, sizeof *client->cursor, PROT_READ | PROT_WRITE, MAP_SHARED,
                          client->attached.cursor_fd, 0);
    CHECK(client->cursor != MAP_FAILED);
    close(client->attached.cursor_fd);
}

static void leave(struct client *client) {
    if (client->life == NOT_THERE)
        return;
    close(client->fd);
    if (client->cursor)
        munmap(client->cursor, sizeof *client->cursor);
    client->cursor = NULL;
    client->life = NOT_THERE;
}

static void attach_one(void) {
    uint64_t how = take(&run.input, 1);
    uint64_t start = how & 4 ? take_near(&run.input, run.shop->next) : how >> 3 & 1;

    leave(run.one);
    attach(run.one, (uint32_t)(how >> 4) % 3, start, how & 1 ? 512 : 0, (how & 65) == 65, how & 32);
    if (run.one->life == OPEN && how & 2)
        jmk_server_release(run.shop->server, run.one->attached.key);
}

static void release_one(void) {
    jmk_server_release(run.shop->server, run.one->attached.key);
}

static void publish_small(void) {
    publish((size_t)take(&run.input, 1));
}

static void publish_any(void) {
    publish((size_t)take(&run.input, 2) % (MAX_MESSAGE + 1));
}

static void say(const void *data, size_t size) {
    if (run.one->life == OPEN)
        send(run.one->fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static void say_ack(void) {
    uint64_t word = htole64(take_near(&run.input, run.shop->next));

    say(&word, sizeof word);
}

static void say_answer(void) {
    uint64_t words[2] = {htole64(take_near(&run.input, run.shop->next)), 0};

    say(words, sizeof words);
}

static void say_any(void) {
    uint8_t bytes[32];
    size_t how = (size_t)take(&run.input, 1);
    size_t size = take_bytes(&run.input, bytes, how % sizeof bytes);

    if (how < 0x80)
        say(bytes, size);
    else if (run.one->life == OPEN)
        send_with_descriptors(run.one->fd, bytes, size, how & 0x40 ? 253 : 1);
}

static void say_many(void) {
    uint64_t id = take_near(&run.input, run.shop->next), count = take(&run.input, 1) % 100, word;

    for (; count > 0; count--, id++) {
        word = htole64(id < run.shop->next ? id : run.shop->next - 1);
        say(&word, sizeof word);
    }
}

static void write_cursor(void) {
    uint64_t what = take(&run.input, 1), word = take_near(&run.input, run.shop->next - 1);

    if (!run.one->cursor)
        return;
    if (what % 4 == 0)
        atomic_store(&run.one->cursor->wanted, word);
    else if (what % 4 == 1)
        atomic_store(&run.one->cursor->sleeping, word);
    else
        atomic_store(&run.one->cursor->acked_id, word);
}

static void write_cursor_and_look(void) {
    write_cursor();
    check_accounts();
}

static void read_one(void) {
    read_all(run.one);
}

static void leave_one(void) {
    leave(run.one);
}

static void shut(void) {
    static const int ways[] = {SHUT_RD, SHUT_WR, SHUT_RDWR};
    int way = ways[take(&run.input, 1) % 3];

    if (run.one->life == OPEN)
        shutdown(run.one->fd, way);
}

static void kick_out(void) {
    jmk_server_disconnect(run.shop->server, run.one->attached.key, JMK_R_KICKED);
}

static void wait_acked(void) {
    struct jmk_account holder;
    uint64_t id = take_near(&run.input, run.shop->next - 1);
    int code = jmk_server_wait_acked(run.shop->server, id, 0, &holder);

    CHECK(code == 0 || code == JMK_E_TIMEOUT);
}

static void kick_server(void) {
    jmk_server_kick(run.shop->server);
}

static void (*const steps[])(void) = {
    attach_one, release_one, publish_small, publish_any,           say_ack,  say_answer,
    say_any,    say_many,    write_cursor,  write_cursor_and_look, read_one, leave_one,
    shut,       kick_out,    wait_acked,    kick_server,
};

static void step(void) {
    uint64_t number = take(&run.input, 1);

    run.one = &run.clients[(number >> 4) % HONEST];
    steps[number & 15]();
}

/* ---- a run ---- */

static void check_event(const struct jmk_event *event, bool closing) {
    const struct jmk_account *account = &event->account;
    bool honest = account->key == run.clients[HONEST].attached.key;

    CHECK(event->kind == JMK_EVENT_GONE || event->kind == JMK_EVENT_SKIPPED ||
          event->kind == JMK_EVENT_CLOSED);
    CHECK(account->first_lost <= account->last_lost);
    CHECK_EQUAL(account->first_lost == 0, account->last_lost == 0);
    CHECK(account->last_lost < run.shop->next);
    if (event->kind != JMK_EVENT_GONE)
        return;
    run.gone++;
    CHECK(account->reason >= JMK_R_LAGGED && account->reason <= JMK_R_LEFT);
    CHECK(account->reason != JMK_R_CLOSING || closing);
    if (honest)
        CHECK(account->reason == (closing ? JMK_R_CLOSING : JMK_R_LEFT) && !account->first_lost);
}

/* Everybody's end was closed: each of them is told of, once. */
static void collect(bool closing) {
    time_t deadline = time(NULL) + PATIENCE;
    struct jmk_event event;
    struct jmk_stats stats;

    while (run.gone < run.attached) {
        CHECK_EQUAL(jmk_server_stats(run.shop->server, &stats), 0);
        while (jmk_server_next_event(run.shop->server, &event) == 0)
            check_event(&event, closing);
        CHECK(time(NULL) < deadline);
    }
    CHECK_EQUAL(run.gone, run.attached);
}

static void start(uint64_t how) {
    run.shop = how & 0xe0 ? &run.kept[how % KINDS] : &run.own;
    if (!run.shop->server)
        open_shop(run.shop, how % KINDS);
    run.attached = run.gone = 0;
    fill_ring();
    attach(&run.clients[HONEST], JMK_FRAMED, 0, 0, false, false);
    CHECK_EQUAL(run.clients[HONEST].attached.first_offset, run.shop->offset);
    CHECK_EQUAL(jmk_server_release(run.shop->server, run.clients[HONEST].attached.key), 0);
}

static void close_shop(void) {
    int code;

    CHECK_EQUAL(jmk_server_close(run.shop->server, 0), 0);
    do
        code = jmk_server_join(run.shop->server, (int64_t)PATIENCE * 1000000000);
    while (code == -EINTR); /* a fuzzer has its own timer */
    CHECK_EQUAL(code, 0);
    collect(true);
    run.shop->server = jmk_server_free(run.shop->server);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    run.input = (struct input){data, size};
    start(take(&run.input, 1));
    while (run.input.left)
        step();
    go_round();
    if (run.shop == &run.own)
        close_shop();
    for (size_t i = 0; i < CLIENTS; i++) {
        read_all(&run.clients[i]);
        leave(&run.clients[i]);
    }
    if (run.shop != &run.own)
        collect(false);
    return 0;
}
