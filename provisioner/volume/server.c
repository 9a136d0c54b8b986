// SPDX-License-Identifier: Apache-2.0
#include "provisioner/volume/server.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "common/text.h"
#include "provisioner/volume/supervisor.h"

/* `client` is used by the jobs of the volume, one at a time; the list by all, under servers_lock. */
struct server {
    char attachment_id[ID_MAX];
    struct blk_client *client;
    int pidfd; /* our own duplicate, in the epoll set while watched; -1 = not watched */
    struct server *next;
};

static struct server *server_find(struct manager *m, const char *attachment_id)
{
    struct server *server = m->servers;
    while (server && strcmp(server->attachment_id, attachment_id) != 0)
        server = server->next;
    return server;
}

static int server_add(struct manager *m, const char *attachment_id, struct blk_client *client, struct error *err)
{
    struct server *server = malloc(sizeof(*server));
    if (!server)
        return error_sys(err, ENOMEM, "block server");
    *server = (struct server){.client = client, .pidfd = -1};
    (void)snprintf(server->attachment_id, ID_MAX, "%s", attachment_id);
    LOCK_SCOPE(&m->servers_lock);
    server->next = m->servers;
    m->servers = server;
    return 0;
}

/* Take the server out of the list; the caller frees it. NULL: there is none. */
static struct server *server_take(struct manager *m, const char *attachment_id)
{
    LOCK_SCOPE(&m->servers_lock);
    for (struct server **link = &m->servers; *link; link = &(*link)->next) {
        struct server *server = *link;
        if (strcmp(server->attachment_id, attachment_id) == 0) {
            *link = server->next;
            return server;
        }
    }
    return NULL;
}

static void server_free(struct manager *m, struct server *server)
{
    if (server->pidfd >= 0)
        (void)epoll_ctl(m->epoll_fd, EPOLL_CTL_DEL, server->pidfd, NULL);
    close_fd(&server->pidfd);
    blk_disconnect(server->client);
    free(server);
}

static int server_path(const struct manager *m, const char *attachment_id, char *path, size_t size, struct error *err)
{
    return manager_path(m, "blk", attachment_id, ".sock", path, size, err);
}

static struct blk_client *server_held(struct manager *m, const char *attachment_id)
{
    LOCK_SCOPE(&m->servers_lock);
    struct server *server = server_find(m, attachment_id);
    return server ? server->client : NULL;
}

int server_connect(struct manager *m, const char *attachment_id, struct blk_client **ret_client, struct error *err)
{
    struct blk_client *client = server_held(m, attachment_id);
    struct blk_hello hello = {0};
    if (client && blk_hello(client, &hello, NULL) == 0) {
        *ret_client = client;
        return 0;
    }
    if (client)
        server_free(m, server_take(m, attachment_id));
    char path[MANAGER_PATH_MAX];
    int r = server_path(m, attachment_id, path, sizeof(path), err);
    if (r < 0)
        return r;
    r = blk_connect(path, &client, err);
    if (r < 0)
        return r == -ECONNREFUSED ? error_set(err, ENOENT, "no block server runs for '%s'", attachment_id) : r;
    r = server_add(m, attachment_id, client, err);
    if (r < 0) {
        blk_disconnect(client);
        return r;
    }
    *ret_client = client;
    return 0;
}

int server_ensure(struct manager *m, const char *attachment_id, struct blk_client **ret_client, struct error *err)
{
    int r = server_connect(m, attachment_id, ret_client, err);
    if (r != -ENOENT)
        return r;
    error_clear(err);
    char path[MANAGER_PATH_MAX];
    r = server_path(m, attachment_id, path, sizeof(path), err);
    if (r < 0)
        return r;
    struct blk_client *client;
    r = blk_spawn(m->blk_program, path, &client, err);
    if (r < 0)
        return r;
    r = server_add(m, attachment_id, client, err);
    if (r < 0) {
        (void)blk_kill(client, NULL);
        blk_disconnect(client);
        return r;
    }
    *ret_client = client;
    return 0;
}

