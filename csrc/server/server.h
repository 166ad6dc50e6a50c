/* SPDX-License-Identifier: Apache-2.0 */
/* The inside of a server, shared by server.c, pump.c, lag.c and publish.c. */
#ifndef JMK_SERVER_H
#define JMK_SERVER_H

/*
 * Two locks, taken in this order: pump_lock, then log_lock.
 *
 * pump_lock covers sessions: sends, cursors, acks, attaching, ending, and the events. The data-plane
 * thread locks it; a publisher only tries to, but for its last look before it gives up. Nobody blocks while holding it: every call to the
 * kernel under it is non-blocking.
 *
 * log_lock covers writing to the log, the turn, and lowering the admission. It is held for as long
 * as it takes to copy a message, or a stride of a batch.
 *
 * The admission is what lets publishers append without looking at a single session: no frame with
 * an id above admit_id, or that ends behind admit_offset, enters the log. Whoever holds pump_lock
 * raises it as acks arrive; only a newcomer lowers it, under both locks. So no frame in the log is
 * ever beyond a client's limit, and the pump need not check limits; what happens at the limit is
 * decided where a publisher would wait (lag.c).
 *
 * The hand-over. A publisher publishes the log's end, then looks at parked. The thread stores parked,
 * then looks at the log's end, then sleeps. Both are sequentially consistent, so at least one sees
 * the other: nothing published is left lying. A publisher that finds the thread parked sends itself
 * (jmk_server_kick), or wakes it. One whose try of the lock fails leaves its message to the holder,
 * who looks at the log's end once more after unlocking. A mutex promises no order between a publish
 * and a try that fails, nor between unlocking and the loads behind it: both have a full fence.
 *
 * Waiters sleep on the word progress. Whoever changes what they wait for raises it (jmk_progress);
 * one that failed to get pump_lock sets contended first and tries again, so the holder, who looks at
 * contended after unlocking, wakes it.
 */

#include <pthread.h>
#include <sys/epoll.h>

#include "server/send.h"

#define JMK_EVENTS 64 /* epoll events taken at a time */
#define JMK_WAKE_KEY 0 /* the wake_fd's; sessions' keys start above */
#define JMK_UNDONE UINT64_MAX /* pumped: a bound on work stopped the sends; no end of a log */

struct jmk_server {
    unsigned process;
    struct jmk_config config;
    int epoll_fd;
    int wake_fd;
    int event_fd;
    pthread_t thread;
    bool running; /* the thread was started, and its memory is its own to give back */
    atomic_int left; /* 1 once the owner or the thread is through with all this; the other frees */

    pthread_mutex_t log_lock;
    struct jmk_log log;
    uintptr_t turn; /* who holds the publisher's turn; 0 = nobody */
    bool reserving; /* ... and has a frame open */
    uint32_t reserved; /* its size */
    uint64_t published_bytes;
    _Atomic uint64_t admit_id;
    _Atomic uint64_t admit_offset;

    pthread_mutex_t pump_lock;
    struct jmk_session **slots;
    uint32_t slot_count;
    uint32_t attached; /* ever; the generation half of a key */
    struct jmk_session **live;
    uint32_t live_count;
    atomic_uint shared_count; /* those of them who read the log themselves */
    struct jmk_session **ending;
    uint32_t ending_count;
    struct jmk_session **unread;
    uint32_t unread_count;
    bool holders; /* some session needs frames of the log; without, these mean nothing: */
    struct jmk_mark floor; /* the oldest of them */
    struct jmk_mark kept; /* the oldest that must stay: the floor, or history before it */
    bool stale; /* the admission must be computed anew */
    bool hushed; /* acks wake nobody: see pump.c */
    uint32_t streak; /* inline rounds since the thread's last */
    int64_t unmute_at; /* when the first of those that are muted is heard again; 0: there is none */
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

/* JMK_E_FORKED in a child, else 0. */
int jmk_server_usable(const struct jmk_server *server);

/* Messages that session may be behind; UINT64_MAX: the log's bytes alone limit it. Under pump_lock. */
static inline uint64_t jmk_server_limit(const struct jmk_server *server,
                                        const struct jmk_session *session) {
    return server->config.max_lag ? server->config.max_lag + session->backlog : UINT64_MAX;
}

/* Has another thread the publisher's turn? */
bool jmk_server_others_turn(jmk_server *server);

/* Wake all who wait for progress. */
void jmk_progress(struct jmk_server *server);

struct jmk_session *jmk_server_find(struct jmk_server *server, uint64_t key);

/* Give a session's memory back, once it is closed and its event was collected. */
void jmk_server_forget(struct jmk_server *server, struct jmk_session *session);

/* Make the thread look around, wherever it is. */
void jmk_server_wake(struct jmk_server *server);

/* Called once by the owner and once by the thread; the second call frees the server. */
void jmk_server_leave(struct jmk_server *server);

/* ---- pump.c ---- */

void *jmk_pump_thread(void *server);

/* Lock; the second only if that goes without waiting. */
void jmk_pump_lock(struct jmk_server *server);
bool jmk_pump_try(struct jmk_server *server);

/* Unlock, and see to whoever missed the lock or published meanwhile. */
void jmk_pump_unlock(struct jmk_server *server);

/* The rest under pump_lock. */

/* One round: what epoll says now, sends, admission. */
void jmk_pump_round(struct jmk_server *server);

/* A publisher's round in a slow stream: sends, and the acks once they are many. */
void jmk_pump_inline(struct jmk_server *server);

/* Send to everybody what the log has; false if a bound on work stopped it. */
bool jmk_pump_send(struct jmk_server *server);

/* Bring admission and floor up to date, if stale. */
void jmk_pump_admit(struct jmk_server *server);

/*
 * Ask a session, if its client reads the log, to tell of an ack of id or above. True if any ack was
 * found after that: then look again before waiting.
 */
bool jmk_pump_want(struct jmk_server *server, struct jmk_session *session, uint64_t id);

/* End a session: account, event, goodbye. */
void jmk_pump_end(struct jmk_server *server, struct jmk_session *session, enum jmk_reason reason,
                  int error);

/* Say the goodbye of a parting session, whose welcome is out now. */
void jmk_pump_part(struct jmk_server *server, struct jmk_session *session);

/* Close a session that is parting or ending, without another word. */
void jmk_pump_drop(struct jmk_server *server, struct jmk_session *session);

/* Set a session's cursors to place, and lower the admission for it. Under log_lock too. */
void jmk_pump_enter(struct jmk_server *server, struct jmk_session *session, struct jmk_mark place);

/* Let go of a session's queue; it goes on once it has acked what it was sent. */
void jmk_pump_skip(struct jmk_server *server, struct jmk_session *session);

/* Bring a session's account up to date. */
void jmk_pump_account(const struct jmk_server *server, struct jmk_session *session);

#endif
