// SPDX-License-Identifier: Apache-2.0
/*
 * Writes stamped blocks to a volume and keeps a journal of what was acknowledged, outside of the volume, so that it can
 * be told after the death of the server what had to be there.
 *
 *   ack_writer write TARGET JOURNAL --seed N    until the first error; status 0 (the server's end is no fault)
 *   ack_writer verify TARGET JOURNAL            status 0: nothing lost, 1: lost or foreign data, 2: cannot read
 *   ack_writer flushes JOURNAL                  prints how many flushes were acknowledged so far
 *
 * TARGET is nbd:SOCKET or file:PATH (a file or block device).
 *
 * DEPTH threads with a connection each own clusters of 64 KiB and write their 4 KiB blocks in random order, zero whole
 * clusters now and then, and flush. Each block has a generation that counts up; every 512 bytes written hold place,
 * generation and seed. A flush raises the floor of all blocks to the generation acknowledged before the flush was sent.
 * A block may hold its floor or anything newer that was sent since the last verify, never what is older, nor what was
 * lost once. verify makes what it finds the new floor.
 *
 * The journal is a mapped file: this process may be killed as well.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <libnbd.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/checked.h"

#define BLOCK (4 * KIB)
#define SECTOR 512
#define CLUSTER_BLOCKS 16
#define DEPTH 16
#define VERIFY_BYTES (CLUSTER_BLOCKS * BLOCK)

struct block {
    _Atomic uint64_t sent;   /* newest generation ever sent */
    _Atomic uint64_t acked;  /* newest acknowledged */
    _Atomic uint64_t floor;  /* acknowledged before a flush that succeeded, or found by verify */
    _Atomic uint64_t zeroed; /* newest generation that was a zeroing; 0: never, it began as zeros */
    uint64_t begun;          /* sent before this round, unless the block was found in part: then its floor */
};

struct journal {
    uint64_t seed, blocks;
    _Atomic uint64_t flushes;
    struct block block[];
};

struct target {
    struct nbd_handle *nbd; /* NULL: a file or device */
    int fd;
    uint64_t size;
    bool shared_flush; /* a flush covers what other threads wrote */
};

struct writer {
    const char *spec;
    struct journal *journal;
    uint64_t random;
    unsigned index;
    pthread_t thread;
};

// ---- the volume --------------------------------------------------------------------------------------------------

static int target_open(const char *spec, struct target *ret)
{
    struct target t = {.fd = -1, .shared_flush = true};
    if (strncmp(spec, "nbd:", 4) == 0) {
        t.nbd = nbd_create();
        if (!t.nbd || nbd_connect_unix(t.nbd, spec + 4) < 0)
            return -ECONNREFUSED;
        t.size = (uint64_t)nbd_get_size(t.nbd);
        t.shared_flush = nbd_can_multi_conn(t.nbd) == 1;
    } else if (strncmp(spec, "file:", 5) == 0) {
        struct stat st;
        t.fd = open(spec + 5, O_RDWR | O_DIRECT | O_CLOEXEC);
        if (t.fd < 0 || fstat(t.fd, &st) < 0)
            return -errno;
        t.size = (uint64_t)st.st_size;
        if (S_ISBLK(st.st_mode) && ioctl(t.fd, BLKGETSIZE64, &t.size) < 0)
            return -errno;
    } else {
        return -EINVAL;
    }
    *ret = t;
    return 0;
}

static void target_close(struct target *t)
{
    if (t->nbd)
        nbd_close(t->nbd);
    else
        (void)close(t->fd);
}

static bool target_read(struct target *t, void *buffer, size_t length, uint64_t offset)
{
    if (t->nbd)
        return nbd_pread(t->nbd, buffer, length, offset, 0) == 0;
    return pread(t->fd, buffer, length, (off_t)offset) == (ssize_t)length;
}

static bool target_write(struct target *t, const void *buffer, size_t length, uint64_t offset)
{
    if (t->nbd)
        return nbd_pwrite(t->nbd, buffer, length, offset, 0) == 0;
    return pwrite(t->fd, buffer, length, (off_t)offset) == (ssize_t)length;
}

static bool target_zero(struct target *t, uint64_t length, uint64_t offset)
{
    uint64_t range[2] = {offset, length};
    if (t->nbd)
        return nbd_zero(t->nbd, length, offset, 0) == 0;
    return ioctl(t->fd, BLKZEROOUT, range) == 0;
}

static bool target_flush(struct target *t)
{
    return t->nbd ? nbd_flush(t->nbd, 0) == 0 : fdatasync(t->fd) == 0;
}

// ---- the journal -------------------------------------------------------------------------------------------------

