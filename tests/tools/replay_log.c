// SPDX-License-Identifier: Apache-2.0
/*
 * Reads the log device of Linux's dm-log-writes and replays parts of it.
 *
 *   replay_log list LOG                     prints a line for each entry: NUMBER KINDS SECTOR SECTORS [MARK'S NAME]
 *   replay_log apply LOG TARGET FROM TO     does the entries FROM <= number < TO to TARGET, a file
 *
 * KINDS is a comma-separated list of write, flush, fua, discard, metadata, mark. The kernel logs a write when a later
 * flush completes, or at once with FUA, so all entries up to a flush, FUA or mark are what a disk may hold at that
 * moment that kept nothing of its cache.
 *
 * Format (drivers/md/dm-log-writes.c): little endian. A super block in the first sector: magic, version 1, number of
 * entries, sector size. From the second on: an entry's header (sector, number of sectors, flags, bytes of a mark) in a
 * sector of its own, a mark's name behind it in the same sector; then the data, none for discards. All counts are in
 * the log's sectors.
 */
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/checked.h"
#include "common/cleanup.h"

#define LOG_MAGIC UINT64_C(0x6a736677736872)
#define LOG_VERSION 1
#define SECTOR_MAX 4096
#define COPY_MAX (64 * KIB)

enum { LOG_FLUSH = 1, LOG_FUA = 2, LOG_DISCARD = 4, LOG_MARK = 8, LOG_METADATA = 16 };

struct super {
    uint64_t magic, version, entries;
    uint32_t sector_size;
} __attribute__((packed));

struct entry {
    uint64_t sector, sectors, flags, data_bytes;
};

struct log {
    int fd;
    uint64_t entries, sector_size;
    uint64_t next; /* byte offset of the next entry */
    uint64_t data; /* of the last entry's data */
    struct entry entry;
    char mark[SECTOR_MAX];
};

static int read_at(int fd, void *buffer, size_t bytes, uint64_t offset)
{
    ssize_t n = pread(fd, buffer, bytes, (off_t)offset);
    if (n < 0)
        return -errno;
    return (size_t)n == bytes ? 0 : -ENODATA;
}

static int log_open(const char *path, struct log *log)
{
    struct super super;
    log->fd = open(path, O_RDONLY | O_CLOEXEC);
    if (log->fd < 0)
        return -errno;
    int r = read_at(log->fd, &super, sizeof(super), 0);
    if (r < 0)
        return r;
    log->sector_size = le32toh(super.sector_size);
    log->entries = le64toh(super.entries);
    if (le64toh(super.magic) != LOG_MAGIC || le64toh(super.version) != LOG_VERSION)
        return -EINVAL;
    if (log->sector_size != 512 && log->sector_size != SECTOR_MAX)
        return -EINVAL;
    log->next = log->sector_size;
    return 0;
}

static int log_next(struct log *log)
{
    uint8_t sector[SECTOR_MAX + 1] = {0};
    struct entry raw;
    int r = read_at(log->fd, sector, log->sector_size, log->next);
    if (r < 0)
        return r;
    memcpy(&raw, sector, sizeof(raw));
    log->entry = (struct entry){.sector = le64toh(raw.sector),
                                .sectors = le64toh(raw.sectors),
                                .flags = le64toh(raw.flags),
                                .data_bytes = le64toh(raw.data_bytes)};
    if (log->entry.data_bytes > log->sector_size - sizeof(raw) || log->entry.sectors > UINT32_MAX ||
        log->entry.sector > UINT32_MAX)
        return -EINVAL;
    memcpy(log->mark, sector + sizeof(raw), log->entry.data_bytes);
    log->mark[log->entry.data_bytes] = '\0';
    log->data = log->next + log->sector_size;
    log->next = log->data;
    if (!(log->entry.flags & LOG_DISCARD))
        log->next += log->entry.sectors * log->sector_size;
    return 0;
}

static void print_entry(const struct log *log, uint64_t number)
{
    static const char *const names[] = {"flush", "fua", "discard", "mark", "metadata"};
    const struct entry *entry = &log->entry;
    const char *comma = "";
    (void)printf("%" PRIu64 " ", number);
    if (entry->sectors && !(entry->flags & LOG_DISCARD)) {
        (void)printf("write");
        comma = ",";
    }
    for (unsigned i = 0; i < 5; i++) {
        if (!(entry->flags & UINT64_C(1) << i))
            continue;
        (void)printf("%s%s", comma, names[i]);
        comma = ",";
    }
    (void)printf("%s %" PRIu64 " %" PRIu64 " %s\n", *comma ? "" : "none", entry->sector, entry->sectors,
                 entry->flags & LOG_MARK ? log->mark : "");
}

/* Discarded sectors are left as they are, which a disk may do. */
static int apply_entry(const struct log *log, int target)
{
    static uint8_t buffer[COPY_MAX];
    if (log->entry.flags & LOG_DISCARD)
        return 0;
    uint64_t bytes = log->entry.sectors * log->sector_size, offset = log->entry.sector * log->sector_size;
    for (uint64_t done = 0; done < bytes;) {
        size_t piece = MIN(bytes - done, (uint64_t)COPY_MAX);
        int r = read_at(log->fd, buffer, piece, log->data + done);
        if (r < 0)
            return r;
        ssize_t n = pwrite(target, buffer, piece, (off_t)(offset + done));
        if (n != (ssize_t)piece)
            return n < 0 ? -errno : -EIO;
        done += piece;
    }
    return 0;
}

static int run(const char *path, const char *target_path, uint64_t from, uint64_t to)
{
    static struct log log;
    CLEANUP_CLOSE int target = -1;
    int r = log_open(path, &log);
    if (target_path && r == 0) {
        target = open(target_path, O_WRONLY | O_CLOEXEC);
        r = target < 0 ? -errno : 0;
    }
    for (uint64_t i = 0; r == 0 && i < MIN(to, log.entries); i++) {
        r = log_next(&log);
        if (r < 0 || i < from)
            continue;
        if (target_path)
            r = apply_entry(&log, target);
        else
            print_entry(&log, i);
    }
    return r;
}

int main(int argc, char **argv)
{
    int r;
    if (argc == 3 && strcmp(argv[1], "list") == 0) {
        r = run(argv[2], NULL, 0, UINT64_MAX);
    } else if (argc == 6 && strcmp(argv[1], "apply") == 0) {
        r = run(argv[2], argv[3], strtoull(argv[4], NULL, 10), strtoull(argv[5], NULL, 10));
    } else {
        (void)fprintf(stderr, "usage: replay_log list LOG | apply LOG TARGET FROM TO\n");
        return 2;
    }
    if (r < 0)
        (void)fprintf(stderr, "replay_log: %s: %s\n", argv[2], strerror(-r));
    return r < 0;
}
