/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sleeping: a client that sleeps is woken for what is published
 *
 * A publisher publishes; the pump offers what it finds at the log's end and wakes a client that
 * sleeps; the client reads, and sleeps when it has read all there is. That the pump looks at the end
 * after each publish is another matter: handover.pml.
 *
 * The steps, and what they stand for:
 *   A log.c jmk_log_publish `atomic_store_explicit(&log->page->version, version + 1, memory_order_relaxed)`
 *   B log.c jmk_log_publish `atomic_store_explicit(&log->page->head, log->write.offset, memory_order_release)`
 *   C log.c jmk_log_publish `atomic_store_explicit(&log->page->version, version + 2, memory_order_seq_cst)`
 *   D log.c jmk_log_end `atomic_load_explicit(&log->page->version, memory_order_seq_cst)`
 *   E log.c jmk_log_end `end.offset = atomic_load_explicit(&log->page->head, memory_order_acquire)`
 *   F send_shared.c offer `sleep = atomic_load(&session->page->sleeping)`
 *   G send_shared.c wake `send_control(session, JMK_KIND_WAKE, next_id, 0, 0)`
 *   H receive_shared.c read_frames `atomic_load_explicit(&reader->page->head, memory_order_acquire)`
 *   I receive_shared.c wait_for_more `atomic_store(&reader->cursor->sleeping, ++reader->sleep)`
 *   J receive_shared.c has_news `atomic_load(&reader->page->version)`
 *   K receive_shared.c has_news `atomic_load(&reader->page->head) != reader->offset`
 *   L receive_shared.c wake_up `atomic_store_explicit(&reader->cursor->sleeping, ++reader->sleep, memory_order_relaxed)`
 *
 * J may find an odd number, of a publish that is under way: then K may not see the publish before,
 * but the end of the one under way comes after I, so whoever offers that sees the sleep.
 *
 * It is good if the client comes to its end: a wake-up that is lost leaves it asleep, an invalid end
 * state. The socket is full with two packets, and then readable, which is all that a wake-up is for.
 */
#define VERSION_RELEASE 1       /* flaw: C is not in one order with I */
#define SLEEPING_RELEASE 2      /* flaw: J may come before I */
#define SLEEPING_LOAD_ACQUIRE 3 /* flaw: F is not in one order with I */
#define VERSION_LOAD_ACQUIRE 4  /* flaw: J is not in one order with C */
#define HEAD_ALONE 5            /* flaw: without J, so that K may come before I */
#define HEAD_BEFORE_VERSION 6   /* flaw: K before J */
#define NO_SECOND_LOOK 7        /* flaw: without J and K */

#define MESSAGES 2

#define VERSION 0
#define HEAD 1
#define SLEEPING 2

#define WORDS 3
#define DEPTH 10
#define THREADS 3
#include "weak.h"

chan socket = [2] of { bit };

active proctype publisher() {
    byte n;

    do
    :: n == MESSAGES -> break
    :: else ->
        n++;
        store(0, VERSION, 2 * n - 1, RELAXED); /* A */
        store(0, HEAD, n, RELEASE); /* B */
        store(0, VERSION, 2 * n, UNLESS(VERSION_RELEASE, SEQ_CST, RELEASE)) /* C */
    od
}

active proctype pump() {
    byte version, again, head, offered, sleep, woken;

    do
    :: offered == MESSAGES -> break
    :: else ->
        load(1, VERSION, version, SEQ_CST); /* D */
        load(1, HEAD, head, ACQUIRE); /* E */
        load(1, VERSION, again, RELAXED);
        if
        :: version % 2 == 0 && version == again && head > offered ->
            offered = head;
            load(1, SLEEPING, sleep, UNLESS(SLEEPING_LOAD_ACQUIRE, SEQ_CST, ACQUIRE)); /* F */
            if
            :: sleep % 2 == 1 && sleep != woken ->
                woken = sleep;
                if
                :: socket!1 /* G */
                :: full(socket)
                fi
            :: else
            fi
        :: else
        fi
    od
}

active proctype client() {
    byte place, head, ignored, sleep;

    do
    :: load(2, HEAD, head, ACQUIRE); /* H */
       if
       :: head == place && place == MESSAGES -> break
       :: head != place -> place = head
       :: else ->
           sleep++;
           store(2, SLEEPING, sleep, UNLESS(SLEEPING_RELEASE, SEQ_CST, RELEASE)); /* I */
           if
           :: FLAW == NO_SECOND_LOOK || FLAW == HEAD_ALONE || FLAW == HEAD_BEFORE_VERSION
           :: else -> load(2, VERSION, ignored, UNLESS(VERSION_LOAD_ACQUIRE, SEQ_CST, ACQUIRE)) /* J */
           fi;
           if
           :: FLAW == NO_SECOND_LOOK
           :: else -> load(2, HEAD, head, SEQ_CST) /* K */
           fi;
           if
           :: FLAW == HEAD_BEFORE_VERSION -> load(2, VERSION, ignored, SEQ_CST)
           :: else
           fi;
           if
           :: head == place -> socket?_
           :: else
           fi;
           sleep++;
           store(2, SLEEPING, sleep, RELAXED) /* L */
       fi
    od
}
