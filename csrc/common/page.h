/* SPDX-License-Identifier: Apache-2.0 */
/* The memory that a server and its clients share: the log's header page, and cursor pages. */
#ifndef JMK_PAGE_H
#define JMK_PAGE_H

#include <stdatomic.h>
#include <stdint.h>

#define JMK_PAGE_MAGIC UINT64_C(0x0a676f6c736d756a) /* "jumslog\n" as it lies in memory */
#define JMK_PAGE_LAYOUT 1u

/*
 * The page in front of the frames. The server writes it, nobody else can. Offsets count bytes ever
 * written; the frame at an offset stands at that offset modulo size behind the page.
 */
struct jmk_log_page {
    uint64_t magic;
    uint32_t layout;
    uint32_t zero;
    uint64_t size; /* of the ring of frames, bytes; a power of two */
    /* Stored by each publish. */
    _Alignas(64) _Atomic uint64_t head; /* offset behind the last frame */
    _Atomic uint64_t next_id;           /* the id of the frame that will stand at head */
    _Atomic uint64_t version;           /* odd while the two above change */
    /* Stored less often. */
    _Alignas(64) _Atomic uint64_t tail; /* offset of the oldest frame kept */
    _Atomic uint64_t oldest_id;         /* its id */
    _Atomic uint64_t control;           /* control packets sent so far, to any client */
    /*
     * The server's thread, by its own number and OWNER_WAKES; 0: not told. As it dies the kernel sets
     * OWNER_DIED, and wakes one of those that sleep on this word.
     */
    _Atomic uint32_t owner;
};

#define JMK_OWNER_DIED 0x40000000u  /* FUTEX_OWNER_DIED */
#define JMK_OWNER_WAKES 0x80000000u /* FUTEX_WAITERS: clients may sleep on words */

#if defined(__SANITIZE_THREAD__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wtsan" /* it does not model fences; two processes need these */
#endif

/* All loads and stores before it take effect before all that come after it. */
static inline void jmk_fence(void) {
    atomic_thread_fence(memory_order_seq_cst);
}

/* What was loaded before was loaded before what comes next. Costs nothing on x86. */
static inline void jmk_acquire_fence(void) {
    atomic_thread_fence(memory_order_acquire);
}

#if defined(__SANITIZE_THREAD__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

/* One client's own page, with what the two have to tell each other. The server believes nothing. */
struct jmk_cursor_page {
    _Atomic uint64_t acked_id; /* the last message it has handled */
    /* Odd while it sleeps, or is about to; each sleep has a number of its own. See SLEEPS_ON_WORD. */
    _Alignas(64) _Atomic uint64_t sleeping;
    /* The server's: it waits for an ack of this id or above; 0: it does not. */
    _Alignas(64) _Atomic uint64_t wanted;
    /* Raised to wake the client, if it sleeps on this word: by the server, and by its own close. */
    _Atomic uint32_t wakes;
};

#define JMK_SLEEPS_ON_WORD (UINT64_C(1) << 63) /* in `sleeping`: on `wakes`, not on the socket */

#endif
