/* SPDX-License-Identifier: Apache-2.0 */
/* The connection of a client: waiting for it, and how it ends. */
#ifndef JMK_CONNECTION_H
#define JMK_CONNECTION_H

#include <poll.h>

#include "client/client.h"

/* The server broke the protocol: nothing is received any more. found, due: see enum jmk_fault_kind. */
void jmk_connection_break(struct jmk_client *client, enum jmk_fault_kind kind, uint64_t found,
                          uint64_t due);

/*
 * Call it before each read of the socket, with the flags of that read. 0: read on. 1: the server
 * broke the protocol, and nothing is read any more. Otherwise -errno.
 */
int jmk_connection_check(struct jmk_client *client, int flags);

/* A BYE came. False: it is malformed, which breaks the connection. */
bool jmk_connection_decode_bye(struct jmk_client *client, const struct jmk_header *header,
                               const uint8_t *payload);

/* After a BYE: all messages from the next one to `last` are lost, and none comes to show it. */
void jmk_connection_lose_rest(struct jmk_client *client, uint64_t last);

/* The server is dead: what is queued stays readable, and then comes the end. */
void jmk_connection_end_stream(struct jmk_client *client);

/* A read gave 0 bytes: the end of the stream, or an empty packet, which no server may send. */
void jmk_connection_end_or_break(struct jmk_client *client);

/* Has the server's thread died, by the header page of its log? */
bool jmk_connection_is_orphaned(const struct jmk_client *client);

/* True, and the stream ended, if the server has died. */
bool jmk_connection_end_if_dead(struct jmk_client *client);

/* When a wait that begins now has to look around: within a second, and by its deadline. */
int64_t jmk_connection_next_look(int64_t deadline);

/* Shut it down, also for others that hold the descriptor, such as a forked child. */
void jmk_connection_shut_down(int fd);

/* Limit each blocking read to a second. 0, or -errno. */
int jmk_connection_limit_reads(int fd);

/*
 * Wait until the socket is readable, or the server is dead: 0, JMK_E_TIMEOUT, or -errno; -EINTR also
 * after a second. Events are POLLIN, or POLLOUT for a socket that takes acks again, or both.
 */
int jmk_connection_wait(struct jmk_client *client, int64_t deadline, short events);

/* Turn the result of a blocking read into that of a wait: 0, or -errno; -EINTR for nothing in a second. */
int jmk_connection_waited(struct jmk_client *client, int error);

/* Packets came, but no message. True if that has gone on for too long; *began is 0 at first. */
bool jmk_connection_is_fruitless(int64_t *began, int64_t deadline);

/* Did a send fail for now only? A connection that broke is noticed by reading on. */
bool jmk_connection_refused(ssize_t sent);

#endif
