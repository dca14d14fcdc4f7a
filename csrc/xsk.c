/* SPDX-License-Identifier: BSD-2-Clause */
/* UMEM, rings and sockets of AF_XDP.  Kernel interface: Documentation/networking/af_xdp.rst, linux/if_xdp.h. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/if_ether.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include "xdpkit.h"

#ifndef AF_XDP
#define AF_XDP 44
#endif
#ifndef SOL_XDP
#define SOL_XDP 283
#endif

enum owner { OWNER_FREE, OWNER_FILL, OWNER_HELD, OWNER_TX };

struct mapping {
	void *at;
	size_t size;
};

struct xk_xsk {
	int fd;
	struct xk_xsk_config config;
	uint8_t *umem;
	size_t umem_size;
	struct xk_ring fill, completion, rx, tx;
	struct mapping maps[4];
	uint64_t *free;  /* stack of free frames */
	uint8_t *owners; /* per frame, NULL unless config.check */
	uint32_t free_count, held_count;
	uint64_t received; /* read by other threads */
	/* the batch that a worker holds */
	uint64_t batch_addr[XK_BATCH];
	uint32_t batch_len[XK_BATCH], batch_rule[XK_BATCH];
	uint64_t batch_time[XK_BATCH];
	uint32_t batch_count;
};

static _Thread_local const char *failed_call = "";

const char *xk_failed_call(void)
{
	return failed_call;
}

int xk_fail(const char *call, int error)
{
	failed_call = call;
	return -error;
}

uint64_t xk_clock_ns(int clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Move a frame from one owner to another; 0 if it was not the first one's. */
static inline int pass_frame(struct xk_xsk *x, uint64_t addr, enum owner from, enum owner to)
{
	uint8_t *owner;

	if (addr >= x->umem_size)
		return 0;
	if (!x->owners)
		return 1;
	owner = &x->owners[addr / x->config.chunk_size];
	if (*owner != from)
		return 0;
	*owner = to;
	return 1;
}

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
	if (setsockopt(fd, SOL_XDP, option, &size, sizeof(size)))
		return xk_fail(call, errno);
	return 0;
}

static int open_rings(struct xk_xsk *x)
{
	const struct xk_xsk_config *c = &x->config;
	struct xdp_mmap_offsets o;
	socklen_t size = sizeof(o);
	int error;

	if ((error = set_ring(x->fd, XDP_UMEM_FILL_RING, c->fill_size, "setsockopt(XDP_UMEM_FILL_RING)")) ||
	    (error = set_ring(x->fd, XDP_UMEM_COMPLETION_RING, c->completion_size,
			      "setsockopt(XDP_UMEM_COMPLETION_RING)")) ||
	    (error = set_ring(x->fd, XDP_RX_RING, c->rx_size, "setsockopt(XDP_RX_RING)")) ||
	    (c->tx_size && (error = set_ring(x->fd, XDP_TX_RING, c->tx_size, "setsockopt(XDP_TX_RING)"))))
		return error;
	if (getsockopt(x->fd, SOL_XDP, XDP_MMAP_OFFSETS, &o, &size))
		return xk_fail("getsockopt(XDP_MMAP_OFFSETS)", errno);
	if ((error = map_ring(x, &x->fill, &x->maps[0], &o.fr, c->fill_size, sizeof(uint64_t),
			      XDP_UMEM_PGOFF_FILL_RING)) ||
	    (error = map_ring(x, &x->completion, &x->maps[1], &o.cr, c->completion_size, sizeof(uint64_t),
			      XDP_UMEM_PGOFF_COMPLETION_RING)) ||
	    (error = map_ring(x, &x->rx, &x->maps[2], &o.rx, c->rx_size, sizeof(struct xdp_desc),
			      XDP_PGOFF_RX_RING)) ||
	    (c->tx_size && (error = map_ring(x, &x->tx, &x->maps[3], &o.tx, c->tx_size, sizeof(struct xdp_desc),
					     XDP_PGOFF_TX_RING))))
		return error;
	return 0;
}

/* Move free frames into the FILL ring, as many as it takes; frames kept for TX stay free. */
static int refill(struct xk_xsk *x)
{
	uint32_t keep = x->config.tx_size < x->config.frames / 2 ? x->config.tx_size : x->config.frames / 2;
	uint32_t spare = x->free_count > keep ? x->free_count - keep : 0;
	uint32_t n = spare ? xk_ring_reserve(&x->fill, spare) : 0;

	for (uint32_t i = 0; i < n; i++) {
		uint64_t addr = x->free[--x->free_count];

		if (!pass_frame(x, addr, OWNER_FREE, OWNER_FILL))
			return xk_fail("frame check", EFAULT);
		*xk_ring_addr(&x->fill, x->fill.producer + i) = addr;
	}
	if (n)
		xk_ring_submit(&x->fill, n);
	return 0;
}

