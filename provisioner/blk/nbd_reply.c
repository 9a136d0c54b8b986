// SPDX-License-Identifier: Apache-2.0
// NBD answers: built in their slots, gathered during a turn, sent at its end with one sendmsg for each connection.
#include <assert.h>
#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "common/bytes.h"
#include "common/checked.h"
#include "provisioner/blk/nbd_connection.h"

/* ---- queueing ---- */

bool nbd_reply_pending(const struct nbd_connection *connection)
{
    return connection->replies || connection->output_sent < connection->output_length;
}

static void mark_dirty(struct nbd_connection *connection)
{
    if (connection->dirty)
        return;
    connection->dirty = true;
    connection->next_dirty = connection->thread->dirty;
    connection->thread->dirty = connection;
}

void nbd_reply_output(struct nbd_connection *connection, const void *bytes, size_t length)
{
    assert(length <= NBD_OUTPUT - connection->output_length);
    memcpy(connection->output + connection->output_length, bytes, length);
    connection->output_length += (uint32_t)length;
    mark_dirty(connection);
}

static void queue(struct nbd_slot *slot)
{
    struct nbd_connection *connection = slot->connection;
    slot->next = NULL;
    *connection->replies_tail = slot;
    connection->replies_tail = &slot->next;
    mark_dirty(connection);
}

/* The protocol knows few errors; what it does not know is an I/O error. */
static uint32_t wire_error(int error)
{
    switch (-error) {
    case 0:
        return 0;
    case EPERM:
    case EROFS:
        return NBD_EPERM;
    case ENOMEM:
        return NBD_ENOMEM;
    case EINVAL:
        return NBD_EINVAL;
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
        return NBD_ENOSPC;
    case EOVERFLOW:
        return NBD_EOVERFLOW;
    case EOPNOTSUPP:
        return NBD_ENOTSUP;
    default:
        return NBD_EIO;
    }
}

void nbd_reply_simple(struct nbd_slot *slot, int error, uint32_t body)
{
    store_be32(slot->head, NBD_SIMPLE_REPLY_MAGIC);
    store_be32(slot->head + 4, wire_error(error));
    memcpy(slot->head + 8, &slot->command->cookie, 8);
    slot->head_length = NBD_SIMPLE_REPLY_SIZE;
    slot->body_length = body;
    queue(slot);
}

void nbd_reply_data(struct nbd_slot *slot, uint32_t body)
{
    slot->head_length = 0;
    slot->body_length = body;
    queue(slot);
}

void nbd_reply_chunk(struct nbd_slot *slot, enum nbd_chunk type, bool last, const void *extra, uint32_t extra_length,
                     uint32_t body)
{
    assert(extra_length <= sizeof(slot->head) - NBD_CHUNK_SIZE);
    store_be32(slot->head, NBD_CHUNK_MAGIC);
    store_be16(slot->head + 4, last ? NBD_CHUNK_DONE : 0);
    store_be16(slot->head + 6, (uint16_t)type);
    memcpy(slot->head + 8, &slot->command->cookie, 8);
    store_be32(slot->head + 16, extra_length + body);
    if (extra_length)
        memcpy(slot->head + NBD_CHUNK_SIZE, extra, extra_length);
    slot->head_length = NBD_CHUNK_SIZE + extra_length;
    slot->body_length = body;
    queue(slot);
}

void nbd_reply_chunk_error(struct nbd_slot *slot, int error, bool last)
{
    uint8_t payload[6] = {0}; /* error, and the length of a message: none */
    store_be32(payload, wire_error(error));
    nbd_reply_chunk(slot, NBD_CHUNK_ERROR, last, payload, sizeof(payload), 0);
}

/* ---- sending ---- */

/* Account for `sent` bytes; slots that are sent whole go back. */
static void consume(struct nbd_connection *connection, uint32_t sent)
{
    uint32_t output = MIN(sent, connection->output_length - connection->output_sent);
    connection->output_sent += output;
    sent -= output;
    if (connection->output_sent == connection->output_length)
        connection->output_sent = connection->output_length = 0;
    sent += connection->reply_sent;
    while (connection->replies) {
        struct nbd_slot *slot = connection->replies;
        uint32_t whole = slot->head_length + slot->body_length;
        if (sent < whole)
            break;
        sent -= whole;
        connection->replies = slot->next;
        if (!slot->next)
            connection->replies_tail = &connection->replies;
        nbd_slot_give(slot);
    }
    connection->reply_sent = sent;
}

static void send_done(struct io_op *op, int result)
{
    struct nbd_connection *connection = (void *)((char *)op - offsetof(struct nbd_connection, send));
    connection->sending = false;
    if (result > 0)
        consume(connection, (uint32_t)result);
    else if (result != -EINTR && result != -EAGAIN)
        nbd_connection_break(connection);
    if (nbd_reply_pending(connection) && !connection->broken)
        mark_dirty(connection);
    nbd_receive_resume(connection);
}

/* One part of an answer, less what `skip` says is gone already. */
static unsigned add_iov(struct iovec *iov, void *base, uint32_t length, uint32_t *skip)
{
    uint32_t gone = MIN(*skip, length);
    *skip -= gone;
    if (gone == length)
        return 0;
    *iov = (struct iovec){(uint8_t *)base + gone, length - gone};
    return 1;
}

void nbd_reply_send(struct nbd_connection *connection)
{
    struct iovec *iov = connection->send_iov;
    unsigned count = 0;
    uint32_t skip = connection->output_sent;
    if (connection->sending || connection->broken)
        return;
    count += add_iov(&iov[count], connection->output, connection->output_length, &skip);
    skip = connection->reply_sent;
    for (struct nbd_slot *slot = connection->replies; slot && count + 2 <= NBD_SEND_IOV; slot = slot->next) {
        count += add_iov(&iov[count], slot->head, slot->head_length, &skip);
        count += add_iov(&iov[count], slot->iov.iov_base, slot->body_length, &skip);
    }
    if (count == 0)
        return;
    connection->send_message = (struct msghdr){.msg_iov = iov, .msg_iovlen = count};
    connection->send = (struct io_op){
        .kind = IO_FD_SENDMSG,
        .fd = connection->fd,
        .message = &connection->send_message,
        .done = send_done,
    };
    connection->sending = true;
    io_submit(connection->thread->base.loop, &connection->send);
}
