/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Sinks: what becomes of the packets that workers receive.
 *
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
#define _GNU_SOURCE
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>
#include "sink.h"

#define BUFFER (1u << 20)
#define SPARE_BUFFERS 16u	/* of a sink with several writers, besides one each */
#define DIRECT (64u << 10)	/* blocks in a row of so many bytes are written from where they are */
#define PUBLISH_NS 10000000u	/* a writer of several publishes at least so often */
#define HELD_UP_NS 1000000000u	/* longest that a worker which does not come to run delays the blocks of the others */
#define LOOK_AGAIN_MS 20	/* sleep of a worker while blocks wait for the order */
#define OPTIONS_MAX 40u
#define PACKET_MAX (256u << 10)
#define COMMENT_MAX 255u
#define PATIENCE_MS 1000 /* with a reader that does not read, once told to stop */
#define PIPE_BYTES (1 << 20)
#define MOST_WORKERS 64u /* of a sink for delays */
#define NEVER UINT64_MAX

struct buffer {
	struct buffer *next;
	uint32_t start; /* of the first block that is not written; under the lock */
	uint32_t ready; /* end of the blocks that are published; under the lock */
	uint32_t used;	/* end of the blocks; the worker's own */
	uint8_t data[BUFFER];
};

/* An opt_comment for each rule. */
struct comments {
	struct comments *next; /* older ones */
	uint32_t count;
	uint16_t *sizes;
	uint8_t (*options)[4 + COMMENT_MAX + 1];
};

struct xk_writer {
	struct xk_sink *sink;
	const struct xk_source *source;
	const struct xk_stop *stop;
	struct xk_worker_stats *stats;
	uint32_t interface;
	struct buffer *first, *open; /* oldest with blocks; the one that is filled */
	uint64_t newest;	     /* time of the newest block; the worker's own */
	uint64_t published;	     /* `newest` when it was published; under the lock */
	uint64_t merged;	     /* blocks that are in the sink's buffer; under the lock */
	uint64_t pending;	     /* blocks in its own, the worker's own ones too */
	int resting, ended;	     /* under the lock; `resting` is read by its own worker without */
	uint8_t options[OPTIONS_MAX];
	uint32_t options_size, queue_at, verdict_at; /* where in the options they stand; 0: not there */
};

struct xk_sink {
	int fd; /* -1: nothing is written */
	uint32_t snaplen;
	uint64_t limit, claimed;
	int done, error; /* errno of the first failed write, under the lock */
	int pipe, regular, no_nowait;
	uint64_t *delays; /* else NULL: room for `limit` of them */
	uint32_t offset;
	struct comments *comments;
	/* under the lock */
	pthread_mutex_t lock;
	uint32_t expected, count; /* writers */
	struct xk_writer **writers;
	struct buffer *spare;
	uint8_t *merged; /* blocks of several writers in order, BUFFER bytes */
	uint32_t merged_size;
	int waiting;	     /* blocks wait for the order */
	uint64_t progress_ns; /* CLOCK_MONOTONIC: when none waited, or some were written */
	uint64_t start_ns, statistics_ns, interval_ns; /* CLOCK_REALTIME: since when, written when; how often, 0: never */
	int changed;	     /* blocks were written since the last statistics */
};

static void add(uint64_t *counter, uint64_t n)
{
	/* one writer at a time; readers in other threads want no torn value, no order */
	__atomic_store_n(counter, *counter + n, __ATOMIC_RELAXED);
}

static uint32_t get32(const uint8_t *at)
{
	uint32_t value;

	memcpy(&value, at, 4);
	return value;
}

static uint8_t *put32(uint8_t *at, uint32_t value)
{
	memcpy(at, &value, 4);
	return at + 4;
}

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

static void free_comments(struct comments *c)
{
	for (struct comments *next; c; c = next) {
		next = c->next;
		free(c->sizes);
		free(c->options);
		free(c);
	}
}