void server_watch(struct manager *m, const char *attachment_id)
{
    LOCK_SCOPE(&m->servers_lock);
    struct server *server = server_find(m, attachment_id);
    if (!server || server->pidfd >= 0)
        return;
    server->pidfd = fcntl(blk_pidfd(server->client), F_DUPFD_CLOEXEC, 3);
    struct epoll_event event = {.events = EPOLLIN | EPOLLONESHOT, .data.fd = server->pidfd};
    if (server->pidfd < 0 || epoll_ctl(m->epoll_fd, EPOLL_CTL_ADD, server->pidfd, &event) < 0)
        log_error("the block server of '%s' cannot be watched", attachment_id);
}

void server_unwatch(struct manager *m, const char *attachment_id)
{
    LOCK_SCOPE(&m->servers_lock);
    struct server *server = server_find(m, attachment_id);
    if (server && server->pidfd >= 0) {
        (void)epoll_ctl(m->epoll_fd, EPOLL_CTL_DEL, server->pidfd, NULL);
        close_fd(&server->pidfd);
    }
}

int server_end(struct manager *m, const char *attachment_id, struct error *err)
{
    char path[MANAGER_PATH_MAX];
    int r = server_path(m, attachment_id, path, sizeof(path), err);
    if (r < 0)
        return r;
    server_unwatch(m, attachment_id);
    struct blk_client *client;
    r = server_connect(m, attachment_id, &client, err);
    if (r == 0) {
        r = blk_close(client, err);
        if (r == -ETIMEDOUT || r == -EBADMSG || r == -EPIPE) {
            int killed = blk_kill(client, NULL);
            r = killed < 0 ? r : r == -EPIPE ? 0 : r;
        }
    } else if (r == -ENOENT) {
        r = 0;
    }
    struct server *server = server_take(m, attachment_id);
    if (server)
        server_free(m, server);
    if (unlink(path) < 0 && errno != ENOENT)
        log_warning("remove '%s': %s", path, strerror(errno));
    return r;
}

void server_disconnect_all(struct manager *m)
{
    for (;;) {
        (void)pthread_mutex_lock(&m->servers_lock);
        struct server *server = m->servers;
        if (server)
            m->servers = server->next;
        (void)pthread_mutex_unlock(&m->servers_lock);
        if (!server)
            return;
        server_free(m, server);
    }
}

/* ---- an unexpected end ------------------------------------------------------------------------------------- */

static void attachment_fail(struct manager *m, const char *attachment_id)
{
    struct attachment_record record = {0};
    struct error err = ERROR_INIT;
    int r = catalogue_begin(m->catalogue, &err);
    if (r < 0) {
        log_error("attachment '%s': %s", attachment_id, err.message);
        return;
    }
    r = catalogue_attachment_find(m->catalogue, attachment_id, &record, &err);
    if (r == 0 && strcmp(record.state, "attached") == 0) {
        text_copy(record.state, "failed");
        r = catalogue_attachment_update(m->catalogue, &record, &err);
        event_record(
            m, "attachment.failed", attachment_id,
            json_pack("{s:s, s:s}", "volume_id", record.volume_id, "cause", "its block server ended unexpectedly"));
    }
    attachment_record_done(&record);
    if (r < 0) {
        catalogue_rollback(m->catalogue);
        return;
    }
    if (catalogue_commit(m->catalogue, &err) < 0)
        log_error("attachment '%s': %s", attachment_id, err.message);
    log_error("the block server of attachment '%s' ended unexpectedly", attachment_id);
    event_announce(m);
}

/* The descriptor may have been closed and its number given to another server's between epoll_wait and here: only one
 * that tells of an end right now counts. */
void server_ended(struct manager *m, int pidfd)
{
    char attachment_id[ID_MAX] = "";
    struct pollfd ended = {.fd = pidfd, .events = POLLIN};
    (void)pthread_mutex_lock(&m->servers_lock);
    for (struct server *server = m->servers; server; server = server->next) {
        if (server->pidfd == pidfd && poll(&ended, 1, 0) == 1) {
            text_copy(attachment_id, server->attachment_id);
            (void)epoll_ctl(m->epoll_fd, EPOLL_CTL_DEL, pidfd, NULL);
            close_fd(&server->pidfd);
        }
    }
    (void)pthread_mutex_unlock(&m->servers_lock);
    if (attachment_id[0])
        attachment_fail(m, attachment_id);
}
