/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The lag policy, and every wait of a publisher
 *
 * An append looks at the admission alone (state.h). Where that says no, the publisher comes here to
 * wait, and here the policy is applied: nowhere else does a client's lag have consequences.
 *
 * The question is always the same: which clients would be beyond a limit if the next message, of a
 * known size, went in? If a client was not yet offered all there is, the server itself is behind, and
 * makes a round first.
 *
 * A client that is found at its limit gets a term: it keeps its place only if it works off half of
 * that limit within patience. due_id is the ack that shows it, due_since the moment it was found.
 * Only that ack ends the term. Acks short of it do not, nor does it help to leave the limit for a
 * moment, nor that the publisher goes away and comes back later. So a client cannot slow a publisher
 * down to less than half a limit per patience.
 *
 *   block            publish waits for each client at its limit, and goes on once its message fits.
 *   disconnect,skip  While even the fastest client is past half of its limit, publish outruns all.
 *                    It then waits until one is at most half way: for as long as `outrun` is set, the
 *                    admission is closed. Once one is half way, each client that is still at its
 *                    limit is cut or skipped at once.
 *
 * Half a limit, because "the fastest is not at its limit" would be met by the first ack in a burst,
 * and cut every client that is a moment slower.
 *
 * A newcomer is at most half way from the start. It counts as fast only once it has shown that it
 * keeps up: it has acked half a limit of what was published while it was there, or it has been there
 * for patience and has acked all that it was offered. History that it acked shows nothing: it could
 * do so unread.
 */
#include <errno.h>

#include "common/os.h"
#include "common/point.h"
#include "server/admit.h"
#include "server/ends.h"
#include "server/pump.h"
#include "server/skip.h"

#define FIRST_PAUSE (JMK_SECOND / 1000) /* before a waiter checks again by itself */
#define LONGEST_PAUSE (JMK_SECOND / 30)
#define MOST_POLLS                                                                                 \
    64 /* of a client that acks without end, in a row, before the deadline is checked */

/* ---- the policy; under pump_lock ---- */

/* All that policies differ in. */
struct policy {
    bool waits_for_each; /* publish waits for each client at its limit, not for the fastest alone */
    bool skips; /* a client that does not meet its term is skipped, not cut */
};

static const struct policy policies[] = {
    [JMK_DISCONNECT] = {false, false},
    [JMK_BLOCK] = {true, false},
    [JMK_SKIP] = {false, true},
};

/* The clients that publish waits for now. */
enum awaited {
    EACH, /* each client at its limit, until its term ends */
    FASTEST, /* publish outruns all: until one client is at most half way */
    NONE, /* one client is at most half way: each at its limit is cut or skipped at once */
};

/* What the next message asks of every client, and what becomes of those that cannot do it. */
struct demand {
    uint64_t id; /* it gets this one */
    uint64_t goal_id; /* frames before this one will be overwritten */
    uint64_t must_id; /* the same plus the promised history, for clients that do not replay */
    uint64_t half_id; /* a client that needs one before this is past half of the log now */
    const struct policy *policy;
    enum awaited awaited;
    bool now; /* its publisher waits for nobody: neither may it, nor is that the policy */
};

struct verdict {
    bool open; /* no client is in the way (any more) */
    bool again; /* something changed: make another round */
    int64_t check_at; /* when patience ends for one of them, or a newcomer counts */
    struct jmk_session *holder; /* the slowest of those in the way */
    struct jmk_session *pace; /* the client whose ack of ... */
    uint64_t wanted; /* ... this id lets the publisher go on */
};

/* Bytes of the log that one client may hold. */
static uint64_t room(const struct jmk_server *server) {
    return server->log.size - (server->floor.offset - server->kept.offset);
}

static struct demand demand_for(const struct jmk_server *server, size_t size) {
    const struct jmk_log *log = &server->log;
    struct jmk_mark end = jmk_log_end(log), kept = server->kept;
    uint64_t top = end.offset + jmk_frame_length(size), half = room(server) / 2;
    struct demand demand = {.id = end.id, .policy = &policies[server->config.policy]};

    if (server->holders && top > log->size) {
        uint64_t goal = top - log->size;
        demand.goal_id = jmk_log_find(log, kept, goal).id;
        demand.must_id = jmk_log_find(log, kept, goal + server->config.keep_bytes).id;
        if (demand.must_id - demand.goal_id > server->config.keep)
            demand.must_id = demand.goal_id + server->config.keep;
    }
    if (server->holders && end.offset > half)
        demand.half_id = jmk_log_find(log, kept, end.offset - half).id;
    return demand;
}

