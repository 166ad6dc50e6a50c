/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From C to C: plain loops over the kernel's calls, and the same work by the core
 *
 *     floor MODE CLIENTS MESSAGES SIZE [LOG]
 *
 * Each message is a packet id and SIZE bytes that begin with a counter. The clients are processes of
 * their own; they look at each id and counter. Modes:
 *
 *     send       one send a message and client, one recv a message: the floor
 *     acked      the same, and the client acks each message as plain 1.0 has it
 *     mmsg       sendmmsg and recvmmsg, 64 messages at a time
 *     packets    as send, with the send buffer that the core asks for: for large packets
 *     memcpy     no packets at all: each client copies the bytes of all frames out of shared memory,
 *                64 KiB at a time, while the server writes them there message by message
 *     classic    jmk_server_append and a kick for each message, classic clients (which ack each)
 *     classic-many, framed-many, shared-many
 *                jmk_server_append_many, 256 messages at a time
 *
 * LOG is the size of the core's log in MiB, a power of two; 16 if it is not given.
 *
 * The plain loops send blocking, so each has the pace of the slowest client and loses nothing. It
 * prints one line of JSON.
 */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "jumiks.h"

#ifndef SO_PASSRIGHTS
#define SO_PASSRIGHTS 83
#endif

#define MOST_CLIENTS 256
#define MOST_SIZE 65536
#define BURST 64
#define MANY 256
#define LOG_SIZE (16u << 20)
#define SEND_BUFFER 196608
#define LARGEST_PACKET 262144
#define ARENA (4u << 20)
#define SLICE 65536u

struct result {
    uint64_t count, wrong;
    int64_t end;
};

struct job {
    const char *mode;
    unsigned clients;
    uint64_t messages;
    size_t size;
    uint32_t log_size;
    int ours[MOST_CLIENTS];   /* the server's end of each connection */
    struct result *results;   /* shared with the clients' processes */
    uint8_t *ring;            /* likewise; LOG_SIZE bytes */
};

static void die(const char *what, int code) {
    if (code > 0)
        fprintf(stderr, "floor: %s: enum jmk_error %d\n", what, code);
    else
        fprintf(stderr, "floor: %s: %s\n", what, strerror(-code));
    exit(EXIT_FAILURE);
}

static void check(const char *what, int code) {
    if (code)
        die(what, code);
}

static ssize_t sure(const char *what, ssize_t result) {
    if (result < 0)
        die(what, -errno);
    return result;
}

static int64_t now(void) {
    struct timespec at;

    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec * INT64_C(1000000000) + at.tv_nsec;
}

static double cpu_seconds(int who) {
    struct rusage usage;

    getrusage(who, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static bool is(const struct job *job, const char *mode) {
    return strcmp(job->mode, mode) == 0;
}

static bool is_any(const struct job *job, const char *const *modes) {
    for (; *modes; modes++)
        if (is(job, *modes))
            return true;
    return false;
}

/* Without the core. */
static bool plain(const struct job *job) {
    static const char *const modes[] = {"send", "acked", "mmsg", "packets", "memcpy", NULL};

    return is_any(job, modes);
}

/* ---- clients ---- */

static void take(const struct job *job, struct result *result, const void *payload, size_t size) {
    uint64_t counter = 0;

    memcpy(&counter, payload, sizeof counter);
    result->wrong += size != job->size || counter != result->count;
    result->count++;
}

static void take_packet(const struct job *job, struct result *result, const uint8_t *packet,
                        size_t length) {
    uint64_t id = 0;

    memcpy(&id, packet, sizeof id);
    result->wrong += id != JMK_FIRST_ID + result->count;
    take(job, result, packet + sizeof id, length - sizeof id);
}

static void read_singly(const struct job *job, struct result *result, int fd) {
    static uint8_t packet[JMK_CLASSIC_HEADER + MOST_SIZE];
    bool acked = is(job, "acked");

    while (result->count < job->messages) {
        ssize_t length = sure("recv", recv(fd, packet, sizeof packet, 0));
        if (length == 0)
            return;
        take_packet(job, result, packet, (size_t)length);
        if (acked)
            sure("ack", send(fd, packet, JMK_ACK_SIZE, MSG_NOSIGNAL));
    }
}

static void read_bursts(const struct job *job, struct result *result, int fd) {
    size_t room = JMK_CLASSIC_HEADER + job->size;
    uint8_t *packets = malloc(BURST * room);
    struct mmsghdr headers[BURST];
    struct iovec parts[BURST];

    for (size_t i = 0; i < BURST; i++) {
        parts[i] = (struct iovec){packets + i * room, room};
        headers[i] = (struct mmsghdr){.msg_hdr = {.msg_iov = &parts[i], .msg_iovlen = 1}};
    }
    while (result->count < job->messages) {
        ssize_t got = sure("recvmmsg", recvmmsg(fd, headers, BURST, MSG_WAITFORONE, NULL));
        for (ssize_t i = 0; i < got; i++) {
            if (headers[i].msg_len == 0)
                return;
            take_packet(job, result, parts[i].iov_base, headers[i].msg_len);
        }
    }
    free(packets);
}

static uint32_t core_mode(const struct job *job) {
    if (is(job, "shared-many"))
        return JMK_SHARED;
    return is(job, "framed-many") ? JMK_FRAMED : JMK_CLASSIC;
}

/* What a welcome brings along where the log is shared. */
static void take_descriptors(int fd, struct jmk_client_config *config) {
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(2 * sizeof(int))];
    } control;
    struct iovec part = {&config->first_offset, sizeof config->first_offset};
    struct msghdr packet = {.msg_iov = &part,
                            .msg_iovlen = 1,
                            .msg_control = &control,
                            .msg_controllen = sizeof control};
    int32_t fds[2];

    sure("recvmsg", recvmsg(fd, &packet, 0));
    memcpy(fds, CMSG_DATA(CMSG_FIRSTHDR(&packet)), sizeof fds);
    config->log_fd = fds[0];
    config->cursor_fd = fds[1];
}

