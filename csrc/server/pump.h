/* SPDX-License-Identifier: Apache-2.0 */
/* The pump: rounds of the data-plane thread, and of a publisher in its stead. */
#ifndef JMK_PUMP_H
#define JMK_PUMP_H

#include "server/state.h"

/* The thread: make rounds until the server is closed, and all goodbyes are said. */
void jmk_pump_run(struct jmk_server *server);

/* The rest under pump_lock. */

/* One round: what epoll has now, sends, admission. */
void jmk_pump_round(struct jmk_server *server);

/* A publisher's round in a slow stream: sends, and the acks once they are many. */
void jmk_pump_inline(struct jmk_server *server);

/* Send to all sessions what the log has; false if a bound on work stopped it. */
bool jmk_pump_send(struct jmk_server *server);

/*
 * Ask the slowest session, and those that are just as far, for a packet with an ack of id or above, if
 * their clients read the log. All of them, as the ack of one alone changes nothing that anybody is woken
 * for, so nobody would ask the next. True if any ack was found after that: then look again before waiting.
 */
bool jmk_pump_request_acks(struct jmk_server *server, struct jmk_session *slowest, uint64_t id);

#endif
