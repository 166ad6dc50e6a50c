/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Publishing: appending, waiting, and the lag policy
 *
 * An append looks at the admission alone (server.h). Where that says no, the publisher comes here to
 * wait, and here the policy is applied: nowhere else does a client's lag have consequences.
 *
 * The question is always the same: which clients would be beyond a limit if the next message, of a
 * known size, went in? A client that was not yet offered all there is, is no answer: the server is
 * behind, and makes a round. Of the others:
 *
 *   block            they are waited for; each has patience from when it began to hold us up, or
 *                    from its last ack, and is cut then.
 *   disconnect,skip  as long as even the fastest client is past half of its own limit, we are
 *                    outrunning everybody, which serves nobody: wait for up to patience from the
 *                    last ack of any. Otherwise, and after that, cut or skip them.
 *
 * Half a limit, because "the fastest is not at its limit" would be met by the first ack in a burst,
 * and cut every client that is a moment slower.
 *
 * Clocks run while somebody waits. A publisher that comes back within patience counts as having
 * waited on; after a longer absence the clocks start anew.
 */
#include <errno.h>

#include "os.h"
#include "server.h"

#define STRIDE_MESSAGES 4096 /* a batch lets go of the lock at least this often */
#define INLINE_CLIENTS 4
#define FIRST_PAUSE (JMK_SECOND / 1000) /* before a waiter looks again by itself */
#define LONGEST_PAUSE (JMK_SECOND / 30)
#define MOST_LOOKS 64 /* at a client that acks without end, before the clock is looked at */
#define INLINE_PAUSE 20000 /* ns between messages below which the thread does the sending */

int jmk_server_usable(const struct jmk_server *server) {
    return server->process == jmk_process() ? 0 : JMK_E_FORKED;
}

/* Names the calling thread, among those that live. */
static uintptr_t myself(void) {
    static _Thread_local char name;

    return (uintptr_t)&name;
}

/* ---- appending; under log_lock ---- */

static int admitted(const struct jmk_server *server, size_t size) {
    uint64_t end = server->log.write.offset + jmk_frame_length(size);

    if (size > server->config.max_message)
        return JMK_E_TOO_LARGE;
    if (atomic_load_explicit(&server->closing, memory_order_relaxed))
        return JMK_E_CLOSED;
    if (server->turn && server->turn != myself())
        return JMK_E_TURN;
    if (server->reserving)
        return JMK_E_MINE;
    if (server->log.write.id > atomic_load_explicit(&server->admit_id, memory_order_relaxed) ||
        end > atomic_load_explicit(&server->admit_offset, memory_order_relaxed))
        return JMK_E_FULL;
    return 0;
}

static void *open_frame(struct jmk_server *server, size_t size) {
    uint64_t limit = atomic_load_explicit(&server->admit_offset, memory_order_relaxed);

    return jmk_log_open(&server->log, (uint32_t)size,
                        limit == UINT64_MAX ? UINT64_MAX : limit - server->log.size);
}

static uint64_t append(struct jmk_server *server, const void *data, size_t size) {
    memcpy(open_frame(server, size), data, size);
    server->published_bytes += size;
    return jmk_log_seal(&server->log, (uint32_t)size);
}

int jmk_server_append(jmk_server *server, const void *data, size_t size, uint64_t *id) {
    int error = jmk_server_usable(server);

    if (error)
        return error;
    pthread_mutex_lock(&server->log_lock);
    error = admitted(server, size);
    if (!error) {
        *id = append(server, data, size);
        jmk_log_publish(&server->log);
    }
    pthread_mutex_unlock(&server->log_lock);
    return error;
}

void jmk_server_kick(jmk_server *server) {
    int64_t now, before;

    if (!atomic_load(&server->parked))
        return;
    now = jmk_now();
    before = atomic_exchange_explicit(&server->last_inline, now, memory_order_relaxed);
    if (now - before < INLINE_PAUSE) {
        if (atomic_exchange(&server->parked, 0))
            jmk_server_wake(server);
        return;
    }
    if (!jmk_pump_try(server))
        return; /* the holder looks at the log's end once more */
    if (server->live_count <= INLINE_CLIENTS)
        jmk_pump_inline(server);
    jmk_pump_unlock(server); /* wakes the thread if anything is left */
}

