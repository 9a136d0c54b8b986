/* SPDX-License-Identifier: Apache-2.0 */
/* From results and errors to HTTP. */
#ifndef PLATTER_API_ANSWER_H
#define PLATTER_API_ANSWER_H

#include "provisioner/api/request.h"

/* The status that an error stands for. */
int answer_status(const struct error *err);

/* {"error": {code, message, holder, hint}}: a new reference, NULL when out of memory. */
json_t *answer_error(const struct error *err);

/* Queue `body` (borrowed; NULL = an empty object) as the answer of `connection`. `location` may be NULL. */
enum MHD_Result answer_send(struct MHD_Connection *connection, int status, const json_t *body, const char *location);

/* A response of plain text, which the caller owns; NULL when out of memory. */
struct MHD_Response *answer_text(const char *text, size_t length, const char *type);

#endif
