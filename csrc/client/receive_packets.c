/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Receiving packets: messages over the socket, classic or framed
 *
 * recvmmsg fills the slots of an arena, one packet per slot. An index of the messages in them is made
 * in the same arena, and Python takes a batch of index entries at a time. A batch ends at a gap in the
 * ids, and when the index is full. Packets that it did not use up stay in the arena for the next one.
 *
 * The fragments of a message are copied together into an arena of its own. It makes a batch of one.
 *
 * Classic acks: one per packet, as 1.0 has it, many per sendmmsg. Framed acks are cumulative. One is
 * sent before a receive waits, and before that once ACK_BYTES, ACK_TIME or a quarter of max_lag have
 * passed since the last one. An ack that the socket refuses is not lost: acked_id stays where it is,
 * and the next ack covers it.
 *
 * The ids of a plain 1.0 server mean nothing (labels.c). Its messages get ids of ours here, and acks
 * carry the server's own.
 *
 * Everything from the server is checked here: the length of each packet and frame, ids, fragments.
 * What is wrong ends the connection for good, and each later receive returns that code.
 */
#include <errno.h>

#include "client/connection.h"
#include "common/os.h"

#define ACK_BYTES 65536           /* received and not acked */
#define ACK_TIME (10 * 1000000LL) /* ns */
#define SLOW 20000                /* ns: a read that waited this long is of a slow stream */
#define ACKS 64                   /* classic acks per sendmmsg */

int jmk_receive_packets_init(struct jmk_client *client) {
    struct jmk_packet_state *packets = &client->packets;

    packets->pool = jmk_pool_new();
    if (!packets->pool)
        return -ENOMEM;
    if (client->config.labels) {
        packets->labels = jmk_labels_new();
        if (!packets->labels)
            return -ENOMEM;
    }
    packets->acked_at = jmk_now();
    /* One line more than a packet: slots that start alike would compete for the same cache sets. */
    packets->stride = ((client->config.max_packet + 63u) & ~(size_t)63) + 64;
    packets->slots = client->config.arena_size / packets->stride;
    if (packets->slots < 1)
        packets->slots = 1;
    if (packets->slots > JMK_MAX_SLOTS)
        packets->slots = JMK_MAX_SLOTS;
    return 0;
}

static void free_packets(struct jmk_client *client) {
    jmk_arena_release(client->packets.arena);
    jmk_arena_release(client->packets.message);
    client->packets.labels = jmk_labels_free(client->packets.labels);
    if (client->packets.pool)
        jmk_pool_close(client->packets.pool);
}

static struct jmk_held *hold_batch(struct jmk_client *client) {
    struct jmk_arena *last = client->packets.last;

    if (!last)
        return NULL;
    atomic_fetch_add(&last->held.refs, 1);
    return &last->held;
}

/* ---- acks ---- */

static int ack_framed(struct jmk_client *client, uint64_t handled) {
    uint64_t word = htole64(handled);

    if (jmk_connection_refused(send(client->fd, &word, sizeof word, MSG_DONTWAIT | MSG_NOSIGNAL)))
        return -EAGAIN;
    atomic_store(&client->acked_id, handled);
    client->packets.unacked_bytes = 0;
    client->packets.acked_at = jmk_now();
    return 0;
}

static uint64_t after(const struct jmk_client *client, uint64_t id) {
    return id + 1 == client->packets.hole_first ? client->packets.hole_last + 1 : id + 1;
}

