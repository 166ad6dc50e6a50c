/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ending a session, its goodbye, and the events that the control plane collects
 *
 * An end takes care. The account is fixed, BYE goes out where the peer can read it, then our side is
 * shut. A framed peer knows that ECONNRESET may come before the last packets and reads on, so its
 * descriptor is closed at once. A classic peer may not: it would see ECONNRESET if acks were left
 * unread here, so those are read until it closes too, or for a second. The welcome is always the first
 * packet: a session that ends before its welcome is out is parting, and its BYE follows the welcome. If
 * the welcome does not come within a second, the end of the stream is all that the peer gets.
 *
 * What a peer leaves unread stays in the kernel, on our account: its memory, and the two descriptors of
 * a welcome, which count against our user while they are in flight. So a descriptor is closed only when
 * nothing is unread, by which the kernel also tells that the peer's socket is gone; until then the
 * session keeps its place.
 */
#include "server/ends.h"

#include <errno.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "common/os.h"

#define GOODBYE_TIME JMK_SECOND
#define KERNELS_PART 32 /* bytes of SO_SNDBUF that a packet cannot have */

void jmk_ends_account(const struct jmk_server *server, struct jmk_session *session) {
    uint64_t held = UINT64_MAX; /* a session that skips holds nothing */

    if (session->state != JMK_SKIPPING)
        held = jmk_log_seek(&server->log, server->floor, session->acked_id + 1);
    jmk_session_account(session, &server->log, held);
}

void jmk_ends_raise_event(struct jmk_server *server, struct jmk_session *session,
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
    jmk_server_notify(server);
}

static void remove_from(struct jmk_session **list, uint32_t *count, struct jmk_session *session) {
    list[session->index] = list[--*count];
    list[session->index]->index = session->index;
}

static void close_session(struct jmk_server *server, struct jmk_session *session) {
    epoll_ctl(server->epoll_fd, EPOLL_CTL_DEL, session->fd, NULL);
    jmk_session_close(session);
    session->state = JMK_CLOSED;
    jmk_ends_raise_event(server, session, JMK_EVENT_CLOSED);
}

/* Have epoll tell when its peer reads. The socket is shut, which would be told again and again but for EPOLLET. */
static bool watch_reading(const struct jmk_server *server, const struct jmk_session *session) {
    struct epoll_event event = {.events = EPOLLOUT | EPOLLET, .data.u64 = session->key};

    return epoll_ctl(server->epoll_fd, EPOLL_CTL_MOD, session->fd, &event) == 0;
}

/* End the connection: close it, or keep the descriptor until its peer has read all. */
static void shut(struct jmk_server *server, struct jmk_session *session) {
    /* A forked child may hold the descriptor too; this ends the connection all the same. */
    shutdown(session->fd, SHUT_RDWR);
    jmk_session_rouse(session);
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

void jmk_ends_close_unread(struct jmk_server *server, struct jmk_session *session) {
    remove_from(server->unread, &server->unread_count, session);
    close_session(server, session);
}

void jmk_ends_drop(struct jmk_server *server, struct jmk_session *session) {
    remove_from(server->ending, &server->ending_count, session);
    shut(server, session);
}

/* It has left the list of live sessions, and has until its deadline. */
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
    if (session->delivery != JMK_CLASSIC || jmk_session_read(session, &server->log, &moved) != 0) {
        jmk_session_read(session, &server->log, &moved);
        shut(server, session);
        return;
    }
    session->muted = false;
    jmk_server_watch(server, session, EPOLLIN | EPOLLRDHUP);
    wait_for_end(server, session, JMK_ENDING);
}

void jmk_ends_part(struct jmk_server *server, struct jmk_session *session) {
    remove_from(server->ending, &server->ending_count, session);
    say_goodbye(server, session);
}

