/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * AF_XDP rings: single producer, single consumer, shared with the kernel.
 *
 *            consumer                 producer
 *               |                        |
 *   +-----+-----+-----+-----+-----+-----+-----+-----+     indices run free in 32 bits and are masked
 *   |     |     |  x  |  x  |  x  |  x  |     |     |     at access; producer - consumer = entries used
 *   +-----+-----+-----+-----+-----+-----+-----+-----+
 *
 * FILL and TX are ours to produce, RX and COMPLETION ours to consume.  `producer` and `consumer` below are our cached
 * copies; the shared words are read with acquire and written with release, once per batch each:
 *
 *   reserve  acquire *shared_consumer, pairs with the kernel's release after it consumed     (only when short of room)
 *   submit   release *shared_producer, pairs with the kernel's acquire before it consumes
 *   peek     acquire *shared_producer, pairs with the kernel's release after it produced     (only when short of entries)
 *   release  release *shared_consumer, pairs with the kernel's acquire before it produces
 */
#pragma once
#include <assert.h>
#include <stdint.h>

struct xk_ring {
	uint32_t *shared_producer;
	uint32_t *shared_consumer;
	uint32_t *flags;
	void *entries; /* uint64_t addr (FILL, COMPLETION) or struct xdp_desc (RX, TX) */
	uint32_t mask;
	uint32_t size;
	uint32_t producer; /* ours: next entry to write; theirs: last seen */
	uint32_t consumer; /* ours: next entry to read;  theirs: last seen */
};

static inline uint32_t xk_ring_load(const uint32_t *word)
{
	return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

/* Entries that may be written, looking at the kernel's index only if fewer than `want` are known to be free. */
static inline uint32_t xk_ring_reserve(struct xk_ring *r, uint32_t want)
{
	uint32_t room = r->size - (r->producer - r->consumer);

	if (room < want) {
		r->consumer = xk_ring_load(r->shared_consumer);
		room = r->size - (r->producer - r->consumer);
	}
	assert(room <= r->size);
	return room < want ? room : want;
}

/* Hand over the next `n` entries, written at producer .. producer + n - 1. */
static inline void xk_ring_submit(struct xk_ring *r, uint32_t n)
{
	r->producer += n;
	__atomic_store_n(r->shared_producer, r->producer, __ATOMIC_RELEASE);
}

/* Entries that may be read, looking at the kernel's index only if fewer than `want` are known. */
static inline uint32_t xk_ring_peek(struct xk_ring *r, uint32_t want)
{
	uint32_t used = r->producer - r->consumer;

	if (used < want) {
		r->producer = xk_ring_load(r->shared_producer);
		used = r->producer - r->consumer;
	}
	assert(used <= r->size);
	return used < want ? used : want;
}

/* Give back the next `n` entries, read at consumer .. consumer + n - 1. */
static inline void xk_ring_release(struct xk_ring *r, uint32_t n)
{
	r->consumer += n;
	__atomic_store_n(r->shared_consumer, r->consumer, __ATOMIC_RELEASE);
}

static inline uint64_t *xk_ring_addr(const struct xk_ring *r, uint32_t index)
{
	return (uint64_t *)r->entries + (index & r->mask);
}
