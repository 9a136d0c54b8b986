// SPDX-License-Identifier: Apache-2.0
// The messages of vhost-user and what they do. Handlers return 0 or -errno; those with an answer of their own turn
// the message into it.
#include "provisioner/blk/vhost_user_device.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/virtio_config.h>
#include <stddef.h>
#include <string.h>

#include "common/checked.h"
#include "common/cleanup.h"

#define BIT(n) (UINT64_C(1) << (n))

#define PROTOCOL_FEATURES                                                                                              \
    (BIT(VHOST_USER_PROTOCOL_F_MQ) | BIT(VHOST_USER_PROTOCOL_F_REPLY_ACK) | BIT(VHOST_USER_PROTOCOL_F_BACKEND_REQ) |   \
     BIT(VHOST_USER_PROTOCOL_F_CONFIG) | BIT(VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD) |                                   \
     BIT(VHOST_USER_PROTOCOL_F_RESET_DEVICE))

/* Bits that change how rings and addresses work: none may be set that we did not offer. */
#define TRANSPORT_FEATURES (~(BIT(VIRTIO_TRANSPORT_F_START) - 1) | BIT(26))

static uint64_t offered_features(const struct vhost_user_device *device)
{
    return virtio_blk_features(&device->volume) | BIT(VIRTIO_F_VERSION_1) | BIT(VIRTIO_F_ANY_LAYOUT) |
           BIT(VIRTIO_RING_F_INDIRECT_DESC) | BIT(VIRTIO_RING_F_EVENT_IDX) | BIT(VHOST_USER_F_PROTOCOL_FEATURES);
}

// ---- rings -----------------------------------------------------------------------------------------------------

// Start the ring if all is there and it is meant to run.
static int ring_resume(struct vhost_user_device *device, struct vhost_user_ring *ring)
{
    bool enabled = ring->enabled || !(device->features & BIT(VHOST_USER_F_PROTOCOL_FEATURES));
    if (ring->running || !enabled || ring->kick_fd < 0 || !ring->size || !ring->has_addresses || !device->memory.count)
        return 0;
    const struct vhost_user_ring_context context = {
        .memory = &device->memory,
        .inflight = &device->inflight,
        .volume = &device->volume,
        .write_cache = &device->write_cache,
        .features = device->features,
    };
    return vhost_user_ring_start(ring, &context);
}

static void pause_all(struct vhost_user_device *device)
{
    for (unsigned i = 0; i < device->volume.queues; i++)
        vhost_user_ring_stop(&device->rings[i]);
}

static int resume_all(struct vhost_user_device *device)
{
    int result = 0;
    for (unsigned i = 0; i < device->volume.queues; i++) {
        int r = ring_resume(device, &device->rings[i]);
        if (r < 0 && result == 0)
            result = r;
    }
    return result;
}

static struct vhost_user_ring *ring_at(struct vhost_user_device *device, uint32_t index)
{
    return index < device->volume.queues ? &device->rings[index] : NULL;
}

void vhost_user_device_init(struct vhost_user_device *device, const struct virtio_blk_volume *volume,
                            struct vhost_user_ring *rings)
{
    *device = (struct vhost_user_device){
        .volume = *volume,
        .rings = rings,
        .size = volume->geometry.size,
        .write_cache = true,
        .backend_fd = -1,
    };
}

// ---- features --------------------------------------------------------------------------------------------------

static void answer_u64(struct vhost_user_message *m, uint64_t value)
{
    m->header.size = sizeof(value);
    m->payload.u64 = value;
}

static int get_features(struct vhost_user_device *device, struct vhost_user_message *m)
{
    answer_u64(m, offered_features(device));
    return 0;
}

static int set_features(struct vhost_user_device *device, struct vhost_user_message *m)
{
    uint64_t features = m->payload.u64;
    if (features & ~offered_features(device) & TRANSPORT_FEATURES)
        return -EINVAL;
    if (features == device->features)
        return 0;
    pause_all(device);
    device->features = features;
    return resume_all(device);
}

static int get_protocol_features(struct vhost_user_device *device, struct vhost_user_message *m)
{
    (void)device;
    answer_u64(m, PROTOCOL_FEATURES);
    return 0;
}

static int set_protocol_features(struct vhost_user_device *device, struct vhost_user_message *m)
{
    if (m->payload.u64 & ~PROTOCOL_FEATURES)
        return -EINVAL;
    device->protocol_features = m->payload.u64;
    return 0;
}

