/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The client: receiving, acking, closing
 *
 * What is the same wherever messages come from; receive_packets.c and receive_shared.c are the two sources. A batch is
 * what one receive hands out. What the user has handled is acked by the next receive, at the latest
 * before it waits, or by hand.
 *
 * One thread receives; `busy` makes sure of it. Any thread may close: shutdown wakes a wait.
 *
 * A server that is dead while another process holds its sockets ends no stream, so we end it from
 * here: what is queued stays readable, and then comes the end. A wait in the read itself looks for
 * that each second; waits with a deadline poll the server's process along with the socket.
 *
 * A signal that comes right before a wait cannot end it, nor can one that another thread takes. So no
 * wait is longer than a second: it ends as if there had been one then. Nor is a receive that reads
 * packet after packet without a message in them: its deadline holds, and signals are handled, whatever
 * the server sends.
 *
 * An end, once it is told, shuts the connection down: a server whose writes block must not stand still for
 * as long as the user keeps the client. That is not earlier, as what was received before it is acked first.
 */
#include "client/client.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <unistd.h>

#include "common/os.h"

#define LONGEST_WAIT 1 /* s; then we look after the server, and the user after signals */
#define GRACE (JMK_SECOND / 200) /* for what is there already, behind the deadline */

/* ---- making and closing ---- */

static int limit_reads(int fd) {
    struct timeval limit = {.tv_sec = LONGEST_WAIT};

    return setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) < 0 ? -errno : 0;
}

int jmk_client_new(jmk_client **out, int fd, const struct jmk_client_config *config) {
    struct jmk_client *client = calloc(1, sizeof *client);
    bool shared = config->mode == JMK_SHARED;
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
    }
    client->source = shared ? &jmk_reader : &jmk_inbox;
    error = shared ? jmk_reader_init(client) : jmk_inbox_init(client);
    if (!error)
        error = limit_reads(fd);
    if (error) {
        jmk_client_free(client);
        return error;
    }
    client->fd = fd;
    *out = client;
    return 0;
}

/* End the connection, also for others who hold the descriptor, such as a forked child. */
static void hang_up(int fd) {
    shutdown(fd, SHUT_RDWR);
}

jmk_client *jmk_client_make(int fd, const struct jmk_client_config *config, int *error) {
    enum jmk_guard guard = (enum jmk_guard)config->guard;
    jmk_client *client = NULL;

    *error = jmk_client_new(&client, fd, config);
    if (*error) {
        hang_up(fd);
        jmk_guard_close(guard, &fd);
    }
    return client;
}

void jmk_client_watch(jmk_client *client, int pidfd) {
    client->server_fd = pidfd;
}

static int usable(const struct jmk_client *client) {
    return client->process == jmk_process() ? 0 : JMK_E_FORKED;
}

int jmk_client_close(jmk_client *client) {
    int error = usable(client);

    if (error)
        return error;
    if (!atomic_exchange(&client->closed, true))
        hang_up(client->fd);
    return 0;
}

jmk_client *jmk_client_free(jmk_client *client) {
    if (!client)
        return NULL;
    jmk_client_close(client);
    jmk_guard_close(client->guard, &client->fd);
    jmk_close_fd(&client->server_fd);
    client->source->free(client);
    free(client);
    return NULL;
}

/* ---- how it ends ---- */

void jmk_client_break(struct jmk_client *client, const char *text) {
    client->fault = text;
    client->state = JMK_BROKEN;
}

int jmk_client_guard(struct jmk_client *client, int flags) {
    int error = jmk_guard_check(&client->guard, client->fd, flags);

    if (error == JMK_E_PROTOCOL)
        jmk_client_break(client, "it sends descriptors that nobody asked for");
    return error;
}

bool jmk_client_end(struct jmk_client *client, const struct jmk_header *header,
                    const uint8_t *payload) {
    if (!jmk_bye_decode(payload, header->size, &client->goodbye))
        return false;
    client->state = JMK_ENDED;
    return true;
}

void jmk_client_end_or_empty(struct jmk_client *client) {
    struct pollfd poll_fd = {.fd = client->fd, .events = POLLRDHUP};

    /* Nothing but the end is asked for; where poll fails, that is what to believe. */
    if (poll(&poll_fd, 1, 0) == 0)
        jmk_client_break(client, "it sends an empty packet");
    else
        client->state = JMK_LOST;
}

/* ---- acks ---- */

bool jmk_client_refused(ssize_t sent) {
    return sent < 0 && (errno == EAGAIN || errno == EINTR || errno == ENOBUFS || errno == ENOMEM);
}

/* 0 if all up to handled is acked. */
static int ack(struct jmk_client *client, uint64_t handled) {
    return handled <= atomic_load(&client->acked_id) ? 0 : client->source->ack(client, handled);
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
    ack_until(client, handled, jmk_deadline(timeout));
    atomic_store(&client->busy, false);
    return 0;
}

