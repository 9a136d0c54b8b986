// SPDX-License-Identifier: Apache-2.0
/*
 * Waiting for jobs without a thread for each waiter. A watch is in the list until it is answered; whoever takes it
 * out of the list calls it, so it is called once. It is put there before the job's record is looked at, so an end
 * between the two is not missed.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/cleanup.h"
#include "provisioner/volume/manager.h"

struct watch {
    char job_id[ID_MAX];
    int64_t expires; /* ms, monotonic */
    job_watch_fn fn;
    void *arg;
    struct watch *next;
};

int64_t manager_now_ms(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Take out and answer every watch of `job_id` (NULL = any) that expires at or before `until`. */
static void watch_answer(struct manager *m, const char *job_id, int64_t until, bool ended)
{
    struct watch *taken = NULL;
    int64_t next = INT64_MAX;
    (void)pthread_mutex_lock(&m->watch_lock);
    for (struct watch **link = &m->watches; *link;) {
        struct watch *watch = *link;
        if ((!job_id || strcmp(watch->job_id, job_id) == 0) && watch->expires <= until) {
            *link = watch->next;
            watch->next = taken;
            taken = watch;
            continue;
        }
        if (watch->expires < next)
            next = watch->expires;
        link = &watch->next;
    }
    supervisor_set_timer(m, next);
    (void)pthread_mutex_unlock(&m->watch_lock);
    while (taken) {
        struct watch *watch = taken;
        taken = watch->next;
        watch->fn(watch->arg, ended);
        free(watch);
    }
}

void watch_complete(struct manager *m, const char *job_id)
{
    watch_answer(m, job_id, INT64_MAX, true);
}

void watch_expire(struct manager *m)
{
    watch_answer(m, NULL, manager_now_ms(), false);
}

void watch_stop(struct manager *m)
{
    watch_answer(m, NULL, INT64_MAX, false);
}

int manager_job_watch(struct manager *m, const char *id, unsigned timeout_ms, job_watch_fn fn, void *arg,
                      struct error *err)
{
    CLEANUP_FREE struct watch *watch = malloc(sizeof(*watch));
    if (!watch)
        return error_sys(err, ENOMEM, "watch job");
    struct job_record record = {0};
    int r = catalogue_job_find(m->catalogue, id, &record, err);
    if (r < 0)
        return r;
    bool ended = record.ended != 0;
    job_record_done(&record);
    if (ended || timeout_ms == 0) {
        fn(arg, ended);
        return 0;
    }
    *watch = (struct watch){.expires = manager_now_ms() + timeout_ms, .fn = fn, .arg = arg};
    (void)snprintf(watch->job_id, sizeof(watch->job_id), "%s", id);
    (void)pthread_mutex_lock(&m->watch_lock);
    watch->next = m->watches;
    m->watches = steal_ptr(&watch);
    int64_t next = INT64_MAX;
    for (const struct watch *w = m->watches; w; w = w->next)
        next = w->expires < next ? w->expires : next;
    supervisor_set_timer(m, next);
    (void)pthread_mutex_unlock(&m->watch_lock);
    if (catalogue_job_find(m->catalogue, id, &record, NULL) == 0) {
        ended = record.ended != 0;
        job_record_done(&record);
        if (ended)
            watch_complete(m, id);
    }
    return 0;
}
