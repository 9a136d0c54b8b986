/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One NBD connection: a client, its requests in flight and their memory. Everything runs on one I/O thread.
 *
 * Receiving (nbd_receive.c): one receive is always under way, into a buffer from which many requests are parsed at
 * once; when a write's data is still to come it is received straight into the request's own memory. What the parser
 * finds goes to the handshake (nbd_handshake.c) or to nbd_request.c, which makes image requests of it.
 *
 * Slots: a client's request occupies a slot from its header to its last answer byte. One whose data exceeds
 * NBD_PIECE_MAX is split: its own slot then only keeps account, and each piece has a slot and memory of its own. When
 * slots or memory are out, the connection reads no more (`blocked`) until some come back.
 *
 * Answers (nbd_reply.c): those that became ready during a turn leave in one sendmsg at its end, read data from
 * where it was read into. Memory is bounded: 4 MiB of data, NBD_BUFFER and the slots for each connection.
 */
#ifndef PLATTER_PROVISIONER_BLK_NBD_CONNECTION_H
#define PLATTER_PROVISIONER_BLK_NBD_CONNECTION_H

#include <sys/socket.h>

#include "backends/format/changed.h"
#include "backends/format/image.h"
#include "backends/io/io.h"
#include "provisioner/blk/nbd_export.h"
#include "provisioner/blk/nbd_memory.h"
#include "provisioner/blk/nbd_protocol.h"

#define NBD_SLOTS 128u
#define NBD_BUFFER (UINT32_C(128) << 10) /* bytes received ahead of parsing */
#define NBD_OUTPUT 16384u                /* bytes of handshake answers; more than one option's */
#define NBD_PIECE_MAX (UINT32_C(1) << 20)
#define NBD_SEND_IOV 257u /* two for each slot, one for the handshake */

struct nbd_connection;

enum nbd_context { NBD_CONTEXT_ALLOCATION = 1, NBD_CONTEXT_CHANGED = 2 }; /* as clients are told */

struct nbd_slot {
    struct image_request image;
    struct image_status status;
    struct iovec iov; /* the piece's memory; iov_base NULL = none */
    struct nbd_connection *connection;
    struct nbd_slot *next;    /* in the free list or the answers */
    struct nbd_slot *command; /* the client's request: itself unless this is a piece of a split one */
    uint64_t cookie;          /* as it came */
    uint64_t offset;          /* of the request, or the piece */
    uint32_t length;
    uint32_t layers;          /* block status: as deep as was asked */
    enum nbd_context context; /* block status: in whose terms */
    struct nbd_slot *also;    /* block status: answers for another context, after this one */
    uint32_t position;        /* commands: bytes handed to the image */
    uint32_t pending;         /* commands: pieces in flight */
    uint32_t filled;          /* writes: bytes of the piece received */
    uint32_t memory;          /* bytes taken at iov_base */
    uint16_t type;            /* enum nbd_command */
    uint16_t flags;
    int error;            /* commands: the first -errno of a piece */
    uint32_t head_length; /* the answer: head, then body bytes from iov_base */
    uint32_t body_length;
    uint8_t head[36];
};

enum nbd_phase { NBD_PHASE_FLAGS, NBD_PHASE_OPTIONS, NBD_PHASE_TRANSMISSION };

/* What a step of the parser came to. */
enum nbd_step {
    NBD_STEP_ON,      /* go on with the next */
    NBD_STEP_INPUT,   /* more bytes must come */
    NBD_STEP_BLOCKED, /* slots, memory or room for answers must come back first */
};

struct nbd_connection {
    struct nbd_thread *thread;
    struct nbd_connection *next;       /* of the thread */
    struct nbd_connection *next_dirty; /* in the thread's list of those that have to send */
    struct io_task start;              /* brings it to its thread */
    int fd;

    enum nbd_phase phase;
    bool fixed_newstyle, no_zeroes, structured;
    bool allocation; /* base:allocation was negotiated */
    bool changed;    /* what changed since ... */
    struct changed_point point;
    bool meta_named; /* both for the name (else for "") */
    uint64_t size;   /* bytes: what this client was told */
    struct io_timer handshake;

    struct io_timer hangup; /* while nothing is read: has the client gone? */
    bool gone;              /* it has: its requests wait for no space */

    bool ending;    /* nothing more is read */
    bool broken;    /* and nothing more is sent */
    bool advancing; /* the parser is on the stack */
    bool blocked;
    bool dirty;
    uint32_t busy; /* image requests in flight */