static int get_queue_num(struct vhost_user_device *device, struct vhost_user_message *m)
{
    answer_u64(m, device->volume.queues);
    return 0;
}

static int set_owner(struct vhost_user_device *device, struct vhost_user_message *m)
{
    (void)device;
    (void)m;
    return 0;
}

// Not used by front-ends any more; the specification leaves the choice to disable all rings.
static int reset_owner(struct vhost_user_device *device, struct vhost_user_message *m)
{
    (void)m;
    for (unsigned i = 0; i < device->volume.queues; i++) {
        vhost_user_ring_stop(&device->rings[i]);
        device->rings[i].enabled = false;
    }
    return 0;
}

static int reset_device(struct vhost_user_device *device, struct vhost_user_message *m)
{
    (void)m;
    for (unsigned i = 0; i < device->volume.queues; i++)
        vhost_user_ring_reset(&device->rings[i]);
    __atomic_store_n(&device->write_cache, true, __ATOMIC_RELAXED);
    return 0;
}

// ---- memory ----------------------------------------------------------------------------------------------------

static int set_mem_table(struct vhost_user_device *device, struct vhost_user_message *m)
{
    const struct vhost_user_memory *table = &m->payload.memory;
    if (table->count > GUEST_MEMORY_REGIONS_MAX || table->count != m->fd_count ||
        m->header.size < offsetof(struct vhost_user_memory, regions) + table->count * sizeof(table->regions[0]))
        return -EINVAL;
    pause_all(device);
    int r = guest_memory_load(&device->memory, table->regions, m->fds, table->count);
    return r < 0 ? r : resume_all(device);
}

static int get_inflight_fd(struct vhost_user_device *device, struct vhost_user_message *m)
{
    struct vhost_user_inflight *inflight = &m->payload.inflight;
    inflight->size = inflight->offset = 0;
    if (!inflight->queues || inflight->queues > device->volume.queues || !inflight->queue_size ||
        inflight->queue_size > VIRTQUEUE_SIZE_MAX)
        return 0; // a size of zero tells that there is no region
    int fd = inflight_region_create(inflight->queues, inflight->queue_size);
    if (fd < 0)
        return 0;
    inflight->size = inflight_region_size(inflight->queues, inflight->queue_size);
    m->fds[0] = fd;
    m->fd_count = 1;
    return 0;
}

static int set_inflight_fd(struct vhost_user_device *device, struct vhost_user_message *m)
{
    const struct vhost_user_inflight *inflight = &m->payload.inflight;
    if (m->fd_count != 1)
        return -EINVAL;
    pause_all(device);
    int r = inflight_region_map(&device->inflight, m->fds[0], inflight->size, inflight->offset, inflight->queues,
                                inflight->queue_size);
    return r < 0 ? r : resume_all(device);
}

// ---- rings' messages -------------------------------------------------------------------------------------------

static int set_vring_num(struct vhost_user_device *device, struct vhost_user_message *m)
{
    struct vhost_user_ring *ring = ring_at(device, m->payload.state.index);
    uint32_t size = m->payload.state.value;
    if (!ring || !is_power_of_two(size) || size > VIRTQUEUE_SIZE_MAX)
        return -EINVAL;
    vhost_user_ring_stop(ring);
    ring->size = (uint16_t)size;
    return ring_resume(device, ring);
}

static int set_vring_addr(struct vhost_user_device *device, struct vhost_user_message *m)
{
    const struct vhost_user_vring_address *address = &m->payload.address;
    struct vhost_user_ring *ring = ring_at(device, address->index);
    if (!ring)
        return -EINVAL;
    vhost_user_ring_stop(ring);
    ring->addresses = (struct virtqueue_addresses){
        .descriptors = address->descriptors, .available = address->available, .used = address->used};
    ring->has_addresses = true;
    return ring_resume(device, ring);
}

static int set_vring_base(struct vhost_user_device *device, struct vhost_user_message *m)
{
    struct vhost_user_ring *ring = ring_at(device, m->payload.state.index);
    if (!ring || m->payload.state.value > UINT16_MAX)
        return -EINVAL;
    vhost_user_ring_stop(ring);
    ring->base = (uint16_t)m->payload.state.value;
    return ring_resume(device, ring);
}

static int get_vring_base(struct vhost_user_device *device, struct vhost_user_message *m)
{
    struct vhost_user_ring *ring = ring_at(device, m->payload.state.index);
    if (!ring)
        return -EINVAL;
    vhost_user_ring_stop(ring);
    close_fd(&ring->kick_fd);
    close_fd(&ring->call_fd);
    m->payload.state.value = ring->base;
    return 0;
}

