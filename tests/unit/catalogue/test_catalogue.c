// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <sqlite3.h>

#include "provisioner/catalogue/catalogue.h"

struct fixture {
    char dir[64], path[80];
    struct catalogue *catalogue;
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    (void)strcpy(f->dir, "/tmp/platter-catalogue.XXXXXX");
    assert_non_null(mkdtemp(f->dir));
    (void)snprintf(f->path, sizeof(f->path), "%s/db", f->dir);
    assert_int_equal(catalogue_open(f->path, &f->catalogue, NULL), 0);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    static const char *const suffixes[] = {"", "-wal", "-shm"};
    catalogue_close(f->catalogue);
    for (size_t i = 0; i < 3; i++) {
        char path[96];
        (void)snprintf(path, sizeof(path), "%s%s", f->path, suffixes[i]);
        (void)unlink(path);
    }
    (void)rmdir(f->dir);
    free(f);
    return 0;
}

static void add_pool(struct catalogue *c)
{
    struct pool_record pool = {.id = "pool-1", .name = "p", .kind = "dir", .path = "/p", .overprovision = 2.5};
    assert_int_equal(catalogue_pool_insert(c, &pool, NULL), 0);
}

static void add_volume(struct catalogue *c, const char *id, const char *name)
{
    struct volume_record v = {.pool_id = "pool-1",
                              .kind = "block",
                              .state = "creating",
                              .size = UINT64_C(1) << 45,
                              .filesystem = "ext4",
                              .content = "blank",
                              .behind = true,
                              .spec = "{}",
                              .created = 7};
    (void)strcpy(v.id, id);
    (void)strcpy(v.name, name);
    assert_int_equal(catalogue_volume_insert(c, &v, NULL), 0);
}

static void add_layer(struct catalogue *c, const char *id, const char *volume, const char *parent)
{
    struct layer_record l = {.pool_id = "pool-1",
                             .format = "qcow2",
                             .size = 4096,
                             .cluster_size = 65536,
                             .version = 3,
                             .refcount_bits = 16,
                             .extended_l2 = true,
                             .compression = "zstd"};
    (void)strcpy(l.id, id);
    (void)strcpy(l.volume_id, volume);
    (void)strcpy(l.parent_id, parent);
    assert_int_equal(catalogue_layer_insert(c, &l, NULL), 0);
}

static void records_survive_reopening(void **state)
{
    struct fixture *f = *state;
    add_pool(f->catalogue);
    add_volume(f->catalogue, "vol-1", "a");
    add_layer(f->catalogue, "lay-1", "vol-1", "");
    add_layer(f->catalogue, "lay-2", "vol-1", "lay-1");
    f->catalogue = catalogue_close(f->catalogue);
    assert_int_equal(catalogue_open(f->path, &f->catalogue, NULL), 0);

    struct pool_record pool;
    assert_int_equal(catalogue_pool_find(f->catalogue, "p", &pool, NULL), 0);
    assert_true(pool.overprovision == 2.5);
    struct volume_record v;
    assert_int_equal(catalogue_volume_find(f->catalogue, "vol-1", &v, NULL), 0);
    assert_string_equal(v.name, "a");
    assert_string_equal(v.content, "blank");
    assert_string_equal(v.spec, "{}");
    assert_true(v.size == UINT64_C(1) << 45 && v.behind && !v.formatted && v.created == 7);
    struct layer_record *chain;
    size_t count;
    assert_int_equal(catalogue_layer_chain(f->catalogue, "lay-2", &chain, &count, NULL), 0);
    assert_int_equal(count, 2);
    assert_string_equal(chain[1].id, "lay-1");
    assert_string_equal(chain[0].compression, "zstd");
    assert_true(chain[0].extended_l2);
    free(chain);
    uint64_t bytes, volumes;
    assert_int_equal(catalogue_pool_promised(f->catalogue, "pool-1", &bytes, &volumes, NULL), 0);
    assert_true(bytes == UINT64_C(1) << 45 && volumes == 1);
}

static void names_and_references_are_kept(void **state)
{
    struct fixture *f = *state;
    struct catalogue *c = f->catalogue;
    struct error err = ERROR_INIT;
    add_pool(c);
    add_volume(c, "vol-1", "a");
    struct volume_record twin = {.id = "vol-2", .name = "a", .pool_id = "pool-1"};
    assert_int_equal(catalogue_volume_insert(c, &twin, &err), -EEXIST);
    assert_int_equal(catalogue_pool_delete(c, "pool-1", &err), -EBUSY);
    add_volume(c, "vol-2", "b");
    add_layer(c, "lay-1", "vol-1", "");
    add_layer(c, "lay-2", "vol-2", "lay-1"); /* a clone */
    assert_int_equal(catalogue_volume_delete(c, "vol-1", &err), -EBUSY);
    assert_int_equal(catalogue_volume_delete(c, "vol-2", &err), 0);
    assert_int_equal(catalogue_volume_delete(c, "vol-1", &err), 0);
    struct layer_record layer;
    assert_int_equal(catalogue_layer_find(c, "lay-1", &layer, &err), -ENOENT);
    assert_int_equal(catalogue_pool_delete(c, "pool-1", &err), 0);
    assert_int_equal(catalogue_pool_delete(c, "pool-1", &err), -ENOENT);
}

