/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The client: receiving, acking, closing
 *
 * What is the same for both deliveries; receive_packets.c and receive_shared.c have the rest, and are
 * called through a table of functions. A batch is what one receive hands out. What the user has
 * handled is acked by the next receive, at the latest before it waits, or by hand. With acks_by_hand a
 * receive sends only again what the socket refused of those.
 *
 * One thread receives; `busy` makes sure of it. Any thread may close: shutdown wakes a wait.
 *
 * Once the user was told of an end, the connection is shut down: a server whose writes block must not
 * stand still for as long as the user keeps the client. That is not earlier, as what was received
 * before is acked first.
 */
#include "client/connection.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <unistd.h>

#include "common/os.h"

#define LEAST_OWED 16384 /* bytes: a quarter of the smallest log */

/* ---- making and closing ---- */

int jmk_client_new(jmk_client **out, int fd, const struct jmk_client_config *config) {
    struct jmk_client *client = calloc(1, sizeof *client);
    bool shared = config->delivery == JMK_SHARED;
    int error;

    if (!client)
        return -ENOMEM;
    client->process = jmk_process();
    client->fd = client->server_fd = -1;
    client->config = *config;
    client->guard = (enum jmk_guard)config->guard;
    client->next_id = config->first_id;
    if (config->first_id) {
        atomic_init(&client->last_id, config->first_id - 1);
        atomic_init(&client->acked_id, config->first_id - 1);
        client->by_hand = config->first_id - 1;
    }
    client->ops = shared ? &jmk_receive_shared : &jmk_receive_packets;
    error = shared ? jmk_receive_shared_init(client) : jmk_receive_packets_init(client);
    if (!error)
        error = jmk_connection_limit_reads(fd);
    if (error) {
        jmk_client_free(client);
        return error;
    }
    client->fd = fd;
    *out = client;
    return 0;
}

jmk_client *jmk_client_make(int fd, const struct jmk_client_config *config, int *error) {
    enum jmk_guard guard = (enum jmk_guard)config->guard;
    jmk_client *client = NULL;

    *error = jmk_client_new(&client, fd, config);
    if (*error) {
        jmk_connection_shut_down(fd);
        jmk_guard_close(guard, &fd);
    }
    return client;
}

void jmk_client_watch(jmk_client *client, int pidfd) {
    client->server_fd = pidfd;
}

int jmk_client_server_fd(const jmk_client *client) {
    return client->server_fd;
}

static int usable(const struct jmk_client *client) {
    return client->process == jmk_process() ? 0 : JMK_E_FORKED;
}

int jmk_client_close(jmk_client *client) {
    int error = usable(client);

    if (error)
        return error;
    if (atomic_exchange(&client->closed, true))
        return 0;
    jmk_connection_shut_down(client->fd);
    if (client->ops->rouse)
        client->ops->rouse(client);
    return 0;
}

jmk_client *jmk_client_free(jmk_client *client) {
    if (!client)
        return NULL;
    jmk_client_close(client);
    jmk_guard_close(client->guard, &client->fd);
    jmk_close_fd(&client->server_fd);
    client->ops->free(client);
    free(client);
    return NULL;
}

/* ---- acks ---- */

/* 0 if all up to handled is acked. */
static int ack(struct jmk_client *client, uint64_t handled) {
    return handled <= atomic_load(&client->acked_id) ? 0 : client->ops->send_ack(client, handled);
}

/* Until the socket takes all acks, or the deadline has passed. */
static void ack_until(struct jmk_client *client, uint64_t handled, int64_t deadline) {
    while (ack(client, handled) != 0 && !atomic_load(&client->closed)) {
        struct pollfd poll_fd = {.fd = client->fd, .events = POLLOUT};
        int64_t left = (deadline - jmk_now()) / 1000000;

        if (left <= 0 || poll(&poll_fd, 1, left < 60000 ? (int)left : 60000) < 0)
            return;
    }
}

int jmk_client_ack(jmk_client *client, uint64_t handled, int64_t timeout) {
    int error = usable(client);

    if (error)
        return error;
    if (atomic_load(&client->closed))
        return JMK_E_CLOSED;
    if (handled > atomic_load(&client->last_id))
        return JMK_E_ACK;
    if (atomic_exchange(&client->busy, true))
        return JMK_E_BUSY;
    if (handled > client->by_hand)
        client->by_hand = handled;
    ack_until(client, handled, jmk_deadline(timeout));
    atomic_store(&client->busy, false);
    return 0;
}

/* ---- receiving ---- */

/* All that came before the end was handed out. What is handled of it is acked now or never. */
static int report_end(struct jmk_client *client, uint64_t handled) {
    ack(client, handled);
    jmk_connection_shut_down(client->fd);
    return (int)client->state;
}

