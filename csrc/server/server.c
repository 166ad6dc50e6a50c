/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The server: its making and its end, clients coming, events, figures
 *
 * Everything that the control plane does between publishes. It is called from Python, takes the
 * pump lock for as long as a few assignments need, and leaves the work to the pump.
 *
 * A client comes in two steps. attach puts its cursors into the log, under both locks, so that from
 * then on nothing it needs is given up; its sends are held. Python then sends the welcome with the
 * first id, and release lets the sends begin: the welcome is always the first packet. One that ends
 * in between is told so behind its welcome.
 *
 * A key is generation << 32 | slot. Events from epoll carry keys, never pointers, so one that is
 * late finds nobody.
 */
#include "server/server.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "common/os.h"

#define MAX_PACKET 131072u   /* a single frame up to this goes whole */
#define LEAST_PACKET 512u    /* what a peer must be able to take */

/* ---- making ---- */

static int open_descriptors(struct jmk_server *server) {
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = JMK_WAKE_KEY};

    server->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (server->epoll_fd < 0)
        return -errno;
    server->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (server->wake_fd < 0)
        return -errno;
    server->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (server->event_fd < 0)
        return -errno;
    if (epoll_ctl(server->epoll_fd, EPOLL_CTL_ADD, server->wake_fd, &event) < 0)
        return -errno;
    return 0;
}

/* The thread takes no signals: they are for threads that can run handlers. */
static int start_thread(struct jmk_server *server) {
    sigset_t all, before;
    int error;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    error = pthread_create(&server->thread, NULL, jmk_pump_thread, server);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    server->running = error == 0;
    if (!error)
        pthread_setname_np(server->thread, "jumiks pump");
    return -error;
}

int jmk_server_new(jmk_server **out, const struct jmk_config *config) {
    struct jmk_server *server = calloc(1, sizeof *server);
    int error;

    if (!server)
        return -ENOMEM;
    server->process = jmk_process();
    server->config = *config;
    server->epoll_fd = server->wake_fd = server->event_fd = server->log.fd = -1;
    pthread_mutex_init(&server->log_lock, NULL);
    pthread_mutex_init(&server->pump_lock, NULL);
    atomic_init(&server->admit_id, UINT64_MAX);
    atomic_init(&server->admit_offset, UINT64_MAX);
    atomic_init(&server->close_at, INT64_MAX);
    error = jmk_log_init(&server->log, config->log_size);
    if (!error)
        error = open_descriptors(server);
    if (!error)
        error = start_thread(server);
    if (error) {
        jmk_server_free(server);
        return error;
    }
    *out = server;
    return 0;
}

jmk_server *jmk_server_make(const struct jmk_config *config, int *error) {
    jmk_server *server = NULL;

    *error = jmk_server_new(&server, config);
    return server;
}

/* In a child the log is not mapped, the locks may be held, and connections are the parent's. */
static void free_parts(struct jmk_server *server, bool ours) {
    for (uint32_t i = 0; i < server->slot_count; i++) {
        if (server->slots[i]) {
            if (!ours)
                server->slots[i]->page = NULL;
            jmk_session_close(server->slots[i]);
        }
        free(server->slots[i]);
    }
    free(server->slots);
    free(server->live);
    free(server->ending);
    free(server->unread);
    jmk_close_fd(&server->epoll_fd);
    jmk_close_fd(&server->wake_fd);
    jmk_close_fd(&server->event_fd);
    if (!ours)
        server->log.page = NULL;
    jmk_log_deinit(&server->log);
    if (ours) {
        pthread_mutex_destroy(&server->log_lock);
        pthread_mutex_destroy(&server->pump_lock);
    }
    free(server);
}

void jmk_server_leave(struct jmk_server *server) {
    if (atomic_exchange(&server->left, 1))
        free_parts(server, true);
}

