/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Skipping: a client at its limit gives up what it has not got
 *
 * Its queue is dropped, so it needs no frame any more. Once it has acked all that it was sent, it goes on
 * behind the gap. So it has one gap open at most, and none inside what it has not acked.
 */
#include "server/skip.h"

#include "server/admit.h"
#include "server/ends.h"

/* The newest message, if a session that had all up to `got` has not had that; or else the next. */
static struct jmk_mark newest(const struct jmk_server *server, uint64_t got) {
    const struct jmk_log *log = &server->log;
    uint64_t id = log->write.id - 1;

    if (id <= got)
        return log->write;
    return (struct jmk_mark){id, jmk_log_seek(log, jmk_log_oldest(log), id)};
}

void jmk_skip_resume(struct jmk_server *server, struct jmk_session *session, bool with_newest) {
    uint64_t got = session->sent_id;
    int error = 0;

    if (session->state != JMK_SKIPPING || session->answer_due || session->acked_id != got)
        return;
    session->state = JMK_LIVE;
    session->blocked = false;
    pthread_mutex_lock(&server->log_lock);
    jmk_admit_enter(server, session, with_newest ? newest(server, got) : server->log.write);
    pthread_mutex_unlock(&server->log_lock);
    if (session->ops->resume)
        error = session->ops->resume(session, &server->log);
    if (error) {
        jmk_ends_fail(server, session, error);
        return;
    }
    if (session->sent_id == got)
        return;
    session->gap_first = got + 1;
    session->gap_last = session->sent_id;
    session->skipped += session->gap_last - got;
    session->account.skipped = session->skipped;
    jmk_ends_raise_event(server, session, JMK_EVENT_SKIPPED);
}

void jmk_skip_begin(struct jmk_server *server, struct jmk_session *session) {
    int error = 0;

    session->state = JMK_SKIPPING;
    session->due_id = 0;
    session->fragment = 0; /* a message partly sent is given up: its reader sees the ids jump */
    server->stale = true;
    if (session->ops->skip)
        error = session->ops->skip(session, &server->log);
    if (error)
        jmk_ends_fail(server, session, error);
    else
        jmk_skip_resume(server, session, false);
}
