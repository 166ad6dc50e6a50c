/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The pump: the data-plane thread, and what a publisher does in its stead
 *
 * A round takes what epoll has to say (acks, room, ends), sends each session what the log has, and
 * brings the admission up to date. The thread makes rounds as long as there is work and then parks
 * in epoll; a publisher that finds it parked makes a round, or a part of one, itself. server.h
 * tells the order of events that keeps the two from missing one another.
 *
 * EPOLLIN is level-triggered, EPOLLOUT asked for only while a session is blocked. A socket says it
 * is writable only once three quarters of its buffer are free, so an ack also makes a blocked
 * session try again. Sends and reads are bounded a round; what is left over keeps `pumped` behind
 * the log's end, and so the thread awake.
 *
 * In a slow stream publishers send, and the thread would wake for nothing but acks, one for each
 * message, in the way of everybody else who wants a core. So after some inline rounds in a row it is
 * hushed: EPOLLIN is not asked for, publishers read acks when they are many, and whoever needs them
 * earlier (who waits, or wants figures) makes a full round, which rouses it. Ends wake it always.
 *
 * A session that floods the server with idle acks is muted (session.c): nobody reads what it sends, and
 * EPOLLIN is not asked for, until the thread unmutes it. Its end wakes the thread even so.
 *
 * An end takes care. The account is fixed, BYE goes out where the peer can read it, then our side is
 * shut. A framed peer knows that ECONNRESET may come before the last packets and reads on, so its
 * descriptor is closed at once. A classic peer may not: it would see ECONNRESET if acks were left
 * unread here, so those are read until it closes too, or for a second. The welcome is always the first
 * packet: who ends before it is out is parting, and its BYE follows the welcome. If that does not
 * come within a second, the end of the stream says all.
 *
 * What a peer leaves unread stays in the kernel, on our account: its memory, and the two descriptors of
 * a welcome, which count against our user while they are in flight. So a descriptor is closed only when
 * nothing is unread, by which the kernel also tells that the peer's socket is gone; until then the
 * session keeps its place.
 */
#include <errno.h>
#include <sched.h>
#include <unistd.h>

#include "common/os.h"
#include "common/point.h"
#include "server/server.h"

#define GOODBYE_TIME JMK_SECOND
#define HUSH_AFTER 8 /* inline rounds in a row */
#define NAP_TIME 100000 /* ns */
#define NAP_MESSAGES 8  /* fewer in that time are a slow stream */
#define MANY_ACKS 32 /* unacked messages a client; its socket takes a few hundred acks */

void jmk_progress(struct jmk_server *server) {
    atomic_fetch_add(&server->progress, 1);
    if (atomic_load(&server->waiters))
        jmk_futex_wake_all(&server->progress);
}

void jmk_server_wake(struct jmk_server *server) {
    uint64_t one = 1;
    ssize_t done = write(server->wake_fd, &one, sizeof one);

    (void)done; /* fails only when the counter is full, and then it is readable already */
}

void jmk_pump_lock(struct jmk_server *server) {
    pthread_mutex_lock(&server->pump_lock);
}

bool jmk_pump_try(struct jmk_server *server) {
    jmk_fence();
    return pthread_mutex_trylock(&server->pump_lock) == 0;
}

static bool behind(struct jmk_server *server) {
    return jmk_log_end(&server->log).offset != atomic_load(&server->pumped);
}

void jmk_pump_unlock(struct jmk_server *server) {
    pthread_mutex_unlock(&server->pump_lock);
    JMK_POINT(JMK_AT_UNLOCKED);
    jmk_fence();
    if (atomic_load(&server->contended) && atomic_exchange(&server->contended, 0))
        jmk_progress(server);
    if (atomic_load(&server->parked) && behind(server) && atomic_exchange(&server->parked, 0))
        jmk_server_wake(server);
}

static void watch(const struct jmk_server *server, struct jmk_session *session, uint32_t events) {
    struct epoll_event event = {.events = events, .data.u64 = session->key};

    if (session->watched == events)
        return;
    epoll_ctl(server->epoll_fd, EPOLL_CTL_MOD, session->fd, &event);
    session->watched = events;
}

static void rouse(struct jmk_server *server) {
    server->streak = 0;
    if (!server->hushed)
        return;
    server->hushed = false;
    for (uint32_t i = 0; i < server->live_count; i++)
        if (!server->live[i]->muted)
            watch(server, server->live[i], server->live[i]->watched | EPOLLIN);
}

