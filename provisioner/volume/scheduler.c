// SPDX-License-Identifier: Apache-2.0
/*
 * The queue of jobs and the threads that run them. A job is ready when no older job of one of its volumes is still in the
 * list; threads are started when work is ready and none is idle, up to the limit, and stay.
 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/log.h"
#include "common/text.h"
#include "provisioner/volume/run.h"
#include "provisioner/volume/snapshot.h"

static bool job_ready(const struct manager *m, const struct job *job)
{
    if (job->running)
        return false;
    for (const struct job *older = m->jobs; older != job; older = older->next) {
        if (job_overlaps(older, job))
            return false;
    }
    return true;
}

static struct job *next_ready(const struct manager *m)
{
    for (struct job *job = m->jobs; job; job = job->next) {
        if (job_ready(m, job))
            return job;
    }
    return NULL;
}

static void job_unlink(struct manager *m, struct job *job)
{
    struct job **link = &m->jobs;
    while (*link != job)
        link = &(*link)->next;
    *link = job->next;
}

/* The volume may be free now, and those that its layers stand on. */
static void schedule_merges_of(struct manager *m, const char *volume_id)
{
    CLEANUP_FREE struct layer_record *layers = NULL;
    struct volume_record volume = {0};
    size_t count = 0;
    merge_schedule(m, volume_id);
    if (catalogue_volume_find(m->catalogue, volume_id, &volume, NULL) == 0 &&
        catalogue_layer_chain(m->catalogue, volume.top_layer, &layers, &count, NULL) < 0)
        count = 0;
    for (size_t i = 1; i < count; i++) { /* what a clone stands on */
        if (strcmp(layers[i].volume_id, layers[i - 1].volume_id) != 0)
            merge_schedule(m, layers[i].volume_id);
    }
}

/* Those that a deleted volume's layers went to have more of their own. A merge that did not end well waits for the next
 * occasion. */
static void schedule_merges(struct manager *m, const struct job *job)
{
    if (job->kind == &job_volume_merge && strcmp(job->record.state, "succeeded") != 0)
        return;
    schedule_merges_of(m, job->record.volume_id);
    for (size_t i = 0; i < job->volume_count; i++) {
        if (strcmp(job->volumes[i], job->record.volume_id) != 0)
            schedule_merges_of(m, job->volumes[i]);
    }
    if (job_get(job, "heir")[0])
        merge_schedule(m, job_get(job, "heir"));
}

static void *worker_main(void *arg)
{
    struct manager *m = arg;
    (void)pthread_mutex_lock(&m->jobs_lock);
    while (!m->stopping) {
        struct job *job = next_ready(m);
        if (!job) {
            m->workers_idle++;
            (void)pthread_cond_wait(&m->jobs_changed, &m->jobs_lock);
            m->workers_idle--;
            continue;
        }
        job->running = true;
        (void)pthread_mutex_unlock(&m->jobs_lock);
        bool ended = job_run(job);
        (void)pthread_mutex_lock(&m->jobs_lock);
        job_unlink(m, job);
        (void)pthread_cond_broadcast(&m->jobs_changed); /* younger jobs of the volume */
        (void)pthread_mutex_unlock(&m->jobs_lock);
        if (ended) {
            schedule_merges(m, job); /* before the answer: whoever has it sees the merge */
            watch_complete(m, job->record.id);
            event_announce(m);
        }
        job_free(job);
        (void)pthread_mutex_lock(&m->jobs_lock);
    }
    (void)pthread_mutex_unlock(&m->jobs_lock);
    return NULL;
}

/* Called with jobs_lock held. Signals stay with the threads of main. */
static void worker_add(struct manager *m)
{
    sigset_t all, old;
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &old);
    if (pthread_create(&m->worker_threads[m->workers], NULL, worker_main, m) == 0)
        m->workers++;
    else
        log_error("cannot start another job thread: %u run", m->workers);
    (void)pthread_sigmask(SIG_SETMASK, &old, NULL);
}

void job_start(struct job *job, struct ticket *ret_ticket)
{
    struct manager *m = job->manager;
    crash_point(job->kind->name, "begin", "");
    if (ret_ticket)
        text_copy(ret_ticket->job, job->record.id);
    (void)pthread_mutex_lock(&m->jobs_lock);
    struct job **link = &m->jobs;
    while (*link)
        link = &(*link)->next;
    *link = job;
    if (m->worker_threads && m->workers_idle == 0 && m->workers < m->workers_max && job_ready(m, job))
        worker_add(m);
    (void)pthread_cond_signal(&m->jobs_changed);
    (void)pthread_mutex_unlock(&m->jobs_lock);
    event_announce(m);
}

int scheduler_start(struct manager *m, struct error *err)
{
    LOCK_SCOPE(&m->jobs_lock);
    m->worker_threads = calloc(m->workers_max, sizeof(*m->worker_threads));
    if (!m->worker_threads)
        return error_sys(err, ENOMEM, "start job threads");
    for (unsigned i = 0; i < 4 && i < m->workers_max; i++)
        worker_add(m);
    return m->workers ? 0 : error_set(err, EAGAIN, "cannot start a job thread");
}

void scheduler_stop(struct manager *m)
{
    (void)pthread_mutex_lock(&m->jobs_lock);
    m->stopping = true;
    for (struct job *job = m->jobs; job; job = job->next)
        (void)!write(job->cancel_fd, &(uint64_t){1}, sizeof(uint64_t));
    (void)pthread_cond_broadcast(&m->jobs_changed);
    unsigned count = m->workers;
    (void)pthread_mutex_unlock(&m->jobs_lock);
    for (unsigned i = 0; i < count; i++)
        (void)pthread_join(m->worker_threads[i], NULL);
    free(m->worker_threads);
    m->worker_threads = NULL;
    while (m->jobs) {
        struct job *job = m->jobs;
        m->jobs = job->next;
        job_free(job);
    }
}

void job_find_active(struct manager *m, const char *object_id, char ret_id[ID_MAX])
{
    if (catalogue_job_active(m->catalogue, object_id, ret_id, NULL) < 0)
        ret_id[0] = 0;
}

/* Within jobs_lock nobody may ask the catalogue: its transactions cancel merges. */
static bool cancel_active(struct manager *m, const char *id)
{
    LOCK_SCOPE(&m->jobs_lock);
    for (struct job *job = m->jobs; job; job = job->next) {
        if (strcmp(job->record.id, id) != 0)
            continue;
        atomic_store(&job->cancelled, true);
        (void)!write(job->cancel_fd, &(uint64_t){1}, sizeof(uint64_t));
        return true;
    }
    return false;
}

int manager_job_cancel(struct manager *m, const struct caller *caller, const char *id, struct error *err)
{
    struct job_record record = {0};
    int r = caller_require(caller, CALLER_OPERATOR, err);
    if (r < 0 || cancel_active(m, id))
        return r;
    r = catalogue_job_find(m->catalogue, id, &record, err);
    if (r < 0)
        return r;
    job_record_done(&record);
    (void)error_set(err, EBUSY, "job '%s' has ended already", id);
    return error_code(err, "not-cancellable");
}