/* size = 0: the journal must exist. */
static struct journal *journal_open(const char *path, uint64_t size, uint64_t seed)
{
    struct stat st;
    int fd = open(path, O_RDWR | O_CLOEXEC | (size ? O_CREAT : 0), 0600);
    if (fd < 0 || fstat(fd, &st) < 0)
        return NULL;
    size_t bytes = sizeof(struct journal) + size / BLOCK * sizeof(struct block);
    if (st.st_size)
        bytes = (size_t)st.st_size;
    else if (ftruncate(fd, (off_t)bytes) < 0)
        return NULL;
    struct journal *journal = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    (void)close(fd);
    if (journal == MAP_FAILED)
        return NULL;
    if (!st.st_size) {
        journal->seed = seed;
        journal->blocks = size / BLOCK;
    }
    return journal;
}

static void stamp(const struct journal *journal, uint64_t index, uint64_t generation, uint64_t *out)
{
    for (size_t i = 0; i < BLOCK / sizeof(*out); i += 4) {
        out[i] = index;
        out[i + 1] = generation;
        out[i + 2] = journal->seed;
        out[i + 3] = (index ^ generation * UINT64_C(0x9e3779b97f4a7c15) ^ journal->seed) + i;
    }
}

// ---- writing -----------------------------------------------------------------------------------------------------

static uint64_t random_next(struct writer *writer)
{
    writer->random ^= writer->random << 13;
    writer->random ^= writer->random >> 7;
    writer->random ^= writer->random << 17;
    return writer->random;
}

/* Blocks first..first+count get their next generation: zeros, or one stamped block. */
static bool write_blocks(struct writer *writer, struct target *t, uint64_t first, uint64_t count, uint64_t *buffer)
{
    struct block *block = writer->journal->block;
    for (uint64_t i = first; i < first + count; i++) {
        uint64_t generation = ++block[i].sent;
        if (count > 1)
            block[i].zeroed = generation;
        else
            stamp(writer->journal, i, generation, buffer);
    }
    if (!(count > 1 ? target_zero(t, count * BLOCK, first * BLOCK) : target_write(t, buffer, BLOCK, first * BLOCK)))
        return false;
    for (uint64_t i = first; i < first + count; i++)
        block[i].acked = block[i].sent;
    return true;
}

static bool flush_all(struct writer *writer, struct target *t, uint64_t *acked)
{
    struct journal *journal = writer->journal;
    for (uint64_t i = 0; i < journal->blocks; i++)
        acked[i] = journal->block[i].acked;
    if (!target_flush(t))
        return false;
    for (uint64_t i = 0; i < journal->blocks; i++) {
        if (!t->shared_flush && i / CLUSTER_BLOCKS % DEPTH != writer->index)
            continue;
        uint64_t floor = journal->block[i].floor;
        while (floor < acked[i] && !atomic_compare_exchange_weak(&journal->block[i].floor, &floor, acked[i]))
            ;
    }
    journal->flushes++;
    return true;
}

static void *writer_run(void *opaque)
{
    struct writer *writer = opaque;
    uint64_t *buffer = NULL, *acked = calloc(writer->journal->blocks, sizeof(*acked));
    const uint64_t rows = writer->journal->blocks / CLUSTER_BLOCKS / DEPTH;
    struct target t;
    if (!acked || posix_memalign((void **)&buffer, BLOCK, BLOCK) || target_open(writer->spec, &t) < 0) {
        free(acked);
        free(buffer);
        return writer;
    }
    for (bool going = true; going;) {
        uint64_t cluster = random_next(writer) % rows * DEPTH + writer->index, what = random_next(writer) % 64;
        uint64_t first = cluster * CLUSTER_BLOCKS;
        if (what == 0)
            going = flush_all(writer, &t, acked);
        else if (what < 4)
            going = write_blocks(writer, &t, first, CLUSTER_BLOCKS, NULL);
        else
            going = write_blocks(writer, &t, first + random_next(writer) % CLUSTER_BLOCKS, 1, buffer);
    }
    target_close(&t);
    free(acked);
    free(buffer);
    return NULL;
}

static int write_all(const char *spec, const char *path, uint64_t seed)
{
    struct target t;
    if (target_open(spec, &t) < 0)
        return 2;
    struct journal *journal = journal_open(path, t.size, seed);
    target_close(&t);
    if (!journal || journal->blocks != t.size / BLOCK || journal->blocks < (uint64_t)CLUSTER_BLOCKS * DEPTH)
        return 2;
    for (uint64_t i = 0; i < journal->blocks; i++)
        journal->block[i].acked = journal->block[i].floor;
    struct writer writers[DEPTH];
    int status = 0;
    unsigned started;
    for (started = 0; started < DEPTH; started++) {
        struct writer *w = &writers[started];
        *w = (struct writer){.spec = spec, .journal = journal, .index = started};
        w->random = (seed + started + 1) * UINT64_C(0x9e3779b97f4a7c15) | 1;
        if (pthread_create(&w->thread, NULL, writer_run, w))
            break;
    }
    status = started < DEPTH ? 2 : 0;
    for (unsigned i = 0; i < started; i++)
        (void)pthread_join(writers[i].thread, NULL);
    return status;
}

