/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every call to the operating system fails, at every place in the core that makes it
 *
 * A scenario (scenario.h) runs once to see which places (sites, faults.h) it comes to; then once for
 * each of them, each error that the call may give there, and each of some occasions (the first time,
 * later, from then on for ever), in a child of its own with a deadline. Whatever fails: nobody hangs,
 * no message is torn, doubled or lost without a word, nothing leaks; and a failure that passes costs
 * one connection at most, with its reason.
 *
 * Options: -v shows what became of each failure; -s lists the sites, for tests/core/test_c.py to find
 * those that were never come to; -f SCENARIO:CALL:SITE:ERROR:NTH:TIMES, as it is named when it
 * fails, runs that one in this process, for a debugger.
 */
#include "connects.h"

#include <signal.h>
#include <sys/wait.h>

#define DEADLINE 20 /* s for a child; it takes milliseconds */
#define CHILDREN 4  /* at a time */
#define MEMORY_HITS 16 /* each of them, as memory for different things is taken at the same site */

#define ALL_DELIVERIES (1u << JMK_CLASSIC | 1u << JMK_FRAMED | 1u << JMK_SHARED)
#define PACKETS (1u << JMK_CLASSIC | 1u << JMK_FRAMED)
#define GOING (1u << LEAVER | 1u << KICKED | 1u << MOURNER)

static const struct scenario scenarios[] = {
    {"block", JMK_BLOCK, ALL_DELIVERIES, STEADY | GOING, {0}, JMK_GUARD_NONE},
    {"disconnect", JMK_DISCONNECT, ALL_DELIVERIES, 1u << KEEN | 1u << LAZY, {0}, JMK_GUARD_NONE},
    {"skip", JMK_SKIP, ALL_DELIVERIES, STEADY | 1u << LAZY, {0}, JMK_GUARD_NONE},
    {"shared alone", JMK_BLOCK, 1u << JMK_SHARED, STEADY, {0}, JMK_GUARD_NONE},
    {"no memfd",
     JMK_BLOCK,
     PACKETS,
     STEADY,
     {memfd_create_, 0, ENOSYS, 1, FOR_EVER},
     JMK_GUARD_NONE},
    {"old memfd",
     JMK_BLOCK,
     ALL_DELIVERIES,
     STEADY,
     {memfd_create_, 0, EINVAL, 1, 1},
     JMK_GUARD_NONE},
    {"no pwait2",
     JMK_BLOCK,
     1u << JMK_SHARED,
     STEADY,
     {epoll_pwait2_, 0, EPERM, 1, FOR_EVER},
     JMK_GUARD_NONE},
    {"no futex_waitv",
     JMK_BLOCK,
     1u << JMK_SHARED,
     STEADY | GOING,
     {futex_waitv_, 0, ENOSYS, 1, FOR_EVER},
     JMK_GUARD_NONE},
    {"no sendmmsg",
     JMK_BLOCK,
     PACKETS,
     STEADY,
     {sendmmsg_, 0, ENOSYS, 1, FOR_EVER},
     JMK_GUARD_NONE},
    {"no recvmmsg", JMK_BLOCK, PACKETS, STEADY, {recvmmsg_, 0, EPERM, 1, FOR_EVER}, JMK_GUARD_NONE},
    {"too large",
     JMK_BLOCK,
     1u << JMK_CLASSIC,
     1u << KEEN,
     {sendmmsg_, 0, EMSGSIZE, 1, 1},
     JMK_GUARD_NONE},
    {"full sockets", JMK_BLOCK, PACKETS, 1u << PATIENT, {send_, 0, EAGAIN, 1, 40}, JMK_GUARD_NONE},
    {"guarded",
     JMK_BLOCK,
     ALL_DELIVERIES,
     STEADY | 1u << LEAVER | 1u << KICKED,
     {0},
     JMK_GUARD_ALWAYS},
    {"guarded and cut",
     JMK_DISCONNECT,
     1u << JMK_FRAMED,
     1u << KEEN | 1u << LAZY,
     {0},
     JMK_GUARD_ALWAYS},
    {"guarded at first", JMK_BLOCK, ALL_DELIVERIES, STEADY, {0}, JMK_GUARD_UNTIL_EMPTY},
    {"no more threads",
     JMK_BLOCK,
     PACKETS,
     STEADY,
     {pthread_create_, 0, EAGAIN, 2, FOR_EVER},
     JMK_GUARD_ALWAYS},
    {"connect, shared", JMK_BLOCK, 1u << JMK_SHARED, 0, {0}, JMK_GUARD_NONE},
    {"connect, packets",
     JMK_BLOCK,
     1u << JMK_FRAMED,
     0,
     {connect_, 0, EAGAIN, 1, 2},
     JMK_GUARD_NONE},
};