/* Part of a batch, as much as fits in one hold of the lock. */
static int append_stride(struct jmk_server *server, const struct jmk_slice *slices, size_t count,
                         size_t *done, uint64_t *first_id) {
    size_t start = *done, bytes = 0;
    int error = 0;

    pthread_mutex_lock(&server->log_lock);
    while (*done < count && *done - start < STRIDE_MESSAGES && bytes < JMK_LOG_STRIDE) {
        const struct jmk_slice *slice = &slices[*done];
        uint64_t id;

        error = admitted(server, slice->size);
        if (error)
            break;
        id = append(server, slice->data, slice->size);
        bytes += slice->size;
        if ((*done)++ == 0)
            *first_id = id;
    }
    if (*done > start)
        jmk_log_publish(&server->log);
    if (!server->turn && *done > 0 && *done < count)
        server->turn = myself();
    pthread_mutex_unlock(&server->log_lock);
    return error;
}

/* All or none: a message that can never go in is found before the first one does. */
static int check_sizes(const struct jmk_server *server, const struct jmk_slice *slices,
                       size_t count) {
    size_t largest = 0;

    for (size_t i = 0; i < count; i++)
        largest = slices[i].size > largest ? slices[i].size : largest;
    return largest > server->config.max_message ? JMK_E_TOO_LARGE : 0;
}

int jmk_server_append_many(jmk_server *server, const struct jmk_slice *slices, size_t count,
                           size_t *done, uint64_t *first_id) {
    int error = jmk_server_usable(server);

    if (!error && *done == 0)
        error = check_sizes(server, slices, count);
    while (!error && *done < count) {
        error = append_stride(server, slices, count, done, first_id);
        jmk_server_kick(server);
    }
    if (!error)
        jmk_server_yield(server);
    return error;
}

void jmk_server_yield(jmk_server *server) {
    bool mine;

    if (jmk_server_usable(server))
        return;
    pthread_mutex_lock(&server->log_lock);
    mine = server->turn == myself() && !server->reserving;
    if (mine)
        server->turn = 0;
    pthread_mutex_unlock(&server->log_lock);
    if (mine)
        jmk_progress(server);
}

int jmk_server_reserve(jmk_server *server, size_t size, void **where) {
    int error = jmk_server_usable(server);

    if (error)
        return error;
    pthread_mutex_lock(&server->log_lock);
    error = admitted(server, size);
    if (!error) {
        *where = open_frame(server, size);
        server->turn = myself();
        server->reserving = true;
        server->reserved = (uint32_t)size;
    }
    pthread_mutex_unlock(&server->log_lock);
    return error;
}

static int end_reservation(struct jmk_server *server, uint64_t *id) {
    int error = jmk_server_usable(server);

    if (error)
        return error;
    pthread_mutex_lock(&server->log_lock);
    if (!server->reserving)
        error = JMK_E_GONE;
    else if (id && atomic_load(&server->closing))
        error = JMK_E_CLOSED;
    else if (id) {
        *id = jmk_log_seal(&server->log, server->reserved);
        server->published_bytes += server->reserved;
        jmk_log_publish(&server->log);
    }
    server->reserving = false;
    server->turn = 0;
    pthread_mutex_unlock(&server->log_lock);
    jmk_progress(server);
    return error;
}

int jmk_server_commit(jmk_server *server, uint64_t *id) {
    return end_reservation(server, id);
}

int jmk_server_discard(jmk_server *server) {
    return end_reservation(server, NULL);
}

/* ---- the policy; under pump_lock ---- */

/* What the next message would ask of every client. */
struct demand {
    uint64_t id;      /* it gets this one */
    uint64_t must_id; /* clients must need no frame before this one; but those who replay ... */
    uint64_t goal_id; /* ... before this one; log bytes before it must go */
    uint64_t half_id; /* they are past half of the log if they need one before this */
};

