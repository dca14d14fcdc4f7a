/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Sockets of AF_XDP: open, close, and what the kernel says of them; receive.c and transmit.c move packets.
 * Kernel interface: Documentation/networking/af_xdp.rst, linux/if_xdp.h.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include "umem.h"

#ifndef SO_PREFER_BUSY_POLL
#define SO_PREFER_BUSY_POLL 69
#define SO_BUSY_POLL_BUDGET 70
#endif
/* What linux/if_xdp.h of Debian 12 does not have yet. */
#define UMEM_TX_SW_CSUM (1u << 1)
#define UMEM_TX_METADATA_LEN (1u << 2)
#define MAX_TX_SKB_BUDGET 9 /* Linux 6.17 */

struct umem_reg { /* struct xdp_umem_reg of Linux 6.8 */
	uint64_t addr, len;
	uint32_t chunk_size, headroom, flags, tx_metadata_len;
};
_Static_assert(sizeof(struct umem_reg) == 32, "the kernel's");

/* ---- open and close ---- */

static int map_ring(struct xk_xsk *x, struct xk_ring *r, struct mapping *m, const struct xdp_ring_offset *o,
		    uint32_t size, size_t entry, uint64_t page_offset)
{
	m->size = o->desc + size * entry;
	m->at = mmap(NULL, m->size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, x->fd, (off_t)page_offset);
	if (m->at == MAP_FAILED) {
		m->at = NULL;
		return xk_fail("mmap(AF_XDP ring)", errno);
	}
	r->shared_producer = (uint32_t *)((uint8_t *)m->at + o->producer);
	r->shared_consumer = (uint32_t *)((uint8_t *)m->at + o->consumer);
	r->flags = (uint32_t *)((uint8_t *)m->at + o->flags);
	r->entries = (uint8_t *)m->at + o->desc;
	r->size = size;
	r->mask = size - 1;
	r->producer = r->consumer = 0;
	return 0;
}

static int set_ring(int fd, int option, uint32_t size, const char *call)
{
	if (size && setsockopt(fd, SOL_XDP, option, &size, sizeof(size)))
		return xk_fail(call, errno);
	return 0;
}

static int open_rings(struct xk_xsk *x)
{
	const struct xk_xsk_config *c = &x->config;
	struct xk_queue *q = x->queue;
	struct xdp_mmap_offsets o;
	socklen_t size = sizeof(o);
	int error;

	if ((x->first &&
	     ((error = set_ring(x->fd, XDP_UMEM_FILL_RING, c->fill_size, "setsockopt(XDP_UMEM_FILL_RING)")) ||
	      (error = set_ring(x->fd, XDP_UMEM_COMPLETION_RING, c->completion_size,
				"setsockopt(XDP_UMEM_COMPLETION_RING)")))) ||
	    (error = set_ring(x->fd, XDP_RX_RING, c->rx_size, "setsockopt(XDP_RX_RING)")) ||
	    (error = set_ring(x->fd, XDP_TX_RING, c->tx_size, "setsockopt(XDP_TX_RING)")))
		return error;
	if (getsockopt(x->fd, SOL_XDP, XDP_MMAP_OFFSETS, &o, &size))
		return xk_fail("getsockopt(XDP_MMAP_OFFSETS)", errno);
	if ((x->first && ((error = map_ring(x, &q->fill, &q->maps[0], &o.fr, c->fill_size, sizeof(uint64_t),
					    XDP_UMEM_PGOFF_FILL_RING)) ||
			  (error = map_ring(x, &q->completion, &q->maps[1], &o.cr, c->completion_size,
					    sizeof(uint64_t), XDP_UMEM_PGOFF_COMPLETION_RING)))) ||
	    (error = map_ring(x, &x->rx, &x->maps[0], &o.rx, c->rx_size, sizeof(struct xdp_desc),
			      XDP_PGOFF_RX_RING)) ||
	    (c->tx_size && (error = map_ring(x, &x->tx, &x->maps[1], &o.tx, c->tx_size, sizeof(struct xdp_desc),
					     XDP_PGOFF_TX_RING))))
		return error;
	return 0;
}

