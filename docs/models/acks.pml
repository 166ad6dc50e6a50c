/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Acks: who waits for one is told of it
 *
 * A client acks message after message and goes. The server waits for each: it stores what it wants,
 * looks at the ack once more, and sleeps until a packet comes. Not here: that it also looks again
 * after a moment by itself, which covers acks below what it asked for. This one asks for the next.
 *
 * The steps, and what they stand for:
 *   A receive_shared.c store_ack `atomic_store(&reader->cursor->acked_id, acked)`
 *   B receive_shared.c send_wanted_ack `atomic_load(&reader->cursor->wanted)`
 *   C receive_shared.c send_wanted_ack `send(client->fd, &word, sizeof word, MSG_DONTWAIT | MSG_NOSIGNAL)`
 *   D send_shared.c poll_acks `atomic_load(&session->page->acked_id)`
 *   E pump.c request_ack `atomic_store(&session->page->wanted, id)`
 *   F pump.c jmk_pump_request_acks `poll_acks(server)`
 *   G lag.c sleep_on `jmk_futex_wait(&server->progress, seen,`
 *
 * It is good if both come to their end: a lost ack leaves the server asleep, an invalid end state.
 */
#define ACK_RELEASE 1         /* flaw: B may come before A */
#define WANTED_RELEASE 2      /* flaw: F may come before E */
#define WANTED_LOAD_ACQUIRE 3 /* flaw: B is not in one order with E */
#define ACK_LOAD_ACQUIRE 4    /* flaw: F is not in one order with A */
#define NO_SECOND_LOOK 5      /* flaw: without F */
#define WANTED_FIRST 6        /* flaw: B before A */

#define MESSAGES 3

#define ACKED 0
#define WANTED 1

#define WORDS 2
#define DEPTH 5
#define THREADS 2
#include "weak.h"

chan socket = [1] of { bit };

active proctype client() {
    byte n, wanted, told;

    do
    :: n == MESSAGES -> break
    :: else ->
        n++;
        if
        :: FLAW == WANTED_FIRST ->
            load(0, WANTED, wanted, SEQ_CST);
            store(0, ACKED, n, SEQ_CST)
        :: else ->
            store(0, ACKED, n, UNLESS(ACK_RELEASE, SEQ_CST, RELEASE)); /* A */
            load(0, WANTED, wanted, UNLESS(WANTED_LOAD_ACQUIRE, SEQ_CST, ACQUIRE)) /* B */
        fi;
        if
        :: n >= wanted && wanted != told ->
            told = wanted;
            if
            :: socket!1 /* C */
            :: full(socket)
            fi
        :: else
        fi
    od
}

active proctype server() {
    byte acked, asked;

    do
    :: load(1, ACKED, acked, SEQ_CST); /* D */
       if
       :: acked == MESSAGES -> break
       :: asked == acked + 1 -> socket?_
       :: else ->
           asked = acked + 1;
           store(1, WANTED, asked, UNLESS(WANTED_RELEASE, SEQ_CST, RELEASE)); /* E */
           if
           :: FLAW == NO_SECOND_LOOK -> skip
           :: else -> load(1, ACKED, acked, UNLESS(ACK_LOAD_ACQUIRE, SEQ_CST, ACQUIRE)) /* F */
           fi;
           if
           :: acked < asked -> socket?_ /* G */
           :: else
           fi
       fi
    od
}
