/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One client as the server sees it: its cursors, its socket, its account
 *
 * A session owns a descriptor and two cursors into the log, sent and acked; there is no queue and
 * no copy. How messages reach it, and how acks come back, is its delivery: send_packets.c or
 * send_shared.c. Here is what all have in common: reading the socket, the goodbye, the account.
 * Everything runs under the server's pump lock.
 *
 * An ack that moves the cursor is bounded by what was sent. One that does not is legal, and is ignored;
 * but to read it costs as much as to publish several messages, and publishers read acks too. So in
 * FLOOD_TIME only some are read; then the session is muted. The rest waits in the socket, which takes
 * some hundred packets and no more: the kernel makes the sender wait.
 */
#include "server/session.h"

#include <errno.h>
#include <linux/sockios.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "common/os.h"
#include "common/point.h"

#define READS 4 /* times ACKS packets per client and round, for fairness */
#define MOST_QUEUED 1024 /* twice what the kernel's default lets an unread socket hold */
#define ACKS 64 /* acks a recvmmsg takes where no descriptors can come */
#define FLOOD_TIME (JMK_SECOND / 100)
#define FLOOD_ACKS 64 /* idle acks in FLOOD_TIME that are read */

void jmk_session_ack(struct jmk_session *session, uint64_t id, bool *moved) {
    if (id <= session->acked_id)
        return;
    session->acked_id = id;
    session->account.acked_id = id;
    session->account.last_ack = jmk_now();
    *moved = true;
}

static int handle_packet(struct jmk_session *session, const struct jmk_log *log,
                         const uint64_t *data, const struct mmsghdr *packet, bool *moved) {
    bool news = false;
    int result;

    if (packet->msg_len == 0)
        return jmk_stream_ended(session->fd) ? JMK_E_END : JMK_E_PROTOCOL;
    if (packet->msg_hdr.msg_flags & MSG_TRUNC)
        return JMK_E_PROTOCOL;
    result = session->ops->handle_packet(session, log, data, packet->msg_len, &news);
    session->idle_acks += !news;
    *moved = *moved || news;
    return result;
}

/* Has it sent more idle acks than it may? The first FLOOD_ACKS, however late, begin a FLOOD_TIME. */
static bool floods(struct jmk_session *session) {
    int64_t now;

    if (session->idle_acks < FLOOD_ACKS)
        return false;
    session->idle_acks = 0;
    now = jmk_now();
    if (now < session->quiet_until)
        return true;
    session->quiet_until = now + FLOOD_TIME;
    return false;
}

/* Take up to `most` packets: 0, JMK_E_PROTOCOL if descriptors came with the next one, or -errno. */
static int receive_packets(struct jmk_session *session, struct mmsghdr *packets, int most,
                           int *count) {
    int error = jmk_guard_check(&session->guard, session->fd, MSG_DONTWAIT);

    if (error)
        return error;
    *count = jmk_recvmmsg(session->fd, packets, (unsigned)most, MSG_DONTWAIT);
    return *count < 0 ? -errno : 0;
}

int jmk_session_read(struct jmk_session *session, const struct jmk_log *log, bool *moved) {
    uint64_t data[ACKS][3]; /* one word more than any packet that may come */
    struct iovec parts[ACKS];
    struct mmsghdr packets[ACKS];
    int most = session->guard == JMK_GUARD_NONE ? ACKS : 1, count = 0;

    memset(packets, 0, sizeof packets);
    for (int i = 0; i < ACKS; i++) {
        parts[i] = (struct iovec){data[i], sizeof data[i]};
        packets[i].msg_hdr.msg_iov = &parts[i];
        packets[i].msg_hdr.msg_iovlen = 1;
    }
    for (int left = READS * ACKS; left > 0; left -= most) {
        int error = receive_packets(session, packets, most, &count);
        if (error == -ECONNRESET)
            continue; /* it closed with unread input; what it sent before is still readable */
        if (error)
            return error == -EAGAIN ? 0 : error;
        for (int i = 0; i < count; i++) {
            int result = handle_packet(session, log, data[i], &packets[i], moved);
            if (result != 0)
                return result;
        }
        session->muted = session->muted || floods(session);
        if (session->muted || count < most)
            return 0;
    }
    return 0;
}

