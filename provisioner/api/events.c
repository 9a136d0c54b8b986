// SPDX-License-Identifier: Apache-2.0
/*
 * GET /v1/events: JSON lines from a sequence number on. A stream holds at most one batch, read from the catalogue when
 * the reader has taken the one before, so a slow reader costs the same as a fast one; what the catalogue forgot
 * meanwhile shows as a gap in the numbers. A stream without news sleeps (suspended) and is woken by the manager, by the
 * server's tick, which sends an empty line so that a dead reader is noticed, or by the server's stop, which ends it.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/checked.h"
#include "common/cleanup.h"
#include "provisioner/api/handlers.h"
#include "provisioner/api/server.h"

#define BATCH_EVENTS 64
#define BLOCK_SIZE 16384

struct stream {
    struct stream_hook hook; /* first: the server knows the stream by it */
    struct server *server;
    struct manager *manager;
    struct MHD_Connection *connection;
    struct event_subscription *subscription;
    bool follow;
    uint64_t after; /* the last event in the batch */
    char *batch;
    size_t length, taken;

    pthread_mutex_t lock;
    uint64_t newest; /* that the manager told of */
    bool suspended, ticked;
};

static void stream_resume(struct stream *stream)
{
    if (stream->suspended)
        MHD_resume_connection(stream->connection);
    stream->suspended = false;
}

static void on_event(void *arg, uint64_t seq)
{
    struct stream *stream = arg;
    LOCK_SCOPE(&stream->lock);
    stream->newest = MAX(stream->newest, seq);
    stream_resume(stream);
}

static void on_tick(struct stream_hook *hook)
{
    struct stream *stream = (struct stream *)hook;
    LOCK_SCOPE(&stream->lock);
    stream->ticked = true;
    stream_resume(stream);
}

static void stream_free(void *arg)
{
    struct stream *stream = arg;
    if (stream->follow)
        server_remove_stream(stream->server, &stream->hook);
    if (stream->subscription)
        (void)manager_event_unsubscribe(stream->manager, stream->subscription);
    (void)pthread_mutex_destroy(&stream->lock);
    free(stream->batch);
    free(stream);
}

static int append_line(struct stream *stream, const json_t *event)
{
    CLEANUP_FREE char *line = json_dumps(event, JSON_COMPACT);
    if (!line)
        return -ENOMEM;
    size_t length = strlen(line);
    char *grown = realloc(stream->batch, stream->length + length + 1);
    if (!grown)
        return -ENOMEM;
    stream->batch = grown;
    line[length] = '\n'; /* in place of the NUL: lines are bytes from here on */
    memcpy(grown + stream->length, line, length + 1);
    stream->length += length + 1;
    return 0;
}

/* Reads the next batch; an empty one is no error. */
static int fill(struct stream *stream)
{
    json_t *events, *event;
    size_t index;
    stream->length = stream->taken = 0;
    int r = manager_event_list(stream->manager, stream->after, BATCH_EVENTS, &events, NULL);
    if (r < 0)
        return r;
    json_array_foreach (events, index, event) {
        r = append_line(stream, event);
        if (r < 0)
            break;
        stream->after = (uint64_t)json_integer_value(json_object_get(event, "seq"));
    }
    json_decref(events);
    return r;
}

/* Nothing new: sleep, unless something came meanwhile. Returns what the reader shall answer. */
static ssize_t rest(struct stream *stream, char *block)
{
    LOCK_SCOPE(&stream->lock);
    if (server_stopping(stream->server))
        return MHD_CONTENT_READER_END_OF_STREAM;
    if (stream->ticked) {
        stream->ticked = false;
        block[0] = '\n';
        return 1;
    }
    if (stream->newest <= stream->after) {
        stream->suspended = true;
        MHD_suspend_connection(stream->connection);
    }
    return 0;
}

static ssize_t on_read(void *arg, uint64_t position, char *block, size_t max)
{
    struct stream *stream = arg;
    (void)position;
    if (max == 0)
        return 0;
    if (stream->taken == stream->length) {
        if (server_stopping(stream->server))
            return MHD_CONTENT_READER_END_OF_STREAM;
        if (fill(stream) < 0)
            return MHD_CONTENT_READER_END_WITH_ERROR;
        if (stream->length == 0)
            return stream->follow ? rest(stream, block) : MHD_CONTENT_READER_END_OF_STREAM;
    }
    size_t length = MIN(max, stream->length - stream->taken);
    memcpy(block, stream->batch + stream->taken, length);
    stream->taken += length;
    return (ssize_t)length;
}

int handle_event_list(struct request *request, struct error *err)
{
    uint64_t after = 0, follow = 0;
    int r = request_query_number(request, "after", INT64_MAX, 0, &after, err);
    if (r == 0)
        r = request_query_number(request, "follow", 1, 0, &follow, err);
    if (r < 0)
        return r;
    struct stream *stream = calloc(1, sizeof(*stream));
    if (!stream)
        return error_set(err, ENOMEM, "out of memory");
    stream->server = request->server;
    stream->manager = request->manager;
    stream->connection = request->connection;
    stream->after = after;
    (void)pthread_mutex_init(&stream->lock, NULL);
    if (follow) {
        r = manager_event_subscribe(stream->manager, on_event, stream, &stream->subscription, err);
        if (r < 0) {
            stream_free(stream);
            return r;
        }
        stream->follow = true;
        stream->hook.wake = on_tick;
        server_add_stream(stream->server, &stream->hook);
    }
    request->status = MHD_HTTP_OK;
    request->response = MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, BLOCK_SIZE, on_read, stream, stream_free);
    if (!request->response) {
        stream_free(stream);
        return error_set(err, ENOMEM, "out of memory");
    }
    (void)MHD_add_response_header(request->response, MHD_HTTP_HEADER_CONTENT_TYPE, "application/x-ndjson");
    return 0;
}
