/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Copies of packets for user space, through BPF ring buffers, one for each CPU (csrc/copies.c is the reader).  CPUs that
 * shared one would wait for its lock, and for the cache line that says where it ends.  RING() makes three maps: the ring
 * buffer of each CPU, which the reader makes and puts there; what the reader says; what each CPU counted.
 *
 * A record is struct copy and then `len` bytes of the packet as it is on the wire; what it is a copy of (the packet that
 * a REDIRECT rule took, one that passed) is `verdict`.  A record takes the room of its size class: the ring buffer
 * reserves constant sizes only (bpf_ringbuf_reserve_dynptr() takes any, but copying a packet into it takes a helper call
 * per power of two, and bpf_dynptr_copy() came with Linux 6.16).
 *
 * A record wakes the reader only if the reader has set `asleep`, which it does before it goes to sleep, as with AF_XDP's
 * need_wakeup.  The kernel's own rule (wake when the reader has caught up) interrupts once per packet for a reader
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
	__u32 mode;    /* READER_* */
	__u32 asleep;  /* the reader sleeps until a record wakes it */
	__u32 snaplen; /* bytes of a packet that the reader keeps */
	__u32 unused;
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

/* User space makes the map of ring buffers, which has an entry for each possible CPU, before load. */
#define RING(name)                                                                                                     \
	struct {                                                                                                       \
		__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);                                                              \
		__uint(max_entries, 1);                                                                                \
		__uint(key_size, sizeof(__u32));                                                                       \
		__uint(value_size, sizeof(__u32));                                                                     \
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
		__type(value, struct copy_counts);                                                                     \
	} name##_count SEC(".maps");

static __always_inline int copy_bytes(struct source *s, __u8 *to, __u32 len);

/* The reader if there is one. */
static __always_inline struct reader *find_reader(void *readers)
{
	__u32 zero = 0;
	struct reader *r = bpf_map_lookup_elem(readers, &zero);

	return r && *(volatile __u32 *)&r->mode ? r : 0;
}

/* Bytes that are copied at least, where the packet has them: with these a VLAN tag can be put back. */
#define LEAST_BYTES 18

/* Write a record of at most `room` packet bytes, `room` being a constant; 1 if done. */
static __always_inline int copy_into(struct source *s, void *ring, struct reader *r, const struct copy *head,
				     const __u32 room)
{
	struct copy *c = bpf_ringbuf_reserve(ring, sizeof(*c) + room, 0);
	__u32 len = head->len, get;
	__u64 fence = 0;

	if (!c)
		return 0;
	if (len > room)
		len = room;
	get = len >= LEAST_BYTES ? len : head->wire_len < LEAST_BYTES ? head->wire_len : LEAST_BYTES;
	asm volatile("" : "+r"(get)); /* what is checked is what is used */
	*c = *head;
	c->len = len;
	if (get < 14 || get > room || copy_bytes(s, c->data, get)) {
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
 * Hand a copy of the packet to `r`, as long as the reader keeps it: 1, or 0 if it did not fit the CPU's ring buffer and is
 * lost.  A packet beyond 64 KiB (GSO) is cut.
 */
static __always_inline int copy_packet(struct source *s, void *rings, void *counts, struct reader *r, struct copy *head)
{
	__u32 zero = 0, cpu = bpf_get_smp_processor_id(), snaplen = *(volatile __u32 *)&r->snaplen;
	struct copy_counts *n = bpf_map_lookup_elem(counts, &zero);
	void *ring = bpf_map_lookup_elem(rings, &cpu);
	int done;

	if (head->len > snaplen)
		head->len = snaplen;
	/* Classes: minimal frames, DNS and the like, the usual MTU with tags, jumbo frames, GRO and GSO. */
	if (!ring)
		done = 0;
	else if (head->len <= 96)
		done = copy_into(s, ring, r, head, 96);
	else if (head->len <= 224)
		done = copy_into(s, ring, r, head, 224);
	else if (head->len <= 608)
		done = copy_into(s, ring, r, head, 608);
	else if (head->len <= 1528)
		done = copy_into(s, ring, r, head, 1528);
	else if (head->len <= 9024)
		done = copy_into(s, ring, r, head, 9024);
	else
		done = copy_into(s, ring, r, head, 65536);
	if (n)
		done ? n->taken++ : n->lost++;
	return done;
}
