// SPDX-License-Identifier: Apache-2.0
/* Starting and stopping the manager, and what its files share. */
#include "provisioner/volume/manager.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "common/text.h"
#include "provisioner/volume/job.h"
#include "provisioner/volume/server.h"
#include "provisioner/volume/snapshot.h"

#define WORKERS_DEFAULT 16
#define WORKERS_LIMIT 256
#define JOBS_KEPT 10000
#define EVENTS_KEPT 100000

int manager_path(const struct manager *m, const char *folder, const char *id, const char *suffix, char *path,
                 size_t size, struct error *err)
{
    int n = snprintf(path, size, "%s/%s/%s%s", m->runtime_dir, folder, id, suffix);
    return n < 0 || (size_t)n >= size ? error_set(err, ENAMETOOLONG, "the runtime directory's path is too long") : 0;
}

int caller_require(const struct caller *caller, enum caller_role role, struct error *err)
{
    static const char *const words[] = {"viewer", "operator", "admin"};
    if (caller->role >= role)
        return 0;
    (void)error_set(err, EPERM, "user %u is %s here; this needs %s", caller->uid, words[caller->role], words[role]);
    return error_code(err, "forbidden");
}

static int make_directory(const char *path, mode_t mode, struct error *err)
{
    if (mkdir(path, mode) < 0 && errno != EEXIST)
        return error_sys(err, errno, "make directory '%s'", path);
    struct stat st;
    if (lstat(path, &st) < 0)
        return error_sys(err, errno, "look at '%s'", path);
    if (!S_ISDIR(st.st_mode) || st.st_uid != geteuid() || (st.st_mode & (S_IWGRP | S_IWOTH)))
        return error_set(err, EPERM, "'%s' must be a directory that belongs to and is written by platterd's user only",
                         path);
    return 0;
}

static int manager_directories(struct manager *m, const struct manager_options *options, struct error *err)
{
    static const char *const folders[] = {"blk", "fuse", "vm"};
    if (strlen(options->state_dir) >= MANAGER_PATH_MAX - 32 || strlen(options->runtime_dir) >= 64)
        return error_set(err, ENAMETOOLONG, "the state or runtime directory's path is too long");
    text_copy(m->state_dir, options->state_dir);
    text_copy(m->runtime_dir, options->runtime_dir);
    int r = make_directory(m->state_dir, 0700, err);
    if (r == 0)
        r = make_directory(m->runtime_dir, 0755, err);
    for (size_t i = 0; r == 0 && i < sizeof(folders) / sizeof(folders[0]); i++) {
        char path[MANAGER_PATH_MAX];
        (void)snprintf(path, sizeof(path), "%s/%s", m->runtime_dir, folders[i]);
        r = make_directory(path, strcmp(folders[i], "vm") == 0 ? 0711 : 0700, err);
    }
    return r;
}

/* One manager for a state directory. The lock goes with the process, however it ends. */
static int manager_lock(struct manager *m, struct error *err)
{
    char path[MANAGER_PATH_MAX + 8];
    (void)snprintf(path, sizeof(path), "%s/lock", m->state_dir);
    m->state_lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (m->state_lock < 0)
        return error_sys(err, errno, "open '%s'", path);
    if (flock(m->state_lock, LOCK_EX | LOCK_NB) < 0) {
        (void)error_set(err, EBUSY, "another platterd runs on '%s'", m->state_dir);
        return error_code(err, "already-running");
    }
    return 0;
}

static int manager_boot_id(struct manager *m, struct error *err)
{
    CLEANUP_CLOSE int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, m->boot_id, sizeof(m->boot_id) - 1);
    if (n <= 0)
        return error_sys(err, errno, "read the boot id");
    m->boot_id[strcspn(m->boot_id, "\n")] = 0;
    return 0;
}

static int manager_setup(struct manager *m, const struct manager_options *options, struct error *err)
{
    crash_point_init();
    m->workers_max = options->workers && options->workers < WORKERS_LIMIT ? options->workers : WORKERS_DEFAULT;
    m->merge_rate = options->merge_rate;
    if (options->blk_program && !(m->blk_program = strdup(options->blk_program)))
        return error_sys(err, ENOMEM, "start");
    int r = manager_directories(m, options, err);
    if (r == 0)
        r = manager_lock(m, err);
    if (r == 0)
        r = manager_boot_id(m, err);
    if (r < 0)
        return r;
    char path[MANAGER_PATH_MAX + 16];
    (void)snprintf(path, sizeof(path), "%s/catalogue.db", m->state_dir);
    r = catalogue_open(path, &m->catalogue, err);
    if (r == 0)
        r = catalogue_job_trim(m->catalogue, JOBS_KEPT, err);
    if (r == 0)
        r = catalogue_event_trim(m->catalogue, EVENTS_KEPT, err);
    if (r == 0)
        r = supervisor_start(m, err);
    if (r == 0)
        r = manager_reconcile(m, err);
    if (r == 0)
        r = conditions_start(m, err);
    if (r == 0)
        r = scheduler_start(m, err);
    if (r == 0)
        merge_schedule_all(m);
    return r;
}

int manager_start(const struct manager_options *options, struct manager **ret_manager, struct error *err)
{
    struct manager *m = calloc(1, sizeof(*m));
    if (!m)
        return error_sys(err, ENOMEM, "start");
    m->state_lock = m->epoll_fd = m->wake_fd = m->timer_fd = -1;
    (void)pthread_mutex_init(&m->jobs_lock, NULL);
    (void)pthread_cond_init(&m->jobs_changed, NULL);
    (void)pthread_mutex_init(&m->watch_lock, NULL);
    (void)pthread_mutex_init(&m->servers_lock, NULL);
    (void)pthread_mutex_init(&m->events_lock, NULL);
    (void)pthread_cond_init(&m->events_idle, NULL);
    int r = manager_setup(m, options, err);
    if (r < 0) {
        manager_stop(m);
        return r;
    }
    *ret_manager = m;
    return 0;
}

struct manager *manager_stop(struct manager *m)
{
    if (!m)
        return NULL;
    scheduler_stop(m);
    conditions_stop(m);
    if (m->supervisor_running)
        watch_stop(m);
    supervisor_stop(m);
    server_disconnect_all(m);
    m->catalogue = catalogue_close(m->catalogue);
    while (m->subscriptions)
        manager_event_unsubscribe(m, m->subscriptions);
    close_fd(&m->state_lock);
    (void)pthread_mutex_destroy(&m->jobs_lock);
    (void)pthread_cond_destroy(&m->jobs_changed);
    (void)pthread_mutex_destroy(&m->watch_lock);
    (void)pthread_mutex_destroy(&m->servers_lock);
    (void)pthread_mutex_destroy(&m->events_lock);
    (void)pthread_cond_destroy(&m->events_idle);
    free(m->blk_program);
    free(m);
    return NULL;
}
