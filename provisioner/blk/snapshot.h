/* SPDX-License-Identifier: Apache-2.0 */
/* The server's requests "snapshot", "reflink" and "rebase": other layers for the open image, or a copy of its one. Control thread. */
#ifndef PLATTER_PROVISIONER_BLK_SNAPSHOT_H
#define PLATTER_PROVISIONER_BLK_SNAPSHOT_H

#include <jansson.h>

#include "backends/format/image.h"
#include "provisioner/blk/members.h"

#define SNAPSHOT_ID_MAX 64

/* What the server remembers of its image's layers. */
struct snapshots {
    size_t layers; /* in the chain */
    int top_fd;    /* the top layer's; the image's own, open as long as it is */
    size_t count;  /* snapshots taken; the latest are kept, so that one asked for twice is taken once */
    struct {
        char id[SNAPSHOT_ID_MAX + 1];
        uint64_t pause_us;
    } taken[MEMBERS_LAYERS_MAX];
};

/* The image is about to be opened from `list`. */
void snapshots_begin(struct snapshots *snapshots, const struct layer_list *list);

/* Put the layer in *fd (taken over and set to -1 once it is looked at) on top, and change the lock of the file that was the
 * top from a writer's to a reader's. The members of the answer go to `answer`. -E2BIG, code "too-many-layers". */
int snapshots_take(struct snapshots *snapshots, struct image *image, const json_t *request, int *fd, json_t *answer,
                   struct error *err);

/* The raw image's file is reflinked to the one in `fd`, which stays the caller's. The same layer_id again: at once. */
int snapshots_reflink(struct snapshots *snapshots, struct image *image, const json_t *request, int fd, json_t *answer,
                      struct error *err);

/* The layers in fds[0..fd_count) (those used are taken over and set to -1) take the place of all below the top. */
int snapshots_rebase(struct snapshots *snapshots, struct image *image, const json_t *request, int *fds, size_t fd_count,
                     struct error *err);

#endif
