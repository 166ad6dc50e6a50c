/* SPDX-License-Identifier: Apache-2.0 */
/* Which acks the thread wakes for. Under pump_lock. */
#ifndef JMK_ACKS_H
#define JMK_ACKS_H

#include "server/state.h"

/* Have epoll look for acks again, of all sessions that are not muted. */
void jmk_acks_watch(struct jmk_server *server);

/* An inline round was made. After some in a row, have epoll look for no acks, if all sessions keep up. */
void jmk_acks_ignore(struct jmk_server *server);

/* True if its acks, left unread, could fill its socket: it has many unacked messages. */
bool jmk_acks_owes_many(const struct jmk_session *session);

/* While acks are ignored: read its acks now, before they fill its socket or come to matter? */
bool jmk_acks_must_read(const struct jmk_server *server, const struct jmk_session *session);

/* jmk_session_read; a session that is muted is read only once it has come to its end. */
int jmk_acks_read(struct jmk_server *server, struct jmk_session *session, uint32_t events,
                  bool *moved);

/* Read again from the sessions that were muted for long enough. For the thread alone. */
void jmk_acks_unmute(struct jmk_server *server);

#endif
