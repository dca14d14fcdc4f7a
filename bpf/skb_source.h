/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The packet behind a socket buffer.  skb->data is the Ethernet header; a VLAN tag that the kernel took out is
 * in `tpid` and `tci`, 0 and 0 where it took out none.
 */
#pragma once
#include "packet.h"

/*
 * The head of the kernel's struct __sk_buff.  The whole of it has pointers to structs, and LLVM writes the BTF of those in
 * the order of their addresses: the same rules would not always give the same object.
 */
struct skb {
	__u32 len, pkt_type, mark, queue_mapping, protocol, vlan_present, vlan_tci, vlan_proto, priority, ingress_ifindex,
		ifindex, tc_index, cb[5], hash, tc_classid, data, data_end, others[25];
	__u64 hwtstamp; /* Linux 5.16 */
};
#define SAME(member) (__builtin_offsetof(struct skb, member) == __builtin_offsetof(struct __sk_buff, member))
_Static_assert(SAME(len) && SAME(queue_mapping) && SAME(vlan_present) && SAME(vlan_tci) && SAME(vlan_proto) &&
		       SAME(ifindex) && SAME(hash) && SAME(data) && SAME(data_end) && SAME(hwtstamp),
	       "shared with the kernel");

/* The tag behind the two MAC addresses. */
#define TAG_AT 12
#define TAG_SIZE 4

struct source {
	struct skb *skb;
	__u16 tpid, tci;
#ifdef DIRECT_ACCESS
	void *data, *end; /* the linear part */
#endif
};

/*
 * Copied out, header by header.  TC could read in place (42 ns a packet instead of 99, Linux 6.18), but the verifier then
 * follows both ways for every header and comes to no end where rules read many.
 */
static __always_inline int take(struct source *s, __u32 offset, __u32 size, void *room, const void **at)
{
	*at = room;
	return !bpf_skb_load_bytes(s->skb, offset, room, size);
}
