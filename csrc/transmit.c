/* SPDX-License-Identifier: BSD-2-Clause */
/* TX and COMPLETION: copies of packets in free frames.  Documentation/networking/xsk-tx-metadata.rst. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/if_ether.h>
#include <string.h>
#include <sys/socket.h>
#include "umem.h"

/* What linux/if_xdp.h of Debian 12 does not have yet. */
#define OPTION_TX_METADATA (1u << 1)
#define TXMD_TIMESTAMP 1u
#define TXMD_CHECKSUM 2u
#define COLOURS (15u * 64) /* places of a short packet in its frame, a cache line apart */
#define SKB_BUFFERS 18u /* MAX_SKB_FRAGS and the head: what a packet may have in copy mode */

struct tx_metadata { /* struct xsk_tx_metadata */
	uint64_t flags;
	union {
		struct {
			uint16_t csum_start, csum_offset;
		} request;
		uint64_t tx_timestamp; /* what the kernel writes there when the packet has left */
	};
	/* The kernel leaves this alone, because we ask for no launch time.  We keep here what `tx_timestamp` was at first:
	 * where both are still equal, nobody has written a time. */
	uint64_t launch_time;
};
_Static_assert(sizeof(struct tx_metadata) == 24 && offsetof(struct tx_metadata, tx_timestamp) == 8 &&
		       offsetof(struct tx_metadata, launch_time) == 16,
	       "the kernel's");

/* Keep the time at which the packet in a completed frame left, for the socket that asked; a time without room is counted. */
static void keep_time(struct xk_umem *u, uint64_t base)
{
	struct xk_sender *s = &u->senders[base / u->config.chunk_size];
	struct xk_times *t = &s->socket->times;
	const struct tx_metadata *m = (const struct tx_metadata *)(u->memory + base);

	if (t->end - t->start <= t->mask)
		t->entries[t->end++ & t->mask] =
			(struct xk_time){ s->number, m->tx_timestamp == m->launch_time ? 0 : m->tx_timestamp };
	else
		__atomic_store_n(&t->lost, t->lost + 1, __ATOMIC_RELAXED);
	s->socket = NULL;
}

/* Keep the times of the next `n` entries of a COMPLETION ring. */
static void keep_times(struct xk_umem *u, const struct xk_ring *completion, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		uint64_t addr = *xk_ring_addr(completion, completion->consumer + i);
		uint64_t base = frame_base(u, data_offset(u, addr));

		if (u->senders[base / u->config.chunk_size].socket)
			keep_time(u, base);
	}
}

int xk_collect(struct xk_xsk *x)
{
	struct xk_ring *completion = &x->queue->completion;
	struct xk_pool *p = x->pool;
	uint32_t n = xk_ring_peek(completion, completion->size);

	for (uint32_t i = 0; i < n; i++) {
		uint64_t addr = *xk_ring_addr(completion, completion->consumer + i);

		addr = frame_base(x->umem, data_offset(x->umem, addr));
		if (!pass_frame(x->umem, addr, OWNER_TX, OWNER_FREE))
			return xk_fail("COMPLETION descriptor check", EFAULT);
		pool_give(p, addr);
	}
	if (x->umem->senders)
		keep_times(x->umem, completion, n);
	if (n)
		xk_ring_release(completion, n);
	return (int)n;
}

/*
 * In copy mode one call sends as many packets as the socket's budget says (32 before Linux 6.17), and says EAGAIN when
 * there are more, so go on while it makes progress.  A zero-copy driver that sleeps is told once.
 */
int xk_kick(struct xk_xsk *x)
{
	uint32_t left = x->tx.producer - xk_ring_load(x->tx.shared_consumer), before;

	while (left) {
		if ((x->config.bind_flags & XDP_USE_NEED_WAKEUP) &&
		    !(xk_ring_load(x->tx.flags) & XDP_RING_NEED_WAKEUP))
			return 0;
		__atomic_store_n(&x->kicks, x->kicks + 1, __ATOMIC_RELAXED);
		if (sendto(x->fd, NULL, 0, MSG_DONTWAIT, NULL, 0) < 0 && errno != EAGAIN && errno != EBUSY &&
		    errno != ENOBUFS && errno != ENETDOWN)
			return xk_fail("sendto(AF_XDP)", errno);
		before = left;
		left = x->tx.producer - xk_ring_load(x->tx.shared_consumer);
		if (left == before || x->zerocopy)
			return 0;
	}
	return 0;
}

/*
 * Where a packet, the socket's `number`th, goes from `packet` into free frames, chunk by chunk; descriptors from the TX
 * ring's `at` on.
 */
