// SPDX-License-Identifier: Apache-2.0
// The NBD handshake: fixed newstyle, one option at a time. The next one is looked at when the answer to the last has
// left, so a client that only asks holds one answer's memory. A timer ends handshakes that take too long.
#include <errno.h>
#include <string.h>

#include "common/bytes.h"
#include "common/checked.h"
#include "provisioner/blk/nbd_connection.h"

/* ---- answers ---- */

void nbd_handshake_greet(struct nbd_connection *connection)
{
    uint8_t hello[18];
    store_be64(hello, NBD_MAGIC);
    store_be64(hello + 8, NBD_OPTION_MAGIC);
    store_be16(hello + 16, NBD_FIXED_NEWSTYLE | NBD_NO_ZEROES);
    nbd_reply_output(connection, hello, sizeof(hello));
}

static void answer(struct nbd_connection *connection, uint32_t option, uint32_t type, const void *data, size_t length)
{
    uint8_t head[NBD_OPTION_REPLY_SIZE];
    store_be64(head, NBD_OPTION_REPLY_MAGIC);
    store_be32(head + 8, option);
    store_be32(head + 12, type);
    store_be32(head + 16, (uint32_t)length);
    nbd_reply_output(connection, head, sizeof(head));
    if (length)
        nbd_reply_output(connection, data, length);
}

static uint16_t transmission_flags(const struct nbd_connection *connection)
{
    const struct nbd_export *export = connection->thread->export;
    uint16_t flags = NBD_HAS_FLAGS | NBD_SEND_FLUSH | NBD_SEND_FUA | NBD_CAN_MULTI_CONN | NBD_SEND_CACHE;
    if (connection->structured)
        flags |= NBD_SEND_DF;
    if (export->read_only)
        return flags | NBD_READ_ONLY;
    return flags | NBD_SEND_TRIM | NBD_SEND_WRITE_ZEROES | NBD_SEND_FAST_ZERO;
}

/* ---- names ---- */

/* A length and that many bytes, as the protocol writes strings. False when it does not fit into what is left. */
static bool take_string(const uint8_t **data, uint32_t *left, const uint8_t **ret_string, uint32_t *ret_length)
{
    if (*left < 4)
        return false;
    uint32_t length = load_be32(*data);
    if (length > *left - 4)
        return false;
    *ret_string = *data + 4;
    *ret_length = length;
    *data += 4 + length;
    *left -= 4 + length;
    return true;
}

/* True when the name is served; *ret_named tells it from "". */
static bool find_export(const struct nbd_connection *connection, const uint8_t *name, uint32_t length, bool *ret_named)
{
    const char *own = connection->thread->export->name;
    *ret_named = length > 0;
    return length == 0 || (length == strlen(own) && memcmp(name, own, length) == 0);
}

/* ---- options ---- */

static void begin_transmission(struct nbd_connection *connection, bool named)
{
    if (connection->meta_named != named)
        connection->allocation = connection->changed = false; /* negotiated for another name */
    io_timer_cancel(connection->thread->base.loop, &connection->handshake);
    connection->phase = NBD_PHASE_TRANSMISSION;
}

static void option_export_name(struct nbd_connection *connection, const uint8_t *data, uint32_t length)
{
    uint8_t reply[8 + 2 + 124] = {0};
    bool named;
    if (length > NBD_NAME_MAX || !find_export(connection, data, length, &named)) {
        nbd_connection_break(connection); /* this option has no error answer */
        return;
    }
    connection->size = atomic_load(&connection->thread->export->size);
    store_be64(reply, connection->size);
    store_be16(reply + 8, transmission_flags(connection));
    nbd_reply_output(connection, reply, connection->no_zeroes ? 10 : sizeof(reply));
    begin_transmission(connection, named);
}

static void send_info(struct nbd_connection *connection, uint32_t option, uint16_t kind)
{
    const struct nbd_export *export = connection->thread->export;
    uint8_t info[2 + NBD_NAME_MAX + 64];
    size_t length = 2;
    store_be16(info, kind);
    switch (kind) {
    case NBD_INFO_EXPORT:
        store_be64(info + 2, connection->size);
        store_be16(info + 10, transmission_flags(connection));
        length = 12;
        break;
    case NBD_INFO_BLOCK_SIZE:
        store_be32(info + 2, 1);
        store_be32(info + 6, export->preferred);
        store_be32(info + 10, NBD_PAYLOAD_MAX);
        length = 14;
        break;
    case NBD_INFO_NAME:
        length += strlen(export->name);
        memcpy(info + 2, export->name, length - 2);
        break;
    case NBD_INFO_DESCRIPTION: {
        static const char text[] = "platter volume";
        length += sizeof(text) - 1;
        memcpy(info + 2, text, sizeof(text) - 1);
        break;
    }
    default: /* what we do not know is left out */
        return;
    }
    answer(connection, option, NBD_REP_INFO, info, length);
}

