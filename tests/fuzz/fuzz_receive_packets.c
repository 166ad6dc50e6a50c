/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A client of a hostile server that sends packets
 *
 * The input says how the client was set up, and then step by step what the server sends and what the
 * user does. What was sent is noted, so that each message that comes out can be held against it: it
 * lies within its arena, has the bytes that were sent for its id, and ids rise. A batch that is held
 * keeps its bytes whatever comes later. Only documented codes come out, and an end is for good.
 */
#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

#include "client/client.h"
#include "fuzz.h"

#define MAX_PACKET 512u
#define MAX_MESSAGE 900u
#define NOTES 512
#define NOTED_BYTES 32768
#define HELD 4

/* A message, or a part of one, that was sent. */
struct note {
    uint64_t id;
    uint32_t total, offset, size;
    const uint8_t *data;
};

struct held {
    jmk_held *arena;
    struct jmk_slice items[NOTES];
    size_t count;
    uint64_t sum;
};

static struct {
    struct input input;
    jmk_client *client;
    uint32_t delivery;
    int server;
    uint8_t packet[2 * MAX_PACKET]; /* in the making */
    size_t size;
    uint8_t bytes[NOTED_BYTES]; /* of all packets sent */
    size_t used;
    struct note notes[NOTES];
    size_t noted;
    uint64_t first;   /* the id that comes first at the earliest */
    uint64_t next;    /* where a server in good order would go on ... */
    uint32_t total;   /* ... and in which message in fragments, ... */
    uint32_t offset;  /* ... and where in that */
    uint64_t received; /* the last id that came out */
    uint64_t handled; /* the highest that was said to be handled */
    uint64_t acked;   /* the last ack that came */
    bool labels;      /* ids are labels: */
    uint64_t start;   /* our id of the first message, ... */
    uint64_t got[NOTES]; /* ... what the packets of all carried that came out, ... */
    size_t count, acks;  /* ... how many those are, and those acked */
    int code;         /* how it ended; 0 = it goes on */
    struct held held[HELD];
    struct jmk_batch batch;
} run;

/* ---- what the server sends ---- */

static void put(const void *data, size_t size) {
    if (size > sizeof run.packet - run.size)
        size = sizeof run.packet - run.size;
    memcpy(run.packet + run.size, data, size);
    run.size += size;
}

/* So many bytes that tell which message they are of, and where in it they stand. */
static void put_pattern(uint64_t id, size_t size) {
    uint8_t bytes[2 * MAX_PACKET];

    for (size_t i = 0; i < size; i++)
        bytes[i] = (uint8_t)(id * 31 + run.used + i);
    put(bytes, size);
}

static void put_padding(uint64_t payload) {
    put("\0\0\0\0\0\0\0", (size_t)(jmk_frame_length(payload) - JMK_FRAME_HEADER - payload));
}

static void put_message(void) {
    uint64_t id = take_near(&run.input, run.next), word = htole64(id);
    struct jmk_header header = {(uint32_t)take(&run.input, 1), JMK_KIND_DATA, 0, id};
    uint8_t frame[JMK_FRAME_HEADER];

    jmk_frame_encode(frame, &header);
    if (run.delivery == JMK_FRAMED)
        put(frame, sizeof frame);
    else
        put(&word, sizeof word);
    put_pattern(id, header.size);
    if (run.delivery == JMK_FRAMED)
        put_padding(header.size);
    run.next = id + 1;
}

/* A fragment: the next one, or one that differs in a figure or two. */
static void put_fragment(void) {
    uint64_t change = take(&run.input, 1), id = run.next;
    uint32_t slice = 8 * (1 + (uint32_t)take(&run.input, 1) % 60);
    uint8_t headers[JMK_FRAGMENT_HEADER];

    if (run.offset >= run.total) {
        run.total = (uint32_t)take(&run.input, 2) % (MAX_MESSAGE + 100);
        run.offset = 0;
    }
    if (change & 1)
        id = take_near(&run.input, id);
    if (change & 2)
        run.offset += 8 * (uint32_t)take_near(&run.input, 0);
    if (change & 4)
        run.total = (uint32_t)take_near(&run.input, run.total);
    if (slice > run.total - run.offset && !(change & 8))
        slice = run.total - run.offset;
    jmk_fragment_encode(headers, id, slice, run.total, run.offset);
    if (change & 16) {
        uint8_t *byte = &headers[take(&run.input, 1) % sizeof headers];
        *byte = (uint8_t)take(&run.input, 1);
    }
    put(headers, sizeof headers);
    put_pattern(id, slice % MAX_PACKET);
    put_padding(slice % MAX_PACKET);
    run.offset += slice;
    if (run.offset >= run.total)
        run.next = id + 1;
}

