/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading and closing sockets whose peers may send descriptors
 *
 * A descriptor that nobody asked for is closed by the kernel, in the thread that reads or drops its
 * packet, and that may take long (dispose.c). Linux 6.16 can refuse descriptors at the sender
 * (SO_PASSRIGHTS); a socket that was so from its beginning needs no guard, and costs nothing here.
 *
 * On any other socket the next packet is looked at (MSG_PEEK) before it is read. A look takes another
 * reference to each descriptor and drops that, so nothing is closed; with no room for descriptors the
 * kernel says MSG_CTRUNC if there were any. Such a packet is never read: it stays in its socket, and
 * the socket is closed by a thread that nobody waits for. To receive them
 * in order to close them elsewhere would not do: there are up to 253 per packet, and those that our
 * table has no room for would be closed by the reading thread after all.
 *
 * It takes for granted that no other control messages come: the maker of the socket sees to it that
 * SO_PASSCRED and its like are off.
 *
 * If SO_PASSRIGHTS is cleared on an open connection, packets sent earlier may still carry descriptors,
 * until the socket was once found empty.
 */
#include "common/guard.h"

#include <errno.h>
#include <sys/socket.h>

#include "common/dispose.h"
#include "common/os.h"

#ifndef SO_PASSRIGHTS
#define SO_PASSRIGHTS 83
#endif

enum jmk_guard jmk_guard_of(int fd) {
    int passed = 1;
    socklen_t size = sizeof passed;

    if (getsockopt(fd, SOL_SOCKET, SO_PASSRIGHTS, &passed, &size) < 0)
        return JMK_GUARD_ALWAYS; /* this kernel cannot refuse any */
    return passed ? JMK_GUARD_ALWAYS : JMK_GUARD_NONE;
}

int jmk_guard_check(enum jmk_guard *guard, int fd, int flags) {
    struct msghdr packet = {0};

    if (*guard == JMK_GUARD_NONE)
        return 0;
    if (recvmsg(fd, &packet, flags | MSG_PEEK) >= 0)
        return packet.msg_flags & MSG_CTRUNC ? JMK_E_PROTOCOL : 0;
    if (errno == EAGAIN && *guard == JMK_GUARD_UNTIL_EMPTY)
        *guard = JMK_GUARD_NONE;
    return -errno;
}

void jmk_guard_close(enum jmk_guard guard, int *fd) {
    if (guard == JMK_GUARD_NONE)
        jmk_close_fd(fd);
    else
        jmk_dispose(jmk_take_fd(fd));
}
