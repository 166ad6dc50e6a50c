/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Death at every point between two stores that the other end may see
 *
 * A process kills itself at one of the core's points (csrc/common/point.h), the first time it comes there
 * or a later one. If it was the server, its client reads whole messages in order, to the end that was
 * published, and then finds the connection lost. If it was a client, the server notices, and another
 * client gets everything.
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "common/frame.h"
#include "common/page.h"
#include "common/point.h"

#define LOG_SIZE 65536
#define MAX_LAG 20
#define PATIENCE 5 /* s, in which anything here has happened */
#define SECONDS INT64_C(1000000000)

/* Who dies where, under which policy; a lazy client lags behind. */
struct death {
    enum jmk_point point;
    enum jmk_policy policy;
    int lazy;
};

static const struct death of_servers[] = {
    {JMK_AT_OPEN, JMK_BLOCK, 0},      {JMK_AT_OLDEST, JMK_BLOCK, 0},
    {JMK_AT_TAIL, JMK_BLOCK, 0},      {JMK_AT_SEAL, JMK_BLOCK, 0},
    {JMK_AT_SEALED, JMK_BLOCK, 0},    {JMK_AT_ODD, JMK_BLOCK, 0},
    {JMK_AT_NEXT_ID, JMK_BLOCK, 0},   {JMK_AT_HEAD, JMK_BLOCK, 0},
    {JMK_AT_PUBLISHED, JMK_BLOCK, 0}, {JMK_AT_WOKEN, JMK_BLOCK, 0},
    {JMK_AT_RAISED, JMK_BLOCK, 0},    {JMK_AT_WANTED, JMK_BLOCK, 1},
    {JMK_AT_OLDEST, JMK_SKIP, 1},     {JMK_AT_TAIL, JMK_SKIP, 1},
    {JMK_AT_SKIP, JMK_SKIP, 1},       {JMK_AT_SKIPPED, JMK_SKIP, 1},
    {JMK_AT_RESUME, JMK_SKIP, 1},     {JMK_AT_BYE, JMK_DISCONNECT, 1},
    {JMK_AT_GONE, JMK_DISCONNECT, 1},
};

static const struct death of_clients[] = {
    {JMK_AT_ACK, JMK_BLOCK, 0},   {JMK_AT_ACKED, JMK_BLOCK, 0}, {JMK_AT_SLEEP, JMK_BLOCK, 0},
    {JMK_AT_AWAKE, JMK_BLOCK, 0}, {JMK_AT_TOLD, JMK_BLOCK, 1},  {JMK_AT_ANSWERED, JMK_SKIP, 1},
    {JMK_AT_ACKED, JMK_SKIP, 1},
};

static enum jmk_point deadly;
static atomic_int lives;

static void live_or_die(enum jmk_point point) {
    if (point == deadly && atomic_fetch_sub(&lives, 1) == 1)
        kill(getpid(), SIGKILL);
}

/* From here on this process dies at a point. If it never comes there, an alarm ends it. */
static void doom(const struct death *death, int lives_left) {
    deadly = death->point;
    atomic_store(&lives, lives_left);
    jmk_at_point = live_or_die;
    alarm(PATIENCE);
}

static void died_as_it_should(pid_t process, const struct death *death) {
    int status;

    CHECK(waitpid(process, &status, 0) == process);
    if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
        fprintf(stderr, "at point %d, policy %d:\n", (int)death->point, (int)death->policy);
    CHECK(WIFSIGNALED(status));
    CHECK_EQUAL(WTERMSIG(status), SIGKILL);
}

static void make_pair(int ends[2]) {
    CHECK_EQUAL(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
}

/* ---- messages that tell whether they are whole ---- */

static uint32_t size_of(uint64_t id) {
    return (uint32_t)(id * 2654435761u % 700);
}

static size_t make_message(uint64_t id, uint8_t *out) {
    for (uint32_t at = 0; at < size_of(id); at++)
        out[at] = (uint8_t)(id * 13 + at * 5);
    return size_of(id);
}

/* Frames may be given up while they are read, so they are copied first, as users do. */
static void copy_out(const struct jmk_batch *batch, uint8_t *copy) {
    for (size_t i = 0; i < batch->count; i++) {
        memcpy(copy, batch->items[i].data, batch->items[i].size);
        copy += batch->items[i].size;
    }
}

static void check_batch(const struct jmk_batch *batch, const uint8_t *copy, uint64_t *next) {
    uint8_t expected[700];

    CHECK(batch->count > 0);
    CHECK_EQUAL(batch->first_id - batch->lost, *next);
    for (size_t i = 0; i < batch->count; i++) {
        size_t size = make_message(batch->first_id + i, expected);

        CHECK_EQUAL(batch->items[i].size, size);
        CHECK(memcmp(copy, expected, size) == 0);
        copy += size;
    }
    *next = batch->first_id + batch->count;
}

/* ---- what a welcome would bring ---- */

struct ticket {
    struct jmk_attached attached;
    int fds[2];
};

static void send_ticket(int fd, const struct ticket *ticket) {
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof ticket->fds)];
    } control = {.header = {.cmsg_len = CMSG_LEN(sizeof ticket->fds),
                            .cmsg_level = SOL_SOCKET,
                            .cmsg_type = SCM_RIGHTS}};
    struct iovec part = {(void *)(uintptr_t)ticket, sizeof *ticket};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = sizeof control};

    memcpy(CMSG_DATA(&control.header), ticket->fds, sizeof ticket->fds);
    CHECK_EQUAL(sendmsg(fd, &message, MSG_NOSIGNAL), sizeof *ticket);
}

