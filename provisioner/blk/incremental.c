// SPDX-License-Identifier: Apache-2.0
#include "provisioner/blk/incremental.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/checked.h"
#include "common/cleanup.h"
#include "provisioner/blk/changed.h"
#include "provisioner/blk/commit.h"
#include "provisioner/blk/members.h"

#define PAGE_MAX 1024u /* ranges in one answer, which is one line of the protocol */

static int answer_number(json_t *answer, const char *name, uint64_t value, struct error *err)
{
    return json_object_set_new(answer, name, json_integer((json_int_t)value)) < 0 ? error_sys(err, ENOMEM, "answer")
                                                                                  : 0;
}

static int finish(struct image *written, int r, struct error *err)
{
    int closed = image_close(written, r == 0 ? err : NULL);
    return r < 0 ? r : closed;
}

/* ---- changed ------------------------------------------------------------------------------------------------- */

static int answer_page(const struct changed_page *page, uint64_t size, json_t *answer, struct error *err)
{
    json_t *ranges = json_array();
    int r = json_object_set_new(answer, "ranges", ranges);
    for (size_t i = 0; r == 0 && i < page->count; i++)
        r = json_array_append_new(ranges, json_pack("[I, I, b]", (json_int_t)page->ranges[i].offset,
                                                    (json_int_t)page->ranges[i].length, page->ranges[i].zero));
    if (r < 0)
        return error_sys(err, ENOMEM, "answer");
    r = answer_number(answer, "next", page->next, err);
    return r < 0 ? r : answer_number(answer, "size", size, err);
}

int incremental_changed(const json_t *request, int *fds, size_t fd_count, struct convert_progress *progress,
                        json_t *answer, struct error *err)
{
    struct layer_list list;
    struct image *image = NULL;
    struct image_geometry geometry;
    uint32_t since, limit;
    uint64_t offset;
    int r = member_u32(request, "since", MEMBERS_LAYERS_MAX, &since, err);
    if (r == 0)
        r = member_u32(request, "limit", INT32_MAX, &limit, err);
    if (r == 0)
        r = member_u64(request, "offset", INT64_MAX, &offset, err);
    if (r == 0)
        r = layers_take(request, "layers", fds, fd_count, false, &list, err);
    if (r < 0)
        return r;
    r = layers_open_image(&list, &(struct image_options){.read_only = true}, &image, err);
    layers_close(&list);
    if (r < 0)
        return r;
    CLEANUP_FREE struct changed_range *ranges = calloc(PAGE_MAX, sizeof(*ranges));
    struct changed_page page = {.ranges = ranges, .max = limit && limit < PAGE_MAX ? limit : PAGE_MAX};
    image_geometry(image, &geometry);
    r = ranges ? changed_list(image, since, offset, progress, &page, err) : error_sys(err, ENOMEM, "list what changed");
    (void)image_close(image, NULL); /* only read */
    return r < 0 ? r : answer_page(&page, geometry.size, answer, err);
}

/* ---- export_since -------------------------------------------------------------------------------------------- */

/* The base's layers a second time, under the new file: so zeros that it needs are told from zeros that it does not. */
static int open_over_base(uint32_t since, const struct layer_list *source, struct io_file *file, const char *format,
                          int *base, struct image **ret_target, struct error *err)
{
    struct layer_list list = {.count = 1, .layers[0] = {format, file}};
    int r = 0;
    for (size_t i = since; r == 0 && i < source->count; i++) {
        struct image_layer *layer = &list.layers[list.count];
        layer->format = source->layers[i].format;
        r = file_take(&base[i - since], false, &layer->file, err);
        list.count += r == 0;
    }
    if (r == 0)
        r = layers_open_image(&list, &(struct image_options){0}, ret_target, err);
    layers_close(&list);
    return r;
}

/* Make the file behind *fd, which must be empty, an image of `size` bytes. */
static int create_file(const json_t *to, int *fd, uint64_t size, const char **ret_format, struct io_file **ret_file,
                       struct error *err)
{
    struct image_create_options options;
    struct io_file *file = NULL;
    uint64_t length = 0;
    int r = members_create(to, ret_format, &options, err);
    if (r < 0)
        return r;
    if (!options.backing || !options.backing_format)
        return error_set(err, EINVAL, "an incremental file names its base");
    r = file_take(fd, true, &file, err);
    if (r < 0)
        return r;
    options.size = size;
    r = io_file_length(file, &length);
    if (r < 0)
        (void)error_sys(err, r, "look at the new file");
    else if (length)
        r = error_set(err, EEXIST, "the file for the new image is not empty");
    else
        r = image_create(file, *ret_format, &options, err);
    if (r < 0)
        file = io_file_close(file);
    *ret_file = file;
    return r;
}

static int export_from(const json_t *request, const struct layer_list *layers, struct image *source, uint32_t since,
                       int *base, int *target_fd, struct convert_progress *progress, uint64_t *ret_bytes,
                       struct error *err)
{
    struct image_geometry geometry;
    struct image *target = NULL;
    struct io_file *file = NULL;
    const char *format;
    image_geometry(source, &geometry);
    int r = create_file(json_object_get(request, "to"), target_fd, geometry.size, &format, &file, err);
    if (r == 0)
        r = open_over_base(since, layers, file, format, base, &target, err);
    if (r < 0)
        return r;
    r = commit_layers(source, since, target, 0, progress, ret_bytes, err);
    return finish(target, r, err);
}

/* Copies of fds[since..count) in ret_base, for a second look at these files. */
static int copy_descriptors(const int *fds, size_t since, size_t count, int *ret_base, struct error *err)
{
    for (size_t i = since; i < count; i++) {
        ret_base[i - since] = fcntl(fds[i], F_DUPFD_CLOEXEC, 0);
        if (ret_base[i - since] < 0)
            return error_sys(err, errno, "open the base");
    }
    return 0;
}

