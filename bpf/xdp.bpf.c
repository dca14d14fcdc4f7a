/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * XDP entry: walk, classify, count, act.
 */
#include "xdp_source.h"
#include "walk.h"
#include "act.h"
#include "xdp_metadata.h"
#include "xdp_meta.h"
#include "checksum.h"
#include "loop.h"
#ifdef SHADOW
#include "shadow.h"
#include "room.h"
#endif

/*
 * (group * queues + RX queue) * spread + n to AF_XDP socket; max_entries, groups times queues times spread, is set before
 * load.
 */
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

/* Packets come here with checksums that their sender left to its device. */
const volatile __u32 completes = 0;

/* The driver takes VLAN tags out of packets here; the program is bound to its device. */
const volatile __u32 restores_tags = 0;

/* Sockets of each queue, in each group; flows are spread over them. */
const volatile __u32 spread = 1;

/* Bytes of the packet that are not all in its first buffer: 1 if they are there. */
static GENERATED_CALLS int fetch(struct source *s, __u64 offset, void *to, __u32 size)
{
#ifdef FRAGS
	return !bpf_xdp_load_bytes(s->ctx, offset, to, size);
#else
	(void)s, (void)offset, (void)to, (void)size;
	return 0;
#endif
}

/*
 * What the walk noted is bounded again where it is used: LLVM may have kept two offsets as the halves of one word of the stack,
 * and the verifier knows no bounds of those.
 */
GENERATED_CALLS int header(struct source *s, __u32 at, __u32 size, const void *room, const void **where)
{
	return take(s, offset_from_map(at), size, (void *)room, where);
}

GENERATED_CALLS int bytes(struct source *s, __u32 at, __u32 from, __u32 size, void *room, const void **where)
{
	at = offset_from_map(at) + from;
	if (take(s, at, size, room, where))
		return 1;
	*where = room;
	return fetch(s, at, room, size);
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
#ifdef FRAGS /* found, but perhaps behind the first buffer */
#define CHECKED(bits, to_host) at##bits(s, offset)
#else
#define CHECKED(bits, to_host) to_host(*(const __u##bits *)(s->data + offset))
#endif

#define LOADS(bits, to_host)                                                                                           \
	GENERATED_CALLS __s64 load##bits(struct source *s, __u64 offset)                                               \
	{                                                                                                              \
		const __u##bits *from;                                                                                 \
		__u##bits room;                                                                                        \
                                                                                                                       \
		asm("" : "+r"(offset));                                                                                \
		if (offset > MAX_OFFSET)                                                                               \
			return -1;                                                                                     \
		from = s->data + offset;                                                                               \
		asm("" : "+r"(from));                                                                                  \
		if ((const void *)(from + 1) <= s->end)                                                                \
			return to_host(*from);                                                                         \
		return fetch(s, offset, &room, sizeof(room)) ? to_host(room) : -1;                                     \
	}                                                                                                              \
	static GENERATED_CALLS __s64 at##bits(struct source *s, __u64 offset)                                          \
	{                                                                                                              \
		const __u##bits *from = s->data + offset;                                                              \
		__u##bits room;                                                                                        \
                                                                                                                       \
		if (offset > MAX_OFFSET)                                                                               \
			return -1;                                                                                     \
		if ((const void *)(from + 1) <= s->end)                                                                \
			return to_host(*from);                                                                         \
		return fetch(s, offset, &room, sizeof(room)) ? to_host(room) : -1;                                     \
	}                                                                                                              \
	GENERATED_CALLS __s64 fixed##bits(struct source *s, __u64 offset)                                              \
	{                                                                                                              \
		return at##bits(s, offset);                                                                            \
	}                                                                                                              \
	GENERATED_CALLS __s64 checked##bits(struct source *s, __u64 offset)                                              \
	{                                                                                                              \
		return CHECKED(bits, to_host);                                                                                   \
	}

LOADS(8, (__s64)(__u8))
LOADS(16, (__s64)(__u16)bpf_ntohs)
LOADS(32, (__s64)(__u32)bpf_ntohl)

/*
 * The entry of `xsks` for a packet: that of its queue.  If the queue has several sockets, a flow and its answers always go to
 * the same one.  The addresses and ports of IPv4 without options and of IPv6 decide which, behind one VLAN tag at most; other
 * packets go to the first socket.
 */
static __always_inline __u32 socket_of(struct xdp_md *ctx, __u32 target)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u32 place = ctx->rx_queue_index, hash = 0;
	__u16 *type = data + 12;
	__u32 *word;

	if (place >= queues)
		return ~0u;
	place += target * queues;
	if (spread == 1)
		return place;
	if ((void *)(type + 1) <= end && is_tag(bpf_ntohs(*type)))
		type += 2;
	word = (void *)type + 2;
	if ((void *)(word + 6) <= end && *type == bpf_htons(ETHERTYPE_IP)) {
		hash = word[3] ^ word[4];
		if (*(__u8 *)word == 0x45 && !(word[1] & bpf_htonl(0x3fff))) /* no fragment: it has ports */
			hash ^= (word[5] >> 16 ^ word[5]) & 0xffff;
	} else if ((void *)(word + 11) <= end && *type == bpf_htons(ETHERTYPE_IP6)) {
		for (int i = 2; i < 10; i++)
			hash ^= word[i];
		hash ^= (word[10] >> 16 ^ word[10]) & 0xffff;
	}
	hash *= 0x9e3779b1u; /* 2^32 divided by the golden ratio: spreads neighbours */
	return place * spread + (__u32)((__u64)hash * spread >> 32);
}