static int valid_config(const struct xk_xsk_config *c)
{
	const uint32_t sizes[] = { c->fill_size, c->completion_size, c->rx_size, c->tx_size ? c->tx_size : 1 };

	for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++)
		if (!sizes[i] || sizes[i] & (sizes[i] - 1))
			return 0;
	return c->frames && (c->chunk_size == 2048 || c->chunk_size == 4096);
}

int xk_xsk_open(int ifindex, uint32_t queue, const struct xk_xsk_config *config, struct xk_xsk **out)
{
	struct sockaddr_xdp address = { .sxdp_family = AF_XDP,
					.sxdp_flags = config->bind_flags,
					.sxdp_ifindex = (uint32_t)ifindex,
					.sxdp_queue_id = queue };
	struct xdp_umem_reg reg;
	struct xk_xsk *x;
	int error;

	if (!valid_config(config))
		return xk_fail("AF_XDP ring sizes", EINVAL);
	x = calloc(1, sizeof(*x));
	if (!x)
		return xk_fail("calloc", ENOMEM);
	x->fd = -1;
	x->config = *config;
	x->umem_size = (size_t)config->frames * config->chunk_size;
	x->free = malloc(config->frames * sizeof(*x->free));
	x->owners = config->check ? calloc(config->frames, 1) : NULL;
	if (!x->free || (config->check && !x->owners)) {
		error = xk_fail("malloc", ENOMEM);
		goto out_close;
	}
	for (uint32_t i = 0; i < config->frames; i++)
		x->free[x->free_count++] = (uint64_t)(config->frames - 1 - i) * config->chunk_size;
	x->umem = mmap(NULL, x->umem_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (x->umem == MAP_FAILED) {
		x->umem = NULL;
		error = xk_fail("mmap(UMEM)", errno);
		goto out_close;
	}
	x->fd = socket(AF_XDP, SOCK_RAW | SOCK_CLOEXEC, 0);
	if (x->fd < 0) {
		error = xk_fail("socket(AF_XDP)", errno);
		goto out_close;
	}
	reg = (struct xdp_umem_reg){ .addr = (uintptr_t)x->umem,
				     .len = x->umem_size,
				     .chunk_size = config->chunk_size,
				     .headroom = config->headroom };
	if (setsockopt(x->fd, SOL_XDP, XDP_UMEM_REG, &reg, sizeof(reg))) {
		error = xk_fail("setsockopt(XDP_UMEM_REG)", errno);
		goto out_close;
	}
	if ((error = open_rings(x)) || (error = refill(x)))
		goto out_close;
	if (bind(x->fd, (struct sockaddr *)&address, sizeof(address))) {
		error = xk_fail("bind(AF_XDP)", errno);
		goto out_close;
	}
	*out = x;
	return 0;
out_close:
	xk_xsk_close(x);
	return error;
}

int xk_xsk_fd(const struct xk_xsk *x)
{
	return x->fd;
}

int xk_xsk_options(const struct xk_xsk *x, uint32_t *flags)
{
	struct xdp_options options;
	socklen_t size = sizeof(options);

	if (getsockopt(x->fd, SOL_XDP, XDP_OPTIONS, &options, &size))
		return xk_fail("getsockopt(XDP_OPTIONS)", errno);
	*flags = options.flags;
	return 0;
}

int xk_xsk_stats(const struct xk_xsk *x, struct xk_xsk_stats *out)
{
	struct xdp_statistics s = { 0 };
	socklen_t size = sizeof(s);

	if (getsockopt(x->fd, SOL_XDP, XDP_STATISTICS, &s, &size))
		return xk_fail("getsockopt(XDP_STATISTICS)", errno);
	*out = (struct xk_xsk_stats){ .received = __atomic_load_n(&x->received, __ATOMIC_RELAXED),
				      .rx_dropped = s.rx_dropped,
				      .rx_invalid = s.rx_invalid_descs,
				      .tx_invalid = s.tx_invalid_descs,
				      .rx_ring_full = s.rx_ring_full,
				      .fill_empty = s.rx_fill_ring_empty_descs,
				      .tx_empty = s.tx_ring_empty_descs };
	return 0;
}

void xk_xsk_frames(const struct xk_xsk *x, struct xk_frames *out)
{
	uint32_t rx = xk_ring_load(x->rx.shared_producer) - x->rx.consumer;
	uint32_t completion = xk_ring_load(x->completion.shared_producer) - x->completion.consumer;

	*out = (struct xk_frames){ .free = x->free_count,
				   .rx = rx,
				   .fill = x->fill.producer - x->rx.consumer - rx,
				   .held = x->held_count,
				   .completion = completion,
				   .tx = x->tx.producer - x->completion.consumer - completion,
				   .frames = x->config.frames };
}

uint8_t *xk_xsk_umem(const struct xk_xsk *x, size_t *size)
{
	*size = x->umem_size;
	return x->umem;
}

uint64_t xk_clock_offset(void)
{
	uint64_t before = xk_clock_ns(CLOCK_MONOTONIC), real = xk_clock_ns(CLOCK_REALTIME);

	return real - before / 2 - xk_clock_ns(CLOCK_MONOTONIC) / 2;
}

int xk_xsk_receive(struct xk_xsk *x, uint32_t max, uint64_t *addr, uint32_t *len, uint64_t *time_ns, uint32_t *rule)
{
	const struct xdp_desc *descs = x->rx.entries;
	uint32_t n = xk_ring_peek(&x->rx, max);
	uint64_t now = 0, offset = 0;

	if (!n)
		return 0;
	if (x->config.metadata)
		offset = xk_clock_offset();
	else
		now = xk_clock_ns(CLOCK_REALTIME);
	for (uint32_t i = 0; i < n; i++) {
		const struct xdp_desc *d = &descs[(x->rx.consumer + i) & x->rx.mask];

		if (d->addr + d->len > x->umem_size || !pass_frame(x, d->addr, OWNER_FILL, OWNER_HELD))
			return xk_fail("RX descriptor check", EFAULT);
		addr[i] = d->addr;
		len[i] = d->len;
		time_ns[i] = now;
		rule[i] = XK_NO_RULE;
		if (x->config.metadata && (d->addr & (x->config.chunk_size - 1)) >= sizeof(struct xk_meta)) {
			struct xk_meta *m = (struct xk_meta *)(x->umem + d->addr) - 1;

			if (m->magic == XK_META_MAGIC) {
				time_ns[i] = m->time_ns + offset;
				rule[i] = m->rule;
				m->magic = 0;
			}
		}
		if (!time_ns[i])
			time_ns[i] = now ? now : (now = xk_clock_ns(CLOCK_REALTIME));
	}
	x->held_count += n;
	__atomic_store_n(&x->received, x->received + n, __ATOMIC_RELAXED);
	xk_ring_release(&x->rx, n);
	/* free frames take the place of those now held, so that a batch under way does not starve the kernel */
	if (x->free_count && refill(x))
		return -EFAULT;
	return (int)n;
}

int xk_xsk_recycle(struct xk_xsk *x, const uint64_t *addr, uint32_t n)
{
	uint64_t mask = ~(uint64_t)(x->config.chunk_size - 1);
	uint32_t room = xk_ring_reserve(&x->fill, n);

	for (uint32_t i = 0; i < n; i++) {
		uint64_t base = addr[i] & mask;

		if (!pass_frame(x, base, OWNER_HELD, i < room ? OWNER_FILL : OWNER_FREE))
			return xk_fail("frame check", EFAULT);
		if (x->owners) /* poison: a stale view must not look like a packet */
			memset(x->umem + base, 0xde, x->config.chunk_size);
		if (i < room)
			*xk_ring_addr(&x->fill, x->fill.producer + i) = base;
		else
			x->free[x->free_count++] = base;
	}
	x->held_count -= n;
	xk_ring_submit(&x->fill, room);
	if (room == n && x->free_count)
		return refill(x);
	return 0;
}

static int collect(struct xk_xsk *x)
{
	uint32_t n = xk_ring_peek(&x->completion, x->config.completion_size);
	uint64_t mask = ~(uint64_t)(x->config.chunk_size - 1);

	for (uint32_t i = 0; i < n; i++) {
		uint64_t addr = *xk_ring_addr(&x->completion, x->completion.consumer + i) & mask;

		if (!pass_frame(x, addr, OWNER_TX, OWNER_FREE))
			return xk_fail("COMPLETION descriptor check", EFAULT);
		x->free[x->free_count++] = addr;
	}
	if (n)
		xk_ring_release(&x->completion, n);
	return (int)n;
}

/*
 * Let the kernel send what is in the TX ring.  One call sends 32 packets in copy mode (TX_BATCH_SIZE) and says EAGAIN when
 * there are more, so go on while it makes progress.  A busy device is no error: the next transmit or complete goes on.
 */
static int kick_tx(struct xk_xsk *x)
{
	uint32_t left = x->tx.producer - xk_ring_load(x->tx.shared_consumer), before;

	do {
		if ((x->config.bind_flags & XDP_USE_NEED_WAKEUP) &&
		    !(xk_ring_load(x->tx.flags) & XDP_RING_NEED_WAKEUP))
			return 0;
		if (sendto(x->fd, NULL, 0, MSG_DONTWAIT, NULL, 0) < 0 && errno != EAGAIN && errno != EBUSY &&
		    errno != ENOBUFS && errno != ENETDOWN)
			return xk_fail("sendto(AF_XDP)", errno);
		before = left;
		left = x->tx.producer - xk_ring_load(x->tx.shared_consumer);
	} while (left && left != before);
	return 0;
}

int xk_xsk_transmit(struct xk_xsk *x, const uint8_t *const *packets, const uint32_t *len, uint32_t n)
{
	struct xdp_desc *descs = x->tx.entries;
	int error = collect(x);
	uint32_t room;

	if (error < 0)
		return error;
	if (!x->config.tx_size)
		return xk_fail("transmit without a TX ring", EINVAL);
	for (uint32_t i = 0; i < n; i++)
		if (len[i] > x->config.chunk_size)
			return xk_fail("transmit: packet longer than a frame", EMSGSIZE);
		else if (len[i] < ETH_HLEN) /* the kernel would never complete an empty one: a frame lost */
			return xk_fail("transmit: packet shorter than an Ethernet header", EINVAL);
	room = xk_ring_reserve(&x->tx, n < x->free_count ? n : x->free_count);
	for (uint32_t i = 0; i < room; i++) {
		uint64_t addr = x->free[--x->free_count];

		if (!pass_frame(x, addr, OWNER_FREE, OWNER_TX))
			return xk_fail("frame check", EFAULT);
		memcpy(x->umem + addr, packets[i], len[i]);
		descs[(x->tx.producer + i) & x->tx.mask] = (struct xdp_desc){ .addr = addr, .len = len[i] };
	}
	if (room)
		xk_ring_submit(&x->tx, room);
	error = x->tx.producer != x->completion.consumer ? kick_tx(x) : 0;
	return error ? error : (int)room;
}

int xk_xsk_complete(struct xk_xsk *x)
{
	int error = 0;

	if (x->config.tx_size && x->tx.producer != xk_ring_load(x->tx.shared_consumer))
		error = kick_tx(x);
	return error ? error : collect(x);
}

int xk_xsk_wait(struct xk_xsk *const *x, uint32_t n, int timeout_ms)
{
	struct pollfd fds[n];
	int ready;

	for (uint32_t i = 0; i < n; i++) {
		if (xk_ring_load(x[i]->rx.shared_producer) != x[i]->rx.consumer)
			return 1;
		fds[i] = (struct pollfd){ .fd = x[i]->fd, .events = POLLIN };
	}
	ready = poll(fds, n, timeout_ms);
	if (ready < 0)
		return xk_fail("poll(AF_XDP)", errno);
	if (ready)
		return 1;
	/* poll() keeps silent about a device that went away: the socket is unbound then, which recvmsg tells */
	for (uint32_t i = 0; i < n; i++)
		if (recv(x[i]->fd, NULL, 0, MSG_DONTWAIT) < 0 && errno == ENXIO)
			return xk_fail("poll(AF_XDP): the device is gone", ENODEV);
	return 0;
}

void xk_xsk_shutdown(struct xk_xsk *x)
{
	for (size_t i = 0; i < 4; i++) {
		if (x->maps[i].at)
			munmap(x->maps[i].at, x->maps[i].size);
		x->maps[i].at = NULL;
	}
	if (x->fd >= 0)
		close(x->fd);
	x->fd = -1;
}

void xk_xsk_close(struct xk_xsk *x)
{
	xk_xsk_shutdown(x);
	if (x->umem)
		munmap(x->umem, x->umem_size);
	free(x->owners);
	free(x->free);
	free(x);
}

/* ---- as a worker's source ---- */

static int source_receive(void *self, struct xk_view *out)
{
	struct xk_xsk *x = self;
	int n = xk_xsk_receive(x, XK_BATCH, x->batch_addr, x->batch_len, x->batch_time, x->batch_rule);

	for (int i = 0; i < n; i++)
		out[i] = (struct xk_view){ x->umem + x->batch_addr[i], x->batch_len[i], x->batch_len[i],
					   x->batch_time[i], x->batch_rule[i] };
	x->batch_count = n > 0 ? (uint32_t)n : 0;
	return n;
}

static int source_release(void *self)
{
	struct xk_xsk *x = self;

	return xk_xsk_recycle(x, x->batch_addr, x->batch_count);
}

void xk_xsk_source(struct xk_xsk *x, struct xk_source *out)
{
	*out = (struct xk_source){ source_receive, source_release, x->fd, 0, x };
}
