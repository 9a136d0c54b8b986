// SPDX-License-Identifier: Apache-2.0
/*
 * The API client on libcurl's easy interface. The handle is reused, so the connection is; options are reset for each
 * request. The answer is parsed only when it is complete and within bounds.
 */
#include "common/client.h"

#include <curl/curl.h>
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/un.h>

#include "common/checked.h"
#include "common/cleanup.h"

struct client {
    CURL *curl;
    char *socket_path;
};

struct receiver {
    struct client *client;
    char *data; /* the whole body, or the line that is not complete yet */
    size_t length, capacity, limit;
    int (*on_line)(json_t *line, void *context); /* NULL = collect the body */
    void *context;
    int result; /* why the transfer was stopped: errno, or 1 for "enough" */
};

static pthread_once_t curl_once = PTHREAD_ONCE_INIT;

static void curl_start(void)
{
    (void)curl_global_init(CURL_GLOBAL_NOTHING);
}

int client_create(const char *socket_path, struct client **ret_client, struct error *err)
{
    if (strlen(socket_path) >= sizeof(((struct sockaddr_un *)NULL)->sun_path))
        return error_set(err, ENAMETOOLONG, "'%s' is longer than a Unix socket's path may be", socket_path);
    (void)pthread_once(&curl_once, curl_start);
    struct client *client = calloc(1, sizeof(*client));
    if (client) {
        client->curl = curl_easy_init();
        client->socket_path = strdup(socket_path);
    }
    if (!client || !client->curl || !client->socket_path) {
        client_destroy(client);
        return error_set(err, ENOMEM, "out of memory");
    }
    *ret_client = client;
    return 0;
}

struct client *client_destroy(struct client *client)
{
    if (!client)
        return NULL;
    if (client->curl)
        curl_easy_cleanup(client->curl);
    free(client->socket_path);
    free(client);
    return NULL;
}

