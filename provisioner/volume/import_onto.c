// SPDX-License-Identifier: Apache-2.0
/*
 * volume-import-onto: a snapshot's export is applied to a volume that is what the export stands on. probe (what is the file
 * for, is the volume that; rows of two layers and a snapshot) -> files -> image (an empty layer over the base, the file's
 * content into it, another empty layer above) -> record (the second layer is the top, the first one the snapshot) -> sidecar.
 *
 * The volume's own layers are only read: until the record it is what it was, and its old top, which holds nothing, is removed
 * by the next merge.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/checked.h"
#include "common/text.h"
#include "provisioner/node/image_lock.h"
#include "provisioner/volume/changed.h"

/* What the file says of itself (export.c). */
struct note {
    const char *base, *base_name, *target, *target_name; /* of the JSON */
    uint64_t base_size, size;
};

static int refuse(struct error *err, int number, const char *code, const char *why)
{
    (void)error_set(err, number, "%s", why);
    return error_code(err, code);
}

/* ---- the request --------------------------------------------------------------------------------------------- */

static int onto_insert(struct job *job, void *arg, struct error *err)
{
    struct volume_record volume = {0};
    (void)arg;
    int r = job_volume(job, &volume, err);
    if (r == 0)
        r = volume_check_free(job->manager, &volume, false, err);
    return r < 0 ? r : volume_check_ready(job->manager, &volume, err);
}

int import_onto_start(struct manager *m, const struct caller *caller, const struct import_spec *spec,
                      struct ticket *ret_ticket, struct error *err)
{
    struct volume_record volume = {0};
    CLEANUP_JOB struct job *job = NULL;
    char content[ID_MAX], top[ID_MAX], snapshot[ID_MAX];
    const struct import_layer *file = &spec->layers[0];
    if (!spec->name || spec->layer_count != 1 || !file->path || file->path[0] != '/' ||
        strlen(file->path) >= CATALOGUE_PATH_MAX)
        return error_set(err, EINVAL, "an import onto a volume takes one file by its absolute path");
    if (!file->format || strcmp(file->format, "qcow2") != 0)
        return error_set(err, EINVAL, "an import onto a volume takes a qcow2 file");
    int r = catalogue_volume_find(m->catalogue, spec->name, &volume, err);
    if (r < 0)
        return r;
    r = catalogue_id("lay-", content);
    if (r == 0)
        r = catalogue_id("lay-", top);
    if (r == 0)
        r = catalogue_id("snap-", snapshot);
    if (r < 0)
        return error_sys(err, r, "import");
    json_t *data =
        json_pack("{s:s, s:s, s:s, s:s}", "source", file->path, "content", content, "top", top, "snapshot", snapshot);
    r = job_create(m, &job_volume_import_onto, &volume, "", caller, data, &job, err);
    return r < 0 ? r : job_submit(&job, onto_insert, NULL, ret_ticket, err);
}

/* ---- what the file is for ------------------------------------------------------------------------------------ */

static int open_source(const struct job *job, int *ret_fd, struct error *err)
{
    struct rights rights;
    job_rights(job, &rights);
    return import_source_open(&rights, job_get(job, "source"), ret_fd, err);
}

static int parse_note(const char *text, json_t **ret_json, struct note *ret_note, struct error *err)
{
    CLEANUP_JSON json_t *json = json_loads(text, 0, NULL);
    json_int_t version = 0, base_size = 0, size = 0;
    struct note note = {0};
    if (!json || json_unpack(json, "{s:I, s:s, s:s, s:s, s:s, s:I, s:I}", "platter", &version, "base", &note.base,
                             "base_name", &note.base_name, "target", &note.target, "target_name", &note.target_name,
                             "base_size", &base_size, "size", &size) < 0)
        return refuse(err, EINVAL, "not-an-export", "the file does not say which snapshot it is an export of");
    if (version != 1)
        return refuse(err, EOPNOTSUPP, "unsupported-feature", "the file was written by a newer platter");
    if (!note.target[0] || strlen(note.target) >= ID_MAX || strlen(note.base) >= ID_MAX ||
        !catalogue_name_valid(note.target_name) || base_size < 0 || size <= 0 || size < base_size ||
        (uint64_t)size > VOLUME_SIZE_MAX)
        return refuse(err, EINVAL, "not-an-export", "what the file says of itself cannot be");
    note.base_size = (uint64_t)base_size;
    note.size = (uint64_t)size;
    *ret_note = note;
    *ret_json = json_incref(json);
    return 0;
}