int incremental_export(const json_t *request, int *fds, size_t fd_count, struct convert_progress *progress,
                       json_t *answer, struct error *err)
{
    struct layer_list list, formats;
    struct image *source = NULL;
    int base[MEMBERS_LAYERS_MAX];
    uint32_t since;
    uint64_t bytes = 0;
    memset(base, -1, sizeof(base));
    int r = member_u32(request, "since", MEMBERS_LAYERS_MAX, &since, err);
    if (r < 0)
        return r;
    if (fd_count < 3 || since == 0 || since >= fd_count - 1 || fd_count - 1 - since >= MEMBERS_LAYERS_MAX)
        return error_set(err, EINVAL, "%zu descriptors came for a file with the upper %u layers", fd_count, since);
    r = copy_descriptors(fds, since, fd_count - 1, base, err);
    if (r == 0)
        r = layers_take(request, "layers", fds, fd_count - 1, false, &list, err);
    if (r == 0) {
        formats = list; /* their files are the image's soon */
        r = layers_open_image(&list, &(struct image_options){.read_only = true}, &source, err);
        layers_close(&list);
    }
    if (r == 0) {
        r = export_from(request, &formats, source, since, base, &fds[fd_count - 1], progress, &bytes, err);
        (void)image_close(source, NULL); /* only read */
    }
    for (size_t i = 0; i < MEMBERS_LAYERS_MAX; i++)
        close_fd(&base[i]);
    return r < 0 ? r : answer_number(answer, "bytes", bytes, err);
}

/* ---- import_onto --------------------------------------------------------------------------------------------- */

struct expected {
    const char *note;   /* the file's */
    uint64_t base_size; /* the image's */
    uint64_t size;      /* the file's */
    uint32_t unchanged; /* so many upper layers of the image must hold nothing */
};

static int take_expected(const json_t *request, struct expected *e, struct error *err)
{
    int r = member_required_string(request, "note", IMAGE_NOTE_MAX, &e->note, err);
    if (r == 0)
        r = member_u64(request, "base_size", INT64_MAX, &e->base_size, err);
    if (r == 0)
        r = member_u64(request, "size", INT64_MAX, &e->size, err);
    return r < 0 ? r : member_u32(request, "unchanged", MEMBERS_LAYERS_MAX, &e->unchanged, err);
}

static int refuse(struct error *err, int number, const char *code, const char *what)
{
    (void)error_set(err, number, "%s", what);
    return error_code(err, code);
}

/* The file is whole and the one that is meant. */
static int check_file(const struct image_layer *layer, const struct expected *e, struct error *err)
{
    struct image_info info = {0};
    struct image_check check = {0};
    int r = image_probe(layer->file, layer->format, &info, err);
    if (r < 0)
        return r;
    if (strcmp(info.note, e->note) != 0)
        return refuse(err, EINVAL, "wrong-file", "the file says that it is for something else");
    if (info.size != e->size || e->size < e->base_size)
        return refuse(err, EINVAL, "size-mismatch", "the file has another size than it says");
    r = image_check(layer->file, layer->format, &(struct image_check_options){0}, &check, err);
    if (r < 0)
        return r;
    if (check.low_counts || check.bad_entries || check.double_use || check.dirty || check.corrupt)
        return refuse(err, EUCLEAN, "damaged-file", "the file's tables are damaged");
    return 0;
}

/* The image is what the file stands on. */
static int check_base(struct image *image, const struct expected *e, struct error *err)
{
    struct image_geometry geometry;
    struct changed_range range;
    struct changed_page page = {.ranges = &range, .max = 1};
    image_geometry(image, &geometry);
    if (geometry.size != e->base_size) {
        (void)error_set(err, EINVAL, "the file stands on %ju bytes, the image has %ju", (uintmax_t)e->base_size,
                        (uintmax_t)geometry.size);
        return error_code(err, "size-mismatch");
    }
    int r = e->unchanged ? changed_list(image, e->unchanged, 0, NULL, &page, err) : 0;
    if (r == 0 && page.count)
        r = refuse(err, EBUSY, "changed-since", "the image was written since its state was the file's base");
    return r;
}

int incremental_import(const json_t *request, int *fds, size_t fd_count, struct convert_progress *progress,
                       json_t *answer, struct error *err)
{
    struct layer_list all, upper = {.count = 1};
    struct image *file = NULL, *image = NULL;
    struct expected expected = {0};
    uint64_t bytes = 0;
    int r = take_expected(request, &expected, err);
    if (r == 0)
        r = layers_take_writable(request, "layers", fds, fd_count, 1, &all, err);
    if (r < 0)
        return r;
    if (all.count < 2) {
        layers_close(&all);
        return error_set(err, EINVAL, "an import takes a file and the layers of an image");
    }
    upper.layers[0] = all.layers[0];
    memmove(all.layers, all.layers + 1, --all.count * sizeof(all.layers[0]));
    r = check_file(&upper.layers[0], &expected, err);
    if (r == 0)
        r = layers_open_image(&upper, &(struct image_options){.read_only = true, .alone = true}, &file, err);
    if (r == 0)
        r = layers_open_image(&all, &(struct image_options){0}, &image, err);
    layers_close(&upper);
    layers_close(&all);
    if (r == 0)
        r = check_base(image, &expected, err);
    if (r == 0)
        r = commit_layers(file, 1, image, 0, progress, &bytes, err);
    (void)image_close(file, NULL); /* only read */
    r = finish(image, r, err);
    return r < 0 ? r : answer_number(answer, "bytes", bytes, err);
}
