/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Forwarding: what one socket receives another of the same pool transmits, in the frame where the kernel put it.
 *
 *      a: FILL -> kernel -> RX  --move-->  b: TX -> kernel -> COMPLETION --collect--> free --refill--> FILL of a and b
 *
 * One thread does both directions, so nothing is locked.  Backpressure instead of loss: no more is taken off an RX ring
 * than the other's TX ring has room for.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/if_ether.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include "checksum.h"
#include "umem.h"

#define STALLED_MS 1	 /* look again after this long where packets or frames are stuck in a TX ring */
#define LOST_MS 100	 /* look again for packets that took room and were lost */
#define PARTS 18	 /* buffers of a packet whose checksum is completed: MAX_SKB_FRAGS and the head */
#define PATIENCE_MS 1000 /* with a device that does not transmit, once told to stop */

struct direction {
	int number;
	struct xk_xsk *from, *to;
	struct xk_worker_stats stats;
	int complete; /* checksums that senders left to their device */
	/* of an inspector, or NULL */
	xk_decide decide;
	void *context;
	struct xk_room *room;
	uint64_t lost;	/* packets that the kernel dropped on their way to the socket */
	uint64_t taken; /* of the room, when this began */
};

struct xk_forwarder {
	pthread_t thread;
	struct direction directions[2];
	int count; /* of directions: 1 for a socket that reflects */
	int stop_fd, stop, wait;
};

static void add(uint64_t *counter, uint64_t n)
{
	__atomic_store_n(counter, *counter + n, __ATOMIC_RELAXED); /* one writer; readers want no torn value, no order */
}

static void exchange_addresses(uint8_t *packet)
{
	uint8_t address[ETH_ALEN];

	memcpy(address, packet, ETH_ALEN);
	memmove(packet, packet + ETH_ALEN, ETH_ALEN);
	memcpy(packet + ETH_ALEN, address, ETH_ALEN);
}

/* A batch of whole packets from RX to TX: how many buffers, or -EFAULT. */
static int move(struct direction *d)
{
	struct xk_ring *rx = &d->from->rx, *tx = &d->to->tx;
	const struct xdp_desc *received = rx->entries;
	struct xdp_desc *sent = tx->entries;
	struct xk_umem *u = d->from->umem;
	uint32_t want = rx->size > XK_BATCH && !(d->from->config.bind_flags & XDP_USE_SG) ? XK_BATCH : rx->size;
	uint32_t n = xk_ring_peek(rx, xk_ring_reserve(tx, want)), whole = 0, packets = 0;
	uint64_t bytes = 0, all = 0, completed = 0;
	struct iovec parts[PARTS];
	uint32_t count = 0; /* of parts; PARTS + 1: too many */
	int start = 1;

	for (uint32_t i = 0; i < n; i++) {
		const struct xdp_desc *r = &received[(rx->consumer + i) & rx->mask];
		uint64_t at = data_offset(u, r->addr);

		if (at + r->len > u->size)
			return xk_fail("RX descriptor check", EFAULT);
		if (start && d->from == d->to)
			exchange_addresses(u->memory + at);
		sent[(tx->producer + i) & tx->mask] = (struct xdp_desc){ r->addr, r->len, r->options & XDP_PKT_CONTD };
		all += r->len;
		if (count < PARTS)
			parts[count] = (struct iovec){ u->memory + at, r->len };
		count += count <= PARTS;
		start = !(r->options & XDP_PKT_CONTD);
		if (start) {
			if (d->complete && count <= PARTS)
				completed += (uint32_t)xk_complete_checksum(parts, count);
			count = 0;
			whole = i + 1;
			bytes = all;
			packets++;
		}
	}
	if (!whole)
		return 0;
	for (uint32_t i = 0; u->owners && i < whole; i++)
		if (!pass_frame(u, data_offset(u, received[(rx->consumer + i) & rx->mask].addr), OWNER_FILL, OWNER_TX))
			return xk_fail("RX descriptor check", EFAULT);
	/* the descriptors are copied: give the RX entries back after TX has them, so that no frame is in neither */
	xk_ring_submit(tx, whole);
	xk_ring_release(rx, whole);
	__atomic_store_n(&d->from->received, d->from->received + packets, __ATOMIC_RELAXED);
	__atomic_store_n(&d->to->transmitted, d->to->transmitted + packets, __ATOMIC_RELAXED);
	add(&d->stats.packets, packets);
	add(&d->stats.written, packets);
	add(&d->stats.bytes, bytes);
	add(&d->stats.batches, 1);
	if (completed)
		add(&d->stats.completed, completed);
	return (int)whole;
}