static void notify(struct jmk_server *server) {
    uint64_t one = 1;
    ssize_t done = write(server->event_fd, &one, sizeof one);

    (void)done; /* fails only when the counter is full, and then it is readable already */
}

static void raise_event(struct jmk_server *server, struct jmk_session *session,
                        enum jmk_event_kind kind) {
    if (!session->events) {
        session->next_event = NULL;
        if (server->last_event)
            server->last_event->next_event = session;
        else
            server->first_event = session;
        server->last_event = session;
    }
    session->events |= 1u << kind;
    notify(server);
}

static void remove_from(struct jmk_session **list, uint32_t *count, struct jmk_session *session) {
    list[session->index] = list[--*count];
    list[session->index]->index = session->index;
}

static void close_session(struct jmk_server *server, struct jmk_session *session) {
    epoll_ctl(server->epoll_fd, EPOLL_CTL_DEL, session->fd, NULL);
    jmk_session_close(session);
    session->state = JMK_CLOSED;
    raise_event(server, session, JMK_EVENT_CLOSED);
}

/* Be told when its peer reads. It is shut, which would be news again and again, but for EPOLLET. */
static bool watch_reading(const struct jmk_server *server, const struct jmk_session *session) {
    struct epoll_event event = {.events = EPOLLOUT | EPOLLET, .data.u64 = session->key};

    return epoll_ctl(server->epoll_fd, EPOLL_CTL_MOD, session->fd, &event) == 0;
}

/* Nothing more is said or heard; close it, or keep it until its peer has read all. */
static void shut(struct jmk_server *server, struct jmk_session *session) {
    /* A forked child may hold the descriptor too; this ends the connection all the same. */
    shutdown(session->fd, SHUT_RDWR);
    jmk_session_drop_page(session);
    if (server->saying_goodbye || !jmk_session_unread(session) ||
        jmk_session_holds_descriptors(session) || !watch_reading(server, session)) {
        close_session(server, session);
        return;
    }
    session->state = JMK_UNREAD;
    session->index = server->unread_count;
    server->unread[server->unread_count++] = session;
}

static void close_unread(struct jmk_server *server, struct jmk_session *session) {
    remove_from(server->unread, &server->unread_count, session);
    close_session(server, session);
}

void jmk_pump_drop(struct jmk_server *server, struct jmk_session *session) {
    remove_from(server->ending, &server->ending_count, session);
    shut(server, session);
}

/* It is gone from the live ones, and has until its deadline. */
static void wait_for_end(struct jmk_server *server, struct jmk_session *session,
                         enum jmk_state state) {
    session->state = state;
    session->deadline = jmk_now() + GOODBYE_TIME;
    session->index = server->ending_count;
    server->ending[server->ending_count++] = session;
    jmk_server_wake(server); /* the thread may be asleep, for longer than that */
}

static void say_goodbye(struct jmk_server *server, struct jmk_session *session) {
    bool moved = false;

    jmk_session_bye(session, &server->log);
    shutdown(session->fd, SHUT_WR);
    if (session->mode != JMK_CLASSIC || jmk_session_read(session, &server->log, &moved) != 0) {
        jmk_session_read(session, &server->log, &moved);
        shut(server, session);
        return;
    }
    session->muted = false;
    watch(server, session, EPOLLIN | EPOLLRDHUP);
    wait_for_end(server, session, JMK_ENDING);
}

void jmk_pump_part(struct jmk_server *server, struct jmk_session *session) {
    remove_from(server->ending, &server->ending_count, session);
    say_goodbye(server, session);
}

void jmk_pump_account(const struct jmk_server *server, struct jmk_session *session) {
    uint64_t held = UINT64_MAX; /* one that skips holds nothing */

    if (session->state != JMK_SKIPPING)
        held = jmk_log_seek(&server->log, server->floor, session->acked_id + 1);
    jmk_session_account(session, &server->log, held);
}

static void fix_account(struct jmk_server *server, struct jmk_session *session,
                        enum jmk_reason reason, int error) {
    struct jmk_account *account = &session->account;
    uint64_t last = jmk_log_end(&server->log).id - 1,
             got = jmk_session_last_received(session, reason);

    jmk_pump_account(server, session);
    account->reason = reason;
    account->error = error;
    if (got < last) {
        account->first_lost = got + 1;
        account->last_lost = last;
    }
    server->gone.delivered += account->messages;
    server->gone.delivered_bytes += account->bytes;
    server->gone.packets += account->packets;
    server->gone.skipped += account->skipped;
}

