/* SPDX-License-Identifier: Apache-2.0 */
/* From the wire to a checked request: headers, then the body in pieces, then its end. */
#ifndef PLATTER_API_RECEIVE_H
#define PLATTER_API_RECEIVE_H

#include "common/config.h"
#include "provisioner/api/request.h"

/* Everything that the headers decide: who asks, for which route, whether they may, and the parameters. */
int receive_headers(struct request *request, const struct config *config, const char *method, const char *path,
                    struct error *err);

/* A piece of the body. Beyond REQUEST_BODY_MAX it is thrown away, beyond 16 MiB the connection is dropped (MHD_NO). */
enum MHD_Result receive_body(struct request *request, const char *data, size_t length);

/* The body is complete: parse it, if the route takes one. */
int receive_end(struct request *request, struct error *err);

#endif
