// SPDX-License-Identifier: Apache-2.0
/* What carries our names but no record explains: shown, never removed. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "provisioner/node/fuse_mount.h"
#include "provisioner/node/loop.h"
#include "provisioner/volume/manager.h"

static void orphan_add(json_t *orphans, const char *kind, const char *name, const char *detail)
{
    json_t *orphan = json_pack("{s:s, s:s, s:s}", "kind", kind, "name", name, "detail", detail);
    if (orphan)
        (void)json_array_append_new(orphans, orphan);
}

static bool attachment_known(struct manager *m, const char *id)
{
    struct attachment_record a = {0};
    if (!pool_id_valid(id, "att-") || catalogue_attachment_find(m->catalogue, id, &a, NULL) < 0)
        return false;
    attachment_record_done(&a);
    return true;
}

/* ---- files of pools ---------------------------------------------------------------------------------------- */

struct pool_scan {
    struct manager *manager;
    json_t *orphans;
    const char *pool;
};

static int scan_entry(void *arg, enum pool_entry kind, const char *name, const char *id, uint64_t used)
{
    const struct pool_scan *scan = arg;
    struct layer_record layer = {0};
    struct volume_record volume = {0};
    bool known = true;
    if (kind == POOL_ENTRY_IMAGE)
        known = catalogue_layer_find(scan->manager->catalogue, id, &layer, NULL) == 0;
    else if (kind != POOL_ENTRY_FOREIGN)
        known = catalogue_volume_find(scan->manager->catalogue, id, &volume, NULL) == 0;
    if (!known) {
        char detail[160];
        (void)snprintf(detail, sizeof(detail), "in pool '%s', %llu bytes", scan->pool, (unsigned long long)used);
        orphan_add(scan->orphans, "file", name, detail);
    }
    return 0;
}

static int scan_pools(struct manager *m, json_t *orphans, struct error *err)
{
    CLEANUP_FREE struct pool_record *pools = NULL;
    size_t count = 0;
    int r = catalogue_pool_list(m->catalogue, &pools, &count, err);
    for (size_t i = 0; r == 0 && i < count; i++) {
        CLEANUP_POOL struct pool *pool = NULL;
        struct pool_scan scan = {.manager = m, .orphans = orphans, .pool = pools[i].name};
        if (manager_pool_open(m, pools[i].id, &pool, NULL) == 0) /* a missing pool shows as such */
            (void)pool->ops->walk(pool, scan_entry, &scan, NULL);
    }
    return r;
}

/* ---- loop devices ------------------------------------------------------------------------------------------ */

/* Another platterd of this host (a test, say) has devices of its own: ours lie over our runtime directory or our
 * pools. */
static bool loop_is_ours(struct manager *m, const char *device)
{
    char path[64], backing[CATALOGUE_PATH_MAX] = "";
    (void)snprintf(path, sizeof(path), "/sys/block/%s/loop/backing_file", device + strlen("/dev/"));
    CLEANUP_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || read(fd, backing, sizeof(backing) - 1) <= 0)
        return false;
    if (strncmp(backing, m->runtime_dir, strlen(m->runtime_dir)) == 0)
        return true;
    CLEANUP_FREE struct pool_record *pools = NULL;
    size_t count = 0;
    bool ours = false;
    (void)catalogue_pool_list(m->catalogue, &pools, &count, NULL);
    for (size_t i = 0; i < count; i++)
        ours = ours || strncmp(backing, pools[i].path, strlen(pools[i].path)) == 0;
    return ours;
}

static int scan_loop(void *arg, const char *device, const char *label)
{
    const struct pool_scan *scan = arg;
    if (!attachment_known(scan->manager, label + strlen("platter/")) && loop_is_ours(scan->manager, device))
        orphan_add(scan->orphans, "loop", device, label);
    return 0;
}

/* ---- mounts, sockets, processes ---------------------------------------------------------------------------- */

