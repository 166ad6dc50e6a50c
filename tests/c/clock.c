/* SPDX-License-Identifier: Apache-2.0 */
/* A clock that a test sets, for the thread that does so; link with --wrap=clock_gettime. */
#include <stdint.h>
#include <time.h>

#define SECOND 1000000000

int __real_clock_gettime(clockid_t clock, struct timespec *out);
int __wrap_clock_gettime(clockid_t clock, struct timespec *out);
void set_clock(int64_t now);

static _Thread_local int64_t the_time;

void set_clock(int64_t now) {
    the_time = now;
}

int __wrap_clock_gettime(clockid_t clock, struct timespec *out) {
    if (!the_time)
        return __real_clock_gettime(clock, out);
    *out = (struct timespec){the_time / SECOND, the_time % SECOND};
    return 0;
}
