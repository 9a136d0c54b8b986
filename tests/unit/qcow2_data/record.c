// SPDX-License-Identifier: Apache-2.0
#include "record.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fixture.h"

#define SECTOR 512u

uint64_t recorder_now(struct recorder *recorder)
{
    return atomic_fetch_add(&recorder->clock, 1);
}

static int record_before(struct io_seam *seam, const struct io_seam_event *event)
{
    struct recorder *r = (struct recorder *)seam;
    if (event->kind == SEAM_READ)
        return 0;
    (void)pthread_mutex_lock(&r->lock);
    if (r->count == r->room) {
        r->room = r->room ? 2 * r->room : 256;
        r->entries = realloc(r->entries, r->room * sizeof(*r->entries));
    }
    struct record_entry *e = &r->entries[r->count++];
    *e = (struct record_entry){.kind = event->kind, .offset = event->offset, .length = event->length};
    e->blocking = event->blocking;
    e->thread = pthread_self();
    e->issued = recorder_now(r);
    if (event->kind == SEAM_WRITE) {
        uint8_t *to = e->data = malloc(event->length);
        uint64_t left = event->length;
        for (unsigned i = 0; i < event->iovcnt && left; i++) {
            size_t part = event->iov[i].iov_len < left ? event->iov[i].iov_len : left;
            memcpy(to, event->iov[i].iov_base, part);
            to += part;
            left -= part;
        }
    }
    (void)pthread_mutex_unlock(&r->lock);
    return 0;
}

static int record_after(struct io_seam *seam, const struct io_seam_event *event, int result)
{
    struct recorder *r = (struct recorder *)seam;
    if (event->kind == SEAM_READ)
        return result;
    (void)pthread_mutex_lock(&r->lock);
    /* Blocking ones by their thread. Of two equal ones on a loop the later is meant: for a flush that is never too strict. */
    for (size_t i = r->count; i-- > 0;) {
        struct record_entry *e = &r->entries[i];
        if (e->done || e->kind != event->kind || e->offset != event->offset || e->length != event->length ||
            e->blocking != event->blocking || (e->blocking && !pthread_equal(e->thread, pthread_self())))
            continue;
        e->failed = result < 0;
        e->done = recorder_now(r);
        break;
    }
    (void)pthread_mutex_unlock(&r->lock);
    return result;
}

void recorder_init(struct recorder *r, const char *path)
{
    struct stat st;
    *r = (struct recorder){.seam = {.before = record_before, .after = record_after}};
    (void)pthread_mutex_init(&r->lock, NULL);
    atomic_store(&r->clock, 1);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(fstat(fd, &st), 0);
    r->initial_length = (uint64_t)st.st_size;
    r->initial = malloc(r->initial_length);
    assert_int_equal(pread(fd, r->initial, r->initial_length, 0), r->initial_length);
    (void)close(fd);
}

void recorder_done(struct recorder *r)
{
    for (size_t i = 0; i < r->count; i++)
        free(r->entries[i].data);
    free(r->entries);
    free(r->initial);
    (void)pthread_mutex_destroy(&r->lock);
}

/* ---- the cut ---- */

/* Whatever was done before this moment is durable after a cut at `moment`. */
static uint64_t durable_before(const struct recorder *r, uint64_t moment)
{
    uint64_t durable = 0;
    for (size_t i = 0; i < r->count; i++) {
        const struct record_entry *e = &r->entries[i];
        if (e->kind == SEAM_FLUSH && e->done && !e->failed && e->done <= moment && e->issued > durable)
            durable = e->issued;
    }
    return durable;
}

static void apply(const struct record_entry *e, int fd, enum survive survive, unsigned *seed)
{
    static const uint8_t zeros[SECTOR];
    struct stat st;
    if (e->kind == SEAM_TRUNCATE) {
        assert_int_equal(ftruncate(fd, (off_t)e->offset), 0);
        return;
    }
    assert_int_equal(fstat(fd, &st), 0);
    if (e->kind == SEAM_ALLOCATE) {
        if (e->offset + e->length > (uint64_t)st.st_size)
            assert_int_equal(ftruncate(fd, (off_t)(e->offset + e->length)), 0);
        return;
    }
    for (uint64_t at = 0; at < e->length; at += SECTOR) {
        size_t part = e->length - at < SECTOR ? e->length - at : SECTOR;
        if (survive == SURVIVE_TORN && rand_r(seed) % 2)
            continue;
        /* Zeroing does not move the end. */
        if (!e->data && e->offset + at + part > (uint64_t)st.st_size)
            break;
        assert_int_equal(pwrite(fd, e->data ? e->data + at : zeros, part, (off_t)(e->offset + at)), part);
    }
}

void recorder_cut(struct recorder *r, uint64_t moment, enum survive survive, unsigned *seed, const char *path)
{
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, r->initial, r->initial_length, 0), r->initial_length);
    (void)pthread_mutex_lock(&r->lock);
    uint64_t durable = durable_before(r, moment);
    for (size_t i = 0; i < r->count && r->entries[i].issued <= moment; i++) {
        const struct record_entry *e = &r->entries[i];
        if (e->kind == SEAM_FLUSH || e->failed)
            continue;
        if (e->done && e->done < durable)
            apply(e, fd, SURVIVE_ALL, seed);
        else if (survive == SURVIVE_ALL || (survive != SURVIVE_NONE && rand_r(seed) % 2))
            apply(e, fd, survive, seed);
    }
    (void)pthread_mutex_unlock(&r->lock);
    (void)close(fd);
}
