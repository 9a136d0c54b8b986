/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The NBD export inside: what its files share. nbd.c has the export, its threads and the listener; each connection
 * (nbd_connection.h) belongs to one thread.
 */
#ifndef PLATTER_PROVISIONER_BLK_NBD_EXPORT_H
#define PLATTER_PROVISIONER_BLK_NBD_EXPORT_H

#include <semaphore.h>
#include <stdatomic.h>

#include "provisioner/blk/export_thread.h"

#define NBD_THREADS_MAX 8u
#define NBD_CONNECTIONS_MAX 16u
#define NBD_HANDSHAKE_NS UINT64_C(10000000000)
#define NBD_STOP_NS UINT64_C(5000000000)

struct nbd_connection;
struct nbd_export;

struct nbd_thread {
    struct export_thread base;
    struct nbd_export *export;
    struct nbd_connection *connections; /* all of this thread */
    struct nbd_connection *dirty;       /* those with answers that wait for the end of the turn */
    struct io_hook hook;                /* sends them */
    struct io_timer deadline;           /* at stop: for clients that do not read */
    struct io_task stop;
    bool stopping;
};

struct nbd_export {
    struct export base;
    char *name; /* as clients may ask for it; "" is always served too */
    struct image *image;
    int fd;                /* listening socket, non-blocking */
    _Atomic uint64_t size; /* bytes, what a new client is told */
    uint32_t preferred;    /* bytes, power of two */
    bool read_only;
    bool fast_zero; /* zeroes that may give space back are fast */
    unsigned thread_count;
    _Atomic unsigned clients;

    /* The first thread's. */
    struct io_watch listener;
    struct io_timer retry; /* when there are no descriptors to accept with */
    struct io_task call;   /* begins or ends listening ... */
    sem_t called;          /* ... and says that it did */
    int listen_result;
    unsigned next_thread;

    struct nbd_thread threads[NBD_THREADS_MAX];
};

/* I/O thread: a connection of the thread was destroyed. */
void nbd_thread_connection_gone(struct nbd_thread *thread);

#endif
