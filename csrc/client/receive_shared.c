/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Receiving from the shared log: messages straight from the server's memory
 *
 * The log is mapped for reading (map.c), and a batch is an index of frames where they lie. Nothing is
 * copied here, and a steady stream makes no system call: the log's end is a word in its header page,
 * and an ack is a word in the client's own page.
 *
 * Frames from the client's ack on stay until the lag policy cuts or skips the client. So after copying
 * messages out, the caller loads the log's tail once per batch (jmk_client_batch_is_intact). If the
 * tail has passed the beginning of the batch, the copies may be torn and are given up. The server has
 * said so by then: it sends SKIP or BYE before it gives up the first frame.
 *
 * Sleeping: send_shared.c shows why no wake-up is lost. The client stores the number of this sleep, an
 * odd one, loads the log's end once more, and waits for the socket. A receive that ran out of time
 * leaves the number there, so that the socket becomes readable for a user who polls it. For one who
 * always does, look_ahead stores it after each receive that leaves nothing to read.
 *
 * In a receive it sleeps on two words, if the server and this system can do that: `wakes` in its own page,
 * which the server raises, and `owner` in the log's, which the kernel marks as the server's thread dies.
 * Neither tells of an end that the server does not announce, so it looks at the socket each second. Any
 * client can reach `owner`: see find_why. docs/models/word.pml and death.pml show that no wake-up is lost.
 *
 * A pin is a batch in use through views. Acks stop in front of it until a thread, any thread, drops it.
 * The reader lives as long as its client or a pin.
 *
 * Nothing from the server is believed. The maps cannot shrink, nor lack memory (map.c), so using them
 * cannot fault. Each word is loaded once, and checked against the end before it is used.
 */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "client/connection.h"
#include "common/map.h"
#include "common/os.h"
#include "common/page.h"
#include "common/point.h"

#define BATCH_BYTES                                                                                \
    262144u /* of the log in a batch at most, unless one frame alone is larger ... */
#define BATCH_PART 8 /* ... nor more than this part of the log: acks come between batches */
#define CONTROL_BYTES 256 /* more than any control packet */
#define CONTROL_PACKETS 64 /* per read: a server that sends more must not keep us from the clock */
#define MOST (UINT64_MAX / 2) /* no offset or id gets there, and below it sums do not overflow */
#define SPINS 64 /* looks at the log's end for one at the clock */

struct pin {
    struct jmk_held held;
    struct jmk_reader *reader;
    uint64_t first_id;
    uint64_t offset;
    struct pin *next;
};

struct jmk_reader {
    atomic_uint refs; /* the client, and each pin */
    unsigned process;
    const struct jmk_log_page *page;
    const uint8_t *base;
    uint64_t size;
    uint64_t most; /* bytes of it in a batch */
    struct jmk_cursor_page *cursor;

    pthread_mutex_t lock; /* covers these three, and stores of acks */
    struct pin *pins;
    uint64_t handled; /* the user is through with it ... */
    uint64_t acked; /* ... and this much was told */

    /* The rest belongs to the thread that receives. */
    uint64_t offset; /* the frame to read next ... */
    uint64_t id; /* ... and its id */
    uint64_t last; /* the last one to read: after a BYE */
    uint64_t control; /* what it was when the socket was read last */
    uint64_t sleep; /* the number of the last sleep, or one more */
    bool polled; /* it was left asleep: its user may be polling the socket */
    bool disturbed; /* it was woken for nothing: it sleeps on the socket */
    uint64_t told; /* what the server wanted when it was told last */
    bool overtaken; /* frames were given up before they were read: a packet that says so comes */
    bool skipping; /* told to skip; */
    bool answered; /* and has said how far it had come ... */
    bool refused; /* ... or found the socket full */
    struct batch_start {
        uint64_t offset, id, next_id, last_id;
    } batch; /* where the last batch began, and what was known before it */
    struct jmk_slice *items;
};

/* ---- making ---- */

