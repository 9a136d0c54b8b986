// SPDX-License-Identifier: Apache-2.0
/*
 * Watched descriptors. Engines know a watch by a key (slot and generation), never by its address, so events that were
 * under way when a watch was removed find nobody. Loop's thread only.
 */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "backends/io/engine.h"
#include "common/cleanup.h"

static uint64_t slot_key(const struct io_loop *loop, const struct watch_slot *slot)
{
    return (uint64_t)slot->generation << 32 | (uint64_t)(slot - loop->watches);
}

struct watch_slot *watch_find(struct io_loop *loop, uint64_t key)
{
    uint32_t index = (uint32_t)key;
    if (index >= loop->watches_size)
        return NULL;
    struct watch_slot *slot = &loop->watches[index];
    return slot->watch && slot->generation == (uint32_t)(key >> 32) ? slot : NULL;
}

bool watch_dispatch(struct io_loop *loop, uint64_t key, uint32_t revents)
{
    struct watch_slot *slot = watch_find(loop, key);
    if (!slot)
        return false;
    slot->watch->ready(slot->watch, revents);
    return true;
}

static struct watch_slot *free_slot(struct io_loop *loop)
{
    for (unsigned i = 0; i < loop->watches_size; i++) {
        if (!loop->watches[i].watch)
            return &loop->watches[i];
    }
    unsigned size = loop->watches_size ? loop->watches_size * 2 : 16;
    struct watch_slot *slots = realloc(loop->watches, size * sizeof(*slots));
    if (!slots)
        return NULL;
    for (unsigned i = loop->watches_size; i < size; i++)
        slots[i] = (struct watch_slot){.fd = -1};
    struct watch_slot *slot = &slots[loop->watches_size];
    loop->watches = slots;
    loop->watches_size = size;
    return slot;
}

int io_watch_add(struct io_loop *loop, struct io_watch *watch)
{
    struct watch_slot *slot = free_slot(loop);
    if (!slot)
        return -ENOMEM;
    slot->generation++;
    slot->fd = watch->fd;
    slot->duplicate = false;
    int r = loop->engine->watch(loop, slot->fd, watch->events, slot_key(loop, slot));
    if (r == -EEXIST) {
        /* This engine takes a descriptor once: a second watch of it needs a second number. */
        int fd = dup(watch->fd);
        if (fd < 0)
            return -errno;
        slot->fd = fd;
        slot->duplicate = true;
        r = loop->engine->watch(loop, slot->fd, watch->events, slot_key(loop, slot));
        if (r < 0)
            close_fd(&slot->fd);
    }
    if (r < 0)
        return r;
    slot->watch = watch;
    watch->generation = slot->generation;
    watch->active = true;
    return 0;
}

void io_watch_remove(struct io_loop *loop, struct io_watch *watch)
{
    for (unsigned i = 0; i < loop->watches_size; i++) {
        struct watch_slot *slot = &loop->watches[i];
        if (slot->watch != watch)
            continue;
        loop->engine->unwatch(loop, slot->fd, slot_key(loop, slot));
        if (slot->duplicate)
            close_fd(&slot->fd);
        slot->watch = NULL;
    }
    watch->active = false;
}

void watch_destroy(struct io_loop *loop)
{
    for (unsigned i = 0; i < loop->watches_size; i++) {
        if (loop->watches[i].watch && loop->watches[i].duplicate)
            close_fd(&loop->watches[i].fd);
    }
    free(loop->watches);
    loop->watches = NULL;
    loop->watches_size = 0;
}
