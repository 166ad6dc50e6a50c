/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Hello, reply and welcome, as the client sees them
 *
 * A hello is read as far as it goes: what is not there in full is zero. A reply repeats its choice of
 * what the hello offers. Every byte from the server is checked here, before anything is made of it.
 */
#include "connect/handshake.h"

#include <endian.h>
#include <string.h>

enum {
    VERSION_SIZE = 6,
    EXTENDED_SIZE = 8, /* from here on a hello is extended */
    HELLO_SIZE = 48,
    WELCOME_SIZE = 16,
    SHARED_WELCOME_SIZE = 24
};

static uint16_t get16(const uint8_t *at) {
    uint16_t word;

    memcpy(&word, at, sizeof word);
    return le16toh(word);
}

static uint32_t get32(const uint8_t *at) {
    uint32_t word;

    memcpy(&word, at, sizeof word);
    return le32toh(word);
}

static uint64_t get64(const uint8_t *at) {
    uint64_t word;

    memcpy(&word, at, sizeof word);
    return le64toh(word);
}

int jmk_handshake_broken(struct jmk_connected *facts, enum jmk_handshake_fault fault,
                         uint64_t found, uint64_t due) {
    facts->fault = fault;
    facts->found = found;
    facts->due = due;
    return JMK_E_PROTOCOL;
}

/* ---- hello and reply ---- */

/* The whole fields of a packet, and zeros behind them. */
static void take_fields(uint8_t out[HELLO_SIZE], const uint8_t *packet, size_t length) {
    static const uint8_t ends[] = {2, 4, 6, 8, 16, 24, 32, 40, 44, HELLO_SIZE};
    size_t whole = 0;

    for (size_t i = 0; i < sizeof ends && ends[i] <= length; i++)
        whole = ends[i];
    memset(out, 0, HELLO_SIZE);
    memcpy(out, packet, whole);
}

static uint32_t choose_packet(const struct jmk_handshake *shake, uint32_t offered) {
    uint32_t most = shake->wishes & JMK_CAN_FRAMES ? JMK_CLIENT_ARENA : JMK_UNTOLD_PACKET;

    return offered || most < JMK_UNTOLD_PACKET ? most : JMK_UNTOLD_PACKET;
}

static void write_reply(const struct jmk_handshake *shake, uint32_t max_packet, uint8_t *reply) {
    uint16_t wishes = htole16(shake->wishes);
    uint64_t start = htole64(shake->start);
    uint32_t packet = htole32(max_packet);

    memset(reply, 0, JMK_LONG_REPLY);
    reply[0] = 1; /* version 1.0.0 */
    if (!shake->extended)
        return;
    memcpy(reply + 6, &wishes, sizeof wishes);
    memcpy(reply + 8, &start, sizeof start);
    memcpy(reply + 16, &packet, sizeof packet);
}

int jmk_handshake_hello(struct jmk_handshake *shake, const uint8_t *packet, size_t length,
                        struct jmk_connected *facts, uint8_t reply[JMK_LONG_REPLY], size_t *size) {
    uint8_t hello[HELLO_SIZE];
    uint32_t offered;

    if (length < VERSION_SIZE)
        return jmk_handshake_broken(facts, JMK_HANDSHAKE_HELLO, length, VERSION_SIZE);
    take_fields(hello, packet, length);
    for (size_t i = 0; i < 3; i++)
        facts->version[i] = get16(hello + 2 * i);
    if (facts->version[0] != 1 || facts->version[1] != 0)
        return JMK_E_VERSION;
    facts->server_id = get64(hello + 8);
    facts->oldest_id = get64(hello + 16);
    facts->next_id = get64(hello + 24);
    facts->max_lag = get64(hello + 32);
    offered = get32(hello + 40);
    facts->max_message = get32(hello + 44);
    shake->max_packet = offered ? offered : JMK_UNTOLD_PACKET;
    shake->extended = length >= EXTENDED_SIZE;
    if (!shake->extended && shake->start != JMK_START_NOW) {
        facts->status = JMK_REFUSED_START;
        return JMK_E_REFUSED;
    }
    write_reply(shake, choose_packet(shake, offered), reply);
    *size = shake->extended ? JMK_LONG_REPLY : VERSION_SIZE;
    return 0;
}

/* ---- welcome ---- */

/* Its words may be shown on a terminal: no control characters, not those of UTF-8 either. */
static void take_reason(const uint8_t *text, size_t length, char *out) {
    size_t most = length < JMK_REASON_SIZE ? length : JMK_REASON_SIZE;

    for (size_t i = 0; i < most; i++) {
        int control = text[i] < ' ' || text[i] == 0x7f ||
                      (i && text[i - 1] == 0xc2 && text[i] >= 0x80 && text[i] < 0xa0);
        out[i] = control ? '?' : (char)text[i];
        if (control && text[i] >= 0x80)
            out[i - 1] = '?';
    }
    out[most] = 0;
}

static int check_grant(const struct jmk_handshake *shake, struct jmk_connected *facts) {
    int alone = shake->granted & JMK_CAN_LOG && !(shake->granted & JMK_CAN_FRAMES);

    if (facts->first_id < shake->start)
        return jmk_handshake_broken(facts, JMK_HANDSHAKE_START, facts->first_id, shake->start);
    if (facts->left_out &&
        (facts->first_id < JMK_FIRST_ID || facts->left_out > facts->first_id - JMK_FIRST_ID))
        return jmk_handshake_broken(facts, JMK_HANDSHAKE_LEFT_OUT, facts->left_out,
                                    facts->first_id);
    if (shake->granted & ~shake->wishes || alone)
        return jmk_handshake_broken(facts, JMK_HANDSHAKE_GRANT, shake->granted, shake->wishes);
    return 0;
}

int jmk_handshake_welcome(struct jmk_handshake *shake, const uint8_t *packet, size_t length,
                          struct jmk_connected *facts) {
    size_t due = WELCOME_SIZE;

    if (length >= due && !get16(packet) && get16(packet + 2) & JMK_CAN_LOG)
        due = SHARED_WELCOME_SIZE;
    if (length < due)
        return jmk_handshake_broken(facts, JMK_HANDSHAKE_WELCOME, length, due);
    facts->status = get16(packet);
    if (facts->status) {
        take_reason(packet + WELCOME_SIZE, length - WELCOME_SIZE, facts->reason);
        return JMK_E_REFUSED;
    }
    shake->granted = get16(packet + 2) & (JMK_CAN_FRAMES | JMK_CAN_LOG | JMK_CAN_MONITOR);
    facts->left_out = get32(packet + 4);
    facts->first_id = get64(packet + 8);
    if (due == SHARED_WELCOME_SIZE)
        shake->first_offset = get64(packet + WELCOME_SIZE);
    return check_grant(shake, facts);
}
