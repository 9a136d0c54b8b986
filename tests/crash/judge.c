// SPDX-License-Identifier: Apache-2.0
#include "judge.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fatal.h"
#include "schedule.h"

#define WRITES 12u

__attribute__((format(printf, 2, 3))) static int bad(struct judge *j, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    (void)vsnprintf(j->message, sizeof(j->message), format, args);
    va_end(args);
    return -1;
}

static void write_file(const char *path, const uint8_t *content, uint64_t length)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    MUST(fd >= 0);
    for (uint64_t at = 0; at < length;) {
        ssize_t n = write(fd, content + at, length - at);
        MUST(n > 0);
        at += (uint64_t)n;
    }
    MUST(close(fd) == 0);
}

void judge_create(struct judge *j, struct load *load, const char *directory)
{
    *j = (struct judge){.load = load};
    j->content = need(malloc(SIZE_MOST));
    j->checker = (struct checker){.below = load->below.map, .below_size = load->variant->below};
    j->checker.content = need(malloc(SIZE_MOST));
    j->checker.content_room = SIZE_MOST;
    memory_create(&j->scratch, FILE_ROOM);
    MUST(io_loop_create(&(struct io_loop_options){.depth = 64}, &j->loop, NULL) == 0);
    if (!directory)
        return;
    (void)snprintf(j->path, sizeof(j->path), "%s/below.raw", directory);
    write_file(j->path, load->below.map, load->variant->below);
    (void)snprintf(j->path, sizeof(j->path), "%s/state.%s", directory, load->variant->format);
}

void judge_destroy(struct judge *j)
{
    checker_destroy(&j->checker);
    free(j->checker.content);
    free(j->content);
    memory_destroy(&j->scratch);
    j->loop = io_loop_destroy(j->loop);
}

/* ---- one state ---- */

static bool is_raw(const struct judge *j)
{
    return strcmp(j->load->variant->format, "raw") == 0;
}

/* Both readers; j->content and *ret_size. */
static int read_state(struct judge *j, struct memory *file, uint64_t *ret_size)
{
    struct image_geometry geometry;
    struct error err = ERROR_INIT;
    uint64_t length = memory_length(file);
    const uint8_t *other = is_raw(j) ? file->map : j->checker.content;
    if (!is_raw(j) && checker_run(&j->checker, file->map, length) < 0)
        return bad(j, "checker: %s", j->checker.error);
    struct image *image = load_open(j->load, file, true, &err);
    if (!image)
        return bad(j, "open: %s", err.message);
    image_geometry(image, &geometry);
    int r = geometry.size > SIZE_MOST ? -EFBIG : load_read(image, j->loop, j->content, geometry.size);
    (void)image_close(image, NULL);
    if (r < 0)
        return bad(j, "read %llu bytes: %s", (unsigned long long)geometry.size, strerror(-r));
    if (geometry.size != (is_raw(j) ? length : j->checker.size))
        return bad(j, "the engine says %llu bytes", (unsigned long long)geometry.size);
    if (memcmp(j->content, other, geometry.size) != 0)
        return bad(j, "the engine reads something else than the checker");
    *ret_size = geometry.size;
    return 0;
}

int judge_state(struct judge *j, struct memory *file, struct oracle *oracle, uint64_t moment)
{
    uint64_t size;
    if (read_state(j, file, &size) < 0)
        return -1;
    if (size < oracle->size_least || size > oracle->size_most)
        return bad(j, "size %llu, not in %llu..%llu", (unsigned long long)size, (unsigned long long)oracle->size_least,
                   (unsigned long long)oracle->size_most);
    if (oracle_judge(oracle, j->content, 0, (uint32_t)(size / GRANULE), moment, NULL) < 0)
        return bad(j, "%s", oracle->message);
    return 0;
}

int judge_by_qemu(struct judge *j, const struct memory *file)
{
    if (!j->path[0] || is_raw(j))
        return 0;
    write_file(j->path, file->map, memory_length(file));
    char command[400], line[200] = "";
    (void)snprintf(command, sizeof(command), "qemu-img check -f qcow2 '%s' 2>&1", j->path);
    FILE *pipe = popen(command, "re");
    MUST(pipe != NULL);
    size_t length = fread(line, 1, sizeof(line) - 1, pipe);
    line[length] = 0;
    char rest[4096];
    while (fread(rest, 1, sizeof(rest), pipe) > 0)
        continue;
    int status = pclose(pipe);
    int code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    return code == 0 || code == 3 ? 0 : bad(j, "qemu-img check (%d): %s", code, line);
}

/* ---- a state as the start of something new ---- */

struct writing {
    struct image_request request; /* first */
    struct iovec iov;
    unsigned *left;
    int *result;
};

static void writing_done(struct image_request *request, int result)
{
    struct writing *writing = (struct writing *)request;
    if (result < 0)
        *writing->result = result;
    --*writing->left;
}

