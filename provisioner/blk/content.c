// SPDX-License-Identifier: Apache-2.0
/* A disk may carry several of these at once (a boot sector before ext4): the largest need counts. */
#include "provisioner/blk/content.h"

#include <string.h>

#include "common/bytes.h"
#include "common/checked.h"

enum {
    EXT_OFFSET = 1024,
    EXT_SIZE = 1024,
    EXT_MAGIC = 0xef53,
    EXT_64BIT = 0x80, /* of s_feature_incompat: s_blocks_count_hi is in use */
    EXT_LOG_BLOCK_MAX = 6,
    XFS_SIZE = 512,
    MBR_SECTOR = 512,
    MBR_TABLE = 446,
    MBR_ENTRIES = 4,
    MBR_ENTRY = 16,
    MBR_PROTECTIVE = 0xee,
    GPT_ENTRY_MIN = 128,
};

static void need(struct content *content, const char *name, uint64_t end)
{
    if (!content->name || end > content->end)
        *content = (struct content){.name = name, .end = end};
}

/* `count` units of `unit` bytes, as an end. */
static uint64_t end_of(uint64_t count, uint64_t unit)
{
    uint64_t end;
    return checked_mul(count, unit, &end) ? end : UINT64_MAX;
}

static void find_ext(const uint8_t *head, size_t length, struct content *content)
{
    const uint8_t *super = head + EXT_OFFSET;
    if (length < EXT_OFFSET + EXT_SIZE || load_le16(super + 56) != EXT_MAGIC)
        return;
    uint64_t blocks = load_le32(super + 4);
    uint32_t log_block = load_le32(super + 24);
    if (load_le32(super + 96) & EXT_64BIT)
        blocks |= (uint64_t)load_le32(super + 336) << 32;
    need(content, "ext4", log_block > EXT_LOG_BLOCK_MAX ? UINT64_MAX : end_of(blocks, UINT64_C(1024) << log_block));
}

static void find_xfs(const uint8_t *head, size_t length, struct content *content)
{
    if (length < XFS_SIZE || memcmp(head, "XFSB", 4) != 0)
        return;
    uint32_t block = load_be32(head + 4);
    bool sound = is_power_of_two(block) && block >= 512 && block <= 64 * KIB;
    need(content, "xfs", sound ? end_of(load_be64(head + 8), block) : UINT64_MAX);
}

static void find_mbr(const uint8_t *head, size_t length, struct content *content)
{
    if (length < MBR_SECTOR || head[510] != 0x55 || head[511] != 0xaa)
        return;
    for (unsigned i = 0; i < MBR_ENTRIES; i++) {
        const uint8_t *entry = head + MBR_TABLE + (size_t)i * MBR_ENTRY;
        if ((entry[0] & 0x7f) != 0)
            return; /* a boot sector without a table */
    }
    for (unsigned i = 0; i < MBR_ENTRIES; i++) {
        const uint8_t *entry = head + MBR_TABLE + (size_t)i * MBR_ENTRY;
        uint64_t sectors = (uint64_t)load_le32(entry + 8) + load_le32(entry + 12);
        if (entry[4] && entry[4] != MBR_PROTECTIVE)
            need(content, "mbr", sectors * MBR_SECTOR);
    }
}

static void find_gpt(const uint8_t *head, size_t length, uint32_t sector, struct content *content)
{
    static const uint8_t unused[16];
    const uint8_t *header = head + sector;
    if (length < 2 * (size_t)sector || memcmp(header, "EFI PART", 8) != 0)
        return;
    uint64_t table = end_of(load_le64(header + 72), sector);
    uint32_t count = load_le32(header + 80), entry_size = load_le32(header + 84);
    if (entry_size < GPT_ENTRY_MIN || !range_within(table, (uint64_t)count * entry_size, length)) {
        need(content, "gpt", UINT64_MAX);
        return;
    }
    need(content, "gpt", table + (uint64_t)count * entry_size);
    for (uint32_t i = 0; i < count; i++) {
        const uint8_t *entry = head + table + (uint64_t)i * entry_size;
        uint64_t last = load_le64(entry + 40);
        if (memcmp(entry, unused, sizeof(unused)) != 0)
            need(content, "gpt", last == UINT64_MAX ? last : end_of(last + 1, sector));
    }
}

void content_find(const uint8_t *head, size_t length, struct content *ret_content)
{
    *ret_content = (struct content){0};
    find_ext(head, length, ret_content);
    find_xfs(head, length, ret_content);
    find_mbr(head, length, ret_content);
    find_gpt(head, length, 512, ret_content);
    find_gpt(head, length, 4096, ret_content);
}
