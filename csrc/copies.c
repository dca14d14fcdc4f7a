/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The reader of bpf/copies.h: packets that a program copied into a BPF ring buffer.
 *
 * The kernel maps a consumer page (ours to write), a producer page, and the data twice in a row, so that a record that
 * wraps is contiguous (Documentation/bpf/ringbuf.rst).  Positions run free in an unsigned long.  A record is a header of
 * 8 bytes, whose first word is the length with two flags, and the bytes, rounded up to 8:
 *
 *   receive  acquire *producer, pairs with the kernel's release when it reserved; then acquire of each header, pairs with
 *            its exchange when the program submitted: a record that is still being written ends the batch
 *   release  release *consumer, pairs with the kernel's acquire before it reserves
 */
#define _GNU_SOURCE
#include <bpf/bpf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "xdpkit.h"

struct xk_copies {
	int ring_fd, counts_fd;
	size_t page, size;
	unsigned long *consumer;
	const unsigned long *producer;
	const uint8_t *data;
	struct xk_reader *reader;
	unsigned long next;   /* position behind the last record handed out */
	uint64_t before[2];   /* the program's counts when the reader came */
};

static void *map(size_t size, int prot, int fd, size_t offset)
{
	void *at = mmap(NULL, size, prot, MAP_SHARED, fd, (off_t)offset);

	return at == MAP_FAILED ? NULL : at;
}

/* One of the maps of a ring. */
static int part(const struct xk_program *p, const char *ring, const char *suffix)
{
	char name[64];

	snprintf(name, sizeof(name), "%s%s", ring, suffix);
	return xk_program_map(p, name);
}

int xk_copies_open(const struct xk_program *p, const char *ring, struct xk_copies **out)
{
	int ring_fd = xk_program_map(p, ring), reader_fd = part(p, ring, "_reader");
	int counts_fd = part(p, ring, "_count"), error;
	struct bpf_map_info info = { 0 };
	__u32 info_size = sizeof(info);
	struct xk_copies *c;

	if (ring_fd < 0 || reader_fd < 0 || counts_fd < 0)
		return xk_fail("a program that copies packets", ENOENT);
	if (bpf_obj_get_info_by_fd(ring_fd, &info, &info_size))
		return xk_fail("bpf(BPF_OBJ_GET_INFO_BY_FD)", errno);
	c = calloc(1, sizeof(*c));
	if (!c)
		return xk_fail("calloc", ENOMEM);
	/* of its own: another program may take these maps over, and this one be closed */
	c->ring_fd = fcntl(ring_fd, F_DUPFD_CLOEXEC, 0);
	c->counts_fd = fcntl(counts_fd, F_DUPFD_CLOEXEC, 0);
	if (c->ring_fd < 0 || c->counts_fd < 0) {
		error = xk_fail("fcntl(F_DUPFD_CLOEXEC)", errno);
		goto out_close;
	}
	c->page = (size_t)sysconf(_SC_PAGESIZE);
	c->size = info.max_entries;
	c->consumer = map(c->page, PROT_READ | PROT_WRITE, ring_fd, 0);
	c->producer = map(c->page + 2 * c->size, PROT_READ, ring_fd, c->page);
	c->reader = map(c->page, PROT_READ | PROT_WRITE, reader_fd, 0);
	if (!c->consumer || !c->producer || !c->reader) {
		error = xk_fail("mmap(BPF ring buffer)", errno);
		goto out_close;
	}
	c->data = (const uint8_t *)c->producer + c->page;
	c->next = *c->consumer;
	if ((error = xk_counters(c->counts_fd, 1, 2, c->before)))
		goto out_close;
	__atomic_store_n(&c->reader->mode, XK_READER_WAITS, __ATOMIC_RELEASE);
	*out = c;
	return 0;
out_close:
	xk_copies_close(c);
	return error;
}

void xk_copies_quiet(struct xk_copies *c)
{
	__atomic_store_n(&c->reader->mode, XK_READER_NONE, __ATOMIC_RELEASE);
}

void xk_copies_close(struct xk_copies *c)
{
	if (c->reader) {
		xk_copies_quiet(c);
		munmap(c->reader, c->page);
	}
	if (c->producer)
		munmap((void *)c->producer, c->page + 2 * c->size);
	if (c->consumer)
		munmap(c->consumer, c->page);
	if (c->ring_fd >= 0)
		close(c->ring_fd);
	if (c->counts_fd >= 0)
		close(c->counts_fd);
	free(c);
}

int xk_copies_stats(const struct xk_copies *c, uint64_t *packets, uint64_t *lost)
{
	uint64_t counts[2];
	int error = xk_counters(c->counts_fd, 1, 2, counts);

	*packets = counts[0] - c->before[0];
	*lost = counts[1] - c->before[1];
	return error;
}

/*
 * The record at `c->next`, which then moves behind it: 1, 0 when there is none yet, or -EFAULT.  Discarded ones are
 * skipped.
 */
