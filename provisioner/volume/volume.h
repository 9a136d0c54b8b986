/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The lifecycle of volumes: what platterd does, without HTTP.
 *
 * A `struct manager` owns the catalogue, the job workers and the supervision of block servers. Mutations that touch
 * a volume are jobs: they are checked, recorded and started, and the call returns at once with a ticket. Pool
 * mutations are short and done when the call returns. Queries return JSON objects in the API's own shape (new
 * references, the caller's to release).
 *
 * Threads: every function may be called from any thread at any time between manager_start and manager_stop. None
 * waits for a job, a child process or a volume's disk; they do wait for the catalogue's own commit (one flush).
 * Callbacks come on a thread of the manager, hold no lock of it, and must not block.
 *
 * Rights: the manager checks roles itself (-EPERM, code "forbidden"): queries need viewer, volume and attachment
 * mutations operator, pool mutations admin. Files that a caller names (import source and parents, export target,
 * mount target, QMP socket) are reached with the caller's uid, gid and groups.
 *
 * Errors carry these codes beside the words of error_code_word():
 *   EBUSY   "volume-in-use" (with holder and hint), "target-busy", "pool-in-use", "job-running"
 *   EEXIST  "exists" (the name is taken by something different, or an export target is there)
 *   EINVAL  "invalid", "shrink-refused", "backing-not-given", "corrupt-image", "unsupported-feature", "not-blank"
 *   ENOENT  "not-found";  EPERM, EACCES "forbidden";  ENOSPC "no-space", "overprovisioned"
 *   EOPNOTSUPP "unsupported" (this host or format cannot);  ECANCELED "cancelled"
 * HTTP statuses: EINVAL with code "invalid" is 400, with any other code 422; EOPNOTSUPP is 422.
 */
#ifndef PLATTER_PROVISIONER_VOLUME_VOLUME_H
#define PLATTER_PROVISIONER_VOLUME_VOLUME_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/error.h"
#include "provisioner/catalogue/catalogue.h" /* ID_MAX, NAME_MAX_BYTES */

struct manager;

/* ---- the manager ------------------------------------------------------------------------------------------- */

struct manager_options {
    const char *state_dir;   /* durable: the catalogue. Made (0700) when missing. "/var/lib/platter" */
    const char *runtime_dir; /* cleared by a reboot: blk/, fuse/, vm/. Made (0755) when missing. "/run/platter" */
    const char *blk_program; /* the platter-blk binary; NULL = beside our own executable */
    unsigned workers;        /* most job threads; 0 = 16 */
    uint64_t merge_rate;     /* bytes a second that merging layers of an attached volume copies at most; 0 = no bound */
};

/* Opens the catalogue, reconciles it with the host and starts workers: unfinished jobs are queued again and go on
 * in the background. -EBUSY (code "already-running") when another manager owns the state directory. May take as
 * long as a few catalogue commits; never waits for volumes. Reads PLATTER_CRASH_AT (see job.h). */
int manager_start(const struct manager_options *options, struct manager **ret_manager, struct error *err);

/* Stops taking jobs, lets running steps end (bounded by their deadlines; conversions are cancelled and resumed or
 * undone at the next start), answers all watches with ended = false, frees. Block servers and mounts stay. NULL is
 * allowed. Returns NULL. No other call may run or follow. */
struct manager *manager_stop(struct manager *manager);

/* ---- callers ----------------------------------------------------------------------------------------------- */

enum caller_role { CALLER_VIEWER, CALLER_OPERATOR, CALLER_ADMIN };

#define CALLER_GROUPS_MAX 64 /* more supplementary groups than this are left out: fewer rights, never more */

struct caller {
    uid_t uid; /* SO_PEERCRED */
    gid_t gid;
    pid_t pid;
    enum caller_role role;
    gid_t groups[CALLER_GROUPS_MAX]; /* SO_PEERGROUPS */
    size_t group_count;
};

/* ---- tickets: the answer to every volume and attachment mutation ------------------------------------------- */

