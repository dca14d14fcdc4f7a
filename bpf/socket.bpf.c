/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * AF_PACKET entry, a socket filter: the same walk and rules over a socket buffer.  A packet whose verdict is REDIRECT
 * is handed to the socket whole; all others are not.  The socket sees a copy: nothing here keeps a packet from the
 * stack.
 */
#include "act.h"

struct source {
	struct __sk_buff *skb;
};

static __always_inline int take(struct source *s, __u32 offset, __u32 size, void *room, const void **at)
{
	*at = room;
	return !bpf_skb_load_bytes(s->skb, offset, room, size);
}

SEC("socket")
int xdpkit(struct __sk_buff *skb)
{
	struct source s = { skb };
	struct packet p = { .rx_queue = skb->queue_mapping ? skb->queue_mapping - 1 : 0 };
	__u16 tpid = 0, tci = 0;
	__u32 outcome;

	if (skb->vlan_present) {
		tpid = bpf_ntohs(skb->vlan_proto);
		tci = skb->vlan_tci;
	}
	p.len = skb->len + (tpid ? 4 : 0);
	walk(&s, &p, tpid, tci);
	outcome = classify(&p);
	if (explain)
		return outcome;
	count(outcome >> 16, p.len);
	return (outcome & 0xff) == XDP_REDIRECT ? -1 : 0;
}

char _license[] SEC("license") = "Dual BSD/GPL";
