// SPDX-License-Identifier: Apache-2.0
/*
 * The steps of a mount: the target, formatting by record, mounting, unmounting.
 *
 * A volume is formatted once. Its record says that it never was; the device is proved blank; the record says "begun"
 * before mkfs starts and "formatted" only after the new file system was flushed. If platterd dies in between, "begun"
 * tells its successor that what lies there is the torn work of our own mkfs, which nobody has used: then, and only
 * then, it is made anew without a proof.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/text.h"
#include "provisioner/node/loop.h"
#include "provisioner/node/mkfs.h"
#include "provisioner/node/mount.h"
#include "provisioner/volume/attach.h"

#define MOUNT_OPTIONS_MAX 1100 /* the longest that are taken, and ours */

static int device_open(struct job *job, int flags, int *ret_fd, struct error *err)
{
    char label[LOOP_LABEL_MAX];
    attach_label(job, label, sizeof(label));
    return loop_open(job_get(job, "device"), label, flags, ret_fd, err);
}

static int device_number(struct job *job, dev_t *ret_rdev, struct error *err)
{
    CLEANUP_CLOSE int fd = -1;
    struct stat st;
    int r = device_open(job, O_RDONLY, &fd, err);
    if (r < 0)
        return r;
    if (fstat(fd, &st) < 0)
        return error_sys(err, errno, "look at %s", job_get(job, "device"));
    *ret_rdev = st.st_rdev;
    return 0;
}

/* Open the target with the caller's rights; `canonical` gets its path without links. */
static int target_open(struct job *job, const char *target, int *ret_fd, char *canonical, size_t size,
                       struct error *err)
{
    struct rights rights;
    CLEANUP_CLOSE int fd = -1;
    job_rights(job, &rights);
    int r = rights_open(&rights, target, O_PATH | O_DIRECTORY, 0, &fd, err);
    if (r == 0)
        r = mount_check_target(fd, target, err);
    if (r < 0)
        return r;
    char link[32];
    (void)snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, canonical, size);
    if (n <= 0 || (size_t)n >= size)
        return error_set(err, ENAMETOOLONG, "the path of '%s' is too long", target);
    canonical[n] = 0;
    *ret_fd = steal_fd(&fd);
    return 0;
}

int step_target(struct job *job, struct error *err)
{
    struct attachment_record a = {0};
    CLEANUP_CLOSE int fd = -1;
    char canonical[CATALOGUE_PATH_MAX];
    int r = job_attachment(job, &a, err);
    if (r < 0)
        return r;
    r = target_open(job, a.target, &fd, canonical, sizeof(canonical), err);
    attachment_record_done(&a);
    return r < 0 ? r : job_set(job, "canonical", canonical, err);
}

/* ---- formatting -------------------------------------------------------------------------------------------- */

static int volume_save(struct job *job, const struct volume_record *volume, struct error *err)
{
    return catalogue_volume_update(job->manager->catalogue, volume, err);
}

/* An imported volume: what it holds is looked for once, by libblkid alone, and remembered. */
static int find_filesystem(struct job *job, struct volume_record *volume, struct error *err)
{
    CLEANUP_CLOSE int fd = -1;
    char type[WORD_MAX];
    int r = device_open(job, O_RDONLY, &fd, err);
    if (r == 0)
        r = mkfs_probe(fd, type, sizeof(type), err);
    if (r == -ENOENT) {
        (void)error_set(err, EINVAL, "volume '%s' holds no file system", volume->name);
        return error_code(err, "no-filesystem");
    }
    if (r < 0)
        return r;
    if (strcmp(type, "ext4") != 0 && strcmp(type, "xfs") != 0) {
        (void)error_set(err, EOPNOTSUPP, "volume '%s' holds %s, which is not mounted", volume->name, type);
        return error_code(err, "unsupported");
    }
    text_copy(volume->filesystem, type);
    return volume_save(job, volume, err);
}

static int format_device(struct job *job, struct volume_record *volume, struct error *err)
{
    bool zeroed = strcmp(volume->content, "blank") == 0;
    if (strcmp(volume->content, "begun") != 0) {
        CLEANUP_CLOSE int fd = -1;
        int r = device_open(job, O_RDONLY, &fd, err);
        if (r == 0)
            r = blank_check(fd, volume->name, err);
        if (r == 0 && !zeroed) /* somebody could have written anywhere */
            r = blank_check_whole(fd, volume->name, job->cancel_fd, err);
        if (r < 0)
            return r;
        text_copy(volume->content, "begun");
        r = volume_save(job, volume, err);
        if (r < 0)
            return r;
    }
    int r = mkfs_format(job_get(job, "device"), volume->filesystem, zeroed, job->cancel_fd, err);
    if (r < 0)
        return r;
    r = job_set(job, "fresh", "yes", err);
    if (r == 0)
        r = job_save(job, err);
    if (r < 0)
        return r;
    volume->formatted = true;
    text_copy(volume->content, "any");
    r = volume_save(job, volume, err);
    return r < 0 ? r : step_sidecar(job, err);
}

/* A guest, or whoever had the device, may have made the file system that the record waits for: it is taken as it is.
 * Never after "begun": that may be our own torn work. Whatever else is found is for format_device() to refuse. */
static int adopt_filesystem(struct job *job, struct volume_record *volume, struct error *err)
{
    CLEANUP_CLOSE int fd = -1;
    char type[WORD_MAX];
    if (volume->formatted || strcmp(volume->content, "any") != 0)
        return 0;
    int r = device_open(job, O_RDONLY, &fd, err);
    if (r < 0)
        return r;
    if (mkfs_probe(fd, type, sizeof(type), NULL) < 0 || strcmp(type, volume->filesystem) != 0)
        return 0;
    volume->formatted = true;
    r = volume_save(job, volume, err);
    return r < 0 ? r : step_sidecar(job, err);
}

