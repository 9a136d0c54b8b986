// SPDX-License-Identifier: Apache-2.0
/*
 * What the block servers say of themselves, asked every other second on a thread and connections of its own: no server that
 * hangs keeps a job or the supervisor waiting. A change becomes an event. Nothing is kept in the catalogue: after a restart
 * the first round finds what is so, and says it again.
 *
 * The same rounds look how full the pools are.
 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "common/text.h"
#include "provisioner/node/blk_client.h"
#include "provisioner/volume/lifecycle.h"

#define ROUND_MS 2000
#define POOL_LOW_PERCENT 5

/* One server; or one pool, without a client. Those of the thread are its own, but for what is read under `lock`. */
struct watched {
    char id[ID_MAX];
    char volume_id[ID_MAX];
    char state[WORD_MAX]; /* lock: "ok", "no-space", "failed"; pools: "ok", "low" */
    char cause[256];      /* lock */
    json_int_t waiting;   /* lock: requests */
    json_int_t refused;   /* so many ended with ENOSPC so far; -1 = not known yet */
    struct blk_client *client;
    bool seen;
    struct watched *next;
};

struct conditions {
    struct manager *manager;
    pthread_t thread;
    pthread_mutex_t lock; /* a leaf */
    pthread_cond_t wake;
    bool stop;
    struct watched *servers, *pools;
};

/* ---- the lists ---- */

static struct watched *find(struct watched *list, const char *id)
{
    while (list && strcmp(list->id, id) != 0)
        list = list->next;
    return list;
}

static struct watched *find_or_add(struct conditions *c, struct watched **list, const char *id)
{
    struct watched *w = find(*list, id);
    if (w)
        return w;
    w = calloc(1, sizeof(*w));
    if (!w)
        return NULL;
    text_copy(w->id, id);
    text_copy(w->state, "ok");
    w->refused = -1;
    LOCK_SCOPE(&c->lock);
    w->next = *list;
    *list = w;
    return w;
}

static void forget_unseen(struct conditions *c, struct watched **list)
{
    LOCK_SCOPE(&c->lock);
    for (struct watched **link = list; *link;) {
        struct watched *w = *link;
        if (w->seen) {
            w->seen = false;
            link = &w->next;
            continue;
        }
        *link = w->next;
        blk_disconnect(w->client);
        free(w);
    }
}

/* ---- servers ---- */

static void tell(struct conditions *c, const struct watched *w, const char *kind)
{
    log_warning("attachment '%s': %s%s%s", w->id, kind, w->cause[0] ? ": " : "", w->cause);
    event_emit(c->manager, kind, w->volume_id,
               json_pack("{s:s, s:s*, s:I}", "attachment", w->id, "cause", w->cause[0] ? w->cause : NULL, "waiting",
                         w->waiting));
}

static void server_says(struct conditions *c, struct watched *w, const json_t *says)
{
    const char *state = json_string_value(json_object_get(says, "state"));
    const char *cause = json_string_value(json_object_get(says, "cause"));
    json_int_t refused = json_integer_value(json_object_get(says, "refused"));
    char before[WORD_MAX];
    if (!state)
        return; /* an older server */
    text_copy(before, w->state);
    {
        LOCK_SCOPE(&c->lock);
        text_copy_bounded(w->state, sizeof(w->state), state);
        text_copy_bounded(w->cause, sizeof(w->cause), cause ? cause : "");
        w->waiting = json_integer_value(json_object_get(says, "waiting"));
    }
    bool more_refused = refused > (w->refused < 0 ? 0 : w->refused);
    w->refused = refused;
    if (strcmp(before, "no-space") == 0 && strcmp(w->state, "ok") == 0)
        tell(c, w, "volume.space-returned");
    else if (strcmp(before, w->state) != 0 && strcmp(w->state, "no-space") == 0)
        tell(c, w, "volume.no-space");
    else if (strcmp(w->state, "ok") == 0 && more_refused)
        tell(c, w, "volume.no-space");
    if (strcmp(before, w->state) != 0 && strcmp(w->state, "failed") == 0)
        tell(c, w, "volume.failed");
}

static void ask_server(struct conditions *c, struct watched *w)
{
    char path[MANAGER_PATH_MAX];
    CLEANUP_JSON json_t *stats = NULL;
    int r = 0;
    if (!w->client)
        r = manager_path(c->manager, "blk", w->id, ".sock", path, sizeof(path), NULL);
    if (r == 0 && !w->client)
        r = blk_connect(path, &w->client, NULL);
    if (r < 0)
        return; /* whoever watches its process tells that it has ended */
    r = blk_stats(w->client, &stats, NULL);
    if (r == 0)
        server_says(c, w, json_object_get(stats, "condition"));
    else
        w->client = blk_disconnect(w->client);
}

