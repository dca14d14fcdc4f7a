/* SPDX-License-Identifier: BSD-2-Clause */
/* Workers: threads that move batches from a source into a sink.  A worker owns everything that it touches per packet. */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include "sink.h"

#define NAP_SLEEP_MS 100 /* longest sleep of a worker that naps: a ring buffer's wake-up may be missed */

struct xk_worker {
	pthread_t thread;
	struct xk_source source;
	struct xk_xsk *xsk; /* what the source is, or NULL */
	struct xk_writer *writer;
	struct xk_stop stop;
	int wait, joined;
	uint32_t looks; /* XK_WAIT_ADAPTIVE: empty looks before it sleeps */
	uint32_t idle;	/* empty looks, or naps, since the last packet */
	struct xk_worker_stats stats;
	struct xk_view views[XK_BATCH];
};

static void add(uint64_t *counter, uint64_t n)
{
	/* one writer; readers in other threads want no torn value, no order */
	__atomic_store_n(counter, *counter + n, __ATOMIC_RELAXED);
}

static int stopping(const struct xk_worker *w)
{
	return __atomic_load_n(&w->stop.set, __ATOMIC_ACQUIRE); /* pairs with xk_worker_stop() */
}

/* Receive a batch, and hand it to the sink: how many packets, or -errno. */
static int move(struct xk_worker *w)
{
	int n = w->source.receive(w->source.self, w->views), error;
	uint64_t bytes = 0;

	if (n <= 0)
		return n;
	for (int i = 0; i < n; i++)
		bytes += w->views[i].wire_len;
	xk_writer_put(w->writer, w->views, (uint32_t)n);
	error = w->source.release(w->source.self);
	add(&w->stats.packets, (uint32_t)n);
	add(&w->stats.bytes, bytes);
	add(&w->stats.batches, 1);
	return error ? error : n;
}

static void nudge(struct xk_worker *w)
{
	if (w->source.nudge && w->source.nudge(w->source.self))
		add(&w->stats.nudges, 1);
	else if (w->wait != XK_WAIT_NAP)
		xk_relax();
}

/* Sleep until the source has packets, the order to stop comes, or timeout_ms are over (-1: never). */
static void sleep_on_source(struct xk_worker *w, int timeout_ms)
{
	struct pollfd fds[2] = { { .fd = w->source.fd, .events = POLLIN }, { .fd = w->stop.fd, .events = POLLIN } };
	int socket_error = 0;
	socklen_t size = sizeof(socket_error);

	add(&w->stats.waits, 1);
	if (w->source.sleep && w->source.sleep(w->source.self))
		return;
	w->looks = xk_sleep(fds, 2, timeout_ms, w->looks);
	if (!(fds[0].revents & (POLLERR | POLLHUP | POLLNVAL)) || fds[0].revents & POLLIN || stopping(w))
		return;
	/* the device went down or away: wait for the order to stop rather than spin on the error */
	getsockopt(w->source.fd, SOL_SOCKET, SO_ERROR, &socket_error, &size);
	poll(&fds[1], 1, 100);
}

/* The source was empty: look again soon, or sleep, as the user chose. */
static void pass_time(struct xk_worker *w)
{
	int timeout_ms;

	if (w->wait == XK_WAIT_BUSY || (w->wait == XK_WAIT_ADAPTIVE && w->idle < w->looks)) {
		if (++w->idle % XK_LOOKS == 0)
			xk_writer_rest(w->writer); /* one that never sleeps does not keep what it has for itself */
		add(&w->stats.looks, 1);
		nudge(w);
		return;
	}
	timeout_ms = xk_writer_rest(w->writer);
	if (w->wait == XK_WAIT_NAP && w->idle < XK_NAPS) {
		w->idle++;
		add(&w->stats.waits, 1);
		nudge(w);
		xk_nap(w->stop.fd);
		return;
	}
	if (w->wait == XK_WAIT_NAP && (timeout_ms < 0 || timeout_ms > NAP_SLEEP_MS))
		timeout_ms = NAP_SLEEP_MS;
	sleep_on_source(w, timeout_ms);
	if (w->wait != XK_WAIT_NAP)
		w->idle = 0;
}

static void *run(void *self)
{
	struct xk_worker *w = self;
	struct pollfd source = { .fd = w->source.fd, .events = POLLIN };

	for (;;) {
		int last = stopping(w), n; /* what came before the order to stop is received, so look before */

		xk_writer_resume(w->writer);
		n = move(w);
		if (n > 0) {
			w->idle = 0;
			continue;
		}
		if (n < 0 && n != -EINTR && n != -ENETDOWN) {
			__atomic_store_n(&w->stats.error, -n, __ATOMIC_RELAXED);
			break;
		}
		if (last) {
			if (w->source.linger_ms && n == 0 && poll(&source, 1, w->source.linger_ms) > 0)
				continue;
			break;
		}
		if (n == 0)
			pass_time(w);
		else
			sleep_on_source(w, xk_writer_rest(w->writer));
	}
	xk_writer_end(w->writer);
	return NULL;
}