static void free_frame(struct direction *d, uint64_t addr)
{
	pass_frame(d->from->umem, data_offset(d->from->umem, addr), OWNER_FILL, OWNER_FREE);
	pool_give(d->from->pool, frame_base(d->from->umem, addr));
}

static void give_room(struct direction *d)
{
	__atomic_store_n(&d->room->taken, d->taken + d->stats.packets + d->lost, __ATOMIC_RELEASE);
}

/* What the kernel dropped takes no room any more: asked where there is nothing else to do. */
static void forget_lost(struct direction *d)
{
	struct xk_xsk_stats s;

	if (!d->decide || xk_xsk_stats(d->from, &s))
		return;
	d->lost = s.rx_dropped + s.rx_ring_full;
	give_room(d);
}

/* A batch of whole packets to be judged, and those that go on from RX to TX: how many buffers, or -EFAULT. */
static int inspect(struct direction *d)
{
	struct xk_ring *rx = &d->from->rx, *tx = &d->to->tx;
	const struct xdp_desc *received = rx->entries, *r;
	struct xdp_desc *sent = tx->entries;
	struct xk_umem *u = d->from->umem;
	uint32_t want = rx->size > XK_BATCH && !(d->from->config.bind_flags & XDP_USE_SG) ? XK_BATCH : rx->size;
	uint32_t n = xk_ring_peek(rx, xk_ring_reserve(tx, want < XK_BATCH ? want : XK_BATCH)), packets = 0, taken = 0;
	uint32_t sizes[XK_BATCH], first[XK_BATCH + 1], passed = 0;
	uint8_t *data[XK_BATCH], verdicts[XK_BATCH] = { 0 };
	uint64_t bytes = 0, completed = 0;
	struct iovec parts[PARTS];
	int start = 1;

	for (uint32_t i = 0; i < n; i++) {
		r = &received[(rx->consumer + i) & rx->mask];
		if (data_offset(u, r->addr) + r->len > u->size)
			return xk_fail("RX descriptor check", EFAULT);
		if (start) {
			data[packets] = u->memory + data_offset(u, r->addr);
			sizes[packets] = r->len;
			first[packets] = i;
		}
		start = !(r->options & XDP_PKT_CONTD);
		packets += (uint32_t)start;
		if (start)
			first[packets] = i + 1;
	}
	if (!packets)
		return 0;
	d->decide(d->context, d->number, data, sizes, packets, verdicts);
	for (uint32_t p = 0; p < packets; p++) {
		uint32_t count = 0;

		for (uint32_t i = first[p]; i < first[p + 1]; i++) {
			r = &received[(rx->consumer + i) & rx->mask];
			bytes += r->len;
			if (!verdicts[p]) {
				free_frame(d, r->addr);
				continue;
			}
			if (u->owners && !pass_frame(u, data_offset(u, r->addr), OWNER_FILL, OWNER_TX))
				return xk_fail("RX descriptor check", EFAULT);
			sent[(tx->producer + taken++) & tx->mask] =
				(struct xdp_desc){ r->addr, r->len, r->options & XDP_PKT_CONTD };
			if (count < PARTS)
				parts[count] = (struct iovec){ u->memory + data_offset(u, r->addr), r->len };
			count++;
		}
		if (verdicts[p] && d->complete && count <= PARTS)
			completed += (uint32_t)xk_complete_checksum(parts, count);
		passed += verdicts[p] != 0;
	}
	if (taken)
		xk_ring_submit(tx, taken);
	xk_ring_release(rx, first[packets]);
	__atomic_store_n(&d->from->received, d->from->received + packets, __ATOMIC_RELAXED);
	__atomic_store_n(&d->to->transmitted, d->to->transmitted + passed, __ATOMIC_RELAXED);
	add(&d->stats.packets, packets);
	give_room(d); /* before what readers wait for */
	add(&d->stats.written, passed);
	add(&d->stats.refused, packets - passed);
	add(&d->stats.bytes, bytes);
	add(&d->stats.batches, 1);
	if (completed)
		add(&d->stats.completed, completed);
	return (int)first[packets];
}

