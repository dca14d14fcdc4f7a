/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * TC entry (tcx), ingress and egress: the same walk and rules over a socket buffer, and all verdicts.
 *
 * PASS is TCX_NEXT, not TCX_PASS: as at XDP it means that this program does not stop the packet.  TCX_PASS would end the
 * chain, and the programs and filters behind this one would not see the packet.  For DROP at egress the sender gets ENOBUFS,
 * as for a full queue.
 *
 * REDIRECT hands the packet to user space as a copy and consumes it: a redirect to no device, so that a sender has no
 * reason to send it again.  With no reader it falls back as declared, and when the CPU's ring buffer is full the packet is lost,
 * as at XDP when the RX ring is.
 */
#include "skb.h"
#include "skb_copy.h"

/* The RX queue of the packet; at egress, for a forwarded packet, the queue on which it arrived. */
static __always_inline __u32 queue_of(struct skb *skb)
{
	__u32 queue = skb->queue_mapping;

	return queue - one_if(queue);
}

#define TCX_NEXT -1
#define TCX_DROP 2

RING(copies)

/* Devices that rules FORWARD to, by index; the other device of a bridge is always the first. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} devices SEC(".maps");

/* What becomes of a packet for which no reader and no device is there. */
static __always_inline int fall_back(__u32 outcome)
{
	__u32 first = 0, *ifindex;

	if (MAY(FORWARD) && otherwise_of(outcome) == FORWARD) {
		ifindex = bpf_map_lookup_elem(&devices, &first);
		return ifindex && *ifindex ? bpf_redirect(*ifindex, 0) : TCX_DROP;
	}
	return otherwise_of(outcome) == XDP_DROP ? TCX_DROP : TCX_NEXT;
}

/* A function of its own: in the frame of judge() what it keeps would stand beside all that classify() keeps. */
static __attribute__((noinline)) int redirect(struct skb *skb, struct counter *c, __u32 outcome, __u32 mark)
{
	struct source s = source_of(skb);
	__u32 len = wire_length(&s);
	struct reader *r = find_reader(&copies_reader);
	struct copy head;

	if (!r) {
		if (c)
			c->no_socket++;
		return fall_back(outcome);
	}
	head = (struct copy){ .time_ns = bpf_ktime_get_ns(), .rule = rule_of(outcome), .len = len, .wire_len = len,
			      .queue = queue_of(skb), .verdict = XDP_REDIRECT, .mark = mark };
	return copy_packet(&s, &copies, &copies_count, r, &head) ? bpf_redirect(0, 0) : TCX_DROP;
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

static __always_inline int forward(struct counter *c, __u32 outcome)
{
	__u32 target = target_of(outcome), *ifindex = bpf_map_lookup_elem(&devices, &target);

	if (ifindex && *ifindex)
		return bpf_redirect(*ifindex, 0);
	if (c)
		c->no_socket++;
	return fall_back(outcome);
}

/* At egress, where the packet did not arrive on this device, the answer arrives on it as from the wire. */
static __always_inline int reject_at(struct skb *skb, const struct packet *p, struct counter *c, __u32 outcome)
{
	__u32 device = skb->ifindex, leaves = skb->ingress_ifindex != device;

	return answered(skb, p, c, outcome) ? bpf_redirect(device, leaves ? BPF_F_INGRESS : 0) : TCX_DROP;
}

static __always_inline int act(struct skb *skb, const struct packet *p, __u32 outcome, const struct steps *a)
{
	struct source s = source_of(skb);
	struct counter *c = count_verdict(p, a, outcome);

	if (explain)
		return outcome;
	if (marks() && a->marked)
		skb->mark = a->mark;
	if (mirrors() && a->mirror)
		mirror(&s, p->len, p->rx_queue, a, outcome);
	if (MAY(XDP_REDIRECT) && verdict_of(outcome) == XDP_REDIRECT)
		return redirect(skb, c, outcome, a->mark);
	if (MAY(FORWARD) && verdict_of(outcome) == FORWARD)
		return forward(c, outcome);
	if (MAY(XDP_TX) && verdict_of(outcome) == XDP_TX)
		return transmit(skb);
	if (MAY(REJECT) && verdict_of(outcome) == REJECT)
		return reject_at(skb, p, c, outcome);
	return verdict_of(outcome) == XDP_DROP ? TCX_DROP : TCX_NEXT;
}

/*
 * The linear part is doubled until the walk misses nothing in it, from PULL bytes on: 64 KiB after so many turns, more
 * than the walk goes (MAX_AT).
 */
#define PULL 256
#define TURNS 10

struct judge_state {
	struct skb *skb;
	__u64 verdict;
};

/* Bytes that should be linear when the walk has missed something; 0 where all are that there are. */
static __always_inline __u32 bytes_to_pull(struct skb *skb)
{
	struct source s = source_of(skb);
	__u32 linear = s.end - s.data, want = linear < PULL / 2 ? PULL : 2 * linear;

	return linear >= skb->len ? 0 : want < skb->len ? want : skb->len;
}

/*
 * Judge the packet, for bpf_loop(): 1, or 0 to look at it again when more of it is linear.  Rules do things, so they come
 * only when the walk has seen all that there is.  The verifier follows what one turn wrote into the next; it looks at one
 * turn alone because `verdict` may be anything before that, too.
 */
static long judge(__u32 n, struct judge_state *j)
{
	struct skb *skb = j->skb;
	struct source s = source_of(skb);
	struct packet bare = { 0 }, *p = &bare;
	struct steps a = { 0 };
	__u32 outcome, want, tpid = s.tpid;
	struct flow *f;

	(void)n;
	if (wanted() & (HIDE_HEADERS | HEADERS_IN_MAP) && !(p = packet_room())) {
		j->verdict = TCX_NEXT;
		return 1;
	}
	p->rx_queue = queue_of(skb);
	p->ifindex = skb->ifindex;
	p->len = wire_length(&s);
	s.missed = ZERO(p->rx_queue);
	if (wanted() & HIDE_HEADERS)
		tpid = (s.tpid ^ ZERO(p->rx_queue)) & 0xffff; /* what the walk finds of it is not known to loads */
	find_metadata(&s, p);
	find_time(p);
	if (reads_headers())
		walk(&s, p, tpid, s.tci);
	if (reads_headers() && s.missed && (want = bytes_to_pull(skb))) {
		if (!bpf_skb_pull_data((void *)skb, want))
			return 0;
		j->verdict = TCX_DROP; /* no memory: the stack, too, drops packets whose headers it cannot pull */
		return 1;
	}
	f = find_flow(&s, p);
	outcome = note_flow(f, classify(p, &s, &a));
	j->verdict = act(j->skb, p, outcome, &a); /* decided a second time: the stack has no room for it next to what classify() keeps */
	return 1;
}

SEC("tc")
int xdpkit(struct skb *skb)
{
	__u64 low = skb->len, high = low << 32;
	struct judge_state j;

	asm("" : "+r"(high));
	j = (struct judge_state){ skb, low - high }; /* what the verifier takes for any number */
	if (reads_headers())
		bpf_loop(TURNS, judge, &j, 0);
	else
		judge(0, &j);
	return j.verdict;
}

char _license[] SEC("license") = "Dual BSD/GPL";
