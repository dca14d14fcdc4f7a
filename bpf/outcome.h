/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What classify() says of a packet, and what it leaves for the entry to do.
 *
 * It returns  rule << 16 | target << 6 | otherwise << 3 | verdict.  Verdicts use the XDP numbers (DROP 1, PASS 2, TX 3,
 * REDIRECT 4), FORWARD, 5, and REJECT, 6; `otherwise` is the declared verdict of a REDIRECT that finds no socket and a FORWARD that
 * finds no device; `target` is the socket group, the device, or the answer of a REJECT.  All of it is constant per rule, so after inlining nothing
 * is unpacked at run time that does not have to be.
 */
#pragma once
#include "packet.h"
#include "load.h"

enum { FORWARD = 5, REJECT = 6 };

static __always_inline __u32 rule_of(__u32 outcome)
{
	return outcome >> 16;
}

static __always_inline __u32 target_of(__u32 outcome)
{
	return outcome >> 6 & 0x3ff;
}

static __always_inline __u32 otherwise_of(__u32 outcome)
{
	return outcome >> 3 & 7;
}

static __always_inline __u32 verdict_of(__u32 outcome)
{
	return outcome & 7;
}

/* What the steps of rules leave for the entry to do. */
struct steps {
	__u32 mark, marked;
	__u32 mirror; /* bytes to copy; 0: none */
	__u32 mirror_rule;
	__u32 shadow; /* the verdict of the shadow's rules */
};

__u32 classify(const struct packet *p, struct source *s, struct steps *a);

/* Generated, constants: may the rules give this verdict?  Does one set a mark, ask for a copy? */
__u32 verdicts(void);
__u32 marks(void);
__u32 mirrors(void);

/* Generated, a constant: the group of sockets of an inspector; 0 where no rule has the action Inspect. */
__u32 inspect_group(void);

/* Generated, a constant: the first of the counters of pairs of verdicts, 0 without a shadow. */
__u32 pairs(void);
#define MAY(verdict) (verdicts() & 1u << (verdict))

/* Make the packet the answer to itself: see reject.bpf.c. */
#ifdef XDP
int reject(struct xdp_md *ctx, __u32 len, __u64 places, __u32 present, __u32 code);
#else
int reject(void *ctx, __u32 len, __u64 places, __u32 present, __u32 code);
#endif

/* Copy the packet to user space as a->mirror says (mirror.bpf.c). */
void mirror(struct source *s, __u32 len, __u32 queue, const struct steps *a, __u32 outcome);