static int valid_config(const struct xk_xsk_config *c)
{
	const uint32_t sizes[] = { c->fill_size, c->completion_size, c->rx_size, c->tx_size ? c->tx_size : 1,
				   c->tx_times ? c->tx_times : 1 };

	for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++)
		if (!sizes[i] || sizes[i] & (sizes[i] - 1))
			return 0;
	return 1;
}

static int register_umem(struct xk_xsk *x)
{
	const struct xk_umem *u = x->umem;
	struct umem_reg reg = { .addr = (uintptr_t)u->memory,
				.len = u->size,
				.chunk_size = u->config.chunk_size,
				.headroom = u->config.headroom,
				.tx_metadata_len = u->config.tx_metadata };
	/* the kernel takes the older, shorter struct too, and kernels before 6.8 know no other */
	socklen_t size = u->config.tx_metadata ? sizeof(reg) : sizeof(struct xdp_umem_reg);

	reg.flags = (u->config.unaligned ? XDP_UMEM_UNALIGNED_CHUNK_FLAG : 0) |
		    (u->config.tx_metadata ? UMEM_TX_METADATA_LEN : 0) |
		    (u->config.software_checksum ? UMEM_TX_SW_CSUM : 0);
	return setsockopt(x->fd, SOL_XDP, XDP_UMEM_REG, &reg, size) ? xk_fail("setsockopt(XDP_UMEM_REG)", errno) : 0;
}

static int set_busy_poll(const struct xk_xsk *x)
{
	const struct xk_xsk_config *c = &x->config;
	int on = 1;

	if (!c->busy_poll_us)
		return 0;
	if (setsockopt(x->fd, SOL_SOCKET, SO_PREFER_BUSY_POLL, &on, sizeof(on)))
		return xk_fail("setsockopt(SO_PREFER_BUSY_POLL)", errno);
	if (setsockopt(x->fd, SOL_SOCKET, SO_BUSY_POLL, &c->busy_poll_us, sizeof(int)))
		return xk_fail("setsockopt(SO_BUSY_POLL)", errno);
	if (setsockopt(x->fd, SOL_SOCKET, SO_BUSY_POLL_BUDGET, &c->busy_poll_budget, sizeof(int)))
		return xk_fail("setsockopt(SO_BUSY_POLL_BUDGET)", errno);
	return 0;
}

static int bind_socket(struct xk_xsk *x, int ifindex, uint32_t queue)
{
	const struct xk_xsk *registered = x->umem->sockets;
	struct sockaddr_xdp address = { .sxdp_family = AF_XDP,
					.sxdp_flags = registered ? XDP_SHARED_UMEM : x->config.bind_flags,
					.sxdp_ifindex = (uint32_t)ifindex,
					.sxdp_queue_id = queue,
					.sxdp_shared_umem_fd = registered ? (uint32_t)registered->fd : 0 };
	struct xk_xsk_got got;
	int error;

	if (bind(x->fd, (struct sockaddr *)&address, sizeof(address)))
		return xk_fail("bind(AF_XDP)", errno);
	if ((error = xk_xsk_got(x, &got)))
		return error;
	x->zerocopy = got.zerocopy;
	if (registered)
		x->config.bind_flags = registered->config.bind_flags;
	if (x->config.tx_size) /* one system call for a whole ring in copy mode; an older kernel takes 32 packets in each */
		setsockopt(x->fd, SOL_XDP, MAX_TX_SKB_BUDGET, &x->config.tx_size, sizeof(uint32_t));
	return 0;
}

