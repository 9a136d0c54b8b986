// SPDX-License-Identifier: Apache-2.0
// The vhost-user-blk export. One front-end at a time on the listening socket; when it goes, the next is accepted, so
// a front-end that reconnects finds us.
//
// Threads: one control thread speaks the protocol and may block; the rings are spread over I/O threads, one unless the
// machine has CPUs to spare (a second thread gains nothing on two). platter-blk's own control thread reaches the
// export's by an eventfd.
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include "common/checked.h"
#include "common/cleanup.h"
#include "provisioner/blk/export.h"
#include "provisioner/blk/vhost_user_device.h"
#include "provisioner/blk/vhost_user_message.h"
#include "provisioner/blk/vhost_user_ring.h"
#include "provisioner/blk/vhost_user_thread.h"

#define DEFAULT_QUEUES 4
#define THREADS_MAX 4
#define STACK_BYTES (256 * KIB)
#define ACCEPT_RETRY_MS 100

struct vhost_user_export {
    struct export base;
    int listen_fd;
    int wake_fd;
    pthread_t control;
    struct vhost_user_device device;
    struct vhost_user_ring *rings;
    struct vhost_user_thread *threads;
    unsigned thread_count;
    int client_fd;    /* the control thread's */
    unsigned clients; /* atomic */
    bool stopping;    /* atomic */
    bool resized;     /* atomic */
};

// ---- control thread --------------------------------------------------------------------------------------------

static void disconnect(struct vhost_user_export *x)
{
    vhost_user_device_reset(&x->device);
    close_fd(&x->client_fd);
    __atomic_store_n(&x->clients, 0, __ATOMIC_RELAXED);
}

static void serve_message(struct vhost_user_export *x)
{
    struct vhost_user_message message;
    int r = vhost_user_receive(x->client_fd, &message);
    if (r == 0)
        r = vhost_user_device_handle(&x->device, x->client_fd, &message);
    if (r < 0)
        disconnect(x);
}

