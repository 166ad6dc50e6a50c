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

/* What keeps a batch's memory: an arena, or a pin in a shared log. */
struct jmk_held {
    atomic_uint refs;
    void (*drop)(struct jmk_held *held);              /* the last reference is gone */
    bool (*is_intact)(const struct jmk_held *held);       /* NULL: always */
};

/* Arenas that nobody uses now. It lives as long as its client, or an arena that is still held. */
struct jmk_pool;

/* Memory for packets. */
struct jmk_arena {
    struct jmk_held held;
    struct jmk_pool *pool;
    uint8_t *memory;
    size_t size;
    struct jmk_slice *items; /* behind the memory, in the same map */
};

struct jmk_pool *jmk_pool_new(void);

/* The client is gone: keep no spares. */
void jmk_pool_close(struct jmk_pool *pool);

/* Make *arena one of at least size bytes that nobody else holds. */
int jmk_arena_own(struct jmk_pool *pool, struct jmk_arena **arena, size_t size);
void jmk_arena_release(struct jmk_arena *arena);

#endif
