/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A memory that is ordered as weakly as C11 allows, for the models beside this file
 *
 * Each word keeps every value that was ever stored to it. A thread loads any of them that is not
 * older than what it must have seen. So a store becomes visible late, to each thread at another
 * moment, and stores to different words become visible in any order: these are the store buffers.
 * Likewise a load returns what stood there earlier, so loads take effect in any order.
 *
 * What a thread must have seen:
 *   - of each word, what it stored or loaded itself;
 *   - with an acquire load of a value that a release store left: all that the storing thread had
 *     seen then. Relaxed accesses beside fences do the same: release fence, store; load, acquire fence;
 *   - in a seq_cst load: the last seq_cst store to this word. A seq_cst fence has its thread see all
 *     that threads had seen at earlier such fences, and the last seq_cst store to each word.
 * A read-modify-write takes the last value there is.
 *
 * Not here: a load that takes effect after a later store of the same thread. Where that matters, the
 * model has the two in both orders. Nor the finer points of seq_cst beside weaker accesses to one
 * word: in C11 some of them are weaker than here.
 *
 * A model defines ALL_SEQ_CST(word) if the loads of some words are all seq_cst; WORDS and THREADS, and DEPTH, one more than the stores that a word sees in a run; and
 * flaws, each a number: spin -DFLAW=NAME has the model do without what the name stands for.
 */

#ifndef ALL_SEQ_CST
#define ALL_SEQ_CST(word) false
#endif

#define NONE 0
#define UNLESS(flaw, ordering, less) (FLAW == flaw -> less : ordering)

#define RELAXED 0
#define ACQUIRE 1
#define RELEASE 1
#define SEQ_CST 2

byte last[WORDS];                 /* the number of the last store to each word */
byte value[WORDS * DEPTH];        /* what each store left there */
byte with[WORDS * DEPTH * WORDS]; /* and what who acquires it has seen, by number of store */
byte seen[THREADS * WORDS];       /* what each thread has seen */
byte loaded[THREADS * WORDS];     /* what it will have seen after an acquire fence */
byte fenced[THREADS * WORDS];     /* what it had seen at its last release fence */
byte order[WORDS];                /* the last seq_cst store to each word, and what fences add */

bool gone[THREADS];               /* it loads no more */

hidden byte k, at, low, w, row;

inline keep_larger(goal, candidate) {
    if
    :: candidate > goal -> goal = candidate
    :: else
    fi
}

inline lower(number) {
    if
    :: number > low -> number = number - low
    :: else -> number = 0
    fi
}

/*
 * Forget what stood in a word and nobody can load any more: then there are fewer states to tell
 * apart. A model names the words whose loads are all seq_cst. In a d_step.
 */
inline forget(word) {
    low = last[word];
    k = 0;
    do
    :: k < THREADS ->
        if
        :: !gone[k] && seen[k * WORDS + word] < low -> low = seen[k * WORDS + word]
        :: else
        fi;
        k++
    :: else -> break
    od;
    if
    :: ALL_SEQ_CST(word) && order[word] > low -> low = order[word]
    :: else
    fi;
    if
    :: low > 0 ->
        k = 0;
        do
        :: k <= last[word] ->
            value[(word) * DEPTH + k] = (k + low <= last[word] -> value[(word) * DEPTH + k + low] : 0);
            row = 0;
            do
            :: row < WORDS ->
                with[((word) * DEPTH + k) * WORDS + row] =
                    (k + low <= last[word] -> with[((word) * DEPTH + k + low) * WORDS + row] : 0);
                row++
            :: else -> break
            od;
            k++
        :: else -> break
        od;
        last[word] = last[word] - low;
        lower(order[word]);
        k = 0;
        do
        :: k < THREADS ->
            lower(seen[k * WORDS + word]);
            lower(loaded[k * WORDS + word]);
            lower(fenced[k * WORDS + word]);
            k++
        :: else -> break
        od;
        k = 0;
        do
        :: k < WORDS * DEPTH ->
            lower(with[k * WORDS + word]);
            k++
        :: else -> break
        od
    :: else
    fi
}

inline forget_all() {
    w = 0;
    do
    :: w < WORDS ->
        forget(w);
        w++
    :: else -> break
    od;
    k = 0;
    at = 0;
    low = 0;
    w = 0;
    row = 0
}

