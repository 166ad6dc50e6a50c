/* SPDX-License-Identifier: Apache-2.0 */
/* Points between two steps that others may see; nothing unless built with JMK_POINTS. */
#ifndef JMK_POINT_H
#define JMK_POINT_H

#include <stdbool.h>

enum jmk_point {
    JMK_AT_OPEN,      /* a frame is to be written, nothing was given up yet */
    JMK_AT_OLDEST,    /* oldest_id is stored, tail is not */
    JMK_AT_TAIL,      /* tail is */
    JMK_AT_SEAL,      /* a frame is written in part */
    JMK_AT_SEALED,    /* and wholly */
    JMK_AT_ODD,       /* the end is about to change */
    JMK_AT_NEXT_ID,   /* its id has */
    JMK_AT_HEAD,      /* its offset too */
    JMK_AT_PUBLISHED, /* and it is said */
    JMK_AT_RAISED,    /* the word that a client sleeps on was raised, it is not woken */
    JMK_AT_WOKEN,     /* a client was woken */
    JMK_AT_SKIP,      /* a client was told to skip, control is not raised */
    JMK_AT_SKIPPED,   /* it is */
    JMK_AT_RESUME,    /* a client was told where to go on, control is not raised */
    JMK_AT_BYE,       /* a goodbye was said, control is not raised */
    JMK_AT_GONE,      /* it is */
    JMK_AT_PARKED,    /* the thread says that it parks, and has not looked since */
    JMK_AT_UNLOCKED,  /* pump_lock was given back, nobody has looked since */
    JMK_AT_UNPARKED,  /* it says that it does not */
    JMK_AT_PUMPED,    /* it is said how far all were offered the log */
    JMK_AT_KICK,      /* a publisher found the thread parked, and has not taken the lock */
    JMK_AT_WAITS,     /* a waiter noted the word progress, and has not looked since */
    JMK_AT_CONTENDED, /* it missed the lock and said so, and has not tried again */
    JMK_AT_PROGRESS,  /* the word progress was raised, nobody was woken */
    JMK_AT_CLOSING,   /* the server closes, and nobody was told */
    JMK_AT_ASKS,      /* a publisher is about to say what it waits for */
    JMK_AT_WANTED,    /* a publisher said what it waits for, and has not looked since */
    JMK_AT_ACK,       /* client: a message was handled, its ack is not stored */
    JMK_AT_ACKED,     /* client: it is */
    JMK_AT_TOLD,      /* client: an ack that was asked for was sent */
    JMK_AT_ANSWERED,  /* client: the answer to being told to skip was sent */
    JMK_AT_EMPTY,     /* client: it found nothing to read, and is about to sleep */
    JMK_AT_SLEEP,     /* client: it says that it sleeps, and has not looked since */
    JMK_AT_LOOKED,    /* client: it has, and is about to sleep on the words */
    JMK_AT_AWAKE,     /* client: it says that it does not */
    JMK_AT_MOURNED,   /* client: it found the server dead, and has told no other */
    JMK_POINT_COUNT
};

#ifdef JMK_POINTS
/* Called at each point, if set; it need not return. */
extern void (*jmk_at_point)(enum jmk_point point);
#define JMK_POINT(point)                                                                           \
    do {                                                                                           \
        if (jmk_at_point)                                                                          \
            jmk_at_point(point);                                                                   \
    } while (0)

/* Set by a test: no wait looks again by itself after a moment, so it hangs if nobody wakes it. */
extern bool jmk_no_polls;
#define JMK_POLLS (!jmk_no_polls)
#else
#define JMK_POINT(point) ((void)0)
#define JMK_POLLS true
#endif

#endif
