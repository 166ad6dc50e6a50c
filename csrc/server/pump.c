/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The pump: the data-plane thread, and what a publisher does in its stead
 *
 * A round handles what epoll has to tell (acks, room, ends), sends each session what the log has, and
 * brings the admission up to date. The thread makes rounds as long as there is work and then parks
 * in epoll; a publisher that finds it parked makes a round, or a part of one, itself. state.h has the
 * order of events that keeps the two from missing one another.
 *
 * EPOLLIN is level-triggered, EPOLLOUT asked for only while a session is blocked. A socket says it
 * is writable only once three quarters of its buffer are free, so an ack also makes a blocked
 * session try again. Sends and reads are bounded per round; what is left over keeps `pumped` behind
 * the log's end, and so the thread awake.
 */
#include "server/pump.h"

#include <sys/epoll.h>
#include <unistd.h>

#include "common/os.h"
#include "common/point.h"
#include "server/acks.h"
#include "server/admit.h"
#include "server/ends.h"
#include "server/skip.h"

#define EVENTS 64       /* epoll events taken at a time */
#define NAP_TIME 100000 /* ns */
#define NAP_MESSAGES 8  /* fewer in that time are a slow stream */

/* The highest id that session may get now. */
static uint64_t allowance(const struct jmk_server *server, const struct jmk_session *session) {
    if (session->replaying && server->config.max_lag)
        return session->acked_id + server->config.max_lag;
    return UINT64_MAX;
}

bool jmk_pump_send(struct jmk_server *server) {
    struct jmk_supply supply = {&server->log, jmk_log_end(&server->log), 0};
    bool done = true;

    for (uint32_t i = server->live_count; i-- > 0;) {
        struct jmk_session *session = server->live[i];
        int error;

        /* What a skipping session would get next may be overwritten by now. */
        if (session->state != JMK_LIVE || session->blocked || session->offset >= supply.end.offset)
            continue;
        supply.last = allowance(server, session);
        error = session->ops->send(session, supply, &server->outbox);
        if (error < 0) {
            jmk_ends_fail(server, session, error);
            continue;
        }
        if (session->blocked) {
            jmk_acks_watch(server);
            jmk_server_watch(server, session, session->watched | EPOLLOUT);
        }
        if (session->more)
            done = false;
    }
    atomic_store(&server->pumped, done ? supply.end.offset : JMK_UNDONE);
    JMK_POINT(JMK_AT_PUMPED);
    return done;
}

/* Before acks are read from the socket. Those of a shared client are elsewhere: see offer. */
static void note_worst_lag(const struct jmk_server *server, struct jmk_session *session) {
    if (!session->page)
        jmk_session_note_lag(session, jmk_session_lag(session, jmk_log_end(&server->log).id));
}

/* Act on what reading a session's acks gave. */
static void settle_acks(struct jmk_server *server, struct jmk_session *session, int result,
                        bool moved) {
    if (moved) {
        server->stale = true;
        session->blocked = false; /* there may be room now: worth a try */
    }
    if (result == JMK_E_PROTOCOL)
        jmk_ends_end(server, session, JMK_R_PROTOCOL, 0);
    else if (result == JMK_E_END)
        jmk_ends_end(server, session, JMK_R_LEFT, 0);
    else if (result < 0)
        jmk_ends_fail(server, session, result);
    else
        jmk_skip_resume(server, session, true);
}

static void handle_session(struct jmk_server *server, struct jmk_session *session,
                           uint32_t events) {
    bool moved = false;
    int result;

    if (session->state == JMK_CLOSED)
        return;
    if (session->state == JMK_UNREAD) {
        if (!jmk_session_unread(session))
            jmk_ends_close_unread(server, session);
        return;
    }
    if (session->state == JMK_PARTING || session->state == JMK_ENDING) {
        if (jmk_acks_read(server, session, events, &moved) != 0 || events & (EPOLLHUP | EPOLLERR))
            jmk_ends_drop(server, session);
        return;
    }
    note_worst_lag(server, session);
    result = jmk_acks_read(server, session, events, &moved);
    if (events & EPOLLOUT) {
        session->blocked = false;
        jmk_server_watch(server, session, session->watched & ~(uint32_t)EPOLLOUT);
    }
    settle_acks(server, session, result, moved);
}

/* Take acks from the pages of shared clients: nothing tells when they come. True if there is news. */
static bool poll_acks(struct jmk_server *server) {
    bool any = false;

    if (!server->shared_count)
        return false;
    for (uint32_t i = server->live_count; i-- > 0;) {
        struct jmk_session *session = server->live[i];
        bool moved = false;
        int result;

        if (!session->ops->poll_acks)
            continue;
        result = session->ops->poll_acks(session, &server->log, &moved);
        if (moved || result)
            settle_acks(server, session, result, moved);
        any = any || moved || result;
    }
    return any;
}

/* To be followed by jmk_pump_send: sessions that can be sent to again are not noted elsewhere. */
static void handle_events(struct jmk_server *server, const struct epoll_event *events, int count) {
    for (int i = 0; i < count; i++) {
        /* No session has the wake_fd's key: only the thread may drain that, or it would sleep on. */
        struct jmk_session *session = jmk_server_find(server, events[i].data.u64);
        if (session)
            handle_session(server, session, events[i].events);
    }
}

/*
 * Called while acks are ignored: read those of clients with many unacked messages. A client that is
 * far behind even then is slow, and may ack after the last publish: the thread has to read those acks.
 */
