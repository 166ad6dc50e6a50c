/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A client that reads the server's log in shared memory, written from docs/protocol.md alone
 *
 *     cc -std=c11 -O2 -o shared_client examples/shared_client.c
 *     ./shared_client @address
 *
 * It writes each message as a line. To standard error it writes what it missed, and how the
 * connection ended.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum { FRAMES = 1, LOG = 2, DATA = 1, BYE = 2, SKIP = 4, RESUME = 5, HEADER = 16, DIED = -1 };
enum { NEEDED_SEALS = F_SEAL_SHRINK | F_SEAL_GROW | 0x10 /* F_SEAL_FUTURE_WRITE */ };

/* Indexes of the shared words, in units of 8 bytes: in the log's header page, in the cursor page. */
enum { MAGIC = 0, LAYOUT = 1, SIZE = 2, HEAD = 8, VERSION = 10 };
enum { TAIL = 16, CONTROL = 18, ACKED = 0, SLEEPING = 8, WANTED = 16 };

struct header {
    uint32_t size;
    uint16_t kind, flags;
    uint64_t id;
};

static int sock;
static _Atomic uint64_t *page, *cursor;
static const uint8_t *ring; /* the ring buffer, mapped twice back to back */
static uint8_t *copy;
static uint64_t size, offset, id, last = UINT64_MAX, control, told, sleeps;
static int skipping, bye;

static void dial(const char *address) {
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    size_t length = strnlen(address, sizeof to.sun_path);

    memcpy(to.sun_path, address, length);
    if (address[0] == '@')
        to.sun_path[0] = 0; /* abstract: a zero byte, then the name, with no zero byte at its end */
    sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (connect(sock, (struct sockaddr *)&to, (socklen_t)(sizeof to.sun_family + length)) < 0)
        errx(1, "nobody serves that address");
}

/* Hello, reply, welcome. All code here is for little-endian machines only. */
static void shake_hands(int fds[2]) {
    static const uint8_t reply[24] = {1, 0, 0, 0, 0, 0, FRAMES | LOG};
    uint8_t packet[4096] = {0}, space[CMSG_SPACE(2 * sizeof(int))] = {0};
    struct iovec part = {packet, sizeof packet};
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space};
    struct cmsghdr *rights = (void *)space;

    if (recv(sock, packet, sizeof packet, 0) < 48 || memcmp(packet, reply, 4) != 0)
        errx(1, "this is no server that can share its log");
    send(sock, reply, sizeof reply, MSG_NOSIGNAL);
    memset(packet, 0, sizeof packet);
    if (recvmsg(sock, &message, MSG_CMSG_CLOEXEC) < 16 || packet[0] || packet[1])
        errx(1, "%s", (const char *)packet + 16);
    if (!(packet[2] & LOG) || rights->cmsg_len != CMSG_LEN(2 * sizeof(int)))
        errx(1, "it does not share its log");
    memcpy(fds, CMSG_DATA(rights), 2 * sizeof(int));
    memcpy(&id, packet + 8, 8);
    memcpy(&offset, packet + 16, 8);
}