static void fix_account(struct jmk_server *server, struct jmk_session *session,
                        enum jmk_reason reason, int error) {
    struct jmk_account *account = &session->account;
    uint64_t last = jmk_log_end(&server->log).id - 1,
             got = jmk_session_last_received(session, reason);

    jmk_ends_account(server, session);
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

void jmk_ends_end(struct jmk_server *server, struct jmk_session *session, enum jmk_reason reason,
                  int error) {
    bool moved = false;

    if (session->ops->poll_acks)
        session->ops->poll_acks(session, &server->log, &moved); /* its last acks, for the account */
    fix_account(server, session, reason, error);
    remove_from(server->live, &server->live_count, session);
    server->shared_count -= session->ops->poll_acks != NULL;
    server->stale = true;
    jmk_server_progress(server); /* the end of a session that skips changes no admission */
    jmk_ends_raise_event(server, session, JMK_EVENT_GONE);
    if (reason == JMK_R_LEFT || reason == JMK_R_ERROR)
        shut(server, session);
    else if (session->state == JMK_HELD)
        wait_for_end(server, session, JMK_PARTING);
    else
        say_goodbye(server, session);
}

/* Note the sizes of the message that is due, which does not fit, and of the largest that would. */
static void note_sizes(const struct jmk_server *server, struct jmk_session *session) {
    int buffer = 0;
    socklen_t length = sizeof buffer;
    uint64_t most = session->max_packet, kernel = 0; /* 0 is unknown */

    if (getsockopt(session->fd, SOL_SOCKET, SO_SNDBUF, &buffer, &length) == 0)
        kernel = (uint64_t)(buffer > KERNELS_PART ? buffer - KERNELS_PART : 0);
    if (kernel && (!most || kernel < most))
        most = kernel;
    session->account.too_large = jmk_frame_decode(jmk_log_at(&server->log, session->offset)).size;
    session->account.largest = most > JMK_CLASSIC_HEADER ? most - JMK_CLASSIC_HEADER : 0;
}

void jmk_ends_fail(struct jmk_server *server, struct jmk_session *session, int error) {
    bool moved = false;

    if (error == -EMSGSIZE && session->delivery == JMK_CLASSIC) {
        note_sizes(server, session);
        jmk_ends_end(server, session, JMK_R_TOO_LARGE, 0);
        return;
    }
    jmk_session_read(session, &server->log, &moved); /* its last acks, for the account */
    if (error == -EPIPE || error == -ECONNRESET)
        jmk_ends_end(server, session, JMK_R_LEFT, 0);
    else
        jmk_ends_end(server, session, JMK_R_ERROR, -error);
}

/* ---- goodbyes ---- */

/*
 * Was each client sent all there is? One whose welcome is on its way has not even begun, and one that skips is
 * sent the newest message as soon as it has acked the others.
 */
static bool all_sent(const struct jmk_server *server) {
    uint64_t end = jmk_log_end(&server->log).offset;

    for (uint32_t i = 0; i < server->live_count; i++) {
        const struct jmk_session *session = server->live[i];
        if (session->state != JMK_LIVE || session->offset < end)
            return false;
    }
    return true;
}

/* When to give up on a session that ends. A welcome on its way takes next to no time, so it is awaited. */
static int64_t due(const struct jmk_server *server, const struct jmk_session *session) {
    int64_t close_at = atomic_load(&server->close_at);

    if (session->state == JMK_ENDING && server->saying_goodbye && close_at < session->deadline)
        return close_at;
    return session->deadline;
}

bool jmk_ends_goodbyes(struct jmk_server *server) {
    int64_t now = jmk_now();

    if (atomic_load(&server->closing) && !server->saying_goodbye &&
        (all_sent(server) || now >= atomic_load(&server->close_at))) {
        server->saying_goodbye = true;
        while (server->live_count)
            jmk_ends_end(server, server->live[server->live_count - 1], JMK_R_CLOSING, 0);
        while (server->unread_count)
            jmk_ends_close_unread(server, server->unread[server->unread_count - 1]);
    }
    for (uint32_t i = server->ending_count; i-- > 0;) {
        struct jmk_session *session = server->ending[i];
        if (now >= due(server, session))
            jmk_ends_drop(server, session);
    }
    return server->saying_goodbye && !server->ending_count;
}

int64_t jmk_ends_next(const struct jmk_server *server) {
    int64_t next = INT64_MAX;

    for (uint32_t i = 0; i < server->ending_count; i++) {
        int64_t one = due(server, server->ending[i]);
        if (one < next)
            next = one;
    }
    if (atomic_load(&server->closing) && !server->saying_goodbye &&
        atomic_load(&server->close_at) < next)
        next = atomic_load(&server->close_at);
    return next;
}

/* ---- events ---- */

int jmk_server_event_fd(const jmk_server *server) {
    return server->event_fd;
}

/* The first of its events, in the order in which they came about. */
static enum jmk_event_kind first_event(const struct jmk_session *session) {
    if (session->events & 1u << JMK_EVENT_SKIPPED)
        return JMK_EVENT_SKIPPED;
    return session->events & 1u << JMK_EVENT_GONE ? JMK_EVENT_GONE : JMK_EVENT_CLOSED;
}

/* Take one event off session; true if it has no more. */
static bool collect_event(struct jmk_session *session, struct jmk_event *out) {
    *out = (struct jmk_event){.kind = first_event(session), .account = session->account};
    if (out->kind == JMK_EVENT_SKIPPED) {
        out->account.first_lost = session->gap_first;
        out->account.last_lost = session->gap_last;
    }
    session->events &= ~(1u << out->kind);
    return session->events == 0;
}

static int next_event(struct jmk_server *server, struct jmk_event *out) {
    struct jmk_session *session = server->first_event;
    uint64_t drained;

    if (!session)
        return read(server->event_fd, &drained, sizeof drained) < 0 && errno != EAGAIN ? -errno
                                                                                       : JMK_E_GONE;
    if (session->account.reason == JMK_R_NONE)
        jmk_ends_account(server, session);
    if (collect_event(session, out)) {
        server->first_event = session->next_event;
        if (!server->first_event)
            server->last_event = NULL;
        if (out->kind == JMK_EVENT_CLOSED)
            jmk_server_forget(server, session);
    }
    return 0;
}

int jmk_server_next_event(jmk_server *server, struct jmk_event *out) {
    int error = jmk_server_usable(server);

    if (error)
        return error;
    jmk_server_lock(server);
    error = next_event(server, out);
    jmk_server_unlock(server);
    return error;
}