static void read_many_acks(struct jmk_server *server) {
    for (uint32_t i = server->live_count; i-- > 0;) {
        struct jmk_session *session = server->live[i];

        if (jmk_acks_must_read(server, session))
            handle_session(server, session, 0);
        if (session->state == JMK_LIVE && jmk_acks_owes_many(session))
            jmk_acks_watch(server);
    }
}

void jmk_pump_inline(struct jmk_server *server) {
    atomic_fetch_add_explicit(&server->inline_rounds, 1, memory_order_relaxed);
    if (server->catching_up)
        poll_acks(server); /* else a session would count as behind for longer than it is */
    jmk_pump_send(server);
    if (server->acks_ignored)
        read_many_acks(server);
    else
        jmk_acks_ignore(server);
    jmk_admit_update(server);
}

void jmk_pump_round(struct jmk_server *server) {
    struct epoll_event events[EVENTS];
    int count;

    jmk_acks_watch(server);
    count = epoll_wait(server->epoll_fd, events, EVENTS, 0);
    handle_events(server, events, count);
    poll_acks(server);
    jmk_pump_send(server);
    jmk_admit_update(server);
}

static bool request_ack(struct jmk_session *session, uint64_t id) {
    if (!session->page || atomic_load(&session->page->wanted) == id)
        return false;
    JMK_POINT(JMK_AT_ASKS);
    atomic_store(&session->page->wanted, id);
    session->idle_acks -= session->idle_acks > 0; /* its page may tell as much as the answer */
    JMK_POINT(JMK_AT_WANTED);
    return true;
}

bool jmk_pump_request_acks(struct jmk_server *server, struct jmk_session *slowest, uint64_t id) {
    bool asked = request_ack(slowest, id);

    for (uint32_t i = 0; i < server->live_count; i++) {
        struct jmk_session *session = server->live[i];

        if (session->state == JMK_LIVE && session->acked_id == slowest->acked_id)
            asked = request_ack(session, id) || asked;
    }
    return asked && poll_acks(server);
}

/* ---- the thread ---- */

/* Sleep until there is work, and return the events that ended the sleep. */
static int park(struct jmk_server *server, struct epoll_event *events, int timeout) {
    int count;

    atomic_store(&server->parked, 1);
    JMK_POINT(JMK_AT_PARKED);
    if (jmk_server_behind(server))
        timeout = 0;
    count = epoll_wait(server->epoll_fd, events, EVENTS, timeout);
    atomic_store(&server->parked, 0);
    JMK_POINT(JMK_AT_UNPARKED);
    return count;
}

/*
 * In a fast stream to shared clients there is little to do: wake those that sleep, poll their acks. That
 * can wait for a moment, in which publishers leave all to the thread.
 */
static int nap(struct jmk_server *server, struct epoll_event *events) {
    return jmk_epoll_wait(server->epoll_fd, events, EVENTS, NAP_TIME);
}

/* May the thread nap, if `seen` was the next id in its last round? Only in a fast stream. */
static bool may_nap(const struct jmk_server *server, uint64_t seen) {
    return server->live_count && server->shared_count == server->live_count &&
           !server->ending_count && jmk_log_end(&server->log).id - seen >= NAP_MESSAGES &&
           !atomic_load(&server->closing);
}

/* A wake-up says that the stream is not slow any more, or that there is other work. */
static void drain_wake(struct jmk_server *server, const struct epoll_event *events, int count) {
    uint64_t drained;

    for (int i = 0; i < count; i++) {
        if (events[i].data.u64 == JMK_WAKE_KEY &&
            read(server->wake_fd, &drained, sizeof drained) > 0)
            jmk_acks_watch(server);
    }
}

/* A time as a timeout for epoll, in ms; -1: none. */
static int timeout_until(int64_t at) {
    int64_t left;

    if (at == INT64_MAX)
        return -1;
    left = at - jmk_now();
    if (left <= 0)
        return 0;
    return left > 60 * JMK_SECOND ? 60000 : (int)(left / 1000000 + 1);
}

/* When the next goodbye is due, or a session to be read again. */
static int64_t next_due(const struct jmk_server *server) {
    int64_t next = jmk_ends_next(server);

    return server->unmute_at && server->unmute_at < next ? server->unmute_at : next;
}

void jmk_pump_run(struct jmk_server *server) {
    bool finished = false, fast = false;
    struct jmk_testament testament;
    uint64_t seen = server->config.first_id;
    int timeout = -1;

    jmk_testament_open(&testament, &server->log.page->owner);
    atomic_store(&server->begun, 1);
    jmk_futex_wake_all(&server->begun);
    while (!finished) {
        struct epoll_event events[EVENTS];
        int count = fast ? nap(server, events) : park(server, events, timeout);

        jmk_server_lock(server);
        drain_wake(server, events, count);
        handle_events(server, events, count);
        poll_acks(server);
        jmk_pump_send(server);
        jmk_admit_update(server);
        jmk_acks_unmute(server);
        finished = jmk_ends_goodbyes(server);
        timeout = timeout_until(next_due(server));
        fast = may_nap(server, seen);
        seen = jmk_log_end(&server->log).id;
        atomic_fetch_add_explicit(&server->rounds, 1, memory_order_relaxed);
        jmk_server_unlock(server);
    }
    jmk_testament_close(&testament);
    atomic_store(&server->finished, 1);
    jmk_server_progress(server);
    jmk_server_notify(server); /* the control plane may be waiting for this too */
}
