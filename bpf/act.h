/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What every hook shares behind the walk: the generated classify(), the verdict it packs, and the counters.
 *
 * classify() returns  rule << 16 | otherwise << 8 | verdict.  Verdicts use the XDP numbers (DROP 1, PASS 2, TX 3,
 * REDIRECT 4); `otherwise` is the declared verdict of a REDIRECT that finds no socket.  All of it is constant per rule,
 * so after inlining nothing is unpacked at run time that does not have to be.
 */
#pragma once
#include "packet.h"
#include "load.h"
#include "table.h"

struct counter {
	__u64 packets;
	__u64 bytes;
	__u64 no_socket; /* REDIRECT verdicts that fell back to `otherwise` */
};

/* One entry per rule and one for the default, in rule order; max_entries is set before load. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct counter);
} counters SEC(".maps");

__u32 classify(const struct packet *p, struct source *s);

/* Generated, a constant: does any rule read what walk() finds? */
__u32 reads_headers(void);

/* Set before load: the program returns what classify() said and neither counts nor acts.  For BPF_PROG_TEST_RUN only. */
const volatile __u32 explain = 0;

static __always_inline struct counter *count(__u32 rule, __u32 bytes)
{
	struct counter *c = bpf_map_lookup_elem(&counters, &rule);

	if (c) {
		c->packets++;
		c->bytes += bytes;
	}
	return c;
}
