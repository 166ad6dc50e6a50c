/* SPDX-License-Identifier: Apache-2.0 */
/* Hello, reply and welcome (docs/protocol.md): bytes in, bytes out. Nothing here waits or does I/O. */
#ifndef JMK_HANDSHAKE_H
#define JMK_HANDSHAKE_H

#include <stddef.h>
#include <stdint.h>

#include "jumiks.h"

enum {
    JMK_CAN_FRAMES = 1,
    JMK_CAN_LOG = 2,
    JMK_CAN_MONITOR = 4,
    JMK_LONG_PACKET = 4096, /* bytes; holds any packet of a handshake */
    JMK_LONG_REPLY = 24, /* bytes */
    JMK_UNTOLD_PACKET = 262144, /* bytes; the largest packet where the hello does not say */
    JMK_CLIENT_ARENA = 4 << 20 /* bytes of address space of one arena, and the largest packet */
};

/* What the two ends have said so far. */
struct jmk_handshake {
    uint16_t wishes; /* bits of JMK_CAN_* */
    uint16_t granted;
    uint64_t start; /* as asked for */
    uint32_t max_packet; /* the largest that may come, bytes */
    uint64_t first_offset;
    int extended; /* a welcome will come */
};

/*
 * Read a hello into the facts, and write the reply, of which *size is the length. 0, JMK_E_REFUSED,
 * JMK_E_VERSION, or JMK_E_PROTOCOL.
 */
int jmk_handshake_hello(struct jmk_handshake *shake, const uint8_t *packet, size_t length,
                        struct jmk_connected *facts, uint8_t reply[JMK_LONG_REPLY], size_t *size);

/* Read a welcome into the facts. 0, JMK_E_REFUSED, or JMK_E_PROTOCOL. */
int jmk_handshake_welcome(struct jmk_handshake *shake, const uint8_t *packet, size_t length,
                          struct jmk_connected *facts);

/* The server broke the protocol: say how, and return JMK_E_PROTOCOL. */
int jmk_handshake_broken(struct jmk_connected *facts, enum jmk_handshake_fault fault,
                         uint64_t found, uint64_t due);

#endif
