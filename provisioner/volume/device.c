// SPDX-License-Identifier: Apache-2.0
/* The steps that make a host device: block server, FUSE file, loop device. Each first looks whether it is done. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mount.h>
#include <unistd.h>

#include "common/log.h"
#include "provisioner/node/fuse_mount.h"
#include "provisioner/node/loop.h"
#include "provisioner/volume/attach.h"
#include "provisioner/volume/chain.h"
#include "provisioner/volume/server.h"

static bool attach_via(const struct job *job, const char *via)
{
    struct attachment_record a = {0};
    if (job_attachment(job, &a, NULL) < 0)
        return false;
    bool is = strcmp(a.via, via) == 0;
    attachment_record_done(&a);
    return is;
}

static bool attach_read_only(const struct job *job)
{
    struct attachment_record a = {0};
    if (job_attachment(job, &a, NULL) < 0)
        return true;
    bool read_only = a.read_only;
    attachment_record_done(&a);
    return read_only;
}

static int server_open(struct job *job, struct blk_client *client, struct error *err)
{
    struct volume_record volume = {0};
    CLEANUP_CHAIN struct chain chain = {0};
    struct blk_geometry geometry;
    bool read_only = attach_read_only(job);
    int r = job_volume(job, &volume, err);
    if (r == 0)
        r = chain_open(job->manager, &volume, read_only, &chain, err);
    return r < 0 ? r : blk_open(client, chain.layers, chain.count, read_only, 0, &geometry, err);
}

static int server_policy(struct job *job, struct blk_client *client, struct error *err)
{
    struct volume_record volume = {0};
    int r = job_volume(job, &volume, err);
    if (r < 0)
        return r;
    r = blk_policy(client, volume_on_no_space(&volume), err);
    return r == -EOPNOTSUPP ? 0 : r; /* an older server: it fails them */
}

int step_server(struct job *job, struct error *err)
{
    if (attach_via(job, "loop"))
        return 0;
    struct blk_client *client;
    struct blk_hello hello = {0};
    int r = server_ensure(job->manager, job->record.attachment_id, &client, err);
    if (r == 0)
        r = blk_hello(client, &hello, err);
    if (r == 0 && hello.state != BLK_OPEN)
        r = server_open(job, client, err);
    if (r == 0)
        r = server_policy(job, client, err);
    return r < 0 ? r : job_set_number(job, "server_pid", (uint64_t)hello.pid, err);
}

/* What waits for space would keep the device from ending for ever. A mount that is in use keeps all as it is: unmounting
 * refuses. So does a disk of a VM that its owner has to unplug first. */
int step_end_waits(struct job *job, struct error *err)
{
    struct attachment_record a = {0};
    struct blk_client *client;
    int r = job_attachment(job, &a, err);
    if (r < 0)
        return r;
    const char *target = job_get(job, "canonical");
    bool served = strcmp(a.via, "loop") != 0 && (strcmp(a.kind, "vm") != 0 || job_get(job, "qmp")[0]);
    /* Says EBUSY when in use, and else only marks the mount. */
    bool busy = target[0] && umount2(target, MNT_EXPIRE | UMOUNT_NOFOLLOW) < 0 && errno == EBUSY;
    attachment_record_done(&a);
    if (!served || busy || server_connect(job->manager, job->record.attachment_id, &client, NULL) < 0)
        return 0;
    if (blk_policy(client, "fail", NULL) < 0)
        log_warning("attachment %s: what waits for space could not be ended", job->record.attachment_id);
    return 0;
}

int undo_end_waits(struct job *job, struct error *err)
{
    struct blk_client *client;
    if (server_connect(job->manager, job->record.attachment_id, &client, NULL) < 0)
        return 0;
    return server_policy(job, client, err);
}

int undo_server(struct job *job, struct error *err)
{
    return server_end(job->manager, job->record.attachment_id, err);
}

static int fuse_path(const struct job *job, char *path, size_t size, struct error *err)
{
    return manager_path(job->manager, "fuse", job->record.attachment_id, "", path, size, err);
}

static bool server_exports(const struct blk_hello *hello, const char *kind)
{
    for (size_t i = 0; i < hello->export_count; i++) {
        if (strcmp(hello->exports[i].kind, kind) == 0)
            return true;
    }
    return false;
}

int step_fuse(struct job *job, struct error *err)
{
    if (!attach_via(job, "fuse"))
        return 0;
    char path[MANAGER_PATH_MAX];
    struct blk_client *client;
    struct blk_hello hello = {0};
    int r = fuse_path(job, path, sizeof(path), err);
    if (r == 0)
        r = server_connect(job->manager, job->record.attachment_id, &client, err);
    if (r == 0)
        r = blk_hello(client, &hello, err);
    if (r < 0 || server_exports(&hello, "fuse"))
        return r;
    CLEANUP_CLOSE int fd = -1;
    r = fuse_mount(path, &fd, err);
    if (r < 0)
        return r;
    struct blk_export export = {.name = "device", .kind = "fuse", .read_only = attach_read_only(job)};
    return blk_export(client, &export, fd, err);
}

int undo_fuse(struct job *job, struct error *err)
{
    char path[MANAGER_PATH_MAX];
    int r = fuse_path(job, path, sizeof(path), err);
    return r < 0 ? r : fuse_unmount(path, err);
}

/* What the loop device lies over: the raw image file itself, locked, or the server's FUSE file. */
static int loop_backing(struct job *job, bool read_only, int *ret_fd, struct error *err)
{
    if (attach_via(job, "loop")) {
        struct volume_record volume = {0};
        CLEANUP_CHAIN struct chain chain = {0};
        int r = job_volume(job, &volume, err);
        if (r == 0)
            r = chain_open(job->manager, &volume, read_only, &chain, err);
        if (r < 0)
            return r;
        *ret_fd = steal_fd(&chain.layers[0].fd);
        return 0;
    }
    char path[MANAGER_PATH_MAX];
    int r = fuse_path(job, path, sizeof(path), err);
    if (r < 0)
        return r;
    int fd = open(path, (read_only ? O_RDONLY : O_RDWR) | O_DIRECT | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return error_sys(err, errno, "open the server's file '%s'", path);
    *ret_fd = fd;
    return 0;
}

int step_loop(struct job *job, struct error *err)
{
    char label[LOOP_LABEL_MAX], device[LOOP_DEVICE_MAX];
    attach_label(job, label, sizeof(label));
    int r = loop_find(label, device, err);
    if (r == -ENOENT) {
        CLEANUP_CLOSE int fd = -1;
        bool read_only = attach_read_only(job);
        r = loop_backing(job, read_only, &fd, err);
        if (r == 0)
            r = loop_attach(fd, label, read_only, device, err);
    }
    return r < 0 ? r : job_set(job, "device", device, err);
}

int undo_loop(struct job *job, struct error *err)
{
    char label[LOOP_LABEL_MAX], device[LOOP_DEVICE_MAX];
    attach_label(job, label, sizeof(label));
    int r = loop_find(label, device, err);
    if (r < 0)
        return r == -ENOENT ? 0 : r;
    return loop_detach(device, label, err);
}
