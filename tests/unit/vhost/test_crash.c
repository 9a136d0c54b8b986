// SPDX-License-Identifier: Apache-2.0
// A server that is killed at any moment: its successor does what was in flight and the front-end sees no error. On raw
// no acknowledged write is lost. On qcow2, whose tables are written at flushes, no flushed one is, and what was written
// since then reads as some state in between, never as anything else. The server is the export-server beside this test.
#include <fcntl.h>
#include <limits.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "common/checked.h"
#include "common/cleanup.h"
#include "fixture.h"

#define DISK (16 * MIB)
#define BLOCK ((size_t)8192)
#define QUEUES 2
#define DEPTH 16
#define BLOCKS (DISK / BLOCK / QUEUES) /* of each queue */
#define KILLS 8

struct crash {
    char image[64], socket[80], layer[80], server[PATH_MAX];
    pid_t pid;
    int control; // the server's standard input
    struct vhost_client *client;
    uint64_t random;
    uint32_t generations[QUEUES][BLOCKS]; // last acknowledged or submitted
    uint32_t flushed[QUEUES][BLOCKS];     // the oldest that may be read
    bool strict;                          // acknowledged is enough
    uint64_t slots[QUEUES][DEPTH];        // block in flight, or UINT64_MAX
};

static void start_server(struct crash *c)
{
    int in[2], out[2];
    char line[16];
    assert_int_equal(pipe2(in, O_CLOEXEC), 0);
    assert_int_equal(pipe2(out, O_CLOEXEC), 0);
    c->pid = fork();
    if (c->pid == 0) {
        (void)dup2(in[0], 0);
        (void)dup2(out[1], 1);
        (void)execl(c->server, "export-server", "--socket", c->socket, "--image", c->layer, "--queues", "2", NULL);
        _exit(127);
    }
    (void)close(in[0]);
    (void)close(out[1]);
    c->control = in[1];
    assert_int_equal(read(out[0], line, 6), 6); // "ready\n"
    (void)close(out[0]);
}

static void end_server(struct crash *c, int number)
{
    int status;
    (void)kill(c->pid, number);
    assert_int_equal(waitpid(c->pid, &status, 0), c->pid);
    c->pid = 0;
    close_fd(&c->control);
    if (number == SIGTERM)
        assert_int_equal(status, 0);
}

static void stamp(uint8_t *data, unsigned queue, uint64_t block, uint32_t generation)
{
    for (size_t i = 0; i < BLOCK / 8; i++)
        ((uint64_t *)(void *)data)[i] = (block << 32 | generation) * 0x9e3779b97f4a7c15u + i * QUEUES + queue;
}

static bool in_flight(const struct crash *c, unsigned queue, uint64_t block)
{
    for (unsigned i = 0; i < DEPTH; i++)
        if (c->slots[queue][i] == block)
            return true;
    return false;
}

static void submit_writes(struct crash *c, unsigned queue)
{
    for (unsigned slot = 0; slot < DEPTH; slot++) {
        if (c->slots[queue][slot] != UINT64_MAX)
            continue;
        uint64_t block = test_random(&c->random) % BLOCKS;
        if (in_flight(c, queue, block))
            continue;
        c->slots[queue][slot] = block;
        stamp(vhost_client_buffer(c->client, queue, slot), queue, block, ++c->generations[queue][block]);
        vhost_client_submit(c->client, queue, slot, VIRTIO_BLK_T_OUT, (queue * BLOCKS + block) * (BLOCK / 512), BLOCK,
                            0);
    }
    vhost_client_kick(c->client, queue);
}

static unsigned reap(struct crash *c, unsigned queue)
{
    unsigned slot, count = 0;
    uint8_t status;
    while (vhost_client_poll(c->client, queue, &slot, &status)) {
        assert_int_equal(status, VIRTIO_BLK_S_OK);
        assert_true(c->slots[queue][slot] != UINT64_MAX); // answered once only
        c->slots[queue][slot] = UINT64_MAX;
        count++;
    }
    return count;
}

static void write_some(struct crash *c, unsigned wanted)
{
    for (unsigned done = 0; done < wanted;) {
        for (unsigned q = 0; q < QUEUES; q++) {
            submit_writes(c, q);
            assert_true(vhost_client_wait(c->client, q, 10000));
            done += reap(c, q);
        }
    }
}

