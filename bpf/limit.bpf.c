/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * A limit, as a template: the compiler takes a copy for each limit of a pipeline and writes its name for LIMIT.
 *
 * A bucket is the time when it will be full again, in 1/64 ns (xdpkit/limits.py says how and why).  Without a key there
 * is one, in an array; with one they are in a hash that lets the least recently used go.  Type and sizes are set before
 * load.
 */
#include "load.h"

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u64));
} LIMIT SEC(".maps");

/* Tries of the compare and swap: one fails only where another CPU's packet took from the same bucket meanwhile. */
#define TRIES 32

/* 1 where the packet may pass, and has paid its cost; else 0. */
GENERATED_CALLS __u32 LIMIT_take(const void *key, __u64 cost, __u64 tolerance)
{
	__u64 at = now() << 6, none = 0, *full = bpf_map_lookup_elem(&LIMIT, key);

	if (!full) {
		bpf_map_update_elem(&LIMIT, key, &none, BPF_NOEXIST); /* another CPU may have been first */
		full = bpf_map_lookup_elem(&LIMIT, key);
		if (!full)
			return 0;
	}
	for (int i = 0; i < TRIES; i++) {
		__u64 seen = *(volatile __u64 *)full, paid = (seen > at ? seen : at) + cost;

		if (paid - at > tolerance)
			return 0;
		if (__sync_val_compare_and_swap(full, seen, paid) == seen)
			return 1;
	}
	return 0;
}
