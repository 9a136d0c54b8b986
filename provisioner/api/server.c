// SPDX-License-Identifier: Apache-2.0
/*
 * libmicrohttpd with a pool of threads over one listening Unix socket. A request's life: headers (route, role, bounds),
 * body, handler, perhaps sleep, answer. Two parties hold a request: its connection, until it is completed, and the
 * watch of a job, until the manager has called it; the last one frees it.
 *
 * Lock order: server lock, then a request's or a stream's own lock, then libmicrohttpd's.
 */
#include "provisioner/api/server.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/checked.h"
#include "common/cleanup.h"
#include "common/log.h"
#include "provisioner/api/answer.h"
#include "provisioner/api/receive.h"
#include "provisioner/api/route.h"

#define SERVER_THREADS 4
#define SERVER_CONNECTIONS 512
#define SERVER_IDLE_SECONDS 120
#define DRAIN_STEP_MS 10
#define DRAIN_STEPS 200

struct server {
    struct MHD_Daemon *http;
    const struct config *config;
    struct manager *manager;
    atomic_bool stopping;
    pthread_mutex_t lock;
    struct request *requests;
    struct stream_hook *streams;
};

/* ---- requests ---- */

static void request_free(struct request *request)
{
    for (int i = 0; i < REQUEST_PARAMETERS_MAX; i++)
        free(request->parameters[i]);
    json_decref(request->query);
    json_decref(request->body);
    json_decref(request->answer);
    if (request->response)
        MHD_destroy_response(request->response);
    free(request->data);
    (void)pthread_mutex_destroy(&request->lock);
    free(request);
}

static void request_release(struct request *request)
{
    (void)pthread_mutex_lock(&request->lock);
    bool last = --request->references == 0;
    (void)pthread_mutex_unlock(&request->lock);
    if (last)
        request_free(request);
}

static struct request *request_create(struct server *server, struct MHD_Connection *connection)
{
    struct request *request = calloc(1, sizeof(*request));
    if (!request)
        return NULL;
    request->server = server;
    request->manager = server->manager;
    request->connection = connection;
    request->references = 1;
    (void)pthread_mutex_init(&request->lock, NULL);
    (void)pthread_mutex_lock(&server->lock);
    request->next = server->requests;
    if (request->next)
        request->next->previous = request;
    server->requests = request;
    (void)pthread_mutex_unlock(&server->lock);
    return request;
}

/* The connection is done with the request. */
static void on_completed(void *user, struct MHD_Connection *connection, void **context,
                         enum MHD_RequestTerminationCode why)
{
    struct server *server = user;
    struct request *request = *context;
    (void)connection;
    (void)why;
    if (!request)
        return;
    *context = NULL;
    (void)pthread_mutex_lock(&server->lock);
    if (request->previous)
        request->previous->next = request->next;
    else
        server->requests = request->next;
    if (request->next)
        request->next->previous = request->previous;
    (void)pthread_mutex_unlock(&server->lock);
    (void)pthread_mutex_lock(&request->lock);
    request->gone = true;
    (void)pthread_mutex_unlock(&request->lock);
    request_release(request);
}

static void request_wake(struct request *request)
{
    (void)pthread_mutex_lock(&request->lock);
    if (request->suspended && !request->gone)
        MHD_resume_connection(request->connection);
    request->suspended = false;
    (void)pthread_mutex_unlock(&request->lock);
}

/* ---- what handlers call ---- */

int request_answer(struct request *request, int status, json_t *answer, struct error *err)
{
    if (!answer)
        return error_set(err, ENOMEM, "out of memory");
    request->status = status;
    request->answer = answer;
    return 0;
}

int request_answer_ticket(struct request *request, int status, const struct ticket *ticket, fetch_fn fetch)
{
    request->status = ticket->existed ? MHD_HTTP_OK : status;
    request->ticket = *ticket;
    request->has_ticket = true;
    request->fetch = fetch;
    if (request->wait_ms)
        (void)snprintf(request->waits_for, sizeof(request->waits_for), "%s", ticket->job);
    return 0;
}

int request_wait_job(struct request *request, const char *id, fetch_fn fetch)
{
    request->status = MHD_HTTP_OK;
    request->fetch = fetch;
    (void)snprintf(request->waits_for, sizeof(request->waits_for), "%s", id);
    return 0;
}

const char *request_query(const struct request *request, const char *name)
{
    return json_string_value(json_object_get(request->query, name));
}

int request_query_number(const struct request *request, const char *name, uint64_t max, uint64_t fallback,
                         uint64_t *ret_number, struct error *err)
{
    const char *text = request_query(request, name);
    char *end;
    if (!text) {
        *ret_number = fallback;
        return 0;
    }
    errno = 0;
    unsigned long long number = strtoull(text, &end, 10);
    if (errno || end == text || *end || text[0] < '0' || text[0] > '9' || number > max)
        return error_set(err, EINVAL, "'%s' must be a number from 0 to %llu", name, (unsigned long long)max);
    *ret_number = number;
    return 0;
}

