/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The state of a server: its locks, its sessions by key, and waking whoever waits
 *
 * state.h says what the locks cover, and why no wake-up is lost.
 *
 * A key is generation << 32 | slot. Events from epoll carry keys, never pointers, so one that is
 * late finds no session.
 */
#include "server/state.h"

#include <stdlib.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "common/os.h"
#include "common/point.h"

int jmk_server_usable(const struct jmk_server *server) {
    return server->process == jmk_process() ? 0 : JMK_E_FORKED;
}

void jmk_server_progress(struct jmk_server *server) {
    atomic_fetch_add(&server->progress, 1);
    JMK_POINT(JMK_AT_PROGRESS);
    if (atomic_load(&server->waiters))
        jmk_futex_wake_all(&server->progress);
}

/* A write to an eventfd fails only when the counter is full, and then it is readable already. */
static void signal_fd(int fd) {
    uint64_t one = 1;
    ssize_t done = write(fd, &one, sizeof one);

    (void)done;
}

void jmk_server_wake(struct jmk_server *server) {
    signal_fd(server->wake_fd);
}

void jmk_server_notify(struct jmk_server *server) {
    signal_fd(server->event_fd);
}

/* ---- the lock of the pump ---- */

void jmk_server_lock(struct jmk_server *server) {
    pthread_mutex_lock(&server->pump_lock);
}

bool jmk_server_try_lock(struct jmk_server *server) {
    jmk_fence();
    return pthread_mutex_trylock(&server->pump_lock) == 0;
}

bool jmk_server_behind(const struct jmk_server *server) {
    return jmk_log_end(&server->log).offset != atomic_load(&server->pumped);
}

void jmk_server_unlock(struct jmk_server *server) {
    pthread_mutex_unlock(&server->pump_lock);
    JMK_POINT(JMK_AT_UNLOCKED);
    jmk_fence();
    if (atomic_load(&server->contended) && atomic_exchange(&server->contended, 0))
        jmk_server_progress(server);
    if (atomic_load(&server->parked) && jmk_server_behind(server) &&
        atomic_exchange(&server->parked, 0))
        jmk_server_wake(server);
}

/* ---- sessions ---- */

struct jmk_session *jmk_server_find(const struct jmk_server *server, uint64_t key) {
    uint32_t slot = (uint32_t)key;

    if (slot >= server->slot_count || !server->slots[slot] || server->slots[slot]->key != key)
        return NULL;
    return server->slots[slot];
}

int jmk_server_lock_session(struct jmk_server *server, uint64_t key, struct jmk_session **session) {
    int error = jmk_server_usable(server);

    if (error)
        return error;
    jmk_server_lock(server);
    *session = jmk_server_find(server, key);
    return 0;
}

void jmk_server_forget(struct jmk_server *server, struct jmk_session *session) {
    server->slots[(uint32_t)session->key] = NULL;
    free(session);
}

void jmk_server_watch(const struct jmk_server *server, struct jmk_session *session,
                      uint32_t events) {
    struct epoll_event event = {.events = events, .data.u64 = session->key};

    if (session->watched == events)
        return;
    epoll_ctl(server->epoll_fd, EPOLL_CTL_MOD, session->fd, &event);
    session->watched = events;
}
