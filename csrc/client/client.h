/* SPDX-License-Identifier: Apache-2.0 */
/* The inside of a client, shared by client.c, receive_packets.c and receive_shared.c. */
#ifndef JMK_CLIENT_H
#define JMK_CLIENT_H

#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "client/arena.h"
#include "client/labels.h"
#include "common/frame.h"
#include "common/guard.h"

#define JMK_MAX_SLOTS 64

/* OPEN, or the code that every later receive gives. */
enum jmk_client_state {
    JMK_OPEN = 0,
    JMK_ENDED = JMK_E_END,
    JMK_LOST = JMK_E_LOST,
    JMK_BROKEN = JMK_E_PROTOCOL
};

/* Where messages come from, and acks go to: packets (receive_packets.c), or the log itself (receive_shared.c). */
struct jmk_source {
    /* Put what is there into an empty batch. */
    void (*take)(struct jmk_client *client, struct jmk_batch *batch);
    /*
     * Wait for more until the deadline. 0: look again; JMK_E_TIMEOUT, JMK_E_CLOSED, or -errno. It may
     * fill the batch.
     */
    int (*more)(struct jmk_client *client, uint64_t handled, int64_t deadline,
                struct jmk_batch *batch);
    /* Ack all up to handled, which is news: 0, or -EAGAIN if the socket takes no more now. */
    int (*ack)(struct jmk_client *client, uint64_t handled);
    /* Whether that is due before what is there is taken. */
    bool (*ack_is_due)(const struct jmk_client *client, uint64_t handled);
    /* Hold the memory of the last batch. NULL: there was none. */
    struct jmk_arena *(*hold)(struct jmk_client *client);
    /* Is the last batch still what was received? NULL: always. */
    bool (*whole)(const struct jmk_client *client);
    /* It is not: it counts as never received. */
    void (*unread)(struct jmk_client *client);
    void (*free)(struct jmk_client *client);
};

extern const struct jmk_source jmk_inbox;
extern const struct jmk_source jmk_reader;

/* Packets received, and how far they are used up. */
struct jmk_inbox {
    struct jmk_pool *pool;
    size_t slots;
    size_t stride;
    struct jmk_packets *arena; /* where packets go */
    struct jmk_packets *last;  /* the last batch's: arena or whole */
    unsigned filled, taken;    /* packets in the arena; those used up */
    size_t place;              /* bytes used up of the packet `taken` */
    bool stopped;              /* behind what was filled came an empty packet, or the end */
    bool slow;                 /* the last read had to wait: so will the next */
    size_t lengths[JMK_MAX_SLOTS];
    bool truncated[JMK_MAX_SLOTS];

    struct jmk_packets *whole; /* a message in fragments */
    uint64_t whole_id;         /* 0: none is being put together */
    uint32_t whole_total, whole_have;

    struct jmk_labels *labels;      /* NULL: ids are ids */
    uint64_t hole_first, hole_last; /* ids skipped last: a classic client does not ack those */
    uint64_t unacked_bytes;
    int64_t acked_at;

    struct mmsghdr headers[JMK_MAX_SLOTS];
    struct iovec parts[JMK_MAX_SLOTS];
};

struct jmk_client {
    unsigned process;
    int fd;
    int server_fd; /* its process; -1: not known, or seen dead */
    struct jmk_client_config config;
    enum jmk_guard guard;
    const struct jmk_source *source;
    enum jmk_client_state state;
    atomic_bool busy;
    atomic_bool closed;
    const char *fault;
    struct jmk_goodbye goodbye;

    _Atomic uint64_t last_id; /* received; 0 = none */
    _Atomic uint64_t acked_id;
    uint64_t next_id; /* at the earliest; 0 = anything */

    struct jmk_inbox inbox;
    struct jmk_log_reader *reader;
};

int jmk_inbox_init(struct jmk_client *client);

/* Map the log and the cursor page, which the configuration names, and look at them. */
int jmk_reader_init(struct jmk_client *client);

/* The last message that the server published, by its header page. */
uint64_t jmk_reader_published_id(const struct jmk_client *client);

/* Has the server's thread died, by its header page? */
bool jmk_reader_is_orphaned(const struct jmk_client *client);

/* The server broke the protocol: nothing is received any more. */
void jmk_client_break(struct jmk_client *client, const char *text);

/*
 * To be called before each read of the socket, which waits as flags say if this does: 0: read on; 1: the
 * server broke the protocol, and nothing is read any more; or -errno.
 */
int jmk_client_guard(struct jmk_client *client, int flags);

/* A BYE came. False if it is none. */
bool jmk_client_end(struct jmk_client *client, const struct jmk_header *header,
                    const uint8_t *payload);

/* The server is dead: what is queued stays readable, and then comes the end. */
void jmk_client_end_stream(struct jmk_client *client);

/* recv gave 0: the end of the stream, or an empty packet, which no server may send. */
void jmk_client_end_or_empty(struct jmk_client *client);

/*
 * Wait until the socket is readable, or the server dead: 0, JMK_E_TIMEOUT, or -errno; -EINTR also after
 * a second. Events are POLLIN, or POLLOUT for a socket that takes acks again, or both.
 */
int jmk_client_wait(struct jmk_client *client, int64_t deadline, short events);

/* What a read that waited gave: 0 to look again, or -errno; -EINTR for nothing in a second. */
int jmk_client_waited(struct jmk_client *client, int error);

/* Did a send fail for now only? A connection that broke is noticed by reading on. */
bool jmk_client_refused(ssize_t sent);

#endif
