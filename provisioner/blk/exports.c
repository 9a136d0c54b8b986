// SPDX-License-Identifier: Apache-2.0
#include "provisioner/blk/exports.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/checked.h"
#include "common/cleanup.h"
#include "provisioner/blk/members.h"

static const struct {
    const char *kind;
    const struct export_ops *ops;
} kinds[] = {
    {"vhost-user-blk", &vhost_user_export_ops},
    {"nbd", &nbd_export_ops},
    {"fuse", &fuse_export_ops},
};

static const struct export_ops *find_kind(const char *kind)
{
    for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
        if (strcmp(kinds[i].kind, kind) == 0)
            return kinds[i].ops;
    }
    return NULL;
}

static struct export_entry *find_entry(struct exports *exports, const char *name)
{
    for (size_t i = 0; i < EXPORTS_MAX; i++) {
        struct export_entry *entry = &exports->entries[i];
        if (entry->export && strcmp(entry->name, name) == 0)
            return entry;
    }
    return NULL;
}

static struct export_entry *find_free(struct exports *exports)
{
    for (size_t i = 0; i < EXPORTS_MAX; i++) {
        if (!exports->entries[i].export)
            return &exports->entries[i];
    }
    return NULL;
}

int exports_start(struct exports *exports, struct image *image, const json_t *request, int *fd, struct error *err)
{
    struct export_options options = {.image = image, .fd = *fd};
    const char *kind = NULL;
    int r = member_required_string(request, "name", EXPORT_NAME_MAX, &options.name, err);
    if (r == 0)
        r = member_required_string(request, "kind", 31, &kind, err);
    if (r == 0)
        r = member_u32(request, "queues", 64, &options.queues, err);
    if (r == 0)
        r = member_bool(request, "read_only", &options.read_only, err);
    if (r == 0)
        r = member_bool(request, "resumed", &options.resumed, err);
    if (r == 0)
        r = member_string(request, "serial", 20, &options.serial, err);
    if (r < 0)
        return r;
    const struct export_ops *ops = find_kind(kind);
    if (!ops)
        return error_set(err, EOPNOTSUPP, "unknown kind of export '%s'", kind);
    if (find_entry(exports, options.name))
        return error_set(err, EEXIST, "there is an export '%s' already", options.name);
    struct export_entry *entry = find_free(exports);
    if (!entry)
        return error_set(err, EBUSY, "no more than %d exports", EXPORTS_MAX);
    r = ops->start(&options, &entry->export, err);
    if (r < 0) {
        entry->export = NULL;
        return r;
    }
    *fd = -1;
    (void)snprintf(entry->name, sizeof(entry->name), "%s", options.name);
    return 0;
}

static void stop_entry(struct export_entry *entry)
{
    struct export *export = steal_ptr(&entry->export);
    export->ops->stop(export);
}

int exports_stop(struct exports *exports, const char *name, struct error *err)
{
    struct export_entry *entry = find_entry(exports, name);
    if (!entry)
        return error_set(err, ENOENT, "there is no export '%s'", name);
    stop_entry(entry);
    return 0;
}

void exports_stop_all(struct exports *exports)
{
    for (size_t i = 0; i < EXPORTS_MAX; i++) {
        if (exports->entries[i].export)
            stop_entry(&exports->entries[i]);
    }
}

void exports_resized(struct exports *exports, uint64_t size)
{
    for (size_t i = 0; i < EXPORTS_MAX; i++) {
        struct export *export = exports->entries[i].export;
        if (export)
            export->ops->resized(export, size);
    }
}

static void add_stats(json_t *object, struct export *export)
{
    struct export_stats s = {0};
    export->ops->stats(export, &s);
    const struct {
        const char *name;
        uint64_t value;
    } counters[] = {
        {"reads", s.reads},           {"writes", s.writes},           {"flushes", s.flushes}, {"discards", s.discards},
        {"read_bytes", s.read_bytes}, {"write_bytes", s.write_bytes}, {"errors", s.errors},   {"clients", s.clients},
    };
    for (size_t i = 0; i < ARRAY_SIZE(counters); i++)
        (void)json_object_set_new(object, counters[i].name, json_integer((json_int_t)counters[i].value));
}

json_t *exports_describe(const struct exports *exports, bool with_stats)
{
    json_t *list = json_array();
    for (size_t i = 0; list && i < EXPORTS_MAX; i++) {
        const struct export_entry *entry = &exports->entries[i];
        if (!entry->export)
            continue;
        json_t *object = json_pack("{s:s, s:s}", "name", entry->name, "kind", entry->export->ops->kind);
        if (object && with_stats)
            add_stats(object, entry->export);
        (void)json_array_append_new(list, object);
    }
    return list;
}
