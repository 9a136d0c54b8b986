// SPDX-License-Identifier: Apache-2.0
/* platterd's calls against real platter-blk processes: servers that outlive connections, and workers. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/checked.h"
#include "provisioner/node/blk_client.h"

static char dir[] = "/tmp/platter-client.XXXXXX";
static char binary[PATH_MAX];
static struct blk_worker worker;

static const char *in_dir(const char *name)
{
    static char path[2][PATH_MAX];
    static unsigned turn;
    turn ^= 1;
    (void)snprintf(path[turn], sizeof(path[turn]), "%s/%s", dir, name);
    return path[turn];
}

static int new_file(const char *name)
{
    int fd = open(in_dir(name), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    return fd;
}

/* A sparse raw file of `size` bytes with 64 KiB of `byte` at `offset`. */
static int raw_file(const char *name, uint64_t size, uint64_t offset, int byte)
{
    int fd = new_file(name);
    static char data[65536];
    memset(data, byte, sizeof(data));
    assert_int_equal(ftruncate(fd, (off_t)size), 0);
    if (byte)
        assert_int_equal(pwrite(fd, data, sizeof(data), (off_t)offset), sizeof(data));
    return fd;
}

#define OK(call)                                                                                                       \
    do {                                                                                                               \
        struct error err = ERROR_INIT;                                                                                 \
        int r_ = (call);                                                                                               \
        if (r_ < 0)                                                                                                    \
            (void)fprintf(stderr, "%s\n", err.message);                                                                \
        assert_int_equal(r_, 0);                                                                                       \
    } while (0)

#define REFUSED(call, number, text)                                                                                    \
    do {                                                                                                               \
        struct error err = ERROR_INIT;                                                                                 \
        int r_ = (call);                                                                                               \
        if (!strstr(err.message, text))                                                                                \
            (void)fprintf(stderr, "message: %s\n", err.message);                                                       \
        assert_int_equal(r_, number);                                                                                  \
        assert_non_null(strstr(err.message, text));                                                                    \
    } while (0)

static struct blk_client *spawn_server(void)
{
    struct blk_client *client = NULL;
    OK(blk_spawn(binary, in_dir("s.sock"), &client, &err));
    return client;
}

static void close_server(struct blk_client *client)
{
    OK(blk_close(client, &err));
    (void)blk_disconnect(client);
    assert_int_equal(access(in_dir("s.sock"), F_OK), -1);
}

static int listen_on(const char *name)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    (void)snprintf(address.sun_path, sizeof(address.sun_path), "%s/%s", dir, name);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    assert_int_equal(listen(fd, 4), 0);
    return fd;
}

