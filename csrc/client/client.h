/* SPDX-License-Identifier: Apache-2.0 */
/* The state of a client, and the table of functions that each delivery has. */
#ifndef JMK_CLIENT_H
#define JMK_CLIENT_H

#include <sys/socket.h>
#include <sys/uio.h>

#include "client/arena.h"
#include "client/labels.h"
#include "common/frame.h"
#include "common/guard.h"
#include "common/page.h"

#define JMK_MAX_SLOTS 64

/* OPEN, or the code that every later receive gives. */
enum jmk_client_state {
    JMK_OPEN = 0,
    JMK_ENDED = JMK_E_END,
    JMK_LOST = JMK_E_LOST,
    JMK_BROKEN = JMK_E_PROTOCOL
};

/* A delivery: packets over the socket (receive_packets.c), or the shared log (receive_shared.c). */
struct jmk_delivery_ops {
    /* Index what has come into an empty batch. */
    void (*index_batch)(struct jmk_client *client, struct jmk_batch *batch);
    /* Wait for more until the deadline. 0: look again; JMK_E_TIMEOUT, JMK_E_CLOSED, or -errno. */
    int (*wait_for_more)(struct jmk_client *client, uint64_t handled, int64_t deadline);
    /* Ack all up to handled, which is news: 0, or -EAGAIN if the socket takes no more now. */
    int (*send_ack)(struct jmk_client *client, uint64_t handled);
    /* Is that due before what has come is indexed? */
    bool (*ack_is_due)(const struct jmk_client *client, uint64_t handled);
    /* See jmk_client_look_ahead; the connection is open. */
    enum jmk_outlook (*look_ahead)(struct jmk_client *client, bool waited);
    /* Hold the memory of the last batch. NULL: there was none. */
    struct jmk_held *(*hold_batch)(struct jmk_client *client);
    /* Is the last batch still what was received? NULL: always. */
    bool (*batch_is_intact)(const struct jmk_client *client);
    /* It is not: count it as never received. NULL: nothing to do. */
    void (*drop_batch)(struct jmk_client *client);
    /* Wake a receive that waits for something else than the socket. NULL: none does. */
    void (*rouse)(struct jmk_client *client);
    void (*free)(struct jmk_client *client);
};

extern const struct jmk_delivery_ops jmk_receive_packets;
extern const struct jmk_delivery_ops jmk_receive_shared;

/* Packets received, and how far they are used up. */
struct jmk_packet_state {
    struct jmk_pool *pool;
    size_t slots;
    size_t stride;
    struct jmk_arena *arena; /* where packets go */
    struct jmk_arena *last;  /* the last batch's: arena or message */
    unsigned filled, taken;    /* packets in the arena; those used up */
    size_t place;              /* bytes used up of the packet `taken` */
    bool stopped;              /* behind what was filled came an empty packet, or the end */
    bool slow;                 /* the last read had to wait: so will the next */

    struct jmk_arena *message; /* a message in fragments */
    uint64_t message_id;         /* 0: none is being put together */
    uint32_t message_size, message_have;

    struct jmk_labels *labels;      /* NULL: ids are ids */
    uint64_t hole_first, hole_last; /* ids skipped last: a classic client does not ack those */
    uint64_t unacked_bytes;
    int64_t acked_at;

    struct mmsghdr headers[JMK_MAX_SLOTS]; /* msg_len: a packet's own length, even if it was cut */
    struct iovec parts[JMK_MAX_SLOTS];
};

struct jmk_client {
    unsigned process;
    int fd;
    int server_fd; /* its process; -1: not known, or seen dead */
    struct jmk_client_config config;
    enum jmk_guard guard;
    const struct jmk_delivery_ops *ops;
    enum jmk_client_state state;
    atomic_bool busy;
    atomic_bool closed;
    struct jmk_fault fault;
    struct jmk_goodbye goodbye;

    _Atomic uint64_t last_id; /* received; 0 = none */
    _Atomic uint64_t acked_id;
    uint64_t next_id; /* at the earliest; 0 = anything */
    uint64_t by_hand; /* what jmk_client_ack was told last */
    uint64_t handled; /* what the last receive was to ack */
    size_t most; /* messages that it may index */

    struct jmk_packet_state packets;
    struct jmk_reader *reader;
    const struct jmk_log_page *log_page; /* the header page of a shared log; else NULL */
};

int jmk_receive_packets_init(struct jmk_client *client);

/* Map the log and the cursor page, which the configuration names, and look at them. */
int jmk_receive_shared_init(struct jmk_client *client);

#endif
