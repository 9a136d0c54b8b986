// SPDX-License-Identifier: Apache-2.0
// The NBD export: its threads, the listener, start and stop.
//
// Threads: one unless more are asked for; the first also accepts, and deals connections out in turn. A client keeps
// the size that it was told, for the protocol has no word for a new one; who connects after a resize sees it.
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "common/checked.h"
#include "common/cleanup.h"
#include "provisioner/blk/nbd_connection.h"
#include "provisioner/blk/nbd_export.h"

#define RETRY_NS UINT64_C(100000000)
#define PREFERRED_MIN 4096u
#define SEND_BUFFER (1 << 20)

/* ---- the listener (first thread) ---- */

static void accept_client(struct nbd_export *export, int fd)
{
    int size = SEND_BUFFER;
    if (atomic_load(&export->clients) >= NBD_CONNECTIONS_MAX) {
        (void)close(fd);
        return;
    }
    (void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size)); /* fewer wake-ups for large answers */
    struct nbd_thread *thread = &export->threads[export->next_thread++ % export->thread_count];
    (void)nbd_connection_create(thread, fd); /* without memory the client is dropped */
}

/* The accepted sockets block: io_uring waits on such ones by itself. */
static void accept_all(struct nbd_export *export)
{
    for (;;) {
        int fd = accept4(export->fd, NULL, NULL, SOCK_CLOEXEC);
        if (fd >= 0) {
            accept_client(export, fd);
        } else if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) {
            io_timer_arm(export->threads[0].base.loop, &export->retry, RETRY_NS);
            return;
        } else if (errno != EINTR && errno != ECONNABORTED) {
            return;
        }
    }
}

static void listener_ready(struct io_watch *watch, uint32_t revents)
{
    (void)revents;
    accept_all((void *)((char *)watch - offsetof(struct nbd_export, listener)));
}

static void listener_retry(struct io_timer *timer)
{
    accept_all((void *)((char *)timer - offsetof(struct nbd_export, retry)));
}

static void listener_start(struct io_task *task)
{
    struct nbd_export *export = (void *)((char *)task - offsetof(struct nbd_export, call));
    export->listen_result = io_watch_add(export->threads[0].base.loop, &export->listener);
    (void)sem_post(&export->called);
}

static void listener_stop(struct io_task *task)
{
    struct nbd_export *export = (void *)((char *)task - offsetof(struct nbd_export, call));
    io_timer_cancel(export->threads[0].base.loop, &export->retry);
    if (export->listener.active)
        io_watch_remove(export->threads[0].base.loop, &export->listener);
    (void)sem_post(&export->called);
}

/* Control thread: let the first thread run one of the two above. */
static void listener_call(struct nbd_export *export, void (*run)(struct io_task *task))
{
    export->call.run = run;
    io_loop_post(export->threads[0].base.loop, &export->call);
    while (sem_wait(&export->called) < 0 && errno == EINTR)
        ;
}

/* ---- threads ---- */

static bool send_answers(struct io_hook *hook)
{
    struct nbd_thread *thread = (void *)((char *)hook - offsetof(struct nbd_thread, hook));
    while (thread->dirty) {
        struct nbd_connection *connection = thread->dirty;
        thread->dirty = connection->next_dirty;
        connection->dirty = false;
        nbd_reply_send(connection);
    }
    return false;
}

static void thread_end(struct nbd_thread *thread)
{
    io_timer_cancel(thread->base.loop, &thread->deadline);
    io_loop_remove_hook(thread->base.loop, &thread->hook);
    io_loop_stop(thread->base.loop);
}

void nbd_thread_connection_gone(struct nbd_thread *thread)
{
    if (thread->stopping && !thread->connections)
        thread_end(thread);
}

static void end_all(struct nbd_thread *thread, bool now)
{
    struct nbd_connection *next;
    for (struct nbd_connection *connection = thread->connections; connection; connection = next) {
        next = connection->next;
        if (now || connection->phase != NBD_PHASE_TRANSMISSION)
            nbd_connection_break(connection);
        else
            nbd_connection_end(connection);
        nbd_connection_check(connection);
    }
}

static void stop_late(struct io_timer *timer)
{
    end_all((void *)((char *)timer - offsetof(struct nbd_thread, deadline)), true);
}

static void thread_stop(struct io_task *task)
{
    struct nbd_thread *thread = (void *)((char *)task - offsetof(struct nbd_thread, stop));
    io_timer_arm(thread->base.loop, &thread->deadline, NBD_STOP_NS);
    end_all(thread, false);
    thread->stopping = true;
    if (!thread->connections)
        thread_end(thread);
}

static void thread_begin(struct io_task *task)
{
    struct nbd_thread *thread = (void *)((char *)task - offsetof(struct nbd_thread, stop));
    io_loop_add_hook(thread->base.loop, &thread->hook);
    (void)sem_post(&thread->export->called);
}