struct ticket {
    char job[ID_MAX];    /* the job to watch, or "" when there is nothing to do */
    char object[ID_MAX]; /* id of the volume or attachment that the job is about */
    bool existed;        /* the same was asked before: `object` is there (job "") or being made (job set) */
};

/* ---- pools (done when the call returns) -------------------------------------------------------------------- */

struct pool_spec {
    const char *name;
    const char *kind;     /* "dir" */
    const char *path;     /* absolute, an existing directory of root, not world-writable */
    double overprovision; /* promised may be at most this times the capacity; 0 = the default, 10; 1 = none */
};

/* Idempotent: the same name with the same path gives the pool that is there and *ret_existed = true. */
int manager_pool_create(struct manager *manager, const struct caller *caller, const struct pool_spec *spec,
                        json_t **ret_pool, bool *ret_existed, struct error *err);
/* Only an empty pool (-EBUSY "pool-in-use"). The directory stays; our marker file goes. */
int manager_pool_delete(struct manager *manager, const struct caller *caller, const char *name_or_id,
                        struct error *err);
/* {id, name, kind, path, overprovision, state: "ready"|"missing", capacity, used, available, promised, volumes,
 * created}. capacity etc. are bytes; absent when state is "missing" (and then `error` says why). */
int manager_pool_get(struct manager *manager, const char *name_or_id, json_t **ret_pool, struct error *err);
/* An array of the same, by name. */
int manager_pool_list(struct manager *manager, json_t **ret_pools, struct error *err);

/* ---- volumes ----------------------------------------------------------------------------------------------- */

struct volume_spec {
    const char *name;        /* 1..63 of [A-Za-z0-9._-], beginning with a letter or digit, without ".." */
    const char *pool;        /* name or id; NULL when there is exactly one pool */
    uint64_t size;           /* bytes; rounded up to 4096; at most 64 TiB */
    const char *format;      /* "qcow2" or "raw"; NULL = "qcow2" */
    uint32_t cluster_size;   /* qcow2: bytes; 0 = 65536 */
    uint32_t version;        /* qcow2: 2, 3; 0 = 3 */
    bool extended_l2;        /* qcow2 */
    const char *compression; /* qcow2: "zlib", "zstd"; NULL = "zlib" */
    uint32_t refcount_bits;  /* qcow2: 0 = 16 */
    bool preallocate;        /* raw */
    const char *on_no_space; /* "pause" or "fail": writes that the pool has no space for; NULL = "pause" */
    const char *filesystem;  /* "ext4", "xfs" or "none": what the first mount makes; NULL = "ext4" */
};

int manager_volume_create(struct manager *manager, const struct caller *caller, const struct volume_spec *spec,
                          struct ticket *ret_ticket, struct error *err);

struct import_layer {
    const char *path;   /* absolute; opened with the caller's rights */
    const char *format; /* "raw" or "qcow2"; never guessed */
};

#define IMPORT_LAYERS_MAX 16

struct import_spec {
    const char *name, *pool;
    const char *format;                            /* of the new volume; NULL = "qcow2" (ignored with preserve) */
    struct import_layer layers[IMPORT_LAYERS_MAX]; /* [0] the source, then its parents, nearest first */
    size_t layer_count;
    bool onto;              /* apply the file, an export of a snapshot, to the volume `name`, which is there */
    bool preserve;          /* keep the qcow2 files as they are (copied byte by byte, sparse or reflinked) */
    const char *filesystem; /* what the image holds already, remembered for mounting: "ext4", "xfs", "none" (raw
                               data); NULL = look with libblkid when it is mounted first. Never formatted by us. */
};

/* With `onto` only name and layers[0] (qcow2) count. The volume, which nobody has attached, must be what the file stands on:
 * its newest snapshot is the file's base (or came from it) and nothing was written since; for a full export it must be blank
 * and of the same size. It becomes the file's snapshot, and gets a snapshot of that name. Refused with codes "not-an-export",
 * "wrong-base", "changed-since", "size-mismatch", "damaged-file"; the volume stays as it was then. */
