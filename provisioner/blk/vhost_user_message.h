/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The messages of vhost-user (specification "Vhost-user Protocol", version 1) on a Unix stream socket. All fields are
 * in the host's byte order. The peer is hostile: sizes are bounded before anything is read, descriptors are counted,
 * and those that no one takes are closed.
 *
 * Threads: one receiver and one sender at a time. Both block, at most VHOST_USER_PEER_MS for what a peer has begun.
 */
#ifndef PLATTER_PROVISIONER_BLK_VHOST_USER_MESSAGE_H
#define PLATTER_PROVISIONER_BLK_VHOST_USER_MESSAGE_H

#include <stdbool.h>
#include <stdint.h>

#include "provisioner/blk/guest_memory.h"

#define VHOST_USER_PEER_MS 5000
#define VHOST_USER_FDS_MAX GUEST_MEMORY_REGIONS_MAX
#define VHOST_USER_CONFIG_MAX 256

enum vhost_user_request {
    VHOST_USER_GET_FEATURES = 1,
    VHOST_USER_SET_FEATURES = 2,
    VHOST_USER_SET_OWNER = 3,
    VHOST_USER_RESET_OWNER = 4,
    VHOST_USER_SET_MEM_TABLE = 5,
    VHOST_USER_SET_VRING_NUM = 8,
    VHOST_USER_SET_VRING_ADDR = 9,
    VHOST_USER_SET_VRING_BASE = 10,
    VHOST_USER_GET_VRING_BASE = 11,
    VHOST_USER_SET_VRING_KICK = 12,
    VHOST_USER_SET_VRING_CALL = 13,
    VHOST_USER_SET_VRING_ERR = 14,
    VHOST_USER_GET_PROTOCOL_FEATURES = 15,
    VHOST_USER_SET_PROTOCOL_FEATURES = 16,
    VHOST_USER_GET_QUEUE_NUM = 17,
    VHOST_USER_SET_VRING_ENABLE = 18,
    VHOST_USER_SET_BACKEND_REQ_FD = 21,
    VHOST_USER_GET_CONFIG = 24,
    VHOST_USER_SET_CONFIG = 25,
    VHOST_USER_GET_INFLIGHT_FD = 31,
    VHOST_USER_SET_INFLIGHT_FD = 32,
    VHOST_USER_RESET_DEVICE = 34,
    VHOST_USER_REQUEST_END,
};

/* On the backend channel. */
#define VHOST_USER_BACKEND_CONFIG_CHANGE_MSG 2

#define VHOST_USER_VERSION 1u
#define VHOST_USER_VERSION_MASK 3u
#define VHOST_USER_FLAG_REPLY (1u << 2)
#define VHOST_USER_FLAG_NEED_REPLY (1u << 3)

#define VHOST_USER_F_PROTOCOL_FEATURES 30

enum vhost_user_protocol_feature {
    VHOST_USER_PROTOCOL_F_MQ = 0,
    VHOST_USER_PROTOCOL_F_REPLY_ACK = 3,
    VHOST_USER_PROTOCOL_F_BACKEND_REQ = 5,
    VHOST_USER_PROTOCOL_F_CONFIG = 9,
    VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD = 12,
    VHOST_USER_PROTOCOL_F_RESET_DEVICE = 13,
};

/* SET_VRING_KICK, CALL, ERR: the queue's index is in the low byte. */
#define VHOST_USER_VRING_INDEX_MASK 0xffu
#define VHOST_USER_VRING_NOFD (1u << 8)

struct vhost_user_header {
    uint32_t request, flags, size;
};

struct vhost_user_vring_state {
    uint32_t index, value;
};

struct vhost_user_vring_address {
    uint32_t index, flags;
    uint64_t descriptors, used, available, log;
};

struct vhost_user_memory {
    uint32_t count, padding;
    struct guest_region_request regions[GUEST_MEMORY_REGIONS_MAX];
};

struct vhost_user_config {
    uint32_t offset, size, flags;
    uint8_t bytes[VHOST_USER_CONFIG_MAX];
};

struct vhost_user_inflight {
    uint64_t size, offset;
    uint16_t queues, queue_size;
};
/* The fields' bytes; peers that send the C structure add its padding. */
#define VHOST_USER_INFLIGHT_BYTES 20

struct vhost_user_message {
    struct vhost_user_header header;
    union {
        uint64_t u64;
        struct vhost_user_vring_state state;
        struct vhost_user_vring_address address;
        struct vhost_user_memory memory;
        struct vhost_user_config config;
        struct vhost_user_inflight inflight;
    } payload;
    int fds[VHOST_USER_FDS_MAX]; /* a receiver takes one by steal_fd; -1 = none */
    unsigned fd_count;
};

/* Receive one message into `message`, which holds no descriptors before; zeroes what the payload leaves of it. Waits
 * for the first byte as well: poll before. -EPIPE at end of stream, -EBADMSG for bad headers and too many descriptors,
 * -ETIMEDOUT. On failure no descriptor is left open. */
int vhost_user_receive(int socket, struct vhost_user_message *message);
/* Is it one that we know, with a fitting size and number of descriptors? 0 or -EBADMSG, -EOPNOTSUPP when unknown. */
int vhost_user_check(const struct vhost_user_message *message);
/* Does the request have an answer of its own? */
bool vhost_user_has_reply(uint32_t request);

/* Send it with its descriptors (still the caller's). -EPIPE, -ETIMEDOUT. */
int vhost_user_send(int socket, const struct vhost_user_message *message);

void vhost_user_close_fds(struct vhost_user_message *message);

#endif
