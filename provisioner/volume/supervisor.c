// SPDX-License-Identifier: Apache-2.0
#include "provisioner/volume/supervisor.h"

#include <errno.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "common/cleanup.h"

static void *supervisor_main(void *arg)
{
    struct manager *m = arg;
    struct epoll_event events[16];
    for (;;) {
        int n = epoll_wait(m->epoll_fd, events, 16, -1);
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;
            if (fd == m->wake_fd)
                return NULL;
            if (fd == m->timer_fd) {
                (void)!read(m->timer_fd, &(uint64_t){0}, sizeof(uint64_t));
                watch_expire(m);
            } else {
                server_ended(m, fd);
            }
        }
    }
}

void supervisor_set_timer(struct manager *m, int64_t at_ms)
{
    struct itimerspec spec = {0};
    if (at_ms != INT64_MAX) {
        int64_t at = at_ms > 0 ? at_ms : 1;
        spec.it_value = (struct timespec){.tv_sec = at / 1000, .tv_nsec = (at % 1000) * 1000000 + 1};
    }
    (void)timerfd_settime(m->timer_fd, TFD_TIMER_ABSTIME, &spec, NULL);
}

static int supervisor_add(struct manager *m, int fd)
{
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    return epoll_ctl(m->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
}

int supervisor_start(struct manager *m, struct error *err)
{
    m->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    m->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    m->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (m->epoll_fd < 0 || m->wake_fd < 0 || m->timer_fd < 0 || supervisor_add(m, m->wake_fd) < 0 ||
        supervisor_add(m, m->timer_fd) < 0)
        return error_sys(err, errno, "start the supervisor");
    sigset_t all, old;
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &old);
    int r = pthread_create(&m->supervisor, NULL, supervisor_main, m);
    (void)pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (r)
        return error_sys(err, r, "start the supervisor");
    m->supervisor_running = true;
    return 0;
}

void supervisor_stop(struct manager *m)
{
    if (m->supervisor_running) {
        (void)!write(m->wake_fd, &(uint64_t){1}, sizeof(uint64_t));
        (void)pthread_join(m->supervisor, NULL);
        m->supervisor_running = false;
    }
    close_fd(&m->epoll_fd);
    close_fd(&m->wake_fd);
    close_fd(&m->timer_fd);
}
