/* SPDX-License-Identifier: BSD-2-Clause */
/* RX: packets of one or more buffers, held until their frames are recycled; and a socket as a worker's source. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/bpf.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include "shared.h"
#include "umem.h"

/* What the program wrote before a packet, once; the batch's defaults where it wrote nothing. */
static inline void take_metadata(const struct xk_xsk *x, struct xk_batch *b, uint32_t packet, uint64_t addr,
				 uint64_t offset)
{
	struct xk_meta *m = (struct xk_meta *)(x->umem->memory + addr) - 1;

	if (addr - frame_base(x->umem, addr) < sizeof(*m) || m->magic != XK_META_MAGIC)
		return;
	b->time_ns[packet] = m->time_ns + offset;
	b->rule[packet] = m->rule;
	b->mark[packet] = m->mark;
	m->magic = 0;
}

/* What the driver knew of the packets whose metadata was taken, for a program that writes struct xk_known. */
static void take_known(const struct xk_xsk *x, struct xk_batch *b, uint32_t packets)
{
	for (uint32_t i = 0; i < packets; i++) {
		uint64_t addr = b->addr[b->first[i]];
		const struct xk_known *k = (struct xk_known *)(x->umem->memory + addr) - 1;
		int written = b->rule[i] != XK_NO_RULE && addr - frame_base(x->umem, addr) >= sizeof(*k);

		b->device_ns[i] = written ? k->device_ns & ~XK_KNOWN_VLAN : 0;
		b->hash[i] = written ? k->meta.hash : 0;
		b->vlan[i] = written && k->device_ns & XK_KNOWN_VLAN ? k->meta.vlan : XK_NO_VLAN;
	}
}

/* Describe whole packets of the next `n` descriptors in the columns of the batch: how many packets, or -errno. */
static int read_descriptors(const struct xk_xsk *x, struct xk_batch *b, uint32_t n)
{
	const struct xdp_desc *descs = x->rx.entries;
	uint64_t now = xk_clock_ns(CLOCK_REALTIME), offset = x->config.metadata ? xk_clock_offset() : 0;
	uint32_t packets = 0, start = 1, total = 0;

	for (uint32_t i = 0; i < n && packets < b->max_packets; i++) {
		const struct xdp_desc *d = &descs[(x->rx.consumer + i) & x->rx.mask];
		uint64_t addr = data_offset(x->umem, d->addr);

		if (addr + d->len > x->umem->size)
			return xk_fail("RX descriptor check", EFAULT);
		b->addr[i] = addr;
		b->size[i] = d->len;
		if (start) {
			b->first[packets] = i;
			b->time_ns[packets] = now;
			b->rule[packets] = XK_NO_RULE;
			b->mark[packets] = 0;
			total = start = 0;
			if (x->config.metadata)
				take_metadata(x, b, packets, addr, offset);
		}
		total += d->len;
		if (d->options & XDP_PKT_CONTD)
			continue;
		b->len[packets++] = total;
		b->buffers = i + 1;
		start = 1;
	}
	return (int)packets;
}

int xk_xsk_receive(struct xk_xsk *x, struct xk_batch *b)
{
	uint32_t n = xk_ring_peek(&x->rx, b->max_buffers);
	int packets = 0, error;

	b->buffers = 0; /* those of whole packets */
	if (n && (packets = read_descriptors(x, b, n)) < 0)
		return packets;
	if (!packets) /* the rest of the packet may still come, if there is room for it */
		return n < b->max_buffers ? 0 : xk_fail("a packet of more buffers than the batch holds", EMSGSIZE);
	for (uint32_t i = 0; x->umem->owners && i < b->buffers; i++)
		if (!pass_frame(x->umem, b->addr[i], OWNER_FILL, OWNER_HELD))
			return xk_fail("RX descriptor check", EFAULT);
	if (b->device_ns)
		take_known(x, b, (uint32_t)packets);
	__atomic_store_n(&x->received, x->received + (uint32_t)packets, __ATOMIC_RELAXED);
	xk_ring_release(&x->rx, b->buffers);
	pool_lock(x->pool);
	x->pool->held_count += b->buffers;
	error = xk_refill(x, 0); /* free frames replace those now held, so that a batch under way does not starve the kernel */
	pool_unlock(x->pool);
	return error ? error : packets;
}

