/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Loops of generated code (load.h).  Included by the entry behind its definition of struct source. */
#pragma once
#include "act.h"

struct looping {
	struct source source;
	__u32 len;
	__u32 words[LOOP_WORDS];
};

static long take_turn(__u32 n, struct looping *l)
{
	(void)n;
	return turn(&l->source, l->len, l->words);
}

GENERATED_CALLS __u32 loop(struct source *s, const struct packet *p, __u32 start, __u32 turns)
{
	struct looping l = { .source = *s, .len = p->len, .words = { start } };

	return bpf_loop(turns, take_turn, &l, 0) < turns ? l.words[0] : 0;
}
