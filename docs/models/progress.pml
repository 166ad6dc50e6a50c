/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Waiting for progress: a publisher that waits for room is woken when there is some
 *
 * The holder of pump_lock makes room and says so, and unlocks; or the server closes and says that,
 * under no lock that the publisher takes. A publisher looks for room under pump_lock, for which it may
 * only try, and sleeps on the word progress. Not here: that it also looks again after a moment by
 * itself.
 *
 * The steps, and what they stand for:
 *   A lag.c jmk_server_wait_room `atomic_fetch_add(&server->waiters, 1)`
 *   B lag.c jmk_server_wait_room `atomic_load(&server->progress)`
 *   C lag.c try_room `!jmk_server_try_lock(server)`
 *   D lag.c try_room `atomic_store(&server->contended, 1)`
 *   E lag.c try_room `if (!jmk_server_try_lock(server)) return WAIT;`
 *   F os.c jmk_futex_wait `FUTEX_WAIT_BITSET`
 *   G state.c jmk_server_try_lock `jmk_fence()`
 *   H state.c jmk_server_progress `atomic_fetch_add(&server->progress, 1)`
 *   I state.c jmk_server_progress `atomic_load(&server->waiters)`
 *   J state.c jmk_server_unlock `pthread_mutex_unlock(&server->pump_lock)`
 *   K state.c jmk_server_unlock `jmk_fence()`
 *   L state.c jmk_server_unlock `atomic_load(&server->contended) && atomic_exchange(&server->contended, 0)`
 *   M server.c jmk_server_close `atomic_store(&server->closing, 1)`
 *   N lag.c jmk_server_wait_room `atomic_load(&server->closing)`
 *
 * It is good if the publisher finds the room or the end: one that is not woken is an invalid end state.
 */
#define WAITERS_LOAD_ACQUIRE 1 /* flaw: I is not in one order with A */
#define SEEN_LATE 2            /* flaw: B after E */
#define NO_SECOND_TRY 3        /* flaw: without E */
#define NO_FENCE_AT_TRY 4      /* flaw: without G, E may come before D */
#define NO_FENCE_AT_UNLOCK 5   /* flaw: without K, L may come before J */
#define NO_LOOK_AT_UNLOCK 6    /* flaw: without L */
#define NO_WORD_OF_ROOM 7      /* flaw: without H where room was made */

#define LOCK 0
#define CONTENDED 1
#define PROGRESS 2
#define WAITERS 3
#define ROOM 4
#define CLOSING 5

#define WORDS 6
#define DEPTH 8
#define THREADS 2
#include "weak.h"

bool sleeping;

inline say_progress(me) {
    change(me, PROGRESS, any, any + 1); /* H */
    load(me, WAITERS, any, UNLESS(WAITERS_LOAD_ACQUIRE, SEQ_CST, ACQUIRE)); /* I */
    if
    :: any -> sleeping = false
    :: else
    fi;
    any = 0
}

inline pump_unlock(me) {
    unlock(me, LOCK); /* J */
    if
    :: FLAW == NO_FENCE_AT_UNLOCK -> skip
    :: else -> full_fence(me) /* K */
    fi;
    if
    :: FLAW == NO_LOOK_AT_UNLOCK -> any = 0
    :: else -> load(me, CONTENDED, any, SEQ_CST) /* L */
    fi;
    if
    :: any ->
        change(me, CONTENDED, any, 0);
        if
        :: any -> say_progress(me)
        :: else
        fi
    :: else
    fi
}

inline pump_try(me) {
    if
    :: FLAW == NO_FENCE_AT_TRY -> skip
    :: else -> full_fence(me) /* G */
    fi;
    try_lock(me, LOCK, got)
}

active proctype publisher() {
    byte noted, any;
    bool got, room;

    change(0, WAITERS, any, 1); /* A */
    do
    :: load(0, PROGRESS, noted, SEQ_CST); /* B */
       load(0, CLOSING, any, SEQ_CST); /* N */
       if
       :: any -> break
       :: else
       fi;
       pump_try(0); /* C */
       if
       :: !got ->
           store(0, CONTENDED, 1, SEQ_CST); /* D */
           if
           :: FLAW == NO_SECOND_TRY -> skip
           :: else -> pump_try(0) /* E */
           fi
       :: else
       fi;
       if
       :: FLAW == SEEN_LATE -> load(0, PROGRESS, noted, SEQ_CST)
       :: else
       fi;
       if
       :: got ->
           load(0, ROOM, room, RELAXED);
           pump_unlock(0)
       :: else
       fi;
       if
       :: room -> break
       :: else
       fi;
       atomic { /* F: the kernel looks at the word under a lock that whoever wakes takes too */
           sleeping = value[PROGRESS * DEPTH + last[PROGRESS]] == noted;
           !sleeping
       }
    od
}

active proctype holder() {
    byte any;

    if
    :: store(1, CLOSING, 1, SEQ_CST); /* M */
       say_progress(1)
    :: lock(1, LOCK);
       store(1, ROOM, 1, RELAXED);
       if
       :: FLAW == NO_WORD_OF_ROOM -> skip
       :: else -> say_progress(1)
       fi;
       pump_unlock(1)
    fi
}
