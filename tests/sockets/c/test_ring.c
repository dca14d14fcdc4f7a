/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * csrc/ring.h, and the pool of csrc/umem.h, on plain memory.  Two views of one ring stand for the two sides: `ours` and `theirs` share the index words
 * and the entries, as user space and kernel do.  Run with the name of a test; tests/sockets/test_ring.py does.
 */
#undef NDEBUG
#include <assert.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include "umem.h"

#define SIZE 4u

static uint32_t shared_producer, shared_consumer;
static uint64_t entries[SIZE];
static struct xk_ring producer, consumer;

/* Both indices at `start`: an empty ring that has been in use for a while. */
static void setup(uint32_t start)
{
	struct xk_ring ring = { .shared_producer = &shared_producer,
				.shared_consumer = &shared_consumer,
				.entries = entries,
				.mask = SIZE - 1,
				.size = SIZE,
				.producer = start,
				.consumer = start };

	shared_producer = shared_consumer = start;
	producer = consumer = ring;
}

static uint32_t produce(uint64_t first, uint32_t want)
{
	uint32_t n = xk_ring_reserve(&producer, want);

	for (uint32_t i = 0; i < n; i++)
		*xk_ring_addr(&producer, producer.producer + i) = first + i;
	if (n)
		xk_ring_submit(&producer, n);
	return n;
}

static uint32_t consume(uint64_t *out, uint32_t want)
{
	uint32_t n = xk_ring_peek(&consumer, want);

	for (uint32_t i = 0; i < n; i++)
		out[i] = *xk_ring_addr(&consumer, consumer.consumer + i);
	if (n)
		xk_ring_release(&consumer, n);
	return n;
}

#define TEST(name) static void name(void)

TEST(an_empty_ring_gives_nothing)
{
	assert(xk_ring_peek(&consumer, 1) == 0);
	assert(xk_ring_peek(&consumer, SIZE) == 0);
}

TEST(an_empty_ring_has_room_for_its_size_and_no_more)
{
	assert(xk_ring_reserve(&producer, SIZE) == SIZE);
	assert(xk_ring_reserve(&producer, SIZE + 1) == SIZE);
	assert(xk_ring_reserve(&producer, UINT32_MAX) == SIZE);
}

TEST(a_full_ring_has_no_room)
{
	assert(produce(1, SIZE) == SIZE);
	assert(xk_ring_reserve(&producer, 1) == 0);
}

TEST(a_full_ring_gives_all_its_entries_in_order)
{
	uint64_t got[SIZE + 1];

	assert(produce(10, SIZE) == SIZE);
	assert(consume(got, SIZE + 1) == SIZE);
	for (uint32_t i = 0; i < SIZE; i++)
		assert(got[i] == 10 + i);
	assert(xk_ring_peek(&consumer, 1) == 0);
}

TEST(one_released_entry_is_room_for_one)
{
	uint64_t got;

	assert(produce(1, SIZE) == SIZE);
	assert(consume(&got, 1) == 1 && got == 1);
	assert(xk_ring_reserve(&producer, SIZE) == 1);
}

TEST(no_more_than_wanted_is_reserved_or_given)
{
	assert(xk_ring_reserve(&producer, 2) == 2);
	assert(produce(1, 3) == 3);
	assert(xk_ring_peek(&consumer, 2) == 2);
	assert(xk_ring_reserve(&producer, 0) == 0);
	assert(xk_ring_peek(&consumer, 0) == 0);
}

TEST(reserved_entries_are_unseen_until_submitted)
{
	assert(xk_ring_reserve(&producer, 2) == 2);
	*xk_ring_addr(&producer, producer.producer) = 7;
	assert(xk_ring_peek(&consumer, 1) == 0);
	xk_ring_submit(&producer, 1);
	assert(xk_ring_peek(&consumer, SIZE) == 1);
	assert(*xk_ring_addr(&consumer, consumer.consumer) == 7);
}

