// SPDX-License-Identifier: Apache-2.0
/*
 * platter bench durability: does storage of a volume's kind lose anything? The volume itself is only described by platterd; the
 * durability harness (tests/crash), child processes from libexec, tries images of the same shape in memory.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/checked.h"
#include "common/cleanup.h"
#include "provisioner/cli/nouns.h"
#include "provisioner/cli/output.h"
#include "provisioner/cli/progress.h"
#include "provisioner/cli/request.h"

#define STATES_DEFAULT 10000
#define STATES_FOR_ALL_FAULTS 100000 /* with so many states every fault is tried, with fewer every N-th */
#define STRIDE_MAX 100
#define STATES_FOR_A_SCHEDULE 50
#define ARGUMENTS_MAX 16
#define NUMBER_TEXT 24

static const char *const parts[] = {"states", "faults", "schedules"};
static const char *const kinds[] = {"lost", "foreign", "torn", "other"};

static const struct column columns[] = {
    {"PART", "part"},       {"TRIED", "tried"},   {"LOST", "lost"},
    {"FOREIGN", "foreign"}, {"TORN", "torn"},     {"OTHER", "other"},
    {"SECONDS", "seconds"}, {"RESULT", "result"}, {NULL},
};

static const struct column summary[] = {
    {"Like volume", "volume"},
    {"Format", "shape.format"},
    {"Cluster size", "shape.cluster_size", COLUMN_SIZE},
    {"qcow2 version", "shape.version"},
    {"Extended L2", "shape.extended_l2"},
    {"Refcount bits", "shape.refcount_bits"},
    {"Over a parent", "shape.parent"},
    {"States", "states"},
    {"Seed", "seed"},
    {"Planted fault", "planted"},
    {NULL},
};

/* ---- what is tried ------------------------------------------------------------------------------------------- */

/* The shape of the volume's top layer: a new reference. */
static json_t *shape_of(const json_t *volume)
{
    const json_t *layers = json_object_get(volume, "layers"), *top = json_array_get(layers, 0);
    const char *format = json_string_value(json_object_get(top, "format"));
    if (!format)
        return NULL;
    if (strcmp(format, "raw") == 0)
        return json_pack("{s:s, s:b}", "format", "raw", "parent", 0);
    return json_pack("{s:s, s:O?, s:O?, s:O?, s:O?, s:b}", "format", format, "cluster_size",
                     json_object_get(top, "cluster_size"), "version", json_object_get(top, "version"), "extended_l2",
                     json_object_get(top, "extended_l2"), "refcount_bits", json_object_get(top, "refcount_bits"),
                     "parent", json_array_size(layers) > 1);
}

struct arguments {
    const char *list[ARGUMENTS_MAX + 1];
    size_t count;
    char numbers[3][NUMBER_TEXT];
};

static void add(struct arguments *a, const char *word)
{
    if (a->count < ARGUMENTS_MAX)
        a->list[a->count++] = word;
}

static void add_shape(struct arguments *a, const json_t *shape)
{
    static const char *const numbers[][2] = {
        {"--cluster-size", "cluster_size"}, {"--version", "version"}, {"--refcount-bits", "refcount_bits"}};
    add(a, "--format");
    add(a, json_string_value(json_object_get(shape, "format")));
    for (size_t i = 0; i < ARRAY_SIZE(numbers); i++) {
        const json_t *value = json_object_get(shape, numbers[i][1]);
        if (!json_is_integer(value))
            continue;
        (void)snprintf(a->numbers[i], sizeof(a->numbers[i]), "%lld", (long long)json_integer_value(value));
        add(a, numbers[i][0]);
        add(a, a->numbers[i]);
    }
    if (json_is_true(json_object_get(shape, "extended_l2")))
        add(a, "--extended-l2");
    if (json_is_true(json_object_get(shape, "parent")))
        add(a, "--parent");
}