int manager_volume_import(struct manager *manager, const struct caller *caller, const struct import_spec *spec,
                          struct ticket *ret_ticket, struct error *err);

struct export_spec {
    const char *volume; /* name or id; must not be attached for writing */
    const char *target; /* absolute; must not exist; made with the caller's rights */
    const char *format; /* "raw" or "qcow2"; NULL = "qcow2" */
    const char *since; /* for VOLUME@SNAPSHOT in qcow2: write only what changed since this older snapshot; NULL = all */
};

/* ticket.object is the volume's id. The job's result is {volume, target, format, bytes}. */
int manager_volume_export(struct manager *manager, const struct caller *caller, const struct export_spec *spec,
                          struct ticket *ret_ticket, struct error *err);

struct resize_spec {
    const char *volume; /* name or id */
    uint64_t size;      /* bytes, rounded up to 4096 */
    bool shrink;        /* a smaller size is meant; the volume must be detached, and nothing known may need its end */
    bool discard_data;  /* with shrink: where the content is not known, let go of whatever lies beyond */
};

/* Grow, online or offline; or shrink, offline. The same size: existed, no job. -EINVAL (code "shrink-refused"): smaller,
 * without `shrink`. */
int manager_volume_resize(struct manager *manager, const struct caller *caller, const struct resize_spec *spec,
                          struct ticket *ret_ticket, struct error *err);
/* Write the top layer of a detached volume anew, without leaks and scattered or discarded space. The job's result is {volume,
 * before, after, length_before, length_after}: bytes that the file takes, and its length. -ENOSPC: no room for the copy. */
int manager_volume_compact(struct manager *manager, const struct caller *caller, const char *name_or_id,
                           struct ticket *ret_ticket, struct error *err);
/* Compare the images of a volume with themselves (struct image_check of backends/format), and with `repair` put right what
 * can be. Refused while attached. The job's result is {volume, repair, layers: [{id, format, and the counters}], leaks,
 * low_counts, copied_flags, bad_entries, double_use, repaired, errors}; `errors` are left and are not leaks. */
int manager_volume_check(struct manager *manager, const struct caller *caller, const char *name_or_id, bool repair,
                         struct ticket *ret_ticket, struct error *err);
/* Refused while attached, and unless `snapshots` while it has any (-EBUSY, code "has-snapshots"). Clones of its snapshots
 * stay. -ENOENT when it is not there. */
int manager_volume_delete(struct manager *manager, const struct caller *caller, const char *name_or_id, bool snapshots,
                          struct ticket *ret_ticket, struct error *err);

struct clone_spec {
    const char *name;     /* of the new volume */
    const char *snapshot; /* "VOLUME@SNAPSHOT" */
    uint64_t size;        /* bytes; 0 = the snapshot's, not less */
};
/* A new volume that begins as the snapshot, at once and without copying. Repeated: as manager_volume_create. */
int manager_volume_clone(struct manager *manager, const struct caller *caller, const struct clone_spec *spec,
                         struct ticket *ret_ticket, struct error *err);
/* The volume, which nobody has attached, becomes what it was at "VOLUME@SNAPSHOT"; what it is now is lost, all snapshots
 * stay. */
int manager_volume_restore(struct manager *manager, const struct caller *caller, const char *snapshot,
                           struct ticket *ret_ticket, struct error *err);

/* ---- snapshots --------------------------------------------------------------------------------------------- */

/* `name` is "VOLUME@SNAPSHOT". `freeze`: hold the mounted file system still for the moment, so that the snapshot needs no
 * journal. Attached volumes go on; their requests wait for some milliseconds. The same name again: existed. ticket.object is
 * the snapshot's id. */
int manager_snapshot_create(struct manager *manager, const struct caller *caller, const char *name, bool freeze,
                            struct ticket *ret_ticket, struct error *err);