/* A thread's end. */
inline leave(thread) {
    d_step {
        gone[thread] = true;
        forget_all()
    }
}

/* The store's number and what goes with it. In a d_step. */
inline put(thread, word, number, how) {
    last[word]++;
    assert(last[word] < DEPTH);
    value[(word) * DEPTH + last[word]] = number;
    seen[(thread) * WORDS + word] = last[word];
    k = 0;
    do
    :: k < WORDS ->
        if
        :: how == RELAXED -> keep_larger(with[((word) * DEPTH + last[word]) * WORDS + k],
                                         fenced[(thread) * WORDS + k])
        :: else -> keep_larger(with[((word) * DEPTH + last[word]) * WORDS + k],
                               seen[(thread) * WORDS + k])
        fi;
        k++
    :: else -> break
    od;
    if
    :: how == SEQ_CST -> order[word] = last[word]
    :: else
    fi
}

/* Take store number `at` of the word. In a d_step. */
inline get(thread, word, into, how) {
    into = value[(word) * DEPTH + at];
    seen[(thread) * WORDS + word] = at;
    k = 0;
    do
    :: k < WORDS ->
        if
        :: how == RELAXED ->
            keep_larger(loaded[(thread) * WORDS + k], with[((word) * DEPTH + at) * WORDS + k])
        :: else ->
            keep_larger(seen[(thread) * WORDS + k], with[((word) * DEPTH + at) * WORDS + k])
        fi;
        k++
    :: else -> break
    od
}

inline store(thread, word, number, how) {
    d_step {
        put(thread, word, number, how);
        forget_all()
    }
}

inline load(thread, word, into, how) {
    atomic {
        at = seen[(thread) * WORDS + word];
        if
        :: how == SEQ_CST && order[word] > at -> at = order[word]
        :: else
        fi;
        do
        :: at < last[word] -> at++
        :: break
        od;
        get(thread, word, into, how);
        at = 0;
        d_step {
            forget_all()
        }
    }
}

/* What an exchange or an addition does; both are seq_cst. `number` may name `into`. */
inline change(thread, word, into, number) {
    d_step {
        at = last[word];
        get(thread, word, into, SEQ_CST);
        /* Who acquires the new value acquires what the old one had to give. */
        k = 0;
        do
        :: k < WORDS ->
            with[((word) * DEPTH + last[word] + 1) * WORDS + k] =
                with[((word) * DEPTH + last[word]) * WORDS + k];
            k++
        :: else -> break
        od;
        put(thread, word, number, SEQ_CST);
        forget_all()
    }
}

inline release_fence(thread) {
    d_step {
        k = 0;
        do
        :: k < WORDS ->
            fenced[(thread) * WORDS + k] = seen[(thread) * WORDS + k];
            k++
        :: else -> break
        od;
        k = 0
    }
}

inline acquire_fence(thread) {
    d_step {
        k = 0;
        do
        :: k < WORDS ->
            keep_larger(seen[(thread) * WORDS + k], loaded[(thread) * WORDS + k]);
            k++
        :: else -> break
        od;
        forget_all()
    }
}

inline full_fence(thread) {
    d_step {
        k = 0;
        do
        :: k < WORDS ->
            keep_larger(seen[(thread) * WORDS + k], loaded[(thread) * WORDS + k]);
            keep_larger(seen[(thread) * WORDS + k], order[k]);
            order[k] = seen[(thread) * WORDS + k];
            fenced[(thread) * WORDS + k] = seen[(thread) * WORDS + k];
            k++
        :: else -> break
        od;
        forget_all()
    }
}

/* A mutex is a word, 1 while it is locked: locking acquires, unlocking releases, no more than that. */
inline lock(thread, word) {
    atomic {
        value[(word) * DEPTH + last[word]] == 0;
        d_step {
            at = last[word];
            get(thread, word, k, ACQUIRE);
            put(thread, word, 1, RELAXED);
            forget_all()
        }
    }
}

/* Trying may fail because of a lock that another thread has given back, if this one has not seen it. */
inline try_lock(thread, word, got) {
    atomic {
        load(thread, word, got, RELAXED);
        if
        :: got -> got = false
        :: else ->
            got = value[(word) * DEPTH + last[word]] == 0;
            if
            :: got -> lock(thread, word)
            :: else
            fi
        fi
    }
}

inline unlock(thread, word) {
    store(thread, word, 0, RELEASE)
}