static int thread_start(struct nbd_export *export, unsigned index, enum io_engine engine, struct error *err)
{
    struct nbd_thread *thread = &export->threads[index];
    char name[16];
    (void)snprintf(name, sizeof(name), "nbd-io-%u", index);
    int r = export_thread_start(&thread->base, export->image, engine, -1, name, err);
    if (r < 0)
        return r;
    export->thread_count++;
    thread->export = export;
    thread->hook.before_wait = send_answers;
    thread->deadline.fire = stop_late;
    thread->stop.run = thread_begin;
    io_loop_post(thread->base.loop, &thread->stop);
    while (sem_wait(&export->called) < 0 && errno == EINTR)
        ;
    return 0;
}

static void threads_stop(struct nbd_export *export)
{
    for (unsigned i = 0; i < export->thread_count; i++) {
        export->threads[i].stop.run = thread_stop;
        io_loop_post(export->threads[i].base.loop, &export->threads[i].stop);
    }
    for (unsigned i = 0; i < export->thread_count; i++)
        export_thread_join(&export->threads[i].base);
}

/* ---- export.h (control thread) ---- */

static void destroy(struct nbd_export *export)
{
    if (!export)
        return;
    threads_stop(export);
    (void)sem_destroy(&export->called);
    cleanup_close(&export->fd);
    free(export->name);
    free(export);
}

static int check_socket(int fd, struct error *err)
{
    int listening = 0;
    socklen_t length = sizeof(listening);
    if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &length) < 0)
        return error_sys(err, errno, "nbd: the export's descriptor");
    if (!listening)
        return error_set(err, EINVAL, "nbd: the export's socket does not listen");
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
        return error_sys(err, errno, "nbd: make the listening socket non-blocking");
    return 0;
}

static struct nbd_export *create(const struct export_options *options)
{
    struct nbd_export *export = calloc(1, sizeof(*export));
    if (!export)
        return NULL;
    struct image_geometry geometry;
    image_geometry(options->image, &geometry);
    export->base.ops = &nbd_export_ops;
    export->image = options->image;
    export->fd = -1;
    export->read_only = options->read_only || geometry.read_only;
    export->fast_zero = geometry.discard;
    export->preferred = PREFERRED_MIN;
    if (is_power_of_two(geometry.preferred))
        export->preferred = MIN(MAX(geometry.preferred, PREFERRED_MIN), NBD_PAYLOAD_MAX);
    atomic_store(&export->size, geometry.size);
    (void)sem_init(&export->called, 0, 0);
    export->name = strdup(options->name ? options->name : "");
    if (!export->name) {
        destroy(export);
        return NULL;
    }
    return export;
}

static int nbd_start(const struct export_options *options, struct export **ret_export, struct error *err)
{
    if (options->name && strlen(options->name) > NBD_NAME_MAX)
        return error_set(err, EINVAL, "nbd: the export's name is longer than %u bytes", NBD_NAME_MAX);
    int r = check_socket(options->fd, err);
    if (r < 0)
        return r;
    struct nbd_export *export = create(options);
    if (!export)
        return error_sys(err, ENOMEM, "nbd: start an export");
    unsigned threads = MIN(MAX(options->queues, 1u), NBD_THREADS_MAX);
    for (unsigned i = 0; i < threads && r == 0; i++)
        r = thread_start(export, i, options->engine, err);
    if (r < 0) {
        destroy(export);
        return r;
    }
    export->fd = options->fd;
    export->listener = (struct io_watch){.fd = export->fd, .events = POLLIN, .ready = listener_ready};
    export->retry.fire = listener_retry;
    listener_call(export, listener_start);
    if (export->listen_result < 0) {
        r = error_sys(err, export->listen_result, "nbd: watch the listening socket");
        export->fd = -1; /* still the caller's */
        destroy(export);
        return r;
    }
    *ret_export = &export->base;
    return 0;
}

static void nbd_stop(struct export *base)
{
    struct nbd_export *export = (struct nbd_export *)base;
    listener_call(export, listener_stop);
    destroy(export);
}

static void nbd_resized(struct export *base, uint64_t size)
{
    struct nbd_export *export = (struct nbd_export *)base;
    atomic_store(&export->size, size);
}

static void nbd_stats(struct export *base, struct export_stats *ret_stats)
{
    const struct nbd_export *export = (struct nbd_export *)base;
    *ret_stats = (struct export_stats){.clients = atomic_load(&export->clients)};
    for (unsigned i = 0; i < export->thread_count; i++)
        export_counters_add(&export->threads[i].base, ret_stats);
}

const struct export_ops nbd_export_ops = {
    .kind = "nbd",
    .start = nbd_start,
    .stop = nbd_stop,
    .resized = nbd_resized,
    .stats = nbd_stats,
};
