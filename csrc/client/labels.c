/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Labels: what a plain 1.0 server writes into its packets as their ids
 *
 * The ids of plain 1.0 need not rise: a server may take the next id in one thread and count in another,
 * so they can repeat, fall or jump, while each packet is a message. So the client numbers messages
 * itself. The id of a packet is a label. It has two uses: the user sees it, and the ack carries it.
 *
 * The table keeps the difference of label and number, one run per change of it, from the last message
 * that was acked on. A run ends where a label is not one more than the one before. The table has a
 * bound: a server that fills it has to read acks before more of its messages are received.
 *
 * Numbers begin at the first label, so that they equal the labels of a server whose ids rise by one. But
 * they do not begin at 0, which means none, nor so high that they could run out.
 */
#include "client/labels.h"

#include <stdlib.h>

struct run {
    uint64_t first; /* number */
    uint64_t shift; /* label - number, modulo 2^64 */
};

struct jmk_labels {
    size_t oldest, count;
    struct run runs[JMK_MOST_RUNS]; /* a ring */
};

struct jmk_labels *jmk_labels_new(void) {
    return calloc(1, sizeof(struct jmk_labels));
}

struct jmk_labels *jmk_labels_free(struct jmk_labels *labels) {
    free(labels);
    return NULL;
}

uint64_t jmk_labels_start(uint64_t label) {
    return label && label <= INT64_MAX ? label : 1;
}

static size_t place(const struct jmk_labels *labels, size_t index) {
    return (labels->oldest + index) % JMK_MOST_RUNS;
}

bool jmk_labels_go_on(const struct jmk_labels *labels, uint64_t number, uint64_t label) {
    return label && labels->count &&
           labels->runs[place(labels, labels->count - 1)].shift == label - number;
}

bool jmk_labels_add(struct jmk_labels *labels, uint64_t number, uint64_t label, uint64_t acked) {
    if (labels->count == JMK_MOST_RUNS) {
        if (labels->runs[place(labels, 1)].first - 1 > acked)
            return false;
        labels->oldest = place(labels, 1);
        labels->count--;
    }
    labels->runs[place(labels, labels->count++)] = (struct run){number, label - number};
    return true;
}

uint64_t jmk_labels_of(const struct jmk_labels *labels, uint64_t number) {
    size_t low = 0, high = labels->count;

    while (high - low > 1) {
        size_t middle = low + (high - low) / 2;
        if (labels->runs[place(labels, middle)].first <= number)
            low = middle;
        else
            high = middle;
    }
    return number + labels->runs[place(labels, low)].shift;
}
