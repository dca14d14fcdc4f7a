/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The walk over all headers of a packet (headers.h), and into its tunnel where a rule needs that (tunnel.bpf.c). */
#pragma once
#include "headers.h"

/* Fill `p` from the packet; for `tpid` and `tci` see walk_link(). */
static __always_inline void walk(struct source *s, struct packet *p, __u16 tpid, __u16 tci)
{
	__u32 wants = wanted(), at = 0, type;
	int proto;

	if (ROOMS && wants & HIDE_HEADERS) { /* the verifier will see them read where no header was copied */
		__builtin_memset(&p->room, 0, sizeof(p->room));
		__builtin_memset(&p->inner_room, 0, sizeof(p->inner_room));
	}
	type = walk_link(s, &p->outer, &p->room, wants, &at, tpid, tci);
	proto = walk_network(s, &p->outer, &p->room, wants, p->rx_queue, &at, type);
	if (wants & HIDE_HEADERS)
		hide_headers(&p->outer, ZERO(p->rx_queue));
	walk_tunnel(s, p, at, proto, type);
	if (wants & HIDE_HEADERS) {
		__u32 zero = ZERO(p->rx_queue);

		p->outer.present ^= zero;
		p->outer.tunnel = hide_offset(p->outer.tunnel, zero);
		hide_headers(&p->inner, zero);
	}
}
