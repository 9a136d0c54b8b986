// SPDX-License-Identifier: Apache-2.0
// The front-end's control side: connection, negotiation, memory. The rings are in vhost_client_queue.c.
#include "tests/lib/vhost_client.h"

#include <errno.h>
#include <linux/virtio_config.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "common/checked.h"
#include "common/cleanup.h"

#define BIT(n) (UINT64_C(1) << (n))
#define PAGE 4096u
#define ANSWER_MS 10000

static int connect_socket(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof(address.sun_path))
        return -ENAMETOOLONG;
    memcpy(address.sun_path, path, strlen(path));
    CLEANUP_CLOSE int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
        return -errno;
    return steal_fd(&fd);
}

// ---- messages --------------------------------------------------------------------------------------------------

int vhost_client_send(struct vhost_client *client, uint32_t request, uint32_t flags, const void *payload, size_t size,
                      const int *fds, unsigned fd_count)
{
    struct vhost_user_message m = {.header = {.request = request, .flags = flags, .size = (uint32_t)size}};
    if (size)
        memcpy(&m.payload, payload, size);
    for (unsigned i = 0; i < fd_count; i++)
        m.fds[i] = fds[i];
    m.fd_count = fd_count;
    return vhost_user_send(client->socket, &m);
}

static int receive_bytes(int socket, void *to, size_t length, struct vhost_user_message *message)
{
    for (size_t done = 0; done < length;) {
        union {
            char bytes[CMSG_SPACE(sizeof(int))];
            struct cmsghdr align;
        } control;
        struct iovec iov = {.iov_base = (char *)to + done, .iov_len = length - done};
        struct msghdr m = {
            .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof(control.bytes)};
        struct pollfd p = {.fd = socket, .events = POLLIN};
        if (poll(&p, 1, ANSWER_MS) == 0)
            return -ETIMEDOUT;
        ssize_t n = recvmsg(socket, &m, MSG_CMSG_CLOEXEC);
        if (n <= 0)
            return n == 0 ? -EPIPE : -errno;
        struct cmsghdr *c = CMSG_FIRSTHDR(&m);
        if (c && c->cmsg_type == SCM_RIGHTS) {
            memcpy(&message->fds[0], CMSG_DATA(c), sizeof(int));
            message->fd_count = 1;
        }
        done += (size_t)n;
    }
    return 0;
}

int vhost_client_receive(struct vhost_client *client, struct vhost_user_message *message)
{
    memset(message, 0, sizeof(*message));
    int r = receive_bytes(client->socket, &message->header, sizeof(message->header), message);
    if (r == 0 && message->header.size > sizeof(message->payload))
        r = -EBADMSG;
    if (r == 0)
        r = receive_bytes(client->socket, &message->payload, message->header.size, message);
    if (r == 0 && !(message->header.flags & VHOST_USER_FLAG_REPLY))
        r = -EBADMSG;
    return r;
}

static int exchange(struct vhost_client *client, uint32_t request, const void *payload, size_t size,
                    struct vhost_user_message *answer)
{
    int r = vhost_client_send(client, request, VHOST_USER_VERSION, payload, size, NULL, 0);
    if (r == 0)
        r = vhost_client_receive(client, answer);
    return r == 0 && answer->header.request != request ? -EBADMSG : r;
}

int vhost_client_request(struct vhost_client *client, uint32_t request, const void *payload, size_t size,
                         const int *fds, unsigned fd_count)
{
    if (!(client->protocol_features & BIT(VHOST_USER_PROTOCOL_F_REPLY_ACK)))
        return vhost_client_send(client, request, VHOST_USER_VERSION, payload, size, fds, fd_count);
    uint32_t flags = VHOST_USER_VERSION | VHOST_USER_FLAG_NEED_REPLY;
    int r = vhost_client_send(client, request, flags, payload, size, fds, fd_count);
    struct vhost_user_message answer;
    if (r == 0)
        r = vhost_client_receive(client, &answer);
    if (r < 0)
        return r;
    return answer.header.request == request && answer.header.size == 8 && answer.payload.u64 == 0 ? 0 : -EIO;
}