/* A client that skips is never at its limit: it needs no frame, and its lag does not count. */
static enum jmk_limit at_limit(const struct jmk_server *server, const struct jmk_session *session,
                               const struct demand *demand) {
    uint64_t must_id = session->replaying ? demand->goal_id : demand->must_id;

    if (session->state == JMK_SKIPPING)
        return JMK_LIMIT_NONE;
    if (demand->id - session->acked_id > jmk_server_limit(server, session))
        return JMK_LIMIT_MESSAGES;
    return session->acked_id + 1 < must_id ? JMK_LIMIT_BYTES : JMK_LIMIT_NONE;
}

/* The lowest ack with which a session is at most half way to each limit, and not at one. */
static uint64_t half_way(const struct jmk_server *server, const struct jmk_session *session,
                         const struct demand *demand) {
    uint64_t half = jmk_server_limit(server, session) / 2, last = demand->id - 1;
    uint64_t by_messages = last > half ? last - half : 0;
    uint64_t needs = demand->half_id > demand->must_id ? demand->half_id : demand->must_id;

    return by_messages + 1 > needs ? by_messages : needs - 1;
}

/* The moment `start` plus patience; never, if patience has no end. */
static int64_t patience_from(const struct jmk_server *server, int64_t start) {
    int64_t patience = server->config.patience;

    return patience < 0 || patience > INT64_MAX - start ? INT64_MAX : start + patience;
}

/* Is this client fast? If it is only too young, *check_at becomes the time from which it is. */
static bool keeps_up(const struct jmk_server *server, const struct jmk_session *session,
                     const struct demand *demand, int64_t now, int64_t *check_at) {
    uint64_t half = half_way(server, session, demand), next = session->acked_id + 1;
    int64_t counts_from;

    if (session->state != JMK_LIVE || session->replaying || session->acked_id < half)
        return false;
    if (next > session->shown_from && next - session->shown_from >= demand->id - 1 - half)
        return true; /* it has worked off half a limit of what was published while it was there */
    if (next != demand->id)
        return false;
    counts_from = patience_from(server, session->account.since);
    if (counts_from > now && counts_from < *check_at)
        *check_at = counts_from;
    return counts_from <= now;
}

/* Does publish outrun all clients? Sets `again` if one at its limit was not offered everything. */
static bool outruns_all(const struct jmk_server *server, const struct demand *demand, int64_t now,
                        struct verdict *verdict) {
    bool outrun = true;

    for (uint32_t i = 0; i < server->live_count; i++) {
        const struct jmk_session *session = server->live[i];
        if (keeps_up(server, session, demand, now, &verdict->check_at))
            outrun = false;
        if (session->state == JMK_LIVE && at_limit(server, session, demand) && session->more)
            verdict->again = true;
    }
    return outrun;
}

/* Begin a session's term if it is at its limit and has none; end a term that it has met. */
static void keep_term(const struct jmk_server *server, struct jmk_session *session,
                      enum jmk_limit limit, const struct demand *demand, int64_t now) {
    if (session->due_id && session->acked_id >= session->due_id)
        session->due_id = 0;
    if (limit == JMK_LIMIT_NONE || session->due_id)
        return;
    session->due_id = half_way(server, session, demand);
    if (session->due_id <= session->acked_id)
        session->due_id = session->acked_id + 1;
    session->due_since = now;
    session->due_limit = limit;
}

/*
 * When its term ends. All clients together get no more than patience: a client that comes while publish
 * outruns all, and is at its limit at once, has what is left of that.
 */
static int64_t term_end(const struct jmk_server *server, const struct jmk_session *session) {
    int64_t since = session->due_since;

    if (server->outrun && server->outrun_since < since)
        since = server->outrun_since;
    return patience_from(server, since);
}

/* Cut or skip a client whose term is over, or that gets none as another client is half way. */
static void act_on(struct jmk_server *server, struct jmk_session *session,
                   const struct policy *policy) {
    if (policy->skips && session->state == JMK_LIVE) {
        jmk_skip_begin(server, session);
        return;
    }
    session->account.limit_kind = session->due_limit;
    session->account.limit =
        session->due_limit == JMK_LIMIT_MESSAGES ? jmk_server_limit(server, session) : room(server);
    jmk_ends_end(server, session, JMK_R_LAGGED, 0);
}

/* The fastest is the client that is nearest to the ack of `wanted`, which lets the publisher go on. */
static void choose_fastest(struct jmk_session *session, uint64_t wanted, struct verdict *verdict) {
    if (session->state != JMK_LIVE || wanted <= session->acked_id)
        return;
    if (!verdict->pace || wanted - session->acked_id < verdict->wanted - verdict->pace->acked_id) {
        verdict->pace = session;
        verdict->wanted = wanted;
    }
}

