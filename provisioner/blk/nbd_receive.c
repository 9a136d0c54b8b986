// SPDX-License-Identifier: Apache-2.0
// NBD receiving: bytes from the socket to the parser's steps, in batches and with back-pressure.
#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "common/checked.h"
#include "provisioner/blk/nbd_connection.h"

static void receive_done(struct io_op *op, int result);

/* Receive: the rest of a write's data into its place, and whatever follows into the buffer. */
static void receive_start(struct nbd_connection *connection)
{
    unsigned count = 0;
    if (connection->receiving)
        return;
    uint32_t left = nbd_available(connection);
    if (connection->head > 0) {
        memmove(connection->buffer, connection->buffer + connection->head, left);
        connection->head = 0;
        connection->tail = left;
    }
    const struct nbd_slot *piece = connection->piece;
    if (piece)
        connection->receive_iov[count++] =
            (struct iovec){(uint8_t *)piece->iov.iov_base + piece->filled, piece->length - piece->filled};
    connection->receive_iov[count++] = (struct iovec){connection->buffer + connection->tail, NBD_BUFFER - left};
    connection->receive_message = (struct msghdr){.msg_iov = connection->receive_iov, .msg_iovlen = count};
    connection->receive = (struct io_op){
        .kind = IO_FD_RECVMSG,
        .fd = connection->fd,
        .message = &connection->receive_message,
        .done = receive_done,
    };
    connection->receiving = true;
    io_submit(connection->thread->base.loop, &connection->receive);
}

static void receive_done(struct io_op *op, int result)
{
    struct nbd_connection *connection = (void *)((char *)op - offsetof(struct nbd_connection, receive));
    connection->receiving = false;
    if (result == 0) {
        nbd_connection_end(connection);
    } else if (result < 0 && result != -EINTR && result != -EAGAIN) {
        nbd_connection_break(connection);
    } else if (result > 0 && !connection->ending) {
        uint32_t bytes = (uint32_t)result;
        struct nbd_slot *piece = connection->piece;
        if (piece) {
            uint32_t direct = MIN(bytes, piece->length - piece->filled);
            piece->filled += direct;
            bytes -= direct;
        }
        connection->tail += bytes;
    }
    nbd_receive_advance(connection);
}

static enum nbd_step step(struct nbd_connection *connection)
{
    uint32_t thrown = MIN(connection->discard, nbd_available(connection));
    connection->discard -= thrown;
    connection->head += thrown;
    if (connection->discard > 0)
        return NBD_STEP_INPUT;
    if (connection->phase == NBD_PHASE_TRANSMISSION)
        return nbd_request_step(connection);
    return nbd_handshake_step(connection);
}

void nbd_receive_advance(struct nbd_connection *connection)
{
    enum nbd_step result = NBD_STEP_ON;
    if (connection->advancing)
        return;
    connection->advancing = true;
    while (!connection->ending && result == NBD_STEP_ON)
        result = step(connection);
    connection->advancing = false;
    connection->blocked = result == NBD_STEP_BLOCKED;
    if (connection->blocked)
        nbd_connection_blocked(connection);
    else if (!connection->ending)
        receive_start(connection);
    nbd_connection_check(connection);
}

void nbd_receive_resume(struct nbd_connection *connection)
{
    if (connection->blocked && !connection->ending)
        nbd_receive_advance(connection);
    else
        nbd_connection_check(connection);
}
