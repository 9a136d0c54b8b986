// SPDX-License-Identifier: Apache-2.0
// Stands in for libFuzzer: `fuzz_NAME SECONDS [SEED]` feeds random inputs, `fuzz_NAME FILE...` runs saved ones. The
// input under test is kept in fuzz-NAME.last when PLATTER_FUZZ_KEEP is set, to be had after a crash.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define INPUT_MAX 8192

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint64_t state;

static uint64_t random_next(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

// Random bytes, but with runs of zeros and of small numbers, which parsers let further in.
static size_t make_input(uint8_t *data)
{
    size_t size = random_next() % INPUT_MAX;
    for (size_t i = 0; i < size;) {
        size_t run = 1 + random_next() % 32;
        unsigned kind = (unsigned)(random_next() % 4);
        for (; run && i < size; run--, i++)
            data[i] = kind == 0 ? 0 : (uint8_t)(kind == 3 ? random_next() : random_next() % 8);
    }
    return size;
}

static void keep(const char *program, const uint8_t *data, size_t size)
{
    char path[256];
    const char *name = strrchr(program, '/');
    if (!getenv("PLATTER_FUZZ_KEEP"))
        return;
    (void)snprintf(path, sizeof(path), "%s.last", name ? name + 1 : program);
    FILE *f = fopen(path, "we");
    if (!f)
        return;
    (void)fwrite(data, 1, size, f);
    (void)fclose(f);
}

static int run_file(const char *path)
{
    static uint8_t data[1 << 20];
    FILE *f = fopen(path, "re");
    if (!f)
        return 1;
    size_t size = fread(data, 1, sizeof(data), f);
    (void)fclose(f);
    return LLVMFuzzerTestOneInput(data, size);
}

int main(int argc, char **argv)
{
    static uint8_t data[INPUT_MAX];
    char *end;
    long seconds = argc > 1 ? strtol(argv[1], &end, 10) : 5;
    if (argc > 1 && *end) {
        for (int i = 1; i < argc; i++)
            if (run_file(argv[i]))
                return 1;
        return 0;
    }
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 10) : (uint64_t)time(NULL) * 2654435761u;
    state = seed | 1;
    (void)printf("seed %lu\n", seed);
    (void)fflush(stdout);
    time_t until = time(NULL) + seconds;
    unsigned long runs = 0;
    for (; time(NULL) < until; runs++) {
        size_t size = make_input(data);
        keep(argv[0], data, size);
        (void)LLVMFuzzerTestOneInput(data, size);
    }
    (void)printf("%lu inputs\n", runs);
    return 0;
}