char *client_escape(const char *text)
{
    static const char unreserved[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~";
    char *escaped = malloc(strlen(text) * 3 + 1), *out = escaped;
    if (!escaped)
        return NULL;
    for (; *text; text++) {
        if (strchr(unreserved, *text))
            *out++ = *text;
        else
            out += sprintf(out, "%%%02X", (unsigned char)*text);
    }
    *out = '\0';
    return escaped;
}

/* ---- receiving ---- */

static int receiver_append(struct receiver *receiver, const char *data, size_t length)
{
    if (length > receiver->limit - receiver->length)
        return -EMSGSIZE;
    size_t need = receiver->length + length;
    if (need > receiver->capacity) {
        size_t capacity = MAX(need, receiver->capacity * 2 + 4096);
        char *grown = realloc(receiver->data, capacity);
        if (!grown)
            return -ENOMEM;
        receiver->data = grown;
        receiver->capacity = capacity;
    }
    memcpy(receiver->data + receiver->length, data, length);
    receiver->length = need;
    return 0;
}

/* Hands every complete line in `data` on and keeps the rest. */
static int receiver_lines(struct receiver *receiver, const char *data, size_t length)
{
    while (length) {
        const char *end = memchr(data, '\n', length);
        size_t part = end ? (size_t)(end - data) : length;
        int r = receiver_append(receiver, data, part);
        if (r < 0 || !end)
            return r;
        size_t line_length = receiver->length;
        receiver->length = 0;
        data += part + 1;
        length -= part + 1;
        if (!line_length) /* an empty line only keeps the connection alive */
            continue;
        json_t *line = json_loadb(receiver->data, line_length, JSON_REJECT_DUPLICATES, NULL);
        if (!json_is_object(line)) {
            json_decref(line);
            return -EBADMSG;
        }
        r = receiver->on_line(line, receiver->context);
        json_decref(line);
        if (r)
            return r;
    }
    return 0;
}

static size_t on_data(char *data, size_t size, size_t count, void *user)
{
    struct receiver *receiver = user;
    long status = 0;
    (void)curl_easy_getinfo(receiver->client->curl, CURLINFO_RESPONSE_CODE, &status);
    bool lines = receiver->on_line && status < 400;
    receiver->result =
        lines ? receiver_lines(receiver, data, size * count) : receiver_append(receiver, data, size * count);
    return receiver->result ? 0 : size * count; /* taking less stops the transfer */
}

/* ---- what went wrong ---- */

/* curl names a host and a port that mean nothing here; the system's reason is what helps. */
static const char *connect_reason(const struct client *client, long *ret_errno)
{
    (void)curl_easy_getinfo(client->curl, CURLINFO_OS_ERRNO, ret_errno);
    if (!*ret_errno && access(client->socket_path, W_OK) < 0)
        *ret_errno = errno;
    if (!*ret_errno)
        *ret_errno = ECONNREFUSED;
    return strerrordesc_np((int)*ret_errno);
}

static int transport_error(const struct client *client, CURLcode code, const char *detail, struct error *err)
{
    long os_errno = 0;
    switch (code) {
    case CURLE_OPERATION_TIMEDOUT:
        return error_set(err, ETIMEDOUT, "platterd did not answer in time");
    case CURLE_OUT_OF_MEMORY:
        return error_set(err, ENOMEM, "out of memory");
    case CURLE_COULDNT_CONNECT:
        detail = connect_reason(client, &os_errno);
        if (os_errno == EACCES || os_errno == EPERM) {
            (void)error_set(err, EACCES, "no permission to use '%s'", client->socket_path);
            return error_hint(err, "become root or a member of the group that owns the socket");
        }
        break;
    default:
        break;
    }
    (void)error_set(err, ECONNREFUSED, "cannot reach platterd at '%s': %s", client->socket_path,
                    detail && detail[0] ? detail : curl_easy_strerror(code));
    (void)error_code(err, CLIENT_UNREACHABLE);
    return error_hint(err, "systemctl status platterd");
}

/* The errno that stands for an answer's code word and status. */
static int answer_errno(const char *word, int status)
{
    static const struct {
        const char *word;
        int errnum;
    } words[] = {
        {"not-found", ENOENT},    {"exists", EEXIST},    {"busy", EBUSY},          {"no-space", ENOSPC},
        {"invalid", EINVAL},      {"forbidden", EACCES}, {"timed-out", ETIMEDOUT}, {"unsupported", EOPNOTSUPP},
        {"cancelled", ECANCELED}, {"corrupt", EBADMSG},
    };
    for (size_t i = 0; i < ARRAY_SIZE(words); i++) {
        if (strcmp(words[i].word, word) == 0)
            return words[i].errnum;
    }
    switch (status) {
    case 400:
    case 413:
        return EINVAL;
    case 401:
    case 403:
        return EACCES;
    case 404:
        return ENOENT;
    case 409:
        return strstr(word, "exist") ? EEXIST : EBUSY;
    case 405:
    case 422:
    case 501:
        return EOPNOTSUPP;
    case 507:
        return ENOSPC;
    case 504:
        return ETIMEDOUT;
    default:
        return EIO;
    }
}

static const char *text_member(const json_t *object, const char *name)
{
    const char *text = json_string_value(json_object_get(object, name));
    return text ? text : "";
}

int client_error(const json_t *answer, int status, struct error *err)
{
    const json_t *error = json_object_get(answer, "error");
    const char *word = text_member(error, "code");
    if (!json_is_object(error))
        return error_set(err, EIO, "platterd answered with HTTP status %d", status);
    const char *message = text_member(error, "message");
    (void)error_set(err, answer_errno(word, status), "%s", message[0] ? message : word);
    (void)error_code(err, word);
    (void)error_holder(err, text_member(error, "holder"));
    return error_hint(err, "%s", text_member(error, "hint"));
}

/* ---- asking ---- */

static int perform(struct client *client, const char *method, const char *path, const char *body, int timeout_ms,
                   struct receiver *receiver, long *ret_status, struct error *err)
{
    char url[8192], detail[CURL_ERROR_SIZE] = "";
    int n = snprintf(url, sizeof(url), "http://platter%s", path);
    if (n < 0 || (size_t)n >= sizeof(url))
        return error_set(err, ENAMETOOLONG, "the request is too long");
    CURL *curl = client->curl;
    curl_easy_reset(curl);
    struct curl_slist *headers = curl_slist_append(NULL, "Content-Type: application/json");
    CURLcode code = headers ? CURLE_OK : CURLE_OUT_OF_MEMORY;
#define SET(option, value) (code = code ? code : curl_easy_setopt(curl, option, value))
    SET(CURLOPT_NOSIGNAL, 1L);
    SET(CURLOPT_ERRORBUFFER, detail);
    SET(CURLOPT_UNIX_SOCKET_PATH, client->socket_path);
    SET(CURLOPT_PROXY, ""); /* an http_proxy in the environment is not meant for us */
    SET(CURLOPT_URL, url);
    SET(CURLOPT_CUSTOMREQUEST, method);
    SET(CURLOPT_WRITEFUNCTION, on_data);
    SET(CURLOPT_WRITEDATA, receiver);
    SET(CURLOPT_TIMEOUT_MS, timeout_ms < 0 ? 0L : MAX((long)timeout_ms, 1L));
    if (body) {
        SET(CURLOPT_HTTPHEADER, headers);
        SET(CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)strlen(body));
        SET(CURLOPT_POSTFIELDS, body);
    }
#undef SET
    if (code == CURLE_OK)
        code = curl_easy_perform(curl);
    curl_slist_free_all(headers);
    curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, NULL);
    (void)curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, ret_status);
    if (receiver->result > 0)
        return 0;
    if (receiver->result < 0)
        return error_sys(err, receiver->result, "the answer of platterd cannot be read");
    return code == CURLE_OK ? 0 : transport_error(client, code, detail, err);
}