// Which generation does the block hold? Fails when it is none that it may.
static uint32_t identify(const struct crash *c, unsigned queue, uint64_t block, const uint8_t *data)
{
    static uint8_t expected[BLOCK];
    uint32_t newest = c->generations[queue][block];
    uint32_t oldest = c->strict ? newest : c->flushed[queue][block];
    for (uint32_t generation = newest;; generation--) {
        memset(expected, 0, sizeof(expected));
        if (generation)
            stamp(expected, queue, block, generation);
        if (!memcmp(expected, data, BLOCK))
            return generation;
        if (generation == oldest)
            break;
    }
    fail_msg("queue %u block %lu: none of the generations %u to %u", queue, block, oldest, newest);
    return 0;
}

static void verify(struct crash *c)
{
    for (unsigned q = 0; q < QUEUES; q++) {
        for (uint64_t block = 0; block < BLOCKS; block++) {
            uint64_t sector = (q * BLOCKS + block) * (BLOCK / 512);
            assert_int_equal(vhost_client_do(c->client, q, VIRTIO_BLK_T_IN, sector, BLOCK, 0), VIRTIO_BLK_S_OK);
            c->generations[q][block] = identify(c, q, block, vhost_client_buffer(c->client, q, 0));
        }
    }
}

static void drain(struct crash *c)
{
    for (unsigned q = 0; q < QUEUES; q++) {
        for (unsigned slot = 0; slot < DEPTH; slot++) {
            while (c->slots[q][slot] != UINT64_MAX) {
                assert_true(vhost_client_wait(c->client, q, 10000));
                (void)reap(c, q);
            }
        }
    }
}

static void flush(struct crash *c)
{
    drain(c);
    assert_int_equal(vhost_client_do(c->client, 0, VIRTIO_BLK_T_FLUSH, 0, 0, 0), VIRTIO_BLK_S_OK);
    memcpy(c->flushed, c->generations, sizeof(c->flushed));
}

static int setup_format(void **state, const char *format)
{
    static struct crash c;
    char command[256];
    memset(&c, 0, sizeof(c));
    memset(c.slots, 0xff, sizeof(c.slots));
    c.random = test_seed();
    c.control = -1;
    c.strict = strcmp(format, "raw") == 0;
    (void)snprintf(c.image, sizeof(c.image), "/tmp/platter-vhost-crash.XXXXXX");
    CLEANUP_CLOSE int fd = mkostemp(c.image, O_CLOEXEC);
    assert_int_equal(ftruncate(fd, DISK), 0);
    (void)snprintf(command, sizeof(command), "qemu-img create -q -f %s %s %lu", format, c.image, DISK);
    if (strcmp(format, "raw") != 0 && system(command) != 0)
        skip();
    (void)snprintf(c.socket, sizeof(c.socket), "%s.sock", c.image);
    (void)snprintf(c.layer, sizeof(c.layer), "%s:%s", format, c.image);
    ssize_t n = readlink("/proc/self/exe", c.server, sizeof(c.server) - 1);
    assert_true(n > 0);
    char *slash = strrchr(c.server, '/');
    (void)snprintf(slash + 1, sizeof(c.server) - (size_t)(slash + 1 - c.server), "export-server");
    start_server(&c);
    const struct vhost_client_options options = {.socket = c.socket, .queues = QUEUES, .depth = DEPTH};
    assert_int_equal(vhost_client_connect(&options, &c.client), 0);
    *state = &c;
    return 0;
}

static int setup(void **state)
{
    return setup_format(state, "raw");
}

static int setup_qcow2(void **state)
{
    return setup_format(state, "qcow2");
}

static int teardown(void **state)
{
    struct crash *c = *state;
    c->client = vhost_client_close(c->client);
    if (c->pid > 0)
        end_server(c, SIGTERM);
    (void)unlink(c->image);
    (void)unlink(c->socket);
    return 0;
}

static void survive(struct crash *c, int number)
{
    for (unsigned round = 0; round < KILLS; round++) {
        write_some(c, 200);
        flush(c);
        write_some(c, 100);
        for (unsigned q = 0; q < QUEUES; q++)
            submit_writes(c, q); // these are under way
        end_server(c, number);
        start_server(c);
        assert_int_equal(vhost_client_reconnect(c->client), 0);
        if (!c->strict) {
            drain(c);
            verify(c);
        }
    }
    drain(c);
    for (unsigned q = 0; q < QUEUES; q++)
        assert_int_equal(c->client->queues[q].used->idx, c->client->queues[q].available_next);
    verify(c);
}

static void killed(void **state)
{
    survive(*state, SIGKILL);
}

static void replaced(void **state)
{
    ((struct crash *)*state)->strict = true; // an orderly end loses nothing on any format
    survive(*state, SIGTERM);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(killed, setup, teardown),
        cmocka_unit_test_setup_teardown(replaced, setup, teardown),
        cmocka_unit_test_setup_teardown(killed, setup_qcow2, teardown),
        cmocka_unit_test_setup_teardown(replaced, setup_qcow2, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
