/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A client of plain 1.0 that knows nothing of this package
 *
 *     classic_client ADDRESS [COUNT]
 *
 * ADDRESS is @name or a path. It acks each message, and leaves after COUNT of them or at the end.
 * Then it prints one line of JSON: how many came, the first and the last id (0 for none), FNV-1a (64
 * bits) over all payloads in a row, whether each id was one more than the one before, and how it
 * ended: count, eof, reset (the same, after a reset in between), or refused.
 */
#define _GNU_SOURCE
#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define LARGEST_PACKET (8u << 20)
#define FNV_START 0xcbf29ce484222325u
#define FNV_PRIME 0x100000001b3u

struct report {
    uint64_t messages, first_id, last_id, hash;
    bool ordered, reset;
};

static int fail(const char *what) {
    perror(what);
    return EXIT_FAILURE;
}

static int connect_to(const char *address) {
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    size_t length = strlen(address);
    int fd;

    if (length >= sizeof to.sun_path) {
        errno = ENAMETOOLONG;
        return -1;
    }
    memcpy(to.sun_path, address, length);
    if (address[0] == '@')
        to.sun_path[0] = 0; /* abstract: no zero behind the name */
    else
        length++;
    fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&to,
                           (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length)) < 0) {
        close(fd);
        return -1;
    }
    return fd;
}

static bool shake_hands(int fd) {
    static const uint8_t version[6] = {1, 0, 0, 0, 0, 0};
    uint8_t hello[6];

    if (recv(fd, hello, sizeof hello, 0) != sizeof hello || memcmp(hello, version, 4) != 0)
        return false;
    send(fd, version, sizeof version, MSG_NOSIGNAL);
    return true;
}

static void take(struct report *report, uint64_t id, const uint8_t *payload, size_t size) {
    if (report->messages == 0)
        report->first_id = id;
    else if (id != report->last_id + 1)
        report->ordered = false;
    report->last_id = id;
    report->messages++;
    for (size_t i = 0; i < size; i++)
        report->hash = (report->hash ^ payload[i]) * FNV_PRIME;
}

/* The next packet's length, 0 at the end, -1 with errno. */
static ssize_t read_packet(int fd, uint8_t *buffer, struct report *report) {
    for (;;) {
        ssize_t length = recv(fd, buffer, LARGEST_PACKET, 0);
        if (length >= 0)
            return length;
        if (errno == ECONNRESET)
            report->reset = true; /* it closed with acks unread; what it sent is still here */
        else if (errno != EINTR)
            return -1;
    }
}

/* How it ended, or NULL with errno. */
static const char *run(int fd, uint64_t count, uint8_t *buffer, struct report *report) {
    while (report->messages != count) {
        ssize_t length = read_packet(fd, buffer, report);
        uint64_t id;

        if (length < 0)
            return NULL;
        if (length == 0)
            return report->reset ? "reset" : "eof";
        if (length < (ssize_t)sizeof id) {
            errno = EPROTO;
            return NULL;
        }
        memcpy(&id, buffer, sizeof id);
        take(report, le64toh(id), buffer + sizeof id, (size_t)length - sizeof id);
        if (send(fd, &id, sizeof id, MSG_NOSIGNAL) < 0 && errno == ECONNRESET)
            report->reset = true;
    }
    return "count";
}

int main(int argc, char **argv) {
    struct report report = {.hash = FNV_START, .ordered = true};
    uint64_t count = argc > 2 ? strtoull(argv[2], NULL, 10) : UINT64_MAX;
    const char *end = "refused";
    uint8_t *buffer;
    int fd;

    if (argc < 2 || argc > 3) {
        fprintf(stderr, "usage: %s ADDRESS [COUNT]\n", argv[0]);
        return 2;
    }
    fd = connect_to(argv[1]);
    buffer = malloc(LARGEST_PACKET);
    if (fd < 0 || !buffer)
        return fail(argv[1]);
    if (shake_hands(fd))
        end = run(fd, count, buffer, &report);
    if (!end)
        return fail("receive");
    close(fd);
    free(buffer);
    printf("{\"messages\": %" PRIu64 ", \"first_id\": %" PRIu64 ", \"last_id\": %" PRIu64
           ", \"fnv1a\": \"%016" PRIx64 "\", \"ordered\": %s, \"end\": \"%s\"}\n",
           report.messages, report.first_id, report.last_id, report.hash,
           report.ordered ? "true" : "false", end);
    return EXIT_SUCCESS;
}
