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
_Static_assert(SAME(len) && SAME(mark) && SAME(priority) && SAME(queue_mapping) && SAME(vlan_present) && SAME(vlan_tci) && SAME(vlan_proto) &&
		       SAME(ifindex) && SAME(ingress_ifindex) && SAME(hash) && SAME(data) && SAME(data_end) && SAME(hwtstamp),
	       "shared with the kernel");

/* The tag behind the two MAC addresses. */
#define TAG_AT 12
#define TAG_SIZE 4

#ifdef DIRECT_ACCESS
/*
 * The packet is read in place, as at XDP.  The walk cannot read beyond the linear part; it notes that it missed a header.
 * The entry then makes the kernel pull more of the packet into the linear part, and walks again (tc.bpf.c).  If the walk
 * copied each header that is not linear, the verifier would follow both cases of every header, and it came to no end where
 * rules read many headers.
 */
struct source {
	struct skb *skb;
	__u16 tpid, tci;
	__u32 missed; /* what the verifier takes for any number, until the walk misses something */
	void *data, *end; /* the linear part */
};

static __always_inline int in_place(struct source *s, __u32 offset, __u32 size, const void **at)
{
	const void *from = s->data + offset;

	/* One register for check and loads: the verifier knows no bounds for a sum that LLVM computes again. */
	asm("" : "+r"(from));
	*at = from;
	return from + size <= s->end;
}

static __always_inline int take(struct source *s, __u32 offset, __u32 size, void *room, const void **at)
{
	(void)room;
	if (in_place(s, offset, size, at))
		return 1;
	s->missed |= 1;
	return 0;
}
#else
struct source {
	struct skb *skb;
	__u16 tpid, tci;
};

/* Copied out, header by header: socket filters may not read in place. */
static __always_inline int take(struct source *s, __u32 offset, __u32 size, void *room, const void **at)
{
	*at = room;
	return !bpf_skb_load_bytes(s->skb, offset, room, size);
}
#endif

static __always_inline struct source source_of(struct skb *skb)
{
	struct source s = { .skb = skb };

#ifdef DIRECT_ACCESS
	s.data = (void *)(long)skb->data;
	s.end = (void *)(long)skb->data_end;
	asm("" : "+r"(s.data), "+r"(s.end)); /* pointers, whatever LLVM takes them for: see xdp_source.h */
#endif
#ifdef DIRECT_ACCESS
	s.tpid = bpf_ntohs(skb->vlan_proto), s.tci = skb->vlan_tci; /* both 0 without a tag, from Linux 6.1 on; tcx is 6.6 */
#else
	if (skb->vlan_present)
		s.tpid = bpf_ntohs(skb->vlan_proto), s.tci = skb->vlan_tci;
#endif
	return s;
}

/* The same packet, read from the context again: the verifier knows nothing of its bounds. */
#define reload_source(s) source_of((s)->skb)
