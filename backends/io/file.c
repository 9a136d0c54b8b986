// SPDX-License-Identifier: Apache-2.0
/*
 * Files: taking a descriptor over, what direct I/O on it needs, its index among registered files. An io_file does not
 * change after it was opened, except by io_file_use_page_cache.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backends/io/engine.h"
#include "common/checked.h"
#include "common/cleanup.h"

#define GRANULARITY_DEFAULT 4096u
#define ALIGNMENT_GUESS 4096u /* where the file system does not say: right for every disk */

/* ---- indexes of registered files, process-wide ---- */

static _Atomic uint64_t used_indexes;

static uint32_t index_take(void)
{
    uint64_t used = atomic_load(&used_indexes);
    while (~used) {
        uint32_t index = (uint32_t)__builtin_ctzll(~used);
        if (atomic_compare_exchange_weak(&used_indexes, &used, used | UINT64_C(1) << index))
            return index;
    }
    return UINT32_MAX;
}

static void index_give(uint32_t index)
{
    if (index < IO_REGISTERED_FILES)
        atomic_fetch_and(&used_indexes, ~(UINT64_C(1) << index));
}

/* ---- direct I/O ---- */

static int set_direct(int fd, bool on)
{
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0)
        return -errno;
    int wanted = on ? flags | O_DIRECT : flags & ~O_DIRECT;
    if (wanted != flags && fcntl(fd, F_SETFL, wanted) < 0)
        return -errno;
    return 0;
}

/* Where nobody says what the alignments are: try the guess. */
static bool probe_direct(int fd)
{
    void *buffer = NULL;
    if (posix_memalign(&buffer, ALIGNMENT_GUESS, ALIGNMENT_GUESS) != 0)
        return false;
    ssize_t n = pread(fd, buffer, ALIGNMENT_GUESS, 0);
    free(buffer);
    return n >= 0;
}

/* Alignments of direct I/O on `file`; false when it has none. */
static bool direct_alignments(struct io_file *file)
{
    struct statx stx = {0};
    int sector = 0;
    if (statx(file->fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &stx) == 0 && (stx.stx_mask & STATX_DIOALIGN)) {
        if (!is_power_of_two(stx.stx_dio_mem_align) || !is_power_of_two(stx.stx_dio_offset_align))
            return false;
        file->memory_align = stx.stx_dio_mem_align;
        file->offset_align = stx.stx_dio_offset_align;
        return true;
    }
    if (file->block_device && ioctl(file->fd, BLKSSZGET, &sector) == 0 && sector > 0 &&
        is_power_of_two((uint64_t)sector)) {
        file->memory_align = file->offset_align = (uint32_t)sector;
        return true;
    }
    file->memory_align = file->offset_align = ALIGNMENT_GUESS;
    return true;
}

static void choose_direct(struct io_file *file, const struct io_file_options *options)
{
    uint32_t granularity = options->granularity ? options->granularity : GRANULARITY_DEFAULT;
    file->direct = !options->buffered && direct_alignments(file) && file->offset_align <= granularity &&
                   set_direct(file->fd, true) == 0 && probe_direct(file->fd);
    if (file->direct)
        return;
    (void)set_direct(file->fd, false);
    file->memory_align = file->offset_align = 1;
}

int io_file_use_page_cache(struct io_file *file)
{
    if (!file->direct)
        return 0;
    int r = set_direct(file->fd, false);
    if (r < 0)
        return r;
    file->direct = false;
    file->memory_align = file->offset_align = 1;
    return 0;
}

void *file_buffer(const struct io_file *file, size_t size)
{
    void *buffer = NULL;
    return posix_memalign(&buffer, MAX(file->memory_align, ALIGNMENT_GUESS), size) == 0 ? buffer : NULL;
}

/* ---- open, close ---- */

static int check_descriptor(struct io_file *file, struct error *err)
{
    struct stat st;
    if (fstat(file->fd, &st) < 0)
        return error_sys(err, errno, "stat an image file");
    if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
        return error_set(err, EINVAL, "an image must be a regular file or a block device");
    file->block_device = S_ISBLK(st.st_mode);
    int flags = fcntl(file->fd, F_GETFL);
    if (flags < 0)
        return error_sys(err, errno, "look at an image file");
    int mode = flags & O_ACCMODE;
    if (mode == O_WRONLY || (file->writable && mode != O_RDWR))
        return error_set(err, EACCES, "the image file is open for %s only", mode == O_WRONLY ? "writing" : "reading");
    return 0;
}

int io_file_open(int fd, const struct io_file_options *options, struct io_file **ret_file, struct error *err)
{
    struct io_file *file = calloc(1, sizeof(*file));
    if (!file) {
        cleanup_close(&fd);
        return error_sys(err, ENOMEM, "open an image file");
    }
    file->fd = fd;
    file->writable = options->writable;
    file->index = UINT32_MAX;
    int r = check_descriptor(file, err);
    if (r < 0) {
        (void)io_file_close(file);
        return r;
    }
    choose_direct(file, options);
    file->index = index_take();
    *ret_file = file;
    return 0;
}

struct io_file *io_file_close(struct io_file *file)
{
    if (!file)
        return NULL;
    index_give(file->index);
    cleanup_close(&file->fd);
    free(file);
    return NULL;
}

/* ---- what a file says of itself ---- */

int io_file_length(struct io_file *file, uint64_t *ret_length)
{
    struct stat st;
    uint64_t bytes = 0;
    if (file->block_device) {
        if (ioctl(file->fd, BLKGETSIZE64, &bytes) < 0)
            return -errno;
        *ret_length = bytes;
        return 0;
    }
    if (fstat(file->fd, &st) < 0)
        return -errno;
    *ret_length = (uint64_t)st.st_size;
    return 0;
}

int io_file_extent(struct io_file *file, uint64_t offset, bool *ret_data, uint64_t *ret_end)
{
    if (offset > INT64_MAX)
        return -EINVAL;
    off_t data = lseek(file->fd, (off_t)offset, SEEK_DATA);
    if (data < 0 && errno != ENXIO) {
        /* A block device, or a file system without holes: all of it is data. */
        *ret_data = true;
        *ret_end = UINT64_MAX;
        return 0;
    }
    if (data < 0 || (uint64_t)data > offset) {
        *ret_data = false;
        *ret_end = data < 0 ? UINT64_MAX : (uint64_t)data;
        return 0;
    }
    off_t hole = lseek(file->fd, (off_t)offset, SEEK_HOLE);
    *ret_data = true;
    *ret_end = hole > (off_t)offset ? (uint64_t)hole : UINT64_MAX;
    return 0;
}
