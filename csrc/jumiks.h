/* SPDX-License-Identifier: Apache-2.0 */
/* jumiks: the interface of the C core. */
#ifndef JUMIKS_H
#define JUMIKS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/*
 * What stands between the two marks below is read twice: by the C compiler, and by cffi as its
 * cdef. So it is plain C: no preprocessor lines, attributes or inline bodies.
 *
 * Return codes: 0 is success; a negative number is -errno, passed up unchanged; a positive number
 * is a JMK_E_* condition that the caller must handle. Python makes the sentences that users read
 * (src/jumiks/errors.py).
 *
 * Threads: a jmk_server may be used from any thread, and stays usable (each call then returns
 * JMK_E_CLOSED) until it is freed. A jmk_client may be used by one thread at a time, except
 * jmk_client_close, which any thread may call. A handle that a forked child inherited returns
 * JMK_E_FORKED from every call.
 *
 * Times are in nanoseconds; as a timeout, a negative number means "no limit".
 */

/* cdef: begin */

enum jmk_error {
    JMK_E_TIMEOUT = 1,   /* the deadline passed first */
    JMK_E_CLOSED,        /* this end was closed */
    JMK_E_FORKED,        /* the handle belongs to the parent process */
    JMK_E_FULL,          /* the log has no room for this yet: jmk_server_wait_room, then again */
    JMK_E_TURN,          /* another thread holds the publisher's turn: the same remedy */
    JMK_E_MINE,          /* this very thread holds the turn, so waiting would never end */
    JMK_E_TOO_LARGE,     /* message larger than max_message */
    JMK_E_NO_SLOT,       /* max_clients reached */
    JMK_E_START,         /* a start beyond the next packet id */
    JMK_E_GONE,          /* no such client (any more) */
    JMK_E_BUSY,          /* another thread is receiving on this client */
    JMK_E_END,           /* client: the server said goodbye; jmk_client_goodbye has its words */
    JMK_E_LOST,          /* client: the connection ended without a goodbye */
    JMK_E_PROTOCOL,      /* client: the server broke the protocol; jmk_client_fault says how */
    JMK_E_ACK,           /* client: an ack for a message that was not received */
    JMK_E_LOG,           /* client: what the server shares could change under its readers */
    JMK_E_SHAPE,         /* client: what the server shares is no log, or another than it says */
    JMK_E_LAST
};

enum jmk_wire {
    JMK_FRAME_HEADER = 16,    /* u32 size, u16 kind, u16 flags, u64 id */
    JMK_FRAGMENT_HEADER = 24, /* a frame header, u32 total, u32 offset */
    JMK_CLASSIC_HEADER = 8,   /* u64 id */
    JMK_LEAST_PACKET = 512,   /* a framed peer takes packets of this size, or larger */
    JMK_ACK_SIZE = 8,         /* u64 id */
    JMK_ANSWER_SIZE = 16,     /* u64 id, u64 zero: to SKIP */
    JMK_BYE_SIZE = 64,        /* payload of a BYE frame */
    JMK_KIND_DATA = 1,
    JMK_KIND_BYE = 2,
    JMK_KIND_WAKE = 3,   /* shared only: something was published */
    JMK_KIND_SKIP = 4,   /* shared only: read no further; say how far you are */
    JMK_KIND_RESUME = 5, /* shared only: go on at this id, u64 offset */
    JMK_KIND_CRITICAL = 0x8000, /* an unknown kind with this bit ends the connection */
    JMK_FLAG_FRAGMENT = 1,      /* the payload starts with u32 total, u32 offset */
    JMK_FLAG_MORE = 2,          /* more fragments of this message follow */
    JMK_FIRST_ID = 100000       /* the least id of a message; below it a start is a code */
};

enum jmk_policy { JMK_DISCONNECT = 0, JMK_BLOCK = 1, JMK_SKIP = 2 };

enum jmk_delivery { JMK_CLASSIC = 0, JMK_FRAMED = 1, JMK_SHARED = 2 };

