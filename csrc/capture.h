/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Inside of sinks: buffers of pcapng blocks on their way from workers to a file.  block.c makes the blocks, merge.c puts
 * them in the order of their times, write.c writes them, and sink.c is what workers and Python see.
 */
#pragma once
#include <string.h>
#include "sink.h"

#define BUFFER (1u << 20)
#define OPTIONS_MAX 40u
#define COMMENT_MAX 255u

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

static inline void add(uint64_t *counter, uint64_t n)
{
	/* one writer at a time; readers in other threads want no torn value, no order */
	__atomic_store_n(counter, *counter + n, __ATOMIC_RELAXED);
}

static inline uint32_t get32(const uint8_t *at)
{
	uint32_t value;

	memcpy(&value, at, 4);
	return value;
}

static inline uint8_t *put32(uint8_t *at, uint32_t value)
{
	memcpy(at, &value, 4);
	return at + 4;
}

static inline uint64_t time_of(const uint8_t *block)
{
	return (uint64_t)get32(block + 12) << 32 | get32(block + 16);
}

/* ---- block.c ---- */

/* The options that all packets of a worker have: direction, queue, verdict. */
void xk_open_options(struct xk_writer *w);
/* Enhanced Packet Block: draft-ietf-opsawg-pcapng section 4.3, host byte order, nanoseconds (the IDB says so). */
void xk_put_block(struct xk_writer *w, const struct xk_view *v);
void xk_free_comments(struct comments *c);

/* ---- merge.c ---- */

/* Publish what the worker has, and merge; under the lock. */
void xk_publish(struct xk_writer *w);
/* Make room in the open buffer, which is full: write, move the rest to its start, or take another.  Takes the lock. */
void xk_make_room(struct xk_writer *w);

/* ---- write.c, under the lock ---- */

/* Write whole blocks, which hold the `merged` ones of each writer, and count for each what is in the file. */
void xk_write_blocks(struct xk_sink *s, const struct xk_stop *stop, const uint8_t *data, uint32_t size);
/* An Interface Statistics Block for each writer. */
void xk_write_statistics(struct xk_sink *s, const struct xk_stop *stop, uint64_t now);