/* Kick, collect, refill: frames that were transmitted go back to where packets come from.  How many came back. */
static int turn_around(struct direction *d)
{
	int error = xk_kick(d->to), n = error ? error : xk_collect(d->to);

	if (n < 0)
		return n;
	if ((error = xk_refill(d->from, 0)))
		return error;
	return n;
}

/* Entries of the TX rings that the kernel has not taken, or frames that have not come back while FILL wants some. */
static int stalled(const struct xk_forwarder *f)
{
	for (int i = 0; i < f->count; i++) {
		const struct xk_xsk *x = f->directions[i].to;
		const struct xk_ring *fill = &f->directions[i].from->queue->fill;

		if (x->tx.producer != xk_ring_load(x->tx.shared_consumer) ||
		    (!pool_free(x->pool) && fill->producer - xk_ring_load(fill->shared_consumer) < fill->size / 2 &&
		     x->tx.producer != x->queue->completion.consumer))
			return 1;
	}
	return 0;
}

static void *run(void *self)
{
	struct xk_forwarder *f = self;
	struct direction *d = f->directions;
	struct pollfd fds[3] = { { .fd = f->stop_fd, .events = POLLIN } };
	uint32_t idle = 0, looks = XK_LOOKS;
	uint64_t last_ns = 0; /* when stopping: the end of patience */

	for (int i = 0; i < f->count; i++)
		fds[1 + i] = (struct pollfd){ .fd = d[i].from->fd, .events = POLLIN };
	for (;;) {
		int moved = 0, back = 0, stopping = __atomic_load_n(&f->stop, __ATOMIC_ACQUIRE), error = 0;

		for (int i = 0; i < f->count && !error; i++) {
			int n = d[i].decide ? inspect(&d[i]) : move(&d[i]), came = n < 0 ? n : turn_around(&d[i]);

			error = came < 0 ? came : 0;
			moved += n > 0 ? n : 0;
			back += came > 0 ? came : 0;
		}
		if (error) {
			__atomic_store_n(&d[0].stats.error, -error, __ATOMIC_RELAXED);
			break;
		}
		if (moved || back) {
			idle = 0;
			continue;
		}
		if (stopping && !last_ns)
			last_ns = xk_clock_ns(CLOCK_MONOTONIC) + PATIENCE_MS * 1000000ull;
		if (stopping && (!stalled(f) || xk_clock_ns(CLOCK_MONOTONIC) > last_ns))
			break;
		if (f->wait == XK_WAIT_BUSY || (f->wait == XK_WAIT_ADAPTIVE && idle < looks)) {
			int nudged = 0;

			idle++;
			add(&d[0].stats.looks, 1);
			for (int i = 0; i < f->count; i++)
				nudged |= xk_nudge(d[i].from);
			add(&d[0].stats.nudges, (uint32_t)nudged);
			if (!nudged)
				xk_relax();
			continue;
		}
		add(&d[0].stats.waits, 1);
		for (int i = 0; i < f->count; i++)
			forget_lost(&d[i]);
		if (f->wait == XK_WAIT_NAP && idle < XK_NAPS && !stopping) {
			idle++;
			for (int i = 0; i < f->count; i++)
				xk_nudge(d[i].from);
			xk_nap(f->stop_fd);
			continue;
		}
		looks = xk_sleep(fds + stopping, (nfds_t)(1 + f->count - stopping),
				 stopping || stalled(f) ? STALLED_MS : d->decide ? LOST_MS : -1, looks);
		idle = 0;
		for (int i = 1; i <= f->count; i++)
			if (fds[i].revents & (POLLERR | POLLHUP | POLLNVAL) && !(fds[i].revents & POLLIN))
				poll(fds, 1, 100); /* a device is down or gone: do not spin on the error */
	}
	return NULL;
}