/* Put back the VLAN tag that the driver took out: it would not go with a packet that leaves by a device. */
static __always_inline void restore_tag(struct xdp_md *ctx)
{
	__be16 proto = 0, *m;
	__u16 tci = 0;

	if (!bound || bpf_xdp_metadata_rx_vlan_tag(ctx, &proto, &tci) || bpf_xdp_adjust_head(ctx, -4))
		return;
	m = (void *)(long)ctx->data;
	if ((void *)(m + 8) > (void *)(long)ctx->data_end)
		return;
	m[0] = m[2], m[1] = m[3], m[2] = m[4], m[3] = m[5], m[4] = m[6], m[5] = m[7];
	m[6] = proto, m[7] = bpf_htons(tci);
}

/* What a packet is to have that leaves by a device, and that is not in its bytes. */
static __always_inline void finish_packet(struct xdp_md *ctx, int lacks_tag)
{
	if (completes)
		complete_checksum(ctx);
	if (restores_tags && lacks_tag)
		restore_tag(ctx);
}

/*
 * The verdict that a REDIRECT or FORWARD falls back to.  On a bridge PASS is FORWARD: out of the other device, which is the
 * first of `devices`.  bpf_redirect_map() takes no such number.
 */
static __always_inline __u32 flags_of(__u32 outcome)
{
	return MAY(FORWARD) && otherwise_of(outcome) == FORWARD ? XDP_DROP : otherwise_of(outcome);
}

static __always_inline int fall_back(struct xdp_md *ctx, __u32 outcome, int verdict, int lacks_tag)
{
	if (!MAY(FORWARD) || otherwise_of(outcome) != FORWARD)
		return verdict;
	verdict = bpf_redirect_map(&devices, 0, XDP_DROP);
	if (verdict == XDP_REDIRECT)
		finish_packet(ctx, lacks_tag);
	return verdict;
}

