/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Clients that come, and clients that are sent away
 *
 * A client comes in two steps. attach puts its cursors into the log, under both locks, so that from
 * then on nothing it needs is given up; its sends are held. Python then sends the welcome with the
 * first id, and release lets the sends begin: the welcome is always the first packet. If a session ends
 * in between, its goodbye follows the welcome.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>

#include "common/os.h"
#include "server/admit.h"
#include "server/ends.h"
#include "server/pump.h"
#include "server/send.h"

#define MAX_PACKET 131072u /* a single frame up to this goes whole */

int jmk_socket_prepare(const jmk_server *server, int fd, uint32_t *max_packet) {
    int wanted = (int)server->config.send_buffer, real = 0;
    socklen_t size = sizeof real;
    uint32_t limit = MAX_PACKET;

    if (setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &wanted, sizeof wanted) < 0)
        return -errno;
    if (getsockopt(fd, SOL_SOCKET, SO_SNDBUF, &real, &size) < 0)
        return -errno;
    if ((uint32_t)real / 3 < limit)
        limit = (uint32_t)real / 3;
    if (*max_packet && *max_packet < limit)
        limit = *max_packet;
    *max_packet = limit < JMK_LEAST_PACKET ? JMK_LEAST_PACKET : limit;
    return 0;
}

static int resize(struct jmk_session ***list, uint32_t count) {
    struct jmk_session **larger = realloc(*list, count * sizeof **list);

    if (!larger)
        return -ENOMEM;
    *list = larger;
    return 0;
}

static int grow(struct jmk_server *server) {
    uint32_t count = server->slot_count ? 2 * server->slot_count : 8;

    if (resize(&server->slots, count) || resize(&server->live, count) ||
        resize(&server->ending, count) || resize(&server->unread, count))
        return -ENOMEM;
    for (uint32_t i = server->slot_count; i < count; i++)
        server->slots[i] = NULL;
    server->slot_count = count;
    return 0;
}

/* A free slot; the lists have room for as many sessions as there are slots. */
static int find_slot(struct jmk_server *server, uint32_t *slot) {
    for (*slot = 0; *slot < server->slot_count; ++*slot) {
        if (!server->slots[*slot])
            return 0;
    }
    return grow(server);
}

/*
 * Where a client begins that asks for the oldest frame. It gets all history that is promised, and half of
 * what is not: the other half is its head start before a publisher needs the space of its first frame.
 */
static struct jmk_mark start_of_history(const struct jmk_server *server, struct jmk_mark oldest) {
    uint64_t most = (server->log.size + server->config.keep_bytes) / 2;
    uint64_t end = server->log.write.offset;

    return end > most ? jmk_log_find(&server->log, oldest, end - most) : oldest;
}

/* Where a client that asks for start begins. Under log_lock. */
static int find_start(const struct jmk_server *server, uint64_t start, struct jmk_mark *place) {
    const struct jmk_log *log = &server->log;
    struct jmk_mark oldest = jmk_log_oldest(log);

    if (start > log->write.id)
        return JMK_E_START;
    if (start == 0)
        *place = log->write;
    else if (start < JMK_FIRST_ID && server->config.keep_bytes)
        *place = start_of_history(server, oldest);
    else if (start <= oldest.id)
        *place = oldest;
    else
        *place = (struct jmk_mark){start, jmk_log_seek(log, oldest, start)};
    return 0;
}

/* *left_out is the number of messages in the log before its start, if it asked for the oldest. */
static int place_session(struct jmk_server *server, struct jmk_session *session, uint64_t start,
                         uint32_t *left_out) {
    struct jmk_mark place;
    int error;

    pthread_mutex_lock(&server->log_lock);
    error = find_start(server, start, &place);
    if (!error && start != 0 && start < JMK_FIRST_ID)
        *left_out = (uint32_t)(place.id - jmk_log_oldest(&server->log).id);
    if (!error)
        jmk_admit_enter(server, session, place);
    pthread_mutex_unlock(&server->log_lock);
    return error;
}