/* The collected body as JSON; NULL in *ret_body when it is empty. */
static int parse_body(const struct receiver *receiver, json_t **ret_body, struct error *err)
{
    *ret_body = NULL;
    if (!receiver->length)
        return 0;
    *ret_body = json_loadb(receiver->data, receiver->length, JSON_REJECT_DUPLICATES, NULL);
    return *ret_body ? 0 : error_set(err, EBADMSG, "the answer of platterd is no JSON");
}

int client_request(struct client *client, const char *method, const char *path, const json_t *body, int timeout_ms,
                   struct client_reply *ret_reply, struct error *err)
{
    CLEANUP_FREE char *text = body ? json_dumps(body, JSON_COMPACT) : NULL;
    if (body && !text)
        return error_set(err, ENOMEM, "out of memory");
    struct receiver receiver = {.client = client, .limit = CLIENT_BODY_MAX};
    struct client_reply reply = {0};
    long status = 0;
    int r = perform(client, method, path, text, timeout_ms, &receiver, &status, err);
    if (r == 0)
        r = parse_body(&receiver, &reply.body, err);
    free(receiver.data);
    if (r == 0 && status >= 400)
        r = client_error(reply.body, (int)status, err);
    if (r < 0) {
        client_reply_clear(&reply);
        return r;
    }
    reply.status = (int)status;
    *ret_reply = reply;
    return 0;
}

int client_stream(struct client *client, const char *path, int (*on_line)(json_t *line, void *context), void *context,
                  int timeout_ms, struct error *err)
{
    struct receiver receiver = {.client = client, .limit = CLIENT_LINE_MAX, .on_line = on_line, .context = context};
    long status = 0;
    int r = perform(client, "GET", path, NULL, timeout_ms, &receiver, &status, err);
    if (r == 0 && status >= 400) {
        json_t *body;
        r = parse_body(&receiver, &body, err);
        if (r == 0) {
            r = client_error(body, (int)status, err);
            json_decref(body);
        }
    }
    free(receiver.data);
    return r;
}