int vhost_client_get_u64(struct vhost_client *client, uint32_t request, uint64_t *ret_value)
{
    struct vhost_user_message answer;
    int r = exchange(client, request, NULL, 0, &answer);
    if (r == 0 && answer.header.size != 8)
        r = -EBADMSG;
    if (r == 0)
        *ret_value = answer.payload.u64;
    return r;
}

int vhost_client_config(struct vhost_client *client, struct virtio_blk_config *ret_config)
{
    struct vhost_user_config config = {.size = 60};
    struct vhost_user_message answer;
    int r = exchange(client, VHOST_USER_GET_CONFIG, &config, 12 + config.size, &answer);
    if (r == 0 && answer.header.size != 12 + config.size)
        r = -EBADMSG;
    if (r < 0)
        return r;
    memset(ret_config, 0, sizeof(*ret_config));
    memcpy(ret_config, answer.payload.config.bytes, config.size);
    return 0;
}

int vhost_client_set_write_cache(struct vhost_client *client, bool on)
{
    struct vhost_user_config config = {.offset = offsetof(struct virtio_blk_config, wce), .size = 1, .bytes = {on}};
    return vhost_client_request(client, VHOST_USER_SET_CONFIG, &config, 12 + config.size, NULL, 0);
}

int vhost_client_wait_config_change(struct vhost_client *client)
{
    struct vhost_user_header header;
    struct pollfd p = {.fd = client->backend_fd, .events = POLLIN};
    if (poll(&p, 1, ANSWER_MS) == 0)
        return -ETIMEDOUT;
    if (recv(client->backend_fd, &header, sizeof(header), 0) != sizeof(header))
        return -EPIPE;
    return header.request == VHOST_USER_BACKEND_CONFIG_CHANGE_MSG && header.size == 0 ? 0 : -EBADMSG;
}

// ---- set-up ----------------------------------------------------------------------------------------------------

