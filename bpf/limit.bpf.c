/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * A limit, as a template: the compiler takes a copy for each limit of a pipeline and writes its name for LIMIT.
 *
 * A bucket is the time when it will be full again, in 1/64 ns (xdpkit/language/limits.py says how and why).  Without a key there
 * is one, in an array; with one they are in a hash that lets the least recently used go.  Type and sizes are set before
 * load.
 *
 * The bucket of a quota is the bytes that have come, that of a number generator the packets (xdpkit/language/counted.py).
 */
#include "load.h"

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u64));
} LIMIT SEC(".maps");

struct payment {
	__u64 *full, at, cost, tolerance;
	__u32 paid;
};

/* Try once; 1 to stop.  It fails only where another CPU's packet took from the same bucket meanwhile. */
static long try_to_pay(__u32 turn, struct payment *p)
{
	__u64 seen = *(volatile __u64 *)p->full, full = (seen > p->at ? seen : p->at) + p->cost;

	(void)turn;
	if (full - p->at > p->tolerance)
		return 1;
	p->paid = __sync_val_compare_and_swap(p->full, seen, full) == seen;
	return p->paid;
}

/* A loop that the verifier looks at once (Linux 5.17). */
#define TRIES 64

/* The bucket of `key`, made where there is none yet. */
static __always_inline __u64 *LIMIT_bucket(const void *key)
{
	__u64 none = 0, *bucket = bpf_map_lookup_elem(&LIMIT, key);

	if (bucket)
		return bucket;
	bpf_map_update_elem(&LIMIT, key, &none, BPF_NOEXIST); /* another CPU may have been first */
	return bpf_map_lookup_elem(&LIMIT, key);
}

/* For a quota, and for packets that are numbered: the number in the bucket before `more` is added to it. */
GENERATED_CALLS __u64 LIMIT_add(const void *key, __u64 more)
{
	__u64 *bucket = LIMIT_bucket(key);

	return bucket ? __sync_fetch_and_add(bucket, more) : 0;
}

/* 1 where the packet may pass, and has paid its cost; else 0. */
GENERATED_CALLS __u32 LIMIT_take(const void *key, __u64 cost, __u64 tolerance)
{
	struct payment p = { .at = now() << 6, .cost = cost, .tolerance = tolerance };

	p.full = LIMIT_bucket(key);
	if (!p.full)
		return 0;
	if (!try_to_pay(0, &p))
		bpf_loop(TRIES, try_to_pay, &p, 0);
	return p.paid;
}
