// SPDX-License-Identifier: Apache-2.0
#include "provisioner/api/listen.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <systemd/sd-daemon.h>

#include "common/cleanup.h"

#define BACKLOG 128

static int from_systemd(int *ret_fd, struct error *err)
{
    int count = sd_listen_fds(1);
    if (count <= 0)
        return count < 0 ? error_sys(err, count, "the sockets of systemd") : 0;
    if (count > 1)
        return error_set(err, EINVAL, "systemd passed %d sockets; one is expected", count);
    if (sd_is_socket_unix(SD_LISTEN_FDS_START, SOCK_STREAM, 1, NULL, 0) <= 0)
        return error_set(err, EINVAL, "systemd passed something else than a listening Unix stream socket");
    int flags = fcntl(SD_LISTEN_FDS_START, F_GETFL);
    if (flags < 0 || fcntl(SD_LISTEN_FDS_START, F_SETFL, flags | O_NONBLOCK) < 0)
        return error_sys(err, errno, "the socket of systemd");
    *ret_fd = SD_LISTEN_FDS_START;
    return 1;
}

/* Removes a socket at `address` that nobody listens on. */
static int remove_stale(const struct sockaddr_un *address, struct error *err)
{
    struct stat st;
    if (lstat(address->sun_path, &st) < 0)
        return errno == ENOENT ? 0 : error_sys(err, errno, "%s", address->sun_path);
    if (!S_ISSOCK(st.st_mode))
        return error_set(err, EEXIST, "%s is there and is no socket", address->sun_path);
    CLEANUP_CLOSE int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return error_sys(err, errno, "socket");
    if (connect(fd, (const struct sockaddr *)address, sizeof(*address)) == 0 || errno == EAGAIN) {
        (void)error_set(err, EBUSY, "another platterd listens on %s", address->sun_path);
        return error_code(err, "already-running");
    }
    if (errno != ECONNREFUSED)
        return error_sys(err, errno, "%s", address->sun_path);
    if (unlink(address->sun_path) < 0 && errno != ENOENT)
        return error_sys(err, errno, "%s", address->sun_path);
    return 0;
}

static int make_socket(const struct config *config, int *ret_fd, struct error *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    (void)snprintf(address.sun_path, sizeof(address.sun_path), "%s", config->socket);
    int r = remove_stale(&address, err);
    if (r < 0)
        return r;
    CLEANUP_CLOSE int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return error_sys(err, errno, "socket");
    mode_t saved = umask(0177);
    r = bind(fd, (const struct sockaddr *)&address, sizeof(address)) < 0 ? -errno : 0;
    (void)umask(saved);
    if (r < 0)
        return error_sys(err, r, "%s", config->socket);
    /* Nobody can connect before listen(), so nobody sees the socket before it has its owner and mode. */
    if (config->group_id != (gid_t)-1 && lchown(config->socket, (uid_t)-1, config->group_id) < 0)
        r = -errno;
    if (r == 0 && chmod(config->socket, config->socket_mode) < 0)
        r = -errno;
    if (r == 0 && listen(fd, BACKLOG) < 0)
        r = -errno;
    if (r < 0) {
        (void)unlink(config->socket);
        return error_sys(err, r, "%s", config->socket);
    }
    *ret_fd = steal_fd(&fd);
    return 0;
}

int listen_open(const struct config *config, int *ret_fd, bool *ret_own, struct error *err)
{
    int r = from_systemd(ret_fd, err);
    if (r != 0) {
        *ret_own = false;
        return r < 0 ? r : 0;
    }
    r = make_socket(config, ret_fd, err);
    if (r == 0)
        *ret_own = true;
    return r;
}
