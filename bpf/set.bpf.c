/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * A set, as a template: the compiler takes a copy for each set of a pipeline and writes its name for SET.
 *
 * The map has one entry, the map of the members, so that user space can put a whole new one in its place at once.  User
 * space makes both (xdpkit/liveset.py) and the program re-uses them: the type of the inner map, a hash or a prefix trie,
 * and the size of its keys are those of the set.  A key of a trie starts with its length in bits.
 */
#include "load.h"

/* Same struct: xdpkit/liveset.py. */
struct member {
	__u64 expires_ns; /* CLOCK_MONOTONIC; 0: never */
	__u32 action;     /* which of a verdict map's actions */
	__u32 unused;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
} SET SEC(".maps");

static GENERATED_CALLS void *members(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&SET, &zero);
}

/* 1 + the member's action, 0 where there is none or, with `timeouts`, its time is over. */
GENERATED_CALLS __u32 SET_find(const void *key, __u32 timeouts)
{
	void *map = members();
	struct member *m = map ? bpf_map_lookup_elem(map, key) : 0;

	if (!m)
		return 0;
	if (timeouts) {
		__u64 expires = *(volatile __u64 *)&m->expires_ns;

		if (expires && expires <= now())
			return 0;
	}
	return 1 + m->action;
}

/* 1 if the key is a member now: one with a time-out gets it anew, one without stays. */
GENERATED_CALLS __u32 SET_add(const void *key, __u64 timeout_ns)
{
	struct member fresh = { .expires_ns = timeout_ns ? now() + timeout_ns : 0 };
	void *map = members();
	struct member *m = map ? bpf_map_lookup_elem(map, key) : 0;

	if (m) {
		if (*(volatile __u64 *)&m->expires_ns)
			*(volatile __u64 *)&m->expires_ns = fresh.expires_ns;
		return 1;
	}
	return map && !bpf_map_update_elem(map, key, &fresh, BPF_ANY);
}
