/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * XDP entry: walk, classify, count, act.
 */
#include "act.h"
#include "xdp_source.h"
#include "xdp_metadata.h"
#include "loop.h"

#define META_MAGIC 0x786b6d31u /* "xkm1" */

/*
 * In front of each redirected packet when want_meta is set: the kernel's clock at the hook and the rule that matched.
 * User space believes it only where the magic stands; a driver without metadata support leaves it out.
 */
struct meta {
	__u64 time_ns; /* CLOCK_MONOTONIC */
	__u32 rule;
	__u32 magic;
};

/* group * queues + RX queue to AF_XDP socket; max_entries, groups times queues, is set before load. */
struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} xsks SEC(".maps");

/* The devices that rules FORWARD to. */
struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} devices SEC(".maps");

const volatile __u32 want_meta = 0;
const volatile __u32 queues = 1;

GENERATED_CALLS int header(struct source *s, __u32 at, __u32 size, const void *room, const void **where)
{
	return take(s, at, size, (void *)room, where);
}

GENERATED_CALLS int bytes(struct source *s, __u32 at, __u32 size, void *room, const void **where)
{
	return take(s, at, size, room, where);
}

/*
 * The verifier follows packet pointers up to MAX_PACKET_OFF, 0xffff, the size of the load included.  One bound for all
 * sizes: LLVM makes one pointer of two loads at one place.
 */
#define MAX_OFFSET (0xffff - 8)

/*
 * The barriers keep check and use in one register: LLVM would compute offset and pointer once more for the use, and the
 * verifier has no bounds for that.  It follows constant offsets by itself.
 */
#define LOADS(bits, to_host)                                                                                           \
	GENERATED_CALLS __s64 load##bits(struct source *s, __u64 offset)                                               \
	{                                                                                                              \
		const __u##bits *from;                                                                                 \
                                                                                                                       \
		asm("" : "+r"(offset));                                                                                \
		if (offset > MAX_OFFSET)                                                                               \
			return -1;                                                                                     \
		from = s->data + offset;                                                                               \
		asm("" : "+r"(from));                                                                                  \
		return (const void *)(from + 1) <= s->end ? to_host(*from) : -1;                                       \
	}                                                                                                              \
	GENERATED_CALLS __s64 fixed##bits(struct source *s, __u64 offset)                                              \
	{                                                                                                              \
		const __u##bits *from = s->data + offset;                                                              \
                                                                                                                       \
		if (offset > MAX_OFFSET)                                                                               \
			return -1;                                                                                     \
		return (const void *)(from + 1) <= s->end ? to_host(*from) : -1;                                       \
	}                                                                                                              \
	GENERATED_CALLS __s64 known##bits(struct source *s, __u64 offset)                                              \
	{                                                                                                              \
		return to_host(*(const __u##bits *)(s->data + offset));                                                \
	}

LOADS(8, (__s64)(__u8))
LOADS(16, (__s64)(__u16)bpf_ntohs)
LOADS(32, (__s64)(__u32)bpf_ntohl)

static __always_inline int redirect(struct xdp_md *ctx, struct counter *c, __u32 outcome)
{
	__u32 rule = rule_of(outcome), key = ctx->rx_queue_index;
	int verdict;

	if (want_meta && !bpf_xdp_adjust_meta(ctx, -(int)sizeof(struct meta))) {
		struct meta *m = (void *)(long)ctx->data_meta;

		if ((void *)(m + 1) <= (void *)(long)ctx->data) {
			m->time_ns = bpf_ktime_get_ns();
			m->rule = rule;
			m->magic = META_MAGIC;
		}
	}
	if (key < queues)
		key += target_of(outcome) * queues;
	verdict = bpf_redirect_map(&xsks, key, otherwise_of(outcome));
	if (verdict != XDP_REDIRECT) {
		if (c)
			c->no_socket++;
		if (want_meta) /* PASS hands the metadata to the stack, where it can break GRO: take it back */
			bpf_xdp_adjust_meta(ctx, sizeof(struct meta));
	}
	return verdict;
}

/* Out of another device.  What its driver then drops is not known here (tracepoint xdp:xdp_devmap_xmit). */
static __always_inline int forward(struct counter *c, __u32 outcome)
{
	int verdict = bpf_redirect_map(&devices, target_of(outcome), otherwise_of(outcome));

	if (verdict != XDP_REDIRECT && c)
		c->no_socket++;
	return verdict;
}

/* TX: back out of the device of arrival, with the Ethernet addresses exchanged so that the sender takes it. */
static __always_inline int transmit(struct xdp_md *ctx)
{
	__u16 *m = (void *)(long)ctx->data;

	if ((void *)(m + 6) <= (void *)(long)ctx->data_end) {
		__u16 a = m[0], b = m[1], c = m[2];

		m[0] = m[3], m[1] = m[4], m[2] = m[5];
		m[3] = a, m[4] = b, m[5] = c;
	}
	return XDP_TX;
}

/*
 * The packet's bounds.  The kernel turns the 32-bit loads into loads of pointers; LLVM, which does not know that, must not
 * compute with them in 32 bits: the verifier takes the result for a number, and compares it without a word.
 */
static __always_inline struct source source_of(struct xdp_md *ctx)
{
	struct source s = { (void *)(long)ctx->data, (void *)(long)ctx->data_end, ctx };

	asm("" : "+r"(s.data), "+r"(s.end));
	return s;
}

SEC("xdp")
int xdpkit(struct xdp_md *ctx)
{
	struct source s = source_of(ctx);
	struct packet p = { .len = s.end - s.data, .rx_queue = ctx->rx_queue_index };
	struct steps a = { 0 };
	struct counter *c;
	__u32 outcome;

	find_metadata(ctx, &p);
	if (reads_headers())
		walk(&s, &p, 0, 0);
	outcome = classify(&p, &s, &a);
	c = take_down(&p, &a, outcome);
	if (explain)
		return outcome;
	if (mirrors() && a.mirror)
		mirror(&s, p.len, p.rx_queue, &a, outcome);
	if (MAY(XDP_REDIRECT) && verdict_of(outcome) == XDP_REDIRECT)
		return redirect(ctx, c, outcome);
	if (MAY(FORWARD) && verdict_of(outcome) == FORWARD)
		return forward(c, outcome);
	if (MAY(XDP_TX) && verdict_of(outcome) == XDP_TX)
		return transmit(ctx);
	return verdict_of(outcome) == XDP_DROP ? XDP_DROP : XDP_PASS;
}

char _license[] SEC("license") = "Dual BSD/GPL";