/* Bytes of the log that one client may hold. */
static uint64_t room(const struct jmk_server *server) {
    return server->log.size - (server->floor.offset - server->kept.offset);
}

static struct demand demand_for(const struct jmk_server *server, size_t size) {
    const struct jmk_log *log = &server->log;
    struct jmk_mark end = jmk_log_end(log), kept = server->kept;
    uint64_t top = end.offset + jmk_frame_length(size), half = room(server) / 2;
    struct demand demand = {.id = end.id};

    if (server->holders && top > log->size) {
        uint64_t goal = top - log->size;
        demand.goal_id = jmk_log_find(log, kept, goal).id;
        demand.must_id = jmk_log_find(log, kept, goal + server->config.keep_bytes).id;
        if (demand.must_id - demand.goal_id > server->config.keep)
            demand.must_id = demand.goal_id + server->config.keep;
    }
    if (server->holders && top > half)
        demand.half_id = jmk_log_find(log, kept, top - half).id;
    return demand;
}

static bool counts_messages(const struct jmk_server *server, const struct jmk_session *session) {
    return server->config.max_lag && !session->replaying && session->state != JMK_SKIPPING;
}

/* The oldest frame that a session needs, if it has acked up to acked_id. */
static uint64_t needs(const struct jmk_session *session, uint64_t acked_id) {
    return session->state == JMK_SKIPPING ? UINT64_MAX : acked_id + 1;
}

static enum jmk_limit at_limit(const struct jmk_server *server, const struct jmk_session *session,
                               const struct demand *demand) {
    if (counts_messages(server, session) && demand->id - session->acked_id > server->config.max_lag)
        return JMK_LIMIT_MESSAGES;
    if (needs(session, session->acked_id) <
        (session->replaying ? demand->goal_id : demand->must_id))
        return JMK_LIMIT_BYTES;
    return JMK_LIMIT_NONE;
}

static bool past_half(const struct jmk_server *server, const struct jmk_session *session,
                      const struct demand *demand, uint64_t acked_id) {
    if (counts_messages(server, session) &&
        demand->id - acked_id > (server->config.max_lag + 1) / 2)
        return true;
    return needs(session, acked_id) < demand->half_id;
}

/* Is this one fast? Only one that has been here long enough to have fallen behind can show it. */
static bool keeps_up(const struct jmk_server *server, const struct jmk_session *session,
                     const struct demand *demand) {
    return !past_half(server, session, demand, session->acked_id) &&
           past_half(server, session, demand, session->first_id - 1);
}

/* Cut or skip one that is at its limit. */
static void act_on(struct jmk_server *server, struct jmk_session *session, enum jmk_limit limit) {
    if (server->config.policy == JMK_SKIP && session->state == JMK_LIVE) {
        jmk_pump_skip(server, session);
        return;
    }
    session->account.limit_kind = limit;
    session->account.limit = limit == JMK_LIMIT_MESSAGES ? server->config.max_lag : room(server);
    jmk_pump_end(server, session, JMK_R_LAGGED, 0);
}

struct verdict {
    bool open;                     /* nobody is in the way (any more) */
    bool again;                    /* the server is behind: make another round */
    int64_t look_at;               /* when patience ends for somebody */
    struct jmk_session *holder;    /* the worst of those in the way */
    struct jmk_session *pace;      /* the one of them whose acks let us go on */
};

static int64_t later(int64_t a, int64_t b) {
    return a > b ? a : b;
}

/* When patience with one that was first in the way at since, and last acked at ack, ends. */
static int64_t patience_ends(const struct jmk_server *server, int64_t since, int64_t ack) {
    int64_t patience = server->config.patience, start = later(since, ack);

    return patience < 0 || patience > INT64_MAX - start ? INT64_MAX : start + patience;
}

