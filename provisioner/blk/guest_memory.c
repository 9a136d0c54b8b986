// SPDX-License-Identifier: Apache-2.0
// The regions of a front-end's memory. At most eight, so a linear search beats anything cleverer.
#include "provisioner/blk/guest_memory.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/checked.h"

// What must be mapped so that the region's bytes are reachable: from the start of the file, since the offset need
// not keep the page size of a huge-page file system, and in units of that page size, or munmap would refuse.
static int map_length(int fd, uint64_t offset, uint64_t size, size_t *ret_length)
{
    uint64_t end;
    struct stat st;
    if (!size || !checked_add(offset, size, &end) || end > INT64_MAX / 2)
        return -EINVAL;
    if (fstat(fd, &st) < 0)
        return -errno;
    if (!S_ISREG(st.st_mode) && !S_ISCHR(st.st_mode))
        return -EINVAL;
    if (S_ISREG(st.st_mode) && end > (uint64_t)st.st_size)
        return -EINVAL;
    uint64_t unit = is_power_of_two((uint64_t)st.st_blksize) ? (uint64_t)st.st_blksize : 4096;
    *ret_length = (size_t)align_up(end, unit);
    return 0;
}

static int region_map(struct guest_region *region, const struct guest_region_request *request, int fd)
{
    uint64_t end;
    if (!checked_add(request->guest, request->size, &end) || !checked_add(request->user, request->size, &end))
        return -EINVAL;
    size_t length = 0;
    int r = map_length(fd, request->offset, request->size, &length);
    if (r < 0)
        return r;
    void *map = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    if (map == MAP_FAILED)
        return -errno;
    // A core dump of ours is no place for the guest's memory. Not every mapping takes the advice.
    (void)madvise(map, length, MADV_DONTDUMP);
    *region = (struct guest_region){
        .guest = request->guest,
        .size = request->size,
        .user = request->user,
        .host = (uint8_t *)map + request->offset,
        .map = map,
        .map_size = length,
    };
    return 0;
}

static bool overlaps_earlier(const struct guest_region_request *regions, unsigned index)
{
    const struct guest_region_request *a = &regions[index];
    for (unsigned i = 0; i < index; i++)
        if (ranges_overlap(a->guest, a->size, regions[i].guest, regions[i].size))
            return true;
    return false;
}

int guest_memory_load(struct guest_memory *memory, const struct guest_region_request *regions, const int *fds,
                      unsigned count)
{
    guest_memory_clear(memory);
    if (count > GUEST_MEMORY_REGIONS_MAX)
        return -EINVAL;
    for (unsigned i = 0; i < count; i++) {
        int r = region_map(&memory->regions[i], &regions[i], fds[i]);
        if (r == 0) {
            memory->count++;
            if (overlaps_earlier(regions, i))
                r = -EINVAL;
        }
        if (r < 0) {
            guest_memory_clear(memory);
            return r;
        }
    }
    return 0;
}

void guest_memory_clear(struct guest_memory *memory)
{
    for (unsigned i = 0; i < memory->count; i++)
        (void)munmap(memory->regions[i].map, memory->regions[i].map_size);
    memset(memory, 0, sizeof(*memory));
}

void *guest_memory_at(const struct guest_memory *memory, uint64_t guest, uint64_t length)
{
    for (unsigned i = 0; i < memory->count; i++) {
        const struct guest_region *region = &memory->regions[i];
        if (guest >= region->guest && range_within(guest - region->guest, length, region->size))
            return region->host + (guest - region->guest);
    }
    return NULL;
}

void *guest_memory_user(const struct guest_memory *memory, uint64_t user, uint64_t length)
{
    for (unsigned i = 0; i < memory->count; i++) {
        const struct guest_region *region = &memory->regions[i];
        if (user >= region->user && range_within(user - region->user, length, region->size))
            return region->host + (user - region->user);
    }
    return NULL;
}

static const struct guest_region *region_of(const struct guest_memory *memory, uint64_t guest)
{
    for (unsigned i = 0; i < memory->count; i++) {
        const struct guest_region *region = &memory->regions[i];
        if (guest >= region->guest && guest - region->guest < region->size)
            return region;
    }
    return NULL;
}

int guest_memory_iov(const struct guest_memory *memory, uint64_t guest, uint64_t length, struct iovec *iov,
                     unsigned max)
{
    unsigned count = 0;
    while (length) {
        const struct guest_region *region = region_of(memory, guest);
        if (!region)
            return -EFAULT;
        if (count == max)
            return -E2BIG;
        uint64_t skip = guest - region->guest;
        uint64_t part = MIN(length, region->size - skip);
        iov[count].iov_base = region->host + skip;
        iov[count].iov_len = (size_t)part;
        count++;
        length -= part;
        if (length && !checked_add(guest, part, &guest))
            return -EFAULT;
    }
    return (int)count;
}
