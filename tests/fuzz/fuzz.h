/* SPDX-License-Identifier: Apache-2.0 */
/* What the fuzz targets share: an input is read as a list of small steps. */
#ifndef JMK_FUZZ_H
#define JMK_FUZZ_H

#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>

#include "../c/check.h"

/* An input, used up from the front. Behind its end are zeros, so every input is a whole program. */
struct input {
    const uint8_t *at;
    size_t left;
};

/* The next size bytes, at most 8, as a little-endian number. */
static inline uint64_t take(struct input *input, size_t size) {
    uint64_t number = 0;

    for (size_t i = 0; i < size && input->left; i++, input->left--)
        number |= (uint64_t)*input->at++ << 8 * i;
    return number;
}

/* Copy up to size of the next bytes; how many there were. */
static inline size_t take_bytes(struct input *input, void *to, size_t size) {
    if (size > input->left)
        size = input->left;
    if (size)
        memcpy(to, input->at, size);
    input->at += size;
    input->left -= size;
    return size;
}

/* A number around base, or any: small steps are what makes an input nearly right. */
static inline uint64_t take_near(struct input *input, uint64_t base) {
    uint64_t step = take(input, 1);

    return step == 0x80 ? take(input, 8) : base + (uint64_t)(int64_t)(int8_t)step;
}

/*
 * Send a packet with up to 253 descriptors, all of the sender's own socket. False if it was not sent: the
 * kernel may refuse descriptors, and the socket may be full, or shut.
 */
static inline bool send_with_descriptors(int fd, const void *data, size_t size, size_t count) {
    char room[CMSG_SPACE(253 * sizeof fd)] = {0};
    struct iovec part = {(void *)(uintptr_t)data, size};
    struct msghdr packet = {.msg_iov = &part,
                            .msg_iovlen = 1,
                            .msg_control = room,
                            .msg_controllen = CMSG_SPACE(count * sizeof fd)};
    struct cmsghdr *note = CMSG_FIRSTHDR(&packet);

    *note = (struct cmsghdr){
        .cmsg_len = CMSG_LEN(count * sizeof fd), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
    for (size_t i = 0; i < count; i++)
        memcpy(CMSG_DATA(note) + i * sizeof fd, &fd, sizeof fd);
    return sendmsg(fd, &packet, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0;
}

/* As a server makes its sockets on a kernel that can: no descriptors come to this one. */
static inline void refuse_descriptors(int fd) {
    int passed = 0;

    setsockopt(fd, SOL_SOCKET, 83 /* SO_PASSRIGHTS */, &passed, sizeof passed);
}

/* What is run: it returns 0, or does not return. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif
