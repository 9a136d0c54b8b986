// SPDX-License-Identifier: Apache-2.0
// Load on a vhost-user-blk server, without a VM; or, with --verify, stamped blocks that are written and read back.
//
//   vhost-bench --socket PATH [--rw randread|randwrite|read|write|randrw] [--bs BYTES] [--depth N] [--queues N]
//               [--seconds S] [--spin] [--flush] [--pid SERVER] [--range BYTES] [--seed N] [--each BYTES]
//               [--verify]
//
// One thread drives each queue. --spin looks at the used ring all the time; otherwise the thread sleeps on the call
// eventfd as a guest's interrupt would let it. With --pid the server's CPU time for each request is told.
// With --flush a flush follows each request, and the two count as one.
// --each: one request at the start of each so many bytes, in a scattered order, until all were visited, however long it lasts.
// The longest gap is the longest time without a completion while there was load.
// --verify writes each block of the range several times in random order, flushes, and reads all of it back.
#include <errno.h>
#include <getopt.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/checked.h"
#include "tests/lib/vhost_client.h"

enum pattern { READ_RANDOM, WRITE_RANDOM, READ_SEQUENTIAL, WRITE_SEQUENTIAL, MIXED_RANDOM };

static const char *const pattern_names[] = {"randread", "randwrite", "read", "write", "randrw"};

struct settings {
    struct vhost_client_options client;
    enum pattern pattern;
    size_t block;
    double seconds;
    bool spin, flush, verify;
    int pid;
    uint64_t range, seed, each;
};

struct worker {
    const struct settings *settings;
    struct vhost_client *client;
    unsigned queue;
    uint64_t random, blocks, first, next;
    uint64_t stride, left; // --each: from one visit to the next, visits to come
    uint64_t done, failed, gap_ns;
    bool flushing[1024]; // what a slot waits for is its flush
    pthread_t thread;
};

