/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The wire layout of frames, fragments, BYE and acks
 *
 * The byte positions of what both ends decode. Everything on the wire is little-endian. Whatever
 * decodes here was sent by a peer, so nothing is believed: a length is compared before it is used,
 * and sums are made in 64 bits, where they cannot wrap.
 */
#include "common/frame.h"

size_t jmk_frame_check(const void *data, size_t length, struct jmk_header *out) {
    uint64_t whole;

    if (length < JMK_FRAME_HEADER)
        return 0;
    *out = jmk_frame_decode(data);
    whole = jmk_frame_length(out->size);
    return whole <= length ? (size_t)whole : 0;
}

void jmk_fragment_encode(void *at, uint64_t id, uint32_t slice, uint32_t total, uint32_t offset) {
    bool more = (uint64_t)offset + slice < total;
    struct jmk_header header = {slice + 8, JMK_KIND_DATA,
                                (uint16_t)(JMK_FLAG_FRAGMENT | (more ? JMK_FLAG_MORE : 0)), id};
    uint32_t words[2] = {htole32(total), htole32(offset)};

    jmk_frame_encode(at, &header);
    memcpy((char *)at + JMK_FRAME_HEADER, words, sizeof words);
}

bool jmk_fragment_decode(const struct jmk_header *header, const void *payload,
                         struct jmk_fragment *out) {
    bool more = header->flags & JMK_FLAG_MORE;
    uint32_t words[2];
    uint64_t end;

    if (header->size <= sizeof words)
        return false;
    memcpy(words, payload, sizeof words);
    *out = (struct jmk_fragment){le32toh(words[0]), le32toh(words[1]),
                                 header->size - (uint32_t)sizeof words};
    end = (uint64_t)out->offset + out->slice;
    return more ? end < out->total : end == out->total;
}

static void put64(char *at, uint64_t value) {
    value = htole64(value);
    memcpy(at, &value, sizeof value);
}

static uint64_t get64(const char *at) {
    uint64_t value;

    memcpy(&value, at, sizeof value);
    return le64toh(value);
}

void jmk_bye_encode(void *at, uint64_t id, const struct jmk_goodbye *words) {
    struct jmk_header header = {JMK_BYE_SIZE, JMK_KIND_BYE, 0, id};
    uint16_t start[4] = {htole16((uint16_t)words->reason), htole16((uint16_t)words->limit_kind)};
    char *payload = (char *)at + JMK_FRAME_HEADER;

    jmk_frame_encode(at, &header);
    memcpy(payload, start, sizeof start);
    put64(payload + 8, words->limit);
    put64(payload + 16, words->lag);
    put64(payload + 24, words->lag_bytes);
    put64(payload + 32, words->acked_id);
    put64(payload + 40, words->first_lost);
    put64(payload + 48, words->last_lost);
    put64(payload + 56, words->oldest_id);
}

bool jmk_bye_decode(const void *payload, size_t size, struct jmk_goodbye *out) {
    const char *from = payload;
    uint16_t start[2];

    if (size < JMK_BYE_SIZE)
        return false;
    memcpy(start, from, sizeof start);
    *out = (struct jmk_goodbye){
        .reason = le16toh(start[0]),
        .limit_kind = le16toh(start[1]),
        .limit = get64(from + 8),
        .lag = get64(from + 16),
        .lag_bytes = get64(from + 24),
        .acked_id = get64(from + 32),
        .first_lost = get64(from + 40),
        .last_lost = get64(from + 48),
        .oldest_id = get64(from + 56),
    };
    return true;
}

/* ---- frames of a user ---- */

int jmk_frame_take(const void *data, size_t length, size_t *offset, struct jmk_slice *out,
                   uint64_t *found) {
    const uint8_t *at = (const uint8_t *)data + *offset;
    size_t left = length - *offset, whole, message;
    struct jmk_header header;
    uint64_t padding = 0;

    *found = left;
    if (left < JMK_FRAME_HEADER)
        return JMK_FRAME_SHORT;
    header = jmk_frame_decode(at);
    __asm__("" : "+m"(header)); /* a copy: the compiler must not load it from there again */
    *found = header.kind;
    if (header.kind != JMK_KIND_DATA)
        return JMK_FRAME_KIND;
    *found = header.flags;
    if (header.flags)
        return JMK_FRAME_FLAGS;
    *found = header.size;
    whole = (size_t)jmk_frame_length(header.size);
    if (whole > left)
        return JMK_FRAME_SIZE;
    message = JMK_FRAME_HEADER + (size_t)header.size;
    memcpy(&padding, at + message, whole - message);
    if (padding)
        return JMK_FRAME_PADDING;
    *out = (struct jmk_slice){at + JMK_FRAME_HEADER, header.size};
    *offset += whole;
    return 0;
}

/* How many frames with messages of size bytes, and nothing wrong with them, the bytes at `at` begin with. */
static size_t count_frames(const uint8_t *at, size_t left, size_t size) {
    size_t whole = (size_t)jmk_frame_length(size), padding = whole - JMK_FRAME_HEADER - size;
    uint64_t mask = padding ? ~UINT64_C(0) << (64 - 8 * padding) : 0, begin, first, last;
    struct jmk_header header = {(uint32_t)size, JMK_KIND_DATA, 0, 0};
    uint8_t due[JMK_FRAME_HEADER];
    size_t count = 0;

    jmk_frame_encode(due, &header);
    memcpy(&begin, due, sizeof begin); /* size, kind and flags */
    for (; left >= whole; left -= whole, at += whole, count++) {
        memcpy(&first, at, sizeof first);
        memcpy(&last, at + whole - sizeof last, sizeof last);
        if (first != begin || le64toh(last) & mask)
            break;
    }
    return count;
}

int jmk_frames_take(const void *data, size_t length, size_t *offset, struct jmk_messages *out,
                    uint64_t *found) {
    size_t start = *offset, end = start, whole;
    struct jmk_slice item;
    int fault = start < length ? jmk_frame_take(data, length, &end, &item, found) : 0;

    *out = (struct jmk_messages){0};
    if (end == start)
        return fault;
    whole = end - start;
    *out = (struct jmk_messages){NULL, item.data, item.size, (ptrdiff_t)whole, 1};
    out->count += count_frames((const uint8_t *)data + end, length - end, item.size);
    *offset = end = start + out->count * whole;
    return end < length ? jmk_frame_take(data, length, &end, &item, found) : 0;
}

uint64_t jmk_frames_length(const struct jmk_slice *items, size_t count) {
    uint64_t length = 0;

    for (size_t i = 0; i < count; i++)
        length += jmk_frame_length(items[i].size);
    return length;
}

void jmk_frames_encode(void *to, const struct jmk_slice *items, size_t count, uint64_t first_id) {
    uint8_t *at = to;

    for (size_t i = 0; i < count; i++)
        at += jmk_frame_put(at, first_id + i, items[i]);
}

void jmk_rows_copy(void *to, const struct jmk_slice *items, size_t count) {
    size_t size = count ? items[0].size : 0;
    uint8_t *at = to;

    for (size_t i = 0; i < count; i++, at += size)
        jmk_copy(at, items[i].data, size);
}