/* What the packet carried as its id. */
static uint64_t label_of(const struct jmk_client *client, uint64_t id) {
    return client->packets.labels ? jmk_labels_of(client->packets.labels, id) : id;
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

static int send_ack(struct jmk_client *client, uint64_t handled) {
    if (client->config.delivery == JMK_FRAMED)
        return ack_framed(client, handled);
    return ack_classic(client, handled);
}

static bool ack_is_due(const struct jmk_client *client, uint64_t handled) {
    uint64_t quarter = client->config.max_lag / 4, acked = atomic_load(&client->acked_id);

    return client->config.delivery == JMK_CLASSIC || client->packets.unacked_bytes >= ACK_BYTES ||
           (client->config.max_lag && handled - acked >= quarter) ||
           jmk_now() - client->packets.acked_at >= ACK_TIME;
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
    client->packets.filled = client->packets.taken = 0;
    return FAULT;
}

/* Put one message into the batch. */
static enum outcome add_message(struct jmk_client *client, struct jmk_batch *batch,
                                struct jmk_arena *arena, uint64_t id, const void *data,
                                size_t size) {
    if (id == UINT64_MAX || (id == 0 && !client->next_id))
        return fault(client, JMK_FAULT_ID, id, 0);
    if (client->next_id && id != client->next_id) {
        if (id < client->next_id)
            return fault(client, JMK_FAULT_BACKWARDS, id, client->next_id);
        if (batch->count)
            return BEFORE;
        batch->lost = id - client->next_id;
        /* If no ack has passed the last gap yet, it grows: what never came is never acked. */
        if (atomic_load(&client->acked_id) >= client->packets.hole_last)
            client->packets.hole_first = client->next_id;
        client->packets.hole_last = id - 1;
    }
    if (!batch->count) {
        batch->items = arena->items;
        batch->first_id = id;
        client->packets.last = arena;
        if (!atomic_load_explicit(&client->last_id, memory_order_relaxed))
            atomic_store(&client->acked_id, id - 1);
    }
    arena->items[batch->count++] = (struct jmk_slice){data, size};
    batch->bytes += size;
    client->next_id = id + 1;
    return batch->count == client->most ? BEHIND : ON;
}

static enum outcome finish_message(struct jmk_client *client, struct jmk_batch *batch) {
    uint64_t id = client->packets.message_id;
    enum outcome outcome;

    client->packets.message_id = 0;
    outcome = add_message(client, batch, client->packets.message, id,
                          client->packets.message->memory, client->packets.message_size);
    return outcome == ON ? BEHIND : outcome;
}

static enum outcome start_message(struct jmk_client *client, uint64_t id, uint32_t total) {
    if (total > client->config.max_message)
        return fault(client, JMK_FAULT_MESSAGE_SIZE, total, client->config.max_message);
    if (client->next_id && id < client->next_id)
        return fault(client, JMK_FAULT_BACKWARDS, id, client->next_id);
    client->packets.message_id = 0;
    if (jmk_arena_own(client->packets.pool, &client->packets.message, total))
        return BEFORE; /* wait_for_more says that there was no memory for it */
    client->packets.message_id = id;
    client->packets.message_size = total;
    client->packets.message_have = 0;
    return ON;
}

static bool continues(const struct jmk_client *client, uint64_t id,
                      const struct jmk_fragment *fragment) {
    return client->packets.message_id == id && client->packets.message_size == fragment->total &&
           client->packets.message_have == fragment->offset;
}

static enum outcome add_fragment(struct jmk_client *client, struct jmk_batch *batch,
                                 const struct jmk_header *header, const uint8_t *payload) {
    struct jmk_fragment fragment;

    if (!jmk_fragment_decode(header, payload, &fragment))
        return fault(client, JMK_FAULT_FRAGMENT, header->id, 0);
    if (fragment.offset == 0 && client->packets.message_id != header->id) {
        enum outcome outcome =
            batch->count ? BEFORE : start_message(client, header->id, fragment.total);
        if (outcome != ON)
            return outcome;
    }
    if (!continues(client, header->id, &fragment))
        return fault(client, JMK_FAULT_CONTINUATION, header->id, 0);
    memcpy(client->packets.message->memory + fragment.offset, payload + 8, fragment.slice);
    client->packets.message_have += fragment.slice;
    return client->packets.message_have == fragment.total ? finish_message(client, batch) : ON;
}

static enum outcome end_by_bye(struct jmk_client *client, const struct jmk_header *header,
                               const uint8_t *payload) {
    client->packets.filled = client->packets.taken = 0;
    if (!jmk_connection_decode_bye(client, header, payload))
        return FAULT;
    if (header->id >= client->next_id)
        jmk_connection_lose_rest(client, header->id);
    return BEHIND;
}

static enum outcome index_frame(struct jmk_client *client, struct jmk_batch *batch,
                                const struct jmk_header *header, const uint8_t *payload,
                                bool alone) {
    if (header->kind == JMK_KIND_BYE)
        return end_by_bye(client, header, payload);
    if (header->kind != JMK_KIND_DATA)
        return header->kind & JMK_KIND_CRITICAL ? fault(client, JMK_FAULT_KIND, header->kind, 0)
                                                : ON;
    if (header->flags & JMK_FLAG_FRAGMENT)
        return alone ? add_fragment(client, batch, header, payload)
                     : fault(client, JMK_FAULT_COMPANY, header->id, 0);
    if (client->packets.message_id) {
        if (header->id <= client->packets.message_id)
            return fault(client, JMK_FAULT_INTERRUPTED, header->id, client->packets.message_id);
        client->packets.message_id = 0; /* given up by the server: a gap */
    }
    return add_message(client, batch, client->packets.arena, header->id, payload, header->size);
}

/* Do whole frames fill what is left of a packet? */
static bool has_whole_frames(const uint8_t *data, size_t length) {
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

static enum outcome index_framed_packet(struct jmk_client *client, struct jmk_batch *batch,
                                        const uint8_t *data, size_t length) {
    while (client->packets.place < length) {
        struct jmk_header header;
        const uint8_t *at = data + client->packets.place;
        size_t whole = jmk_frame_check(at, length - client->packets.place, &header);
        enum outcome outcome;

        if (!whole)
            return fault(client, JMK_FAULT_FRAME, length, 0);
        outcome = index_frame(client, batch, &header, at + JMK_FRAME_HEADER, whole == length);
        if (outcome == BEFORE || outcome == FAULT)
            return outcome;
        client->packets.place += whole;
        if (client->state == JMK_ENDED &&
            !has_whole_frames(at + whole, length - client->packets.place))
            return fault(client, JMK_FAULT_FRAME, length, 0);
        if (outcome == BEHIND)
            return BEHIND;
    }
    return ON;
}

/*
 * A message of a plain 1.0 server, whose ids are labels, gets an id of ours. False: it is for a later
 * batch, or has to wait until there is room for its label.
 */
static bool number_message(struct jmk_client *client, struct jmk_batch *batch, uint64_t label,
                           uint64_t *id) {
    struct jmk_labels *labels = client->packets.labels;

    *id = client->next_id ? client->next_id : jmk_labels_start(label);
    if (!jmk_labels_go_on(labels, *id, label) &&
        (batch->count || !jmk_labels_add(labels, *id, label, atomic_load(&client->acked_id))))
        return false;
    batch->shift = label - *id;
    return true;
}

static enum outcome index_classic_packet(struct jmk_client *client, struct jmk_batch *batch,
                                         const uint8_t *data, size_t length) {
    uint64_t id;

    if (length < JMK_CLASSIC_HEADER)
        return fault(client, JMK_FAULT_NO_ID, length, JMK_CLASSIC_HEADER);
    memcpy(&id, data, sizeof id);
    id = le64toh(id);
    if (client->packets.labels && !number_message(client, batch, id, &id))
        return BEFORE;
    return add_message(client, batch, client->packets.arena, id, data + JMK_CLASSIC_HEADER,
                       length - JMK_CLASSIC_HEADER);
}

/* Index the packets in the arena, until the batch has to end. */
static void index_batch(struct jmk_client *client, struct jmk_batch *batch) {
    enum outcome outcome = ON;

    while (outcome == ON && client->packets.taken < client->packets.filled) {
        const uint8_t *data =
            client->packets.arena->memory + client->packets.taken * client->packets.stride;
        size_t length = client->packets.headers[client->packets.taken].msg_len;

        if (length > client->config.max_packet)
            outcome = fault(client, JMK_FAULT_PACKET_SIZE, length, client->config.max_packet);
        else if (client->config.delivery == JMK_FRAMED)
            outcome = index_framed_packet(client, batch, data, length);
        else
            outcome = index_classic_packet(client, batch, data, length);
        if (client->state != JMK_OPEN || outcome == BEFORE ||
            (client->config.delivery == JMK_FRAMED && client->packets.place < length))
            break;
        client->packets.taken++;
        client->packets.place = 0;
    }
    if (batch->count) {
        atomic_store(&client->last_id, client->next_id - 1);
        client->packets.unacked_bytes += batch->bytes + batch->count * JMK_FRAME_HEADER;
    }
}

/* ---- receiving ---- */

/* Make sure of an arena for packets, with the slots laid out in it. */
static int own_arena(struct jmk_client *client) {
    struct jmk_arena *before = client->packets.arena;
    int error = jmk_arena_own(client->packets.pool, &client->packets.arena,
                              client->packets.slots * client->packets.stride);

    if (error || client->packets.arena == before)
        return error;
    for (size_t i = 0; i < client->packets.slots; i++) {
        client->packets.parts[i] = (struct iovec){
            client->packets.arena->memory + i * client->packets.stride, client->config.max_packet};
        client->packets.headers[i].msg_hdr =
            (struct msghdr){.msg_iov = &client->packets.parts[i], .msg_iovlen = 1};
    }
    return 0;
}

/*
 * Take packets one by one, as descriptors may come with any of them: how many, or -errno. One with
 * descriptors ends the connection once all before it are used up.
 */
static int read_guarded(struct jmk_client *client, int flags) {
    struct mmsghdr *packets = client->packets.headers;
    int n = 0, error = 0;

    while (!error && n < (int)client->packets.slots) {
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

static int read_slots(struct jmk_client *client, int flags) {
    int n;

    if (client->guard != JMK_GUARD_NONE)
        return read_guarded(client, flags);
    n = jmk_recvmmsg(client->fd, client->packets.headers, (unsigned)client->packets.slots,
                     flags | MSG_TRUNC);
    return n < 0 ? -errno : n;
}

/*
 * Read packets into the arena: 0, or -errno. flags: MSG_DONTWAIT, or MSG_WAITFORONE to wait for the
 * first one.
 */
static int fill_arena(struct jmk_client *client, int flags) {
    int n, error = own_arena(client);

    if (error)
        return error;
    n = read_slots(client, flags);
    if (n < 0)
        return n;
    client->packets.filled = client->packets.taken = 0;
    client->packets.place = 0;
    while (client->packets.filled < (unsigned)n &&
           client->packets.headers[client->packets.filled].msg_len)
        client->packets.filled++;
    client->packets.stopped = client->packets.filled < (unsigned)n;
    return 0;
}

/* Read packets: 0, -EAGAIN if there is none, or another error. */
static int read_packets(struct jmk_client *client, int flags) {
    int error = fill_arena(client, flags);

    /* It closed with unread acks; what it sent before is still readable. */
    return error == -ECONNRESET ? 0 : error;
}

/*
 * Ack, then wait until there is something. Without a deadline the wait is in the read itself, which
 * saves a call; close shuts the socket down, and that ends it.
 */
static int wait_and_read(struct jmk_client *client, uint64_t handled, int64_t deadline) {
    bool acks_wait = handled > atomic_load(&client->acked_id) && send_ack(client, handled) != 0;
    int64_t before;
    int error;

    client->packets.slow = false;
    if (atomic_load(&client->closed))
        return JMK_E_CLOSED;
    if (deadline != INT64_MAX || acks_wait)
        return jmk_connection_wait(client, deadline, acks_wait ? POLLIN | POLLOUT : POLLIN);
    before = jmk_now();
    error = fill_arena(client, MSG_WAITFORONE);
    client->packets.slow = jmk_now() - before >= SLOW;
    return jmk_connection_waited(client, error);
}

/* Packets could not be indexed: there is no memory, or the labels are full, which acks mend. */
static int wait_to_index(struct jmk_client *client, uint64_t handled, int64_t deadline) {
    if (!client->packets.labels || handled <= atomic_load(&client->acked_id))
        return -ENOMEM;
    return send_ack(client, handled) == 0 ? 0 : jmk_connection_wait(client, deadline, POLLOUT);
}

/*
 * If the last read had to wait, there is probably nothing now: a look that never waits is left out,
 * unless there is no time to wait.
 */
static int wait_for_more(struct jmk_client *client, uint64_t handled, int64_t deadline) {
    int error = -EAGAIN;

    if (client->packets.stopped) {
        jmk_connection_end_or_break(client);
        return 0;
    }
    if (client->packets.taken < client->packets.filled)
        return wait_to_index(client, handled, deadline);
    if (!client->packets.slow || deadline <= jmk_now())
        error = read_packets(client, MSG_DONTWAIT);
    return error == -EAGAIN ? wait_and_read(client, handled, deadline) : error;
}

/* Packets that wait for room for their labels wait for acks; so they count as nothing there. */
static enum jmk_outlook look_ahead(struct jmk_client *client, bool waited) {
    const struct jmk_packet_state *packets = &client->packets;

    if (packets->stopped || (packets->taken < packets->filled && !(waited && packets->labels)))
        return JMK_HAS_MORE;
    return waited && client->handled > atomic_load(&client->acked_id) ? JMK_WANTS_ROOM
                                                                      : JMK_WOULD_WAIT;
}

const struct jmk_delivery_ops jmk_receive_packets = {
    .index_batch = index_batch,
    .wait_for_more = wait_for_more,
    .send_ack = send_ack,
    .ack_is_due = ack_is_due,
    .look_ahead = look_ahead,
    .hold_batch = hold_batch,
    .free = free_packets,
};
