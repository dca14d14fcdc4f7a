/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The reader of bpf/copies.h: packets that a program copied into BPF ring buffers, one for each CPU.
 *
 * The reader makes the ring buffers when it comes, and puts them into the program's map of ring buffers; they go with it.
 * Each CPU that is online has one of its own.  CPUs that come later share those: a ring buffer takes several producers.
 *
 * The kernel maps a consumer page (ours to write), a producer page, and the data twice in a row, so that a record that
 * wraps is contiguous (Documentation/bpf/ringbuf.rst).  Positions run free in an unsigned long.  A record is a header of
 * 8 bytes, whose first word is the length with two flags, and the bytes, rounded up to 8:
 *
 *   receive  acquire *producer, pairs with the kernel's release when it reserved; then acquire of each header, pairs with
 *            its exchange when the program submitted: behind a record that is still being written nothing is read
 *   release  release *consumer, pairs with the kernel's acquire before it reserves
 *
 * One thread reads them all, and hands out the oldest record of those that are there: records come in the order of their
 * times, but for those that a CPU has yet to write.  A thread reads many times as fast as a CPU writes (perf/copies.py).
 */
#define _GNU_SOURCE
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <unistd.h>
#include "ring.h"
#include "shared.h"
#include "source.h"

struct ring {
	int fd;
	unsigned long *consumer;
	const unsigned long *producer;
	const uint8_t *data;
	unsigned long next;	   /* of the first record that was not handed out */
	unsigned long end;	   /* the producer's position when it was last looked at */
	unsigned long released;
	const struct xk_copy *oldest; /* the record at `next`, NULL: none is known */
};

struct xk_copies {
	int rings_fd, counts_fd; /* the program's maps */
	int epoll_fd;		 /* readable when one of the rings is */
	size_t page, size;
	uint32_t cpus, count; /* possible CPUs; ring buffers */
	struct ring *rings;
	struct ring *at; /* which has the oldest record, NULL: not known */
	uint64_t until;	 /* time of the oldest record of the others */
	struct xk_reader *reader;
	uint64_t *before; /* the program's counts when the reader came: two for each CPU */
	uint64_t *now;	  /* room for as many, of lost() */
};

static void *map(size_t size, int prot, int fd, size_t offset)
{
	void *at = mmap(NULL, size, prot, MAP_SHARED, fd, (off_t)offset);

	return at == MAP_FAILED ? NULL : at;
}

uint32_t xk_cpus(void)
{
	int cpus = libbpf_num_possible_cpus();

	return cpus > 0 ? (uint32_t)cpus : 1;
}

/* The name of one of the maps of a ring. */
static const char *name_of(const char *ring, const char *suffix, char name[64])
{
	snprintf(name, 64, "%s%s", ring, suffix);
	return name;
}

/* ---- open and close ---- */

static int make_ring(uint32_t bytes)
{
	return xk_map_create(BPF_MAP_TYPE_RINGBUF, "copies", 0, 0, bytes, 0, -1);
}

int xk_copies_prepare(struct xk_program *p, const char *ring)
{
	int like = make_ring((uint32_t)sysconf(_SC_PAGESIZE)), rings, error;

	if (like < 0)
		return like;
	rings = xk_map_create(BPF_MAP_TYPE_ARRAY_OF_MAPS, ring, 4, 4, xk_cpus(), 0, like);
	close(like);
	if (rings < 0)
		return rings;
	error = xk_program_reuse_map(p, ring, rings);
	close(rings);
	return error;
}

static int open_ring(struct xk_copies *c, struct ring *r)
{
	r->fd = make_ring((uint32_t)c->size);
	if (r->fd < 0)
		return r->fd;
	r->consumer = map(c->page, PROT_READ | PROT_WRITE, r->fd, 0);
	r->producer = map(c->page + 2 * c->size, PROT_READ, r->fd, c->page);
	if (!r->consumer || !r->producer)
		return xk_fail("mmap(BPF ring buffer)", errno);
	r->data = (const uint8_t *)r->producer + c->page;
	return 0;
}

static void close_fd(int fd)
{
	if (fd >= 0)
		close(fd);
}

static void close_ring(const struct xk_copies *c, const struct ring *r)
{
	if (r->producer)
		munmap((void *)r->producer, c->page + 2 * c->size);
	if (r->consumer)
		munmap(r->consumer, c->page);
	close_fd(r->fd);
}