/* What is to be done about descriptors that come with a peer's packets: see csrc/common/guard.c. */
enum jmk_guard {
    JMK_GUARD_NONE = 0,        /* nothing: the kernel has always refused them at the sender */
    JMK_GUARD_UNTIL_EMPTY = 1, /* it does so now: look at each packet until none is left */
    JMK_GUARD_ALWAYS = 2       /* it does not: look at each packet */
};

/* Why a connection ended. The first six travel in BYE. */
enum jmk_reason {
    JMK_R_NONE = 0,
    JMK_R_LAGGED = 1,    /* the lag policy cut it; enum jmk_limit says at which limit */
    JMK_R_CLOSING = 2,   /* the server closed in good order */
    JMK_R_PROTOCOL = 3,  /* the client broke the protocol */
    JMK_R_TOO_LARGE = 4, /* a message did not fit a classic peer's packet */
    JMK_R_KICKED = 5,    /* the server's user disconnected it */
    JMK_R_LEFT = 6,      /* the client closed its end, or died */
    JMK_R_ERROR = 7      /* the operating system failed; the event carries errno */
};

/*
 * How a server broke the protocol. Each comes with two facts: `found` is what came, `due` what was
 * allowed or expected; 0 where there is none. The sentences are in src/jumiks/errors.py.
 */
enum jmk_fault_kind {
    JMK_FAULT_NONE = 0,
    JMK_FAULT_DESCRIPTORS,  /* descriptors came with a packet */
    JMK_FAULT_EMPTY_PACKET, /* a packet without a byte */
    JMK_FAULT_PACKET_SIZE,  /* too large: bytes, max_packet */
    JMK_FAULT_NO_ID,        /* classic, too short for an id: bytes, JMK_CLASSIC_HEADER */
    JMK_FAULT_FRAME,        /* frames that do not fit their packet: its bytes */
    JMK_FAULT_KIND,         /* a critical frame of unknown kind: that kind */
    JMK_FAULT_BYE,          /* too short: bytes, JMK_BYE_SIZE */
    JMK_FAULT_ID,           /* no message can have it: id */
    JMK_FAULT_BACKWARDS,    /* an id that was passed: id, the least that could come */
    JMK_FAULT_MESSAGE_SIZE, /* too large: bytes, max_message */
    JMK_FAULT_FRAGMENT,     /* its figures contradict each other: id */
    JMK_FAULT_CONTINUATION, /* a fragment that does not continue its message: id */
    JMK_FAULT_COMPANY,      /* a fragment beside another frame in its packet: id */
    JMK_FAULT_INTERRUPTED,  /* a message before the end of one in fragments: id, that one's id */
    JMK_FAULT_RESUME,       /* shared: told to go on where that cannot be: id */
    JMK_FAULT_DATA,         /* shared: a message in a packet: id */
    JMK_FAULT_LOG_END,      /* shared: an end where it cannot be: offset, where we read */
    JMK_FAULT_LOG_FRAME,    /* shared: no frame, or another id, in the batch that begins at: id */
    JMK_FAULT_LAST
};

struct jmk_fault {
    uint32_t kind; /* enum jmk_fault_kind */
    uint32_t zero;
    uint64_t found;
    uint64_t due;
};

enum jmk_limit {
    JMK_LIMIT_NONE = 0,
    JMK_LIMIT_MESSAGES = 1, /* max_lag */
    JMK_LIMIT_BYTES = 2     /* the log's size */
};

/*
 * A client is gone once it counts for nothing that is published, and closed once its socket is given
 * up: what it was sent was read by then, or its own end is closed.
 */
enum jmk_event_kind { JMK_EVENT_GONE = 1, JMK_EVENT_SKIPPED = 2, JMK_EVENT_CLOSED = 3 };

