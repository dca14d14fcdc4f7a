/* SPDX-License-Identifier: BSD-2-Clause */
/* What everything in the core uses: errors, clocks, and threads that wait (base.c). */
#pragma once
#include <pthread.h>
#include <stdint.h>

/* Note the call that failed in this thread, for xk_failed_call(); returns -error. */
int xk_fail(const char *call, int error);
/* Start a thread that takes no signals, pinned to `cpu` unless that is negative. */
int xk_start_thread(pthread_t *thread, int cpu, void *(*run)(void *), void *self);
uint64_t xk_clock_ns(int clock);
/*
 * Real time minus monotonic time: what turns the program's clock into the capture's.  The clocks are read one after the
 * other, so it is known within some ns, or within ms where a thread loses its CPU in between.  All threads keep to one
 * value while it can be right: times of packets stay in the order of the program's clock, across batches and queues.
 */
uint64_t xk_clock_offset(void);

/*
 * XK_WAIT_ADAPTIVE: empty looks at a ring before sleeping, some 20 us where no look is a system call.  Where packets come
 * further apart than that, looking is in vain: each sleep that was not short halves the looks before the next.
 */
#define XK_LOOKS 2000u
#define XK_SHORT_NS 50000 /* what looks would have bridged, and what it takes to wake up */
struct pollfd;
/* poll(), and how many looks to make before the next one. */
uint32_t xk_sleep(struct pollfd *fds, unsigned long n, int timeout_ms, uint32_t looks);
/*
 * XK_WAIT_NAP: a wake-up costs as much as tens of packets, so a worker that nobody waits for wakes up by itself.  A ring
 * of 2048 takes 4 million packets a second meanwhile.
 */
#define XK_NAPS 20u
#define XK_NAP_NS 500000
/* Sleep for a nap, or until stop_fd is readable. */
void xk_nap(int stop_fd);
#if defined(__x86_64__) || defined(__i386__)
#define xk_relax() __builtin_ia32_pause()
#else
#define xk_relax() __atomic_signal_fence(__ATOMIC_SEQ_CST)
#endif
