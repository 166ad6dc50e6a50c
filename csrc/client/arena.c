/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory that received packets lie in
 *
 * An arena belongs to one batch at a time. The next receive uses it again, unless somebody holds it;
 * then another arena takes its place. A few that are not held any more are kept as spares, in a pool
 * that outlives the client if it must. Without spares, each held batch would cost a map, its page
 * faults and an unmap: four to five times the CPU time per message.
 */
#include "client/arena.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#define SPARE_ARENAS 4

struct jmk_pool {
    pthread_mutex_t lock;
    bool closed;   /* the client is gone: keep no spares */
    unsigned refs; /* the client, and each arena that is not a spare */
    unsigned count;
    struct jmk_arena *spare[SPARE_ARENAS];
};

struct jmk_pool *jmk_pool_new(void) {
    struct jmk_pool *pool = calloc(1, sizeof *pool);

    if (!pool)
        return NULL;
    pthread_mutex_init(&pool->lock, NULL);
    pool->refs = 1;
    return pool;
}

static void unmap(struct jmk_arena *arena) {
    munmap(arena->memory, arena->size + JMK_MAX_ITEMS * sizeof(struct jmk_slice));
    free(arena);
}

static struct jmk_arena *map(size_t size) {
    struct jmk_arena *arena = calloc(1, sizeof *arena);

    if (!arena)
        return NULL;
    size = (size + 63) & ~(size_t)63; /* the items stand behind, aligned */
    arena->size = size;
    arena->memory =
        mmap(NULL, size + JMK_MAX_ITEMS * sizeof(struct jmk_slice), PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (arena->memory == MAP_FAILED) {
        free(arena);
        return NULL;
    }
    arena->items = (struct jmk_slice *)(void *)(arena->memory + size);
    return arena;
}

/* Drop one reference to the pool, whose lock is held. */
static void release_pool(struct jmk_pool *pool) {
    bool last = --pool->refs == 0;

    pthread_mutex_unlock(&pool->lock);
    if (last) {
        pthread_mutex_destroy(&pool->lock);
        free(pool);
    }
}

static void drop(struct jmk_held *held) {
    struct jmk_arena *arena = (struct jmk_arena *)held;
    struct jmk_pool *pool = arena->pool;

    pthread_mutex_lock(&pool->lock);
    if (!pool->closed && pool->count < SPARE_ARENAS) {
        pool->spare[pool->count++] = arena;
        arena = NULL;
    }
    release_pool(pool);
    if (arena)
        unmap(arena);
}

static struct jmk_arena *acquire(struct jmk_pool *pool, size_t size) {
    struct jmk_arena *arena = NULL;

    pthread_mutex_lock(&pool->lock);
    for (unsigned i = pool->count; i-- > 0 && !arena;) {
        if (pool->spare[i]->size >= size) {
            arena = pool->spare[i];
            pool->spare[i] = pool->spare[--pool->count];
        }
    }
    pthread_mutex_unlock(&pool->lock);
    if (!arena)
        arena = map(size);
    if (!arena)
        return NULL;
    pthread_mutex_lock(&pool->lock);
    pool->refs++;
    pthread_mutex_unlock(&pool->lock);
    arena->pool = pool;
    arena->held.drop = drop;
    atomic_store(&arena->held.refs, 1);
    return arena;
}

void jmk_pool_close(struct jmk_pool *pool) {
    pthread_mutex_lock(&pool->lock);
    pool->closed = true;
    while (pool->count)
        unmap(pool->spare[--pool->count]);
    release_pool(pool);
}

int jmk_arena_own(struct jmk_pool *pool, struct jmk_arena **arena, size_t size) {
    if (*arena && atomic_load(&(*arena)->held.refs) == 1 && (*arena)->size >= size)
        return 0;
    jmk_arena_release(*arena);
    *arena = acquire(pool, size);
    return *arena ? 0 : -ENOMEM;
}

void jmk_arena_release(struct jmk_arena *arena) {
    if (arena)
        jmk_held_free(&arena->held);
}

void jmk_held_free(jmk_held *held) {
    if (held && atomic_fetch_sub(&held->refs, 1) == 1)
        held->drop(held);
}

int jmk_held_is_intact(const jmk_held *held) {
    return !held->is_intact || held->is_intact(held);
}
