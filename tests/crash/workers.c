// SPDX-License-Identifier: Apache-2.0
#include "workers.h"

#include <jansson.h>
#include <malloc.h>
#include <stdarg.h>
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
#define POLL_NS 100000000
#define PROGRESS_POLLS 5u

/* Each worker has its own share, so that who does what does not depend on the time. */
struct shared {
    _Atomic uint64_t done;
    _Atomic bool found;
    char texts[WORKERS_MAX][1000]; /* what each found, written by it alone */
};

/* Of a worker that shall not print what it finds. */
static char *own_text;

void finding(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    if (own_text) {
        size_t used = strlen(own_text);
        (void)vsnprintf(own_text + used, sizeof(((struct shared *)0)->texts[0]) - used, format, args);
    } else {
        (void)vfprintf(stderr, format, args);
    }
    va_end(args);
}

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
    own_text = w->json ? shared->texts[index] : NULL;
    exit(work(w, shared, index, count, directory));
}

/* ---- the end of all ---- */

struct outcome {
    unsigned count, found, broken; /* processes; of these, such that found something or ended in another way */
    double seconds;
    uint64_t done;
};

static void tell_progress(const struct workers *w, struct shared *shared)
{
    uint64_t total = w->target == UINT64_MAX ? 0 : w->target;
    (void)printf("{\"progress\": {\"done\": %llu, \"total\": %llu}}\n", (unsigned long long)atomic_load(&shared->done),
                 (unsigned long long)total);
    (void)fflush(stdout);
}

/* Wait for one process; its status. */
static int wait_for(const struct workers *w, struct shared *shared, pid_t pid)
{
    int status = 0;
    if (!w->json) {
        MUST(waitpid(pid, &status, 0) == pid);
        return status;
    }
    for (unsigned polls = 1;; polls++) {
        pid_t ended = waitpid(pid, &status, WNOHANG);
        MUST(ended >= 0);
        if (ended == pid)
            return status;
        (void)nanosleep(&(struct timespec){.tv_nsec = POLL_NS}, NULL);
        if (polls % PROGRESS_POLLS == 0)
            tell_progress(w, shared);
    }
}

static bool says(const char *text, const char *const *words)
{
    for (; *words; words++)
        if (strstr(text, *words))
            return true;
    return false;
}

static void tell_json(const struct workers *w, const struct shared *shared, const struct outcome *o)
{
    static const char *const torn[] = {": torn (", NULL}, *const lost[] = {"lost", "stale", NULL};
    static const char *const foreign[] = {": foreign", "from the future", "never written here", NULL};
    unsigned kinds[4] = {0, 0, 0, o->broken};
    const char *message = o->broken ? "the engine ended by a signal or an assertion" : "";
    for (unsigned i = 0; i < o->count; i++) {
        const char *text = shared->texts[i];
        if (!text[0])
            continue;
        kinds[says(text, torn) ? 2 : says(text, foreign) ? 1 : says(text, lost) ? 0 : 3]++;
        message = text;
    }
    json_t *json =
        json_pack("{s:s, s:I, s:f, s:i, s:i, s:i, s:i, s:i, s:s%}", "what", w->what, "done", (json_int_t)o->done,
                  "seconds", o->seconds, "processes", (int)o->count, "lost", (int)kinds[0], "foreign", (int)kinds[1],
                  "torn", (int)kinds[2], "other", (int)kinds[3], "message", message, strcspn(message, "\n"));
    MUST(json && json_dumpf(json, stdout, JSON_COMPACT) == 0);
    (void)putchar('\n');
    json_decref(json);
}

static int tell(const struct workers *w, const struct shared *shared, const struct outcome *o)
{
    if (w->json) {
        tell_json(w, shared, o);
        return o->found || o->broken;
    }
    (void)printf("%llu %s in %.1f s on %u processes (%.0f/s each)%s\n", (unsigned long long)o->done, w->what,
                 o->seconds, o->count, (double)o->done / o->seconds / o->count,
                 o->found + o->broken ? ", FOUND something wrong" : "");
    if (plant != PLANT_NONE)
        return o->found && !o->broken ? 0 : 1;
    return o->found || o->broken;
}

static void run_all(const struct workers *w, struct shared *shared, const char *base, struct outcome *o)
{
    pid_t pids[WORKERS_MAX];
    for (unsigned i = 0; i < o->count; i++)
        pids[i] = start(w, shared, i, o->count, base);
    for (unsigned i = 0; i < o->count; i++) {
        int status = wait_for(w, shared, pids[i]);
        o->found += WIFEXITED(status) && WEXITSTATUS(status) == FOUND;
        o->broken += !WIFEXITED(status) || WEXITSTATUS(status) > FOUND;
        if (o->broken)
            atomic_store(&shared->found, true);
    }
}

int workers_run(const struct workers *w)
{
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    struct outcome o = {.count = (unsigned)setting("PLATTER_CRASH_JOBS", cpus > 0 ? (uint64_t)cpus : 1)};
    o.count = o.count > WORKERS_MAX ? WORKERS_MAX : o.count ? o.count : 1;
    o.count = w->target < o.count ? 1 : o.count;
    struct shared *shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    MUST(shared != MAP_FAILED);
    const char *tmp = getenv("TMPDIR");
    char base[120], command[200];
    (void)snprintf(base, sizeof(base), "%s/platter-crash-XXXXXX", tmp ? tmp : "/tmp");
    MUST(mkdtemp(base) != NULL);
    struct timespec begin, end;
    (void)clock_gettime(CLOCK_MONOTONIC, &begin);
    run_all(w, shared, base, &o);
    (void)clock_gettime(CLOCK_MONOTONIC, &end);
    (void)snprintf(command, sizeof(command), "rm -rf --one-file-system '%s'", base);
    MUST(system(command) == 0);
    o.seconds = (double)(end.tv_sec - begin.tv_sec) + (double)(end.tv_nsec - begin.tv_nsec) / 1e9;
    o.done = atomic_load(&shared->done);
    return tell(w, shared, &o);
}
