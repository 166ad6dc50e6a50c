/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The log: a ring buffer of frames, each written once
 *
 * One memfd holds a header page (page.h) and then the ring buffer, which is mapped twice back to back
 * (map.c). An offset is the number of bytes ever written before it. It only grows, and its low bits are
 * the place in the ring buffer.
 * tail <= floor <= head <= tail + size, where the floor is the lowest offset that a client may still
 * read. The caller keeps the floor, and the log gives up no frame behind it.
 *
 * Writers exclude each other by the caller's lock, and publish what they wrote as often as they
 * like. Readers take no lock. A frame's bytes, then its mark, then the end (offset and id, one pair
 * under a version that is odd while it changes) are stored in this order. So a reader that has loaded
 * the end may read all frames and all marks before it. Publishing, and loading the end, are sequentially
 * consistent: see state.h for the code that needs it. Readers in other processes (receive_shared.c) may
 * also be before the floor, where frames are overwritten while they read. tail is stored before the
 * first byte is overwritten, so a reader that copies a frame, and then finds tail at or before that
 * frame, has all of it.
 *
 * Marks are a sparse index id -> offset, one per JMK_LOG_STRIDE bytes or so. They serve the search
 * for an id, and they cut the stream into packets once for all clients. There are at most two per
 * stride in the log, and room for twice as many. So a reader that starts at or behind the floor can
 * meet a mark that was given up meanwhile, but never one that was overwritten.
 *
 * Pages are allocated when the log is made: no store into it can end in SIGBUS later.
 */
#include "server/log.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "common/map.h"
#include "common/os.h"
#include "common/point.h"

#define PREFETCH 1024 /* bytes ahead of a frame, which the second map makes contiguous */

static int map(struct jmk_log *log) {
    uint8_t *area;
    int error = jmk_map_log(log->fd, log->size, PROT_READ | PROT_WRITE, MAP_POPULATE, &area);

    if (error)
        return error;
    madvise(area, jmk_map_header() + 2 * log->size, MADV_DONTFORK);
    log->page = (struct jmk_log_page *)(void *)area;
    log->base = area + jmk_map_header();
    return 0;
}

static int make_marks(struct jmk_log *log) {
    uint64_t marks = 8;

    while (marks < 4 * (log->size / JMK_LOG_STRIDE + 2))
        marks *= 2;
    log->marks = calloc(marks, sizeof *log->marks);
    if (!log->marks)
        return -ENOMEM;
    log->mark_mask = marks - 1;
    log->marks[0] = log->write;
    atomic_init(&log->mark_head, 1);
    return 0;
}

static void fill_page(const struct jmk_log *log) {
    struct jmk_log_page *page = log->page;

    page->magic = JMK_PAGE_MAGIC;
    page->layout = JMK_PAGE_LAYOUT;
    page->size = log->size;
    atomic_init(&page->next_id, log->write.id);
    atomic_init(&page->oldest_id, log->write.id);
}

int jmk_log_init(struct jmk_log *log, uint64_t size, uint64_t first_id) {
    int error;

    memset(log, 0, sizeof *log);
    log->size = size;
    log->write.id = first_id;
    log->fd = jmk_memfd("jumiks", jmk_map_header() + size);
    if (log->fd < 0 && log->fd != -ENOSYS && log->fd != -EPERM && log->fd != -EACCES)
        return log->fd;
    error = map(log);
    if (!error)
        error = make_marks(log);
    if (error) {
        jmk_log_deinit(log);
        return error;
    }
    fill_page(log);
    log->shareable = jmk_map_seal_log(log->fd);
    return 0;
}

void jmk_log_deinit(struct jmk_log *log) {
    if (log->lent)
        munmap(log->lent, 2 * log->size);
    log->lent = NULL;
    jmk_unmap_log(log->page, log->size);
    log->page = NULL;
    log->base = NULL;
    jmk_close_fd(&log->fd);
    free(log->marks);
    log->marks = NULL;
}

static inline uint64_t relaxed(const _Atomic uint64_t *word) {
    return atomic_load_explicit(word, memory_order_relaxed);
}

static uint64_t length_at(const struct jmk_log *log, uint64_t offset) {
    return jmk_frame_length(jmk_frame_decode(jmk_log_at(log, offset)).size);
}

/*
 * Give up the oldest frames until tail reaches goal. In a large log that is from mark to mark, which
 * gives up a little more than asked, but nothing from the floor on; else it is frame by frame.
 */
