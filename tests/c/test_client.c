/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The receive loop against a server that is a socket pair
 *
 * First a stream in good order, cut into packets and fragments at random, must come out as it is.
 * Then the same packets, spoiled: whatever comes out is a documented code, ids rise, and each byte
 * handed out can be read.
 */
#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"
#include "client/labels.h"
#include "common/frame.h"

#define MAX_PACKET 2048u
#define MAX_MESSAGE 10000u
#define PACKETS 24
#define ROUNDS 4000

struct packet {
    uint8_t data[MAX_PACKET + 64];
    size_t size;
};

struct stream {
    struct packet packets[PACKETS];
    size_t count;
    uint64_t next_id;
};

struct pair {
    jmk_client *client;
    int server;
};

static struct pair connected(uint32_t delivery, uint64_t first_id) {
    struct jmk_client_config config = {.first_id = first_id,
                                       .max_lag = any_below(3) ? 0 : 5,
                                       .arena_size = any_below(2) ? 4096 : 1 << 20,
                                       .delivery = delivery,
                                       .max_packet = MAX_PACKET,
                                       .max_message = MAX_MESSAGE};
    struct pair pair;
    int fds[2];

    CHECK_EQUAL(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds), 0);
    CHECK_EQUAL(jmk_client_new(&pair.client, fds[0], &config), 0);
    pair.server = fds[1];
    return pair;
}

static uint8_t byte_of(uint64_t id, uint64_t at) {
    return (uint8_t)(id * 13 + at * 5);
}

static uint32_t size_of(uint64_t id) {
    return (uint32_t)(id * 2654435761u % (id % 7 ? 100 : 6000));
}

static void fill(uint8_t *at, uint64_t id, uint32_t from, uint32_t count) {
    for (uint32_t i = 0; i < count; i++)
        at[i] = byte_of(id, from + i);
}

static void put_frame(struct packet *packet, uint64_t id) {
    struct jmk_header header = {size_of(id), JMK_KIND_DATA, 0, id};
    uint8_t *at = packet->data + packet->size;

    jmk_frame_encode(at, &header);
    fill(at + JMK_FRAME_HEADER, id, 0, header.size);
    packet->size += (size_t)jmk_frame_length(header.size);
}

static void put_fragments(struct stream *stream, uint64_t id) {
    uint32_t total = size_of(id), offset = 0;

    while (offset < total && stream->count < PACKETS) {
        struct packet *packet = &stream->packets[stream->count++];
        uint32_t slice = total - offset, room = 8 * (1 + (uint32_t)any_below(250));

        if (slice > room)
            slice = room;
        jmk_fragment_encode(packet->data, id, slice, total, offset);
        fill(packet->data + JMK_FRAGMENT_HEADER, id, offset, slice);
        packet->size = (size_t)jmk_frame_length(slice + 8);
        offset += slice;
    }
}

/* Messages from id on, in packets; the last one may be cut off. */
static void make_stream(struct stream *stream, uint64_t id) {
    memset(stream, 0, sizeof *stream);
    while (stream->count < PACKETS) {
        struct packet *packet;

        if (size_of(id) && (size_of(id) > 1000 || any_below(8) == 0)) {
            put_fragments(stream, id++);
            continue;
        }
        packet = &stream->packets[stream->count++];
        do
            put_frame(packet, id++);
        while (any_below(4) && size_of(id) <= 1000 &&
               packet->size + jmk_frame_length(size_of(id)) <= MAX_PACKET);
    }
    stream->next_id = id;
}

static void spoil(struct stream *stream) {
    for (uint64_t n = 1 + any_below(3); n > 0; n--) {
        struct packet *packet = &stream->packets[any_below(PACKETS)];
        size_t at = (size_t)any_below(packet->size < 32 ? packet->size + 1 : 32);

        switch (any_below(4)) {
        case 0:
            packet->data[at] = (uint8_t)any_number();
            break;
        case 1:
            packet->data[at] ^= (uint8_t)(1u << any_below(8));
            break;
        case 2:
            packet->size = (size_t)any_below(packet->size + 1);
            break;
        default:
            packet->size += (size_t)any_below(64);
        }
    }
}