/* The program's counts of each CPU: records written and lost. */
static int read_counts(const struct xk_copies *c, uint64_t *counts)
{
	uint32_t zero = 0;

	return bpf_map_lookup_elem(c->counts_fd, &zero, counts) ? xk_fail("bpf(BPF_MAP_LOOKUP_ELEM)", errno) : 0;
}

static void set_mode(struct xk_copies *c, uint32_t mode)
{
	__atomic_store_n(&c->reader->mode, mode, __ATOMIC_RELEASE);
}

/* Put the ring buffers into the program's map: in one call, because the kernel waits for programs after each. */
static int place_rings(const struct xk_copies *c, const uint32_t *ring_of)
{
	uint32_t *cpus = malloc(2 * c->cpus * sizeof(*cpus)), *fds = cpus + c->cpus, done;
	int error;

	if (!cpus)
		return xk_fail("malloc", ENOMEM);
	for (uint32_t cpu = 0; cpu < c->cpus; cpu++) {
		cpus[cpu] = cpu;
		fds[cpu] = (uint32_t)c->rings[ring_of[cpu]].fd;
	}
	error = xk_map_update_many(c->rings_fd, 4, 4, (uint8_t *)cpus, (uint8_t *)fds, c->cpus, &done);
	free(cpus);
	return error;
}

/* Take them out again, as far as the kernel does that: else they go with the map. */
static void remove_rings(const struct xk_copies *c)
{
	LIBBPF_OPTS(bpf_map_batch_opts, opts);
	uint32_t *cpus = malloc(c->cpus * sizeof(*cpus)), count = c->cpus;

	for (uint32_t cpu = 0; cpus && cpu < c->cpus; cpu++)
		cpus[cpu] = cpu;
	if (cpus)
		bpf_map_delete_batch(c->rings_fd, cpus, &count, &opts);
	free(cpus);
}

static int open_epoll(struct xk_copies *c)
{
	c->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (c->epoll_fd < 0)
		return xk_fail("epoll_create1", errno);
	for (uint32_t i = 0; i < c->count; i++) {
		struct epoll_event event = { .events = EPOLLIN };

		if (epoll_ctl(c->epoll_fd, EPOLL_CTL_ADD, c->rings[i].fd, &event))
			return xk_fail("epoll_ctl", errno);
	}
	return 0;
}

static int open_all(struct xk_copies *c, const uint32_t *ring_of, int rings_fd, int reader_fd, int counts_fd)
{
	int error;

	c->rings = calloc(c->count, sizeof(*c->rings));
	c->before = malloc(c->cpus * 2 * sizeof(*c->before));
	c->now = malloc(c->cpus * 2 * sizeof(*c->now));
	if (!c->rings || !c->before || !c->now)
		return xk_fail("calloc", ENOMEM);
	for (uint32_t i = 0; i < c->count; i++)
		c->rings[i].fd = -1;
	/* of its own: another program may take these maps over, and this one be closed */
	c->rings_fd = fcntl(rings_fd, F_DUPFD_CLOEXEC, 0);
	c->counts_fd = fcntl(counts_fd, F_DUPFD_CLOEXEC, 0);
	if (c->rings_fd < 0 || c->counts_fd < 0)
		return xk_fail("fcntl(F_DUPFD_CLOEXEC)", errno);
	c->reader = map(c->page, PROT_READ | PROT_WRITE, reader_fd, 0);
	if (!c->reader)
		return xk_fail("mmap(BPF array)", errno);
	for (uint32_t i = 0; i < c->count; i++)
		if ((error = open_ring(c, &c->rings[i])))
			return error;
	if ((error = open_epoll(c)) || (error = read_counts(c, c->before)))
		return error;
	return place_rings(c, ring_of);
}

int xk_copies_open(const struct xk_program *p, const char *ring, const uint32_t *ring_of, uint32_t rings,
		   uint32_t ring_bytes, struct xk_copies **out)
{
	char name[64];
	int rings_fd = xk_program_map(p, ring), reader_fd = xk_program_map(p, name_of(ring, "_reader", name));
	int counts_fd = xk_program_map(p, name_of(ring, "_count", name)), error;
	struct xk_copies *c;

	if (rings_fd < 0 || reader_fd < 0 || counts_fd < 0)
		return xk_fail("a program that copies packets", ENOENT);
	c = calloc(1, sizeof(*c));
	if (!c)
		return xk_fail("calloc", ENOMEM);
	c->page = (size_t)sysconf(_SC_PAGESIZE);
	c->size = ring_bytes;
	c->cpus = xk_cpus();
	c->count = rings;
	c->rings_fd = c->counts_fd = c->epoll_fd = -1;
	if ((error = open_all(c, ring_of, rings_fd, reader_fd, counts_fd))) {
		xk_copies_close(c);
		return error;
	}
	xk_copies_snaplen(c, 0);
	set_mode(c, XK_READER_WAITS);
	*out = c;
	return 0;
}