void jmk_session_raise_buffer(const struct jmk_session *session) {
    int now = 0;
    socklen_t size = sizeof now;

    /* The kernel reports, and counts, twice what was asked for: asking for that doubles it. */
    if (getsockopt(session->fd, SOL_SOCKET, SO_SNDBUF, &now, &size) == 0)
        setsockopt(session->fd, SOL_SOCKET, SO_SNDBUF, &now, sizeof now);
}

void jmk_session_bye(const struct jmk_session *session, const struct jmk_log *log) {
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

    if (session->delivery == JMK_CLASSIC)
        return;
    jmk_bye_encode(frame, session->sent_id, &words);
    jmk_session_raise_buffer(session);
    send(session->fd, frame, sizeof frame, MSG_DONTWAIT | MSG_NOSIGNAL);
    JMK_POINT(JMK_AT_BYE);
    /* Shared clients check their socket when this changes, which is before any frame is given up. */
    atomic_fetch_add(&log->page->control, 1);
    JMK_POINT(JMK_AT_GONE);
}

void jmk_session_place(struct jmk_session *session, const struct jmk_log *log,
                       struct jmk_mark place) {
    session->offset = place.offset;
    session->sent_id = place.id - 1;
    session->acked_id = place.id - 1;
    session->fragment = 0;
    session->mark = jmk_log_mark_after(log, place.offset);
}

uint64_t jmk_session_unread(const struct jmk_session *session) {
    int unread = 0;

    ioctl(session->fd, SIOCOUTQ, &unread);
    /* After the last packet was read it may still be 1, and no packet is that small. */
    return unread > 1 ? (uint64_t)unread : 0;
}

void jmk_session_account(struct jmk_session *session, const struct jmk_log *log, uint64_t held) {
    struct jmk_account *account = &session->account;
    uint64_t next_id = atomic_load(&log->page->next_id), head = atomic_load(&log->page->head);

    account->key = session->key;
    account->delivery = session->delivery;
    account->lag = jmk_session_lag(session, next_id);
    account->lag_bytes = held < head ? head - held : 0;
    jmk_session_note_lag(session, account->lag);
    account->queued = session->state == JMK_SKIPPING ? 0 : next_id - 1 - session->sent_id;
    account->kernel_bytes = jmk_session_unread(session);
    account->unacked = session->sent_id - session->acked_id;
    account->skipped = jmk_session_skipped(session, next_id);
    account->oldest_id = atomic_load(&log->page->oldest_id);
}

uint64_t jmk_session_last_received(const struct jmk_session *session, enum jmk_reason reason) {
    /*
     * What a client had in its socket when it left or died, or had not handled, nobody knows. A shared
     * one that is cut may find the rest of the log overwritten. So only their acks are sure.
     */
    if (reason == JMK_R_LEFT || reason == JMK_R_ERROR ||
        (session->delivery == JMK_SHARED && reason != JMK_R_CLOSING))
        return session->acked_id;
    return session->sent_id;
}

bool jmk_session_holds_descriptors(struct jmk_session *session) {
    if (session->guard == JMK_GUARD_NONE)
        return false;
    for (int i = 0; i < MOST_QUEUED; i++) {
        if (jmk_guard_check(&session->guard, session->fd, MSG_DONTWAIT) == JMK_E_PROTOCOL)
            return true;
        if (recv(session->fd, NULL, 0, MSG_DONTWAIT) < 0 && errno != ECONNRESET)
            return false;
    }
    return false;
}

void jmk_session_rouse(const struct jmk_session *session) {
    if (!session->page)
        return;
    atomic_fetch_add(&session->page->wakes, 1);
    JMK_POINT(JMK_AT_RAISED);
    jmk_futex_wake(&session->page->wakes, 1);
}

void jmk_session_drop_page(struct jmk_session *session) {
    if (session->page)
        munmap(session->page, sizeof *session->page);
    session->page = NULL;
}

void jmk_session_close(struct jmk_session *session) {
    jmk_guard_close(session->guard, &session->fd);
    jmk_session_drop_page(session);
}
