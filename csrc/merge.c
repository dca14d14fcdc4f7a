/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A pcapng sink writes the packets of all its workers in the order of their times.  Each worker has a *writer*: buffers
 * that it fills with blocks without a lock.  When a buffer is full, or the worker found nothing, it takes the sink's lock
 * and publishes its blocks; then blocks of all writers are merged up to the time that no writer will go below:
 *
 *   a writer that is at work    the time of its newest block; packets of one source come in the order of their times
 *   one whose source is empty   now, less `delay_ns` of its source: how long a packet may be under way to user space
 *
 * The lock is held while the sink writes to the file.  Memory is bounded: where no buffer is left, or a writer holds the
 * others up for HELD_UP_NS, what there is is written, and order is given up rather than packets.  A sink of one worker
 * whose source keeps the order writes its buffer as it is.
 */
#include <time.h>
#include "capture.h"

#define DIRECT (64u << 10)	/* blocks in a row of so many bytes are written from where they are */
#define HELD_UP_NS 1000000000u	/* longest that a worker which does not come to run delays the blocks of the others */
#define NEVER UINT64_MAX

static void write_merged(struct xk_sink *s, const struct xk_stop *stop)
{
	if (s->merged_size)
		xk_write_blocks(s, stop, s->merged, s->merged_size);
	s->merged_size = 0;
}

/* The oldest buffer with published blocks that are not written, or NULL; those that are done become spare. */
static struct buffer *head(struct xk_writer *w)
{
	while (w->first != w->open && w->first->start == w->first->ready) {
		struct buffer *done = w->first;

		w->first = done->next;
		done->next = w->sink->spare;
		w->sink->spare = done;
	}
	return w->first->start < w->first->ready ? w->first : NULL;
}

/* No block that a writer publishes from now on is older; `now` was read before. */
static uint64_t lower_bound(const struct xk_writer *w, uint64_t now)
{
	uint64_t known = w->published > w->source->disorder_ns ? w->published - w->source->disorder_ns : 0;

	if (w->ended || (w->sink->expected == 1 && !w->source->disorder_ns))
		return NEVER;
	if (w->resting && (!w->source->empty || w->source->empty(w->source->self)) && now - w->source->delay_ns > known)
		return now - w->source->delay_ns;
	return known;
}

/* Write the blocks of `w` from its oldest on, up to the time `end`. */
static void take_run(struct xk_sink *s, const struct xk_stop *stop, struct xk_writer *w, uint64_t end)
{
	struct buffer *b = w->first;
	uint32_t start = b->start, at = start, blocks = 0;

	for (; at < b->ready && (end == NEVER || time_of(b->data + at) <= end); at += get32(b->data + at + 4))
		blocks++;
	if (at - start >= DIRECT || !s->merged) {
		write_merged(s, stop);
		w->merged += blocks;
		xk_write_blocks(s, stop, b->data + start, at - start);
	} else {
		if (s->merged_size + (at - start) > BUFFER)
			write_merged(s, stop);
		memcpy(s->merged + s->merged_size, b->data + start, at - start);
		s->merged_size += at - start;
		w->merged += blocks;
	}
	b->start = at;
}

/* Write blocks in the order of their times, up to the time `end`; whether some are left. */
static int merge_until(struct xk_sink *s, const struct xk_stop *stop, uint64_t end)
{
	for (;;) {
		struct xk_writer *oldest = NULL;
		uint64_t first = NEVER, second = NEVER;

		for (uint32_t i = 0; i < s->count; i++) {
			const struct buffer *b = head(s->writers[i]);
			uint64_t time = b ? time_of(b->data + b->start) : NEVER;

			if (time < first || (b && !oldest)) {
				second = first;
				first = time;
				oldest = s->writers[i];
			} else if (time < second) {
				second = time;
			}
		}
		if (!oldest || first > end) {
			write_merged(s, stop);
			return oldest != NULL;
		}
		take_run(s, stop, oldest, second < end ? second : end);
		s->progress_ns = 0;
	}
}

static void merge(struct xk_sink *s, const struct xk_stop *stop)
{
	uint64_t now = xk_clock_ns(CLOCK_REALTIME), end = NEVER, clock;
	int left;

	for (uint32_t i = 0; i < s->count; i++) {
		uint64_t bound = lower_bound(s->writers[i], now);

		end = bound < end ? bound : end;
	}
	left = s->count < s->expected && end != NEVER ? 1 : merge_until(s, stop, end);
	clock = xk_clock_ns(CLOCK_MONOTONIC);
	if (!left || !s->progress_ns)
		s->progress_ns = clock;
	if (left && clock - s->progress_ns > HELD_UP_NS)
		left = merge_until(s, stop, NEVER);
	s->waiting = left;
	if (s->interval_ns && s->changed && now - s->statistics_ns >= s->interval_ns)
		xk_write_statistics(s, stop, now);
}

void xk_publish(struct xk_writer *w)
{
	w->open->ready = w->open->used;
	w->published = w->newest;
	merge(w->sink, w->stop);
	if (w->first == w->open && w->open->start == w->open->used)
		w->open->start = w->open->ready = w->open->used = 0;
}

void xk_make_room(struct xk_writer *w)
{
	struct xk_sink *s = w->sink;
	struct buffer *b;

	pthread_mutex_lock(&s->lock);
	xk_publish(w);
	if (w->open->used && !s->spare) { /* order is given up rather than packets */
		if (s->expected > 1 || w->open->start < BUFFER / 2)
			merge_until(s, w->stop, NEVER);
		head(w);
	}
	b = w->open;
	if (b->used && s->spare) {
		b->next = s->spare;
		s->spare = s->spare->next;
		w->open = b->next;
		w->open->next = NULL;
		w->open->start = w->open->ready = w->open->used = 0;
	} else if (b->used) {
		memmove(b->data, b->data + b->start, b->used - b->start);
		b->used -= b->start;
		b->ready = b->used;
		b->start = 0;
	}
	pthread_mutex_unlock(&s->lock);
}
