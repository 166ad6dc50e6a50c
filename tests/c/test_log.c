/* SPDX-License-Identifier: Apache-2.0 */
/* The ring against a model that simply remembers where each frame went. */
#include "server/log.h"

#include <pthread.h>

#include "check.h"

#define FRAMES 20000
#define PAIR_FRAMES 1000000u
#define RUN 20
#define RUN_SIZE 300

/* frames[n] is where the frame JMK_FIRST_ID + n stands; one more than were written is known. */
struct model {
    struct jmk_log log;
    uint64_t offsets[FRAMES + 1];
    uint32_t sizes[FRAMES];
    uint64_t count, published, floor; /* floor: a number of a frame */
};

static uint8_t byte_of(uint64_t number, uint64_t at) {
    return (uint8_t)(number * 31 + at * 7);
}

static struct jmk_mark place(const struct model *model, uint64_t number) {
    return (struct jmk_mark){JMK_FIRST_ID + number, model->offsets[number]};
}

static uint64_t oldest(const struct model *model) {
    return atomic_load(&model->log.page->oldest_id) - JMK_FIRST_ID;
}

/* Let the floor follow until a frame of this size fits, and then sometimes a little further. */
static void raise_floor(struct model *model, uint32_t size) {
    uint64_t end = model->offsets[model->count] + jmk_frame_length(size);

    while (end - model->offsets[model->floor] > model->log.size)
        model->floor++;
    if (any_below(4) == 0)
        model->floor += any_below(model->count - model->floor + 1);
}

static void append(struct model *model, uint32_t size) {
    uint8_t *at;

    raise_floor(model, size);
    at = jmk_log_open(&model->log, size, model->offsets[model->floor]);
    CHECK(at == jmk_log_at(&model->log, model->offsets[model->count]) + JMK_FRAME_HEADER);
    for (uint32_t i = 0; i < size; i++)
        at[i] = byte_of(model->count, i);
    CHECK_EQUAL(jmk_log_seal(&model->log, size), JMK_FIRST_ID + model->count);
    model->sizes[model->count] = size;
    model->offsets[model->count + 1] = model->offsets[model->count] + jmk_frame_length(size);
    model->count++;
}

static void the_tail_is_a_frame_at_or_before_the_floor(const struct model *model) {
    uint64_t tail = atomic_load(&model->log.page->tail);

    CHECK(oldest(model) <= model->floor);
    CHECK_EQUAL(tail, model->offsets[oldest(model)]);
    CHECK(model->offsets[model->count] - tail <= model->log.size);
}

static void the_end_is_what_was_published(const struct model *model) {
    struct jmk_mark end = jmk_log_end(&model->log);

    CHECK_EQUAL(end.id, JMK_FIRST_ID + model->published);
    CHECK_EQUAL(end.offset, model->offsets[model->published]);
}

static void frames_are_whole(const struct model *model) {
    for (uint64_t n = oldest(model); n < model->count; n++) {
        const uint8_t *at = jmk_log_at(&model->log, model->offsets[n]);
        struct jmk_header header = jmk_frame_decode(at);
        uint64_t i = 0;

        CHECK_EQUAL(header.id, JMK_FIRST_ID + n);
        CHECK_EQUAL(header.size, model->sizes[n]);
        CHECK_EQUAL(header.kind, JMK_KIND_DATA);
        CHECK_EQUAL(header.flags, 0);
        at += JMK_FRAME_HEADER;
        for (; i < header.size; i++)
            CHECK_EQUAL(at[i], byte_of(n, i));
        for (; i < jmk_frame_length(header.size) - JMK_FRAME_HEADER; i++)
            CHECK_EQUAL(at[i], 0);
    }
}

static struct jmk_mark mark(const struct model *model, uint64_t number) {
    return model->log.marks[number & model->log.mark_mask];
}

static void marks_stand_at_frames_and_no_further_apart_than_a_stride(const struct model *model) {
    uint64_t first = atomic_load(&model->log.mark_tail);
    uint64_t end = atomic_load(&model->log.mark_head);

    CHECK(first < end);
    CHECK(2 * (end - first) <= model->log.mark_mask + 1); /* room for twice as many */
    CHECK(mark(model, first).offset <= model->offsets[oldest(model)]);
    for (uint64_t n = first; n < end; n++) {
        uint64_t number = mark(model, n).id - JMK_FIRST_ID;
        uint64_t next = n + 1 < end ? mark(model, n + 1).offset : model->offsets[model->count];

        CHECK(number <= model->count);
        CHECK_EQUAL(mark(model, n).offset, model->offsets[number]);
        CHECK(next > mark(model, n).offset || number == model->count);
        CHECK(next - mark(model, n).offset <= JMK_LOG_STRIDE || next == model->offsets[number + 1]);
    }
}