jmk_server *jmk_server_free(jmk_server *server) {
    bool ours;

    if (!server)
        return NULL;
    ours = jmk_server_usable(server) == 0;
    if (ours && server->running) {
        jmk_server_close(server, 0);
        if (!atomic_load(&server->finished)) {
            pthread_detach(server->thread);
            jmk_server_leave(server);
            return NULL;
        }
        pthread_join(server->thread, NULL); /* it has nothing more to do */
    }
    free_parts(server, ours);
    return NULL;
}

/* ---- closing ---- */

int jmk_server_close(jmk_server *server, int64_t linger) {
    int64_t at = jmk_deadline(linger), before;
    int error = jmk_server_usable(server);

    if (error)
        return error;
    before = atomic_load(&server->close_at);
    while (at < before && !atomic_compare_exchange_weak(&server->close_at, &before, at))
        ;
    pthread_mutex_lock(&server->log_lock);
    atomic_store(&server->closing, 1);
    pthread_mutex_unlock(&server->log_lock);
    jmk_server_wake(server);
    jmk_progress(server);
    return 0;
}

int jmk_server_join(jmk_server *server, int64_t timeout) {
    int64_t deadline = jmk_deadline(timeout);
    int error = jmk_server_usable(server);

    if (error)
        return error;
    atomic_fetch_add(&server->waiters, 1);
    while (!error) {
        unsigned seen = atomic_load(&server->progress);

        if (atomic_load(&server->finished))
            break;
        error = jmk_now() >= deadline ? JMK_E_TIMEOUT
                                      : jmk_futex_wait(&server->progress, seen, deadline);
    }
    atomic_fetch_sub(&server->waiters, 1);
    return error;
}

/* ---- clients ---- */

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
    *max_packet = limit < LEAST_PACKET ? LEAST_PACKET : limit;
    return 0;
}

struct jmk_session *jmk_server_find(struct jmk_server *server, uint64_t key) {
    uint32_t slot = (uint32_t)key;

    if (slot >= server->slot_count || !server->slots[slot] || server->slots[slot]->key != key)
        return NULL;
    return server->slots[slot];
}

void jmk_server_forget(struct jmk_server *server, struct jmk_session *session) {
    server->slots[(uint32_t)session->key] = NULL;
    free(session);
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
static int take_slot(struct jmk_server *server, uint32_t *slot) {
    for (*slot = 0; *slot < server->slot_count; ++*slot) {
        if (!server->slots[*slot])
            return 0;
    }
    return grow(server);
}

/*
 * The oldest frame for a client that asks for it: all that is promised, and of what is there beyond
 * that no more than leaves it room before the publisher needs what it reads first.
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

/* *left_out is how many of the messages kept it does not get, though it asked for the oldest. */
static int enter(struct jmk_server *server, struct jmk_session *session, uint64_t start,
                 uint32_t *left_out) {
    struct jmk_mark place;
    int error;

    pthread_mutex_lock(&server->log_lock);
    error = find_start(server, start, &place);
    if (!error && start != 0 && start < JMK_FIRST_ID)
        *left_out = (uint32_t)(place.id - jmk_log_oldest(&server->log).id);
    if (!error)
        jmk_pump_enter(server, session, place);
    pthread_mutex_unlock(&server->log_lock);
    return error;
}

/* All that hold a descriptor, and what the kernel keeps for it. */
static uint32_t places_taken(const struct jmk_server *server) {
    return server->live_count + server->ending_count + server->unread_count;
}

static int attach(struct jmk_server *server, struct jmk_session *session, uint64_t start,
                  uint32_t *left_out) {
    struct epoll_event event = {.events = session->watched};
    uint32_t slot;
    int error;

    if (atomic_load(&server->closing))
        return JMK_E_CLOSED;
    if (places_taken(server) >= server->config.max_clients)
        return JMK_E_NO_SLOT;
    error = take_slot(server, &slot);
    if (error)
        return error;
    session->key = (uint64_t)++server->attached << 32 | slot;
    event.data.u64 = session->key;
    if (epoll_ctl(server->epoll_fd, EPOLL_CTL_ADD, session->fd, &event) < 0)
        return -errno;
    error = enter(server, session, start, left_out);
    if (error) {
        epoll_ctl(server->epoll_fd, EPOLL_CTL_DEL, session->fd, NULL);
        return error;
    }
    server->slots[slot] = session;
    session->index = server->live_count;
    server->live[server->live_count++] = session;
    server->shared_count += session->delivery->poll_acks != NULL;
    return 0;
}

int jmk_server_log_fd(const jmk_server *server) {
    return server->log.shareable ? server->log.fd : -1;
}

static struct jmk_session *new_session(int fd, uint32_t mode, uint32_t max_packet) {
    struct jmk_session *session = calloc(1, sizeof *session);

    if (!session)
        return NULL;
    session->fd = fd;
    session->guard = jmk_guard_of(fd);
    session->mode = (enum jmk_mode)mode;
    session->delivery = mode == JMK_SHARED ? &jmk_send_shared : &jmk_send_packets;
    session->max_packet = max_packet;
    session->watched = EPOLLIN | EPOLLRDHUP;
    session->account.since = jmk_now();
    return session;
}

int jmk_server_attach(jmk_server *server, int fd, uint32_t mode, uint32_t max_packet,
                      uint64_t start, struct jmk_attached *out) {
    JMK_CLEANUP(jmk_close_fd) int cursor_fd = -1;
    struct jmk_session *session;
    uint32_t left_out = 0;
    int error = jmk_server_usable(server);

    if (error)
        return error;
    session = new_session(fd, mode, max_packet);
    if (!session)
        return -ENOMEM;
    if (mode == JMK_SHARED)
        error = server->log.shareable ? jmk_send_shared_open(session, &cursor_fd) : -EOPNOTSUPP;
    if (!error) {
        jmk_pump_lock(server);
        error = attach(server, session, start, &left_out);
        if (!error)
            *out = (struct jmk_attached){
                session->key, session->sent_id + 1, session->offset, max_packet, -1, left_out};
        jmk_pump_unlock(server);
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

/* An ack that came already is one of a message that it did not get. */
static void send_packets(struct jmk_server *server, struct jmk_session *session) {
    if (session->acked_id != session->first_id - 1) {
        jmk_pump_end(server, session, JMK_R_PROTOCOL, 0);
        return;
    }
    server->shared_count--;
    session->mode = JMK_FRAMED;
    session->delivery = &jmk_send_packets;
    jmk_session_drop_page(session);
}

int jmk_server_send_packets(jmk_server *server, uint64_t key) {
    struct jmk_session *session;
    int error = jmk_server_usable(server);

    if (error)
        return error;
    jmk_pump_lock(server);
    session = jmk_server_find(server, key);
    if (session && session->state == JMK_HELD && session->mode == JMK_SHARED)
        send_packets(server, session);
    else
        error = JMK_E_GONE;
    jmk_pump_unlock(server);
    return error;
}

int jmk_server_release(jmk_server *server, uint64_t key) {
    struct jmk_session *session;
    int error = jmk_server_usable(server);

    if (error)
        return error;
    jmk_pump_lock(server);
    session = jmk_server_find(server, key);
    if (session && session->state == JMK_HELD) {
        session->state = JMK_LIVE;
        jmk_pump_send(server);
        jmk_pump_admit(server);
    } else {
        if (session && session->state == JMK_PARTING)
            jmk_pump_part(server, session);
        error = JMK_E_GONE;
    }
    jmk_pump_unlock(server);
    jmk_progress(server);
    if (atomic_load(&server->closing))
        jmk_server_wake(server); /* its goodbye waited for this */
    return error;
}

int jmk_server_disconnect(jmk_server *server, uint64_t key, uint32_t reason) {
    struct jmk_session *session;
    int error = jmk_server_usable(server);

    if (error)
        return error;
    jmk_pump_lock(server);
    session = jmk_server_find(server, key);
    if (session && session->state < JMK_PARTING) {
        jmk_pump_end(server, session, (enum jmk_reason)reason, 0);
        jmk_pump_admit(server);
    } else {
        if (session && session->state == JMK_PARTING && reason == JMK_R_LEFT)
            jmk_pump_drop(server, session); /* its welcome will not come */
        error = JMK_E_GONE;
    }
    jmk_pump_unlock(server);
    return error;
}

/* ---- events ---- */

int jmk_server_event_fd(const jmk_server *server) {
    return server->event_fd;
}

/* The first of its events, in the order in which they came about. */
static enum jmk_event_kind first_of(const struct jmk_session *session) {
    if (session->events & 1u << JMK_EVENT_SKIPPED)
        return JMK_EVENT_SKIPPED;
    return session->events & 1u << JMK_EVENT_GONE ? JMK_EVENT_GONE : JMK_EVENT_CLOSED;
}

/* Take one event off session; true if it has no more. */
static bool take_event(struct jmk_session *session, struct jmk_event *out) {
    *out = (struct jmk_event){.kind = first_of(session), .account = session->account};
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
        jmk_pump_account(server, session);
    if (take_event(session, out)) {
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
    jmk_pump_lock(server);
    error = next_event(server, out);
    jmk_pump_unlock(server);
    return error;
}

/* ---- figures ---- */

int jmk_server_accounts(jmk_server *server, struct jmk_account *out, size_t capacity,
                        size_t *count) {
    int error = jmk_server_usable(server);

    if (error)
        return error;
    jmk_pump_lock(server);
    jmk_pump_round(server); /* acks that have come and were not read yet count */
    *count = server->live_count;
    for (uint32_t i = 0; i < server->live_count && i < capacity; i++) {
        jmk_pump_account(server, server->live[i]);
        out[i] = server->live[i]->account;
    }
    jmk_pump_unlock(server);
    return 0;
}

int jmk_server_account(jmk_server *server, uint64_t key, struct jmk_account *out) {
    struct jmk_session *session;
    int error = jmk_server_usable(server);

    if (error)
        return error;
    jmk_pump_lock(server);
    session = jmk_server_find(server, key);
    if (session && session->account.reason == JMK_R_NONE)
        jmk_pump_account(server, session);
    if (session)
        *out = session->account;
    jmk_pump_unlock(server);
    return session ? 0 : JMK_E_GONE;
}

int jmk_server_ids(const jmk_server *server, uint64_t *oldest_id, uint64_t *next_id) {
    int error = jmk_server_usable(server);

    if (error)
        return error;
    *oldest_id = atomic_load(&server->log.page->oldest_id);
    *next_id = jmk_log_end(&server->log).id;
    return 0;
}

static void count_sessions(const struct jmk_server *server, struct jmk_stats *out) {
    *out = server->gone;
    out->clients = server->live_count;
    for (uint32_t i = 0; i < server->live_count; i++) {
        const struct jmk_account *account = &server->live[i]->account;
        out->delivered += account->messages;
        out->delivered_bytes += account->bytes;
        out->packets += account->packets;
        out->skipped += account->skipped;
        out->kernel_bytes += jmk_session_unread(server->live[i]);
    }
    out->unread = server->unread_count;
    for (uint32_t i = 0; i < server->unread_count; i++)
        out->kernel_bytes += jmk_session_unread(server->unread[i]);
}

int jmk_server_stats(jmk_server *server, struct jmk_stats *out) {
    int error = jmk_server_usable(server);

    if (error)
        return error;
    jmk_pump_lock(server);
    jmk_pump_round(server); /* likewise */
    pthread_mutex_lock(&server->log_lock);
    count_sessions(server, out);
    out->oldest_id = atomic_load(&server->log.page->oldest_id);
    out->next_id = server->log.write.id;
    out->log_size = server->log.size;
    out->log_used = server->log.write.offset - atomic_load(&server->log.page->tail);
    out->log_held = server->holders ? server->log.write.offset - server->floor.offset : 0;
    out->published = server->log.write.id - JMK_FIRST_ID;
    out->published_bytes = server->published_bytes;
    out->inline_rounds = atomic_load(&server->inline_rounds);
    out->rounds = atomic_load(&server->rounds) + out->inline_rounds;
    out->waits = atomic_load(&server->waits);
    pthread_mutex_unlock(&server->log_lock);
    jmk_pump_unlock(server);
    return 0;
}
