/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The hand-over: what is published is sent, by the pump's thread or by whoever finds it parked
 *
 * Two publishers append a message each and kick; the thread makes rounds and parks. A publisher that
 * finds it parked wakes it (a fast stream), or tries pump_lock and sends itself (a slow one); one
 * whose try fails leaves its message to the holder, who looks at the log's end after unlocking.
 *
 * The steps, and what they stand for:
 *   A log.c jmk_log_publish `atomic_store_explicit(&log->page->version, version + 2, memory_order_seq_cst)`
 *   B publish.c jmk_server_kick `!atomic_load(&server->parked)`
 *   C publish.c jmk_server_kick `atomic_exchange(&server->parked, 0)`
 *   D state.c jmk_server_try_lock `jmk_fence()`
 *   E state.c jmk_server_try_lock `pthread_mutex_trylock(&server->pump_lock) == 0`
 *   F log.c jmk_log_end `atomic_load_explicit(&log->page->version, memory_order_seq_cst)`
 *   G pump.c jmk_pump_send `atomic_store(&server->pumped, done ? supply.end.offset : JMK_UNDONE)`
 *   H state.c jmk_server_unlock `pthread_mutex_unlock(&server->pump_lock)`
 *   I state.c jmk_server_unlock `jmk_fence()`
 *   J state.c jmk_server_unlock `atomic_load(&server->parked) && jmk_server_behind(server) && atomic_exchange(&server->parked, 0)`
 *   K state.c jmk_server_behind `jmk_log_end(&server->log).offset != atomic_load(&server->pumped)`
 *   L pump.c park `atomic_store(&server->parked, 1)`
 *   M pump.c park `jmk_server_behind(server)`
 *   N pump.c park `atomic_store(&server->parked, 0)`
 *
 * It is good if everything was sent once nobody has anything left to do but the thread to sleep.
 */
#define VERSION_RELEASE 1      /* flaw: B may come before A */
#define PARKED_RELEASE 2       /* flaw: M may come before L */
#define PARKED_LOAD_ACQUIRE 3  /* flaw: B is not in one order with L */
#define VERSION_LOAD_ACQUIRE 4 /* flaw: F is not in one order with A */
#define NO_SECOND_LOOK 5       /* flaw: without M */
#define NO_FENCE_AT_UNLOCK 6   /* flaw: without I, J may come before H */
#define NO_FENCE_AT_TRY 7      /* flaw: without D, E may come before A */
#define NO_LOOK_AT_UNLOCK 8    /* flaw: without J */

#define VERSION 0
#define PARKED 1
#define PUMPED 2
#define LOCK 3

#define WORDS 4
#define DEPTH 14
#define THREADS 3
#define ALL_SEQ_CST(word) ((word) != LOCK && FLAW != VERSION_LOAD_ACQUIRE && FLAW != PARKED_LOAD_ACQUIRE)
#include "weak.h"

#define END_LOAD UNLESS(VERSION_LOAD_ACQUIRE, SEQ_CST, ACQUIRE)

chan wakes = [1] of { bit };
bool log_lock;

inline wake() {
    if
    :: wakes!1
    :: full(wakes)
    fi
}

inline send(me) {
    load(me, VERSION, end, END_LOAD); /* F */
    store(me, PUMPED, end, SEQ_CST) /* G */
}

inline pump_unlock(me) {
    unlock(me, LOCK); /* H */
    if
    :: FLAW == NO_FENCE_AT_UNLOCK -> skip
    :: else -> full_fence(me) /* I */
    fi;
    if
    :: FLAW == NO_LOOK_AT_UNLOCK -> parked = 0
    :: else -> load(me, PARKED, parked, SEQ_CST) /* J */
    fi;
    if
    :: parked ->
        load(me, VERSION, end, END_LOAD); /* K */
        load(me, PUMPED, pumped, SEQ_CST);
        if
        :: end != pumped ->
            change(me, PARKED, parked, 0);
            if
            :: parked -> wake()
            :: else
            fi
        :: else
        fi
    :: else
    fi;
    parked = 0; /* fewer states to tell apart; likewise below */
    end = 0;
    pumped = 0
}

proctype publisher(byte me) {
    byte parked, end, pumped;
    bool got;

    atomic {
        !log_lock;
        log_lock = true;
        at = last[VERSION]; /* its lock shows it the publish before */
        d_step {
            get(me, VERSION, end, ACQUIRE)
        }
    }
    store(me, VERSION, end + 1, UNLESS(VERSION_RELEASE, SEQ_CST, RELEASE)); /* A */
    log_lock = false;
    load(me, PARKED, parked, UNLESS(PARKED_LOAD_ACQUIRE, SEQ_CST, ACQUIRE)); /* B */
    if
    :: !parked
    :: parked ->
        if
        :: change(me, PARKED, parked, 0); /* C */
           if
           :: parked -> wake()
           :: else
           fi
        :: true ->
           if
           :: FLAW == NO_FENCE_AT_TRY -> skip
           :: else -> full_fence(me) /* D */
           fi;
           try_lock(me, LOCK, got); /* E */
           if
           :: got -> send(me); pump_unlock(me)
           :: else
           fi
        fi
    fi;
    leave(me)
}

proctype thread(byte me) {
    byte parked, end, pumped;

    do
    :: store(me, PARKED, 1, UNLESS(PARKED_RELEASE, SEQ_CST, RELEASE)); /* L */
       if
       :: FLAW == NO_SECOND_LOOK -> end = 0; pumped = 0
       :: else ->
           load(me, VERSION, end, END_LOAD); /* M */
           load(me, PUMPED, pumped, SEQ_CST)
       fi;
       if
       :: end == pumped ->
end_asleep: wakes?_
       :: else
       fi;
       end = 0;
       pumped = 0;
       store(me, PARKED, 0, SEQ_CST); /* N */
       lock(me, LOCK);
       send(me);
       pump_unlock(me)
    od
}

active proctype judge() {
    atomic {
        run thread(0);
        run publisher(1);
        run publisher(2)
    }
    timeout -> assert(value[PUMPED * DEPTH + last[PUMPED]] == 2)
}
