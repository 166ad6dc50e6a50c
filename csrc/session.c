/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One client as the server sees it: its cursors, its socket, its account
 *
 * A session owns a descriptor and two cursors into the log, sent and acked; there is no queue and
 * no copy. Everything here runs under the server's pump lock, which is also the pin: the acked
 * cursor, and with it the floor of the log, does not move while sendmmsg reads the log.
 *
 * Packets. Framed: a slice of the log as it is, from the cursor to the next mark, so that all
 * clients get the same cuts without looking at the frames; only where the peer takes less, or may
 * not have all, frames are walked. A frame larger than the peer's largest packet goes as fragments,
 * a header made here in front of a slice of the log. Classic: each frame's tail from its id on.
 *
 * sendmmsg that took some of the packets hides why it stopped. It is taken for a full socket; if it
 * was something else, EPOLLOUT comes at once and the next send says what.
 */
#include "session.h"

#include <errno.h>
#include <linux/sockios.h>
#include <poll.h>
#include <sys/ioctl.h>

#define BATCHES 4 /* sendmmsg calls before somebody else gets his turn */
#define READS 4   /* recvmmsg calls, likewise */
#define ACKS 64   /* acks a recvmmsg takes */
#define FRAMED_PACKETS 8

static void put(struct jmk_outbox *outbox, size_t n, struct jmk_step step, void *data,
                size_t size) {
    outbox->parts[n][0] = (struct iovec){data, size};
    outbox->packets[n].msg_hdr = (struct msghdr){.msg_iov = outbox->parts[n], .msg_iovlen = 1};
    outbox->steps[n] = step;
}

/* The next fragment of the frame at step, whose header is given. */
static struct jmk_step put_fragment(struct jmk_outbox *outbox, size_t n, struct jmk_step step,
                                    const struct jmk_log *log, const struct jmk_header *header,
                                    uint32_t max_packet) {
    uint32_t room = (max_packet - JMK_FRAGMENT_HEADER) & ~7u;
    uint32_t left = header->size - step.fragment;
    uint32_t slice = left < room ? left : room;
    uint8_t *from = jmk_log_at(log, step.offset) + JMK_FRAME_HEADER + step.fragment;

    jmk_fragment_encode(outbox->headers[n], header->id, slice, header->size, step.fragment);
    put(outbox, n, step, outbox->headers[n], JMK_FRAGMENT_HEADER);
    /* The last slice takes the frame's own padding along. */
    outbox->parts[n][1] = (struct iovec){from, (slice + 7) & ~7u};
    outbox->packets[n].msg_hdr.msg_iovlen = 2;
    step.fragment += slice;
    if (step.fragment == header->size) {
        step.offset += jmk_frame_length(header->size);
        step.id = header->id;
        step.fragment = 0;
    }
    outbox->steps[n] = step;
    return step;
}

static inline struct jmk_mark mark_at(const struct jmk_log *log, uint64_t number) {
    if (number < atomic_load_explicit(&log->mark_head, memory_order_acquire))
        return log->marks[number & log->mark_mask];
    return (struct jmk_mark){UINT64_MAX, UINT64_MAX};
}

/* Where the framed packet from step on ends: at the mark given, or before. */
static struct jmk_step packet_end(const struct jmk_session *session,
                                  const struct jmk_supply *supply, struct jmk_step step,
                                  struct jmk_mark mark) {
    struct jmk_mark end = mark.offset < supply->end.offset ? mark : supply->end;
    uint64_t id = end.id - 1;

    if (end.offset - step.offset > session->max_packet || id > supply->last)
        end.offset = jmk_log_span(supply->log, step.offset, end.offset, session->max_packet,
                                  supply->last, &id);
    return (struct jmk_step){end.offset, id, 0, 0};
}

