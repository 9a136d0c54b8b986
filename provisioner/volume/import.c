// SPDX-License-Identifier: Apache-2.0
/*
 * volume-import: probe -> files -> copy -> verify -> sidecar.
 *
 * The sources are opened with the caller's rights, each time anew, and looked into by workers only. A name inside an
 * image is never followed: the caller gives the parents. Without `preserve` the chain is read into one new image;
 * with it the files are copied as they are and become the layers of the volume.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "common/checked.h"
#include "common/text.h"
#include "provisioner/node/copy.h"
#include "provisioner/node/image_lock.h"
#include "provisioner/volume/chain.h"
#include "provisioner/volume/lifecycle.h"

/* ---- the request ------------------------------------------------------------------------------------------- */

struct intent {
    struct volume_record volume;
    struct layer_record layers[IMPORT_LAYERS_MAX]; /* top first */
    size_t layer_count;
};

static bool format_known(const char *format)
{
    return format && (strcmp(format, "raw") == 0 || strcmp(format, "qcow2") == 0);
}

static int check_import(const struct import_spec *s, struct error *err)
{
    if (!s->name || !catalogue_name_valid(s->name))
        return error_set(err, EINVAL, "'%s' cannot be a volume's name", s->name ? s->name : "");
    if (s->layer_count == 0 || s->layer_count > IMPORT_LAYERS_MAX)
        return error_set(err, EINVAL, "an import needs a source and may have at most %d parents",
                         IMPORT_LAYERS_MAX - 1);
    for (size_t i = 0; i < s->layer_count; i++) {
        if (!s->layers[i].path || s->layers[i].path[0] != '/' || strlen(s->layers[i].path) >= CATALOGUE_PATH_MAX)
            return error_set(err, EINVAL, "the source and its parents need absolute paths");
        if (!format_known(s->layers[i].format))
            return error_set(err, EINVAL, "the format of '%s' must be said: raw or qcow2", s->layers[i].path);
        if (i + 1 < s->layer_count && strcmp(s->layers[i].format, "raw") == 0)
            return error_set(err, EINVAL, "'%s' is raw and cannot have a parent", s->layers[i].path);
    }
    if (s->format && !format_known(s->format))
        return error_set(err, EINVAL, "format must be qcow2 or raw");
    if (s->filesystem && !filesystem_known(s->filesystem))
        return error_set(err, EINVAL, "filesystem must be ext4, xfs or none");
    return 0;
}

static json_t *sources_to_json(const struct import_spec *s)
{
    json_t *sources = json_array();
    for (size_t i = 0; i < s->layer_count; i++)
        (void)json_array_append_new(sources,
                                    json_pack("{s:s, s:s}", "path", s->layers[i].path, "format", s->layers[i].format));
    return sources;
}

/* The request in a form that fits the record: many long paths are told by their hash alone. */
static int fill_spec(const struct import_spec *s, const struct pool_record *pool, struct volume_record *v,
                     struct error *err)
{
    CLEANUP_JSON json_t *spec = json_pack("{s:s, s:s, s:s, s:b, s:s, s:o}", "kind", "import", "pool", pool->id,
                                          "format", s->format ? s->format : "qcow2", "preserve", s->preserve,
                                          "filesystem", v->filesystem, "sources", sources_to_json(s));
    CLEANUP_FREE char *text = json_text(spec);
    if (!text)
        return error_sys(err, ENOMEM, "new volume");
    if (strlen(text) < sizeof(v->spec)) {
        text_copy(v->spec, text);
        return 0;
    }
    uint64_t hash = UINT64_C(14695981039346656037); /* FNV-1a */
    for (const char *p = text; *p; p++)
        hash = (hash ^ (unsigned char)*p) * UINT64_C(1099511628211);
    (void)snprintf(v->spec, sizeof(v->spec), "{\"kind\":\"import\",\"hash\":\"%016llx\"}", (unsigned long long)hash);
    return 0;
}

static int fill_layers(const struct import_spec *s, struct intent *intent, struct error *err)
{
    struct volume_record *v = &intent->volume;
    intent->layer_count = s->preserve ? s->layer_count : 1;
    for (size_t i = intent->layer_count; i-- > 0;) {
        struct layer_record *l = &intent->layers[i];
        *l = (struct layer_record){.created = v->created, .frozen = i > 0, .preserved = s->preserve};
        int r = catalogue_id("lay-", l->id);
        if (r < 0)
            return error_sys(err, r, "new volume");
        text_copy(l->volume_id, v->id);
        text_copy(l->pool_id, v->pool_id);
        text_copy(l->format, s->preserve ? s->layers[i].format : s->format ? s->format : "qcow2");
        if (i + 1 < intent->layer_count)
            text_copy(l->parent_id, intent->layers[i + 1].id);
    }
    text_copy(v->top_layer, intent->layers[0].id);
    return 0;
}

