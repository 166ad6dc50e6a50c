/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Connecting a client in C: from an address to a jmk_client
 *
 * One thread does all of it, on a socket that does not block until the client is made; each wait ends
 * at the deadline. Descriptors are taken in where they are due, with the welcome that grants the log,
 * and nowhere else (common/guard.c). They may be anything: until jmk_client_make has found them to be
 * sealed memfds, they are only ever closed by jmk_dispose. The welcome is looked at with room for two
 * while it stays in the socket, so ours are second references.
 *
 * The kernel names the process that sends the welcome (SO_PASSCRED), so that its death is noticed also
 * where a child of it holds its sockets.
 */
#include <endian.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/dispose.h"
#include "common/guard.h"
#include "common/os.h"
#include "connect/handshake.h"

#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif
#ifndef SO_PASSRIGHTS
#define SO_PASSRIGHTS 83
#endif

#define FIRST_PAUSE (JMK_SECOND / 1000) /* for a place in the server's backlog */
#define LONGEST_PAUSE (JMK_SECOND / 20)
#define DUE 2   /* descriptors with a welcome that grants the log */
#define ROOM 16 /* for descriptors, more than fit beside what is due */

/* The log cannot be read here; packets can. */
#define CANNOT_SHARE (-EPROTONOSUPPORT)

struct attempt {
    const struct jmk_connect_options *options;
    struct jmk_connected *facts;
    struct jmk_handshake shake;
    int64_t deadline;
    int fd;
    enum jmk_guard guard;
    int received[ROOM];
    unsigned count; /* of these */
    pid_t server;
    uint8_t reply[JMK_LONG_REPLY];
    size_t reply_size;
};

/* ---- options ---- */

static int make_address(const char *text, struct sockaddr_un *out, socklen_t *size) {
    size_t length = text ? strnlen(text, sizeof out->sun_path + 1) : 0;
    bool abstract = length && text[0] == '@';

    if (!length || (abstract && length == 1) || (!abstract && !memchr(text, '/', length)))
        return -EINVAL;
    if (length - abstract > sizeof out->sun_path - 1)
        return -ENAMETOOLONG;
    *out = (struct sockaddr_un){.sun_family = AF_UNIX};
    memcpy(out->sun_path, text, length);
    if (abstract)
        out->sun_path[0] = 0;
    *size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length);
    return 0;
}

static bool makes_sense(const struct jmk_connect_options *options) {
    return options->delivery <= JMK_SHARED &&
           (options->start <= JMK_START_OLDEST || options->start >= JMK_FIRST_ID);
}

/* ---- waiting ---- */

/* Until fd is readable, or for pause ns; fd -1 is a mere pause. 0, JMK_E_TIMEOUT, or -errno. */
static int wait_for(int fd, int64_t pause, int64_t deadline) {
    struct pollfd polled = {.fd = fd, .events = POLLIN};
    int64_t left = deadline == INT64_MAX ? INT64_MAX : deadline - jmk_now();

    if (left <= 0)
        return JMK_E_TIMEOUT;
    if (left > pause)
        left = pause;
    return poll(&polled, 1, (int)((left + 999999) / 1000000)) < 0 ? -errno : 0;
}

/* Take a step, which does not wait, until there is what it takes. After a reset, read on. */
static int until_taken(struct attempt *attempt, int (*step)(struct attempt *)) {
    int error;

    while ((error = step(attempt)) == -EAGAIN || error == -ECONNRESET) {
        error = wait_for(attempt->fd, JMK_SECOND, attempt->deadline);
        if (error)
            break;
    }
    return error;
}

/* ---- the socket ---- */

static int dial(struct attempt *attempt) {
    struct sockaddr_un address;
    socklen_t size;
    int64_t pause = FIRST_PAUSE;
    int error = make_address(attempt->options->address, &address, &size), none = 0;

    if (error)
        return error;
    attempt->fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (attempt->fd < 0)
        return -errno;
    if (!(attempt->shake.wishes & JMK_CAN_LOG)) /* before Linux 6.16 the guard does it */
        setsockopt(attempt->fd, SOL_SOCKET, SO_PASSRIGHTS, &none, sizeof none);
    attempt->guard = jmk_guard_of(attempt->fd);
    while (connect(attempt->fd, (struct sockaddr *)&address, size) < 0) {
        if (errno != EAGAIN)
            return -errno;
        error = wait_for(-1, pause, attempt->deadline);
        if (error)
            return error;
        pause = pause * 2 < LONGEST_PAUSE ? pause * 2 : LONGEST_PAUSE;
    }
    return 0;
}

static void drop_received(struct attempt *attempt) {
    while (attempt->count)
        jmk_dispose(attempt->received[--attempt->count]);
}

