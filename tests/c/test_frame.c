/* SPDX-License-Identifier: Apache-2.0 */
/* The wire layout: one table of bytes for both directions, and every way to cut them short. */
#include "check.h"
#include "common/frame.h"

#define MOST 32

struct vector {
    struct jmk_header header;
    uint8_t bytes[JMK_FRAME_HEADER];
    uint64_t length;
};

static const struct vector vectors[] = {
    {{0, JMK_KIND_DATA, 0, 0}, {0, 0, 0, 0, 1, 0}, 16},
    {{2, JMK_KIND_DATA, 0, 100000}, {2, 0, 0, 0, 1, 0, 0, 0, 0xa0, 0x86, 1}, 24},
    {{8, JMK_KIND_BYE, 0, 1}, {8, 0, 0, 0, 2, 0, 0, 0, 1}, 24},
    {{9, JMK_KIND_DATA, JMK_FLAG_MORE, 1}, {9, 0, 0, 0, 1, 0, 2, 0, 1}, 32},
    {{0x04030201, 0x8005, 0x0807, 0x1817161514131211},
     {1, 2, 3, 4, 5, 0x80, 7, 8, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18},
     0x04030218},
    {{UINT32_MAX, UINT16_MAX, UINT16_MAX, UINT64_MAX},
     {255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255},
     0x100000010},
};

static bool same(const struct jmk_header *a, const struct jmk_header *b) {
    return a->size == b->size && a->kind == b->kind && a->flags == b->flags && a->id == b->id;
}

static void headers_go_both_ways(void) {
    for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++) {
        uint8_t bytes[JMK_FRAME_HEADER + 1] = {[JMK_FRAME_HEADER] = 0x55};
        struct jmk_header header = jmk_frame_decode(vectors[i].bytes);

        CHECK(same(&header, &vectors[i].header));
        jmk_frame_encode(bytes, &vectors[i].header);
        CHECK(memcmp(bytes, vectors[i].bytes, JMK_FRAME_HEADER) == 0);
        CHECK_EQUAL(bytes[JMK_FRAME_HEADER], 0x55);
        CHECK_EQUAL(jmk_frame_length(header.size), vectors[i].length);
    }
}

/* A copy of exactly this length on the heap, where a sanitizer sees each byte read behind it. */
static void *cut(const void *from, size_t length) {
    void *copy = malloc(length + !length);

    CHECK(copy);
    memcpy(copy, from, length);
    return copy;
}

static void a_frame_that_is_cut_does_not_fit(void) {
    for (uint32_t size = 0; size <= MOST; size++) {
        uint8_t packet[JMK_FRAME_HEADER + MOST + 24] = {0};
        struct jmk_header header = {size, JMK_KIND_DATA, 0, 7}, out;
        size_t whole = (size_t)jmk_frame_length(size);

        jmk_frame_encode(packet, &header);
        for (size_t length = 0; length <= whole + 16; length++) {
            uint8_t *copy = cut(packet, length);

            CHECK_EQUAL(jmk_frame_check(copy, length, &out), length < whole ? 0 : whole);
            CHECK(length < whole || same(&header, &out));
            free(copy);
        }
    }
}

static void a_size_cannot_wrap(void) {
    static const uint32_t sizes[] = {UINT32_MAX, UINT32_MAX - 7, UINT32_MAX - 16, 0x80000000u};
    uint8_t packet[64] = {0};
    struct jmk_header out;

    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        struct jmk_header header = {sizes[i], JMK_KIND_DATA, 0, 7};

        jmk_frame_encode(packet, &header);
        CHECK_EQUAL(jmk_frame_check(packet, sizeof packet, &out), 0);
        CHECK(jmk_frame_length(sizes[i]) > sizes[i]);
    }
}

static void fragments_go_both_ways(void) {
    for (uint32_t total = 1; total < 40; total++) {
        for (uint32_t offset = 0; offset < total; offset++) {
            for (uint32_t slice = 1; offset + slice <= total; slice++) {
                uint8_t bytes[JMK_FRAGMENT_HEADER];
                struct jmk_header header;
                struct jmk_fragment fragment;

                jmk_fragment_encode(bytes, 9, slice, total, offset);
                header = jmk_frame_decode(bytes);
                CHECK_EQUAL(header.size, slice + 8);
                CHECK_EQUAL(header.id, 9);
                CHECK_EQUAL(header.kind, JMK_KIND_DATA);
                CHECK_EQUAL(header.flags, offset + slice < total ? JMK_FLAG_FRAGMENT | JMK_FLAG_MORE
                                                                 : JMK_FLAG_FRAGMENT);
                CHECK(jmk_fragment_decode(&header, bytes + JMK_FRAME_HEADER, &fragment));
                CHECK_EQUAL(fragment.total, total);
                CHECK_EQUAL(fragment.offset, offset);
                CHECK_EQUAL(fragment.slice, slice);
            }
        }
    }
}

