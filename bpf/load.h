/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What generated code calls besides reading `struct packet`: bytes of the packet at any offset, and loops.
 *
 * loadN() returns the big-endian number of N bits at `offset`, or -1 where the packet ends before the number does.  fixedN()
 * is the same for a constant offset.  checkedN() is for a constant offset too, where an earlier fixedN() has already found
 * bytes at or behind the number.  Offset 0 is the first byte on the wire: a VLAN tag that the kernel took out is back in its
 * place.  The entry defines all of them.
 *
 * These functions are extern for clang to keep them; the linker makes them internal, LLVM inlines them and drops those
 * that no rule calls.  They carry no debug information, so that what is inlined keeps the line of the rule.
 */
#pragma once
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define GENERATED_CALLS __attribute__((always_inline, nodebug))

struct source;
struct packet;

/* Called by generated code: see act.h. */
__u64 now(void);
__u64 coarse_now(__u64 *tick, __u64 known);
__u32 random_bits(void);
__u32 on_device(const struct packet *p, __u32 number);
__u32 inspect_room(__u32 queue);
void count_passed(const struct packet *p, __u32 rule);
void count_failed(__u32 rule);

__s64 load8(struct source *s, __u64 offset);
__s64 load16(struct source *s, __u64 offset);
__s64 load32(struct source *s, __u64 offset);
__s64 fixed8(struct source *s, __u64 offset);
__s64 fixed16(struct source *s, __u64 offset);
__s64 fixed32(struct source *s, __u64 offset);
__s64 checked8(struct source *s, __u64 offset);
__s64 checked16(struct source *s, __u64 offset);
__s64 checked32(struct source *s, __u64 offset);

/*
 * A loop runs as bpf_loop() (Linux 5.17): the verifier checks its body once, however many turns it takes.  `words` is what
 * the generated code keeps from turn to turn; words[0] says where a turn starts and, at the end, holds the result.
 */
#define LOOP_WORDS 19

/* Generated: one turn; 1 to stop. */
__u32 turn(struct source *s, __u32 len, __u32 *words);

/* Run turn() at most `turns` times, from `start`; what it left in words[0], 0 where the turns ran out. */
__u32 loop(struct source *s, const struct packet *p, __u32 start, __u32 turns);

/*
 * Generated rules as data (table.h): the number, in its run, of the first rule that takes the packet; NO_RULE for none.
 * The tree has `entries` entries, its root the first, and is at most `depth` entries deep; `mask` is the offset of the
 * last of `words`, whose number is a power of two.
 * `zero` is 0, which the verifier must not know: it would follow each way from the root by itself.
 */
struct entry;
__u32 descend(const struct entry *tree, __u32 entries, __u32 depth, const __u32 *words, __u32 mask,
	       __u32 zero);