void jmk_pump_end(struct jmk_server *server, struct jmk_session *session, enum jmk_reason reason,
                  int error) {
    bool moved = false;

    if (session->delivery->poll_acks)
        session->delivery->poll_acks(session, &server->log,
                                     &moved); /* its last acks, for the account */
    fix_account(server, session, reason, error);
    remove_from(server->live, &server->live_count, session);
    server->shared_count -= session->delivery->poll_acks != NULL;
    server->stale = true;
    raise_event(server, session, JMK_EVENT_GONE);
    if (reason == JMK_R_LEFT || reason == JMK_R_ERROR)
        shut(server, session);
    else if (session->state == JMK_HELD)
        wait_for_end(server, session, JMK_PARTING);
    else
        say_goodbye(server, session);
}

/*
 * Where the history begins that stays before place, the oldest frame that a session has not acked.
 * Before kept there may be nothing any more, so what lies there counts by bytes alone. Under log_lock.
 */
static uint64_t history_from(const struct jmk_server *server, struct jmk_mark place) {
    uint64_t keep = server->config.keep, bytes = server->config.keep_bytes;
    uint64_t from = place.offset > bytes ? place.offset - bytes : 0, counted = 0;

    if (bytes && place.id >= server->kept.id && place.id - server->kept.id >= keep)
        counted = jmk_log_seek(&server->log, server->kept, place.id - keep);
    return counted > from ? counted : from;
}

/* The last message that may enter the log as far as session is concerned. */
static uint64_t last_admitted(const struct jmk_server *server, const struct jmk_session *session) {
    uint64_t limit = jmk_server_limit(server, session);

    return limit == UINT64_MAX ? UINT64_MAX : session->acked_id + limit;
}

/* Does it need no frame of those that must go, or be history, before one who is live meets them? */
static bool leaves_history(const struct jmk_server *server, const struct jmk_session *session) {
    uint64_t room = server->log.size - server->config.keep_bytes, end = server->log.write.offset;

    return !server->config.keep_bytes || end <= room ||
           session->acked_id + 1 >= jmk_log_find(&server->log, server->kept, end - room).id;
}

/* A session that began in the past counts like any other once it is within its limits. Under log_lock. */
static void catch_up(const struct jmk_server *server, struct jmk_session *session) {
    if (session->backlog && server->log.write.id - 1 - session->acked_id <= server->config.max_lag)
        session->backlog = 0;
    if (session->replaying && !session->backlog && leaves_history(server, session))
        session->replaying = false;
}

void jmk_pump_enter(struct jmk_server *server, struct jmk_session *session, struct jmk_mark place) {
    uint64_t stays, last;

    jmk_session_place(session, &server->log, place);
    session->first_id = place.id;
    session->shown_from = server->log.write.id;
    session->due_id = 0;
    session->replaying = place.id != server->log.write.id;
    session->backlog = server->config.max_lag ? server->log.write.id - place.id : 0;
    if (!server->holders)
        server->kept = jmk_log_oldest(&server->log);
    catch_up(server, session);
    server->catching_up = server->catching_up || session->backlog;
    stays = session->replaying ? place.offset : history_from(server, place);
    if (!server->holders)
        server->kept = jmk_log_find(&server->log, server->kept, stays);
    else if (place.id < server->kept.id)
        server->kept = place;
    if (!server->holders || place.id < server->floor.id)
        server->floor = place;
    server->holders = true;
    if (stays + server->log.size < atomic_load(&server->admit_offset))
        atomic_store(&server->admit_offset, stays + server->log.size);
    last = last_admitted(server, session);
    if (last < atomic_load(&server->admit_id))
        atomic_store(&server->admit_id, last);
}

static void end_failed(struct jmk_server *server, struct jmk_session *session, int error) {
    bool moved = false;

    if (error == -EMSGSIZE && session->mode == JMK_CLASSIC) {
        jmk_pump_end(server, session, JMK_R_TOO_LARGE, 0);
        return;
    }
    jmk_session_read(session, &server->log, &moved); /* its last acks, for the account */
    if (error == -EPIPE || error == -ECONNRESET)
        jmk_pump_end(server, session, JMK_R_LEFT, 0);
    else
        jmk_pump_end(server, session, JMK_R_ERROR, -error);
}

