// SPDX-License-Identifier: Apache-2.0
/* The manager with its real catalogue, pool and workers; what needs mounts is in tests/crash and tests/integration. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/log.h"
#include "provisioner/volume/volume.h"

#define WAIT_MS 60000

static const struct caller admin = {.role = CALLER_ADMIN}, operator= {.role = CALLER_OPERATOR},
                           viewer = {.role = CALLER_VIEWER, .uid = 1000, .gid = 1000};

struct fixture {
    char dir[64], state[80], run[80], pool[80];
    struct manager *manager;
};

static void start(struct fixture *f)
{
    struct error err = ERROR_INIT;
    struct manager_options options = {.state_dir = f->state, .runtime_dir = f->run, .blk_program = BLK_PROGRAM};
    if (manager_start(&options, &f->manager, &err) < 0)
        fail_msg("%s", err.message);
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    struct error err = ERROR_INIT;
    log_init("test", LOG_LEVEL_ERROR);
    (void)strcpy(f->dir, "/tmp/platter-manager.XXXXXX");
    assert_non_null(mkdtemp(f->dir));
    (void)snprintf(f->state, sizeof(f->state), "%s/state", f->dir);
    (void)snprintf(f->run, sizeof(f->run), "%s/run", f->dir);
    (void)snprintf(f->pool, sizeof(f->pool), "%s/pool", f->dir);
    assert_int_equal(mkdir(f->pool, 0700), 0);
    start(f);
    struct pool_spec spec = {.name = "p", .path = f->pool};
    json_t *pool;
    bool existed;
    if (manager_pool_create(f->manager, &admin, &spec, &pool, &existed, &err) < 0)
        fail_msg("%s", err.message);
    json_decref(pool);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    manager_stop(f->manager);
    char command[96];
    (void)snprintf(command, sizeof(command), "rm -rf --one-file-system %s", f->dir);
    int r = system(command);
    free(f);
    return r;
}

struct waiter {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int calls;
    bool ended;
};

static void wake(void *arg, bool ended)
{
    struct waiter *w = arg;
    (void)pthread_mutex_lock(&w->lock);
    w->calls++;
    w->ended = ended;
    (void)pthread_cond_signal(&w->changed);
    (void)pthread_mutex_unlock(&w->lock);
}

static bool await_job(struct manager *m, const char *id, unsigned timeout_ms)
{
    struct waiter w = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
    assert_int_equal(manager_job_watch(m, id, timeout_ms, wake, &w, NULL), 0);
    (void)pthread_mutex_lock(&w.lock);
    while (!w.calls)
        (void)pthread_cond_wait(&w.changed, &w.lock);
    (void)pthread_mutex_unlock(&w.lock);
    assert_int_equal(w.calls, 1);
    return w.ended;
}

/* The result of the ticket's job; the object is freed. */
static int finish(struct manager *m, const struct ticket *ticket, struct error *err)
{
    assert_true(await_job(m, ticket->job, WAIT_MS));
    json_t *object = NULL;
    int r = manager_job_result(m, ticket->job, &object, err);
    json_decref(object);
    return r;
}

static void make(struct manager *m, const char *name)
{
    struct volume_spec spec = {.name = name, .size = 1 << 20};
    struct ticket ticket;
    struct error err = ERROR_INIT;
    if (manager_volume_create(m, &operator, & spec, &ticket, &err) < 0 || finish(m, &ticket, &err) < 0)
        fail_msg("%s", err.message);
}

static void creating_is_idempotent_by_name(void **state)
{
    struct fixture *f = *state;
    struct error err = ERROR_INIT;
    struct ticket ticket, again;
    struct volume_spec spec = {.name = "v", .size = 1000000};
    assert_int_equal(manager_volume_create(f->manager, &operator, & spec, &ticket, &err), 0);
    assert_int_equal(finish(f->manager, &ticket, &err), 0);
    assert_int_equal(manager_volume_create(f->manager, &operator, & spec, &again, &err), 0);
    assert_true(again.existed);
    assert_string_equal(again.object, ticket.object);
    spec.size = 2000000;
    assert_int_equal(manager_volume_create(f->manager, &operator, & spec, &again, &err), -EEXIST);
    json_t *volume;
    assert_int_equal(manager_volume_get(f->manager, "v", &volume, &err), 0);
    assert_int_equal(json_integer_value(json_object_get(volume, "size")), 1003520);
    assert_string_equal(json_string_value(json_object_get(volume, "state")), "available");
    json_decref(volume);
}

static void *create_same(void *arg)
{
    struct volume_spec spec = {.name = "same", .size = 1 << 20};
    struct ticket ticket;
    struct error err = ERROR_INIT;
    int r = manager_volume_create(arg, &operator, & spec, &ticket, &err);
    if (r < 0)
        return strdup(err.message);
    if (ticket.job[0])
        (void)await_job(arg, ticket.job, WAIT_MS);
    return NULL;
}

