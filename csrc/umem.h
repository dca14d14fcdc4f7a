/* SPDX-License-Identifier: BSD-2-Clause */
/* Inside of UMEM, pools and sockets: for umem.c, xsk.c, receive.c, transmit.c and forward.c.  xdpkit.h has the theory. */
#pragma once
#include "ring.h"
#include "source.h"

#ifndef AF_XDP
#define AF_XDP 44
#endif
#ifndef SOL_XDP
#define SOL_XDP 283
#endif
/* linux/if_xdp.h of Linux 6.6 and later */
#ifndef XDP_USE_SG
#define XDP_USE_SG (1 << 4)
#define XDP_PKT_CONTD (1 << 0)
#endif

/* Low 48 bits of an unaligned address: the frame; above: the offset in it. */
#define UNALIGNED_BASE ((1ull << 48) - 1)

enum owner { OWNER_FREE, OWNER_FILL, OWNER_HELD, OWNER_TX };

struct mapping {
	void *at;
	size_t size;
};

/* Who asked when the packet in a frame leaves (NULL: nobody), and which one of its packets that is. */
struct xk_sender {
	struct xk_xsk *socket;
	uint64_t number;
};

struct xk_time {
	uint64_t number, time_ns;
};

/* Times that nobody has read yet; indices run free. */
struct xk_times {
	struct xk_time *entries; /* NULL: none are kept */
	uint32_t mask, start, end;
	uint64_t lost; /* found no room; read by other threads */
};

struct xk_umem {
	struct xk_umem_config config;
	uint8_t *memory;
	size_t size, mapped; /* of the frames; of the mapping */
	uint64_t mask;	 /* of a frame's start, where chunk_size is a power of two */
	uint32_t taken;	 /* frames that pools have */
	uint8_t *owners; /* per frame, NULL unless config.check */
	struct xk_sender *senders; /* per frame, NULL unless a socket keeps times */
	struct xk_xsk *sockets; /* open ones, the first of them registered the UMEM or shares with one that did */
};

/*
 * A frame that was never used is taken only where no other is free, so that few go round.  Of the others the one that
 * was given back last, or `in_order` the one that was given back first: then they keep the order of their addresses, which
 * is faster to copy into, but slower as soon as anybody reads what was copied (docs/performance.md).
 */
struct xk_pool {
	struct xk_umem *umem;
	uint64_t *free;	     /* ring of used frames, size a power of two; indices run free */
	uint32_t mask, head, tail;
	uint32_t fresh, end; /* frames of the UMEM that were never used */
	uint32_t held_count, frames;
	int in_order;
	int locked; /* several threads: sockets of one queue */
	pthread_mutex_t lock;
};

/* FILL and COMPLETION ring of one queue; several sockets may use them. */
struct xk_queue {
	struct xk_ring fill, completion;
	struct mapping maps[2];
	uint32_t users;
};

struct xk_xsk {
	int fd;
	struct xk_xsk_config config;
	struct xk_umem *umem;
	struct xk_pool *pool;
	struct xk_queue *queue;
	int zerocopy, first; /* first of its queue */
	struct xk_ring rx, tx;
	struct mapping maps[2];
	uint64_t received, transmitted; /* packets; read by other threads */
	uint64_t kicks;			/* system calls of TX; the same */
	struct xk_xsk *next;		/* of the UMEM */
	/* the batch that a worker holds */
	struct xk_batch batch;
	struct xk_part *parts;
	uint32_t keep;	 /* free frames that stay for TX */
	uint32_t number; /* of its queue, for the packets of a worker */
	struct xk_times times;
};

static inline uint64_t frame_base(const struct xk_umem *u, uint64_t addr)
{
	return u->config.unaligned ? addr - addr % u->config.chunk_size : addr & u->mask;
}

/* Offset in the UMEM of the first byte that a descriptor names. */
static inline uint64_t data_offset(const struct xk_umem *u, uint64_t addr)
{
	return u->config.unaligned ? (addr & UNALIGNED_BASE) + (addr >> 48) : addr;
}

/* Move a frame, by any address inside, from one owner to another; 0 if it was not the first one's. */
static inline int pass_frame(struct xk_umem *u, uint64_t addr, enum owner from, enum owner to)
{
	uint8_t *owner;

	if (addr >= u->size)
		return 0;
	if (!u->owners)
		return 1;
	owner = &u->owners[addr / u->config.chunk_size];
	if (*owner != from)
		return 0;
	*owner = to;
	return 1;
}

static inline uint32_t pool_free(const struct xk_pool *p)
{
	return p->tail - p->head + p->end - p->fresh;
}

/* One of the free frames; there is one. */
static inline uint64_t pool_take(struct xk_pool *p)
{
	if (p->head == p->tail)
		return (uint64_t)p->fresh++ * p->umem->config.chunk_size;
	return p->free[(p->in_order ? p->head++ : --p->tail) & p->mask];
}

static inline void pool_give(struct xk_pool *p, uint64_t addr)
{
	p->free[p->tail++ & p->mask] = addr;
}

static inline void pool_lock(struct xk_pool *p)
{
	if (p->locked)
		pthread_mutex_lock(&p->lock);
}

static inline void pool_unlock(struct xk_pool *p)
{
	if (p->locked)
		pthread_mutex_unlock(&p->lock);
}

/* What these files do for each other; the caller has the pool's lock or is its only thread. */

/* umem.c.  Move free frames into the FILL ring, as many as it takes; those kept for TX stay free, but for `least` of them. */
int xk_refill(struct xk_xsk *x, uint32_t least);
/* transmit.c.  Take completed frames back into the pool; returns how many. */
int xk_collect(struct xk_xsk *x);
/* transmit.c.  Let the kernel send what is in the TX ring, if it has to be told; a busy device is no error. */
int xk_kick(struct xk_xsk *x);
/* receive.c.  Nothing was there: busy poll, or wake the driver if it waits for FILL; 1 if a system call was made. */
int xk_nudge(struct xk_xsk *x);
