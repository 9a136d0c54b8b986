// SPDX-License-Identifier: Apache-2.0
#include "provisioner/blk/worker_check.h"

#include <errno.h>

#include "backends/format/image.h"
#include "provisioner/blk/members.h"

static int answer_counters(const struct image_check *k, json_t *answer, struct error *err)
{
    json_t *members = json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:b, s:b}", "clusters",
                                (json_int_t)k->clusters, "allocated", (json_int_t)k->allocated, "compressed",
                                (json_int_t)k->compressed, "leaks", (json_int_t)k->leaks, "low_counts",
                                (json_int_t)k->low_counts, "copied_flags", (json_int_t)k->copied_flags, "bad_entries",
                                (json_int_t)k->bad_entries, "double_use", (json_int_t)k->double_use, "repaired",
                                (json_int_t)k->repaired, "dirty", k->dirty, "corrupt", k->corrupt);
    if (!members || json_object_update_new(answer, members) < 0)
        return error_sys(err, ENOMEM, "answer");
    return 0;
}

int worker_check(const json_t *request, int *fd, int (*progress)(void *context, uint64_t done, uint64_t total),
                 void *context, json_t *answer, struct error *err)
{
    struct image_check_options options = {.progress = progress, .context = context};
    struct image_check check = {0};
    struct io_file *file = NULL;
    const char *format;
    int r = member_required_string(request, "format", 31, &format, err);
    if (r == 0)
        r = member_bool(request, "repair", &options.repair, err);
    if (r == 0)
        r = file_take(fd, options.repair, &file, err);
    if (r < 0)
        return r;
    r = image_check(file, format, &options, &check, err);
    (void)io_file_close(file); /* a repair is durable already */
    return r < 0 ? r : answer_counters(&check, answer, err);
}
