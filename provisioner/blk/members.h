/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The members of a request, read strictly: a member that is there has the right type and range, or the request is
 * refused (-EINVAL naming it). Absent and null give 0, false, or NULL. Members that nobody asks for are ignored.
 */
#ifndef PLATTER_PROVISIONER_BLK_MEMBERS_H
#define PLATTER_PROVISIONER_BLK_MEMBERS_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "backends/format/image.h"
#include "common/error.h"

#define MEMBERS_LAYERS_MAX 248

int member_u64(const json_t *object, const char *name, uint64_t max, uint64_t *ret, struct error *err);
int member_u32(const json_t *object, const char *name, uint32_t max, uint32_t *ret, struct error *err);
int member_bool(const json_t *object, const char *name, bool *ret, struct error *err);
/* Lives as long as `object`. At most `max` bytes. */
int member_string(const json_t *object, const char *name, size_t max, const char **ret, struct error *err);
/* As above, but it must be there and not be empty. */
int member_required_string(const json_t *object, const char *name, size_t max, const char **ret, struct error *err);

/* "format" and the options of image_create; their strings live as long as `object`. */
int members_create(const json_t *object, const char **ret_format, struct image_create_options *ret_options,
                   struct error *err);

/* A list of layers by member `name`, [{format}...] top first, with one descriptor for each in fds[0..fd_count). */
struct layer_list {
    size_t count;
    struct image_layer layers[MEMBERS_LAYERS_MAX];
};

/* Opens each descriptor as an image file, the first one for writing if `writable`. Descriptors used are taken over and
 * set to -1 in `fds`, also on failure. The formats live as long as `object`. */
int layers_take(const json_t *object, const char *name, int *fds, size_t fd_count, bool writable,
                struct layer_list *list, struct error *err);
/* The same with layer `writable` for writing; SIZE_MAX = none. */
int layers_take_writable(const json_t *object, const char *name, int *fds, size_t fd_count, size_t writable,
                         struct layer_list *list, struct error *err);
/* Close the files that are still in the list. */
void layers_close(struct layer_list *list);
/* image_open on the list, which is empty afterwards when it succeeds. */
int layers_open_image(struct layer_list *list, const struct image_options *options, struct image **ret_image,
                      struct error *err);

/* Take fds[0] as one image file. */
int file_take(int *fd, bool writable, struct io_file **ret_file, struct error *err);

#endif
