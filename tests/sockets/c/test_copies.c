/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The reader of csrc/copies.c on ring buffers in plain memory: threads write records as the kernel does.  Run with the name
 * of a test; tests/sockets/test_copies_reader.py does, under sanitizers.
 */
#undef NDEBUG
#include <assert.h>
#include <pthread.h>
#include <sched.h>
#include "copies.c"

#define RINGS 3u
#define SIZE 4096u
#define RECORDS 50000u
#define LEN 24u /* bytes of a packet */
#define ROOM ((8 + sizeof(struct xk_copy) + LEN + 7) & ~7ul)

static unsigned long consumers[RINGS], producers[RINGS];
static uint8_t memory[RINGS][2 * SIZE] __attribute__((aligned(8)));
static struct ring rings[RINGS];
static struct xk_reader reader;
static struct xk_copies copies;
static uint64_t clock_ns;

static void setup(void)
{
	for (uint32_t i = 0; i < RINGS; i++)
		rings[i] = (struct ring){ .consumer = &consumers[i], .producer = &producers[i], .data = memory[i] };
	copies = (struct xk_copies){ .size = SIZE, .count = RINGS, .rings = rings, .reader = &reader };
}

/* The header of a record, where a real ring buffer is mapped twice: written in both places. */
static void put_header(uint32_t ring, unsigned long at, uint32_t word)
{
	at &= SIZE - 1;
	__atomic_store_n((uint32_t *)(memory[ring] + at), word, __ATOMIC_RELEASE);
	__atomic_store_n((uint32_t *)(memory[ring] + at + SIZE), word, __ATOMIC_RELEASE);
}

static void put_bytes(uint32_t ring, unsigned long at, const void *bytes, size_t size)
{
	for (size_t i = 0; i < size; i++) {
		memory[ring][(at + i) & (SIZE - 1)] = ((const uint8_t *)bytes)[i];
		memory[ring][((at + i) & (SIZE - 1)) + SIZE] = ((const uint8_t *)bytes)[i];
	}
}

/* As bpf_ringbuf_reserve(): the position, or -1 where there is no room. */
static long reserve(uint32_t ring)
{
	unsigned long at = producers[ring];

	if (at + ROOM - __atomic_load_n(&consumers[ring], __ATOMIC_ACQUIRE) > SIZE - 1)
		return -1;
	put_header(ring, at, (uint32_t)(sizeof(struct xk_copy) + LEN) | BPF_RINGBUF_BUSY_BIT);
	__atomic_store_n(&producers[ring], at + ROOM, __ATOMIC_RELEASE);
	return (long)at;
}

static void submit(uint32_t ring, long at, uint64_t time_ns, uint32_t rule, uint32_t flags)
{
	struct xk_copy copy = { .time_ns = time_ns, .rule = rule, .len = LEN, .wire_len = 60 };
	uint8_t bytes[LEN];

	memset(bytes, (int)rule, LEN);
	put_bytes(ring, (unsigned long)at + 8, &copy, sizeof(copy));
	put_bytes(ring, (unsigned long)at + 8 + sizeof(copy), bytes, LEN);
	put_header(ring, (unsigned long)at, (uint32_t)(sizeof(struct xk_copy) + LEN) | flags);
}

static void write_record(uint32_t ring, uint64_t time_ns, uint32_t rule)
{
	long at = reserve(ring);

	assert(at >= 0);
	submit(ring, at, time_ns, rule, 0);
}

#define TEST(name) static void name(void)

TEST(no_record_is_none)
{
	struct xk_view views[XK_BATCH];

	assert(receive(&copies, views) == 0 && empty(&copies));
}

TEST(the_oldest_record_of_all_rings_comes_first)
{
	const uint64_t times[RINGS][4] = { { 10, 40, 70, 71 }, { 20, 21, 22, 90 }, { 5, 80, 81, 100 } };
	const uint64_t order[] = { 5, 10, 20, 21, 22, 40, 70, 71, 80, 81, 90, 100 };
	struct xk_view views[XK_BATCH];
	uint64_t offset;

	for (uint32_t i = 0; i < RINGS; i++)
		for (uint32_t j = 0; j < 4; j++)
			write_record(i, times[i][j], 0);
	assert(receive(&copies, views) == 12);
	offset = views[0].time_ns - 5;
	for (uint32_t i = 0; i < 12; i++)
		assert(views[i].time_ns - offset == order[i]);
	assert(!release(&copies));
	assert(empty(&copies) && consumers[0] == 4 * ROOM && consumers[2] == 4 * ROOM);
}

TEST(what_was_not_released_is_not_room)
{
	struct xk_view views[XK_BATCH];

	write_record(1, 1, 0);
	assert(receive(&copies, views) == 1 && consumers[1] == 0);
	release(&copies);
	assert(consumers[1] == ROOM);
}

