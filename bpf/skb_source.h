/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The packet behind a socket buffer: copied out.  skb->data is the Ethernet header; a VLAN tag that the kernel took out is
 * in `tpid` and `tci`, 0 and 0 where it took out none.
 */
#pragma once
#include "packet.h"

/*
 * The head of the kernel's struct __sk_buff.  The whole of it has pointers to structs, and LLVM writes the BTF of those in
 * the order of their addresses: the same rules would not always give the same object.
 */
struct skb {
	__u32 len, pkt_type, mark, queue_mapping, protocol, vlan_present, vlan_tci, vlan_proto;
};
_Static_assert(__builtin_offsetof(struct skb, len) == __builtin_offsetof(struct __sk_buff, len) &&
		       __builtin_offsetof(struct skb, queue_mapping) ==
			       __builtin_offsetof(struct __sk_buff, queue_mapping) &&
		       __builtin_offsetof(struct skb, vlan_present) ==
			       __builtin_offsetof(struct __sk_buff, vlan_present) &&
		       __builtin_offsetof(struct skb, vlan_tci) == __builtin_offsetof(struct __sk_buff, vlan_tci) &&
		       __builtin_offsetof(struct skb, vlan_proto) == __builtin_offsetof(struct __sk_buff, vlan_proto),
	       "shared with the kernel");

struct source {
	struct skb *skb;
	__u16 tpid, tci;
};

static __always_inline int take(struct source *s, __u32 offset, __u32 size, void *room, const void **at)
{
	*at = room;
	return !bpf_skb_load_bytes(s->skb, offset, room, size);
}
