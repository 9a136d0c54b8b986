// SPDX-License-Identifier: Apache-2.0
/* The first bytes of a disk that a guest wrote, looked at for what its content needs. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include "provisioner/blk/content.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct content content;
    content_find(data, size, &content);
    if (!content.name && content.end)
        abort();
    return 0;
}
