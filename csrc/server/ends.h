/* SPDX-License-Identifier: Apache-2.0 */
/* Ending a session, its goodbye, and the events that the control plane collects. Under pump_lock. */
#ifndef JMK_ENDS_H
#define JMK_ENDS_H

#include "server/state.h"

/* Bring a session's account up to date. */
void jmk_ends_account(const struct jmk_server *server, struct jmk_session *session);

/* Queue an event of a session for the control plane. */
void jmk_ends_raise_event(struct jmk_server *server, struct jmk_session *session,
                          enum jmk_event_kind kind);

/* End a session: account, event, goodbye. */
void jmk_ends_end(struct jmk_server *server, struct jmk_session *session, enum jmk_reason reason,
                  int error);

/* End a session whose send or read failed with -errno. */
void jmk_ends_fail(struct jmk_server *server, struct jmk_session *session, int error);

/* Send the goodbye of a parting session, whose welcome is out now. */
void jmk_ends_part(struct jmk_server *server, struct jmk_session *session);

/* Shut a session that is parting or ending. */
void jmk_ends_drop(struct jmk_server *server, struct jmk_session *session);

/* Close a session that was shut, and whose peer has read all. */
void jmk_ends_close_unread(struct jmk_server *server, struct jmk_session *session);

/*
 * Drop the sessions whose goodbye has taken too long. If the server closes, begin with the goodbyes once
 * all is sent, or the time for that is up. True once no session is left.
 */
bool jmk_ends_goodbyes(struct jmk_server *server);

/* When jmk_ends_goodbyes has something to do next, if no peer does anything; INT64_MAX: never. */
int64_t jmk_ends_next(const struct jmk_server *server);

#endif