void xk_copies_quiet(struct xk_copies *c)
{
	set_mode(c, XK_READER_NONE);
}

void xk_copies_close(struct xk_copies *c)
{
	if (c->reader) {
		xk_copies_quiet(c);
		remove_rings(c);
		munmap(c->reader, c->page);
	}
	for (uint32_t i = 0; c->rings && i < c->count; i++)
		close_ring(c, &c->rings[i]);
	close_fd(c->epoll_fd);
	close_fd(c->rings_fd);
	close_fd(c->counts_fd);
	free(c->rings);
	free(c->before);
	free(c->now);
	free(c);
}

void xk_copies_snaplen(struct xk_copies *c, uint32_t snaplen)
{
	__atomic_store_n(&c->reader->snaplen, snaplen ? snaplen : UINT32_MAX, __ATOMIC_RELAXED);
}

int xk_copies_stats(const struct xk_copies *c, uint64_t *packets, uint64_t *lost)
{
	uint64_t *counts = malloc(c->cpus * 2 * sizeof(*counts));
	int error = counts ? read_counts(c, counts) : xk_fail("malloc", ENOMEM);

	for (uint32_t cpu = 0; !error && cpu < c->cpus; cpu++) {
		packets[cpu] = counts[2 * cpu] - c->before[2 * cpu];
		lost[cpu] = counts[2 * cpu + 1] - c->before[2 * cpu + 1];
	}
	free(counts);
	return error;
}

/* ---- records ---- */

static unsigned long room_of(uint32_t len)
{
	return (len + BPF_RINGBUF_HDR_SZ + 7ul) & ~7ul;
}

static const uint32_t *header_at(const struct xk_copies *c, const struct ring *r)
{
	return (const uint32_t *)(r->data + (r->next & (c->size - 1)));
}

/* Find the oldest record of a ring, up to its `end`: 0, or -EFAULT.  Discarded ones are skipped. */
static int find_oldest(const struct xk_copies *c, struct ring *r)
{
	while (!r->oldest && r->next != r->end) {
		const uint32_t *header = header_at(c, r);
		uint32_t word = xk_ring_load(header), len = word & ~(BPF_RINGBUF_BUSY_BIT | BPF_RINGBUF_DISCARD_BIT);
		const struct xk_copy *copy = (const struct xk_copy *)(header + BPF_RINGBUF_HDR_SZ / 4);

		if (word & BPF_RINGBUF_BUSY_BIT)
			return 0;
		if (word & BPF_RINGBUF_DISCARD_BIT) {
			r->next += room_of(len);
			continue;
		}
		if (len < sizeof(*copy) || copy->len > len - sizeof(*copy))
			return xk_fail("ring buffer record check", EFAULT);
		r->oldest = copy;
	}
	return 0;
}

/* Find the ring with the oldest record: 1, 0 when there is none, or -EFAULT. */
static int find_ring(struct xk_copies *c)
{
	if (c->at && c->at->oldest && c->at->oldest->time_ns <= c->until)
		return 1;
	c->at = NULL;
	c->until = UINT64_MAX;
	for (struct ring *r = c->rings; r < c->rings + c->count; r++) {
		if (!r->oldest) {
			r->end = __atomic_load_n(r->producer, __ATOMIC_ACQUIRE);
			if (find_oldest(c, r))
				return -EFAULT;
		}
		if (!r->oldest)
			continue;
		if (!c->at || r->oldest->time_ns < c->at->oldest->time_ns) {
			c->until = c->at ? c->at->oldest->time_ns : UINT64_MAX;
			c->at = r;
		} else if (r->oldest->time_ns < c->until) {
			c->until = r->oldest->time_ns;
		}
	}
	return c->at != NULL;
}

/* The oldest record was handed out: go behind it. */
static int take(struct xk_copies *c)
{
	struct ring *r = c->at;
	uint32_t word = *header_at(c, r);

	r->next += room_of(word & ~(BPF_RINGBUF_BUSY_BIT | BPF_RINGBUF_DISCARD_BIT));
	r->oldest = NULL;
	return find_oldest(c, r);
}