/* Where a client stands, and why it went if it did. Ids are inclusive; 0 means none. */
struct jmk_account {
    uint64_t key;            /* names the client within its server; never reused */
    uint32_t delivery;           /* enum jmk_delivery */
    uint32_t reason;         /* enum jmk_reason; JMK_R_NONE while it lives */
    uint32_t limit_kind;     /* enum jmk_limit: what it exceeded, if lagged */
    int32_t error;           /* errno, if reason is JMK_R_ERROR */
    uint64_t limit;          /* that limit, in messages or bytes */
    uint64_t lag;            /* offered, not acked; messages */
    uint64_t lag_bytes;      /* log bytes it holds */
    uint64_t worst_lag;      /* the largest lag seen, messages */
    uint64_t queued;         /* published, not sent yet; messages */
    uint64_t unacked;        /* sent, not acked; messages */
    uint64_t kernel_bytes;   /* sent, not yet read by it; what its socket holds, with overhead */
    uint64_t sent_id;        /* last message wholly handed to its socket; 0 = none */
    uint64_t acked_id;       /* last message it has acked; 0 = none */
    uint64_t first_lost;     /* gone or skipped: the range it did not get */
    uint64_t last_lost;
    uint64_t oldest_id;      /* the oldest message the log keeps */
    uint64_t messages;       /* sent to it */
    uint64_t bytes;          /* the same in bytes, headers included */
    uint64_t packets;        /* the same in packets */
    uint64_t skipped;        /* messages it missed; it may get the newest of a gap still open */
    int64_t since;           /* CLOCK_MONOTONIC when attached */
    int64_t last_ack;        /* CLOCK_MONOTONIC of its last ack; 0 if none */
    uint64_t too_large;      /* if reason is JMK_R_TOO_LARGE, that message's size ... */
    uint64_t largest;        /* ... and that of the largest that a packet to it carries; bytes */
};

struct jmk_event {
    uint32_t kind; /* enum jmk_event_kind */
    uint32_t zero;
    struct jmk_account account;
};

struct jmk_config {
    uint64_t first_id;    /* of the first message; 0 = JMK_FIRST_ID, which is the least */
    uint64_t log_size;    /* bytes; a power of two, a multiple of the page size */
    uint64_t keep; /* messages of history that stay before what is unacked, as far as ... */
    uint64_t keep_bytes; /* ... they fit in this; at most half of the log; 0 = none */
    uint64_t max_lag; /* messages; 0 = no limit of its own */
    int64_t patience; /* ns to work off half a limit; negative = no end */
    uint32_t policy; /* enum jmk_policy */
    uint32_t max_message; /* bytes; at most a quarter of the log */
    uint32_t max_clients; /* at a time, those that are gone and not closed included */
    uint32_t send_buffer; /* SO_SNDBUF to ask for on each connection, bytes */
};

struct jmk_attached {
    uint64_t key;
    uint64_t first_id; /* the first message it will get */
    uint64_t first_offset; /* where that stands, or will stand, in the log */
    uint32_t max_packet; /* the largest packet it will be sent, bytes */
    int32_t cursor_fd; /* shared: the memfd of its page, which is the caller's now; else -1 */
    uint32_t left_out; /* messages kept before first_id that it does not get, though it asked */
};

struct jmk_stats {
    uint64_t oldest_id; /* oldest message kept */
    uint64_t next_id; /* the id the next message gets */
    uint64_t log_size; /* bytes */
    uint64_t log_used; /* bytes kept */
    uint64_t log_held; /* bytes kept because somebody has not acked them */
    uint64_t published; /* messages, from first_id on */
    uint64_t published_bytes;
    uint64_t delivered; /* messages sent, all clients together, also those gone */
    uint64_t delivered_bytes;
    uint64_t packets; /* packets sent */
    uint64_t skipped; /* messages skipped, all clients together */
    uint64_t clients; /* attached now */
    uint64_t unread; /* gone, and not closed yet: they have not read all they were sent */
    uint64_t kernel_bytes; /* what the sockets of both hold, with the kernel's overhead */
    uint64_t rounds; /* of the pump */
    uint64_t inline_rounds; /* of those, by a publisher's own thread */
    uint64_t waits; /* times a publisher had to wait */
};

