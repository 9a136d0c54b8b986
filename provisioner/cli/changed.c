// SPDX-License-Identifier: Apache-2.0
/* platter snapshot changed */
#include "provisioner/cli/changed.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

#include "common/cleanup.h"
#include "provisioner/cli/request.h"

/* The path of one page; the caller frees. */
static char *page_path(struct cli *cli, json_int_t offset)
{
    const char *since = cli_option(cli, "since");
    CLEANUP_FREE char *snapshot = client_escape(cli->arguments[0]);
    CLEANUP_FREE char *base = since ? client_escape(since) : NULL;
    char *path = NULL;
    if (!snapshot || (since && !base))
        return NULL;
    int n = since
                ? asprintf(&path, "/v1/snapshots/%s/changed?since=%s&offset=%" PRId64, snapshot, base, (int64_t)offset)
                : asprintf(&path, "/v1/snapshots/%s/allocated?offset=%" PRId64, snapshot, (int64_t)offset);
    return n < 0 ? NULL : path;
}

static void print_page(const struct cli *cli, const json_t *page)
{
    size_t i;
    json_t *range;
    json_array_foreach (json_object_get(page, "ranges"), i, range) {
        json_int_t offset = json_integer_value(json_object_get(range, "offset"));
        json_int_t length = json_integer_value(json_object_get(range, "length"));
        bool zero = json_is_true(json_object_get(range, "zero"));
        if (cli->output == OUTPUT_JSON) {
            (void)json_dumpf(range, stdout, JSON_COMPACT);
            (void)putchar('\n');
        } else if (cli->output == OUTPUT_TABLE) {
            (void)printf("%-20" PRId64 " %-20" PRId64 " %s\n", (int64_t)offset, (int64_t)length,
                         zero ? "zero" : "data");
        } else {
            (void)printf("%" PRId64 "\n", (int64_t)offset);
        }
    }
}

int snapshot_changed(struct cli *cli, struct error *err)
{
    json_int_t offset = 0;
    if (cli->output == OUTPUT_TABLE)
        (void)printf("%-20s %-20s %s\n", "OFFSET", "LENGTH", "KIND");
    for (bool more = true; more;) {
        CLEANUP_FREE char *path = page_path(cli, offset);
        json_t *page = NULL;
        int r = path ? request_get(cli, path, &page, err) : error_set(err, ENOMEM, "out of memory");
        if (r < 0)
            return r;
        print_page(cli, page);
        json_int_t next = json_integer_value(json_object_get(page, "next"));
        more = next > offset; /* absent at the end */
        offset = next;
        json_decref(page);
    }
    return 0;
}