/* INFO and GO: the name, then a list of what the client wants to know. Each kind is told once, however often the
 * client asks. */
static void option_go(struct nbd_connection *connection, uint32_t option, const uint8_t *data, uint32_t length)
{
    static const uint16_t kinds[] = {NBD_INFO_NAME, NBD_INFO_DESCRIPTION, NBD_INFO_BLOCK_SIZE};
    const uint8_t *name;
    uint32_t name_length;
    uint32_t wanted = 0;
    bool named;
    if (!take_string(&data, &length, &name, &name_length) || name_length > NBD_NAME_MAX || length < 2 ||
        length != 2 + 2 * (uint32_t)load_be16(data)) {
        answer(connection, option, NBD_REP_ERR_INVALID, NULL, 0);
        return;
    }
    if (!find_export(connection, name, name_length, &named)) {
        answer(connection, option, NBD_REP_ERR_UNKNOWN, NULL, 0);
        return;
    }
    for (uint32_t at = 2; at < length; at += 2) {
        uint16_t kind = load_be16(data + at);
        wanted |= kind < 32 ? UINT32_C(1) << kind : 0;
    }
    connection->size = atomic_load(&connection->thread->export->size);
    send_info(connection, option, NBD_INFO_EXPORT);
    for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
        if (wanted & UINT32_C(1) << kinds[i])
            send_info(connection, option, kinds[i]);
    }
    answer(connection, option, NBD_REP_ACK, NULL, 0);
    if (option == NBD_OPT_GO)
        begin_transmission(connection, named);
}

static void option_list(struct nbd_connection *connection, uint32_t length)
{
    const char *name = connection->thread->export->name;
    uint8_t entry[4 + NBD_NAME_MAX];
    if (length > 0) {
        answer(connection, NBD_OPT_LIST, NBD_REP_ERR_INVALID, NULL, 0);
        return;
    }
    size_t name_length = strnlen(name, NBD_NAME_MAX);
    store_be32(entry, (uint32_t)name_length);
    memcpy(entry + 4, name, name_length);
    answer(connection, NBD_OPT_LIST, NBD_REP_SERVER, entry, 4 + name_length);
    answer(connection, NBD_OPT_LIST, NBD_REP_ACK, NULL, 0);
}

static void option_structured(struct nbd_connection *connection, uint32_t length)
{
    if (length > 0) {
        answer(connection, NBD_OPT_STRUCTURED_REPLY, NBD_REP_ERR_INVALID, NULL, 0);
        return;
    }
    connection->structured = true;
    answer(connection, NBD_OPT_STRUCTURED_REPLY, NBD_REP_ACK, NULL, 0);
}

/* False when the queries are malformed. */
static bool parse_queries(const uint8_t *data, uint32_t length, bool list, struct nbd_contexts *ret_wanted)
{
    if (length < 4)
        return false;
    uint32_t count = load_be32(data);
    data += 4;
    length -= 4;
    ret_wanted->allocation = ret_wanted->all_changed = list && count == 0;
    for (uint32_t i = 0; i < count; i++) {
        const uint8_t *query;
        uint32_t query_length;
        if (!take_string(&data, &length, &query, &query_length))
            return false;
        nbd_context_query(query, query_length, list, ret_wanted);
    }
    return length == 0;
}

static void answer_context(struct nbd_connection *connection, uint32_t option, uint32_t layers)
{
    uint8_t context[4 + NBD_CONTEXT_NAME];
    uint32_t id = layers ? NBD_CONTEXT_CHANGED : NBD_CONTEXT_ALLOCATION;
    size_t length = nbd_context_name(layers, (char *)context + 4);
    store_be32(context, option == NBD_OPT_LIST_META_CONTEXT ? 0 : id);
    answer(connection, option, NBD_REP_META_CONTEXT, context, 4 + length);
}

/* Is there a layer so far below the top? */
static bool find_point(const struct nbd_connection *connection, uint32_t layers, struct changed_point *ret_point)
{
    return layers && changed_point(connection->thread->export->image, layers, ret_point, NULL) == 0 &&
           ret_point->serial != 0;
}

static void list_contexts(struct nbd_connection *connection, const struct nbd_contexts *wanted)
{
    struct changed_point point;
    if (wanted->allocation)
        answer_context(connection, NBD_OPT_LIST_META_CONTEXT, 0);
    for (uint32_t i = 1; wanted->all_changed && find_point(connection, i, &point); i++)
        answer_context(connection, NBD_OPT_LIST_META_CONTEXT, i);
}

