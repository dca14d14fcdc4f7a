/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Decision trees as data: how a run of many plain rules is looked up (xdpkit/compiler/tree.py builds the entries).
 *
 * An entry looks at one word of the packet and asks if it lies in `lo`..`lo + last`.  If not, the way goes on at entry
 * `next + jump`; if so, at `next + 1 + k`, k the number of the piece of 2^shift values it lies in.  A final entry has the two
 * answers in `next`: inside in the low half, outside in the high one.
 *
 * Nothing branches on what a packet holds but the end of the loop: the verifier looks at a turn once, and a processor
 * has nothing to guess.  The asm keeps LLVM from making a branch of the sign, and the verifier from knowing the way.
 */
#pragma once
#include "load.h"

struct entry {
	__u32 lo;
	__u32 last;
	__u32 next;
	__u8 word; /* offset in bytes */
	__u8 shift;
	__u8 final;
	__u8 jump;
};

_Static_assert(sizeof(struct entry) == 16, "as tree.py writes it");

#define NO_RULE 0xffff

GENERATED_CALLS __u32 descend(const struct entry *tree, __u32 entries, __u32 depth, const __u32 *words,
			       __u32 mask, __u32 zero)
{
	__u32 at = zero;

#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < depth; i++) {
		const struct entry *e;
		__u64 outside, from;

		if (at >= entries)
			break;
		e = &tree[at];
		from = (__u32)(*(const __u32 *)((const void *)words + (e->word & mask)) - e->lo);
		outside = e->last - from;
		asm("" : "+r"(outside));
		outside = (__s64)outside >> 63;
		if (e->final)
			return (e->next >> (outside & 16) ^ zero) & 0xffff;
		at = e->next + 1 + (__u32)((from >> (e->shift & 63) | outside) + (e->jump & outside));
	}
	return NO_RULE;
}
