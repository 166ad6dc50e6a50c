/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Publishing: one message, a batch, a message written in place
 *
 * An append looks at the admission alone (state.h). Where that says no, the publisher has to wait:
 * lag.c.
 */
#include "common/os.h"
#include "common/point.h"
#include "server/pump.h"

#define STRIDE_MESSAGES 4096 /* a batch lets go of the lock at least this often */
#define INLINE_PACKETS 4 /* clients that get packets, which a publisher sends itself at most ... */
#define INLINE_SHARED 16 /* ... and clients of the shared log that it wakes */
#define INLINE_PAUSE 20000 /* ns between messages below which the thread does the sending */

/* ---- appending; under log_lock ---- */

static int admitted(const struct jmk_server *server, size_t size) {
    uint64_t end = server->log.write.offset + jmk_frame_length(size);

    if (size > server->config.max_message)
        return JMK_E_TOO_LARGE;
    if (atomic_load_explicit(&server->closing, memory_order_relaxed))
        return JMK_E_CLOSED;
    if (server->turn && server->turn != jmk_thread())
        return JMK_E_TURN;
    if (server->reserving)
        return JMK_E_MINE;
    if (server->log.write.id > atomic_load_explicit(&server->admit_id, memory_order_relaxed) ||
        end > atomic_load_explicit(&server->admit_offset, memory_order_relaxed))
        return JMK_E_FULL;
    return 0;
}

static void *open_frame(struct jmk_server *server, size_t size) {
    uint64_t limit = atomic_load_explicit(&server->admit_offset, memory_order_relaxed);

    return jmk_log_open(&server->log, (uint32_t)size,
                        limit == UINT64_MAX ? UINT64_MAX : limit - server->log.size);
}

static uint64_t append(struct jmk_server *server, const void *data, size_t size) {
    memcpy(open_frame(server, size), data, size);
    server->published_bytes += size;
    return jmk_log_seal(&server->log, (uint32_t)size);
}

int jmk_server_append(jmk_server *server, const void *data, size_t size, uint64_t *id) {
    int error = jmk_server_usable(server);

    if (error)
        return error;
    pthread_mutex_lock(&server->log_lock);
    error = admitted(server, size);
    if (!error) {
        *id = append(server, data, size);
        jmk_log_publish(&server->log);
    }
    pthread_mutex_unlock(&server->log_lock);
    return error;
}

/* Is it little to do, so that a publisher had better do it itself than wake the thread? Under pump_lock. */
static bool is_little(const struct jmk_server *server) {
    uint32_t shared = atomic_load(&server->shared_count);

    return shared <= INLINE_SHARED && server->live_count - shared <= INLINE_PACKETS;
}

void jmk_server_kick(jmk_server *server) {
    int64_t now, before;

    if (!atomic_load(&server->parked))
        return;
    JMK_POINT(JMK_AT_KICK);
    now = jmk_now();
    before = atomic_exchange_explicit(&server->last_inline, now, memory_order_relaxed);
    if (now - before < INLINE_PAUSE) {
        if (atomic_exchange(&server->parked, 0))
            jmk_server_wake(server);
        return;
    }
    if (!jmk_server_try_lock(server))
        return; /* the holder looks at the log's end once more */
    if (is_little(server))
        jmk_pump_inline(server);
    jmk_server_unlock(server); /* wakes the thread if anything is left */
}

/* The messages behind that need no more than to be written: as many as the admission takes, up to offset. */
static void append_run(struct jmk_server *server, const struct jmk_messages *messages, size_t *done,
                       size_t stop, uint64_t offset) {
    uint64_t limit = atomic_load_explicit(&server->admit_offset, memory_order_relaxed);
    uint64_t last = atomic_load_explicit(&server->admit_id, memory_order_relaxed);
    uint64_t next = server->log.write.id;

    if (last < next)
        return;
    if (last - next < stop - *done)
        stop = *done + (size_t)(last - next) + 1;
    server->published_bytes +=
        jmk_log_append_run(&server->log, messages, done, stop, limit < offset ? limit : offset);
}

/*
 * Part of a batch, as much as fits in one hold of the lock. The admission stays as it is meanwhile, or is
 * raised: so what it admits now goes in without another look.
 */
static int append_stride(struct jmk_server *server, const struct jmk_messages *messages,
                         size_t *done, uint64_t *first_id) {
    struct jmk_log *log = &server->log;
    size_t start = *done, left = messages->count - start;
    size_t stop = start + (left < STRIDE_MESSAGES ? left : STRIDE_MESSAGES);
    uint64_t offset;
    int error = 0;

    pthread_mutex_lock(&server->log_lock);
    offset = log->write.offset + JMK_LOG_STRIDE;
    while (*done < stop && log->write.offset < offset) {
        struct jmk_slice slice = jmk_message_at(messages, *done);
        uint64_t id;

        error = admitted(server, slice.size);
        if (error)
            break;
        id = append(server, slice.data, slice.size);
        if ((*done)++ == 0)
            *first_id = id;
        append_run(server, messages, done, stop, offset);
    }
    if (*done > start)
        jmk_log_publish(log);
    if (!server->turn && *done > 0 && *done < messages->count)
        server->turn = jmk_thread();
    pthread_mutex_unlock(&server->log_lock);
    return error;
}