void xk_sink_close(struct xk_sink *s)
{
	for (uint32_t i = 0; i < s->count; i++) {
		free_buffers(s->writers[i]->first);
		free(s->writers[i]);
	}
	free_buffers(s->spare);
	free_comments(s->comments);
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

int xk_sink_rules(struct xk_sink *s, uint32_t count, const char *const *texts)
{
	struct comments *c = calloc(1, sizeof(*c));

	if (c && count) {
		c->sizes = calloc(count, sizeof(*c->sizes));
		c->options = calloc(count, sizeof(*c->options));
	}
	if (!c || (count && (!c->sizes || !c->options))) {
		free_comments(c);
		return xk_fail("calloc", ENOMEM);
	}
	for (uint32_t i = 0; i < count; i++) {
		size_t size = strnlen(texts[i], COMMENT_MAX);
		uint16_t head[2] = { 1, (uint16_t)size }; /* opt_comment */

		memcpy(c->options[i], head, 4);
		memcpy(c->options[i] + 4, texts[i], size);
		c->sizes[i] = (uint16_t)(4 + ((size + 3) & ~3u));
	}
	c->count = count;
	c->next = s->comments;
	__atomic_store_n(&s->comments, c, __ATOMIC_RELEASE); /* pairs with comment_of() */
	return 0;
}

/* ---- writing ---- */

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

/* Write whole blocks, which hold the `merged` ones of each writer, and count for each what is in the file. */
static void write_blocks(struct xk_sink *s, const struct xk_stop *stop, const uint8_t *data, uint32_t size)
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

static void write_merged(struct xk_sink *s, const struct xk_stop *stop)
{
	if (s->merged_size)
		write_blocks(s, stop, s->merged, s->merged_size);
	s->merged_size = 0;
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

static void write_statistics(struct xk_sink *s, const struct xk_stop *stop, uint64_t now)
{
	uint8_t block[112];

	for (uint32_t i = 0; i < s->count; i++)
		write_blocks(s, stop, block, put_statistics(s->writers[i], now, block));
	s->statistics_ns = now;
	s->changed = 0;
}

/* ---- merging, under the lock ---- */

static uint64_t time_of(const uint8_t *block)
{
	return (uint64_t)get32(block + 12) << 32 | get32(block + 16);
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
		write_blocks(s, stop, b->data + start, at - start);
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
		write_statistics(s, stop, now);
}

/* Publish what the worker has, and merge. */
static void publish(struct xk_writer *w)
{
	w->open->ready = w->open->used;
	w->published = w->newest;
	merge(w->sink, w->stop);
	if (w->first == w->open && w->open->start == w->open->used)
		w->open->start = w->open->ready = w->open->used = 0;
}

/* Make room in the open buffer, which is full: write, move the rest to its start, or take another. */
static void make_room(struct xk_writer *w)
{
	struct xk_sink *s = w->sink;
	struct buffer *b;

	pthread_mutex_lock(&s->lock);
	publish(w);
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

/* ---- blocks ---- */

static void put_option(struct xk_writer *w, uint16_t code, const void *value, uint16_t size)
{
	uint16_t start[2] = { code, size };

	memcpy(w->options + w->options_size, start, 4);
	memcpy(w->options + w->options_size + 4, value, size);
	w->options_size += 4u + ((size + 3u) & ~3u);
}

static void open_options(struct xk_writer *w)
{
	const struct xk_label *label = &w->source->label;
	/* a verdict's first byte says whose it is, 1: Linux_eBPF_TC, 2: Linux_eBPF_XDP; then 64 bits */
	const uint8_t verdict[9] = { label->hook == XK_HOOK_XDP ? 2 : 1 };
	const uint32_t direction = label->outbound ? 2 : 1, queue = 0;

	put_option(w, 2, &direction, 4); /* epb_flags */
	if (label->queues) {
		w->queue_at = w->options_size + 4;
		put_option(w, 6, &queue, 4); /* epb_queue */
	}
	if (label->hook != XK_HOOK_SOCKET) { /* there all packets go on */
		w->verdict_at = w->options_size + 5;
		put_option(w, 7, verdict, 9); /* epb_verdict */
	}
}

/* The opt_comment that names the rule which took a packet; its size, or 0. */
static uint32_t comment_of(const struct xk_sink *s, uint32_t rule, const uint8_t **option)
{
	const struct comments *c = __atomic_load_n(&s->comments, __ATOMIC_ACQUIRE);

	if (!c || rule >= c->count)
		return 0;
	*option = c->options[rule];
	return c->sizes[rule];
}

static void copy_bytes(uint8_t *to, const struct xk_view *v, uint32_t kept)
{
	uint32_t n = kept < v->len ? kept : v->len;

	memcpy(to, v->data, n);
	for (const struct xk_part *part = v->parts; (to += n, kept -= n); part++) {
		n = part->len < kept ? part->len : kept;
		memcpy(to, part->data, n);
	}
}

/*
 * Where in the buffer a block of that time and size goes: behind the others, or where a source mixes its order up in
 * front of younger ones, which move.
 */
static uint8_t *place_of(struct xk_writer *w, uint64_t time, uint32_t size)
{
	struct buffer *b = w->open;
	uint32_t at = b->used;

	while (w->source->disorder_ns && at > b->start) {
		uint32_t before = at - get32(b->data + at - 4);

		if (time_of(b->data + before) <= time)
			break;
		at = before;
	}
	memmove(b->data + at + size, b->data + at, b->used - at);
	b->used += size;
	return b->data + at;
}

/* Enhanced Packet Block: draft-ietf-opsawg-pcapng section 4.3, host byte order, nanoseconds (the IDB says so). */
static void put_block(struct xk_writer *w, const struct xk_view *v)
{
	/* ABORTED, DROP, PASS, TX, REDIRECT as XDP and as TC know them: TC_ACT_SHOT, _OK, _REDIRECT, _REDIRECT. */
	static const uint8_t verdicts[2][5] = { { 2, 2, 0, 7, 7 }, { 0, 1, 2, 3, 4 } };
	uint32_t kept = v->len, padded, size, comment_size;
	const uint8_t *comment = NULL;
	uint8_t *at;

	for (uint32_t i = 0; i < v->more; i++)
		kept += v->parts[i].len;
	if (kept > w->sink->snaplen)
		kept = w->sink->snaplen;
	padded = (kept + 3) & ~3u;
	comment_size = comment_of(w->sink, v->rule, &comment);
	size = 32 + padded + w->options_size + comment_size + 4;
	if (w->open->used + size > BUFFER)
		make_room(w);
	at = place_of(w, v->time_ns, size);
	at = put32(put32(put32(at, 6), size), w->interface);
	at = put32(put32(at, (uint32_t)(v->time_ns >> 32)), (uint32_t)v->time_ns);
	at = put32(put32(at, kept), v->wire_len);
	copy_bytes(at, v, kept);
	memset(at + kept, 0, padded - kept);
	at += padded;
	if (w->queue_at)
		put32(w->options + w->queue_at, v->queue);
	if (w->verdict_at)
		w->options[w->verdict_at] = verdicts[w->source->label.hook == XK_HOOK_XDP][v->verdict < 5 ? v->verdict : 0];
	memcpy(at, w->options, w->options_size);
	at += w->options_size;
	if (comment_size)
		memcpy(at, comment, comment_size);
	put32(put32(at + comment_size, 0), size); /* opt_endofopt */
	if (v->time_ns > w->newest)
		w->newest = v->time_ns;
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
	open_options(w);
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
		put_block(w, &views[i]);
	if (s->expected > 1 && wanted && w->newest - w->published > PUBLISH_NS && !pthread_mutex_trylock(&s->lock)) {
		publish(w);
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
	publish(w);
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
	publish(w);
	pthread_mutex_unlock(&w->sink->lock);
}
