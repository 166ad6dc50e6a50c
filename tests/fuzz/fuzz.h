/* SPDX-License-Identifier: Apache-2.0 */
/* What the fuzz targets share: an input is read as a list of small steps. */
#ifndef JMK_FUZZ_H
#define JMK_FUZZ_H

#include <stdbool.h>
#include <string.h>

#include "../c/check.h"

/* An input, used up from the front. Behind its end are zeros, so every input is a whole program. */
struct input {
    const uint8_t *at;
    size_t left;
};

/* The next size bytes, at most 8, as a little-endian number. */
static inline uint64_t take(struct input *input, size_t size) {
    uint64_t number = 0;

    for (size_t i = 0; i < size && input->left; i++, input->left--)
        number |= (uint64_t)*input->at++ << 8 * i;
    return number;
}

/* Copy up to size of the next bytes; how many there were. */
static inline size_t take_bytes(struct input *input, void *to, size_t size) {
    if (size > input->left)
        size = input->left;
    if (size)
        memcpy(to, input->at, size);
    input->at += size;
    input->left -= size;
    return size;
}

/* A number around base, or any: small steps are what makes an input nearly right. */
static inline uint64_t take_near(struct input *input, uint64_t base) {
    uint64_t step = take(input, 1);

    return step == 0x80 ? take(input, 8) : base + (uint64_t)(int64_t)(int8_t)step;
}

/* What is run: it returns 0, or does not return. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif
