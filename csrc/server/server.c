/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The server: its making and its end, figures
 *
 * It is called from Python. It holds the pump lock for a few assignments and leaves the work to the
 * pump, except for figures: they are preceded by a round of the pump, so that they are of now.
 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include "common/os.h"
#include "common/point.h"
#include "server/ends.h"
#include "server/pump.h"

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

/* Called once by the owner and once by the thread; the second call frees the server. */
static void leave(struct jmk_server *server) {
    if (atomic_exchange(&server->left, 1))
        free_parts(server, true);
}

static void *run(void *server) {
    jmk_pump_run(server);
    leave(server);
    return NULL;
}

/*
 * The thread takes no signals: they are for threads that can run handlers. It is waited for: a client
 * may be let in at once, and from then on the thread's death must be seen.
 */
static int start_thread(struct jmk_server *server) {
    sigset_t all, before;
    int error;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    error = pthread_create(&server->thread, NULL, run, server);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    server->running = error == 0;
    if (error)
        return -error;
    pthread_setname_np(server->thread, "jumiks pump");
    while (!atomic_load(&server->begun))
        jmk_futex_wait(&server->begun, 0, INT64_MAX);
    return 0;
}

int jmk_server_new(jmk_server **out, const struct jmk_config *config) {
    struct jmk_server *server = calloc(1, sizeof *server);
    int error;

    if (!server)
        return -ENOMEM;
    server->process = jmk_process();
    server->config = *config;
    if (!config->first_id)
        server->config.first_id = JMK_FIRST_ID;
    server->epoll_fd = server->wake_fd = server->event_fd = server->log.fd = -1;
    pthread_mutex_init(&server->log_lock, NULL);
    pthread_mutex_init(&server->pump_lock, NULL);
    atomic_init(&server->admit_id, UINT64_MAX);
    atomic_init(&server->admit_offset, UINT64_MAX);
    atomic_init(&server->close_at, INT64_MAX);
    error = jmk_log_init(&server->log, config->log_size, server->config.first_id);
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

jmk_server *jmk_server_free(jmk_server *server) {
    bool ours;

    if (!server)
        return NULL;
    ours = jmk_server_usable(server) == 0;
    if (ours && server->running) {
        jmk_server_close(server, 0);
        if (!atomic_load(&server->finished)) {
            pthread_detach(server->thread);
            leave(server);
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
    JMK_POINT(JMK_AT_CLOSING);
    jmk_server_wake(server);
    jmk_server_progress(server);
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

        JMK_POINT(JMK_AT_WAITS);
        if (atomic_load(&server->finished))
            break;
        error = jmk_now() >= deadline ? JMK_E_TIMEOUT
                                      : jmk_futex_wait(&server->progress, seen, deadline);
    }
    atomic_fetch_sub(&server->waiters, 1);
    return error;
}

/* ---- figures ---- */

int jmk_server_accounts(jmk_server *server, struct jmk_account *out, size_t capacity,
                        size_t *count) {
    int error = jmk_server_usable(server);

    if (error)
        return error;
    jmk_server_lock(server);
    jmk_pump_round(server); /* acks that have come and were not read yet count */
    *count = server->live_count;
    for (uint32_t i = 0; i < server->live_count && i < capacity; i++) {
        jmk_ends_account(server, server->live[i]);
        out[i] = server->live[i]->account;
    }
    jmk_server_unlock(server);
    return 0;
}

int jmk_server_account(jmk_server *server, uint64_t key, struct jmk_account *out) {
    struct jmk_session *session;
    int error = jmk_server_lock_session(server, key, &session);

    if (error)
        return error;
    if (session && session->account.reason == JMK_R_NONE)
        jmk_ends_account(server, session);
    if (session)
        *out = session->account;
    jmk_server_unlock(server);
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
        out->skipped += jmk_session_skipped(server->live[i], server->log.write.id);
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
    jmk_server_lock(server);
    jmk_pump_round(server); /* likewise */
    pthread_mutex_lock(&server->log_lock);
    count_sessions(server, out);
    out->oldest_id = atomic_load(&server->log.page->oldest_id);
    out->next_id = server->log.write.id;
    out->log_size = server->log.size;
    out->log_used = server->log.write.offset - atomic_load(&server->log.page->tail);
    out->log_held = server->holders ? server->log.write.offset - server->floor.offset : 0;
    out->published = server->log.write.id - server->config.first_id;
    out->published_bytes = server->published_bytes;
    out->inline_rounds = atomic_load(&server->inline_rounds);
    out->rounds = atomic_load(&server->rounds) + out->inline_rounds;
    out->waits = atomic_load(&server->waits);
    pthread_mutex_unlock(&server->log_lock);
    jmk_server_unlock(server);
    return 0;
}
