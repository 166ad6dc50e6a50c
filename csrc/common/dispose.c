/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Closing in threads that nobody waits for
 *
 * A close takes as long as the opener of the file has arranged: a TCP socket may linger over unsent
 * data for minutes, and a file system in user space may never answer. A peer passes such a file on by
 * SCM_RIGHTS, and the kernel closes it in the thread that drops the packet it came in. A socket that
 * may have such packets unread is therefore closed here.
 *
 * A thread is started when there is more to close than idle threads, up to THREADS of them, and ends
 * once it has had nothing to do for IDLE. A thread that is stuck in a close holds no descriptor
 * number: the kernel frees that first. What no thread takes waits in a queue. The queue has no bound
 * of its own, as to close here, or to forget a descriptor, would be worse. The code that makes
 * connections asks jmk_dispose_pending, and makes none while that says JMK_MOST_DISPOSED or more.
 *
 * Only where there is no memory, or where not even a first thread can be started, jmk_dispose closes
 * in the caller's thread.
 *
 * lock covers everything here. Nobody blocks while holding it. A forked child has the queue, as it
 * has copies of the descriptors, and none of the threads; the next jmk_dispose there starts one.
 */
#include "common/dispose.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <unistd.h>

#include "common/os.h"

#define THREADS 32
#define IDLE (JMK_SECOND / 10)
#define STACK (256 * 1024)

struct item {
    struct item *next;
    int fd;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t fork_once = PTHREAD_ONCE_INIT;
static struct item *first, **end = &first;
static unsigned queued, closing, threads, idle;
static atomic_uint news; /* raised for idle threads */

static void before_fork(void) {
    pthread_mutex_lock(&lock);
}

static void after_fork_in_parent(void) {
    pthread_mutex_unlock(&lock);
}

static void after_fork_in_child(void) {
    closing = threads = idle = 0;
    pthread_mutex_init(&lock, NULL);
}

static void watch_fork(void) {
    pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}

/* Wait until there is an item, or for IDLE. Under the lock, which is let go of meanwhile. */
static void wait_for_item(void) {
    int64_t deadline = jmk_deadline(IDLE);

    idle++;
    while (!first && jmk_now() < deadline) {
        unsigned seen = atomic_load(&news);

        pthread_mutex_unlock(&lock);
        jmk_futex_wait(&news, seen, deadline);
        pthread_mutex_lock(&lock);
    }
    idle--;
}

static struct item *take_item(void) {
    struct item *item = first;

    if (!item)
        return NULL;
    first = item->next;
    if (!first)
        end = &first;
    queued--;
    return item;
}

static void *run(void *nothing) {
    struct item *item;

    (void)nothing;
    pthread_mutex_lock(&lock);
    for (;;) {
        if (!first)
            wait_for_item();
        item = take_item();
        if (!item)
            break;
        closing++;
        pthread_mutex_unlock(&lock);
        close(item->fd);
        free(item);
        pthread_mutex_lock(&lock);
        closing--;
    }
    threads--;
    pthread_mutex_unlock(&lock);
    return NULL;
}

/* Start one more thread, which takes no signals. Under the lock. */
static bool start_thread(void) {
    sigset_t all, before;
    pthread_attr_t how;
    pthread_t thread;
    int error;

    if (pthread_attr_init(&how) != 0)
        return false;
    pthread_attr_setdetachstate(&how, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&how, STACK);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    error = pthread_create(&thread, &how, run, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&how);
    if (error)
        return false;
    pthread_setname_np(thread, "jumiks close");
    threads++;
    return true;
}

/* Under the lock; false if there is no thread that will ever take it. */
static bool enqueue(struct item *item) {
    if (queued + 1 > idle && threads < THREADS && !start_thread() && !threads)
        return false;
    *end = item;
    end = &item->next;
    queued++;
    atomic_fetch_add(&news, 1);
    return true;
}

void jmk_dispose(int fd) {
    int saved = errno;
    struct item *item;
    bool taken = false;

    if (fd < 0)
        return;
    pthread_once(&fork_once, watch_fork);
    item = malloc(sizeof *item);
    if (item) {
        *item = (struct item){NULL, fd};
        pthread_mutex_lock(&lock);
        taken = enqueue(item);
        pthread_mutex_unlock(&lock);
        if (taken)
            jmk_futex_wake_all(&news);
        else
            free(item);
    }
    if (!taken)
        close(fd);
    errno = saved;
}

unsigned jmk_dispose_pending(void) {
    unsigned count;

    pthread_mutex_lock(&lock);
    count = queued + closing;
    pthread_mutex_unlock(&lock);
    return count;
}
