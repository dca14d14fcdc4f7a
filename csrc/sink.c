/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Sinks: what becomes of the packets that workers receive.  They are counted and forgotten, their delays are kept, or they
 * are written as pcapng blocks (block.c, merge.c, write.c).
 */
#define _GNU_SOURCE
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include "capture.h"

#define SPARE_BUFFERS 16u	/* of a sink with several writers, besides one each */
#define PUBLISH_NS 10000000u	/* a writer of several publishes at least so often */
#define LOOK_AGAIN_MS 20	/* sleep of a worker while blocks wait for the order */
#define PACKET_MAX (256u << 10)
#define PIPE_BYTES (1 << 20)
#define MOST_WORKERS 64u /* of a sink for delays */

/* ---- open and close ---- */

static int new_sink(int fd, uint64_t limit, uint32_t writers, struct xk_sink **out)
{
	struct xk_sink *s = calloc(1, sizeof(*s));

	if (!s)
		return xk_fail("calloc", ENOMEM);
	s->fd = fd;
	s->limit = limit;
	s->expected = writers;
	s->snaplen = PACKET_MAX;
	pthread_mutex_init(&s->lock, NULL);
	*out = s;
	s->writers = calloc(writers, sizeof(*s->writers));
	if (s->writers)
		return 0;
	xk_sink_close(s);
	return xk_fail("calloc", ENOMEM);
}

int xk_sink_count(uint64_t limit, uint32_t writers, struct xk_sink **out)
{
	return new_sink(-1, limit, writers, out);
}

int xk_sink_delays(uint32_t offset, uint64_t *delay_ns, uint32_t room, struct xk_sink **out)
{
	int error = new_sink(-1, room, MOST_WORKERS, out);

	if (!error) {
		(*out)->delays = delay_ns;
		(*out)->offset = offset;
	}
	return error;
}

/* The buffers of a sink, which take memory only when they are used. */
static int add_buffers(struct xk_sink *s, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		struct buffer *b = mmap(NULL, sizeof(*b), PROT_READ | PROT_WRITE,
					MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

		if (b == MAP_FAILED)
			return xk_fail("mmap(buffers of a capture)", errno);
		b->next = s->spare;
		s->spare = b;
	}
	return 0;
}

int xk_sink_pcapng(int fd, uint64_t limit, uint32_t snaplen, uint32_t writers, uint32_t interval_ms,
		   struct xk_sink **out)
{
	int error = new_sink(fd, limit, writers, out);
	struct stat status = { 0 };
	struct xk_sink *s = *out;

	if (error)
		return error;
	if (snaplen && snaplen < PACKET_MAX)
		s->snaplen = snaplen;
	fstat(fd, &status);
	s->regular = S_ISREG(status.st_mode);
	s->pipe = S_ISFIFO(status.st_mode) || S_ISSOCK(status.st_mode);
	if (S_ISFIFO(status.st_mode) && fcntl(fd, F_GETPIPE_SZ) < PIPE_BYTES)
		fcntl(fd, F_SETPIPE_SZ, PIPE_BYTES); /* a wish: fewer system calls */
	s->start_ns = s->statistics_ns = xk_clock_ns(CLOCK_REALTIME);
	s->interval_ns = interval_ms * 1000000ull;
	error = add_buffers(s, writers > 1 ? writers + SPARE_BUFFERS : 1);
	if (!error && writers > 1 && !(s->merged = malloc(BUFFER)))
		error = xk_fail("malloc", ENOMEM);
	if (error)
		xk_sink_close(s);
	return error;
}

static void free_buffers(struct buffer *b)
{
	for (struct buffer *next; b; b = next) {
		next = b->next;
		munmap(b, sizeof(*b));
	}
}

void xk_sink_close(struct xk_sink *s)
{
	for (uint32_t i = 0; i < s->count; i++) {
		free_buffers(s->writers[i]->first);
		free(s->writers[i]);
	}
	free_buffers(s->spare);
	xk_free_comments(s->comments);
	pthread_mutex_destroy(&s->lock);
	free(s->writers);
	free(s->merged);
	free(s);
}

