/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * AF_PACKET entry, a socket filter: the same walk and rules over a socket buffer.  A packet whose verdict is REDIRECT
 * is handed to the socket whole; all others are not.  The socket sees a copy: nothing here keeps a packet from the
 * stack.
 */
#include "skb.h"

SEC("socket")
int xdpkit(struct skb *skb)
{
	struct source s = source_of(skb);
	struct packet bare = { 0 }, *p = &bare;
	struct steps a = { 0 };
	__u32 outcome;

	if (reads_headers() && !(p = packet_room()))
		return 0;
	p->rx_queue = skb->queue_mapping ? skb->queue_mapping - 1 : 0;
	p->ifindex = skb->ifindex;
	p->len = wire_length(&s);
	find_metadata(&s, p);
	find_time(p);
	if (reads_headers())
		walk(&s, p, s.tpid, s.tci);
	outcome = classify(p, &s, &a);
	count_verdict(p, &a, outcome);
	if (explain)
		return outcome;
	if (mirrors() && a.mirror)
		mirror(&s, p->len, p->rx_queue, &a, outcome);
	return verdict_of(outcome) == XDP_REDIRECT ? -1 : 0;
}

char _license[] SEC("license") = "Dual BSD/GPL";