static void searches_find_what_the_model_knows(const struct model *model) {
    uint64_t kept = model->published - model->floor;
    uint64_t from = model->floor + any_below(kept + 1), number, offset, expected;

    number = from + any_below(model->published - from + 1);
    CHECK_EQUAL(jmk_log_seek(&model->log, place(model, from), JMK_FIRST_ID + number),
                model->offsets[number]);
    offset = model->offsets[number] - (number > from ? any_below(16) : 0);
    CHECK_EQUAL(jmk_log_find(&model->log, place(model, from), offset).id, JMK_FIRST_ID + number);
    CHECK_EQUAL(jmk_log_find(&model->log, place(model, from), offset).offset,
                model->offsets[number]);
    expected = atomic_load(&model->log.mark_tail);
    while (expected < atomic_load(&model->log.mark_head) && mark(model, expected).offset <= offset)
        expected++;
    CHECK_EQUAL(jmk_log_mark_after(&model->log, offset), expected);
}

/* jmk_log_span as its comment has it, one frame after the other. */
static uint64_t naive_span(const struct model *model, uint64_t from, uint64_t to, uint64_t limit,
                           uint64_t last, uint64_t *id) {
    uint64_t n = from;

    while (n < to && JMK_FIRST_ID + n <= last &&
           (n == from || model->offsets[n + 1] - model->offsets[from] <= limit))
        *id = JMK_FIRST_ID + n++;
    return model->offsets[n];
}

static void spans_stop_where_they_should(const struct model *model) {
    static const uint64_t limits[] = {0, 16, 24, 100, 4096, 65536, UINT64_MAX};
    uint64_t from = model->floor + any_below(model->published - model->floor + 1);
    uint64_t to = from + any_below(model->published - from + 1);
    uint64_t limit = limits[any_below(sizeof limits / sizeof *limits)];
    uint64_t last = any_below(3) ? UINT64_MAX : JMK_FIRST_ID + from - 1 + any_below(20);
    uint64_t id = 7, expected_id = 7;
    uint64_t expected = naive_span(model, from, to, limit, last, &expected_id);

    CHECK_EQUAL(
        jmk_log_span(&model->log, model->offsets[from], model->offsets[to], limit, last, &id),
        expected);
    CHECK_EQUAL(id, expected_id);
}

static uint32_t any_size(uint64_t most) {
    static const uint32_t bounds[] = {1, 9, 64, 1000, 20000};
    uint64_t bound = bounds[any_below(sizeof bounds / sizeof *bounds)];

    if (any_below(500) == 0)
        return (uint32_t)most;
    return (uint32_t)any_below(bound < most ? bound : most);
}

/* Would the next message need more than to be written there? */
static bool is_in_the_way(const struct model *model, uint64_t end, uint64_t limit) {
    uint64_t last_mark = mark(model, atomic_load(&model->log.mark_head) - 1).offset;

    return end > limit || end - atomic_load(&model->log.page->tail) > model->log.size ||
           end - last_mark > JMK_LOG_STRIDE;
}

/* A run of messages: it goes as far as it can, and moves neither the tail nor a mark. */
static void append_run(struct model *model) {
    static uint8_t bytes[RUN * RUN_SIZE];
    struct jmk_slice slices[RUN];
    struct jmk_messages messages = {slices, bytes, any_below(RUN_SIZE), RUN_SIZE, RUN};
    bool rows = any_below(2);
    uint64_t start = model->count, tail = atomic_load(&model->log.page->tail), sum = 0;
    uint64_t marks = atomic_load(&model->log.mark_head);
    uint64_t limit = any_below(2) ? UINT64_MAX : model->offsets[start] + any_below(8 * RUN_SIZE);
    size_t from = any_below(3), done = from, to = RUN - any_below(3);

    for (size_t i = 0; i < RUN; i++) {
        slices[i] = (struct jmk_slice){bytes + i * RUN_SIZE,
                                       rows ? messages.size : any_below(RUN_SIZE + 1)};
        for (size_t at = 0; at < slices[i].size; at++)
            bytes[i * RUN_SIZE + at] = byte_of(start + i - from, at);
    }
    if (rows)
        messages.slices = NULL;
    sum = jmk_log_append_run(&model->log, &messages, &done, to, limit);
    for (size_t i = from; i < done; i++) {
        sum -= slices[i].size;
        model->sizes[model->count] = (uint32_t)slices[i].size;
        model->offsets[model->count + 1] =
            model->offsets[model->count] + jmk_frame_length(slices[i].size);
        model->count++;
    }
    CHECK_EQUAL(sum, 0);
    CHECK(model->count == start || !is_in_the_way(model, model->offsets[model->count], limit));
    CHECK(done == to ||
          is_in_the_way(model, model->offsets[model->count] + jmk_frame_length(slices[done].size),
                        limit));
    CHECK_EQUAL(atomic_load(&model->log.page->tail), tail);
    CHECK_EQUAL(atomic_load(&model->log.mark_head), marks);
    CHECK_EQUAL(model->log.write.id, JMK_FIRST_ID + model->count);
    CHECK_EQUAL(model->log.write.offset, model->offsets[model->count]);
}

