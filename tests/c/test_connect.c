/* SPDX-License-Identifier: Apache-2.0 */
/* Hello and welcome of any length and content: nothing is read beyond the packet, and what is taken is right. */
#include "connect/handshake.h"

#include <stdlib.h>
#include <string.h>

#include "check.h"

static const uint8_t hello[48] = {1, 0,        0,           0,    0,       0,           3,
                                  0, 0x11,     [16] = 0xa0, 0x86, 1,       [24] = 0xa1, 0x86,
                                  1, [32] = 9, [40] = 0,    2,    [44] = 7};
static struct jmk_connected facts;
static struct jmk_handshake shake;

/* In memory of its own length, so that a sanitizer sees each byte that is read behind it. */
static int read_hello(const uint8_t *packet, size_t length, uint8_t *reply, size_t *size) {
    uint8_t *copy = malloc(length ? length : 1);
    int code;

    CHECK(copy != NULL);
    memcpy(copy, packet, length);
    memset(&facts, 0, sizeof facts);
    code = jmk_handshake_hello(&shake, copy, length, &facts, reply, size);
    free(copy);
    return code;
}

static int read_welcome(const uint8_t *packet, size_t length) {
    uint8_t *copy = malloc(length ? length : 1);
    int code;

    CHECK(copy != NULL);
    memcpy(copy, packet, length);
    memset(&facts, 0, sizeof facts);
    code = jmk_handshake_welcome(&shake, copy, length, &facts);
    free(copy);
    return code;
}

static void a_field_that_is_cut_is_zero(void) {
    uint8_t reply[JMK_LONG_REPLY];
    size_t size;

    for (size_t length = 0; length <= sizeof hello; length++) {
        int code;

        shake = (struct jmk_handshake){.wishes = JMK_CAN_FRAMES};
        code = read_hello(hello, length, reply, &size);
        CHECK_EQUAL(code, length < 6 ? JMK_E_PROTOCOL : 0);
        if (code)
            continue;
        CHECK_EQUAL(size, length < 8 ? 6 : JMK_LONG_REPLY);
        CHECK_EQUAL(facts.server_id, length < 16 ? 0 : 0x11);
        CHECK_EQUAL(facts.oldest_id, length < 24 ? 0 : 100000);
        CHECK_EQUAL(facts.next_id, length < 32 ? 0 : 100001);
        CHECK_EQUAL(facts.max_lag, length < 40 ? 0 : 9);
        CHECK_EQUAL(shake.max_packet, length < 44 ? JMK_UNTOLD_PACKET : 512);
        CHECK_EQUAL(facts.max_message, length < 48 ? 0 : 7);
    }
}

static void a_reply_says_what_is_asked_for(void) {
    static const uint8_t due[JMK_LONG_REPLY] = {1, 0, 0, 0, 0, 0, 3, 0, 0xa5, 0x86,
                                                1, 0, 0, 0, 0, 0, 0, 0, 0x40};
    uint8_t reply[JMK_LONG_REPLY];
    size_t size;

    shake = (struct jmk_handshake){.wishes = JMK_CAN_FRAMES | JMK_CAN_LOG, .start = 100005};
    CHECK_EQUAL(read_hello(hello, sizeof hello, reply, &size), 0);
    CHECK_EQUAL(size, JMK_LONG_REPLY);
    CHECK_EQUAL(memcmp(reply, due, size), 0);
    CHECK_EQUAL(read_hello(hello, 40, reply, &size), 0); /* it names no packet: we do */
    CHECK_EQUAL(reply[18], JMK_UNTOLD_PACKET >> 16);
    shake.wishes = 0;
    CHECK_EQUAL(read_hello(hello, sizeof hello, reply, &size), 0);
    CHECK_EQUAL(reply[18], JMK_UNTOLD_PACKET >> 16); /* classic packets have no other limit */
}