bool server_stopping(const struct server *server)
{
    return atomic_load(&server->stopping);
}

void server_add_stream(struct server *server, struct stream_hook *hook)
{
    LOCK_SCOPE(&server->lock);
    hook->previous = NULL;
    hook->next = server->streams;
    if (hook->next)
        hook->next->previous = hook;
    server->streams = hook;
}

void server_remove_stream(struct server *server, struct stream_hook *hook)
{
    LOCK_SCOPE(&server->lock);
    if (hook->previous)
        hook->previous->next = hook->next;
    else
        server->streams = hook->next;
    if (hook->next)
        hook->next->previous = hook->previous;
}

/* ---- answering ---- */

static void log_outcome(const struct request *request, const char *path, int status, const struct error *err)
{
    if (!request->route || (strcmp(request->route->method, "GET") == 0 && status < 500))
        return;
    if (err)
        log_info("uid %u pid %d: %s %s: %d %s", request->caller.uid, request->caller.pid, request->route->method, path,
                 status, err->message);
    else
        log_info("uid %u pid %d: %s %s: %d %s", request->caller.uid, request->caller.pid, request->route->method, path,
                 status, request->ticket.job);
}

static enum MHD_Result send_error(struct request *request, const char *path, const struct error *err)
{
    struct error unnamed = {.errnum = EIO, .message = "failed for a reason that was not named"};
    if (!err->errnum)
        err = &unnamed;
    int status = err->errnum == EOPNOTSUPP && !request->route ? MHD_HTTP_METHOD_NOT_ALLOWED : answer_status(err);
    json_t *body = answer_error(err);
    log_outcome(request, path, status, err);
    enum MHD_Result result = answer_send(request->connection, status, body, NULL);
    json_decref(body);
    return result;
}

static enum MHD_Result send_object(struct request *request, const char *path, int status, json_t *object,
                                   const char *location)
{
    log_outcome(request, path, status, NULL);
    enum MHD_Result result = answer_send(request->connection, status, object, location);
    json_decref(object);
    return result;
}

static enum MHD_Result send_fetched(struct request *request, const char *path, const char *id)
{
    struct error err = ERROR_INIT;
    json_t *object = NULL;
    int r = request->fetch(request->manager, id, &object, &err);
    return r < 0 ? send_error(request, path, &err) : send_object(request, path, request->status, object, NULL);
}

/* The ticket's answer as things stand now: the result, the job's error, or 202 with the job. */
static enum MHD_Result send_ticket(struct request *request, const char *path)
{
    struct error err = ERROR_INIT;
    json_t *object = NULL;
    const char *job = request->ticket.job;
    if (!job[0])
        return send_fetched(request, path, request->ticket.object);
    int r = request->wait_ms ? manager_job_result(request->manager, job, &object, &err) : -EINPROGRESS;
    if (r == 0)
        return send_object(request, path, request->status, object, NULL);
    if (r == -EINPROGRESS) {
        char location[64];
        (void)snprintf(location, sizeof(location), "/v1/jobs/%s", job);
        error_clear(&err);
        r = manager_job_get(request->manager, job, &object, &err);
        if (r == 0)
            return send_object(request, path, MHD_HTTP_ACCEPTED, object, location);
    }
    return send_error(request, path, &err);
}

static enum MHD_Result send_outcome(struct request *request, const char *path)
{
    if (request->has_ticket)
        return send_ticket(request, path);
    if (request->fetch)
        return send_fetched(request, path, request->waits_for);
    if (request->response)
        return MHD_queue_response(request->connection, (unsigned)request->status, request->response);
    log_outcome(request, path, request->status, NULL);
    return answer_send(request->connection, request->status, request->answer, NULL);
}

/* ---- sleeping for a job ---- */

static void on_job(void *arg, bool ended)
{
    struct request *request = arg;
    (void)ended; /* looked up again when the connection goes on */
    request_wake(request);
    request_release(request);
}

/* Suspends the connection until the job ended or the time is over; it is called again then and answers with what it
 * finds. The callback may come before this returns. */
static void sleep_for_job(struct request *request, const char *job)
{
    (void)pthread_mutex_lock(&request->lock);
    request->suspended = true;
    request->references++;
    MHD_suspend_connection(request->connection);
    (void)pthread_mutex_unlock(&request->lock);
    if (manager_job_watch(request->manager, job, request->wait_ms, on_job, request, NULL) < 0)
        on_job(request, false); /* the job was forgotten meanwhile */
    else if (server_stopping(request->server))
        request_wake(request); /* server_stop may have looked at the list before this one slept */
}