static struct ticket take_ticket(int fd) {
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(2 * sizeof(int))];
    } control;
    struct ticket ticket;
    struct iovec part = {&ticket, sizeof ticket};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = sizeof control};

    CHECK_EQUAL(recvmsg(fd, &message, MSG_CMSG_CLOEXEC), sizeof ticket);
    CHECK_EQUAL(control.header.cmsg_len, CMSG_LEN(sizeof ticket.fds));
    memcpy(ticket.fds, CMSG_DATA(&control.header), sizeof ticket.fds);
    return ticket;
}

/* From the beginning the death of the server's thread is told: nobody has to sleep on a socket. */
static void check_owner(int log_fd) {
    const struct jmk_log_page *page = mmap(NULL, sizeof *page, PROT_READ, MAP_SHARED, log_fd, 0);

    CHECK(page != MAP_FAILED);
    CHECK(atomic_load(&page->owner) & JMK_OWNER_WAKES);
    munmap((void *)(uintptr_t)page, sizeof *page);
}

static jmk_server *make_server(const struct death *death) {
    struct jmk_config config = {.log_size = LOG_SIZE,
                                .max_lag = death->lazy ? MAX_LAG : 0,
                                .patience = death->policy == JMK_BLOCK ? -1 : 0,
                                .policy = death->policy,
                                .max_message = LOG_SIZE / 4,
                                .max_clients = 4,
                                .send_buffer = 196608};
    jmk_server *server;

    CHECK_EQUAL(jmk_server_new(&server, &config), 0);
    check_owner(jmk_server_log_fd(server));
    return server;
}

static struct ticket attach(jmk_server *server, int fd) {
    struct ticket ticket;
    uint32_t max_packet = 0;

    CHECK_EQUAL(jmk_socket_prepare(server, fd, &max_packet), 0);
    CHECK_EQUAL(jmk_server_attach(server, fd, JMK_SHARED, max_packet, 0, &ticket.attached), 0);
    ticket.fds[0] = jmk_server_log_fd(server);
    ticket.fds[1] = ticket.attached.cursor_fd;
    return ticket;
}

static jmk_client *make_client(int fd, const struct ticket *ticket) {
    struct jmk_client_config config = {.first_id = ticket->attached.first_id,
                                       .delivery = JMK_SHARED,
                                       .max_message = LOG_SIZE,
                                       .log_fd = ticket->fds[0],
                                       .cursor_fd = ticket->fds[1],
                                       .first_offset = ticket->attached.first_offset};
    jmk_client *client;

    CHECK_EQUAL(jmk_client_new(&client, fd, &config), 0);
    return client;
}

/* Publish the next message; waits for room as long as it takes. */
static void publish(jmk_server *server, uint64_t id) {
    struct jmk_account holder;
    uint8_t message[700];
    size_t size = make_message(id, message);
    uint64_t got;

    while (jmk_server_append(server, message, size, &got) == JMK_E_FULL)
        jmk_server_wait_room(server, size, -1, &holder, NULL);
    CHECK_EQUAL(got, id);
    jmk_server_kick(server);
}

/* ---- a server dies ---- */

static _Noreturn void doomed_server(const struct death *death, int lives_left, int fd,
                                    int tickets) {
    jmk_server *server = make_server(death);
    struct ticket ticket = attach(server, fd);

    send_ticket(tickets, &ticket);
    doom(death, lives_left);
    jmk_server_release(server, ticket.attached.key);
    for (uint64_t id = JMK_FIRST_ID;; id++) {
        publish(server, id);
        if (id % 8 == 0 && !death->lazy)
            poll(NULL, 0, 1); /* so that its client falls asleep */
    }
}

static int receive(jmk_client *client, uint64_t handled, struct jmk_batch *batch) {
    int code = -EINTR; /* once a second, if nothing comes */

    for (int tries = 0; tries < PATIENCE && code == -EINTR; tries++)
        code = jmk_client_receive(client, handled, PATIENCE * SECONDS, batch);
    return code;
}