/* The newest message that one which had all up to `got` has not had; or else the next. */
static struct jmk_mark newest(const struct jmk_server *server, uint64_t got) {
    const struct jmk_log *log = &server->log;
    uint64_t id = log->write.id - 1;

    if (id <= got)
        return log->write;
    return (struct jmk_mark){id, jmk_log_seek(log, jmk_log_oldest(log), id)};
}

/*
 * Go on behind the gap, once what was sent before it is acked: with the newest message there is. One
 * that had acked all before it was skipped is in the way of a message that is to be published now, and
 * goes on with that.
 */
static void resume(struct jmk_server *server, struct jmk_session *session, bool with_newest) {
    uint64_t got = session->sent_id;
    int error = 0;

    if (session->state != JMK_SKIPPING || session->answer_due || session->acked_id != got)
        return;
    session->state = JMK_LIVE;
    session->blocked = false;
    pthread_mutex_lock(&server->log_lock);
    jmk_pump_enter(server, session, with_newest ? newest(server, got) : server->log.write);
    pthread_mutex_unlock(&server->log_lock);
    if (session->delivery->resume)
        error = session->delivery->resume(session, &server->log);
    if (error) {
        end_failed(server, session, error);
        return;
    }
    if (session->sent_id == got)
        return;
    session->gap_first = got + 1;
    session->gap_last = session->sent_id;
    session->account.skipped += session->gap_last - got;
    raise_event(server, session, JMK_EVENT_SKIPPED);
}

void jmk_pump_skip(struct jmk_server *server, struct jmk_session *session) {
    int error = 0;

    rouse(server);
    session->state = JMK_SKIPPING;
    session->due_id = 0;
    session->fragment = 0; /* a message partly sent is given up: its reader sees the ids jump */
    server->stale = true;
    if (session->delivery->skip)
        error = session->delivery->skip(session, &server->log);
    if (error)
        end_failed(server, session, error);
    else
        resume(server, session, false);
}

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

        /* What one that is skipping would get next may be overwritten by now. */
        if (session->state != JMK_LIVE || session->blocked || session->offset >= supply.end.offset)
            continue;
        supply.last = allowance(server, session);
        error = session->delivery->send(session, supply, &server->outbox);
        if (error < 0) {
            end_failed(server, session, error);
            continue;
        }
        if (session->blocked) {
            rouse(server);
            watch(server, session, session->watched | EPOLLOUT);
        }
        if (session->more)
            done = false;
    }
    atomic_store(&server->pumped, done ? supply.end.offset : JMK_UNDONE);
    return done;
}

static void note_worst(const struct jmk_server *server, struct jmk_session *session) {
    uint64_t lag = jmk_session_lag(session, jmk_log_end(&server->log).id);

    if (lag > session->account.worst_lag)
        session->account.worst_lag = lag;
}

/* What became of taking a session's acks. */
static void settle(struct jmk_server *server, struct jmk_session *session, int result, bool moved) {
    if (moved) {
        server->stale = true;
        session->blocked = false; /* there may be room now: worth a try */
    }
    if (result == JMK_E_PROTOCOL)
        jmk_pump_end(server, session, JMK_R_PROTOCOL, 0);
    else if (result == JMK_E_END)
        jmk_pump_end(server, session, JMK_R_LEFT, 0);
    else if (result < 0)
        end_failed(server, session, result);
    else
        resume(server, session, true);
}

static void mute(struct jmk_server *server, struct jmk_session *session) {
    watch(server, session, session->watched & ~(uint32_t)EPOLLIN);
    if (server->unmute_at && server->unmute_at <= session->quiet_until)
        return;
    server->unmute_at = session->quiet_until;
    jmk_server_wake(server); /* the thread may be asleep, for longer than that */
}

/* Read what it sent; what one that is muted sent, only once it has come to its end. */
static int hear(struct jmk_server *server, struct jmk_session *session, uint32_t events,
                bool *moved) {
    int result;

    if (session->muted && !(events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)))
        return 0;
    result = jmk_session_read(session, &server->log, moved);
    if (result == 0 && session->muted)
        mute(server, session);
    return result;
}