static void hang_up(struct attempt *attempt) {
    drop_received(attempt);
    if (attempt->fd < 0)
        return;
    shutdown(attempt->fd, SHUT_RDWR);
    jmk_guard_close(attempt->guard, &attempt->fd);
}

/* ---- the handshake ---- */

/* Where the log is shared again, it may be on another server than the one that start belongs to. */
static void choose_start(struct attempt *attempt, const uint8_t *packet, size_t length) {
    const struct jmk_connect_options *options = attempt->options;
    uint64_t server_id = 0;

    if (length >= 16)
        memcpy(&server_id, packet + 8, sizeof server_id);
    if (length >= 8 && options->server_id && le64toh(server_id) != options->server_id)
        attempt->shake.start = JMK_START_OLDEST;
}

static int take_hello(struct attempt *attempt) {
    uint8_t packet[JMK_LONG_PACKET];
    int error = jmk_guard_check(&attempt->guard, attempt->fd, MSG_DONTWAIT);
    ssize_t length;

    if (error == JMK_E_PROTOCOL)
        return jmk_handshake_broken(attempt->facts, JMK_HANDSHAKE_DESCRIPTORS, 1, 0);
    if (error)
        return error;
    length = recv(attempt->fd, packet, sizeof packet, MSG_DONTWAIT);
    if (length <= 0)
        return length ? -errno : JMK_E_LOST;
    choose_start(attempt, packet, (size_t)length);
    return jmk_handshake_hello(&attempt->shake, packet, (size_t)length, attempt->facts,
                               attempt->reply, &attempt->reply_size);
}

static int set_credentials(const struct attempt *attempt, int on) {
    return setsockopt(attempt->fd, SOL_SOCKET, SO_PASSCRED, &on, sizeof on) < 0 ? -errno : 0;
}

static int send_reply(struct attempt *attempt) {
    int error = attempt->shake.extended ? set_credentials(attempt, 1) : 0;

    if (error)
        return error;
    if (send(attempt->fd, attempt->reply, attempt->reply_size, MSG_NOSIGNAL) < 0)
        return errno == EPIPE || errno == ECONNRESET ? JMK_E_LOST : -errno;
    return 0;
}

/* What came beside a packet: descriptors, and the sender's process. */
static void take_notes(struct attempt *attempt, struct msghdr *message) {
    for (struct cmsghdr *note = CMSG_FIRSTHDR(message); note; note = CMSG_NXTHDR(message, note)) {
        size_t size = note->cmsg_len - CMSG_LEN(0);

        if (note->cmsg_level == SOL_SOCKET && note->cmsg_type == SCM_RIGHTS) {
            for (size_t at = 0; at + sizeof(int) <= size && attempt->count < ROOM;
                 at += sizeof(int))
                memcpy(&attempt->received[attempt->count++], CMSG_DATA(note) + at, sizeof(int));
        } else if (note->cmsg_level == SOL_SOCKET && note->cmsg_type == SCM_CREDENTIALS) {
            struct ucred sender;

            memcpy(&sender, CMSG_DATA(note), sizeof sender);
            attempt->server = sender.pid;
        }
    }
}

/* Did the number of descriptors come that is due? The rest of the packet may still be nonsense. */
static int check_count(struct attempt *attempt, bool cut) {
    bool asked = attempt->shake.wishes & JMK_CAN_LOG;

    if (asked && cut && attempt->count < DUE)
        return CANNOT_SHARE; /* no room in our table */
    if (!cut && attempt->count == (attempt->shake.granted & JMK_CAN_LOG ? DUE : 0))
        return 0;
    return jmk_handshake_broken(attempt->facts, JMK_HANDSHAKE_DESCRIPTORS, attempt->count + cut,
                                attempt->shake.granted & JMK_CAN_LOG ? DUE : 0);
}

static int take_welcome(struct attempt *attempt) {
    uint8_t packet[JMK_LONG_PACKET];
    _Alignas(struct cmsghdr)
        uint8_t notes[CMSG_SPACE(sizeof(struct ucred)) + CMSG_SPACE(DUE * sizeof(int))];
    struct iovec part = {packet, sizeof packet};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = notes};
    bool asked = attempt->shake.wishes & JMK_CAN_LOG;
    ssize_t length;
    int error;

    drop_received(attempt); /* of a look that was in vain */
    message.msg_controllen = asked ? sizeof notes : CMSG_SPACE(sizeof(struct ucred));
    length = recvmsg(attempt->fd, &message, MSG_PEEK | MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (length <= 0)
        return length ? -errno : JMK_E_LOST;
    take_notes(attempt, &message);
    error = jmk_handshake_welcome(&attempt->shake, packet, (size_t)length, attempt->facts);
    if (!error)
        error = check_count(attempt, message.msg_flags & MSG_CTRUNC);
    if (!error)
        error = set_credentials(attempt, 0);
    if (!error && recv(attempt->fd, packet, sizeof packet, MSG_DONTWAIT) < 0)
        error = -errno;
    return error;
}

