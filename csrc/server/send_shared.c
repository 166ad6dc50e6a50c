/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The cursor path: a client that reads the log itself
 *
 * Nothing is sent to it: what is published is offered. It writes what it has handled into a page
 * that it shares with the server, and sleeps on its socket when it has read all there is. So what a
 * server does for it is to look at that page, and to ring: one tiny packet when something was
 * published while it sleeps.
 *
 * No ring is lost. The client stores its sleep's number, then looks at the log's end; the server
 * stores the log's end, then looks at that number. All four are sequentially consistent (the log's
 * end by its version, which is stored last and read first), so the server sees the sleep, or the
 * client the message, or both. A sleep is rung for once: `rung` remembers its number. A socket too
 * full to take a ring is readable, which is all that a ring is for.
 *
 * No ack is lost either. Who waits for acks stores what it wants from one client (`wanted` in that
 * one's page), then looks at its ack; the client stores its ack, then looks at `wanted`, and sends the
 * ack as a packet if that asks for it. Again all four are sequentially consistent. As a client that
 * handles messages slowly may ack below what is wanted, waiters look again after a moment anyway.
 *
 * The page is the client's to write, all of it, so nothing in it is believed: an ack is taken if it
 * is within what was published and not behind the last one, else the connection ends. The page cannot
 * be made smaller (its memfd is sealed), so reading it cannot fault.
 *
 * Skipping takes a word from each side, as only the client knows how far it has read: SKIP from the
 * server, which names the last message that was offered, and keeps none of them any more; the
 * client's answer, once it has handled what it could still read of those; RESUME, which says where it
 * goes on. `control` in the log's page is raised with each such packet, and
 * before the first frame is given up: a client looks at it with each batch.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/os.h"
#include "common/point.h"
#include "server/session.h"

static int make_page(void) {
    JMK_CLEANUP(jmk_close_fd) int fd = jmk_memfd("jumiks-cursor", sizeof(struct jmk_cursor_page));

    if (fd < 0)
        return fd;
    if (fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
        return -errno;
    return jmk_take_fd(&fd);
}

int jmk_cursor_open(struct jmk_session *session, int *out) {
    JMK_CLEANUP(jmk_close_fd) int fd = make_page();
    void *at;

    if (fd < 0)
        return fd;
    at = mmap(NULL, sizeof *session->cursor, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd,
              0);
    if (at == MAP_FAILED)
        return -errno;
    madvise(at, sizeof *session->cursor, MADV_DONTFORK);
    session->cursor = at;
    *out = jmk_take_fd(&fd);
    return 0;
}

int jmk_page_watch_new(void) {
    int fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);

    return fd < 0 ? -errno : fd;
}

int jmk_page_watch(int watch_fd, int page_fd) {
    char path[32];
    int watch;

    snprintf(path, sizeof path, "/proc/self/fd/%d", page_fd);
    watch = inotify_add_watch(watch_fd, path, IN_DELETE_SELF);
    return watch < 0 ? -errno : watch;
}

/* A frame of ours on the socket: 0, also if it is full, or -errno. */
static int say(const struct jmk_session *session, enum jmk_wire kind, uint64_t id, uint64_t word,
               uint32_t size) {
    struct jmk_header header = {size, (uint16_t)kind, 0, id};
    uint8_t frame[JMK_FRAME_HEADER + sizeof word];

    word = htole64(word);
    jmk_frame_encode(frame, &header);
    memcpy(frame + JMK_FRAME_HEADER, &word, sizeof word);
    if (send(session->fd, frame, JMK_FRAME_HEADER + size, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
        return -errno;
    return 0;
}

/* What must get through, also behind rings that the client did not need and has not read yet. */
static int insist(const struct jmk_session *session, enum jmk_wire kind, uint64_t id, uint64_t word,
                  uint32_t size) {
    int error = say(session, kind, id, word, size);

    if (error != -EAGAIN)
        return error;
    jmk_session_raise_buffer(session);
    return say(session, kind, id, word, size);
}

static int ring(struct jmk_session *session, uint64_t sleep, uint64_t next_id) {
    int error = say(session, JMK_KIND_RING, next_id, 0, 0);

    JMK_POINT(JMK_AT_RUNG);
    session->rung = sleep;
    session->account.packets++;
    return error == -EAGAIN ? 0 : error;
}

static void note_sent(struct jmk_session *session, uint64_t id) {
    session->account.messages += id - session->sent_id;
    session->sent_id = id;
    session->account.sent_id = id;
}

/* All up to end is there for it to read. */
static int offer(struct jmk_session *session, struct jmk_mark end) {
    uint64_t sleep;

    note_sent(session, end.id - 1);
    session->account.bytes += end.offset - session->offset;
    session->offset = end.offset;
    sleep = atomic_load(&session->cursor->sleeping);
    if (sleep % 2 == 0 || sleep == session->rung)
        return 0;
    return ring(session, sleep, end.id);
}

static int cursor_send(struct jmk_session *session, struct jmk_supply supply,
                       struct jmk_outbox *outbox) {
    (void)outbox;
    session->more = false;
    return offer(session, supply.end);
}

/* It has handled all up to id, it says. */
static int take(struct jmk_session *session, const struct jmk_log *log, uint64_t id, bool *moved) {
    struct jmk_mark end = jmk_log_end(log);
    int error = 0;

    if (id >= end.id)
        return JMK_E_PROTOCOL;
    if (id > session->sent_id) { /* published, and not offered yet */
        if (session->state == JMK_LIVE)
            error = offer(session, end);
        else
            note_sent(session, id);
    }
    jmk_session_ack(session, id, moved);
    return error;
}

static int cursor_look(struct jmk_session *session, const struct jmk_log *log, bool *moved) {
    uint64_t acked = atomic_load(&session->cursor->acked_id);

    if (acked == session->cursor_acked)
        return 0;
    if (acked < session->cursor_acked)
        return JMK_E_PROTOCOL;
    session->cursor_acked = acked;
    return take(session, log, acked, moved);
}

/* An ack that was asked for, or how far it had come when it was told to skip. */
static int cursor_ack(struct jmk_session *session, const struct jmk_log *log, const uint64_t *data,
                      size_t size, bool *moved) {
    uint64_t id = le64toh(data[0]);

    if (size == JMK_ACK_SIZE)
        return take(session, log, id, moved);
    if (size != JMK_ANSWER_SIZE || !session->answer_due || id < session->acked_id ||
        id >= jmk_log_end(log).id)
        return JMK_E_PROTOCOL;
    session->answer_due = false;
    session->sent_id = id;
    jmk_session_ack(session, id, moved);
    return 0;
}

static int cursor_skip(struct jmk_session *session, const struct jmk_log *log) {
    int error = insist(session, JMK_KIND_SKIP, session->sent_id, 0, 0);

    JMK_POINT(JMK_AT_SKIP);
    session->answer_due = true;
    atomic_fetch_add(&log->page->control, 1);
    JMK_POINT(JMK_AT_SKIPPED);
    return error;
}

static int cursor_resume(struct jmk_session *session, const struct jmk_log *log) {
    int error = insist(session, JMK_KIND_RESUME, session->sent_id + 1, session->offset, 8);

    JMK_POINT(JMK_AT_RESUME);
    atomic_fetch_add(&log->page->control, 1);
    return error;
}

const struct jmk_path jmk_cursor_path = {
    .send = cursor_send,
    .ack = cursor_ack,
    .look = cursor_look,
    .skip = cursor_skip,
    .resume = cursor_resume,
};
