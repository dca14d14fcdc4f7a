/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * A set, as a template: the compiler takes a copy for each set of a pipeline and writes its name for SET.
 *
 * The map has one entry, the map of the members, so that user space can put a whole new one in its place at once.  User
 * space makes both (xdpkit/sets/live.py) and the program re-uses them: the type of the inner map, a hash or a prefix trie,
 * and the size of its keys are those of the set.  A key of a trie starts with its length in bits.
 */
#include "load.h"

/* Same struct: xdpkit/sets/live.py. */
struct member {
	__u64 expires_ns; /* CLOCK_MONOTONIC; 0: never */
	__u32 action;     /* which of a verdict map's actions */
	__u32 mark;       /* 1 + the bits of the key that count; 0: all, a packet added it */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
} SET SEC(".maps");

/* The inner map at this moment, or NULL.  It is fetched once for all live rules, so that a packet meets the same members in
 * all of them. */
GENERATED_CALLS void *SET_members(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&SET, &zero);
}

static GENERATED_CALLS int lives(const struct member *m)
{
	__u64 expires = *(const volatile __u64 *)&m->expires_ns;

	return !expires || expires > now();
}

/* Prefixes around the key whose time is over, and that nobody has swept yet, that a look-up goes past. */
#define MAX_OVER 8

/*
 * 1 + the action of the member that fits best, 0 where there is none.  `timeouts`: members may have one; `bits`: those of
 * the key, where the set is of prefixes, else 0.  The key is written.
 */
GENERATED_CALLS __u32 SET_find(void *map, __u32 *key, __u32 timeouts, __u32 bits)
{
	struct member *m = map ? bpf_map_lookup_elem(map, key) : 0;

	if (timeouts && bits)
		for (int i = 0; i < MAX_OVER && m && !lives(m); i++) {
			__u32 length = m->mark ? m->mark - 1 : bits;

			if (!length)
				return 0;
			*key = length - 1;
			m = bpf_map_lookup_elem(map, key);
		}
	if (!m || (timeouts && !lives(m)))
		return 0;
	return 1 + m->action;
}

/*
 * Add the key; returns 1 if it is a member afterwards.  If the key itself is a member, its time-out starts again, unless it
 * has none.  If the key lies in the prefix of a member, nothing is added.
 */
GENERATED_CALLS __u32 SET_add(void *map, const __u32 *key, __u64 timeout_ns, __u32 bits)
{
	struct member fresh = { .expires_ns = timeout_ns ? now() + timeout_ns : 0 };
	struct member *m = map ? bpf_map_lookup_elem(map, key) : 0;

	if (m && (!bits || !m->mark || m->mark - 1 == bits)) {
		if (*(volatile __u64 *)&m->expires_ns)
			*(volatile __u64 *)&m->expires_ns = fresh.expires_ns;
		return 1;
	}
	if (m && lives(m))
		return 1;
	return map && !bpf_map_update_elem(map, key, &fresh, BPF_ANY);
}
