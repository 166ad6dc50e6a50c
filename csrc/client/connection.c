/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The connection of a client: waiting for it, and how it ends
 *
 * Where another process holds the sockets of a dead server, the stream does not end. So we end it from
 * here: what is queued stays readable, and then comes the end. A blocking read looks for a dead server
 * each second; waits with a deadline poll the server's process along with the socket.
 *
 * A signal that comes right before a wait cannot end it, nor can one that another thread takes. So no
 * wait is longer than a second, and it ends as if there had been a signal then. The same holds for a
 * receive that reads packet after packet without a message in them: it keeps its deadline, and signals
 * are handled, whatever the server sends.
 */
#include "client/connection.h"

#include <errno.h>
#include <sys/time.h>

#include "common/os.h"
#include "common/point.h"

#define LONGEST_WAIT 1 /* s; then we see whether the server lives, and the user handles signals */
#define GRACE (JMK_SECOND / 200) /* for what is there already, behind the deadline */

/* ---- how it ends ---- */

void jmk_connection_break(struct jmk_client *client, enum jmk_fault_kind kind, uint64_t found,
                          uint64_t due) {
    client->fault = (struct jmk_fault){.kind = kind, .found = found, .due = due};
    client->state = JMK_BROKEN;
}

int jmk_connection_check(struct jmk_client *client, int flags) {
    int error = jmk_guard_check(&client->guard, client->fd, flags);

    if (error == JMK_E_PROTOCOL)
        jmk_connection_break(client, JMK_FAULT_DESCRIPTORS, 0, 0);
    return error;
}

bool jmk_connection_decode_bye(struct jmk_client *client, const struct jmk_header *header,
                               const uint8_t *payload) {
    if (!jmk_bye_decode(payload, header->size, &client->goodbye)) {
        jmk_connection_break(client, JMK_FAULT_BYE, header->size, JMK_BYE_SIZE);
        return false;
    }
    client->state = JMK_ENDED;
    return true;
}

void jmk_connection_lose_rest(struct jmk_client *client, uint64_t last) {
    client->goodbye.first_lost = client->next_id;
    if (client->goodbye.last_lost < last)
        client->goodbye.last_lost = last;
}

void jmk_connection_end_or_break(struct jmk_client *client) {
    if (jmk_stream_ended(client->fd))
        client->state = JMK_LOST;
    else
        jmk_connection_break(client, JMK_FAULT_EMPTY_PACKET, 0, 0);
}

void jmk_connection_shut_down(int fd) {
    shutdown(fd, SHUT_RDWR);
}

void jmk_connection_end_stream(struct jmk_client *client) {
    jmk_close_fd(&client->server_fd);
    shutdown(client->fd, SHUT_RD);
}

/* ---- waiting ---- */

int jmk_connection_limit_reads(int fd) {
    struct timeval limit = {.tv_sec = JMK_POLLS ? LONGEST_WAIT : 0};

    return setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) < 0 ? -errno : 0;
}

bool jmk_connection_refused(ssize_t sent) {
    return sent < 0 && (errno == EAGAIN || errno == EINTR || errno == ENOBUFS || errno == ENOMEM);
}

bool jmk_connection_is_orphaned(const struct jmk_client *client) {
    return client->log_page && atomic_load(&client->log_page->owner) & JMK_OWNER_DIED;
}

static bool is_dead(const struct jmk_client *client) {
    struct pollfd server = {.fd = client->server_fd, .events = POLLIN};

    return jmk_connection_is_orphaned(client) ||
           (client->server_fd >= 0 && poll(&server, 1, 0) > 0);
}

bool jmk_connection_end_if_dead(struct jmk_client *client) {
    if (!is_dead(client))
        return false;
    jmk_connection_end_stream(client);
    return true;
}

int64_t jmk_connection_next_look(int64_t deadline) {
    int64_t look = JMK_POLLS ? jmk_now() + LONGEST_WAIT * JMK_SECOND : INT64_MAX;

    return look < deadline ? look : deadline;
}

int jmk_connection_waited(struct jmk_client *client, int error) {
    if (error == -EAGAIN && client->state == JMK_OPEN && !jmk_connection_end_if_dead(client))
        return -EINTR;
    /* After a reset, what it sent before is still readable. */
    return error == -EAGAIN || error == -ECONNRESET ? 0 : error;
}

int jmk_connection_wait(struct jmk_client *client, int64_t deadline, short events) {
    struct pollfd polled[2] = {{.fd = client->fd, .events = events},
                               {.fd = client->server_fd, .events = POLLIN}};
    int64_t left = deadline == INT64_MAX ? INT64_MAX : deadline - jmk_now();
    bool long_wait = JMK_POLLS && left > LONGEST_WAIT * JMK_SECOND;
    struct timespec limit = {.tv_sec = LONGEST_WAIT};
    int count;

    if (left < 0)
        return jmk_connection_end_if_dead(client) ? 0 : JMK_E_TIMEOUT;
    if (!long_wait)
        limit = (struct timespec){left / JMK_SECOND, left % JMK_SECOND};
    count = ppoll(polled, 2, &limit, NULL);
    if (count < 0)
        return -errno;
    if (polled[1].revents)
        jmk_connection_end_stream(client);
    else if (count == 0 && jmk_connection_end_if_dead(client))
        return 0;
    return count == 0 && long_wait ? -EINTR : 0;
}

bool jmk_connection_is_fruitless(int64_t *began, int64_t deadline) {
    int64_t now = jmk_now();

    if (!*began)
        *began = now;
    return now - *began >= (now < deadline ? LONGEST_WAIT * JMK_SECOND : GRACE);
}
