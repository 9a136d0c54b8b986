// SPDX-License-Identifier: Apache-2.0
/* What platterd says about itself: version, health, metrics, orphans. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "provisioner/api/answer.h"
#include "provisioner/api/handlers.h"
#include "provisioner/api/route.h"

#define API_LEVEL 1
#define METRICS_PAGE 1000

int handle_version_get(struct request *request, struct error *err)
{
    json_t *answer = json_pack("{s:s, s:i, s:s, s:I}", "version", PLATTER_VERSION, "api_level", API_LEVEL, "role",
                               route_role_name(request->caller.role), "uid", (json_int_t)request->caller.uid);
    return request_answer(request, MHD_HTTP_OK, answer, err);
}

/* Healthy means that the catalogue answers. */
int handle_health_get(struct request *request, struct error *err)
{
    json_t *pools = NULL;
    int r = manager_pool_list(request->manager, &pools, err);
    if (r < 0)
        return r;
    json_decref(pools);
    return request_answer(request, MHD_HTTP_OK, json_pack("{s:s}", "status", "ok"), err);
}

int handle_orphan_list(struct request *request, struct error *err)
{
    json_t *orphans = NULL;
    int r = manager_orphan_list(request->manager, &orphans, err);
    return r < 0 ? r : request_answer(request, MHD_HTTP_OK, json_pack("{s:o}", "orphans", orphans), err);
}

/* ---- metrics ---- */

/* Adds one to counts[object's member]. */
static void count_member(json_t *counts, const json_t *object, const char *member)
{
    const char *word = json_string_value(json_object_get(object, member));
    if (word)
        (void)json_object_set_new(counts, word, json_integer(json_integer_value(json_object_get(counts, word)) + 1));
}

static void count_all(json_t *counts, const json_t *array, const char *member)
{
    size_t index = 0;
    json_t *object = NULL;
    json_array_foreach (array, index, object) {
        count_member(counts, object, member);
    }
}

static void print_counts(FILE *out, const char *name, const char *help, const char *label, json_t *counts)
{
    const char *word;
    json_t *number;
    (void)fprintf(out, "# HELP %s %s\n# TYPE %s gauge\n", name, help, name);
    json_object_foreach (counts, word, number)
        (void)fprintf(out, "%s{%s=\"%s\"} %lld\n", name, label, word, (long long)json_integer_value(number));
}

/* Names of pools hold letters, digits, dots, dashes and underscores only: no label needs escaping. */
static void print_pools(FILE *out, const json_t *pools)
{
    static const char *const members[] = {"capacity", "used", "available", "promised"};
    for (size_t i = 0; i < sizeof(members) / sizeof(members[0]); i++) {
        size_t index = 0;
        json_t *pool;
        (void)fprintf(out, "# HELP platter_pool_%s_bytes Bytes of the pool: %s.\n# TYPE platter_pool_%s_bytes gauge\n",
                      members[i], members[i], members[i]);
        json_array_foreach (pools, index, pool) {
            const json_t *bytes = json_object_get(pool, members[i]);
            if (json_is_integer(bytes))
                (void)fprintf(out, "platter_pool_%s_bytes{pool=\"%s\"} %lld\n", members[i],
                              json_string_value(json_object_get(pool, "name")), (long long)json_integer_value(bytes));
        }
    }
}

static int print_volumes(FILE *out, struct manager *manager, struct error *err)
{
    char after[NAME_MAX_BYTES] = "";
    json_t *counts = json_object();
    for (;;) {
        json_t *volumes;
        int r = manager_volume_list(manager, NULL, after[0] ? after : NULL, METRICS_PAGE, &volumes, err);
        if (r < 0) {
            json_decref(counts);
            return r;
        }
        size_t count = json_array_size(volumes);
        count_all(counts, volumes, "state");
        const char *last =
            count ? json_string_value(json_object_get(json_array_get(volumes, count - 1), "name")) : NULL;
        (void)snprintf(after, sizeof(after), "%s", last ? last : "");
        json_decref(volumes);
        if (count < METRICS_PAGE || !after[0])
            break;
    }
    print_counts(out, "platter_volumes", "Volumes by state.", "state", counts);
    json_decref(counts);
    return 0;
}

static int print_metrics(FILE *out, struct manager *manager, struct error *err)
{
    json_t *array, *counts;
    int r = manager_pool_list(manager, &array, err);
    if (r < 0)
        return r;
    print_pools(out, array);
    json_decref(array);
    r = print_volumes(out, manager, err);
    if (r == 0)
        r = manager_attachment_list(manager, NULL, &array, err);
    if (r < 0)
        return r;
    counts = json_object();
    count_all(counts, array, "kind");
    print_counts(out, "platter_attachments", "Attachments by kind.", "kind", counts);
    json_decref(counts);
    counts = json_object();
    count_all(counts, array, "condition");
    print_counts(out, "platter_attachment_conditions", "Block servers' images by condition.", "condition", counts);
    json_decref(counts);
    json_decref(array);
    r = manager_job_list(manager, NULL, &array, err);
    if (r < 0)
        return r;
    counts = json_object();
    count_all(counts, array, "state");
    print_counts(out, "platter_jobs", "Jobs that are remembered, by state.", "state", counts);
    json_decref(counts);
    json_decref(array);
    (void)fprintf(out,
                  "# HELP platter_events_total Events so far.\n# TYPE platter_events_total counter\n"
                  "platter_events_total %llu\n",
                  (unsigned long long)manager_event_last(manager));
    return 0;
}

int handle_metrics_get(struct request *request, struct error *err)
{
    CLEANUP_FREE char *text = NULL;
    size_t length = 0;
    FILE *out = open_memstream(&text, &length);
    if (!out)
        return error_set(err, ENOMEM, "out of memory");
    int r = print_metrics(out, request->manager, err);
    if (fclose(out) != 0 && r == 0)
        r = error_set(err, ENOMEM, "out of memory");
    if (r < 0)
        return r;
    request->status = MHD_HTTP_OK;
    request->response = answer_text(text, length, "text/plain; version=0.0.4; charset=utf-8");
    return request->response ? 0 : error_set(err, ENOMEM, "out of memory");
}
