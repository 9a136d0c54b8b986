// SPDX-License-Identifier: Apache-2.0
// Framing of vhost-user: a header of 12 bytes with the descriptors alongside, then the payload.
#include "provisioner/blk/vhost_user_message.h"

#include <errno.h>
#include <poll.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#include "common/checked.h"
#include "common/cleanup.h"

#define CONFIG_HEAD offsetof(struct vhost_user_config, bytes)
#define MEMORY_HEAD offsetof(struct vhost_user_memory, regions)

// What a request may look like. A zero entry is a request that we do not know.
static const struct shape {
    bool known, reply;
    uint16_t min, max; // payload bytes
    uint8_t fds;       // at most
} shapes[VHOST_USER_REQUEST_END] = {
    [VHOST_USER_GET_FEATURES] = {true, true, 0, 0, 0},
    [VHOST_USER_SET_FEATURES] = {true, false, 8, 8, 0},
    [VHOST_USER_SET_OWNER] = {true, false, 0, 0, 0},
    [VHOST_USER_RESET_OWNER] = {true, false, 0, 0, 0},
    [VHOST_USER_SET_MEM_TABLE] = {true, false, MEMORY_HEAD, sizeof(struct vhost_user_memory), VHOST_USER_FDS_MAX},
    [VHOST_USER_SET_VRING_NUM] = {true, false, 8, 8, 0},
    [VHOST_USER_SET_VRING_ADDR] = {true, false, sizeof(struct vhost_user_vring_address),
                                   sizeof(struct vhost_user_vring_address), 0},
    [VHOST_USER_SET_VRING_BASE] = {true, false, 8, 8, 0},
    [VHOST_USER_GET_VRING_BASE] = {true, true, 8, 8, 0},
    [VHOST_USER_SET_VRING_KICK] = {true, false, 8, 8, 1},
    [VHOST_USER_SET_VRING_CALL] = {true, false, 8, 8, 1},
    [VHOST_USER_SET_VRING_ERR] = {true, false, 8, 8, 1},
    [VHOST_USER_GET_PROTOCOL_FEATURES] = {true, true, 0, 0, 0},
    [VHOST_USER_SET_PROTOCOL_FEATURES] = {true, false, 8, 8, 0},
    [VHOST_USER_GET_QUEUE_NUM] = {true, true, 0, 0, 0},
    [VHOST_USER_SET_VRING_ENABLE] = {true, false, 8, 8, 0},
    [VHOST_USER_SET_BACKEND_REQ_FD] = {true, false, 0, 8, 1},
    [VHOST_USER_GET_CONFIG] = {true, true, CONFIG_HEAD, sizeof(struct vhost_user_config), 0},
    [VHOST_USER_SET_CONFIG] = {true, false, CONFIG_HEAD, sizeof(struct vhost_user_config), 0},
    [VHOST_USER_GET_INFLIGHT_FD] = {true, true, VHOST_USER_INFLIGHT_BYTES, sizeof(struct vhost_user_inflight), 0},
    [VHOST_USER_SET_INFLIGHT_FD] = {true, false, VHOST_USER_INFLIGHT_BYTES, sizeof(struct vhost_user_inflight), 1},
    [VHOST_USER_RESET_DEVICE] = {true, false, 0, 0, 0},
};

static int64_t now_ms(void)
{
    struct timespec ts;
    (void)clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

static int wait_until(int socket, short events, int64_t deadline)
{
    for (;;) {
        int64_t left = deadline - now_ms();
        struct pollfd p = {.fd = socket, .events = events};
        int r = left > 0 ? poll(&p, 1, (int)left) : 0;
        if (r > 0)
            return 0;
        if (r == 0)
            return -ETIMEDOUT;
        if (errno != EINTR)
            return -errno;
    }
}

// Move the descriptors of a received control message over; more than fit is an error, but they are all ours to close.
static int take_fds(struct msghdr *m, struct vhost_user_message *message)
{
    int result = m->msg_flags & MSG_CTRUNC ? -EBADMSG : 0;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c; c = CMSG_NXTHDR(m, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < count; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(fd));
            if (message->fd_count < VHOST_USER_FDS_MAX) {
                message->fds[message->fd_count++] = fd;
            } else {
                (void)close(fd);
                result = -EBADMSG;
            }
        }
    }
    return result;
}

