/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The seam: what stands between an io_file and the kernel in tests. Production files have file->seam == NULL and
 * pay one predicted branch for it.
 */
#ifndef PLATTER_BACKENDS_IO_SEAM_H
#define PLATTER_BACKENDS_IO_SEAM_H

#include "backends/io/io.h"

enum io_seam_kind { SEAM_READ, SEAM_WRITE, SEAM_FLUSH, SEAM_DISCARD, SEAM_ZERO, SEAM_ALLOCATE, SEAM_TRUNCATE };

/* One operation as the seam sees it. Buffers of writes may be read during the calls only. */
struct io_seam_event {
    enum io_seam_kind kind;
    uint64_t offset;
    uint64_t length;
    const struct iovec *iov; /* reads and writes */
    unsigned iovcnt;
    bool blocking; /* came by an io_file_* call, not through a loop */
};

struct io_seam {
    /* Before the operation reaches the kernel, on the thread that issues it. Returns 0 to let it pass, -errno to
     * fail it unseen by the kernel, or a positive number of bytes to let only so much of a transfer pass (a
     * short transfer, rounded up to the file's alignment; before() is asked again about the rest). NULL = pass. */
    int (*before)(struct io_seam *seam, const struct io_seam_event *event);
    /* After it completed with `result` (0 or -errno), before the issuer learns of it; may replace the result.
     * For loop operations on the loop's thread. NULL = keep. */
    int (*after)(struct io_seam *seam, const struct io_seam_event *event, int result);
    /* Called when an operation through a loop is about to be submitted: true = the seam keeps it and will hand it
     * on later with io_seam_release (delays and chosen orders). NULL = never. */
    bool (*hold)(struct io_seam *seam, struct io_loop *loop, struct io_op *op);
};

/* Loop's thread: submit an operation that hold() kept. */
void io_seam_release(struct io_loop *loop, struct io_op *op);

/* Loop's thread: end an operation that hold() kept and that the seam did itself, from memory, without the kernel. Its
 * done() comes with the loop's next turn. */
void io_seam_finish(struct io_loop *loop, struct io_op *op, int result);

/* Put `seam` (NULL = none) before `file`, while no operation is in flight on it. */
void io_file_set_seam(struct io_file *file, struct io_seam *seam);

#endif