static bool decodes(uint32_t size, uint16_t flags, uint32_t total, uint32_t offset) {
    struct jmk_header header = {size, JMK_KIND_DATA, (uint16_t)(flags | JMK_FLAG_FRAGMENT), 1};
    struct jmk_fragment out;
    uint8_t bytes[JMK_FRAGMENT_HEADER];
    uint8_t *payload;
    bool result;

    jmk_fragment_encode(bytes, 1, 1, total, offset);
    payload = cut(bytes + JMK_FRAME_HEADER, size < 8 ? size : 8);
    result = jmk_fragment_decode(&header, payload, &out);
    free(payload);
    return result;
}

static void fragments_whose_figures_contradict_each_other_are_seen(void) {
    for (uint32_t size = 0; size <= 8; size++) {
        CHECK(!decodes(size, 0, 0, 0));
        CHECK(!decodes(size, JMK_FLAG_MORE, 100, 0));
    }
    CHECK(decodes(18, 0, 10, 0));
    CHECK(!decodes(18, 0, 9, 0));
    CHECK(!decodes(18, 0, 11, 0));
    CHECK(!decodes(18, JMK_FLAG_MORE, 10, 0));
    CHECK(decodes(18, JMK_FLAG_MORE, 11, 0));
    CHECK(!decodes(18, JMK_FLAG_MORE, 11, 1));
    CHECK(decodes(18, 0, 11, 1));
    CHECK(!decodes(18, 0, 4, UINT32_MAX - 5));
    CHECK(!decodes(18, 0, UINT32_MAX, UINT32_MAX));
    CHECK(decodes(9, 0, UINT32_MAX, UINT32_MAX - 1));
}

static void goodbyes_go_both_ways(void) {
    static const uint8_t wanted[JMK_FRAME_HEADER + JMK_BYE_SIZE] = {
        64, 0, 0, 0, 2, 0, 0, 0, 0x84, 0x88, 1, 0, 0, 0, 0, 0, /* header */
        1,  0, 2, 0, 0, 0, 0, 0,                               /* reason, limit kind, zero */
        10, 0, 0, 0, 0, 0, 0, 1,                               /* limit */
        11, 0, 0, 0, 0, 0, 0, 2,                               /* lag */
        12, 0, 0, 0, 0, 0, 0, 3,                               /* lag in bytes */
        13, 0, 0, 0, 0, 0, 0, 4,                               /* last ack */
        14, 0, 0, 0, 0, 0, 0, 5,                               /* first lost */
        15, 0, 0, 0, 0, 0, 0, 6,                               /* last lost */
        16, 0, 0, 0, 0, 0, 0, 7,                               /* oldest kept */
    };
    struct jmk_goodbye words = {1,
                                2,
                                10 | 1ull << 56,
                                11 | 2ull << 56,
                                12 | 3ull << 56,
                                13 | 4ull << 56,
                                14 | 5ull << 56,
                                15 | 6ull << 56,
                                16 | 7ull << 56};
    struct jmk_goodbye out;
    uint8_t bytes[sizeof wanted];

    memset(bytes, 0xff, sizeof bytes);
    jmk_bye_encode(bytes, 100484, &words);
    CHECK(memcmp(bytes, wanted, sizeof wanted) == 0);
    for (size_t length = 0; length <= JMK_BYE_SIZE; length++) {
        uint8_t *copy = cut(wanted + JMK_FRAME_HEADER, length);

        CHECK_EQUAL(jmk_bye_decode(copy, length, &out), length == JMK_BYE_SIZE);
        free(copy);
    }
    CHECK_EQUAL(out.reason, words.reason);
    CHECK_EQUAL(out.limit_kind, words.limit_kind);
    CHECK_EQUAL(out.limit, words.limit);
    CHECK_EQUAL(out.lag, words.lag);
    CHECK_EQUAL(out.lag_bytes, words.lag_bytes);
    CHECK_EQUAL(out.acked_id, words.acked_id);
    CHECK_EQUAL(out.first_lost, words.first_lost);
    CHECK_EQUAL(out.last_lost, words.last_lost);
    CHECK_EQUAL(out.oldest_id, words.oldest_id);
    CHECK(jmk_bye_decode(wanted + JMK_FRAME_HEADER, JMK_BYE_SIZE, &out));
}

/* ---- frames of a user ---- */

static size_t put(uint8_t *at, const struct jmk_header *header) {
    size_t whole = (size_t)jmk_frame_length(header->size);

    jmk_frame_encode(at, header);
    memset(at + JMK_FRAME_HEADER, 'x', header->size);
    memset(at + JMK_FRAME_HEADER + header->size, 0, whole - JMK_FRAME_HEADER - header->size);
    return whole;
}

static void frames_are_taken_one_after_the_other(void) {
    uint8_t frames[256], again[256];
    struct jmk_slice items[MOST];
    size_t length = 0, offset = 0, count = 0;
    uint64_t found;

    for (uint32_t size = 0; size <= 8; size++)
        length += put(frames + length, &(struct jmk_header){size, JMK_KIND_DATA, 0, 70 + size});
    while (offset < length)
        CHECK_EQUAL(jmk_frame_take(frames, length, &offset, &items[count++], &found), 0);
    CHECK_EQUAL(count, 9);
    for (uint32_t size = 0; size <= 8; size++)
        CHECK_EQUAL(items[size].size, size);
    CHECK_EQUAL(jmk_frames_length(items, count), length);
    memset(again, 0xff, sizeof again);
    jmk_frames_encode(again, items, count, 70);
    CHECK(memcmp(again, frames, length) == 0);
    CHECK_EQUAL(again[length], 0xff);
}

/* Sizes on both sides of those that are copied in line. */
static void each_size_is_written_as_it_is_and_not_a_byte_beside_it(void) {
    enum { LARGEST = 2 * JMK_SHORT, ROOM = JMK_FRAME_HEADER + LARGEST + 8 };
    uint8_t message[LARGEST], due[ROOM], frame[ROOM], row[ROOM];

    for (size_t i = 0; i < LARGEST; i++)
        message[i] = (uint8_t)(i * 7 + 1);
    for (uint32_t size = 0; size <= LARGEST; size++) {
        struct jmk_slice item = {size ? message : NULL, size};
        size_t length = put(due, &(struct jmk_header){size, JMK_KIND_DATA, 0, 70});

        memcpy(due + JMK_FRAME_HEADER, message, size);
        memset(frame, 0xff, sizeof frame);
        memset(row, 0xff, sizeof row);
        jmk_frames_encode(frame, &item, 1, 70);
        jmk_rows_copy(row, &item, 1);
        CHECK(memcmp(frame, due, length) == 0);
        CHECK(memcmp(row, message, size) == 0);
        CHECK(length == ROOM || frame[length] == 0xff);
        CHECK_EQUAL(row[size], 0xff);
    }
}

static void frames_of_one_size_are_taken_as_rows_up_to_one_of_another(void) {
    static const uint32_t sizes[] = {5, 5, 5, 8, 8, 0};
    enum { FRAMES = sizeof sizes / sizeof *sizes };
    uint8_t frames[256];
    size_t length = 0, offset = 0, taken = 0;
    struct jmk_messages rows;
    uint64_t found;

    for (size_t i = 0; i < FRAMES; i++)
        length += put(frames + length, &(struct jmk_header){sizes[i], JMK_KIND_DATA, 0, 70});
    for (; taken < FRAMES; taken += rows.count) {
        size_t before = offset;

        CHECK_EQUAL(jmk_frames_take(frames, length, &offset, &rows, &found), 0);
        CHECK_EQUAL(rows.count, taken == 0 ? 3 : taken == 3 ? 2 : 1);
        CHECK_EQUAL(rows.size, sizes[taken]);
        CHECK(rows.rows == frames + before + JMK_FRAME_HEADER && !rows.slices);
        CHECK_EQUAL(offset - before, rows.count * (size_t)rows.stride);
    }
    CHECK_EQUAL(offset, length);
    CHECK_EQUAL(jmk_frames_take(frames, length, &offset, &rows, &found), 0);
    CHECK_EQUAL(rows.count, 0);
    offset = 0;
    frames[24 + 4] = 7; /* the second frame's kind */
    CHECK_EQUAL(jmk_frames_take(frames, length, &offset, &rows, &found), JMK_FRAME_KIND);
    CHECK_EQUAL(found, 7);
    CHECK_EQUAL(offset, 24);
    CHECK_EQUAL(rows.count, 1);
}

/* As rows, and one by one: whatever stands there, the two have the same frames and the same fault. */
static void take_both_ways(const uint8_t *frames, size_t length) {
    size_t offset = 0, behind = 0, next = 0, count = 0;
    uint64_t found = 0, found_singly = 0;
    struct jmk_slice item, first = {0};
    struct jmk_messages rows;
    int fault = jmk_frames_take(frames, length, &offset, &rows, &found), singly = 0;

    while (next < length) {
        singly = jmk_frame_take(frames, length, &next, &item, &found_singly);
        if (singly || (count && item.size != first.size))
            break;
        first = count++ ? first : item;
        behind = next;
    }
    CHECK_EQUAL(fault, singly);
    CHECK_EQUAL(rows.count, count);
    CHECK_EQUAL(offset, behind);
    CHECK(!fault || found == found_singly);
    CHECK(!count || (rows.rows == first.data && rows.size == first.size));
}

