/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sleeping on a word: a client that sleeps on `wakes` in its own page is woken for whatever there is
 *
 * A server publishes and wakes a client that sleeps; then it sends it a packet, and wakes it whether it
 * sleeps or not; and another thread of the client closes it. sleep.pml has the same sleep on the socket,
 * and shows what orders the publish and `sleeping`.
 *
 * The steps, and what they stand for:
 *   A log.c jmk_log_publish `atomic_store_explicit(&log->page->head, log->write.offset, memory_order_release)`
 *   B log.c jmk_log_publish `atomic_store_explicit(&log->page->version, version + 2, memory_order_seq_cst)`
 *   C send_shared.c offer `sleep = atomic_load(&session->page->sleeping)`
 *   D session.c jmk_session_rouse `atomic_fetch_add(&session->page->wakes, 1)`
 *   E session.c jmk_session_rouse `jmk_futex_wake(&session->page->wakes, 1)`
 *   F send_shared.c announce_skip `force_control(session, JMK_KIND_SKIP, session->sent_id, 0, 0)`
 *   G send_shared.c announce_skip `atomic_fetch_add(&log->page->control, 1)`
 *   H client.c jmk_client_close `atomic_exchange(&client->closed, true)`
 *   I receive_shared.c rouse `atomic_fetch_add(&client->reader->cursor->wakes, 1)`
 *   J receive_shared.c rouse `jmk_futex_wake(&client->reader->cursor->wakes, 1)`
 *   K receive_shared.c sleep_on_words `atomic_load(&reader->cursor->wakes)`
 *   L receive_shared.c sleep_on_words `atomic_store(&reader->cursor->sleeping, ++reader->sleep | JMK_SLEEPS_ON_WORD)`
 *   M receive_shared.c has_news `atomic_load(&client->closed)`
 *   N receive_shared.c has_news `atomic_load(&reader->page->control) != reader->control`
 *   O receive_shared.c has_news `atomic_load(&reader->page->version)`
 *   P receive_shared.c has_news `atomic_load(&reader->page->head) != reader->offset`
 *   Q receive_shared.c sleep_on_words `jmk_futex_wait_two(seen, until)`
 *
 * The kernel compares the word and puts the thread to sleep in one step, which a wake comes before or
 * after; whoever wakes after a store wakes those that did not see it.
 *
 * It is good if the client comes to its end, for which it needs all: the message, the packet, the close.
 */
#define NO_SECOND_LOOK 1    /* flaw: without M to P */
#define SEEN_LATE 2         /* flaw: K after M to P */
#define SLEEPING_RELEASE 3  /* flaw: O may come before L */
#define NO_RAISE 4          /* flaw: without D */
#define WAKE_BEFORE_RAISE 5 /* flaw: E before D */
#define PACKET_ALONE 6      /* flaw: the packet wakes nobody */
#define CONTROL_LATE 7      /* flaw: G behind the wake-up */
#define CLOSED_LATE 8       /* flaw: H behind the wake-up */
#define CLOSE_RAISES_NOT 9  /* flaw: without I */

#define MESSAGES 1

#define VERSION 0
#define HEAD 1
#define SLEEPING 2
#define WAKES 3
#define CONTROL 4
#define CLOSED 5

#define WORDS 6
#define DEPTH 8
#define THREADS 3
#define ALL_SEQ_CST(word) (word == SLEEPING || word == CONTROL || word == CLOSED || word == VERSION)
#include "weak.h"

bool asleep;
bit socket; /* has a packet */

inline rouse(thread, before) {
    if
    :: FLAW == WAKE_BEFORE_RAISE -> asleep = false
    :: else
    fi;
    if
    :: FLAW == NO_RAISE
    :: else -> change(thread, WAKES, before, before + 1) /* D */
    fi;
    if
    :: FLAW == WAKE_BEFORE_RAISE
    :: else -> asleep = false /* E */
    fi
}

active proctype server() {
    byte n, sleep, woken, before;

    do
    :: n == MESSAGES -> break
    :: else ->
        n++;
        store(0, HEAD, n, RELEASE); /* A */
        store(0, VERSION, 2 * n, SEQ_CST); /* B */
        load(0, SLEEPING, sleep, SEQ_CST); /* C */
        if
        :: sleep % 2 == 1 && sleep != woken ->
            woken = sleep;
            rouse(0, before)
        :: else
        fi
    od;
    socket = 1; /* F */
    if
    :: FLAW == CONTROL_LATE
    :: else -> change(0, CONTROL, before, before + 1) /* G */
    fi;
    if
    :: FLAW == PACKET_ALONE
    :: else -> rouse(0, before)
    fi;
    if
    :: FLAW == CONTROL_LATE -> change(0, CONTROL, before, before + 1)
    :: else
    fi;
    leave(0)
}

active proctype closer() {
    byte before;

    if
    :: FLAW == CLOSED_LATE
    :: else -> change(1, CLOSED, before, 1) /* H */
    fi;
    if
    :: FLAW == CLOSE_RAISES_NOT
    :: else -> change(1, WAKES, before, before + 1) /* I */
    fi;
    asleep = false; /* J */
    if
    :: FLAW == CLOSED_LATE -> change(1, CLOSED, before, 1)
    :: else
    fi;
    leave(1)
}

inline look() {
    load(2, CLOSED, closed, SEQ_CST); /* M */
    load(2, CONTROL, control, SEQ_CST); /* N */
    load(2, VERSION, ignored, SEQ_CST); /* O */
    load(2, HEAD, head, SEQ_CST) /* P */
}

active proctype client() {
    byte place, head, ignored, sleep, raised, control;
    bit closed, told, knows;

    do
    :: place == MESSAGES && told && knows -> break
    :: else ->
        look();
        if
        :: control && !told ->
            assert(socket);
            told = 1
        :: head != place -> place = head
        :: closed && !knows -> knows = 1
        :: else ->
            if
            :: FLAW == SEEN_LATE
            :: else -> load(2, WAKES, raised, SEQ_CST) /* K */
            fi;
            sleep++;
            store(2, SLEEPING, sleep, UNLESS(SLEEPING_RELEASE, SEQ_CST, RELEASE)); /* L */
            if
            :: FLAW == NO_SECOND_LOOK
            :: else -> look()
            fi;
            if
            :: FLAW == SEEN_LATE -> load(2, WAKES, raised, SEQ_CST)
            :: else
            fi;
            if
            :: head != place || (control && !told) || (closed && !knows)
            :: else ->
                atomic { /* Q */
                    asleep = value[WAKES * DEPTH + last[WAKES]] == raised
                };
                !asleep
            fi;
            sleep++;
            store(2, SLEEPING, sleep, RELAXED)
        fi
    od
}