static void read_core(const struct job *job, struct result *result, int fd) {
    static uint8_t copy[MOST_SIZE];
    struct jmk_client_config config = {
        .first_id = JMK_FIRST_ID,
        .arena_size = ARENA,
        .delivery = core_mode(job),
        .max_packet = LARGEST_PACKET,
        .max_message = job->log_size / 4,
    };
    struct jmk_batch batch;
    uint64_t handled = 0;
    jmk_client *client = NULL;
    int code;

    if (config.delivery == JMK_SHARED)
        take_descriptors(fd, &config);
    check("client", jmk_client_new(&client, fd, &config));
    while (result->count < job->messages) {
        do
            code = jmk_client_receive(client, handled, -1, &batch);
        while (code == -EINTR);
        check("receive", code);
        result->wrong += batch.first_id != JMK_FIRST_ID + result->count;
        for (size_t i = 0; i < batch.count; i++) {
            const void *message = batch.items[i].data;
            /* Packets were copied out of the kernel; out of the log it is done here. */
            if (config.delivery == JMK_SHARED)
                message = memcpy(copy, message, batch.items[i].size);
            take(job, result, message, batch.items[i].size);
        }
        result->wrong += !jmk_client_batch_is_intact(client);
        handled = batch.first_id + batch.count - 1;
    }
    result->end = now();
    check("ack", jmk_client_ack(client, handled, 0));
    jmk_client_free(client);
}

static size_t frame_size(const struct job *job) {
    return JMK_FRAME_HEADER + (job->size + 7) / 8 * 8;
}

static void copy_out(const struct job *job, struct result *result) {
    static uint8_t slice[SLICE];
    uint64_t bytes = job->messages * frame_size(job);

    for (uint64_t done = 0; done < bytes; done += sizeof slice) {
        memcpy(slice, job->ring + done % LOG_SIZE, sizeof slice);
        __asm__ volatile("" : : "r"(slice) : "memory"); /* so that no copy is left out */
    }
    result->count = job->messages;
}

/* As jumiks.Server does it: without this the core looks at each packet before it reads it. */
static void refuse_descriptors(int fd) {
    const int passed = 0;

    setsockopt(fd, SOL_SOCKET, SO_PASSRIGHTS, &passed, sizeof passed); /* from Linux 6.16 on */
}

static void start_client(struct job *job, unsigned index) {
    struct result *result = &job->results[index];
    const int send_buffer = SEND_BUFFER;
    int ends[2];
    pid_t pid;

    sure("socketpair", socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends));
    refuse_descriptors(ends[0]);
    pid = (pid_t)sure("fork", fork());
    job->ours[index] = ends[0];
    if (is(job, "packets"))
        sure("SO_SNDBUF",
             setsockopt(ends[0], SOL_SOCKET, SO_SNDBUF, &send_buffer, sizeof send_buffer));
    if (pid != 0) {
        close(ends[1]);
        return;
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (unsigned i = 0; i <= index; i++)
        close(job->ours[i]);
    if (is(job, "memcpy"))
        copy_out(job, result);
    else if (!plain(job))
        read_core(job, result, ends[1]);
    else if (is(job, "mmsg"))
        read_bursts(job, result, ends[1]);
    else
        read_singly(job, result, ends[1]);
    if (!result->end)
        result->end = now();
    _exit(EXIT_SUCCESS);
}

