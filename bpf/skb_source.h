/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The packet behind a socket buffer: copied out.  skb->data is the Ethernet header; a VLAN tag that the kernel took out is
 * in `tpid` and `tci`, 0 and 0 where it took out none.
 */
#pragma once
#include "packet.h"

struct source {
	struct __sk_buff *skb;
	__u16 tpid, tci;
};

static __always_inline int take(struct source *s, __u32 offset, __u32 size, void *room, const void **at)
{
	*at = room;
	return !bpf_skb_load_bytes(s->skb, offset, room, size);
}