TEST(a_record_that_is_still_written_holds_its_ring_up_and_no_other)
{
	struct xk_view views[XK_BATCH];
	long at = reserve(0);

	write_record(0, 2, 1);
	write_record(1, 3, 2);
	assert(receive(&copies, views) == 1 && views[0].rule == 2);
	release(&copies);
	assert(!empty(&copies));
	submit(0, at, 1, 0, 0);
	assert(receive(&copies, views) == 2 && views[0].rule == 0 && views[1].rule == 1);
}

TEST(discarded_records_are_skipped_and_given_back)
{
	struct xk_view views[XK_BATCH];

	for (uint32_t i = 0; i < 3; i++)
		submit(2, reserve(2), i, i, BPF_RINGBUF_DISCARD_BIT);
	assert(receive(&copies, views) == 0 && consumers[2] == 3 * ROOM && empty(&copies));
	submit(2, reserve(2), 9, 9, BPF_RINGBUF_DISCARD_BIT);
	write_record(2, 10, 7);
	assert(receive(&copies, views) == 1 && views[0].rule == 7);
}

TEST(a_record_of_a_wrong_length_is_an_error)
{
	struct xk_view views[XK_BATCH];

	write_record(0, 1, 0);
	put_header(0, 0, sizeof(struct xk_copy) + LEN - 1);
	assert(receive(&copies, views) == -EFAULT);
}

TEST(a_batch_for_python_ends_where_its_room_does)
{
	uint32_t len[8], rule[8], mark[8], wire[8], queue[8];
	uint64_t time[8];
	uint8_t verdict[8], room[3 * LEN + 1];

	for (uint32_t i = 0; i < 5; i++)
		write_record(i % RINGS, i, i);
	assert(xk_copies_receive(&copies, 8, room, sizeof(room), len, time, rule, mark, verdict, wire, queue) == 3);
	assert(rule[0] == 0 && rule[2] == 2 && room[2 * LEN] == 2 && wire[0] == 60 && len[1] == LEN);
	assert(xk_copies_receive(&copies, 1, room, sizeof(room), len, time, rule, mark, verdict, wire, queue) == 1);
	assert(xk_copies_receive(&copies, 8, room, LEN - 1, len, time, rule, mark, verdict, wire, queue) == -EMSGSIZE);
	assert(xk_copies_receive(&copies, 8, room, LEN, len, time, rule, mark, verdict, wire, queue) == 1 && rule[0] == 4);
	assert(empty(&copies));
}

static void *produce(void *ring)
{
	uint32_t number = (uint32_t)(uintptr_t)ring;

	for (uint32_t i = 0; i < RECORDS;) {
		uint64_t now = __atomic_add_fetch(&clock_ns, 1, __ATOMIC_RELAXED);
		long at = reserve(number);

		if (at < 0) {
			sched_yield();
			continue;
		}
		submit(number, at, now, i, i % 7 ? 0 : BPF_RINGBUF_DISCARD_BIT);
		i++;
	}
	return NULL;
}

TEST(threads_that_write_lose_nothing_and_keep_their_order)
{
	pthread_t threads[RINGS];
	uint32_t expected[RINGS] = { 0 }, left = RINGS * (RECORDS - (RECORDS + 6) / 7);

	for (uintptr_t i = 0; i < RINGS; i++)
		assert(!pthread_create(&threads[i], NULL, produce, (void *)i));
	while (left) {
		struct xk_view views[XK_BATCH];
		int n = receive(&copies, views);

		assert(n >= 0);
		for (int i = 0; i < n; i++) {
			uint32_t ring = (uint32_t)((size_t)(views[i].data - memory[0]) / sizeof(memory[0]));

			expected[ring] += expected[ring] % 7 == 0;
			assert(views[i].rule == expected[ring]++ && views[i].data[LEN - 1] == (uint8_t)views[i].rule);
		}
		left -= (uint32_t)n;
		release(&copies);
		if (!n)
			sched_yield();
	}
	for (uint32_t i = 0; i < RINGS; i++)
		pthread_join(threads[i], NULL);
}

#define RUN(name) { #name, name }

static const struct {
	const char *name;
	void (*run)(void);
} tests[] = {
	RUN(no_record_is_none),
	RUN(the_oldest_record_of_all_rings_comes_first),
	RUN(what_was_not_released_is_not_room),
	RUN(a_record_that_is_still_written_holds_its_ring_up_and_no_other),
	RUN(discarded_records_are_skipped_and_given_back),
	RUN(a_record_of_a_wrong_length_is_an_error),
	RUN(a_batch_for_python_ends_where_its_room_does),
	RUN(threads_that_write_lose_nothing_and_keep_their_order),
};

int main(int argc, char **argv)
{
	for (unsigned int i = 0; i < sizeof(tests) / sizeof(tests[0]); i++) {
		if (argc == 2 && !strcmp(argv[1], tests[i].name)) {
			setup();
			tests[i].run();
			return 0;
		}
	}
	fprintf(stderr, "usage: %s TEST\n", argv[0]);
	return 2;
}
