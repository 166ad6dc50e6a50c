/* SPDX-License-Identifier: Apache-2.0 */
/* One client as the server sees it: its cursors, its socket, its account. */
#ifndef JMK_SESSION_H
#define JMK_SESSION_H

#include <sys/socket.h>
#include <sys/uio.h>

#include "common/guard.h"
#include "server/log.h"

#define JMK_SEND_PACKETS 64

enum jmk_state {
    JMK_HELD,     /* attached; its sends wait for the welcome */
    JMK_LIVE,     /* gets what is published */
    JMK_SKIPPING, /* over its limit: gets nothing until it has acked all it was sent */
    JMK_PARTING,  /* ended before its welcome was out, which its goodbye has to follow */
    JMK_ENDING,   /* said goodbye to; its last acks are read until its end or a deadline */
    JMK_UNREAD,   /* shut; its descriptor is kept until its peer has read all, or is gone */
    JMK_CLOSED    /* descriptor closed; kept until its event was collected */
};

/* What a packet in the making does to the cursor once the socket took it. */
struct jmk_step {
    uint64_t offset;   /* where the cursor stands then */
    uint64_t id;       /* the last message wholly sent then */
    uint32_t fragment; /* bytes of the next message sent by then */
    uint32_t zero;
};

/* Scratch for one sendmmsg; a server needs one, under its pump lock. */
struct jmk_outbox {
    struct mmsghdr packets[JMK_SEND_PACKETS];
    struct iovec parts[JMK_SEND_PACKETS][2];
    struct jmk_step steps[JMK_SEND_PACKETS];
    uint8_t headers[JMK_SEND_PACKETS][JMK_FRAGMENT_HEADER];
};

struct jmk_session;

/* What a session may be sent in this round. */
struct jmk_supply {
    const struct jmk_log *log;
    struct jmk_mark end; /* the log's head and next id, taken together */
    uint64_t last;       /* the highest id this session may get now */
};

/*
 * How a session gets what is published, and how its acks come: by packets (send_packets.c), or through
 * shared memory (send_shared.c). Errors are -errno of a dead connection, or JMK_E_PROTOCOL.
 */
struct jmk_delivery_ops {
    /*
     * Send the supply, or let it be read, until the socket refuses (blocked is set) or a bound on work is
     * reached (more is set).
     */
    int (*send)(struct jmk_session *session, struct jmk_supply supply, struct jmk_outbox *outbox);
    /* Handle a packet of size bytes that the client sent; *moved is set if the acked cursor did. */
    int (*handle_packet)(struct jmk_session *session, const struct jmk_log *log,
                         const uint64_t *data, size_t size, bool *moved);
    /* Take acks that come without a packet; likewise. NULL: there are none. */
    int (*poll_acks)(struct jmk_session *session, const struct jmk_log *log, bool *moved);
    /* Tell the client that it skips. NULL: what was not sent is simply not sent. */
    int (*skip)(struct jmk_session *session, const struct jmk_log *log);
    /* Tell it where it goes on. NULL: its packets show that. */
    int (*resume)(struct jmk_session *session, const struct jmk_log *log);
};

struct jmk_session {
    int fd;
    enum jmk_state state;
    enum jmk_delivery delivery;
    enum jmk_guard guard;
    const struct jmk_delivery_ops *ops;
    struct jmk_cursor_page *page; /* shared: the client's page */
    uint64_t page_acked;          /* the ack seen there last */
    uint64_t woken;               /* the number of the sleep that it was last woken from */
    bool answer_due; /* it was told to skip, and has not answered yet */
    bool
        blocked; /* its socket refused a packet; no send until epoll or an ack says that there is room */
    bool replaying; /* it began in the past, and still reads history */
    bool excused; /* its welcome was on its way, and a publisher could not wait for that */
    bool more; /* stopped by the bound on work, not by the socket */
    bool muted; /* it sent too many idle acks: what it sends stays in its socket for now */
    uint32_t idle_acks; /* packets that told nothing new, since the clock was read last */
    uint32_t watched; /* what epoll was asked for */
    uint32_t max_packet;
    uint32_t fragment; /* bytes of the message at offset that were sent */
    uint64_t key;
    uint64_t offset; /* sent cursor: the frame to send next ... */
    uint64_t sent_id; /* ... and the last message wholly sent */
    uint64_t mark; /* number of the first log mark behind offset */
    uint64_t acked_id; /* acked cursor */
    uint64_t first_id; /* where it started, or went on after a gap */
    uint64_t shown_from; /* the first message that was published while it was there */
    uint64_t skipped; /* messages in its gaps, but for one that is still open */
    uint64_t gap_first; /* what was skipped last */
    uint64_t gap_last;
    uint64_t backlog; /* what it had behind it at its start, until it is within max_lag */
    uint64_t due_id; /* found at its limit, it has to ack this; 0 = it has no term */
    int64_t due_since; /* when it was found there ... */
    enum jmk_limit due_limit; /* ... and at which limit */
    int64_t quiet_until; /* until then it may send only FLOOD_ACKS more idle acks */
    int64_t deadline; /* JMK_PARTING, JMK_ENDING: when to give up on it */
    uint32_t index; /* its place in the server's list of live, ending or unread ones */
    uint32_t events; /* bits 1 << jmk_event_kind: waiting to be collected */
    struct jmk_session *next_event;
    struct jmk_account account; /* counters; completed when asked for, fixed when it goes */
};

