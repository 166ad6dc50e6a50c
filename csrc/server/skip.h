/* SPDX-License-Identifier: Apache-2.0 */
/* Skipping: a client at its limit gives up what it has not got. Under pump_lock. */
#ifndef JMK_SKIP_H
#define JMK_SKIP_H

#include "server/state.h"

/* Drop a session's queue. It goes on once it has acked all that it was sent. */
void jmk_skip_begin(struct jmk_server *server, struct jmk_session *session);

/*
 * If a session that skips has acked all that it was sent, let it go on behind the gap, with the newest
 * message there is; without with_newest, with the next. The latter is for a session that had acked all
 * before it was skipped: it stands in the way of a message that is to be published now.
 */
void jmk_skip_resume(struct jmk_server *server, struct jmk_session *session, bool with_newest);

#endif