    /* Receiving. */
    struct io_op receive;
    struct msghdr receive_message;
    struct iovec receive_iov[2];
    bool receiving;
    uint32_t head, tail; /* the unparsed bytes of buffer */
    uint32_t discard;    /* bytes to throw away first */
    uint8_t *buffer;
    struct nbd_slot *current; /* request whose data is coming (write) or that is being split (read) */
    struct nbd_slot *piece;   /* of a write: being filled */
    bool serial;              /* the current read goes out piece after piece in order (simple replies) */

    /* Sending. */
    struct io_op send;
    struct msghdr send_message;
    bool sending;
    uint32_t output_sent, output_length;
    struct nbd_slot *replies; /* FIFO */
    struct nbd_slot **replies_tail;
    uint32_t reply_sent; /* bytes of the first answer that are gone */
    struct iovec send_iov[NBD_SEND_IOV];
    uint8_t output[NBD_OUTPUT];

    struct nbd_memory memory;
    struct nbd_slot *free;
    struct nbd_slot slots[NBD_SLOTS];
};

/* ---- nbd_connection.c ---- */

/* Any thread: make a connection for `fd` (taken over also on failure) and let `thread` serve it. */
int nbd_connection_create(struct nbd_thread *thread, int fd);
/* No more requests are taken; those in flight are finished and answered, then the connection goes away. */
void nbd_connection_end(struct nbd_connection *connection);
/* The same without answers: the client is gone, or breaks the protocol. */
void nbd_connection_break(struct nbd_connection *connection);
/* It reads no more for want of slots or memory: see from time to time whether the client is still there. */
void nbd_connection_blocked(struct nbd_connection *connection);
/* Destroy it if it has ended and nothing holds it any more. Afterwards it may be gone. */
void nbd_connection_check(struct nbd_connection *connection);

struct nbd_slot *nbd_slot_take(struct nbd_connection *connection); /* NULL = none free */
void nbd_slot_give(struct nbd_slot *slot);                         /* with its memory */
bool nbd_slot_memory(struct nbd_slot *slot, uint32_t length);      /* false = none free */

/* ---- nbd_receive.c ---- */

/* Parse what has come, then receive more, unless blocked or ending. The connection may be gone afterwards. */
void nbd_receive_advance(struct nbd_connection *connection);
/* Something came back: go on if the parser waited for it. The connection may be gone afterwards. */
void nbd_receive_resume(struct nbd_connection *connection);

static inline uint32_t nbd_available(const struct nbd_connection *connection)
{
    return connection->tail - connection->head;
}

/* ---- nbd_handshake.c, nbd_request.c: steps of the parser ---- */

enum nbd_step nbd_handshake_step(struct nbd_connection *connection);
/* Queue the server's first words. */
void nbd_handshake_greet(struct nbd_connection *connection);
enum nbd_step nbd_request_step(struct nbd_connection *connection);

/* ---- nbd_context.c ---- */

#define NBD_CONTEXT_NAME 40u

/* What the queries of a client ask for. */
struct nbd_contexts {
    bool allocation;
    bool all_changed;
    uint32_t changed; /* layers; 0 = not */
};
/* The name of base:allocation (layers 0), or of what changed since the layer so far below the top; its length. */
size_t nbd_context_name(uint32_t layers, char name[NBD_CONTEXT_NAME]);
void nbd_context_query(const uint8_t *query, uint32_t length, bool list, struct nbd_contexts *contexts);
/* Turn a slot's extents into the protocol's, in place (theirs are shorter), equal neighbours merged; how many. */
uint32_t nbd_context_extents(const struct nbd_slot *slot);

/* ---- nbd_reply.c ---- */

/* Queue bytes of the handshake; the caller has made sure that they fit. */
void nbd_reply_output(struct nbd_connection *connection, const void *bytes, size_t length);
/* Queue the answer of a slot, which goes back when it was sent: a simple reply without data, or with the slot's `body`
 * bytes. `error` is 0 or -errno. */
void nbd_reply_simple(struct nbd_slot *slot, int error, uint32_t body);
/* Data without a header: the later pieces of a simple reply. */
void nbd_reply_data(struct nbd_slot *slot, uint32_t body);
/* A chunk of a structured reply with `body` bytes behind `extra` bytes in the header. */
void nbd_reply_chunk(struct nbd_slot *slot, enum nbd_chunk type, bool last, const void *extra, uint32_t extra_length,
                     uint32_t body);
void nbd_reply_chunk_error(struct nbd_slot *slot, int error, bool last);
/* Send what is queued, unless a send is under way. */
void nbd_reply_send(struct nbd_connection *connection);
bool nbd_reply_pending(const struct nbd_connection *connection);

#endif