/*
 * Messages offered and not acked; next_id is the log's. One that was just let in may be reading already,
 * though nothing was offered yet.
 */
static inline uint64_t jmk_session_lag(const struct jmk_session *session, uint64_t next_id) {
    bool held_back = session->blocked && session->state == JMK_LIVE;
    uint64_t offered = session->sent_id;

    if ((held_back || session->state == JMK_HELD) && !session->replaying)
        offered = next_id - 1;
    return offered - session->acked_id;
}

/* Messages that it missed; next_id is the log's. A gap still open ends before the newest one at the latest. */
static inline uint64_t jmk_session_skipped(const struct jmk_session *session, uint64_t next_id) {
    bool open = session->state == JMK_SKIPPING && next_id - session->sent_id > 2;

    return session->skipped + (open ? next_id - session->sent_id - 2 : 0);
}

static inline void jmk_session_note_lag(struct jmk_session *session, uint64_t lag) {
    if (lag > session->account.worst_lag)
        session->account.worst_lag = lag;
}

/*
 * Read what the client sent. 0: there is no more for now. JMK_E_END: it closed its end.
 * JMK_E_PROTOCOL: it acked what it was not sent, or sent descriptors. Else -errno. *moved is set if the
 * acked cursor moved. A session that sends too many packets that do not move it is muted, and what else
 * it sent stays unread.
 */
int jmk_session_read(struct jmk_session *session, const struct jmk_log *log, bool *moved);

/* Take an ack of no more than was sent; *moved is set if it moves the acked cursor. */
void jmk_session_ack(struct jmk_session *session, uint64_t id, bool *moved);

/* Make room in a full socket for a packet that has to get through. */
void jmk_session_raise_buffer(const struct jmk_session *session);

/* Say goodbye in a frame, if the client knows frames and its socket can be made to take it. */
void jmk_session_bye(const struct jmk_session *session, const struct jmk_log *log);

/* Move the sent cursor to a frame's place: at the start, or when the policy skips. */
void jmk_session_place(struct jmk_session *session, const struct jmk_log *log,
                       struct jmk_mark place);

/* Bring the account up to date. held is the offset of the oldest frame kept for it, if any is. */
void jmk_session_account(struct jmk_session *session, const struct jmk_log *log, uint64_t held);

/* The last message that the client surely receives if the session ends for this reason. */
uint64_t jmk_session_last_received(const struct jmk_session *session, enum jmk_reason reason);

/* What its socket holds: sent, and not yet read; bytes, with the kernel's overhead. */
uint64_t jmk_session_unread(const struct jmk_session *session);

/*
 * Are descriptors unread in the socket of a session that is shut? Packets before them are dropped. A
 * descriptor there may be the peer's own socket, which then stays open, unread, as long as ours does.
 */
bool jmk_session_holds_descriptors(struct jmk_session *session);

/*
 * Wake its client, if that sleeps on the word in its page: for a message, and for what it would sleep through
 * otherwise, the packets that ask for an answer and the end of the connection.
 */
void jmk_session_rouse(const struct jmk_session *session);

/* Give its page back. */
void jmk_session_drop_page(struct jmk_session *session);

/* Close its descriptor, and give its page back. */
void jmk_session_close(struct jmk_session *session);

#endif