int xk_worker_start(const struct xk_source *source, struct xk_sink *sink, uint32_t interface, int wait, int cpu,
		    struct xk_worker **out)
{
	struct xk_worker *w = calloc(1, sizeof(*w));
	int error;

	if (!w)
		return xk_fail("calloc", ENOMEM);
	w->source = *source;
	w->wait = wait;
	w->looks = XK_LOOKS;
	w->stats.cpu = cpu;
	w->stop.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (w->stop.fd < 0) {
		error = xk_fail("eventfd", errno);
		goto out_free;
	}
	if ((error = xk_writer_open(sink, &w->source, interface, &w->stop, &w->stats, &w->writer)))
		goto out_close;
	if ((error = xk_start_thread(&w->thread, cpu, run, w))) {
		xk_writer_cancel(w->writer);
		goto out_close;
	}
	*out = w;
	return 0;
out_close:
	close(w->stop.fd);
out_free:
	free(w);
	return error;
}

int xk_worker_start_xsk(struct xk_xsk *x, struct xk_sink *sink, uint32_t interface, uint32_t queue, int wait, int cpu,
			struct xk_worker **out)
{
	struct xk_source source;
	int error;

	xk_xsk_source(x, queue, &source);
	xk_xsk_unread(x, xk_sink_unread(sink));
	if ((error = xk_worker_start(&source, sink, interface, wait, cpu, out)))
		xk_xsk_unread(x, 0);
	else
		(*out)->xsk = x;
	return error;
}

int xk_worker_start_packet(struct xk_packet *p, struct xk_sink *sink, uint32_t interface, int wait, int cpu,
			   struct xk_worker **out)
{
	struct xk_source source;

	xk_packet_source(p, &source);
	return xk_worker_start(&source, sink, interface, wait, cpu, out);
}

int xk_worker_start_copies(struct xk_copies *c, struct xk_sink *sink, uint32_t interface, int hook, int outbound,
			   int wait, int cpu, struct xk_worker **out)
{
	struct xk_source source;
	int error;

	xk_copies_source(c, &source);
	source.label = (struct xk_label){ .hook = hook, .outbound = outbound, .queues = 1 };
	xk_copies_nap(c, wait == XK_WAIT_NAP);
	if ((error = xk_worker_start(&source, sink, interface, wait, cpu, out)))
		xk_copies_nap(c, 0);
	return error;
}

void xk_worker_stats(const struct xk_worker *w, struct xk_worker_stats *out)
{
	out->packets = __atomic_load_n(&w->stats.packets, __ATOMIC_RELAXED);
	out->bytes = __atomic_load_n(&w->stats.bytes, __ATOMIC_RELAXED);
	out->written = __atomic_load_n(&w->stats.written, __ATOMIC_RELAXED);
	out->failed = __atomic_load_n(&w->stats.failed, __ATOMIC_RELAXED);
	out->refused = __atomic_load_n(&w->stats.refused, __ATOMIC_RELAXED) + out->failed;
	out->batches = __atomic_load_n(&w->stats.batches, __ATOMIC_RELAXED);
	out->looks = __atomic_load_n(&w->stats.looks, __ATOMIC_RELAXED);
	out->nudges = __atomic_load_n(&w->stats.nudges, __ATOMIC_RELAXED);
	out->waits = __atomic_load_n(&w->stats.waits, __ATOMIC_RELAXED);
	out->error = __atomic_load_n(&w->stats.error, __ATOMIC_RELAXED);
	out->cpu = w->stats.cpu;
}

void xk_worker_stop(struct xk_worker *w)
{
	uint64_t one = 1;

	__atomic_store_n(&w->stop.set, 1, __ATOMIC_RELEASE); /* pairs with stopping() */
	while (write(w->stop.fd, &one, sizeof(one)) < 0 && errno == EINTR)
		;
}

void xk_worker_wait(struct xk_worker *w)
{
	if (!w->joined)
		pthread_join(w->thread, NULL);
	w->joined = 1;
}

void xk_worker_join(struct xk_worker *w, struct xk_worker_stats *out)
{
	xk_worker_wait(w);
	xk_worker_stats(w, out);
	if (w->xsk)
		xk_xsk_unread(w->xsk, 0);
	close(w->stop.fd);
	free(w);
}
