/* SPDX-License-Identifier: Apache-2.0 */
/* Request bodies: an object whose members are listed in a table and stored into a struct, everything else refused. */
#ifndef PLATTER_API_BODY_H
#define PLATTER_API_BODY_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"

enum member_type {
    MEMBER_TEXT,  /* const char *, borrowed from the body; never empty, no control characters */
    MEMBER_U64,   /* uint64_t */
    MEMBER_U32,   /* uint32_t */
    MEMBER_REAL,  /* double */
    MEMBER_BOOL,  /* bool */
    MEMBER_ARRAY, /* json_t *, borrowed */
};

struct member {
    const char *name; /* ends at NULL */
    enum member_type type;
    size_t offset;
    bool required;
    const char *choices; /* text: "a|b", NULL = any */
    uint64_t max;        /* numbers: 0 = what the type holds; text: bytes, 0 = 4095 */
};

/* -EINVAL with the member's name and what is wrong with it. Members that are absent leave their field as it is. */
int body_read(const json_t *body, const struct member *members, void *target, struct error *err);

#endif