static uint64_t now_ns(void)
{
    struct timespec ts;
    (void)clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static uint64_t random_next(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

// ---- load ------------------------------------------------------------------------------------------------------

static void issue(struct worker *w, unsigned slot)
{
    const struct settings *s = w->settings;
    bool sequential = s->pattern == READ_SEQUENTIAL || s->pattern == WRITE_SEQUENTIAL;
    bool write = s->pattern == WRITE_RANDOM || s->pattern == WRITE_SEQUENTIAL ||
                 (s->pattern == MIXED_RANDOM && (random_next(&w->random) & 1));
    uint64_t block = w->first + (sequential ? w->next++ : random_next(&w->random)) % w->blocks;
    if (s->each) {
        block = w->next * (s->each / s->block);
        w->next = (w->next + w->stride) % (w->blocks / (s->each / s->block));
        w->left--;
    }
    vhost_client_submit(w->client, w->queue, slot, write ? VIRTIO_BLK_T_OUT : VIRTIO_BLK_T_IN, block * (s->block / 512),
                        s->block, 0);
}

// Whether another request may follow.
static bool goes_on(const struct worker *w, uint64_t now, uint64_t end)
{
    return w->settings->each ? w->left > 0 : now < end;
}

static void *load_main(void *argument)
{
    struct worker *w = argument;
    const struct settings *s = w->settings;
    unsigned depth = w->client->options.depth;
    uint64_t last = now_ns(), end = last + (uint64_t)(s->seconds * 1e9);
    unsigned in_flight = 0;
    for (; in_flight < depth && goes_on(w, last, end); in_flight++)
        issue(w, in_flight);
    vhost_client_kick(w->client, w->queue);
    while (in_flight) {
        unsigned slot;
        uint8_t status;
        if (!s->spin && !vhost_client_wait(w->client, w->queue, 10000)) {
            w->failed += in_flight;
            return NULL;
        }
        uint64_t now = now_ns();
        w->gap_ns = MAX(w->gap_ns, now - last);
        last = now;
        while (vhost_client_poll(w->client, w->queue, &slot, &status)) {
            w->failed += status != VIRTIO_BLK_S_OK;
            w->flushing[slot] = s->flush && !w->flushing[slot];
            if (w->flushing[slot]) {
                vhost_client_submit(w->client, w->queue, slot, VIRTIO_BLK_T_FLUSH, 0, 0, 0);
                continue;
            }
            w->done++;
            if (goes_on(w, now, end))
                issue(w, slot);
            else
                in_flight--;
        }
        vhost_client_kick(w->client, w->queue);
    }
    return NULL;
}

// ---- verify ----------------------------------------------------------------------------------------------------

static void stamp(uint8_t *data, size_t length, uint64_t seed, uint64_t block, uint64_t pass)
{
    uint64_t *words = (uint64_t *)(void *)data;
    for (size_t i = 0; i < length / 8; i++)
        words[i] = seed ^ (block * 0x9e3779b97f4a7c15u + pass * 0xc2b2ae3d27d4eb4fu + i);
}

static bool reap(struct worker *w, uint64_t *blocks, uint64_t pass, bool check, uint8_t *expected)
{
    unsigned slot;
    uint8_t status;
    if (!vhost_client_wait(w->client, w->queue, 10000))
        return false;
    while (vhost_client_poll(w->client, w->queue, &slot, &status)) {
        w->done++;
        size_t bytes = w->settings->block;
        if (check)
            stamp(expected, bytes, w->settings->seed, blocks[slot], pass);
        if (status || (check && memcmp(expected, vhost_client_buffer(w->client, w->queue, slot), bytes))) {
            if (!w->failed++)
                (void)fprintf(stderr, "queue %u: block %lu is wrong (status %u)\n", w->queue, blocks[slot], status);
        }
        blocks[slot] = UINT64_MAX;
    }
    return true;
}

// The first number from `from` on that shares no factor with `count`: as a stride it visits all of `count`.
static uint64_t coprime(uint64_t from, uint64_t count)
{
    for (uint64_t stride = MAX(from, 1u);; stride++) {
        uint64_t a = stride, b = count;
        while (b) {
            uint64_t rest = a % b;
            a = b;
            b = rest;
        }
        if (a == 1)
            return stride;
    }
}

// Visit every block of the worker's part once, in an order that the pass decides.
static bool visit(struct worker *w, uint64_t pass, bool write, uint64_t *slots, uint8_t *expected)
{
    const struct settings *s = w->settings;
    unsigned depth = w->client->options.depth;
    uint64_t stride = coprime(random_next(&w->random) % w->blocks, w->blocks);
    uint64_t at = random_next(&w->random) % w->blocks;
    uint64_t issued = 0, completed = w->done;
    while (w->done - completed < w->blocks) {
        for (unsigned slot = 0; slot < depth && issued < w->blocks; slot++) {
            if (slots[slot] != UINT64_MAX)
                continue;
            slots[slot] = w->first + at;
            at = (at + stride) % w->blocks;
            uint8_t *data = vhost_client_buffer(w->client, w->queue, slot);
            if (write)
                stamp(data, s->block, s->seed, slots[slot], pass);
            else
                memset(data, 0xa5, s->block);
            vhost_client_submit(w->client, w->queue, slot, write ? VIRTIO_BLK_T_OUT : VIRTIO_BLK_T_IN,
                                slots[slot] * (s->block / 512), s->block, 0);
            issued++;
        }
        vhost_client_kick(w->client, w->queue);
        if (!reap(w, slots, pass, !write, expected))
            return false;
    }
    return true;
}

static void *verify_main(void *argument)
{
    struct worker *w = argument;
    uint64_t slots[1024];
    uint8_t *expected = malloc(w->settings->block);
    memset(slots, 0xff, sizeof(slots));
    bool ok = expected != NULL;
    for (uint64_t pass = 0; pass < 2 && ok; pass++) {
        ok = visit(w, pass, true, slots, expected) && visit(w, pass, false, slots, expected);
        ok = ok && vhost_client_do(w->client, w->queue, VIRTIO_BLK_T_FLUSH, 0, 0, 0) == VIRTIO_BLK_S_OK;
    }
    if (!ok) {
        (void)fprintf(stderr, "queue %u: no answer\n", w->queue);
        w->failed++;
    }
    free(expected);
    return NULL;
}

// ---- all of it -------------------------------------------------------------------------------------------------

// CPU time of a process's threads in nanoseconds.
static uint64_t cpu_ns(int pid)
{
    char path[64], line[1024];
    unsigned long user = 0, system = 0;
    (void)snprintf(path, sizeof(path), "/proc/%d/stat", pid);
    FILE *f = pid > 0 ? fopen(path, "re") : NULL;
    if (!f)
        return 0;
    if (fgets(line, sizeof(line), f)) {
        const char *at = strrchr(line, ')');
        if (at)
            (void)sscanf(at + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &system);
    }
    (void)fclose(f);
    return (user + system) * (1000000000u / (uint64_t)sysconf(_SC_CLK_TCK));
}

static void parse(int argc, char **argv, struct settings *s)
{
    static const struct option options[] = {
        {"socket", required_argument, NULL, 's'}, {"rw", required_argument, NULL, 'w'},
        {"bs", required_argument, NULL, 'b'},     {"depth", required_argument, NULL, 'd'},
        {"queues", required_argument, NULL, 'q'}, {"seconds", required_argument, NULL, 't'},
        {"spin", no_argument, NULL, 'p'},         {"pid", required_argument, NULL, 'i'},
        {"range", required_argument, NULL, 'r'},  {"seed", required_argument, NULL, 'e'},
        {"verify", no_argument, NULL, 'v'},       {"flush", no_argument, NULL, 'f'},
        {"each", required_argument, NULL, 'a'},   {0},
    };
    int c;
    while ((c = getopt_long(argc, argv, "", options, NULL)) >= 0) {
        if (c == 's')
            s->client.socket = optarg;
        else if (c == 'b')
            s->block = strtoul(optarg, NULL, 10);
        else if (c == 'd')
            s->client.depth = (unsigned)strtoul(optarg, NULL, 10);
        else if (c == 'q')
            s->client.queues = (unsigned)strtoul(optarg, NULL, 10);
        else if (c == 't')
            s->seconds = strtod(optarg, NULL);
        else if (c == 'p')
            s->spin = true;
        else if (c == 'i')
            s->pid = (int)strtol(optarg, NULL, 10);
        else if (c == 'r')
            s->range = strtoull(optarg, NULL, 10);
        else if (c == 'e')
            s->seed = strtoull(optarg, NULL, 10);
        else if (c == 'a')
            s->each = strtoull(optarg, NULL, 10);
        else if (c == 'v')
            s->verify = true;
        else if (c == 'f')
            s->flush = true;
        else if (c != 'w')
            exit(2);
        for (unsigned i = 0; c == 'w' && i < ARRAY_SIZE(pattern_names); i++)
            if (!strcmp(optarg, pattern_names[i]))
                s->pattern = (enum pattern)i;
    }
    s->client.slot_bytes = s->block;
}

static int run(struct settings *s, struct vhost_client *client)
{
    struct worker workers[VHOST_CLIENT_QUEUES_MAX] = {0};
    struct virtio_blk_config config;
    unsigned queues = client->options.queues;
    if (vhost_client_config(client, &config) < 0)
        return 1;
    uint64_t size = config.capacity * 512;
    uint64_t blocks = (s->range && s->range < size ? s->range : size) / s->block;
    uint64_t cpu = cpu_ns(s->pid), start = now_ns(), done = 0, failed = 0, gap_ns = 0;
    for (unsigned i = 0; i < queues; i++) {
        struct worker *w = &workers[i];
        *w = (struct worker){.settings = s, .client = client, .queue = i, .random = s->seed * 2654435761u + i + 1};
        w->blocks = s->verify ? blocks / queues : blocks;
        w->first = s->verify ? i * w->blocks : 0;
        if (s->each) {
            w->left = blocks / (s->each / s->block);
            w->stride = coprime(w->left * 5 / 8, MAX(w->left, 1u));
            w->next = s->seed % MAX(w->left, 1u);
        }
        if (!w->blocks || pthread_create(&w->thread, NULL, s->verify ? verify_main : load_main, w))
            return 1;
    }
    for (unsigned i = 0; i < queues; i++) {
        (void)pthread_join(workers[i].thread, NULL);
        done += workers[i].done;
        failed += workers[i].failed;
        gap_ns = MAX(gap_ns, workers[i].gap_ns);
    }
    double seconds = (double)(now_ns() - start) / 1e9;
    (void)printf(
        "%s bs=%zu depth=%u queues=%u %s: %.0f IOPS, %.1f MiB/s, %lu requests, %lu failed, longest gap %.0f us",
        s->verify ? "verify" : pattern_names[s->pattern], s->block, client->options.depth, queues,
        s->spin ? "spin" : "event", (double)done / seconds, (double)done * (double)s->block / seconds / 1048576, done,
        failed, (double)gap_ns / 1e3);
    if (s->pid)
        (void)printf(", %.2f us CPU/request", (double)(cpu_ns(s->pid) - cpu) / 1e3 / (double)MAX(done, 1u));
    (void)printf("\n");
    return failed ? 1 : 0;
}

int main(int argc, char **argv)
{
    struct settings settings = {.block = 4096, .seconds = 2, .seed = 1};
    parse(argc, argv, &settings);
    struct vhost_client *client;
    if (!settings.client.socket || settings.block < 512 || settings.block % 512 || settings.client.depth > 1024 ||
        settings.each % settings.block || (settings.each && settings.client.queues > 1)) {
        (void)fprintf(stderr, "usage: see the top of vhost-bench.c\n");
        return 2;
    }
    int r = vhost_client_connect(&settings.client, &client);
    if (r < 0) {
        (void)fprintf(stderr, "connect '%s': %s\n", settings.client.socket, strerror(-r));
        return 1;
    }
    r = run(&settings, client);
    (void)vhost_client_close(client);
    return r;
}
