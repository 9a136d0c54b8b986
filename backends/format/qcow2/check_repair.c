// SPDX-License-Identifier: Apache-2.0
/*
 * Repair, in rounds. As long as clusters are shared that must not be, that comes first: everything else would write into
 * tables that may be somebody's data. Counts that cannot be trusted as a whole are made anew elsewhere (check_rebuild.c).
 * A data cluster that is also a table, or has several users that all take it for their own, is copied behind the end of the
 * file; the copies are counted before an entry names them. Where entries cannot be told apart (snapshots, a table with two
 * L1 entries) a higher count and no "copied" bits make sharing right instead. Each step is durable before the next begins.
 *
 * What stays as it is: two tables in one cluster, compressed data in a table's cluster, and all of an image whose snapshot
 * table cannot be read.
 */
#include <errno.h>
#include <stdlib.h>

#include "backends/format/qcow2/check.h"
#include "common/checked.h"
#include "common/cleanup.h"

#define ROUNDS_MAX 6
#define COPIES_MAX 65536u

static int write_header(struct check *c)
{
    int r = header_write(c->q->base.file, &c->q->header);
    return r < 0 ? r : io_file_flush(c->q->base.file);
}

/* ---- copies -------------------------------------------------------------------------------------------------- */

/* Copies that would part the users of a cluster, 0 = nothing can be done. */
static uint64_t copies_of(const struct check *c, const struct check_conflict *conflict)
{
    uint64_t count = conflict->uses & CHECK_COUNT;
    uint64_t stay = check_conflict_stay(c, conflict);
    if (!(conflict->uses & CHECK_DATA) || count == CHECK_COUNT)
        return 0;
    if (stay == 0)
        return 1;
    /* Which entry gets which copy must be the same in each walk: no table may be reached twice. */
    if (c->reached_twice || c->q->header.nb_snapshots || (conflict->uses & CHECK_PACKED))
        return 0;
    return count > stay ? count - stay : 0;
}

static uint64_t plan_copies(struct check *c)
{
    uint64_t planned = 0;
    for (size_t i = 0; i < c->conflict_count; i++) {
        uint64_t copies = copies_of(c, &c->conflicts[i]);
        c->conflicts[i].copy = 0;
        if (copies == 0 || planned + copies > MIN(COPIES_MAX, c->clusters))
            continue;
        c->conflicts[i].copy = c->clusters + planned;
        planned += copies;
    }
    return planned;
}

static int write_copies(struct check *c)
{
    struct qcow2 *q = c->q;
    CLEANUP_FREE uint8_t *buffer = aligned_alloc(4096, align_up(q->cluster_size, 4096));
    int r = buffer ? 0 : -ENOMEM;
    for (size_t i = 0; r == 0 && i < c->conflict_count; i++) {
        const struct check_conflict *conflict = &c->conflicts[i];
        uint64_t copies = conflict->copy ? copies_of(c, conflict) : 0;
        if (copies)
            r = io_file_read(q->base.file, buffer, q->cluster_size, conflict->cluster << q->cluster_bits);
        for (uint64_t k = 0; r == 0 && k < copies; k++) {
            r = io_file_write(q->base.file, buffer, q->cluster_size, (conflict->copy + k) << q->cluster_bits);
            r = r < 0 ? r : check_tick(c, q->cluster_size);
        }
    }
    return r < 0 ? r : io_file_flush(q->base.file);
}

/* Copy, count the copies, and only then name them. */
static int part_users(struct check *c, uint64_t planned, struct error *err)
{
    int r = write_copies(c);
    if (r == 0)
        r = check_set_clusters(c, c->clusters + planned);
    if (r < 0)
        return error_sys(err, r, "copy clusters that are used twice");
    c->moving = true;
    r = check_rebuild(c, c->q->header.incompatible, err);
    if (r == 0) {
        c->fix = CHECK_FIX_MOVES;
        r = check_walk(c, err);
        c->fix = 0;
    }
    c->moving = false;
    if (r == 0) {
        r = check_flush(c);
        if (r < 0)
            (void)error_sys(err, r, "write the tables");
    }
    return r;
}

/* ---- rounds -------------------------------------------------------------------------------------------------- */

/* Do one thing that changes what is used. 1 = look again, 0 = nothing left of the kind. */
static int part_round(struct check *c, bool *rebuilt, struct error *err)
{
    struct header *h = &c->q->header;
    int r = 0;
    if (c->incomplete || c->crowded)
        return 0;
    if (c->bitmaps_bad) {
        /* Whoever made them must make them again: a bitmap that lost a part says that nothing changed there. */
        h->autoclear &= ~(uint64_t)QCOW2_AUTOCLEAR_BITMAPS;
        r = write_header(c);
        return r < 0 ? error_sys(err, r, "write the qcow2 header") : 1;
    }
    uint64_t planned = c->broken ? 0 : plan_copies(c);
    if (planned) {
        r = part_users(c, planned, err);
        return r < 0 ? r : 1;
    }
    if ((c->broken || c->missing) && !*rebuilt) {
        *rebuilt = true;
        r = check_rebuild(c, h->incompatible, err);
        return r < 0 ? r : 1;
    }
    return 0;
}

static int fix_tables(struct check *c, unsigned fix, struct error *err)
{
    c->fix = fix;
    int r = check_walk(c, err);
    c->fix = 0;
    if (r < 0)
        return r;
    r = check_flush(c);
    return r < 0 ? error_sys(err, r, "write the tables") : 0;
}

int check_repair(struct check *c, struct error *err)
{
    const uint64_t known = QCOW2_AUTOCLEAR_BITMAPS | QCOW2_AUTOCLEAR_RAW_EXTERNAL;
    bool rebuilt = false;
    int r = 0;
    if (c->incomplete)
        return 0;
    if (c->q->header.autoclear & ~known) {
        c->q->header.autoclear &= known;
        r = write_header(c);
        if (r < 0)
            return error_sys(err, r, "write the qcow2 header");
    }
    for (unsigned i = 0; i < ROUNDS_MAX; i++) {
        r = part_round(c, &rebuilt, err);
        if (r <= 0)
            break;
        r = check_survey(c, err);
        if (r < 0)
            break;
    }
    if (r < 0 || c->crowded)
        return r;
    r = check_windows(c, check_counts_fix, NULL, err);
    if (r == 0)
        r = fix_tables(c, CHECK_FIX_COPIED, err);
    if (r == 0)
        r = fix_tables(c, CHECK_FIX_ENTRIES, err);
    return r;
}
