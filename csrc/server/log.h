/* SPDX-License-Identifier: Apache-2.0 */
/* The log: a ring buffer of frames, each written once. */
#ifndef JMK_LOG_H
#define JMK_LOG_H

#include <stdatomic.h>
#include <stdbool.h>

#include "common/frame.h"
#include "common/page.h"

/* Frames between two marks fill at most this many bytes, unless one frame alone is larger. */
#define JMK_LOG_STRIDE 65536u

/* A frame's place: the frame id stands, or will stand, at offset. */
struct jmk_mark {
    uint64_t id;
    uint64_t offset;
};

struct jmk_log {
    struct jmk_log_page *page; /* what readers may see */
    uint8_t *base;             /* size bytes, mapped twice back to back */
    uint8_t *lent;             /* the same once more, for what users write in place; or NULL */
    uint64_t size;
    int fd;                /* -1: there is no memfd here */
    bool shareable;        /* no other process can write, shrink or grow what fd stands for */
    struct jmk_mark write; /* the writers' own: where the next frame goes */
    struct jmk_mark *marks; /* a ring of its own */
    uint64_t mark_mask;
    _Atomic uint64_t mark_head;
    _Atomic uint64_t mark_tail; /* the last mark at or before tail */
};

/*
 * Make a log of size bytes whose first frame is first_id. Without memfd or its seals it works as well,
 * and is not shareable.
 */
int jmk_log_init(struct jmk_log *log, uint64_t size, uint64_t first_id);
void jmk_log_deinit(struct jmk_log *log);

static inline uint8_t *jmk_log_at(const struct jmk_log *log, uint64_t offset) {
    return log->base + (offset & (log->size - 1));
}

/* ---- writers, one at a time ---- */

/*
 * Make room for a frame of size payload bytes and return where the payload goes. Nothing at or
 * behind floor is given up; the caller made sure that this suffices.
 */
void *jmk_log_open(struct jmk_log *log, uint32_t size, uint64_t floor);

/*
 * The same memory in another map, which can be taken from whoever writes there: *where is a payload
 * that jmk_log_open returned, and becomes its place in that map. 0, or -errno.
 */
int jmk_log_lend(struct jmk_log *log, void **where);

/*
 * Take it back for good: what stands at where, size bytes that jmk_log_lend gave, and the rest of their
 * pages become memory of its own, with the same bytes, at the same address. *area and *length say
 * what the caller has to unmap. 0, or -errno: nothing has changed.
 */
int jmk_log_take_back(struct jmk_log *log, void *where, size_t size, void **area, size_t *length);

/* Finish the frame opened last. Returns its id. */
uint64_t jmk_log_seal(struct jmk_log *log, uint32_t size);

/* One of a batch. */
static inline struct jmk_slice jmk_message_at(const struct jmk_messages *messages, size_t i) {
    if (messages->slices)
        return messages->slices[i];
    return (struct jmk_slice){(const char *)messages->rows + (ptrdiff_t)i * messages->stride,
                              messages->size};
}

/*
 * Open and seal frames for the messages from *from to before `to`, as long as they end at or before limit, and
 * as nothing has to be given up or marked for them. *from becomes the first message that it left. Returns the
 * payload bytes.
 */
uint64_t jmk_log_append_run(struct jmk_log *log, const struct jmk_messages *messages, size_t *from,
                            size_t to, uint64_t limit);

/* Let readers see all that was sealed. */
void jmk_log_publish(struct jmk_log *log);

/* ---- readers, for what lies at or behind a floor that writers keep ---- */

/* The oldest frame kept. Only while writers are excluded. */
struct jmk_mark jmk_log_oldest(const struct jmk_log *log);

/* The end that was published last. Sequentially consistent with jmk_log_publish. */
struct jmk_mark jmk_log_end(const struct jmk_log *log);

/*
 * The offset of frame id, or of head if it is not published yet. from is any frame at or behind the
 * floor whose place is known; id is not below it.
 */
uint64_t jmk_log_seek(const struct jmk_log *log, struct jmk_mark from, uint64_t id);

/* The first frame at or behind offset; from as before. */
struct jmk_mark jmk_log_find(const struct jmk_log *log, struct jmk_mark from, uint64_t offset);

/* A mark by its number; behind all frames, if there is none of that number yet. */
static inline struct jmk_mark jmk_log_mark_at(const struct jmk_log *log, uint64_t number) {
    if (number < atomic_load_explicit(&log->mark_head, memory_order_acquire))
        return log->marks[number & log->mark_mask];
    return (struct jmk_mark){UINT64_MAX, UINT64_MAX};
}

/* The number of the first mark behind offset. */
uint64_t jmk_log_mark_after(const struct jmk_log *log, uint64_t offset);

/*
 * How far whole frames from offset on reach without passing end, limit bytes or id last; *id becomes
 * the last one within. The first frame is passed over whatever its size, unless it is beyond last.
 */
uint64_t jmk_log_span(const struct jmk_log *log, uint64_t offset, uint64_t end, uint64_t limit,
                      uint64_t last, uint64_t *id);

#endif
