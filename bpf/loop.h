/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Loops of generated code (load.h).  The entry includes this file behind its definitions of struct source and of
 * SAVED_SOURCE: the type of a value from which a source can be made.  save_source() gives that value, restore_source() makes
 * the source.
 */
#pragma once
#include "act.h"

/*
 * What the generated code keeps from turn to turn.  It is not on the stack, because classify() may need most of the 512
 * bytes there.  Programs run with bottom halves off, so two never use it at the same time.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32[LOOP_WORDS]);
} loops SEC(".maps");

struct loop_state {
	SAVED_SOURCE source;
	__u32 *words, len;
};

static long take_turn(__u32 n, struct loop_state *l)
{
	struct source s = restore_source(l->source);

	(void)n;
	return turn(&s, l->len, l->words);
}

GENERATED_CALLS __u32 loop(struct source *s, const struct packet *p, __u32 start, __u32 turns)
{
	__u32 zero = 0, *words = bpf_map_lookup_elem(&loops, &zero);
	struct loop_state l = { .source = save_source(s), .words = words, .len = p->len };

	if (!words)
		return 0;
	__builtin_memset(words, 0, LOOP_WORDS * sizeof(*words));
	words[0] = start;
	return bpf_loop(turns, take_turn, &l, 0) < turns ? words[0] : 0;
}