/* Room for a batch of a worker: a packet has no more buffers than the RX ring holds. */
static int open_batch(struct xk_xsk *x)
{
	uint32_t buffers = x->config.bind_flags & XDP_USE_SG && x->config.rx_size > XK_BATCH ? x->config.rx_size : XK_BATCH;
	struct xk_batch *b = &x->batch;

	*b = (struct xk_batch){ .max_packets = XK_BATCH, .max_buffers = buffers };
	b->addr = malloc(buffers * (sizeof(*b->addr) + sizeof(*b->size)));
	b->time_ns = malloc(XK_BATCH * (sizeof(*b->time_ns) + 4 * sizeof(uint32_t)));
	x->parts = malloc(buffers * sizeof(*x->parts));
	if (!b->addr || !b->time_ns || !x->parts)
		return xk_fail("malloc", ENOMEM);
	b->size = (uint32_t *)(b->addr + buffers);
	b->first = (uint32_t *)(b->time_ns + XK_BATCH);
	b->len = b->first + XK_BATCH;
	b->rule = b->len + XK_BATCH;
	b->mark = b->rule + XK_BATCH;
	return 0;
}

/* Room for the times at which packets left. */
static int open_times(struct xk_xsk *x)
{
	struct xk_umem *u = x->umem;

	if (!x->config.tx_times)
		return 0;
	if (!u->config.tx_metadata)
		return xk_fail("times without TX metadata", EINVAL);
	x->times.mask = x->config.tx_times - 1;
	x->times.entries = calloc(x->config.tx_times, sizeof(*x->times.entries));
	if (!u->senders)
		u->senders = calloc(u->config.frames, sizeof(*u->senders));
	return x->times.entries && u->senders ? 0 : xk_fail("calloc", ENOMEM);
}

/* Of a socket that was not bound: the kernel took nothing out of its FILL ring. */
static void take_back(struct xk_xsk *x)
{
	struct xk_ring *fill = &x->queue->fill;

	for (uint32_t i = 0; x->first && i < fill->producer; i++) {
		pool_give(x->pool, *xk_ring_addr(fill, i));
		pass_frame(x->umem, *xk_ring_addr(fill, i), OWNER_FILL, OWNER_FREE);
	}
}

int xk_xsk_open(int ifindex, uint32_t queue, const struct xk_xsk_config *config, struct xk_pool *pool,
		struct xk_xsk *sibling, struct xk_xsk **out)
{
	struct xk_umem *u = pool->umem;
	struct xk_xsk *x, **last = &u->sockets;
	int error;

	if (!valid_config(config) || (sibling && sibling->pool != pool))
		return xk_fail("AF_XDP ring sizes", EINVAL);
	x = calloc(1, sizeof(*x));
	if (!x)
		return xk_fail("calloc", ENOMEM);
	x->fd = -1;
	x->config = *config;
	x->umem = u;
	x->pool = pool;
	x->first = !sibling;
	x->keep = config->tx_size < pool->frames / 2 ? config->tx_size : pool->frames / 2;
	x->queue = sibling ? sibling->queue : calloc(1, sizeof(*x->queue));
	if (!x->queue) {
		error = xk_fail("calloc", ENOMEM);
		goto out_close;
	}
	x->queue->users++;
	if (sibling)
		pool->locked = 1;
	if ((error = open_batch(x)) || (error = open_times(x)))
		goto out_close;
	x->fd = socket(AF_XDP, SOCK_RAW | SOCK_CLOEXEC, 0);
	if (x->fd < 0) {
		error = xk_fail("socket(AF_XDP)", errno);
		goto out_close;
	}
	if ((!u->sockets && (error = register_umem(x))) || (error = open_rings(x)) || (error = set_busy_poll(x)) ||
	    (error = xk_refill(x, 0))) /* before bind: a zero-copy driver takes frames at once */
		goto out_close;
	if ((error = bind_socket(x, ifindex, queue))) {
		take_back(x);
		goto out_close;
	}
	while (*last)
		last = &(*last)->next;
	*last = x;
	*out = x;
	return 0;
out_close:
	xk_xsk_close(x);
	return error;
}

static void unmap(struct mapping *m, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (m[i].at)
			munmap(m[i].at, m[i].size);
}