#define SCENARIOS (sizeof scenarios / sizeof *scenarios)

static const char *const outcome_names[OUTCOMES] = {[UNTOUCHED] = "not come to",
                                                    [RECOVERED] = "recovered",
                                                    [TOLD] = "told to the caller",
                                                    [ENDED] = "connections ended",
                                                    [WRONG] = "WRONG"};

static struct ledger *new_ledger(void) {
    void *at = __real_mmap(NULL, sizeof(struct ledger), PROT_READ | PROT_WRITE,
                           MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    CHECK(at != MAP_FAILED);
    return at;
}

/* ---- a packet that was read, and has no place ---- */

static void send_frame(int fd, const uint8_t *frame, size_t size) {
    CHECK_EQUAL(__real_send(fd, frame, size, MSG_NOSIGNAL), size);
}

/* A message, and the first half of another. */
static void send_one_and_a_half(int fd) {
    struct jmk_header header = {8, JMK_KIND_DATA, 0, JMK_FIRST_ID};
    uint8_t frame[40] = {0};

    jmk_frame_encode(frame, &header);
    send_frame(fd, frame, JMK_FRAME_HEADER + 8);
    jmk_fragment_encode(frame, JMK_FIRST_ID + 1, 16, 32, 0);
    send_frame(fd, frame, JMK_FRAGMENT_HEADER + 16);
}

/* It is read to where the second half would go, while the arena that it belongs in is held. */
static void a_goodbye_is_kept_until_there_is_memory(void) {
    struct jmk_client_config config = {.first_id = JMK_FIRST_ID,
                                       .arena_size = 4096,
                                       .delivery = JMK_FRAMED,
                                       .max_packet = 1024,
                                       .max_message = 1024};
    struct jmk_goodbye words = {.reason = JMK_R_CLOSING};
    uint8_t frame[JMK_FRAME_HEADER + JMK_BYE_SIZE];
    struct jmk_batch batch;
    jmk_client *client;
    jmk_held *held;
    int ends[2];

    CHECK_EQUAL(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
    CHECK_EQUAL(jmk_client_new(&client, ends[0], &config), 0);
    send_one_and_a_half(ends[1]);
    CHECK_EQUAL(jmk_client_receive(client, 0, 0, &batch), 0);
    CHECK_EQUAL(batch.count, 1);
    held = jmk_client_hold_batch(client);
    jmk_bye_encode(frame, JMK_FIRST_ID, &words);
    send_frame(ends[1], frame, sizeof frame);
    condition = (struct fault){mmap_, 0, ENOMEM, 2, 1}; /* the first is for the other message */
    atomic_store(&faults_on, 1);
    CHECK(jmk_client_receive(client, 0, 0, &batch) == -ENOMEM);
    CHECK_EQUAL(jmk_client_receive(client, 0, 0, &batch), JMK_E_END);
    atomic_store(&faults_on, 0);
    atomic_store(&condition_hits, 0);
    jmk_held_free(held);
    jmk_client_free(client);
    __real_close(ends[1]);
}

/* ---- what only the client of a plain 1.0 server has ---- */

static void a_client_without_memory_for_labels_is_not_made(void) {
    struct jmk_client_config config = {
        .arena_size = 4096, .delivery = JMK_CLASSIC, .labels = 1, .max_packet = 1024};
    jmk_client *client;
    int ends[2];

    CHECK_EQUAL(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
    for (unsigned nth = 1; nth <= 3; nth++) { /* the client, its pool, its labels */
        condition = (struct fault){calloc_, 0, ENOMEM, nth, 1};
        atomic_store(&faults_on, 1);
        CHECK_EQUAL(jmk_client_new(&client, ends[0], &config), -ENOMEM);
        atomic_store(&faults_on, 0);
        CHECK_EQUAL(atomic_load(&condition_hits), nth);
        atomic_store(&condition_hits, 0);
    }
    __real_close(ends[0]);
    __real_close(ends[1]);
}

/* ---- all of them ---- */

struct run {
    const struct scenario *scenario;
    struct fault fault;
    struct ledger *ledger;
    pid_t process;
};

static struct run runs[CHILDREN];
static unsigned results[CALLS][8][2][OUTCOMES]; /* call, its error, for ever, outcome */
static unsigned failures;

#ifdef JMK_COVERAGE
extern void __gcov_dump(void);
#define DUMP_COUNTS() __gcov_dump() /* as an exit would */
#else
#define DUMP_COUNTS() ((void)0)
#endif

static void begin(struct run *run) {
    int code;

    memset(run->ledger, 0, sizeof *run->ledger);
    run->process = fork();
    CHECK(run->process >= 0);
    if (run->process)
        return;
    alarm(DEADLINE);
    scenario = run->scenario;
    condition = scenario->condition;
    fault = run->fault;
    ledger = run->ledger;
    code = (int)(scenario->roles ? play() : play_connect());
    DUMP_COUNTS();
    _exit(code);
}

static const char *error_text(int error) {
    return error == SHORT ? "less than asked for" : strerror(error);
}

static void show(const struct run *run, const char *what) {
    const struct fault *that = &run->fault;

    fprintf(stderr, "%s: %s with %s: -f '%s:%u:%#lx:%d:%u:%u'\n", what, calls[that->call].name,
            error_text(that->error), run->scenario->name, (unsigned)that->call,
            (unsigned long)that->at, that->error, that->nth, that->times);
}

static void finish(struct run *run, int status) {
    enum outcome outcome = WIFEXITED(status) ? (enum outcome)WEXITSTATUS(status) : WRONG;
    size_t error = 0;

    run->process = 0;
    if (outcome >= WRONG) {
        outcome = WRONG;
        failures++;
        show(run, WIFEXITED(status)             ? "not as it should be"
                  : WTERMSIG(status) == SIGALRM ? "hangs"
                                                : "crashes");
    }
    if (!run->fault.call)
        return;
    while (calls[run->fault.call].errors[error] != run->fault.error)
        error++;
    results[run->fault.call][error][run->fault.times == FOR_EVER][outcome]++;
}

/* A place for one more child; waits for one to end if there is none. */
static struct run *take_run(void) {
    for (size_t i = 0; i < CHILDREN; i++) {
        if (!runs[i].process)
            return &runs[i];
    }
    for (;;) {
        int status;
        pid_t process = waitpid(-1, &status, 0);

        for (size_t i = 0; i < CHILDREN; i++) {
            if (runs[i].process == process) {
                finish(&runs[i], status);
                return &runs[i];
            }
        }
    }
}

static void finish_all(void) {
    for (size_t i = 0; i < CHILDREN; i++) {
        int status;

        if (runs[i].process) {
            CHECK(waitpid(runs[i].process, &status, 0) == runs[i].process);
            finish(&runs[i], status);
        }
    }
}

static void try(const struct scenario *which, const struct site *site, int error, unsigned nth,
                unsigned times) {
    struct run *run = take_run();

    run->scenario = which;
    run->fault = (struct fault){site->call, atomic_load(&site->at), error, nth, times};
    begin(run);
}

/* What fails for want of something may do so for ever; the rest passes. */
static int may_last(int error) {
    return error != EINTR && error != EPIPE && error != ECONNRESET && error != EAGAIN;
}

static void try_site(const struct scenario *which, const struct site *site) {
    unsigned hits = atomic_load(&site->hits);

    for (size_t i = 0; i < 8 && calls[site->call].errors[i]; i++) {
        int error = calls[site->call].errors[i];

        try(which, site, error, 1, 1);
        for (unsigned nth = 2; site->call <= mmap_ && nth <= hits && nth <= MEMORY_HITS; nth++)
            try(which, site, error, nth, 1);
        if (hits > 1)
            try(which, site, error, 1 + hits / 2, 1);
        if (hits > 3)
            try(which, site, error, 2, 2);
        if (may_last(error))
            try(which, site, error, 1, FOR_EVER);
    }
}

/* Run a scenario with nothing failing. What it comes to stands in the ledger then. */
static void explore(const struct scenario *which, struct ledger *into) {
    struct run run = {.scenario = which, .ledger = into};
    int status;

    begin(&run);
    CHECK(waitpid(run.process, &status, 0) == run.process);
    finish(&run, status);
}

static int known(const struct ledger *ledgers, size_t count, uintptr_t at) {
    for (size_t n = 0; n < count; n++) {
        for (size_t i = 0; i < SITES; i++) {
            if (atomic_load(&ledgers[n].sites[i].at) == at)
                return 1;
        }
    }
    return 0;
}

static void show_results(void) {
    for (size_t call = 1; call < CALLS; call++) {
        for (size_t n = 0; n < 16; n++) {
            const unsigned *result = results[call][n / 2][n % 2];
            int error = calls[call].errors[n / 2];

            if (!error || !(result[0] || result[1] || result[2] || result[3] || result[4]))
                continue;
            printf("%-14s %-34s%s", calls[call].name, error_text(error),
                   n % 2 ? " for ever" : "         ");
            for (size_t outcome = 0; outcome < OUTCOMES; outcome++) {
                if (result[outcome])
                    printf("  %u %s", result[outcome], outcome_names[outcome]);
            }
            putchar('\n');
        }
    }
}

static void try_all(const struct ledger *ledgers, int verbose) {
    for (size_t n = 0; n < SCENARIOS; n++) {
        for (size_t i = 0; i < SITES; i++) {
            const struct site *site = &ledgers[n].sites[i];

            if (site->call && !known(ledgers, n, atomic_load(&site->at)))
                try_site(&scenarios[n], site);
        }
    }
    finish_all();
    if (verbose)
        show_results();
}

static void list_sites(const struct ledger *ledgers) {
    for (size_t n = 0; n < SCENARIOS; n++) {
        for (size_t i = 0; i < SITES; i++) {
            uintptr_t at = atomic_load(&ledgers[n].sites[i].at);

            if (at && !known(ledgers, n, at))
                printf("%#lx\n", (unsigned long)at);
        }
    }
}

/* The one that -f names, in this process. */
static int run_one(const char *words) {
    char name[64];
    unsigned long at;

    ledger = new_ledger();
    if (sscanf(words, "%63[^:]:%u:%lx:%d:%u:%u", name, &fault.call, &at, &fault.error, &fault.nth,
               &fault.times) != 6)
        return 2;
    fault.at = at;
    for (size_t n = 0; n < SCENARIOS; n++) {
        if (strcmp(scenarios[n].name, name) == 0)
            scenario = &scenarios[n];
    }
    CHECK(scenario != NULL);
    condition = scenario->condition;
    puts(outcome_names[scenario->roles ? play() : play_connect()]);
    return 0;
}

int main(int count, char **words) {
    const char *option = count > 1 ? words[1] : "";
    static struct ledger ledgers[SCENARIOS];

    if (strcmp(option, "-f") == 0 && count > 2)
        return run_one(words[2]);
    ledger = new_ledger();
    a_goodbye_is_kept_until_there_is_memory();
    a_client_without_memory_for_labels_is_not_made();
    for (size_t i = 0; i < CHILDREN; i++)
        runs[i].ledger = new_ledger();
    for (size_t n = 0; n < SCENARIOS; n++) {
        explore(&scenarios[n], runs[0].ledger);
        memcpy(&ledgers[n], runs[0].ledger, sizeof *ledgers);
    }
    if (strcmp(option, "-s") == 0)
        list_sites(ledgers);
    else
        try_all(ledgers, strcmp(option, "-v") == 0);
    return failures ? 1 : 0;
}