static void set_contexts(struct nbd_connection *connection, const struct nbd_contexts *wanted)
{
    connection->allocation = wanted->allocation;
    if (wanted->allocation)
        answer_context(connection, NBD_OPT_SET_META_CONTEXT, 0);
    connection->changed = find_point(connection, wanted->changed, &connection->point);
    if (connection->changed)
        answer_context(connection, NBD_OPT_SET_META_CONTEXT, wanted->changed);
}

static void option_meta_context(struct nbd_connection *connection, uint32_t option, const uint8_t *data,
                                uint32_t length)
{
    bool list = option == NBD_OPT_LIST_META_CONTEXT;
    struct nbd_contexts wanted = {0};
    const uint8_t *name;
    uint32_t name_length;
    bool named;
    if (!list)
        connection->allocation = connection->changed = false; /* a new choice replaces the last, also when it fails */
    if (!connection->structured || !take_string(&data, &length, &name, &name_length) || name_length > NBD_NAME_MAX ||
        !parse_queries(data, length, list, &wanted)) {
        answer(connection, option, NBD_REP_ERR_INVALID, NULL, 0);
        return;
    }
    if (!find_export(connection, name, name_length, &named)) {
        answer(connection, option, NBD_REP_ERR_UNKNOWN, NULL, 0);
        return;
    }
    if (list) {
        list_contexts(connection, &wanted);
    } else {
        set_contexts(connection, &wanted);
        connection->meta_named = named;
    }
    answer(connection, option, NBD_REP_ACK, NULL, 0);
}

static void option(struct nbd_connection *connection, uint32_t option, const uint8_t *data, uint32_t length)
{
    switch (option) {
    case NBD_OPT_EXPORT_NAME:
        option_export_name(connection, data, length);
        break;
    case NBD_OPT_ABORT:
        answer(connection, option, NBD_REP_ACK, NULL, 0);
        nbd_connection_end(connection);
        break;
    case NBD_OPT_LIST:
        option_list(connection, length);
        break;
    case NBD_OPT_INFO:
    case NBD_OPT_GO:
        option_go(connection, option, data, length);
        break;
    case NBD_OPT_STRUCTURED_REPLY:
        option_structured(connection, length);
        break;
    case NBD_OPT_LIST_META_CONTEXT:
    case NBD_OPT_SET_META_CONTEXT:
        option_meta_context(connection, option, data, length);
        break;
    default:
        answer(connection, option, NBD_REP_ERR_UNSUP, NULL, 0);
        break;
    }
}

/* ---- steps ---- */

static enum nbd_step flags_step(struct nbd_connection *connection)
{
    if (nbd_available(connection) < NBD_CLIENT_FLAGS_SIZE)
        return NBD_STEP_INPUT;
    uint32_t flags = load_be32(connection->buffer + connection->head);
    connection->head += NBD_CLIENT_FLAGS_SIZE;
    if (flags & ~(uint32_t)(NBD_FIXED_NEWSTYLE | NBD_NO_ZEROES)) {
        nbd_connection_break(connection);
        return NBD_STEP_INPUT;
    }
    connection->fixed_newstyle = flags & NBD_FIXED_NEWSTYLE;
    connection->no_zeroes = flags & NBD_NO_ZEROES;
    connection->phase = NBD_PHASE_OPTIONS;
    return NBD_STEP_ON;
}

enum nbd_step nbd_handshake_step(struct nbd_connection *connection)
{
    if (connection->phase == NBD_PHASE_FLAGS)
        return flags_step(connection);
    if (nbd_available(connection) < NBD_OPTION_SIZE)
        return NBD_STEP_INPUT;
    if (connection->output_length > 0)
        return NBD_STEP_BLOCKED;
    const uint8_t *bytes = connection->buffer + connection->head;
    uint32_t kind = load_be32(bytes + 8);
    uint32_t length = load_be32(bytes + 12);
    bool bare = !connection->fixed_newstyle && kind != NBD_OPT_EXPORT_NAME;
    if (load_be64(bytes) != NBD_OPTION_MAGIC || length > NBD_OPTION_DISCARD_MAX || bare ||
        (length > NBD_OPTION_DATA_MAX && kind == NBD_OPT_EXPORT_NAME)) {
        nbd_connection_break(connection);
        return NBD_STEP_INPUT;
    }
    if (length > NBD_OPTION_DATA_MAX) {
        connection->head += NBD_OPTION_SIZE;
        connection->discard = length;
        answer(connection, kind, NBD_REP_ERR_TOO_BIG, NULL, 0);
        return NBD_STEP_ON;
    }
    if (nbd_available(connection) < NBD_OPTION_SIZE + length)
        return NBD_STEP_INPUT;
    connection->head += NBD_OPTION_SIZE + length;
    option(connection, kind, bytes + NBD_OPTION_SIZE, length);
    return NBD_STEP_ON;
}
