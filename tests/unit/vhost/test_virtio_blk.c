// SPDX-License-Identifier: Apache-2.0
// The translation of virtio-blk requests in every framing, and the configuration space.
#include <errno.h>
#include <linux/virtio_blk.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "common/bytes.h"
#include "common/checked.h"
#include "provisioner/blk/virtio_blk.h"

static struct virtio_blk_volume volume = {
    .geometry = {.size = 8 * MIB + 100, .alignment = 4096, .preferred = 65536, .discard = true},
    .queues = 3,
    .serial = "0123456789abcdefghij", // exactly 20, without an end
};

static uint8_t header[16], payload[8192], status[1];
static struct iovec iov[VIRTQUEUE_IOV_MAX];
static struct virtqueue_chain chain;
static struct image_request request;
static uint8_t *status_at, answer;

static void put_header(uint32_t type, uint64_t sector)
{
    memset(header, 0, sizeof(header));
    store_le32(header, type);
    store_le64(header + 8, sector);
}

static void add(bool writable, void *base, size_t length)
{
    iov[chain.readable + chain.writable] = (struct iovec){base, length};
    if (writable) {
        chain.writable++;
        chain.writable_bytes += length;
    } else {
        chain.readable++;
        chain.readable_bytes += length;
    }
}

static int translate(bool write_through, uint64_t features)
{
    const struct virtio_blk_rules rules = {&volume, features, write_through};
    answer = 0xee;
    status_at = NULL;
    return virtio_blk_translate(&rules, &chain, &request, &status_at, &answer);
}

static void begin(uint32_t type, uint64_t sector)
{
    chain = (struct virtqueue_chain){.iov = iov};
    put_header(type, sector);
    add(false, header, 16);
}

static void plain_requests(void **state)
{
    (void)state;
    begin(VIRTIO_BLK_T_IN, 7);
    add(true, payload, 4096);
    add(true, status, 1);
    assert_int_equal(translate(true, 0), 1);
    assert_int_equal(request.op, IMAGE_READ);
    assert_int_equal(request.offset, 7 * 512);
    assert_int_equal(request.length, 4096);
    assert_int_equal(request.iovcnt, 1);
    assert_int_equal(request.flags, 0);
    assert_ptr_equal(status_at, status);

    for (int through = 0; through < 2; through++) {
        begin(VIRTIO_BLK_T_OUT, 1);
        add(false, payload, 1024);
        add(true, status, 1);
        assert_int_equal(translate(through, 0), 1);
        assert_int_equal(request.op, IMAGE_WRITE);
        assert_int_equal(request.flags, through ? IMAGE_FUA : 0);
    }
    begin(VIRTIO_BLK_T_FLUSH, 0);
    add(true, status, 1);
    assert_int_equal(translate(false, 0), 1);
    assert_int_equal(request.op, IMAGE_FLUSH);
}

static void any_framing(void **state)
{
    (void)state;
    // Header in three pieces, the last with the first data; status behind data in one piece.
    chain = (struct virtqueue_chain){.iov = iov};
    uint8_t tail[4 + 512];
    put_header(VIRTIO_BLK_T_OUT, 3);
    memcpy(tail, header + 12, 4);
    add(false, header, 5);
    add(false, header + 5, 7);
    add(false, tail, sizeof(tail));
    add(false, payload, 512);
    add(true, payload + 1000, 3);
    assert_int_equal(translate(false, 0), 1);
    assert_int_equal(request.offset, 3 * 512);
    assert_int_equal(request.length, 1024);
    assert_int_equal(request.iovcnt, 2);
    assert_ptr_equal(request.iov[0].iov_base, tail + 4);
    assert_ptr_equal(status_at, payload + 1002);

    begin(VIRTIO_BLK_T_IN, 0);
    add(true, payload, 513);
    assert_int_equal(translate(false, 0), 1);
    assert_int_equal(request.length, 512);
    assert_int_equal(request.iov[0].iov_len, 512);
    assert_ptr_equal(status_at, payload + 512);
}

static void no_header_or_status(void **state)
{
    (void)state;
    chain = (struct virtqueue_chain){.iov = iov};
    add(false, header, 15);
    add(true, status, 1);
    assert_int_equal(translate(false, 0), -EPROTO);
    begin(VIRTIO_BLK_T_IN, 0);
    assert_int_equal(translate(false, 0), -EPROTO);
    chain = (struct virtqueue_chain){.iov = iov};
    assert_int_equal(translate(false, 0), -EPROTO);
}

static void expect_answer(uint8_t expected, uint64_t features)
{
    add(true, status, 1);
    assert_int_equal(translate(false, features), 0);
    assert_int_equal(answer, expected);
}

