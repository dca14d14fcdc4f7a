/* SPDX-License-Identifier: BSD-2-Clause */
/* Errors, clocks, and threads that wait. */
#define _GNU_SOURCE
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <time.h>
#include "base.h"
#include "xdpkit.h"

static _Thread_local const char *failed_call = "";

const char *xk_failed_call(void)
{
	return failed_call;
}

int xk_fail(const char *call, int error)
{
	failed_call = call;
	return -error;
}

uint64_t xk_clock_ns(int clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

uint64_t xk_clock_offset(void)
{
	static int64_t known;
	int64_t before = (int64_t)xk_clock_ns(CLOCK_MONOTONIC), real = (int64_t)xk_clock_ns(CLOCK_REALTIME);
	int64_t low = real - (int64_t)xk_clock_ns(CLOCK_MONOTONIC), high = real - before;
	int64_t offset = __atomic_load_n(&known, __ATOMIC_RELAXED);

	if (offset < low || offset > high) {
		offset = offset < low ? low : high;
		__atomic_store_n(&known, offset, __ATOMIC_RELAXED);
	}
	return (uint64_t)offset;
}

uint32_t xk_sleep(struct pollfd *fds, unsigned long n, int timeout_ms, uint32_t looks)
{
	uint64_t start = xk_clock_ns(CLOCK_MONOTONIC);

	poll(fds, n, timeout_ms);
	return xk_clock_ns(CLOCK_MONOTONIC) - start < XK_SHORT_NS ? XK_LOOKS : looks / 2;
}

void xk_nap(int stop_fd)
{
	struct pollfd stop = { .fd = stop_fd, .events = POLLIN };
	struct timespec nap = { .tv_nsec = XK_NAP_NS };

	ppoll(&stop, 1, &nap, NULL);
}

int xk_start_thread(pthread_t *thread, int cpu, void *(*run)(void *), void *self)
{
	pthread_attr_t attributes;
	sigset_t all, before;
	cpu_set_t set;
	int error;

	pthread_attr_init(&attributes);
	if (cpu >= 0) {
		CPU_ZERO(&set);
		CPU_SET((size_t)cpu, &set);
		pthread_attr_setaffinity_np(&attributes, sizeof(set), &set);
	}
	sigfillset(&all); /* signals are for the threads that Python knows */
	pthread_sigmask(SIG_SETMASK, &all, &before);
	error = pthread_create(thread, &attributes, run, self);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&attributes);
	return error ? xk_fail("pthread_create", error) : 0;
}
