// SPDX-License-Identifier: Apache-2.0
/*
 * Reference counts from the tables, for an image whose dirty bit says that its counts were left behind (lazy refcounts). It
 * is the rebuilding of a repair (check_rebuild.c), done only where the tables are beyond doubt.
 */
#include <errno.h>

#include "backends/format/qcow2/check.h"
#include "backends/format/qcow2/control.h"
#include "backends/format/qcow2/refcount.h"

static int needs_repair(struct error *err, const char *what)
{
    (void)error_set(err, EUCLEAN, "the image was not closed properly, and %s", what);
    return error_code(err, "needs-repair");
}

static int rebuild(struct check *c, struct error *err)
{
    int r = check_survey(c, err);
    if (r < 0)
        return error_prefix(err, "rebuild reference counts");
    if (c->incomplete || c->found.bad_entries)
        return needs_repair(err, "its tables point outside the file");
    if (c->found.double_use)
        return needs_repair(err, "clusters have users that must not share them");
    return check_rebuild(c, c->q->header.incompatible & ~(uint64_t)QCOW2_INCOMPATIBLE_DIRTY, err);
}

int qcow2_rebuild(struct qcow2 *q, struct error *err)
{
    static const struct image_check_options options = {0};
    struct check c;
    int r = check_init(&c, q, &options, err);
    if (r == 0)
        r = rebuild(&c, err);
    check_done(&c);
    if (r < 0)
        return r;
    q->refcounts = refcounts_destroy(q->refcounts);
    return refcounts_open(q, &q->refcounts, err);
}