// The descriptor of a kick, call or error message, or -1 when it says that there is none. Writing to it must never
// block an I/O thread.
static int take_fd(struct vhost_user_message *m, int *ret_fd)
{
    bool none = m->payload.u64 & VHOST_USER_VRING_NOFD;
    if (none != (m->fd_count == 0))
        return -EINVAL;
    *ret_fd = -1;
    if (none)
        return 0;
    int flags = fcntl(m->fds[0], F_GETFL);
    if (flags < 0 || fcntl(m->fds[0], F_SETFL, flags | O_NONBLOCK) < 0)
        return -errno;
    *ret_fd = steal_fd(&m->fds[0]);
    return 0;
}

static int set_vring_kick(struct vhost_user_device *device, struct vhost_user_message *m)
{
    struct vhost_user_ring *ring = ring_at(device, m->payload.u64 & VHOST_USER_VRING_INDEX_MASK);
    int fd;
    if (!ring)
        return -EINVAL;
    int r = take_fd(m, &fd);
    if (r == 0 && fd < 0)
        r = -EOPNOTSUPP; // a ring without kicks would have to be polled
    if (r < 0)
        return r;
    vhost_user_ring_stop(ring);
    close_fd(&ring->kick_fd);
    ring->kick_fd = fd;
    return ring_resume(device, ring);
}

static int set_vring_call(struct vhost_user_device *device, struct vhost_user_message *m)
{
    struct vhost_user_ring *ring = ring_at(device, m->payload.u64 & VHOST_USER_VRING_INDEX_MASK);
    int fd;
    if (!ring)
        return -EINVAL;
    int r = take_fd(m, &fd);
    if (r < 0)
        return r;
    vhost_user_ring_set_call(ring, fd);
    return 0;
}

static int set_vring_err(struct vhost_user_device *device, struct vhost_user_message *m)
{
    struct vhost_user_ring *ring = ring_at(device, m->payload.u64 & VHOST_USER_VRING_INDEX_MASK);
    int fd;
    if (!ring)
        return -EINVAL;
    int r = take_fd(m, &fd);
    if (r < 0)
        return r;
    vhost_user_ring_stop(ring);
    close_fd(&ring->error_fd);
    ring->error_fd = fd;
    return ring_resume(device, ring);
}

static int set_vring_enable(struct vhost_user_device *device, struct vhost_user_message *m)
{
    struct vhost_user_ring *ring = ring_at(device, m->payload.state.index);
    if (!ring || m->payload.state.value > 1)
        return -EINVAL;
    ring->enabled = m->payload.state.value;
    if (ring->enabled)
        return ring_resume(device, ring);
    vhost_user_ring_stop(ring);
    return 0;
}

// ---- configuration space ---------------------------------------------------------------------------------------

static int set_backend_req_fd(struct vhost_user_device *device, struct vhost_user_message *m)
{
    if (m->fd_count != 1)
        return -EINVAL;
    close_fd(&device->backend_fd);
    device->backend_fd = steal_fd(&m->fds[0]);
    return 0;
}

static void current_config(const struct vhost_user_device *device, uint8_t bytes[VHOST_USER_CONFIG_MAX])
{
    memset(bytes, 0, VHOST_USER_CONFIG_MAX);
    virtio_blk_config(&device->volume, __atomic_load_n(&device->size, __ATOMIC_RELAXED),
                      __atomic_load_n(&device->write_cache, __ATOMIC_RELAXED), bytes);
}

static int get_config(struct vhost_user_device *device, struct vhost_user_message *m)
{
    struct vhost_user_config *config = &m->payload.config;
    uint8_t bytes[VHOST_USER_CONFIG_MAX];
    if (!range_within(config->offset, config->size, sizeof(bytes))) {
        m->header.size = 0; // how the specification spells an error here
        return 0;
    }
    current_config(device, bytes);
    memcpy(config->bytes, bytes + config->offset, config->size);
    m->header.size = (uint32_t)(offsetof(struct vhost_user_config, bytes) + config->size);
    return 0;
}

static int set_config(struct vhost_user_device *device, struct vhost_user_message *m)
{
    const struct vhost_user_config *config = &m->payload.config;
    if (m->header.size != offsetof(struct vhost_user_config, bytes) + config->size)
        return -EINVAL;
    if (config->offset != virtio_blk_config_wce_offset() || config->size != 1 || config->bytes[0] > 1)
        return -EINVAL;
    __atomic_store_n(&device->write_cache, config->bytes[0] == 1, __ATOMIC_RELAXED);
    return 0;
}