/* A later layout may have the other words elsewhere, so this comes before them. */
static int check_page(const struct jmk_log_page *page, uint64_t size) {
    if (page->magic != JMK_PAGE_MAGIC)
        return JMK_E_SHAPE;
    if (page->layout != JMK_PAGE_LAYOUT)
        return -EPROTONOSUPPORT;
    return page->size == size ? 0 : JMK_E_SHAPE;
}

static int map_log(struct jmk_reader *reader, int fd) {
    uint64_t size = 0;
    uint8_t *area;
    int error = jmk_map_check_log(fd, &size);

    if (!error)
        error = jmk_map_log(fd, size, PROT_READ, 0, &area);
    if (error)
        return error;
    reader->page = (const struct jmk_log_page *)(void *)area;
    reader->base = area + jmk_map_header();
    reader->size = size;
    reader->most = size / BATCH_PART < BATCH_BYTES ? size / BATCH_PART : BATCH_BYTES;
    return check_page(reader->page, size);
}

static int map_cursor(struct jmk_reader *reader, int fd) {
    int error = jmk_map_check_page(fd, sizeof *reader->cursor);
    void *at;

    if (error)
        return error;
    at = mmap(NULL, sizeof *reader->cursor, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED)
        return -errno;
    reader->cursor = at;
    return 0;
}

static void release_reader(struct jmk_reader *reader) {
    if (atomic_fetch_sub(&reader->refs, 1) != 1)
        return;
    jmk_unmap_log(reader->page, reader->size);
    if (reader->cursor)
        munmap(reader->cursor, sizeof *reader->cursor);
    pthread_mutex_destroy(&reader->lock);
    free(reader->items);
    free(reader);
}

int jmk_receive_shared_init(struct jmk_client *client) {
    const struct jmk_client_config *config = &client->config;
    struct jmk_reader *reader = calloc(1, sizeof *reader);
    int error;

    if (!reader)
        return -ENOMEM;
    client->reader = reader;
    pthread_mutex_init(&reader->lock, NULL);
    atomic_init(&reader->refs, 1);
    reader->process = jmk_process();
    reader->last = UINT64_MAX;
    reader->offset = config->first_offset;
    reader->id = config->first_id;
    reader->handled = reader->acked = config->first_id - 1;
    reader->sleep = 1; /* so that the socket is readable once there is a message */
    reader->polled = true;
    reader->items = malloc(JMK_MAX_ITEMS * sizeof *reader->items);
    if (!reader->items)
        return -ENOMEM;
    error = map_log(reader, config->log_fd);
    if (!error)
        error = map_cursor(reader, config->cursor_fd);
    if (error)
        return error;
    if (reader->offset % 8 || config->first_id < JMK_FIRST_ID)
        return JMK_E_SHAPE;
    atomic_store(&reader->cursor->sleeping, reader->sleep);
    client->log_page = reader->page;
    return 0;
}

static void free_reader(struct jmk_client *client) {
    if (client->reader)
        release_reader(client->reader);
}

/* ---- words from the server ---- */

static void handle_bye(struct jmk_client *client, const struct jmk_header *header,
                       const uint8_t *payload) {
    struct jmk_reader *reader = client->reader;
    struct jmk_goodbye *words = &client->goodbye;

    if (!jmk_connection_decode_bye(client, header, payload))
        return;
    reader->last = header->id;
    reader->skipping = false;
    /* The server knows what we acked; we know what we read, and still will. */
    words->first_lost = reader->last + 1;
    if (reader->last < reader->id)
        jmk_connection_lose_rest(client, reader->id - 1);
    if (words->last_lost < words->first_lost)
        words->first_lost = words->last_lost = 0;
}

static void handle_skip(struct jmk_client *client, const struct jmk_header *header) {
    client->reader->skipping = true;
    client->reader->last = header->id;
}

static void handle_resume(struct jmk_client *client, const struct jmk_header *header,
                          const uint8_t *payload) {
    struct jmk_reader *reader = client->reader;
    uint64_t offset, head = atomic_load(&reader->page->head);

    memcpy(&offset, payload, sizeof offset);
    offset = le64toh(offset);
    if (!reader->answered || header->size < sizeof offset || header->id < reader->id ||
        offset < reader->offset || offset % 8 || offset > head) {
        jmk_connection_break(client, JMK_FAULT_RESUME, header->id, 0);
        return;
    }
    reader->skipping = reader->answered = reader->overtaken = false;
    reader->last = UINT64_MAX;
    reader->id = header->id;
    reader->offset = offset;
}