/* A snapshot's file system is known from then, or looked for and not remembered. */
static int snapshot_filesystem(struct job *job, struct volume_record *volume, struct error *err)
{
    CLEANUP_CLOSE int fd = -1;
    int r = volume->filesystem[0] ? 0 : device_open(job, O_RDONLY, &fd, err);
    if (r == 0 && fd >= 0)
        r = mkfs_probe(fd, volume->filesystem, sizeof(volume->filesystem), err);
    return r < 0 ? r : job_set(job, "filesystem", volume->filesystem, err);
}

int step_format(struct job *job, struct error *err)
{
    struct volume_record volume = {0};
    int r = job_volume(job, &volume, err);
    if (r < 0)
        return r;
    if (job_get(job, "view")[0])
        return snapshot_filesystem(job, &volume, err);
    if (!volume.filesystem[0])
        r = find_filesystem(job, &volume, err);
    else
        r = adopt_filesystem(job, &volume, err);
    if (r == 0 && !volume.formatted) /* an imported volume always counts as formatted */
        r = format_device(job, &volume, err);
    const char *wanted = job_get(job, "wanted_filesystem");
    if (r == 0 && wanted[0] && strcmp(wanted, volume.filesystem) != 0)
        r = error_set(err, EINVAL, "volume '%s' holds %s, not %s", volume.name, volume.filesystem, wanted);
    return r < 0 ? r : job_set(job, "filesystem", volume.filesystem, err);
}

/* ---- growing at the next mount ----------------------------------------------------------------------------- */

/* Is the file system behind its volume, and of this type? */
static bool is_behind(struct job *job, const char *type, struct volume_record *volume)
{
    struct attachment_record a = {0};
    if (job_attachment(job, &a, NULL) < 0)
        return false;
    bool read_only = a.read_only;
    attachment_record_done(&a);
    return !read_only && job_volume(job, volume, NULL) == 0 && volume->behind &&
           strcmp(job_get(job, "filesystem"), type) == 0;
}

int step_fit(struct job *job, struct error *err)
{
    struct volume_record volume = {0};
    dev_t rdev;
    if (!is_behind(job, "ext4", &volume))
        return 0;
    int r = device_number(job, &rdev, err);
    if (r == 0)
        r = mkfs_grow_unmounted(job_get(job, "device"), job->cancel_fd, err);
    volume.behind = false;
    return r < 0 ? r : volume_save(job, &volume, err);
}

int step_grow(struct job *job, struct error *err)
{
    struct volume_record volume = {0};
    if (!is_behind(job, "xfs", &volume))
        return 0;
    int r = mkfs_grow(job_get(job, "canonical"), "xfs", volume.size, err);
    volume.behind = false;
    return r < 0 ? r : volume_save(job, &volume, err);
}

/* ---- mounting ---------------------------------------------------------------------------------------------- */

/* A snapshot cannot be written to, so its journal is not replayed: one taken without freezing shows what the journal had not
 * yet put in place as it was before. An XFS may be mounted beside the volume whose UUID it has. */
static void snapshot_options(const struct job *job, char *options, size_t size)
{
    const char *given = job_get(job, "mount_options"), *more = "";
    if (job_get(job, "view")[0])
        more = strcmp(job_get(job, "filesystem"), "xfs") == 0 ? "norecovery,nouuid" : "noload";
    (void)snprintf(options, size, "%s%s%s", given, given[0] && more[0] ? "," : "", more);
}

static int mount_on_target(struct job *job, const struct attachment_record *a, struct error *err)
{
    CLEANUP_CLOSE int target = -1;
    char canonical[CATALOGUE_PATH_MAX];
    struct rights rights;
    job_rights(job, &rights);
    int r = target_open(job, a->target, &target, canonical, sizeof(canonical), err);
    if (r == 0)
        r = job_set(job, "canonical", canonical, err); /* what a link in the path means may have changed */
    if (r == 0)
        r = job_save(job, err);
    if (r < 0)
        return r;
    char options[MOUNT_OPTIONS_MAX];
    snapshot_options(job, options, sizeof(options));
    struct mount_request request = {
        .device = job_get(job, "device"),
        .filesystem = job_get(job, "filesystem"),
        .options = options,
        .read_only = a->read_only,
        .restricted = rights.uid != 0,
        .set_owner = rights.uid != 0 && job_get(job, "fresh")[0] != 0,
        .uid = rights.uid,
        .gid = rights.gid,
    };
    return mount_attach(&request, target, err);
}

int step_mount(struct job *job, struct error *err)
{
    struct attachment_record a = {0};
    dev_t rdev;
    int r = device_number(job, &rdev, err);
    if (r < 0 || mount_is_at(job_get(job, "canonical"), rdev))
        return r;
    r = job_attachment(job, &a, err);
    if (r < 0)
        return r;
    r = mount_on_target(job, &a, err);
    attachment_record_done(&a);
    return r;
}

static int unmount(struct job *job, bool force, struct error *err)
{
    dev_t rdev;
    const char *canonical = job_get(job, "canonical");
    if (!canonical[0] || !job_get(job, "device")[0])
        return 0;
    if (device_number(job, &rdev, NULL) < 0)
        return 0; /* without its device there is no mount, either */
    return mount_detach(canonical, rdev, force, err);
}

int undo_mount(struct job *job, struct error *err)
{
    return unmount(job, true, err);
}

int step_unmount(struct job *job, struct error *err)
{
    /* When the server is gone nothing can be flushed any more; waiting for it would keep the mount for ever. */
    return unmount(job, strcmp(job_get(job, "previous"), "failed") == 0, err);
}