#define SNAPSHOT_GROUP_MAX 64
/* Snapshots of several volumes at one point in time, all or none: no request of the attached ones is answered while they are
 * taken. `names` are "VOLUME@SNAPSHOT", each of another volume. `freeze`: of those that are mounted; at least one must be.
 * The same group again: existed. -EEXIST: one of the names is taken. ticket.object is the group's id. */
int manager_snapshot_group_create(struct manager *manager, const struct caller *caller, const char *const *names,
                                  size_t count, bool freeze, struct ticket *ret_ticket, struct error *err);
/* {group, snapshots: [as below]}; as the answer to its creation with pause_us, for how long requests were held back. */
int manager_snapshot_group_get(struct manager *manager, const char *group_id, json_t **ret_group, struct error *err);
/* -EBUSY (code "snapshot-in-use") while it is attached. Clones stay. */
int manager_snapshot_delete(struct manager *manager, const struct caller *caller, const char *name,
                            struct ticket *ret_ticket, struct error *err);
/* {id, name: "VOLUME@SNAPSHOT", snapshot, volume, volume_id, state: "creating"|"available"|"failed", layer, size,
 * consistency: "detached"|"crash"|"filesystem", filesystem, formatted, used, created, origin?, group?} */
int manager_snapshot_get(struct manager *manager, const char *name, json_t **ret_snapshot, struct error *err);
int manager_snapshot_get_id(struct manager *manager, const char *id, json_t **ret_snapshot, struct error *err);
struct changed_query {
    const char
        *since;      /* a snapshot that it stands on: of the same volume by name or id, or VOLUME@SNAPSHOT; NULL = what
                          is allocated */
    uint64_t offset; /* bytes: where to begin */
    unsigned limit;  /* ranges, 1 to 1000 */
};
/* {snapshot, since?, size, ranges: [{offset, length, zero}], next?}: ascending, `next` is the offset of the next page. By a
 * worker: takes a moment. -EINVAL, code "not-an-ancestor". */
int manager_snapshot_changed(struct manager *manager, const char *snapshot, const struct changed_query *query,
                             json_t **ret_changed, struct error *err);
/* Oldest first; volume NULL = of all; `after`: an id. */
int manager_snapshot_list(struct manager *manager, const char *volume, const char *after, unsigned limit,
                          json_t **ret_snapshots, struct error *err);

/* {id, name, kind: "block", pool, state: "creating"|"available"|"attached"|"deleting"|"failed", size, format,
 * filesystem, formatted, layers: [{id, format, size, used, cluster_size?, version?, extended_l2?, compression?,
 * refcount_bits?}], used, attachments: [id], created} */
int manager_volume_get(struct manager *manager, const char *name_or_id, json_t **ret_volume, struct error *err);
/* An array by name; pool NULL = all; at most `limit` (0 = 1000) whose name sorts after `after` (NULL = from the
 * start). */
int manager_volume_list(struct manager *manager, const char *pool, const char *after, unsigned limit,
                        json_t **ret_volumes, struct error *err);

/* ---- attachments ------------------------------------------------------------------------------------------- */

struct attach_spec {
    const char *volume;        /* name or id */
    const char *kind;          /* "mount", "device" or "vm" */
    const char *target;        /* mount: an existing directory, absolute; else NULL */
    bool read_only;            /* several read-only attachments may stand side by side */
    const char *filesystem;    /* mount: must match the record when given; NULL = by record */
    const char *mount_options; /* mount: comma-separated, passed to the file system; NULL = none */
    const char *via;           /* mount, device: "auto", "loop" (raw only) or "fuse"; NULL = "auto" */
    const char *export;        /* vm: "vhost-user-blk" or "nbd"; NULL = "vhost-user-blk" */
    unsigned queues;           /* vm: 0 = 2; at most 16 */
    const char *qmp;           /* vm: QMP socket of a running guest to plug into; NULL = only offer */
    const char *holder;        /* free text for people ("container web-1"), at most 63 bytes; NULL = none */
};

