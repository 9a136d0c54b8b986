// SPDX-License-Identifier: Apache-2.0
// NBD transmission: from request headers to image requests and their answers. Nothing that a client says is used
// before it was checked against the size that the client was told.
#include <assert.h>
#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "common/bytes.h"
#include "common/checked.h"
#include "provisioner/blk/nbd_connection.h"

#define EXTENTS_MAX (NBD_PAGE / sizeof(struct image_extent))

/* ---- ends of image requests ---- */

/* Every piece was handed out and has come back. */
static bool command_complete(const struct nbd_slot *command)
{
    return command->pending == 0 && command->position == command->length;
}

static void read_done(struct nbd_slot *slot, int result)
{
    struct nbd_connection *connection = slot->connection;
    struct nbd_slot *command = slot->command;
    bool last = command_complete(command);
    if (connection->structured) {
        uint8_t offset[8];
        store_be64(offset, slot->offset);
        if (result == 0)
            nbd_reply_chunk(slot, NBD_CHUNK_OFFSET_DATA, last, offset, sizeof(offset), slot->length);
        else
            nbd_reply_chunk_error(slot, result, last);
        if (last && command != slot)
            nbd_slot_give(command);
    } else if (command == slot) {
        nbd_reply_simple(slot, result, result == 0 ? slot->length : 0);
    } else if (slot->offset == command->offset) {
        command->error = result;
        nbd_reply_simple(slot, result, result == 0 ? slot->length : 0);
    } else if (result == 0) {
        nbd_reply_data(slot, slot->length);
    } else {
        nbd_connection_break(connection); /* the reply has begun as a success: there is no other way to say it */
    }
}

static void write_done(struct nbd_slot *slot, int result)
{
    struct nbd_slot *command = slot->command;
    if (result < 0 && command->error == 0)
        command->error = result;
    if (command != slot)
        nbd_slot_give(slot);
    if (command_complete(command))
        nbd_reply_simple(command, command->error, 0);
}

static void submit(struct nbd_slot *slot, enum image_op op, uint32_t flags);

static void status_failed(struct nbd_slot *slot, int error)
{
    if (slot->also)
        nbd_slot_give(slot->also);
    nbd_reply_chunk_error(slot, error, true);
}

static void submit_status(struct nbd_slot *slot)
{
    const struct nbd_connection *connection = slot->connection;
    int r = 0;
    slot->status = (struct image_status){.extents = slot->iov.iov_base, .max = EXTENTS_MAX};
    slot->layers = 0;
    if (slot->context == NBD_CONTEXT_CHANGED)
        r = changed_depth(connection->thread->export->image, &connection->point, &slot->layers);
    if (r < 0)
        status_failed(slot, r);
    else
        submit(slot, IMAGE_STATUS, 0);
}

/* Was a snapshot taken before the image looked at its layers? */
static bool depth_changed(const struct nbd_slot *slot)
{
    const struct nbd_connection *connection = slot->connection;
    uint32_t layers = 0;
    return slot->context == NBD_CONTEXT_CHANGED &&
           (changed_depth(connection->thread->export->image, &connection->point, &layers) < 0 ||
            layers != slot->layers);
}

static void status_done(struct nbd_slot *slot, int result)
{
    uint8_t context[4];
    struct nbd_slot *also = slot->also;
    if (result == 0 && slot->status.count == 0)
        result = -EIO;
    if (result < 0) {
        status_failed(slot, result);
        return;
    }
    if (depth_changed(slot)) {
        submit_status(slot);
        return;
    }
    store_be32(context, slot->context);
    uint32_t count = nbd_context_extents(slot);
    nbd_reply_chunk(slot, NBD_CHUNK_BLOCK_STATUS, !also, context, sizeof(context), count * NBD_EXTENT_SIZE);
    if (also)
        submit_status(also);
}

/* A hint that nobody could follow was followed well enough. FUA: what was done must last. */
static void trim_done(struct nbd_slot *slot, int result)
{
    if (result == 0 && slot->flags & NBD_CMD_FUA && slot->image.op == IMAGE_DISCARD)
        submit(slot, IMAGE_FLUSH, 0);
    else
        nbd_reply_simple(slot, result == -EOPNOTSUPP ? 0 : result, 0);
}