// Read exactly `length` bytes; with `message` also its descriptors.
static int read_all(int socket, void *to, size_t length, struct vhost_user_message *message, int64_t deadline)
{
    size_t done = 0;
    while (done < length) {
        union {
            char bytes[CMSG_SPACE(sizeof(int) * VHOST_USER_FDS_MAX)];
            struct cmsghdr align;
        } control;
        struct iovec iov = {.iov_base = (char *)to + done, .iov_len = length - done};
        struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};
        if (message) {
            m.msg_control = control.bytes;
            m.msg_controllen = sizeof(control.bytes);
        }
        ssize_t n = recvmsg(socket, &m, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
        if (n < 0 && errno != EAGAIN && errno != EINTR)
            return -errno;
        int r = n < 0 && errno == EAGAIN ? wait_until(socket, POLLIN, deadline) : 0;
        if (r == 0 && n >= 0 && message)
            r = take_fds(&m, message);
        if (r < 0)
            return r;
        if (n == 0)
            return -EPIPE;
        done += n > 0 ? (size_t)n : 0;
    }
    return 0;
}

static int receive(int socket, struct vhost_user_message *message)
{
    int64_t deadline = now_ms() + VHOST_USER_PEER_MS;
    int r = read_all(socket, &message->header, sizeof(message->header), message, deadline);
    if (r < 0)
        return r;
    if ((message->header.flags & VHOST_USER_VERSION_MASK) != VHOST_USER_VERSION ||
        (message->header.flags & VHOST_USER_FLAG_REPLY) || message->header.size > sizeof(message->payload))
        return -EBADMSG;
    // Descriptors belong to the header; the kernel drops those that come with the payload.
    return read_all(socket, &message->payload, message->header.size, NULL, deadline);
}

int vhost_user_receive(int socket, struct vhost_user_message *message)
{
    memset(message, 0, sizeof(*message));
    for (unsigned i = 0; i < VHOST_USER_FDS_MAX; i++)
        message->fds[i] = -1;
    int r = receive(socket, message);
    if (r < 0)
        vhost_user_close_fds(message);
    return r;
}

int vhost_user_check(const struct vhost_user_message *message)
{
    const struct vhost_user_header *header = &message->header;
    if (header->request >= VHOST_USER_REQUEST_END || !shapes[header->request].known)
        return -EOPNOTSUPP;
    const struct shape *shape = &shapes[header->request];
    if (header->size < shape->min || header->size > shape->max || message->fd_count > shape->fds)
        return -EBADMSG;
    return 0;
}

bool vhost_user_has_reply(uint32_t request)
{
    return request < VHOST_USER_REQUEST_END && shapes[request].reply;
}

int vhost_user_send(int socket, const struct vhost_user_message *message)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int) * VHOST_USER_FDS_MAX)];
        struct cmsghdr align;
    } control = {0};
    struct iovec iov[2] = {
        {.iov_base = (void *)(uintptr_t)&message->header, .iov_len = sizeof(message->header)},
        {.iov_base = (void *)(uintptr_t)&message->payload, .iov_len = message->header.size},
    };
    struct msghdr m = {.msg_iov = iov, .msg_iovlen = 2};
    if (message->fd_count) {
        m.msg_control = control.bytes;
        m.msg_controllen = CMSG_SPACE(sizeof(int) * message->fd_count);
        struct cmsghdr *c = CMSG_FIRSTHDR(&m);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof(int) * message->fd_count);
        memcpy(CMSG_DATA(c), message->fds, sizeof(int) * message->fd_count);
    }
    int64_t deadline = now_ms() + VHOST_USER_PEER_MS;
    for (;;) {
        // Answers are far smaller than a socket's buffer, so they go as a whole or not at all.
        ssize_t n = sendmsg(socket, &m, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n >= 0)
            return (size_t)n == iov[0].iov_len + iov[1].iov_len ? 0 : -EPIPE;
        if (errno == EINTR)
            continue;
        if (errno != EAGAIN)
            return -errno;
        int r = wait_until(socket, POLLOUT, deadline);
        if (r < 0)
            return r;
    }
}

void vhost_user_close_fds(struct vhost_user_message *message)
{
    for (unsigned i = 0; i < message->fd_count; i++)
        close_fd(&message->fds[i]);
    message->fd_count = 0;
}
