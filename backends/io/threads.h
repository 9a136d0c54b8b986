/* SPDX-License-Identifier: Apache-2.0 */
/* Inside the thread-pool engine: what threads.c and threads_fd.c share. Loop's thread unless said otherwise. */
#ifndef PLATTER_BACKENDS_IO_THREADS_H
#define PLATTER_BACKENDS_IO_THREADS_H

#include "backends/io/engine.h"

/* One operation handed to the engine. */
struct work {
    struct io_op *op;
    int result;
    struct work *next;
};

struct work_list {
    struct work *head;
    struct work **tail;
};

struct threads {
    struct work *cells; /* one for each operation in flight */
    struct work *free;
    struct work_list files;  /* file operations started in this turn */
    struct work_list fds;    /* descriptor operations to be tried in this turn */
    struct work_list parked; /* descriptor operations that wait until their descriptor is ready */
    int epoll;               /* watches, the wake-up, and parked_epoll */
    int parked_epoll;        /* descriptors of parked operations, one-shot */

    pthread_mutex_t lock;
    pthread_cond_t work;
    struct work_list todo; /* under lock */
    unsigned idle;         /* under lock: workers asleep */
    bool ending;           /* under lock */

    _Atomic(struct work *) done; /* workers push, newest first */
    unsigned workers;
    pthread_t worker[IO_WORKERS];
};

static inline void work_list_init(struct work_list *list)
{
    list->head = NULL;
    list->tail = &list->head;
}

static inline void work_list_append(struct work_list *list, struct work *work)
{
    work->next = NULL;
    *list->tail = work;
    list->tail = &work->next;
}

/* Give the cell back and complete its operation. */
void work_finish(struct io_loop *loop, struct work *work, int result);

/* Try what was started in this turn; what would block is parked. Returns completions. */
int fd_work_run(struct io_loop *loop);
/* Some parked descriptor is ready: try again. Returns completions. */
int fd_work_ready(struct io_loop *loop);

#endif
