/* SPDX-License-Identifier: Apache-2.0 */
/* A plain 1.0 client: cc -o plain_client plain_client.c && ./plain_client @ADDRESS */
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static char packet[1 << 18];

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
    if (connect(fd, (void *)&at, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length))) {
        perror(argv[1]);
        return 1;
    }
    if (recv(fd, hello, sizeof hello, 0) < 6 || hello[0] != 1 || hello[1] || hello[2] || hello[3])
        return 1;
    send(fd, reply, sizeof reply, MSG_NOSIGNAL);
    while ((n = recv(fd, packet, sizeof packet, 0)) >= 8) {
        fwrite(packet + 8, 1, (size_t)n - 8, stdout);
        putchar('\n');
        fflush(stdout);
        send(fd, packet, 8, MSG_NOSIGNAL); /* acked once it is handled */
    }
    return close(fd);
}
