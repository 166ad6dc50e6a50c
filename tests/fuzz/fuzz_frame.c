/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Frames, fragments and BYE out of any bytes
 *
 * The input is one packet, and a buffer of frames to publish. Each figure that is decoded is held against one that is read here byte by
 * byte, and what was decoded must encode to the bytes it came from.
 */
#include "common/frame.h"
#include "fuzz.h"

static uint64_t number_at(const uint8_t *at, size_t size) {
    return take(&(struct input){at, size}, size);
}

static void check_fragment(const uint8_t *frame, const struct jmk_header *header) {
    const uint8_t *payload = frame + JMK_FRAME_HEADER;
    struct jmk_fragment fragment;
    uint8_t again[JMK_FRAGMENT_HEADER];
    uint64_t total, end;

    if (!jmk_fragment_decode(header, payload, &fragment)) {
        if (header->size <= 8)
            return;
        end = number_at(payload + 4, 4) + header->size - 8;
        total = number_at(payload, 4);
        CHECK(header->flags & JMK_FLAG_MORE ? end >= total : end != total);
        return;
    }
    CHECK_EQUAL(fragment.total, number_at(payload, 4));
    CHECK_EQUAL(fragment.offset, number_at(payload + 4, 4));
    CHECK_EQUAL(fragment.slice, header->size - 8);
    CHECK(fragment.slice && (uint64_t)fragment.offset + fragment.slice <= fragment.total);
    jmk_fragment_encode(again, header->id, fragment.slice, fragment.total, fragment.offset);
    /* Unknown flags are ignored, so they are not made again. */
    CHECK(memcmp(again, frame, 6) == 0 && memcmp(again + 8, frame + 8, sizeof again - 8) == 0);
    CHECK_EQUAL(number_at(again + 6, 2), header->flags & (JMK_FLAG_FRAGMENT | JMK_FLAG_MORE));
}

static void check_bye(const uint8_t *frame, const struct jmk_header *header) {
    uint8_t again[JMK_FRAME_HEADER + JMK_BYE_SIZE];
    const uint8_t *payload = frame + JMK_FRAME_HEADER;
    struct jmk_goodbye words;

    CHECK_EQUAL(jmk_bye_decode(payload, header->size, &words), header->size >= JMK_BYE_SIZE);
    if (header->size < JMK_BYE_SIZE)
        return;
    jmk_bye_encode(again, header->id, &words);
    CHECK(memcmp(again + JMK_FRAME_HEADER, payload, 4) == 0);
    CHECK_EQUAL(number_at(again + JMK_FRAME_HEADER + 4, 4), 0); /* reserved: sent as zero */
    CHECK(memcmp(again + JMK_FRAME_HEADER + 8, payload + 8, JMK_BYE_SIZE - 8) == 0);
    CHECK_EQUAL(number_at(again + 8, 8), header->id);
}

static void check_header(const uint8_t *frame, const struct jmk_header *header) {
    uint8_t again[JMK_FRAME_HEADER];

    CHECK_EQUAL(header->size, number_at(frame, 4));
    CHECK_EQUAL(header->kind, number_at(frame + 4, 2));
    CHECK_EQUAL(header->flags, number_at(frame + 6, 2));
    CHECK_EQUAL(header->id, number_at(frame + 8, 8));
    jmk_frame_encode(again, header);
    CHECK(memcmp(again, frame, sizeof again) == 0);
}

/* The length of the frame that stands in front, by the protocol's words; 0: there is none. */
static uint64_t length_of(const uint8_t *data, size_t left) {
    uint64_t size = left < JMK_FRAME_HEADER ? UINT64_MAX : number_at(data, 4);

    if (size > left || size + JMK_FRAME_HEADER > left)
        return 0;
    while (size % 8)
        size++;
    return size + JMK_FRAME_HEADER <= left ? size + JMK_FRAME_HEADER : 0;
}

/* What is wrong with a frame that a user publishes, by the protocol's words; 0: nothing. */
static int wrong_in(const uint8_t *data, size_t left) {
    uint64_t whole = length_of(data, left), size;

    if (left < JMK_FRAME_HEADER)
        return JMK_FRAME_SHORT;
    if (number_at(data + 4, 2) != JMK_KIND_DATA)
        return JMK_FRAME_KIND;
    if (number_at(data + 6, 2))
        return JMK_FRAME_FLAGS;
    if (!whole)
        return JMK_FRAME_SIZE;
    size = number_at(data, 4);
    return number_at(data + JMK_FRAME_HEADER + size, whole - JMK_FRAME_HEADER - size)
               ? JMK_FRAME_PADDING
               : 0;
}

/* As a buffer of frames to publish: what is taken of it encodes to the same bytes. */
static void check_taking(const uint8_t *data, size_t size) {
    size_t offset = 0, before = 0;
    struct jmk_slice message;
    uint64_t found;
    int fault = 0;

    for (; offset < size && !fault; before = offset) {
        uint8_t again[512 + JMK_FRAME_HEADER];

        fault = jmk_frame_take(data, size, &offset, &message, &found);
        CHECK_EQUAL(fault, wrong_in(data + before, size - before));
        if (fault) {
            CHECK_EQUAL(offset, before);
        } else if (offset - before <= sizeof again) {
            CHECK_EQUAL(jmk_frames_length(&message, 1), offset - before);
            jmk_frames_encode(again, &message, 1, number_at(data + before + 8, 8));
            CHECK(memcmp(again, data + before, offset - before) == 0);
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    size_t length;

    check_taking(data, size);
    do {
        struct jmk_header header;

        length = jmk_frame_check(data, size, &header);
        CHECK_EQUAL(length, length_of(data, size));
        if (!length)
            return 0;
        check_header(data, &header);
        if (header.kind == JMK_KIND_DATA && header.flags & JMK_FLAG_FRAGMENT)
            check_fragment(data, &header);
        if (header.kind == JMK_KIND_BYE)
            check_bye(data, &header);
        data += length;
        size -= length;
    } while (size);
    return 0;
}
