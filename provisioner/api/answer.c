// SPDX-License-Identifier: Apache-2.0
#include "provisioner/api/answer.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int answer_status(const struct error *err)
{
    switch (err->errnum) {
    case EINVAL:
        return strcmp(error_code_word(err), "invalid") == 0 ? MHD_HTTP_BAD_REQUEST : MHD_HTTP_UNPROCESSABLE_CONTENT;
    case ERANGE:
    case ENAMETOOLONG:
        return MHD_HTTP_BAD_REQUEST;
    case EPERM:
    case EACCES:
        return MHD_HTTP_FORBIDDEN;
    case ENOENT:
        return MHD_HTTP_NOT_FOUND;
    case EEXIST:
    case EBUSY:
    case ECANCELED:
    case ETXTBSY:
        return MHD_HTTP_CONFLICT;
    case EMSGSIZE:
        return MHD_HTTP_CONTENT_TOO_LARGE;
    case EOPNOTSUPP:
    case EBADMSG:
    case EUCLEAN:
    case ENOTDIR:
    case EISDIR:
    case ELOOP:
    case EXDEV:
    case EROFS:
        return MHD_HTTP_UNPROCESSABLE_CONTENT;
    case ENOSPC:
    case EDQUOT:
        return MHD_HTTP_INSUFFICIENT_STORAGE;
    case ENOMEM:
    case EAGAIN:
    case ESHUTDOWN:
        return MHD_HTTP_SERVICE_UNAVAILABLE;
    case ETIMEDOUT:
        return MHD_HTTP_GATEWAY_TIMEOUT;
    default:
        return MHD_HTTP_INTERNAL_SERVER_ERROR;
    }
}

/* Text from a file name may be anything; JSON takes UTF-8 only. */
static json_t *text_value(const char *text)
{
    json_t *value = json_string(text);
    if (value)
        return value;
    char *ascii = strdup(text);
    for (char *at = ascii; at && *at; at++) {
        if ((unsigned char)*at >= 0x80)
            *at = '?';
    }
    value = ascii ? json_string(ascii) : NULL;
    free(ascii);
    return value;
}

json_t *answer_error(const struct error *err)
{
    return json_pack("{s:{s:s, s:o, s:o, s:o}}", "error", "code", error_code_word(err), "message",
                     text_value(err->message), "holder", text_value(err->holder), "hint", text_value(err->hint));
}

struct MHD_Response *answer_text(const char *text, size_t length, const char *type)
{
    struct MHD_Response *response = MHD_create_response_from_buffer(length, (void *)text, MHD_RESPMEM_MUST_COPY);
    if (response)
        (void)MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, type);
    return response;
}

enum MHD_Result answer_send(struct MHD_Connection *connection, int status, const json_t *body, const char *location)
{
    char *text = body ? json_dumps(body, JSON_COMPACT) : strdup("{}");
    if (!text)
        return MHD_NO;
    struct MHD_Response *response = MHD_create_response_from_buffer(strlen(text), text, MHD_RESPMEM_MUST_FREE);
    if (!response) {
        free(text);
        return MHD_NO;
    }
    (void)MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, "application/json");
    if (location)
        (void)MHD_add_response_header(response, MHD_HTTP_HEADER_LOCATION, location);
    enum MHD_Result result = MHD_queue_response(connection, (unsigned)status, response);
    MHD_destroy_response(response);
    return result;
}