static int fill_intent(const struct import_spec *s, const struct pool_record *pool, struct intent *intent,
                       struct error *err)
{
    struct volume_record *v = &intent->volume;
    *v = (struct volume_record){.formatted = true, .created = time(NULL)};
    int r = catalogue_id("vol-", v->id);
    if (r < 0)
        return error_sys(err, r, "new volume");
    text_copy(v->name, s->name);
    text_copy(v->pool_id, pool->id);
    text_copy(v->kind, "block");
    text_copy(v->state, "creating");
    text_copy(v->content, "any");
    text_copy(v->filesystem, s->filesystem ? s->filesystem : "");
    r = fill_spec(s, pool, v, err);
    return r < 0 ? r : fill_layers(s, intent, err);
}

static int intent_insert(struct job *job, void *arg, struct error *err)
{
    const struct intent *intent = arg;
    int r = catalogue_volume_insert(job->manager->catalogue, &intent->volume, err);
    for (size_t i = intent->layer_count; r == 0 && i-- > 0;) /* parents first */
        r = catalogue_layer_insert(job->manager->catalogue, &intent->layers[i], err);
    return r;
}

int manager_volume_import(struct manager *m, const struct caller *caller, const struct import_spec *spec,
                          struct ticket *ret_ticket, struct error *err)
{
    struct pool_record pool = {0};
    struct intent intent;
    CLEANUP_JOB struct job *job = NULL;
    int r = caller_require(caller, CALLER_OPERATOR, err);
    if (r == 0 && spec->onto)
        return import_onto_start(m, caller, spec, ret_ticket, err);
    if (r == 0)
        r = check_import(spec, err);
    if (r == 0)
        r = volume_pool(m, spec->pool, &pool, err);
    if (r == 0)
        r = fill_intent(spec, &pool, &intent, err);
    if (r < 0)
        return r;
    r = volume_existing(m, spec->name, intent.volume.spec, ret_ticket, err);
    if (r != -ENOENT)
        return r;
    error_clear(err);
    json_t *data = json_pack("{s:o, s:b}", "sources", sources_to_json(spec), "preserve", spec->preserve);
    r = job_create(m, &job_volume_import, &intent.volume, "", caller, data, &job, err);
    if (r == 0)
        r = job_submit(&job, intent_insert, &intent, ret_ticket, err);
    return r == -EEXIST ? volume_existing(m, spec->name, intent.volume.spec, ret_ticket, err) : r;
}

/* ---- sources ----------------------------------------------------------------------------------------------- */

struct sources {
    struct blk_layer layers[IMPORT_LAYERS_MAX];
    size_t count;
};

static void sources_done(struct sources *sources)
{
    for (size_t i = 0; i < sources->count; i++) {
        int fd = sources->layers[i].fd;
        cleanup_close(&fd);
    }
    sources->count = 0;
}

int import_source_open(const struct rights *rights, const char *path, int *ret_fd, struct error *err)
{
    CLEANUP_CLOSE int fd = -1;
    struct stat st;
    int r = rights_open(rights, path, O_RDONLY, 0, &fd, err);
    if (r < 0)
        return r;
    if (fstat(fd, &st) < 0)
        return error_sys(err, errno, "look at '%s'", path);
    if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
        return error_set(err, EINVAL, "'%s' is neither a file nor a block device", path);
    r = image_lock_take(fd, IMAGE_LOCK_READER, path, err);
    if (r < 0 && r != -EOPNOTSUPP)
        return r;
    *ret_fd = steal_fd(&fd);
    return 0;
}

static int sources_open(const struct job *job, struct sources *sources, struct error *err)
{
    const json_t *list = json_object_get(job->data, "sources");
    struct rights rights;
    job_rights(job, &rights);
    for (; sources->count < json_array_size(list) && sources->count < IMPORT_LAYERS_MAX; sources->count++) {
        const json_t *source = json_array_get(list, sources->count);
        struct blk_layer *layer = &sources->layers[sources->count];
        layer->format = json_string_value(json_object_get(source, "format"));
        int r = import_source_open(&rights, json_string_value(json_object_get(source, "path")), &layer->fd, err);
        if (r < 0)
            return r;
    }
    return 0;
}

static const char *source_path(const struct job *job, size_t i)
{
    return json_string_value(json_object_get(json_array_get(json_object_get(job->data, "sources"), i), "path"));
}

