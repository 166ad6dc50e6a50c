/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Shared delivery: a client that reads the log itself
 *
 * Nothing is sent to it: what is published is offered. The client writes the id that it has handled into
 * a page that it shares with the server, and sleeps when it has read all there is. So the server polls
 * that page for acks, and wakes the client when something was published while it sleeps: by the word
 * `wakes` in its page if it sleeps there, else by one tiny packet.
 *
 * No wake-up is lost. The client stores its sleep's number, then loads the log's end; the server
 * stores the log's end, then loads that number. All four are sequentially consistent (the log's
 * end by its version, which is stored last and read first), so the server sees the sleep, or the
 * client the message, or both. The server wakes a client once per sleep: `woken` is the number of the
 * sleep that it ended last. A socket that is too full for a wake-up is readable, so it needs none.
 *
 * No ack is lost either. A publisher that waits for acks stores the id that it wants from the slowest
 * client, or from each that is just as far (`wanted` in a client's page), then loads these clients' acks. The client stores its ack, then loads
 * `wanted`, and sends the ack as a packet if that is asked for. Again all four are sequentially
 * consistent. A client that handles messages slowly may ack below the wanted id, so waiters poll again
 * after a moment anyway.
 *
 * The client can write all of its page, so the server believes nothing in it: it takes an ack that is
 * within what was published and not behind the last one, and ends the connection at any other. The page
 * cannot be made smaller (its memfd is sealed), so a load from it cannot fault.
 *
 * To skip takes a message from each side, as only the client knows how far it has read. The server sends
 * SKIP, which names the last message that was offered, and keeps none of the offered messages any more.
 * The client answers once it has handled what it could still read of them. The server sends RESUME, which
 * says where the client goes on. The server raises `control` in the log's page with each such packet, and
 * before it gives up the first frame: a client looks at `control` with each batch.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/os.h"
#include "common/point.h"
#include "server/send.h"

static int make_page(void) {
    JMK_CLEANUP(jmk_close_fd) int fd = jmk_memfd("jumiks-cursor", sizeof(struct jmk_cursor_page));

    if (fd < 0)
        return fd;
    if (fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
        return -errno;
    return jmk_take_fd(&fd);
}

int jmk_send_shared_open(struct jmk_session *session, int *out) {
    JMK_CLEANUP(jmk_close_fd) int fd = make_page();
    void *at;

    if (fd < 0)
        return fd;
    at =
        mmap(NULL, sizeof *session->page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
    if (at == MAP_FAILED)
        return -errno;
    madvise(at, sizeof *session->page, MADV_DONTFORK);
    session->page = at;
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

/* Send a control frame: 0, or -errno, which is -EAGAIN if the socket is full. */
static int send_control(const struct jmk_session *session, enum jmk_wire kind, uint64_t id,
                        uint64_t word, uint32_t size) {
    struct jmk_header header = {size, (uint16_t)kind, 0, id};
    uint8_t frame[JMK_FRAME_HEADER + sizeof word];

    word = htole64(word);
    jmk_frame_encode(frame, &header);
    memcpy(frame + JMK_FRAME_HEADER, &word, sizeof word);
    if (send(session->fd, frame, JMK_FRAME_HEADER + size, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
        return -errno;
    return 0;
}

/* The same for a frame that must get through, even behind wake-ups that the client has not read yet. */
static int force_control(const struct jmk_session *session, enum jmk_wire kind, uint64_t id,
                         uint64_t word, uint32_t size) {
    int error = send_control(session, kind, id, word, size);

    if (error != -EAGAIN)
        return error;
    jmk_session_raise_buffer(session);
    return send_control(session, kind, id, word, size);
}

static int wake(struct jmk_session *session, uint64_t sleep, uint64_t next_id) {
    int error = 0;

    if (sleep & JMK_SLEEPS_ON_WORD) {
        jmk_session_rouse(session);
    } else {
        error = send_control(session, JMK_KIND_WAKE, next_id, 0, 0);
        session->account.packets++;
    }
    JMK_POINT(JMK_AT_WOKEN);
    session->woken = sleep;
    return error == -EAGAIN ? 0 : error;
}

static void note_sent(struct jmk_session *session, uint64_t id) {
    session->account.messages += id - session->sent_id;
    session->sent_id = id;
    session->account.sent_id = id;
}

/* Its acks are not taken with each offer, but its lag is largest now. What it acks may be a lie. */
static void note_lag(struct jmk_session *session) {
    uint64_t acked = atomic_load_explicit(&session->page->acked_id, memory_order_relaxed);

    if (acked < session->acked_id)
        acked = session->acked_id;
    if (acked < session->sent_id)
        jmk_session_note_lag(session, session->sent_id - acked);
}

/* Let it read all messages up to end, and wake it if it sleeps. */
static int offer(struct jmk_session *session, struct jmk_mark end) {
    uint64_t sleep;

    note_sent(session, end.id - 1);
    note_lag(session);
    session->account.bytes += end.offset - session->offset;
    session->offset = end.offset;
    sleep = atomic_load(&session->page->sleeping);
    if (sleep % 2 == 0 || sleep == session->woken)
        return 0;
    return wake(session, sleep, end.id);
}

static int send_shared(struct jmk_session *session, struct jmk_supply supply,
                       struct jmk_outbox *outbox) {
    (void)outbox;
    session->more = false;
    return offer(session, supply.end);
}

/* It says that it has handled all up to id. */
static int take_ack(struct jmk_session *session, const struct jmk_log *log, uint64_t id,
                    bool *moved) {
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

static int poll_acks(struct jmk_session *session, const struct jmk_log *log, bool *moved) {
    uint64_t acked = atomic_load(&session->page->acked_id);

    if (acked == session->page_acked)
        return 0;
    if (acked < session->page_acked)
        return JMK_E_PROTOCOL;
    session->page_acked = acked;
    return take_ack(session, log, acked, moved);
}

/* An ack that was asked for, or the answer to SKIP: the last message that it handled. */
static int handle_packet(struct jmk_session *session, const struct jmk_log *log,
                         const uint64_t *data, size_t size, bool *moved) {
    uint64_t id = le64toh(data[0]);

    if (size == JMK_ACK_SIZE)
        return take_ack(session, log, id, moved);
    if (size != JMK_ANSWER_SIZE || !session->answer_due || id < session->acked_id ||
        id >= jmk_log_end(log).id)
        return JMK_E_PROTOCOL;
    session->answer_due = false;
    session->sent_id = id;
    jmk_session_ack(session, id, moved);
    return 0;
}

static int announce_skip(struct jmk_session *session, const struct jmk_log *log) {
    int error = force_control(session, JMK_KIND_SKIP, session->sent_id, 0, 0);

    JMK_POINT(JMK_AT_SKIP);
    session->answer_due = true;
    atomic_fetch_add(&log->page->control, 1);
    jmk_session_rouse(session);
    JMK_POINT(JMK_AT_SKIPPED);
    return error;
}

static int announce_resume(struct jmk_session *session, const struct jmk_log *log) {
    int error = force_control(session, JMK_KIND_RESUME, session->sent_id + 1, session->offset, 8);

    JMK_POINT(JMK_AT_RESUME);
    atomic_fetch_add(&log->page->control, 1);
    return error;
}

const struct jmk_delivery_ops jmk_send_shared = {
    .send = send_shared,
    .handle_packet = handle_packet,
    .poll_acks = poll_acks,
    .skip = announce_skip,
    .resume = announce_resume,
};
