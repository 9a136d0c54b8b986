/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The numbers of the NBD protocol (proto.md of the NetworkBlockDevice project): fixed newstyle handshake, structured
 * replies, metadata contexts. All fields on the wire are big endian.
 */
#ifndef PLATTER_PROVISIONER_BLK_NBD_PROTOCOL_H
#define PLATTER_PROVISIONER_BLK_NBD_PROTOCOL_H

#include <stdint.h>

#define NBD_MAGIC UINT64_C(0x4e42444d41474943)        /* "NBDMAGIC" */
#define NBD_OPTION_MAGIC UINT64_C(0x49484156454f5054) /* "IHAVEOPT" */
#define NBD_OPTION_REPLY_MAGIC UINT64_C(0x0003e889045565a9)
#define NBD_REQUEST_MAGIC UINT32_C(0x25609513)
#define NBD_SIMPLE_REPLY_MAGIC UINT32_C(0x67446698)
#define NBD_CHUNK_MAGIC UINT32_C(0x668e33ef)

/* Sizes of fixed parts in bytes. */
enum {
    NBD_CLIENT_FLAGS_SIZE = 4,
    NBD_OPTION_SIZE = 16,       /* magic, option, length */
    NBD_OPTION_REPLY_SIZE = 20, /* magic, option, type, length */
    NBD_REQUEST_SIZE = 28,      /* magic, flags, type, cookie, offset, length */
    NBD_SIMPLE_REPLY_SIZE = 16, /* magic, error, cookie */
    NBD_CHUNK_SIZE = 20,        /* magic, flags, type, cookie, length */
    NBD_EXTENT_SIZE = 8,        /* length, flags */
};

/* Handshake flags, the server's and the client's alike. */
enum { NBD_FIXED_NEWSTYLE = 1 << 0, NBD_NO_ZEROES = 1 << 1 };

enum nbd_option {
    NBD_OPT_EXPORT_NAME = 1,
    NBD_OPT_ABORT = 2,
    NBD_OPT_LIST = 3,
    NBD_OPT_STARTTLS = 5,
    NBD_OPT_INFO = 6,
    NBD_OPT_GO = 7,
    NBD_OPT_STRUCTURED_REPLY = 8,
    NBD_OPT_LIST_META_CONTEXT = 9,
    NBD_OPT_SET_META_CONTEXT = 10,
};

#define NBD_REP_ERROR UINT32_C(0x80000000)
enum nbd_option_reply {
    NBD_REP_ACK = 1,
    NBD_REP_SERVER = 2,
    NBD_REP_INFO = 3,
    NBD_REP_META_CONTEXT = 4,
};
#define NBD_REP_ERR_UNSUP (NBD_REP_ERROR | 1)
#define NBD_REP_ERR_INVALID (NBD_REP_ERROR | 3)
#define NBD_REP_ERR_UNKNOWN (NBD_REP_ERROR | 6)
#define NBD_REP_ERR_TOO_BIG (NBD_REP_ERROR | 9)

enum nbd_info { NBD_INFO_EXPORT = 0, NBD_INFO_NAME = 1, NBD_INFO_DESCRIPTION = 2, NBD_INFO_BLOCK_SIZE = 3 };

/* Transmission flags. */
enum {
    NBD_HAS_FLAGS = 1 << 0,
    NBD_READ_ONLY = 1 << 1,
    NBD_SEND_FLUSH = 1 << 2,
    NBD_SEND_FUA = 1 << 3,
    NBD_SEND_TRIM = 1 << 5,
    NBD_SEND_WRITE_ZEROES = 1 << 6,
    NBD_SEND_DF = 1 << 7,
    NBD_CAN_MULTI_CONN = 1 << 8,
    NBD_SEND_CACHE = 1 << 10,
    NBD_SEND_FAST_ZERO = 1 << 11,
};

enum nbd_command {
    NBD_CMD_READ = 0,
    NBD_CMD_WRITE = 1,
    NBD_CMD_DISC = 2,
    NBD_CMD_FLUSH = 3,
    NBD_CMD_TRIM = 4,
    NBD_CMD_CACHE = 5,
    NBD_CMD_WRITE_ZEROES = 6,
    NBD_CMD_BLOCK_STATUS = 7,
};

enum {
    NBD_CMD_FUA = 1 << 0,
    NBD_CMD_NO_HOLE = 1 << 1,
    NBD_CMD_DF = 1 << 2,
    NBD_CMD_REQ_ONE = 1 << 3,
    NBD_CMD_FAST_ZERO = 1 << 4,
};

enum { NBD_CHUNK_DONE = 1 << 0 };
enum nbd_chunk {
    NBD_CHUNK_NONE = 0,
    NBD_CHUNK_OFFSET_DATA = 1,
    NBD_CHUNK_BLOCK_STATUS = 5,
    NBD_CHUNK_ERROR = 32769,
};

/* Extent flags of base:allocation, and of our own x-platter:changed-since/LAYERS. */
enum { NBD_STATE_HOLE = 1 << 0, NBD_STATE_ZERO = 1 << 1 };
enum { NBD_CHANGED = 1 << 0, NBD_CHANGED_ZERO = 1 << 1 };

/* The protocol's own error numbers. */
enum nbd_error {
    NBD_EPERM = 1,
    NBD_EIO = 5,
    NBD_ENOMEM = 12,
    NBD_EINVAL = 22,
    NBD_ENOSPC = 28,
    NBD_EOVERFLOW = 75,
    NBD_ENOTSUP = 95,
};

/* Limits: the first two are the protocol's, the others ours. */
#define NBD_NAME_MAX 4096u
#define NBD_PAYLOAD_MAX (UINT32_C(32) << 20)       /* one request's data */
#define NBD_OPTION_DATA_MAX 16384u                 /* longer options are refused ... */
#define NBD_OPTION_DISCARD_MAX (UINT32_C(1) << 20) /* ... and longer than this end the connection */

#endif