// ---- verifying ---------------------------------------------------------------------------------------------------

/* The generation that a sector holds, or -1 when it is none of this block's. */
static int64_t sector_generation(const struct journal *journal, uint64_t index, unsigned sector, const uint64_t *data)
{
    static const uint8_t zeros[SECTOR];
    uint64_t whole[BLOCK / sizeof(uint64_t)];
    if (memcmp(data, zeros, SECTOR) == 0)
        return (int64_t)journal->block[index].zeroed;
    stamp(journal, index, data[1], whole);
    if (memcmp(data, (uint8_t *)whole + (size_t)sector * SECTOR, SECTOR) != 0 || data[1] > INT64_MAX)
        return -1;
    return (int64_t)data[1];
}

/* 0, or 1 when the block holds what it must not. A write in flight may be there in part. */
static int verify_block(struct journal *journal, uint64_t index, const uint8_t *data)
{
    struct block *block = &journal->block[index];
    uint64_t lowest = UINT64_MAX, highest = 0;
    for (unsigned sector = 0; sector < BLOCK / SECTOR; sector++) {
        const uint64_t *at = (const uint64_t *)(const void *)(data + (size_t)sector * SECTOR);
        int64_t generation = sector_generation(journal, index, sector, at);
        const char *what = NULL;
        if (generation < 0)
            what = "foreign data";
        else if ((uint64_t)generation < block->floor)
            what = "lost: older than its last flush";
        else if ((uint64_t)generation > block->floor && (uint64_t)generation <= block->begun)
            what = "returned after it was lost";
        else if ((uint64_t)generation > block->sent)
            what = "never sent";
        if (what) {
            (void)fprintf(stderr,
                          "ack_writer: block %" PRIu64 " sector %u: %s (holds %" PRId64 ", floor %" PRIu64
                          ", sent %" PRIu64 ", seed %" PRIu64 ")\n",
                          index, sector, what, generation, block->floor, block->sent, journal->seed);
            return 1;
        }
        lowest = MIN(lowest, (uint64_t)generation);
        highest = MAX(highest, (uint64_t)generation);
    }
    block->floor = lowest;
    block->begun = lowest == highest ? block->sent : lowest;
    return 0;
}

static int verify_all(const char *spec, const char *path)
{
    struct target t;
    uint8_t *buffer = NULL;
    struct journal *journal = journal_open(path, 0, 0);
    if (!journal || target_open(spec, &t) < 0 || posix_memalign((void **)&buffer, BLOCK, VERIFY_BYTES))
        return 2;
    int status = 0;
    uint64_t bad = 0, held = 0;
    for (uint64_t first = 0; status != 2 && first < journal->blocks; first += CLUSTER_BLOCKS) {
        uint64_t count = MIN((uint64_t)CLUSTER_BLOCKS, journal->blocks - first);
        if (!target_read(&t, buffer, count * BLOCK, first * BLOCK))
            status = 2;
        for (uint64_t i = 0; status != 2 && i < count; i++) {
            held += journal->block[first + i].floor > journal->block[first + i].begun;
            if (bad < 10)
                bad += (uint64_t)verify_block(journal, first + i, buffer + i * BLOCK);
        }
    }
    if (status == 2)
        (void)fprintf(stderr, "ack_writer: cannot read\n");
    else if (bad)
        status = 1;
    (void)printf("%" PRIu64 " flushes, %" PRIu64 " blocks flushed in this round, %" PRIu64 " lost or foreign%s\n",
                 journal->flushes, held, bad, bad == 10 ? " (and more)" : "");
    target_close(&t);
    free(buffer);
    return status;
}

int main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "flushes") == 0) {
        struct journal *journal = journal_open(argv[2], 0, 0);
        (void)printf("%" PRIu64 "\n", journal ? journal->flushes : 0);
        return 0;
    }
    if (argc == 4 && strcmp(argv[1], "verify") == 0)
        return verify_all(argv[2], argv[3]);
    if (argc == 6 && strcmp(argv[1], "write") == 0 && strcmp(argv[4], "--seed") == 0)
        return write_all(argv[2], argv[3], strtoull(argv[5], NULL, 0));
    (void)fprintf(stderr,
                  "usage: ack_writer write TARGET JOURNAL --seed N | verify TARGET JOURNAL | flushes JOURNAL\n");
    return 2;
}
