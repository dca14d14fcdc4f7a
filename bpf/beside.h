/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Rules that are tried beside those that act.  Included by the entry behind its definition of struct source.
 *
 * Both are in one program, and the verifier would follow each way through the second section of it once for every way
 * through the first.  So what goes from one into the other is made such that it is the same whatever way led there: bounds
 * of the packet that nothing was checked against, a verdict that may be any, and what the walk found, which is in a map
 * wherever rules are tried, read once more.  Then the steps of the verifier are the sum of those for the sections.
 */
#pragma once
#include "act.h"

/* Called by classify() between the sections. */
GENERATED_CALLS void begin_again(struct source *s, const struct packet *p, struct steps *a)
{
	asm volatile("" ::: "memory");
	*s = renewed(s);
	a->shadow = (a->shadow ^ ZERO(p->rx_queue)) & 7;
}
