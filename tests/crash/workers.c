// SPDX-License-Identifier: Apache-2.0
#include "workers.h"

#include <malloc.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "fatal.h"
#include "plant.h"

#define WORKERS_MAX 16u
#define FOUND 1 /* exit status of a worker that found something */

/* Each worker has its own share, so that who does what does not depend on the time. */
struct shared {
    _Atomic uint64_t done;
    _Atomic bool found;
};

uint64_t setting(const char *name, uint64_t otherwise)
{
    const char *given = getenv(name);
    return given && *given ? strtoull(given, NULL, 0) : otherwise;
}

static int work(const struct workers *w, struct shared *shared, unsigned index, unsigned count, const char *directory)
{
    uint64_t share = w->target / count + (index < w->target % count), done = 0;
    for (uint64_t number = index; done < share && !atomic_load(&shared->found); number += count) {
        if (w->rounds && number >= w->rounds)
            break;
        int64_t n = w->round(w->context, number, directory);
        if (n < 0) {
            atomic_store(&shared->found, true);
            return FOUND;
        }
        done += (uint64_t)n;
        atomic_fetch_add(&shared->done, (uint64_t)n);
    }
    return 0;
}

static pid_t start(const struct workers *w, struct shared *shared, unsigned index, unsigned count, const char *base)
{
    char directory[200];
    (void)snprintf(directory, sizeof(directory), "%s/%u", base, index);
    (void)fflush(NULL);
    pid_t pid = fork();
    MUST(pid >= 0);
    if (pid > 0)
        return pid;
    char command[300];
    (void)snprintf(command, sizeof(command), "mkdir '%s'", directory);
    MUST(system(command) == 0);
    /* Each state allocates and frees the same again: keep it. */
    (void)mallopt(M_MMAP_THRESHOLD, 1 << 25);
    (void)mallopt(M_TRIM_THRESHOLD, 1 << 28);
    exit(work(w, shared, index, count, directory));
}

int workers_run(const struct workers *w)
{
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    unsigned count = (unsigned)setting("PLATTER_CRASH_JOBS", cpus > 0 ? (uint64_t)cpus : 1);
    count = count > WORKERS_MAX ? WORKERS_MAX : count ? count : 1;
    count = w->target < count ? 1 : count;
    struct shared *shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    MUST(shared != MAP_FAILED);
    const char *tmp = getenv("TMPDIR");
    char base[120], command[200];
    (void)snprintf(base, sizeof(base), "%s/platter-crash-XXXXXX", tmp ? tmp : "/tmp");
    MUST(mkdtemp(base) != NULL);
    struct timespec begin, end;
    (void)clock_gettime(CLOCK_MONOTONIC, &begin);
    pid_t pids[WORKERS_MAX];
    for (unsigned i = 0; i < count; i++)
        pids[i] = start(w, shared, i, count, base);
    unsigned found = 0, broken = 0;
    for (unsigned i = 0; i < count; i++) {
        int status = 0;
        MUST(waitpid(pids[i], &status, 0) == pids[i]);
        found += WIFEXITED(status) && WEXITSTATUS(status) == FOUND;
        broken += !WIFEXITED(status) || WEXITSTATUS(status) > FOUND;
        if (broken)
            atomic_store(&shared->found, true);
    }
    (void)clock_gettime(CLOCK_MONOTONIC, &end);
    (void)snprintf(command, sizeof(command), "rm -rf --one-file-system '%s'", base);
    MUST(system(command) == 0);
    double seconds = (double)(end.tv_sec - begin.tv_sec) + (double)(end.tv_nsec - begin.tv_nsec) / 1e9;
    uint64_t done = atomic_load(&shared->done);
    (void)printf("%llu %s in %.1f s on %u processes (%.0f/s each)%s\n", (unsigned long long)done, w->what, seconds,
                 count, (double)done / seconds / count, found + broken ? ", FOUND something wrong" : "");
    if (plant != PLANT_NONE)
        return found && !broken ? 0 : 1;
    return found || broken;
}
