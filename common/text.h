/* SPDX-License-Identifier: Apache-2.0 */
/* Text in arrays of fixed size, as records keep it. */
#ifndef PLATTER_COMMON_TEXT_H
#define PLATTER_COMMON_TEXT_H

#include <stddef.h>
#include <string.h>

/* Copy `from` into the array `to`, cut to what fits, always ended. `to` must be an array, not a pointer. */
#define text_copy(to, from)                                                                                            \
    do {                                                                                                               \
        _Static_assert(!__builtin_types_compatible_p(__typeof__(to), __typeof__(&(to)[0])), "not an array");           \
        text_copy_bounded((to), sizeof(to), (from));                                                                   \
    } while (0)

static inline void text_copy_bounded(char *to, size_t size, const char *from)
{
    size_t length = strlen(from);
    if (length >= size)
        length = size - 1;
    memmove(to, from, length);
    to[length] = 0;
}

#endif