static void scan_mounts(struct manager *m, json_t *orphans)
{
    CLEANUP_FCLOSE FILE *f = fopen("/proc/self/mountinfo", "re");
    char prefix[MANAGER_PATH_MAX + 8], target[CATALOGUE_PATH_MAX], line[CATALOGUE_PATH_MAX * 2];
    (void)snprintf(prefix, sizeof(prefix), "%s/fuse/", m->runtime_dir);
    while (f && fgets(line, sizeof(line), f)) {
        if (!strstr(line, " - " FUSE_MOUNT_TYPE " ") || sscanf(line, "%*s %*s %*s %*s %4095s", target) != 1)
            continue;
        if (strncmp(target, prefix, strlen(prefix)) == 0 && !attachment_known(m, target + strlen(prefix)))
            orphan_add(orphans, "mount", target, FUSE_MOUNT_TYPE);
    }
}

/* Files of RUNTIME/FOLDER that no attachment explains; their names begin with an attachment's id. */
static void scan_folder(struct manager *m, json_t *orphans, const char *folder, const char *kind)
{
    char path[MANAGER_PATH_MAX + 8];
    (void)snprintf(path, sizeof(path), "%s/%s", m->runtime_dir, folder);
    CLEANUP_CLOSEDIR DIR *dir = opendir(path);
    struct dirent *entry;
    while (dir && (entry = readdir(dir))) {
        char id[ID_MAX];
        (void)snprintf(id, sizeof(id), "%.20s", entry->d_name);
        if (entry->d_name[0] != '.' && !attachment_known(m, id))
            orphan_add(orphans, kind, entry->d_name, path);
    }
}

/* The inode of the socket that process `pid` has as descriptor 3, where platter-blk listens; 0 = none. */
static unsigned long listener_inode(const char *pid)
{
    char path[300], comm[32] = "", link[64] = "";
    (void)snprintf(path, sizeof(path), "/proc/%s/comm", pid);
    CLEANUP_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || read(fd, comm, sizeof(comm) - 1) <= 0 || strcmp(comm, "platter-blk\n") != 0)
        return 0;
    (void)snprintf(path, sizeof(path), "/proc/%s/fd/3", pid);
    unsigned long inode = 0;
    if (readlink(path, link, sizeof(link) - 1) > 0)
        inode = strncmp(link, "socket:[", 8) == 0 ? strtoul(link + 8, NULL, 10) : 0;
    return inode;
}

/* The path that the listening socket is bound to, in /proc/net/unix. */
static bool socket_path(unsigned long inode, char *path, size_t size)
{
    CLEANUP_FCLOSE FILE *f = fopen("/proc/net/unix", "re");
    char line[512], found[24], name[256];
    while (f && fgets(line, sizeof(line), f)) {
        if (sscanf(line, "%*s %*s %*s %*s %*s %*s %23s %255s", found, name) == 2 && strtoul(found, NULL, 10) == inode) {
            (void)snprintf(path, size, "%s", name);
            return true;
        }
    }
    return false;
}

static void scan_processes(struct manager *m, json_t *orphans)
{
    char prefix[MANAGER_PATH_MAX + 8], path[256], id[ID_MAX];
    (void)snprintf(prefix, sizeof(prefix), "%s/blk/", m->runtime_dir);
    CLEANUP_CLOSEDIR DIR *dir = opendir("/proc");
    struct dirent *entry;
    while (dir && (entry = readdir(dir))) {
        unsigned long inode = strspn(entry->d_name, "0123456789") ? listener_inode(entry->d_name) : 0;
        if (!inode || !socket_path(inode, path, sizeof(path)) || strncmp(path, prefix, strlen(prefix)) != 0)
            continue;
        (void)snprintf(id, sizeof(id), "%.20s", path + strlen(prefix));
        if (!attachment_known(m, id))
            orphan_add(orphans, "process", entry->d_name, path);
    }
}

int manager_orphan_list(struct manager *m, json_t **ret_orphans, struct error *err)
{
    CLEANUP_JSON json_t *orphans = json_array();
    struct pool_scan scan = {.manager = m, .orphans = orphans};
    int r = scan_pools(m, orphans, err);
    if (r == 0)
        r = loop_walk("platter/", scan_loop, &scan, err);
    if (r < 0)
        return r;
    scan_mounts(m, orphans);
    scan_folder(m, orphans, "blk", "socket");
    scan_folder(m, orphans, "vm", "socket");
    scan_folder(m, orphans, "fuse", "file");
    scan_processes(m, orphans);
    *ret_orphans = steal_ptr(&orphans);
    return 0;
}
