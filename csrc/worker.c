/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Workers and sinks.  A worker owns everything it touches per packet; sinks are shared, and workers meet there only when
 * a full buffer is written to the file (a lock per megabyte) and when they claim room under the limit (an atomic per
 * batch).
 */
#define _GNU_SOURCE
#include <endian.h>
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include "xdpkit.h"

#define BUFFER (1u << 20)
#define OPTIONS_MAX 64u
#define PATIENCE_MS 1000 /* with a reader that does not read, once told to stop */

struct xk_sink {
	int fd; /* -1: count */
	uint32_t snaplen;
	uint64_t limit, claimed;
	int done, error; /* errno of the first failed write, under the lock */
	int pipe;	 /* a reader may stop reading: never be stuck in write() when told to stop */
	uint32_t *delays; /* else NULL: room for `limit` of them */
	uint32_t offset;
	pthread_mutex_t lock; /* around write(): whole buffers, never interleaved */
};

struct xk_worker {
	pthread_t thread;
	struct xk_source source;
	struct xk_xsk *xsk; /* what the source is, or NULL */
	struct xk_sink *sink;
	int stop_fd, stop, wait;
	uint32_t looks; /* XK_WAIT_ADAPTIVE: in vain before it sleeps */
	uint32_t interface;
	uint8_t *buffer;
	size_t used;
	uint64_t pending; /* packets in the buffer */
	uint8_t options[OPTIONS_MAX];
	uint32_t options_size;
	uint32_t verdict_at;     /* where in the options a packet's verdict goes; 0: they all have the same, or none */
	const uint8_t *verdicts; /* what an enum xdp_action is called there */
	struct xk_worker_stats stats;
	struct xk_view views[XK_BATCH];
};

/* ---- sinks ---- */

static int new_sink(int fd, uint64_t limit, uint32_t snaplen, struct xk_sink **out)
{
	struct xk_sink *s = calloc(1, sizeof(*s));
	struct stat status;

	if (!s)
		return xk_fail("calloc", ENOMEM);
	s->fd = fd;
	s->limit = limit;
	s->snaplen = snaplen ? snaplen : UINT32_MAX;
	s->pipe = fd >= 0 && !fstat(fd, &status) && (S_ISFIFO(status.st_mode) || S_ISSOCK(status.st_mode));
	pthread_mutex_init(&s->lock, NULL);
	*out = s;
	return 0;
}

int xk_sink_count(uint64_t limit, struct xk_sink **out)
{
	return new_sink(-1, limit, 0, out);
}

int xk_sink_pcapng(int fd, uint64_t limit, uint32_t snaplen, struct xk_sink **out)
{
	return new_sink(fd, limit, snaplen, out);
}

int xk_sink_delays(uint32_t offset, uint32_t *delay_ns, uint32_t room, struct xk_sink **out)
{
	int error = new_sink(-1, room, 0, out);

	if (!error) {
		(*out)->delays = delay_ns;
		(*out)->offset = offset;
	}
	return error;
}

int xk_sink_done(const struct xk_sink *s)
{
	return __atomic_load_n(&s->done, __ATOMIC_RELAXED);
}

void xk_sink_close(struct xk_sink *s)
{
	pthread_mutex_destroy(&s->lock);
	free(s);
}

/* Room for up to `n` more packets under the limit; *first is how many were before them. */
static uint32_t claim(struct xk_sink *s, uint32_t n, uint64_t *first)
{
	uint64_t before;

	if (xk_sink_done(s))
		return 0;
	if (!s->limit)
		return n;
	*first = before = __atomic_fetch_add(&s->claimed, n, __ATOMIC_RELAXED);
	if (before + n >= s->limit)
		__atomic_store_n(&s->done, 1, __ATOMIC_RELAXED);
	return before >= s->limit ? 0 : before + n <= s->limit ? n : (uint32_t)(s->limit - before);
}

static void add(uint64_t *counter, uint64_t n)
{
	/* one writer; readers in other threads want no torn value, no order */
	__atomic_store_n(counter, *counter + n, __ATOMIC_RELAXED);
}