static void handle_control(struct jmk_client *client, const uint8_t *packet, size_t length) {
    struct jmk_header header;

    if (jmk_frame_check(packet, length, &header) != length)
        jmk_connection_break(client, JMK_FAULT_FRAME, length, 0);
    else if (header.kind == JMK_KIND_BYE)
        handle_bye(client, &header, packet + JMK_FRAME_HEADER);
    else if (header.kind == JMK_KIND_SKIP)
        handle_skip(client, &header);
    else if (header.kind == JMK_KIND_RESUME)
        handle_resume(client, &header, packet + JMK_FRAME_HEADER);
    else if (header.kind == JMK_KIND_DATA)
        jmk_connection_break(client, JMK_FAULT_DATA, header.id, 0);
    else if (header.kind & JMK_KIND_CRITICAL)
        jmk_connection_break(client, JMK_FAULT_KIND, header.kind, 0);
}

/* Read one packet: 0, -EAGAIN if there is none, or another error. */
static int read_packet(struct jmk_client *client, int flags) {
    uint8_t packet[CONTROL_BYTES] = {0};
    int error = jmk_connection_check(client, flags);
    ssize_t length = -1;

    if (!error)
        length = recv(client->fd, packet, sizeof packet, flags | MSG_TRUNC);
    if (error > 0)
        return -EAGAIN;
    if (length < 0 && !error)
        error = -errno;
    if (error)
        return error == -ECONNRESET ? 0 : error; /* what it sent before that is still readable */
    if (length == 0)
        jmk_connection_end_or_break(client);
    else if ((size_t)length > sizeof packet)
        jmk_connection_break(client, JMK_FAULT_PACKET_SIZE, (uint64_t)length, sizeof packet);
    else
        handle_control(client, packet, (size_t)length);
    return length == 0 || client->state != JMK_OPEN ? -EAGAIN : 0;
}

/*
 * Read what there is, as far as a bound: 0, or -errno. If that was not all, or on an error, `control`
 * is still news, and the next look goes on.
 */
static int read_socket(struct jmk_client *client) {
    uint64_t control = atomic_load(&client->reader->page->control);
    int error = 0;

    for (int i = 0; i < CONTROL_PACKETS && client->state == JMK_OPEN && !error; i++)
        error = read_packet(client, MSG_DONTWAIT);
    if (error && error != -EAGAIN)
        return error;
    if (error || client->state != JMK_OPEN)
        client->reader->control = control;
    return 0;
}

/* ---- acks and pins ---- */

/* Tell how far the user is, but for what is pinned. Under the lock. */
static void store_ack(struct jmk_reader *reader) {
    uint64_t acked = reader->handled;

    for (const struct pin *pin = reader->pins; pin; pin = pin->next) {
        if (pin->first_id <= acked)
            acked = pin->first_id - 1;
    }
    if (acked > reader->acked) {
        reader->acked = acked;
        JMK_POINT(JMK_AT_ACK);
        atomic_store(&reader->cursor->acked_id, acked);
        JMK_POINT(JMK_AT_ACKED);
    }
}

/* Told to skip, with nothing left to read? */
static bool owes_answer(const struct jmk_reader *reader) {
    return reader->skipping && !reader->answered &&
           (reader->id > reader->last || reader->overtaken);
}

/*
 * Told to skip, with all handled that was read, and nothing left to read: say how far that was.
 * -EAGAIN if the socket takes no more now.
 */
static int answer_if_due(struct jmk_client *client, uint64_t handled) {
    struct jmk_reader *reader = client->reader;
    uint64_t words[2] = {htole64(handled), 0};

    if (!owes_answer(reader) || handled != reader->id - 1)
        return 0;
    reader->refused =
        jmk_connection_refused(send(client->fd, words, sizeof words, MSG_DONTWAIT | MSG_NOSIGNAL));
    if (reader->refused)
        return -EAGAIN;
    JMK_POINT(JMK_AT_ANSWERED);
    reader->answered = true;
    return 0;
}

