/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Death: clients that sleep on words are told that the server's thread has died
 *
 * Each client sleeps on two words: `wakes` in its own page, and `owner` in the log's page, which is in the
 * robust list of the server's thread (csrc/common/os.c, jmk_testament_open). When that thread dies, the
 * kernel marks the word and wakes one of those that sleep on it. That client wakes the others
 * (csrc/client/receive_shared.c, find_why). The server may die between any two of its own steps. A
 * client that is woken by both words at a time is told of the second (futex_waitv(2): the last that
 * was woken).
 *
 * It is good if each client comes to its end, which it does only once it knows of the death.
 */
#define NONE 0
#define NO_PASSING_ON 1   /* flaw: whoever is woken by the kernel wakes no other */
#define NOT_ASKED_FOR 2   /* flaw: the word without FUTEX_WAITERS: the kernel marks it and wakes nobody */
#define ONE_WORD_ALONE 3  /* flaw: clients sleep on `wakes` alone */
#define FIRST_WORD_WINS 4 /* flaw: a client that both words woke is told of the first */
#define NOT_COMPARED 5    /* flaw: a client sleeps whatever stands in `owner` by then */

#define CLIENTS 3

bool died;
bool asleep[CLIENTS], by_wakes[CLIENTS], by_owner[CLIENTS];

active proctype server() {
    byte client;

    do
    :: client < CLIENTS ->
        atomic { /* it publishes, and wakes each sleeper by the word `wakes` */
            if
            :: asleep[client] ->
                asleep[client] = false;
                by_wakes[client] = true
            :: else
            fi;
            client++
        }
    :: break
    od;
    atomic {
        died = true;
        if
        :: FLAW == NOT_ASKED_FOR || FLAW == ONE_WORD_ALONE
        :: else ->
            /* The first in the kernel's queue, which may have been woken by the other word by then. */
            if
            :: asleep[0] || by_wakes[0] -> asleep[0] = false; by_owner[0] = true
            :: asleep[1] || by_wakes[1] -> asleep[1] = false; by_owner[1] = true
            :: asleep[2] || by_wakes[2] -> asleep[2] = false; by_owner[2] = true
            :: else
            fi
        fi
    }
}

proctype client(byte me) {
    byte other;
    bool told;

    do
    :: died && !told -> break /* it looks before it sleeps */
    :: atomic {
        !died || FLAW == NOT_COMPARED || FLAW == ONE_WORD_ALONE ->
        asleep[me] = true
       };
       !asleep[me];
       atomic { /* it leaves both queues, and learns which woke it */
           told = by_owner[me] && !(FLAW == FIRST_WORD_WINS && by_wakes[me]);
           by_owner[me] = false;
           by_wakes[me] = false
       };
       if
       :: told ->
           other = 0;
           do
           :: FLAW == NO_PASSING_ON -> break
           :: FLAW != NO_PASSING_ON && other < CLIENTS ->
               atomic {
                   if
                   :: asleep[other] || by_wakes[other] ->
                       asleep[other] = false;
                       by_owner[other] = true
                   :: else
                   fi;
                   other++
               }
           :: FLAW != NO_PASSING_ON && other == CLIENTS -> break
           od;
           break
       :: else
       fi
    od
}

init {
    atomic {
        run client(0);
        run client(1);
        run client(2)
    }
}