static void handle_session(struct jmk_server *server, struct jmk_session *session,
                           uint32_t events) {
    bool moved = false;
    int result;

    if (session->state == JMK_CLOSED)
        return;
    if (session->state == JMK_UNREAD) {
        if (!jmk_session_unread(session))
            close_unread(server, session);
        return;
    }
    if (session->state == JMK_PARTING || session->state == JMK_ENDING) {
        if (hear(server, session, events, &moved) != 0 || events & (EPOLLHUP | EPOLLERR))
            jmk_pump_drop(server, session);
        return;
    }
    note_worst(server, session);
    result = hear(server, session, events, &moved);
    if (events & EPOLLOUT) {
        session->blocked = false;
        watch(server, session, session->watched & ~(uint32_t)EPOLLOUT);
    }
    settle(server, session, result, moved);
}

/* Acks in the pages of those who read the log: nobody says when they come. True if there is news. */
static bool look_at_cursors(struct jmk_server *server) {
    bool any = false;

    if (!server->shared_count)
        return false;
    for (uint32_t i = server->live_count; i-- > 0;) {
        struct jmk_session *session = server->live[i];
        bool moved = false;
        int result;

        if (!session->delivery->poll_acks)
            continue;
        note_worst(server, session);
        result = session->delivery->poll_acks(session, &server->log, &moved);
        if (moved || result)
            settle(server, session, result, moved);
        any = any || moved || result;
    }
    return any;
}

/* To be followed by jmk_pump_send: sessions that can be sent to again are not noted elsewhere. */
static void handle(struct jmk_server *server, const struct epoll_event *events, int count) {
    for (int i = 0; i < count; i++) {
        /* No session has the wake_fd's key: only the thread may drain that, or it would sleep on. */
        struct jmk_session *session = jmk_server_find(server, events[i].data.u64);
        if (session)
            handle_session(server, session, events[i].events);
    }
}

static struct jmk_mark mark_of(const struct jmk_server *server, uint64_t id) {
    return (struct jmk_mark){id, jmk_log_seek(&server->log, server->floor, id)};
}

/*
 * What must stay, given the lowest ids not acked by anybody, and by those who are not replaying.
 * History is for who comes later, so one who is reading it needs none before himself. Under log_lock.
 */
static uint64_t hold(struct jmk_server *server, uint64_t lowest, uint64_t lowest_live) {
    uint64_t stays, history;

    server->holders = lowest != UINT64_MAX;
    if (!server->holders)
        return UINT64_MAX;
    server->floor = mark_of(server, lowest);
    stays = server->floor.offset;
    if (lowest_live != UINT64_MAX) {
        history = history_from(server, mark_of(server, lowest_live));
        if (history < stays)
            stays = history;
    }
    server->kept = jmk_log_find(&server->log, server->kept, stays);
    return stays;
}

void jmk_pump_admit(struct jmk_server *server) {
    uint64_t admit_id = UINT64_MAX, admit_offset, last;
    uint64_t lowest = UINT64_MAX, lowest_live = UINT64_MAX, before_id, before_offset;

    if (!server->stale)
        return;
    server->stale = server->catching_up = false;
    pthread_mutex_lock(&server->log_lock);
    for (uint32_t i = 0; i < server->live_count; i++) {
        struct jmk_session *session = server->live[i];

        if (session->state == JMK_SKIPPING)
            continue;
        catch_up(server, session);
        if (session->acked_id + 1 < lowest)
            lowest = session->acked_id + 1;
        if (!session->replaying && session->acked_id + 1 < lowest_live)
            lowest_live = session->acked_id + 1;
        last = last_admitted(server, session);
        if (last < admit_id)
            admit_id = last;
        server->catching_up = server->catching_up || session->backlog;
    }
    if (server->outrun && server->log.write.id - 1 < admit_id)
        admit_id = server->log.write.id - 1;
    admit_offset = hold(server, lowest, lowest_live);
    if (server->holders)
        admit_offset += server->log.size;
    before_id = atomic_exchange(&server->admit_id, admit_id);
    before_offset = atomic_exchange(&server->admit_offset, admit_offset);
    pthread_mutex_unlock(&server->log_lock);
    /* Under block only the slowest matters; otherwise also how far the fastest has come. */
    if (server->config.policy != JMK_BLOCK || before_id != admit_id ||
        before_offset != admit_offset)
        jmk_progress(server);
}

