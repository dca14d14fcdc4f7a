/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Decision trees as data: how a run of many plain rules is looked up (xdpkit/compiler/tree.py builds the entries).
 *
 * An entry tests whether one word of the packet lies in `lo`..`lo + last`.  If not, the search goes on at entry `next + jump`.
 * If so, it goes on at `next + 1 + k`, where k is the number of the piece of 2^shift values that holds the word.  A final
 * entry has the two results in `next`: that for a word inside in the low half, that for a word outside in the high half.
 *
 * Only the end of the loop is a branch on the contents of the packet.  So the verifier checks a turn once, and the processor
 * has no other branch to predict.  The asm prevents that LLVM makes a branch of the sign, and that the verifier knows it.
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

		/* LLVM must compare the number that it uses, not something that is equal: see a tree of one entry */
		asm("" : "+r"(at));
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
