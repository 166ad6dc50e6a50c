/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Return codes and their texts
 *
 * Two number spaces share one int. Negative is -errno from the call that failed, never changed on
 * its way up, so that Python can raise the OSError that belongs to it. Positive is a condition of
 * ours that a caller is expected to handle; each has a text here, for logs and for tests, while the
 * sentences users read are made in Python, which knows names and addresses.
 */
#include <string.h>

#include "jumiks.h"

static const char *const texts[] = {
    [0] = "success",
    [JMK_E_TIMEOUT] = "the deadline passed",
    [JMK_E_CLOSED] = "this end is closed",
    [JMK_E_FORKED] = "the handle belongs to the parent process",
    [JMK_E_FULL] = "the log has no room yet",
    [JMK_E_TURN] = "another thread is publishing a batch or holds a reservation",
    [JMK_E_MINE] = "this thread itself holds a reservation",
    [JMK_E_TOO_LARGE] = "the message is larger than allowed",
    [JMK_E_NO_SLOT] = "too many clients",
    [JMK_E_START] = "the start is beyond the next packet id",
    [JMK_E_GONE] = "no such client",
    [JMK_E_BUSY] = "another thread is receiving on this client",
    [JMK_E_END] = "the server said goodbye",
    [JMK_E_LOST] = "the connection ended without a goodbye",
    [JMK_E_PROTOCOL] = "the peer broke the protocol",
    [JMK_E_ACK] = "an ack for a message that was not received",
    [JMK_E_LOG] = "the server shares a log that it could change or cut at will",
    [JMK_E_SHAPE] = "what the server shares is no log, or another than it says",
};

const char *jmk_error_text(int code) {
    if (code < 0)
        return strerror(-code);
    if (code >= JMK_E_LAST || !texts[code])
        return "unknown error";
    return texts[code];
}