void vhost_user_device_announce(struct vhost_user_device *device)
{
    const uint64_t needed = BIT(VHOST_USER_PROTOCOL_F_BACKEND_REQ) | BIT(VHOST_USER_PROTOCOL_F_CONFIG);
    if (device->backend_fd < 0 || (device->protocol_features & needed) != needed)
        return;
    const struct vhost_user_message m = {
        .header = {.request = VHOST_USER_BACKEND_CONFIG_CHANGE_MSG, .flags = VHOST_USER_VERSION}};
    // A front-end that does not read this channel misses the news; it asks for the configuration when it likes.
    if (vhost_user_send(device->backend_fd, &m) < 0)
        close_fd(&device->backend_fd);
}

// ---- dispatch --------------------------------------------------------------------------------------------------

typedef int handler(struct vhost_user_device *device, struct vhost_user_message *message);

static handler *const handlers[VHOST_USER_REQUEST_END] = {
    [VHOST_USER_GET_FEATURES] = get_features,
    [VHOST_USER_SET_FEATURES] = set_features,
    [VHOST_USER_SET_OWNER] = set_owner,
    [VHOST_USER_RESET_OWNER] = reset_owner,
    [VHOST_USER_SET_MEM_TABLE] = set_mem_table,
    [VHOST_USER_SET_VRING_NUM] = set_vring_num,
    [VHOST_USER_SET_VRING_ADDR] = set_vring_addr,
    [VHOST_USER_SET_VRING_BASE] = set_vring_base,
    [VHOST_USER_GET_VRING_BASE] = get_vring_base,
    [VHOST_USER_SET_VRING_KICK] = set_vring_kick,
    [VHOST_USER_SET_VRING_CALL] = set_vring_call,
    [VHOST_USER_SET_VRING_ERR] = set_vring_err,
    [VHOST_USER_GET_PROTOCOL_FEATURES] = get_protocol_features,
    [VHOST_USER_SET_PROTOCOL_FEATURES] = set_protocol_features,
    [VHOST_USER_GET_QUEUE_NUM] = get_queue_num,
    [VHOST_USER_SET_VRING_ENABLE] = set_vring_enable,
    [VHOST_USER_SET_BACKEND_REQ_FD] = set_backend_req_fd,
    [VHOST_USER_GET_CONFIG] = get_config,
    [VHOST_USER_SET_CONFIG] = set_config,
    [VHOST_USER_GET_INFLIGHT_FD] = get_inflight_fd,
    [VHOST_USER_SET_INFLIGHT_FD] = set_inflight_fd,
    [VHOST_USER_RESET_DEVICE] = reset_device,
};

static int send_answer(int socket, struct vhost_user_message *m)
{
    m->header.flags = VHOST_USER_VERSION | VHOST_USER_FLAG_REPLY;
    return vhost_user_send(socket, m);
}

// Without REPLY_ACK there is no way to tell of an error but to end the connection.
static int acknowledge(const struct vhost_user_device *device, int socket, struct vhost_user_message *m, int result)
{
    bool asked = m->header.flags & VHOST_USER_FLAG_NEED_REPLY;
    if (!asked || !(device->protocol_features & BIT(VHOST_USER_PROTOCOL_F_REPLY_ACK)))
        return result;
    answer_u64(m, result < 0);
    return send_answer(socket, m);
}

int vhost_user_device_handle(struct vhost_user_device *device, int socket, struct vhost_user_message *message)
{
    int r = vhost_user_check(message);
    if (r == 0)
        r = handlers[message->header.request](device, message);
    if (vhost_user_has_reply(message->header.request)) {
        if (r == 0)
            r = send_answer(socket, message);
        vhost_user_close_fds(message);
        return r;
    }
    vhost_user_close_fds(message);
    return acknowledge(device, socket, message, r);
}

void vhost_user_device_reset(struct vhost_user_device *device)
{
    for (unsigned i = 0; i < device->volume.queues; i++)
        vhost_user_ring_reset(&device->rings[i]);
    guest_memory_clear(&device->memory);
    inflight_region_unmap(&device->inflight);
    close_fd(&device->backend_fd);
    device->features = device->protocol_features = 0;
    __atomic_store_n(&device->write_cache, true, __ATOMIC_RELAXED);
}
