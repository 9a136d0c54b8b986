/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside the lifecycle: the manager's own state, shared by the files of this folder.
 *
 * Lock order: jobs_lock, then the catalogue's own; watch_lock, servers_lock and events_lock are leaves, taken alone.
 */
#ifndef PLATTER_PROVISIONER_VOLUME_MANAGER_H
#define PLATTER_PROVISIONER_VOLUME_MANAGER_H

#include <pthread.h>
#include <stdatomic.h>

#include "backends/pool/pool.h"
#include "provisioner/volume/volume.h"

struct job;
struct watch;
struct server;

#define MANAGER_PATH_MAX 256 /* of the state and runtime directories: socket addresses have 108 bytes in all */

struct manager {
    char state_dir[MANAGER_PATH_MAX];
    char runtime_dir[MANAGER_PATH_MAX];
    char *blk_program; /* NULL = beside our own executable */
    char boot_id[40];
    uint64_t merge_rate; /* bytes a second, of an attached volume; 0 = no bound */
    int state_lock;      /* flock on the state directory's lock file */
    struct catalogue *catalogue;

    pthread_mutex_t jobs_lock;
    pthread_cond_t jobs_changed; /* work for a worker, or stopping */
    struct job *jobs;            /* all that have not ended, oldest first */
    unsigned workers, workers_idle, workers_max;
    atomic_bool stopping;
    pthread_t *worker_threads;

    pthread_mutex_t watch_lock;
    struct watch *watches;

    pthread_mutex_t servers_lock;
    struct server *servers; /* the running platter-blk of each attachment */

    pthread_t supervisor; /* epoll: servers that end, watches whose time is up */
    bool supervisor_running;
    int epoll_fd, wake_fd, timer_fd;

    struct conditions *conditions; /* NULL = not watched */

    pthread_mutex_t events_lock;
    pthread_cond_t events_idle; /* no callback runs */
    struct event_subscription *subscriptions;
    unsigned events_running;
};

/* RUNTIME/FOLDER/ID[SUFFIX] into `path`; -ENAMETOOLONG. */
int manager_path(const struct manager *manager, const char *folder, const char *id, const char *suffix, char *path,
                 size_t size, struct error *err);

/* Open the pool with this id; -ESTALE (code "pool-missing"). Closed by pool_put. */
int manager_pool_open(struct manager *manager, const char *pool_id, struct pool **ret_pool, struct error *err);
void pool_put(struct pool **pool);
#define CLEANUP_POOL CLEANUP(pool_put)

/* Refuse with -ENOSPC "overprovisioned" when `more` bytes beyond what is promised do not fit the pool's rule. */
int manager_pool_admit(struct manager *manager, const struct pool_record *record, uint64_t more, struct error *err);

/* -EPERM (code "forbidden") unless the caller's role is at least `role`. */
int caller_require(const struct caller *caller, enum caller_role role, struct error *err);

/* Record an event; inside a transaction it becomes visible with it. Takes `data` over. Failure is logged only: an event
 * must not fail what it tells of. event_announce tells the subscribers; call it outside of transactions. */
void event_record(struct manager *manager, const char *kind, const char *object, json_t *data);
void event_announce(struct manager *manager);
void event_emit(struct manager *manager, const char *kind, const char *object, json_t *data); /* both */

/* Watches. watch_complete answers all of a job that has ended; watch_expire those whose time is up. */
void watch_complete(struct manager *manager, const char *job_id);
void watch_expire(struct manager *manager);
void watch_stop(struct manager *manager);
/* Set the timer to the next expiry; called with watch_lock held. */
void supervisor_set_timer(struct manager *manager, int64_t at_ms);
int64_t manager_now_ms(void); /* CLOCK_MONOTONIC */

int supervisor_start(struct manager *manager, struct error *err);
void supervisor_stop(struct manager *manager);

/* What the block servers say of themselves and how full the pools are (condition.c): events volume.no-space,
 * volume.space-returned, volume.failed, pool.low-space, pool.space-returned. */
int conditions_start(struct manager *manager, struct error *err);
void conditions_stop(struct manager *manager);
/* Adds "condition" ("ok" unless the server said "no-space" or "failed"), "waiting" and "cause" to a description, where the
 * attachment has a server. */
void condition_describe(struct manager *manager, const struct attachment_record *attachment, json_t *json);

/* JSON of records; new references. */
json_t *describe_volume(struct manager *manager, const struct volume_record *record);
json_t *describe_attachment(struct manager *manager, const struct attachment_record *record);

/* The error as JSON, with its number, and back. */
json_t *error_to_json(const struct error *err);
void error_from_json(const json_t *json, struct error *ret_err);
/* json_dumps compact; NULL when out of memory. The caller frees. */
char *json_text(const json_t *json);

/* A volume's sidecar: all that is needed to rebuild its record. */
int sidecar_write(struct manager *manager, struct pool *pool, const char *volume_id, struct error *err);

/* See that the host agrees with the catalogue; queues unfinished jobs. At start only, before the workers. */
int manager_reconcile(struct manager *manager, struct error *err);

void json_decref_cleanup(json_t **json);
#define CLEANUP_JSON CLEANUP(json_decref_cleanup)

#endif