/* One message to publish, or one received. */
struct jmk_slice {
    const void *data;
    size_t size;
};

/* Messages to publish: an array of slices, or rows of one size that are equally far apart. */
struct jmk_messages {
    const struct jmk_slice *slices; /* NULL: they are rows */
    const void *rows;               /* the first one */
    size_t size;                    /* of each, bytes */
    ptrdiff_t stride;               /* from one to the next, bytes; may be 0, or negative */
    size_t count;
};

struct jmk_batch {
    const struct jmk_slice *items; /* valid until the next receive, held or not */
    size_t count;
    size_t bytes; /* payload */
    uint64_t first_id; /* ids in a batch have no holes */
    uint64_t lost; /* messages missing right before first_id (the server skipped them) */
    uint64_t shift; /* with labels: label - id, modulo 2^64; else 0 */
};

/* The words of a BYE. */
struct jmk_goodbye {
    uint32_t reason; /* enum jmk_reason as sent; numbers unknown to us are possible */
    uint32_t limit_kind; /* enum jmk_limit */
    uint64_t limit;
    uint64_t lag;
    uint64_t lag_bytes;
    uint64_t acked_id;
    uint64_t first_lost;
    uint64_t last_lost;
    uint64_t oldest_id;
};

typedef struct jmk_server jmk_server;
typedef struct jmk_client jmk_client;
typedef struct jmk_held jmk_held;

/* ---- descriptors of peers ---- */

/* While jmk_dispose_pending is this or more, make no new connections. */
enum { JMK_MOST_DISPOSED = 256 };

/*
 * Close a descriptor in a thread that nobody waits for; -1 is none. For what a peer sent, and sockets
 * that may have that unread. Any thread may call it, also in a forked child.
 */
void jmk_dispose(int fd);

/* How many of those are not closed yet. */
unsigned jmk_dispose_pending(void);

/* ---- frames ---- */

/* What is wrong with a frame that is to be published; `found` as said here. */
enum jmk_frame_fault {
    JMK_FRAME_SHORT = 1, /* too little left for a header: bytes left */
    JMK_FRAME_KIND,      /* no DATA: the kind */
    JMK_FRAME_FLAGS,     /* a fragment, or flags of later days: the flags */
    JMK_FRAME_SIZE,      /* longer than the rest of the buffer: its payload, bytes */
    JMK_FRAME_PADDING,   /* the padding is not zeros: its payload, bytes */
    JMK_FRAME_LAST
};

/*
 * Take the message of the frame at *offset of the length bytes at data, and move *offset behind it: 0, or
 * enum jmk_frame_fault. The memory may change meanwhile: out->size is what was checked.
 */
int jmk_frame_take(const void *data, size_t length, size_t *offset, struct jmk_slice *out,
                   uint64_t *found);

/*
 * The same for as many frames as have one size, from *offset on; they become rows. If that was not all, the next
 * one has another size, or is at fault.
 */
int jmk_frames_take(const void *data, size_t length, size_t *offset, struct jmk_messages *out,
                    uint64_t *found);

/* How long messages are as frames, bytes. */
uint64_t jmk_frames_length(const struct jmk_slice *items, size_t count);

/* Write them there. The first one's id is first_id, and each later one's is one more. */
void jmk_frames_encode(void *to, const struct jmk_slice *items, size_t count, uint64_t first_id);

/* Copy messages there, one behind the other. All must have the size of the first. */
void jmk_rows_copy(void *to, const struct jmk_slice *items, size_t count);

/* ---- server ---- */

/* Make the log and start the data-plane thread. */
int jmk_server_new(jmk_server **out, const struct jmk_config *config);

/* The same, but returns the handle, so that its owner has it at once. NULL if it fails. */
jmk_server *jmk_server_make(const struct jmk_config *config, int *error);

/*
 * Stop at once if still running, and give everything back. It waits for nobody: where the thread is
 * not through yet, the thread gives everything back as it ends. Returns NULL.
 */
jmk_server *jmk_server_free(jmk_server *server);

