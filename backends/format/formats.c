// SPDX-License-Identifier: Apache-2.0
/* The formats that are built in. A format is chosen by the name in a volume's record, never by looking at bytes. */
#include <string.h>

#include "backends/format/core.h"
#include "common/checked.h"

static const struct layer_ops *const formats[] = {
    &raw_layer_ops,
    &qcow2_layer_ops,
};

const struct layer_ops *format_find(const char *name)
{
    for (size_t i = 0; i < ARRAY_SIZE(formats); i++) {
        if (strcmp(formats[i]->name, name) == 0)
            return formats[i];
    }
    return NULL;
}
