/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What every hook shares behind the walk: the generated classify(), and the counters.  classify() counts the packet for the
 * rules that it passes, and the entry counts it for the rule that takes it.
 */
#pragma once
#include "outcome.h"
#include "table.h"
#include "flow.h"

struct counter {
	__u64 packets;
	__u64 bytes;
	__u64 no_socket; /* REDIRECT and FORWARD verdicts that fell back to `otherwise`, REJECT that did not answer */
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
struct test_input {
	__u64 now_ns;
	__u32 random, unused;
	__u64 devices; /* bit n: it is the device of number n that on_device() asks for */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct test_input);
} test_input SEC(".maps");

static __always_inline struct test_input *find_test_input(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&test_input, &zero);
}

static __always_inline __u64 test_clock(void)
{
	struct test_input *g = find_test_input();

	return g ? g->now_ns : 0;
}

GENERATED_CALLS __u64 now(void)
{
	return explain ? test_clock() : bpf_ktime_get_ns();
}

/* Set before load: seconds by which the kernel's TAI clock is ahead of UTC. */
const volatile __u32 tai_seconds = 0;
#define DAY 86400u
#define THURSDAY 4u /* the first of 1970; a week begins with Sunday */

/* The time of day and the day of the week, in UTC: of the clock that time and settimeofday() change (Linux 6.1). */
static __always_inline void find_time(struct packet *p)
{
	__u64 seconds;

	if (!(wanted_meta() & (WANTED_META_DAY | WANTED_META_SECOND)))
		return;
	seconds = explain ? test_clock() / 1000000000u : bpf_ktime_get_tai_ns() / 1000000000u - tai_seconds;
	p->meta_day = (seconds / DAY + THURSDAY) % 7;
	p->meta_second = seconds % DAY;
}

/*
 * The same to a few milliseconds.  The clock is read once in a tick of the kernel; in between the answer is `known`, which the
 * caller got at `*tick`.  The verifier turns bpf_jiffies64() into a load, so the test for a new tick is cheap.
 */
GENERATED_CALLS __u64 coarse_now(__u64 *tick, __u64 known)
{
	struct test_input *g;
	__u64 jiffies;

	if (!explain) {
		jiffies = bpf_jiffies64();
		if (*tick == jiffies)
			return known;
		*tick = jiffies;
		return bpf_ktime_get_coarse_ns();
	}
	g = find_test_input();
	return g ? g->now_ns : 0;
}

/* 32 random bits; in a test run the next number of the generator in xdpkit/meaning/state.py. */
GENERATED_CALLS __u32 random_bits(void)
{
	struct test_input *g;

	if (!explain)
		return bpf_get_prandom_u32();
	g = find_test_input();
	return g ? g->random = g->random * 1664525u + 1013904223u : 0;
}

/* The devices that conditions name, in the order of Pipeline.devices; 0: no packet is seen there.  Set before load. */
#define MAX_DEVICES 64
const volatile __u32 device_indexes[MAX_DEVICES] = { 0 };

/* The packet is judged on the device of that number; in a test run user space says it. */
GENERATED_CALLS __u32 on_device(const struct packet *p, __u32 number)
{
	__u32 wanted = device_indexes[number];
	struct test_input *g;

	if (!explain)
		return wanted && p->ifindex == wanted;
	g = find_test_input();
	return g ? g->devices >> number & 1 : 0;
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

/* Count the packet for the rule that takes it and, with a shadow, for the pair of verdicts. */
static __always_inline struct counter *count_verdict(const struct packet *p, const struct steps *a, __u32 outcome)
{
	if (pairs())
		count(pairs() + 8 * verdict_of(outcome) + a->shadow, p->len);
	return count(rule_of(outcome), p->len);
}

/* The packet that a rule rejects: 1 if it is the answer to itself now, 0 if it is only dropped, which is counted. */
#ifdef XDP
static __always_inline int answered(struct xdp_md *ctx, const struct packet *p, struct counter *c, __u32 outcome)
#else
static __always_inline int answered(void *ctx, const struct packet *p, struct counter *c, __u32 outcome)
#endif
{
	__u32 present = p->outer.present, proto = p->outer.ip6_proto;
	__u64 places = (__u64)p->outer.frag << 32 | p->outer.l4 << 16 | p->outer.l3; /* each at most MAX_AT */

	if (present & (HAS_IP | HAS_IP6) && reject(ctx, p->len, places, present, proto << 8 | target_of(outcome)))
		return 1;
	if (c)
		c->no_socket++;
	return 0;
}

/* classify() calls these: the packet passed a rule that goes on; a step of a rule could not be done. */
GENERATED_CALLS void count_passed(const struct packet *p, __u32 rule)
{
	count(rule, p->len);
}

GENERATED_CALLS void count_failed(__u32 rule)
{
	struct counter *c = bpf_map_lookup_elem(&counters, &rule);

	if (c)
		c->failed++;
}
