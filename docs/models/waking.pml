/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sleeping, waking and acks of a client that reads the log itself (csrc/server/send_shared.c, csrc/client/receive_shared.c)
 *
 * A publisher stores the log's end and waits for room; the pump wakes a client that sleeps, and parks; a client
 * reads, acks, and sleeps: all of it together, each load and store a step, in any order of the three.
 * That the loads and stores that matter have such an order, on any machine, is what the other models
 * show, each for a part: sleep.pml, acks.pml, handover.pml. Sockets hold little, and what they cannot
 * take is dropped.
 *
 * Not here: that a waiter also looks again after a moment by itself, which covers acks below what it
 * asked for. This one always asks for the next.
 *
 * A run is good if everything was read at its end: a wake-up or an ack that is lost leaves somebody
 * asleep, which spin calls an invalid end state.
 */
#define NONE 0
#define NO_LOOK_BEFORE_SLEEPING 1 /* flaw: a client sleeps without a second look at the end */
#define NO_LOOK_BEFORE_PARKING 2  /* flaw: so does the pump */
#define NO_LOOK_AT_ACKS 3         /* flaw: a publisher asks for an ack, and does not look once more */

#define MESSAGES 4
#define ROOM 2 /* messages that may be unacked */

byte head, acked, sleeping, wanted;
bool parked;

chan socket = [2] of { byte };  /* to the client: wake-ups */
chan answers = [1] of { byte }; /* from it: acks that were asked for */
chan wakes = [1] of { bit };    /* to the pump */

active proctype publisher() {
    byte seen;

    do
    :: head == MESSAGES -> break
    :: head < MESSAGES ->
        seen = acked;
        do
        :: head - seen < ROOM -> break
        :: else ->
            if
            :: wanted == seen + 1 -> answers?_ /* asked already */
            :: else ->
                wanted = seen + 1;
#if FLAW != NO_LOOK_AT_ACKS
                if
                :: acked != seen
                :: else -> answers?_
                fi
#else
                answers?_
#endif
            fi;
            seen = acked
        od;
        head++;
        if
        :: atomic { parked -> parked = false }
            if
            :: wakes!1
            :: full(wakes)
            fi
        :: else
        fi
    od
}

active proctype pump() {
    byte offered, woken, sleep, end;

    do
    :: end = head;
        if
        :: end != offered ->
            offered = end;
            sleep = sleeping;
            if
            :: sleep % 2 == 1 && sleep != woken ->
                woken = sleep;
                if
                :: socket!end
                :: full(socket) /* it is readable, which is all that a wake-up is for */
                fi
            :: else
            fi
        :: else ->
            parked = true;
#if FLAW != NO_LOOK_BEFORE_PARKING
            if
            :: head != offered
            :: head == offered ->
end_parked:     wakes?_
            fi;
#else
end_parked: wakes?_;
#endif
            parked = false
        fi
    od
}

active proctype client() {
    byte place, asked, told;

    do
    :: head != place ->
        place = head;
        acked = place;
        asked = wanted;
        if
        :: place >= asked && asked != told ->
            told = asked;
            if
            :: answers!place
            :: full(answers)
            fi
        :: else
        fi
    :: else ->
        if
        :: place == MESSAGES -> break
        :: else
        fi;
        sleeping++; /* odd */
#if FLAW != NO_LOOK_BEFORE_SLEEPING
        if
        :: head != place
        :: else -> socket?_
        fi;
#else
        socket?_;
#endif
        sleeping++
    od
}