static int shake_hands(struct attempt *attempt) {
    int error = until_taken(attempt, take_hello);

    if (!error)
        error = send_reply(attempt);
    if (!error && attempt->shake.extended)
        error = until_taken(attempt, take_welcome);
    return error;
}

/* ---- the client ---- */

static struct jmk_client_config configure(const struct attempt *attempt) {
    const struct jmk_handshake *shake = &attempt->shake;
    const struct jmk_connected *facts = attempt->facts;
    uint32_t most = shake->max_packet < JMK_CLIENT_ARENA ? shake->max_packet : JMK_CLIENT_ARENA;

    return (struct jmk_client_config){
        .first_id = facts->first_id,
        .max_lag = facts->max_lag,
        .arena_size = JMK_CLIENT_ARENA,
        .delivery = facts->delivery,
        .guard = attempt->guard,
        .max_packet = facts->delivery == JMK_CLASSIC ? JMK_UNTOLD_PACKET : most,
        .max_message = facts->max_message ? facts->max_message : UINT32_MAX,
        .labels = !shake->extended,
        .log_fd = attempt->received[0],
        .cursor_fd = attempt->received[1],
        .first_offset = shake->first_offset,
        .spin = attempt->options->spin,
        .acks_by_hand = attempt->options->acks_by_hand,
    };
}

/* A server whose number is unknown here, as in another pid namespace, is not watched. */
static int watch(const struct attempt *attempt, jmk_client *client) {
    long pidfd;

    if (attempt->server <= 0)
        return 0;
    pidfd = syscall(SYS_pidfd_open, attempt->server, 0);
    if (pidfd < 0)
        return errno == ESRCH ? JMK_E_LOST : 0; /* this system may have none */
    jmk_client_watch(client, (int)pidfd);
    return 0;
}

static enum jmk_delivery agreed(const struct jmk_handshake *shake) {
    if (shake->granted & JMK_CAN_LOG)
        return JMK_SHARED;
    return shake->granted & JMK_CAN_FRAMES ? JMK_FRAMED : JMK_CLASSIC;
}

static int make_client(struct attempt *attempt, jmk_client **out) {
    struct jmk_client_config config;
    int error, none = 0;

    if (fcntl(attempt->fd, F_SETFL, 0) <
        0) /* from here on reads block, and have their own limits */
        return -errno;
    if (attempt->guard != JMK_GUARD_NONE) { /* all descriptors that are due have come */
        bool refused = setsockopt(attempt->fd, SOL_SOCKET, SO_PASSRIGHTS, &none, sizeof none) == 0;
        attempt->guard = refused ? JMK_GUARD_UNTIL_EMPTY : JMK_GUARD_ALWAYS;
    }
    attempt->facts->delivery = agreed(&attempt->shake);
    config = configure(attempt);
    *out = jmk_client_make(jmk_take_fd(&attempt->fd), &config, &error);
    if (error)
        return error < 0 && config.delivery == JMK_SHARED ? CANNOT_SHARE : error;
    while (attempt->count) /* what they are is known now */
        jmk_close_fd(&attempt->received[--attempt->count]);
    error = watch(attempt, *out);
    if (error)
        *out = jmk_client_free(*out);
    return error;
}

static int try_once(struct attempt *attempt, jmk_client **out) {
    int error;

    memset(attempt->facts, 0, sizeof *attempt->facts);
    attempt->shake =
        (struct jmk_handshake){.wishes = attempt->shake.wishes, .start = attempt->options->start};
    attempt->fd = -1;
    attempt->server = 0;
    error = dial(attempt);
    if (!error)
        error = shake_hands(attempt);
    if (!error)
        error = make_client(attempt, out);
    if (error)
        hang_up(attempt);
    return error;
}

int jmk_connect(jmk_client **out, const struct jmk_connect_options *options,
                struct jmk_connected *facts) {
    static const uint16_t wishes[] = {[JMK_CLASSIC] = 0,
                                      [JMK_FRAMED] = JMK_CAN_FRAMES,
                                      [JMK_SHARED] = JMK_CAN_FRAMES | JMK_CAN_LOG};
    struct attempt attempt = {
        .options = options, .facts = facts, .deadline = jmk_deadline(options->timeout)};
    int error;

    memset(facts, 0, sizeof *facts);
    *out = NULL;
    if (!makes_sense(options))
        return -EINVAL;
    if (jmk_dispose_pending() >= JMK_MOST_DISPOSED)
        return -EMFILE;
    attempt.shake.wishes = wishes[options->delivery];
    error = try_once(&attempt, out);
    if (error == CANNOT_SHARE && attempt.shake.wishes & JMK_CAN_LOG) {
        attempt.shake.wishes = JMK_CAN_FRAMES;
        error = try_once(&attempt, out);
    }
    return error;
}
