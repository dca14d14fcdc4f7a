/* SPDX-License-Identifier: BSD-2-Clause */
/* Inside of sinks: what a worker (worker.c) does with its part of a sink (sink.c). */
#pragma once
#include "source.h"

struct xk_writer;

/* How a worker is told to stop, so that it is not stuck in write() to a pipe that nobody reads. */
struct xk_stop {
	int fd; /* eventfd */
	int set;
};

/* The part of a worker in a sink; *source, *stop and *stats stay until all workers of the sink have ended.  -ENOMEM, -ENOSPC: more than the sink was made for. */
int xk_writer_open(struct xk_sink *s, const struct xk_source *source, uint32_t interface, const struct xk_stop *stop,
		   struct xk_worker_stats *stats, struct xk_writer **out);
/* Take `n` packets of the source, which are copied. */
void xk_writer_put(struct xk_writer *w, const struct xk_view *views, uint32_t n);
/*
 * The worker found nothing: what it has is written as far as the order of times allows.  Until xk_writer_resume() it must
 * not receive.  How many ms it may sleep before it must call again, -1: for ever.
 */
int xk_writer_rest(struct xk_writer *w);
void xk_writer_resume(struct xk_writer *w);
/* The worker has ended: write what is left. */
void xk_writer_end(struct xk_writer *w);
/* Undo the last xk_writer_open(): its worker did not start. */
void xk_writer_cancel(struct xk_writer *w);
/* Whether nothing looks into the packets. */
int xk_sink_unread(const struct xk_sink *s);