static int put_packet(struct xk_xsk *x, uint32_t at, const uint8_t *packet, uint32_t len, uint32_t buffers,
		      uint64_t number, const struct tx_metadata *metadata)
{
	struct xdp_desc *descs = x->tx.entries;
	const struct xk_umem *u = x->umem;
	uint32_t room = u->config.chunk_size - u->config.tx_metadata;

	for (uint32_t i = 0; i < buffers; i++) {
		uint64_t base = pool_take(x->pool), addr = base + u->config.tx_metadata;
		uint32_t size = len < room ? len : room;
		/*
		 * Short packets lie in different places of their frames, spread over the sets of the cache, of which
		 * multiples of 2048 use few.
		 */
		uint32_t colour = room - size >= COLOURS && !u->config.tx_metadata ? (uint32_t)(base >> 5) & COLOURS : 0;
		struct xdp_desc *d = &descs[(at + i) & x->tx.mask];

		if (!pass_frame(x->umem, base, OWNER_FREE, OWNER_TX))
			return xk_fail("frame check", EFAULT);
		addr += colour;
		memcpy(u->memory + addr, packet, size);
		*d = (struct xdp_desc){ .addr = addr, .len = size, .options = i + 1 < buffers ? XDP_PKT_CONTD : 0 };
		if (metadata && !i) {
			memcpy(u->memory + addr - sizeof(*metadata), metadata, sizeof(*metadata));
			d->options |= OPTION_TX_METADATA;
			if (metadata->flags & TXMD_TIMESTAMP)
				u->senders[base / u->config.chunk_size] = (struct xk_sender){ x, number };
		}
		packet += size;
		len -= size;
	}
	return 0;
}

static inline uint32_t length_of(const struct xk_packets *p, uint32_t i)
{
	return p->each ? p->lengths[i] : p->length;
}

static int transmit(struct xk_xsk *x, const struct xk_packets *p, const struct tx_metadata *metadata)
{
	uint32_t room = x->umem->config.chunk_size - x->umem->config.tx_metadata, used = 0, taken, free_tx;
	int error = xk_collect(x);

	if (error < 0)
		return error;
	free_tx = xk_ring_reserve(&x->tx, pool_free(x->pool));
	for (taken = 0; taken < p->count; taken++) {
		const uint8_t *packet = p->each ? p->each[taken] : p->rows + taken * p->stride;
		uint32_t len = length_of(p, taken), buffers = len <= room ? 1 : (len + room - 1) / room;

		if (buffers > free_tx - used)
			break;
		if ((error = put_packet(x, x->tx.producer + used, packet, len, buffers, x->transmitted + taken,
					metadata)))
			return error;
		used += buffers;
	}
	if (used)
		xk_ring_submit(&x->tx, used);
	__atomic_store_n(&x->transmitted, x->transmitted + taken, __ATOMIC_RELAXED);
	return (int)taken;
}

int xk_xsk_transmit(struct xk_xsk *x, const struct xk_packets *p, const struct xk_tx_ask *ask)
{
	struct tx_metadata metadata = { 0 };
	uint32_t most = x->umem->config.chunk_size - x->umem->config.tx_metadata;
	int taken, error;

	if (!x->config.tx_size)
		return xk_fail("transmit without a TX ring", EINVAL);
	if (x->config.bind_flags & XDP_USE_SG)
		most *= x->config.tx_size < SKB_BUFFERS ? x->config.tx_size : SKB_BUFFERS;
	for (uint32_t i = 0; i < (p->each ? p->count : !!p->count); i++)
		if (length_of(p, i) > most)
			return xk_fail("transmit: packet longer than a frame", EMSGSIZE);
		else if (length_of(p, i) < ETH_HLEN) /* the kernel would never complete an empty one: a frame lost */
			return xk_fail("transmit: packet shorter than an Ethernet header", EINVAL);
		else if (ask->checksum && ask->start + ask->offset + 2 > length_of(p, i))
			return xk_fail("transmit: the checksum is not in the packet", EINVAL);
	if ((ask->checksum && !x->umem->config.tx_metadata) || (ask->timestamp && !x->times.entries))
		return xk_fail("transmit: metadata without room for it", EINVAL);
	if (ask->checksum) {
		metadata.flags |= TXMD_CHECKSUM;
		metadata.request.csum_start = (uint16_t)ask->start;
		metadata.request.csum_offset = (uint16_t)ask->offset;
		metadata.launch_time = metadata.tx_timestamp;
	}
	if (ask->timestamp)
		metadata.flags |= TXMD_TIMESTAMP;
	pool_lock(x->pool);
	taken = transmit(x, p, metadata.flags ? &metadata : NULL);
	pool_unlock(x->pool);
	if (taken < 0)
		return taken;
	error = xk_kick(x);
	return error ? error : taken;
}

int xk_xsk_complete(struct xk_xsk *x)
{
	int result = x->config.tx_size ? xk_kick(x) : 0;

	if (result)
		return result;
	pool_lock(x->pool);
	result = xk_collect(x);
	pool_unlock(x->pool);
	return result;
}

int xk_xsk_times(struct xk_xsk *x, uint64_t *number, uint64_t *time_ns, uint32_t max)
{
	struct xk_times *t = &x->times;
	uint32_t n;

	pool_lock(x->pool);
	n = t->end - t->start < max ? t->end - t->start : max;
	for (uint32_t i = 0; i < n; i++) {
		struct xk_time *e = &t->entries[t->start++ & t->mask];

		number[i] = e->number;
		time_ns[i] = e->time_ns;
	}
	pool_unlock(x->pool);
	return (int)n;
}
