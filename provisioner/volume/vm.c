// SPDX-License-Identifier: Apache-2.0
/* The steps of a VM's disk: the socket, plugging it in and out, and the instructions for people. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "common/log.h"
#include "common/text.h"
#include "provisioner/node/qmp.h"
#include "provisioner/volume/attach.h"
#include "provisioner/volume/server.h"

#define QMP_DEADLINE_MS 30000
#define LAST_CLIENT_MS 2000

static int vm_record(const struct job *job, struct attachment_record *a, struct error *err)
{
    return job_attachment(job, a, err);
}

static int vm_socket_path(const struct job *job, char *path, size_t size, struct error *err)
{
    return manager_path(job->manager, "vm", job->record.attachment_id, ".sock", path, size, err);
}

/* Listen at `path`; the caller who attached owns the socket, so that its QEMU needs no other rights. */
static int vm_listen(const char *path, uid_t uid, gid_t gid, int *ret_fd, struct error *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof(address.sun_path))
        return error_set(err, ENAMETOOLONG, "socket path '%s' is too long", path);
    text_copy(address.sun_path, path);
    CLEANUP_CLOSE int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return error_sys(err, errno, "socket");
    if (unlink(path) < 0 && errno != ENOENT)
        return error_sys(err, errno, "remove '%s'", path);
    if (bind(fd, (const struct sockaddr *)&address, sizeof(address)) < 0 || chmod(path, 0660) < 0 ||
        lchown(path, uid, gid) < 0 || listen(fd, 16) < 0)
        return error_sys(err, errno, "listen at '%s'", path);
    *ret_fd = steal_fd(&fd);
    return 0;
}

static int vm_export(struct job *job, const struct attachment_record *a, const char *path, struct error *err)
{
    struct blk_client *client;
    struct blk_hello hello = {0};
    CLEANUP_CLOSE int fd = -1;
    int r = server_connect(job->manager, a->id, &client, err);
    if (r == 0)
        r = blk_hello(client, &hello, err);
    if (r < 0 || hello.export_count > 0)
        return r;
    r = vm_listen(path, a->uid, a->gid, &fd, err);
    if (r < 0)
        return r;
    struct blk_export export = {.name = job_get(job, "export_name"),
                                .kind = a->via,
                                .queues = (unsigned)job_get_number(job, "queues"),
                                .read_only = a->read_only,
                                .serial = job_get(job, "serial")};
    return blk_export(client, &export, fd, err);
}

int step_listen(struct job *job, struct error *err)
{
    struct attachment_record a = {0};
    char path[MANAGER_PATH_MAX];
    int r = vm_record(job, &a, err);
    if (r < 0)
        return r;
    r = vm_socket_path(job, path, sizeof(path), err);
    if (r == 0)
        r = vm_export(job, &a, path, err);
    attachment_record_done(&a);
    return r < 0 ? r : job_set(job, "socket", path, err);
}

int undo_listen(struct job *job, struct error *err)
{
    char path[MANAGER_PATH_MAX];
    int r = vm_socket_path(job, path, sizeof(path), err);
    if (r < 0)
        return r;
    return unlink(path) < 0 && errno != ENOENT ? error_sys(err, errno, "remove '%s'", path) : 0;
}

/* ---- plugging ---------------------------------------------------------------------------------------------- */

static struct qmp_disk vm_disk(const struct job *job, const struct attachment_record *a)
{
    return (struct qmp_disk){.id = a->id,
                             .socket = job_get(job, "socket"),
                             .nbd = strcmp(a->via, "nbd") == 0,
                             .name = job_get(job, "export_name"),
                             .serial = job_get(job, "serial"),
                             .queues = (unsigned)job_get_number(job, "queues")};
}

/* Connect with the rights of the one who attached: detaching may be asked by somebody else. */
static int vm_qmp(const struct job *job, struct qmp **ret_qmp, struct error *err)
{
    struct rights rights;
    job_rights(job, &rights);
    const json_t *owner = json_object_get(job->data, "owner");
    uid_t uid = (uid_t)json_integer_value(json_object_get(owner, "uid"));
    if (rights.uid != uid)
        rights = (struct rights){.uid = uid, .gid = (gid_t)json_integer_value(json_object_get(owner, "gid"))};
    int fd, r = rights_connect(&rights, job_get(job, "qmp"), &fd, err);
    return r < 0 ? r : qmp_create(fd, QMP_DEADLINE_MS, ret_qmp, err);
}

static int vm_plug(struct job *job, int (*act)(struct qmp *, const struct qmp_disk *, struct error *),
                   struct error *err)
{
    struct attachment_record a = {0};
    struct qmp *qmp;
    int r = vm_qmp(job, &qmp, err);
    if (r < 0)
        return r;
    r = vm_record(job, &a, err);
    if (r == 0) {
        struct qmp_disk disk = vm_disk(job, &a);
        r = act(qmp, &disk, err);
        attachment_record_done(&a);
    }
    qmp_destroy(qmp);
    return r;
}