static void a_server_outlives_its_connection(void **state)
{
    (void)state;
    struct blk_hello hello;
    struct blk_client *client = spawn_server();
    pid_t pid = blk_pid(client);
    struct stat st;
    assert_int_equal(stat(in_dir("s.sock"), &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    OK(blk_hello(client, &hello, &err));
    assert_int_equal(hello.state, BLK_EMPTY);
    assert_int_equal(getsid(pid), pid);
    (void)blk_disconnect(client);
    assert_int_equal(kill(pid, SIGINT), 0);
    OK(blk_connect(in_dir("s.sock"), &client, &err));
    assert_int_equal(blk_pid(client), pid);
    close_server(client);
    struct blk_client *none;
    REFUSED(blk_connect(in_dir("s.sock"), &none, &err), -ENOENT, "connect");
}

static void an_image_is_opened_exported_grown_and_closed(void **state)
{
    (void)state;
    int fd = raw_file("disk", 8 * MIB, 0, 1);
    struct blk_client *client = spawn_server();
    struct blk_geometry geometry;
    struct blk_layer layer = {"raw", fd};
    REFUSED(blk_flush(client, &err), -EINVAL, "no image");
    REFUSED(blk_open(client, &(struct blk_layer){"wrong", fd}, 1, false, 0, &geometry, &err), -EINVAL, "wrong");
    OK(blk_open(client, &layer, 1, false, 0, &geometry, &err));
    assert_int_equal(geometry.size, 8 * MIB);
    REFUSED(blk_open(client, &layer, 1, false, 0, &geometry, &err), -EBUSY, "open already");
    struct blk_export export = {.name = "e", .kind = "vhost-user-blk", .queues = 1, .serial = "s1"};
    int listener = listen_on("e.sock");
    REFUSED(blk_export(client, &(struct blk_export){.name = "e", .kind = "tape"}, listener, &err), -EOPNOTSUPP, "tape");
    OK(blk_export(client, &export, listener, &err));
    REFUSED(blk_export(client, &export, listener, &err), -EEXIST, "already");
    (void)close(listener);
    OK(blk_resize(client, 16 * MIB, &err));
    REFUSED(blk_resize(client, MIB, &err), -EINVAL, "");
    OK(blk_flush(client, &err));
    (void)blk_disconnect(client);
    OK(blk_connect(in_dir("s.sock"), &client, &err));
    struct blk_hello hello;
    OK(blk_hello(client, &hello, &err));
    assert_int_equal(hello.state, BLK_OPEN);
    assert_int_equal(hello.size, 16 * MIB);
    assert_int_equal(hello.export_count, 1);
    assert_string_equal(hello.exports[0].kind, "vhost-user-blk");
    json_t *stats;
    OK(blk_stats(client, &stats, &err));
    assert_int_equal(json_array_size(json_object_get(stats, "exports")), 1);
    json_decref(stats);
    REFUSED(blk_unexport(client, "x", &err), -ENOENT, "'x'");
    OK(blk_unexport(client, "e", &err));
    close_server(client);
    (void)close(fd);
}

static bool ends(struct blk_client *client)
{
    struct pollfd p = {.fd = blk_pidfd(client), .events = POLLIN};
    return poll(&p, 1, 20000) == 1;
}

static void sigterm_closes_and_kill_kills(void **state)
{
    (void)state;
    int fd = raw_file("disk", 8 * MIB, 0, 1);
    struct blk_client *client = spawn_server();
    struct blk_geometry geometry;
    OK(blk_open(client, &(struct blk_layer){"raw", fd}, 1, false, 0, &geometry, &err));
    assert_int_equal(kill(blk_pid(client), SIGTERM), 0);
    assert_true(ends(client));
    REFUSED(blk_flush(client, &err), -EPIPE, "flush");
    (void)blk_disconnect(client);
    client = spawn_server(); /* over the socket file that was left */
    OK(blk_kill(client, &err));
    (void)blk_disconnect(client);
    (void)close(fd);
}

static void a_broken_peer_hurts_only_itself(void **state)
{
    (void)state;
    struct blk_client *client = spawn_server();
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct blk_hello hello;
    (void)snprintf(address.sun_path, sizeof(address.sun_path), "%s/s.sock", dir);
    int fds[6];
    for (size_t i = 0; i < ARRAY_SIZE(fds); i++) {
        static const char *const lines[] = {
            "{\"op\":", "nonsense\n", "{}\n", "{\"op\":\"open\",\"layers\":7}\n", "{\"op\":\"hello\",\"id\":\"x\"}\n",
            "\n\n\n"};
        fds[i] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        assert_int_equal(connect(fds[i], (struct sockaddr *)&address, sizeof(address)), 0);
        assert_true(write(fds[i], lines[i], strlen(lines[i])) > 0);
        if (i == 1) { /* it may have been the oldest of too many */
            OK(blk_hello(client, &hello, &err));
        }
    }
    (void)blk_disconnect(client);
    OK(blk_connect(in_dir("s.sock"), &client, &err));
    OK(blk_hello(client, &hello, &err));
    for (size_t i = 0; i < ARRAY_SIZE(fds); i++)
        (void)close(fds[i]);
    close_server(client);
}

static void workers_create_describe_and_grow(void **state)
{
    (void)state;
    struct blk_info info;
    bool blank = false;
    int fd = new_file("new");
    struct blk_create create = {.format = "raw", .size = 4 * MIB};
    OK(blk_worker_create(&worker, fd, &create, &err));
    OK(blk_worker_probe(&worker, fd, "raw", &info, &err));
    assert_int_equal(info.size, 4 * MIB);
    REFUSED(blk_worker_create(&worker, fd, &create, &err), -EEXIST, "not empty");
    struct blk_layer layer = {"raw", fd};
    OK(blk_worker_resize(&worker, &layer, 1, 8 * MIB, &err));
    OK(blk_worker_probe(&worker, fd, "raw", &info, &err));
    assert_int_equal(info.size, 8 * MIB);
    OK(blk_worker_blank(&worker, &layer, 1, &blank, &err));
    assert_true(blank);
    int other = open(in_dir("new"), O_WRONLY | O_CLOEXEC); /* fd has O_DIRECT now */
    assert_int_equal(pwrite(other, "x", 1, 8 * MIB - 1), 1);
    (void)close(other);
    OK(blk_worker_blank(&worker, &layer, 1, &blank, &err));
    assert_false(blank);
    (void)close(fd);
}

static void note_progress(void *context, uint64_t done, uint64_t total)
{
    uint64_t *last = context;
    assert_true(done >= last[0] && done <= total);
    last[0] = done;
    last[1] = total;
}

static void copies_are_equal_and_sparse(void **state)
{
    (void)state;
    uint64_t progress[2] = {0}, bytes = 0;
    int from = raw_file("from", 100 * MIB + 512, 50 * MIB - 4096, 7);
    int to = new_file("to");
    char ones[5000];
    memset(ones, 1, sizeof(ones));
    assert_int_equal(pwrite(from, ones, sizeof(ones), 12345), sizeof(ones));
    assert_int_equal(pwrite(from, ones, 100, 100 * MIB + 412), 100);
    struct blk_worker w = worker;
    w.progress = note_progress;
    w.context = progress;
    struct blk_create create = {.format = "raw"};
    OK(blk_worker_convert(&w, &(struct blk_layer){"raw", from}, 1, to, &create, &bytes, &err));
    assert_int_equal(progress[0], 100 * MIB + 512);
    assert_true(bytes >= 65536 + 5000 && bytes <= 65536 + 5000 + 6 * 4096);
    struct stat st;
    assert_int_equal(fstat(to, &st), 0);
    assert_int_equal(st.st_size, 100 * MIB + 512);
    assert_true(st.st_blocks * 512 < (off_t)MIB);
    char command[3 * PATH_MAX];
    (void)snprintf(command, sizeof(command), "cmp %s/from %s/to", dir, dir);
    assert_int_equal(system(command), 0);
    (void)close(from);
    (void)close(to);
}

static void copies_that_cannot_be_are_refused(void **state)
{
    (void)state;
    int from = raw_file("from", 4 * MIB, 0, 7);
    int to = new_file("to");
    struct blk_layer layer = {"raw", from};
    struct blk_create small = {.format = "raw", .size = MIB};
    REFUSED(blk_worker_convert(&worker, &layer, 1, to, &small, NULL, &err), -EINVAL, "more than");
    struct blk_create backed = {.format = "raw", .backing = "x"};
    REFUSED(blk_worker_convert(&worker, &layer, 1, to, &backed, NULL, &err), -EINVAL, "backing");
    (void)close(from);
    (void)close(to);
}

static void a_cancelled_worker_is_gone(void **state)
{
    (void)state;
    int from = raw_file("from", 4 * MIB, 0, 7);
    int to = new_file("to");
    struct blk_worker w = worker;
    w.has_cancel = true;
    w.cancel_fd = eventfd(1, EFD_CLOEXEC);
    struct blk_create create = {.format = "raw"};
    struct blk_layer layer = {"raw", from};
    int r = blk_worker_convert(&w, &layer, 1, to, &create, NULL, NULL);
    assert_true(r == -ECANCELED || r == 0); /* the answer may have been there first */
    (void)close(w.cancel_fd);
    w = worker;
    w.binary = "/bin/false";
    REFUSED(blk_worker_convert(&w, &layer, 1, to, &create, NULL, &err), -EIO, "ended with status 1");
    w.binary = "/bin/does-not-exist";
    REFUSED(blk_worker_convert(&w, &layer, 1, to, &create, NULL, &err), -ENOENT, "does-not-exist");
    (void)close(from);
    (void)close(to);
}

static void die_at_once(void *context, uint64_t done, uint64_t total)
{
    (void)context;
    (void)done;
    (void)total;
    (void)raise(SIGKILL);
}

/* The caller dies with the worker at work; the worker becomes our child and is awaited. With the leak sanitizer its
 * tracer may become our child, too: that one ends by SIGKILL, so how they end says nothing. */
static void a_worker_does_not_outlive_its_caller(void **state)
{
    (void)state;
    assert_int_equal(prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), 0);
    int from = raw_file("from", 4 * MIB, 0, 7);
    int to = new_file("to");
    pid_t caller = fork();
    if (caller == 0) {
        struct blk_worker w = worker;
        struct blk_create create = {.format = "raw"};
        w.progress = die_at_once;
        (void)blk_worker_convert(&w, &(struct blk_layer){"raw", from}, 1, to, &create, NULL, NULL);
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(caller, &status, 0), caller);
    assert_true(WIFSIGNALED(status));
    int ended = 0;
    while (waitpid(-1, &status, 0) > 0)
        ended++;
    assert_int_equal(errno, ECHILD);
    assert_true(ended >= 1);
    assert_int_equal(prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0), 0);
    (void)close(from);
    (void)close(to);
}

static int set_up(void **state)
{
    (void)state;
    char self[PATH_MAX - 64];
    ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
    assert_true(n > 0);
    self[n] = 0;
    *strrchr(self, '/') = 0;
    (void)snprintf(binary, sizeof(binary), "%s/../bin/platter-blk", self);
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
        cmocka_unit_test(a_server_outlives_its_connection),
        cmocka_unit_test(an_image_is_opened_exported_grown_and_closed),
        cmocka_unit_test(sigterm_closes_and_kill_kills),
        cmocka_unit_test(a_broken_peer_hurts_only_itself),
        cmocka_unit_test(workers_create_describe_and_grow),
        cmocka_unit_test(copies_are_equal_and_sparse),
        cmocka_unit_test(copies_that_cannot_be_are_refused),
        cmocka_unit_test(a_cancelled_worker_is_gone),
        cmocka_unit_test(a_worker_does_not_outlive_its_caller),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