static int set_number(const char *name, uint64_t value, struct error *err)
{
    char text[NUMBER_TEXT];
    (void)snprintf(text, sizeof(text), "%llu", (unsigned long long)value);
    return setenv(name, text, 1) < 0 ? error_sys(err, errno, "%s", name) : 0;
}

static bool have_qemu_img(void)
{
    CLEANUP_FREE char *path = strdup(getenv("PATH") ? getenv("PATH") : "/usr/bin:/bin");
    char *rest = NULL;
    for (char *at = path ? strtok_r(path, ":", &rest) : NULL; at; at = strtok_r(NULL, ":", &rest)) {
        char file[PATH_MAX];
        if ((size_t)snprintf(file, sizeof(file), "%s/qemu-img", at) < sizeof(file) && access(file, X_OK) == 0)
            return true;
    }
    return false;
}

/* What the programs read from their environment. */
static int set_environment(uint64_t states, uint64_t seed, struct error *err)
{
    uint64_t stride = states >= STATES_FOR_ALL_FAULTS ? 1 : MIN(STATES_FOR_ALL_FAULTS / states, STRIDE_MAX);
    int r = set_number("PLATTER_CRASH_SEED", seed, err);
    if (r == 0)
        r = set_number("PLATTER_CRASH_STATES", states, err);
    if (r == 0)
        r = set_number("PLATTER_CRASH_STRIDE", stride, err);
    if (r == 0)
        r = set_number("PLATTER_CRASH_SCHEDULES", MAX(states / STATES_FOR_A_SCHEDULE, 1), err);
    return r < 0 ? r : set_number("PLATTER_CRASH_QEMU", have_qemu_img(), err);
}

/* ---- one part ------------------------------------------------------------------------------------------------ */