static int negotiate(struct vhost_client *client)
{
    uint64_t offered, protocol, queues;
    const uint64_t refused = client->options.drop_features |
                             (client->options.no_event_index ? BIT(VIRTIO_RING_F_EVENT_IDX) : 0) |
                             (client->options.direct ? BIT(VIRTIO_RING_F_INDIRECT_DESC) : 0);
    int r = vhost_client_get_u64(client, VHOST_USER_GET_FEATURES, &offered);
    if (r == 0)
        r = vhost_client_get_u64(client, VHOST_USER_GET_PROTOCOL_FEATURES, &protocol);
    if (r < 0)
        return r;
    client->features = offered & ~refused;
    r = vhost_client_send(client, VHOST_USER_SET_PROTOCOL_FEATURES, VHOST_USER_VERSION, &protocol, 8, NULL, 0);
    client->protocol_features = protocol;
    if (r == 0)
        r = vhost_client_get_u64(client, VHOST_USER_GET_QUEUE_NUM, &queues);
    if (r < 0)
        return r;
    client->server_queues = (unsigned)queues;
    if (queues < client->options.queues)
        return -EINVAL;
    int pair[2] = {-1, -1};
    bool channel = protocol & BIT(VHOST_USER_PROTOCOL_F_BACKEND_REQ);
    if (channel && socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
        return -errno;
    close_fd(&client->backend_fd);
    client->backend_fd = pair[0];
    if (channel)
        r = vhost_client_request(client, VHOST_USER_SET_BACKEND_REQ_FD, NULL, 0, &pair[1], 1);
    close_fd(&pair[1]);
    if (r == 0)
        r = vhost_client_request(client, VHOST_USER_SET_OWNER, NULL, 0, NULL, 0);
    if (r == 0)
        r = vhost_client_request(client, VHOST_USER_SET_FEATURES, &client->features, 8, NULL, 0);
    return r;
}

int vhost_client_share_memory(struct vhost_client *client)
{
    size_t data = client->memory_size - client->control_size;
    size_t first = (data / 2 / PAGE | 1) * PAGE; // an odd number of pages, so that some buffers cross
    uint64_t user = (uint64_t)(uintptr_t)client->memory;
    struct vhost_user_memory table = {.count = first < data ? 3 : 2};
    first = first < data ? first : data;
    const size_t starts[4] = {0, client->control_size, client->control_size + first, client->memory_size};
    int fds[3];
    for (unsigned i = 0; i < table.count; i++) {
        table.regions[i].guest = client->guest_base + starts[i];
        table.regions[i].size = starts[i + 1] - starts[i];
        table.regions[i].user = user + starts[i];
        table.regions[i].offset = starts[i];
        fds[i] = client->memory_fd;
    }
    return vhost_client_request(client, VHOST_USER_SET_MEM_TABLE, &table, 8 + table.count * sizeof(table.regions[0]),
                                fds, table.count);
}

// Ask the server for a region the first time; give it back ever after.
static int share_inflight(struct vhost_client *client)
{
    int r = 0;
    if (client->options.no_inflight || !(client->protocol_features & BIT(VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD)))
        return 0;
    if (client->inflight_fd < 0) {
        const struct vhost_user_inflight wanted = {.queues = (uint16_t)client->options.queues,
                                                   .queue_size = client->queues[0].size};
        struct vhost_user_message answer;
        r = exchange(client, VHOST_USER_GET_INFLIGHT_FD, &wanted, VHOST_USER_INFLIGHT_BYTES, &answer);
        if (r == 0 && answer.fd_count != 1)
            r = -EBADMSG;
        if (r < 0)
            return r;
        client->inflight = answer.payload.inflight;
        client->inflight_fd = answer.fds[0];
    }
    return vhost_client_request(client, VHOST_USER_SET_INFLIGHT_FD, &client->inflight, sizeof(client->inflight),
                                &client->inflight_fd, 1);
}

int vhost_client_start_queue(struct vhost_client *client, unsigned queue, uint16_t base)
{
    struct vhost_client_queue *q = &client->queues[queue];
    struct vhost_user_vring_state state = {.index = queue, .value = q->size};
    const struct vhost_user_vring_address address = {
        .index = queue,
        .descriptors = (uint64_t)(uintptr_t)q->descriptors,
        .available = (uint64_t)(uintptr_t)q->available,
        .used = (uint64_t)(uintptr_t)q->used,
    };
    const uint64_t index = queue;
    int r = vhost_client_request(client, VHOST_USER_SET_VRING_NUM, &state, sizeof(state), NULL, 0);
    state.value = base;
    if (r == 0)
        r = vhost_client_request(client, VHOST_USER_SET_VRING_BASE, &state, sizeof(state), NULL, 0);
    if (r == 0)
        r = vhost_client_request(client, VHOST_USER_SET_VRING_ADDR, &address, sizeof(address), NULL, 0);
    if (r == 0)
        r = vhost_client_request(client, VHOST_USER_SET_VRING_ERR, &index, 8, &q->error_fd, 1);
    if (r == 0)
        r = vhost_client_request(client, VHOST_USER_SET_VRING_KICK, &index, 8, &q->kick_fd, 1);
    if (r == 0)
        r = vhost_client_request(client, VHOST_USER_SET_VRING_CALL, &index, 8, &q->call_fd, 1);
    state.value = 1;
    if (r == 0)
        r = vhost_client_request(client, VHOST_USER_SET_VRING_ENABLE, &state, sizeof(state), NULL, 0);
    return r;
}

int vhost_client_stop_queue(struct vhost_client *client, unsigned queue, uint16_t *ret_base)
{
    const struct vhost_user_vring_state state = {.index = queue};
    struct vhost_user_message answer;
    int r = exchange(client, VHOST_USER_GET_VRING_BASE, &state, sizeof(state), &answer);
    if (r == 0)
        *ret_base = (uint16_t)answer.payload.state.value;
    return r;
}

void vhost_client_drop(struct vhost_client *client)
{
    close_fd(&client->socket);
    close_fd(&client->backend_fd);
}

int vhost_client_reconnect(struct vhost_client *client)
{
    vhost_client_drop(client);
    client->protocol_features = 0;
    client->socket = connect_socket(client->options.socket);
    if (client->socket < 0)
        return client->socket;
    int r = negotiate(client);
    if (r == 0)
        r = vhost_client_share_memory(client);
    if (r == 0)
        r = share_inflight(client);
    // What VMMs do that could not ask the dead server: all that is not used is to be done again.
    for (unsigned i = 0; i < client->options.queues && r == 0; i++)
        r = vhost_client_start_queue(client, i, __atomic_load_n(&client->queues[i].used->idx, __ATOMIC_ACQUIRE));
    return r;
}

// Rings first, then the slots' control pages, then the data.
static int lay_out(struct vhost_client *client)
{
    const struct vhost_client_options *o = &client->options;
    uint16_t size = 2;
    client->chain = o->direct ? o->segments + 2 : 1;
    while (size < o->depth * client->chain)
        size = (uint16_t)(size * 2);
    if (size > 1024)
        return -EINVAL;
    size_t ring =
        align_up((size_t)size * 16, PAGE) + align_up(6 + (size_t)size * 2, PAGE) + align_up(6 + (size_t)size * 8, PAGE);
    client->control_size = o->queues * (ring + (size_t)o->depth * PAGE);
    client->memory_size = client->control_size + (size_t)o->queues * o->depth * o->slot_bytes;
    client->guest_base = UINT64_C(0x40000000);
    client->memory_fd = memfd_create("vhost-client", MFD_CLOEXEC);
    if (client->memory_fd < 0 || ftruncate(client->memory_fd, (off_t)client->memory_size) < 0)
        return -errno;
    void *map = mmap(NULL, client->memory_size, PROT_READ | PROT_WRITE, MAP_SHARED, client->memory_fd, 0);
    if (map == MAP_FAILED)
        return -errno;
    client->memory = map;
    uint8_t *at = map;
    for (unsigned i = 0; i < o->queues; i++) {
        struct vhost_client_queue *q = &client->queues[i];
        q->index = i;
        q->size = size;
        q->descriptors = (void *)at;
        q->available = (void *)(at + align_up((size_t)size * 16, PAGE));
        q->used = (void *)((uint8_t *)q->available + align_up(6 + (size_t)size * 2, PAGE));
        q->control = at + ring;
        q->data = client->memory + client->control_size + (size_t)i * o->depth * o->slot_bytes;
        q->event_index = !o->no_event_index;
        at += ring + (size_t)o->depth * PAGE;
        q->kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        q->call_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        q->error_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (q->kick_fd < 0 || q->call_fd < 0 || q->error_fd < 0)
            return -errno;
    }
    return 0;
}

int vhost_client_connect(const struct vhost_client_options *options, struct vhost_client **ret_client)
{
    struct vhost_client *client = calloc(1, sizeof(*client));
    if (!client)
        return -ENOMEM;
    client->options = *options;
    struct vhost_client_options *o = &client->options;
    o->queues = o->queues ? o->queues : 1;
    o->depth = o->depth ? o->depth : 32;
    o->segments = o->segments ? o->segments : 1;
    o->slot_bytes = align_up(o->slot_bytes ? o->slot_bytes : 65536, PAGE);
    client->socket = client->backend_fd = client->memory_fd = client->inflight_fd = -1;
    for (unsigned i = 0; i < VHOST_CLIENT_QUEUES_MAX; i++)
        client->queues[i].kick_fd = client->queues[i].call_fd = client->queues[i].error_fd = -1;
    int r = o->queues > VHOST_CLIENT_QUEUES_MAX || o->segments > VHOST_CLIENT_SEGMENTS_MAX ? -EINVAL : lay_out(client);
    if (r == 0)
        r = vhost_client_reconnect(client);
    if (r < 0) {
        (void)vhost_client_close(client);
        return r;
    }
    *ret_client = client;
    return 0;
}

struct vhost_client *vhost_client_close(struct vhost_client *client)
{
    if (!client)
        return NULL;
    vhost_client_drop(client);
    for (unsigned i = 0; i < VHOST_CLIENT_QUEUES_MAX; i++) {
        close_fd(&client->queues[i].kick_fd);
        close_fd(&client->queues[i].call_fd);
        close_fd(&client->queues[i].error_fd);
    }
    if (client->memory)
        (void)munmap(client->memory, client->memory_size);
    close_fd(&client->memory_fd);
    close_fd(&client->inflight_fd);
    free(client);
    return NULL;
}