/* Writes over j->content as over the image, which ends flushed by its closing. */
static int write_some(struct judge *j, struct image *image, uint64_t size, struct dice *dice)
{
    struct writing writings[WRITES];
    struct image_queue *queue = NULL;
    unsigned left = WRITES;
    int result = image_queue_create(image, j->loop, &queue, NULL);
    for (unsigned i = 0; result == 0 && i < WRITES; i++) {
        /* Each in its own part of the disk. */
        uint64_t part = size / WRITES / SECTOR * SECTOR,
                 length = (1 + dice_roll(dice, (uint32_t)(part / SECTOR))) * SECTOR;
        struct writing *w = &writings[i];
        *w = (struct writing){.iov = {j->content + i * part, length}, .left = &left, .result = &result};
        w->request = (struct image_request){.op = i % 4 ? IMAGE_WRITE : IMAGE_WRITE_ZEROES,
                                            .offset = i * part,
                                            .length = length,
                                            .iov = &w->iov,
                                            .iovcnt = 1,
                                            .done = writing_done};
        memset(w->iov.iov_base, i % 4 ? 0xd0 + (int)i : 0, length);
        image_submit(queue, &w->request);
    }
    while (left && queue)
        (void)io_loop_turn(j->loop, 1000);
    (void)image_queue_destroy(queue);
    return result;
}

int judge_writing(struct judge *j, const struct memory *file, uint64_t seed)
{
    struct image_geometry geometry;
    struct error err = ERROR_INIT;
    struct dice dice = {.state = seed};
    uint64_t size;
    memory_copy(&j->scratch, file);
    schedule_begin(seed);
    struct image *image = load_open(j->load, &j->scratch, false, &err);
    int r = 0;
    if (image) {
        image_geometry(image, &geometry);
        r = write_some(j, image, geometry.size, &dice);
        int closed = image_close(image, NULL);
        r = r < 0 ? r : closed;
    }
    schedule_end();
    if (!image || r < 0)
        return bad(j, "writing: %s", image ? strerror(-r) : err.message);
    uint8_t *expected = need(malloc(geometry.size));
    memcpy(expected, j->content, geometry.size);
    r = read_state(j, &j->scratch, &size);
    if (r == 0 && memcmp(expected, j->content, geometry.size) != 0)
        r = bad(j, "written after the cut: something else is read");
    free(expected);
    return r;
}

/* ---- repair ---- */

int judge_repair(struct judge *j, const struct memory *file)
{
    struct image_check_options options = {.repair = true};
    struct image_check found = {0};
    struct error err = ERROR_INIT;
    uint64_t leaks = j->checker.leaks, size;
    if (is_raw(j))
        return 0;
    memory_copy(&j->scratch, file);
    struct io_file *opened = memory_open(&j->scratch, true);
    int r = image_check(opened, "qcow2", &options, &found, &err);
    (void)io_file_close(opened);
    if (r < 0)
        return bad(j, "check and repair: %s", err.message);
    if (found.leaks != leaks || found.low_counts || found.copied_flags || found.bad_entries || found.double_use)
        return bad(j, "check finds %llu leaks (there are %llu), %llu low counts, %llu flags, %llu entries, %llu shared",
                   (unsigned long long)found.leaks, (unsigned long long)leaks, (unsigned long long)found.low_counts,
                   (unsigned long long)found.copied_flags, (unsigned long long)found.bad_entries,
                   (unsigned long long)found.double_use);
    uint8_t *expected = need(malloc(j->checker.size));
    memcpy(expected, j->content, j->checker.size);
    r = read_state(j, &j->scratch, &size);
    if (r == 0 && j->checker.leaks)
        r = bad(j, "%llu leaks after the repair of %llu", (unsigned long long)j->checker.leaks,
                (unsigned long long)leaks);
    if (r == 0 && memcmp(expected, j->content, size) != 0)
        r = bad(j, "the repair changed the content");
    free(expected);
    return r;
}

/* ---- after the load ---- */

int judge_closed(struct judge *j)
{
    struct load *load = j->load;
    struct oracle *oracle = load->oracle;
    uint64_t size;
    if (read_state(j, &load->file, &size) < 0)
        return -1;
    bool known = size == load->size;
    for (unsigned i = 0; i < load->resize_count; i++)
        known |= load->resizes[i].result < 0 && load->resizes[i].size == size;
    if (!known)
        return bad(j, "size %llu instead of %llu", (unsigned long long)size, (unsigned long long)load->size);
    if (oracle_judge(oracle, j->content, 0, (uint32_t)(size / GRANULE), UINT64_MAX, NULL) < 0)
        return bad(j, "%s", oracle->message);
    return 0;
}

int judge_clean(struct judge *j)
{
    int r = judge_closed(j);
    if (r == 0 && !is_raw(j) && j->checker.leaks)
        r = bad(j, "%llu clusters leaked", (unsigned long long)j->checker.leaks);
    return r;
}
