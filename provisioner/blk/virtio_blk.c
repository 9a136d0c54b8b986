// SPDX-License-Identifier: Apache-2.0
// virtio-blk: features, configuration space, requests. Framing is arbitrary (VIRTIO_F_VERSION_1), so header, payload
// and status may be cut into descriptors in any way.
#include "provisioner/blk/virtio_blk.h"

#include <endian.h>
#include <errno.h>
#include <linux/virtio_blk.h>
#include <string.h>

#include "common/bytes.h"
#include "common/checked.h"

#define SEGMENT_BYTES_MAX (4 * MIB)
// Longer ones are cut by the guest; it keeps a single request from occupying a file for long.
#define RANGE_BYTES_MAX GIB

_Static_assert(offsetof(struct virtio_blk_config, unused1) + 3 == VIRTIO_BLK_CONFIG_BYTES, "virtio 1.2, 5.2.4");

#define FEATURE(bit) (UINT64_C(1) << (bit))

uint64_t virtio_blk_features(const struct virtio_blk_volume *volume)
{
    uint64_t features = FEATURE(VIRTIO_BLK_F_SIZE_MAX) | FEATURE(VIRTIO_BLK_F_SEG_MAX) |
                        FEATURE(VIRTIO_BLK_F_BLK_SIZE) | FEATURE(VIRTIO_BLK_F_TOPOLOGY) | FEATURE(VIRTIO_BLK_F_FLUSH) |
                        FEATURE(VIRTIO_BLK_F_CONFIG_WCE) | FEATURE(VIRTIO_BLK_F_MQ);
    if (volume->read_only)
        return features | FEATURE(VIRTIO_BLK_F_RO);
    if (volume->geometry.discard)
        features |= FEATURE(VIRTIO_BLK_F_DISCARD);
    return features | FEATURE(VIRTIO_BLK_F_WRITE_ZEROES);
}

static uint8_t log2_of(uint64_t v)
{
    return (uint8_t)__builtin_ctzll(v);
}

void virtio_blk_config(const struct virtio_blk_volume *volume, uint64_t size, bool write_cache,
                       uint8_t ret_config[VIRTIO_BLK_CONFIG_BYTES])
{
    const struct image_geometry *geometry = &volume->geometry;
    uint32_t alignment = MAX(geometry->alignment, (uint32_t)VIRTIO_BLK_SECTOR);
    uint32_t preferred = MAX(geometry->preferred, (uint32_t)VIRTIO_BLK_SECTOR);
    uint32_t range_sectors = RANGE_BYTES_MAX / VIRTIO_BLK_SECTOR;
    struct virtio_blk_config config = {
        .capacity = htole64(size / VIRTIO_BLK_SECTOR),
        .size_max = htole32(SEGMENT_BYTES_MAX),
        .seg_max = htole32(VIRTIO_BLK_SEG_MAX),
        .blk_size = htole32(VIRTIO_BLK_SECTOR),
        .physical_block_exp = log2_of(alignment / VIRTIO_BLK_SECTOR),
        .min_io_size = htole16((uint16_t)MIN(alignment / VIRTIO_BLK_SECTOR, UINT16_MAX)),
        .opt_io_size = htole32(preferred / VIRTIO_BLK_SECTOR),
        .wce = write_cache,
        .num_queues = htole16((uint16_t)volume->queues),
        .max_discard_sectors = htole32(range_sectors),
        .max_discard_seg = htole32(1),
        .discard_sector_alignment = htole32(preferred / VIRTIO_BLK_SECTOR),
        .max_write_zeroes_sectors = htole32(range_sectors),
        .max_write_zeroes_seg = htole32(1),
        .write_zeroes_may_unmap = geometry->discard,
    };
    memcpy(ret_config, &config, VIRTIO_BLK_CONFIG_BYTES);
}

size_t virtio_blk_config_wce_offset(void)
{
    return offsetof(struct virtio_blk_config, wce);
}

uint8_t virtio_blk_status(int result)
{
    if (result == 0)
        return VIRTIO_BLK_S_OK;
    return result == -EOPNOTSUPP ? VIRTIO_BLK_S_UNSUPP : VIRTIO_BLK_S_IOERR;
}

// Copy `length` bytes from the front of iov and drop them from it. The caller knows that they are there.
static void iov_take(struct iovec **iov, unsigned *count, void *to, size_t length)
{
    uint8_t *out = to;
    while (length) {
        size_t part = MIN(length, (*iov)->iov_len);
        memcpy(out, (*iov)->iov_base, part);
        out += part;
        length -= part;
        if (part == (*iov)->iov_len) {
            (*iov)++;
            (*count)--;
        } else {
            (*iov)->iov_base = (uint8_t *)(*iov)->iov_base + part;
            (*iov)->iov_len -= part;
        }
    }
}

// Copy at most `length` bytes to iov; returns what fitted.
static size_t iov_put(const struct iovec *iov, unsigned count, const void *from, size_t length)
{
    size_t done = 0;
    for (unsigned i = 0; i < count && done < length; i++) {
        size_t part = MIN(length - done, iov[i].iov_len);
        memcpy(iov[i].iov_base, (const uint8_t *)from + done, part);
        done += part;
    }
    return done;
}