static void evict(struct jmk_log *log, uint64_t goal, uint64_t floor) {
    uint64_t tail = relaxed(&log->page->tail), id = relaxed(&log->page->oldest_id);
    uint64_t number = relaxed(&log->mark_tail);

    while (tail < goal) {
        struct jmk_mark next = jmk_log_mark_at(log, number + 1);
        if (next.offset <= floor && next.offset <= goal + log->size / 16) {
            tail = next.offset;
            id = next.id;
        } else {
            tail += length_at(log, tail);
            id++;
        }
        if (tail >= next.offset)
            number++;
    }
    atomic_store_explicit(&log->mark_tail, number, memory_order_relaxed);
    atomic_store_explicit(&log->page->oldest_id, id, memory_order_relaxed);
    JMK_POINT(JMK_AT_OLDEST);
    atomic_store_explicit(&log->page->tail, tail, memory_order_release);
    JMK_POINT(JMK_AT_TAIL);
    /* Not just a release fence: x86 lets the stores of a large memcpy overtake the tail's. */
    jmk_fence();
}

void *jmk_log_open(struct jmk_log *log, uint32_t size, uint64_t floor) {
    uint64_t head = log->write.offset, end = head + jmk_frame_length(size);

    JMK_POINT(JMK_AT_OPEN);
    if (end - relaxed(&log->page->tail) > log->size)
        evict(log, end - log->size, floor);
    return jmk_log_at(log, head) + JMK_FRAME_HEADER;
}

/* ---- memory that is lent ---- */

