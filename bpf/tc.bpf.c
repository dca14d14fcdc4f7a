/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * TC entry (tcx), ingress and egress: the same walk and rules over a socket buffer, and all verdicts.
 *
 * PASS is TCX_NEXT, not TCX_PASS: as at XDP it says "not stopped by us".  TCX_PASS would end the chain and keep packets
 * from the programs and filters behind this one.  DROP at egress tells the sender (ENOBUFS), as a full queue would.
 *
 * REDIRECT hands the packet to user space as a copy and consumes it: a redirect to no device, so that a sender has no
 * reason to send it again.  With no reader it falls back as declared, and when the ring buffer is full the packet is lost,
 * as at XDP when the RX ring is.
 */
#define DIRECT_ACCESS
#include "skb.h"
#include "skb_copy.h"

#define TCX_NEXT -1
#define TCX_DROP 2

RING(copies)

static __always_inline int redirect(struct source *s, const struct packet *p, struct counter *c, __u32 outcome,
				    __u32 mark)
{
	struct reader *r = find_reader(&copies_reader);
	struct copy head;

	if (!r) {
		if (c)
			c->no_socket++;
		return otherwise_of(outcome) == XDP_DROP ? TCX_DROP : TCX_NEXT;
	}
	head = (struct copy){ .time_ns = bpf_ktime_get_ns(), .rule = rule_of(outcome), .len = p->len, .wire_len = p->len,
			      .queue = p->rx_queue, .verdict = XDP_REDIRECT, .mark = mark };
	return copy_packet(s, &copies, &copies_count, r, &head) ? bpf_redirect(0, 0) : TCX_DROP;
}

/* TX: back out of the device of arrival, with the Ethernet addresses exchanged so that the sender takes it. */
static __always_inline int transmit(struct skb *skb)
{
	__u16 m[6];

	if (bpf_skb_load_bytes(skb, 0, m, sizeof(m)))
		return TCX_DROP;
	for (int i = 0; i < 3; i++) {
		__u16 a = m[i];

		m[i] = m[i + 3], m[i + 3] = a;
	}
	if (bpf_skb_store_bytes((void *)skb, 0, m, sizeof(m), 0))
		return TCX_DROP;
	return bpf_redirect(skb->ifindex, 0);
}

/* Devices that rules FORWARD to, by index. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} devices SEC(".maps");

static __always_inline int forward(struct counter *c, __u32 outcome)
{
	__u32 target = target_of(outcome), *ifindex = bpf_map_lookup_elem(&devices, &target);

	if (ifindex && *ifindex)
		return bpf_redirect(*ifindex, 0);
	if (c)
		c->no_socket++;
	return otherwise_of(outcome) == XDP_DROP ? TCX_DROP : TCX_NEXT;
}

SEC("tc")
int xdpkit(struct skb *skb)
{
	struct source s = source_of(skb);
	/* at egress: of a packet that is being forwarded, the queue on which it came */
	struct packet bare = { 0 }, *p = &bare;
	struct steps a = { 0 };
	struct counter *c;
	__u32 outcome;

	if (reads_headers() && !(p = packet_room()))
		return TCX_NEXT;
	p->rx_queue = skb->queue_mapping ? skb->queue_mapping - 1 : 0;
	p->len = wire_length(&s);
	find_metadata(&s, p);
	if (reads_headers())
		walk(&s, p, s.tpid, s.tci);
	outcome = classify(p, &s, &a);
	c = count(rule_of(outcome), p->len);
	if (explain)
		return outcome;
	if (marks() && a.marked)
		skb->mark = a.mark;
	if (mirrors() && a.mirror)
		mirror(&s, p, &a, outcome);
	if (MAY(XDP_REDIRECT) && verdict_of(outcome) == XDP_REDIRECT)
		return redirect(&s, p, c, outcome, a.mark);
	if (MAY(FORWARD) && verdict_of(outcome) == FORWARD)
		return forward(c, outcome);
	if (MAY(XDP_TX) && verdict_of(outcome) == XDP_TX)
		return transmit(skb);
	return verdict_of(outcome) == XDP_DROP ? TCX_DROP : TCX_NEXT;
}

char _license[] SEC("license") = "Dual BSD/GPL";