/* ---- plain loops ---- */

static void drain_acks(int fd) {
    uint64_t id;

    while (recv(fd, &id, sizeof id, MSG_DONTWAIT) > 0)
        continue;
}

/* Nobody else reads them, and a client would wait for ever with its last ones. */
static void wait_acked(int fd, uint64_t last) {
    uint64_t id = 0;

    while (id != last)
        sure("recv", recv(fd, &id, sizeof id, 0));
}

static void send_singly(const struct job *job) {
    static uint8_t packet[JMK_CLASSIC_HEADER + MOST_SIZE];
    bool acked = is(job, "acked");

    for (uint64_t number = 0; number < job->messages; number++) {
        uint64_t id = JMK_FIRST_ID + number;
        memcpy(packet, &id, sizeof id);
        memcpy(packet + sizeof id, &number, sizeof number);
        for (unsigned i = 0; i < job->clients; i++)
            sure("send", send(job->ours[i], packet, sizeof id + job->size, MSG_NOSIGNAL));
        if (acked && number % BURST == BURST - 1 && number + 1 < job->messages)
            for (unsigned i = 0; i < job->clients; i++)
                drain_acks(job->ours[i]);
    }
    if (acked)
        for (unsigned i = 0; i < job->clients; i++)
            wait_acked(job->ours[i], JMK_FIRST_ID + job->messages - 1);
}

static void send_burst(int fd, struct mmsghdr *headers, unsigned count) {
    for (unsigned done = 0; done < count;)
        done +=
            (unsigned)sure("sendmmsg", sendmmsg(fd, headers + done, count - done, MSG_NOSIGNAL));
}

static void send_bursts(const struct job *job) {
    size_t room = JMK_CLASSIC_HEADER + job->size;
    uint8_t *packets = calloc(BURST, room);
    struct mmsghdr headers[BURST];
    struct iovec parts[BURST];
    unsigned filled = 0;

    for (size_t i = 0; i < BURST; i++) {
        parts[i] = (struct iovec){packets + i * room, room};
        headers[i] = (struct mmsghdr){.msg_hdr = {.msg_iov = &parts[i], .msg_iovlen = 1}};
    }
    for (uint64_t number = 0; number < job->messages; number++) {
        uint64_t id = JMK_FIRST_ID + number;
        memcpy(packets + filled * room, &id, sizeof id);
        memcpy(packets + filled * room + sizeof id, &number, sizeof number);
        if (++filled < BURST && number + 1 < job->messages)
            continue;
        for (unsigned i = 0; i < job->clients; i++)
            send_burst(job->ours[i], headers, filled);
        filled = 0;
    }
    free(packets);
}

static void copy_in(const struct job *job) {
    static uint8_t payload[MOST_SIZE];
    size_t frame = frame_size(job), at = 0;

    for (uint64_t number = 0; number < job->messages; number++, at += frame) {
        if (at + frame > LOG_SIZE)
            at = 0;
        memcpy(payload, &number, sizeof number);
        memcpy(job->ring + at + JMK_FRAME_HEADER, payload, job->size);
    }
}

/* ---- the core ---- */

static void send_descriptors(int fd, const jmk_server *server,
                             const struct jmk_attached *attached) {
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(2 * sizeof(int))];
    } control = {.header = {CMSG_LEN(2 * sizeof(int)), SOL_SOCKET, SCM_RIGHTS}};
    uint64_t offset = attached->first_offset;
    struct iovec part = {&offset, sizeof offset};
    struct msghdr packet = {.msg_iov = &part,
                            .msg_iovlen = 1,
                            .msg_control = &control,
                            .msg_controllen = sizeof control};
    int32_t fds[2] = {jmk_server_log_fd(server), attached->cursor_fd};

    memcpy(CMSG_DATA(&control.header), fds, sizeof fds);
    sure("sendmsg", sendmsg(fd, &packet, 0));
    close(attached->cursor_fd);
}

static jmk_server *make_server(const struct job *job) {
    struct jmk_config config = {
        .log_size = job->log_size,
        .patience = -1,
        .policy = JMK_BLOCK,
        .max_message = job->log_size / 4,
        .max_clients = MOST_CLIENTS,
        .send_buffer = SEND_BUFFER,
    };
    uint32_t mode = core_mode(job);
    jmk_server *server = NULL;

    check("server", jmk_server_new(&server, &config));
    for (unsigned i = 0; i < job->clients; i++) {
        struct jmk_attached attached;
        uint32_t max_packet = LARGEST_PACKET;
        check("prepare", jmk_socket_prepare(server, job->ours[i], &max_packet));
        check("attach", jmk_server_attach(server, job->ours[i], mode, max_packet, 0, &attached));
        if (mode == JMK_SHARED)
            send_descriptors(job->ours[i], server, &attached);
        check("release", jmk_server_release(server, attached.key));
    }
    return server;
}

