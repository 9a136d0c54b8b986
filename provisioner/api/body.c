// SPDX-License-Identifier: Apache-2.0
#include "provisioner/api/body.h"

#include <errno.h>
#include <string.h>

#define TEXT_MAX_DEFAULT 4095

static bool is_choice(const char *choices, const char *text)
{
    size_t length = strlen(text);
    for (const char *at = choices; *at; at += *at == '|') {
        size_t part = strcspn(at, "|");
        if (part == length && strncmp(at, text, length) == 0)
            return true;
        at += part;
    }
    return false;
}

static int read_text(const struct member *member, const json_t *value, const char **field, struct error *err)
{
    const char *text = json_string_value(value);
    if (!text)
        return error_set(err, EINVAL, "'%s' must be a string", member->name);
    size_t length = json_string_length(value), max = member->max ? member->max : TEXT_MAX_DEFAULT;
    if (!length || length > max)
        return error_set(err, EINVAL, "'%s' must have 1 to %zu bytes", member->name, max);
    for (size_t i = 0; i < length; i++) {
        if ((unsigned char)text[i] < ' ' || text[i] == 0x7f)
            return error_set(err, EINVAL, "'%s' holds a control character", member->name);
    }
    if (member->choices && !is_choice(member->choices, text))
        return error_set(err, EINVAL, "'%s' must be one of %s", member->name, member->choices);
    *field = text;
    return 0;
}

static int read_integer(const struct member *member, const json_t *value, uint64_t *ret_number, struct error *err)
{
    uint64_t max = member->max ? member->max : member->type == MEMBER_U32 ? UINT32_MAX : INT64_MAX;
    if (!json_is_integer(value) || json_integer_value(value) < 0 || (uint64_t)json_integer_value(value) > max)
        return error_set(err, EINVAL, "'%s' must be an integer from 0 to %llu", member->name, (unsigned long long)max);
    *ret_number = (uint64_t)json_integer_value(value);
    return 0;
}

static int read_member(const struct member *member, json_t *value, void *field, struct error *err)
{
    uint64_t number = 0;
    int r;
    switch (member->type) {
    case MEMBER_TEXT:
        return read_text(member, value, field, err);
    case MEMBER_U64:
        return read_integer(member, value, field, err);
    case MEMBER_U32:
        r = read_integer(member, value, &number, err);
        if (r == 0)
            *(uint32_t *)field = (uint32_t)number;
        return r;
    case MEMBER_REAL:
        if (!json_is_number(value) || json_number_value(value) < 0)
            return error_set(err, EINVAL, "'%s' must be a number from 0", member->name);
        *(double *)field = json_number_value(value);
        return 0;
    case MEMBER_BOOL:
        if (!json_is_boolean(value))
            return error_set(err, EINVAL, "'%s' must be true or false", member->name);
        *(bool *)field = json_is_true(value);
        return 0;
    case MEMBER_ARRAY:
        if (!json_is_array(value))
            return error_set(err, EINVAL, "'%s' must be an array", member->name);
        *(json_t **)field = value;
        return 0;
    }
    return error_set(err, EINVAL, "'%s' is of an unknown type", member->name);
}

int body_read(const json_t *body, const struct member *members, void *target, struct error *err)
{
    const char *name;
    json_t *value;
    if (!json_is_object(body))
        return error_set(err, EINVAL, "the body must be a JSON object");
    json_object_foreach ((json_t *)body, name, value) {
        const struct member *member = members;
        while (member->name && strcmp(member->name, name) != 0)
            member++;
        if (!member->name)
            return error_set(err, EINVAL, "unknown member '%s'", name);
        int r = read_member(member, value, (char *)target + member->offset, err);
        if (r < 0)
            return r;
    }
    for (const struct member *member = members; member->name; member++) {
        if (member->required && !json_object_get(body, member->name))
            return error_set(err, EINVAL, "'%s' is missing", member->name);
    }
    return 0;
}
