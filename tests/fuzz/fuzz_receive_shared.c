/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A client of a hostile server that shares its log
 *
 * The header page, the ring, the cursor page and the socket are the input's to fill: in good order,
 * or nearly so, or not at all; before the client looks, between its calls, and in the middle of one,
 * at the points where the core lets a test in. The ring is one page, so the place of a message in
 * memory tells its place in the ring.
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "client/client.h"
#include "common/page.h"
#include "common/point.h"
#include "fuzz.h"

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

#define HELD 4
#define TEMPTS 4 /* memfds that are no log */

static struct {
    struct input input;
    jmk_client *client;
    int server;
    /* What is shared is made once, and filled anew by each run. */
    uint64_t size; /* of a page, and of the ring */
    int log_fd, cursor_fd, tempts[TEMPTS];
    struct jmk_log_page *page;
    uint8_t *ring;
    struct jmk_cursor_page *cursor;

    uint64_t offset, id; /* where a server in good order would write next */
    uint64_t sent;       /* the last word it said, and what it named */
    uint64_t received;   /* the last id that came out and was kept */
    uint64_t acked;      /* the client's last ack */
    uint64_t planted;    /* what the server wrote over it */
    int code;            /* how it ended; 0 = it goes on */
    unsigned points;     /* how many more are passed before the server strikes */
    struct jmk_batch batch;
    uint64_t before; /* the last id before that batch */
    bool kept;       /* it was whole when asked, or is looked at where it lies */
    jmk_held *held[HELD];
} run;

/* ---- what is shared ---- */