/*
 * Receive to the end; returns how it ended. A batch that was given up under our eyes counts as
 * never received.
 */
static int read_all(jmk_client *client, int lazy, uint64_t *next) {
    for (;;) {
        uint64_t handled = *next > JMK_FIRST_ID ? *next - 1 : 0;
        static uint8_t copy[LOG_SIZE];
        struct jmk_batch batch;
        int code = receive(client, handled, &batch);

        if (code)
            return code;
        copy_out(&batch, copy);
        if (jmk_client_batch_is_intact(client))
            check_batch(&batch, copy, next);
        else
            jmk_client_drop_batch(client);
        if (lazy)
            poll(NULL, 0, 1);
    }
}

/* What was read reaches to the end that was published. */
static void nothing_is_missing(int log_fd, uint64_t next) {
    const struct jmk_log_page *page = mmap(NULL, sizeof *page, PROT_READ, MAP_SHARED, log_fd, 0);
    uint64_t offset = 0;

    CHECK(page != MAP_FAILED);
    for (uint64_t id = JMK_FIRST_ID; id < next; id++)
        offset += jmk_frame_length(size_of(id));
    CHECK_EQUAL(offset, atomic_load(&page->head));
    munmap((void *)(uintptr_t)page, sizeof *page);
}

static void a_server_dies(const struct death *death, int lives_left) {
    int stream[2], tickets[2], code;
    uint64_t next = JMK_FIRST_ID;
    struct ticket ticket;
    jmk_client *client;
    pid_t process;

    make_pair(stream);
    make_pair(tickets);
    process = fork();
    CHECK(process >= 0);
    if (process == 0)
        doomed_server(death, lives_left, stream[0], tickets[1]);
    close(stream[0]);
    close(tickets[1]);
    ticket = take_ticket(tickets[0]);
    client = make_client(stream[1], &ticket);
    code = read_all(client, death->lazy, &next);
    died_as_it_should(process, death);
    if (death->policy == JMK_DISCONNECT)
        CHECK(code == JMK_E_LOST || code == JMK_E_END);
    else
        CHECK_EQUAL(code, JMK_E_LOST);
    if (death->policy == JMK_BLOCK)
        nothing_is_missing(ticket.fds[0], next);
    jmk_client_free(client);
    close(ticket.fds[0]);
    close(ticket.fds[1]);
    close(tickets[0]);
}

/* ---- a client dies ---- */

static _Noreturn void doomed_client(const struct death *death, int lives_left, int fd,
                                    int tickets) {
    struct ticket ticket = take_ticket(tickets);
    jmk_client *client = make_client(fd, &ticket);
    uint64_t next = JMK_FIRST_ID;
    int code;

    doom(death, lives_left);
    code = read_all(client, death->lazy, &next);
    fprintf(stderr, "its client ended by itself: code %d, fault %u\n", code, fault_of(client));
    exit(1);
}

static void receive_one(jmk_client *client, uint64_t *next) {
    uint64_t handled = *next > JMK_FIRST_ID ? *next - 1 : 0;
    struct jmk_batch batch;

    CHECK_EQUAL(receive(client, handled, &batch), 0);
    CHECK_EQUAL(batch.count, 1);
    check_batch(&batch, batch.items[0].data, next);
}

/* Publish and receive one by one until the other client is gone; returns why it went. */
static uint32_t serve(jmk_server *server, jmk_client *witness, uint64_t *next) {
    struct jmk_event event;

    for (;;) {
        publish(server, *next);
        receive_one(witness, next);
        while (jmk_server_next_event(server, &event) == 0) {
            if (event.kind == JMK_EVENT_GONE)
                return event.account.reason;
        }
    }
}

static void a_client_dies(const struct death *death, int lives_left) {
    int stream[2], tickets[2], other[2];
    uint64_t next = JMK_FIRST_ID, end;
    struct ticket theirs, ours;
    jmk_server *server;
    jmk_client *witness;
    pid_t process;

    make_pair(stream);
    make_pair(tickets);
    process = fork();
    CHECK(process >= 0);
    if (process == 0) {
        close(stream[0]);
        doomed_client(death, lives_left, stream[1], tickets[1]);
    }
    close(stream[1]);
    server = make_server(death);
    theirs = attach(server, stream[0]);
    make_pair(other);
    ours = attach(server, other[0]);
    witness = make_client(other[1], &ours);
    send_ticket(tickets[0], &theirs);
    jmk_server_release(server, theirs.attached.key);
    jmk_server_release(server, ours.attached.key);
    CHECK_EQUAL(serve(server, witness, &next), JMK_R_LEFT);
    died_as_it_should(process, death);
    end = next + 500; /* many times what the log holds */
    while (next < end) {
        publish(server, next);
        receive_one(witness, &next);
    }
    jmk_client_free(witness);
    jmk_server_free(server);
    close(theirs.fds[1]);
    close(ours.fds[1]);
    close(tickets[0]);
    close(tickets[1]);
}