static void map(const int fds[2]) {
    size_t first = (size_t)sysconf(_SC_PAGESIZE);
    struct stat stat;
    uint8_t *area;

    if ((fcntl(fds[0], F_GET_SEALS) & NEEDED_SEALS) != NEEDED_SEALS ||
        !(fcntl(fds[1], F_GET_SEALS) & F_SEAL_SHRINK) || fstat(fds[0], &stat) < 0)
        errx(1, "what it shares could change");
    size = (uint64_t)stat.st_size - first;
    area = mmap(NULL, first + 2 * size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    cursor = mmap(NULL, 192, PROT_READ | PROT_WRITE, MAP_SHARED, fds[1], 0);
    copy = malloc(size);
    if (!copy || area == MAP_FAILED || cursor == MAP_FAILED ||
        mmap(area, first + size, PROT_READ, MAP_SHARED | MAP_FIXED, fds[0], 0) == MAP_FAILED ||
        mmap(area + first + size, size, PROT_READ, MAP_SHARED | MAP_FIXED, fds[0], (off_t)first) ==
            MAP_FAILED)
        errx(1, "there is no memory to map it");
    page = (void *)area;
    ring = area + first;
    if (page[MAGIC] != 0x0a676f6c736d756a || (uint32_t)page[LAYOUT] != 1 || page[SIZE] != size)
        errx(1, "this is no log that is known here");
}

/* Handle a packet from the socket. */
static void obey(const uint8_t *packet) {
    struct header header;

    memcpy(&header, packet, HEADER);
    if (header.kind == BYE)
        bye = packet[HEADER];
    if (header.kind == BYE || header.kind == SKIP)
        last = header.id;
    skipping |= header.kind == SKIP;
    if (header.kind != RESUME)
        return;
    fprintf(stderr, "missed %" PRIu64 " messages from %" PRIu64 " on\n", header.id - id, id);
    id = header.id;
    memcpy(&offset, packet + HEADER, 8);
    last = UINT64_MAX;
}

static void listen_to_it(int flags) {
    uint8_t packet[4096] = {0};
    control = atomic_load(&page[CONTROL]);
    for (; !bye; flags = MSG_DONTWAIT) {
        ssize_t length = recv(sock, packet, sizeof packet, flags);
        if (length >= HEADER)
            obey(packet);
        else if (length == 0)
            bye = DIED; /* the messages in the log can still be read */
        else if (length > 0 || errno != ECONNRESET) /* a reset: read on until the end */
            return;
    }
}

/* Is there something new? Asked after `sleeping` was stored, before the client sleeps. */
static int is_news(void) {
    atomic_load(&page[VERSION]);
    return atomic_load(&page[CONTROL]) != control ||
           (atomic_load(&page[HEAD]) != offset && id <= last && atomic_load(&page[TAIL]) <= offset);
}

static void ack(uint64_t handled) {
    atomic_store(&cursor[ACKED], handled);
    uint64_t wanted = atomic_load(&cursor[WANTED]);
    if (handled < wanted || wanted == told)
        return;
    told = wanted;
    send(sock, &handled, sizeof handled, MSG_NOSIGNAL | MSG_DONTWAIT);
}

/* Write one message as a line. Returns 0 if there is none now. */
static int read_one(void) {
    uint64_t left = atomic_load(&page[HEAD]) - offset, length;
    const uint8_t *at = ring + (offset & (size - 1));
    struct header header;

    if (!left || id > last)
        return 0;
    memcpy(&header, at, HEADER);
    length = (HEADER + (uint64_t)header.size + 7) / 8 * 8;
    if (length <= left && length <= size)
        memcpy(copy, at + HEADER, header.size);
    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_load(&page[TAIL]) > offset)
        return 0; /* the server gave this frame up, and sends a packet that says why */
    if (length > left || length > size || header.kind != DATA || header.id != id)
        errx(1, "what stands in the log is no frame");
    fwrite(copy, 1, header.size, stdout);
    putchar('\n');
    offset += length;
    ack(id++);
    return 1;
}

int main(int argc, char **argv) {
    int fds[2];

    dial(argc == 2 ? argv[1] : "");
    shake_hands(fds);
    map(fds);
    for (;;) {
        if (atomic_load(&page[CONTROL]) != control)
            listen_to_it(MSG_DONTWAIT);
        if (read_one())
            continue;
        if (bye)
            break;
        if (skipping) /* all that could be read was read and handled */
            send(sock, (uint64_t[2]){id - 1, 0}, 16, MSG_NOSIGNAL);
        skipping = 0;
        fflush(stdout);
        atomic_store(&cursor[SLEEPING], ++sleeps); /* odd */
        if (!is_news())
            listen_to_it(0);
        atomic_store(&cursor[SLEEPING], ++sleeps);
    }
    fprintf(stderr, bye == DIED ? "the server died\n" : "it ended, reason %d\n", bye);
    return bye == 2 ? 0 : 1;
}