static int recycle(struct xk_xsk *x, const uint64_t *addr, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		uint64_t base = frame_base(x->umem, addr[i]);

		if (!pass_frame(x->umem, base, OWNER_HELD, OWNER_FREE))
			return xk_fail("frame check", EFAULT);
		if (x->umem->owners) /* poison: a stale view must not look like a packet */
			memset(x->umem->memory + base, 0xde, x->umem->config.chunk_size);
		pool_give(x->pool, base);
	}
	x->pool->held_count -= n;
	return xk_refill(x, n);
}

int xk_xsk_recycle(struct xk_xsk *x, const uint64_t *addr, uint32_t n)
{
	int error;

	pool_lock(x->pool);
	error = recycle(x, addr, n);
	pool_unlock(x->pool);
	return error;
}

int xk_nudge(struct xk_xsk *x)
{
	if (!x->config.busy_poll_us && !(xk_ring_load(x->queue->fill.flags) & XDP_RING_NEED_WAKEUP))
		return 0;
	recv(x->fd, NULL, 0, MSG_DONTWAIT); /* busy polls, or wakes the driver; it brings no data, and no error of use */
	return 1;
}

int xk_xsk_wait(struct xk_xsk *const *x, uint32_t n, int stop_fd, int timeout_ms)
{
	struct pollfd fds[n + 1];
	int ready;

	for (uint32_t i = 0; i < n; i++) {
		if (xk_ring_load(x[i]->rx.shared_producer) != x[i]->rx.consumer)
			return 1;
		fds[i] = (struct pollfd){ .fd = x[i]->fd, .events = POLLIN };
	}
	fds[n] = (struct pollfd){ .fd = stop_fd, .events = POLLIN };
	ready = poll(fds, n + 1, timeout_ms);
	if (ready < 0)
		return xk_fail("poll(AF_XDP)", errno);
	if (ready)
		return ready > (fds[n].revents != 0);
	/* poll() keeps silent about a device that went away: the socket is unbound then, which recvmsg tells */
	for (uint32_t i = 0; i < n; i++)
		if (recv(x[i]->fd, NULL, 0, MSG_DONTWAIT) < 0 && errno == ENXIO)
			return xk_fail("poll(AF_XDP): the device is gone", ENODEV);
	return 0;
}

/* ---- as a worker's source ---- */

static int source_receive(void *self, struct xk_view *out)
{
	struct xk_xsk *x = self;
	const uint8_t *memory = x->umem->memory;
	struct xk_batch *b = &x->batch;
	int n = xk_xsk_receive(x, b);

	for (int i = 0; i < n; i++) {
		uint32_t first = b->first[i], end = i + 1 < n ? b->first[i + 1] : b->buffers;

		out[i] = (struct xk_view){ .data = memory + b->addr[first],
					   .len = b->size[first],
					   .wire_len = b->len[i],
					   .time_ns = b->time_ns[i],
					   .rule = b->rule[i],
					   .verdict = XDP_REDIRECT,
					   .queue = x->number,
					   .more = end - first - 1,
					   .parts = &x->parts[first + 1] };
		for (uint32_t j = first + 1; j < end; j++)
			x->parts[j] = (struct xk_part){ memory + b->addr[j], b->size[j] };
	}
	return n;
}

static int source_release(void *self)
{
	struct xk_xsk *x = self;

	return xk_xsk_recycle(x, x->batch.addr, x->batch.buffers);
}

static int source_nudge(void *self)
{
	return xk_nudge(self);
}

void xk_xsk_unread(struct xk_xsk *x, int unread)
{
	pool_lock(x->pool);
	x->pool->in_order = unread;
	pool_unlock(x->pool);
}

static int source_empty(const void *self)
{
	const struct xk_xsk *x = self;

	return xk_ring_load(x->rx.shared_producer) == x->rx.consumer;
}

static uint64_t source_lost(const void *self)
{
	struct xk_xsk_stats s;

	return xk_xsk_stats(self, &s) ? 0 : s.rx_dropped + s.rx_ring_full;
}

void xk_xsk_source(struct xk_xsk *x, uint32_t queue, struct xk_source *out)
{
	x->number = queue;
	*out = (struct xk_source){ .receive = source_receive,
				   .release = source_release,
				   .fd = x->fd,
				   .self = x,
				   .nudge = source_nudge,
				   .label = { .hook = XK_HOOK_XDP, .queues = 1 },
				   .delay_ns = 50000000, /* from the program to the end of a NAPI poll, and more */
				   .empty = source_empty,
				   .lost = source_lost };
}