/* The file's note; a job that goes on has it already. */
static int read_note(struct job *job, json_t **ret_json, struct note *ret_note, struct error *err)
{
    if (!job_get(job, "note")[0]) {
        CLEANUP_CLOSE int fd = -1;
        struct blk_info info = {0};
        struct blk_worker worker = job_worker(job);
        int r = open_source(job, &fd, err);
        if (r == 0)
            r = blk_worker_probe(&worker, fd, "qcow2", &info, err);
        if (r == 0)
            r = job_set(job, "note", info.note, err);
        if (r < 0)
            return r;
    }
    return parse_note(job_get(job, "note"), ret_json, ret_note, err);
}

/* ---- is the volume what it stands on ------------------------------------------------------------------------- */

/* A full export: nothing was ever written to the volume. */
static int check_blank(const struct volume_record *volume, const struct note *note, struct error *err)
{
    if (strcmp(volume->content, "blank") != 0)
        return refuse(err, EINVAL, "wrong-base", "the file is a full export: the volume must be new and never used");
    if (volume->size != note->size) {
        (void)error_set(err, EINVAL, "the file has %llu bytes, volume '%s' has %llu", (unsigned long long)note->size,
                        volume->name, (unsigned long long)volume->size);
        return error_code(err, "size-mismatch");
    }
    return 0;
}

/* Is `layer` a snapshot that equals the file's base? */
static bool layer_is_base(struct manager *m, const struct volume_record *volume, const char *layer,
                          const struct note *note)
{
    CLEANUP_FREE struct snapshot_record *list = NULL;
    struct snapshot_record s = {0};
    size_t count = 0;
    bool found = catalogue_snapshot_by_id(m->catalogue, note->base, &s, NULL) == 0 && strcmp(s.layer_id, layer) == 0;
    if (!found && catalogue_snapshot_list(m->catalogue, volume->id, NULL, UINT32_MAX, &list, &count, NULL) < 0)
        return false;
    for (size_t i = 0; i < count && !found; i++)
        found = strcmp(list[i].layer_id, layer) == 0 && strcmp(list[i].origin, note->base) == 0;
    return found;
}

/* Has the volume the base, but as a copy beside its top? */
static bool base_is_reflink(struct manager *m, const struct volume_record *volume, const struct note *note)
{
    CLEANUP_FREE struct snapshot_record *list = NULL;
    size_t count = 0;
    if (catalogue_snapshot_list(m->catalogue, volume->id, NULL, UINT32_MAX, &list, &count, NULL) < 0)
        return false;
    for (size_t i = 0; i < count; i++) {
        if (strcmp(list[i].id, note->base) == 0 || strcmp(list[i].origin, note->base) == 0)
            return true;
    }
    return false;
}

static int check_unchanged(struct job *job, const struct volume_record *volume, const struct note *note,
                           struct error *err)
{
    CLEANUP_CHAIN struct chain chain = {0};
    CLEANUP_FREE struct blk_changed *found = calloc(1, sizeof(*found));
    struct blk_worker worker = job_worker(job);
    if (!found)
        return error_sys(err, ENOMEM, "import");
    int r = chain_open(job->manager, volume, true, &chain, err);
    if (r == 0)
        r = blk_worker_changed(&worker, chain.layers, chain.count, 1, 0, 1, found, err);
    if (r < 0)
        return r;
    if (found->count || found->size != note->base_size) {
        (void)error_set(err, EBUSY, "volume '%s' was changed since snapshot '%s'", volume->name, note->base_name);
        return error_code(err, "changed-since");
    }
    return 0;
}

