// SPDX-License-Identifier: Apache-2.0
/*
 * The request is repeated by a platterd that died before it had the answer: the layer's id tells.
 *
 * Locks: whoever sends a file has locked it by qemu's protocol (provisioner/node/image_lock.h), by the open file description
 * that came with it. The new top comes with a writer's lock. The one below it keeps what a reader holds: only the bytes
 * that say "I write" are given up, so that at no moment anybody else may write.
 */
#include "provisioner/blk/snapshot.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "common/checked.h"
#include "common/cleanup.h"
#include "common/log.h"

enum {
    LOCK_USED_WRITE = 101, /* write, write-unchanged, resize: three bytes in a row */
    LOCK_USED_COUNT = 3,
};

void snapshots_begin(struct snapshots *s, const struct layer_list *list)
{
    *s = (struct snapshots){.layers = list->count, .top_fd = list->layers[0].file->fd};
}

static void writer_to_reader(int fd)
{
    struct flock unlock = {
        .l_type = F_UNLCK, .l_whence = SEEK_SET, .l_start = LOCK_USED_WRITE, .l_len = LOCK_USED_COUNT};
    /* A file system without such locks had none before either; at worst others cannot open it before we end. */
    if (fcntl(fd, F_OFD_SETLK, &unlock) < 0)
        log_warning("snapshot: the frozen layer stays locked: %s", strerror(errno));
}

/* Was this one taken already? Then its place, else -1. */
static int find_taken(const struct snapshots *s, const char *id)
{
    for (size_t i = 0; i < MIN(s->count, (size_t)MEMBERS_LAYERS_MAX); i++) {
        if (strcmp(s->taken[i].id, id) == 0)
            return (int)i;
    }
    return -1;
}

static uint64_t remember(struct snapshots *s, const char *id, const struct image *image)
{
    size_t place = s->count++ % MEMBERS_LAYERS_MAX;
    (void)snprintf(s->taken[place].id, sizeof(s->taken[place].id), "%s", id);
    s->taken[place].pause_us = image_snapshot_pause(image) / 1000;
    return s->taken[place].pause_us;
}

static int answer_pause(json_t *answer, uint64_t pause_us, struct error *err)
{
    int r = json_object_set_new(answer, "pause_us", json_integer((json_int_t)pause_us));
    return r < 0 ? error_sys(err, ENOMEM, "answer") : 0;
}

static void close_file(struct io_file **file)
{
    (void)io_file_close(*file);
}

static int take(struct snapshots *s, struct image *image, const char *format, int *fd, struct error *err)
{
    CLEANUP(close_file) struct io_file *file = NULL;
    if (s->layers >= MEMBERS_LAYERS_MAX) {
        (void)error_set(err, E2BIG, "an image has at most %d layers", MEMBERS_LAYERS_MAX);
        (void)error_code(err, "too-many-layers");
        return -E2BIG;
    }
    int r = file_take(fd, true, &file, err);
    if (r < 0)
        return r;
    struct image_layer layer = {.format = format, .file = file};
    r = image_snapshot(image, &layer, err);
    if (r < 0)
        return r;
    writer_to_reader(s->top_fd);
    s->top_fd = file->fd;
    s->layers++;
    file = NULL; /* the image's */
    return 0;
}

int snapshots_take(struct snapshots *s, struct image *image, const json_t *request, int *fd, json_t *answer,
                   struct error *err)
{
    const char *id, *format;
    int r = member_required_string(request, "layer_id", SNAPSHOT_ID_MAX, &id, err);
    if (r == 0)
        r = member_required_string(request, "format", 31, &format, err);
    if (r < 0)
        return r;
    int place = find_taken(s, id);
    if (place >= 0)
        return answer_pause(answer, s->taken[place].pause_us, err);
    r = take(s, image, format, fd, err);
    if (r < 0)
        return r;
    uint64_t pause_us = remember(s, id, image);
    log_info("snapshot: layer %s is the top now; requests waited for %ju us", id, (uintmax_t)pause_us);
    return answer_pause(answer, pause_us, err);
}

int snapshots_reflink(struct snapshots *s, struct image *image, const json_t *request, int fd, json_t *answer,
                      struct error *err)
{
    const char *id;
    struct stat st;
    int r = member_required_string(request, "layer_id", SNAPSHOT_ID_MAX, &id, err);
    if (r < 0)
        return r;
    int place = find_taken(s, id);
    if (place >= 0)
        return answer_pause(answer, s->taken[place].pause_us, err);
    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
        return error_set(err, EINVAL, "a reflink needs a file");
    r = image_reflink(image, fd, err);
    if (r < 0)
        return r;
    uint64_t pause_us = remember(s, id, image);
    log_info("snapshot: layer %s is a reflink; requests waited for %ju us", id, (uintmax_t)pause_us);
    return answer_pause(answer, pause_us, err);
}

int snapshots_rebase(struct snapshots *s, struct image *image, const json_t *request, int *fds, size_t fd_count,
                     struct error *err)
{
    struct layer_list list;
    if (fd_count >= MEMBERS_LAYERS_MAX)
        return error_set(err, E2BIG, "an image has at most %d layers", MEMBERS_LAYERS_MAX);
    int r = layers_take(request, "layers", fds, fd_count, false, &list, err);
    if (r < 0)
        return r;
    r = image_rebase(image, list.layers, list.count, err);
    if (r < 0) {
        layers_close(&list);
        return r;
    }
    s->layers = list.count + 1;
    return 0;
}