static void check_batch(const struct jmk_batch *batch, uint64_t *next, int intact) {
    volatile uint8_t sum = 0;
    size_t bytes = 0;

    CHECK(batch->count > 0);
    CHECK(batch->first_id >= *next);
    CHECK_EQUAL(batch->first_id - batch->lost, *next);
    for (size_t i = 0; i < batch->count; i++) {
        uint64_t id = batch->first_id + i;
        const uint8_t *data = batch->items[i].data;

        bytes += batch->items[i].size;
        CHECK(batch->items[i].size <= MAX_MESSAGE);
        CHECK(!intact || batch->items[i].size == size_of(id));
        for (size_t at = 0; at < batch->items[i].size; at++) {
            sum = (uint8_t)(sum + data[at]);
            CHECK(!intact || data[at] == byte_of(id, at));
        }
    }
    CHECK_EQUAL(batch->bytes, bytes);
    *next = batch->first_id + batch->count;
}

static int documented(int code) {
    return code == JMK_E_TIMEOUT || code == JMK_E_END || code == JMK_E_LOST ||
           code == JMK_E_PROTOCOL;
}

/* Receive until something else comes out; sometimes a batch outlives the next receive. */
static int drain(jmk_client *client, uint64_t *next, int intact) {
    uint64_t start = *next;

    for (;;) {
        struct jmk_batch batch;
        int code;

        do
            code = jmk_client_receive(client, *next > start ? *next - 1 : 0, 0, &batch);
        while (code == -EINTR); /* what comes without a message took its time */
        if (code) {
            CHECK(documented(code));
            CHECK_EQUAL(batch.count, 0);
            return code;
        }
        check_batch(&batch, next, intact);
        if (any_below(4) == 0)
            jmk_held_free(jmk_client_hold_batch(client));
    }
}

static void drop_acks(int server) {
    uint64_t id;

    while (recv(server, &id, sizeof id, MSG_DONTWAIT) > 0)
        ;
}

static void a_good_stream_comes_out_as_it_is(void) {
    static struct stream stream;

    for (int round = 0; round < ROUNDS / 4; round++) {
        uint64_t next = JMK_FIRST_ID + any_below(1000);
        struct pair pair = connected(JMK_FRAMED, next);
        uint64_t whole;

        make_stream(&stream, next);
        for (size_t i = 0; i < stream.count; i++) {
            CHECK_EQUAL(send(pair.server, stream.packets[i].data, stream.packets[i].size, 0),
                        stream.packets[i].size);
            if (any_below(3) == 0)
                CHECK_EQUAL(drain(pair.client, &next, 1), JMK_E_TIMEOUT);
        }
        CHECK_EQUAL(drain(pair.client, &next, 1), JMK_E_TIMEOUT);
        /* All but a last one that was cut off in its fragments. */
        whole = stream.next_id - next;
        CHECK(whole == 0 || (whole == 1 && size_of(next) > 0));
        CHECK_EQUAL(jmk_client_last_id(pair.client), next - 1);
        close(pair.server);
        CHECK_EQUAL(drain(pair.client, &next, 1), JMK_E_LOST);
        jmk_client_free(pair.client);
    }
}

static void a_spoiled_stream_gives_documented_codes_only(void) {
    static struct stream stream;
    unsigned faults = 0;

    for (int round = 0; round < ROUNDS; round++) {
        uint64_t next = JMK_FIRST_ID;
        uint32_t delivery = any_below(4) ? JMK_FRAMED : JMK_CLASSIC;
        struct pair pair = connected(delivery, next);
        int code = JMK_E_TIMEOUT;

        make_stream(&stream, next);
        spoil(&stream);
        for (size_t i = 0; i < stream.count; i++) {
            send(pair.server, stream.packets[i].data, stream.packets[i].size, MSG_NOSIGNAL);
            if (any_below(3) == 0)
                code = drain(pair.client, &next, 0);
            drop_acks(pair.server);
        }
        close(pair.server);
        code = drain(pair.client, &next, 0);
        CHECK(code != JMK_E_TIMEOUT);
        CHECK_EQUAL(drain(pair.client, &next, 0), code);
        CHECK_EQUAL(code == JMK_E_PROTOCOL, fault_of(pair.client) != JMK_FAULT_NONE);
        faults += code == JMK_E_PROTOCOL;
        jmk_client_free(pair.client);
    }
    CHECK(faults > ROUNDS / 10);
}