static void a_rollback_leaves_nothing(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(catalogue_begin(f->catalogue, NULL), 0);
    add_pool(f->catalogue);
    catalogue_rollback(f->catalogue);
    struct pool_record pool;
    assert_int_equal(catalogue_pool_find(f->catalogue, "p", &pool, NULL), -ENOENT);
}

static void jobs_are_found_until_they_end(void **state)
{
    struct fixture *f = *state;
    struct catalogue *c = f->catalogue;
    char data[] = "{\"a\":1,\"volumes\":[\"vol-1\",\"vol-2\"]}", id[ID_MAX];
    struct job_record job = {
        .id = "job-1", .kind = "k", .volume_id = "vol-1", .attachment_id = "att-1", .state = "queued", .data = data};
    assert_int_equal(catalogue_job_insert(c, &job, NULL), 0);
    assert_int_equal(catalogue_job_active(c, "att-1", id, NULL), 0);
    assert_string_equal(id, "job-1");
    assert_int_equal(catalogue_job_active(c, "vol-2", id, NULL), 0); /* one of several that it has to itself */
    assert_int_equal(catalogue_job_active(c, "vol-3", id, NULL), -ENOENT);
    (void)strcpy(job.state, "running");
    (void)strcpy(job.step, "two");
    assert_int_equal(catalogue_job_step(c, &job, NULL), 0);
    assert_int_equal(catalogue_job_progress(c, "job-1", 5, 10, NULL), 0);
    struct job_record found;
    assert_int_equal(catalogue_job_find(c, "job-1", &found, NULL), 0);
    assert_string_equal(found.step, "two");
    assert_string_equal(found.data, data);
    assert_null(found.error);
    assert_true(found.done == 5 && found.total == 10);
    job_record_done(&found);
    job.ended = 9;
    assert_int_equal(catalogue_job_update(c, &job, NULL), 0);
    assert_int_equal(catalogue_job_active(c, "vol-1", id, NULL), -ENOENT);
    assert_int_equal(catalogue_job_active(c, "vol-2", id, NULL), -ENOENT);
    struct job_record *list;
    size_t count;
    assert_int_equal(catalogue_job_list(c, "active", 10, &list, &count, NULL), 0);
    assert_int_equal(count, 0);
    job_records_free(list, count);
}

static void a_newer_catalogue_is_refused(void **state)
{
    struct fixture *f = *state;
    f->catalogue = catalogue_close(f->catalogue);
    sqlite3 *db;
    assert_int_equal(sqlite3_open(f->path, &db), SQLITE_OK);
    assert_int_equal(sqlite3_exec(db, "PRAGMA user_version=999", NULL, NULL, NULL), SQLITE_OK);
    (void)sqlite3_close(db);
    struct error err = ERROR_INIT;
    assert_int_equal(catalogue_open(f->path, &f->catalogue, &err), -EPROTONOSUPPORT);
    f->catalogue = NULL;
}

static void names_are_checked(void **state)
{
    (void)state;
    static const char *const good[] = {"a", "A.b_c-d", "9",
                                       "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"};
    static const char *const bad[] = {
        "",     ".a",       "-a",
        "a..b", "a/b",      "a b",
        "a\n",  "\xc3\xa4", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"};
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++)
        assert_true(catalogue_name_valid(good[i]));
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_false(catalogue_name_valid(bad[i]));
    char id[ID_MAX];
    assert_int_equal(catalogue_id("vol-", id), 0);
    assert_int_equal(strlen(id), 20);
}

static void *write_events(void *arg)
{
    uint64_t seq, last = 0;
    for (int i = 0; i < 100; i++) {
        assert_int_equal(catalogue_event_insert(arg, "test", "", NULL, &seq, NULL), 0);
        assert_true(seq > last);
        last = seq;
    }
    return NULL;
}

static void threads_share_it(void **state)
{
    struct fixture *f = *state;
    pthread_t threads[4];
    for (size_t i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, write_events, f->catalogue), 0);
    for (size_t i = 0; i < 4; i++)
        (void)pthread_join(threads[i], NULL);
    uint64_t last;
    assert_int_equal(catalogue_event_last(f->catalogue, &last, NULL), 0);
    assert_int_equal(last, 400);
    assert_int_equal(catalogue_event_trim(f->catalogue, 10, NULL), 0);
    struct event_record *events;
    size_t count;
    assert_int_equal(catalogue_event_list(f->catalogue, 0, 100, &events, &count, NULL), 0);
    assert_int_equal(count, 10);
    event_records_free(events, count);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(records_survive_reopening, setup, teardown),
        cmocka_unit_test_setup_teardown(names_and_references_are_kept, setup, teardown),
        cmocka_unit_test_setup_teardown(a_rollback_leaves_nothing, setup, teardown),
        cmocka_unit_test_setup_teardown(jobs_are_found_until_they_end, setup, teardown),
        cmocka_unit_test_setup_teardown(a_newer_catalogue_is_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(threads_share_it, setup, teardown),
        cmocka_unit_test(names_are_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