static void wait_room(jmk_server *server, size_t size, int code) {
    struct jmk_account holder;

    if (code != JMK_E_FULL && code != JMK_E_TURN)
        die("append", code);
    do
        code = jmk_server_wait_room(server, size, -1, &holder, NULL);
    while (code == -EINTR);
    check("wait", code);
}

static void append_singly(const struct job *job, jmk_server *server) {
    static uint8_t payload[MOST_SIZE];

    for (uint64_t number = 0; number < job->messages; number++) {
        uint64_t id;
        int code;
        memcpy(payload, &number, sizeof number);
        while ((code = jmk_server_append(server, payload, job->size, &id)) != 0)
            wait_room(server, job->size, code);
        jmk_server_kick(server);
    }
}

static void append_many(const struct job *job, jmk_server *server) {
    uint8_t *payloads = calloc(MANY, job->size);
    struct jmk_slice slices[MANY];
    uint64_t number = 0, first;

    for (size_t i = 0; i < MANY; i++)
        slices[i] = (struct jmk_slice){payloads + i * job->size, job->size};
    while (number < job->messages) {
        size_t count = 0, done = 0;
        int code;
        for (; count < MANY && number < job->messages; count++, number++)
            memcpy(payloads + count * job->size, &number, sizeof number);
        while ((code = jmk_server_append_many(server, slices, count, &done, &first)) != 0)
            wait_room(server, job->size, code);
    }
    free(payloads);
}

/* ---- all of it ---- */

static void publish(const struct job *job, jmk_server *server) {
    if (is(job, "memcpy"))
        copy_in(job);
    else if (is(job, "mmsg"))
        send_bursts(job);
    else if (plain(job))
        send_singly(job);
    else if (is(job, "classic"))
        append_singly(job, server);
    else
        append_many(job, server);
}

static void report(const struct job *job, int64_t begin) {
    uint64_t count = 0, wrong = 0;
    int64_t end = begin + 1;

    for (unsigned i = 0; i < job->clients; i++) {
        count += job->results[i].count;
        wrong += job->results[i].wrong;
        if (job->results[i].end > end)
            end = job->results[i].end;
    }
    printf("{\"rate\": %.0f, \"due\": %" PRIu64 ", \"count\": %" PRIu64 ", \"wrong\": %" PRIu64
           ", \"publisher cpu\": %.6f, \"subscriber cpu\": %.6f}\n",
           (double)count * 1e9 / (double)(end - begin), job->messages * job->clients, count, wrong,
           cpu_seconds(RUSAGE_SELF), cpu_seconds(RUSAGE_CHILDREN));
}

static void *share(size_t size) {
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    if (memory == MAP_FAILED)
        die("mmap", -errno);
    return memory;
}

static bool parse(struct job *job, int argc, char **argv) {
    static const char *const core[] = {"classic", "classic-many", "framed-many", "shared-many",
                                       NULL};

    if (argc != 5 && argc != 6)
        return false;
    job->mode = argv[1];
    job->clients = (unsigned)strtoul(argv[2], NULL, 10);
    job->messages = strtoull(argv[3], NULL, 10);
    job->size = strtoul(argv[4], NULL, 10);
    job->log_size = argc == 6 ? (uint32_t)strtoul(argv[5], NULL, 10) << 20 : LOG_SIZE;
    return (plain(job) || is_any(job, core)) && job->clients >= 1 && job->clients <= MOST_CLIENTS &&
           job->messages >= 1 && job->size >= sizeof(uint64_t) && job->size <= MOST_SIZE;
}

int main(int argc, char **argv) {
    struct job job = {0};
    jmk_server *server = NULL;
    int64_t begin;

    if (!parse(&job, argc, argv)) {
        fprintf(stderr, "usage: floor MODE CLIENTS MESSAGES SIZE [LOG]\n");
        return EXIT_FAILURE;
    }
    job.results = share(MOST_CLIENTS * sizeof *job.results);
    job.ring = share(LOG_SIZE);
    for (unsigned i = 0; i < job.clients; i++)
        start_client(&job, i);
    if (!plain(&job))
        server = make_server(&job);

    begin = now();
    publish(&job, server);
    for (unsigned i = 0; i < job.clients; i++) {
        int status;
        sure("wait", wait(&status));
        if (status)
            return EXIT_FAILURE;
    }
    report(&job, begin);
    jmk_server_free(server);
    return EXIT_SUCCESS;
}
