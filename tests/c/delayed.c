/* SPDX-License-Identifier: Apache-2.0 */
/*
 * For a build of Python's library: delays wherever another thread or process may come in between
 *
 * The environment has the seed of their lengths (JUMIKS_DELAY_SEED, 1 if it is not there). No wait looks
 * again by itself, so who is not woken waits for its own end, or for ever.
 */
#include "delays.h"

static void __attribute__((constructor)) begin_to_delay(void) {
    const char *seed = getenv("JUMIKS_DELAY_SEED");

    atomic_store(&delay_seed, seed ? (unsigned)strtoul(seed, NULL, 10) : 1);
    jmk_at_point = at_point;
    jmk_no_polls = true;
}
