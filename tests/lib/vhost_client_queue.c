// SPDX-License-Identifier: Apache-2.0
// The driver's side of split virtqueues, for little-endian machines.
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "common/checked.h"
#include "provisioner/blk/virtqueue.h"
#include "tests/lib/vhost_client.h"

#define PAGE 4096u

// A slot's control page.
#define HEADER_AT 0
#define RANGE_AT 64
#define STATUS_AT 128
#define TABLE_AT 1024

static uint8_t *control_page(struct vhost_client *client, unsigned queue, unsigned slot)
{
    return client->queues[queue].control + (size_t)slot * PAGE;
}

uint8_t *vhost_client_buffer(struct vhost_client *client, unsigned queue, unsigned slot)
{
    return client->queues[queue].data + slot * client->options.slot_bytes;
}

uint64_t vhost_client_guest(const struct vhost_client *client, const void *pointer)
{
    return client->guest_base + (uint64_t)((const uint8_t *)pointer - client->memory);
}

void vhost_client_push(struct vhost_client_queue *queue, uint16_t head)
{
    queue->available->ring[queue->available_next & (queue->size - 1)] = head;
    queue->available_next++;
}

// Fill `table` from entry `first` on with the request's pieces; entries are numbered from `base` in their table.
static void fill(struct vhost_client *client, struct vring_desc *table, unsigned base, uint8_t *page, uint8_t *data,
                 size_t length, bool data_writable)
{
    unsigned n = 0;
    table[n++] = (struct vring_desc){.addr = vhost_client_guest(client, page + HEADER_AT), .len = 16};
    unsigned segments = client->options.segments;
    size_t part = MAX(align_down(length / segments, 512), (size_t)512);
    for (unsigned i = 0; i < segments && length; i++) {
        size_t bytes = i + 1 == segments || length < part ? length : part;
        table[n++] = (struct vring_desc){.addr = vhost_client_guest(client, data),
                                         .len = (uint32_t)bytes,
                                         .flags = data_writable ? VRING_DESC_F_WRITE : 0};
        data += bytes;
        length -= bytes;
    }
    table[n++] = (struct vring_desc){
        .addr = vhost_client_guest(client, page + STATUS_AT), .len = 1, .flags = VRING_DESC_F_WRITE};
    for (unsigned i = 0; i + 1 < n; i++) {
        table[i].flags |= VRING_DESC_F_NEXT;
        table[i].next = (uint16_t)(base + i + 1);
    }
}

void vhost_client_submit(struct vhost_client *client, unsigned queue, unsigned slot, uint32_t type, uint64_t sector,
                         size_t length, uint32_t flags)
{
    struct vhost_client_queue *q = &client->queues[queue];
    uint8_t *page = control_page(client, queue, slot);
    uint8_t *data = vhost_client_buffer(client, queue, slot);
    bool range = type == VIRTIO_BLK_T_DISCARD || type == VIRTIO_BLK_T_WRITE_ZEROES;
    const struct virtio_blk_outhdr header = {.type = type, .sector = range ? 0 : sector};
    memcpy(page + HEADER_AT, &header, sizeof(header));
    page[STATUS_AT] = 0xff;
    if (range) {
        const struct virtio_blk_discard_write_zeroes r = {
            .sector = sector, .num_sectors = (uint32_t)(length / 512), .flags = flags};
        memcpy(page + RANGE_AT, &r, sizeof(r));
        data = page + RANGE_AT;
        length = sizeof(r);
    } else if (type == VIRTIO_BLK_T_FLUSH) {
        length = 0;
    }
    bool writable = type == VIRTIO_BLK_T_IN || type == VIRTIO_BLK_T_GET_ID;
    uint16_t head = (uint16_t)(slot * client->chain);
    if (client->options.direct) {
        fill(client, q->descriptors + head, head, page, data, length, writable);
    } else {
        struct vring_desc *table = (void *)(page + TABLE_AT);
        fill(client, table, 0, page, data, length, writable);
        unsigned entries = 1;
        while (table[entries - 1].flags & VRING_DESC_F_NEXT)
            entries++;
        q->descriptors[head] = (struct vring_desc){
            .addr = vhost_client_guest(client, table), .len = entries * 16, .flags = VRING_DESC_F_INDIRECT};
    }
    vhost_client_push(q, head);
}

void vhost_client_kick(struct vhost_client *client, unsigned queue)
{
    struct vhost_client_queue *q = &client->queues[queue];
    uint16_t old = q->available_shown;
    uint16_t new = q->available_next;
    if (old == new)
        return;
    __atomic_store_n(&q->available->idx, new, __ATOMIC_RELEASE);
    q->available_shown = new;
    virtqueue_barrier();
    bool wanted;
    if (q->event_index) {
        const uint8_t *end = (const uint8_t *)&q->used->ring[q->size];
        uint16_t event = __atomic_load_n((const uint16_t *)(const void *)end, __ATOMIC_RELAXED);
        wanted = vring_need_event(event, new, old);
    } else {
        wanted = !(__atomic_load_n(&q->used->flags, __ATOMIC_RELAXED) & VRING_USED_F_NO_NOTIFY);
    }
    const uint64_t one = 1;
    if (wanted && write(q->kick_fd, &one, sizeof(one)) < 0)
        return; // full: a kick is pending
}

bool vhost_client_poll(struct vhost_client *client, unsigned queue, unsigned *ret_slot, uint8_t *ret_status)
{
    struct vhost_client_queue *q = &client->queues[queue];
    if (__atomic_load_n(&q->used->idx, __ATOMIC_ACQUIRE) == q->last_used)
        return false;
    uint32_t head = q->used->ring[q->last_used & (q->size - 1)].id;
    q->last_used++;
    *ret_slot = head / client->chain;
    *ret_status = __atomic_load_n(control_page(client, queue, *ret_slot) + STATUS_AT, __ATOMIC_RELAXED);
    return true;
}

bool vhost_client_wait(struct vhost_client *client, unsigned queue, int timeout_ms)
{
    struct vhost_client_queue *q = &client->queues[queue];
    for (;;) {
        uint64_t value;
        if (read(q->call_fd, &value, sizeof(value)) < 0 && errno != EAGAIN)
            return false;
        __atomic_store_n(&q->available->ring[q->size], q->last_used, __ATOMIC_RELAXED);
        virtqueue_barrier();
        if (__atomic_load_n(&q->used->idx, __ATOMIC_ACQUIRE) != q->last_used)
            return true;
        struct pollfd p = {.fd = q->call_fd, .events = POLLIN};
        if (poll(&p, 1, timeout_ms) == 0)
            return false;
    }
}

int vhost_client_do(struct vhost_client *client, unsigned queue, uint32_t type, uint64_t sector, size_t length,
                    uint32_t flags)
{
    unsigned slot;
    uint8_t status;
    vhost_client_submit(client, queue, 0, type, sector, length, flags);
    vhost_client_kick(client, queue);
    if (!vhost_client_wait(client, queue, 10000))
        return -ETIMEDOUT;
    return vhost_client_poll(client, queue, &slot, &status) ? status : -EIO;
}
