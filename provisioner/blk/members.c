// SPDX-License-Identifier: Apache-2.0
#include "provisioner/blk/members.h"

#include <errno.h>
#include <string.h>

#include "common/checked.h"
#include "common/cleanup.h"

static const json_t *present(const json_t *object, const char *name)
{
    const json_t *value = json_object_get(object, name);
    return json_is_null(value) ? NULL : value;
}

int member_u64(const json_t *object, const char *name, uint64_t max, uint64_t *ret, struct error *err)
{
    const json_t *value = present(object, name);
    json_int_t number = json_integer_value(value);
    if (value && (!json_is_integer(value) || number < 0 || (uint64_t)number > max))
        return error_set(err, EINVAL, "member '%s' is not an integer of 0 to %ju", name, (uintmax_t)max);
    *ret = (uint64_t)number;
    return 0;
}

int member_u32(const json_t *object, const char *name, uint32_t max, uint32_t *ret, struct error *err)
{
    uint64_t value;
    int r = member_u64(object, name, max, &value, err);
    if (r < 0)
        return r;
    *ret = (uint32_t)value;
    return 0;
}

int member_bool(const json_t *object, const char *name, bool *ret, struct error *err)
{
    const json_t *value = present(object, name);
    if (value && !json_is_boolean(value))
        return error_set(err, EINVAL, "member '%s' is not true or false", name);
    *ret = json_is_true(value);
    return 0;
}

int member_string(const json_t *object, const char *name, size_t max, const char **ret, struct error *err)
{
    const json_t *value = present(object, name);
    if (value && (!json_is_string(value) || json_string_length(value) > max))
        return error_set(err, EINVAL, "member '%s' is not a string of at most %zu bytes", name, max);
    *ret = json_string_value(value);
    return 0;
}

int member_required_string(const json_t *object, const char *name, size_t max, const char **ret, struct error *err)
{
    const char *value;
    int r = member_string(object, name, max, &value, err);
    if (r < 0)
        return r;
    if (!value || !value[0])
        return error_set(err, EINVAL, "member '%s' is missing", name);
    *ret = value;
    return 0;
}

int members_create(const json_t *object, const char **ret_format, struct image_create_options *ret_options,
                   struct error *err)
{
    struct image_create_options o = {0};
    const char *format;
    int r = member_required_string(object, "format", 31, &format, err);
    if (r == 0)
        r = member_u64(object, "size", INT64_MAX, &o.size, err);
    if (r == 0)
        r = member_u32(object, "cluster_size", INT32_MAX, &o.cluster_size, err);
    if (r == 0)
        r = member_u32(object, "version", 255, &o.version, err);
    if (r == 0)
        r = member_bool(object, "extended_l2", &o.extended_l2, err);
    if (r == 0)
        r = member_string(object, "compression", 31, &o.compression, err);
    if (r == 0)
        r = member_u32(object, "refcount_bits", 255, &o.refcount_bits, err);
    if (r == 0)
        r = member_string(object, "backing", 1023, &o.backing, err);
    if (r == 0)
        r = member_string(object, "backing_format", 31, &o.backing_format, err);
    if (r == 0)
        r = member_bool(object, "preallocate", &o.preallocate, err);
    if (r == 0)
        r = member_string(object, "note", IMAGE_NOTE_MAX, &o.note, err);
    if (r < 0)
        return r;
    *ret_format = format;
    *ret_options = o;
    return 0;
}

int file_take(int *fd, bool writable, struct io_file **ret_file, struct error *err)
{
    struct io_file_options options = {.writable = writable};
    return io_file_open(steal_fd(fd), &options, ret_file, err);
}

int layers_take(const json_t *object, const char *name, int *fds, size_t fd_count, bool writable,
                struct layer_list *list, struct error *err)
{
    return layers_take_writable(object, name, fds, fd_count, writable ? 0 : SIZE_MAX, list, err);
}

int layers_take_writable(const json_t *object, const char *name, int *fds, size_t fd_count, size_t writable,
                         struct layer_list *list, struct error *err)
{
    *list = (struct layer_list){0};
    const json_t *layers = json_object_get(object, name);
    size_t count = json_array_size(layers);
    if (!json_is_array(layers) || count == 0 || count > MEMBERS_LAYERS_MAX)
        return error_set(err, EINVAL, "member '%s' is not a list of 1 to %d layers", name, MEMBERS_LAYERS_MAX);
    if (count != fd_count)
        return error_set(err, EINVAL, "%zu descriptors came for %zu layers", fd_count, count);
    for (size_t i = 0; i < count; i++) {
        struct image_layer *layer = &list->layers[i];
        int r = member_required_string(json_array_get(layers, i), "format", 31, &layer->format, err);
        if (r == 0)
            r = file_take(&fds[i], i == writable, &layer->file, err);
        if (r < 0) {
            layers_close(list);
            return r;
        }
        list->count = i + 1;
    }
    return 0;
}

void layers_close(struct layer_list *list)
{
    for (size_t i = 0; i < list->count; i++)
        list->layers[i].file = io_file_close(list->layers[i].file);
    list->count = 0;
}

int layers_open_image(struct layer_list *list, const struct image_options *options, struct image **ret_image,
                      struct error *err)
{
    int r = image_open(list->layers, list->count, options, ret_image, err);
    if (r == 0)
        list->count = 0; /* the image has the files now */
    return r;
}