void xk_xsk_close(struct xk_xsk *x)
{
	for (struct xk_xsk **at = &x->umem->sockets; *at; at = &(*at)->next)
		if (*at == x) {
			*at = x->next;
			break;
		}
	for (uint32_t i = 0; x->umem->senders && i < x->umem->config.frames; i++)
		if (x->umem->senders[i].socket == x)
			x->umem->senders[i].socket = NULL;
	unmap(x->maps, 2);
	if (x->queue && !--x->queue->users) {
		unmap(x->queue->maps, 2);
		free(x->queue);
	}
	if (x->fd >= 0)
		close(x->fd);
	free(x->batch.addr);
	free(x->batch.time_ns);
	free(x->parts);
	free(x->times.entries);
	free(x);
}

/* ---- what the kernel says ---- */

int xk_xsk_fd(const struct xk_xsk *x)
{
	return x->fd;
}

static uint32_t socket_option(const struct xk_xsk *x, int name)
{
	uint32_t value = 0;
	socklen_t size = sizeof(value);

	return getsockopt(x->fd, SOL_SOCKET, name, &value, &size) ? 0 : value;
}

int xk_xsk_got(const struct xk_xsk *x, struct xk_xsk_got *out)
{
	struct xdp_options options;
	socklen_t size = sizeof(options);

	if (getsockopt(x->fd, SOL_XDP, XDP_OPTIONS, &options, &size))
		return xk_fail("getsockopt(XDP_OPTIONS)", errno);
	*out = (struct xk_xsk_got){ .zerocopy = !!(options.flags & XDP_OPTIONS_ZEROCOPY),
				    .prefer_busy_poll = !!socket_option(x, SO_PREFER_BUSY_POLL),
				    .busy_poll_us = socket_option(x, SO_BUSY_POLL),
				    .napi_id = socket_option(x, SO_INCOMING_NAPI_ID) };
	return 0;
}

/* Packets in the RX ring.  Another thread may be taking them: a count that is a moment old. */
static uint32_t unread(const struct xk_xsk *x)
{
	const struct xdp_desc *descs = x->rx.entries;
	uint32_t from = x->rx.consumer, to = xk_ring_load(x->rx.shared_producer), n = 0;

	if (!(x->config.bind_flags & XDP_USE_SG))
		return to - from;
	for (; from != to; from++)
		n += !(descs[from & x->rx.mask].options & XDP_PKT_CONTD);
	return n;
}

int xk_xsk_stats(const struct xk_xsk *x, struct xk_xsk_stats *out)
{
	struct xdp_statistics s = { 0 };
	socklen_t size = sizeof(s);

	if (getsockopt(x->fd, SOL_XDP, XDP_STATISTICS, &s, &size))
		return xk_fail("getsockopt(XDP_STATISTICS)", errno);
	*out = (struct xk_xsk_stats){ .received = __atomic_load_n(&x->received, __ATOMIC_RELAXED),
				      .transmitted = __atomic_load_n(&x->transmitted, __ATOMIC_RELAXED),
				      .kicks = __atomic_load_n(&x->kicks, __ATOMIC_RELAXED),
				      .tx_times_lost = __atomic_load_n(&x->times.lost, __ATOMIC_RELAXED),
				      .unread = unread(x),
				      .rx_dropped = s.rx_dropped,
				      .rx_invalid = s.rx_invalid_descs,
				      .tx_invalid = s.tx_invalid_descs,
				      .rx_ring_full = s.rx_ring_full,
				      .fill_empty = x->first ? s.rx_fill_ring_empty_descs : 0,
				      .tx_empty = s.tx_ring_empty_descs };
	/*
	 * A packet of several buffers that found too few frames is dropped without a count of its own, and none is too
	 * long: FILL is the only reason there is.
	 */
	if (x->config.bind_flags & XDP_USE_SG)
		out->fill_empty = s.rx_dropped;
	return 0;
}