TEST(peeked_entries_are_no_room_until_released)
{
	assert(produce(1, SIZE) == SIZE);
	assert(xk_ring_peek(&consumer, SIZE) == SIZE);
	assert(xk_ring_reserve(&producer, 1) == 0);
	xk_ring_release(&consumer, SIZE);
	assert(xk_ring_reserve(&producer, SIZE) == SIZE);
}

TEST(reserving_twice_without_submitting_takes_nothing)
{
	assert(xk_ring_reserve(&producer, SIZE) == SIZE);
	assert(xk_ring_reserve(&producer, SIZE) == SIZE);
	assert(shared_producer == shared_consumer);
}

TEST(reserve_leaves_the_consumers_index_alone_while_it_knows_of_room)
{
	producer.shared_consumer = NULL; /* looking would crash */
	assert(xk_ring_reserve(&producer, SIZE) == SIZE);
	xk_ring_submit(&producer, 3);
	assert(xk_ring_reserve(&producer, 1) == 1);
}

TEST(reserve_looks_again_when_it_knows_of_too_little_room)
{
	uint64_t got[SIZE];

	assert(produce(1, SIZE) == SIZE);
	assert(consume(got, SIZE) == SIZE);
	assert(producer.consumer != shared_consumer);
	assert(xk_ring_reserve(&producer, 1) == 1);
	assert(producer.consumer == shared_consumer);
}

TEST(peek_leaves_the_producers_index_alone_while_it_knows_of_entries)
{
	assert(produce(1, 3) == 3);
	assert(xk_ring_peek(&consumer, 3) == 3);
	consumer.shared_producer = NULL; /* looking would crash */
	assert(xk_ring_peek(&consumer, 3) == 3);
	xk_ring_release(&consumer, 1);
	assert(xk_ring_peek(&consumer, 2) == 2);
}

TEST(peek_looks_again_when_it_knows_of_too_few_entries)
{
	assert(produce(1, 1) == 1);
	assert(xk_ring_peek(&consumer, 1) == 1);
	assert(produce(2, 1) == 1);
	assert(xk_ring_peek(&consumer, 2) == 2);
}

TEST(each_side_writes_only_its_own_index)
{
	uint64_t got[SIZE];
	uint32_t start = shared_producer;

	assert(produce(1, 3) == 3);
	assert(shared_producer == start + 3 && shared_consumer == start);
	assert(consume(got, 2) == 2);
	assert(shared_producer == start + 3 && shared_consumer == start + 2);
}

TEST(a_batch_wraps_around_the_end_of_the_entries)
{
	uint64_t got[SIZE];

	for (uint64_t next = 0; next < 100; next += 3) {
		assert(produce(next, 3) == 3);
		assert(consume(got, SIZE) == 3);
		for (uint32_t i = 0; i < 3; i++)
			assert(got[i] == next + i);
	}
}

TEST(indices_wrap_around_past_32_bits)
{
	uint64_t got[SIZE];

	setup(UINT32_MAX - 5);
	for (uint64_t next = 0; next < 12; next += 3) {
		assert(produce(next, 3) == 3);
		assert(consume(got, SIZE) == 3);
		for (uint32_t i = 0; i < 3; i++)
			assert(got[i] == next + i);
	}
	assert(shared_producer == 6 && shared_consumer == 6);
}

TEST(a_ring_is_full_and_empty_on_both_sides_of_the_32_bit_edge)
{
	uint64_t got[SIZE];

	for (uint32_t before = 0; before <= SIZE; before++) {
		setup(0u - before);
		assert(produce(1, SIZE + 1) == SIZE);
		assert(xk_ring_reserve(&producer, 1) == 0);
		assert(consume(got, SIZE + 1) == SIZE);
		assert(got[0] == 1 && got[SIZE - 1] == SIZE);
		assert(xk_ring_peek(&consumer, 1) == 0);
		assert(xk_ring_reserve(&producer, SIZE) == SIZE);
	}
}

#define NUMBERS 1000000u