static void judge_one(struct jmk_server *server, struct jmk_session *session, enum jmk_limit limit,
                      bool outrun, int64_t now, struct verdict *verdict) {
    int64_t due = 0;

    if (!session->stalled_since)
        session->stalled_since = now;
    if (session->state == JMK_HELD)
        due = INT64_MAX; /* its welcome is on the way */
    else if (server->config.policy == JMK_BLOCK)
        due = patience_ends(server, session->stalled_since, session->account.last_ack);
    else if (outrun)
        due = patience_ends(server, server->outrun_since, server->last_ack);
    if (now >= due) {
        act_on(server, session, limit);
        verdict->again = true;
        return;
    }
    verdict->open = false;
    if (due < verdict->look_at)
        verdict->look_at = due;
    if (!verdict->holder || session->acked_id < verdict->holder->acked_id)
        verdict->holder = session;
    if (server->config.policy == JMK_BLOCK)
        verdict->pace = verdict->holder;
    else if (!verdict->pace || session->acked_id > verdict->pace->acked_id)
        verdict->pace = session;
}

/* Is even the fastest behind by half of its limit? Asks too whether all were offered all there is. */
static bool outruns_all(const struct jmk_server *server, const struct demand *demand,
                        struct verdict *verdict) {
    bool outrun = true;

    for (uint32_t i = 0; i < server->live_count; i++) {
        const struct jmk_session *session = server->live[i];
        if (keeps_up(server, session, demand))
            outrun = false;
        if (session->state == JMK_LIVE && at_limit(server, session, demand) && session->more)
            verdict->again = true;
    }
    return outrun;
}

static struct verdict judge(struct jmk_server *server, size_t size, int64_t now) {
    struct verdict verdict = {.open = true, .look_at = INT64_MAX};
    struct demand demand = demand_for(server, size);
    bool outrun = outruns_all(server, &demand, &verdict);

    if (verdict.again)
        return verdict;
    if (!outrun)
        server->outrun_since = 0;
    else if (!server->outrun_since)
        server->outrun_since = now;
    for (uint32_t i = server->live_count; i-- > 0;) {
        struct jmk_session *session = server->live[i];
        enum jmk_limit limit = at_limit(server, session, &demand);

        if (limit == JMK_LIMIT_NONE)
            session->stalled_since = 0;
        else
            judge_one(server, session, limit, outrun, now, &verdict);
    }
    return verdict;
}

/* A publisher starts to wait: if nobody did for longer than patience, all clocks start anew. */
static void start_clocks(struct jmk_server *server, int64_t now) {
    if (atomic_load(&server->waiters) > 1 || now - server->judged <= server->config.patience)
        return;
    server->outrun_since = 0;
    for (uint32_t i = 0; i < server->live_count; i++)
        server->live[i]->stalled_since = 0;
}

/* ---- waiting ---- */

enum { READY = 0, WAIT = -1 };

/*
 * Ask for a word once the one that sets the pace has made some progress: each message is not worth a
 * wake-up, a sixteenth of what it is behind is. True if there is news already.
 */
static bool ask(struct jmk_server *server, struct jmk_session *pace) {
    uint64_t lag = jmk_log_end(&server->log).id - 1 - pace->acked_id;

    return jmk_pump_want(server, pace, pace->acked_id + 1 + lag / 16);
}

/* Is there room? If not, *look_at is when to look again at the latest, *holder who is in the way. */
static int try_room(struct jmk_server *server, size_t size, bool first, int64_t *look_at,
                    struct jmk_account *holder) {
    struct verdict verdict;
    bool turn;

    pthread_mutex_lock(&server->log_lock);
    turn = server->turn && server->turn != myself();
    pthread_mutex_unlock(&server->log_lock);
    memset(holder, 0, sizeof *holder);
    if (turn)
        return WAIT;
    if (!jmk_pump_try(server)) {
        atomic_store(&server->contended, 1);
        if (!jmk_pump_try(server))
            return WAIT;
    }
    if (first)
        start_clocks(server, jmk_now());
    do {
        jmk_pump_round(server);
        server->judged = jmk_now();
        verdict = judge(server, size, server->judged);
        jmk_pump_admit(server);
        if (!verdict.again && !verdict.open)
            verdict.again = ask(server, verdict.pace);
    } while (verdict.again);
    if (verdict.holder) {
        jmk_pump_account(server, verdict.holder);
        *holder = verdict.holder->account;
    }
    *look_at = verdict.look_at;
    jmk_pump_unlock(server);
    return verdict.open ? READY : WAIT;
}

