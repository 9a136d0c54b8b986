// SPDX-License-Identifier: Apache-2.0
// Split virtqueues, the device's side. The guest's memory is little endian (VIRTIO_F_VERSION_1; legacy guests of
// little-endian machines are the same). Single fields are loaded by atomics so that the compiler cannot read twice.
#include "provisioner/blk/virtqueue.h"

#include <endian.h>
#include <errno.h>
#include <string.h>

#include "common/checked.h"

static uint16_t load16(const __virtio16 *p)
{
    return le16toh(__atomic_load_n(p, __ATOMIC_RELAXED));
}

static void store16(__virtio16 *p, uint16_t value)
{
    __atomic_store_n(p, htole16(value), __ATOMIC_RELAXED);
}

int virtqueue_start(struct virtqueue *queue, const struct guest_memory *memory, uint16_t size,
                    const struct virtqueue_addresses *addresses, uint64_t features, uint16_t base)
{
    if (!is_power_of_two(size) || size > VIRTQUEUE_SIZE_MAX)
        return -EINVAL;
    // Each ring ends with the two bytes of the event index, whether negotiated or not.
    uint64_t descriptors_size = (uint64_t)size * sizeof(struct vring_desc);
    uint64_t available_size = sizeof(struct vring_avail) + (uint64_t)size * sizeof(__virtio16) + sizeof(__virtio16);
    uint64_t used_size = sizeof(struct vring_used) + (uint64_t)size * sizeof(vring_used_elem_t) + sizeof(__virtio16);
    struct virtqueue q = {
        .memory = memory,
        .descriptors = guest_memory_user(memory, addresses->descriptors, descriptors_size),
        .available = guest_memory_user(memory, addresses->available, available_size),
        .used = guest_memory_user(memory, addresses->used, used_size),
        .size = size,
        .last_available = base,
        .event_index = features & (UINT64_C(1) << VIRTIO_RING_F_EVENT_IDX),
        .indirect = features & (UINT64_C(1) << VIRTIO_RING_F_INDIRECT_DESC),
    };
    if (!q.descriptors || !q.available || !q.used)
        return -EFAULT;
    if (!is_aligned((uintptr_t)q.descriptors, VRING_DESC_ALIGN_SIZE) ||
        !is_aligned((uintptr_t)q.available, VRING_AVAIL_ALIGN_SIZE) ||
        !is_aligned((uintptr_t)q.used, VRING_USED_ALIGN_SIZE))
        return -EINVAL;
    q.used_next = q.used_published = virtqueue_guest_used(&q);
    store16(&q.used->flags, 0);
    *queue = q;
    return 0;
}

uint16_t virtqueue_guest_used(const struct virtqueue *queue)
{
    return load16(&queue->used->idx);
}

static uint16_t available_index(const struct virtqueue *queue)
{
    // Acquire: the ring entries and descriptors behind this index are read after it.
    return le16toh(__atomic_load_n(&queue->available->idx, __ATOMIC_ACQUIRE));
}

int virtqueue_next(struct virtqueue *queue, uint16_t *ret_head)
{
    uint16_t waiting = (uint16_t)(available_index(queue) - queue->last_available);
    if (!waiting)
        return 0;
    if (waiting > queue->size)
        return -EPROTO;
    uint16_t head = load16(&queue->available->ring[queue->last_available & (queue->size - 1)]);
    if (head >= queue->size)
        return -EPROTO;
    queue->last_available++;
    *ret_head = head;
    return 1;
}

struct descriptor {
    uint64_t address;
    uint32_t length;
    uint16_t flags;
    uint16_t next;
};

static struct descriptor descriptor_load(const struct vring_desc *from)
{
    return (struct descriptor){
        .address = le64toh(__atomic_load_n(&from->addr, __ATOMIC_RELAXED)),
        .length = le32toh(__atomic_load_n(&from->len, __ATOMIC_RELAXED)),
        .flags = load16(&from->flags),
        .next = load16(&from->next),
    };
}

