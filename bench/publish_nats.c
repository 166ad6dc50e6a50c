/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A plain C client of NATS JetStream: publish records and wait for all acks; prints the seconds.
 *
 *     publish_nats URL SUBJECT RECORDS BYTES OUTSTANDING
 */
#include <nats/nats.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static void check(natsStatus status, const char *what) {
    if (status != NATS_OK) {
        fprintf(stderr, "%s: %s\n", what, natsStatus_GetText(status));
        exit(1);
    }
}

static double now(void) {
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

int main(int argc, char **argv) {
    natsConnection *connection = NULL;
    jsOptions options;
    jsCtx *stream = NULL;
    double begin;
    char *record;
    long count;
    int size;

    if (argc != 6)
        return 2;
    count = atol(argv[3]);
    size = atoi(argv[4]);
    record = calloc(1, (size_t)size);
    check(natsConnection_ConnectTo(&connection, argv[1]), "connecting");
    check(jsOptions_Init(&options), "options");
    options.PublishAsync.MaxPending = atol(argv[5]);
    check(natsConnection_JetStream(&stream, connection, &options), "JetStream");
    begin = now();
    for (long number = 0; number < count; number++)
        check(js_PublishAsync(stream, argv[2], record, size, NULL), "publishing");
    check(js_PublishAsyncComplete(stream, NULL), "acks");
    printf("%.6f\n", now() - begin);
    jsCtx_Destroy(stream);
    natsConnection_Destroy(connection);
    free(record);
    nats_Close();
    return 0;
}