static int make_memfd(uint64_t size, int seals, void **at) {
    int fd = memfd_create("jumiks-fuzz", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    CHECK(fd >= 0 && fallocate(fd, 0, 0, (off_t)size) == 0);
    if (at)
        *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(!at || *at != MAP_FAILED);
    CHECK_EQUAL(fcntl(fd, F_ADD_SEALS, seals), 0);
    return fd;
}

static void make_shared(void) {
    int all = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE;
    void *page, *cursor;

    run.size = (uint64_t)sysconf(_SC_PAGESIZE);
    run.log_fd = make_memfd(2 * run.size, all, &page);
    run.cursor_fd = make_memfd(sizeof *run.cursor, F_SEAL_SHRINK, &cursor);
    run.page = page;
    run.ring = (uint8_t *)page + run.size;
    run.cursor = cursor;
    run.tempts[0] = make_memfd(2 * run.size, F_SEAL_SHRINK | F_SEAL_GROW, NULL);
    run.tempts[1] = make_memfd(run.size, all, NULL);
    run.tempts[2] = make_memfd(4 * run.size, all, NULL);
    run.tempts[3] = make_memfd(1, F_SEAL_SHRINK, NULL);
}

static void clear_shared(void) {
    memset(run.page, 0, sizeof *run.page);
    memset(run.ring, 0, run.size);
    memset(run.cursor, 0, sizeof *run.cursor);
    run.page->magic = JMK_PAGE_MAGIC;
    run.page->layout = JMK_PAGE_LAYOUT;
    run.page->size = run.size;
}

/* ---- what the server does ---- */

static void put(const void *data, size_t size) {
    for (size_t i = 0; i < size; i++)
        run.ring[(run.offset + i) & (run.size - 1)] = ((const uint8_t *)data)[i];
}

static void publish(void) {
    atomic_fetch_add(&run.page->version, 1);
    atomic_store(&run.page->next_id, run.id);
    atomic_store(&run.page->head, run.offset);
    atomic_fetch_add(&run.page->version, 1);
}

/* A frame, with its payload of whatever stood there; the tail is moved if the input says so. */
static void append(uint64_t near) {
    uint32_t size = (uint32_t)take(&run.input, 1) * (near & 1 ? 1 : 9);
    struct jmk_header header = {size, JMK_KIND_DATA, 0, run.id};
    uint8_t frame[JMK_FRAME_HEADER];

    if (near & 2)
        header.size = (uint32_t)take_near(&run.input, size);
    if (near & 4)
        header.id = take_near(&run.input, run.id);
    if (near & 8)
        header.kind = (uint16_t)take(&run.input, 2);
    jmk_frame_encode(frame, &header);
    put(frame, sizeof frame);
    run.offset += jmk_frame_length(size);
    run.id++;
    if (run.offset - atomic_load(&run.page->tail) > run.size)
        atomic_store(&run.page->tail, run.offset - run.size);
}

static void store_word(void) {
    uint64_t where = take(&run.input, 1);
    _Atomic uint64_t *words[] = {&run.page->head,     &run.page->next_id,    &run.page->version,
                                 &run.page->tail,     &run.page->oldest_id,  &run.page->control,
                                 &run.cursor->wanted, &run.cursor->sleeping, &run.cursor->acked_id};
    _Atomic uint64_t *word = words[where % (sizeof words / sizeof *words)];

    atomic_store(word, take_near(&run.input, where & 0x80 ? run.offset : atomic_load(word)));
    if (word == &run.cursor->acked_id)
        run.planted = atomic_load(word);
}

static void store_bytes(void) {
    uint8_t bytes[64];
    uint64_t at = take(&run.input, 2);
    size_t size = take_bytes(&run.input, bytes, (size_t)take(&run.input, 1) % sizeof bytes);

    for (size_t i = 0; i < size; i++)
        run.ring[(at + i) & (run.size - 1)] = bytes[i];
}

static void send_packet(const void *packet, size_t size) {
    uint64_t how = take(&run.input, 1);

    if (how < 0xc0)
        send(run.server, packet, size, MSG_DONTWAIT | MSG_NOSIGNAL);
    else
        send_with_descriptors(run.server, packet, size, how & 0x20 ? 253 : 1);
    if (how & 1)
        atomic_fetch_add(&run.page->control, 1);
}

static void send_control(void) {
    static const uint16_t kinds[] = {JMK_KIND_WAKE, JMK_KIND_SKIP, JMK_KIND_RESUME,
                                     JMK_KIND_DATA, JMK_KIND_BYE,  0x8005};
    uint64_t what = take(&run.input, 1), words[2];
    struct jmk_header header = {what & 8 ? 8 : 0, kinds[(what >> 4) % 6], 0,
                                take_near(&run.input, run.id)};

    if (header.kind == JMK_KIND_RESUME) {
        run.offset = what & 1 ? take_near(&run.input, run.offset) : run.offset;
        run.id = header.id;
    }
    jmk_frame_encode(words, &header);
    words[1] = htole64(header.id);
    uint64_t packet[3] = {words[0], words[1], htole64(run.offset)};
    send_packet(packet, JMK_FRAME_HEADER + (size_t)(what & 4 ? take(&run.input, 1) % 9 : 8));
}

static void send_bye(void) {
    uint8_t frame[JMK_FRAME_HEADER + JMK_BYE_SIZE];
    struct jmk_goodbye words = {.reason = (uint32_t)take(&run.input, 1)};

    words.first_lost = take_near(&run.input, run.id);
    words.last_lost = take_near(&run.input, run.id);
    jmk_bye_encode(frame, take_near(&run.input, run.id - 1), &words);
    send_packet(frame, sizeof frame);
}

static void send_any(void) {
    uint8_t packet[300];
    size_t size = take_bytes(&run.input, packet, (size_t)take(&run.input, 2) % sizeof packet);

    send_packet(packet, size);
}

static void append_good(void) {
    append(0);
    publish();
}

static void append_any(void) {
    append(take(&run.input, 1));
}

/* What a server does, by its number; some of a user's steps have the numbers behind these. */
static void (*const serves[])(void) = {
    append_good, append_any, publish, store_word, store_bytes, send_control, send_bye, send_any,
};

#define SERVES (sizeof serves / sizeof *serves)

/* In the middle of a call of the client's. */
static void at_point(enum jmk_point point) {
    (void)point;
    if (run.points && --run.points == 0)
        serves[take(&run.input, 1) % SERVES]();
}

/* ---- what the user does ---- */

/* A message is in a frame of the ring, and has the bytes that stand there. */
static void check_item(const struct jmk_slice *item, uint64_t id, uint64_t place) {
    const uint8_t *at = (const uint8_t *)item->data - JMK_FRAME_HEADER;
    struct jmk_header header = jmk_frame_decode(at);

    CHECK_EQUAL((uintptr_t)at % run.size, place);
    CHECK_EQUAL(header.kind, JMK_KIND_DATA);
    CHECK_EQUAL(header.id, id);
    CHECK_EQUAL(header.size, item->size);
    for (uint64_t i = 0; i < JMK_FRAME_HEADER + item->size; i++)
        CHECK_EQUAL(at[i], run.ring[(place + i) % run.size]);
}

static void check_items(const struct jmk_batch *batch) {
    uint64_t place = ((uintptr_t)batch->items[0].data - JMK_FRAME_HEADER) % run.size, length = 0;
    size_t bytes = 0;

    for (size_t i = 0; i < batch->count; i++) {
        const struct jmk_slice *item = &batch->items[i];

        length += jmk_frame_length(item->size);
        CHECK(length <= run.size);
        check_item(item, batch->first_id + i, place);
        /* They are one stretch of memory, also where the ring ends. */
        CHECK(!i || (const uint8_t *)item->data ==
                        (const uint8_t *)item[-1].data + jmk_frame_length(item[-1].size));
        place = (place + jmk_frame_length(item->size)) % run.size;
        bytes += item->size;
    }
    CHECK_EQUAL(batch->bytes, bytes);
}

static void check_batch(const struct jmk_batch *batch, uint64_t last) {
    CHECK(batch->count > 0 && batch->count <= JMK_MAX_ITEMS);
    CHECK(batch->first_id > run.received && batch->first_id + batch->count > batch->first_id);
    CHECK(last == 0 || batch->lost == batch->first_id - last - 1);
    check_items(batch);
    run.before = run.received;
    run.received = batch->first_id + batch->count - 1;
    CHECK_EQUAL(jmk_client_last_id(run.client), run.received);
}

static void check_end(int code) {
    CHECK(code == JMK_E_TIMEOUT || code == JMK_E_END || code == JMK_E_LOST ||
          code == JMK_E_PROTOCOL || code == JMK_E_CLOSED);
    /* Of the others more may follow: the log is read to its end, and this server still writes. */
    CHECK(run.code != JMK_E_PROTOCOL || code == run.code || code == JMK_E_CLOSED);
    if (code != JMK_E_TIMEOUT)
        run.code = code;
    CHECK_EQUAL(run.batch.count, 0);
    CHECK_EQUAL(fault_of(run.client) != JMK_FAULT_NONE, run.client->state == JMK_BROKEN);
}

/* Acks in the cursor page rise, and name what came out; but for what the server wrote there. */
static void check_ack(void) {
    uint64_t acked = atomic_load(&run.cursor->acked_id);

    if (acked == run.acked || acked == run.planted)
        return;
    CHECK(acked > run.acked && acked <= run.received);
    run.acked = run.planted = acked;
}

/*
 * As every user has to who copies, once, and before any of it is acked: ask whether it was whole, and
 * if not take it as not received. Views say themselves what they are.
 */
static void ask(void) {
    if (run.batch.count == 0 || run.kept)
        return;
    run.kept = jmk_client_batch_is_intact(run.client);
    if (run.kept)
        return;
    jmk_client_drop_batch(run.client);
    run.received = run.before;
    run.batch.count = 0;
    CHECK_EQUAL(jmk_client_last_id(run.client), run.received);
}

static int receive(uint64_t handled, int64_t timeout) {
    uint64_t last;
    int code;

    ask();
    last = jmk_client_last_id(run.client);
    do
        code = jmk_client_receive(run.client, handled, timeout, &run.batch);
    while (code == -EINTR); /* what comes without a message took its time */
    CHECK_EQUAL(code == JMK_E_ACK, handled > last);
    if (code == JMK_E_ACK)
        return code;
    run.kept = false;
    if (code)
        check_end(code);
    else
        check_batch(&run.batch, last);
    check_ack();
    return code;
}

static void ack(void) {
    uint64_t handled = take_near(&run.input, run.received), last;
    int code;

    ask();
    last = jmk_client_last_id(run.client);
    code = jmk_client_ack(run.client, handled, 0);
    CHECK(code == 0 || code == JMK_E_CLOSED || code == JMK_E_ACK);
    CHECK(code == JMK_E_CLOSED || (code == JMK_E_ACK) == (handled > last));
    check_ack();
}

static void hold(void) {
    jmk_held **held = &run.held[take(&run.input, 1) % HELD];

    jmk_held_free(*held);
    *held = NULL;
    check_ack();
    if (run.batch.count)
        *held = jmk_client_hold_batch(run.client);
    run.kept |= *held != NULL;
    if (*held)
        CHECK_EQUAL(jmk_held_is_intact(*held), jmk_client_batch_is_intact(run.client));
}

static void read_acks(void) {
    uint64_t word[3];
    ssize_t size;

    while ((size = recv(run.server, word, sizeof word, MSG_DONTWAIT)) > 0)
        CHECK(size == JMK_ACK_SIZE || size == JMK_ANSWER_SIZE);
}

/* ---- a run ---- */

static void receive_first(void) {
    receive(0, 0);
}

static void receive_next(void) {
    receive(run.received, 0);
    ask();
}

static void receive_some(void) {
    receive(take_near(&run.input, run.received), 0);
}

static void end_or_read(void) {
    uint64_t how = take(&run.input, 1);

    if (how == 0)
        jmk_client_close(run.client);
    else if (how == 1)
        shutdown(run.server, SHUT_WR);
    else
        read_acks();
}

static void strike_at_point(void) {
    run.points = 1 + (unsigned)take(&run.input, 1) % 8;
}

static void (*const steps[])(void) = {
    receive_first, receive_next, receive_some, ask, ack, hold, strike_at_point, end_or_read,
};

#define STEPS (sizeof steps / sizeof *steps)

static void step(void) {
    uint64_t number = take(&run.input, 1) % (SERVES + STEPS);

    if (number < SERVES)
        serves[number]();
    else
        steps[number - SERVES]();
}

static bool start(void) {
    uint64_t how = take(&run.input, 1);
    uint64_t first_id = how & 1 ? take(&run.input, 8) : JMK_FIRST_ID;
    struct jmk_client_config config = {
        .first_id = first_id,
        .delivery = JMK_SHARED,
        .guard = JMK_GUARD_ALWAYS,
        .log_fd = how & 64 ? run.tempts[how >> 1 & 3] : run.log_fd,
        .cursor_fd = how & 128 ? run.tempts[how >> 1 & 3] : run.cursor_fd,
        .first_offset = how & 8 ? take(&run.input, 8) : 0,
        .spin = (how & 0x30) == 0x30,
    };
    int fds[2], error;

    CHECK_EQUAL(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds), 0);
    run.server = fds[1];
    run.offset = config.first_offset;
    run.id = config.first_id;
    atomic_store(&run.page->tail, run.offset);
    publish();
    if (how & 32) {
        uint8_t *byte = (uint8_t *)run.page + take(&run.input, 1) % 24;
        *byte ^= (uint8_t)take(&run.input, 1);
    }
    error = jmk_client_new(&run.client, fds[0], &config);
    if (!error) {
        run.received = run.before = jmk_client_last_id(run.client);
        return true;
    }
    CHECK(error == JMK_E_LOG || error == JMK_E_SHAPE || error == -EPROTONOSUPPORT ||
          (error == -EPERM && how & 128)); /* a page that nobody can write */
    CHECK(how & (32 | 64 | 128) || config.first_id < JMK_FIRST_ID || config.first_offset % 8);
    close(fds[0]);
    close(fds[1]);
    return false;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (!run.size)
        make_shared();
    clear_shared();
    jmk_at_point = at_point;
    run.received = run.before = run.acked = run.planted = run.points = 0;
    run.code = 0;
    run.kept = false;
    memset(&run.batch, 0, sizeof run.batch);
    run.input = (struct input){data, size};
    if (!start())
        return 0;
    while (run.input.left)
        step();
    run.points = 0;
    shutdown(run.server, SHUT_WR);
    while (receive(0, -1) == 0) {
    }
    CHECK(run.code);
    for (size_t i = 0; i < HELD; i++) {
        if (i == HELD / 2) {
            jmk_client_free(run.client);
            close(run.server);
        }
        jmk_held_free(run.held[i]); /* some before the client goes, some behind it */
        run.held[i] = NULL;
    }
    return 0;
}
