/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Giving up frames: nobody takes a torn one, and who is too late finds a packet that says so
 *
 * The pump tells a client to skip (or says BYE) and lets the publisher have its frames; the publisher
 * overwrites the only frame, which has two words. One client copies it and then looks at the tail;
 * another has a view of it and acks, which lets the publisher overwrite it as well. A packet is a
 * store to SOCKET: what the kernel does is no less than that.
 *
 * The steps, and what they stand for:
 *   A send_shared.c announce_skip `force_control(session, JMK_KIND_SKIP, session->sent_id, 0, 0)`
 *   A session.c jmk_session_bye `send(session->fd, frame, sizeof frame, MSG_DONTWAIT | MSG_NOSIGNAL)`
 *   B send_shared.c announce_skip `atomic_fetch_add(&log->page->control, 1)`
 *   B session.c jmk_session_bye `atomic_fetch_add(&log->page->control, 1)`
 *   C admit.c jmk_admit_update `offset_before = atomic_exchange(&server->admit_offset, admit_offset)`
 *   D log.c evict `atomic_store_explicit(&log->page->tail, tail, memory_order_release)`
 *   E log.c evict `jmk_fence()`
 *   F publish.c append `memcpy(open_frame(server, size), data, size)`
 *   G messages.c jmk_message_list `PyBytes_FromStringAndSize(items[i].data,`
 *   H receive_shared.c still_there `jmk_acquire_fence()`
 *   I receive_shared.c still_there `atomic_load_explicit(&reader->page->tail, memory_order_acquire) <= offset`
 *   J receive_shared.c index_batch `atomic_load_explicit(&reader->page->control, memory_order_acquire) != reader->control`
 *   K receive_shared.c read_socket `atomic_load(&client->reader->page->control)`
 *   L receive_shared.c read_socket `error = read_packet(client, MSG_DONTWAIT)`
 *   M receive_shared.c read_socket `client->reader->control = control`
 *   N receive_shared.c store_ack `atomic_store(&reader->cursor->acked_id, acked)`
 *   O send_shared.c poll_acks `atomic_load(&session->page->acked_id)`
 *
 * E is a release fence here, which is less than the code has: see csrc/server/log.c. C goes from thread to
 * thread under log_lock, which releases and acquires.
 */
#define NO_WRITER_FENCE 1      /* flaw: without E, F may come before D */
#define TAIL_LATE 2            /* flaw: D after F */
#define NO_READER_FENCE 3      /* flaw: without H, G may come after I */
#define TAIL_RELAXED 4         /* flaw: D may come before B */
#define TAIL_LOAD_RELAXED 5    /* flaw: I may come after J */
#define CONTROL_FIRST 6        /* flaw: B before A */
#define CONTROL_LATE 7         /* flaw: B after C */
#define CONTROL_RELAXED 8      /* flaw: B may come before A */
#define CONTROL_LOAD_RELAXED 9 /* flaw: K may come after L */
#define NOTED_LATE 10          /* flaw: K after L */
#define ACK_RELAXED 11         /* flaw: N may come before the view was read */

#define TAIL 0
#define LEFT 1 /* the frame's two words: 1, and overwritten 2 */
#define RIGHT 2
#define CONTROL 3
#define SOCKET 4
#define ADMITTED 5
#define ACKED 6

#define WORDS 7
#define DEPTH 4
#define THREADS 4
#include "weak.h"

init {
    d_step { /* as they are since long ago */
        value[LEFT * DEPTH] = 1;
        value[RIGHT * DEPTH] = 1
    }
    run pump();
    run publisher();
    run copier();
    run viewer()
}

proctype pump() {
    byte acked;

    if
    :: store(0, CONTROL, 1, RELEASE) /* for a packet to another client */
    :: skip
    fi;
    if
    :: FLAW == CONTROL_FIRST -> store(0, CONTROL, 2, RELEASE); store(0, SOCKET, 1, RELEASE)
    :: FLAW == CONTROL_LATE -> store(0, SOCKET, 1, RELEASE)
    :: else ->
        store(0, SOCKET, 1, RELEASE); /* A */
        store(0, CONTROL, 2, UNLESS(CONTROL_RELAXED, RELEASE, RELAXED)) /* B */
    fi;
    do /* the viewer holds it as long as it has not acked */
    :: load(0, ACKED, acked, ACQUIRE); /* O */
       if
       :: acked -> break
       :: else
       fi
    od;
    store(0, ADMITTED, 1, RELEASE); /* C */
    if
    :: FLAW == CONTROL_LATE -> store(0, CONTROL, 2, RELEASE)
    :: else
    fi
}

proctype publisher() {
    byte admitted;

    do
    :: load(1, ADMITTED, admitted, ACQUIRE);
       if
       :: admitted -> break
       :: else
       fi
    od;
    if
    :: FLAW == TAIL_LATE -> skip
    :: else -> store(1, TAIL, 1, UNLESS(TAIL_RELAXED, RELEASE, RELAXED)) /* D */
    fi;
    if
    :: FLAW == NO_WRITER_FENCE -> skip
    :: else -> release_fence(1) /* E */
    fi;
    store(1, LEFT, 2, RELAXED); /* F */
    store(1, RIGHT, 2, RELAXED);
    if
    :: FLAW == TAIL_LATE -> store(1, TAIL, 1, RELEASE)
    :: else
    fi
}

/* receive_list in receiver.c, and the looks at the socket of read_socket in receive_shared.c. */
proctype copier() {
    byte left, right, tail, control, known, packets;

    load(2, LEFT, left, RELAXED); /* G */
    load(2, RIGHT, right, RELAXED);
    if
    :: FLAW == NO_READER_FENCE -> skip
    :: else -> acquire_fence(2) /* H */
    fi;
    load(2, TAIL, tail, UNLESS(TAIL_LOAD_RELAXED, ACQUIRE, RELAXED)); /* I */
    if
    :: tail == 0 -> assert(left == 1 && right == 1)
    :: else
    fi;
    do
    :: load(2, CONTROL, control, UNLESS(CONTROL_LOAD_RELAXED, ACQUIRE, RELAXED)); /* J */
       if
       :: control == known ->
           assert(tail == 0 || packets); /* who is too late has been told why */
           if
           :: control == 2 -> break
           :: else
           fi
       :: else
       fi;
       if
       :: control != known ->
           if
           :: FLAW == NOTED_LATE ->
               load(2, SOCKET, packets, ACQUIRE);
               load(2, CONTROL, known, ACQUIRE)
           :: else ->
               load(2, CONTROL, known, UNLESS(CONTROL_LOAD_RELAXED, ACQUIRE, RELAXED)); /* K, M */
               load(2, SOCKET, packets, ACQUIRE) /* L */
           fi
       :: else
       fi
    od;
    assert(packets) /* no word is overlooked */
}

/* It reads what it was lent, and then says that it has. */
proctype viewer() {
    byte left;

    if
    :: FLAW == ACK_RELAXED -> store(3, ACKED, 1, RELAXED); load(3, LEFT, left, RELAXED)
    :: true -> load(3, LEFT, left, RELAXED); store(3, ACKED, 1, RELEASE) /* N */
    fi;
    assert(left == 1)
}