/* Note what is handled, and ack it if that is due. */
static int begin_receive(struct jmk_client *client, uint64_t handled, size_t most,
                         struct jmk_batch *batch) {
    memset(batch, 0, sizeof *batch);
    if (handled > atomic_load(&client->last_id))
        return JMK_E_ACK;
    if (client->config.acks_by_hand)
        handled = client->by_hand;
    client->handled = handled;
    client->most = most && most < JMK_MAX_ITEMS ? most : JMK_MAX_ITEMS;
    if (handled > atomic_load(&client->acked_id) && client->ops->ack_is_due(client, handled))
        client->ops->send_ack(client, handled);
    return 0;
}

static int receive(struct jmk_client *client, int64_t timeout, struct jmk_batch *batch) {
    int64_t deadline = timeout < 0 ? INT64_MAX : jmk_deadline(timeout), began = 0;
    uint64_t handled = client->handled;
    int error = 0;

    for (bool again = false; !error; again = true) {
        client->ops->index_batch(client, batch);
        if (batch->count)
            return 0;
        if (atomic_load(&client->closed))
            return JMK_E_CLOSED;
        if (client->state != JMK_OPEN)
            return report_end(client, handled);
        if (again && jmk_connection_is_fruitless(&began, deadline))
            return -EINTR;
        error = client->ops->wait_for_more(client, handled, deadline);
    }
    return error;
}

/* Hand out a batch. Without a timeout it is of what is there, and looks at no packets. */
static int hand_out(jmk_client *client, uint64_t handled, const int64_t *timeout, size_t most,
                    struct jmk_batch *out) {
    int error = usable(client);

    if (error)
        return error;
    if (atomic_exchange(&client->busy, true))
        return JMK_E_BUSY;
    error = begin_receive(client, handled, most, out);
    if (!error && timeout)
        error = receive(client, *timeout, out);
    else if (!error)
        client->ops->index_batch(client, out);
    if (!error && !out->count)
        error = JMK_E_TIMEOUT;
    atomic_store(&client->busy, false);
    return error;
}

int jmk_client_receive_some(jmk_client *client, uint64_t handled, int64_t timeout, size_t most,
                            struct jmk_batch *out) {
    return hand_out(client, handled, &timeout, most, out);
}

int jmk_client_receive(jmk_client *client, uint64_t handled, int64_t timeout,
                       struct jmk_batch *out) {
    return jmk_client_receive_some(client, handled, timeout, JMK_MAX_ITEMS, out);
}

int jmk_client_take(jmk_client *client, uint64_t handled, size_t most, struct jmk_batch *out) {
    return hand_out(client, handled, NULL, most, out);
}

/*
 * May the server be waiting for acks of what was handed out? It may if that is a quarter of max_lag, or
 * much memory. Only a receive sends them, so a user that polls must come back. A batch in a shared log is a
 * small part of it.
 */
static bool holds_up_server(const struct jmk_client *client, uint64_t out) {
    uint64_t acked = atomic_load(&client->acked_id), quarter = client->config.max_lag / 4;
    uint64_t bytes = client->config.max_message;

    if (client->config.acks_by_hand || out <= acked)
        return false;
    if (bytes < LEAST_OWED)
        bytes = LEAST_OWED;
    return (client->config.max_lag && out - acked >= (quarter ? quarter : 1)) ||
           (client->config.delivery != JMK_SHARED && client->packets.unacked_bytes > bytes);
}

int jmk_client_look_ahead(jmk_client *client, uint64_t out, int waited) {
    enum jmk_outlook found = JMK_HAS_MORE;

    if (usable(client) || atomic_exchange(&client->busy, true))
        return -EBUSY;
    if (!atomic_load(&client->closed) && client->state == JMK_OPEN &&
        (waited || !holds_up_server(client, out)))
        found = client->ops->look_ahead(client, waited != 0);
    atomic_store(&client->busy, false);
    return (int)found;
}

int jmk_client_batch_is_intact(const jmk_client *client) {
    return !client->ops->batch_is_intact || client->ops->batch_is_intact(client);
}

void jmk_client_drop_batch(jmk_client *client) {
    if (client->ops->drop_batch)
        client->ops->drop_batch(client);
}

/* ---- asking ---- */

jmk_held *jmk_client_hold_batch(jmk_client *client) {
    return client->ops->hold_batch(client);
}

void jmk_client_goodbye(const jmk_client *client, struct jmk_goodbye *out) {
    *out = client->goodbye;
}

void jmk_client_fault(const jmk_client *client, struct jmk_fault *out) {
    *out = client->fault;
}

uint64_t jmk_client_last_id(const jmk_client *client) {
    return atomic_load(&client->last_id);
}

uint64_t jmk_client_published_id(const jmk_client *client) {
    return client->log_page ? atomic_load(&client->log_page->next_id) - 1 : 0;
}

uint64_t jmk_client_acked_id(const jmk_client *client) {
    return atomic_load(&client->acked_id);
}