static void judge_one(struct jmk_server *server, struct jmk_session *session,
                      const struct demand *demand, int64_t now, struct verdict *verdict) {
    bool held = session->state == JMK_HELD;
    enum jmk_limit limit = at_limit(server, session, demand);
    int64_t due = INT64_MAX; /* of a client whose welcome is on its way */

    if (!held)
        keep_term(server, session, limit, demand, now);
    if (demand->awaited == FASTEST)
        choose_fastest(session,
                       session->due_id ? session->due_id : half_way(server, session, demand),
                       verdict);
    if (limit == JMK_LIMIT_NONE && (demand->awaited != FASTEST || !session->due_id))
        return;
    if (held && demand->now && limit == JMK_LIMIT_MESSAGES) {
        session->excused = server->stale = verdict->again = true;
        return;
    }
    if (!held)
        due = demand->awaited == NONE ? now : term_end(server, session);
    if (now >= due) {
        act_on(server, session, demand->policy);
        verdict->again = true;
        return;
    }
    verdict->open = false;
    if (due < verdict->check_at)
        verdict->check_at = due;
    if (!verdict->holder || session->acked_id < verdict->holder->acked_id)
        verdict->holder = session;
}

/*
 * Each message that the slowest client acks makes room, but is not worth a wake-up: a sixteenth of what
 * it is behind is.
 */
static void choose_slowest(const struct jmk_server *server, struct verdict *verdict) {
    uint64_t last = jmk_log_end(&server->log).id - 1;

    verdict->pace = verdict->holder;
    verdict->wanted = verdict->holder->acked_id + 1 + (last - verdict->holder->acked_id) / 16;
}

static void set_outrun(struct jmk_server *server, bool outrun, int64_t now) {
    server->stale = server->stale || outrun != server->outrun;
    if (outrun && !server->outrun)
        server->outrun_since = now;
    server->outrun = outrun;
}

static struct verdict judge(struct jmk_server *server, size_t size, int64_t now, bool last) {
    struct verdict verdict = {.open = true, .check_at = INT64_MAX};
    struct demand demand = demand_for(server, size);
    bool outrun = outruns_all(server, &demand, now, &verdict);

    if (verdict.again)
        return verdict;
    demand.now = last && server->config.patience == 0;
    demand.awaited = demand.policy->waits_for_each ? EACH : outrun ? FASTEST : NONE;
    for (uint32_t i = server->live_count; i-- > 0;)
        judge_one(server, server->live[i], &demand, now, &verdict);
    if (demand.awaited == EACH && verdict.holder)
        choose_slowest(server, &verdict);
    set_outrun(server, demand.awaited != EACH && !verdict.open, now);
    return verdict;
}

/* ---- waiting ---- */

enum { READY = 0, WAIT = -1 };

/* Does another thread hold the publisher's turn? */
static bool others_turn(jmk_server *server) {
    bool found;

    pthread_mutex_lock(&server->log_lock);
    found = server->turn && server->turn != jmk_thread();
    pthread_mutex_unlock(&server->log_lock);
    return found;
}

/* Make rounds until they change nothing. Under pump_lock. */
static struct verdict judge_again(struct jmk_server *server, size_t size, bool last) {
    struct verdict verdict;
    int polls = 0;

    do {
        jmk_pump_round(server);
        verdict = judge(server, size, jmk_now(), last);
        jmk_admit_update(server);
        if (!verdict.again && !verdict.open && ++polls < MOST_POLLS)
            verdict.again =
                verdict.pace && jmk_pump_request_acks(server, verdict.pace, verdict.wanted);
    } while (verdict.again);
    return verdict;
}

/*
 * Is there room? If not, *check_at is when to check again at the latest, and *holder is the client in the
 * way. The last check waits for the lock, so that no publish is refused because the thread had it then.
 */
static int try_room(struct jmk_server *server, size_t size, bool last, int64_t *check_at,
                    struct jmk_account *holder) {
    struct verdict verdict;

    memset(holder, 0, sizeof *holder);
    if (others_turn(server))
        return WAIT;
    if (!jmk_server_try_lock(server)) {
        atomic_store(&server->contended, 1);
        JMK_POINT(JMK_AT_CONTENDED);
        if (last)
            jmk_server_lock(server);
        else if (!jmk_server_try_lock(server))
            return WAIT;
    }
    verdict = judge_again(server, size, last);
    if (verdict.holder) {
        jmk_ends_account(server, verdict.holder);
        *holder = verdict.holder->account;
    }
    *check_at = verdict.check_at;
    jmk_server_unlock(server);
    return verdict.open ? READY : WAIT;
}