/* PREFIX/libexec/platter/crash-PART, where PREFIX/bin holds this program. */
static int find_program(const char *part, char *path, size_t room, struct error *err)
{
    char self[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
    if (n < 0)
        return error_sys(err, errno, "find this program");
    self[n] = 0;
    for (int up = 0; up < 2; up++) {
        char *slash = strrchr(self, '/');
        if (slash)
            *slash = 0;
    }
    if ((size_t)snprintf(path, room, "%s/libexec/platter/crash-%s", self, part) >= room)
        return error_sys(err, ENAMETOOLONG, "find crash-%s", part);
    return access(path, X_OK) < 0 ? error_sys(err, errno, "%s", path) : 0;
}

static int spawn(const char *program, const struct arguments *a, pid_t *ret_pid, FILE **ret_output, struct error *err)
{
    int ends[2];
    posix_spawn_file_actions_t actions;
    if (pipe2(ends, O_CLOEXEC) < 0)
        return error_sys(err, errno, "pipe");
    int r = posix_spawn_file_actions_init(&actions);
    if (r == 0) {
        r = posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
        if (r == 0)
            r = posix_spawn(ret_pid, program, &actions, NULL, (char *const *)a->list, environ);
        (void)posix_spawn_file_actions_destroy(&actions);
    }
    (void)close(ends[1]);
    if (r == 0) {
        *ret_output = fdopen(ends[0], "r");
        if (*ret_output)
            return 0;
        r = errno;
        (void)kill(*ret_pid, SIGTERM);
        (void)waitpid(*ret_pid, NULL, 0);
    }
    (void)close(ends[0]);
    return error_sys(err, r, "start %s", program);
}

static void show(const struct progress *progress, const char *part, const json_t *value)
{
    long long done = json_integer_value(json_object_get(value, "done"));
    long long total = json_integer_value(json_object_get(value, "total"));
    if (progress->form == PROGRESS_JSONL)
        (void)fprintf(stderr, "{\"part\": \"%s\", \"done\": %lld, \"total\": %lld}\n", part, done, total);
    else if (progress->form == PROGRESS_BAR && total)
        (void)fprintf(stderr, "\r\033[K%s: %lld of %lld", part, done, total);
    else if (progress->form == PROGRESS_BAR)
        (void)fprintf(stderr, "\r\033[K%s: %lld", part, done);
    (void)fflush(stderr);
}

/* The program's last line that is not about progress: a new reference, NULL if there was none. */
static json_t *read_result(FILE *output, const char *part, struct progress *progress)
{
    CLEANUP_FREE char *line = NULL;
    size_t room = 0;
    json_t *result = NULL;
    while (getline(&line, &room, output) > 0) {
        json_auto_t *json = json_loads(line, 0, NULL);
        const json_t *value = json_object_get(json, "progress");
        if (value) {
            show(progress, part, value);
        } else if (json_object_get(json, "done")) {
            json_decref(result);
            result = json_incref(json);
        }
    }
    if (progress->form == PROGRESS_BAR)
        (void)fputs("\r\033[K", stderr);
    return result;
}

static int add_row(json_t *rows, const char *part, const json_t *result, struct error *err)
{
    char seconds[NUMBER_TEXT];
    json_int_t sum = 0;
    for (size_t i = 0; i < ARRAY_SIZE(kinds); i++)
        sum += json_integer_value(json_object_get(result, kinds[i]));
    (void)snprintf(seconds, sizeof(seconds), "%.1f", json_number_value(json_object_get(result, "seconds")));
    json_t *row = json_pack("{s:s, s:O, s:O?, s:O?, s:O?, s:O?, s:s, s:s, s:O?}", "part", part, "tried",
                            json_object_get(result, "done"), "lost", json_object_get(result, "lost"), "foreign",
                            json_object_get(result, "foreign"), "torn", json_object_get(result, "torn"), "other",
                            json_object_get(result, "other"), "seconds", seconds, "result", sum ? "FAILED" : "ok",
                            "message", json_object_get(result, "message"));
    return json_array_append_new(rows, row) < 0 ? error_sys(err, ENOMEM, "bench") : 0;
}

static int run_part(const char *part, const struct arguments *shape, const struct cli *cli, json_t *rows,
                    struct error *err)
{
    struct arguments a = *shape;
    struct progress progress;
    char program[PATH_MAX];
    FILE *output = NULL;
    pid_t pid;
    int status = 0;
    int r = find_program(part, program, sizeof(program), err);
    a.list[0] = program;
    if (r == 0)
        r = spawn(program, &a, &pid, &output, err);
    if (r < 0)
        return r;
    progress_start(&progress, cli->progress);
    json_auto_t *result = read_result(output, part, &progress);
    (void)fclose(output);
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        continue;
    if (!result || !WIFEXITED(status))
        return error_set(err, EIO, "%s ended without a result (status %d)", program, status);
    return add_row(rows, part, result, err);
}

/* ---- the whole ----------------------------------------------------------------------------------------------- */

static uint64_t number_option(const struct cli *cli, const char *name, uint64_t otherwise)
{
    const char *text = cli_option(cli, name);
    return text ? strtoull(text, NULL, 10) : otherwise;
}

static uint64_t new_seed(void)
{
    uint32_t seed = 0;
    if (getrandom(&seed, sizeof(seed), 0) != (ssize_t)sizeof(seed))
        seed = (uint32_t)monotonic_ns();
    return seed % 1000000 + 1;
}

/* Rows' counters summed up in `report`; true: nothing was found. */
static bool sum_up(json_t *report)
{
    json_t *rows = json_object_get(report, "parts"), *row;
    size_t index;
    json_int_t all = 0;
    for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
        json_int_t sum = 0;
        json_array_foreach (rows, index, row)
            sum += json_integer_value(json_object_get(row, kinds[i]));
        (void)json_object_set_new(report, kinds[i], json_integer(sum));
        all += sum;
    }
    (void)json_object_set_new(report, "result", json_string(all ? "FAILED" : "ok"));
    return all == 0;
}

