/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which acks the thread wakes for
 *
 * In a slow stream publishers send, and the thread would wake for nothing but acks, one per message and
 * client that gets packets. So after some inline rounds in a row acks are ignored: epoll does not look
 * for them, publishers read them when they are many, and whoever needs them earlier (a publisher that
 * waits, or a call for figures) makes a full round, which has epoll look for them again. An end wakes
 * the thread always. At 1,000 messages a second this saves 0.8 context switches per message and client,
 * and a quarter of the server's processor time.
 *
 * A session that floods the server with idle acks is muted (session.c): nothing reads what it sends, and
 * epoll does not look for it, until its time is up. Its end wakes the thread even so.
 */
#include "server/acks.h"

#include <sys/epoll.h>

#include "common/os.h"

#define IGNORE_AFTER 8 /* inline rounds in a row */
#define MANY_ACKS 32   /* unacked messages per client; its socket takes a few hundred acks */

void jmk_acks_watch(struct jmk_server *server) {
    server->inline_streak = 0;
    if (!server->acks_ignored)
        return;
    server->acks_ignored = false;
    for (uint32_t i = 0; i < server->live_count; i++)
        if (!server->live[i]->muted)
            jmk_server_watch(server, server->live[i], server->live[i]->watched | EPOLLIN);
}

bool jmk_acks_owes_many(const struct jmk_session *session) {
    return !session->ops->poll_acks && session->sent_id - session->acked_id >= MANY_ACKS;
}

bool jmk_acks_must_read(const struct jmk_server *server, const struct jmk_session *session) {
    uint64_t unacked = session->sent_id - session->acked_id;

    return !session->ops->poll_acks &&
           (unacked >= MANY_ACKS || 4 * unacked >= server->config.max_lag - 1);
}

/* Only while all keep up: a session that is blocked, or skips, goes on when an ack comes. */
void jmk_acks_ignore(struct jmk_server *server) {
    if (++server->inline_streak < IGNORE_AFTER)
        return;
    for (uint32_t i = 0; i < server->live_count; i++) {
        const struct jmk_session *session = server->live[i];
        if (session->blocked || session->state != JMK_LIVE || jmk_acks_owes_many(session))
            return;
    }
    server->acks_ignored = true;
    for (uint32_t i = 0; i < server->live_count; i++)
        jmk_server_watch(server, server->live[i], server->live[i]->watched & ~(uint32_t)EPOLLIN);
}

/* Stop reading what it sends until its time is up. */
static void mute(struct jmk_server *server, struct jmk_session *session) {
    jmk_server_watch(server, session, session->watched & ~(uint32_t)EPOLLIN);
    if (server->unmute_at && server->unmute_at <= session->quiet_until)
        return;
    server->unmute_at = session->quiet_until;
    jmk_server_wake(server); /* the thread may be asleep, for longer than that */
}

int jmk_acks_read(struct jmk_server *server, struct jmk_session *session, uint32_t events,
                  bool *moved) {
    int result;

    if (session->muted && !(events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)))
        return 0;
    result = jmk_session_read(session, &server->log, moved);
    if (result == 0 && session->muted)
        mute(server, session);
    return result;
}

/* Read again from those of a list that were muted for long enough; epoll looks for `events` of them. */
static void unmute_some(struct jmk_server *server, struct jmk_session **list, uint32_t count,
                        uint32_t events, int64_t now) {
    for (uint32_t i = 0; i < count; i++) {
        struct jmk_session *session = list[i];

        if (!session->muted)
            continue;
        if (now >= session->quiet_until) {
            session->muted = false;
            jmk_server_watch(server, session, session->watched | events);
        } else if (!server->unmute_at || session->quiet_until < server->unmute_at) {
            server->unmute_at = session->quiet_until;
        }
    }
}

void jmk_acks_unmute(struct jmk_server *server) {
    int64_t now;

    if (!server->unmute_at)
        return;
    now = jmk_now();
    if (now < server->unmute_at)
        return;
    server->unmute_at = 0;
    unmute_some(server, server->live, server->live_count, server->acks_ignored ? 0 : EPOLLIN, now);
    unmute_some(server, server->ending, server->ending_count, EPOLLIN, now);
}