/* Any header, whose size says what stands behind it or nearly so. */
static void put_frame(void) {
    uint16_t kind = (uint16_t)take(&run.input, 2), flags = (uint16_t)take(&run.input, 2);
    uint32_t size = (uint32_t)take(&run.input, 1);
    struct jmk_header header = {(uint32_t)take_near(&run.input, size), kind, flags, 0};
    uint8_t frame[JMK_FRAME_HEADER];

    header.id = take_near(&run.input, run.next);
    jmk_frame_encode(frame, &header);
    put(frame, sizeof frame);
    put_pattern(header.id, size);
    put_padding(size);
}

static void put_bye(void) {
    uint8_t frame[JMK_FRAME_HEADER + JMK_BYE_SIZE];
    struct jmk_goodbye words = {.reason = (uint32_t)take(&run.input, 1)};

    words.last_lost = take_near(&run.input, run.next);
    jmk_bye_encode(frame, take_near(&run.input, run.next), &words);
    put(frame, sizeof frame);
}

static void put_any(void) {
    uint8_t bytes[256];

    put(bytes, take_bytes(&run.input, bytes, (size_t)take(&run.input, 1)));
}

static void note(struct note what) {
    if (run.noted < NOTES)
        run.notes[run.noted++] = what;
}

/* Note the messages in a packet, found by other means than the core's. */
static void note_frames(const uint8_t *at, size_t left) {
    while (left >= 16) {
        struct jmk_header frame; /* as little-endian machines have it */
        uint32_t words[2];
        size_t whole;

        memcpy(&frame, at, sizeof frame);
        whole = 16 + ((size_t)frame.size + 7) / 8 * 8;
        if (whole > left)
            return;
        memcpy(words, at + 16, frame.size < 8 ? 0 : 8);
        if (frame.kind == JMK_KIND_DATA && !(frame.flags & JMK_FLAG_FRAGMENT))
            note((struct note){frame.id, frame.size, 0, frame.size, at + 16});
        else if (frame.kind == JMK_KIND_DATA && frame.size > 8)
            note((struct note){frame.id, words[0], words[1], frame.size - 8, at + 24});
        at += whole;
        left -= whole;
    }
}

static void note_packet(const uint8_t *at, size_t size) {
    uint32_t payload = (uint32_t)size - 8;
    uint64_t id;

    if (size > MAX_PACKET)
        return;
    if (run.delivery == JMK_FRAMED) {
        note_frames(at, size);
    } else if (size >= 8) {
        memcpy(&id, at, sizeof id);
        note((struct note){id, payload, 0, payload, at + 8});
    }
}

