/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The catalogue: what platterd knows, in one SQLite file (WAL, foreign keys, migrations by user_version).
 *
 * Threads: every function may be called from any thread; one lock serialises them. A transaction
 * (catalogue_begin .. catalogue_commit) holds that lock, so it must be short and contain no other blocking work.
 * A write outside a transaction commits by itself.
 *
 * Durability: a commit is flushed to the disk (synchronous=FULL). Only catalogue_job_step and
 * catalogue_job_progress are not: they survive our own death but may be lost by a power cut, after which the job
 * goes on from an earlier step. Steps are idempotent, so that is harmless and saves a flush for each step.
 *
 * Errors: -ENOENT (no such row), -EEXIST (a name or id is taken), -EBUSY (others refer to the row), -EIO with
 * SQLite's text. Records are plain values; record_done() functions free the few members that are allocated.
 */
#ifndef PLATTER_PROVISIONER_CATALOGUE_CATALOGUE_H
#define PLATTER_PROVISIONER_CATALOGUE_CATALOGUE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"

struct catalogue;

#define ID_MAX 24         /* "pool-", "vol-", "lay-", "att-", "job-" and 16 hex digits, with the NUL */
#define NAME_MAX_BYTES 64 /* names of pools and volumes, with the NUL */
#define WORD_MAX 24       /* states, kinds, formats, steps, with the NUL */
#define CATALOGUE_PATH_MAX 4096

/* `path` is made (0600) when missing; an older one is migrated, a newer one refused (-EPROTONOSUPPORT). */
int catalogue_open(const char *path, struct catalogue **ret_catalogue, struct error *err);
struct catalogue *catalogue_close(struct catalogue *catalogue);

/* PREFIX and 16 hex digits from getrandom: "vol-0123456789abcdef". */
int catalogue_id(const char *prefix, char ret_id[ID_MAX]);

/* 1..63 of [A-Za-z0-9._-], first a letter or digit, no "..". */
bool catalogue_name_valid(const char *name);

int catalogue_begin(struct catalogue *catalogue, struct error *err);
/* On failure nothing of the transaction stays. Either call ends the transaction and releases the lock. */
int catalogue_commit(struct catalogue *catalogue, struct error *err);
void catalogue_rollback(struct catalogue *catalogue);

/* ---- pools ------------------------------------------------------------------------------------------------- */

struct pool_record {
    char id[ID_MAX];
    char name[NAME_MAX_BYTES];
    char kind[WORD_MAX]; /* "dir" */
    char path[CATALOGUE_PATH_MAX];
    double overprovision;
    int64_t created; /* seconds since the epoch, here and below */
};

int catalogue_pool_insert(struct catalogue *catalogue, const struct pool_record *record, struct error *err);
int catalogue_pool_delete(struct catalogue *catalogue, const char *id, struct error *err); /* -EBUSY: has volumes */
int catalogue_pool_find(struct catalogue *catalogue, const char *name_or_id, struct pool_record *ret_record,
                        struct error *err);
int catalogue_pool_list(struct catalogue *catalogue, struct pool_record **ret_records, size_t *ret_count,
                        struct error *err);
/* Sum of the sizes and the number of the pool's volumes, those being created included. */
int catalogue_pool_promised(struct catalogue *catalogue, const char *id, uint64_t *ret_bytes, uint64_t *ret_volumes,
                            struct error *err);

/* ---- volumes and layers ------------------------------------------------------------------------------------ */

struct volume_record {
    char id[ID_MAX];
    char name[NAME_MAX_BYTES]; /* unique */
    char pool_id[ID_MAX];
    char kind[WORD_MAX];       /* "block" */
    char state[WORD_MAX];      /* "creating", "available", "deleting", "failed" */
    uint64_t size;             /* bytes */
    char filesystem[WORD_MAX]; /* "ext4", "xfs", "none"; "" = unknown (imported): found by looking when first mounted */
    bool formatted;            /* true: never format, ever again */
    char content[WORD_MAX];    /* what may be inside: "blank" (never handed out for writing), "begun" (our mkfs began,
                                  nobody else wrote), "any" */
    bool behind;               /* the file system is still smaller than the volume: it grows at the next mount */
    char top_layer[ID_MAX];    /* the layer that takes writes; "" only while it is being made */
    char spec[1024];           /* canonical JSON of what was asked for, to recognise a repeated request */
    int64_t created;
};

int catalogue_volume_insert(struct catalogue *catalogue, const struct volume_record *record, struct error *err);
/* Writes every member but id, pool_id and created. */
int catalogue_volume_update(struct catalogue *catalogue, const struct volume_record *record, struct error *err);
int catalogue_volume_delete(struct catalogue *catalogue, const char *id, struct error *err); /* its layers too */
int catalogue_volume_find(struct catalogue *catalogue, const char *name_or_id, struct volume_record *ret_record,
                          struct error *err);
/* By name; pool_id NULL = all; names after `after` (NULL = from the start), at most `limit`. */
int catalogue_volume_list(struct catalogue *catalogue, const char *pool_id, const char *after, unsigned limit,
                          struct volume_record **ret_records, size_t *ret_count, struct error *err);

/* One image file. Its name in the pool derives from `id`. A layer belongs to the volume that made it; other volumes
 * (clones) may have it as a parent. */
struct layer_record {
    char id[ID_MAX];
    char volume_id[ID_MAX];
    char pool_id[ID_MAX];
    char parent_id[ID_MAX];                        /* the layer below, "" = none */
    char format[WORD_MAX];                         /* "raw", "qcow2": from here, never from probing */
    uint64_t size;                                 /* bytes: virtual size */
    uint32_t cluster_size, version, refcount_bits; /* 0 = does not apply */
    bool extended_l2;
    char compression[WORD_MAX];
    bool frozen; /* takes no writes any more */
    int64_t created;
    bool preserved; /* imported to stay as it is, or merged into such a one: may hold compressed and shared clusters */
};

int catalogue_layer_insert(struct catalogue *catalogue, const struct layer_record *record, struct error *err);
int catalogue_layer_update(struct catalogue *catalogue, const struct layer_record *record, struct error *err);
int catalogue_layer_delete(struct catalogue *catalogue, const char *id, struct error *err); /* -EBUSY: is a parent */
int catalogue_layer_find(struct catalogue *catalogue, const char *id, struct layer_record *ret_record,
                         struct error *err);
/* The chain from layer `top` down, top first. -EUCLEAN for a loop or more than 512 layers. */
int catalogue_layer_chain(struct catalogue *catalogue, const char *top, struct layer_record **ret_records,
                          size_t *ret_count, struct error *err);
/* Every layer of a pool (NULL = all pools), for reconciling. */
int catalogue_layer_list(struct catalogue *catalogue, const char *pool_id, struct layer_record **ret_records,
                         size_t *ret_count, struct error *err);

/* The layers that the volume made, in no order. */
int catalogue_layer_owned(struct catalogue *catalogue, const char *volume_id, struct layer_record **ret_records,
                          size_t *ret_count, struct error *err);
/* Those of them that are no volume's top, no snapshot, and below one layer at most: to be removed or merged. */
int catalogue_layer_unneeded(struct catalogue *catalogue, const char *volume_id, struct layer_record **ret_records,
                             size_t *ret_count, struct error *err);
/* The one layer above `id`; -ENOENT. */
int catalogue_layer_child(struct catalogue *catalogue, const char *id, struct layer_record *ret_record,
                          struct error *err);
/* Volumes that own more than one layer: ids of ID_MAX bytes each. */
int catalogue_layer_owners(struct catalogue *catalogue, char (**ret_ids)[ID_MAX], size_t *ret_count, struct error *err);
/* How a layer is used; the file of one that nothing uses may go. */
struct layer_use {
    uint64_t children;  /* layers directly above it */
    uint64_t tops;      /* volumes whose top it is */
    uint64_t snapshots; /* snapshots that it is */
    uint64_t foreign;   /* layers of other volumes somewhere above it */
    uint64_t busy;      /* attachments of these volumes */
};
int catalogue_layer_use(struct catalogue *catalogue, const struct layer_record *layer, struct layer_use *ret_use,
                        struct error *err);
