/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One HTTP request on its way: who asks, what for, and the answer. It is made when the headers are there and freed when
 * the connection has finished it and no callback can come any more (two holders, counted).
 *
 * Threads: a request is worked on by one of the server's threads at a time. Only `wake` members are touched by the
 * manager's threads, under `lock`.
 */
#ifndef PLATTER_API_REQUEST_H
#define PLATTER_API_REQUEST_H

#include <jansson.h>
#include <microhttpd.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "common/error.h"
#include "provisioner/volume/volume.h"

#define REQUEST_BODY_MAX (1 << 20)
#define REQUEST_PARAMETERS_MAX 2
#define REQUEST_WAIT_MAX_MS 600000

struct server;
struct route;
struct request;

typedef int (*handler_fn)(struct request *request, struct error *err);
/* The object that a ticket is about: manager_volume_get or manager_attachment_get. */
typedef int (*fetch_fn)(struct manager *manager, const char *id, json_t **ret_object, struct error *err);

struct request {
    struct server *server;
    struct manager *manager;
    struct MHD_Connection *connection;
    const struct route *route;
    struct caller caller;
    char *parameters[REQUEST_PARAMETERS_MAX]; /* what stands for {name} in the path, unescaped */
    json_t *query;                            /* object of strings: only names that the route knows */
    json_t *body;                             /* object; NULL for GET and DELETE */
    unsigned wait_ms;

    char *data; /* the body as it comes */
    size_t data_length, data_capacity;
    bool too_large;
    struct error refusal; /* why the headers alone decide against it: told when the body has been read */

    /* What a handler leaves behind: an object with its status, or a ticket, or a response of its own. */
    int status;
    json_t *answer;
    struct ticket ticket;
    bool has_ticket;
    fetch_fn fetch;         /* for tickets without a job, and for waiting for a job */
    char waits_for[ID_MAX]; /* the job to sleep for, "" = none */
    struct MHD_Response *response;

    bool started; /* the handler ran */

    pthread_mutex_t lock;
    bool suspended; /* the connection sleeps until a callback wakes it */
    bool gone;      /* the connection is finished: never touch it again */
    int references;
    struct request *previous, *next; /* the server's list of requests */
};

/* Answer with an object (the reference is taken over) now. */
int request_answer(struct request *request, int status, json_t *answer, struct error *err);

/* Answer when the ticket's job has ended, as ?wait= says; `status` is for a success (200 or 201). */
int request_answer_ticket(struct request *request, int status, const struct ticket *ticket, fetch_fn fetch);

/* Sleep until job `id` has ended or the time of ?wait= is over, then answer 200 with what `fetch` gives for it. */
int request_wait_job(struct request *request, const char *id, fetch_fn fetch);

/* A query parameter, NULL if absent; and one that is a number in [0, max]. */
const char *request_query(const struct request *request, const char *name);
int request_query_number(const struct request *request, const char *name, uint64_t max, uint64_t fallback,
                         uint64_t *ret_number, struct error *err);

#endif