static void the_ring_does_what_the_model_does(struct model *model, uint64_t size) {
    memset(model, 0, sizeof *model);
    CHECK_EQUAL(jmk_log_init(&model->log, size, JMK_FIRST_ID), 0);
    the_end_is_what_was_published(model);
    while (model->count < FRAMES) {
        uint64_t batch = 1 + any_below(any_below(10) ? 3 : 300);

        for (; batch > 0 && model->count < FRAMES; batch--) {
            append(model, any_size(size / 4));
            if (model->count + RUN < FRAMES && any_below(10) == 0)
                append_run(model);
            the_tail_is_a_frame_at_or_before_the_floor(model);
            the_end_is_what_was_published(model);
            if (model->floor > model->published)
                break; /* a floor is never beyond what was published */
        }
        jmk_log_publish(&model->log);
        model->published = model->count;
        the_end_is_what_was_published(model);
        searches_find_what_the_model_knows(model);
        spans_stop_where_they_should(model);
        if (any_below(200) == 0) {
            frames_are_whole(model);
            marks_stand_at_frames_and_no_further_apart_than_a_stride(model);
        }
    }
    CHECK(model->offsets[FRAMES] > 10 * size);
    frames_are_whole(model);
    jmk_log_deinit(&model->log);
    jmk_log_deinit(&model->log);
}

/* The floor stands still: eviction takes all before it, and not one byte more. */
static void eviction_stops_at_the_floor(uint64_t size) {
    struct jmk_log log;
    uint64_t floor = 0, frame = 64, frames = size / frame;

    CHECK_EQUAL(jmk_log_init(&log, size, JMK_FIRST_ID), 0);
    for (uint64_t n = 0; n < 3 * frames; n++) {
        uint64_t end = (n + 1) * frame;

        if (end - floor > size)
            floor = end - size + (any_below(2) ? 0 : any_below(frames / 2) * frame);
        jmk_log_open(&log, 48, floor);
        jmk_log_seal(&log, 48);
        jmk_log_publish(&log);
        CHECK(atomic_load(&log.page->tail) <= floor);
        CHECK(end - atomic_load(&log.page->tail) <= size);
        CHECK_EQUAL(atomic_load(&log.page->tail),
                    (atomic_load(&log.page->oldest_id) - JMK_FIRST_ID) * frame);
    }
    jmk_log_deinit(&log);
}

static atomic_int written;

static void *write_frames(void *log) {
    for (uint32_t n = 0; n < PAIR_FRAMES; n++) {
        jmk_log_open(log, 8, UINT64_MAX);
        jmk_log_seal(log, 8);
        jmk_log_publish(log);
    }
    atomic_store(&written, 1);
    return NULL;
}

/* Each frame takes 24 bytes, so a torn pair shows. */
static void the_end_is_one_pair_whoever_writes_meanwhile(void) {
    struct jmk_mark before = {JMK_FIRST_ID, 0}, end;
    struct jmk_log log;
    pthread_t writer;
    int last;

    CHECK_EQUAL(jmk_log_init(&log, 65536, JMK_FIRST_ID), 0);
    CHECK_EQUAL(pthread_create(&writer, NULL, write_frames, &log), 0);
    do {
        last = atomic_load(&written);
        end = jmk_log_end(&log);
        CHECK_EQUAL(end.offset, (end.id - JMK_FIRST_ID) * 24);
        CHECK(end.id >= before.id);
        before = end;
    } while (!last);
    CHECK_EQUAL(end.id, JMK_FIRST_ID + PAIR_FRAMES);
    pthread_join(writer, NULL);
    jmk_log_deinit(&log);
}

int main(void) {
    static struct model model;

    the_ring_does_what_the_model_does(&model, 65536);
    the_ring_does_what_the_model_does(&model, 1 << 20);
    eviction_stops_at_the_floor(65536);
    eviction_stops_at_the_floor(1 << 20);
    the_end_is_one_pair_whoever_writes_meanwhile();
    return 0;
}