static void image_done(struct image_request *request, int result)
{
    struct nbd_slot *slot = (void *)((char *)request - offsetof(struct nbd_slot, image));
    struct nbd_connection *connection = slot->connection;
    export_count_request(&connection->thread->base, request->op, request->length, result);
    connection->busy--;
    slot->command->pending--;
    switch (slot->command->type) {
    case NBD_CMD_READ:
        read_done(slot, result);
        break;
    case NBD_CMD_WRITE:
        write_done(slot, result);
        break;
    case NBD_CMD_BLOCK_STATUS:
        status_done(slot, result);
        break;
    case NBD_CMD_TRIM:
        trim_done(slot, result);
        break;
    default:
        nbd_reply_simple(slot, result, 0);
        break;
    }
    nbd_receive_resume(connection);
}

static void submit(struct nbd_slot *slot, enum image_op op, uint32_t flags)
{
    struct nbd_connection *connection = slot->connection;
    bool data = op == IMAGE_READ || op == IMAGE_WRITE;
    slot->image = (struct image_request){
        .op = op,
        .flags = flags | (slot->command->flags & NBD_CMD_FUA && op != IMAGE_DISCARD ? (uint32_t)IMAGE_FUA : 0) |
                 (slot->connection->gone ? (uint32_t)IMAGE_NO_WAIT : 0),
        .offset = slot->offset,
        .length = slot->length,
        .iov = data ? &slot->iov : NULL,
        .iovcnt = data ? 1 : 0,
        .done = image_done,
    };
    if (op == IMAGE_STATUS) {
        slot->image.status = &slot->status;
        slot->image.layers = slot->layers;
    }
    if (op == IMAGE_READ || op == IMAGE_FLUSH || op == IMAGE_STATUS)
        slot->image.flags &= IMAGE_NO_WAIT;
    slot->command->pending++;
    connection->busy++;
    image_submit(connection->thread->base.queue, &slot->image);
}

/* ---- requests with data, whole or in pieces ---- */

/* The slot for the next piece of the current request, with its memory; NULL when something is out. */
static struct nbd_slot *take_piece(struct nbd_connection *connection)
{
    struct nbd_slot *command = connection->current;
    uint32_t length = MIN(command->length - command->position, NBD_PIECE_MAX);
    struct nbd_slot *piece = command->length > NBD_PIECE_MAX ? nbd_slot_take(connection) : command;
    if (!piece)
        return NULL;
    if (!nbd_slot_memory(piece, length)) {
        if (piece != command)
            nbd_slot_give(piece);
        return NULL;
    }
    if (piece != command) {
        piece->command = command;
        piece->type = command->type;
        piece->offset = command->offset + command->position;
        piece->length = length;
    }
    return piece;
}

/* The piece is on its way: before submitting it, for it may be done at once. */
static void account_piece(struct nbd_connection *connection, const struct nbd_slot *piece)
{
    struct nbd_slot *command = connection->current;
    command->position += piece->length;
    if (command->position == command->length && !connection->serial)
        connection->current = NULL;
}

static enum nbd_step continue_read(struct nbd_connection *connection)
{
    struct nbd_slot *command = connection->current;
    if (connection->serial) {
        if (connection->busy > 0)
            return NBD_STEP_BLOCKED;
        if (command->position == command->length || command->error < 0) {
            connection->current = NULL;
            connection->serial = false;
            nbd_slot_give(command);
            return NBD_STEP_ON;
        }
    }
    struct nbd_slot *piece = take_piece(connection);
    if (!piece)
        return NBD_STEP_BLOCKED;
    account_piece(connection, piece);
    submit(piece, IMAGE_READ, 0);
    return NBD_STEP_ON;
}

