// SPDX-License-Identifier: Apache-2.0
/*
 * check-tool [-r] [-m BYTES] FORMAT:FILE
 *
 * image_check on a file: its counters as JSON. -r: repair; -m: bound for the counts held at once.
 */
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backends/format/image.h"

static int complain(const char *what, const struct error *err)
{
    (void)fprintf(stderr, "check-tool: %s: %s (%s)\n", what, err->message, error_code_word(err));
    return EXIT_FAILURE;
}

static void print(const struct image_check *k)
{
    (void)printf("{\"clusters\": %" PRIu64 ", \"allocated\": %" PRIu64 ", \"compressed\": %" PRIu64
                 ", \"leaks\": %" PRIu64 ", \"low_counts\": %" PRIu64 ", \"copied_flags\": %" PRIu64
                 ", \"bad_entries\": %" PRIu64 ", \"double_use\": %" PRIu64 ", \"repaired\": %" PRIu64
                 ", \"dirty\": %s, \"corrupt\": %s}\n",
                 k->clusters, k->allocated, k->compressed, k->leaks, k->low_counts, k->copied_flags, k->bad_entries,
                 k->double_use, k->repaired, k->dirty ? "true" : "false", k->corrupt ? "true" : "false");
}

int main(int argc, char **argv)
{
    struct image_check_options options = {0};
    struct image_check check;
    struct error err = ERROR_INIT;
    struct io_file *file;
    int o;
    while ((o = getopt(argc, argv, "rm:")) != -1) {
        if (o == 'r')
            options.repair = true;
        else if (o == 'm')
            options.memory_bytes = strtoull(optarg, NULL, 0);
        else
            return 2;
    }
    char *path = optind == argc - 1 ? strchr(argv[optind], ':') : NULL;
    if (!path)
        return 2;
    *path++ = 0;
    int fd = open(path, (options.repair ? O_RDWR : O_RDONLY) | O_CLOEXEC);
    if (fd < 0 || io_file_open(fd, &(struct io_file_options){.writable = options.repair}, &file, &err) < 0)
        return complain("open", &err);
    int r = image_check(file, argv[optind], &options, &check, &err);
    (void)io_file_close(file);
    if (r < 0)
        return complain("check", &err);
    print(&check);
    return EXIT_SUCCESS;
}
