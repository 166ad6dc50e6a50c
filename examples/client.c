/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A client in C, without Python
 *
 *     make install-c PREFIX=$HOME/.local
 *     export PKG_CONFIG_PATH=$HOME/.local/lib/pkgconfig LD_LIBRARY_PATH=$HOME/.local/lib
 *     cc -o client examples/client.c $(pkg-config --cflags --libs jumiks)
 *     ./client @address            # or: ./client @address framed, ./client @address classic
 *
 * It writes each message as a line. To standard error it writes what it missed, and how the
 * connection ended.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jumiks.h>

#define SECOND 1000000000LL

static int explain(int code, const struct jmk_connected *facts) {
    if (code < 0)
        fprintf(stderr, "cannot connect: %s\n", strerror(-code));
    else if (code == JMK_E_TIMEOUT)
        fputs("nothing in 5 s\n", stderr);
    else if (code == JMK_E_REFUSED)
        fprintf(stderr, "refused, status %" PRIu32 ": %s\n", facts->status, facts->reason);
    else if (code == JMK_E_VERSION)
        fprintf(stderr, "it speaks version %u.%u\n", facts->version[0], facts->version[1]);
    else if (code == JMK_E_PROTOCOL)
        fprintf(stderr, "fault %" PRIu32 ": found %" PRIu64 ", due %" PRIu64 "\n", facts->fault,
                facts->found, facts->due);
    else
        fprintf(stderr, "cannot connect: code %d\n", code);
    return 1;
}

/* In a shared log the lag policy may give a batch up while it is read: copy first, then ask. */
static int write_lines(jmk_client *client, const struct jmk_batch *batch) {
    char *lines = malloc(batch->bytes + batch->count), *end = lines;

    if (!lines)
        return 0;
    for (size_t i = 0; i < batch->count; i++) {
        memcpy(end, batch->items[i].data, batch->items[i].size);
        end += batch->items[i].size;
        *end++ = '\n';
    }
    if (!jmk_client_batch_is_intact(client)) {
        jmk_client_drop_batch(client); /* the next receive says what became of it */
    } else {
        if (batch->lost)
            fprintf(stderr, "missed %" PRIu64 " messages\n", batch->lost);
        fwrite(lines, 1, (size_t)(end - lines), stdout);
        fflush(stdout);
    }
    free(lines);
    return 1;
}

int main(int argc, char **argv) {
    struct jmk_connect_options options = {
        .address = argc > 1 ? argv[1] : NULL, .delivery = JMK_SHARED, .timeout = 5 * SECOND};
    struct jmk_connected facts;
    struct jmk_goodbye words;
    struct jmk_batch batch;
    jmk_client *client;
    int code;

    if (argc > 2 && strcmp(argv[2], "shared") != 0)
        options.delivery = strcmp(argv[2], "framed") == 0 ? JMK_FRAMED : JMK_CLASSIC;
    code = jmk_connect(&client, &options, &facts);
    if (code)
        return explain(code, &facts);
    do { /* what was handled is acked as the next batch is asked for */
        code = jmk_client_receive(client, jmk_client_last_id(client), -1, &batch);
        if (!code && !write_lines(client, &batch))
            code = -ENOMEM;
    } while (code == 0 || code == -EINTR);
    jmk_client_goodbye(client, &words);
    if (code == JMK_E_END)
        fprintf(stderr, "it ended, reason %" PRIu32 "\n", words.reason);
    else
        fprintf(stderr, "it ended, code %d\n", code);
    jmk_client_free(client);
    return code == JMK_E_END && words.reason == JMK_R_CLOSING ? 0 : 1;
}