/* The layer that the file stands on. */
static int find_base(struct job *job, const struct volume_record *volume, const struct note *note,
                     struct layer_record *ret_base, struct error *err)
{
    struct manager *m = job->manager;
    struct layer_record top = {0};
    int r = volume_check_exclusive(job, err);
    if (r == 0)
        r = catalogue_layer_find(m->catalogue, volume->top_layer, &top, err);
    if (r < 0)
        return r;
    if (!note->base[0]) {
        *ret_base = top;
        return check_blank(volume, note, err);
    }
    if (!top.parent_id[0] && strcmp(top.format, "raw") == 0 && base_is_reflink(m, volume, note)) {
        (void)error_set(err, EOPNOTSUPP,
                        "snapshot '%s' is a raw file that shares blocks (reflink): it is not known whether the volume "
                        "was changed since",
                        note->base_name);
        return error_hint(err, "import a full export, or keep the volume as qcow2");
    }
    if (!top.parent_id[0] || !layer_is_base(m, volume, top.parent_id, note)) {
        (void)error_set(err, EINVAL, "the file stands on snapshot '%s' (%s), which is not the newest of volume '%s'",
                        note->base_name, note->base, volume->name);
        return error_code(err, "wrong-base");
    }
    r = check_unchanged(job, volume, note, err);
    return r < 0 ? r : catalogue_layer_find(m->catalogue, top.parent_id, ret_base, err);
}

/* ---- rows ---------------------------------------------------------------------------------------------------- */

/* Two layers come on top. */
static int check_depth(struct manager *m, const struct layer_record *base, struct error *err)
{
    CLEANUP_FREE struct layer_record *layers = NULL;
    size_t count = 0;
    int r = catalogue_layer_chain(m->catalogue, base->id, &layers, &count, err);
    if (r == 0 && count + 2 > BLK_LAYERS_MAX - 1)
        r = refuse(err, E2BIG, "chain-too-long", "the volume has as many layers as one image can have");
    return r;
}

static int insert_layer(struct job *job, const char *id, const struct volume_record *volume,
                        const struct layer_record *parent, uint64_t size, struct layer_record *ret_layer,
                        struct error *err)
{
    int r = overlay_fill(volume, parent, size, ret_layer, err);
    if (r < 0)
        return r;
    text_copy_bounded(ret_layer->id, sizeof(ret_layer->id), id);
    return catalogue_layer_insert(job->manager->catalogue, ret_layer, err);
}

static int insert_rows(struct job *job, const struct volume_record *volume, const struct note *note,
                       const struct layer_record *base, struct error *err)
{
    struct layer_record content = {0}, top = {0};
    struct pool_record pool = {0};
    struct manager *m = job->manager;
    struct snapshot_record s = {.size = note->size, .created = time(NULL), .formatted = true};
    s.behind = volume->behind || note->size > volume->size;
    text_copy_bounded(s.id, sizeof(s.id), job_get(job, "snapshot"));
    text_copy_bounded(s.layer_id, sizeof(s.layer_id), job_get(job, "content"));
    text_copy_bounded(s.name, sizeof(s.name), note->target_name);
    text_copy_bounded(s.origin, sizeof(s.origin), note->target);
    text_copy(s.volume_id, volume->id);
    text_copy(s.state, "creating");
    text_copy(s.consistency, "detached");
    text_copy(s.filesystem, volume->formatted ? volume->filesystem : ""); /* found by looking at the first mount */
    text_copy(s.content, "any");
    int r = catalogue_pool_find(m->catalogue, volume->pool_id, &pool, err);
    if (r == 0)
        r = manager_pool_admit(m, &pool, note->size - MIN(volume->size, note->size), err);
    if (r == 0)
        r = insert_layer(job, s.layer_id, volume, base, note->size, &content, err);
    if (r == 0)
        r = insert_layer(job, job_get(job, "top"), volume, &content, note->size, &top, err);
    return r < 0 ? r : catalogue_snapshot_insert(m->catalogue, &s, err);
}

