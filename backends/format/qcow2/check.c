// SPDX-License-Identifier: Apache-2.0
/*
 * Checking an image: one survey tells what is wrong; with repair, check_repair.c follows, and a last survey judges it.
 */
#include "backends/format/qcow2/check.h"

#include <errno.h>
#include <stdlib.h>

#include "backends/format/qcow2/control.h"
#include "backends/format/qcow2/snapshot.h"
#include "common/checked.h"
#include "common/cleanup.h"

#define MEMORY_DEFAULT (64 * MIB)
#define WINDOW_MIN 1024u                /* clusters */
#define WINDOWS_MAX (UINT64_C(1) << 20) /* all that a refcount table can count, with the default */

int check_set_clusters(struct check *c, uint64_t clusters)
{
    uint64_t windows = div_round_up(clusters, c->window_size);
    if (windows > WINDOWS_MAX)
        return -EFBIG;
    uint8_t *touched = realloc(c->touched, windows);
    if (!touched)
        return -ENOMEM;
    c->touched = touched;
    c->windows = windows;
    c->clusters = clusters;
    c->end = clusters << c->q->cluster_bits;
    return 0;
}

int check_init(struct check *c, struct qcow2 *q, const struct image_check_options *options, struct error *err)
{
    uint64_t memory = options->memory_bytes ? options->memory_bytes : MEMORY_DEFAULT;
    *c = (struct check){.q = q, .options = options};
    uint64_t clusters = div_round_up(q->file_length_at_open, q->cluster_size);
    c->window_size = MAX(MIN(memory / sizeof(*c->window), align_up(clusters + 1, WINDOW_MIN)), WINDOW_MIN);
    int r = check_set_clusters(c, clusters);
    if (r < 0)
        return error_sys(err, r, "count a file's clusters");
    c->window = calloc(c->window_size, sizeof(*c->window));
    c->l2 = aligned_alloc(4096, align_up(q->cluster_size, 4096));
    if (!c->window || !c->l2)
        return error_sys(err, ENOMEM, "check an image");
    return 0;
}

void check_done(struct check *c)
{
    check_counts_release(c);
    free(steal_ptr(&c->window));
    free(steal_ptr(&c->touched));
    free(steal_ptr(&c->l2));
    free(steal_ptr(&c->conflicts));
}

int check_flush(struct check *c)
{
    if (!c->wrote)
        return 0;
    c->wrote = false;
    return io_file_flush(c->q->base.file);
}

static void estimate(struct check *c)
{
    const struct header *h = &c->q->header;
    uint64_t tables = div_round_up(h->size, c->q->cluster_size << c->q->l2_bits) * c->q->cluster_size;
    uint64_t walk = MIN(tables, c->end) + (uint64_t)h->l1_size * 8;
    c->total = MAX(c->total, c->done + walk * (1 + (uint64_t)h->nb_snapshots) * (c->options->repair ? 2 : 1));
}

int check_survey(struct check *c, struct error *err)
{
    const struct header *h = &c->q->header;
    c->found = (struct image_check){
        .clusters = c->clusters,
        .dirty = h->incompatible & QCOW2_INCOMPATIBLE_DIRTY,
        .corrupt = h->incompatible & QCOW2_INCOMPATIBLE_CORRUPT,
    };
    c->conflict_count = 0;
    c->crowded = c->reached_twice = c->bitmaps_bad = c->missing = c->incomplete = false;
    struct error why = ERROR_INIT;
    int r = snapshots_walk(c->q, NULL, NULL, &c->q->header.snapshots_length, &why);
    if (r < 0 && r != -EUCLEAN)
        return error_copy(err, &why);
    c->incomplete = r < 0;
    r = check_counts_load(c);
    if (r < 0)
        return error_sys(err, r, "read the refcount table");
    c->broken = c->table_bad > 0;
    c->found.bad_entries = c->table_bad + c->incomplete;
    estimate(c);
    c->tally = &c->found;
    r = check_windows(c, check_compare, NULL, err);
    c->tally = NULL;
    return r;
}

/* ---- the operation ------------------------------------------------------------------------------------------- */

static uint64_t problems(const struct image_check *k)
{
    return k->leaks + k->low_counts + k->copied_flags + k->bad_entries + k->double_use;
}

/* What the repair's end looks like; header bits go when nothing is wrong any more. */
static int judge_repair(struct check *c, uint64_t before, uint64_t *ret_repaired, struct error *err)
{
    int r = check_survey(c, err);
    if (r < 0)
        return r;
    uint64_t after = problems(&c->found);
    *ret_repaired = before > after ? before - after : 0;
    uint64_t bits = QCOW2_INCOMPATIBLE_DIRTY | QCOW2_INCOMPATIBLE_CORRUPT;
    if (after || !(c->q->header.incompatible & bits))
        return 0;
    c->q->header.incompatible &= ~bits;
    r = header_write(c->q->base.file, &c->q->header);
    if (r == 0)
        r = io_file_flush(c->q->base.file);
    return r < 0 ? error_sys(err, r, "write the qcow2 header") : 0;
}

static int run(struct check *c, struct image_check *ret_check, struct error *err)
{
    int r = check_survey(c, err);
    if (r < 0)
        return r;
    struct image_check found = c->found;
    if (c->options->repair && (problems(&found) || found.dirty || found.corrupt)) {
        r = check_repair(c, err);
        if (r == 0)
            r = judge_repair(c, problems(&found), &found.repaired, err);
        if (r < 0)
            return error_prefix(err, "repair");
    }
    *ret_check = found;
    return 0;
}

static int read_header(struct qcow2 *q, struct error *err)
{
    int r = header_read(q->base.file, &q->header, &q->file_length_at_open, err);
    if (r == 0)
        r = header_check_features(&q->header, err);
    if (r == 0)
        r = header_validate_tables(&q->header, q->file_length_at_open, err);
    if (r < 0)
        return r;
    qcow2_derive(q);
    return 0;
}

int qcow2_check(struct io_file *file, const struct image_check_options *options, struct image_check *ret_check,
                struct error *err)
{
    struct error own = ERROR_INIT; /* the code words need one even where the caller does not */
    CLEANUP_FREE struct qcow2 *q = calloc(1, sizeof(*q));
    struct check c = {0};
    err = err ? err : &own;
    if (!q)
        return error_sys(err, ENOMEM, "check an image");
    q->base.file = file;
    int r = read_header(q, err);
    if (r == 0)
        r = check_init(&c, q, options, err);
    if (r == 0)
        r = run(&c, ret_check, err);
    check_done(&c);
    header_release(&q->header);
    return r;
}
