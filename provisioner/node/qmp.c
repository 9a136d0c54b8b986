// SPDX-License-Identifier: Apache-2.0
#include "provisioner/node/qmp.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "common/cleanup.h"

#define QMP_LINE_MAX (4 << 20) /* query-pci of a big guest takes some 100 KiB */

struct qmp {
    int fd, deadline_ms;
    char *buffer;
    size_t length, room;
    json_t *deleted; /* ids of DEVICE_DELETED events seen so far */
};

static int64_t now_ms(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static int qmp_wait(int fd, short events, int64_t deadline)
{
    struct pollfd poll_fd = {.fd = fd, .events = events};
    for (;;) {
        int64_t left = deadline - now_ms();
        int n = poll(&poll_fd, 1, left > 0 ? (int)left : 0);
        if (n > 0)
            return 0;
        if (n == 0)
            return -ETIMEDOUT;
        if (errno != EINTR)
            return -errno;
    }
}

static int qmp_fill(struct qmp *q, int64_t deadline)
{
    if (q->length == q->room) {
        size_t room = q->room ? q->room * 2 : 16384;
        char *bigger = room > QMP_LINE_MAX ? NULL : realloc(q->buffer, room);
        if (!bigger)
            return -EMSGSIZE;
        q->buffer = bigger;
        q->room = room;
    }
    int r = qmp_wait(q->fd, POLLIN, deadline);
    if (r < 0)
        return r;
    ssize_t n = recv(q->fd, q->buffer + q->length, q->room - q->length, MSG_DONTWAIT);
    if (n <= 0)
        return n == 0 ? -EPIPE : errno == EAGAIN || errno == EINTR ? 0 : -errno;
    q->length += (size_t)n;
    return 0;
}

/* The next object that QEMU sends, whatever it is. */
static int qmp_read(struct qmp *q, int64_t deadline, json_t **ret_object)
{
    for (;;) {
        char *end = q->length ? memchr(q->buffer, '\n', q->length) : NULL;
        if (end) {
            size_t line = (size_t)(end - q->buffer);
            json_t *object = json_loadb(q->buffer, line, 0, NULL);
            q->length -= line + 1;
            memmove(q->buffer, end + 1, q->length);
            if (!json_is_object(object)) {
                json_decref(object);
                return -EBADMSG;
            }
            *ret_object = object;
            return 0;
        }
        int r = qmp_fill(q, deadline);
        if (r < 0)
            return r;
    }
}

static void qmp_note_event(struct qmp *q, const json_t *object)
{
    const char *event = json_string_value(json_object_get(object, "event"));
    json_t *device = json_object_get(json_object_get(object, "data"), "device");
    if (event && strcmp(event, "DEVICE_DELETED") == 0 && json_is_string(device))
        (void)json_array_append(q->deleted, device);
}

/* Read until an answer ("return" or "error") or, for the greeting, "QMP" comes; events on the way are noted. */
static int qmp_answer(struct qmp *q, int64_t deadline, json_t **ret_object)
{
    for (;;) {
        json_t *object;
        int r = qmp_read(q, deadline, &object);
        if (r < 0)
            return r;
        if (json_object_get(object, "return") || json_object_get(object, "error") || json_object_get(object, "QMP")) {
            *ret_object = object;
            return 0;
        }
        qmp_note_event(q, object);
        json_decref(object);
    }
}

static int qmp_send(struct qmp *q, const char *text, int64_t deadline)
{
    size_t length = strlen(text);
    while (length) {
        int r = qmp_wait(q->fd, POLLOUT, deadline);
        if (r < 0)
            return r;
        ssize_t n = send(q->fd, text, length, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno != EAGAIN && errno != EINTR)
            return -errno;
        if (n > 0) {
            text += n;
            length -= (size_t)n;
        }
    }
    return 0;
}

static int qmp_refused(const json_t *error, const char *command, struct error *err)
{
    const char *class = json_string_value(json_object_get(error, "class"));
    const char *text = json_string_value(json_object_get(error, "desc"));
    int number = class && strcmp(class, "DeviceNotFound") == 0 ? ENODEV : EREMOTEIO;
    return error_set(err, number, "QEMU refused %s: %s", command, text ? text : "it did not say why");
}

int qmp_execute(struct qmp *q, const char *command, json_t *arguments, json_t **ret_result, struct error *err)
{
    json_t *request = json_pack("{s:s}", "execute", command);
    if (arguments)
        (void)json_object_set_new(request, "arguments", arguments);
    CLEANUP_FREE char *text = json_dumps(request, JSON_COMPACT);
    json_decref(request);
    int64_t deadline = now_ms() + q->deadline_ms;
    json_t *answer = NULL;
    int r = text ? qmp_send(q, text, deadline) : -ENOMEM;
    if (r == 0)
        r = qmp_send(q, "\n", deadline);
    if (r == 0)
        r = qmp_answer(q, deadline, &answer);
    if (r < 0)
        return error_sys(err, r, "QMP command %s", command);
    const json_t *error = json_object_get(answer, "error");
    if (error)
        r = qmp_refused(error, command, err);
    else if (ret_result)
        *ret_result = json_incref(json_object_get(answer, "return"));
    json_decref(answer);
    return r;
}

int qmp_create(int fd, int deadline_ms, struct qmp **ret_qmp, struct error *err)
{
    struct qmp *q = calloc(1, sizeof(*q));
    if (!q) {
        (void)close(fd);
        return error_sys(err, ENOMEM, "QMP");
    }
    q->fd = fd;
    q->deadline_ms = deadline_ms;
    q->deleted = json_array();
    json_t *greeting = NULL;
    int r = qmp_answer(q, now_ms() + deadline_ms, &greeting);
    if (r < 0)
        (void)error_sys(err, r, "QMP greeting (is another client connected?)");
    else if (!json_object_get(greeting, "QMP"))
        r = error_set(err, EBADMSG, "what listens there is not a QMP monitor");
    json_decref(greeting);
    if (r == 0)
        r = qmp_execute(q, "qmp_capabilities", NULL, NULL, err);
    if (r < 0) {
        qmp_destroy(q);
        return r;
    }
    *ret_qmp = q;
    return 0;
}

struct qmp *qmp_destroy(struct qmp *q)
{
    if (q) {
        close_fd(&q->fd);
        json_decref(q->deleted);
        free(q->buffer);
        free(q);
    }
    return NULL;
}

/* ---- disks ------------------------------------------------------------------------------------------------- */

static json_t *disk_backend(const struct qmp_disk *d)
{
    if (d->nbd)
        return json_pack("{s:s, s:s, s:s, s:{s:s, s:s}, s:s, s:i}", "driver", "nbd", "node-name", d->id, "discard",
                         "unmap", "server", "type", "unix", "path", d->socket, "export", d->name, "reconnect-delay",
                         10);
    return json_pack("{s:s, s:{s:s, s:{s:{s:s, s:{s:s}}, s:b}}}", "id", d->id, "backend", "type", "socket", "data",
                     "addr", "type", "unix", "data", "path", d->socket, "server", 0);
}

static json_t *disk_device(const struct qmp_disk *d, const char *bus)
{
    json_t *device = d->nbd ? json_pack("{s:s, s:s, s:s, s:s}", "driver", "virtio-blk-pci", "drive", d->id, "id", d->id,
                                        "serial", d->serial)
                            : json_pack("{s:s, s:s, s:s, s:i}", "driver", "vhost-user-blk-pci", "chardev", d->id, "id",
                                        d->id, "num-queues", (int)d->queues);
    if (bus)
        (void)json_object_set_new(device, "bus", json_string(bus));
    return device;
}

json_t *qmp_commands(const struct qmp_disk *d)
{
    return json_pack("[{s:s, s:o}, {s:s, s:o}]", "execute", d->nbd ? "blockdev-add" : "chardev-add", "arguments",
                     disk_backend(d), "execute", "device_add", "arguments", disk_device(d, NULL));
}

/* Append the ids of bridges without devices below; they may be root ports that take a disk. */
static void find_ports(const json_t *devices, json_t *ports, int depth)
{
    size_t i = 0;
    json_t *device;
    json_array_foreach (devices, i, device) {
        const json_t *bridge = json_object_get(device, "pci_bridge");
        if (!bridge)
            continue;
        const json_t *below = json_object_get(bridge, "devices");
        json_t *id = json_object_get(device, "qdev_id");
        if (json_array_size(below) == 0 && json_string_length(id) > 0)
            (void)json_array_append(ports, id);
        else if (depth < 8)
            find_ports(below, ports, depth + 1);
    }
}

static int free_ports(struct qmp *q, json_t **ret_ports, struct error *err)
{
    json_t *buses;
    int r = qmp_execute(q, "query-pci", NULL, &buses, err);
    if (r < 0)
        return r;
    json_t *ports = json_array(), *bus;
    size_t i = 0;
    json_array_foreach (buses, i, bus)
        find_ports(json_object_get(bus, "devices"), ports, 0);
    json_decref(buses);
    *ret_ports = ports;
    return 0;
}

static bool device_is_there(struct qmp *q, const char *id)
{
    json_t *list = NULL, *entry;
    size_t i = 0;
    bool found = false;
    if (qmp_execute(q, "qom-list", json_pack("{s:s}", "path", "/machine/peripheral"), &list, NULL) < 0)
        return false;
    json_array_foreach (list, i, entry) {
        const char *name = json_string_value(json_object_get(entry, "name"));
        found = found || (name && strcmp(name, id) == 0);
    }
    json_decref(list);
    return found;
}

static int remove_backend(struct qmp *q, const struct qmp_disk *d, struct error *err)
{
    if (d->nbd)
        return qmp_execute(q, "blockdev-del", json_pack("{s:s}", "node-name", d->id), NULL, err);
    return qmp_execute(q, "chardev-remove", json_pack("{s:s}", "id", d->id), NULL, err);
}

/* Try every free port, last the root bus: which of them takes a disk only QEMU knows. */
static int add_device(struct qmp *q, const struct qmp_disk *d, struct error *err)
{
    json_t *ports;
    int r = free_ports(q, &ports, err);
    if (r < 0)
        return r;
    r = -ENODEV;
    for (size_t i = 0; i < json_array_size(ports) && r < 0 && r != -ETIMEDOUT && r != -EPIPE; i++)
        r = qmp_execute(q, "device_add", disk_device(d, json_string_value(json_array_get(ports, i))), NULL, err);
    if (json_array_size(ports) == 0)
        r = qmp_execute(q, "device_add", disk_device(d, NULL), NULL, err);
    if (r < 0 && json_array_size(ports) == 0)
        (void)error_hint(err, "give the guest a free pcie-root-port for each disk");
    json_decref(ports);
    return r;
}

int qmp_plug(struct qmp *q, const struct qmp_disk *d, struct error *err)
{
    if (device_is_there(q, d->id))
        return 0;
    (void)remove_backend(q, d, NULL); /* of an attempt that was cut off; usually there is none */
    int r = qmp_execute(q, d->nbd ? "blockdev-add" : "chardev-add", disk_backend(d), NULL, err);
    if (r < 0)
        return r;
    r = add_device(q, d, err);
    if (r < 0)
        (void)remove_backend(q, d, NULL);
    return r;
}

static bool was_deleted(const struct qmp *q, const char *id)
{
    for (size_t i = 0; i < json_array_size(q->deleted); i++) {
        if (strcmp(json_string_value(json_array_get(q->deleted, i)), id) == 0)
            return true;
    }
    return false;
}

static int wait_deleted(struct qmp *q, const char *id, struct error *err)
{
    int64_t deadline = now_ms() + q->deadline_ms;
    while (!was_deleted(q, id)) {
        json_t *object;
        int r = qmp_read(q, deadline, &object);
        if (r == -ETIMEDOUT) {
            (void)error_set(err, EBUSY, "the guest does not give the disk '%s' back", id);
            return error_code(err, "target-busy");
        }
        if (r < 0)
            return error_sys(err, r, "wait for QEMU to remove '%s'", id);
        qmp_note_event(q, object);
        json_decref(object);
    }
    return 0;
}

int qmp_unplug(struct qmp *q, const struct qmp_disk *d, struct error *err)
{
    if (device_is_there(q, d->id)) {
        int r = qmp_execute(q, "device_del", json_pack("{s:s}", "id", d->id), NULL, err);
        /* A request that is pending already is refused; its end is waited for all the same. */
        if (r < 0 && r != -ENODEV && r != -EREMOTEIO)
            return r;
        if (r != -ENODEV) {
            r = wait_deleted(q, d->id, err);
            if (r < 0)
                return r;
        }
    }
    int r = remove_backend(q, d, err);
    return r == -EREMOTEIO || r == -ENODEV ? 0 : r; /* there is none */
}