static void an_ack_for_what_was_not_received_is_refused(void) {
    struct pair pair = connected(JMK_FRAMED, JMK_FIRST_ID);
    struct packet packet = {.size = 0};
    struct jmk_batch batch;

    CHECK_EQUAL(jmk_client_ack(pair.client, JMK_FIRST_ID, 0), JMK_E_ACK);
    CHECK_EQUAL(jmk_client_receive(pair.client, JMK_FIRST_ID, 0, &batch), JMK_E_ACK);
    put_frame(&packet, JMK_FIRST_ID);
    send(pair.server, packet.data, packet.size, 0);
    CHECK_EQUAL(jmk_client_receive(pair.client, 0, 0, &batch), 0);
    CHECK_EQUAL(jmk_client_ack(pair.client, JMK_FIRST_ID + 1, 0), JMK_E_ACK);
    CHECK_EQUAL(jmk_client_ack(pair.client, JMK_FIRST_ID, 0), 0);
    CHECK_EQUAL(jmk_client_acked_id(pair.client), JMK_FIRST_ID);
    CHECK_EQUAL(jmk_client_close(pair.client), 0);
    CHECK_EQUAL(jmk_client_close(pair.client), 0);
    CHECK_EQUAL(jmk_client_receive(pair.client, 0, -1, &batch), JMK_E_CLOSED);
    CHECK_EQUAL(jmk_client_ack(pair.client, JMK_FIRST_ID, 0), JMK_E_CLOSED);
    close(pair.server);
    CHECK(jmk_client_free(pair.client) == NULL);
    CHECK(jmk_client_free(NULL) == NULL);
}

/* Receive one batch, of one message. */
static void receive_one(jmk_client *client, uint64_t id) {
    struct jmk_batch batch;

    CHECK_EQUAL(jmk_client_receive(client, 0, 0, &batch), 0);
    CHECK_EQUAL(batch.count, 1);
    CHECK_EQUAL(batch.first_id, id);
}

static void a_batch_is_as_small_as_was_asked_for(void) {
    uint64_t next = JMK_FIRST_ID + 3; /* these are small */
    struct pair pair = connected(JMK_FRAMED, next);
    struct packet packet = {.size = 0};
    struct jmk_batch batch;

    CHECK_EQUAL(jmk_client_take(pair.client, next, 2, &batch), JMK_E_ACK);
    for (uint64_t id = next; id < next + 5; id++)
        put_frame(&packet, id);
    send(pair.server, packet.data, packet.size, 0);
    CHECK_EQUAL(jmk_client_take(pair.client, 0, 2, &batch), JMK_E_TIMEOUT); /* not read yet */
    CHECK_EQUAL(batch.count, 0);
    CHECK_EQUAL(jmk_client_receive_some(pair.client, 0, 0, 2, &batch), 0);
    CHECK_EQUAL(batch.count, 2);
    check_batch(&batch, &next, true);
    CHECK_EQUAL(jmk_client_take(pair.client, next - 1, 1, &batch), 0);
    CHECK_EQUAL(batch.count, 1);
    check_batch(&batch, &next, true);
    CHECK_EQUAL(jmk_client_take(pair.client, next - 1, 0, &batch), 0);
    CHECK_EQUAL(batch.count, 2);
    check_batch(&batch, &next, true);
    CHECK_EQUAL(jmk_client_take(pair.client, next - 1, 1, &batch), JMK_E_TIMEOUT);
    close(pair.server);
    CHECK_EQUAL(jmk_client_take(pair.client, next - 1, 1, &batch), JMK_E_TIMEOUT);
    CHECK_EQUAL(jmk_client_receive_some(pair.client, next - 1, -1, 1, &batch), JMK_E_LOST);
    jmk_client_free(pair.client);
}

static void expect_ack(int server, uint64_t id) {
    uint64_t word = 0;

    CHECK_EQUAL(recv(server, &word, sizeof word, MSG_DONTWAIT), sizeof word);
    CHECK_EQUAL(le64toh(word), id);
}

