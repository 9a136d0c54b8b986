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
#include "workers.h"

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

static void checker_create(struct checker *c, const uint8_t *below, uint64_t below_size)
{
    *c = (struct checker){.below = below, .below_size = below_size, .content_room = SIZE_MOST};
    c->content = need(calloc(1, SIZE_MOST));
}

void judge_create(struct judge *j, struct load *load, const char *directory)
{
    *j = (struct judge){.load = load};
    j->content = need(malloc(SIZE_MOST));
    checker_create(&j->checker, load->below.map, load->variant->below);
    checker_create(&j->upper_checker, j->checker.content, 0);
    memory_create(&j->scratch, FILE_ROOM);
    MUST(io_loop_create(&(struct io_loop_options){.depth = 64}, &j->loop, NULL) == 0);
    if (!directory || !setting("PLATTER_CRASH_QEMU", 1))
        return;
    (void)snprintf(j->path, sizeof(j->path), "%s/below.raw", directory);
    write_file(j->path, load->below.map, load->variant->below);
    (void)snprintf(j->path, sizeof(j->path), "%s", directory);
}

void judge_destroy(struct judge *j)
{
    free(j->checker.content);
    free(j->upper_checker.content);
    checker_destroy(&j->checker);
    checker_destroy(&j->upper_checker);
    free(j->content);
    memory_destroy(&j->scratch);
    j->loop = io_loop_destroy(j->loop);
}

/* ---- one state ---- */

static bool is_raw(const struct judge *j)
{
    return strcmp(j->load->variant->format, "raw") == 0;
}

/* What the checker reads in all layers of `state`. NULL with j->message. */
static const uint8_t *check_layers(struct judge *j, const struct state *state, uint64_t *ret_size)
{
    uint64_t length = memory_length(state->file);
    if (!is_raw(j) && checker_run(&j->checker, state->file->map, length) < 0) {
        (void)bad(j, "checker: %s", j->checker.error);
        return NULL;
    }
    const uint8_t *content = is_raw(j) ? state->file->map : j->checker.content;
    *ret_size = is_raw(j) ? length : j->checker.size;
    if (!state->upper)
        return content;
    j->upper_checker.below = content;
    j->upper_checker.below_size = *ret_size;
    if (checker_run(&j->upper_checker, state->upper->map, memory_length(state->upper)) < 0) {
        (void)bad(j, "checker, upper layer: %s", j->upper_checker.error);
        return NULL;
    }
    *ret_size = j->upper_checker.size;
    return j->upper_checker.content;
}

/* Both readers; j->content and j->size. */
static int read_state(struct judge *j, const struct state *state)
{
    struct image_geometry geometry;
    struct error err = ERROR_INIT;
    uint64_t size;
    const uint8_t *content = check_layers(j, state, &size);
    if (!content)
        return -1;
    struct image *image = load_open(j->load, state->file, state->upper, true, &err);
    if (!image)
        return bad(j, "open: %s", err.message);
    image_geometry(image, &geometry);
    int r = geometry.size > SIZE_MOST ? -EFBIG : load_read(image, j->loop, j->content, geometry.size);
    (void)image_close(image, NULL);
    if (r < 0)
        return bad(j, "read %llu bytes: %s", (unsigned long long)geometry.size, strerror(-r));
    if (geometry.size != size)
        return bad(j, "the engine says %llu bytes", (unsigned long long)geometry.size);
    if (memcmp(j->content, content, size) != 0)
        return bad(j, "the engine reads something else than the checker");
    j->size = size;
    return 0;
}

int judge_state(struct judge *j, const struct state *state, struct oracle *oracle, uint64_t moment)
{
    if (read_state(j, state) < 0)
        return -1;
    if (j->size < oracle->size_least || j->size > oracle->size_most)
        return bad(j, "size %llu, not in %llu..%llu", (unsigned long long)j->size,
                   (unsigned long long)oracle->size_least, (unsigned long long)oracle->size_most);
    if (oracle_judge(oracle, j->content, 0, (uint32_t)(j->size / GRANULE), moment, NULL) < 0)
        return bad(j, "%s", oracle->message);
    return 0;
}

static int ask_qemu(struct judge *j, const char *name)
{
    char command[400], line[200] = "", rest[4096];
    (void)snprintf(command, sizeof(command), "qemu-img check -f qcow2 '%s/%s' 2>&1", j->path, name);
    FILE *pipe = popen(command, "re");
    MUST(pipe != NULL);
    size_t length = fread(line, 1, sizeof(line) - 1, pipe);
    line[length] = 0;
    while (fread(rest, 1, sizeof(rest), pipe) > 0)
        continue;
    int status = pclose(pipe);
    int code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    return code == 0 || code == 3 ? 0 : bad(j, "qemu-img check (%d): %s", code, line);
}