/* Until a pipe takes PIPE_BUF bytes without blocking; -ETIMEDOUT if it does not for PATIENCE_MS after the order to stop. */
static int await_pipe(const struct xk_worker *w)
{
	struct pollfd fds[2] = { { .fd = w->sink->fd, .events = POLLOUT }, { .fd = w->stop_fd, .events = POLLIN } };

	for (;;) {
		int stopping = __atomic_load_n(&w->stop, __ATOMIC_ACQUIRE);
		int ready = poll(fds, stopping ? 1 : 2, stopping ? PATIENCE_MS : -1);

		if (ready > 0 && fds[0].revents)
			return 0; /* room, or an error that write() will tell */
		if (!ready)
			return -ETIMEDOUT;
	}
}

/* Write the buffer; packets count as written only here. */
static void flush(struct xk_worker *w)
{
	struct xk_sink *s = w->sink;
	size_t at = 0;
	int error;

	if (!w->used)
		return;
	pthread_mutex_lock(&s->lock);
	error = s->error;
	while (!error && at < w->used) {
		size_t size = s->pipe && w->used - at > PIPE_BUF ? PIPE_BUF : w->used - at;
		ssize_t n;

		if (s->pipe && (error = -await_pipe(w)))
			break;
		n = write(s->fd, w->buffer + at, size);
		if (n < 0 && errno != EINTR && errno != EAGAIN)
			error = errno;
		else if (n > 0)
			at += (size_t)n;
	}
	s->error = error;
	pthread_mutex_unlock(&s->lock);
	add(error ? &w->stats.refused : &w->stats.written, w->pending);
	w->used = w->pending = 0;
	if (error) {
		__atomic_store_n(&w->stats.error, error, __ATOMIC_RELAXED);
		__atomic_store_n(&s->done, 1, __ATOMIC_RELAXED);
	}
}

static uint8_t *put32(uint8_t *at, uint32_t value)
{
	memcpy(at, &value, 4);
	return at + 4;
}

/* Enhanced Packet Block: draft-ietf-opsawg-pcapng section 4.3, host byte order, nanoseconds (the IDB says so). */
static void put_block(struct xk_worker *w, const struct xk_view *v)
{
	uint32_t kept = v->len, padded, size, left;
	uint8_t *at;

	for (uint32_t i = 0; i < v->more; i++)
		kept += v->parts[i].len;
	if (kept > w->sink->snaplen)
		kept = w->sink->snaplen;
	padded = (kept + 3) & ~3u;
	size = 32 + padded + w->options_size;
	if (w->used + size > BUFFER)
		flush(w);
	at = w->buffer + w->used;
	at = put32(at, 6);
	at = put32(at, size);
	at = put32(at, w->interface);
	at = put32(at, (uint32_t)(v->time_ns >> 32));
	at = put32(at, (uint32_t)v->time_ns);
	at = put32(at, kept);
	at = put32(at, v->wire_len);
	left = kept < v->len ? 0 : kept - v->len;
	memcpy(at, v->data, kept - left);
	for (const struct xk_part *part = v->parts; left; part++) {
		uint32_t n = part->len < left ? part->len : left;

		memcpy(at + kept - left, part->data, n);
		left -= n;
	}
	memset(at + kept, 0, padded - kept);
	if (w->verdict_at)
		w->options[w->verdict_at] = w->verdicts[v->verdict < 5 ? v->verdict : 0];
	memcpy(at + padded, w->options, w->options_size);
	put32(at + padded + w->options_size, size);
	w->used += size;
	w->pending++;
}

static void put_option(struct xk_worker *w, uint16_t code, const void *value, uint16_t size)
{
	uint16_t head[2] = { code, size };

	memcpy(w->options + w->options_size, head, 4);
	memcpy(w->options + w->options_size + 4, value, size);
	w->options_size += 4u + ((size + 3u) & ~3u);
}

/* When it was received less when it was sent; 0 for a packet too short to say. */
static uint32_t delay_of(const struct xk_view *v, uint32_t offset, uint64_t now)
{
	uint64_t sent;

	if (v->len < sizeof(sent) || offset > v->len - sizeof(sent))
		return 0;
	memcpy(&sent, v->data + offset, sizeof(sent));
	sent = now - be64toh(sent);
	return sent > UINT32_MAX ? UINT32_MAX : (uint32_t)sent;
}

