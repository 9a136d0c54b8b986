// SPDX-License-Identifier: Apache-2.0
// The order of stores is what makes the region right after a crash at any instruction. Stores of a process that dies
// stay in the memory in program order, so release stores, which stop the compiler, are enough.
#include "provisioner/blk/vhost_user_inflight.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/checked.h"
#include "common/cleanup.h"
#include "provisioner/blk/virtqueue.h"

#define INFLIGHT_VERSION 1
#define QUEUE_ALIGNMENT 64

struct inflight_descriptor {
    uint8_t inflight;
    uint8_t padding[5];
    uint16_t next;    // the batch's list
    uint64_t counter; // order of arrival
};

struct inflight_shared {
    uint64_t features;
    uint16_t version; // 0 = never used
    uint16_t count;   // of descriptors
    uint16_t last_batch_head;
    uint16_t used;
    struct inflight_descriptor descriptors[];
};

_Static_assert(sizeof(struct inflight_descriptor) == 16, "vhost-user, DescStateSplit");
_Static_assert(sizeof(struct inflight_shared) == 16, "vhost-user, QueueRegionSplit");

static uint64_t queue_bytes(uint16_t queue_size)
{
    return align_up(sizeof(struct inflight_shared) + (uint64_t)queue_size * sizeof(struct inflight_descriptor),
                    QUEUE_ALIGNMENT);
}

uint64_t inflight_region_size(unsigned queues, uint16_t queue_size)
{
    return queues * queue_bytes(queue_size);
}

int inflight_region_create(unsigned queues, uint16_t queue_size)
{
    CLEANUP_CLOSE int fd = memfd_create("vhost-user-inflight", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return -errno;
    if (ftruncate(fd, (off_t)inflight_region_size(queues, queue_size)) < 0)
        return -errno;
    if (fcntl(fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL) < 0)
        return -errno;
    return steal_fd(&fd);
}

int inflight_region_map(struct inflight_region *region, int fd, uint64_t size, uint64_t offset, unsigned queues,
                        uint16_t queue_size)
{
    uint64_t end;
    struct stat st;
    inflight_region_unmap(region);
    if (!queues || !queue_size || queue_size > VIRTQUEUE_SIZE_MAX || !is_aligned(offset, sizeof(uint64_t)))
        return -EINVAL;
    if (size < inflight_region_size(queues, queue_size) || !checked_add(offset, size, &end))
        return -EINVAL;
    if (fstat(fd, &st) < 0)
        return -errno;
    if (!S_ISREG(st.st_mode) || end > (uint64_t)st.st_size)
        return -EINVAL;
    // From the start of the file: the offset need not be a multiple of the page size.
    void *map = mmap(NULL, (size_t)end, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED)
        return -errno;
    *region = (struct inflight_region){
        .map = map,
        .map_size = (size_t)end,
        .base = (uint8_t *)map + offset,
        .queues = queues,
        .queue_size = queue_size,
    };
    return 0;
}

void inflight_region_unmap(struct inflight_region *region)
{
    if (region->map)
        (void)munmap(region->map, region->map_size);
    memset(region, 0, sizeof(*region));
}

// The predecessor may have died between showing the used index and clearing the marks of that batch.
static void finish_batch(struct inflight_queue *queue, uint16_t used)
{
    struct inflight_shared *shared = queue->shared;
    uint16_t batch = (uint16_t)(used - shared->used);
    uint16_t head = shared->last_batch_head;
    for (uint16_t i = 0; i < batch && i < queue->size && head < queue->size; i++) {
        shared->descriptors[head].inflight = 0;
        head = __atomic_load_n(&shared->descriptors[head].next, __ATOMIC_RELAXED);
    }
    __atomic_store_n(&shared->used, used, __ATOMIC_RELEASE);
}

struct arrival {
    uint64_t counter;
    uint16_t head;
};

static int arrival_compare(const void *a, const void *b)
{
    uint64_t x = ((const struct arrival *)a)->counter;
    uint64_t y = ((const struct arrival *)b)->counter;
    return (x > y) - (x < y);
}

static unsigned collect(struct inflight_queue *queue, uint16_t *ret_heads)
{
    struct arrival arrivals[VIRTQUEUE_SIZE_MAX] = {0};
    unsigned count = 0;
    for (uint16_t i = 0; i < queue->size; i++) {
        struct inflight_descriptor *d = &queue->shared->descriptors[i];
        uint64_t counter = __atomic_load_n(&d->counter, __ATOMIC_RELAXED);
        if (__atomic_load_n(&d->inflight, __ATOMIC_RELAXED) != 1)
            continue;
        arrivals[count++] = (struct arrival){.counter = counter, .head = i};
        queue->counter = MAX(queue->counter, counter + 1);
    }
    qsort(arrivals, count, sizeof(arrivals[0]), arrival_compare);
    for (unsigned i = 0; i < count; i++)
        ret_heads[i] = arrivals[i].head;
    return count;
}

int inflight_queue_attach(struct inflight_queue *queue, const struct inflight_region *region, unsigned index,
                          uint16_t size, uint16_t used, uint16_t *ret_heads, unsigned *ret_count)
{
    memset(queue, 0, sizeof(*queue));
    *ret_count = 0;
    if (!region->map)
        return 0;
    if (index >= region->queues || size > region->queue_size)
        return -EINVAL;
    uint8_t *at = region->base + index * queue_bytes(region->queue_size);
    struct inflight_queue q = {.shared = (struct inflight_shared *)(void *)at, .size = size};
    if (q.shared->version == 0) {
        memset(q.shared, 0, (size_t)queue_bytes(region->queue_size));
        q.shared->version = INFLIGHT_VERSION;
        q.shared->count = region->queue_size;
        q.shared->used = used;
    }
    if (q.shared->version != INFLIGHT_VERSION)
        return -EINVAL;
    if (q.shared->used != used)
        finish_batch(&q, used);
    *ret_count = collect(&q, ret_heads);
    *queue = q;
    return 0;
}

void inflight_take(struct inflight_queue *queue, uint16_t head)
{
    if (!queue->shared)
        return;
    struct inflight_descriptor *d = &queue->shared->descriptors[head];
    __atomic_store_n(&d->counter, queue->counter++, __ATOMIC_RELAXED);
    __atomic_store_n(&d->inflight, 1, __ATOMIC_RELEASE);
}

void inflight_batch(struct inflight_queue *queue, uint16_t head)
{
    if (!queue->shared)
        return;
    struct inflight_shared *shared = queue->shared;
    uint16_t last = __atomic_load_n(&shared->last_batch_head, __ATOMIC_RELAXED);
    __atomic_store_n(&shared->descriptors[head].next, last, __ATOMIC_RELAXED);
    __atomic_store_n(&shared->last_batch_head, head, __ATOMIC_RELEASE);
}

void inflight_clear(struct inflight_queue *queue, uint16_t head)
{
    if (queue->shared)
        __atomic_store_n(&queue->shared->descriptors[head].inflight, 0, __ATOMIC_RELEASE);
}

void inflight_settle(struct inflight_queue *queue, uint16_t used)
{
    if (queue->shared)
        __atomic_store_n(&queue->shared->used, used, __ATOMIC_RELEASE);
}
