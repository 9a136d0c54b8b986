// SPDX-License-Identifier: Apache-2.0
// The input is a sequence of vhost-user messages, with descriptors from a small set, to a device with two rings and a
// real image; its end is what the guest's memory holds. Rings that the messages set up really run.
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/checked.h"
#include "provisioner/blk/vhost_user_device.h"

#define DISK (1 << 20)
#define GUEST 65536

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct vhost_user_thread thread;
static struct vhost_user_ring rings[2];
static struct vhost_user_device device;
static uint8_t *guest;
static int sockets[2], guest_fd, event_fd;

static void must(int result)
{
    if (result < 0)
        abort();
}

static void set_up(void)
{
    struct io_file *file;
    struct image *image;
    int fd = memfd_create("disk", MFD_CLOEXEC);
    must(ftruncate(fd, DISK));
    must(io_file_open(fd, &(struct io_file_options){.writable = true}, &file, NULL));
    must(image_open(&(struct image_layer){.format = "raw", .file = file}, 1, &(struct image_options){0}, &image, NULL));
    must(vhost_user_thread_start(&thread, image, IO_ENGINE_AUTO, 0, NULL));
    for (unsigned i = 0; i < ARRAY_SIZE(rings); i++)
        vhost_user_ring_create(&rings[i], i, &thread);
    struct virtio_blk_volume volume = {.queues = ARRAY_SIZE(rings)};
    image_geometry(image, &volume.geometry);
    vhost_user_device_init(&device, &volume, rings);
    must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets));
    guest_fd = memfd_create("guest", MFD_CLOEXEC);
    must(ftruncate(guest_fd, GUEST));
    guest = mmap(NULL, GUEST, PROT_READ | PROT_WRITE, MAP_SHARED, guest_fd, 0);
    event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (guest == MAP_FAILED || event_fd < 0)
        abort();
}

// Ordinary rings in the guest's memory, so that inputs need not find out how to build them.
static void ordinary(uint8_t request, uint8_t ring, struct vhost_user_message *m)
{
    const uint64_t at = (uint64_t)ring * 8192;
    switch (request) {
    case VHOST_USER_SET_MEM_TABLE:
        m->payload.memory = (struct vhost_user_memory){.count = 1, .regions = {{0, GUEST, 0, 0}}};
        m->header.size = 40;
        m->fds[0] = dup(guest_fd);
        m->fd_count = 1;
        break;
    case VHOST_USER_SET_VRING_NUM:
        m->payload.state = (struct vhost_user_vring_state){ring, 16};
        m->header.size = 8;
        break;
    case VHOST_USER_SET_VRING_ADDR:
        m->payload.address = (struct vhost_user_vring_address){ring, 0, at, at + 512, at + 256, 0};
        m->header.size = 40;
        break;
    case VHOST_USER_SET_VRING_ENABLE:
        m->payload.state = (struct vhost_user_vring_state){ring, 1};
        m->header.size = 8;
        break;
    case VHOST_USER_SET_VRING_KICK:
    case VHOST_USER_SET_VRING_CALL:
        m->payload.u64 = ring;
        m->header.size = 8;
        m->fds[0] = dup(event_fd);
        m->fd_count = 1;
        break;
    default:
        break;
    }
}

static void handle(struct vhost_user_message *m)
{
    char answers[4096];
    (void)vhost_user_device_handle(&device, sockets[0], m);
    while (recv(sockets[1], answers, sizeof(answers), MSG_DONTWAIT) > 0)
        ;
}

// One message: request, shape, then its payload. Returns the bytes used.
static size_t one_message(const uint8_t *data, size_t size)
{
    struct vhost_user_message m = {.header = {.request = data[0], .flags = VHOST_USER_VERSION}};
    size_t used = 3;
    for (unsigned i = 0; i < VHOST_USER_FDS_MAX; i++)
        m.fds[i] = -1;
    if (data[1] & 1) {
        ordinary(data[0], data[2] & 1, &m);
    } else {
        m.header.size = (uint32_t)MIN((size_t)data[2], sizeof(m.payload));
        size_t have = MIN((size_t)m.header.size, size - used);
        memcpy(&m.payload, data + used, have);
        used += have;
        m.fd_count = data[1] >> 1 & 3;
        for (unsigned i = 0; i < m.fd_count; i++)
            m.fds[i] = dup(data[1] & 8 ? guest_fd : event_fd);
    }
    if (data[1] & 16)
        m.header.flags |= VHOST_USER_FLAG_NEED_REPLY;
    handle(&m);
    return used;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!guest)
        set_up();
    memset(guest, 0, GUEST);
    size_t half = size / 2;
    memcpy(guest, data + half, MIN(size - half, (size_t)GUEST));
    size_t at = 0;
    for (unsigned i = 0; i < 40 && at + 3 <= half; i++)
        at += one_message(data + at, half - at);
    vhost_user_device_reset(&device);
    return 0;
}