static void take(struct xk_worker *w, uint32_t n)
{
	uint64_t first = 0, now;
	uint32_t wanted = claim(w->sink, n, &first);

	if (w->sink->delays && wanted) {
		now = xk_clock_ns(CLOCK_MONOTONIC);
		for (uint32_t i = 0; i < wanted; i++)
			w->sink->delays[first + i] = delay_of(&w->views[i], w->sink->offset, now);
	}
	if (w->sink->fd < 0)
		add(&w->stats.written, wanted);
	else
		for (uint32_t i = 0; i < wanted; i++)
			put_block(w, &w->views[i]);
	if (wanted < n)
		add(&w->stats.refused, n - wanted);
}

/* ---- workers ---- */

static void *run(void *self)
{
	struct xk_worker *w = self;
	struct pollfd fds[2] = { { .fd = w->source.fd, .events = POLLIN }, { .fd = w->stop_fd, .events = POLLIN } };
	uint32_t idle = 0;

	for (;;) {
		int n = w->source.receive(w->source.self, w->views), error;
		uint64_t bytes = 0;

		if (n > 0) {
			for (int i = 0; i < n; i++)
				bytes += w->views[i].wire_len;
			take(w, (uint32_t)n);
			error = w->source.release(w->source.self);
			add(&w->stats.packets, (uint32_t)n);
			add(&w->stats.bytes, bytes);
			add(&w->stats.batches, 1);
			idle = 0;
			if (!error)
				continue;
			n = error;
		}
		if (n < 0 && n != -EINTR && n != -ENETDOWN) {
			__atomic_store_n(&w->stats.error, -n, __ATOMIC_RELAXED);
			break;
		}
		if (__atomic_load_n(&w->stop, __ATOMIC_ACQUIRE)) {
			if (w->source.linger_ms && n == 0 && poll(fds, 1, w->source.linger_ms) > 0)
				continue;
			break;
		}
		if (n == 0 && (w->wait == XK_WAIT_BUSY || (w->wait == XK_WAIT_ADAPTIVE && idle < w->looks))) {
			if (++idle == XK_LOOKS)
				flush(w); /* one that never sleeps does not keep what it has for itself */
			add(&w->stats.looks, 1);
			if (w->source.nudge && w->source.nudge(w->source.self))
				add(&w->stats.nudges, 1);
			else
				xk_relax();
			continue;
		}
		if (n == 0 && w->wait == XK_WAIT_NAP && idle < XK_NAPS) {
			idle++;
			flush(w);
			add(&w->stats.waits, 1);
			if (w->source.nudge)
				w->source.nudge(w->source.self);
			xk_nap(w->stop_fd);
			continue;
		}
		flush(w);
		add(&w->stats.waits, 1);
		if (w->source.sleep)
			w->source.sleep(w->source.self);
		w->looks = xk_sleep(fds, 2, -1, w->looks);
		idle = 0;
		if (fds[0].revents & (POLLERR | POLLHUP | POLLNVAL) && !(fds[0].revents & POLLIN) &&
		    !__atomic_load_n(&w->stop, __ATOMIC_ACQUIRE)) {
			/* the device went down or away: wait for the order to stop rather than spin on the error */
			int socket_error = 0;
			socklen_t size = sizeof(socket_error);

			getsockopt(w->source.fd, SOL_SOCKET, SO_ERROR, &socket_error, &size);
			poll(&fds[1], 1, 100);
		}
	}
	flush(w);
	return NULL;
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

static int start(struct xk_worker *w, struct xk_sink *sink, uint32_t interface, int wait, int cpu,
		 struct xk_worker **out)
{
	int error;

	w->sink = sink;
	w->wait = wait;
	w->looks = XK_LOOKS;
	w->interface = interface;
	w->stats.cpu = cpu;
	w->buffer = sink->fd >= 0 ? malloc(BUFFER) : NULL;
	w->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if ((sink->fd >= 0 && !w->buffer) || w->stop_fd < 0) {
		error = xk_fail("worker", w->stop_fd < 0 ? errno : ENOMEM);
		goto out_free;
	}
	if ((error = xk_start_thread(&w->thread, cpu, run, w)))
		goto out_free;
	*out = w;
	return 0;
out_free:
	if (w->stop_fd >= 0)
		close(w->stop_fd);
	free(w->buffer);
	free(w);
	return error;
}

int xk_worker_start_xsk(struct xk_xsk *x, struct xk_sink *sink, uint32_t interface, uint32_t queue, int wait, int cpu,
			struct xk_worker **out)
{
	const uint8_t verdict[9] = { 2, 4 }; /* Linux_eBPF_XDP, XDP_REDIRECT as a 64-bit little-endian number */
	const uint32_t inbound = 1;
	struct xk_worker *w = calloc(1, sizeof(*w));

	if (!w)
		return xk_fail("calloc", ENOMEM);
	xk_xsk_source(x, &w->source);
	w->xsk = x;
	xk_xsk_unread(x, sink->fd < 0 && !sink->delays);
	put_option(w, 2, &inbound, 4); /* epb_flags */
	put_option(w, 6, &queue, 4);   /* epb_queue */
	put_option(w, 7, verdict, 9);  /* epb_verdict */
	w->options_size += 4;          /* opt_endofopt */
	return start(w, sink, interface, wait, cpu, out);
}

int xk_worker_start_packet(struct xk_packet *p, struct xk_sink *sink, uint32_t interface, int wait, int cpu,
			   struct xk_worker **out)
{
	const uint32_t inbound = 1;
	struct xk_worker *w = calloc(1, sizeof(*w));

	if (!w)
		return xk_fail("calloc", ENOMEM);
	xk_packet_source(p, &w->source);
	put_option(w, 2, &inbound, 4);
	w->options_size += 4;
	return start(w, sink, interface, wait, cpu, out);
}

int xk_worker_start_copies(struct xk_copies *c, struct xk_sink *sink, uint32_t interface, int hook, int outbound,
			   int wait, int cpu, struct xk_worker **out)
{
	/* ABORTED, DROP, PASS, TX, REDIRECT as XDP and as TC know them: TC_ACT_SHOT, _OK, _REDIRECT, _REDIRECT. */
	static const uint8_t xdp[] = { 0, 1, 2, 3, 4 }, tc[] = { 2, 2, 0, 7, 7 };
	const uint8_t verdict[9] = { hook == XK_HOOK_XDP ? 2 : 1 }; /* Linux_eBPF_XDP, Linux_eBPF_TC; then 64 bits */
	const uint32_t direction = outbound ? 2 : 1;
	struct xk_worker *w = calloc(1, sizeof(*w));

	if (!w)
		return xk_fail("calloc", ENOMEM);
	xk_copies_source(c, &w->source);
	put_option(w, 2, &direction, 4);
	if (hook != XK_HOOK_SOCKET) { /* there all packets go on */
		w->verdict_at = w->options_size + 5;
		w->verdicts = hook == XK_HOOK_XDP ? xdp : tc;
		put_option(w, 7, verdict, 9);
	}
	w->options_size += 4;
	return start(w, sink, interface, wait, cpu, out);
}

void xk_worker_stats(const struct xk_worker *w, struct xk_worker_stats *out)
{
	out->packets = __atomic_load_n(&w->stats.packets, __ATOMIC_RELAXED);
	out->bytes = __atomic_load_n(&w->stats.bytes, __ATOMIC_RELAXED);
	out->written = __atomic_load_n(&w->stats.written, __ATOMIC_RELAXED);
	out->refused = __atomic_load_n(&w->stats.refused, __ATOMIC_RELAXED);
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

	__atomic_store_n(&w->stop, 1, __ATOMIC_RELEASE); /* pairs with run()'s acquire */
	while (write(w->stop_fd, &one, sizeof(one)) < 0 && errno == EINTR)
		;
}

void xk_worker_join(struct xk_worker *w, struct xk_worker_stats *out)
{
	pthread_join(w->thread, NULL);
	xk_worker_stats(w, out);
	if (w->xsk)
		xk_xsk_unread(w->xsk, 0);
	close(w->stop_fd);
	free(w->buffer);
	free(w);
}