static void print(const struct cli *cli, const json_t *report)
{
    const json_t *rows = json_object_get(report, "parts"), *row;
    size_t index;
    output_object(cli, report, summary, "result");
    if (cli->output != OUTPUT_TABLE)
        return;
    (void)putchar('\n');
    output_list(cli, rows, columns, "part");
    json_array_foreach (rows, index, row) {
        const char *message = json_string_value(json_object_get(row, "message"));
        if (!message || !message[0])
            continue;
        (void)printf("%s: ", json_string_value(json_object_get(row, "part")));
        output_text(stdout, message);
        (void)putchar('\n');
    }
}

static int judge(const struct cli *cli, json_t *report, uint64_t states, uint64_t seed, struct error *err)
{
    const char *plant = cli_option(cli, "plant");
    bool good = sum_up(report);
    print(cli, report);
    if (good)
        return 0;
    (void)error_set(err, EIO, "storage like volume '%s' loses data%s", cli->arguments[0],
                    plant ? ", as it must with a planted fault" : "");
    (void)error_hint(err, "platter bench durability %s --states %llu --seed %llu%s%s", cli->arguments[0],
                     (unsigned long long)states, (unsigned long long)seed, plant ? " --plant " : "",
                     plant ? plant : "");
    return error_code(err, "data-loss");
}

static int run_all(struct cli *cli, const json_t *shape, uint64_t states, uint64_t seed, struct error *err)
{
    struct arguments arguments = {.count = 1};
    const char *plant = cli_option(cli, "plant");
    add_shape(&arguments, shape);
    add(&arguments, "--json");
    if (plant) {
        add(&arguments, "--plant");
        add(&arguments, plant);
    }
    json_auto_t *report = json_pack("{s:s, s:O, s:I, s:I, s:s*, s:[]}", "volume", cli->arguments[0], "shape", shape,
                                    "states", (json_int_t)states, "seed", (json_int_t)seed, "planted", plant, "parts");
    int r = report ? set_environment(states, seed, err) : error_sys(err, ENOMEM, "bench");
    for (size_t i = 0; r == 0 && i < ARRAY_SIZE(parts); i++)
        r = run_part(parts[i], &arguments, cli, json_object_get(report, "parts"), err);
    return r < 0 ? r : judge(cli, report, states, seed, err);
}

static int bench_durability(struct cli *cli, struct error *err)
{
    CLEANUP_FREE char *path = request_path("/v1/volumes/", cli->arguments[0], "");
    json_auto_t *volume = NULL;
    uint64_t states = number_option(cli, "states", STATES_DEFAULT);
    int r = path ? request_get(cli, path, &volume, err) : error_set(err, ENOMEM, "out of memory");
    if (r < 0)
        return r;
    if (states == 0)
        return error_set(err, EINVAL, "--states must be at least 1");
    json_auto_t *shape = shape_of(volume);
    if (!shape)
        return error_set(err, EINVAL, "volume '%s' has no image", cli->arguments[0]);
    return run_all(cli, shape, states, number_option(cli, "seed", new_seed()), err);
}

static const struct value_spec durability_options[] = {
    {"states", VALUE_NUMBER, NULL, "power cuts to try, and with them faults and schedules (10000)", "N"},
    {"seed", VALUE_NUMBER, NULL, "decides everything that is tried: repeats a run", "N"},
    {"plant", VALUE_CHOICE, NULL, "break the tried engine, so that the run must fail",
     "drop-flush|early-done|hidden-error|no-barrier|no-count|early-reuse|no-grace|late-punch|forget-error"},
    {NULL},
};

const struct command bench_commands[] = {
    {"bench",
     "durability",
     "Try whether storage of a volume's kind loses data; the volume is not touched",
     {{"VOLUME", VALUE_VOLUME, NULL, "the volume's name or id"}},
     durability_options,
     bench_durability},
    {NULL},
};