static void many_ask_for_the_same_and_one_is_made(void **state)
{
    struct fixture *f = *state;
    pthread_t threads[8];
    for (size_t i = 0; i < 8; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, create_same, f->manager), 0);
    for (size_t i = 0; i < 8; i++) {
        void *message;
        (void)pthread_join(threads[i], &message);
        if (message)
            fail_msg("%s", (char *)message);
    }
    json_t *list;
    assert_int_equal(manager_volume_list(f->manager, NULL, NULL, 0, &list, NULL), 0);
    assert_int_equal(json_array_size(list), 1);
    json_decref(list);
}

static void wrong_requests_change_nothing(void **state)
{
    struct fixture *f = *state;
    struct error err = ERROR_INIT;
    struct ticket t;
    const struct volume_spec wrong[] = {
        {.name = "../v", .size = 4096},
        {.name = "v", .size = 0},
        {.name = "v", .size = UINT64_MAX},
        {.name = "v", .size = 4096, .format = "vmdk"},
        {.name = "v", .size = 4096, .cluster_size = 3000},
        {.name = "v", .size = 4096, .format = "raw", .cluster_size = 65536},
        {.name = "v", .size = 4096, .version = 2, .extended_l2 = true},
        {.name = "v", .size = 4096, .filesystem = "ntfs"},
    };
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
        assert_int_equal(manager_volume_create(f->manager, &operator, & wrong[i], &t, &err), -EINVAL);
    struct volume_spec huge = {.name = "v", .size = UINT64_C(64) << 40};
    int r = manager_volume_create(f->manager, &operator, & huge, &t, &err);
    if (r == -ENOSPC)
        assert_string_equal(err.code, "overprovisioned");
    else
        assert_int_equal(finish(f->manager, &t, &err), 0); /* a very large disk */
    struct volume_spec fine = {.name = "w", .size = 4096};
    assert_int_equal(manager_volume_create(f->manager, &viewer, &fine, &t, &err), -EPERM);
    assert_int_equal(manager_pool_delete(f->manager, &operator, "p", &err), -EPERM);
    assert_int_equal(manager_volume_delete(f->manager, &operator, "none", false, &t, &err), -ENOENT);
    make(f->manager, "w");
    assert_int_equal(
        manager_volume_resize(f->manager, &operator, &(struct resize_spec){.volume = "w", .size = 4096}, &t, &err),
        -EINVAL);
    assert_string_equal(err.code, "shrink-refused");
    assert_int_equal(manager_pool_delete(f->manager, &admin, "p", &err), -EBUSY);
    assert_string_equal(err.code, "pool-in-use");
}

static void one_writer(void **state)
{
    struct fixture *f = *state;
    struct error err = ERROR_INIT;
    struct ticket first, second;
    make(f->manager, "v");
    struct attach_spec spec = {.volume = "v", .kind = "vm", .export = "nbd", .holder = "guest-1"};
    assert_int_equal(manager_attach(f->manager, &operator, & spec, &first, &err), 0);
    assert_int_equal(finish(f->manager, &first, &err), 0);
    assert_int_equal(manager_attach(f->manager, &operator, & spec, &second, &err), -EBUSY);
    assert_string_equal(err.code, "volume-in-use");
    assert_non_null(strstr(err.holder, "guest-1"));
    assert_non_null(strstr(err.hint, first.object));
    assert_int_equal(manager_volume_delete(f->manager, &operator, "v", false, &second, &err), -EBUSY);
    /* A restart finds the server again. */
    f->manager = manager_stop(f->manager);
    start(f);
    json_t *attachment;
    assert_int_equal(manager_attachment_get(f->manager, first.object, &attachment, &err), 0);
    assert_string_equal(json_string_value(json_object_get(attachment, "state")), "attached");
    json_decref(attachment);
    assert_int_equal(manager_detach(f->manager, &operator, first.object, &second, &err), 0);
    assert_int_equal(finish(f->manager, &second, &err), 0);
    spec.read_only = true;
    for (int i = 0; i < 2; i++) {
        struct ticket *t = i ? &second : &first;
        assert_int_equal(manager_attach(f->manager, &operator, & spec, t, &err), 0);
        assert_int_equal(finish(f->manager, t, &err), 0);
    }
    char ids[2][ID_MAX];
    (void)strcpy(ids[0], first.object);
    (void)strcpy(ids[1], second.object);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(manager_detach(f->manager, &operator, ids[i], &first, &err), 0);
        assert_int_equal(finish(f->manager, &first, &err), 0);
    }
}