static __always_inline int redirect(struct xdp_md *ctx, struct counter *c, __u32 outcome, __u32 mark)
{
	__u32 inspects = inspect_group() && target_of(outcome) == inspect_group();
	int verdict;

	if (inspects && !inspect_room(ctx->rx_queue_index)) {
		if (c)
			c->no_socket++;
		return fall_back(ctx, outcome, otherwise_of(outcome), 1);
	}
	if (inspects && restores_tags)
		restore_tag(ctx); /* user space sends the frame on as it gets it */
	if (want_meta)
		put_meta(ctx, rule_of(outcome), mark);
	verdict = bpf_redirect_map(&xsks, socket_of(ctx, target_of(outcome)), flags_of(outcome));
	if (verdict != XDP_REDIRECT) {
		if (c)
			c->no_socket++;
		if (want_meta) /* PASS hands the metadata to the stack, where it can break GRO: take it back */
			bpf_xdp_adjust_meta(ctx, meta_room());
		return fall_back(ctx, outcome, verdict, !inspects);
	}
	return verdict;
}

/* Out of another device.  What its driver then drops is not known here (tracepoint xdp:xdp_devmap_xmit). */
static __always_inline int forward(struct xdp_md *ctx, struct counter *c, __u32 outcome)
{
	int verdict = bpf_redirect_map(&devices, target_of(outcome), flags_of(outcome));

	if (verdict == XDP_REDIRECT) {
		finish_packet(ctx, 1);
		return verdict;
	}
	if (c)
		c->no_socket++;
	return fall_back(ctx, outcome, verdict, 1);
}

/* TX: back out of the device of arrival, with the Ethernet addresses exchanged so that the sender takes it. */
static __always_inline int transmit(struct xdp_md *ctx)
{
	__u16 *m;

	finish_packet(ctx, 1);
	m = (void *)(long)ctx->data;
	if ((void *)(m + 6) <= (void *)(long)ctx->data_end) {
		__u16 a = m[0], b = m[1], c = m[2];

		m[0] = m[3], m[1] = m[4], m[2] = m[5];
		m[3] = a, m[4] = b, m[5] = c;
	}
	return XDP_TX;
}

static __always_inline __u32 length(struct xdp_md *ctx, const struct source *s)
{
#ifdef FRAGS
	(void)s;
	return bpf_xdp_get_buff_len(ctx);
#else
	(void)ctx;
	return s->end - s->data;
#endif
}

#ifdef FRAGS
SEC("xdp.frags") /* libbpf: BPF_F_XDP_HAS_FRAGS */
#else
SEC("xdp")
#endif
int xdpkit(struct xdp_md *ctx)
{
	struct source s = source_of(ctx);
#ifdef SHADOW
	struct packet *p = packet_room();
#else
	struct packet bare = { 0 }, *p = &bare;
#endif
	struct steps a = { 0 };
	struct counter *c;
	struct flow *f;
	__u32 outcome;

	if (!p)
		return XDP_PASS;
	p->len = length(ctx, &s);
	p->rx_queue = ctx->rx_queue_index;
	p->ifindex = ctx->ingress_ifindex;
	find_metadata(ctx, p);
	find_time(p);
	if (reads_headers())
		walk(&s, p, 0, 0);
	f = find_flow(&s, p);
	outcome = note_flow(f, classify(p, &s, &a));
	c = count_verdict(p, &a, outcome);
	if (explain)
		return outcome;
	if (mirrors() && a.mirror)
		mirror(&s, p->len, p->rx_queue, &a, outcome);
	if (MAY(XDP_REDIRECT) && verdict_of(outcome) == XDP_REDIRECT)
		return redirect(ctx, c, outcome, marks() ? a.mark : 0);
	if (MAY(FORWARD) && verdict_of(outcome) == FORWARD)
		return forward(ctx, c, outcome);
	if (MAY(XDP_TX) && verdict_of(outcome) == XDP_TX)
		return transmit(ctx);
	if (MAY(REJECT) && verdict_of(outcome) == REJECT)
		return answered(ctx, p, c, outcome) ? XDP_TX : XDP_DROP;
	return verdict_of(outcome) == XDP_DROP ? XDP_DROP : XDP_PASS;
}

char _license[] SEC("license") = "Dual BSD/GPL";
