/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From guest offset to host: decoding L2 entries, standard and extended, and finding runs of equal state.
 * Everything read from disk is checked here, when it is used ("L2 table entry", "Extended L2 Entries").
 */
#ifndef PLATTER_FORMAT_QCOW2_MAP_H
#define PLATTER_FORMAT_QCOW2_MAP_H

#include <stdbool.h>
#include <stdint.h>

struct chunk;
struct qcow2;
struct slice;

/* An L2 entry in one form for all: without extended L2 a cluster has one subcluster. */
struct entry {
    uint64_t host;       /* bytes; 0 = no cluster. Compressed: where the data starts, any alignment */
    uint32_t compressed; /* bytes on disk at most, 0 = not compressed */
    bool copied;
    uint32_t data; /* a bit for each subcluster that is read from `host` */
    uint32_t zero; /* a bit for each that reads as zeros; in neither: from below */
};

/* 0 or -EIO when the words are no valid entry. `bitmap` is 0 without extended L2. */
int entry_decode(const struct qcow2 *q, uint64_t word, uint64_t bitmap, struct entry *ret_entry);
void entry_encode(const struct qcow2 *q, const struct entry *entry, uint64_t ret_words[2]);

/* Entry `index` of a slice: under the lock, or within a check of the slice's sequence. */
int entry_load(const struct qcow2 *q, const struct slice *slice, uint32_t index, struct entry *ret_entry);
/* Locked. */
void entry_store(struct qcow2 *q, struct slice *slice, uint32_t index, const struct entry *entry);

enum map_kind { MAP_DATA, MAP_ZERO, MAP_BELOW, MAP_COMPRESSED };

enum {
    MAP_COPIED = 1 << 0,   /* a run ends where the copied flag changes */
    MAP_ANYWHERE = 1 << 1, /* runs need not be contiguous on the host: for status */
};

struct mapping {
    enum map_kind kind;
    bool copied;
    uint64_t host;   /* bytes: DATA: place of the offset asked for; COMPRESSED: start of the compressed data */
    uint64_t length; /* bytes from the offset asked for */
    uint32_t compressed;
};

/* The run at guest `offset`, at most `length` bytes. No lock. -EAGAIN: its slice is not cached; -EIO: corrupt. */
int map_lookup(const struct qcow2 *q, uint64_t offset, uint64_t length, unsigned flags, struct mapping *ret_mapping);
/* The same for a chunk's step, which may be parked for the slice: 0, CHUNK_PARKED or -errno. Takes the lock on a miss. */
int map_wait(struct chunk *chunk, uint64_t offset, uint64_t length, unsigned flags, struct mapping *ret_mapping);

/* True when what lies below guest `offset` (and all beyond) reads as zeros. */
bool below_empty(const struct qcow2 *q, uint64_t offset);

/* Slice number, and the entry's index in it. */
uint64_t slice_key_of(const struct qcow2 *q, uint64_t offset);
uint32_t slice_index_of(const struct qcow2 *q, uint64_t offset);

/* The bits of the subclusters that guest bytes [offset, offset + length) touch, all in one cluster. */
uint32_t sub_range(const struct qcow2 *q, uint64_t offset, uint64_t length);

#endif