static int refuse(struct error *err, const char *code, const char *path, const char *why)
{
    (void)error_set(err, EINVAL, "'%s' %s", path, why);
    return error_code(err, code);
}

/* What an image says of itself must fit what the caller said. */
static int check_info(const struct blk_info *info, const char *path, bool has_parent, struct error *err)
{
    if (info->encrypted)
        return refuse(err, "unsupported-feature", path, "is encrypted");
    if (info->external_data)
        return refuse(err, "unsupported-feature", path, "keeps its data in another file");
    if (info->corrupt)
        return refuse(err, "corrupt-image", path, "is marked as corrupt");
    if (info->backing[0] && !has_parent) {
        (void)error_set(err, EINVAL, "'%s' needs its parent '%s', which was not given", path, info->backing);
        (void)error_hint(err, "--parent FILE, if you trust that file to be the parent");
        return error_code(err, "backing-not-given");
    }
    if (!info->backing[0] && has_parent)
        return error_set(err, EINVAL, "'%s' has no parent, but one was given", path);
    return 0;
}

static int probe_all(struct job *job, const struct blk_layer *layers, size_t count, struct blk_info *infos,
                     struct error *err)
{
    struct blk_worker worker = job_worker(job);
    worker.progress = NULL;
    for (size_t i = 0; i < count; i++) {
        int r = blk_worker_probe(&worker, layers[i].fd, layers[i].format, &infos[i], err);
        if (r < 0)
            return error_prefix(err, "'%s'", source_path(job, i));
        r = check_info(&infos[i], source_path(job, i), i + 1 < count, err);
        if (r < 0)
            return r;
    }
    return 0;
}

/* ---- the steps --------------------------------------------------------------------------------------------- */

static bool preserving(const struct job *job)
{
    return json_is_true(json_object_get(job->data, "preserve"));
}

static void layer_from_info(struct layer_record *layer, const struct blk_info *info)
{
    layer->size = info->size;
    if (strcmp(layer->format, "qcow2") != 0)
        return;
    layer->cluster_size = info->cluster_size;
    layer->version = info->version;
    layer->refcount_bits = info->refcount_bits;
    layer->extended_l2 = info->extended_l2;
    (void)snprintf(layer->compression, sizeof(layer->compression), "%s", info->compression);
}

static void layer_default(struct layer_record *layer, uint64_t size)
{
    layer->size = size;
    if (strcmp(layer->format, "qcow2") != 0)
        return;
    layer->cluster_size = 65536;
    layer->version = 3;
    layer->refcount_bits = 16;
    text_copy(layer->compression, "zlib");
}

/* Record what was found out. A converted volume is rounded up; a preserved one keeps its own size. */
static int probe_record(struct job *job, const struct blk_info *infos, struct error *err)
{
    struct manager *m = job->manager;
    struct volume_record volume = {0};
    struct pool_record pool = {0};
    CLEANUP_FREE struct layer_record *layers = NULL;
    size_t count = 0;
    uint64_t size = infos[0].size;
    int r = preserving(job) ? 0 : volume_size(infos[0].size, &size, err);
    if (r == 0 && (size == 0 || size > VOLUME_SIZE_MAX))
        r = error_set(err, EINVAL, "a volume's size must lie between 1 byte and 64 TiB");
    if (r == 0)
        r = job_volume(job, &volume, err);
    if (r == 0)
        r = catalogue_pool_find(m->catalogue, volume.pool_id, &pool, err);
    if (r == 0)
        r = manager_pool_admit(m, &pool, size > volume.size ? size - volume.size : 0, err);
    if (r == 0)
        r = catalogue_layer_chain(m->catalogue, volume.top_layer, &layers, &count, err);
    if (r < 0)
        return r;
    r = catalogue_begin(m->catalogue, err);
    if (r < 0)
        return r;
    volume.size = size;
    for (size_t i = 0; r == 0 && i < count; i++) {
        if (preserving(job))
            layer_from_info(&layers[i], &infos[i]);
        else
            layer_default(&layers[i], size);
        r = catalogue_layer_update(m->catalogue, &layers[i], err);
    }
    if (r == 0)
        r = catalogue_volume_update(m->catalogue, &volume, err);
    return transaction_end(m, r, err);
}

static int step_probe(struct job *job, struct error *err)
{
    CLEANUP(sources_done) struct sources sources = {0};
    CLEANUP_FREE struct blk_info *infos = calloc(IMPORT_LAYERS_MAX, sizeof(*infos));
    if (!infos)
        return error_sys(err, ENOMEM, "import");
    int r = sources_open(job, &sources, err);
    if (r == 0)
        r = probe_all(job, sources.layers, sources.count, infos, err);
    return r < 0 ? r : probe_record(job, infos, err);
}

