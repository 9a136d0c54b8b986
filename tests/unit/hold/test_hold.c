// SPDX-License-Identifier: Apache-2.0
/*
 * Holding real block servers under a writer that goes from one to the next: nothing is answered while all are held, snapshots
 * within the holds show one point in time, and a hold that nobody ends ends by itself.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/checked.h"
#include "provisioner/node/blk_client.h"
#include "tests/lib/vhost_client.h"

#define SERVERS 2
#define SIZE (8 * MIB)
#define BLOCK 4096u
#define SNAPSHOTS 5
#define PATIENCE_S 20 /* less than the longest hold */
#define LONGEST_MS 30000

static char dir[] = "/tmp/platter-hold.XXXXXX";
static char binary[PATH_MAX];
static struct blk_worker worker;

struct server {
    struct blk_client *client;
    struct vhost_client *disk;
    int fds[SNAPSHOTS + 1]; /* layers, the first at the bottom */
    unsigned layers;
};

static struct server servers[SERVERS];
static pthread_t writer;
static _Atomic uint64_t written; /* to all servers, acknowledged */
static _Atomic bool stop, broken;

#define OK(call)                                                                                                       \
    do {                                                                                                               \
        struct error err = ERROR_INIT;                                                                                 \
        int r_ = (call);                                                                                               \
        if (r_ < 0)                                                                                                    \
            fail_msg("%s: %s", #call, err.message);                                                                    \
    } while (0)

#define REFUSED(call, number, text)                                                                                    \
    do {                                                                                                               \
        struct error err = ERROR_INIT;                                                                                 \
        int r_ = (call);                                                                                               \
        if (r_ != (number) || !strstr(err.message, text))                                                              \
            fail_msg("%s: %d, %s", #call, r_, err.message);                                                            \
    } while (0)

/* ---- servers and the writer -------------------------------------------------------------------------------------- */

static void in_dir(char path[PATH_MAX], size_t server, const char *name)
{
    (void)snprintf(path, PATH_MAX, "%s/%zu.%s", dir, server, name);
}

/* A new layer of the server's image, not on top yet. */
static int new_layer(size_t server, unsigned number)
{
    char path[PATH_MAX], name[16], below[16];
    (void)snprintf(name, sizeof(name), "%u.qcow2", number);
    (void)snprintf(below, sizeof(below), "%zu.%u.qcow2", server, number - 1);
    in_dir(path, server, name);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    struct blk_create create = {.format = "qcow2", .size = SIZE, .extended_l2 = true};
    if (number) {
        create.backing = below;
        create.backing_format = "qcow2";
    }
    OK(blk_worker_create(&worker, fd, &create, &err));
    return fd;
}

static int listen_on(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    (void)snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    assert_int_equal(listen(fd, 4), 0);
    return fd;
}

static void start_server(size_t i)
{
    struct server *s = &servers[i];
    char path[PATH_MAX];
    struct blk_geometry geometry;
    *s = (struct server){.layers = 1};
    s->fds[0] = new_layer(i, 0);
    in_dir(path, i, "control");
    OK(blk_spawn(binary, path, &s->client, &err));
    OK(blk_open(s->client, &(struct blk_layer){"qcow2", s->fds[0]}, 1, false, 0, &geometry, &err));
    in_dir(path, i, "disk");
    (void)unlink(path);
    int fd = listen_on(path);
    OK(blk_export(s->client, &(struct blk_export){.name = "e", .kind = "vhost-user-blk", .queues = 1}, fd, &err));
    (void)close(fd);
    assert_int_equal(vhost_client_connect(&(struct vhost_client_options){.socket = path}, &s->disk), 0);
}

/* n to each in turn, in a new place each time and in the same one. */
static void *writer_main(void *arg)
{
    (void)arg;
    for (uint64_t n = 1; !atomic_load(&stop); n++) {
        for (size_t i = 0; i < SERVERS; i++) {
            uint8_t *buffer = vhost_client_buffer(servers[i].disk, 0, 0);
            memcpy(buffer, &n, sizeof(n));
            if (vhost_client_do(servers[i].disk, 0, VIRTIO_BLK_T_OUT, 8 * (1 + n % 1000), BLOCK, 0) != 0 ||
                vhost_client_do(servers[i].disk, 0, VIRTIO_BLK_T_OUT, 0, BLOCK, 0) != 0) {
                atomic_store(&broken, true);
                return NULL;
            }
        }
        atomic_store(&written, n);
    }
    return NULL;
}

static int64_t now_s(void)
{
    struct timespec ts;
    (void)clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec;
}

static void wait_for_writes(void)
{
    uint64_t from = atomic_load(&written);
    int64_t end = now_s() + PATIENCE_S;
    while (atomic_load(&written) < from + 3) {
        if (atomic_load(&broken) || now_s() > end)
            fail_msg("the writer does not go on");
        (void)nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
}

static int begin(void **state)
{
    (void)state;
    atomic_store(&stop, false);
    atomic_store(&written, 0);
    for (size_t i = 0; i < SERVERS; i++)
        start_server(i);
    assert_int_equal(pthread_create(&writer, NULL, writer_main, NULL), 0);
    wait_for_writes();
    return 0;
}

static void end_writer(void)
{
    if (!atomic_exchange(&stop, true))
        assert_int_equal(pthread_join(writer, NULL), 0);
}

static int end(void **state)
{
    (void)state;
    end_writer();
    for (size_t i = 0; i < SERVERS; i++) {
        struct server *s = &servers[i];
        s->disk = vhost_client_close(s->disk);
        (void)blk_kill(s->client, NULL);
        s->client = blk_disconnect(s->client);
        for (unsigned k = 0; k < s->layers; k++)
            (void)close(s->fds[k]);
    }
    return 0;
}

/* ---- the tests --------------------------------------------------------------------------------------------------- */

/* What the `count` lowest layers of the server hold in block 0. */
static uint64_t number_in(size_t server, unsigned count)
{
    struct blk_layer layers[SNAPSHOTS + 1];
    char path[PATH_MAX];
    uint64_t number = 0;
    for (unsigned i = 0; i < count; i++)
        layers[i] = (struct blk_layer){"qcow2", servers[server].fds[count - 1 - i]};
    in_dir(path, server, "copy");
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    OK(blk_worker_convert(&worker, layers, count, fd, &(struct blk_create){.format = "raw"}, NULL, &err));
    (void)close(fd);
    fd = open(path, O_RDONLY | O_CLOEXEC); /* the other one is for direct I/O now */
    assert_int_equal(pread(fd, &number, sizeof(number), 0), sizeof(number));
    (void)close(fd);
    return number;
}

static void snapshots_within_holds_show_one_moment(void **state)
{
    (void)state;
    uint64_t tokens[SERVERS], counts[SNAPSHOTS];
    for (unsigned n = 0; n < SNAPSHOTS; n++) {
        char id[16];
        bool held = false;
        (void)snprintf(id, sizeof(id), "layer-%u", n + 1);
        for (size_t i = 0; i < SERVERS; i++)
            servers[i].fds[servers[i].layers] = new_layer(i, n + 1);
        for (size_t i = 0; i < SERVERS; i++)
            OK(blk_hold(servers[i].client, LONGEST_MS, &tokens[i], &err));
        counts[n] = atomic_load(&written);
        for (size_t i = 0; i < SERVERS; i++) {
            struct blk_layer layer = {"qcow2", servers[i].fds[servers[i].layers++]};
            OK(blk_snapshot_held(servers[i].client, id, &layer, tokens[i], &err));
        }
        uint64_t after = atomic_load(&written);
        if (after > counts[n] + 1) /* the last answer may have come before the hold */
            fail_msg("written while held: %ju, then %ju", (uintmax_t)counts[n], (uintmax_t)after);
        for (size_t i = 0; i < SERVERS; i++) {
            OK(blk_release(servers[i].client, tokens[i], &held, &err));
            assert_true(held);
        }
        wait_for_writes();
    }
    end_writer();
    for (unsigned n = 0; n < SNAPSHOTS; n++) {
        uint64_t first = number_in(0, n + 1), second = number_in(1, n + 1);
        if (second > first || first > second + 1 || second < counts[n] || second > counts[n] + 1)
            fail_msg("snapshot %u: %ju and %ju, held at %ju", n, (uintmax_t)first, (uintmax_t)second,
                     (uintmax_t)counts[n]);
    }
}

static void a_hold_ends_at_its_deadline(void **state)
{
    (void)state;
    uint64_t token;
    bool held = true;
    int fd = new_layer(0, 1);
    OK(blk_hold(servers[0].client, 100, &token, &err));
    wait_for_writes();
    REFUSED(blk_snapshot_held(servers[0].client, "late", &(struct blk_layer){"qcow2", fd}, token, &err), -ESTALE,
            "hold");
    OK(blk_release(servers[0].client, token, &held, &err));
    assert_false(held);
    OK(blk_hold(servers[0].client, LONGEST_MS, &token, &err));
    OK(blk_snapshot_held(servers[0].client, "in time", &(struct blk_layer){"qcow2", fd}, token, &err));
    OK(blk_release(servers[0].client, token, &held, &err));
    assert_true(held);
    wait_for_writes();
    servers[0].fds[servers[0].layers++] = fd;
}

static void a_hold_ends_with_its_connection(void **state)
{
    (void)state;
    struct blk_client *other;
    char path[PATH_MAX];
    uint64_t token;
    in_dir(path, 0, "control");
    OK(blk_connect(path, &other, &err));
    OK(blk_hold(other, LONGEST_MS, &token, &err));
    other = blk_disconnect(other);
    wait_for_writes();
}

static void what_would_wait_for_the_end_is_refused(void **state)
{
    (void)state;
    struct blk_client *client = servers[0].client;
    struct blk_hello hello;
    uint64_t token, second;
    int fd = new_layer(0, 1);
    struct blk_layer layer = {"qcow2", fd};
    REFUSED(blk_hold(client, LONGEST_MS + 1, &token, &err), -EINVAL, "deadline_ms");
    OK(blk_hold(client, LONGEST_MS, &token, &err));
    REFUSED(blk_hold(client, LONGEST_MS, &second, &err), -EBUSY, "held already");
    REFUSED(blk_flush(client, &err), -EBUSY, "held");
    REFUSED(blk_resize(client, 2 * SIZE, &err), -EBUSY, "held");
    REFUSED(blk_snapshot(client, "x", &layer, &err), -EBUSY, "held");
    REFUSED(blk_snapshot_held(client, "x", &layer, token + 1, &err), -ESTALE, "hold");
    OK(blk_hello(client, &hello, &err));
    assert_int_equal(hello.state, BLK_OPEN);
    OK(blk_release(client, token, NULL, &err));
    OK(blk_flush(client, &err));
    wait_for_writes();
    (void)close(fd);
    end_writer();
    OK(blk_hold(client, LONGEST_MS, &token, &err));
    OK(blk_close(client, &err));
}

static int set_up(void **state)
{
    (void)state;
    char self[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
    assert_true(n > 0);
    self[n] = 0;
    *strrchr(self, '/') = 0;
    (void)snprintf(binary, sizeof(binary), "%.3900s/../bin/platter-blk", self);
    worker.binary = binary;
    assert_non_null(mkdtemp(dir));
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    char command[PATH_MAX];
    (void)snprintf(command, sizeof(command), "rm -rf %s", dir);
    return system(command);
}

int main(void)
{
    (void)signal(SIGPIPE, SIG_IGN);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(snapshots_within_holds_show_one_moment, begin, end),
        cmocka_unit_test_setup_teardown(a_hold_ends_at_its_deadline, begin, end),
        cmocka_unit_test_setup_teardown(a_hold_ends_with_its_connection, begin, end),
        cmocka_unit_test_setup_teardown(what_would_wait_for_the_end_is_refused, begin, end),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