static void send_packet(void) {
    uint8_t *at = run.bytes + run.used;

    if (run.size > sizeof run.bytes - run.used || run.noted + 32 > NOTES)
        return;
    memcpy(at, run.packet, run.size);
    if (send(run.server, at, run.size, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0) {
        run.used += run.size;
        note_packet(at, run.size);
    }
    run.size = 0;
}

/* ---- what the user gets ---- */

/* Is that what was sent for this id, from offset on? Parts may have been sent more than once. */
static bool was_sent(uint64_t id, const struct jmk_slice *item, uint32_t offset) {
    for (size_t i = 0; i < run.noted; i++) {
        const struct note *note = &run.notes[i];
        const uint8_t *data = item->data;

        if (note->id != id || note->total != item->size || note->offset != offset ||
            note->size > item->size - offset || memcmp(data + offset, note->data, note->size) != 0)
            continue;
        if (offset + note->size == item->size || was_sent(id, item, offset + note->size))
            return true;
    }
    return false;
}

static uint64_t sum_of(const struct jmk_slice *items, size_t count) {
    uint64_t sum = count;

    for (size_t i = 0; i < count; i++) {
        const uint8_t *data = items[i].data;
        for (size_t at = 0; at < items[i].size; at++)
            sum = sum * 31 + data[at];
    }
    return sum;
}

static void check_batch(const struct jmk_batch *batch) {
    const struct jmk_arena *arena = run.client->packets.last;
    size_t bytes = 0;

    CHECK(batch->count > 0 && batch->count <= JMK_MAX_ITEMS);
    CHECK(batch->first_id >= run.first && batch->first_id + batch->count > batch->first_id);
    CHECK_EQUAL(batch->lost, run.first ? batch->first_id - run.first : 0);
    CHECK(run.labels ? batch->lost == 0 : batch->shift == 0);
    if (!run.start)
        run.start = batch->first_id;
    for (size_t i = 0; i < batch->count; i++) {
        const struct jmk_slice *item = &batch->items[i];
        const uint8_t *data = item->data;

        CHECK(data >= arena->memory && item->size <= MAX_MESSAGE);
        CHECK(data + item->size <= arena->memory + arena->size);
        CHECK(was_sent(batch->first_id + i + batch->shift, item, 0));
        if (run.labels)
            run.got[run.count++] = batch->first_id + i + batch->shift;
        bytes += item->size;
    }
    CHECK_EQUAL(batch->bytes, bytes);
    run.received = batch->first_id + batch->count - 1;
    run.first = batch->first_id + batch->count;
    CHECK_EQUAL(jmk_client_last_id(run.client), run.received);
}

static void check_end(int code) {
    struct jmk_goodbye words;

    CHECK(code == JMK_E_TIMEOUT || code == JMK_E_END || code == JMK_E_LOST ||
          code == JMK_E_PROTOCOL || code == JMK_E_CLOSED);
    CHECK(run.code == 0 || run.code == code || code == JMK_E_CLOSED);
    if (code != JMK_E_TIMEOUT)
        run.code = code;
    CHECK_EQUAL(run.batch.count, 0);
    CHECK_EQUAL(fault_of(run.client) != JMK_FAULT_NONE, run.client->state == JMK_BROKEN);
    jmk_client_goodbye(run.client, &words);
    if (code == JMK_E_LOST)
        CHECK_EQUAL(words.reason, 0);
}

/* How far the user is, it says; now and then that is further than anything that came. */
static uint64_t take_handled(void) {
    return take_near(&run.input, run.received);
}

static int receive(uint64_t handled, int64_t timeout) {
    uint64_t last = jmk_client_last_id(run.client);
    int code;

    do
        code = jmk_client_receive(run.client, handled, timeout, &run.batch);
    while (code == -EINTR); /* what comes without a message took its time */
    CHECK_EQUAL(code == JMK_E_ACK, handled > last);
    if (code == JMK_E_ACK)
        return code;
    if (handled > run.handled)
        run.handled = handled;
    if (code)
        check_end(code);
    else
        check_batch(&run.batch);
    CHECK_EQUAL(jmk_client_batch_is_intact(run.client), 1);
    jmk_client_drop_batch(run.client); /* of packets there is nothing to take back */
    return code;
}

/* Receive all there is without a deadline: the server has said all it will. */
static void receive_to_the_end(void) {
    uint64_t slow = take(&run.input, 1);

    shutdown(run.server, SHUT_WR);
    do
        run.client->packets.slow = slow & 1; /* as if the last read had had to wait */
    while (receive(slow & 2 ? run.received : 0, -1) == 0);
}

static void ack(void) {
    uint64_t handled = take_handled(), last = jmk_client_last_id(run.client);
    int code = jmk_client_ack(run.client, handled, 0);

    CHECK(code == 0 || code == JMK_E_CLOSED || (code == JMK_E_ACK && handled > last));
    CHECK(code || handled <= last);
    if (code == 0 && handled > run.handled)
        run.handled = handled;
    CHECK(jmk_client_acked_id(run.client) <= last || run.received == 0);
}

/* Was there a message of this id, whatever became of it? */
static bool is_noted(uint64_t id) {
    for (size_t i = 0; i < run.noted; i++) {
        if (run.notes[i].id == id)
            return true;
    }
    return false;
}

static void read_acks(void) {
    uint64_t word[2];
    ssize_t size;

    while ((size = recv(run.server, word, sizeof word, MSG_DONTWAIT)) > 0) {
        CHECK_EQUAL(size, JMK_ACK_SIZE);
        if (run.labels) { /* each packet once, in order, with what it carried */
            CHECK(run.acks < run.count && run.start + run.acks <= run.handled);
            CHECK_EQUAL(le64toh(word[0]), run.got[run.acks++]);
            continue;
        }
        CHECK(le64toh(word[0]) > run.acked);
        CHECK(le64toh(word[0]) <= run.handled);
        run.acked = le64toh(word[0]);
        /* Plain 1.0 acks packets, and a gap has none. */
        CHECK(run.delivery == JMK_FRAMED || is_noted(run.acked));
    }
}

static void drop(struct held *held) {
    if (held->arena) {
        CHECK_EQUAL(jmk_held_is_intact(held->arena), 1);
        CHECK_EQUAL(sum_of(held->items, held->count), held->sum);
    }
    jmk_held_free(held->arena);
    held->arena = NULL;
}

static void hold(void) {
    struct held *held = &run.held[take(&run.input, 1) % HELD];

    drop(held);
    if (run.batch.count == 0)
        return;
    held->arena = jmk_client_hold_batch(run.client);
    CHECK(held->arena);
    CHECK(run.batch.count <= NOTES);
    held->count = run.batch.count;
    memcpy(held->items, run.batch.items, held->count * sizeof *held->items);
    held->sum = sum_of(held->items, held->count);
}

/* ---- a run ---- */

static void send_message(void) {
    put_message();
    send_packet();
}

static void send_fragment(void) {
    put_fragment();
    send_packet();
}

static void receive_next(void) {
    receive(run.received, 0);
}

static void receive_some(void) {
    receive(take_handled(), 0);
}

static void shut_or_send_descriptors(void) {
    uint64_t how = take(&run.input, 1);

    if (how < 0x80)
        shutdown(run.server, how & 1 ? SHUT_WR : SHUT_RDWR);
    else if (run.client->config.guard == JMK_GUARD_ALWAYS) /* to others the kernel lets nobody */
        send_with_descriptors(run.server, run.packet, run.size, how & 0x40 ? 253 : 1);
}

static void put_much_or_close(void) {
    size_t size = 8 * (size_t)take(&run.input, 1);

    if (size)
        put_pattern(0, size % sizeof run.packet);
    else
        jmk_client_close(run.client);
}

static void (*const steps[])(void) = {
    put_message,
    send_message,
    put_fragment,
    send_fragment,
    put_frame,
    put_bye,
    put_any,
    send_packet,
    receive_next,
    receive_some,
    ack,
    read_acks,
    hold,
    receive_to_the_end,
    shut_or_send_descriptors,
    put_much_or_close,
};

static void start(void) {
    uint64_t how = take(&run.input, 1);
    struct jmk_client_config config = {
        .first_id = how & 1   ? JMK_FIRST_ID
                    : how & 2 ? 0
                              : take(&run.input, 8),
        .max_lag = how & 4 ? 5 : 0,
        .arena_size = how & 8 ? 1 : 4096,
        .delivery = how & 16 ? JMK_CLASSIC : JMK_FRAMED,
        .max_packet = MAX_PACKET,
        .max_message = MAX_MESSAGE,
        .guard = how & 64    ? JMK_GUARD_ALWAYS
                 : how & 128 ? JMK_GUARD_UNTIL_EMPTY
                             : JMK_GUARD_NONE,
    };
    int fds[2], least = 1;

    run.labels = config.delivery == JMK_CLASSIC && !config.first_id;
    config.labels = run.labels;
    CHECK_EQUAL(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds), 0);
    if (config.guard != JMK_GUARD_ALWAYS)
        refuse_descriptors(fds[0]);
    if (how & 32) /* a socket that is full of acks soon */
        setsockopt(fds[0], SOL_SOCKET, SO_SNDBUF, &least, sizeof least);
    CHECK_EQUAL(jmk_client_new(&run.client, fds[0], &config), 0);
    run.server = fds[1];
    run.delivery = config.delivery;
    run.first = config.first_id;
    run.next = config.first_id ? config.first_id : JMK_FIRST_ID;
    run.received = jmk_client_last_id(run.client);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    run.used = run.size = run.noted = 0;
    run.received = run.handled = run.acked = run.start = 0;
    run.count = run.acks = 0;
    run.total = run.offset = 0;
    run.code = 0;
    memset(&run.batch, 0, sizeof run.batch);
    run.input = (struct input){data, size};
    start();
    while (run.input.left)
        steps[take(&run.input, 1) % (sizeof steps / sizeof *steps)]();
    while (receive(run.received, 0) == 0)
        continue;
    read_acks();
    close(run.server);
    while (receive(0, 0) == 0)
        continue;
    CHECK(run.code); /* the server is gone, and what it sent is used up */
    jmk_client_free(run.client);
    for (size_t i = 0; i < HELD; i++)
        drop(&run.held[i]);
    return 0;
}