static int release(void *self)
{
	struct xk_copies *c = self;

	for (struct ring *r = c->rings; r < c->rings + c->count; r++) {
		if (r->released != r->next)
			__atomic_store_n(r->consumer, r->next, __ATOMIC_RELEASE);
		r->released = r->next;
	}
	return 0;
}

static int empty(const void *self)
{
	const struct xk_copies *c = self;

	for (const struct ring *r = c->rings; r < c->rings + c->count; r++)
		if (__atomic_load_n(r->producer, __ATOMIC_ACQUIRE) != r->next)
			return 0;
	return 1;
}

/* ---- as a worker's source ---- */

static int receive(void *self, struct xk_view *out)
{
	struct xk_copies *c = self;
	uint64_t offset = 0;
	uint32_t n = 0;
	int got = 0;

	while (n < XK_BATCH && (got = find_ring(c)) > 0) {
		const struct xk_copy *copy = c->at->oldest;

		offset = n ? offset : xk_clock_offset();
		out[n++] = (struct xk_view){ (const uint8_t *)(copy + 1), copy->len, copy->wire_len,
					     copy->time_ns + offset, copy->rule, copy->verdict, 0, NULL, copy->queue };
		if ((got = take(c)))
			return got;
	}
	if (!n && !got)
		release(c); /* what was discarded would keep poll() awake */
	return got < 0 ? got : (int)n;
}

/*
 * Ask to be woken; 1 where something is there already.  The full barrier between `asleep` and the positions pairs with the
 * one of copy_into() in bpf/copies.h.
 */
static int ask_wakeup(void *self)
{
	const struct xk_copies *c = self;

	__atomic_store_n(&c->reader->asleep, 1, __ATOMIC_RELAXED);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	return !empty(c);
}

void xk_copies_nap(struct xk_copies *c, int nap)
{
	set_mode(c, nap ? XK_READER_NAPS : XK_READER_WAITS);
}

/* The sink asks under its lock, so one thread at a time uses `now`. */
static uint64_t lost(const void *self)
{
	const struct xk_copies *c = self;
	uint64_t lost = 0;

	if (read_counts(c, c->now))
		return 0;
	for (uint32_t cpu = 0; cpu < c->cpus; cpu++)
		lost += c->now[2 * cpu + 1] - c->before[2 * cpu + 1];
	return lost;
}

void xk_copies_source(struct xk_copies *c, struct xk_source *out)
{
	*out = (struct xk_source){ .receive = receive,
				   .release = release,
				   .fd = c->epoll_fd,
				   .self = c,
				   .sleep = ask_wakeup,
				   .disorder_ns = 1000000, /* a CPU takes the time first, and then writes the record */
				   .delay_ns = 50000000,
				   .empty = empty,
				   .lost = lost };
}

/* ---- for Python ---- */

int xk_copies_receive(struct xk_copies *c, uint32_t max, uint8_t *room, size_t room_size, uint32_t *len,
		      uint64_t *time_ns, uint32_t *rule, uint32_t *mark, uint8_t *verdict, uint32_t *wire_len,
		      uint32_t *queue)
{
	uint64_t offset = 0;
	size_t used = 0;
	uint32_t n = 0;
	int got = 0;

	while (n < max && (got = find_ring(c)) > 0) {
		const struct xk_copy *copy = c->at->oldest;

		if (used + copy->len > room_size) {
			if (!n)
				return xk_fail("packet longer than the batch's room", EMSGSIZE);
			break;
		}
		offset = n ? offset : xk_clock_offset();
		memcpy(room + used, copy + 1, copy->len);
		used += copy->len;
		len[n] = copy->len;
		time_ns[n] = copy->time_ns + offset;
		rule[n] = copy->rule;
		mark[n] = copy->mark;
		verdict[n] = copy->verdict;
		wire_len[n] = copy->wire_len;
		queue[n] = copy->queue;
		n++;
		if ((got = take(c)))
			break;
	}
	if (got < 0 && !n)
		return got;
	release(c);
	return (int)n;
}

int xk_copies_fd(const struct xk_copies *c)
{
	return c->epoll_fd;
}

int xk_copies_wait(struct xk_copies *c, int stop_fd, int timeout_ms)
{
	struct pollfd fds[] = { { .fd = c->epoll_fd, .events = POLLIN }, { .fd = stop_fd, .events = POLLIN } };
	int ready;

	if (ask_wakeup(c))
		return 1;
	ready = poll(fds, 2, timeout_ms);
	return ready < 0 ? xk_fail("poll(BPF ring buffer)", errno) : fds[0].revents != 0;
}