// The parts of a chain once header and status were cut off.
struct parts {
    uint32_t type;
    uint64_t sector;
    struct iovec *out, *in;
    unsigned out_count, in_count;
    uint64_t out_bytes, in_bytes;
};

static int split(struct virtqueue_chain *chain, struct parts *p, uint8_t **ret_status)
{
    struct virtio_blk_outhdr header;
    if (chain->readable_bytes < sizeof(header) || !chain->writable_bytes)
        return -EPROTO;
    p->out = chain->iov;
    p->out_count = chain->readable;
    p->in = chain->iov + chain->readable;
    p->in_count = chain->writable;
    struct iovec *last = &p->in[p->in_count - 1];
    *ret_status = (uint8_t *)last->iov_base + last->iov_len - 1;
    if (--last->iov_len == 0)
        p->in_count--;
    iov_take(&p->out, &p->out_count, &header, sizeof(header));
    p->out_bytes = chain->readable_bytes - sizeof(header);
    p->in_bytes = chain->writable_bytes - 1;
    p->type = le32toh(header.type);
    p->sector = le64toh(header.sector);
    return 0;
}

static uint8_t translate_transfer(const struct virtio_blk_rules *rules, const struct parts *p,
                                  struct image_request *request)
{
    bool write = p->type == VIRTIO_BLK_T_OUT;
    uint64_t length = write ? p->out_bytes : p->in_bytes;
    if (write && rules->volume->read_only)
        return VIRTIO_BLK_S_IOERR;
    if (length % VIRTIO_BLK_SECTOR || !checked_mul(p->sector, VIRTIO_BLK_SECTOR, &request->offset))
        return VIRTIO_BLK_S_IOERR;
    request->op = write ? IMAGE_WRITE : IMAGE_READ;
    request->flags = write && rules->write_through ? IMAGE_FUA : 0;
    request->length = length;
    request->iov = write ? p->out : p->in;
    request->iovcnt = write ? p->out_count : p->in_count;
    return VIRTIO_BLK_S_OK;
}

static uint8_t translate_range(const struct virtio_blk_rules *rules, struct parts *p, struct image_request *request)
{
    bool zeroes = p->type == VIRTIO_BLK_T_WRITE_ZEROES;
    uint64_t needed = FEATURE(zeroes ? VIRTIO_BLK_F_WRITE_ZEROES : VIRTIO_BLK_F_DISCARD);
    struct virtio_blk_discard_write_zeroes range;
    if (rules->volume->read_only)
        return VIRTIO_BLK_S_IOERR;
    if (!(rules->features & needed))
        return VIRTIO_BLK_S_UNSUPP;
    if (p->out_bytes != sizeof(range)) // one segment, as the configuration says
        return VIRTIO_BLK_S_UNSUPP;
    iov_take(&p->out, &p->out_count, &range, sizeof(range));
    uint32_t flags = le32toh(range.flags);
    uint32_t sectors = le32toh(range.num_sectors);
    if (flags & ~(uint32_t)(zeroes ? VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP : 0))
        return VIRTIO_BLK_S_UNSUPP;
    if (sectors > RANGE_BYTES_MAX / VIRTIO_BLK_SECTOR ||
        !checked_mul(le64toh(range.sector), VIRTIO_BLK_SECTOR, &request->offset))
        return VIRTIO_BLK_S_IOERR;
    request->op = zeroes ? IMAGE_WRITE_ZEROES : IMAGE_DISCARD;
    request->flags = flags ? IMAGE_MAY_UNMAP : 0;
    if (zeroes && rules->write_through)
        request->flags |= IMAGE_FUA;
    request->length = (uint64_t)sectors * VIRTIO_BLK_SECTOR;
    return VIRTIO_BLK_S_OK;
}

int virtio_blk_translate(const struct virtio_blk_rules *rules, struct virtqueue_chain *chain,
                         struct image_request *request, uint8_t **ret_status, uint8_t *ret_answer)
{
    struct parts p;
    int r = split(chain, &p, ret_status);
    if (r < 0)
        return r;
    request->flags = 0;
    request->offset = request->length = 0;
    request->iov = NULL;
    request->iovcnt = 0;
    request->status = NULL;
    uint8_t answer;
    switch (p.type) {
    case VIRTIO_BLK_T_IN:
    case VIRTIO_BLK_T_OUT:
        answer = translate_transfer(rules, &p, request);
        break;
    case VIRTIO_BLK_T_DISCARD:
    case VIRTIO_BLK_T_WRITE_ZEROES:
        answer = translate_range(rules, &p, request);
        break;
    case VIRTIO_BLK_T_FLUSH:
        request->op = IMAGE_FLUSH;
        return 1;
    case VIRTIO_BLK_T_GET_ID:
        (void)iov_put(p.in, p.in_count, rules->volume->serial, VIRTIO_BLK_SERIAL_BYTES);
        answer = VIRTIO_BLK_S_OK;
        break;
    default:
        answer = VIRTIO_BLK_S_UNSUPP;
        break;
    }
    if (answer == VIRTIO_BLK_S_OK && request->length)
        return 1;
    *ret_answer = answer;
    return 0;
}
