/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The yardstick of perf/receive.py: the plainest AF_XDP receive loop there is, as the rxdrop examples have it.  Batches of
 * 64, frames go straight back to FILL, nothing is looked at, and it never sleeps.
 */
#include <linux/if_xdp.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>

#ifndef AF_XDP
#define AF_XDP 44
#endif
#ifndef SOL_XDP
#define SOL_XDP 283
#endif

enum { RING = 2048, FRAMES = 4096, CHUNK = 2048, BATCH = 64 };

static struct {
	uint32_t *producer, *consumer;
	void *entries;
} fill, rx;

static void *map(int fd, const struct xdp_ring_offset *o, size_t entry, off_t at)
{
	return mmap(NULL, o->desc + RING * entry, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, at);
}

/* The socket, or -1. */
int plain_open(int ifindex, int queue)
{
	struct sockaddr_xdp address = { AF_XDP, XDP_COPY | XDP_USE_NEED_WAKEUP, ifindex, queue, 0 };
	struct xdp_umem_reg reg = { .len = (uint64_t)FRAMES * CHUNK, .chunk_size = CHUNK };
	struct xdp_mmap_offsets o;
	socklen_t size = sizeof(o);
	int ring = RING, fd = socket(AF_XDP, SOCK_RAW, 0);
	uint8_t *f, *r;

	reg.addr = (uintptr_t)mmap(NULL, reg.len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
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
		((uint64_t *)fill.entries)[i] = (uint64_t)i * CHUNK;
	__atomic_store_n(fill.producer, RING, __ATOMIC_RELEASE);
	return bind(fd, (struct sockaddr *)&address, sizeof(address)) ? -1 : fd;
}

/* Receive until `stop` is set and nothing is left; how many packets. */
uint64_t plain_run(const int *stop)
{
	uint32_t filled = RING, read = 0, stopping = 0;
	uint64_t packets = 0;

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
		for (uint32_t i = 0; i < n; i++) {
			const struct xdp_desc *d = (struct xdp_desc *)rx.entries + (read++ & (RING - 1));

			((uint64_t *)fill.entries)[filled++ & (RING - 1)] = d->addr & ~(uint64_t)(CHUNK - 1);
		}
		__atomic_store_n(rx.consumer, read, __ATOMIC_RELEASE);
		__atomic_store_n(fill.producer, filled, __ATOMIC_RELEASE);
		packets += n;
	}
}
