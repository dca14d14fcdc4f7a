/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * csrc/sink.c and csrc/worker.c with sources that are pipes: each 8 bytes written to one are the time of a packet.  Run with
 * the name of a test; tests/sockets/test_sink.py does, under sanitizers.
 */
#undef NDEBUG
#define _GNU_SOURCE
#include <assert.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>
#include "sink.h"

#define SOURCES 4
#define PACKETS 20000u

struct pipe_source {
	int in, out;
	uint64_t times[XK_BATCH];
	uint8_t bytes[100];
};

static struct pipe_source sources[SOURCES];

static int receive(void *self, struct xk_view *out)
{
	struct pipe_source *p = self;
	ssize_t n = read(p->out, p->times, sizeof(p->times));

	for (ssize_t i = 0; i < n / 8; i++)
		out[i] = (struct xk_view){ .data = p->bytes, .len = sizeof(p->bytes), .wire_len = sizeof(p->bytes),
					   .time_ns = p->times[i], .rule = 0, .verdict = 4 };
	return n > 0 ? (int)(n / 8) : 0;
}

static int release(void *self)
{
	(void)self;
	return 0;
}

static void open_source(int i, struct xk_source *out)
{
	int fds[2];

	assert(!pipe2(fds, O_NONBLOCK));
	sources[i].out = fds[0];
	sources[i].in = fds[1];
	*out = (struct xk_source){ .receive = receive, .release = release, .fd = fds[0], .self = &sources[i],
				   .delay_ns = 800000000 }; /* a busy machine may stop us between time and write() */
}

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_REALTIME, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Write PACKETS packets in all to the sources, in turn, in workers of `fd`; how many were written. */
static uint64_t write_packets(int fd, int count, uint64_t *failed)
{
	const char *texts[] = { "rule test" };
	struct xk_worker *workers[SOURCES];
	struct xk_worker_stats stats;
	uint64_t written = 0, time;
	struct xk_sink *sink;

	assert(!xk_sink_pcapng(fd, 0, 0, (uint32_t)count, 5, &sink));
	assert(!xk_sink_rules(sink, 1, texts));
	for (int i = 0; i < count; i++) {
		struct xk_source source;

		open_source(i, &source);
		assert(!xk_worker_start(&source, sink, (uint32_t)i, i % 4, -1, &workers[i]));
	}
	for (uint32_t n = 0; n < PACKETS; n++) {
		time = now();
		while (write(sources[n % (uint32_t)count].in, &time, 8) != 8)
			sched_yield();
	}
	for (int i = 0; i < count; i++)
		xk_worker_stop(workers[i]);
	for (int i = 0; i < count; i++)
		xk_worker_wait(workers[i]);
	*failed = 0;
	for (int i = 0; i < count; i++) {
		xk_worker_join(workers[i], &stats);
		written += stats.written;
		*failed += stats.refused;
		close(sources[i].in);
		close(sources[i].out);
	}
	xk_sink_close(sink);
	return written;
}

/* The packets in a file of whole blocks; their times are in order. */
static uint64_t check_file(int fd)
{
	off_t size = lseek(fd, 0, SEEK_END);
	uint8_t *data = mmap(NULL, (size_t)size, PROT_READ, MAP_PRIVATE, fd, 0);
	uint64_t packets = 0, last = 0;
	uint32_t block[5];

	assert(data != MAP_FAILED);
	for (off_t at = 0; at < size; at += block[1]) {
		uint64_t time;

		assert(size - at >= 20);
		memcpy(block, data + at, sizeof(block));
		assert(block[1] <= size - at);
		if (block[0] != 6)
			continue;
		time = (uint64_t)block[3] << 32 | block[4];
		assert(time >= last);
		last = time;
		packets++;
	}
	munmap(data, (size_t)size);
	return packets;
}

#define TEST(name) static void name(void)

TEST(one_source_is_written_whole)
{
	int fd = memfd_create("capture", 0);
	uint64_t failed;

	assert(write_packets(fd, 1, &failed) == PACKETS && !failed);
	assert(check_file(fd) == PACKETS);
}

TEST(several_sources_are_merged_in_the_order_of_their_times)
{
	int fd = memfd_create("capture", 0);
	uint64_t failed;

	assert(write_packets(fd, SOURCES, &failed) == PACKETS && !failed);
	assert(check_file(fd) == PACKETS);
}

TEST(a_full_file_ends_with_its_last_whole_block)
{
	char path[] = "/tmp/test_sink_XXXXXX";
	struct rlimit limit = { 1000003, 1000003 };
	int fd = mkstemp(path);
	uint64_t failed, written;

	assert(fd >= 0 && !unlink(path));
	signal(SIGXFSZ, SIG_IGN);
	assert(!setrlimit(RLIMIT_FSIZE, &limit));
	written = write_packets(fd, SOURCES, &failed);
	assert(written && failed && written + failed == PACKETS);
	assert(check_file(fd) == written);
}

static void *read_all(void *fd)
{
	static uint8_t room[65536];
	uint64_t *bytes = calloc(1, sizeof(*bytes));

	for (ssize_t n; (n = read(*(int *)fd, room, sizeof(room))) > 0;)
		*bytes += (uint64_t)n;
	return bytes;
}

TEST(a_pipe_gets_all_that_is_counted)
{
	uint64_t failed, *bytes;
	pthread_t reader;
	int fds[2];

	assert(!pipe(fds));
	assert(!pthread_create(&reader, NULL, read_all, &fds[0]));
	assert(write_packets(fds[1], SOURCES, &failed) == PACKETS && !failed);
	close(fds[1]);
	assert(!pthread_join(reader, (void **)&bytes));
	assert(*bytes > PACKETS * 132);
	free(bytes);
}

TEST(a_reader_that_goes_away_ends_the_sink)
{
	uint64_t failed, written;
	int fds[2];

	signal(SIGPIPE, SIG_IGN);
	assert(!pipe(fds));
	close(fds[0]);
	written = write_packets(fds[1], 2, &failed);
	assert(!written && failed == PACKETS);
	close(fds[1]);
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		void (*run)(void);
	} tests[] = {
#define ONE(name) { #name, name }
		ONE(one_source_is_written_whole),
		ONE(several_sources_are_merged_in_the_order_of_their_times),
		ONE(a_full_file_ends_with_its_last_whole_block),
		ONE(a_pipe_gets_all_that_is_counted),
		ONE(a_reader_that_goes_away_ends_the_sink),
	};

	for (size_t i = 0; argc == 2 && i < sizeof(tests) / sizeof(*tests); i++)
		if (!strcmp(argv[1], tests[i].name)) {
			tests[i].run();
			return 0;
		}
	return 2;
}