static int attach(struct jmk_server *server, struct jmk_session *session, uint64_t start,
                  uint32_t *left_out) {
    struct epoll_event event = {.events = session->watched};
    uint32_t slot;
    int error;

    if (atomic_load(&server->closing))
        return JMK_E_CLOSED;
    /* All that hold a descriptor, and memory of the kernel with it. */
    if (server->live_count + server->ending_count + server->unread_count >=
        server->config.max_clients)
        return JMK_E_NO_SLOT;
    error = find_slot(server, &slot);
    if (error)
        return error;
    session->key = (uint64_t)++server->attached << 32 | slot;
    event.data.u64 = session->key;
    if (epoll_ctl(server->epoll_fd, EPOLL_CTL_ADD, session->fd, &event) < 0)
        return -errno;
    error = place_session(server, session, start, left_out);
    if (error) {
        epoll_ctl(server->epoll_fd, EPOLL_CTL_DEL, session->fd, NULL);
        return error;
    }
    server->slots[slot] = session;
    session->index = server->live_count;
    server->live[server->live_count++] = session;
    server->shared_count += session->ops->poll_acks != NULL;
    return 0;
}

int jmk_server_log_fd(const jmk_server *server) {
    return server->log.shareable ? server->log.fd : -1;
}

static struct jmk_session *new_session(int fd, uint32_t delivery, uint32_t max_packet) {
    struct jmk_session *session = calloc(1, sizeof *session);

    if (!session)
        return NULL;
    session->fd = fd;
    session->guard = jmk_guard_of(fd);
    session->delivery = (enum jmk_delivery)delivery;
    session->ops = delivery == JMK_SHARED ? &jmk_send_shared : &jmk_send_packets;
    session->max_packet = max_packet;
    session->watched = EPOLLIN | EPOLLRDHUP;
    session->account.since = jmk_now();
    return session;
}

int jmk_server_attach(jmk_server *server, int fd, uint32_t delivery, uint32_t max_packet,
                      uint64_t start, struct jmk_attached *out) {
    JMK_CLEANUP(jmk_close_fd) int cursor_fd = -1;
    struct jmk_session *session;
    uint32_t left_out = 0;
    int error = jmk_server_usable(server);

    if (error)
        return error;
    session = new_session(fd, delivery, max_packet);
    if (!session)
        return -ENOMEM;
    if (delivery == JMK_SHARED)
        error = server->log.shareable ? jmk_send_shared_open(session, &cursor_fd) : -EOPNOTSUPP;
    if (!error) {
        jmk_server_lock(server);
        error = attach(server, session, start, &left_out);
        if (!error)
            *out = (struct jmk_attached){
                session->key, session->sent_id + 1, session->offset, max_packet, -1, left_out};
        jmk_server_unlock(server);
    }
    if (error) {
        session->fd = -1; /* still the caller's */
        jmk_session_close(session);
        free(session);
        return error;
    }
    out->cursor_fd = jmk_take_fd(&cursor_fd);
    return 0;
}

/* An ack that has come already is of a message that was not sent. */
static void send_packets(struct jmk_server *server, struct jmk_session *session) {
    if (session->acked_id != session->first_id - 1) {
        jmk_ends_end(server, session, JMK_R_PROTOCOL, 0);
        return;
    }
    server->shared_count--;
    session->delivery = JMK_FRAMED;
    session->ops = &jmk_send_packets;
    jmk_session_drop_page(session);
}

int jmk_server_send_packets(jmk_server *server, uint64_t key) {
    struct jmk_session *session;
    int error = jmk_server_lock_session(server, key, &session);

    if (error)
        return error;
    if (session && session->state == JMK_HELD && session->delivery == JMK_SHARED)
        send_packets(server, session);
    else
        error = JMK_E_GONE;
    jmk_server_unlock(server);
    return error;
}

int jmk_server_release(jmk_server *server, uint64_t key) {
    struct jmk_session *session;
    int error = jmk_server_lock_session(server, key, &session);

    if (error)
        return error;
    if (session && session->state == JMK_HELD) {
        jmk_admit_begin(server, session);
        jmk_pump_send(server);
        jmk_admit_update(server);
    } else {
        if (session && session->state == JMK_PARTING)
            jmk_ends_part(server, session);
        error = JMK_E_GONE;
    }
    jmk_server_unlock(server);
    jmk_server_progress(server);
    if (atomic_load(&server->closing))
        jmk_server_wake(server); /* its goodbye waited for this */
    return error;
}

int jmk_server_disconnect(jmk_server *server, uint64_t key, uint32_t reason) {
    struct jmk_session *session;
    int error = jmk_server_lock_session(server, key, &session);

    if (error)
        return error;
    if (session && session->state < JMK_PARTING) {
        jmk_ends_end(server, session, (enum jmk_reason)reason, 0);
        jmk_admit_update(server);
    } else {
        if (session && session->state == JMK_PARTING && reason == JMK_R_LEFT)
            jmk_ends_drop(server, session); /* its welcome will not come */
        error = JMK_E_GONE;
    }
    jmk_server_unlock(server);
    return error;
}
