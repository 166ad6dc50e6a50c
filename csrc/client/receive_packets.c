/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The inbox: messages that come in packets, classic or framed
 *
 * Packets come by recvmmsg into the slots of an arena, one packet a slot, and an index of the
 * messages in them is made there too; Python takes a batch of index entries at a time. Packets that
 * a batch did not use up (it ends at a gap in the ids, and when the index is full) stay in the arena
 * for the next.
 *
 * A message in fragments is put together in an arena of its own. It makes a batch of one.
 *
 * Acks. Classic: one for each packet, as 1.0 has it, sent many at a time. Framed: cumulative, sent
 * when a receive is about to wait, and when messages, bytes or time since the last one say so; a
 * quarter of max_lag is the most that is ever kept back. An ack that the socket refuses is not lost:
 * the cursor stays where it is, and the next one covers it.
 *
 * Labels. The ids of a plain 1.0 server mean nothing (labels.c): its messages get ids of ours here, and acks
 * are sent with its own.
 *
 * Everything from the server is checked here: the length of each packet and frame, ids, fragments.
 * What is wrong ends the connection for good: state says so to every later receive.
 */
#include <errno.h>

#include "client/connection.h"
#include "common/os.h"

#define ACK_BYTES 65536           /* received and not acked */
#define ACK_TIME (10 * 1000000LL) /* ns */
#define SLOW 20000                /* ns of waiting that make a stream a slow one */
#define ACKS 64                   /* classic acks a sendmmsg */

int jmk_inbox_init(struct jmk_client *client) {
    struct jmk_inbox *inbox = &client->inbox;

    inbox->pool = jmk_pool_new();
    if (!inbox->pool)
        return -ENOMEM;
    if (client->config.labels) {
        inbox->labels = jmk_labels_new();
        if (!inbox->labels)
            return -ENOMEM;
    }
    inbox->acked_at = jmk_now();
    /* One line more than a packet: slots that start alike would compete for the same cache sets. */
    inbox->stride = ((client->config.max_packet + 63u) & ~(size_t)63) + 64;
    inbox->slots = client->config.arena_size / inbox->stride;
    if (inbox->slots < 1)
        inbox->slots = 1;
    if (inbox->slots > JMK_MAX_SLOTS)
        inbox->slots = JMK_MAX_SLOTS;
    return 0;
}

static void inbox_free(struct jmk_client *client) {
    jmk_packets_free(client->inbox.arena);
    jmk_packets_free(client->inbox.whole);
    client->inbox.labels = jmk_labels_free(client->inbox.labels);
    if (client->inbox.pool)
        jmk_pool_close(client->inbox.pool);
}

static struct jmk_arena *inbox_hold(struct jmk_client *client) {
    struct jmk_packets *last = client->inbox.last;

    if (!last)
        return NULL;
    atomic_fetch_add(&last->arena.refs, 1);
    return &last->arena;
}

/* ---- acks ---- */

static int ack_framed(struct jmk_client *client, uint64_t handled) {
    uint64_t word = htole64(handled);

    if (jmk_connection_refused(send(client->fd, &word, sizeof word, MSG_DONTWAIT | MSG_NOSIGNAL)))
        return -EAGAIN;
    atomic_store(&client->acked_id, handled);
    client->inbox.unacked_bytes = 0;
    client->inbox.acked_at = jmk_now();
    return 0;
}

static uint64_t after(const struct jmk_client *client, uint64_t id) {
    return id + 1 == client->inbox.hole_first ? client->inbox.hole_last + 1 : id + 1;
}

/* What the packet carried as its id. */
static uint64_t label_of(const struct jmk_client *client, uint64_t id) {
    return client->inbox.labels ? jmk_labels_of(client->inbox.labels, id) : id;
}

