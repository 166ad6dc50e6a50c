/* SPDX-License-Identifier: Apache-2.0 */
/* Memory that received packets lie in, and what keeps the memory of a batch. */
#ifndef JMK_ARENA_H
#define JMK_ARENA_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "jumiks.h"

#ifndef JMK_MAX_ITEMS
#define JMK_MAX_ITEMS 16384 /* messages in a batch; the fuzz targets make do with a few */
#endif

/* What keeps a batch's memory: an arena of packets, or a pin in a log that is shared. */
struct jmk_arena {
    atomic_uint refs;
    void (*drop)(struct jmk_arena *arena);              /* the last reference is gone */
    bool (*whole)(const struct jmk_arena *arena);       /* NULL: always */
};

/* Arenas that nobody uses now. It lives as long as its client, or an arena that is still held. */
struct jmk_pool;

/* Memory for packets. */
struct jmk_packets {
    struct jmk_arena arena;
    struct jmk_pool *pool;
    uint8_t *memory;
    size_t size;
    struct jmk_slice *items; /* behind the memory, in the same map */
};

struct jmk_pool *jmk_pool_new(void);

/* The client is gone: keep no spares. */
void jmk_pool_close(struct jmk_pool *pool);

/* Make *packets one of at least size bytes that nobody else holds. */
int jmk_packets_own(struct jmk_pool *pool, struct jmk_packets **packets, size_t size);
void jmk_packets_free(struct jmk_packets *packets);

#endif
