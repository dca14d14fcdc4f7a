/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What AF_XDP is compared with: the plainest loop of each kind.  Compiled by cc when a comparison runs (native.py).
 *
 * Every loop runs until `*stop` is set and nothing is left, and returns how many packets it took.  Those that receive
 * write into `delays`, where room for them is, how long ago each packet was sent: the big-endian ns of CLOCK_MONOTONIC at
 * `offset` in it.  Sockets do not block; a loop sleeps in poll() when there is nothing, but for plain_run(), which never
 * sleeps: it is the yardstick, an AF_XDP loop as the rxdrop examples have it.
 */
#define _GNU_SOURCE
#include <endian.h>
#include <errno.h>
#include <linux/if_xdp.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>

#ifndef AF_XDP
#define AF_XDP 44
#endif
#ifndef SOL_XDP
#define SOL_XDP 283
#endif

enum { RING = 2048, FRAMES = 4096, BATCH = 64 }; /* libxdp's defaults, and the examples' batch */

struct delays {
	uint64_t *ns;
	uint32_t room, count, offset;
};

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void note(struct delays *d, const uint8_t *packet, uint64_t now)
{
	uint64_t sent;

	if (d->count == d->room)
		return;
	memcpy(&sent, packet + d->offset, sizeof(sent));
	d->ns[d->count++] = now - be64toh(sent);
}

/* ---- AF_XDP ---- */

static struct {
	uint32_t *producer, *consumer;
	void *entries;
} fill, rx;
static uint8_t *memory;
static uint32_t chunk;

static void *map(int fd, const struct xdp_ring_offset *o, size_t entry, off_t at)
{
	return mmap(NULL, o->desc + RING * entry, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, at);
}

