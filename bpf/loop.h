/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Loops of generated code (load.h).  Included by the entry behind its definition of struct source, of KEPT, the type of
 * what a source can be made of again, and of keep() and kept(), which take a source apart and make it.
 */
#pragma once
#include "act.h"

/*
 * What the generated code keeps from turn to turn.  Not on the stack: of its 512 bytes classify() may need most.  Programs
 * run with bottom halves off, so none meets another here.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32[LOOP_WORDS]);
} loops SEC(".maps");

struct looping {
	KEPT source;
	__u32 *words, len;
};

static long take_turn(__u32 n, struct looping *l)
{
	struct source s = kept(l->source);

	(void)n;
	return turn(&s, l->len, l->words);
}

GENERATED_CALLS __u32 loop(struct source *s, const struct packet *p, __u32 start, __u32 turns)
{
	__u32 zero = 0, *words = bpf_map_lookup_elem(&loops, &zero);
	struct looping l = { .source = keep(s), .words = words, .len = p->len };

	if (!words)
		return 0;
	__builtin_memset(words, 0, LOOP_WORDS * sizeof(*words));
	words[0] = start;
	return bpf_loop(turns, take_turn, &l, 0) < turns ? words[0] : 0;
}