/* Readable while jmk_server_next_event has something to say. Owned by the server. */
int jmk_server_event_fd(const jmk_server *server);

/* Take the next event; JMK_E_GONE if there is none. Only one thread may ask. */
int jmk_server_next_event(jmk_server *server, struct jmk_event *out);

/*
 * Set SO_SNDBUF on fd as the core wants it. max_packet is what the peer takes (0: no wish), and
 * becomes what it will be sent. Call it before the hello, which tells the peer.
 */
int jmk_socket_prepare(const jmk_server *server, int fd, uint32_t *max_packet);

/* The log's memfd, for clients to read; the server's own. -1 if this system cannot share it. */
int jmk_server_log_fd(const jmk_server *server);

/*
 * Add a client, its sends held back. On success fd belongs to the core. max_packet: at most what
 * jmk_socket_prepare said; 0 on a classic connection if the peer did not tell. start: 0 = from now,
 * 1 = oldest kept, otherwise an id (one that is no longer kept becomes the oldest that is).
 * JMK_SHARED needs a log that can be shared: -EOPNOTSUPP if it cannot.
 */
int jmk_server_attach(jmk_server *server, int fd, uint32_t delivery, uint32_t max_packet,
                      uint64_t start, struct jmk_attached *out);

/* Have a client that was attached as JMK_SHARED, and is not released yet, get packets: JMK_FRAMED. */
int jmk_server_send_packets(jmk_server *server, uint64_t key);

/* The welcome is out: let the sends begin. */
int jmk_server_release(jmk_server *server, uint64_t key);

/* End one connection, with BYE(reason) where the peer can read it. */
int jmk_server_disconnect(jmk_server *server, uint64_t key, uint32_t reason);

/* Append one message; never waits. JMK_E_FULL, JMK_E_TURN: see jmk_server_wait_room. */
int jmk_server_append(jmk_server *server, const void *data, size_t size, uint64_t *id);

/* Bring what was appended on its way: send it here, or wake the thread. Never waits. */
void jmk_server_kick(jmk_server *server);

/*
 * Append slices[*done ...]. *done is how many went in so far; the caller starts it at 0. A batch that
 * does not fit at once keeps the publisher's turn, so its ids have no holes, until it is
 * finished or given up by jmk_server_yield.
 */
int jmk_server_append_many(jmk_server *server, const struct jmk_slice *slices, size_t count,
                           size_t *done, uint64_t *first_id);

/* Give back the turn that this thread holds, if it does. */
void jmk_server_yield(jmk_server *server);

/*
 * Wait until a message of size bytes may be worth another try; applies the lag policy while it
 * waits. -EINTR after a signal, and now and then without one. On JMK_E_TIMEOUT *holder is the client
 * that was in the way (key 0 if it was another publisher). A wait that is made in several calls is
 * counted once if each has the same *waited, which is 0 before the first; NULL is one call.
 */
int jmk_server_wait_room(jmk_server *server, size_t size, int64_t timeout,
                         struct jmk_account *holder, int *waited);

/* Wait until every client has acked id (or none is left); the same returns. */
int jmk_server_wait_acked(jmk_server *server, uint64_t id, int64_t timeout,
                          struct jmk_account *holder);

/* Take the turn and hand out size writable bytes in the log; then commit or discard. */
int jmk_server_reserve(jmk_server *server, size_t size, void **where);

/*
 * Call this before commit or discard if a view of the bytes lives on, as it must not reach the log. The
 * bytes at where become private memory at the same address; unmap *area and *length once it is gone.
 */
int jmk_server_take_back(jmk_server *server, void *where, size_t size, void **area, size_t *length);
int jmk_server_commit(jmk_server *server, uint64_t *id);
int jmk_server_discard(jmk_server *server);

/* Fill up to capacity accounts of the clients attached now; *count is how many there are. */
int jmk_server_accounts(jmk_server *server, struct jmk_account *out, size_t capacity,
                        size_t *count);

/*
 * The account of one client, also of one that is gone, until the event that it is closed was taken;
 * JMK_E_GONE after that. Acks that have come and were not read yet do not count.
 */