static bool rows_are_there(const struct job *job)
{
    struct snapshot_record s = {0};
    return catalogue_snapshot_by_id(job->manager->catalogue, job_get(job, "snapshot"), &s, NULL) == 0;
}

static int step_probe(struct job *job, struct error *err)
{
    struct manager *m = job->manager;
    CLEANUP_JSON json_t *json = NULL;
    struct volume_record volume = {0};
    struct layer_record base = {0};
    struct snapshot_record same = {0};
    struct note note;
    if (rows_are_there(job))
        return 0;
    int r = job_set(job, "note", "", err); /* read it anew */
    if (r == 0)
        r = job_volume(job, &volume, err);
    if (r == 0)
        r = read_note(job, &json, &note, err);
    if (r == 0)
        r = find_base(job, &volume, &note, &base, err);
    if (r == 0)
        r = check_depth(m, &base, err);
    if (r == 0 && catalogue_snapshot_find(m->catalogue, volume.id, note.target_name, &same, NULL) == 0)
        r = error_set(err, EEXIST, "volume '%s' has a snapshot '%s' already", volume.name, note.target_name);
    if (r == 0)
        r = job_save(job, err); /* the note stays with the rows that were made for it */
    if (r == 0)
        r = catalogue_begin(m->catalogue, err);
    return r < 0 ? r : transaction_end(m, insert_rows(job, &volume, &note, &base, err), err);
}

/* ---- files --------------------------------------------------------------------------------------------------- */

/* The overlay steps work on the layer that the job calls "layer". */
static int for_layer(struct job *job, const char *which, int (*step)(struct job *job, struct error *err),
                     struct error *err)
{
    int r = job_set(job, "layer", job_get(job, which), err);
    return r < 0 ? r : step(job, err);
}

static int step_files(struct job *job, struct error *err)
{
    int r = for_layer(job, "content", step_overlay_file, err);
    return r < 0 ? r : for_layer(job, "top", step_overlay_file, err);
}

static int undo_files(struct job *job, struct error *err)
{
    int r = for_layer(job, "top", undo_overlay_file, err);
    return r < 0 ? r : for_layer(job, "content", undo_overlay_file, err);
}

/* An empty layer of the base's size over the base, open for writing; behind it the base's chain. */
static int open_content(struct job *job, const struct layer_record *content, uint64_t size, struct blk_layer *ret_layer,
                        struct error *err)
{
    struct layer_record parent = {0};
    CLEANUP_CLOSE int fd = -1;
    char backing[ID_MAX + 8];
    int r = catalogue_layer_find(job->manager->catalogue, content->parent_id, &parent, err);
    if (r == 0)
        r = layer_file_create(job->manager, content, &fd, err);
    if (r < 0)
        return r;
    (void)snprintf(backing, sizeof(backing), "%s.img", parent.id); /* for other programs; ours go by the catalogue */
    struct blk_worker worker = job_worker(job);
    struct blk_create create = {
        .format = content->format,
        .size = size,
        .cluster_size = content->cluster_size,
        .version = content->version,
        .extended_l2 = content->extended_l2,
        .refcount_bits = content->refcount_bits,
        .backing = backing,
        .backing_format = parent.format,
    };
    r = blk_worker_create(&worker, fd, &create, err);
    if (r < 0)
        return r;
    *ret_layer = (struct blk_layer){.format = "qcow2", .fd = steal_fd(&fd)};
    return 0;
}

static int apply(struct job *job, const struct layer_record *content, const struct note *note, struct error *err)
{
    struct manager *m = job->manager;
    struct volume_record base = {0};
    CLEANUP_CHAIN struct chain chain = {0};
    CLEANUP_CLOSE int source = -1;
    struct blk_layer layers[BLK_LAYERS_MAX];
    struct blk_worker worker = job_worker(job);
    struct blk_import import = {.note = job_get(job, "note"), .base_size = note->base_size, .size = note->size};
    if (!note->base[0])
        import.base_size = note->size; /* a blank volume of the same size */
    int r = job_volume(job, &base, err);
    if (r < 0)
        return r;
    text_copy(base.top_layer, content->parent_id);
    r = chain_open(m, &base, true, &chain, err);
    if (r == 0)
        r = open_source(job, &source, err);
    if (r == 0)
        r = open_content(job, content, import.base_size, &layers[0], err);
    if (r < 0)
        return r;
    memcpy(layers + 1, chain.layers, chain.count * sizeof(layers[0])); /* fewer than would fill it: check_depth */
    uint64_t bytes = 0;
    r = blk_worker_import_onto(&worker, source, layers, chain.count + 1, &import, &bytes, err);
    close_fd(&layers[0].fd);
    return r;
}