static void a_classic_client_acks_no_gap_and_nothing_behind_one_too_early(void) {
    struct pair pair = connected(JMK_CLASSIC, JMK_FIRST_ID);
    const uint64_t ids[] = {JMK_FIRST_ID, JMK_FIRST_ID + 1000, JMK_FIRST_ID + 2000};
    uint64_t word;

    for (size_t i = 0; i < 3; i++) {
        word = htole64(ids[i]);
        CHECK_EQUAL(send(pair.server, &word, sizeof word, 0), sizeof word);
        receive_one(pair.client, ids[i]);
    }
    CHECK_EQUAL(jmk_client_ack(pair.client, ids[2] - 1, 0), 0);
    expect_ack(pair.server, ids[0]);
    CHECK(recv(pair.server, &word, sizeof word, MSG_DONTWAIT) < 0);
    CHECK_EQUAL(jmk_client_acked_id(pair.client), ids[0]);
    CHECK_EQUAL(jmk_client_ack(pair.client, ids[2], 0), 0);
    expect_ack(pair.server, ids[2]);
    CHECK(recv(pair.server, &word, sizeof word, MSG_DONTWAIT) < 0);
    close(pair.server);
    jmk_client_free(pair.client);
}

static struct pair labelled(void) {
    struct jmk_client_config config = {.arena_size = 1 << 20,
                                       .delivery = JMK_CLASSIC,
                                       .labels = 1,
                                       .max_packet = MAX_PACKET,
                                       .max_message = MAX_MESSAGE};
    struct pair pair;
    int fds[2];

    CHECK_EQUAL(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds), 0);
    CHECK_EQUAL(jmk_client_new(&pair.client, fds[0], &config), 0);
    pair.server = fds[1];
    return pair;
}

static void send_label(int server, uint64_t label) {
    uint64_t word = htole64(label);

    CHECK_EQUAL(send(server, &word, sizeof word, MSG_NOSIGNAL), sizeof word);
}

static void labels_are_acked_as_they_came_and_count_for_nothing(void) {
    const uint64_t labels[] = {5, 5, 6, 3, 0, 0, 1, UINT64_MAX, 0, 7};
    const size_t counts[] = {1, 2, 1, 1, 2, 1, 1, 1}, total = sizeof labels / sizeof *labels;
    struct pair pair = labelled();
    struct jmk_batch batch = {.count = 0};
    uint64_t last = 0;
    size_t got = 0;

    for (size_t i = 0; i < total; i++)
        send_label(pair.server, labels[i]);
    for (size_t i = 0; got < total; i++, got += batch.count) {
        CHECK_EQUAL(jmk_client_receive(pair.client, last, 0, &batch), 0);
        CHECK_EQUAL(batch.count, counts[i]);
        CHECK_EQUAL(batch.lost, 0);
        CHECK_EQUAL(batch.first_id, 5 + got);
        CHECK_EQUAL(batch.first_id + batch.shift, labels[got]);
        last = batch.first_id + batch.count - 1;
    }
    CHECK_EQUAL(jmk_client_receive(pair.client, last, 0, &batch), JMK_E_TIMEOUT);
    for (size_t i = 0; i < total; i++)
        expect_ack(pair.server, labels[i]);
    close(pair.server);
    jmk_client_free(pair.client);
}

/* Who never handles what it gets is told that there is no room; nothing is lost by that. */
static void more_labels_than_there_is_room_for_wait_for_acks(void) {
    struct pair pair = labelled();
    struct jmk_batch batch;
    uint64_t count = 0;
    int code;

    do {
        while (send(pair.server, &(uint64_t){htole64(9)}, 8, MSG_DONTWAIT | MSG_NOSIGNAL) > 0)
            continue;
        code = jmk_client_receive(pair.client, 0, 0, &batch);
        count += code == 0;
    } while (code == 0);
    CHECK_EQUAL(code, -ENOMEM);
    CHECK_EQUAL(count, JMK_MOST_RUNS);
    CHECK_EQUAL(jmk_client_receive(pair.client, 9, 0, &batch), 0);
    CHECK_EQUAL(batch.first_id, 9 + count);
    expect_ack(pair.server, 9);
    CHECK(jmk_client_receive(pair.client, 9, 0, &batch) == -ENOMEM);
    close(pair.server);
    jmk_client_free(pair.client);
}

int main(void) {
    a_good_stream_comes_out_as_it_is();
    a_spoiled_stream_gives_documented_codes_only();
    an_ack_for_what_was_not_received_is_refused();
    a_batch_is_as_small_as_was_asked_for();
    a_classic_client_acks_no_gap_and_nothing_behind_one_too_early();
    labels_are_acked_as_they_came_and_count_for_nothing();
    more_labels_than_there_is_room_for_wait_for_acks();
    return 0;
}