/* The socket, or -1.  libxdp's default frame_size is 4096. */
int plain_open(int ifindex, int queue, uint32_t frame_size)
{
	struct sockaddr_xdp address = { AF_XDP, XDP_COPY | XDP_USE_NEED_WAKEUP, ifindex, queue, 0 };
	struct xdp_umem_reg reg = { .len = (uint64_t)FRAMES * frame_size, .chunk_size = frame_size };
	struct xdp_mmap_offsets o;
	socklen_t size = sizeof(o);
	int ring = RING, fd = socket(AF_XDP, SOCK_RAW, 0);
	uint8_t *f, *r;

	reg.addr = (uintptr_t)mmap(NULL, reg.len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	memory = (uint8_t *)(uintptr_t)reg.addr;
	chunk = frame_size;
	if (fd < 0 || setsockopt(fd, SOL_XDP, XDP_UMEM_REG, &reg, sizeof(reg)) ||
	    setsockopt(fd, SOL_XDP, XDP_UMEM_FILL_RING, &ring, sizeof(ring)) ||
	    setsockopt(fd, SOL_XDP, XDP_UMEM_COMPLETION_RING, &ring, sizeof(ring)) ||
	    setsockopt(fd, SOL_XDP, XDP_RX_RING, &ring, sizeof(ring)) ||
	    getsockopt(fd, SOL_XDP, XDP_MMAP_OFFSETS, &o, &size))
		return -1;
	f = map(fd, &o.fr, sizeof(uint64_t), XDP_UMEM_PGOFF_FILL_RING);
	r = map(fd, &o.rx, sizeof(struct xdp_desc), XDP_PGOFF_RX_RING);
	fill.producer = (uint32_t *)(f + o.fr.producer);
	fill.entries = f + o.fr.desc;
	rx.producer = (uint32_t *)(r + o.rx.producer);
	rx.consumer = (uint32_t *)(r + o.rx.consumer);
	rx.entries = r + o.rx.desc;
	for (uint32_t i = 0; i < RING; i++)
		((uint64_t *)fill.entries)[i] = (uint64_t)i * chunk;
	__atomic_store_n(fill.producer, RING, __ATOMIC_RELEASE);
	return bind(fd, (struct sockaddr *)&address, sizeof(address)) ? -1 : fd;
}

uint64_t plain_run(const int *stop, struct delays *delays)
{
	uint32_t filled = RING, read = 0, stopping = 0;
	uint64_t packets = 0, now = 0;

	for (;;) {
		uint32_t n = __atomic_load_n(rx.producer, __ATOMIC_ACQUIRE) - read;

		if (!n) {
			if (stopping)
				return packets;
			stopping = __atomic_load_n(stop, __ATOMIC_ACQUIRE);
			continue;
		}
		if (n > BATCH)
			n = BATCH;
		if (delays->room)
			now = now_ns();
		for (uint32_t i = 0; i < n; i++) {
			const struct xdp_desc *d = (struct xdp_desc *)rx.entries + (read++ & (RING - 1));

			if (delays->room)
				note(delays, memory + d->addr, now);
			((uint64_t *)fill.entries)[filled++ & (RING - 1)] = d->addr & ~(uint64_t)(chunk - 1);
		}
		__atomic_store_n(rx.consumer, read, __ATOMIC_RELEASE);
		__atomic_store_n(fill.producer, filled, __ATOMIC_RELEASE);
		packets += n;
	}
}

/* The socket, its rings and its memory go with the process that runs a comparison. */

/* ---- sockets ---- */

enum { MOST = 64, SLOT = 9216 };

struct messages {
	struct mmsghdr headers[MOST];
	struct iovec vectors[MOST];
	uint8_t room[MOST][SLOT];
};

static struct messages *messages(void)
{
	struct messages *m = calloc(1, sizeof(*m));

	for (int i = 0; m && i < MOST; i++) {
		m->vectors[i] = (struct iovec){ m->room[i], SLOT };
		m->headers[i].msg_hdr.msg_iov = &m->vectors[i];
		m->headers[i].msg_hdr.msg_iovlen = 1;
	}
	return m;
}

static void await(int fd, short events)
{
	struct pollfd p = { .fd = fd, .events = events };

	poll(&p, 1, 10); /* and look at `stop` then */
}

/* recv(), or recvmmsg() of up to `batch`. */
uint64_t receive_run(int fd, int batch, const int *stop, struct delays *delays)
{
	struct messages *m = messages();
	uint64_t packets = 0;
	int stopping = 0;

	while (m) {
		int n = batch == 1 ? (recv(fd, m->room[0], SLOT, MSG_DONTWAIT) < 0 ? -1 : 1) :
				     recvmmsg(fd, m->headers, (unsigned)batch, MSG_DONTWAIT, NULL);

		if (n <= 0) {
			if (stopping)
				break;
			stopping = __atomic_load_n(stop, __ATOMIC_ACQUIRE);
			if (!stopping)
				await(fd, POLLIN);
			continue;
		}
		packets += (uint64_t)n;
		if (delays->room) {
			uint64_t now = now_ns();

			for (int i = 0; i < n; i++)
				note(delays, m->room[i], now);
		}
	}
	free(m);
	return packets;
}

/* send(), or sendmmsg() of `batch`, of `rate_pps` (0: as fast as it goes) copies of a frame, stamped where offset says. */
uint64_t send_run(int fd, const uint8_t *frame, uint32_t size, int batch, double rate_pps, uint32_t time_offset,
		  const int *stop)
{
	struct messages *m = messages();
	uint64_t packets = 0, start = now_ns();

	for (int i = 0; m && i < MOST; i++) {
		memcpy(m->room[i], frame, size);
		m->vectors[i].iov_len = size;
	}
	while (m && !__atomic_load_n(stop, __ATOMIC_ACQUIRE)) {
		uint64_t now = rate_pps > 0 || time_offset ? now_ns() : 0, stamp = htobe64(now);
		int n;

		if (rate_pps > 0 && (double)packets > (double)(now - start) * rate_pps / 1e9) {
			struct timespec pause = { 0, 50000 };

			nanosleep(&pause, NULL);
			continue;
		}
		for (int i = 0; time_offset && i < batch; i++)
			memcpy(m->room[i] + time_offset, &stamp, sizeof(stamp));
		n = batch == 1 ? (send(fd, m->room[0], size, 0) < 0 ? -1 : 1) : sendmmsg(fd, m->headers, (unsigned)batch, 0);
		if (n > 0)
			packets += (uint64_t)n;
		else if (errno != ENOBUFS && errno != EAGAIN)
			break;
	}
	free(m);
	return packets;
}

/* recvmmsg() and sendmmsg(), what a forwarder on packet sockets is at its best; how many were sent. */
uint64_t forward_run(int from, int to, const int *stop)
{
	struct messages *m = messages();
	uint64_t packets = 0;
	int stopping = 0;

	while (m) {
		int n = recvmmsg(from, m->headers, MOST, MSG_DONTWAIT, NULL), sent = 0;

		if (n <= 0) {
			if (stopping)
				break;
			stopping = __atomic_load_n(stop, __ATOMIC_ACQUIRE);
			if (!stopping)
				await(from, POLLIN);
			continue;
		}
		for (int i = 0; i < n; i++)
			m->vectors[i].iov_len = m->headers[i].msg_len;
		while (sent < n) {
			int k = sendmmsg(to, m->headers + sent, (unsigned)(n - sent), 0);

			packets += k > 0 ? (uint64_t)k : 0;
			sent += k > 0 ? k : 1; /* refused for want of room: lost */
		}
		for (int i = 0; i < n; i++)
			m->vectors[i].iov_len = SLOT;
	}
	free(m);
	return packets;
}

/* Every datagram goes back to where it came from. */
uint64_t echo_run(int fd, const int *stop)
{
	struct sockaddr_in from;
	uint8_t data[SLOT];
	uint64_t packets = 0;

	while (!__atomic_load_n(stop, __ATOMIC_ACQUIRE)) {
		socklen_t size = sizeof(from);
		ssize_t n = recvfrom(fd, data, SLOT, MSG_DONTWAIT, (struct sockaddr *)&from, &size);

		if (n < 0)
			await(fd, POLLIN);
		else if (sendto(fd, data, (size_t)n, 0, (struct sockaddr *)&from, size) == n)
			packets++;
	}
	return packets;
}

/* One frame at a time out of a packet socket, `gap_us` after the last, and how long it takes until one comes back; gives up when 5 in a row do not. */
uint32_t ping_run(int fd, const uint8_t *frame, uint32_t size, uint32_t count, uint32_t gap_us, uint32_t *rtt_ns)
{
	uint8_t data[SLOT];
	uint32_t back = 0, lost = 0;

	for (uint32_t i = 0; i < count && lost < 5; i++) {
		struct timespec pause = { 0, (long)gap_us * 1000 };
		uint64_t start, now;

		if (gap_us)
			nanosleep(&pause, NULL);
		start = now_ns();
		if (send(fd, frame, size, 0) != (ssize_t)size)
			continue;
		lost++;
		do {
			ssize_t n = recv(fd, data, SLOT, MSG_DONTWAIT);

			now = now_ns();
			if (n >= 0) {
				rtt_ns[back++] = (uint32_t)(now - start);
				lost = 0;
				break;
			}
		} while (now - start < 100000000);
	}
	return back;
}
