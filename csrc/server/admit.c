/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What may enter the log: the admission, and the floor that it follows from
 *
 * Publishers look at two numbers alone (state.h). They are computed here, once for each round of the pump
 * in which an ack or an end made them stale: from the lowest id that some session has not acked one
 * lookup in the log's index gives the floor, and from that the bytes that are free.
 */
#include "server/admit.h"

/* What the sessions need, all together. */
struct needs {
    uint64_t lowest;      /* the lowest id that some session has not acked ... */
    uint64_t lowest_live; /* ... and some session that is not replaying */
    uint64_t admit_id;    /* the last message that may enter the log */
    bool skipping; /* some session skips: it needs no frame, but someone may wait for its acks */
};

/*
 * The start of the history to keep in front of place, the oldest frame that a session has not acked.
 * Frames before kept may be overwritten, so there only bytes count. Under log_lock.
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

/* Is it past the promised history, so that it counts like any live session? */
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

/* What is there already is behind it at its start, as history is. Under log_lock. */
static void set_backlog(struct jmk_server *server, struct jmk_session *session) {
    uint64_t behind = server->log.write.id - 1 - session->acked_id;

    session->replaying = behind != 0;
    session->backlog = server->config.max_lag ? behind : 0;
    catch_up(server, session);
    server->catching_up = server->catching_up || session->backlog;
}

void jmk_admit_begin(struct jmk_server *server, struct jmk_session *session) {
    pthread_mutex_lock(&server->log_lock);
    session->state = JMK_LIVE;
    set_backlog(server, session);
    pthread_mutex_unlock(&server->log_lock);
    server->stale = true;
}

void jmk_admit_enter(struct jmk_server *server, struct jmk_session *session,
                     struct jmk_mark place) {
    uint64_t stays, last;

    jmk_session_place(session, &server->log, place);
    session->first_id = place.id;
    session->shown_from = server->log.write.id;
    session->due_id = 0;
    if (!server->holders)
        server->kept = jmk_log_oldest(&server->log);
    set_backlog(server, session);
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

static struct jmk_mark mark_of(const struct jmk_server *server, uint64_t id) {
    return (struct jmk_mark){id, jmk_log_seek(&server->log, server->floor, id)};
}

/*
 * Set floor and kept, and return the oldest offset that must stay. History is for clients that come
 * later, so a session that is reading it needs none before its own place. Under log_lock.
 */
static uint64_t update_floor(struct jmk_server *server, const struct needs *needs) {
    uint64_t stays, history;

    server->holders = needs->lowest != UINT64_MAX;
    if (!server->holders)
        return UINT64_MAX;
    server->floor = mark_of(server, needs->lowest);
    stays = server->floor.offset;
    if (needs->lowest_live != UINT64_MAX) {
        history = history_from(server, mark_of(server, needs->lowest_live));
        if (history < stays)
            stays = history;
    }
    server->kept = jmk_log_find(&server->log, server->kept, stays);
    return stays;
}

static uint64_t floor_id(const struct jmk_server *server) {
    return server->holders ? server->floor.id : UINT64_MAX;
}

static struct needs survey(struct jmk_server *server) {
    struct needs needs = {UINT64_MAX, UINT64_MAX, UINT64_MAX, false};

    for (uint32_t i = 0; i < server->live_count; i++) {
        struct jmk_session *session = server->live[i];
        uint64_t last;

        if (session->state == JMK_SKIPPING) {
            needs.skipping = true;
            continue;
        }
        catch_up(server, session);
        server->catching_up = server->catching_up || session->backlog;
        if (session->acked_id + 1 < needs.lowest)
            needs.lowest = session->acked_id + 1;
        if (!session->replaying && session->acked_id + 1 < needs.lowest_live)
            needs.lowest_live = session->acked_id + 1;
        last = last_admitted(server, session);
        if (last < needs.admit_id)
            needs.admit_id = last;
    }
    return needs;
}

void jmk_admit_update(struct jmk_server *server) {
    uint64_t floor = floor_id(server), admit_offset, id_before, offset_before;
    struct needs needs;

    if (!server->stale)
        return;
    server->stale = server->catching_up = false;
    pthread_mutex_lock(&server->log_lock);
    needs = survey(server);
    if (server->outrun && server->log.write.id - 1 < needs.admit_id)
        needs.admit_id = server->log.write.id - 1;
    admit_offset = update_floor(server, &needs);
    if (server->holders)
        admit_offset += server->log.size;
    id_before = atomic_exchange(&server->admit_id, needs.admit_id);
    offset_before = atomic_exchange(&server->admit_offset, admit_offset);
    pthread_mutex_unlock(&server->log_lock);
    /* One that outruns all, or waits behind a skip, depends on more than the slowest client. */
    if (server->outrun || needs.skipping || floor_id(server) != floor ||
        id_before != needs.admit_id || offset_before != admit_offset)
        jmk_server_progress(server);
}