static int next_record(struct xk_copies *c, unsigned long producer, const struct xk_copy **out)
{
	while (c->next != producer) {
		const uint32_t *header = (const uint32_t *)(c->data + (c->next & (c->size - 1)));
		uint32_t word = xk_ring_load(header), len = word & ~(BPF_RINGBUF_BUSY_BIT | BPF_RINGBUF_DISCARD_BIT);
		const struct xk_copy *copy = (const struct xk_copy *)(header + BPF_RINGBUF_HDR_SZ / 4);

		if (word & BPF_RINGBUF_BUSY_BIT)
			return 0;
		c->next += (len + BPF_RINGBUF_HDR_SZ + 7ul) & ~7ul;
		if (word & BPF_RINGBUF_DISCARD_BIT)
			continue;
		if (len < sizeof(*copy) || copy->len > len - sizeof(*copy))
			return xk_fail("ring buffer record check", EFAULT);
		*out = copy;
		return 1;
	}
	return 0;
}

static int release(void *self)
{
	struct xk_copies *c = self;

	__atomic_store_n(c->consumer, c->next, __ATOMIC_RELEASE);
	return 0;
}

static int receive(void *self, struct xk_view *out)
{
	struct xk_copies *c = self;
	unsigned long producer = __atomic_load_n(c->producer, __ATOMIC_ACQUIRE);
	uint64_t offset = producer != c->next ? xk_clock_offset() : 0;
	const struct xk_copy *copy;
	uint32_t n = 0;
	int got = 0;

	while (n < XK_BATCH && (got = next_record(c, producer, &copy)) > 0)
		out[n++] = (struct xk_view){ (const uint8_t *)(copy + 1), copy->len, copy->wire_len,
					     copy->time_ns + offset, copy->rule, copy->verdict, 0, NULL, copy->queue };
	if (!n && !got)
		release(c); /* what was discarded would keep poll() awake */
	return got < 0 ? got : (int)n;
}

/* Ask to be woken.  The full barrier pairs with the one of copy_into() in bpf/copies.h. */
static void ask_wakeup(void *self)
{
	struct xk_copies *c = self;

	__atomic_store_n(&c->reader->asleep, 1, __ATOMIC_RELAXED);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
}

void xk_copies_nap(struct xk_copies *c, int nap)
{
	__atomic_store_n(&c->reader->mode, nap ? XK_READER_NAPS : XK_READER_WAITS, __ATOMIC_RELEASE);
}

static int empty(const void *self)
{
	const struct xk_copies *c = self;

	return __atomic_load_n(c->producer, __ATOMIC_ACQUIRE) == c->next;
}

static uint64_t lost(const void *self)
{
	uint64_t packets, lost = 0;

	return xk_copies_stats(self, &packets, &lost) ? 0 : lost;
}

void xk_copies_source(struct xk_copies *c, struct xk_source *out)
{
	*out = (struct xk_source){ .receive = receive,
				   .release = release,
				   .fd = c->ring_fd,
				   .self = c,
				   .sleep = ask_wakeup,
				   .disorder_ns = 1000000, /* CPUs take the time first, and then their turn in the ring */
				   .delay_ns = 50000000,
				   .empty = empty,
				   .lost = lost };
}

int xk_copies_receive(struct xk_copies *c, uint32_t max, uint8_t *room, size_t room_size, uint32_t *len,
		      uint64_t *time_ns, uint32_t *rule, uint32_t *mark, uint8_t *verdict, uint32_t *wire_len)
{
	unsigned long producer = __atomic_load_n(c->producer, __ATOMIC_ACQUIRE), before = c->next;
	uint64_t offset = producer != c->next ? xk_clock_offset() : 0;
	const struct xk_copy *copy;
	size_t used = 0;
	uint32_t n = 0;
	int got = 0;

	while (n < max && (got = next_record(c, producer, &copy)) > 0) {
		if (used + copy->len > room_size) {
			c->next = before;
			if (!n)
				return xk_fail("packet longer than the batch's room", EMSGSIZE);
			break;
		}
		memcpy(room + used, copy + 1, copy->len);
		used += copy->len;
		len[n] = copy->len;
		time_ns[n] = copy->time_ns + offset;
		rule[n] = copy->rule;
		mark[n] = copy->mark;
		verdict[n] = copy->verdict;
		wire_len[n] = copy->wire_len;
		before = c->next;
		n++;
	}
	if (got < 0 && !n)
		return got;
	release(c);
	return (int)n;
}

int xk_copies_fd(const struct xk_copies *c)
{
	return c->ring_fd;
}

int xk_copies_wait(struct xk_copies *c, int stop_fd, int timeout_ms)
{
	struct pollfd fds[] = { { .fd = c->ring_fd, .events = POLLIN }, { .fd = stop_fd, .events = POLLIN } };
	int ready;

	ask_wakeup(c);
	ready = poll(fds, 2, timeout_ms);
	return ready < 0 ? xk_fail("poll(BPF ring buffer)", errno) : fds[0].revents != 0;
}
