/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The log's end: who took it may read all that lies before it
 *
 * A writer publishes; one reader takes the end (offset and id, one pair), another the offset alone.
 * The frame of message n is the value n in FRAME, its mark the value n in MARK.
 *
 * The steps, and what they stand for:
 *   A log.c append_mark `log->marks[number & log->mark_mask] = place`
 *   B log.c append_mark `atomic_store_explicit(&log->mark_head, number + 1, memory_order_release)`
 *   C log.c jmk_log_publish `atomic_store_explicit(&log->page->version, version + 1, memory_order_relaxed)`
 *   D log.c jmk_log_publish `atomic_store_explicit(&log->page->next_id, log->write.id, memory_order_release)`
 *   E log.c jmk_log_publish `atomic_store_explicit(&log->page->head, log->write.offset, memory_order_release)`
 *   F log.c jmk_log_publish `atomic_store_explicit(&log->page->version, version + 2, memory_order_seq_cst)`
 *   G log.c jmk_log_end `atomic_load_explicit(&log->page->version, memory_order_seq_cst)`
 *   H log.c jmk_log_end `end.id = atomic_load_explicit(&log->page->next_id, memory_order_acquire)`
 *   I log.c jmk_log_end `end.offset = atomic_load_explicit(&log->page->head, memory_order_acquire)`
 *   J log.c jmk_log_end `version % 2 == 0 && version == relaxed(&log->page->version)`
 *   K receive_shared.c read_frames `atomic_load_explicit(&reader->page->head, memory_order_acquire)`
 *   K log.c jmk_log_seek `atomic_load_explicit(&log->page->head, memory_order_acquire)`
 *   K log.c jmk_log_find `atomic_load_explicit(&log->page->head, memory_order_acquire)`
 *   L log.c jmk_log_seek `atomic_load_explicit(&log->mark_head, memory_order_acquire)`
 *   L log.c jmk_log_mark_after `atomic_load_explicit(&log->mark_head, memory_order_acquire)`
 *   L log.h jmk_log_mark_at `number < atomic_load_explicit(&log->mark_head, memory_order_acquire)`
 *
 * F and G need no more than release and acquire here; sleep.pml and handover.pml need more of them.
 */
#define NO_ODD_VERSION 1       /* flaw: without C */
#define NEXT_ID_RELAXED 2      /* flaw: D may come before C */
#define HEAD_RELAXED 3         /* flaw: E may come before the frame */
#define EVEN_RELAXED 4         /* flaw: F may come before D and E */
#define MARK_HEAD_RELAXED 5    /* flaw: B may come before A */
#define VERSION_LOAD_RELAXED 6 /* flaw: G may come after H and I */
#define ID_LOAD_RELAXED 7      /* flaw: H may come after J */
#define OFFSET_LOAD_RELAXED 8  /* flaw: I may come after J */
#define NO_SECOND_LOOK 9       /* flaw: without J */
#define HEAD_LOAD_RELAXED 10   /* flaw: K may come after the frame was read */
#define MARK_LOAD_RELAXED 11   /* flaw: L may come after the mark was read */

#define MESSAGES 3

#define VERSION 0
#define NEXT_ID 1
#define HEAD 2
#define FRAME 3
#define MARK 4
#define MARK_HEAD 5

#define WORDS 6
#define DEPTH 7
#define THREADS 3
#include "weak.h"

active proctype writer() {
    byte n;

    do
    :: n == MESSAGES -> break
    :: else ->
        n++;
        store(0, FRAME, n, RELAXED);
        store(0, MARK, n, RELAXED); /* A */
        store(0, MARK_HEAD, n, UNLESS(MARK_HEAD_RELAXED, RELEASE, RELAXED)); /* B */
        if
        :: FLAW != NO_ODD_VERSION -> store(0, VERSION, 2 * n - 1, RELAXED) /* C */
        :: else
        fi;
        store(0, NEXT_ID, n, UNLESS(NEXT_ID_RELAXED, RELEASE, RELAXED)); /* D */
        store(0, HEAD, n, UNLESS(HEAD_RELAXED, RELEASE, RELAXED)); /* E */
        store(0, VERSION, 2 * n, UNLESS(EVEN_RELAXED, RELEASE, RELAXED)) /* F */
    od
}

/* jmk_log_end, and what the server's threads read then. */
active proctype taker() {
    byte version, id, offset, again, frame, marks, mark;

    do
    :: load(1, VERSION, version, UNLESS(VERSION_LOAD_RELAXED, ACQUIRE, RELAXED)); /* G */
       load(1, NEXT_ID, id, UNLESS(ID_LOAD_RELAXED, ACQUIRE, RELAXED)); /* H */
       load(1, HEAD, offset, UNLESS(OFFSET_LOAD_RELAXED, ACQUIRE, RELAXED)); /* I */
       load(1, VERSION, again, RELAXED); /* J */
       if
       :: version % 2 == 0 && (version == again || FLAW == NO_SECOND_LOOK) -> break
       :: else
       fi
    od;
    assert(id == offset);
    load(1, FRAME, frame, RELAXED);
    assert(frame >= offset);
    load(1, MARK_HEAD, marks, UNLESS(MARK_LOAD_RELAXED, ACQUIRE, RELAXED)); /* L */
    load(1, MARK, mark, RELAXED);
    assert(mark >= marks)
}

/* read_frames in a client. */
active proctype reader() {
    byte head, frame;

    load(2, HEAD, head, UNLESS(HEAD_LOAD_RELAXED, ACQUIRE, RELAXED)); /* K */
    load(2, FRAME, frame, RELAXED);
    assert(frame >= head)
}
