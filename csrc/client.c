/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The client: the receive loop, the index, acks
 *
 * Packets come by recvmmsg into the slots of an arena, one packet a slot, and an index of the
 * messages in them is made there too; Python takes a batch of index entries at a time. Packets that
 * a batch did not use up (it ends at a gap in the ids, and when the index is full) stay in the arena
 * for the next. The arena is reused by the next receive, unless somebody holds it; then another one
 * takes its place, from a small pool that outlives the client if it must.
 *
 * A message in fragments is put together in an arena of its own, where fragments after the first
 * are received in place. It makes a batch of one.
 *
 * Acks. Classic: one for each packet, as 1.0 has it, sent many at a time. Framed: cumulative, sent
 * when a receive is about to wait, and when messages, bytes or time since the last one say so; a
 * quarter of max_lag is the most that is ever kept back. An ack that the socket refuses is not lost:
 * the cursor stays where it is, and the next one covers it.
 *
 * Everything from the server is checked here: the length of each packet and frame, ids, fragments.
 * What is wrong ends the connection for good: state says so to every later receive.
 *
 * One thread receives; `busy` makes sure of it. Any thread may close: shutdown wakes a wait.
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "frame.h"
#include "os.h"

#define MAX_SLOTS 64
#define MAX_ITEMS 16384 /* messages in a batch */
#define SPARE_ARENAS 4
#define ACK_BYTES 65536           /* received and not acked */
#define ACK_TIME (10 * 1000000LL) /* ns */
#define SLOW 20000                /* ns of waiting that make a stream a slow one */
#define ACKS 64                   /* classic acks a sendmmsg */

/* Arenas that nobody uses now. It lives as long as its client, or an arena that is still held. */
struct pool {
    pthread_mutex_t lock;
    bool closed;   /* the client is gone: keep no spares */
    unsigned refs; /* the client, and each arena that is not a spare */
    unsigned count;
    struct jmk_arena *spare[SPARE_ARENAS];
};

struct jmk_arena {
    atomic_uint refs;
    struct pool *pool;
    uint8_t *memory;
    size_t size;
    struct jmk_slice *items; /* behind the memory, in the same map */
};

enum state { OPEN = 0, ENDED = JMK_E_END, LOST = JMK_E_LOST, BROKEN = JMK_E_PROTOCOL };

struct jmk_client {
    unsigned process;
    int fd;
    struct jmk_client_config config;
    enum state state;
    atomic_bool busy;
    atomic_bool closed;
    struct pool *pool;
    size_t slots;
    size_t stride;
    const char *fault;
    struct jmk_goodbye goodbye;

    struct jmk_arena *arena; /* where packets go */
    struct jmk_arena *last;  /* the last batch's: arena or whole */
    unsigned filled, taken;  /* packets in the arena; those used up */
    size_t place;            /* bytes used up of the packet `taken` */
    bool stopped; /* behind what was filled came an empty packet, or the end */
    bool slow;    /* the last read had to wait: so will the next */
    size_t lengths[MAX_SLOTS];
    bool truncated[MAX_SLOTS];

    struct jmk_arena *whole; /* a message in fragments */
    uint64_t whole_id;       /* 0: none is being put together */
    uint32_t whole_total, whole_have;

    _Atomic uint64_t last_id; /* received; 0 = none */
    _Atomic uint64_t acked_id;
    uint64_t next_id; /* at the earliest; 0 = anything */
    uint64_t hole_first, hole_last; /* ids skipped last: a classic client does not ack those */
    uint64_t unacked_bytes;
    int64_t acked_at;

    struct mmsghdr packets[MAX_SLOTS];
    struct iovec parts[MAX_SLOTS];
};

/* ---- arenas ---- */

static void arena_unmap(struct jmk_arena *arena) {
    munmap(arena->memory, arena->size + MAX_ITEMS * sizeof(struct jmk_slice));
    free(arena);
}

static struct jmk_arena *arena_map(size_t size) {
    struct jmk_arena *arena = calloc(1, sizeof *arena);

