/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Scope-bound cleanup: a variable marked CLEANUP_x is released when it leaves its scope. Handing it over is
 * visible: `return steal_ptr(&p);`, `x->fd = steal_fd(&fd);`. errno survives every cleanup here.
 */
#ifndef PLATTER_COMMON_CLEANUP_H
#define PLATTER_COMMON_CLEANUP_H

#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static inline void cleanup_free(void *p)
{
    free(*(void **)p);
}

static inline void cleanup_close(const int *fd)
{
    int saved = errno;
    if (*fd >= 0)
        (void)close(*fd); /* a scratch descriptor: whoever needs the result closes it by hand */
    errno = saved;
}

static inline void cleanup_fclose(FILE **f)
{
    int saved = errno;
    if (*f)
        (void)fclose(*f);
    errno = saved;
}

static inline void cleanup_closedir(DIR **d)
{
    int saved = errno;
    if (*d)
        (void)closedir(*d);
    errno = saved;
}

static inline void cleanup_unlock(pthread_mutex_t **m)
{
    if (*m)
        (void)pthread_mutex_unlock(*m);
}

#define CLEANUP(fn) __attribute__((cleanup(fn)))
#define CLEANUP_FREE CLEANUP(cleanup_free)
#define CLEANUP_CLOSE CLEANUP(cleanup_close)
#define CLEANUP_FCLOSE CLEANUP(cleanup_fclose)
#define CLEANUP_CLOSEDIR CLEANUP(cleanup_closedir)

#define CLEANUP(fn) __attribute__((cleanup(fn)))
#define CLEANUP_FREE CLEANUP(cleanup_free)
#define CLEANUP_CLOSE CLEANUP(cleanup_close)
#define CLEANUP_FCLOSE CLEANUP(cleanup_fclose)
#define CLEANUP_CLOSEDIR CLEANUP(cleanup_closedir)

/* Holds `m` until the end of the scope; at most one in a scope. */
#define LOCK_SCOPE(m)                                                                                                  \
    CLEANUP(cleanup_unlock) pthread_mutex_t *lock_scope_ = (m);                                                        \
    (void)pthread_mutex_lock(lock_scope_)

/* The value of *p, leaving NULL behind: ownership moves to the receiver. */
#define steal_ptr(p)                                                                                                   \
    ({                                                                                                                 \
        __typeof__(*(p)) stolen_ = *(p);                                                                               \
        *(p) = NULL;                                                                                                   \
        stolen_;                                                                                                       \
    })

/* The descriptor in *fd, leaving -1 behind. */
static inline int steal_fd(int *fd)
{
    int stolen = *fd;
    *fd = -1;
    return stolen;
}

/* Closes *fd if open and leaves -1. */
static inline void close_fd(int *fd)
{
    cleanup_close(fd);
    *fd = -1;
}

#endif