int step_plug(struct job *job, struct error *err)
{
    return job_get(job, "qmp")[0] ? vm_plug(job, qmp_plug, err) : 0;
}

static bool vm_clients(struct job *job)
{
    struct blk_client *client;
    json_t *stats = NULL, *entry;
    size_t i = 0;
    json_int_t clients = 0;
    if (server_connect(job->manager, job->record.attachment_id, &client, NULL) < 0 ||
        blk_stats(client, &stats, NULL) < 0)
        return false;
    json_array_foreach (json_object_get(stats, "exports"), i, entry)
        clients += json_integer_value(json_object_get(entry, "clients"));
    json_decref(stats);
    return clients > 0;
}

/* Nobody pulled the disk out: a guest that still has it would lose what it has not flushed. One whose QEMU just ended
 * is given a moment to be noticed. */
static int vm_check_unused(struct job *job, struct error *err)
{
    int64_t deadline = manager_now_ms() + LAST_CLIENT_MS;
    while (vm_clients(job)) {
        if (manager_now_ms() > deadline) {
            (void)error_set(err, EBUSY, "a VM is still connected to '%s'", job_get(job, "socket"));
            (void)error_hint(err, "unplug the disk in the VM, or end it, first");
            return error_code(err, "target-busy");
        }
        struct timespec pause = {.tv_nsec = 10000000};
        (void)nanosleep(&pause, NULL);
    }
    return 0;
}

int step_unplug(struct job *job, struct error *err)
{
    if (!job_get(job, "socket")[0])
        return 0;
    if (!job_get(job, "qmp")[0])
        return vm_check_unused(job, err);
    int r = vm_plug(job, qmp_unplug, err);
    return r == -ECONNREFUSED || r == -ENOENT || r == -EPIPE || r == -ECONNRESET ? 0 : r; /* QEMU has ended */
}

int undo_plug(struct job *job, struct error *err)
{
    int r = step_unplug(job, err);
    if (r < 0 && err)
        log_warning("attachment %s: %s", job->record.attachment_id, err->message);
    return 0; /* the server goes in any case: the guest never was told that the disk is its own */
}

/* ---- instructions ------------------------------------------------------------------------------------------ */

static json_t *qemu_arguments(const struct qmp_disk *d)
{
    char backend[512], device[256];
    if (d->nbd) {
        (void)snprintf(backend, sizeof(backend),
                       "driver=nbd,node-name=%s,discard=unmap,server.type=unix,server.path=%s,export=%s,"
                       "reconnect-delay=10",
                       d->id, d->socket, d->name);
        (void)snprintf(device, sizeof(device), "virtio-blk-pci,drive=%s,id=%s,serial=%s", d->id, d->id, d->serial);
        return json_pack("[s, s, s, s]", "-blockdev", backend, "-device", device);
    }
    (void)snprintf(backend, sizeof(backend), "socket,id=%s,path=%s,reconnect=1", d->id, d->socket);
    (void)snprintf(device, sizeof(device), "vhost-user-blk-pci,chardev=%s,id=%s,num-queues=%u", d->id, d->id,
                   d->queues);
    return json_pack("[s, s, s, s]", "-chardev", backend, "-device", device);
}

static json_t *libvirt_xml(const struct qmp_disk *d)
{
    char xml[1024];
    if (d->nbd)
        (void)snprintf(xml, sizeof(xml),
                       "<disk type='network' device='disk'><driver name='qemu' type='raw' discard='unmap'/>"
                       "<source protocol='nbd' name='%s'><host transport='unix' socket='%s'/></source>"
                       "<target dev='vdb' bus='virtio'/><serial>%s</serial></disk>",
                       d->name, d->socket, d->serial);
    else
        (void)snprintf(xml, sizeof(xml),
                       "<disk type='vhostuser' device='disk'><driver name='qemu' type='raw' queues='%u'/>"
                       "<source type='unix' path='%s'><reconnect enabled='yes' timeout='1'/></source>"
                       "<target dev='vdb' bus='virtio'/></disk>",
                       d->queues, d->socket);
    return json_string(xml);
}

json_t *vm_instructions(const struct job *job, const struct attachment_record *a, const struct volume_record *volume)
{
    struct qmp_disk disk = vm_disk(job, a);
    (void)volume;
    const char *note = disk.nbd ? "Needs nothing of the guest's memory."
                                : "vhost-user shares the guest's memory: start QEMU with -object memory-backend-memfd,"
                                  "id=mem0,size=SIZE,share=on -machine q35,memory-backend=mem0 (libvirt: "
                                  "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>). A "
                                  "q35 guest takes a disk while running on a free pcie-root-port: add "
                                  "\"bus\" to device_add.";
    return json_pack("{s:o, s:o, s:o, s:s}", "arguments", qemu_arguments(&disk), "qmp", qmp_commands(&disk), "libvirt",
                     libvirt_xml(&disk), "note", note);
}
