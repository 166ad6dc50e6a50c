/* SPDX-License-Identifier: Apache-2.0 */
/* What the C tests share: one assertion, and numbers that only look random. */
#ifndef JMK_CHECK_H
#define JMK_CHECK_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "jumiks.h"

#define CHECK_FAILED 70 /* no status that a test gives on purpose: EX_SOFTWARE of sysexits.h */

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);                \
            exit(CHECK_FAILED);                                                                    \
        }                                                                                          \
    } while (0)

/* Both are evaluated once; shown if they differ. */
#define CHECK_EQUAL(left, right)                                                                   \
    do {                                                                                           \
        uint64_t is = (uint64_t)(left), wanted = (uint64_t)(right);                                \
        if (is != wanted) {                                                                        \
            fprintf(stderr, "%s:%d: %s is %llu, not %llu\n", __FILE__, __LINE__, #left,            \
                    (unsigned long long)is, (unsigned long long)wanted);                           \
            exit(CHECK_FAILED);                                                                    \
        }                                                                                          \
    } while (0)

/* The same numbers in each run: xorshift64*. */
static inline uint64_t any_number(void) {
    static uint64_t state = 0x9e3779b97f4a7c15u;

    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return state * 0x2545f4914f6cdd1du;
}

/* enum jmk_fault_kind */
static inline uint32_t fault_of(const jmk_client *client) {
    struct jmk_fault fault;

    jmk_client_fault(client, &fault);
    return fault.kind;
}

static inline uint64_t any_below(uint64_t limit) {
    return any_number() % limit;
}

#endif