/* The memfd is sealed: a new map of it could not be written to. So our own map is duplicated. */
static int make_lent(struct jmk_log *log) {
    uint64_t size = log->size;
    uint8_t *area = mmap(NULL, 2 * size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (area == MAP_FAILED)
        return -errno;
    for (int i = 0; i < 2; i++) {
        if (mremap(log->base, 0, size, MREMAP_MAYMOVE | MREMAP_FIXED, area + (uint64_t)i * size) ==
            MAP_FAILED) {
            int error = -errno;
            munmap(area, 2 * size);
            return error;
        }
    }
    madvise(area, 2 * size, MADV_DONTFORK);
    log->lent = area;
    return 0;
}

int jmk_log_lend(struct jmk_log *log, void **where) {
    int error = log->lent ? 0 : make_lent(log);

    if (!error)
        *where = log->lent + ((uint8_t *)*where - log->base);
    return error;
}

int jmk_log_take_back(struct jmk_log *log, void *where, size_t size, void **area, size_t *length) {
    uint64_t page = jmk_map_header(), place = (uint64_t)((uint8_t *)where - log->lent);
    uint64_t first = place / page * page, end = (place + size + page - 1) / page * page;
    uint8_t *own = mmap(log->lent + first, end - first, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);

    if (own == MAP_FAILED)
        return -errno;
    memcpy(where, log->base + place, size);
    if (first)
        munmap(log->lent, first);
    if (end < 2 * log->size)
        munmap(log->lent + end, 2 * log->size - end);
    log->lent = NULL; /* the next one gets another map */
    *area = own;
    *length = end - first;
    return 0;
}

static void append_mark(struct jmk_log *log, struct jmk_mark place, uint64_t length) {
    uint64_t number = relaxed(&log->mark_head);

    if (place.offset + length - jmk_log_mark_at(log, number - 1).offset <= JMK_LOG_STRIDE ||
        place.offset == 0)
        return;
    log->marks[number & log->mark_mask] = place;
    atomic_store_explicit(&log->mark_head, number + 1, memory_order_release);
}

uint64_t jmk_log_seal(struct jmk_log *log, uint32_t size) {
    struct jmk_mark place = log->write;
    uint64_t length = jmk_frame_length(size);
    struct jmk_header header = {size, JMK_KIND_DATA, 0, place.id};
    uint8_t *at = jmk_log_at(log, place.offset);

    __builtin_prefetch(at + PREFETCH, 1); /* readers may have had these lines last */
    JMK_POINT(JMK_AT_SEAL);
    jmk_frame_encode(at, &header);
    if (size % 8)
        memset(at + JMK_FRAME_HEADER + size, 0, length - JMK_FRAME_HEADER - size);
    append_mark(log, place, length);
    log->write = (struct jmk_mark){place.id + 1, place.offset + length};
    JMK_POINT(JMK_AT_SEALED);
    return place.id;
}

/* Up to here frames go in without a new mark, and without giving up others. */
static uint64_t free_until(const struct jmk_log *log) {
    uint64_t last = jmk_log_mark_at(log, relaxed(&log->mark_head) - 1).offset;
    uint64_t room = relaxed(&log->page->tail) + log->size;

    return last + JMK_LOG_STRIDE < room ? last + JMK_LOG_STRIDE : room;
}

uint64_t jmk_log_append_run(struct jmk_log *log, const struct jmk_messages *messages, size_t *from,
                            size_t to, uint64_t limit) {
    const struct jmk_messages all = *messages; /* which no store to the log can change */
    struct jmk_mark place = log->write;
    uint64_t end = free_until(log), bytes = 0;
    uint8_t *at = jmk_log_at(log, place.offset);
    size_t next = *from;

    if (limit < end)
        end = limit;
    for (; next < to; next++) {
        struct jmk_slice slice = jmk_message_at(&all, next);
        uint64_t length = jmk_frame_length(slice.size);

        if (slice.size > JMK_LOG_STRIDE || place.offset + length > end)
            break;
        __builtin_prefetch(at + PREFETCH, 1);
        JMK_POINT(JMK_AT_SEAL);
        at += jmk_frame_put(at, place.id, slice);
        place.offset += length;
        place.id++;
        bytes += slice.size;
    }
    log->write = place;
    *from = next;
    JMK_POINT(JMK_AT_SEALED);
    return bytes;
}

void jmk_log_publish(struct jmk_log *log) {
    uint64_t version = relaxed(&log->page->version);

    atomic_store_explicit(&log->page->version, version + 1, memory_order_relaxed);
    JMK_POINT(JMK_AT_ODD);
    atomic_store_explicit(&log->page->next_id, log->write.id, memory_order_release);
    JMK_POINT(JMK_AT_NEXT_ID);
    atomic_store_explicit(&log->page->head, log->write.offset, memory_order_release);
    JMK_POINT(JMK_AT_HEAD);
    atomic_store_explicit(&log->page->version, version + 2, memory_order_seq_cst);
    JMK_POINT(JMK_AT_PUBLISHED);
}

struct jmk_mark jmk_log_oldest(const struct jmk_log *log) {
    return (struct jmk_mark){relaxed(&log->page->oldest_id), relaxed(&log->page->tail)};
}

struct jmk_mark jmk_log_end(const struct jmk_log *log) {
    for (unsigned tries = 1;; tries++) {
        uint64_t version = atomic_load_explicit(&log->page->version, memory_order_seq_cst);
        struct jmk_mark end;

        end.id = atomic_load_explicit(&log->page->next_id, memory_order_acquire);
        end.offset = atomic_load_explicit(&log->page->head, memory_order_acquire);
        if (version % 2 == 0 && version == relaxed(&log->page->version))
            return end;
        if (tries % 64 == 0)
            sched_yield(); /* the writer may have lost its core between two stores */
    }
}

uint64_t jmk_log_seek(const struct jmk_log *log, struct jmk_mark from, uint64_t id) {
    uint64_t end = atomic_load_explicit(&log->page->head, memory_order_acquire);
    uint64_t low = relaxed(&log->mark_tail);
    uint64_t high = atomic_load_explicit(&log->mark_head, memory_order_acquire);

    while (high - low > 1) {
        uint64_t middle = low + (high - low) / 2;
        if (jmk_log_mark_at(log, middle).id <= id)
            low = middle;
        else
            high = middle;
    }
    if (jmk_log_mark_at(log, low).id <= id && jmk_log_mark_at(log, low).id > from.id)
        from = jmk_log_mark_at(log, low);
    for (; from.id < id && from.offset < end; from.id++)
        from.offset += length_at(log, from.offset);
    return from.offset;
}

struct jmk_mark jmk_log_find(const struct jmk_log *log, struct jmk_mark from, uint64_t offset) {
    uint64_t end = atomic_load_explicit(&log->page->head, memory_order_acquire);
    uint64_t number = jmk_log_mark_after(log, offset);

    if (number > relaxed(&log->mark_tail)) {
        struct jmk_mark before = jmk_log_mark_at(log, number - 1);
        if (before.offset > from.offset && before.offset <= offset)
            from = before;
    }
    for (; from.offset < offset && from.offset < end; from.id++)
        from.offset += length_at(log, from.offset);
    return from;
}

uint64_t jmk_log_mark_after(const struct jmk_log *log, uint64_t offset) {
    uint64_t low = relaxed(&log->mark_tail);
    uint64_t high = atomic_load_explicit(&log->mark_head, memory_order_acquire);

    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        if (jmk_log_mark_at(log, middle).offset <= offset)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

uint64_t jmk_log_span(const struct jmk_log *log, uint64_t offset, uint64_t end, uint64_t limit,
                      uint64_t last, uint64_t *id) {
    uint64_t start = offset;

    while (offset < end) {
        struct jmk_header header = jmk_frame_decode(jmk_log_at(log, offset));
        uint64_t length = jmk_frame_length(header.size);

        if (header.id > last || (offset > start && offset + length - start > limit))
            break;
        offset += length;
        *id = header.id;
    }
    return offset;
}
