// SPDX-License-Identifier: Apache-2.0
/*
 * The qcow2 header back to bytes: whole for a new image, the changeable fields in place for an existing one, so that
 * nothing we do not know can get lost.
 */
#include <errno.h>
#include <string.h>

#include "backends/format/qcow2/header.h"
#include "common/bytes.h"
#include "common/checked.h"

#define MAGIC 0x514649fbu
#define SECTOR 512u

/* Fields that may change after creation. All lie in the first sector of the file. */
static void put_changeable(const struct header *h, uint8_t *b)
{
    store_be64(b + 24, h->size);
    store_be32(b + 36, h->l1_size);
    store_be64(b + 40, h->l1_offset);
    store_be64(b + 48, h->refcount_table_offset);
    store_be32(b + 56, h->refcount_table_clusters);
    store_be32(b + 60, h->nb_snapshots);
    store_be64(b + 64, h->snapshots_offset);
    if (h->version < 3)
        return;
    store_be64(b + 72, h->incompatible);
    store_be64(b + 80, h->compatible);
    store_be64(b + 88, h->autoclear);
}

int header_serialise(const struct header *h, uint8_t *buffer, size_t length)
{
    size_t name = strlen(h->backing);
    uint64_t at = (uint64_t)h->header_length + h->extensions_length + 8; /* with the end mark */
    if (at + name > length || h->header_length + h->extra_length > length)
        return -ENAMETOOLONG;
    store_be32(buffer, MAGIC);
    store_be32(buffer + 4, h->version);
    store_be64(buffer + 8, name ? at : 0);
    store_be32(buffer + 16, (uint32_t)name);
    store_be32(buffer + 20, h->cluster_bits);
    store_be32(buffer + 32, h->crypt_method);
    put_changeable(h, buffer);
    if (h->version >= 3) {
        store_be32(buffer + 96, h->refcount_order);
        store_be32(buffer + 100, h->header_length);
        if (h->header_length > 104)
            buffer[104] = h->compression;
        if (h->extra_length)
            memcpy(buffer + h->header_length - h->extra_length, h->extra, h->extra_length);
    }
    if (h->extensions_length)
        memcpy(buffer + h->header_length, h->extensions, h->extensions_length);
    memcpy(buffer + at, h->backing, name);
    return 0;
}

int header_write(struct io_file *file, const struct header *h)
{
    _Alignas(SECTOR) uint8_t sector[SECTOR];
    int r = io_file_read(file, sector, sizeof(sector), 0);
    if (r < 0)
        return r;
    put_changeable(h, sector);
    return io_file_write(file, sector, sizeof(sector), 0);
}