static int step_image(struct job *job, struct error *err)
{
    CLEANUP_JSON json_t *json = NULL;
    struct layer_record content = {0};
    struct note note;
    int r = read_note(job, &json, &note, err);
    if (r == 0)
        r = catalogue_layer_find(job->manager->catalogue, job_get(job, "content"), &content, err);
    if (r == 0)
        r = apply(job, &content, &note, err);
    return r < 0 ? r : for_layer(job, "top", step_overlay_image, err);
}

/* ---- the record ---------------------------------------------------------------------------------------------- */

static int freeze_row(struct job *job, const char *id, struct error *err)
{
    struct layer_record layer = {0};
    int r = catalogue_layer_find(job->manager->catalogue, id, &layer, err);
    layer.frozen = true;
    return r < 0 ? r : catalogue_layer_update(job->manager->catalogue, &layer, err);
}

static int step_record(struct job *job, struct error *err)
{
    struct manager *m = job->manager;
    struct volume_record volume = {0};
    struct snapshot_record s = {0};
    struct layer_record content = {0};
    int r = catalogue_begin(m->catalogue, err);
    if (r < 0)
        return r;
    r = job_volume(job, &volume, err);
    if (r == 0)
        r = catalogue_snapshot_by_id(m->catalogue, job_get(job, "snapshot"), &s, err);
    if (r == 0)
        r = catalogue_layer_find(m->catalogue, s.layer_id, &content, err);
    if (r == 0)
        r = freeze_row(job, content.parent_id, err);
    if (r == 0)
        r = freeze_row(job, content.id, err);
    if (r == 0) {
        snapshot_view(&volume, &s);
        text_copy_bounded(volume.top_layer, sizeof(volume.top_layer), job_get(job, "top"));
        r = catalogue_volume_update(m->catalogue, &volume, err);
    }
    if (r == 0) {
        text_copy(s.state, "available");
        r = catalogue_snapshot_update(m->catalogue, &s, err);
    }
    return transaction_end(m, r, err);
}

static const struct job_step onto_steps[] = {
    {.name = "probe", .run = step_probe},
    {.name = "files", .run = step_files, .undo = undo_files},
    {.name = "image", .run = step_image},
    {.name = "record", .run = step_record, .final = true},
    {.name = "sidecar", .run = step_sidecar, .final = true},
};

static int finish_onto(struct job *job, struct error *err)
{
    (void)err;
    event_record(job->manager, "volume.imported", job->record.volume_id,
                 json_pack("{s:s, s:s}", "name", job->record.volume_name, "snapshot", job_get(job, "snapshot")));
    return 0;
}

static int abandon_onto(struct job *job, const struct error *cause, bool undone, struct error *err)
{
    struct catalogue *catalogue = job->manager->catalogue;
    (void)cause;
    if (!undone || !rows_are_there(job))
        return 0; /* what is left is a snapshot in state "creating", which can be deleted */
    int r = catalogue_snapshot_delete(catalogue, job_get(job, "snapshot"), err);
    if (r == 0)
        r = catalogue_layer_delete(catalogue, job_get(job, "top"), err);
    return r < 0 ? r : catalogue_layer_delete(catalogue, job_get(job, "content"), err);
}

const struct job_kind job_volume_import_onto = {
    .name = "volume-import-onto",
    .steps = onto_steps,
    .step_count = ARRAY_SIZE(onto_steps),
    .finish = finish_onto,
    .abandon = abandon_onto,
};
