// SPDX-License-Identifier: Apache-2.0
#include "backends/pool/pool.h"

#include <string.h>

#include "common/checked.h"

static const struct pool_ops *const kinds[] = {&pool_dir_ops};

const struct pool_ops *pool_kind(const char *kind)
{
    for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
        if (strcmp(kinds[i]->kind, kind) == 0)
            return kinds[i];
    }
    return NULL;
}

bool pool_id_valid(const char *id, const char *prefix)
{
    size_t length = strlen(prefix);
    return strncmp(id, prefix, length) == 0 && strlen(id) == length + 16 &&
           strspn(id + length, "0123456789abcdef") == 16;
}