/* The server is waiting for an ack: tell it, if this one is what it waits for. */
static void send_wanted_ack(struct jmk_client *client, uint64_t acked) {
    struct jmk_reader *reader = client->reader;
    uint64_t wanted = atomic_load(&reader->cursor->wanted), word = htole64(acked);

    if (acked < wanted || wanted == reader->told)
        return;
    /* If the socket is full the server has much to read there, and the cursor tells it the rest. */
    reader->told = wanted;
    send(client->fd, &word, sizeof word, MSG_DONTWAIT | MSG_NOSIGNAL);
    JMK_POINT(JMK_AT_TOLD);
}

static int send_ack(struct jmk_client *client, uint64_t handled) {
    struct jmk_reader *reader = client->reader;
    uint64_t acked;

    pthread_mutex_lock(&reader->lock);
    if (handled > reader->handled)
        reader->handled = handled;
    store_ack(reader);
    acked = reader->acked;
    pthread_mutex_unlock(&reader->lock);
    atomic_store(&client->acked_id, acked);
    send_wanted_ack(client, acked);
    /* If the user may be polling the socket, the wake-up must stay there: the next receive reads it. */
    if (!reader->polled && atomic_load(&reader->page->control) != reader->control)
        read_socket(client);
    answer_if_due(client, handled);
    return 0;
}

static bool ack_is_due(const struct jmk_client *client, uint64_t handled) {
    (void)client;
    (void)handled;
    return true;
}

static bool still_there(const struct jmk_reader *reader, uint64_t offset) {
    jmk_acquire_fence(); /* what was read before was read before the tail is */
    return atomic_load_explicit(&reader->page->tail, memory_order_acquire) <= offset;
}

static bool pin_is_intact(const struct jmk_held *arena) {
    const struct pin *pin = (const struct pin *)arena;

    return still_there(pin->reader, pin->offset);
}

static void pin_drop(struct jmk_held *arena) {
    struct pin *pin = (struct pin *)arena;
    struct jmk_reader *reader = pin->reader;
    struct pin **at = &reader->pins;

    if (reader->process != jmk_process())
        return; /* the pages are the parent's, and so is the lock */
    pthread_mutex_lock(&reader->lock);
    while (*at != pin)
        at = &(*at)->next;
    *at = pin->next;
    store_ack(reader);
    pthread_mutex_unlock(&reader->lock);
    release_reader(reader);
    free(pin);
}

static struct jmk_held *hold_batch(struct jmk_client *client) {
    struct jmk_reader *reader = client->reader;
    struct pin *pin = calloc(1, sizeof *pin);

    if (!pin)
        return NULL;
    atomic_init(&pin->held.refs, 1);
    pin->held.drop = pin_drop;
    pin->held.is_intact = pin_is_intact;
    pin->reader = reader;
    pin->first_id = reader->batch.id;
    pin->offset = reader->batch.offset;
    atomic_fetch_add(&reader->refs, 1);
    pthread_mutex_lock(&reader->lock);
    pin->next = reader->pins;
    reader->pins = pin;
    pthread_mutex_unlock(&reader->lock);
    return &pin->held;
}

/* ---- reading ---- */

static inline uint64_t load_word(const uint8_t *at) {
    return le64toh(__atomic_load_n((const uint64_t *)(const void *)at, __ATOMIC_RELAXED));
}

/*
 * Index frames up to head. False: something there is no frame. A batch is one stretch of memory: where
 * it goes beyond the end of the ring buffer, it goes on in the second map.
 *
 * Mostly a frame is as long as the one before. Where the next one begins is then known without its
 * length, which would have to come from memory first: the processor guesses that the two are equal.
 */
