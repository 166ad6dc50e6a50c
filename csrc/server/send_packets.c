/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Packet delivery: messages over the socket, for classic and framed clients
 *
 * Everything here runs under the server's pump lock. So the acked cursor, and with it the floor of
 * the log, does not move while sendmmsg reads the log.
 *
 * Framed: a packet is a slice of the log as it is, from the cursor to the next mark, so that all
 * clients get the same cuts without looking at the frames; only where the peer takes less, or may
 * not have all, frames are walked. A frame larger than the peer's largest packet goes as fragments,
 * a header made here in front of a slice of the log. Classic: each frame's tail from its id on.
 *
 * sendmmsg that took some of the packets hides why it stopped. It is taken for a full socket; if it
 * was something else, EPOLLOUT comes at once and the next send says what.
 */
#include <errno.h>

#include "common/os.h"
#include "server/send.h"

#define BATCHES 4 /* sendmmsg calls per client and round, for fairness */
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

        /* Marks may have been added at the cursor's position since. */
        while (jmk_log_mark_at(supply->log, number).offset <= step.offset)
            number++;
        if (jmk_frame_length(header.size) > session->max_packet) {
            step = put_fragment(outbox, n++, step, supply->log, &header, session->max_packet);
        } else {
            uint64_t start = step.offset;
            step = packet_end(session, supply, step, jmk_log_mark_at(supply->log, number));
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
    while (jmk_log_mark_at(log, session->mark).offset <= step.offset)
        session->mark++;
}

static int send_packets(struct jmk_session *session, struct jmk_supply supply,
                        struct jmk_outbox *outbox) {
    session->more = false;
    for (int batch = 0; batch < BATCHES; batch++) {
        size_t n = session->delivery == JMK_FRAMED ? fill_framed(session, &supply, outbox)
                                                   : fill_classic(session, &supply, outbox);
        int sent;

        if (n == 0)
            return 0;
        if (session->delivery == JMK_CLASSIC && too_large(session, outbox->parts[0][0].iov_len))
            return -EMSGSIZE;
        sent = jmk_sendmmsg(session->fd, outbox->packets, (unsigned)n, MSG_DONTWAIT | MSG_NOSIGNAL);
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

static int handle_packet(struct jmk_session *session, const struct jmk_log *log,
                         const uint64_t *data, size_t size, bool *moved) {
    uint64_t id = le64toh(*data);

    (void)log;
    if (size != JMK_ACK_SIZE || id > session->sent_id)
        return JMK_E_PROTOCOL;
    jmk_session_ack(session, id, moved);
    return 0;
}

const struct jmk_delivery_ops jmk_send_packets = {.send = send_packets,
                                                  .handle_packet = handle_packet};
