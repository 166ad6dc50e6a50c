/* SPDX-License-Identifier: Apache-2.0 */
/* The state of a server: its locks, its sessions, and what its threads wait for. */
#ifndef JMK_STATE_H
#define JMK_STATE_H

/*
 * Two locks, taken in this order: pump_lock, then log_lock.
 *
 * pump_lock covers sessions: sends, cursors, acks, attaching, ending, and the events. The data-plane
 * thread locks it. A publisher only tries to, but for its last look before it gives up. Nobody blocks
 * while holding it: every call to the kernel under it is non-blocking.
 *
 * log_lock covers writing to the log, the turn, and lowering the admission. It is held for as long
 * as it takes to copy a message, or a stride of a batch.
 *
 * The admission lets publishers append without looking at a single session: no frame with an id above
 * admit_id, or that ends behind admit_offset, enters the log. Whoever holds pump_lock raises it as acks
 * arrive; only a newcomer lowers it, under both locks. So no frame in the log is ever beyond a client's
 * limit, and the pump need not check limits; what happens at the limit is decided where a publisher
 * would wait (lag.c).
 *
 * The hand-over. A publisher publishes the log's end, then loads parked. The thread stores parked,
 * then loads the log's end, then sleeps. All are sequentially consistent, so at least one sees
 * the other: nothing published is left lying. A publisher that finds the thread parked sends itself
 * (jmk_server_kick), or wakes it. A publisher whose try of the lock fails leaves its message to the
 * holder, which loads the log's end once more after unlocking. A mutex promises no order between a
 * publish and a try that fails, nor between unlocking and the loads behind it: both have a full fence.
 *
 * Waiters sleep on the word progress. Whoever changes what they wait for raises it
 * (jmk_server_progress). A waiter that failed to get pump_lock sets contended first and tries again, so
 * the holder, which loads contended after unlocking, wakes it.
 */

#include <pthread.h>

#include "server/session.h"

#define JMK_WAKE_KEY 0 /* the wake_fd's; sessions' keys start above */
#define JMK_UNDONE UINT64_MAX /* pumped: a bound on work stopped the sends; no end of a log */

struct jmk_server {
    unsigned process;
    struct jmk_config config;
    int epoll_fd;
    int wake_fd;
    int event_fd;
    pthread_t thread;
    bool running; /* the thread runs: the last of thread and owner frees the server */
    atomic_uint begun; /* 1 once clients would notice the thread's death */
    atomic_int left; /* 1 once the owner or the thread needs this no more; the other frees it */

    pthread_mutex_t log_lock;
    struct jmk_log log;
    uintptr_t turn; /* the thread that holds the publisher's turn; 0: none */
    bool reserving; /* that thread has a frame open ... */
    uint32_t reserved; /* ... of this size */
    uint64_t published_bytes;
    _Atomic uint64_t admit_id;
    _Atomic uint64_t admit_offset;

    pthread_mutex_t pump_lock;
    struct jmk_session **slots;
    uint32_t slot_count;
    uint32_t attached; /* ever; the generation half of a key */
    struct jmk_session **live;
    uint32_t live_count;
    atomic_uint shared_count; /* how many of them read the log themselves */
    struct jmk_session **ending;
    uint32_t ending_count;
    struct jmk_session **unread;
    uint32_t unread_count;
    bool holders; /* some session needs frames of the log; if not, these two mean nothing: */
    struct jmk_mark floor; /* the oldest of them */
    struct jmk_mark kept; /* the oldest that must stay: the floor, or history before it */
    bool stale; /* the admission must be computed anew */
    bool acks_ignored; /* acks do not wake the thread: see acks.c */
    uint32_t inline_streak; /* inline rounds since the last full one */
    int64_t unmute_at; /* when the first muted session is to be read again; 0: none is muted */
    bool saying_goodbye;
    bool outrun; /* the admission is closed until some client is at most half way: see lag.c */
    int64_t outrun_since; /* from when on that has been so */
    bool catching_up; /* some client that began in the past was never within max_lag yet */
    struct jmk_session *first_event, *last_event;
    struct jmk_stats gone; /* counters of sessions that are no more */
    struct jmk_outbox outbox;

    _Atomic uint64_t pumped; /* all live sessions were offered the log up to here, or JMK_UNDONE */
    atomic_int parked;
    atomic_uint progress;
    atomic_int waiters;
    atomic_int contended;
    atomic_int closing;
    atomic_int finished;
    _Atomic int64_t close_at;
    _Atomic int64_t last_inline;
    _Atomic uint64_t rounds, inline_rounds, waits;
};

/* Messages that session may be behind; UINT64_MAX: the log's bytes alone limit it. Under pump_lock. */
static inline uint64_t jmk_server_limit(const struct jmk_server *server,
                                        const struct jmk_session *session) {
    if (!server->config.max_lag || (session->state == JMK_HELD && session->excused))
        return UINT64_MAX;
    return server->config.max_lag + session->backlog;
}

/* JMK_E_FORKED in a child, else 0. */
int jmk_server_usable(const struct jmk_server *server);

/* Wake all that wait for progress. */
void jmk_server_progress(struct jmk_server *server);

/* Wake the thread, wherever it is. */
void jmk_server_wake(struct jmk_server *server);

/* Wake the control plane. */
void jmk_server_notify(struct jmk_server *server);

/* Take pump_lock; the second only if that goes without waiting. */
void jmk_server_lock(struct jmk_server *server);
bool jmk_server_try_lock(struct jmk_server *server);

/* Give it back; wake the waiter that missed it, and the thread if there is something to send. */
void jmk_server_unlock(struct jmk_server *server);

/* Was something published that not all live sessions were offered? */
bool jmk_server_behind(const struct jmk_server *server);

/*
 * Take it, and find the session of a key, which is NULL if there is none. JMK_E_FORKED: it was not taken.
 */
int jmk_server_lock_session(struct jmk_server *server, uint64_t key, struct jmk_session **session);

/* The rest under pump_lock. */

/* The session of a key, or NULL. */
struct jmk_session *jmk_server_find(const struct jmk_server *server, uint64_t key);

/* Give a session's memory back, once it is closed and its event was collected. */
void jmk_server_forget(struct jmk_server *server, struct jmk_session *session);

/* Have epoll look for these events of a session, and no others. */
void jmk_server_watch(const struct jmk_server *server, struct jmk_session *session,
                      uint32_t events);

#endif
