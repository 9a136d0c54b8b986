// SPDX-License-Identifier: Apache-2.0
/*
 * Events: rows of the catalogue, and a wake-up for those who follow. Callbacks run without the lock;
 * `running` counts them, and unsubscribe waits until none runs.
 */
#include <errno.h>
#include <stdlib.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "provisioner/volume/manager.h"

struct event_subscription {
    event_fn fn;
    void *arg;
    struct event_subscription *next;
};

#define SUBSCRIPTIONS_AT_ONCE 64

void event_record(struct manager *m, const char *kind, const char *object, json_t *data)
{
    CLEANUP_JSON json_t *owned = data;
    CLEANUP_FREE char *text = data ? json_text(data) : NULL;
    uint64_t seq = 0;
    struct error err = ERROR_INIT;
    if (catalogue_event_insert(m->catalogue, kind, object, text, &seq, &err) < 0)
        log_error("event '%s' of '%s' is lost: %s", kind, object, err.message);
}

void event_announce(struct manager *m)
{
    uint64_t seq = manager_event_last(m);
    struct event_subscription copies[SUBSCRIPTIONS_AT_ONCE];
    size_t count = 0;
    (void)pthread_mutex_lock(&m->events_lock);
    for (struct event_subscription *s = m->subscriptions; s && count < SUBSCRIPTIONS_AT_ONCE; s = s->next)
        copies[count++] = *s;
    m->events_running++;
    (void)pthread_mutex_unlock(&m->events_lock);
    for (size_t i = 0; i < count; i++)
        copies[i].fn(copies[i].arg, seq);
    (void)pthread_mutex_lock(&m->events_lock);
    m->events_running--;
    (void)pthread_cond_broadcast(&m->events_idle);
    (void)pthread_mutex_unlock(&m->events_lock);
}

void event_emit(struct manager *m, const char *kind, const char *object, json_t *data)
{
    event_record(m, kind, object, data);
    event_announce(m);
}

uint64_t manager_event_last(struct manager *m)
{
    uint64_t seq = 0;
    (void)catalogue_event_last(m->catalogue, &seq, NULL);
    return seq;
}

int manager_event_list(struct manager *m, uint64_t after, unsigned limit, json_t **ret_events, struct error *err)
{
    struct event_record *records;
    size_t count = 0;
    int r = catalogue_event_list(m->catalogue, after, limit ? limit : 1000, &records, &count, err);
    if (r < 0)
        return r;
    json_t *events = json_array();
    for (size_t i = 0; i < count; i++) {
        json_t *data = records[i].data ? json_loads(records[i].data, 0, NULL) : NULL;
        (void)json_array_append_new(events,
                                    json_pack("{s:I, s:I, s:s, s:s, s:o}", "seq", (json_int_t)records[i].seq, "time",
                                              (json_int_t)records[i].time, "kind", records[i].kind, "object",
                                              records[i].object, "data", data ? data : json_object()));
    }
    event_records_free(records, count);
    *ret_events = events;
    return 0;
}

int manager_event_subscribe(struct manager *m, event_fn fn, void *arg, struct event_subscription **ret_sub,
                            struct error *err)
{
    struct event_subscription *s = malloc(sizeof(*s));
    if (!s)
        return error_sys(err, ENOMEM, "follow events");
    LOCK_SCOPE(&m->events_lock);
    *s = (struct event_subscription){.fn = fn, .arg = arg, .next = m->subscriptions};
    size_t count = 1;
    for (const struct event_subscription *other = s->next; other; other = other->next)
        count++;
    if (count > SUBSCRIPTIONS_AT_ONCE) {
        free(s);
        return error_set(err, EAGAIN, "too many followers of events");
    }
    m->subscriptions = s;
    *ret_sub = s;
    return 0;
}

struct event_subscription *manager_event_unsubscribe(struct manager *m, struct event_subscription *sub)
{
    if (!sub)
        return NULL;
    LOCK_SCOPE(&m->events_lock);
    struct event_subscription **link = &m->subscriptions;
    while (*link && *link != sub)
        link = &(*link)->next;
    if (*link)
        *link = sub->next;
    while (m->events_running)
        (void)pthread_cond_wait(&m->events_idle, &m->events_lock);
    free(sub);
    return NULL;
}