int xk_sink_done(const struct xk_sink *s)
{
	return __atomic_load_n(&s->done, __ATOMIC_RELAXED);
}

int xk_sink_unread(const struct xk_sink *s)
{
	return s->fd < 0 && !s->delays;
}

/* ---- the part of a worker ---- */

int xk_writer_open(struct xk_sink *s, const struct xk_source *source, uint32_t interface, const struct xk_stop *stop,
		   struct xk_worker_stats *stats, struct xk_writer **out)
{
	struct xk_writer *w = calloc(1, sizeof(*w));
	int error = 0;

	if (!w)
		return xk_fail("calloc", ENOMEM);
	*w = (struct xk_writer){ .sink = s, .source = source, .interface = interface, .stop = stop, .stats = stats };
	xk_open_options(w);
	pthread_mutex_lock(&s->lock);
	if (s->count == s->expected || (s->fd >= 0 && !s->spare)) {
		error = xk_fail("more workers than the sink was made for", ENOSPC);
	} else {
		if (s->fd >= 0) {
			w->first = w->open = s->spare;
			s->spare = s->spare->next;
			w->open->next = NULL;
		}
		s->writers[s->count++] = w;
	}
	pthread_mutex_unlock(&s->lock);
	if (error)
		free(w);
	*out = w;
	return error;
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

/* When it was received less when it was sent; 0 for a packet too short to say. */
static uint64_t delay_of(const struct xk_view *v, uint32_t offset, uint64_t now)
{
	uint64_t sent;

	if (v->len < sizeof(sent) || offset > v->len - sizeof(sent))
		return 0;
	memcpy(&sent, v->data + offset, sizeof(sent));
	return now - be64toh(sent);
}

void xk_writer_put(struct xk_writer *w, const struct xk_view *views, uint32_t n)
{
	struct xk_sink *s = w->sink;
	uint64_t first = 0, now;
	uint32_t wanted = claim(s, n, &first);

	if (wanted < n)
		add(&w->stats->refused, n - wanted);
	if (s->delays && wanted) {
		now = xk_clock_ns(CLOCK_MONOTONIC);
		for (uint32_t i = 0; i < wanted; i++)
			s->delays[first + i] = delay_of(&views[i], s->offset, now);
	}
	if (s->fd < 0) {
		add(&w->stats->written, wanted);
		return;
	}
	for (uint32_t i = 0; i < wanted; i++)
		xk_put_block(w, &views[i]);
	if (s->expected > 1 && wanted && w->newest - w->published > PUBLISH_NS && !pthread_mutex_trylock(&s->lock)) {
		xk_publish(w);
		pthread_mutex_unlock(&s->lock);
	}
}

int xk_writer_rest(struct xk_writer *w)
{
	struct xk_sink *s = w->sink;
	int timeout_ms = -1;

	if (s->fd < 0)
		return -1;
	pthread_mutex_lock(&s->lock);
	w->resting = 1;
	xk_publish(w);
	if (s->waiting)
		timeout_ms = LOOK_AGAIN_MS;
	else if (s->changed && s->interval_ns && !s->error)
		timeout_ms = (int)(s->interval_ns / 1000000);
	pthread_mutex_unlock(&s->lock);
	return timeout_ms;
}

void xk_writer_resume(struct xk_writer *w)
{
	if (!w->resting)
		return;
	pthread_mutex_lock(&w->sink->lock);
	w->resting = 0;
	pthread_mutex_unlock(&w->sink->lock);
}

void xk_writer_cancel(struct xk_writer *w)
{
	struct xk_sink *s = w->sink;

	pthread_mutex_lock(&s->lock);
	s->count--;
	if (w->open) {
		w->open->next = s->spare;
		s->spare = w->open;
	}
	pthread_mutex_unlock(&s->lock);
	free(w);
}

void xk_writer_end(struct xk_writer *w)
{
	if (w->sink->fd < 0)
		return;
	pthread_mutex_lock(&w->sink->lock);
	w->ended = 1;
	xk_publish(w);
	pthread_mutex_unlock(&w->sink->lock);
}