static void bad_transfers(void **state)
{
    (void)state;
    begin(VIRTIO_BLK_T_OUT, 0);
    add(false, payload, 513);
    expect_answer(VIRTIO_BLK_S_IOERR, 0);
    begin(VIRTIO_BLK_T_OUT, UINT64_MAX / 512 + 1);
    add(false, payload, 512);
    expect_answer(VIRTIO_BLK_S_IOERR, 0);
    begin(VIRTIO_BLK_T_OUT, 0);
    expect_answer(VIRTIO_BLK_S_OK, 0); // nothing to do
    begin(0xdeadbeef, 0);
    expect_answer(VIRTIO_BLK_S_UNSUPP, 0);
    begin(VIRTIO_BLK_T_SCSI_CMD, 0);
    expect_answer(VIRTIO_BLK_S_UNSUPP, 0);
    volume.read_only = true;
    begin(VIRTIO_BLK_T_OUT, 0);
    add(false, payload, 512);
    expect_answer(VIRTIO_BLK_S_IOERR, 0);
    begin(VIRTIO_BLK_T_WRITE_ZEROES, 0);
    add(false, payload, 16);
    expect_answer(VIRTIO_BLK_S_IOERR, UINT64_MAX);
    volume.read_only = false;
}

static void put_range(uint64_t sector, uint32_t sectors, uint32_t flags)
{
    store_le64(payload, sector);
    store_le32(payload + 8, sectors);
    store_le32(payload + 12, flags);
}

static void ranges(void **state)
{
    (void)state;
    put_range(16, 32, 1);
    begin(VIRTIO_BLK_T_WRITE_ZEROES, 0);
    add(false, payload, 7); // in two pieces
    add(false, payload + 7, 9);
    add(true, status, 1);
    assert_int_equal(translate(true, UINT64_MAX), 1);
    assert_int_equal(request.op, IMAGE_WRITE_ZEROES);
    assert_int_equal(request.flags, IMAGE_MAY_UNMAP | IMAGE_FUA);
    assert_int_equal(request.offset, 16 * 512);
    assert_int_equal(request.length, 32 * 512);

    begin(VIRTIO_BLK_T_DISCARD, 0); // unmap is no flag of a discard
    add(false, payload, 16);
    expect_answer(VIRTIO_BLK_S_UNSUPP, UINT64_MAX);
    begin(VIRTIO_BLK_T_DISCARD, 0); // two segments
    add(false, payload, 32);
    expect_answer(VIRTIO_BLK_S_UNSUPP, UINT64_MAX);
    put_range(0, 1, 2);
    begin(VIRTIO_BLK_T_WRITE_ZEROES, 0); // unknown flag
    add(false, payload, 16);
    expect_answer(VIRTIO_BLK_S_UNSUPP, UINT64_MAX);
    put_range(0, UINT32_MAX, 0);
    begin(VIRTIO_BLK_T_DISCARD, 0);
    add(false, payload, 16);
    expect_answer(VIRTIO_BLK_S_IOERR, UINT64_MAX);
    put_range(UINT64_MAX / 2, 1, 0);
    begin(VIRTIO_BLK_T_DISCARD, 0);
    add(false, payload, 16);
    expect_answer(VIRTIO_BLK_S_IOERR, UINT64_MAX);
    put_range(0, 1, 0);
    begin(VIRTIO_BLK_T_DISCARD, 0); // not negotiated
    add(false, payload, 16);
    expect_answer(VIRTIO_BLK_S_UNSUPP, 0);
}

static void serial(void **state)
{
    (void)state;
    memset(payload, 0xaa, 64);
    begin(VIRTIO_BLK_T_GET_ID, 0);
    add(true, payload, 15);
    add(true, payload + 15, 49);
    expect_answer(VIRTIO_BLK_S_OK, 0);
    assert_memory_equal(payload, volume.serial, 20);
    assert_int_equal(payload[20], 0xaa);
    memset(payload, 0xaa, 64);
    begin(VIRTIO_BLK_T_GET_ID, 0);
    add(true, payload, 5);
    expect_answer(VIRTIO_BLK_S_OK, 0);
    assert_memory_equal(payload, volume.serial, 5);
    assert_int_equal(payload[5], 0xaa);
}

static void configuration(void **state)
{
    (void)state;
    uint8_t config[VIRTIO_BLK_CONFIG_BYTES];
    virtio_blk_config(&volume, volume.geometry.size, true, config);
    assert_int_equal(load_le64(config), 8 * MIB / 512);
    assert_int_equal(load_le32(config + 12), 126);
    assert_int_equal(load_le32(config + 20), 512);
    assert_int_equal(config[24], 3);               // 4096-byte physical blocks
    assert_int_equal(load_le16(config + 26), 8);   // min_io_size
    assert_int_equal(load_le32(config + 28), 128); // opt_io_size
    assert_int_equal(config[32], 1);               // write back
    assert_int_equal(virtio_blk_config_wce_offset(), 32);
    assert_int_equal(load_le16(config + 34), 3); // queues
    assert_int_equal(load_le32(config + 40), 1); // one discard segment
    assert_int_equal(config[56], 1);             // unmap
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plain_requests), cmocka_unit_test(any_framing), cmocka_unit_test(no_header_or_status),
        cmocka_unit_test(bad_transfers),  cmocka_unit_test(ranges),      cmocka_unit_test(serial),
        cmocka_unit_test(configuration),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