static void an_import_names_its_parents(void **state)
{
    struct fixture *f = *state;
    struct error err = ERROR_INIT;
    struct ticket t;
    char command[512], top[96], base[96];
    (void)snprintf(top, sizeof(top), "%s/top.qcow2", f->dir);
    (void)snprintf(base, sizeof(base), "%s/base.qcow2", f->dir);
    (void)snprintf(command, sizeof(command),
                   "qemu-img create -q -f qcow2 %s 1M && qemu-img create -q -f qcow2 -F qcow2 -b %s %s", base, base,
                   top);
    if (system(command) != 0)
        skip();
    struct import_spec spec = {.name = "i", .layers = {{top, "qcow2"}}, .layer_count = 1};
    assert_int_equal(manager_volume_import(f->manager, &operator, & spec, &t, &err), 0);
    assert_int_equal(finish(f->manager, &t, &err), -EINVAL);
    assert_string_equal(err.code, "backing-not-given");
    json_t *volume;
    assert_int_equal(manager_volume_get(f->manager, "i", &volume, &err), -ENOENT);
    spec.layers[0].format = "raw"; /* what it says is what it is */
    spec.layers[0].path = base;
    spec.name = "r";
    assert_int_equal(manager_volume_import(f->manager, &operator, & spec, &t, &err), 0);
    assert_int_equal(finish(f->manager, &t, &err), 0);
    spec = (struct import_spec){
        .name = "i", .layers = {{top, "qcow2"}, {base, "qcow2"}}, .layer_count = 2, .preserve = true};
    assert_int_equal(manager_volume_import(f->manager, &operator, & spec, &t, &err), 0);
    assert_int_equal(finish(f->manager, &t, &err), 0);
    assert_int_equal(manager_volume_get(f->manager, "i", &volume, &err), 0);
    assert_int_equal(json_array_size(json_object_get(volume, "layers")), 2);
    json_decref(volume);
}

static void note(void *arg, uint64_t seq)
{
    atomic_store((atomic_ullong *)arg, seq);
}

static void events_and_orphans_are_told(void **state)
{
    struct fixture *f = *state;
    atomic_ullong last = 0;
    struct event_subscription *sub;
    uint64_t before = manager_event_last(f->manager);
    assert_int_equal(manager_event_subscribe(f->manager, note, &last, &sub, NULL), 0);
    make(f->manager, "v");
    json_t *events, *orphans;
    assert_int_equal(manager_event_list(f->manager, before, 0, &events, NULL), 0);
    assert_true(json_array_size(events) >= 2);
    json_decref(events);
    manager_event_unsubscribe(f->manager, sub);
    assert_int_equal(manager_orphan_list(f->manager, &orphans, NULL), 0);
    assert_int_equal(json_array_size(orphans), 0);
    json_decref(orphans);
    char path[160];
    (void)snprintf(path, sizeof(path), "%s/lay-00000000000000aa.img", f->pool);
    (void)close(open(path, O_CREAT | O_WRONLY, 0600));
    (void)snprintf(path, sizeof(path), "%s/blk/att-00000000000000aa.sock", f->run);
    (void)close(open(path, O_CREAT | O_WRONLY, 0600));
    assert_int_equal(manager_orphan_list(f->manager, &orphans, NULL), 0);
    assert_int_equal(json_array_size(orphans), 2);
    json_decref(orphans);
    f->manager = manager_stop(f->manager);
    start(f);
    assert_int_equal(access(path, F_OK), 0); /* shown, never removed */
}

static void watches_end_in_time(void **state)
{
    struct fixture *f = *state;
    struct waiter w = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
    assert_int_equal(manager_job_watch(f->manager, "job-none", 10, wake, &w, NULL), -ENOENT);
    assert_int_equal(w.calls, 0);
    make(f->manager, "v");
    json_t *jobs;
    assert_int_equal(manager_job_list(f->manager, "succeeded", &jobs, NULL), 0);
    const char *id = json_string_value(json_object_get(json_array_get(jobs, 0), "id"));
    assert_true(await_job(f->manager, id, 1));
    struct error err = ERROR_INIT;
    assert_int_equal(manager_job_cancel(f->manager, &operator, id, &err), -EBUSY);
    assert_string_equal(err.code, "not-cancellable");
    json_decref(jobs);
}

static void a_second_manager_is_refused(void **state)
{
    struct fixture *f = *state;
    struct error err = ERROR_INIT;
    struct manager_options options = {.state_dir = f->state, .runtime_dir = f->run, .blk_program = BLK_PROGRAM};
    struct manager *other;
    assert_int_equal(manager_start(&options, &other, &err), -EBUSY);
    assert_string_equal(err.code, "already-running");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(creating_is_idempotent_by_name, setup, teardown),
        cmocka_unit_test_setup_teardown(many_ask_for_the_same_and_one_is_made, setup, teardown),
        cmocka_unit_test_setup_teardown(wrong_requests_change_nothing, setup, teardown),
        cmocka_unit_test_setup_teardown(one_writer, setup, teardown),
        cmocka_unit_test_setup_teardown(an_import_names_its_parents, setup, teardown),
        cmocka_unit_test_setup_teardown(events_and_orphans_are_told, setup, teardown),
        cmocka_unit_test_setup_teardown(watches_end_in_time, setup, teardown),
        cmocka_unit_test_setup_teardown(a_second_manager_is_refused, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
