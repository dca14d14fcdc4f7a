/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What every hook shares behind the walk: the generated classify(), and the counters.  What a packet meets on its way
 * through the rules is counted on the way; the rule that takes it is counted by the entry.
 */
#pragma once
#include "outcome.h"
#include "table.h"

struct counter {
	__u64 packets;
	__u64 bytes;
	__u64 no_socket; /* REDIRECT and FORWARD verdicts that fell back to `otherwise` */
	__u64 failed;    /* steps that could not be done: the set, or the ring to user space, was full */
};

/* One entry per rule and one for the default, in rule order; max_entries is set before load. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct counter);
} counters SEC(".maps");

/* Generated, a constant: does any rule read what walk() finds? */
__u32 reads_headers(void);

/* Set before load: the program returns what classify() said and does not act.  For BPF_PROG_TEST_RUN only. */
const volatile __u32 explain = 0;

/* The clock and the randomness of a program that explains; user space writes them in front of each test run. */
struct given {
	__u64 now_ns;
	__u32 random, unused;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct given);
} given SEC(".maps");

static __always_inline struct given *find_given(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&given, &zero);
}

GENERATED_CALLS __u64 now(void)
{
	struct given *g;

	if (!explain)
		return bpf_ktime_get_ns();
	g = find_given();
	return g ? g->now_ns : 0;
}

/* 32 random bits; given ones go on as xdpkit/meaning/state.py says. */
GENERATED_CALLS __u32 draw(void)
{
	struct given *g;

	if (!explain)
		return bpf_get_prandom_u32();
	g = find_given();
	return g ? g->random = g->random * 1664525u + 1013904223u : 0;
}

static __always_inline struct counter *count(__u32 rule, __u32 bytes)
{
	struct counter *c = bpf_map_lookup_elem(&counters, &rule);

	if (c) {
		c->packets++;
		c->bytes += bytes;
	}
	return c;
}

/* Count the packet, by the rule that takes it and by what the rules beside would have made of it. */
static __always_inline struct counter *take_down(const struct packet *p, const struct steps *a, __u32 outcome)
{
	if (pairs())
		count(pairs() + 8 * verdict_of(outcome) + a->shadow, p->len);
	return count(rule_of(outcome), p->len);
}

/* Called by classify(): a rule that goes on was met; a step of a rule could not be done. */
GENERATED_CALLS void passed(const struct packet *p, __u32 rule)
{
	count(rule, p->len);
}

GENERATED_CALLS void failed(__u32 rule)
{
	struct counter *c = bpf_map_lookup_elem(&counters, &rule);

	if (c)
		c->failed++;
}
