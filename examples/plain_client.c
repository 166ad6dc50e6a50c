/* SPDX-License-Identifier: Apache-2.0 */
/* The least client of docs/protocol.md: cc -o plain_client plain_client.c && ./plain_client @ADDRESS */
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

static char packet[1 << 19]; /* larger than any packet that the usual net.core.wmem_max allows */

int main(int argc, char **argv) {
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    unsigned char hello[64], reply[6] = {1};
    size_t length = argc == 2 ? strlen(argv[1]) : sizeof at;
    int fd = socket(AF_UNIX, SOCK_SEQPACKET, 0);
    ssize_t n;

    if (length >= sizeof at.sun_path)
        return 2;
    memcpy(at.sun_path, argv[1], length);
    if (at.sun_path[0] == '@') /* an abstract name begins with NUL */
        at.sun_path[0] = 0;
    if (connect(fd, (void *)&at, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length)))
        return perror(argv[1]), 1;
    if (recv(fd, hello, sizeof hello, 0) < 6 || memcmp(hello, "\1\0\0", 4) != 0)
        return fputs("this is no jumiks 1.0 server\n", stderr), 1;
    send(fd, reply, sizeof reply, MSG_NOSIGNAL);
    while ((n = recv(fd, packet, sizeof packet, MSG_TRUNC)) != 0) { /* 0 bytes are the end */
        if (n < 0 && errno == ECONNRESET)
            continue; /* the server closed with acks unread: its packets can still be read */
        if (n < 8 || (size_t)n > sizeof packet)
            return fputs("a packet cannot be read, or is too large or too short\n", stderr), 1;
        fwrite(packet + 8, 1, (size_t)n - 8, stdout);
        putchar('\n');
        fflush(stdout);
        send(fd, packet, 8, MSG_NOSIGNAL); /* ack what was handled; if the server closed, read on */
    }
}