/* The same mount (volume, target, read_only) again: existed. */
int manager_attach(struct manager *manager, const struct caller *caller, const struct attach_spec *spec,
                   struct ticket *ret_ticket, struct error *err);
/* Undo an attachment, whatever state it is in. `id` is an attachment's id, or the absolute target of a mount. */
int manager_detach(struct manager *manager, const struct caller *caller, const char *id, struct ticket *ret_ticket,
                   struct error *err);

/* {id, volume: name, volume_id, kind, state: "attaching"|"attached"|"failed"|"detaching", read_only, target?,
 * device? ("/dev/loopN"), filesystem?, via? ("loop"|"fuse"), export?, socket?, queues?, server_pid?, holder,
 * qemu?: {arguments: [string], qmp: [object], libvirt: "xml", note}, uid, pid, error?, created} */
int manager_attachment_get(struct manager *manager, const char *id_or_target, json_t **ret_attachment,
                           struct error *err);
int manager_attachment_list(struct manager *manager, const char *volume, json_t **ret_attachments, struct error *err);

/* ---- jobs -------------------------------------------------------------------------------------------------- */

/* {id, kind, volume?, volume_id?, attachment?, state: "queued"|"running"|"succeeded"|"failed"|"cancelled", step,
 * progress: {done, total}, error?: {code, message, holder, hint}, created, ended?} */
int manager_job_get(struct manager *manager, const char *id, json_t **ret_job, struct error *err);
/* Newest first, at most 1000; state NULL = all; "active" = queued and running. */
int manager_job_list(struct manager *manager, const char *state, json_t **ret_jobs, struct error *err);

/* The object that an ended job made or changed (volume, attachment, or the export's result; for a deletion what was
 * deleted, with state "deleted"); or the job's error. -EINPROGRESS while it has not ended. */
int manager_job_result(struct manager *manager, const char *id, json_t **ret_object, struct error *err);

/* Ask a job to stop: it is undone and ends as "cancelled". Jobs past their point of no return end as they would have.
 * -EBUSY (code "not-cancellable") when it ended already. */
int manager_job_cancel(struct manager *manager, const struct caller *caller, const char *id, struct error *err);

/* Called exactly once: the job ended, or (ended = false) the time ran out or the manager stops. */
typedef void (*job_watch_fn)(void *arg, bool ended);

/* Call `fn` when job `id` has ended, within timeout_ms at the latest. When it has ended already (or timeout_ms is 0)
 * `fn` is called before this returns. -ENOENT: no such job, and no call. */
int manager_job_watch(struct manager *manager, const char *id, unsigned timeout_ms, job_watch_fn fn, void *arg,
                      struct error *err);

/* ---- events and orphans ------------------------------------------------------------------------------------ */

/* An array of {seq, time, kind ("volume.created", "attachment.failed", ...), object, volume?, data}, oldest first, at
 * most `limit` (0 = 1000) with seq > after. */
int manager_event_list(struct manager *manager, uint64_t after, unsigned limit, json_t **ret_events, struct error *err);
/* The seq of the newest event, 0 = none. */
uint64_t manager_event_last(struct manager *manager);

/* `fn` is told that events up to `seq` can be listed. After unsubscribe returned it is neither running nor called
 * again; unsubscribe must not be called from within `fn`. */
typedef void (*event_fn)(void *arg, uint64_t seq);
struct event_subscription;
int manager_event_subscribe(struct manager *manager, event_fn fn, void *arg, struct event_subscription **ret_sub,
                            struct error *err);
struct event_subscription *manager_event_unsubscribe(struct manager *manager, struct event_subscription *sub);

/* What carries our names but no record explains: an array of {kind: "file"|"loop"|"mount"|"socket"|"process", name,
 * detail}. Never removed by us. Looks at the host: takes a moment (a directory scan for each pool). */
int manager_orphan_list(struct manager *manager, json_t **ret_orphans, struct error *err);

#endif