static void accept_client(struct vhost_user_export *x)
{
    x->client_fd = accept4(x->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (x->client_fd >= 0) {
        __atomic_store_n(&x->clients, 1, __ATOMIC_RELAXED);
        return;
    }
    // Out of descriptors, or the socket was shut down: try again later rather than at once.
    struct pollfd p = {.fd = x->wake_fd, .events = POLLIN};
    if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
        (void)poll(&p, 1, ACCEPT_RETRY_MS);
}

static void *control_main(void *argument)
{
    struct vhost_user_export *x = argument;
    while (!__atomic_load_n(&x->stopping, __ATOMIC_ACQUIRE)) {
        struct pollfd p[2] = {
            {.fd = x->wake_fd, .events = POLLIN},
            {.fd = x->client_fd >= 0 ? x->client_fd : x->listen_fd, .events = POLLIN},
        };
        if (poll(p, ARRAY_SIZE(p), -1) < 0)
            continue; // EINTR
        uint64_t value;
        if (p[0].revents && read(x->wake_fd, &value, sizeof(value)) < 0)
            continue;
        if (__atomic_exchange_n(&x->resized, false, __ATOMIC_ACQUIRE))
            vhost_user_device_announce(&x->device);
        if (!p[1].revents || p[0].revents)
            continue;
        if (x->client_fd >= 0)
            serve_message(x);
        else
            accept_client(x);
    }
    disconnect(x);
    return NULL;
}

static int control_start(struct vhost_user_export *x)
{
    sigset_t all, before;
    pthread_attr_t attributes;
    (void)sigfillset(&all);
    (void)pthread_attr_init(&attributes);
    (void)pthread_attr_setstacksize(&attributes, STACK_BYTES);
    (void)pthread_sigmask(SIG_SETMASK, &all, &before);
    int r = pthread_create(&x->control, &attributes, control_main, x);
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    (void)pthread_attr_destroy(&attributes);
    if (r == 0)
        (void)pthread_setname_np(x->control, "vhost-control");
    return -r;
}

// ---- export_ops ------------------------------------------------------------------------------------------------

static void wake(struct vhost_user_export *x)
{
    const uint64_t one = 1;
    if (write(x->wake_fd, &one, sizeof(one)) < 0)
        return; // full: it is awake
}

// PLATTER_VHOST_THREADS lets tests have several on a small machine.
static unsigned threads_for(unsigned queues)
{
    const char *forced = getenv("PLATTER_VHOST_THREADS");
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    unsigned spare = cpus > 2 ? (unsigned)cpus - 1 : 1;
    if (forced)
        spare = MAX((unsigned)strtoul(forced, NULL, 10), 1u);
    return MIN(queues, MIN(spare, (unsigned)THREADS_MAX));
}

static void vhost_user_free(struct vhost_user_export *x)
{
    for (unsigned i = 0; i < x->thread_count; i++)
        vhost_user_thread_stop(&x->threads[i]);
    close_fd(&x->wake_fd);
    free(x->threads);
    free(x->rings);
    free(x);
}

static void cleanup_export(struct vhost_user_export **x)
{
    if (*x)
        vhost_user_free(*x);
}

static void describe_volume(const struct export_options *options, unsigned queues, struct virtio_blk_volume *volume)
{
    *volume = (struct virtio_blk_volume){.queues = queues};
    image_geometry(options->image, &volume->geometry);
    volume->read_only = options->read_only || volume->geometry.read_only;
    if (options->serial)
        memcpy(volume->serial, options->serial, strnlen(options->serial, sizeof(volume->serial)));
}

static int threads_start(struct vhost_user_export *x, const struct export_options *options, unsigned queues,
                         struct error *err)
{
    unsigned count = threads_for(queues);
    x->threads = calloc(count, sizeof(*x->threads));
    x->rings = calloc(queues, sizeof(*x->rings));
    if (!x->threads || !x->rings)
        return error_sys(err, ENOMEM, "vhost-user export '%s'", options->name);
    for (unsigned i = 0; i < count; i++) {
        int r = vhost_user_thread_start(&x->threads[i], options->image, options->engine, i, err);
        if (r < 0)
            return r;
        x->thread_count++;
    }
    for (unsigned i = 0; i < queues; i++)
        vhost_user_ring_create(&x->rings[i], i, &x->threads[i % count]);
    return 0;
}

static int vhost_user_start(const struct export_options *options, struct export **ret_export, struct error *err)
{
    unsigned queues = options->queues ? options->queues : DEFAULT_QUEUES;
    if (queues > VHOST_USER_QUEUES_MAX)
        return error_set(err, EINVAL, "export '%s': at most %d queues", options->name, VHOST_USER_QUEUES_MAX);
    CLEANUP(cleanup_export) struct vhost_user_export *x = calloc(1, sizeof(*x));
    if (!x)
        return error_sys(err, ENOMEM, "vhost-user export '%s'", options->name);
    x->base.ops = &vhost_user_export_ops;
    x->listen_fd = x->client_fd = -1;
    x->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (x->wake_fd < 0)
        return error_sys(err, errno, "eventfd");
    int r = threads_start(x, options, queues, err);
    if (r < 0)
        return r;
    struct virtio_blk_volume volume;
    describe_volume(options, queues, &volume);
    vhost_user_device_init(&x->device, &volume, x->rings);
    // poll() may tell of a client that is gone again by the time of accept().
    int flags = fcntl(options->fd, F_GETFL);
    if (flags < 0 || fcntl(options->fd, F_SETFL, flags | O_NONBLOCK) < 0)
        return error_sys(err, errno, "export '%s': listening socket", options->name);
    x->listen_fd = options->fd;
    r = control_start(x);
    if (r < 0)
        return error_sys(err, -r, "start the vhost-user control thread");
    *ret_export = &steal_ptr(&x)->base;
    return 0;
}

static void vhost_user_stop(struct export *export)
{
    struct vhost_user_export *x = (struct vhost_user_export *)export;
    __atomic_store_n(&x->stopping, true, __ATOMIC_RELEASE);
    wake(x);
    (void)pthread_join(x->control, NULL);
    close_fd(&x->listen_fd);
    vhost_user_free(x);
}

static void vhost_user_resized(struct export *export, uint64_t size)
{
    struct vhost_user_export *x = (struct vhost_user_export *)export;
    __atomic_store_n(&x->device.size, size, __ATOMIC_RELAXED);
    __atomic_store_n(&x->resized, true, __ATOMIC_RELEASE);
    wake(x);
}

static uint64_t counter_read(const uint64_t *counter)
{
    return __atomic_load_n(counter, __ATOMIC_RELAXED);
}

static void vhost_user_stats(struct export *export, struct export_stats *ret_stats)
{
    struct vhost_user_export *x = (struct vhost_user_export *)export;
    struct export_stats stats = {.clients = __atomic_load_n(&x->clients, __ATOMIC_RELAXED)};
    for (unsigned i = 0; i < x->thread_count; i++) {
        const struct vhost_user_counters *c = &x->threads[i].counters;
        stats.reads += counter_read(&c->reads);
        stats.writes += counter_read(&c->writes);
        stats.flushes += counter_read(&c->flushes);
        stats.discards += counter_read(&c->discards);
        stats.read_bytes += counter_read(&c->read_bytes);
        stats.write_bytes += counter_read(&c->write_bytes);
        stats.errors += counter_read(&c->errors);
    }
    *ret_stats = stats;
}

const struct export_ops vhost_user_export_ops = {
    .kind = "vhost-user-blk",
    .start = vhost_user_start,
    .stop = vhost_user_stop,
    .resized = vhost_user_resized,
    .stats = vhost_user_stats,
};