int jmk_server_account(jmk_server *server, uint64_t key, struct jmk_account *out);

/* The oldest message kept, and the id the next one gets. Takes no lock. */
int jmk_server_ids(const jmk_server *server, uint64_t *oldest_id, uint64_t *next_id);

int jmk_server_stats(jmk_server *server, struct jmk_stats *out);

/*
 * jmk_page_watch_new returns an inotify(7) queue, which does not block and is the caller's.
 * jmk_page_watch has it report, by IN_DELETE_SELF for the number returned, when the last reference to
 * the page behind page_fd is gone. Both return -errno if they fail.
 */
int jmk_page_watch_new(void);
int jmk_page_watch(int watch_fd, int page_fd);

/*
 * Close: publishers get JMK_E_CLOSED at once; what is published still goes out for up to linger,
 * then everybody gets BYE(closing). A second call can only shorten the first one's linger.
 */
int jmk_server_close(jmk_server *server, int64_t linger);

/* Wait until a close is through. -EINTR after a signal. */
int jmk_server_join(jmk_server *server, int64_t timeout);

/* CLOCK_MONOTONIC after timeout. Negative, or too far to count: INT64_MAX, which is never. */
int64_t jmk_deadline(int64_t timeout);

/*
 * jmk_server_append_many, also for rows, until all went in, or until deadline. -EINTR after a signal, and now and then
 * without one: call it again. On an error the turn may be this thread's. On JMK_E_TIMEOUT *holder is as
 * for jmk_server_wait_room.
 */
int jmk_server_publish_many(jmk_server *server, const struct jmk_messages *messages, size_t *done,
                            uint64_t *first_id, int64_t deadline, struct jmk_account *holder);

/* jmk_server_reserve once there is room; the same returns. */
int jmk_server_reserve_waiting(jmk_server *server, size_t size, void **where, int64_t deadline,
                               struct jmk_account *holder);

/* ---- client ---- */

struct jmk_client_config {
    uint64_t first_id; /* the welcome's; 0 = whatever comes first */
    uint64_t max_lag; /* the server's, messages; 0 = none or unknown */
    uint64_t arena_size; /* bytes of address space of one arena */
    uint32_t delivery; /* enum jmk_delivery */
    uint32_t guard; /* enum jmk_guard, of its socket */
    uint32_t max_packet; /* largest packet that may come, bytes */
    uint32_t max_message; /* largest message that may come, bytes */
    uint32_t
        labels; /* classic: ids are labels (a plain 1.0 server): see labels.c; 0 = they are not */
    int32_t log_fd; /* shared: the log's memfd, and ... */
    int32_t cursor_fd; /* ... that of its own page; both stay the caller's */
    uint64_t first_offset; /* shared: where the first message stands, or will, in the log */
    int64_t spin; /* shared: how long to look before it sleeps, ns */
    uint32_t acks_by_hand; /* no receive acks: jmk_client_ack alone does */
};

/*
 * On success fd belongs to the client. JMK_E_LOG, JMK_E_SHAPE: the server shares no log to be trusted.
 * -EPROTONOSUPPORT: it has a layout of later days.
 */
int jmk_client_new(jmk_client **out, int fd, const struct jmk_client_config *config);

/* The same, but returns the handle. It takes fd over, and closes it if it fails. */
jmk_client *jmk_client_make(int fd, const struct jmk_client_config *config, int *error);

/*
 * Watch the server's process too, by its pidfd, which belongs to the client from now on: a child that
 * the server forked may hold its sockets, and then no end of the stream tells of its death. A wait
 * without a limit notices that within a second.
 */
void jmk_client_watch(jmk_client *client, int pidfd);

/* Returns NULL. Arenas that are still held stay valid. */
jmk_client *jmk_client_free(jmk_client *client);

