/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Checking and repairing a qcow2 image: shared by check*.c and rebuild.c only. Nothing else may have the image open.
 *
 * check_walk follows every table (active L1, snapshots, bitmaps, reference counts) and notes each use of a cluster that lies
 * in the window: a 32-bit number for each cluster, at most memory_bytes in all. check_windows does that for one window after
 * another; windows in which nothing is used and nothing counted are left out. What the tables say is never trusted: an
 * entry is judged (check_entry.c) before it is followed.
 *
 * Thread: the caller's. Everything blocks.
 */
#ifndef PLATTER_FORMAT_QCOW2_CHECK_H
#define PLATTER_FORMAT_QCOW2_CHECK_H

#include "backends/format/qcow2/qcow2.h"

/* One cluster of the window: how often it is used, and what for. */
enum check_use {
    CHECK_COUNT = 0x01ffffff, /* the number; it stops at this */
    CHECK_META = 1 << 25,     /* header, L1 tables, snapshot table, bitmaps */
    CHECK_COUNTS = 1 << 26,   /* refcount table and blocks */
    CHECK_TABLE = 1 << 27,    /* L2 table */
    CHECK_DATA = 1 << 28,
    CHECK_PACKED = 1 << 29, /* compressed data */
    CHECK_OWNED = 1 << 30,  /* an active entry says "copied": it may write in place */
};
#define CHECK_OWNED_TWICE (UINT32_C(1) << 31)

#define CHECK_CONFLICTS_MAX 65536u

/* A cluster with users that may not share it. */
struct check_conflict {
    uint64_t cluster;
    uint32_t uses; /* as in the window */
    uint32_t seen; /* data entries met by this walk */
    uint64_t copy; /* first cluster of its copies, 0 = none */
};

enum check_fix {
    CHECK_FIX_MOVES = 1 << 0,   /* data entries go to the copies of their clusters */
    CHECK_FIX_COPIED = 1 << 1,  /* "copied" as the counts on disk say */
    CHECK_FIX_ENTRIES = 1 << 2, /* entries that point nowhere are cleared, reserved bits too */
};

struct check {
    struct qcow2 *q;
    const struct image_check_options *options;
    struct image_check found; /* by the last survey */
    uint64_t end;             /* bytes: the file's length, rounded up to clusters */
    uint64_t clusters;

    /* The refcount table on disk; entries that cannot be right are 0. */
    uint64_t *table;
    uint64_t table_entries, table_bad;
    struct refcount_slot *slots; /* a small cache of blocks */

    uint32_t *window;
    uint64_t window_first, window_size; /* clusters */
    uint64_t windows;                   /* of the file */
    uint8_t *touched;                   /* a byte for each window: is something used in it? */

    struct check_conflict *conflicts; /* ascending */
    size_t conflict_count, conflict_room;

    /* How to walk. */
    struct image_check *tally; /* judge entries and count what is wrong; NULL = only follow */
    unsigned fix;              /* CHECK_FIX_* */
    bool without_counts;       /* the refcount table and its blocks are not used */
    bool moving;               /* count the copies of conflicts as used, too */

    /* What was met. */
    bool broken;        /* the refcount structures must be made anew */
    bool missing;       /* used clusters without a refcount block */
    bool incomplete;    /* the snapshots cannot be followed: nothing can be called unused */
    bool crowded;       /* more conflicts than are kept */
    bool reached_twice; /* some L2 table has more than one L1 entry */
    bool bitmaps_bad;
    bool wrote; /* something since the last check_flush */

    uint64_t *l2; /* one table, as on disk */
    uint64_t done, total, reported;
};

/* ---- check_entry.c: pure ------------------------------------------------------------------------------------- */

enum check_kind { CHECK_NOTHING, CHECK_STANDARD, CHECK_COMPRESSED };

struct check_entry {
    uint64_t words[2]; /* what is left when all that cannot be is taken away */
    bool bad;          /* something was */
    enum check_kind kind;
    uint64_t offset, length; /* bytes in the file: what it uses */
};

void check_entry_judge(const struct check *check, uint64_t word, uint64_t bitmap, struct check_entry *ret_entry);
/* An L1 entry that names no place where a table can be gives 0. */
uint64_t check_l1_judge(const struct check *check, uint64_t word);

/* ---- check_walk.c, check_bitmaps.c --------------------------------------------------------------------------- */

/* Once over everything, as check->tally, fix, without_counts and moving say. -ECANCELED, or an error of I/O. */
int check_walk(struct check *check, struct error *err);
/* Note a use of [offset, offset + length), which lies below check->end. */
void check_use(struct check *check, uint64_t offset, uint64_t length, uint32_t use);
int check_tick(struct check *check, uint64_t bytes);
int check_bitmaps(struct check *check);

/* ---- check_counts.c ------------------------------------------------------------------------------------------ */

/* (Re)read the refcount table and forget cached blocks. */
int check_counts_load(struct check *check);
void check_counts_release(struct check *check);
/* What is counted on disk; 0 where no block is. */
int check_counts_get(struct check *check, uint64_t cluster, uint64_t *ret_count);
/* Walk for each window that matters, ascending, and call `each` with it. The walk for the first one tallies. */
int check_windows(struct check *check, int (*each)(struct check *check, void *context), void *context,
                  struct error *err);
/* For check_windows: compare the window with what is on disk, tally, keep conflicts. */
int check_compare(struct check *check, void *context);
/* For check_windows: return leaks, raise what is too low. */
int check_counts_fix(struct check *check, void *context);
struct check_conflict *check_conflict_find(const struct check *check, uint64_t cluster);
/* Data entries that go on using the cluster of a conflict; those after them, in the order of a walk, get copies. */
uint64_t check_conflict_stay(const struct check *check, const struct check_conflict *conflict);
/* Is the cluster, an L2 table, also something else? Then nobody may write entries to it. */
bool check_blocked(const struct check *check, uint64_t cluster);
uint64_t check_count_max(const struct check *check);

/* ---- check.c, check_repair.c, check_rebuild.c ---------------------------------------------------------------- */

/* q: header, file and its length are set. Undone by check_done. */
int check_init(struct check *check, struct qcow2 *q, const struct image_check_options *options, struct error *err);
void check_done(struct check *check);
/* The file has that many clusters now. */
int check_set_clusters(struct check *check, uint64_t clusters);
/* Look at everything: fills check->found and the conflicts. */
int check_survey(struct check *check, struct error *err);
/* Make durable what was written. */
int check_flush(struct check *check);
/* Put right what check->found tells. */
int check_repair(struct check *check, struct error *err);
/* Reference counts anew from the tables, behind the end of the file, and the header to them in one write with these
 * incompatible feature bits. -EFBIG: the format's end. */
int check_rebuild(struct check *check, uint64_t incompatible, struct error *err);

#endif
