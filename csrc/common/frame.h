/* SPDX-License-Identifier: Apache-2.0 */
/* The wire layout of frames, fragments, BYE and acks. */
#ifndef JMK_FRAME_H
#define JMK_FRAME_H

#include <endian.h>
#include <stdbool.h>
#include <string.h>

#include "jumiks.h"

#define JMK_SHORT 256 /* bytes that are copied in line */

/* A frame's header, in this machine's byte order. On the wire and in the log it is little-endian. */
struct jmk_header {
    uint32_t size;
    uint16_t kind;
    uint16_t flags;
    uint64_t id;
};

static inline uint64_t jmk_frame_length(uint64_t payload) {
    return (JMK_FRAME_HEADER + payload + 7) & ~(uint64_t)7;
}

static inline void jmk_frame_encode(void *at, const struct jmk_header *header) {
    struct jmk_header wire = {htole32(header->size), htole16(header->kind), htole16(header->flags),
                              htole64(header->id)};
    memcpy(at, &wire, sizeof wire);
}

static inline struct jmk_header jmk_frame_decode(const void *at) {
    struct jmk_header wire;

    memcpy(&wire, at, sizeof wire);
    return (struct jmk_header){le32toh(wire.size), le16toh(wire.kind), le16toh(wire.flags),
                               le64toh(wire.id)};
}

/* The first and the last part bytes of size, which may overlap. */
static inline void jmk_copy_ends(uint8_t *to, const uint8_t *from, size_t size, size_t part) {
    memcpy(to, from, part);
    memcpy(to + size - part, from + size - part, part);
}

/* memcpy, in line where that is short: to call it would take longer. */
static inline void jmk_copy(void *to, const void *from, size_t size) {
    const uint8_t *source = from;
    uint8_t *at = to;

    if (size < 16 || size > JMK_SHORT) {
        if (size) /* memcpy takes no NULL */
            memcpy(to, from, size);
    } else if (size <= 32) {
        jmk_copy_ends(at, source, size, 16);
    } else if (size <= 64) {
        jmk_copy_ends(at, source, size, 32);
    } else {
        for (; size > 128; size -= 64, at += 64, source += 64)
            memcpy(at, source, 64);
        jmk_copy_ends(at, source, size, 64);
    }
}

/* A frame of DATA, its padding included; returns its length. */
static inline size_t jmk_frame_put(uint8_t *at, uint64_t id, struct jmk_slice message) {
    size_t length = (size_t)jmk_frame_length(message.size);
    struct jmk_header header = {(uint32_t)message.size, JMK_KIND_DATA, 0, id};

    jmk_frame_encode(at, &header);
    if (message.size % 8)
        memset(at + length - 8, 0, 8);
    jmk_copy(at + JMK_FRAME_HEADER, message.data, message.size);
    return length;
}

/*
 * Decode the frame at the start of the length bytes at data, and check that it lies within them.
 * Returns its whole length, padding included, or 0 if it does not fit.
 */
size_t jmk_frame_check(const void *data, size_t length, struct jmk_header *out);

/* A fragment's two headers: slice bytes at offset of the total bytes of message id. */
void jmk_fragment_encode(void *at, uint64_t id, uint32_t slice, uint32_t total, uint32_t offset);

struct jmk_fragment {
    uint32_t total;
    uint32_t offset;
    uint32_t slice;
};

/* The payload of a frame with JMK_FLAG_FRAGMENT; false if its figures contradict each other. */
bool jmk_fragment_decode(const struct jmk_header *header, const void *payload,
                         struct jmk_fragment *out);

/* A whole BYE frame: JMK_FRAME_HEADER + JMK_BYE_SIZE bytes. */
void jmk_bye_encode(void *at, uint64_t id, const struct jmk_goodbye *words);
bool jmk_bye_decode(const void *payload, size_t size, struct jmk_goodbye *out);

#endif
