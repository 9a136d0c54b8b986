/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A vhost-user-blk front-end for tests and benchmarks: it negotiates, shares its memory, and drives split virtqueues.
 * It plays a guest and its VMM in one, and lets a test break the rules: rings and messages are open to it.
 *
 * The memory is shared as three regions; the data buffers of some slots cross from the second to the third, which
 * are neighbours for the guest but not for the server.
 *
 * Threads: different queues may be used by different threads; the rest by one at a time. Errors are negative errno.
 */
#ifndef PLATTER_TESTS_LIB_VHOST_CLIENT_H
#define PLATTER_TESTS_LIB_VHOST_CLIENT_H

#include <linux/virtio_blk.h>
#include <linux/virtio_ring.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "provisioner/blk/vhost_user_message.h"

#define VHOST_CLIENT_QUEUES_MAX 16
#define VHOST_CLIENT_SEGMENTS_MAX 120

struct vhost_client_options {
    const char *socket;
    unsigned queues;        /* 0 = 1 */
    unsigned depth;         /* request slots of each queue; 0 = 32 */
    size_t slot_bytes;      /* data buffer of each slot; 0 = 64 KiB; rounded up to 4 KiB */
    unsigned segments;      /* data descriptors of a request; 0 = 1 */
    bool direct;            /* chains in the ring itself instead of indirect tables */
    bool no_event_index;    /* do not negotiate VIRTIO_RING_F_EVENT_IDX */
    bool no_inflight;       /* no in-flight region */
    uint64_t drop_features; /* not to be negotiated */
};

struct vhost_client_queue {
    unsigned index;
    uint16_t size; /* ring entries */
    struct vring_desc *descriptors;
    struct vring_avail *available;
    struct vring_used *used;
    int kick_fd, call_fd, error_fd;
    uint16_t available_next; /* filled, maybe not shown */
    uint16_t available_shown;
    uint16_t last_used;
    bool event_index;
    uint8_t *control; /* one page for each slot */
    uint8_t *data;
};

struct vhost_client {
    struct vhost_client_options options;
    int socket;
    int backend_fd; /* our end of the back-end's channel */
    uint64_t features, protocol_features;
    unsigned server_queues;
    int memory_fd;
    uint8_t *memory;
    size_t memory_size, control_size;
    uint64_t guest_base;
    int inflight_fd;
    struct vhost_user_inflight inflight;
    unsigned chain; /* ring descriptors of a slot: head of slot s is s * chain */
    struct vhost_client_queue queues[VHOST_CLIENT_QUEUES_MAX];
};

int vhost_client_connect(const struct vhost_client_options *options, struct vhost_client **ret_client);
/* NULL is allowed. Returns NULL. */
struct vhost_client *vhost_client_close(struct vhost_client *client);
/* Close the connection only, as a front-end does that lost its server; then set everything up again on a new one, with
 * the rings as they are. */
void vhost_client_drop(struct vhost_client *client);
int vhost_client_reconnect(struct vhost_client *client);

/* ---- messages ---- */

/* Send a request with the given payload and descriptors; any content. */
int vhost_client_send(struct vhost_client *client, uint32_t request, uint32_t flags, const void *payload, size_t size,
                      const int *fds, unsigned fd_count);
/* Receive an answer. -EPIPE when the server closed, -ETIMEDOUT after 10 s. */
int vhost_client_receive(struct vhost_client *client, struct vhost_user_message *message);
/* Send with NEED_REPLY; 0 or -EIO as the server answers. */
int vhost_client_request(struct vhost_client *client, uint32_t request, const void *payload, size_t size,
                         const int *fds, unsigned fd_count);
int vhost_client_get_u64(struct vhost_client *client, uint32_t request, uint64_t *ret_value);
int vhost_client_config(struct vhost_client *client, struct virtio_blk_config *ret_config);
int vhost_client_set_write_cache(struct vhost_client *client, bool on);
/* Wait until the server says that the configuration changed. -ETIMEDOUT after 10 s. */
int vhost_client_wait_config_change(struct vhost_client *client);
/* Share the memory (again). */
int vhost_client_share_memory(struct vhost_client *client);
int vhost_client_start_queue(struct vhost_client *client, unsigned queue, uint16_t base);
/* Stop the queue; gives the server's next available index. */
int vhost_client_stop_queue(struct vhost_client *client, unsigned queue, uint16_t *ret_base);

/* ---- requests ---- */

/* The data buffer of a slot; the guest's address of memory of ours. */
uint8_t *vhost_client_buffer(struct vhost_client *client, unsigned queue, unsigned slot);
uint64_t vhost_client_guest(const struct vhost_client *client, const void *pointer);

/* Fill `slot` with a request and make it available, not yet shown. `length` bytes of the slot's buffer are transferred
 * (VIRTIO_BLK_T_IN, OUT, GET_ID); DISCARD and WRITE_ZEROES concern `length` bytes at `sector` with `flags`. */
void vhost_client_submit(struct vhost_client *client, unsigned queue, unsigned slot, uint32_t type, uint64_t sector,
                         size_t length, uint32_t flags);
/* Make a head available as it is. */
void vhost_client_push(struct vhost_client_queue *queue, uint16_t head);
/* Show what was made available and kick if the server wants it. */
void vhost_client_kick(struct vhost_client *client, unsigned queue);
/* Take one completion without waiting: true with its slot and status. */
bool vhost_client_poll(struct vhost_client *client, unsigned queue, unsigned *ret_slot, uint8_t *ret_status);
/* Sleep until there is a completion. False after timeout_ms. */
bool vhost_client_wait(struct vhost_client *client, unsigned queue, int timeout_ms);
/* One request from start to end on slot 0, while no other is in flight on the queue. Its status, or -ETIMEDOUT. */
int vhost_client_do(struct vhost_client *client, unsigned queue, uint32_t type, uint64_t sector, size_t length,
                    uint32_t flags);

#endif