    if (!arena)
        return NULL;
    size = (size + 63) & ~(size_t)63; /* the items stand behind, aligned */
    arena->size = size;
    arena->memory = mmap(NULL, size + MAX_ITEMS * sizeof(struct jmk_slice), PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (arena->memory == MAP_FAILED) {
        free(arena);
        return NULL;
    }
    arena->items = (struct jmk_slice *)(void *)(arena->memory + size);
    return arena;
}

/* Drop one reference to the pool, whose lock is held. */
static void pool_leave(struct pool *pool) {
    bool last = --pool->refs == 0;

    pthread_mutex_unlock(&pool->lock);
    if (last) {
        pthread_mutex_destroy(&pool->lock);
        free(pool);
    }
}

void jmk_arena_free(jmk_arena *arena) {
    struct pool *pool;

    if (!arena || atomic_fetch_sub(&arena->refs, 1) != 1)
        return;
    pool = arena->pool;
    pthread_mutex_lock(&pool->lock);
    if (!pool->closed && pool->count < SPARE_ARENAS) {
        pool->spare[pool->count++] = arena;
        arena = NULL;
    }
    pool_leave(pool);
    if (arena)
        arena_unmap(arena);
}

static struct jmk_arena *pool_take(struct pool *pool, size_t size) {
    struct jmk_arena *arena = NULL;