/* How long a waiter sleeps first. Some acks of shared clients come without a wake-up. */
static int64_t first_pause(struct jmk_server *server) {
    return atomic_load(&server->shared_count) ? FIRST_PAUSE : LONGEST_PAUSE;
}

/*
 * One sleep of a waiter, until there may be news: 0 to check again, JMK_E_TIMEOUT, or -EINTR.
 *
 * The waiter checks again by itself after a moment, and after longer and longer ones. A signal ends the
 * sleep of one thread alone, so in the end this returns as if there had been one.
 */
static int sleep_on(struct jmk_server *server, unsigned seen, int64_t deadline, int64_t check_at,
                    int64_t *pause) {
    int64_t now = jmk_now();

    if (now >= deadline)
        return JMK_E_TIMEOUT;
    if (JMK_POLLS) {
        if (*pause > LONGEST_PAUSE)
            return -EINTR;
        if (now + *pause < check_at)
            check_at = now + *pause;
        *pause *= 2;
    }
    return jmk_futex_wait(&server->progress, seen, check_at < deadline ? check_at : deadline);
}

/*
 * A publisher is about to sleep. If it may not, or finds room at its first look, it does not wait; nor
 * does it wait for a client while the thread has the lock, or another publisher its turn.
 */
static void count_wait(struct jmk_server *server, const struct jmk_account *holder,
                       int64_t deadline, int *waited) {
    if (*waited || !holder->key || jmk_now() >= deadline)
        return;
    *waited = 1;
    atomic_fetch_add_explicit(&server->waits, 1, memory_order_relaxed);
}

int jmk_server_wait_room(jmk_server *server, size_t size, int64_t timeout,
                         struct jmk_account *holder, int *waited) {
    int64_t deadline = jmk_deadline(timeout), pause;
    int error = jmk_server_usable(server);
    int before = 0;
    bool whole = !waited;

    if (error)
        return error;
    if (whole)
        waited = &before;
    pause = first_pause(server);
    atomic_fetch_add(&server->waiters, 1);
    while (!error) {
        unsigned seen = atomic_load(&server->progress);
        int64_t check_at = INT64_MAX;

        JMK_POINT(JMK_AT_WAITS);
        if (atomic_load(&server->closing))
            error = JMK_E_CLOSED;
        else if (try_room(server, size, jmk_now() >= deadline, &check_at, holder) == READY)
            break;
        else {
            count_wait(server, holder, deadline, waited);
            error = sleep_on(server, seen, deadline, check_at, &pause);
        }
    }
    atomic_fetch_sub(&server->waiters, 1);
    if (whole && before && error == -EINTR) /* it comes back, and that is the same wait */
        atomic_fetch_sub_explicit(&server->waits, 1, memory_order_relaxed);
    else if (!error)
        *waited = 0; /* the next wait is another one */
    return error;
}

/* The live session with the lowest acked cursor, if that is below id. */
static struct jmk_session *slowest(const struct jmk_server *server, uint64_t id) {
    struct jmk_session *found = NULL;

    for (uint32_t i = 0; i < server->live_count; i++) {
        struct jmk_session *session = server->live[i];

        if (session->acked_id < id && (!found || session->acked_id < found->acked_id))
            found = session;
    }
    return found;
}

int jmk_server_wait_acked(jmk_server *server, uint64_t id, int64_t timeout,
                          struct jmk_account *holder) {
    int64_t deadline = jmk_deadline(timeout), pause;
    int polls, error = jmk_server_usable(server);

    if (error)
        return error;
    pause = first_pause(server);
    atomic_fetch_add(&server->waiters, 1);
    while (!error) {
        unsigned seen = atomic_load(&server->progress);
        struct jmk_session *session;

        JMK_POINT(JMK_AT_WAITS);
        if (atomic_load(&server->closing)) {
            error = JMK_E_CLOSED;
            break;
        }
        jmk_server_lock(server);
        polls = 0;
        do {
            jmk_pump_round(server);
            session = slowest(server, id);
        } while (session && jmk_pump_request_acks(server, session, id) && ++polls < MOST_POLLS);
        if (session) {
            jmk_ends_account(server, session);
            *holder = session->account;
        }
        jmk_server_unlock(server);
        if (!session)
            break;
        error = sleep_on(server, seen, deadline, INT64_MAX, &pause);
    }
    atomic_fetch_sub(&server->waiters, 1);
    return error;
}