/* Let layer `lower` be what `upper`, its only child, was: upper's row takes lower's place in the chain and the kind of its
 * file, lower's row goes. */
int catalogue_layer_merge(struct catalogue *catalogue, const struct layer_record *lower,
                          const struct layer_record *upper, struct error *err);
/* Give the layers of `volume_id` that layers of other volumes stand on to one of those volumes, whose id comes back ("" when
 * there is none). In a transaction, before the volume goes. */
int catalogue_layer_hand_over(struct catalogue *catalogue, const char *volume_id, char ret_heir[ID_MAX],
                              struct error *err);

/* ---- snapshots --------------------------------------------------------------------------------------------- */

/* A moment of a volume: a frozen layer, and what was known of the volume then. */
struct snapshot_record {
    char id[ID_MAX];
    char name[NAME_MAX_BYTES]; /* unique in its volume */
    char volume_id[ID_MAX];
    char layer_id[ID_MAX];
    char state[WORD_MAX];       /* "creating", "available", "failed" */
    uint64_t size;              /* bytes of the volume at that moment */
    char consistency[WORD_MAX]; /* "detached", "crash", "filesystem" */
    char filesystem[WORD_MAX];  /* these four as in volume_record */
    bool formatted;
    char content[WORD_MAX];
    bool behind;
    int64_t created;
    char origin[ID_MAX]; /* the snapshot elsewhere that it equals, whose file was imported; "" = none. Never changes */
    char group_id[ID_MAX]; /* shared by those that were taken of several volumes at one point; "" = none */
};

int catalogue_snapshot_insert(struct catalogue *catalogue, const struct snapshot_record *record, struct error *err);
int catalogue_snapshot_update(struct catalogue *catalogue, const struct snapshot_record *record, struct error *err);
int catalogue_snapshot_delete(struct catalogue *catalogue, const char *id, struct error *err); /* -EBUSY: attached */
/* By name within the volume, or by id. */
int catalogue_snapshot_find(struct catalogue *catalogue, const char *volume_id, const char *name_or_id,
                            struct snapshot_record *ret_record, struct error *err);
int catalogue_snapshot_by_id(struct catalogue *catalogue, const char *id, struct snapshot_record *ret_record,
                             struct error *err);
/* volume_id NULL = all; oldest first; those after the snapshot `after` (an id; NULL = from the start), at most `limit`. */
int catalogue_snapshot_list(struct catalogue *catalogue, const char *volume_id, const char *after, unsigned limit,
                            struct snapshot_record **ret_records, size_t *ret_count, struct error *err);
/* Those of one group, oldest first. */
int catalogue_snapshot_group(struct catalogue *catalogue, const char *group_id, struct snapshot_record **ret_records,
                             size_t *ret_count, struct error *err);
/* All of a volume, within the transaction that deletes it. */
int catalogue_snapshot_delete_all(struct catalogue *catalogue, const char *volume_id, struct error *err);

/* ---- attachments ------------------------------------------------------------------------------------------- */

struct attachment_record {
    char id[ID_MAX];
    char volume_id[ID_MAX];
    char snapshot_id[ID_MAX]; /* "" = the volume itself; else a snapshot of it, read-only */
    char kind[WORD_MAX];      /* "mount", "device", "vm" */
    char state[WORD_MAX];     /* "attaching", "attached", "failed", "detaching" */
    bool read_only;
    char target[CATALOGUE_PATH_MAX]; /* mount: where; else "" */
    char via[WORD_MAX];              /* "loop", "fuse"; vm: the export's kind */
    char holder[NAME_MAX_BYTES];     /* text for people */
    char boot_id[40];                /* the boot in which it was made: another boot means nothing of it is left */
    uint32_t uid, gid;
    int32_t pid;
    char *data; /* JSON object: what the kind needs (device, socket, mount id, server pid, ...); allocated */
    int64_t created;
};