/* ---- the connection's life ---- */

/* The whole request is there: run it, and answer or sleep. */
static enum MHD_Result execute(struct request *request, const char *path)
{
    struct error err = ERROR_INIT;
    request->started = true;
    int r = receive_end(request, &err);
    if (r == 0)
        r = request->route->handle(request, &err);
    if (r == 0 && request->waits_for[0] && !server_stopping(request->server)) {
        sleep_for_job(request, request->waits_for);
        return MHD_YES;
    }
    if (r < 0 && !err.errnum)
        (void)error_sys(&err, r, "%s %s", request->route->method, path);
    return r < 0 ? send_error(request, path, &err) : send_outcome(request, path);
}

static enum MHD_Result on_request(void *user, struct MHD_Connection *connection, const char *path, const char *method,
                                  const char *version, const char *data, size_t *length, void **context)
{
    struct server *server = user;
    struct request *request = *context;
    (void)version;
    if (!request) {
        request = *context = request_create(server, connection);
        if (!request)
            return MHD_NO;
        /* Answering before the body was read would close the connection under a client that still writes. */
        if (receive_headers(request, server->config, method, path, &request->refusal) < 0 && !request->refusal.errnum)
            (void)error_set(&request->refusal, ENOMEM, "out of memory");
        return MHD_YES;
    }
    if (*length) {
        size_t taken = *length;
        *length = 0;
        return receive_body(request, data, taken);
    }
    if (request->refusal.errnum)
        return send_error(request, path, &request->refusal);
    return request->started ? send_outcome(request, path) : execute(request, path);
}

/* The path and the parameters are unescaped by the route, segment by segment. */
static size_t keep_escapes(void *user, struct MHD_Connection *connection, char *text)
{
    (void)user;
    (void)connection;
    return strlen(text);
}

static void on_http_log(void *user, const char *format, va_list arguments)
{
    char line[512];
    (void)user;
    (void)vsnprintf(line, sizeof(line), format, arguments);
    line[strcspn(line, "\n")] = '\0';
    log_debug("http: %s", line);
}

/* ---- the server ---- */

int server_start(int listen_fd, const struct config *config, struct manager *manager, struct server **ret_server,
                 struct error *err)
{
    struct server *server = calloc(1, sizeof(*server));
    if (!server)
        return error_set(err, ENOMEM, "out of memory");
    server->config = config;
    server->manager = manager;
    (void)pthread_mutex_init(&server->lock, NULL);
    server->http = MHD_start_daemon(
        MHD_USE_EPOLL_INTERNAL_THREAD | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG, 0, NULL, NULL, on_request, server,
        MHD_OPTION_EXTERNAL_LOGGER, on_http_log, NULL, MHD_OPTION_LISTEN_SOCKET, listen_fd, MHD_OPTION_THREAD_POOL_SIZE,
        (unsigned)SERVER_THREADS, MHD_OPTION_CONNECTION_LIMIT, (unsigned)SERVER_CONNECTIONS,
        MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)SERVER_IDLE_SECONDS, MHD_OPTION_UNESCAPE_CALLBACK, keep_escapes, NULL,
        MHD_OPTION_NOTIFY_COMPLETED, on_completed, server, MHD_OPTION_END);
    if (!server->http) {
        server_free(server);
        return error_set(err, errno ? errno : EIO, "the HTTP server cannot be started");
    }
    *ret_server = server;
    return 0;
}

void server_tick(struct server *server)
{
    LOCK_SCOPE(&server->lock);
    for (struct stream_hook *hook = server->streams; hook; hook = hook->next)
        hook->wake(hook);
}

static bool server_busy(struct server *server)
{
    LOCK_SCOPE(&server->lock);
    return server->requests != NULL;
}

void server_stop(struct server *server)
{
    if (!server || !server->http)
        return;
    atomic_store(&server->stopping, true);
    int listen_fd = MHD_quiesce_daemon(server->http);
    close_fd(&listen_fd);
    (void)pthread_mutex_lock(&server->lock);
    for (struct request *request = server->requests; request; request = request->next)
        request_wake(request);
    (void)pthread_mutex_unlock(&server->lock);
    server_tick(server);
    for (int i = 0; i < DRAIN_STEPS && server_busy(server); i++) {
        struct timespec step = {.tv_nsec = DRAIN_STEP_MS * 1000000L};
        (void)nanosleep(&step, NULL);
    }
    MHD_stop_daemon(server->http);
    server->http = NULL;
}

struct server *server_free(struct server *server)
{
    if (!server)
        return NULL;
    (void)pthread_mutex_destroy(&server->lock);
    free(server);
    return NULL;
}