static bool index_frames(struct jmk_reader *reader, uint64_t head, size_t most,
                         struct jmk_batch *batch) {
    uint64_t id = reader->id, left = reader->last - id, bytes = 0;
    const uint8_t *start = reader->base + (reader->offset & (reader->size - 1)), *at = start;
    const uint8_t *upto = at + (head - reader->offset);
    const uint8_t *stop = head - reader->offset < reader->most ? upto : at + reader->most;
    struct jmk_slice *item = reader->items, *end = item + (left < most ? left + 1 : most);

    while (at < stop && item < end) {
        uint64_t first = load_word(at), length = jmk_frame_length((uint32_t)first);
        struct jmk_slice *run = item;
        const uint8_t *bound; /* no other frame of that length begins from here on */

        if (length > (uint64_t)(upto - at) || (uint16_t)(first >> 32) != JMK_KIND_DATA ||
            load_word(at + 8) != id)
            return false;
        bound = upto - length < stop ? upto - length + 1 : stop;
        do {
            *item++ = (struct jmk_slice){at + JMK_FRAME_HEADER, (uint32_t)first};
            at += length;
            id++;
        } while (at < bound && item < end && load_word(at) == first && load_word(at + 8) == id);
        bytes += (uint64_t)(item - run) * (uint32_t)first;
    }
    batch->bytes = bytes;
    batch->count = (size_t)(item - reader->items);
    reader->offset += (uint64_t)(at - start);
    reader->id = id;
    return true;
}

static void read_frames(struct jmk_client *client, struct jmk_batch *batch) {
    struct jmk_reader *reader = client->reader;
    uint64_t head = atomic_load_explicit(&reader->page->head, memory_order_acquire);
    struct batch_start start = {reader->offset, reader->id, client->next_id,
                                atomic_load(&client->last_id)};
    enum jmk_fault_kind fault = JMK_FAULT_NONE;

    if (head == reader->offset || reader->id > reader->last)
        return;
    if (head < reader->offset || head - reader->offset > reader->size || head > MOST ||
        reader->id > MOST)
        fault = JMK_FAULT_LOG_END;
    else if (!index_frames(reader, head, client->most, batch))
        fault = JMK_FAULT_LOG_FRAME;
    if (!still_there(reader, start.offset)) {
        reader->overtaken = true;
    } else if (fault) {
        jmk_connection_break(client, fault, fault == JMK_FAULT_LOG_END ? head : start.id,
                             start.offset);
    } else {
        reader->batch = start;
        batch->items = reader->items;
        batch->first_id = start.id;
        batch->lost = start.id - client->next_id;
        client->next_id = reader->id;
        if (!start.last_id)
            atomic_store(&client->acked_id, start.id - 1);
        atomic_store(&client->last_id, reader->id - 1);
        return;
    }
    memset(batch, 0, sizeof *batch);
    reader->offset = start.offset;
    reader->id = start.id;
}

/* An ended connection whose last messages are gone too. */
static void give_up_rest(struct jmk_client *client) {
    struct jmk_reader *reader = client->reader;

    jmk_connection_lose_rest(client, reader->last);
    reader->last = reader->id - 1;
}

/*
 * The server died before it could say where a client that it was skipping goes on. Nothing is given
 * up any more: what is kept from the next message on can be read. The oldest frame says itself which
 * one it is, as the server may have died between the two stores that do.
 */
static void find_restart(struct jmk_reader *reader) {
    uint64_t tail = atomic_load(&reader->page->tail), head = atomic_load(&reader->page->head);
    uint64_t id = atomic_load(&reader->page->next_id);

    reader->skipping = reader->overtaken = false;
    reader->last = UINT64_MAX;
    if (tail <= reader->offset)
        return;
    if (tail < head) {
        const uint8_t *at = reader->base + (tail & (reader->size - 1));
        id = jmk_frame_decode(at).id;
    }
    reader->overtaken = id < reader->id || tail % 8 || tail > head;
    if (reader->overtaken)
        return;
    reader->id = id;
    reader->offset = tail;
}

/* Sleep no more. If the wake-up has come, it is read, so that the socket is quiet again for a poll. */
static void wake_up(struct jmk_client *client) {
    struct jmk_reader *reader = client->reader;

    if (reader->sleep % 2) {
        /* Relaxed: the server may see it late. The cost is one needless wake-up. */
        atomic_store_explicit(&reader->cursor->sleeping, ++reader->sleep, memory_order_relaxed);
        JMK_POINT(JMK_AT_AWAKE);
    }
    if (reader->polled)
        read_socket(client);
    reader->polled = false;
}