/* How long a waiter sleeps first. Some acks of clients who read the log come without a word. */
static int64_t first_pause(struct jmk_server *server) {
    return atomic_load(&server->cursors) ? FIRST_PAUSE : LONGEST_PAUSE;
}

/*
 * One waiter's sleep, until there may be news: 0 to look again, JMK_E_TIMEOUT, or -EINTR.
 *
 * It looks again by itself after a moment, and after longer and longer ones. A signal is noticed by
 * who sleeps alone, so in the end it returns as if there had been one.
 */
static int sleep_on(struct jmk_server *server, unsigned seen, int64_t deadline, int64_t look_at,
                    int64_t *pause) {
    int64_t now = jmk_now();

    if (now >= deadline)
        return JMK_E_TIMEOUT;
    if (*pause > LONGEST_PAUSE)
        return -EINTR;
    if (now + *pause < look_at)
        look_at = now + *pause;
    *pause *= 2;
    return jmk_futex_wait(&server->progress, seen, look_at < deadline ? look_at : deadline);
}

int jmk_server_wait_room(jmk_server *server, size_t size, int64_t timeout,
                         struct jmk_account *holder) {
    int64_t deadline = jmk_deadline(timeout), pause;
    int error = jmk_server_usable(server);
    bool first = true;

    if (error)
        return error;
    pause = first_pause(server);
    atomic_fetch_add(&server->waiters, 1);
    atomic_fetch_add_explicit(&server->waits, 1, memory_order_relaxed);
    while (!error) {
        unsigned seen = atomic_load(&server->progress);
        int64_t look_at = INT64_MAX;

        if (atomic_load(&server->closing))
            error = JMK_E_CLOSED;
        else if (try_room(server, size, first, &look_at, holder) == READY)
            break;
        else
            error = sleep_on(server, seen, deadline, look_at, &pause);
        first = false;
    }
    atomic_fetch_sub(&server->waiters, 1);
    if (error == -EINTR) /* it comes back, and that is the same wait */
        atomic_fetch_sub_explicit(&server->waits, 1, memory_order_relaxed);
    return error;
}

/* The live session with the lowest acked cursor, if that is below id. */
static struct jmk_session *slowest(const struct jmk_server *server, uint64_t id) {
    struct jmk_session *found = NULL;

    for (uint32_t i = 0; i < server->live_count; i++) {
        struct jmk_session *session = server->live[i];
        uint64_t reached = session->state == JMK_SKIPPING && session->acked_id == session->sent_id
                               ? UINT64_MAX
                               : session->acked_id;
        if (reached < id && (!found || session->acked_id < found->acked_id))
            found = session;
    }
    return found;
}

int jmk_server_wait_acked(jmk_server *server, uint64_t id, int64_t timeout,
                          struct jmk_account *holder) {
    int64_t deadline = jmk_deadline(timeout), pause;
    int looks, error = jmk_server_usable(server);

    if (error)
        return error;
    pause = first_pause(server);
    atomic_fetch_add(&server->waiters, 1);
    while (!error) {
        unsigned seen = atomic_load(&server->progress);
        struct jmk_session *session;

        if (atomic_load(&server->closing)) {
            error = JMK_E_CLOSED;
            break;
        }
        jmk_pump_lock(server);
        looks = 0;
        do {
            jmk_pump_round(server);
            session = slowest(server, id);
        } while (session && jmk_pump_want(server, session, id) && ++looks < MOST_LOOKS);
        if (session) {
            jmk_pump_account(server, session);
            *holder = session->account;
        }
        jmk_pump_unlock(server);
        if (!session)
            break;
        error = sleep_on(server, seen, deadline, INT64_MAX, &pause);
    }
    atomic_fetch_sub(&server->waiters, 1);
    return error;
}
