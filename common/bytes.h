/* SPDX-License-Identifier: Apache-2.0 */
/* Big- and little-endian loads and stores on unaligned bytes: how every on-disk and on-wire field is read. */
#ifndef PLATTER_COMMON_BYTES_H
#define PLATTER_COMMON_BYTES_H

#include <endian.h>
#include <stdint.h>
#include <string.h>

#define BYTES_ACCESS(bits)                                                                                             \
    static inline uint##bits##_t load_be##bits(const void *p)                                                          \
    {                                                                                                                  \
        uint##bits##_t v;                                                                                              \
        memcpy(&v, p, sizeof(v));                                                                                      \
        return be##bits##toh(v);                                                                                       \
    }                                                                                                                  \
    static inline uint##bits##_t load_le##bits(const void *p)                                                          \
    {                                                                                                                  \
        uint##bits##_t v;                                                                                              \
        memcpy(&v, p, sizeof(v));                                                                                      \
        return le##bits##toh(v);                                                                                       \
    }                                                                                                                  \
    static inline void store_be##bits(void *p, uint##bits##_t value)                                                   \
    {                                                                                                                  \
        uint##bits##_t v = htobe##bits(value);                                                                         \
        memcpy(p, &v, sizeof(v));                                                                                      \
    }                                                                                                                  \
    static inline void store_le##bits(void *p, uint##bits##_t value)                                                   \
    {                                                                                                                  \
        uint##bits##_t v = htole##bits(value);                                                                         \
        memcpy(p, &v, sizeof(v));                                                                                      \
    }

BYTES_ACCESS(16)
BYTES_ACCESS(32)
BYTES_ACCESS(64)

#undef BYTES_ACCESS

#endif