/* All or none: a message that can never go in is found before the first one does. */
static int check_sizes(const struct jmk_server *server, const struct jmk_messages *messages) {
    size_t largest = messages->slices ? 0 : messages->size;

    for (size_t i = 0; messages->slices && i < messages->count; i++)
        largest = messages->slices[i].size > largest ? messages->slices[i].size : largest;
    return largest > server->config.max_message ? JMK_E_TOO_LARGE : 0;
}

static int append_messages(jmk_server *server, const struct jmk_messages *messages, size_t *done,
                           uint64_t *first_id) {
    int error = jmk_server_usable(server);

    if (!error && *done == 0)
        error = check_sizes(server, messages);
    while (!error && *done < messages->count) {
        error = append_stride(server, messages, done, first_id);
        jmk_server_kick(server);
    }
    if (!error)
        jmk_server_yield(server);
    return error;
}

int jmk_server_append_many(jmk_server *server, const struct jmk_slice *slices, size_t count,
                           size_t *done, uint64_t *first_id) {
    struct jmk_messages messages = {.slices = slices, .count = count};

    return append_messages(server, &messages, done, first_id);
}

void jmk_server_yield(jmk_server *server) {
    bool mine;

    if (jmk_server_usable(server))
        return;
    pthread_mutex_lock(&server->log_lock);
    mine = server->turn == jmk_thread() && !server->reserving;
    if (mine)
        server->turn = 0;
    pthread_mutex_unlock(&server->log_lock);
    if (mine)
        jmk_server_progress(server);
}

int jmk_server_reserve(jmk_server *server, size_t size, void **where) {
    int error = jmk_server_usable(server);

    if (error)
        return error;
    pthread_mutex_lock(&server->log_lock);
    error = admitted(server, size);
    if (!error) {
        *where = open_frame(server, size);
        error = jmk_log_lend(&server->log, where);
    }
    if (!error) {
        server->turn = jmk_thread();
        server->reserving = true;
        server->reserved = (uint32_t)size;
    }
    pthread_mutex_unlock(&server->log_lock);
    return error;
}

static int end_reservation(struct jmk_server *server, uint64_t *id) {
    int error = jmk_server_usable(server);

    if (error)
        return error;
    pthread_mutex_lock(&server->log_lock);
    if (!server->reserving)
        error = JMK_E_GONE;
    else if (id && atomic_load(&server->closing))
        error = JMK_E_CLOSED;
    else if (id) {
        *id = jmk_log_seal(&server->log, server->reserved);
        server->published_bytes += server->reserved;
        jmk_log_publish(&server->log);
    }
    server->reserving = false;
    server->turn = 0;
    pthread_mutex_unlock(&server->log_lock);
    jmk_server_progress(server);
    return error;
}

int jmk_server_take_back(jmk_server *server, void *where, size_t size, void **area,
                         size_t *length) {
    int error = jmk_server_usable(server);

    if (error)
        return error;
    pthread_mutex_lock(&server->log_lock);
    error = jmk_log_take_back(&server->log, where, size, area, length);
    pthread_mutex_unlock(&server->log_lock);
    return error;
}

int jmk_server_commit(jmk_server *server, uint64_t *id) {
    return end_reservation(server, id);
}

int jmk_server_discard(jmk_server *server) {
    return end_reservation(server, NULL);
}

/* ---- waiting until it went in ---- */

static int wait_until(jmk_server *server, size_t size, int64_t deadline,
                      struct jmk_account *holder) {
    int64_t left = deadline == INT64_MAX ? -1 : deadline - jmk_now();

    return jmk_server_wait_room(server, size, left < 0 && deadline != INT64_MAX ? 0 : left, holder,
                                NULL);
}

int jmk_server_publish_many(jmk_server *server, const struct jmk_messages *messages, size_t *done,
                            uint64_t *first_id, int64_t deadline, struct jmk_account *holder) {
    int error;

    do {
        error = append_messages(server, messages, done, first_id);
        if (error == JMK_E_FULL || error == JMK_E_TURN)
            error = wait_until(server, jmk_message_at(messages, *done).size, deadline, holder);
        else
            break;
    } while (!error);
    return error;
}

int jmk_server_reserve_waiting(jmk_server *server, size_t size, void **where, int64_t deadline,
                               struct jmk_account *holder) {
    int error;

    do {
        error = jmk_server_reserve(server, size, where);
        if (error == JMK_E_FULL || error == JMK_E_TURN)
            error = wait_until(server, size, deadline, holder);
        else
            break;
    } while (!error);
    return error;
}
