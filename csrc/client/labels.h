/* SPDX-License-Identifier: Apache-2.0 */
/* Labels: what a plain 1.0 server writes into its packets as their ids */
#ifndef JMK_LABELS_H
#define JMK_LABELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define JMK_MOST_RUNS 4096u

struct jmk_labels;

/* NULL: no memory. */
struct jmk_labels *jmk_labels_new(void);

/* Returns NULL. */
struct jmk_labels *jmk_labels_free(struct jmk_labels *labels);

/* The number of the first message, which has this label. */
uint64_t jmk_labels_start(uint64_t label);

/* Does this message belong to the newest run? Numbers go on one by one. */
bool jmk_labels_go_on(const struct jmk_labels *labels, uint64_t number, uint64_t label);

/* Begin a run. False: there is no room before more than `acked` is acked. */
bool jmk_labels_add(struct jmk_labels *labels, uint64_t number, uint64_t label, uint64_t acked);

/* The label of a message that is in a run, and not acked or acked last. */
uint64_t jmk_labels_of(const struct jmk_labels *labels, uint64_t number);

#endif