    pthread_mutex_lock(&pool->lock);
    for (unsigned i = pool->count; i-- > 0 && !arena;) {
        if (pool->spare[i]->size >= size) {
            arena = pool->spare[i];
            pool->spare[i] = pool->spare[--pool->count];
        }
    }
    pthread_mutex_unlock(&pool->lock);
    if (!arena)
        arena = arena_map(size);
    if (!arena)
        return NULL;
    pthread_mutex_lock(&pool->lock);
    pool->refs++;
    pthread_mutex_unlock(&pool->lock);
    arena->pool = pool;
    atomic_store(&arena->refs, 1);
    return arena;
}

static void pool_close(struct pool *pool) {
    pthread_mutex_lock(&pool->lock);
    pool->closed = true;
    while (pool->count)
        arena_unmap(pool->spare[--pool->count]);
    pool_leave(pool);
}

/* Make *arena one of at least size bytes that nobody else holds. */
static int own_arena(struct jmk_client *client, struct jmk_arena **arena, size_t size) {
    if (*arena && atomic_load(&(*arena)->refs) == 1 && (*arena)->size >= size)
        return 0;
    jmk_arena_free(*arena);
    *arena = pool_take(client->pool, size);
    return *arena ? 0 : -ENOMEM;
}

/* ---- making and closing ---- */

int jmk_client_new(jmk_client **out, int fd, const struct jmk_client_config *config) {
    struct jmk_client *client = calloc(1, sizeof *client);
    struct pool *pool = calloc(1, sizeof *pool);

    if (!client || !pool) {
        free(client);
        free(pool);
        return -ENOMEM;
    }
    pthread_mutex_init(&pool->lock, NULL);
    pool->refs = 1;
    client->process = jmk_process();
    client->fd = fd;
    client->config = *config;
    client->pool = pool;
    client->next_id = config->first_id;
    client->acked_at = jmk_now();
    /* One line more than a packet: slots that start alike would compete for the same cache sets. */
    client->stride = ((config->max_packet + 63u) & ~(size_t)63) + 64;
    client->slots = config->arena_size / client->stride;
    if (client->slots < 1)
        client->slots = 1;
    if (client->slots > MAX_SLOTS)
        client->slots = MAX_SLOTS;
    *out = client;
    return 0;
}

static int usable(const struct jmk_client *client) {
    return client->process == jmk_process() ? 0 : JMK_E_FORKED;
}

int jmk_client_close(jmk_client *client) {
    int error = usable(client);

    if (error)
        return error;
    if (!atomic_exchange(&client->closed, true))
        shutdown(client->fd, SHUT_RDWR);
    return 0;
}

jmk_client *jmk_client_free(jmk_client *client) {
    if (!client)
        return NULL;
    jmk_client_close(client);
    jmk_close_fd(&client->fd);
    jmk_arena_free(client->arena);
    jmk_arena_free(client->whole);
    pool_close(client->pool);
    free(client);
    return NULL;
}

/* ---- acks ---- */

/* What became of an ack: 0 if it is out (or will never matter), else -EAGAIN. */
static int ack_result(ssize_t sent) {
    return sent < 0 && errno == EAGAIN ? -EAGAIN : 0;
}

static int ack_framed(struct jmk_client *client, uint64_t handled) {
    uint64_t word = htole64(handled);

    /* A connection that broke is noticed by reading on: what came before is still to be read. */
    if (ack_result(send(client->fd, &word, sizeof word, MSG_DONTWAIT | MSG_NOSIGNAL)))
        return -EAGAIN;
    atomic_store(&client->acked_id, handled);
    client->unacked_bytes = 0;
    client->acked_at = jmk_now();
    return 0;
}

static uint64_t after(const struct jmk_client *client, uint64_t id) {
    return id + 1 == client->hole_first ? client->hole_last + 1 : id + 1;
}

static int ack_classic(struct jmk_client *client, uint64_t handled) {
    uint64_t words[ACKS], acked = atomic_load(&client->acked_id), ids[ACKS];
    struct iovec parts[ACKS];
    struct mmsghdr packets[ACKS];

    memset(packets, 0, sizeof packets);
    while (acked < handled) {
        uint64_t id = acked;
        unsigned n = 0;
        int sent;

        for (; n < ACKS && id < handled; n++) {
            id = ids[n] = after(client, id);
            words[n] = htole64(id);
            parts[n] = (struct iovec){&words[n], sizeof words[n]};
            packets[n].msg_hdr.msg_iov = &parts[n];
            packets[n].msg_hdr.msg_iovlen = 1;
        }
        sent = sendmmsg(client->fd, packets, n, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (ack_result(sent))
            return -EAGAIN;
        acked = sent < 0 ? handled : ids[sent - 1];
        atomic_store(&client->acked_id, acked);
    }
    return 0;
}

/* 0 if all up to handled is acked. */
static int ack(struct jmk_client *client, uint64_t handled) {
    if (handled <= atomic_load(&client->acked_id))
        return 0;
    if (client->config.mode == JMK_FRAMED)
        return ack_framed(client, handled);
    return ack_classic(client, handled);
}

static void ack_if_due(struct jmk_client *client, uint64_t handled) {
    uint64_t quarter = client->config.max_lag / 4, acked = atomic_load(&client->acked_id);

    if (handled <= acked)
        return;
    if (client->config.mode == JMK_CLASSIC || client->unacked_bytes >= ACK_BYTES ||
        (client->config.max_lag && handled - acked >= quarter) ||
        jmk_now() - client->acked_at >= ACK_TIME)
        ack(client, handled);
}

/* Until the socket takes all acks, or the deadline has passed. */
static void ack_until(struct jmk_client *client, uint64_t handled, int64_t deadline) {
    while (ack(client, handled) != 0 && !atomic_load(&client->closed)) {
        struct pollfd poll_fd = {.fd = client->fd, .events = POLLOUT};
        int64_t left = (deadline - jmk_now()) / 1000000;

        if (left <= 0 || poll(&poll_fd, 1, left < 60000 ? (int)left : 60000) < 0)
            return;
    }
}

int jmk_client_ack(jmk_client *client, uint64_t handled, int64_t timeout) {
    int error = usable(client);

    if (error)
        return error;
    if (atomic_load(&client->closed))
        return JMK_E_CLOSED;
    if (handled > atomic_load(&client->last_id))
        return JMK_E_ACK;
    if (atomic_exchange(&client->busy, true))
        return JMK_E_BUSY;
    ack_until(client, handled, jmk_deadline(timeout));
    atomic_store(&client->busy, false);
    return 0;
}

/* ---- the index ---- */

/* What a frame, or a packet, means for the batch in the making. */
enum outcome {
    ON,     /* go on with the next */
    BEFORE, /* the batch ends before it */
    BEHIND, /* the batch ends with it */
    FAULT   /* the server broke the protocol */
};

static enum outcome fault(struct jmk_client *client, const char *text) {
    client->fault = text;
    client->state = BROKEN;
    client->filled = client->taken = 0;
    return FAULT;
}

/* Put one message into the batch. */
static enum outcome add(struct jmk_client *client, struct jmk_batch *batch, struct jmk_arena *arena,
                        uint64_t id, const void *data, size_t size) {
    if (id == UINT64_MAX || (id == 0 && !client->next_id))
        return fault(client, "it sends a packet id that cannot be");
    if (client->next_id && id != client->next_id) {
        if (id < client->next_id)
            return fault(client, "its packet ids go backwards");
        if (batch->count)
            return BEFORE;
        batch->lost = id - client->next_id;
        client->hole_first = client->next_id;
        client->hole_last = id - 1;
    }
    if (!batch->count) {
        batch->items = arena->items;
        batch->first_id = id;
        client->last = arena;
        if (!atomic_load_explicit(&client->last_id, memory_order_relaxed))
            atomic_store(&client->acked_id, id - 1);
    }
    arena->items[batch->count++] = (struct jmk_slice){data, size};
    batch->bytes += size;
    client->next_id = id + 1;
    return batch->count == MAX_ITEMS ? BEHIND : ON;
}

static enum outcome finish_whole(struct jmk_client *client, struct jmk_batch *batch) {
    uint64_t id = client->whole_id;
    enum outcome outcome;

    client->whole_id = 0;
    outcome = add(client, batch, client->whole, id, client->whole->memory, client->whole_total);
    return outcome == ON ? BEHIND : outcome;
}

static enum outcome start_whole(struct jmk_client *client, uint64_t id, uint32_t total) {
    if (total > client->config.max_message)
        return fault(client, "it sends a message larger than the largest it told");
    if (client->next_id && id < client->next_id)
        return fault(client, "its packet ids go backwards");
    /* Room for any packet behind what is there: the rest is received in place. */
    if (own_arena(client, &client->whole, (size_t)total + client->config.max_packet))
        return fault(client, "no memory for a message in fragments");
    client->whole_id = id;
    client->whole_total = total;
    client->whole_have = 0;
    return ON;
}

static bool continues(const struct jmk_client *client, uint64_t id,
                      const struct jmk_fragment *fragment) {
    return client->whole_id == id && client->whole_total == fragment->total &&
           client->whole_have == fragment->offset;
}

static enum outcome take_fragment(struct jmk_client *client, struct jmk_batch *batch,
                                  const struct jmk_header *header, const uint8_t *payload) {
    struct jmk_fragment fragment;

    if (!jmk_fragment_decode(header, payload, &fragment))
        return fault(client, "a fragment's figures contradict each other");
    if (fragment.offset == 0 && client->whole_id != header->id) {
        if (batch->count)
            return BEFORE;
        if (start_whole(client, header->id, fragment.total) == FAULT)
            return FAULT;
    }
    if (!continues(client, header->id, &fragment))
        return fault(client, "a fragment does not continue its message");
    memcpy(client->whole->memory + fragment.offset, payload + 8, fragment.slice);
    client->whole_have += fragment.slice;
    return client->whole_have == fragment.total ? finish_whole(client, batch) : ON;
}

static enum outcome take_bye(struct jmk_client *client, const struct jmk_header *header,
                             const uint8_t *payload) {
    if (!jmk_bye_decode(payload, header->size, &client->goodbye))
        return fault(client, "its BYE is too short");
    client->state = ENDED;
    client->filled = client->taken = 0;
    return BEHIND;
}

static enum outcome take_frame(struct jmk_client *client, struct jmk_batch *batch,
                               const struct jmk_header *header, const uint8_t *payload,
                               bool alone) {
    if (header->kind == JMK_KIND_BYE)
        return take_bye(client, header, payload);
    if (header->kind != JMK_KIND_DATA)
        return header->kind & JMK_KIND_CRITICAL
                   ? fault(client, "it sends a critical frame of unknown kind")
                   : ON;
    if (header->flags & JMK_FLAG_FRAGMENT)
        return alone ? take_fragment(client, batch, header, payload)
                     : fault(client, "a fragment shares its packet");
    if (client->whole_id) {
        if (header->id <= client->whole_id)
            return fault(client, "a message in fragments is interrupted");
        client->whole_id = 0; /* given up by the server: a gap */
    }
    return add(client, batch, client->arena, header->id, payload, header->size);
}

/* Do whole frames fill what is left of a packet? */
static bool whole_frames(const uint8_t *data, size_t length) {
    struct jmk_header header;

    while (length) {
        size_t whole = jmk_frame_check(data, length, &header);
        if (!whole)
            return false;
        data += whole;
        length -= whole;
    }
    return true;
}

static enum outcome take_framed(struct jmk_client *client, struct jmk_batch *batch,
                                const uint8_t *data, size_t length) {
    while (client->place < length) {
        struct jmk_header header;
        const uint8_t *at = data + client->place;
        size_t whole = jmk_frame_check(at, length - client->place, &header);
        enum outcome outcome;

        if (!whole)
            return fault(client, "a frame does not fit its packet");
        outcome = take_frame(client, batch, &header, at + JMK_FRAME_HEADER, whole == length);
        if (outcome == BEFORE || outcome == FAULT)
            return outcome;
        client->place += whole;
        if (client->state == ENDED && !whole_frames(at + whole, length - client->place))
            return fault(client, "a frame does not fit its packet");
        if (outcome == BEHIND)
            return BEHIND;
    }
    return ON;
}

static enum outcome take_classic(struct jmk_client *client, struct jmk_batch *batch,
                                 const uint8_t *data, size_t length) {
    uint64_t id;

    if (length < JMK_CLASSIC_HEADER)
        return fault(client, "a packet is too short for a packet id");
    memcpy(&id, data, sizeof id);
    return add(client, batch, client->arena, le64toh(id), data + JMK_CLASSIC_HEADER,
               length - JMK_CLASSIC_HEADER);
}

/* Index the packets in the arena, until the batch has to end. */
static void take_packets(struct jmk_client *client, struct jmk_batch *batch) {
    enum outcome outcome = ON;

    while (outcome == ON && client->taken < client->filled) {
        const uint8_t *data = client->arena->memory + client->taken * client->stride;
        size_t length = client->lengths[client->taken];

        if (client->truncated[client->taken])
            outcome = fault(client, "it sends a packet larger than agreed");
        else if (client->config.mode == JMK_FRAMED)
            outcome = take_framed(client, batch, data, length);
        else
            outcome = take_classic(client, batch, data, length);
        if (client->state != OPEN || outcome == BEFORE ||
            (client->config.mode == JMK_FRAMED && client->place < length))
            break;
        client->taken++;
        client->place = 0;
    }
    if (batch->count) {
        atomic_store(&client->last_id, client->next_id - 1);
        client->unacked_bytes += batch->bytes + batch->count * JMK_FRAME_HEADER;
    }
}

/* ---- receiving ---- */

/* recv gave 0: the end of the stream, or an empty packet. */
static void end_or_empty(struct jmk_client *client) {
    struct pollfd poll_fd = {.fd = client->fd, .events = POLLRDHUP};

    if (poll(&poll_fd, 1, 0) > 0 && poll_fd.revents & (POLLRDHUP | POLLHUP))
        client->state = LOST;
    else
        fault(client, "it sends an empty packet");
}

/* Make sure of an arena for packets, with the slots laid out in it. */
static int own_packets(struct jmk_client *client) {
    struct jmk_arena *before = client->arena;
    int error = own_arena(client, &client->arena, client->slots * client->stride);

    if (error || client->arena == before)
        return error;
    for (size_t i = 0; i < client->slots; i++) {
        client->parts[i] =
            (struct iovec){client->arena->memory + i * client->stride, client->config.max_packet};
        client->packets[i].msg_hdr = (struct msghdr){.msg_iov = &client->parts[i], .msg_iovlen = 1};
    }
    return 0;
}

/* Read what is there into the arena: 0, or -errno. */
static int fill(struct jmk_client *client, int flags) {
    int n, error = own_packets(client);

    if (error)
        return error;
    n = recvmmsg(client->fd, client->packets, (unsigned)client->slots, flags, NULL);
    if (n < 0)
        return -errno;
    client->filled = client->taken = 0;
    client->place = 0;
    for (int i = 0; i < n && client->packets[i].msg_len; i++) {
        client->lengths[i] = client->packets[i].msg_len;
        client->truncated[i] = client->packets[i].msg_hdr.msg_flags & MSG_TRUNC;
        client->filled++;
    }
    client->stopped = client->filled < (unsigned)n;
    return 0;
}

/* Wait for a single packet. 0, or -errno. */
static int fill_one(struct jmk_client *client) {
    int error = own_packets(client);
    ssize_t length;

    if (error)
        return error;
    length = recv(client->fd, client->arena->memory, client->config.max_packet, MSG_TRUNC);
    if (length < 0)
        return -errno;
    client->lengths[0] = (size_t)length;
    client->truncated[0] = (size_t)length > client->config.max_packet;
    client->filled = length > 0;
    client->taken = 0;
    client->place = 0;
    if (!length)
        end_or_empty(client);
    return 0;
}

/* A packet that was received in place turns out to be something else: index it like any other. */
static int move_to_arena(struct jmk_client *client, const uint8_t *header, const uint8_t *rest,
                         size_t length, bool truncated) {
    size_t first = length < JMK_FRAGMENT_HEADER ? length : JMK_FRAGMENT_HEADER;
    int error = own_packets(client);

    if (error)
        return error;
    memcpy(client->arena->memory, header, first);
    memcpy(client->arena->memory + first, rest, length - first);
    client->lengths[0] = length;
    client->truncated[0] = truncated;
    client->filled = 1;
    client->taken = 0;
    client->place = 0;
    return 0;
}

/* Read the next fragment of the message in the making to its place. 0, or -errno. */
static int fill_whole(struct jmk_client *client, int flags, struct jmk_batch *batch) {
    uint8_t start[JMK_FRAGMENT_HEADER];
    uint8_t *rest = client->whole->memory + client->whole_have;
    struct iovec parts[2] = {{start, sizeof start},
                             {rest, client->config.max_packet - sizeof start}};
    struct msghdr packet = {.msg_iov = parts, .msg_iovlen = 2};
    struct jmk_fragment fragment;
    struct jmk_header header;
    ssize_t length = recvmsg(client->fd, &packet, flags);

    if (length < 0)
        return -errno;
    if (length == 0) {
        end_or_empty(client);
        return 0;
    }
    header = jmk_frame_decode(start);
    if ((size_t)length <= sizeof start || packet.msg_flags & MSG_TRUNC ||
        (size_t)length != jmk_frame_length(header.size) || header.kind != JMK_KIND_DATA ||
        !(header.flags & JMK_FLAG_FRAGMENT) ||
        !jmk_fragment_decode(&header, start + JMK_FRAME_HEADER, &fragment) ||
        !continues(client, header.id, &fragment))
        return move_to_arena(client, start, rest, (size_t)length, packet.msg_flags & MSG_TRUNC);
    client->whole_have += fragment.slice;
    if (client->whole_have == fragment.total) {
        finish_whole(client, batch);
        take_packets(client, batch); /* none are left; this closes the batch's books */
    }
    return 0;
}

static int wait_readable(const struct jmk_client *client, int64_t deadline, bool acks_wait) {
    struct pollfd poll_fd = {.fd = client->fd, .events = POLLIN};
    int64_t left = deadline == INT64_MAX ? 0 : deadline - jmk_now();
    struct timespec limit = {left / JMK_SECOND, left % JMK_SECOND};

    if (left < 0)
        return JMK_E_TIMEOUT;
    if (acks_wait)
        poll_fd.events |= POLLOUT;
    if (ppoll(&poll_fd, 1, deadline == INT64_MAX ? NULL : &limit, NULL) < 0)
        return -errno;
    return 0;
}

/* Read what is there: 0, -EAGAIN if that is nothing, or another error. */
static int read_now(struct jmk_client *client, int flags, struct jmk_batch *batch) {
    int error = client->whole_id ? fill_whole(client, flags, batch) : fill(client, flags);

    /* It closed with unread acks; what it sent before is still readable. */
    return error == -ECONNRESET ? 0 : error;
}

/*
 * Ack, then wait until there is something. Without a deadline the wait is in the read itself, which
 * saves a call; close shuts the socket down, and that ends it.
 */
static int wait_and_read(struct jmk_client *client, uint64_t handled, int64_t deadline,
                         struct jmk_batch *batch) {
    bool acks_wait = ack(client, handled) != 0;
    int64_t before;
    int error;

    client->slow = false;
    if (atomic_load(&client->closed))
        return JMK_E_CLOSED;
    if (deadline != INT64_MAX || acks_wait)
        return wait_readable(client, deadline, acks_wait);
    if (client->whole_id)
        return read_now(client, 0, batch);
    before = jmk_now();
    error = fill_one(client);
    client->slow = jmk_now() - before >= SLOW;
    return error == -ECONNRESET ? 0 : error;
}

/* In a slow stream, where the last read had to wait, there is nothing now: it saves a call. */
static int read_more(struct jmk_client *client, uint64_t handled, int64_t deadline,
                     struct jmk_batch *batch) {
    int error = -EAGAIN;

    if (client->stopped) {
        end_or_empty(client);
        return 0;
    }
    if (!client->slow)
        error = read_now(client, MSG_DONTWAIT, batch);
    return error == -EAGAIN ? wait_and_read(client, handled, deadline, batch) : error;
}

static int receive(struct jmk_client *client, uint64_t handled, int64_t timeout,
                   struct jmk_batch *batch) {
    int64_t deadline = timeout < 0 ? INT64_MAX : jmk_deadline(timeout);
    int error = 0;

    memset(batch, 0, sizeof *batch);
    if (handled > atomic_load(&client->last_id))
        return JMK_E_ACK;
    ack_if_due(client, handled);
    while (!error) {
        take_packets(client, batch);
        if (batch->count)
            return 0;
        if (atomic_load(&client->closed))
            return JMK_E_CLOSED;
        if (client->state != OPEN)
            return (int)client->state;
        error = read_more(client, handled, deadline, batch);
        if (batch->count)
            return 0;
    }
    return error;
}

int jmk_client_receive(jmk_client *client, uint64_t handled, int64_t timeout,
                       struct jmk_batch *out) {
    int error = usable(client);

    if (error)
        return error;
    if (atomic_exchange(&client->busy, true))
        return JMK_E_BUSY;
    error = receive(client, handled, timeout, out);
    atomic_store(&client->busy, false);
    return error;
}

/* ---- asking ---- */

jmk_arena *jmk_client_hold(jmk_client *client) {
    if (client->last)
        atomic_fetch_add(&client->last->refs, 1);
    return client->last;
}

void jmk_client_goodbye(const jmk_client *client, struct jmk_goodbye *out) {
    *out = client->goodbye;
}

const char *jmk_client_fault(const jmk_client *client) {
    return client->fault ? client->fault : "";
}

uint64_t jmk_client_last_id(const jmk_client *client) {
    return atomic_load(&client->last_id);
}

uint64_t jmk_client_acked_id(const jmk_client *client) {
    return atomic_load(&client->acked_id);
}