/* Whatever comes, the code and the facts go together. */
static void any_welcome_is_taken_or_told(void) {
    uint8_t packet[64];

    for (int i = 0; i < 200000; i++) {
        size_t length = any_below(sizeof packet + 1);
        int code;

        for (size_t at = 0; at < sizeof packet; at++)
            packet[at] = (uint8_t)(any_below(3) ? 0 : any_below(256));
        packet[0] = packet[0] < 200 ? 0 : packet[0];
        packet[1] = 0;
        shake = (struct jmk_handshake){.wishes = (uint16_t)any_below(4), .extended = 1};
        code = read_welcome(packet, length);
        CHECK(code == 0 || code == JMK_E_PROTOCOL || code == JMK_E_REFUSED);
        CHECK_EQUAL(code == JMK_E_PROTOCOL, facts.fault != 0);
        CHECK_EQUAL(code == JMK_E_REFUSED, facts.status != 0);
        CHECK(code || !(shake.granted & ~shake.wishes));
        CHECK(code || !facts.left_out || facts.left_out <= facts.first_id - JMK_FIRST_ID);
    }
}

/* What a reason is shown as; a 0x9b that does not follow a 0xc2 is part of another character. */
static void a_reason_has_no_control_characters(void) {
    static const struct {
        const char *sent, *shown;
    } cases[] = {
        {"too many", "too many"},
        {"", ""},
        {"a\x1b[2Jb\n\x1f ", "a?[2Jb?? "},
        {"~\x7f\x7e", "~?~"},
        {"\xc2\x9b.\xc2\x80.\xc2\x9f.", "??.??.??."},
        {"\xc2\xa0.\xc3\x9b.", "\xc2\xa0.\xc3\x9b."},
        {"\xc2", "\xc2"},
    };
    uint8_t packet[16 + JMK_REASON_SIZE + 9] = {1};

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        memcpy(packet + 16, cases[i].sent, strlen(cases[i].sent));
        shake = (struct jmk_handshake){.extended = 1};
        CHECK_EQUAL(read_welcome(packet, 16 + strlen(cases[i].sent)), JMK_E_REFUSED);
        CHECK_EQUAL(strcmp(facts.reason, cases[i].shown), 0);
    }
    memset(packet + 16, 'x', sizeof packet - 16);
    CHECK_EQUAL(read_welcome(packet, sizeof packet), JMK_E_REFUSED);
    CHECK_EQUAL(strlen(facts.reason), JMK_REASON_SIZE);
}

/* It may be longer, for a later version, and not shorter. */
static void a_welcome_has_all_its_fields(void) {
    static const struct {
        uint16_t wishes, granted;
        size_t due;
    } cases[] = {
        {JMK_CAN_FRAMES, JMK_CAN_FRAMES, 16},
        {JMK_CAN_FRAMES | JMK_CAN_LOG, JMK_CAN_FRAMES, 16},
        {JMK_CAN_FRAMES | JMK_CAN_LOG, JMK_CAN_FRAMES | JMK_CAN_LOG, 24},
    };

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint8_t packet[32] = {[2] = (uint8_t)cases[i].granted, [8] = 0xa0, 0x86, 1, [16] = 5};

        for (size_t length = 0; length <= sizeof packet; length++) {
            shake = (struct jmk_handshake){.wishes = cases[i].wishes, .extended = 1};
            CHECK_EQUAL(read_welcome(packet, length), length < cases[i].due ? JMK_E_PROTOCOL : 0);
        }
        CHECK_EQUAL(facts.first_id, 100000);
        CHECK_EQUAL(shake.first_offset, cases[i].due == 24 ? 5 : 0);
    }
}

int main(void) {
    a_welcome_has_all_its_fields();
    a_reason_has_no_control_characters();
    a_field_that_is_cut_is_zero();
    a_reply_says_what_is_asked_for();
    any_welcome_is_taken_or_told();
    return 0;
}