static void look_at_servers(struct conditions *c)
{
    struct attachment_record *list;
    size_t count = 0;
    if (catalogue_attachment_list(c->manager->catalogue, NULL, &list, &count, NULL) < 0)
        return;
    for (size_t i = 0; i < count; i++) {
        bool live = strcmp(list[i].state, "attached") == 0 || strcmp(list[i].state, "detaching") == 0;
        if (!live || strcmp(list[i].via, "loop") == 0)
            continue;
        struct watched *w = find_or_add(c, &c->servers, list[i].id);
        if (!w)
            continue;
        w->seen = true;
        text_copy(w->volume_id, list[i].volume_id);
        ask_server(c, w);
    }
    attachment_records_free(list, count);
    forget_unseen(c, &c->servers);
}

/* ---- pools ---- */

static void look_at_pools(struct conditions *c)
{
    CLEANUP_JSON json_t *pools = NULL;
    json_t *pool;
    size_t i;
    if (manager_pool_list(c->manager, &pools, NULL) < 0)
        return;
    json_array_foreach (pools, i, pool) {
        const char *id = json_string_value(json_object_get(pool, "id"));
        json_int_t capacity = json_integer_value(json_object_get(pool, "capacity"));
        json_int_t available = json_integer_value(json_object_get(pool, "available"));
        struct watched *w = id ? find_or_add(c, &c->pools, id) : NULL;
        if (!w)
            continue;
        w->seen = true;
        if (capacity <= 0)
            continue;
        bool low = available < capacity / 100 * POOL_LOW_PERCENT;
        bool was_low = strcmp(w->state, "low") == 0;
        if (low == was_low)
            continue;
        text_copy(w->state, low ? "low" : "ok");
        event_emit(c->manager, low ? "pool.low-space" : "pool.space-returned", id,
                   json_pack("{s:O, s:I, s:I}", "name", json_object_get(pool, "name"), "available", available,
                             "capacity", capacity));
    }
    forget_unseen(c, &c->pools);
}

/* ---- the thread ---- */

static bool pause_round(struct conditions *c)
{
    struct timespec until;
    (void)clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += ROUND_MS / 1000;
    LOCK_SCOPE(&c->lock);
    while (!c->stop && pthread_cond_timedwait(&c->wake, &c->lock, &until) == 0)
        ;
    return !c->stop;
}

static void *conditions_main(void *arg)
{
    struct conditions *c = arg;
    do {
        look_at_servers(c);
        look_at_pools(c);
    } while (pause_round(c));
    forget_unseen(c, &c->servers);
    forget_unseen(c, &c->pools);
    return NULL;
}

int conditions_start(struct manager *m, struct error *err)
{
    struct conditions *c = calloc(1, sizeof(*c));
    pthread_condattr_t attributes;
    sigset_t all, old;
    if (!c)
        return error_sys(err, ENOMEM, "watch the block servers");
    c->manager = m;
    (void)pthread_mutex_init(&c->lock, NULL);
    (void)pthread_condattr_init(&attributes);
    (void)pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    (void)pthread_cond_init(&c->wake, &attributes);
    (void)pthread_condattr_destroy(&attributes);
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &old);
    int r = pthread_create(&c->thread, NULL, conditions_main, c);
    (void)pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (r) {
        (void)pthread_cond_destroy(&c->wake);
        (void)pthread_mutex_destroy(&c->lock);
        free(c);
        return error_sys(err, r, "watch the block servers");
    }
    m->conditions = c;
    return 0;
}

void conditions_stop(struct manager *m)
{
    struct conditions *c = m->conditions;
    if (!c)
        return;
    {
        LOCK_SCOPE(&c->lock);
        c->stop = true;
        (void)pthread_cond_signal(&c->wake);
    }
    (void)pthread_join(c->thread, NULL);
    m->conditions = NULL;
    (void)pthread_cond_destroy(&c->wake);
    (void)pthread_mutex_destroy(&c->lock);
    free(c);
}

void condition_describe(struct manager *m, const struct attachment_record *attachment, json_t *json)
{
    struct conditions *c = m->conditions;
    if (!c || strcmp(attachment->state, "attached") != 0 || strcmp(attachment->via, "loop") == 0)
        return;
    LOCK_SCOPE(&c->lock);
    const struct watched *w = find(c->servers, attachment->id);
    (void)json_object_set_new(json, "condition", json_string(w ? w->state : "ok"));
    if (w && strcmp(w->state, "no-space") == 0)
        (void)json_object_set_new(json, "waiting", json_integer(w->waiting));
    if (w && w->cause[0])
        (void)json_object_set_new(json, "cause", json_string(w->cause));
}