static int ack_classic(struct jmk_client *client, uint64_t handled) {
    uint64_t words[ACKS], acked = atomic_load(&client->acked_id), ids[ACKS];
    struct iovec parts[ACKS];
    struct mmsghdr packets[ACKS];

    memset(packets, 0, sizeof packets);
    while (after(client, acked) <= handled) {
        uint64_t id = acked;
        unsigned n = 0;
        int sent;

        for (; n < ACKS && after(client, id) <= handled; n++) {
            id = ids[n] = after(client, id);
            words[n] = htole64(label_of(client, id));
            parts[n] = (struct iovec){&words[n], sizeof words[n]};
            packets[n].msg_hdr.msg_iov = &parts[n];
            packets[n].msg_hdr.msg_iovlen = 1;
        }
        sent = jmk_sendmmsg(client->fd, packets, n, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (jmk_connection_refused(sent))
            return -EAGAIN;
        acked = sent < 0 ? handled : ids[sent - 1];
        atomic_store(&client->acked_id, acked);
    }
    return 0;
}

static int inbox_ack(struct jmk_client *client, uint64_t handled) {
    if (client->config.mode == JMK_FRAMED)
        return ack_framed(client, handled);
    return ack_classic(client, handled);
}

static bool inbox_ack_is_due(const struct jmk_client *client, uint64_t handled) {
    uint64_t quarter = client->config.max_lag / 4, acked = atomic_load(&client->acked_id);

    return client->config.mode == JMK_CLASSIC || client->inbox.unacked_bytes >= ACK_BYTES ||
           (client->config.max_lag && handled - acked >= quarter) ||
           jmk_now() - client->inbox.acked_at >= ACK_TIME;
}

/* ---- the index ---- */

/* What a frame, or a packet, means for the batch in the making. */
enum outcome {
    ON,     /* go on with the next */
    BEFORE, /* the batch ends before it */
    BEHIND, /* the batch ends with it */
    FAULT   /* the server broke the protocol */
};

static enum outcome fault(struct jmk_client *client, enum jmk_fault_kind kind, uint64_t found,
                          uint64_t due) {
    jmk_connection_break(client, kind, found, due);
    client->inbox.filled = client->inbox.taken = 0;
    return FAULT;
}

/* Put one message into the batch. */
static enum outcome add(struct jmk_client *client, struct jmk_batch *batch,
                        struct jmk_packets *arena, uint64_t id, const void *data, size_t size) {
    if (id == UINT64_MAX || (id == 0 && !client->next_id))
        return fault(client, JMK_FAULT_ID, id, 0);
    if (client->next_id && id != client->next_id) {
        if (id < client->next_id)
            return fault(client, JMK_FAULT_BACKWARDS, id, client->next_id);
        if (batch->count)
            return BEFORE;
        batch->lost = id - client->next_id;
        /* One that no ack has passed yet grows: what never came is never acked. */
        if (atomic_load(&client->acked_id) >= client->inbox.hole_last)
            client->inbox.hole_first = client->next_id;
        client->inbox.hole_last = id - 1;
    }
    if (!batch->count) {
        batch->items = arena->items;
        batch->first_id = id;
        client->inbox.last = arena;
        if (!atomic_load_explicit(&client->last_id, memory_order_relaxed))
            atomic_store(&client->acked_id, id - 1);
    }
    arena->items[batch->count++] = (struct jmk_slice){data, size};
    batch->bytes += size;
    client->next_id = id + 1;
    return batch->count == JMK_MAX_ITEMS ? BEHIND : ON;
}

static enum outcome finish_whole(struct jmk_client *client, struct jmk_batch *batch) {
    uint64_t id = client->inbox.whole_id;
    enum outcome outcome;

    client->inbox.whole_id = 0;
    outcome = add(client, batch, client->inbox.whole, id, client->inbox.whole->memory,
                  client->inbox.whole_total);
    return outcome == ON ? BEHIND : outcome;
}

static enum outcome start_whole(struct jmk_client *client, uint64_t id, uint32_t total) {
    if (total > client->config.max_message)
        return fault(client, JMK_FAULT_MESSAGE_SIZE, total, client->config.max_message);
    if (client->next_id && id < client->next_id)
        return fault(client, JMK_FAULT_BACKWARDS, id, client->next_id);
    client->inbox.whole_id = 0;
    if (jmk_packets_own(client->inbox.pool, &client->inbox.whole, total))
        return BEFORE; /* inbox_more says that there was no memory for it */
    client->inbox.whole_id = id;
    client->inbox.whole_total = total;
    client->inbox.whole_have = 0;
    return ON;
}

static bool continues(const struct jmk_client *client, uint64_t id,
                      const struct jmk_fragment *fragment) {
    return client->inbox.whole_id == id && client->inbox.whole_total == fragment->total &&
           client->inbox.whole_have == fragment->offset;
}

static enum outcome take_fragment(struct jmk_client *client, struct jmk_batch *batch,
                                  const struct jmk_header *header, const uint8_t *payload) {
    struct jmk_fragment fragment;

    if (!jmk_fragment_decode(header, payload, &fragment))
        return fault(client, JMK_FAULT_FRAGMENT, header->id, 0);
    if (fragment.offset == 0 && client->inbox.whole_id != header->id) {
        enum outcome outcome =
            batch->count ? BEFORE : start_whole(client, header->id, fragment.total);
        if (outcome != ON)
            return outcome;
    }
    if (!continues(client, header->id, &fragment))
        return fault(client, JMK_FAULT_CONTINUATION, header->id, 0);
    memcpy(client->inbox.whole->memory + fragment.offset, payload + 8, fragment.slice);
    client->inbox.whole_have += fragment.slice;
    return client->inbox.whole_have == fragment.total ? finish_whole(client, batch) : ON;
}

static enum outcome take_bye(struct jmk_client *client, const struct jmk_header *header,
                             const uint8_t *payload) {
    client->inbox.filled = client->inbox.taken = 0;
    if (!jmk_connection_say_bye(client, header, payload))
        return FAULT;
    if (header->id >= client->next_id)
        jmk_connection_lose_rest(client, header->id);
    return BEHIND;
}

static enum outcome take_frame(struct jmk_client *client, struct jmk_batch *batch,
                               const struct jmk_header *header, const uint8_t *payload,
                               bool alone) {
    if (header->kind == JMK_KIND_BYE)
        return take_bye(client, header, payload);
    if (header->kind != JMK_KIND_DATA)
        return header->kind & JMK_KIND_CRITICAL ? fault(client, JMK_FAULT_KIND, header->kind, 0)
                                                : ON;
    if (header->flags & JMK_FLAG_FRAGMENT)
        return alone ? take_fragment(client, batch, header, payload)
                     : fault(client, JMK_FAULT_COMPANY, header->id, 0);
    if (client->inbox.whole_id) {
        if (header->id <= client->inbox.whole_id)
            return fault(client, JMK_FAULT_INTERRUPTED, header->id, client->inbox.whole_id);
        client->inbox.whole_id = 0; /* given up by the server: a gap */
    }
    return add(client, batch, client->inbox.arena, header->id, payload, header->size);
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
    while (client->inbox.place < length) {
        struct jmk_header header;
        const uint8_t *at = data + client->inbox.place;
        size_t whole = jmk_frame_check(at, length - client->inbox.place, &header);
        enum outcome outcome;

        if (!whole)
            return fault(client, JMK_FAULT_FRAME, length, 0);
        outcome = take_frame(client, batch, &header, at + JMK_FRAME_HEADER, whole == length);
        if (outcome == BEFORE || outcome == FAULT)
            return outcome;
        client->inbox.place += whole;
        if (client->state == JMK_ENDED && !whole_frames(at + whole, length - client->inbox.place))
            return fault(client, JMK_FAULT_FRAME, length, 0);
        if (outcome == BEHIND)
            return BEHIND;
    }
    return ON;
}

/*
 * A message of a plain 1.0 server, whose ids are labels, gets an id of ours. False: it is for a later batch,
 * or has to wait until there is room for its label.
 */
static bool number(struct jmk_client *client, struct jmk_batch *batch, uint64_t label,
                   uint64_t *id) {
    struct jmk_labels *labels = client->inbox.labels;

    *id = client->next_id ? client->next_id : jmk_labels_start(label);
    if (!jmk_labels_go_on(labels, *id, label) &&
        (batch->count || !jmk_labels_add(labels, *id, label, atomic_load(&client->acked_id))))
        return false;
    batch->shift = label - *id;
    return true;
}

static enum outcome take_classic(struct jmk_client *client, struct jmk_batch *batch,
                                 const uint8_t *data, size_t length) {
    uint64_t id;

    if (length < JMK_CLASSIC_HEADER)
        return fault(client, JMK_FAULT_NO_ID, length, JMK_CLASSIC_HEADER);
    memcpy(&id, data, sizeof id);
    id = le64toh(id);
    if (client->inbox.labels && !number(client, batch, id, &id))
        return BEFORE;
    return add(client, batch, client->inbox.arena, id, data + JMK_CLASSIC_HEADER,
               length - JMK_CLASSIC_HEADER);
}

/* Index the packets in the arena, until the batch has to end. */
static void inbox_take(struct jmk_client *client, struct jmk_batch *batch) {
    enum outcome outcome = ON;

    while (outcome == ON && client->inbox.taken < client->inbox.filled) {
        const uint8_t *data =
            client->inbox.arena->memory + client->inbox.taken * client->inbox.stride;
        size_t length = client->inbox.headers[client->inbox.taken].msg_len;

        if (length > client->config.max_packet)
            outcome = fault(client, JMK_FAULT_PACKET_SIZE, length, client->config.max_packet);
        else if (client->config.mode == JMK_FRAMED)
            outcome = take_framed(client, batch, data, length);
        else
            outcome = take_classic(client, batch, data, length);
        if (client->state != JMK_OPEN || outcome == BEFORE ||
            (client->config.mode == JMK_FRAMED && client->inbox.place < length))
            break;
        client->inbox.taken++;
        client->inbox.place = 0;
    }
    if (batch->count) {
        atomic_store(&client->last_id, client->next_id - 1);
        client->inbox.unacked_bytes += batch->bytes + batch->count * JMK_FRAME_HEADER;
    }
}

/* ---- receiving ---- */

/* Make sure of an arena for packets, with the slots laid out in it. */
static int own_packets(struct jmk_client *client) {
    struct jmk_packets *before = client->inbox.arena;
    int error = jmk_packets_own(client->inbox.pool, &client->inbox.arena,
                                client->inbox.slots * client->inbox.stride);

    if (error || client->inbox.arena == before)
        return error;
    for (size_t i = 0; i < client->inbox.slots; i++) {
        client->inbox.parts[i] = (struct iovec){
            client->inbox.arena->memory + i * client->inbox.stride, client->config.max_packet};
        client->inbox.headers[i].msg_hdr =
            (struct msghdr){.msg_iov = &client->inbox.parts[i], .msg_iovlen = 1};
    }
    return 0;
}

/*
 * Take packets one by one, as descriptors may come with any of them: how many, or -errno. One with
 * descriptors ends the connection once all before it are used up.
 */
static int take_guarded(struct jmk_client *client, int flags) {
    struct mmsghdr *packets = client->inbox.headers;
    int n = 0, error = 0;

    while (!error && n < (int)client->inbox.slots) {
        ssize_t length = 0;

        error = n ? jmk_guard_check(&client->guard, client->fd, MSG_DONTWAIT)
                  : jmk_connection_check(client, flags & MSG_DONTWAIT);
        if (!error)
            length = recvmsg(client->fd, &packets[n].msg_hdr, MSG_DONTWAIT | MSG_TRUNC);
        if (length < 0)
            error = -errno;
        if (!error)
            packets[n++].msg_len = (unsigned)length;
        if (!length)
            break; /* descriptors, an empty packet, or the end */
    }
    return n || error > 0 ? n : error;
}

static int take_packets(struct jmk_client *client, int flags) {
    int n;

    if (client->guard != JMK_GUARD_NONE)
        return take_guarded(client, flags);
    n = jmk_recvmmsg(client->fd, client->inbox.headers, (unsigned)client->inbox.slots,
                     flags | MSG_TRUNC);
    return n < 0 ? -errno : n;
}

/*
 * Read packets into the arena: 0, or -errno. flags: MSG_DONTWAIT, or MSG_WAITFORONE to wait for the
 * first one.
 */
static int fill(struct jmk_client *client, int flags) {
    int n, error = own_packets(client);

    if (error)
        return error;
    n = take_packets(client, flags);
    if (n < 0)
        return n;
    client->inbox.filled = client->inbox.taken = 0;
    client->inbox.place = 0;
    while (client->inbox.filled < (unsigned)n &&
           client->inbox.headers[client->inbox.filled].msg_len)
        client->inbox.filled++;
    client->inbox.stopped = client->inbox.filled < (unsigned)n;
    return 0;
}

/* Read packets: 0, -EAGAIN if there is none, or another error. */
static int read_packets(struct jmk_client *client, int flags) {
    int error = fill(client, flags);

    /* It closed with unread acks; what it sent before is still readable. */
    return error == -ECONNRESET ? 0 : error;
}

/*
 * Ack, then wait until there is something. Without a deadline the wait is in the read itself, which
 * saves a call; close shuts the socket down, and that ends it.
 */
static int wait_and_read(struct jmk_client *client, uint64_t handled, int64_t deadline) {
    bool acks_wait = handled > atomic_load(&client->acked_id) && inbox_ack(client, handled) != 0;
    int64_t before;
    int error;

    client->inbox.slow = false;
    if (atomic_load(&client->closed))
        return JMK_E_CLOSED;
    if (deadline != INT64_MAX || acks_wait)
        return jmk_connection_wait(client, deadline, acks_wait ? POLLIN | POLLOUT : POLLIN);
    before = jmk_now();
    error = fill(client, MSG_WAITFORONE);
    client->inbox.slow = jmk_now() - before >= SLOW;
    return jmk_connection_waited(client, error);
}

/* What is there could not be taken, for want of memory, or of room for labels, which acks make. */
static int wait_to_take(struct jmk_client *client, uint64_t handled, int64_t deadline) {
    if (!client->inbox.labels || handled <= atomic_load(&client->acked_id))
        return -ENOMEM;
    return inbox_ack(client, handled) == 0 ? 0 : jmk_connection_wait(client, deadline, POLLOUT);
}

/* In a slow stream, where the last read had to wait, there is nothing now: it saves a call. */
static int inbox_more(struct jmk_client *client, uint64_t handled, int64_t deadline) {
    int error = -EAGAIN;

    if (client->inbox.stopped) {
        jmk_connection_end_or_break(client);
        return 0;
    }
    if (client->inbox.taken < client->inbox.filled)
        return wait_to_take(client, handled, deadline);
    if (!client->inbox.slow)
        error = read_packets(client, MSG_DONTWAIT);
    return error == -EAGAIN ? wait_and_read(client, handled, deadline) : error;
}

const struct jmk_source jmk_inbox = {
    .take = inbox_take,
    .more = inbox_more,
    .ack = inbox_ack,
    .ack_is_due = inbox_ack_is_due,
    .hold = inbox_hold,
    .free = inbox_free,
};
