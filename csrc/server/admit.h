/* SPDX-License-Identifier: Apache-2.0 */
/* What may enter the log: the admission, and the floor that it follows from. Under pump_lock. */
#ifndef JMK_ADMIT_H
#define JMK_ADMIT_H

#include "server/state.h"

/* Set a session's cursors to place, and lower the admission for it. Under log_lock too. */
void jmk_admit_enter(struct jmk_server *server, struct jmk_session *session, struct jmk_mark place);

/* Its welcome is out: sends to it may begin. Under pump_lock. */
void jmk_admit_begin(struct jmk_server *server, struct jmk_session *session);

/* Bring admission and floor up to date, if they are stale, and wake those that wait for that. */
void jmk_admit_update(struct jmk_server *server);

#endif