static size_t fill_framed(const struct jmk_session *session, const struct jmk_supply *supply,
                          struct jmk_outbox *outbox) {
    struct jmk_step step = {session->offset, session->sent_id, session->fragment, 0};
    uint64_t number = session->mark;
    size_t n = 0;

    while (n < FRAMED_PACKETS && step.offset < supply->end.offset && step.id < supply->last) {
        uint8_t *at = jmk_log_at(supply->log, step.offset);
        struct jmk_header header = jmk_frame_decode(at);

        /* A mark may have come to stand at the cursor since it got there. */
        while (mark_at(supply->log, number).offset <= step.offset)
            number++;
        if (jmk_frame_length(header.size) > session->max_packet) {
            step = put_fragment(outbox, n++, step, supply->log, &header, session->max_packet);
        } else {
            uint64_t start = step.offset;
            step = packet_end(session, supply, step, mark_at(supply->log, number));
            put(outbox, n++, step, at, step.offset - start);
        }
    }
    return n;
}

/* Does the peer take no such packet? Plain 1.0 does not say; there the kernel has a limit. */
static bool too_large(const struct jmk_session *session, uint64_t packet) {
    return session->max_packet && packet > session->max_packet;
}

static size_t fill_classic(const struct jmk_session *session, const struct jmk_supply *supply,
                           struct jmk_outbox *outbox) {
    uint64_t offset = session->offset;
    size_t n = 0;

    while (n < JMK_SEND_PACKETS && offset < supply->end.offset) {
        uint8_t *at = jmk_log_at(supply->log, offset);
        struct jmk_header header = jmk_frame_decode(at);

        if (header.id > supply->last ||
            (n > 0 && too_large(session, JMK_CLASSIC_HEADER + (uint64_t)header.size)))
            break;
        offset += jmk_frame_length(header.size);
        put(outbox, n++, (struct jmk_step){offset, header.id, 0, 0},
            at + JMK_FRAME_HEADER - JMK_CLASSIC_HEADER, JMK_CLASSIC_HEADER + (size_t)header.size);
    }
    return n;
}

static void advance(struct jmk_session *session, const struct jmk_log *log,
                    const struct jmk_outbox *outbox, size_t n) {
    struct jmk_step step = outbox->steps[n - 1];

    for (size_t i = 0; i < n; i++)
        session->account.bytes += outbox->packets[i].msg_len;
    session->account.packets += n;
    session->account.sent_id = step.id;
    session->account.messages += step.id - session->sent_id;
    session->offset = step.offset;
    session->sent_id = step.id;
    session->fragment = step.fragment;
    while (mark_at(log, session->mark).offset <= step.offset)
        session->mark++;
}

int jmk_session_send(struct jmk_session *session, struct jmk_supply supply,
                     struct jmk_outbox *outbox) {
    session->more = false;
    for (int batch = 0; batch < BATCHES; batch++) {
        size_t n = session->mode == JMK_FRAMED ? fill_framed(session, &supply, outbox)
                                               : fill_classic(session, &supply, outbox);
        int sent;

        if (n == 0)
            return 0;
        if (session->mode == JMK_CLASSIC && too_large(session, outbox->parts[0][0].iov_len))
            return -EMSGSIZE;
        sent = sendmmsg(session->fd, outbox->packets, (unsigned)n, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN)
            return -errno;
        if (sent > 0)
            advance(session, supply.log, outbox, (size_t)sent);
        session->blocked = sent < (int)n;
        if (session->blocked)
            return 0;
    }
    session->more = session->offset < supply.end.offset && session->sent_id < supply.last;
    return 0;
}

/* recv gave 0: the end of the stream, or an empty packet, which no peer may send. */
static int end_or_empty(int fd) {
    struct pollfd poll_fd = {.fd = fd, .events = POLLRDHUP};

    if (poll(&poll_fd, 1, 0) > 0 && poll_fd.revents & (POLLRDHUP | POLLHUP))
        return JMK_E_END;
    return JMK_E_PROTOCOL;
}