/*
 * Take what has come, waiting for the first message. handled is the last id that the user is
 * through with (0: none): it is acked when that is due, and always before waiting, unless acks_by_hand
 * is set. -EINTR after a
 * signal, and once a second: one that came right before the wait could not end it, nor can one whose
 * handler was set with SA_RESTART. An end (JMK_E_END,
 * JMK_E_LOST, JMK_E_PROTOCOL) shuts the connection down.
 */
int jmk_client_receive(jmk_client *client, uint64_t handled, int64_t timeout,
                       struct jmk_batch *out);

/* The same, of `most` messages at most; 0: as many as a batch has room for. */
int jmk_client_receive_some(jmk_client *client, uint64_t handled, int64_t timeout, size_t most,
                            struct jmk_batch *out);

/*
 * The same of what is here already. It never waits, and makes no call to the system while messages keep
 * coming. JMK_E_TIMEOUT: nothing is here, or there is an end to report, which the others do.
 */
int jmk_client_take(jmk_client *client, uint64_t handled, size_t most, struct jmk_batch *out);

/* What jmk_client_look_ahead finds. */
enum jmk_outlook {
    JMK_WOULD_WAIT = 0, /* nothing to do before the socket is readable ... */
    JMK_HAS_MORE = 1,   /* something is there, or the server may be waiting for an ack */
    JMK_WANTS_ROOM = 2  /* ... or writable: it was too full for an ack */
};

/*
 * For a user that polls the socket: would the next receive have something to do at once, after all up
 * to `out` was handed out? An enum jmk_outlook, or -EBUSY while another thread receives. `waited`: the
 * receive before has just found nothing. The last batch stays as it is.
 */
int jmk_client_look_ahead(jmk_client *client, uint64_t out, int waited);

/* The pidfd that jmk_client_watch was given; -1: there is none, or the server was seen dead. */
int jmk_client_server_fd(const jmk_client *client);

/*
 * Ack all up to handled now (each packet, on a classic connection). Waits for up to timeout where the
 * socket is full of acks that the server has not read yet; what it did not take goes with the next.
 */
int jmk_client_ack(jmk_client *client, uint64_t handled, int64_t timeout);

/*
 * Hold the memory of the last batch, so that it outlives the next receive. In a log that is shared
 * nothing from that batch on counts as handled meanwhile.
 */
jmk_held *jmk_client_hold_batch(jmk_client *client);
void jmk_held_free(jmk_held *arena);

/* Does it still have what was received? No, if the lag policy cut or skipped this client since. */
int jmk_held_is_intact(const jmk_held *arena);

/*
 * Is the last batch still what was received? Ask after its messages were copied and before any of
 * them is acked: 0 means that the lag policy cut or skipped this client meanwhile, and that the
 * copies may be torn.
 */
int jmk_client_batch_is_intact(const jmk_client *client);

/* Then: that batch counts as never received. The next receive says what became of it. */
void jmk_client_drop_batch(jmk_client *client);

/* What BYE said; all zero if none came. */
void jmk_client_goodbye(const jmk_client *client, struct jmk_goodbye *out);

/* What the server did wrong, after JMK_E_PROTOCOL; all zero before. */
void jmk_client_fault(const jmk_client *client, struct jmk_fault *out);

/*
 * The last message received, and acked; before any, the one in front of the first to come, or 0 if
 * that is not known.
 */
uint64_t jmk_client_last_id(const jmk_client *client);
uint64_t jmk_client_acked_id(const jmk_client *client);

/* The last message in the log that is shared, by the server's word; 0: none is shared. */
uint64_t jmk_client_published_id(const jmk_client *client);

/* Shut the connection down, which wakes a receive; the descriptor lives on until free. */
int jmk_client_close(jmk_client *client);

/* cdef: end */

/*
 * ---- connecting: for programs in C ----
 *
 * This part is in libjumiks alone: Python connects and shakes hands by itself.
 */

/* Beside those of enum jmk_error. */
enum jmk_connect_error {
    JMK_E_REFUSED = 100, /* the server refused: see status and reason */
    JMK_E_VERSION = 101  /* it speaks another version of the protocol: see version */
};