void attachment_record_done(struct attachment_record *record);
void attachment_records_free(struct attachment_record *records, size_t count);

int catalogue_attachment_insert(struct catalogue *catalogue, const struct attachment_record *record, struct error *err);
/* Writes state, via, data, boot_id. */
int catalogue_attachment_update(struct catalogue *catalogue, const struct attachment_record *record, struct error *err);
int catalogue_attachment_delete(struct catalogue *catalogue, const char *id, struct error *err);
int catalogue_attachment_find(struct catalogue *catalogue, const char *id_or_target,
                              struct attachment_record *ret_record, struct error *err);
/* volume_id NULL = all; oldest first. */
int catalogue_attachment_list(struct catalogue *catalogue, const char *volume_id,
                              struct attachment_record **ret_records, size_t *ret_count, struct error *err);

/* ---- jobs -------------------------------------------------------------------------------------------------- */

struct job_record {
    char id[ID_MAX];
    char kind[WORD_MAX];    /* "volume-create", ... */
    char volume_id[ID_MAX]; /* orders jobs; not a reference: a deleted volume's jobs stay */
    char volume_name[NAME_MAX_BYTES];
    char attachment_id[ID_MAX]; /* or "" */
    char state[WORD_MAX];       /* "queued", "running", "undoing", "succeeded", "failed", "cancelled" */
    char step[WORD_MAX];        /* the step being done or undone */
    char *data;                 /* JSON object: the request, and what the steps remember; allocated */
    char *error;                /* JSON object or NULL; allocated */
    char *result;               /* JSON object or NULL; allocated */
    uint64_t done, total;       /* progress, bytes or 0 */
    int64_t created, ended;     /* ended 0 = not yet */
};

void job_record_done(struct job_record *record);
void job_records_free(struct job_record *records, size_t count);

int catalogue_job_insert(struct catalogue *catalogue, const struct job_record *record, struct error *err);
/* Writes state, step, data, error, result, done, total, ended; flushed. */
int catalogue_job_update(struct catalogue *catalogue, const struct job_record *record, struct error *err);
/* The same without a flush of its own. */
int catalogue_job_step(struct catalogue *catalogue, const struct job_record *record, struct error *err);
int catalogue_job_progress(struct catalogue *catalogue, const char *id, uint64_t done, uint64_t total,
                           struct error *err);
int catalogue_job_find(struct catalogue *catalogue, const char *id, struct job_record *ret_record, struct error *err);
/* Newest first. state NULL = all, "active" = not ended (oldest first then). */
int catalogue_job_list(struct catalogue *catalogue, const char *state, unsigned limit, struct job_record **ret_records,
                       size_t *ret_count, struct error *err);
/* The newest job on this volume (its own, or one of "volumes" in its data) or attachment that has not ended; -ENOENT. */
int catalogue_job_active(struct catalogue *catalogue, const char *object_id, char ret_id[ID_MAX], struct error *err);
/* Forget ended jobs beyond the newest `keep`. */
int catalogue_job_trim(struct catalogue *catalogue, unsigned keep, struct error *err);

/* ---- events ------------------------------------------------------------------------------------------------ */

struct event_record {
    uint64_t seq;
    int64_t time;        /* milliseconds since the epoch */
    char kind[48];       /* "volume.created" */
    char object[ID_MAX]; /* id of what it is about, or "" */
    char *data;          /* JSON object or NULL; allocated */
};

void event_records_free(struct event_record *records, size_t count);

/* Appends; seq is given. Not flushed alone: call it in the transaction that changes the state. */
int catalogue_event_insert(struct catalogue *catalogue, const char *kind, const char *object, const char *data,
                           uint64_t *ret_seq, struct error *err);
int catalogue_event_list(struct catalogue *catalogue, uint64_t after, unsigned limit, struct event_record **ret_records,
                         size_t *ret_count, struct error *err);
int catalogue_event_last(struct catalogue *catalogue, uint64_t *ret_seq, struct error *err);
/* Forget all but the newest `keep`. */
int catalogue_event_trim(struct catalogue *catalogue, unsigned keep, struct error *err);

#endif
