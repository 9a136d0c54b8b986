// SPDX-License-Identifier: Apache-2.0
/* Helpers on vectors of memory. Pure; any thread. */
#include <string.h>

#include "backends/format/layer.h"
#include "common/checked.h"

/* Calls with each run of memory in [skip, skip + length) of an iovec. */
struct iov_cursor {
    const struct iovec *iov;
    unsigned left;
    uint64_t skip;
    uint64_t length;
};

static bool cursor_next(struct iov_cursor *c, uint8_t **ret_memory, size_t *ret_length)
{
    while (c->left && c->length) {
        uint8_t *base = c->iov->iov_base;
        size_t len = c->iov->iov_len;
        c->iov++;
        c->left--;
        if (c->skip >= len) {
            c->skip -= len;
            continue;
        }
        *ret_memory = base + c->skip;
        *ret_length = MIN(len - c->skip, c->length);
        c->skip = 0;
        c->length -= *ret_length;
        return true;
    }
    return false;
}

unsigned iov_slice(const struct iovec *iov, unsigned iovcnt, uint64_t skip, uint64_t length, struct iovec *ret,
                   unsigned max, uint64_t *ret_covered)
{
    struct iov_cursor cursor = {iov, iovcnt, skip, length};
    unsigned count = 0;
    uint64_t covered = 0;
    uint8_t *memory;
    size_t part;
    while (count < max && cursor_next(&cursor, &memory, &part)) {
        ret[count++] = (struct iovec){memory, part};
        covered += part;
    }
    *ret_covered = covered;
    return count;
}

void iov_fill_zero(const struct iovec *iov, unsigned iovcnt, uint64_t skip, uint64_t length)
{
    struct iov_cursor cursor = {iov, iovcnt, skip, length};
    uint8_t *memory;
    size_t part;
    while (cursor_next(&cursor, &memory, &part))
        memset(memory, 0, part);
}

void iov_from_buffer(const struct iovec *iov, unsigned iovcnt, uint64_t skip, const void *buffer, uint64_t length)
{
    struct iov_cursor cursor = {iov, iovcnt, skip, length};
    const uint8_t *from = buffer;
    uint8_t *memory;
    size_t part;
    while (cursor_next(&cursor, &memory, &part)) {
        memcpy(memory, from, part);
        from += part;
    }
}

void iov_to_buffer(const struct iovec *iov, unsigned iovcnt, uint64_t skip, void *buffer, uint64_t length)
{
    struct iov_cursor cursor = {iov, iovcnt, skip, length};
    uint8_t *to = buffer;
    uint8_t *memory;
    size_t part;
    while (cursor_next(&cursor, &memory, &part)) {
        memcpy(to, memory, part);
        to += part;
    }
}
