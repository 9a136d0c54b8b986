// SPDX-License-Identifier: Apache-2.0
// NBD connections: life and slots.
#include "provisioner/blk/nbd_connection.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <stddef.h>
#include <stdlib.h>

#include "common/cleanup.h"

#define HANGUP_NS UINT64_C(1000000000)

/* ---- slots ---- */

struct nbd_slot *nbd_slot_take(struct nbd_connection *connection)
{
    struct nbd_slot *slot = connection->free;
    if (!slot)
        return NULL;
    connection->free = slot->next;
    slot->next = NULL;
    slot->command = slot;
    slot->iov.iov_base = NULL;
    slot->position = slot->pending = slot->filled = slot->memory = 0;
    slot->head_length = slot->body_length = 0;
    slot->error = 0;
    slot->also = NULL;
    return slot;
}

void nbd_slot_give(struct nbd_slot *slot)
{
    struct nbd_connection *connection = slot->connection;
    if (slot->memory)
        nbd_memory_give(&connection->memory, slot->iov.iov_base, slot->memory);
    slot->memory = 0;
    slot->next = connection->free;
    connection->free = slot;
}

bool nbd_slot_memory(struct nbd_slot *slot, uint32_t length)
{
    void *memory = nbd_memory_take(&slot->connection->memory, length);
    if (!memory)
        return false;
    slot->iov = (struct iovec){memory, length};
    slot->memory = length;
    return true;
}

/* ---- life ---- */

static void destroy(struct nbd_connection *connection)
{
    if (!connection)
        return;
    if (connection->fd >= 0)
        (void)close(connection->fd);
    nbd_memory_destroy(&connection->memory);
    free(connection->buffer);
    free(connection);
}

static void unlink_connection(struct nbd_connection *connection)
{
    struct nbd_thread *thread = connection->thread;
    struct nbd_connection **at = &thread->connections;
    while (*at != connection)
        at = &(*at)->next;
    *at = connection->next;
    if (!connection->dirty)
        return;
    at = &thread->dirty;
    while (*at != connection)
        at = &(*at)->next_dirty;
    *at = connection->next_dirty;
}

void nbd_connection_check(struct nbd_connection *connection)
{
    struct nbd_thread *thread = connection->thread;
    if (!connection->ending || connection->advancing || connection->receiving || connection->sending ||
        connection->busy > 0 || (!connection->broken && nbd_reply_pending(connection)))
        return;
    io_timer_cancel(thread->base.loop, &connection->handshake);
    io_timer_cancel(thread->base.loop, &connection->hangup);
    unlink_connection(connection);
    destroy(connection);
    atomic_fetch_sub(&thread->export->clients, 1);
    nbd_thread_connection_gone(thread);
}

/* A client that is gone does its writes again on another connection: they must not come late over those. */
static void end_waits(struct nbd_connection *connection)
{
    connection->gone = true;
    for (unsigned i = 0; i < NBD_SLOTS; i++)
        connection->slots[i].image.flags |= IMAGE_NO_WAIT;
}

/* What it had sent before is still done, as far as that needs no waiting. */
static void look_for_hangup(struct io_timer *timer)
{
    struct nbd_connection *connection = (void *)((char *)timer - offsetof(struct nbd_connection, hangup));
    struct pollfd poll_fd = {.fd = connection->fd};
    if (poll(&poll_fd, 1, 0) > 0)
        end_waits(connection);
    else if (connection->blocked)
        nbd_connection_blocked(connection);
}

void nbd_connection_blocked(struct nbd_connection *connection)
{
    connection->hangup.fire = look_for_hangup;
    if (!connection->hangup.armed && !connection->gone)
        io_timer_arm(connection->thread->base.loop, &connection->hangup, HANGUP_NS);
}

void nbd_connection_end(struct nbd_connection *connection)
{
    if (connection->ending)
        return;
    connection->ending = true;
    end_waits(connection);
    (void)shutdown(connection->fd, SHUT_RD); /* ends the receive that is under way */
}

void nbd_connection_break(struct nbd_connection *connection)
{
    if (connection->broken)
        return;
    nbd_connection_end(connection);
    connection->broken = true;
    (void)shutdown(connection->fd, SHUT_RDWR);
}

static void handshake_late(struct io_timer *timer)
{
    struct nbd_connection *connection = (void *)((char *)timer - offsetof(struct nbd_connection, handshake));
    nbd_connection_break(connection);
    nbd_connection_check(connection);
}

static void start(struct io_task *task)
{
    struct nbd_connection *connection = (void *)((char *)task - offsetof(struct nbd_connection, start));
    struct nbd_thread *thread = connection->thread;
    connection->next = thread->connections;
    thread->connections = connection;
    io_timer_arm(thread->base.loop, &connection->handshake, NBD_HANDSHAKE_NS);
    nbd_handshake_greet(connection);
    nbd_receive_advance(connection);
}

int nbd_connection_create(struct nbd_thread *thread, int fd)
{
    struct nbd_connection *connection = calloc(1, sizeof(*connection));
    if (!connection) {
        (void)close(fd);
        return -ENOMEM;
    }
    connection->thread = thread;
    connection->fd = fd;
    connection->buffer = malloc(NBD_BUFFER);
    if (!connection->buffer || nbd_memory_create(&connection->memory) < 0) {
        destroy(connection);
        return -ENOMEM;
    }
    connection->replies_tail = &connection->replies;
    connection->handshake.fire = handshake_late;
    for (unsigned i = 0; i < NBD_SLOTS; i++) {
        connection->slots[i].connection = connection;
        nbd_slot_give(&connection->slots[i]);
    }
    atomic_fetch_add(&thread->export->clients, 1);
    connection->start.run = start;
    io_loop_post(thread->base.loop, &connection->start);
    return 0;
}