/* Has it so much to ack that its socket could fill up with acks nobody reads? */
static bool owes_many(const struct jmk_session *session) {
    return !session->delivery->poll_acks && session->sent_id - session->acked_id >= MANY_ACKS;
}

/* Only while all keep up: one that is blocked, or skipping, goes on when an ack comes. */
static void hush(struct jmk_server *server) {
    for (uint32_t i = 0; i < server->live_count; i++) {
        const struct jmk_session *session = server->live[i];
        if (session->blocked || session->state != JMK_LIVE || owes_many(session))
            return;
    }
    server->hushed = true;
    for (uint32_t i = 0; i < server->live_count; i++)
        watch(server, server->live[i], server->live[i]->watched & ~(uint32_t)EPOLLIN);
}

/*
 * While hushed: read acks before they fill a socket, or come to matter. Who has not acked by then is
 * slow, and may have to go on acking when nobody publishes: that is for the thread to read.
 */
static void read_many_acks(struct jmk_server *server) {
    for (uint32_t i = server->live_count; i-- > 0;) {
        struct jmk_session *session = server->live[i];
        uint64_t unacked = session->sent_id - session->acked_id;

        if (session->delivery->poll_acks)
            continue; /* its acks fill nothing */
        if (unacked >= MANY_ACKS || 4 * unacked >= server->config.max_lag - 1)
            handle_session(server, session, 0);
        if (session->state == JMK_LIVE && owes_many(session))
            rouse(server);
    }
}

void jmk_pump_inline(struct jmk_server *server) {
    atomic_fetch_add_explicit(&server->inline_rounds, 1, memory_order_relaxed);
    if (server->catching_up)
        look_at_cursors(server); /* else it would count as behind for longer than it is */
    jmk_pump_send(server);
    if (server->hushed)
        read_many_acks(server);
    else if (++server->streak >= HUSH_AFTER)
        hush(server);
    jmk_pump_admit(server);
}

void jmk_pump_round(struct jmk_server *server) {
    struct epoll_event events[JMK_EVENTS];
    int count;

    rouse(server);
    count = epoll_wait(server->epoll_fd, events, JMK_EVENTS, 0);
    handle(server, events, count);
    look_at_cursors(server);
    jmk_pump_send(server);
    jmk_pump_admit(server);
}

bool jmk_pump_want(struct jmk_server *server, struct jmk_session *session, uint64_t id) {
    if (!session->page || atomic_load(&session->page->wanted) == id)
        return false;
    atomic_store(&session->page->wanted, id);
    session->idle_acks -= session->idle_acks > 0; /* its page may tell as much as the answer */
    JMK_POINT(JMK_AT_WANTED);
    return look_at_cursors(server);
}

/* ---- the thread ---- */

/* Has everybody got all? One whose welcome is on its way has not even begun. */
static bool all_sent(const struct jmk_server *server) {
    uint64_t end = jmk_log_end(&server->log).offset;

    for (uint32_t i = 0; i < server->live_count; i++) {
        const struct jmk_session *session = server->live[i];
        if (session->state == JMK_HELD || (session->state == JMK_LIVE && session->offset < end))
            return false;
    }
    return true;
}

/* When to give up on one that ends. A welcome on its way takes no time to speak of, so it is awaited. */
static int64_t due(const struct jmk_server *server, const struct jmk_session *session) {
    int64_t close_at = atomic_load(&server->close_at);

    if (session->state == JMK_ENDING && server->saying_goodbye && close_at < session->deadline)
        return close_at;
    return session->deadline;
}

/* Goodbyes whose time is up; and the steps of closing. True once nobody is left. */
static bool goodbyes(struct jmk_server *server) {
    int64_t now = jmk_now();

    if (atomic_load(&server->closing) && !server->saying_goodbye &&
        (all_sent(server) || now >= atomic_load(&server->close_at))) {
        server->saying_goodbye = true;
        while (server->live_count)
            jmk_pump_end(server, server->live[server->live_count - 1], JMK_R_CLOSING, 0);
        while (server->unread_count)
            close_unread(server, server->unread[server->unread_count - 1]);
    }
    for (uint32_t i = server->ending_count; i-- > 0;) {
        struct jmk_session *session = server->ending[i];
        if (now >= due(server, session))
            jmk_pump_drop(server, session);
    }
    return server->saying_goodbye && !server->ending_count;
}