/* Where a client begins: one of these, or the id of a message. */
enum jmk_start { JMK_START_NOW = 0, JMK_START_OLDEST = 1 };

/* Why a server refused, as its welcome says; later servers may know more. */
enum jmk_refusal {
    JMK_REFUSED_VERSION = 1,
    JMK_REFUSED_NOT_ALLOWED = 2, /* this user may not connect */
    JMK_REFUSED_TOO_MANY = 3,    /* all places are taken */
    JMK_REFUSED_START = 4, /* the start is beyond the next id; or a plain 1.0 server has none */
    JMK_REFUSED_CLOSING = 5,
    JMK_REFUSED_MALFORMED = 6,
    JMK_REFUSED_INTERNAL = 7
};

/* How a server broke the protocol before its first message; each with two facts. */
enum jmk_handshake_fault {
    JMK_HANDSHAKE_NONE = 0,
    JMK_HANDSHAKE_HELLO, /* too short: bytes, the least */
    JMK_HANDSHAKE_WELCOME, /* too short: bytes, the least */
    JMK_HANDSHAKE_DESCRIPTORS, /* another number than due: how many, or more; how many are due */
    JMK_HANDSHAKE_START, /* before what was asked for: first_id, start */
    JMK_HANDSHAKE_LEFT_OUT, /* more than there are ids before it: left_out, first_id */
    JMK_HANDSHAKE_GRANT /* not asked for, or not alone: granted bits, bits asked for */
};

struct jmk_connect_options {
    const char
        *address; /* "@name" is abstract; a path has a "/" in it; at most 107 bytes of either */
    uint32_t delivery; /* enum jmk_delivery: the best to ask for; JMK_SHARED is what most want */
    uint32_t acks_by_hand; /* as in jmk_client_config */
    uint64_t start; /* enum jmk_start, or the id of a message to begin with */
    uint64_t server_id; /* start is an id of this server; from another, take the oldest; 0 = any */
    int64_t timeout; /* for all of it, ns; negative = no limit */
    int64_t spin; /* as in jmk_client_config */
};

enum { JMK_REASON_SIZE = 512 }; /* bytes */

/* What the server said, as far as it did, and what was agreed. */
struct jmk_connected {
    uint64_t server_id; /* 0 = not given, as by a plain 1.0 server */
    uint64_t oldest_id; /* at the time of its hello */
    uint64_t next_id;
    uint64_t max_lag; /* messages; 0 = none, or not given */
    uint64_t first_id; /* the first message that will come; 0 = not given */
    uint64_t found; /* with fault: see there */
    uint64_t due;
    uint32_t max_message; /* bytes; 0 = not given */
    uint32_t left_out; /* messages that it has before first_id and did not give */
    uint32_t delivery; /* enum jmk_delivery */
    uint32_t status; /* after JMK_E_REFUSED: enum jmk_refusal */
    uint32_t fault; /* after JMK_E_PROTOCOL: enum jmk_handshake_fault */
    uint16_t version[3]; /* of the protocol it speaks */
    uint16_t zero;
    char reason[JMK_REASON_SIZE +
                1]; /* after JMK_E_REFUSED: its words, with no control characters */
};

/*
 * Connect to a server, shake hands, and make a client. Where the log cannot be read here, it connects
 * again and gets packets. facts is filled in whatever the result is.
 *
 * 0, or: JMK_E_TIMEOUT; JMK_E_REFUSED; JMK_E_VERSION; JMK_E_PROTOCOL (no jumiks server, or a broken
 * one); JMK_E_LOST: it closed before it was through; JMK_E_LOG, JMK_E_SHAPE: as of jmk_client_new;
 * -EINVAL, -ENAMETOOLONG: options that make no sense; -EINTR: a signal came, call again; -errno of
 * connect(2), of which -ECONNREFUSED, -ENOENT and -EACCES are usual.
 */
int jmk_connect(jmk_client **out, const struct jmk_connect_options *options,
                struct jmk_connected *facts);

#ifdef __cplusplus
}
#endif

#endif
