// SPDX-License-Identifier: Apache-2.0
/* What a snapshot holds, and what changed from one snapshot to another: looked up in the layers by a worker. */
#include "provisioner/volume/changed.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/checked.h"
#include "common/text.h"

#define STALL_MS 60000 /* the caller waits for the answer */

int changed_since_find(struct manager *m, const struct volume_record *volume, const char *since,
                       struct snapshot_record *ret_base, struct error *err)
{
    struct volume_record other = {0};
    int r;
    if (strchr(since, '@'))
        r = snapshot_find(m, since, &other, ret_base, err);
    else
        r = catalogue_snapshot_find(m->catalogue, volume->id, since, ret_base, err);
    if (r == -ENOENT && !strchr(since, '@'))
        r = error_set(err, ENOENT, "volume '%s' has no snapshot '%s'", volume->name, since);
    if (r == 0 && strcmp(ret_base->state, "available") != 0)
        r = error_set(err, EINVAL, "snapshot '%s' is %s", since, ret_base->state);
    return r;
}

/* A raw layer alone below nothing: a copy by reflink, or what one was made of. */
static bool stands_alone(struct manager *m, const char *layer)
{
    struct layer_record record = {0};
    struct layer_use use = {0};
    return catalogue_layer_find(m->catalogue, layer, &record, NULL) == 0 && strcmp(record.format, "raw") == 0 &&
           !record.parent_id[0] && catalogue_layer_use(m->catalogue, &record, &use, NULL) == 0 && use.children == 0;
}

int changed_layers(struct manager *m, const struct layer_record *chain, size_t count,
                   const struct snapshot_record *base, unsigned *ret_layers, struct error *err)
{
    for (size_t i = 0; i < count; i++) {
        if (strcmp(chain[i].id, base->layer_id) == 0) {
            *ret_layers = (unsigned)i;
            return 0;
        }
    }
    if (stands_alone(m, base->layer_id)) {
        (void)error_set(err, EOPNOTSUPP,
                        "snapshot '%s' is a raw file that shares blocks (reflink): what changed since is not known",
                        base->name);
        return error_hint(err, "export whole snapshots, or keep the volume as qcow2: its layers know what changed");
    }
    (void)error_set(err, EINVAL, "it does not stand on snapshot '%s'", base->name);
    (void)error_hint(err, "name an older snapshot of the same volume that was not restored over");
    return error_code(err, "not-an-ancestor");
}

/* No job: so merges of its own volume must give way, too. They may have put another chain in the place of the one that
 * was just looked up. */
static int open_chain(struct manager *m, const struct volume_record *view, struct chain *ret_chain, struct error *err)
{
    struct volume_record reader = *view;
    struct error first = ERROR_INIT;
    reader.id[0] = '\0';
    int r = chain_open(m, &reader, true, ret_chain, &first);
    if (r == -ENOENT)
        return chain_open(m, &reader, true, ret_chain, err);
    return r < 0 ? error_copy(err, &first) : 0;
}

static json_t *ranges_to_json(const struct blk_changed *found)
{
    json_t *ranges = json_array();
    for (size_t i = 0; i < found->count; i++)
        (void)json_array_append_new(ranges, json_pack("{s:I, s:I, s:b}", "offset", (json_int_t)found->ranges[i].offset,
                                                      "length", (json_int_t)found->ranges[i].length, "zero",
                                                      found->ranges[i].zero));
    return ranges;
}

/* Layers 0 = all. */
static int look(struct manager *m, const struct chain *chain, unsigned layers, const struct changed_query *query,
                struct blk_changed *ret_found, struct error *err)
{
    const struct blk_worker worker = {.binary = m->blk_program, .stall_ms = STALL_MS};
    return blk_worker_changed(&worker, chain->layers, chain->count, layers, query->offset, query->limit, ret_found,
                              err);
}

int manager_snapshot_changed(struct manager *m, const char *snapshot, const struct changed_query *query,
                             json_t **ret_changed, struct error *err)
{
    struct volume_record view = {0};
    struct snapshot_record s = {0}, base = {0};
    CLEANUP_CHAIN struct chain chain = {0};
    CLEANUP_FREE struct blk_changed *found = calloc(1, sizeof(*found));
    unsigned layers = 0;
    if (!found)
        return error_sys(err, ENOMEM, "changed blocks");
    int r = strchr(snapshot, '@') ? volume_or_snapshot_find(m, snapshot, &view, &s, err)
                                  : error_set(err, EINVAL, "'%s' is not VOLUME@SNAPSHOT", snapshot);
    if (r == 0 && query->since)
        r = changed_since_find(m, &view, query->since, &base, err);
    if (r == 0)
        r = open_chain(m, &view, &chain, err);
    if (r == 0 && query->since)
        r = changed_layers(m, chain.records, chain.count, &base, &layers, err);
    if (r < 0)
        return r;
    if (query->since && layers == 0) /* the same snapshot: nothing; 0 would ask for all */
        found->next = found->size = s.size;
    else
        r = look(m, &chain, layers, query, found, err);
    if (r < 0)
        return r;
    bool more = found->next < found->size;
    *ret_changed = json_pack("{s:s, s:s*, s:I, s:o, s:o*}", "snapshot", snapshot, "since", query->since, "size",
                             (json_int_t)found->size, "ranges", ranges_to_json(found), "next",
                             more ? json_integer((json_int_t)found->next) : NULL);
    return *ret_changed ? 0 : error_sys(err, ENOMEM, "changed blocks");
}
