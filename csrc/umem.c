/* SPDX-License-Identifier: BSD-2-Clause */
/* UMEM, the pools that own its frames, and the FILL ring that they feed.  Kernel interface: Documentation/networking/af_xdp.rst, mbind(2). */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "umem.h"

/* linux/mempolicy.h */
#define PREFERRED 1
#define FLAG_NODE 1
#define FLAG_ADDR 2
#define NODES 1024

#define HUGE_PAGE (2u << 20)

static int valid(const struct xk_umem_config *c)
{
	int power_of_two = !(c->chunk_size & (c->chunk_size - 1));

	return c->frames && c->chunk_size >= 2048 && c->chunk_size <= 4096 && (c->unaligned || power_of_two) &&
	       !(c->tx_metadata & 7) && c->tx_metadata < 256 && c->node < NODES;
}

static int map_memory(struct xk_umem *u)
{
	const struct xk_umem_config *c = &u->config;
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | (c->huge ? MAP_HUGETLB : 0);
	void *at;

	u->size = u->mapped = (size_t)c->frames * c->chunk_size;
	if (c->huge)
		u->mapped = (u->size + HUGE_PAGE - 1) & ~(size_t)(HUGE_PAGE - 1);
	at = mmap(NULL, u->mapped, PROT_READ | PROT_WRITE, flags, -1, 0);
	if (at == MAP_FAILED)
		return xk_fail(c->huge ? "mmap(MAP_HUGETLB)" : "mmap(UMEM)", errno);
	u->memory = at;
	if (c->node >= 0) { /* before the first touch; a wish: without it the memory is only slower */
		unsigned long nodes[NODES / 8 / sizeof(long)] = { 0 };

		nodes[(size_t)c->node / 8 / sizeof(long)] = 1ul << ((size_t)c->node % (8 * sizeof(long)));
		syscall(SYS_mbind, at, u->mapped, PREFERRED, nodes, NODES, 0);
	}
	if (!c->huge)
		madvise(at, u->mapped, MADV_HUGEPAGE); /* a wish too: the kernel copies into frames that lie in one piece */
	memset(at, 0, u->size);
	return 0;
}

int xk_umem_open(const struct xk_umem_config *config, struct xk_umem **out)
{
	struct xk_umem *u;
	int error;

	if (!valid(config))
		return xk_fail("UMEM sizes", EINVAL);
	u = calloc(1, sizeof(*u));
	if (!u)
		return xk_fail("calloc", ENOMEM);
	u->config = *config;
	u->mask = ~(uint64_t)(config->chunk_size - 1);
	u->owners = config->check ? calloc(config->frames, 1) : NULL;
	if (config->check && !u->owners)
		error = xk_fail("calloc", ENOMEM);
	else
		error = map_memory(u);
	if (error) {
		xk_umem_close(u);
		return error;
	}
	*out = u;
	return 0;
}

uint8_t *xk_umem_memory(const struct xk_umem *u, size_t *size)
{
	*size = u->size;
	return u->memory;
}

int xk_umem_node(const struct xk_umem *u)
{
	int node;

	if (syscall(SYS_get_mempolicy, &node, NULL, 0, u->memory, FLAG_NODE | FLAG_ADDR))
		return xk_fail("get_mempolicy", errno);
	return node;
}

void xk_umem_close(struct xk_umem *u)
{
	if (u->memory)
		munmap(u->memory, u->mapped);
	free(u->owners);
	free(u->senders);
	free(u);
}

int xk_pool_open(struct xk_umem *u, uint32_t frames, struct xk_pool **out)
{
	struct xk_pool *p;

	if (!frames || frames > u->config.frames - u->taken)
		return xk_fail("frames of the UMEM", ENOSPC);
	p = calloc(1, sizeof(*p));
	while (p && p->mask < frames - 1)
		p->mask = 2 * p->mask + 1;
	if (p)
		p->free = malloc((p->mask + 1ul) * sizeof(*p->free));
	if (!p || !p->free) {
		free(p);
		return xk_fail("malloc", ENOMEM);
	}
	p->umem = u;
	p->frames = frames;
	p->fresh = u->taken;
	p->end = u->taken += frames;
	pthread_mutex_init(&p->lock, NULL);
	*out = p;
	return 0;
}

void xk_pool_frames(const struct xk_pool *p, struct xk_frames *out)
{
	*out = (struct xk_frames){ .free = pool_free(p), .held = p->held_count, .frames = p->frames };
	for (const struct xk_xsk *x = p->umem->sockets; x; x = x->next) {
		const struct xk_queue *q = x->queue;
		uint32_t rx;

		if (x->pool != p)
			continue;
		rx = xk_ring_load(x->rx.shared_producer) - x->rx.consumer;
		out->rx += rx;
		out->fill -= x->rx.consumer + rx; /* free-running indices: the sum comes out right */
		out->tx += x->tx.producer;
		if (!x->first)
			continue;
		out->fill += q->fill.producer;
		out->completion += xk_ring_load(q->completion.shared_producer) - q->completion.consumer;
		out->tx -= xk_ring_load(q->completion.shared_producer);
	}
}

void xk_pool_close(struct xk_pool *p)
{
	pthread_mutex_destroy(&p->lock);
	free(p->free);
	free(p);
}

int xk_refill(struct xk_xsk *x, uint32_t least)
{
	struct xk_ring *fill = &x->queue->fill;
	uint32_t free = pool_free(x->pool), spare = free > x->keep + least ? free - x->keep : least < free ? least : free;
	uint32_t n = spare ? xk_ring_reserve(fill, spare) : 0;

	for (uint32_t i = 0; i < n; i++) {
		uint64_t addr = pool_take(x->pool);

		if (!pass_frame(x->umem, addr, OWNER_FREE, OWNER_FILL))
			return xk_fail("frame check", EFAULT);
		*xk_ring_addr(fill, fill->producer + i) = addr;
	}
	if (n)
		xk_ring_submit(fill, n);
	return 0;
}