int judge_by_qemu(struct judge *j, const struct state *state)
{
    char path[300];
    if (!j->path[0])
        return 0;
    (void)snprintf(path, sizeof(path), "%s/lower", j->path);
    write_file(path, state->file->map, memory_length(state->file));
    if (!is_raw(j) && ask_qemu(j, "lower") < 0)
        return -1;
    if (!state->upper)
        return 0;
    (void)snprintf(path, sizeof(path), "%s/upper", j->path);
    write_file(path, state->upper->map, memory_length(state->upper));
    return ask_qemu(j, "upper");
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

int judge_writing(struct judge *j, const struct state *state, uint64_t seed)
{
    struct error err = ERROR_INIT;
    struct dice dice = {.state = seed};
    /* The top is the one that is written to. */
    struct state copy = {state->upper ? state->file : &j->scratch, state->upper ? &j->scratch : NULL};
    uint64_t size = j->size;
    memory_copy(&j->scratch, state->upper ? state->upper : state->file);
    schedule_begin(seed);
    struct image *image = load_open(j->load, copy.file, copy.upper, false, &err);
    int r = 0;
    if (image) {
        r = write_some(j, image, size, &dice);
        int closed = image_close(image, NULL);
        r = r < 0 ? r : closed;
    }
    schedule_end();
    if (!image || r < 0)
        return bad(j, "writing: %s", image ? strerror(-r) : err.message);
    uint8_t *expected = need(malloc(size));
    memcpy(expected, j->content, size);
    r = read_state(j, &copy);
    if (r == 0 && (j->size != size || memcmp(expected, j->content, size) != 0))
        r = bad(j, "written after the cut: something else is read");
    free(expected);
    return r;
}

/* ---- repair ---- */

static int repair_layer(struct judge *j, const struct memory *file, struct checker *checker)
{
    struct image_check_options options = {.repair = true};
    struct image_check found = {0};
    struct error err = ERROR_INIT;
    uint64_t leaks = checker->leaks, size = checker->size;
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
    uint8_t *expected = need(malloc(size));
    memcpy(expected, checker->content, size);
    r = checker_run(checker, j->scratch.map, memory_length(&j->scratch));
    if (r < 0)
        (void)bad(j, "after a repair: %s", checker->error);
    else if (checker->leaks)
        r = bad(j, "%llu leaks after the repair of %llu", (unsigned long long)checker->leaks,
                (unsigned long long)leaks);
    else if (checker->size != size || memcmp(expected, checker->content, size) != 0)
        r = bad(j, "the repair changed the content");
    free(expected);
    return r;
}

int judge_repair(struct judge *j, const struct state *state)
{
    int r = is_raw(j) ? 0 : repair_layer(j, state->file, &j->checker);
    return r == 0 && state->upper ? repair_layer(j, state->upper, &j->upper_checker) : r;
}

/* ---- after the load ---- */

static struct state final_state(struct load *load)
{
    return (struct state){&load->file, load_has_upper(load, UINT64_MAX) ? &load->upper : NULL};
}

int judge_closed(struct judge *j)
{
    struct load *load = j->load;
    struct state state = final_state(load);
    if (read_state(j, &state) < 0)
        return -1;
    bool known = j->size == load->size;
    for (unsigned i = 0; i < load->resize_count; i++)
        known |= load->resizes[i].result < 0 && load->resizes[i].size == j->size;
    if (!known)
        return bad(j, "size %llu instead of %llu", (unsigned long long)j->size, (unsigned long long)load->size);
    if (oracle_judge(load->oracle, j->content, 0, (uint32_t)(j->size / GRANULE), UINT64_MAX, NULL) < 0)
        return bad(j, "%s", load->oracle->message);
    return 0;
}

int judge_clean(struct judge *j)
{
    if (judge_closed(j) < 0)
        return -1;
    uint64_t leaks = is_raw(j) ? 0 : j->checker.leaks;
    if (load_has_upper(j->load, UINT64_MAX))
        leaks += j->upper_checker.leaks;
    return leaks ? bad(j, "%llu clusters leaked", (unsigned long long)leaks) : 0;
}

int judge_final_by_qemu(struct judge *j)
{
    struct state state = final_state(j->load);
    return judge_by_qemu(j, &state);
}
