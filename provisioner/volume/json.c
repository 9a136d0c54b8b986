// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "provisioner/volume/manager.h"

void json_decref_cleanup(json_t **json)
{
    json_decref(*json);
}

char *json_text(const json_t *json)
{
    return json_dumps(json, JSON_COMPACT | JSON_SORT_KEYS);
}

json_t *error_to_json(const struct error *err)
{
    return json_pack("{s:i, s:s, s:s, s:s, s:s}", "errno", err->errnum, "code", error_code_word(err), "message",
                     err->message, "holder", err->holder, "hint", err->hint);
}

static void copy_member(const json_t *json, const char *key, char *buffer, size_t size)
{
    const char *text = json_string_value(json_object_get(json, key));
    (void)snprintf(buffer, size, "%s", text ? text : "");
}

void error_from_json(const json_t *json, struct error *ret_err)
{
    *ret_err = (struct error){.errnum = (int)json_integer_value(json_object_get(json, "errno"))};
    if (ret_err->errnum <= 0)
        ret_err->errnum = EIO;
    copy_member(json, "code", ret_err->code, sizeof(ret_err->code));
    copy_member(json, "message", ret_err->message, sizeof(ret_err->message));
    copy_member(json, "holder", ret_err->holder, sizeof(ret_err->holder));
    copy_member(json, "hint", ret_err->hint, sizeof(ret_err->hint));
}
