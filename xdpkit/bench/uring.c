/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * io_uring at its best for receiving: one multishot recv that goes on by itself, and a ring of provided buffers
 * (liburing 2.3, Linux 6.0).  Compiled only where liburing-dev is.
 */
#include <endian.h>
#include <liburing.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { BUFFERS = 2048, SLOT = 9216, GROUP = 1 };

struct delays {
	uint64_t *ns;
	uint32_t room, count, offset;
};

static void again(struct io_uring *ring, int fd)
{
	struct io_uring_sqe *e = io_uring_get_sqe(ring);

	io_uring_prep_recv_multishot(e, fd, NULL, 0, 0);
	e->flags |= IOSQE_BUFFER_SELECT;
	e->buf_group = GROUP;
}

/* Packets until `*stop` is set and nothing is left, or -errno. */
int64_t uring_run(int fd, const int *stop, struct delays *delays)
{
	struct io_uring_params params = { .flags = IORING_SETUP_CQSIZE, .cq_entries = 2 * BUFFERS };
	struct io_uring_buf_reg reg = { .ring_entries = BUFFERS, .bgid = GROUP };
	struct io_uring_buf_ring *buffers = NULL;
	struct io_uring ring;
	uint8_t *memory = NULL;
	int64_t packets = 0;
	int error = io_uring_queue_init_params(64, &ring, &params), stopping = 0;

	if (error < 0)
		return error;
	error = -12;
	if (posix_memalign((void **)&buffers, 4096, BUFFERS * sizeof(struct io_uring_buf)) ||
	    !(memory = malloc((size_t)BUFFERS * SLOT)))
		goto out;
	reg.ring_addr = (uintptr_t)buffers;
	if ((error = io_uring_register_buf_ring(&ring, &reg, 0)) < 0)
		goto out;
	io_uring_buf_ring_init(buffers);
	for (int i = 0; i < BUFFERS; i++)
		io_uring_buf_ring_add(buffers, memory + (size_t)i * SLOT, SLOT, (unsigned short)i,
				      io_uring_buf_ring_mask(BUFFERS), i);
	io_uring_buf_ring_advance(buffers, BUFFERS);
	again(&ring, fd);
	for (;;) {
		struct __kernel_timespec pause = { .tv_nsec = 10000000 }; /* and look at `stop` then */
		struct io_uring_cqe *cqe;
		unsigned head, seen = 0, returned = 0, ended = 0;
		struct timespec t;
		uint64_t now = 0;

		io_uring_submit_and_wait_timeout(&ring, &cqe, 1, &pause, NULL);
		if (delays->room) {
			clock_gettime(CLOCK_MONOTONIC, &t);
			now = (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
		}
		io_uring_for_each_cqe(&ring, head, cqe)
		{
			seen++;
			if (cqe->res > 0 && cqe->flags & IORING_CQE_F_BUFFER) {
				unsigned short id = (unsigned short)(cqe->flags >> IORING_CQE_BUFFER_SHIFT);
				uint8_t *data = memory + (size_t)id * SLOT;
				uint64_t sent;

				if (delays->count < delays->room) {
					memcpy(&sent, data + delays->offset, sizeof(sent));
					sent = be64toh(sent); /* may have come since we looked at the clock */
					delays->ns[delays->count++] = sent < now ? now - sent : 0;
				}
				io_uring_buf_ring_add(buffers, data, SLOT, id, io_uring_buf_ring_mask(BUFFERS),
						      (int)returned++);
				packets++;
			} else if (cqe->res < 0 && cqe->res != -ENOBUFS) {
				error = cqe->res;
				goto out;
			}
			if (!(cqe->flags & IORING_CQE_F_MORE))
				ended = 1;
		}
		io_uring_buf_ring_advance(buffers, (int)returned);
		io_uring_cq_advance(&ring, seen);
		if (ended)
			again(&ring, fd);
		if (!seen && stopping)
			break;
		stopping = __atomic_load_n(stop, __ATOMIC_ACQUIRE);
	}
	error = 0;
out:
	io_uring_queue_exit(&ring);
	free(buffers);
	free(memory);
	return error ? error : packets;
}
