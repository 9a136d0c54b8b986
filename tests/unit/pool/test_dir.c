// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "backends/pool/pool.h"

#define ID "pool-0123456789abcdef"
#define LAYER "lay-0123456789abcdef"
#define VOLUME "vol-0123456789abcdef"

static char dir[64];

static int setup(void **state)
{
    (void)state;
    (void)strcpy(dir, "/tmp/platter-pool.XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    char command[96];
    (void)snprintf(command, sizeof(command), "rm -rf --one-file-system %s", dir);
    return system(command);
}

static struct pool *opened(void)
{
    struct pool *pool;
    assert_int_equal(pool_dir_ops.create(dir, ID, NULL), 0);
    assert_int_equal(pool_dir_ops.open(dir, ID, &pool, NULL), 0);
    return pool;
}

static void a_marker_tells_pools_apart(void **state)
{
    (void)state;
    struct pool *pool = opened();
    struct error err = ERROR_INIT;
    assert_int_equal(pool_dir_ops.create(dir, ID, NULL), 0);
    assert_int_equal(pool_dir_ops.create(dir, "pool-ffffffffffffffff", &err), -EEXIST);
    struct pool *other;
    assert_int_equal(pool_dir_ops.open(dir, "pool-ffffffffffffffff", &other, &err), -ESTALE);
    assert_string_equal(err.code, "pool-missing");
    assert_int_equal(pool->ops->remove(pool, NULL), 0);
    assert_int_equal(pool->ops->remove(pool, NULL), 0);
    assert_int_equal(pool_dir_ops.open(dir, ID, &other, &err), -ESTALE);
    pool->ops->close(pool);
}

static void unsafe_directories_are_refused(void **state)
{
    (void)state;
    struct error err = ERROR_INIT;
    assert_int_equal(pool_dir_ops.create("relative", ID, &err), -EINVAL);
    assert_int_equal(chmod(dir, 0777), 0);
    assert_int_equal(pool_dir_ops.create(dir, ID, &err), -EINVAL);
    assert_int_equal(chmod(dir, 0700), 0);
    if (geteuid() == 0) {
        assert_int_equal(chown(dir, 12345, 12345), 0);
        assert_int_equal(pool_dir_ops.create(dir, ID, &err), -EPERM);
    }
}

static void images_come_and_go(void **state)
{
    (void)state;
    struct pool *pool = opened();
    struct error err = ERROR_INIT;
    int fd;
    uint64_t used;
    assert_int_equal(pool->ops->image_create(pool, LAYER, &fd, NULL), 0);
    assert_int_equal(pwrite(fd, "x", 1, 8191), 1);
    (void)close(fd);
    assert_int_equal(pool->ops->image_create(pool, LAYER, &fd, &err), -EEXIST);
    assert_int_equal(pool->ops->image_open(pool, LAYER, true, &fd, NULL), 0);
    assert_int_equal(fcntl(fd, F_GETFL) & O_ACCMODE, O_RDONLY);
    (void)close(fd);
    assert_int_equal(pool->ops->image_used(pool, LAYER, &used, NULL), 0);
    struct pool_usage usage;
    assert_int_equal(pool->ops->usage(pool, &usage, NULL), 0);
    assert_true(usage.capacity >= usage.available && usage.used == used);
    assert_int_equal(pool->ops->image_delete(pool, LAYER, NULL), 0);
    assert_int_equal(pool->ops->image_delete(pool, LAYER, NULL), 0);
    assert_int_equal(pool->ops->image_open(pool, LAYER, true, &fd, &err), -ENOENT);
    pool->ops->close(pool);
}

static void hostile_ids_and_links_lead_nowhere(void **state)
{
    (void)state;
    struct pool *pool = opened();
    struct error err = ERROR_INIT;
    static const char *const ids[] = {"",
                                      "../../etc/passwd",
                                      "lay-../../../../etc",
                                      "lay-0123456789abcde/",
                                      "vol-0123456789abcdef",
                                      "lay-0123456789ABCDEF",
                                      "lay-0123456789abcdef0"};
    int fd;
    for (size_t i = 0; i < sizeof(ids) / sizeof(ids[0]); i++) {
        assert_int_equal(pool->ops->image_open(pool, ids[i], true, &fd, &err), -EINVAL);
        assert_int_equal(pool->ops->image_create(pool, ids[i], &fd, &err), -EINVAL);
        assert_int_equal(pool->ops->image_delete(pool, ids[i], &err), -EINVAL);
    }
    char path[128], twin[128];
    (void)snprintf(path, sizeof(path), "%s/" LAYER ".img", dir);
    assert_int_equal(symlink("/etc/passwd", path), 0);
    assert_int_equal(pool->ops->image_open(pool, LAYER, true, &fd, &err), -ELOOP);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(pool->ops->image_create(pool, LAYER, &fd, NULL), 0);
    (void)close(fd);
    (void)snprintf(twin, sizeof(twin), "%s/twin", dir);
    assert_int_equal(link(path, twin), 0);
    assert_int_equal(pool->ops->image_open(pool, LAYER, false, &fd, &err), -EINVAL);
    pool->ops->close(pool);
}

static int count_kinds(void *arg, enum pool_entry kind, const char *name, const char *id, uint64_t used)
{
    (void)name, (void)used;
    ((int *)arg)[kind]++;
    assert_int_equal(id[0] != 0, kind != POOL_ENTRY_FOREIGN);
    return 0;
}

static void sidecars_are_replaced_whole(void **state)
{
    (void)state;
    struct pool *pool = opened();
    char path[128], text[16] = "";
    (void)snprintf(path, sizeof(path), "%s/" VOLUME ".json", dir);
    assert_int_equal(pool->ops->sidecar_write(pool, VOLUME, "one", NULL), 0);
    assert_int_equal(pool->ops->sidecar_write(pool, VOLUME, "2", NULL), 0);
    int fd = open(path, O_RDONLY);
    assert_int_equal(read(fd, text, sizeof(text)), 1);
    (void)close(fd);
    (void)snprintf(path, sizeof(path), "%s/other", dir);
    (void)close(open(path, O_CREAT | O_WRONLY, 0600));
    int kinds[4] = {0};
    assert_int_equal(pool->ops->walk(pool, count_kinds, kinds, NULL), 0);
    assert_true(kinds[POOL_ENTRY_SIDECAR] == 1 && kinds[POOL_ENTRY_FOREIGN] == 1 && kinds[POOL_ENTRY_IMAGE] == 0);
    assert_int_equal(pool->ops->sidecar_delete(pool, VOLUME, NULL), 0);
    assert_int_equal(pool->ops->sidecar_delete(pool, VOLUME, NULL), 0);
    pool->ops->close(pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_marker_tells_pools_apart, setup, teardown),
        cmocka_unit_test_setup_teardown(unsafe_directories_are_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(images_come_and_go, setup, teardown),
        cmocka_unit_test_setup_teardown(hostile_ids_and_links_lead_nowhere, setup, teardown),
        cmocka_unit_test_setup_teardown(sidecars_are_replaced_whole, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
