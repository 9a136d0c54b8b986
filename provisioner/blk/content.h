/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How much of a disk its content needs, from the first bytes: the answer to "may this be cut off?". ext2/3/4, XFS, MBR
 * and GPT are understood: what platter itself formats, and what guests put around it. All of it comes from the guest:
 * nothing is believed beyond the numbers, and a number that makes no sense counts as "needs everything".
 */
#ifndef PLATTER_PROVISIONER_BLK_CONTENT_H
#define PLATTER_PROVISIONER_BLK_CONTENT_H

#include <stddef.h>
#include <stdint.h>

enum { CONTENT_HEAD = 128 << 10 }; /* bytes of the disk's begin that content_find wants; fewer when it is smaller */

struct content {
    const char *name; /* "ext4", "xfs", "gpt", "mbr"; NULL = nothing that is known */
    uint64_t end;     /* bytes that it needs from the begin of the disk; UINT64_MAX: cannot be told */
};

/* Pure; any thread. Sources: the kernel's Documentation/filesystems/ext4 (super block), the XFS Algorithms & Data
 * Structures book (super block), UEFI 2.10 section 5 (MBR, GPT). */
void content_find(const uint8_t *head, size_t length, struct content *ret_content);

#endif