/* ---- receiving ---- */

void jmk_client_end_stream(struct jmk_client *client) {
    jmk_close_fd(&client->server_fd);
    shutdown(client->fd, SHUT_RD);
}

static bool is_dead(const struct jmk_client *client) {
    struct pollfd server = {.fd = client->server_fd, .events = POLLIN};

    return (client->reader && jmk_reader_is_orphaned(client)) ||
           (client->server_fd >= 0 && poll(&server, 1, 0) > 0);
}

/* True if the server was found dead. */
static bool look_after(struct jmk_client *client) {
    if (!is_dead(client))
        return false;
    jmk_client_end_stream(client);
    return true;
}

int jmk_client_waited(struct jmk_client *client, int error) {
    if (error == -EAGAIN && client->state == JMK_OPEN && !look_after(client))
        return -EINTR;
    /* After a reset, what it sent before is still readable. */
    return error == -EAGAIN || error == -ECONNRESET ? 0 : error;
}

int jmk_client_wait(struct jmk_client *client, int64_t deadline, short events) {
    struct pollfd polled[2] = {{.fd = client->fd, .events = events},
                               {.fd = client->server_fd, .events = POLLIN}};
    int64_t left = deadline == INT64_MAX ? INT64_MAX : deadline - jmk_now();
    bool long_wait = left > LONGEST_WAIT * JMK_SECOND;
    struct timespec limit = {.tv_sec = LONGEST_WAIT};
    int count;

    if (left < 0)
        return look_after(client) ? 0 : JMK_E_TIMEOUT;
    if (!long_wait)
        limit = (struct timespec){left / JMK_SECOND, left % JMK_SECOND};
    count = ppoll(polled, 2, &limit, NULL);
    if (count < 0)
        return -errno;
    if (polled[1].revents)
        jmk_client_end_stream(client);
    else if (count == 0 && look_after(client))
        return 0;
    return count == 0 && long_wait ? -EINTR : 0;
}

/* Packets came, but no message. True if that has gone on for too long; *began is 0 at first. */
static bool is_fruitless(int64_t *began, int64_t deadline) {
    int64_t now = jmk_now();

    if (!*began)
        *began = now;
    return now - *began >= (now < deadline ? LONGEST_WAIT * JMK_SECOND : GRACE);
}

/* All that came before the end was handed out. What of that is handled is acked now or never. */
static int tell_end(struct jmk_client *client, uint64_t handled) {
    ack(client, handled);
    hang_up(client->fd);
    return (int)client->state;
}

static int receive(struct jmk_client *client, uint64_t handled, int64_t timeout,
                   struct jmk_batch *batch) {
    int64_t deadline = timeout < 0 ? INT64_MAX : jmk_deadline(timeout), began = 0;
    int error = 0;

    memset(batch, 0, sizeof *batch);
    if (handled > atomic_load(&client->last_id))
        return JMK_E_ACK;
    if (handled > atomic_load(&client->acked_id) && client->source->ack_is_due(client, handled))
        client->source->ack(client, handled);
    for (bool again = false; !error; again = true) {
        client->source->take(client, batch);
        if (batch->count)
            return 0;
        if (atomic_load(&client->closed))
            return JMK_E_CLOSED;
        if (client->state != JMK_OPEN)
            return tell_end(client, handled);
        if (again && is_fruitless(&began, deadline))
            return -EINTR;
        error = client->source->more(client, handled, deadline, batch);
        if (batch->count)
            return 0;
    }
    return error;
}

int jmk_client_receive(jmk_client *client, uint64_t handled, int64_t timeout,
                       struct jmk_batch *out) {
    int error = usable(client);

    if (error)
        return error;
    if (atomic_exchange(&client->busy, true))
        return JMK_E_BUSY;
    error = receive(client, handled, timeout, out);
    atomic_store(&client->busy, false);
    return error;
}

int jmk_client_whole(const jmk_client *client) {
    return !client->source->whole || client->source->whole(client);
}

void jmk_client_unread(jmk_client *client) {
    if (client->source->unread)
        client->source->unread(client);
}

/* ---- asking ---- */

jmk_arena *jmk_client_hold(jmk_client *client) {
    return client->source->hold(client);
}

void jmk_client_goodbye(const jmk_client *client, struct jmk_goodbye *out) {
    *out = client->goodbye;
}

const char *jmk_client_fault(const jmk_client *client) {
    return client->fault ? client->fault : "";
}

uint64_t jmk_client_last_id(const jmk_client *client) {
    return atomic_load(&client->last_id);
}

uint64_t jmk_client_published_id(const jmk_client *client) {
    return client->reader ? jmk_reader_published_id(client) : 0;
}

uint64_t jmk_client_acked_id(const jmk_client *client) {
    return atomic_load(&client->acked_id);
}