static void index_batch(struct jmk_client *client, struct jmk_batch *batch) {
    struct jmk_reader *reader = client->reader;

    wake_up(client);
    if (atomic_load_explicit(&reader->page->control, memory_order_acquire) != reader->control)
        read_socket(client);
    if (client->state == JMK_BROKEN)
        return;
    if (!reader->overtaken)
        read_frames(client, batch);
    if (!batch->count && client->state == JMK_LOST && reader->skipping) {
        find_restart(reader);
        if (!reader->overtaken)
            read_frames(client, batch);
    }
    if (reader->overtaken && client->state == JMK_ENDED && reader->last >= reader->id)
        give_up_rest(client);
}

/* ---- waiting ---- */

static bool has_news(const struct jmk_client *client) {
    const struct jmk_reader *reader = client->reader;

    if (atomic_load(&client->closed) || client->state != JMK_OPEN ||
        atomic_load(&reader->page->control) != reader->control)
        return true;
    /* The version first: it is what the server stores last. */
    atomic_load(&reader->page->version);
    return !reader->overtaken && reader->id <= reader->last &&
           atomic_load(&reader->page->head) != reader->offset;
}

/* Look for a while before sleeping. */
static bool spin(const struct jmk_client *client, int64_t deadline) {
    int64_t until = jmk_now() + client->config.spin;

    if (until > deadline)
        until = deadline;
    do {
        for (int i = 0; i < SPINS; i++) {
            if (has_news(client))
                return true;
#if defined(__x86_64__) || defined(__i386__)
            __builtin_ia32_pause();
#endif
        }
    } while (jmk_now() < until);
    return false;
}

/* May it sleep on a word? Then *owner is how it has to find the server's. */
static bool has_word(const struct jmk_reader *reader, uint32_t *owner) {
    *owner = atomic_load(&reader->page->owner);
    return *owner & JMK_OWNER_WAKES && !(*owner & JMK_OWNER_DIED) && !reader->disturbed &&
           !atomic_load_explicit(&jmk_no_futex_waitv, memory_order_relaxed);
}

/*
 * It was woken by way of the server's word. The kernel wakes one client as the server dies, so that one
 * has to wake the others. Other clients can wake us for nothing, and do so once.
 */
static void find_why(struct jmk_client *client) {
    struct jmk_reader *reader = client->reader;

    JMK_POINT(JMK_AT_MOURNED);
    if (jmk_connection_is_orphaned(client))
        jmk_futex_wake(&reader->page->owner, INT32_MAX);
    else
        reader->disturbed = true;
}

/* Sleep on the words: those of jmk_futex_wait_two. `until` is when to look at the socket. */
static int sleep_on_words(struct jmk_client *client, uint32_t owner, int64_t until) {
    struct jmk_reader *reader = client->reader;
    struct jmk_seen seen[2] = {{&reader->cursor->wakes, atomic_load(&reader->cursor->wakes)},
                               {&reader->page->owner, owner}};
    int found = JMK_SEEN_CHANGED;

    atomic_store(&reader->cursor->sleeping, ++reader->sleep | JMK_SLEEPS_ON_WORD);
    JMK_POINT(JMK_AT_SLEEP);
    if (!has_news(client)) {
        JMK_POINT(JMK_AT_LOOKED);
        found = jmk_futex_wait_two(seen, until);
    }
    if (found == 1)
        find_why(client);
    wake_up(client);
    return found;
}

/*
 * Wait so: 0: look again; -EINTR, or another error; JMK_E_TIMEOUT: the rest is to be done at the socket. Who
 * wakes us with no news in the log has something to say in the socket, which may be its end alone.
 */
static int wait_on_words(struct jmk_client *client, uint32_t owner, int64_t deadline) {
    struct jmk_reader *reader = client->reader;
    int64_t until = jmk_connection_next_look(deadline);
    int found = sleep_on_words(client, owner, until), error;
    bool before = reader->skipping;

    if (found < 0 && found != -ETIMEDOUT && found != -EINTR)
        return JMK_E_TIMEOUT;
    if (has_news(client))
        return 0;
    jmk_connection_end_if_dead(client);
    error = read_socket(client);
    if (error || has_news(client) || reader->skipping != before)
        return error;
    if (found == -ETIMEDOUT)
        return until < deadline ? -EINTR : JMK_E_TIMEOUT;
    return found < 0 ? found : 0;
}