static int take_ack(struct jmk_session *session, const uint64_t *data, const struct mmsghdr *packet,
                    int64_t now, bool *moved) {
    uint64_t id = le64toh(*data);

    if (packet->msg_len == 0)
        return end_or_empty(session->fd);
    if (packet->msg_len != JMK_ACK_SIZE || id > session->sent_id)
        return JMK_E_PROTOCOL;
    if (id > session->acked_id) {
        session->acked_id = id;
        session->account.acked_id = id;
        session->account.last_ack = now;
        *moved = true;
    }
    return 0;
}

int jmk_session_read(struct jmk_session *session, int64_t now, bool *moved) {
    uint64_t data[ACKS][2];
    struct iovec parts[ACKS];
    struct mmsghdr packets[ACKS];

    memset(packets, 0, sizeof packets);
    for (int i = 0; i < ACKS; i++) {
        parts[i] = (struct iovec){data[i], sizeof data[i]};
        packets[i].msg_hdr.msg_iov = &parts[i];
        packets[i].msg_hdr.msg_iovlen = 1;
    }
    for (int round = 0; round < READS; round++) {
        int n = recvmmsg(session->fd, packets, ACKS, MSG_DONTWAIT, NULL);
        if (n < 0 && errno == ECONNRESET)
            continue; /* it closed with unread input; what it sent before is still readable */
        if (n < 0)
            return errno == EAGAIN ? 0 : -errno;
        for (int i = 0; i < n; i++) {
            int result = take_ack(session, data[i], &packets[i], now, moved);
            if (result != 0)
                return result;
        }
        if (n < ACKS)
            return 0;
    }
    return 0;
}

static void raise_send_buffer(int fd) {
    int now = 0;
    socklen_t size = sizeof now;

    /* The kernel reports, and counts, twice what was asked for: asking for that doubles it. */
    if (getsockopt(fd, SOL_SOCKET, SO_SNDBUF, &now, &size) == 0)
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &now, sizeof now);
}

void jmk_session_bye(const struct jmk_session *session) {
    const struct jmk_account *account = &session->account;
    uint8_t frame[JMK_FRAME_HEADER + JMK_BYE_SIZE];
    struct jmk_goodbye words = {
        .reason = account->reason,
        .limit_kind = account->limit_kind,
        .limit = account->limit,
        .lag = account->lag,
        .lag_bytes = account->lag_bytes,
        .acked_id = account->acked_id,
        .first_lost = account->first_lost,
        .last_lost = account->last_lost,
        .oldest_id = account->oldest_id,
    };

    if (session->mode != JMK_FRAMED)
        return;
    jmk_bye_encode(frame, session->sent_id, &words);
    raise_send_buffer(session->fd);
    send(session->fd, frame, sizeof frame, MSG_DONTWAIT | MSG_NOSIGNAL);
}

void jmk_session_place(struct jmk_session *session, const struct jmk_log *log,
                       struct jmk_mark place) {
    session->offset = place.offset;
    session->sent_id = place.id - 1;
    session->acked_id = place.id - 1;
    session->fragment = 0;
    session->mark = jmk_log_mark_after(log, place.offset);
}

void jmk_session_account(struct jmk_session *session, const struct jmk_log *log, uint64_t held) {
    struct jmk_account *account = &session->account;
    uint64_t next_id = atomic_load(&log->next_id), head = atomic_load(&log->head);
    int unread = 0;

    ioctl(session->fd, SIOCOUTQ, &unread);
    account->key = session->key;
    account->mode = session->mode;
    account->lag = jmk_session_lag(session, next_id);
    account->lag_bytes = head - held;
    if (account->lag > account->worst_lag)
        account->worst_lag = account->lag;
    account->queued = session->state == JMK_SKIPPING ? 0 : next_id - 1 - session->sent_id;
    account->kernel_bytes = (uint64_t)unread;
    account->unacked = session->sent_id - session->acked_id;
    account->oldest_id = atomic_load(&log->oldest_id);
}
