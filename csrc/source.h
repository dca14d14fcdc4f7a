/* SPDX-License-Identifier: BSD-2-Clause */
/* Packets on their way from a source (receive.c, packet.c, copies.c) through a worker (worker.c) to a sink (sink.c). */
#pragma once
#include "base.h"
#include "xdpkit.h"

/* A further buffer of a packet. */
struct xk_part {
	const uint8_t *data;
	uint32_t len;
};

/* One packet on its way from a source to a sink. */
struct xk_view {
	const uint8_t *data; /* the first buffer */
	uint32_t len;
	uint32_t wire_len;
	uint64_t time_ns; /* CLOCK_REALTIME */
	uint32_t rule;
	uint32_t verdict; /* enum xdp_action */
	uint32_t more; /* further buffers */
	const struct xk_part *parts;
	uint32_t queue; /* on which it was received */
};
#define XK_BATCH 256u
#define XK_NO_RULE UINT32_MAX /* the source does not know the rule */

/* What is known of all packets of a source: the options of their pcapng blocks. */
struct xk_label {
	int hook;     /* XK_HOOK_*: whose verdicts they are; XK_HOOK_SOCKET: none */
	int outbound; /* they were leaving the host */
	int queues;   /* their queue is known */
};

/* A source as a worker sees it. */
struct xk_source {
	/* Next batch, at most XK_BATCH; 0 when there is nothing. */
	int (*receive)(void *self, struct xk_view *out);
	/* Give back the batch of the last receive(). */
	int (*release)(void *self);
	int fd;
	/* After the order to stop, wait this long for what the kernel still holds back (a TPACKET_V3 block). */
	int linger_ms;
	void *self;
	/*
	 * Called before sleeping in poll(), where the producer wakes only those who ask: 1 if the worker must not sleep,
	 * because something is there; NULL: the producer wakes always.
	 */
	int (*sleep)(void *self);
	/* Called when there was nothing: let the driver go on, where it asks for that; 1 if a system call did. */
	int (*nudge)(void *self);
	struct xk_label label;
	/* A packet may come after one whose time is so much younger. */
	uint64_t disorder_ns;
	/* A packet may come so much later than its time. */
	uint64_t delay_ns;
	/* Whether nothing waits: called by any thread while the worker rests; NULL: it is when it was. */
	int (*empty)(const void *self);
	/* Packets that user space was too slow for, so far: called by any thread; NULL: not known. */
	uint64_t (*lost)(const void *self);
};
/* Start a worker on any source, of which it keeps a copy. */
int xk_worker_start(const struct xk_source *source, struct xk_sink *sink, uint32_t interface, int wait, int cpu,
		    struct xk_worker **out);
void xk_xsk_source(struct xk_xsk *x, uint32_t queue, struct xk_source *out);
/* Whether nobody reads what comes, which says in what order frames are best used: see struct xk_pool. */
void xk_xsk_unread(struct xk_xsk *x, int unread);
void xk_packet_source(struct xk_packet *p, struct xk_source *out);
void xk_copies_source(struct xk_copies *c, struct xk_source *out);
/* Whether the reader looks by itself, at least every 0.1 s: then the program spares the wake-ups and what they need. */
void xk_copies_nap(struct xk_copies *c, int nap);