static void *count_up(void *unused)
{
	for (uint64_t next = 0; next < NUMBERS;) {
		uint32_t want = 1 + (uint32_t)next % SIZE;
		uint32_t n = produce(next, NUMBERS - next < want ? (uint32_t)(NUMBERS - next) : want);

		if (!n)
			sched_yield();
		next += n;
	}
	return unused;
}

TEST(two_threads_move_a_million_numbers_in_order)
{
	uint64_t got[SIZE], expected = 0;
	pthread_t thread;

	setup(UINT32_MAX - NUMBERS / 2);
	assert(!pthread_create(&thread, NULL, count_up, NULL));
	while (expected < NUMBERS) {
		uint32_t n = consume(got, SIZE);

		if (!n)
			sched_yield();
		for (uint32_t i = 0; i < n; i++)
			assert(got[i] == expected++);
	}
	assert(!pthread_join(thread, NULL));
	assert(xk_ring_peek(&consumer, 1) == 0);
}

/* Of 8 frames of 2048 bytes, 3 taken and given back: which three are taken then. */
static void take_again(int in_order, const uint64_t wanted[3])
{
	struct xk_umem umem = { .config.chunk_size = 2048 };
	uint64_t ring[8];
	struct xk_pool pool = { .umem = &umem, .free = ring, .mask = 7, .end = 8, .frames = 8, .in_order = in_order };

	for (uint64_t round = 0; round < 20; round++) { /* and past the end of the ring */
		uint64_t held[3];

		for (int i = 0; i < 3; i++)
			held[i] = pool_take(&pool);
		assert(pool_free(&pool) == 5);
		assert(round || (held[0] == 0 && held[1] == 2048 && held[2] == 4096)); /* never used: by address */
		for (int i = 0; i < 3; i++)
			assert(!round || held[i] == wanted[in_order ? i : round % 2 ? i : 2 - i]);
		for (int i = 0; i < 3; i++)
			pool_give(&pool, held[i]);
		assert(pool_free(&pool) == 8);
	}
}

TEST(a_pool_takes_first_what_was_given_back_last)
{
	take_again(0, (uint64_t[]){ 4096, 2048, 0 });
}

TEST(a_pool_in_order_takes_first_what_was_given_back_first)
{
	take_again(1, (uint64_t[]){ 0, 2048, 4096 });
}

#define RUN(test) { #test, test }

static const struct {
	const char *name;
	void (*run)(void);
} tests[] = {
	RUN(an_empty_ring_gives_nothing),
	RUN(an_empty_ring_has_room_for_its_size_and_no_more),
	RUN(a_full_ring_has_no_room),
	RUN(a_full_ring_gives_all_its_entries_in_order),
	RUN(one_released_entry_is_room_for_one),
	RUN(no_more_than_wanted_is_reserved_or_given),
	RUN(reserved_entries_are_unseen_until_submitted),
	RUN(peeked_entries_are_no_room_until_released),
	RUN(reserving_twice_without_submitting_takes_nothing),
	RUN(reserve_leaves_the_consumers_index_alone_while_it_knows_of_room),
	RUN(reserve_looks_again_when_it_knows_of_too_little_room),
	RUN(peek_leaves_the_producers_index_alone_while_it_knows_of_entries),
	RUN(peek_looks_again_when_it_knows_of_too_few_entries),
	RUN(each_side_writes_only_its_own_index),
	RUN(a_batch_wraps_around_the_end_of_the_entries),
	RUN(indices_wrap_around_past_32_bits),
	RUN(a_ring_is_full_and_empty_on_both_sides_of_the_32_bit_edge),
	RUN(two_threads_move_a_million_numbers_in_order),
	RUN(a_pool_takes_first_what_was_given_back_last),
	RUN(a_pool_in_order_takes_first_what_was_given_back_first),
};

int main(int argc, char **argv)
{
	for (unsigned int i = 0; i < sizeof(tests) / sizeof(tests[0]); i++) {
		if (argc == 2 && !strcmp(argv[1], tests[i].name)) {
			setup(0);
			tests[i].run();
			return 0;
		}
	}
	fprintf(stderr, "usage: %s TEST\n", argv[0]);
	return 2;
}