/* ---- a server dies while its clients sleep ---- */

#define SLEEPERS 3

static _Noreturn void server_of_sleepers(const int *streams, int tickets) {
    jmk_server *server = make_server(&of_servers[0]);

    for (int i = 0; i < SLEEPERS; i++) {
        struct ticket ticket = attach(server, streams[i]);

        send_ticket(tickets, &ticket);
        jmk_server_release(server, ticket.attached.key);
    }
    alarm(PATIENCE);
    for (;;)
        pause();
}

struct sleeper {
    pthread_t thread;
    jmk_client *client;
    struct ticket ticket;
    const struct jmk_cursor_page *page;
    atomic_int id; /* of its thread */
    int result;
};

static void *sleep_till_the_end(void *argument) {
    struct sleeper *sleeper = argument;
    struct jmk_batch batch;

    atomic_store(&sleeper->id, (int)syscall(SYS_gettid));
    sleeper->result = jmk_client_receive(sleeper->client, 0, -1, &batch);
    return NULL;
}

static int is_asleep(struct sleeper *sleeper) {
    char path[64], state = 0;
    FILE *file;

    snprintf(path, sizeof path, "/proc/self/task/%d/stat", atomic_load(&sleeper->id));
    file = fopen(path, "r");
    if (file) {
        CHECK(fscanf(file, "%*d (%*[^)]) %c", &state) == 1);
        fclose(file);
    }
    return state == 'S' && atomic_load(&sleeper->page->sleeping) & JMK_SLEEPS_ON_WORD;
}

/*
 * Their sockets do not end, as we hold the other ends, and none looks again by itself. The kernel wakes
 * one, and that one the others.
 */
static void all_sleepers_are_told(void) {
    int streams[SLEEPERS][2], ours[SLEEPERS], tickets[2];
    struct sleeper sleepers[SLEEPERS] = {0};
    pid_t process;

    make_pair(tickets);
    for (int i = 0; i < SLEEPERS; i++) {
        make_pair(streams[i]);
        ours[i] = streams[i][0];
    }
    process = fork();
    CHECK(process >= 0);
    if (process == 0)
        server_of_sleepers(ours, tickets[1]);
    jmk_no_polls = true;
    alarm(PATIENCE);
    for (int i = 0; i < SLEEPERS; i++) {
        sleepers[i].ticket = take_ticket(tickets[0]);
        sleepers[i].client = make_client(streams[i][1], &sleepers[i].ticket);
        sleepers[i].page = mmap(NULL, sizeof *sleepers[i].page, PROT_READ, MAP_SHARED,
                                sleepers[i].ticket.fds[1], 0);
        CHECK(sleepers[i].page != MAP_FAILED);
        CHECK(pthread_create(&sleepers[i].thread, NULL, sleep_till_the_end, &sleepers[i]) == 0);
    }
    for (int i = 0; i < SLEEPERS; i++) {
        while (!is_asleep(&sleepers[i]))
            poll(NULL, 0, 1);
    }
    kill(process, SIGKILL);
    for (int i = 0; i < SLEEPERS; i++) {
        pthread_join(sleepers[i].thread, NULL);
        CHECK_EQUAL(sleepers[i].result, JMK_E_LOST);
        jmk_client_free(sleepers[i].client);
        munmap((void *)(uintptr_t)sleepers[i].page, sizeof *sleepers[i].page);
        close(sleepers[i].ticket.fds[0]);
        close(sleepers[i].ticket.fds[1]);
        close(ours[i]);
    }
    CHECK(waitpid(process, NULL, 0) == process);
    close(tickets[0]);
    close(tickets[1]);
    jmk_no_polls = false;
    alarm(0);
}

int main(void) {
    static const int occurrences[] = {1, 2, 7, 40};

    for (size_t n = 0; n < sizeof occurrences / sizeof *occurrences; n++) {
        for (size_t i = 0; i < sizeof of_servers / sizeof *of_servers; i++) {
            if (of_servers[i].policy != JMK_DISCONNECT || occurrences[n] == 1) /* it is cut once */
                a_server_dies(&of_servers[i], occurrences[n]);
        }
        for (size_t i = 0; i < sizeof of_clients / sizeof *of_clients; i++)
            a_client_dies(&of_clients[i], occurrences[n]);
    }
    all_sleepers_are_told();
    return 0;
}
