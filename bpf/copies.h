/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Copies of packets for user space, through a BPF ring buffer for all CPUs (csrc/copies.c is the reader).  A ring is three
 * maps, made by RING(): the ring buffer itself, what its reader says, and what was counted.
 *
 * A record is struct copy and then `len` bytes of the packet as it is on the wire; what it is a copy of (the packet that
 * a REDIRECT rule took, one that passed) is `verdict`.  A record takes the room of its size class: the ring buffer
 * reserves constant sizes only (bpf_ringbuf_reserve_dynptr() takes any, but copying a packet into it takes a helper call
 * per power of two, and bpf_dynptr_copy() came with Linux 6.16).
 *
 * Wake-ups are asked for, like AF_XDP's need_wakeup: the reader sets `asleep` before it goes to sleep, and only then a
 * record wakes it.  The kernel's own rule (wake when the reader has caught up) interrupts once per packet for a reader
 * that keeps up.
 *
 * The entry defines struct source and copy_bytes(): the first `len` bytes of the packet (14 at least) to `to`, 0 if done.
 */
#pragma once
#include "outcome.h"

/* Same struct: struct xk_copy in csrc/xdpkit.h. */
struct copy {
	__u64 time_ns;  /* CLOCK_MONOTONIC, when the program ran */
	__u32 rule;     /* index of the rule that took the packet */
	__u32 len;      /* bytes that follow */
	__u32 wire_len; /* bytes that the packet has */
	__u16 queue;    /* RX queue */
	__u8 verdict;   /* enum xdp_action; 0: not known yet */
	__u8 unused;
	__u32 mark;     /* that rules gave it */
	__u32 reserved;
	__u8 data[];
};

/* What user space says, in memory shared with it; struct xk_reader in csrc/xdpkit.h. */
struct reader {
	__u32 mode;   /* READER_* */
	__u32 asleep; /* the reader sleeps until a record wakes it */
};
enum {
	READER_NONE,  /* nobody drains the copies */
	READER_WAITS, /* a record wakes the reader */
	READER_NAPS,  /* the reader looks again by itself, within 0.1 s at most: a wake-up may be missed */
};

struct copy_counts {
	__u64 taken; /* records written */
	__u64 lost;  /* no room in the ring buffer, or the packet could not be read */
};

/* max_entries (bytes, a power of two of whole pages) is set before load. */
#define RING(name)                                                                                                     \
	struct {                                                                                                       \
		__uint(type, BPF_MAP_TYPE_RINGBUF);                                                                    \
		__uint(max_entries, 65536);                                                                            \
	} name SEC(".maps");                                                                                           \
	struct {                                                                                                       \
		__uint(type, BPF_MAP_TYPE_ARRAY);                                                                      \
		__uint(map_flags, BPF_F_MMAPABLE);                                                                     \
		__uint(max_entries, 1);                                                                                \
		__type(key, __u32);                                                                                    \
		__type(value, struct reader);                                                                          \
	} name##_reader SEC(".maps");                                                                                  \
	struct {                                                                                                       \
		__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);                                                               \
		__uint(max_entries, 1);                                                                                \
		__type(key, __u32);                                                                                    \
		__type(value, struct copy_counts);                                                                          \
	} name##_count SEC(".maps");

static __always_inline int copy_bytes(struct source *s, __u8 *to, __u32 len);

/* The reader if there is one. */
static __always_inline struct reader *find_reader(void *readers)
{
	__u32 zero = 0;
	struct reader *r = bpf_map_lookup_elem(readers, &zero);

	return r && *(volatile __u32 *)&r->mode ? r : 0;
}

/* Write a record of at most `room` packet bytes, `room` being a constant; 1 if done. */
static __always_inline int copy_into(struct source *s, void *ring, struct reader *r, const struct copy *head,
				     const __u32 room)
{
	struct copy *c = bpf_ringbuf_reserve(ring, sizeof(*c) + room, 0);
	__u32 len = head->len;
	__u64 fence = 0;

	if (!c)
		return 0;
	asm volatile("" : "+r"(len)); /* what is checked is what is used */
	if (len > room)
		len = room;
	*c = *head;
	c->len = len;
	if (len < 14 || copy_bytes(s, c->data, len)) {
		bpf_ringbuf_discard(c, BPF_RB_NO_WAKEUP);
		return 0;
	}
	/*
	 * Full barrier (every atomic operation with a result is one) between the producer position, which reserve()
	 * moved, and `asleep`.  It pairs with the one in ask_wakeup() of csrc/copies.c between `asleep` and poll()'s
	 * look at the position: one of the two sees the other.
	 */
	if (*(volatile __u32 *)&r->mode != READER_NAPS)
		__sync_fetch_and_add(&fence, 1);
	if (*(volatile __u32 *)&r->asleep) {
		*(volatile __u32 *)&r->asleep = 0;
		bpf_ringbuf_submit(c, BPF_RB_FORCE_WAKEUP);
	} else {
		bpf_ringbuf_submit(c, BPF_RB_NO_WAKEUP);
	}
	return 1;
}

/*
 * Hand a copy of the packet to `r`: 1, or 0 if it did not fit the ring buffer and is lost.  A packet beyond 64 KiB (GSO)
 * is cut.
 */
static __always_inline int copy_packet(struct source *s, void *ring, void *counts, struct reader *r,
				       const struct copy *head)
{
	__u32 zero = 0, len = head->len;
	struct copy_counts *n = bpf_map_lookup_elem(counts, &zero);
	int done;

	/* Classes: minimal frames, DNS and the like, the usual MTU with tags, jumbo frames, GRO and GSO. */
	if (len <= 96)
		done = copy_into(s, ring, r, head, 96);
	else if (len <= 224)
		done = copy_into(s, ring, r, head, 224);
	else if (len <= 608)
		done = copy_into(s, ring, r, head, 608);
	else if (len <= 1528)
		done = copy_into(s, ring, r, head, 1528);
	else if (len <= 9024)
		done = copy_into(s, ring, r, head, 9024);
	else
		done = copy_into(s, ring, r, head, 65536);
	if (n)
		done ? n->taken++ : n->lost++;
	return done;
}
