/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory that received packets lie in
 *
 * An arena belongs to one batch at a time. The next receive uses it again, unless somebody holds it;
 * then another one takes its place, from a small pool that outlives the client if it must.
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
    struct jmk_packets *spare[SPARE_ARENAS];
};

struct jmk_pool *jmk_pool_new(void) {
    struct jmk_pool *pool = calloc(1, sizeof *pool);

    if (!pool)
        return NULL;
    pthread_mutex_init(&pool->lock, NULL);
    pool->refs = 1;
    return pool;
}

static void unmap(struct jmk_packets *packets) {
    munmap(packets->memory, packets->size + JMK_MAX_ITEMS * sizeof(struct jmk_slice));
    free(packets);
}

static struct jmk_packets *map(size_t size) {
    struct jmk_packets *packets = calloc(1, sizeof *packets);

    if (!packets)
        return NULL;
    size = (size + 63) & ~(size_t)63; /* the items stand behind, aligned */
    packets->size = size;
    packets->memory =
        mmap(NULL, size + JMK_MAX_ITEMS * sizeof(struct jmk_slice), PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (packets->memory == MAP_FAILED) {
        free(packets);
        return NULL;
    }
    packets->items = (struct jmk_slice *)(void *)(packets->memory + size);
    return packets;
}

/* Drop one reference to the pool, whose lock is held. */
static void leave(struct jmk_pool *pool) {
    bool last = --pool->refs == 0;

    pthread_mutex_unlock(&pool->lock);
    if (last) {
        pthread_mutex_destroy(&pool->lock);
        free(pool);
    }
}

static void drop(struct jmk_arena *arena) {
    struct jmk_packets *packets = (struct jmk_packets *)arena;
    struct jmk_pool *pool = packets->pool;

    pthread_mutex_lock(&pool->lock);
    if (!pool->closed && pool->count < SPARE_ARENAS) {
        pool->spare[pool->count++] = packets;
        packets = NULL;
    }
    leave(pool);
    if (packets)
        unmap(packets);
}

static struct jmk_packets *take(struct jmk_pool *pool, size_t size) {
    struct jmk_packets *packets = NULL;

    pthread_mutex_lock(&pool->lock);
    for (unsigned i = pool->count; i-- > 0 && !packets;) {
        if (pool->spare[i]->size >= size) {
            packets = pool->spare[i];
            pool->spare[i] = pool->spare[--pool->count];
        }
    }
    pthread_mutex_unlock(&pool->lock);
    if (!packets)
        packets = map(size);
    if (!packets)
        return NULL;
    pthread_mutex_lock(&pool->lock);
    pool->refs++;
    pthread_mutex_unlock(&pool->lock);
    packets->pool = pool;
    packets->arena.drop = drop;
    atomic_store(&packets->arena.refs, 1);
    return packets;
}

void jmk_pool_close(struct jmk_pool *pool) {
    pthread_mutex_lock(&pool->lock);
    pool->closed = true;
    while (pool->count)
        unmap(pool->spare[--pool->count]);
    leave(pool);
}

int jmk_packets_own(struct jmk_pool *pool, struct jmk_packets **packets, size_t size) {
    if (*packets && atomic_load(&(*packets)->arena.refs) == 1 && (*packets)->size >= size)
        return 0;
    jmk_packets_free(*packets);
    *packets = take(pool, size);
    return *packets ? 0 : -ENOMEM;
}

void jmk_packets_free(struct jmk_packets *packets) {
    if (packets)
        jmk_arena_free(&packets->arena);
}

void jmk_arena_free(jmk_arena *arena) {
    if (arena && atomic_fetch_sub(&arena->refs, 1) == 1)
        arena->drop(arena);
}

int jmk_arena_whole(const jmk_arena *arena) {
    return !arena->whole || arena->whole(arena);
}
