/* SPDX-License-Identifier: Apache-2.0 */
/* Reading and closing sockets whose peers may send descriptors. */
#ifndef JMK_GUARD_H
#define JMK_GUARD_H

#include <stdbool.h>

#include "jumiks.h"

/* Whether packets that the peer sends to fd may come with descriptors. */
enum jmk_guard jmk_guard_of(int fd);

/*
 * Look at the next packet before it is read, waiting for it as flags say. 0: read it.
 * JMK_E_PROTOCOL: descriptors came with it, so it must stay unread. Else -errno of recv.
 */
int jmk_guard_check(enum jmk_guard *guard, int fd, int flags);

/* Close a socket, elsewhere if it may have descriptors unread. *fd is -1 then. */
void jmk_guard_close(enum jmk_guard guard, int *fd);

#endif
