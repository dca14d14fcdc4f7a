/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The shadow: rules that are evaluated and counted in front of the rules that act, and that act on nothing.  The entry
 * includes this file behind its definition of struct source.
 *
 * Both sections are in one program.  The verifier follows each path through the second section once for every different
 * state in which the first one may end.  So end_shadow() makes all those states equal: the packet's bounds are read from
 * the context again, so that nothing is known of them; the shadow's verdict becomes an unknown number; and what the walk
 * found is read from a map again, where a program with a shadow keeps it.  The verifier's steps for the program are then
 * the sum of those for its sections, and not their product.
 */
#pragma once
#include "act.h"

/* classify() calls it between the sections. */
GENERATED_CALLS void end_shadow(struct source *s, const struct packet *p, struct steps *a)
{
	asm volatile("" ::: "memory");
	*s = reload_source(s);
	a->shadow = (a->shadow ^ ZERO(p->rx_queue)) & 7;
}