static int forward_start(struct xk_xsk *a, struct xk_xsk *b, int complete, int wait, int cpu, xk_decide decide,
			 void *context, struct xk_room *const rooms[2], struct xk_forwarder **out)
{
	struct xk_forwarder *f;
	int error;

	if (a->pool != b->pool || !a->config.tx_size || !b->config.tx_size)
		return xk_fail("forward: sockets with TX rings and one pool", EINVAL);
	f = calloc(1, sizeof(*f));
	if (!f)
		return xk_fail("calloc", ENOMEM);
	f->directions[0] = (struct direction){ .from = a, .to = b, .stats.cpu = cpu, .complete = complete & 1 };
	f->directions[1] = (struct direction){ .from = b, .to = a, .stats.cpu = cpu, .complete = complete & 2 };
	f->count = a == b ? 1 : 2;
	for (int i = 0; i < 2; i++) {
		f->directions[i].number = i;
		f->directions[i].decide = decide;
		f->directions[i].context = context;
		f->directions[i].room = decide ? rooms[i] : NULL;
		f->directions[i].taken = decide ? rooms[i]->taken : 0;
	}
	a->keep = b->keep = 0; /* nothing is sent but what was received */
	f->wait = wait;
	f->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (f->stop_fd < 0)
		error = xk_fail("eventfd", errno);
	else
		error = xk_start_thread(&f->thread, cpu, run, f);
	if (error) {
		if (f->stop_fd >= 0)
			close(f->stop_fd);
		free(f);
		return error;
	}
	*out = f;
	return 0;
}

int xk_forward_start(struct xk_xsk *a, struct xk_xsk *b, int complete, int wait, int cpu, struct xk_forwarder **out)
{
	return forward_start(a, b, complete, wait, cpu, NULL, NULL, NULL, out);
}

int xk_inspect_start(struct xk_xsk *a, struct xk_xsk *b, int complete, int wait, int cpu, xk_decide decide, void *context,
		     struct xk_room *const rooms[2], struct xk_forwarder **out)
{
	if (a == b)
		return xk_fail("inspect: the sockets of two devices", EINVAL);
	return forward_start(a, b, complete, wait, cpu, decide, context, rooms, out);
}

int xk_forward_complete(uint8_t *data, uint32_t size)
{
	struct iovec part = { data, size };

	return xk_complete_checksum(&part, 1);
}

void xk_forward_stats(const struct xk_forwarder *f, int direction, struct xk_worker_stats *out)
{
	const struct xk_worker_stats *s = &f->directions[direction].stats;
	const struct xk_worker_stats *both = &f->directions[0].stats;

	*out = (struct xk_worker_stats){ .packets = __atomic_load_n(&s->packets, __ATOMIC_RELAXED),
					 .bytes = __atomic_load_n(&s->bytes, __ATOMIC_RELAXED),
					 .written = __atomic_load_n(&s->written, __ATOMIC_RELAXED),
					 .refused = __atomic_load_n(&s->refused, __ATOMIC_RELAXED),
					 .batches = __atomic_load_n(&s->batches, __ATOMIC_RELAXED),
					 .looks = __atomic_load_n(&both->looks, __ATOMIC_RELAXED),
					 .nudges = __atomic_load_n(&both->nudges, __ATOMIC_RELAXED),
					 .waits = __atomic_load_n(&both->waits, __ATOMIC_RELAXED),
					 .error = __atomic_load_n(&both->error, __ATOMIC_RELAXED),
					 .cpu = s->cpu,
					 .completed = __atomic_load_n(&s->completed, __ATOMIC_RELAXED) };
}

void xk_forward_stop(struct xk_forwarder *f)
{
	uint64_t one = 1;

	__atomic_store_n(&f->stop, 1, __ATOMIC_RELEASE); /* pairs with run()'s acquire */
	while (write(f->stop_fd, &one, sizeof(one)) < 0 && errno == EINTR)
		;
}

void xk_forward_join(struct xk_forwarder *f, struct xk_worker_stats *there, struct xk_worker_stats *back)
{
	pthread_join(f->thread, NULL);
	xk_forward_stats(f, 0, there);
	xk_forward_stats(f, 1, back);
	close(f->stop_fd);
	free(f);
}
