/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A storm of connections
 *
 *     storm ADDRESS KIND SECONDS [HELD]
 *
 * Connects, shakes hands and leaves, again and again for SECONDS. KIND is what the reply to the hello
 * asks for: classic (six bytes, so no welcome comes), framed or shared; or silent, which never
 * replies and holds HELD connections open, each new one for the oldest. It starts once its input
 * has a line or ends, and at the end prints one line of JSON: how many connections were through, and
 * how many were refused or cut before that.
 */
#define _GNU_SOURCE
#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define PATIENCE 10 /* seconds for any one step */

struct reply {
    uint16_t version[3], wanted;
    uint64_t start;
    uint32_t largest, zero;
};

struct kind {
    const char *name;
    uint16_t wanted;
    size_t size;
};

static const struct kind KINDS[] = {
    {"classic", 0, 6},
    {"framed", 1, sizeof(struct reply)},
    {"shared", 3, sizeof(struct reply)},
    {"silent", 0, 0},
};

struct place {
    struct sockaddr_un address;
    socklen_t length;
};

static int find_place(const char *text, struct place *out) {
    size_t length = strlen(text);

    if (length >= sizeof out->address.sun_path)
        return -1;
    out->address.sun_family = AF_UNIX;
    memcpy(out->address.sun_path, text, length);
    if (text[0] == '@')
        out->address.sun_path[0] = 0;
    else
        length++;
    out->length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length);
    return 0;
}

static int connect_to(const struct place *place) {
    struct timeval patience = {.tv_sec = PATIENCE};
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return -1;
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    if (connect(fd, (const struct sockaddr *)&place->address, place->length) < 0) {
        close(fd);
        return -1;
    }
    return fd;
}

/* Read the welcome, and close the descriptors that come with it; 0 if it lets us in. */
static int welcomed(int fd) {
    union {
        struct cmsghdr header;
        uint8_t bytes[CMSG_SPACE(2 * sizeof(int))];
    } control;
    uint16_t welcome[256];
    struct iovec data = {welcome, sizeof welcome};
    struct msghdr message = {.msg_iov = &data,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = sizeof control};
    struct cmsghdr *found;
    int descriptors[2];

    if (recvmsg(fd, &message, MSG_CMSG_CLOEXEC) < 16)
        return -1;
    found = CMSG_FIRSTHDR(&message);
    if (found && found->cmsg_len == CMSG_LEN(sizeof descriptors)) {
        memcpy(descriptors, CMSG_DATA(found), sizeof descriptors);
        close(descriptors[0]);
        close(descriptors[1]);
    }
    return welcome[0] == 0 ? 0 : -1;
}

static int shake_hands(int fd, const struct kind *kind) {
    struct reply reply = {{htole16(1), 0, 0}, htole16(kind->wanted), 0, htole32(65536), 0};
    uint8_t hello[48];

    if (recv(fd, hello, sizeof hello, 0) < 6)
        return -1;
    if (send(fd, &reply, kind->size, MSG_NOSIGNAL) < 0)
        return -1;
    return kind->wanted ? welcomed(fd) : 0;
}

static double now(void) {
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void storm(const struct place *place, const struct kind *kind, double seconds, size_t held) {
    uint64_t through = 0, failed = 0;
    int *open = calloc(held, sizeof *open);
    double begin = now();

    while (open && now() < begin + seconds) {
        int fd = connect_to(place);

        if (fd < 0 || (kind->size && shake_hands(fd, kind))) {
            failed++;
        } else {
            int *oldest = &open[through++ % held];
            if (*oldest)
                close(*oldest);
            *oldest = fd;
            if (!kind->size)
                continue;
            *oldest = 0;
        }
        if (fd >= 0)
            close(fd);
    }
    printf("{\"through\": %" PRIu64 ", \"failed\": %" PRIu64 ", \"seconds\": %.3f}\n", through,
           failed, now() - begin);
    free(open);
}

int main(int argc, char **argv) {
    struct place place = {0};
    size_t held = argc == 5 ? strtoul(argv[4], NULL, 10) : 1;

    for (size_t i = 0; argc >= 4 && i < sizeof KINDS / sizeof *KINDS; i++) {
        if (strcmp(argv[2], KINDS[i].name) == 0 && held && find_place(argv[1], &place) == 0) {
            getchar();
            storm(&place, &KINDS[i], atof(argv[3]), held);
            return EXIT_SUCCESS;
        }
    }
    fprintf(stderr, "usage: %s ADDRESS classic|framed|shared|silent SECONDS [HELD]\n", argv[0]);
    return 2;
}