static enum nbd_step continue_write(struct nbd_connection *connection)
{
    struct nbd_slot *piece = connection->piece;
    if (!piece) {
        piece = take_piece(connection);
        if (!piece)
            return NBD_STEP_BLOCKED;
        connection->piece = piece;
    }
    uint32_t bytes = MIN(nbd_available(connection), piece->length - piece->filled);
    memcpy((uint8_t *)piece->iov.iov_base + piece->filled, connection->buffer + connection->head, bytes);
    connection->head += bytes;
    piece->filled += bytes;
    if (piece->filled < piece->length)
        return NBD_STEP_INPUT;
    connection->piece = NULL;
    account_piece(connection, piece);
    submit(piece, IMAGE_WRITE, 0);
    return NBD_STEP_ON;
}

/* ---- request headers ---- */

static void refuse(struct nbd_slot *slot, int error)
{
    export_count(&slot->connection->thread->base.counters.errors, 1);
    if (slot->also)
        nbd_slot_give(slot->also);
    if (slot->connection->structured && (slot->type == NBD_CMD_READ || slot->type == NBD_CMD_BLOCK_STATUS))
        nbd_reply_chunk_error(slot, error, true);
    else
        nbd_reply_simple(slot, error, 0);
}

static uint16_t allowed_flags(uint16_t type)
{
    switch (type) {
    case NBD_CMD_READ:
        return NBD_CMD_FUA | NBD_CMD_DF;
    case NBD_CMD_WRITE_ZEROES:
        return NBD_CMD_FUA | NBD_CMD_NO_HOLE | NBD_CMD_FAST_ZERO;
    case NBD_CMD_BLOCK_STATUS:
        return NBD_CMD_FUA | NBD_CMD_REQ_ONE;
    default:
        return NBD_CMD_FUA;
    }
}

static bool modifies(uint16_t type)
{
    return type == NBD_CMD_WRITE || type == NBD_CMD_TRIM || type == NBD_CMD_WRITE_ZEROES;
}

/* 0 or the error to answer with. */
static int check(const struct nbd_slot *slot)
{
    const struct nbd_connection *connection = slot->connection;
    const struct nbd_export *export = connection->thread->export;
    if (slot->type > NBD_CMD_BLOCK_STATUS || slot->flags & ~allowed_flags(slot->type))
        return -EINVAL;
    if (slot->flags & NBD_CMD_DF && !connection->structured)
        return -EINVAL;
    if (modifies(slot->type) && export->read_only)
        return -EPERM;
    if (slot->type != NBD_CMD_FLUSH && !range_within(slot->offset, slot->length, connection->size))
        return slot->type == NBD_CMD_WRITE || slot->type == NBD_CMD_WRITE_ZEROES ? -ENOSPC : -EINVAL;
    if (slot->type == NBD_CMD_READ && slot->length > NBD_PAYLOAD_MAX)
        return -EINVAL;
    if (slot->type == NBD_CMD_READ && slot->flags & NBD_CMD_DF && slot->length > NBD_PIECE_MAX)
        return -EOVERFLOW;
    if (slot->type == NBD_CMD_BLOCK_STATUS && ((!connection->allocation && !connection->changed) || slot->length == 0))
        return -EINVAL;
    if (slot->type == NBD_CMD_WRITE_ZEROES && slot->flags & NBD_CMD_FAST_ZERO &&
        (!export->fast_zero || slot->flags & NBD_CMD_NO_HOLE))
        return -EOPNOTSUPP;
    return 0;
}

static enum nbd_step start_status(struct nbd_slot *slot)
{
    slot->context = slot->connection->allocation ? NBD_CONTEXT_ALLOCATION : NBD_CONTEXT_CHANGED;
    if (slot->also) {
        slot->also->type = slot->type;
        slot->also->flags = slot->flags;
        slot->also->cookie = slot->cookie;
        slot->also->offset = slot->offset;
        slot->also->length = slot->length;
        slot->also->context = NBD_CONTEXT_CHANGED;
    }
    submit_status(slot);
    return NBD_STEP_ON;
}