static int step_files(struct job *job, struct error *err)
{
    struct volume_record volume = {0};
    CLEANUP_FREE struct layer_record *layers = NULL;
    size_t count = 0;
    int r = job_volume(job, &volume, err);
    if (r == 0)
        r = catalogue_layer_chain(job->manager->catalogue, volume.top_layer, &layers, &count, err);
    for (size_t i = 0; r == 0 && i < count; i++) {
        CLEANUP_CLOSE int fd = -1;
        r = layer_file_create(job->manager, &layers[i], &fd, err);
    }
    return r;
}

static int target_open(struct job *job, const struct layer_record *layer, int *ret_fd, struct error *err)
{
    CLEANUP_POOL struct pool *pool = NULL;
    CLEANUP_CLOSE int fd = -1;
    int r = manager_pool_open(job->manager, layer->pool_id, &pool, err);
    if (r == 0)
        r = pool->ops->image_open(pool, layer->id, false, &fd, err);
    if (r == 0)
        r = image_lock_take(fd, IMAGE_LOCK_WRITER, job->record.volume_name, err);
    if (r < 0)
        return r;
    if (ftruncate(fd, 0) < 0)
        return error_sys(err, errno, "empty the image file");
    *ret_fd = steal_fd(&fd);
    return 0;
}

static int convert(struct job *job, const struct sources *sources, const struct layer_record *layer, struct error *err)
{
    CLEANUP_CLOSE int fd = -1;
    int r = target_open(job, layer, &fd, err);
    if (r < 0)
        return r;
    struct blk_worker worker = job_worker(job);
    struct blk_create to = {.format = layer->format,
                            .size = layer->size,
                            .cluster_size = layer->cluster_size,
                            .version = layer->version,
                            .refcount_bits = layer->refcount_bits};
    return blk_worker_convert(&worker, sources->layers, sources->count, fd, &to, NULL, err);
}

static int step_copy(struct job *job, struct error *err)
{
    struct volume_record volume = {0};
    CLEANUP(sources_done) struct sources sources = {0};
    CLEANUP_FREE struct layer_record *layers = NULL;
    size_t count = 0;
    int r = job_volume(job, &volume, err);
    if (r == 0)
        r = catalogue_layer_chain(job->manager->catalogue, volume.top_layer, &layers, &count, err);
    if (r == 0)
        r = sources_open(job, &sources, err);
    if (r < 0)
        return r;
    if (!preserving(job))
        return convert(job, &sources, &layers[0], err);
    struct blk_worker worker = job_worker(job);
    for (size_t i = 0; r == 0 && i < count; i++) {
        CLEANUP_CLOSE int fd = -1;
        r = target_open(job, &layers[i], &fd, err);
        if (r == 0)
            r = copy_file(sources.layers[i].fd, fd, job->cancel_fd, worker.progress, job, err);
    }
    return r;
}

/* The copies, not the sources, are what is trusted from now on: the sources may have changed meanwhile. The whole chain
 * must open, and be what was recorded. */
static int step_verify(struct job *job, struct error *err)
{
    if (!preserving(job))
        return 0;
    struct volume_record volume = {0};
    CLEANUP_CHAIN struct chain chain = {0};
    CLEANUP_FREE struct blk_info *infos = calloc(IMPORT_LAYERS_MAX, sizeof(*infos));
    if (!infos)
        return error_sys(err, ENOMEM, "import");
    int r = job_volume(job, &volume, err);
    if (r == 0)
        r = chain_open(job->manager, &volume, true, &chain, err);
    if (r == 0)
        r = probe_all(job, chain.layers, MIN(chain.count, IMPORT_LAYERS_MAX), infos, err);
    if (r < 0)
        return r;
    if (infos[0].size != volume.size)
        return error_set(err, EINVAL, "'%s' changed while it was imported", source_path(job, 0));
    bool blank = false;
    struct blk_worker worker = job_worker(job);
    return blk_worker_blank(&worker, chain.layers, chain.count, &blank, err);
}

static const struct job_step import_steps[] = {
    {.name = "probe", .run = step_probe},
    {.name = "files", .run = step_files, .undo = undo_layer_files},
    {.name = "copy", .run = step_copy},
    {.name = "verify", .run = step_verify},
    {.name = "sidecar", .run = step_sidecar, .undo = undo_sidecar},
};

const struct job_kind job_volume_import = {
    .name = "volume-import",
    .steps = import_steps,
    .step_count = ARRAY_SIZE(import_steps),
    .finish = finish_new_volume,
    .abandon = abandon_new_volume,
};
