/* SPDX-License-Identifier: Apache-2.0 */
/* The two ways in which a session gets its messages: send_packets.c and send_shared.c. */
#ifndef JMK_SEND_H
#define JMK_SEND_H

#include "server/session.h"

extern const struct jmk_delivery_ops jmk_send_packets; /* classic and framed */
extern const struct jmk_delivery_ops jmk_send_shared;

/* Make a shared session's page. *fd is a descriptor of it, which the caller owns. */
int jmk_send_shared_open(struct jmk_session *session, int *fd);

#endif