static enum nbd_step start(struct nbd_slot *slot)
{
    struct nbd_connection *connection = slot->connection;
    bool split = slot->length > NBD_PIECE_MAX;
    switch (slot->type) {
    case NBD_CMD_READ:
        connection->current = slot;
        connection->serial = split && !connection->structured;
        return NBD_STEP_ON;
    case NBD_CMD_WRITE:
        connection->current = slot;
        return NBD_STEP_ON;
    case NBD_CMD_FLUSH:
        slot->offset = slot->length = 0;
        submit(slot, IMAGE_FLUSH, 0);
        return NBD_STEP_ON;
    case NBD_CMD_TRIM:
        submit(slot, IMAGE_DISCARD, 0);
        return NBD_STEP_ON;
    case NBD_CMD_WRITE_ZEROES:
        submit(slot, IMAGE_WRITE_ZEROES, slot->flags & NBD_CMD_NO_HOLE ? 0 : IMAGE_MAY_UNMAP);
        return NBD_STEP_ON;
    case NBD_CMD_BLOCK_STATUS:
        return start_status(slot);
    default: /* NBD_CMD_CACHE: there is no cache to fill */
        nbd_reply_simple(slot, 0, 0);
        return NBD_STEP_ON;
    }
}

/* Nothing to transfer: the protocol leaves it open, so it succeeds. */
static enum nbd_step answer_empty(struct nbd_slot *slot)
{
    if (slot->type == NBD_CMD_READ && slot->connection->structured)
        nbd_reply_chunk(slot, NBD_CHUNK_NONE, true, NULL, 0, 0);
    else
        nbd_reply_simple(slot, 0, 0);
    return NBD_STEP_ON;
}

static void parse_header(const uint8_t *bytes, struct nbd_slot *ret_slot)
{
    ret_slot->flags = load_be16(bytes + 4);
    ret_slot->type = load_be16(bytes + 6);
    memcpy(&ret_slot->cookie, bytes + 8, 8);
    ret_slot->offset = load_be64(bytes + 16);
    ret_slot->length = load_be32(bytes + 24);
}

/* Memory for the extents, and a second slot when there are two contexts. False when something is out. */
static bool prepare_status(struct nbd_slot *slot)
{
    struct nbd_connection *connection = slot->connection;
    if (!nbd_slot_memory(slot, NBD_PAGE))
        return false;
    if (!connection->allocation || !connection->changed)
        return true;
    slot->also = nbd_slot_take(connection);
    if (slot->also && nbd_slot_memory(slot->also, NBD_PAGE))
        return true;
    if (slot->also)
        nbd_slot_give(slot->also);
    return false;
}

static enum nbd_step start_request(struct nbd_connection *connection)
{
    const uint8_t *bytes = connection->buffer + connection->head;
    if (load_be32(bytes) != NBD_REQUEST_MAGIC) {
        nbd_connection_break(connection);
        return NBD_STEP_INPUT;
    }
    struct nbd_slot *slot = nbd_slot_take(connection);
    if (!slot)
        return NBD_STEP_BLOCKED;
    parse_header(bytes, slot);
    if (slot->type == NBD_CMD_BLOCK_STATUS && !prepare_status(slot)) {
        nbd_slot_give(slot);
        return NBD_STEP_BLOCKED;
    }
    connection->head += NBD_REQUEST_SIZE;
    if (slot->type == NBD_CMD_DISC) {
        nbd_connection_end(connection);
        return NBD_STEP_INPUT;
    }
    if (slot->type == NBD_CMD_WRITE && slot->length > NBD_PAYLOAD_MAX) {
        nbd_connection_break(connection); /* not worth gigabytes of reading */
        return NBD_STEP_INPUT;
    }
    int r = check(slot);
    if (r < 0) {
        connection->discard = slot->type == NBD_CMD_WRITE ? slot->length : 0;
        refuse(slot, r);
        return NBD_STEP_ON;
    }
    return slot->length == 0 && slot->type != NBD_CMD_FLUSH ? answer_empty(slot) : start(slot);
}

enum nbd_step nbd_request_step(struct nbd_connection *connection)
{
    const struct nbd_slot *current = connection->current;
    if (current)
        return current->type == NBD_CMD_READ ? continue_read(connection) : continue_write(connection);
    if (nbd_available(connection) < NBD_REQUEST_SIZE)
        return NBD_STEP_INPUT;
    return start_request(connection);
}
