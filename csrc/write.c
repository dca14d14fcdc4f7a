/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Blocks into a file or a pipe, and how many of them are there.  A regular file ends with its last whole block, also after
 * a write that failed.  A pipe whose reader does not read holds nobody up for ever once there is the order to stop.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>
#include "capture.h"

#define PATIENCE_MS 1000 /* with a reader that does not read, once told to stop */

/* Until a pipe takes bytes without blocking; ETIMEDOUT if it does not for PATIENCE_MS after the order to stop. */
static int await_pipe(const struct xk_sink *s, const struct xk_stop *stop)
{
	struct pollfd fds[2] = { { .fd = s->fd, .events = POLLOUT }, { .fd = stop->fd, .events = POLLIN } };

	for (;;) {
		int stopping = __atomic_load_n(&stop->set, __ATOMIC_ACQUIRE);
		int ready = poll(fds, stopping ? 1 : 2, stopping ? PATIENCE_MS : -1);

		if (ready > 0 && fds[0].revents)
			return 0; /* room, or an error that write() returns */
		if (!ready)
			return ETIMEDOUT;
	}
}

/* write() that does not block on a pipe which has room: as much as it takes, or PIPE_BUF bytes on Linux before 6.5. */
static ssize_t write_some(struct xk_sink *s, const uint8_t *data, size_t size)
{
	struct iovec all = { (void *)data, size };

	if (!s->pipe)
		return write(s->fd, data, size);
	if (!s->no_nowait) {
		ssize_t n = pwritev2(s->fd, &all, 1, -1, RWF_NOWAIT);

		if (n >= 0 || (errno != EOPNOTSUPP && errno != EINVAL && errno != ENOSYS))
			return n;
		s->no_nowait = 1;
	}
	return write(s->fd, data, size < PIPE_BUF ? size : PIPE_BUF);
}

/* Take the bytes behind the last whole block off a file that nobody else appends to. */
static void cut(const struct xk_sink *s, size_t rest)
{
	off_t end = lseek(s->fd, 0, SEEK_CUR);
	struct stat status;

	if (rest && s->regular && end >= (off_t)rest && !fstat(s->fd, &status) && status.st_size == end &&
	    !ftruncate(s->fd, end - (off_t)rest))
		lseek(s->fd, end - (off_t)rest, SEEK_SET);
}

static int write_all(struct xk_sink *s, const struct xk_stop *stop, const uint8_t *data, size_t size, size_t *written)
{
	for (*written = 0; *written < size;) {
		int error = s->pipe ? await_pipe(s, stop) : 0;
		ssize_t n = error ? 0 : write_some(s, data + *written, size - *written);

		if (error)
			return error;
		if (n < 0 && errno != EINTR && errno != EAGAIN)
			return errno;
		*written += n > 0 ? (size_t)n : 0;
	}
	return 0;
}

static void failed(struct xk_sink *s, int error)
{
	s->error = error;
	__atomic_store_n(&s->done, 1, __ATOMIC_RELAXED);
	for (uint32_t i = 0; i < s->count; i++)
		__atomic_store_n(&s->writers[i]->stats->error, error, __ATOMIC_RELAXED);
}

void xk_write_blocks(struct xk_sink *s, const struct xk_stop *stop, const uint8_t *data, uint32_t size)
{
	size_t written = 0, whole = 0;

	if (!s->error) {
		int error = write_all(s, stop, data, size, &written);

		s->changed = 1;
		for (; error && whole < written; whole += get32(data + whole + 4)) {
			if (whole + get32(data + whole + 4) > written)
				break;
			for (uint32_t i = 0; i < s->count; i++)
				if (s->writers[i]->interface == get32(data + whole + 8) && s->writers[i]->merged) {
					s->writers[i]->merged--;
					add(&s->writers[i]->stats->written, 1);
					break;
				}
		}
		if (error) {
			cut(s, written - whole);
			failed(s, error);
		}
	}
	for (uint32_t i = 0; i < s->count; i++) {
		struct xk_writer *w = s->writers[i];

		if (w->merged)
			add(s->error ? &w->stats->failed : &w->stats->written, w->merged);
		w->merged = 0;
	}
}

/* Interface Statistics Block (4.6) of a writer: what there was so far. */
static uint32_t put_statistics(const struct xk_writer *w, uint64_t now, uint8_t *block)
{
	uint64_t lost = w->source->lost ? w->source->lost(w->source->self) : 0;
	uint64_t packets = __atomic_load_n(&w->stats->packets, __ATOMIC_RELAXED) + lost;
	uint64_t counts[] = { packets, 0, packets, lost, w->stats->written };
	uint64_t times[] = { w->sink->start_ns, now };
	uint8_t *at = put32(put32(block, 5), 112);

	at = put32(put32(put32(at, w->interface), (uint32_t)(now >> 32)), (uint32_t)now);
	for (uint32_t i = 0; i < 2; i++) /* isb_starttime, isb_endtime */
		at = put32(put32(put32(at, (2 + i) | 8u << 16), (uint32_t)(times[i] >> 32)), (uint32_t)times[i]);
	for (uint32_t i = 0; i < 5; i++) { /* isb_ifrecv, _ifdrop, _filteraccept, _osdrop, _usrdeliv */
		at = put32(at, (4 + i) | 8u << 16);
		memcpy(at, &counts[i], 8);
		at += 8;
	}
	put32(put32(at, 0), 112);
	return 112;
}

void xk_write_statistics(struct xk_sink *s, const struct xk_stop *stop, uint64_t now)
{
	uint8_t block[112];

	for (uint32_t i = 0; i < s->count; i++)
		xk_write_blocks(s, stop, block, put_statistics(s->writers[i], now, block));
	s->statistics_ns = now;
	s->changed = 0;
}