// Add one descriptor's memory to the chain.
static int chain_add(const struct guest_memory *memory, struct virtqueue_chain *chain, const struct descriptor *d)
{
    bool writable = d->flags & VRING_DESC_F_WRITE;
    if (!writable && chain->writable)
        return -EPROTO;
    if (!d->length)
        return 0;
    unsigned filled = chain->readable + chain->writable;
    int n = guest_memory_iov(memory, d->address, d->length, chain->iov + filled, VIRTQUEUE_IOV_MAX - filled);
    if (n < 0)
        return n;
    if (writable) {
        chain->writable += (unsigned)n;
        chain->writable_bytes += d->length;
    } else {
        chain->readable += (unsigned)n;
        chain->readable_bytes += d->length;
    }
    return 0;
}

// Walk `table` from `index`. A chain without loops has no more descriptors than its table, and none of ours needs more
// than a queue can have.
static int walk(const struct virtqueue *queue, const struct vring_desc *table, uint32_t entries, uint32_t index,
                struct virtqueue_chain *chain)
{
    uint32_t limit = MIN(entries, VIRTQUEUE_SIZE_MAX);
    for (uint32_t i = 0; i < limit; i++) {
        struct descriptor d = descriptor_load(&table[index]);
        if (d.flags & VRING_DESC_F_INDIRECT)
            return -EPROTO;
        int r = chain_add(queue->memory, chain, &d);
        if (r < 0)
            return r;
        if (!(d.flags & VRING_DESC_F_NEXT))
            return 0;
        if (d.next >= entries)
            return -EPROTO;
        index = d.next;
    }
    return -EPROTO;
}

static int walk_indirect(const struct virtqueue *queue, const struct descriptor *d, struct virtqueue_chain *chain)
{
    uint32_t entries = d->length / sizeof(struct vring_desc);
    if (!queue->indirect || (d->flags & VRING_DESC_F_NEXT) || !entries || d->length % sizeof(struct vring_desc))
        return -EPROTO;
    const struct vring_desc *table = guest_memory_at(queue->memory, d->address, d->length);
    if (!table)
        return -EFAULT;
    if (!is_aligned((uintptr_t)table, _Alignof(struct vring_desc)))
        return -EPROTO;
    return walk(queue, table, entries, 0, chain);
}

int virtqueue_read(const struct virtqueue *queue, uint16_t head, struct virtqueue_chain *chain)
{
    chain->head = head;
    chain->readable = chain->writable = 0;
    chain->readable_bytes = chain->writable_bytes = 0;
    struct descriptor first = descriptor_load(&queue->descriptors[head]);
    if (first.flags & VRING_DESC_F_INDIRECT)
        return walk_indirect(queue, &first, chain);
    return walk(queue, queue->descriptors, queue->size, head, chain);
}

void virtqueue_push(struct virtqueue *queue, uint16_t head, uint32_t written)
{
    vring_used_elem_t *element = &queue->used->ring[queue->used_next & (queue->size - 1)];
    element->id = htole32(head);
    element->len = htole32(written);
    queue->used_next++;
}

bool virtqueue_publish(struct virtqueue *queue)
{
    uint16_t old = queue->used_published;
    uint16_t new = queue->used_next;
    if (new == old)
        return false;
    __atomic_store_n(&queue->used->idx, htole16(new), __ATOMIC_RELEASE);
    queue->used_published = new;
    // The guest writes its event index and then looks at the used index; we do the opposite. Without a full barrier on
    // both sides each could miss the other.
    virtqueue_barrier();
    if (!queue->event_index)
        return !(load16(&queue->available->flags) & VRING_AVAIL_F_NO_INTERRUPT);
    uint16_t event = load16(&queue->available->ring[queue->size]);
    return vring_need_event(event, new, old);
}

bool virtqueue_want_kick(struct virtqueue *queue)
{
    // Without event indexes the guest always kicks (used->flags stays 0), and the caller may look at the ring
    // before it sleeps just the same.
    if (queue->event_index) {
        uint8_t *end = (uint8_t *)&queue->used->ring[queue->size];
        __atomic_store_n((__virtio16 *)(void *)end, htole16(queue->last_available), __ATOMIC_RELAXED);
        virtqueue_barrier();
    }
    return available_index(queue) != queue->last_available;
}