static int wait_for_more(struct jmk_client *client, uint64_t handled, int64_t deadline) {
    struct jmk_reader *reader = client->reader;
    bool full = false, before;
    int error = 0, failed;
    uint32_t owner;

    if (atomic_load(&reader->page->control) != reader->control)
        return read_socket(client); /* also if it failed before */
    if (!client->config.acks_by_hand || handled >= atomic_load(&client->last_id))
        full = answer_if_due(client, reader->id - 1) != 0;
    if (client->config.spin > 0 && spin(client, deadline))
        return 0;
    JMK_POINT(JMK_AT_EMPTY);
    if (!full && has_word(reader, &owner) && deadline > jmk_now()) {
        error = wait_on_words(client, owner, deadline);
        if (error != JMK_E_TIMEOUT)
            return error;
    }
    atomic_store(&reader->cursor->sleeping, ++reader->sleep);
    JMK_POINT(JMK_AT_SLEEP);
    if (has_news(client))
        return 0;
    if (jmk_connection_is_orphaned(client))
        jmk_connection_end_stream(client);
    if (deadline == INT64_MAX && !full)
        return jmk_connection_waited(client, read_packet(client, 0));
    error = jmk_connection_wait(client, deadline, full ? POLLIN | POLLOUT : POLLIN);
    before = reader->skipping;
    failed = read_socket(client);
    if (failed)
        return failed;
    /* This may be a late wake-up of this sleep, for messages already read. Begin a new sleep. */
    if (error == JMK_E_TIMEOUT)
        atomic_store(&reader->cursor->sleeping, reader->sleep += 2);
    if (error != JMK_E_TIMEOUT || has_news(client) || reader->skipping != before)
        return error == JMK_E_TIMEOUT ? 0 : error;
    reader->polled = true;
    return JMK_E_TIMEOUT;
}

/* The answer to SKIP goes with the next receive, which the user must come back for. */
static enum jmk_outlook look_ahead(struct jmk_client *client, bool waited) {
    struct jmk_reader *reader = client->reader;
    bool answer = owes_answer(reader);

    if (has_news(client) || (answer && !waited && !client->config.acks_by_hand))
        return JMK_HAS_MORE;
    if (reader->sleep % 2 == 0)
        atomic_store(&reader->cursor->sleeping, ++reader->sleep);
    reader->polled = true;
    if (has_news(client))
        return JMK_HAS_MORE;
    return answer && reader->refused ? JMK_WANTS_ROOM : JMK_WOULD_WAIT;
}

/* `closed` is stored by now, so whoever has seen the word before this looks at it, or does not sleep. */
static void rouse(struct jmk_client *client) {
    if (!client->reader || !client->reader->cursor)
        return;
    atomic_fetch_add(&client->reader->cursor->wakes, 1);
    JMK_POINT(JMK_AT_RAISED);
    jmk_futex_wake(&client->reader->cursor->wakes, 1);
}

static bool batch_is_intact(const struct jmk_client *client) {
    return still_there(client->reader, client->reader->batch.offset);
}

static void drop_batch(struct jmk_client *client) {
    struct jmk_reader *reader = client->reader;

    reader->overtaken = true;
    reader->offset = reader->batch.offset;
    reader->id = reader->batch.id;
    client->next_id = reader->batch.next_id;
    atomic_store(&client->last_id, reader->batch.last_id);
}

const struct jmk_delivery_ops jmk_receive_shared = {
    .index_batch = index_batch,
    .wait_for_more = wait_for_more,
    .send_ack = send_ack,
    .ack_is_due = ack_is_due,
    .look_ahead = look_ahead,
    .hold_batch = hold_batch,
    .batch_is_intact = batch_is_intact,
    .drop_batch = drop_batch,
    .rouse = rouse,
    .free = free_reader,
};