static void rows_of_frames_stop_at_any_byte_that_is_wrong(void) {
    static const uint32_t sizes[] = {0, 1, 5, 8, 11};
    enum { FRAMES = 3, ROOM = FRAMES * 40 };

    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        uint8_t frames[ROOM], *exact;
        size_t length = 0;

        for (size_t k = 0; k < FRAMES; k++)
            length += put(frames + length, &(struct jmk_header){sizes[i], JMK_KIND_DATA, 0, k});
        for (size_t bit = 0; bit < 8 * length; bit++) {
            frames[bit / 8] ^= (uint8_t)(1 << bit % 8);
            take_both_ways(frames, length);
            frames[bit / 8] ^= (uint8_t)(1 << bit % 8);
        }
        for (size_t cut = 0; cut <= length;
             cut++) { /* to the byte, so that ASan sees each behind it */
            exact = malloc(length - cut ? length - cut : 1);
            memcpy(exact, frames, length - cut);
            take_both_ways(exact, length - cut);
            free(exact);
        }
    }
}

static void what_is_wrong_with_a_frame_is_said_and_nothing_of_it_taken(void) {
    static const struct {
        struct jmk_header header;
        uint8_t last; /* of its bytes */
        size_t cut;   /* of them, at the end */
        uint64_t found;
        int fault;
    } wrongs[] = {
        {{3, JMK_KIND_DATA, 0, 1}, 0, 0, 3, 0},
        {{3, JMK_KIND_DATA, 0, 1}, 1, 0, 3, JMK_FRAME_PADDING},
        {{3, JMK_KIND_DATA, 0, 1}, 0, 1, 3, JMK_FRAME_SIZE},
        {{3, JMK_KIND_DATA, 0, 1}, 0, 9, 15, JMK_FRAME_SHORT},
        {{3, JMK_KIND_BYE, 0, 1}, 0, 0, JMK_KIND_BYE, JMK_FRAME_KIND},
        {{3, JMK_KIND_DATA | JMK_KIND_CRITICAL, 0, 1}, 0, 0, 0x8001, JMK_FRAME_KIND},
        {{9, JMK_KIND_DATA, JMK_FLAG_FRAGMENT, 1}, 0, 0, 1, JMK_FRAME_FLAGS},
        {{3, JMK_KIND_DATA, 0x8000, 1}, 0, 0, 0x8000, JMK_FRAME_FLAGS},
        {{0, JMK_KIND_DATA, 0, 1}, 0, 16, 0, JMK_FRAME_SHORT},
    };

    for (size_t i = 0; i < sizeof wrongs / sizeof *wrongs; i++) {
        uint8_t frame[64], *copy;
        size_t length = put(frame, &wrongs[i].header) - wrongs[i].cut, offset = 0;
        struct jmk_slice item;
        uint64_t found;

        if (length)
            frame[length - 1] = wrongs[i].last;
        copy = cut(frame, length);
        CHECK_EQUAL(jmk_frame_take(copy, length, &offset, &item, &found), wrongs[i].fault);
        CHECK_EQUAL(found, wrongs[i].found);
        CHECK_EQUAL(offset, wrongs[i].fault ? 0 : length);
        free(copy);
    }
}

static void a_frame_longer_than_any_buffer_is_not_taken(void) {
    uint8_t frame[32];
    struct jmk_slice item;
    size_t offset = 0;
    uint64_t found;

    jmk_frame_encode(frame, &(struct jmk_header){UINT32_MAX, JMK_KIND_DATA, 0, 1});
    CHECK_EQUAL(jmk_frame_take(frame, sizeof frame, &offset, &item, &found), JMK_FRAME_SIZE);
    CHECK_EQUAL(found, UINT32_MAX);
}

int main(void) {
    headers_go_both_ways();
    a_frame_that_is_cut_does_not_fit();
    a_size_cannot_wrap();
    fragments_go_both_ways();
    fragments_whose_figures_contradict_each_other_are_seen();
    goodbyes_go_both_ways();
    frames_are_taken_one_after_the_other();
    each_size_is_written_as_it_is_and_not_a_byte_beside_it();
    frames_of_one_size_are_taken_as_rows_up_to_one_of_another();
    rows_of_frames_stop_at_any_byte_that_is_wrong();
    what_is_wrong_with_a_frame_is_said_and_nothing_of_it_taken();
    a_frame_longer_than_any_buffer_is_not_taken();
    return 0;
}