/* Hear those of a list again that were muted for long enough; `events` are to be asked for. */
static void unmute_some(struct jmk_server *server, struct jmk_session **list, uint32_t count,
                        uint32_t events, int64_t now) {
    for (uint32_t i = 0; i < count; i++) {
        struct jmk_session *session = list[i];

        if (!session->muted)
            continue;
        if (now >= session->quiet_until) {
            session->muted = false;
            watch(server, session, session->watched | events);
        } else if (!server->unmute_at || session->quiet_until < server->unmute_at) {
            server->unmute_at = session->quiet_until;
        }
    }
}

static void unmute(struct jmk_server *server) {
    int64_t now;

    if (!server->unmute_at)
        return;
    now = jmk_now();
    if (now < server->unmute_at)
        return;
    server->unmute_at = 0;
    unmute_some(server, server->live, server->live_count, server->hushed ? 0 : EPOLLIN, now);
    unmute_some(server, server->ending, server->ending_count, EPOLLIN, now);
}

/* When the next goodbye is due, or one is to be unmuted, as a timeout for epoll in ms. */
static int next_timeout(struct jmk_server *server) {
    int64_t next = server->unmute_at ? server->unmute_at : INT64_MAX, left;

    for (uint32_t i = 0; i < server->ending_count; i++) {
        int64_t one = due(server, server->ending[i]);
        if (one < next)
            next = one;
    }
    if (atomic_load(&server->closing) && !server->saying_goodbye &&
        atomic_load(&server->close_at) < next)
        next = atomic_load(&server->close_at);
    if (next == INT64_MAX)
        return -1;
    left = next - jmk_now();
    if (left <= 0)
        return 0;
    return left > 60 * JMK_SECOND ? 60000 : (int)(left / 1000000 + 1);
}

/* Sleep until there is work; the events that woke us. */
static int park(struct jmk_server *server, struct epoll_event *events, int timeout) {
    int count;

    atomic_store(&server->parked, 1);
    JMK_POINT(JMK_AT_PARKED);
    if (behind(server))
        timeout = 0;
    count = epoll_wait(server->epoll_fd, events, JMK_EVENTS, timeout);
    atomic_store(&server->parked, 0);
    return count;
}

/*
 * In a fast stream to clients who read the log themselves there is little to do: ring those who
 * sleep, look at acks. That can wait for a moment, in which publishers leave all to us.
 */
static int nap(struct jmk_server *server, struct epoll_event *events) {
    return jmk_epoll_wait(server->epoll_fd, events, JMK_EVENTS, NAP_TIME);
}

/* May the thread nap, if it last looked when `seen` was the next id? Only in a fast stream. */
static bool may_nap(const struct jmk_server *server, uint64_t seen) {
    return server->live_count && server->shared_count == server->live_count &&
           !server->ending_count && jmk_log_end(&server->log).id - seen >= NAP_MESSAGES &&
           !atomic_load(&server->closing);
}

/* Somebody woke us: the stream is not slow any more, or something else is up. */
static void take_wake(struct jmk_server *server, const struct epoll_event *events, int count) {
    uint64_t drained;

    for (int i = 0; i < count; i++) {
        if (events[i].data.u64 == JMK_WAKE_KEY &&
            read(server->wake_fd, &drained, sizeof drained) > 0)
            rouse(server);
    }
}

void *jmk_pump_thread(void *argument) {
    struct jmk_server *server = argument;
    bool finished = false, fast = false;
    struct jmk_testament testament;
    uint64_t seen = JMK_FIRST_ID;
    int timeout = -1;

    jmk_testament_open(&testament, &server->log.page->owner);
    while (!finished) {
        struct epoll_event events[JMK_EVENTS];
        int count = fast ? nap(server, events) : park(server, events, timeout);

        jmk_pump_lock(server);
        take_wake(server, events, count);
        handle(server, events, count);
        look_at_cursors(server);
        jmk_pump_send(server);
        jmk_pump_admit(server);
        unmute(server);
        finished = goodbyes(server);
        timeout = next_timeout(server);
        fast = may_nap(server, seen);
        seen = jmk_log_end(&server->log).id;
        atomic_fetch_add_explicit(&server->rounds, 1, memory_order_relaxed);
        jmk_pump_unlock(server);
    }
    jmk_testament_close(&testament);
    atomic_store(&server->finished, 1);
    jmk_progress(server);
    notify(server); /* the control plane may be waiting for this too */
    jmk_server_leave(server);
    return NULL;
}
