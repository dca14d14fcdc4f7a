/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * REJECT: the packet becomes the answer to itself.  What is answered, and with what, is written in
 * xdpkit/meaning/reject.py; this is the same, byte for byte.
 *
 * The answer is made in a map, then the packet gets its length, and then its bytes.  This is a module of its own, compiled
 * for each hook that can answer, and linked only where a rule rejects.
 */
#include "source.h"
#include "outcome.h"

/* What 576 and 1,280 bytes leave beside the headers. */
#define MAX_QUOTE4 (576 - 20 - 8)
#define MAX_QUOTE6 (1280 - 40 - 8)
#define MAX_LINK 22 /* Ethernet and two tags */
#define TTL 64
enum { FIN = 1, SYN = 2, RST = 4, ACK = 16 };

struct icmp_head {
	__u8 type, code;
	__be16 sum;
	__be32 unused;
};

/* The answer: the link header stands at the end of its room, so that all behind it is aligned. */
struct answer {
	__u8 link[24];
	union {
		struct {
			struct ip_wire ip;
			union {
				struct tcp_wire tcp;
				struct {
					struct icmp_head icmp;
					__u8 quote[MAX_QUOTE4 + 4];
				};
			};
		} four;
		struct {
			struct ip6_wire ip;
			union {
				struct tcp_wire tcp;
				struct {
					struct icmp_head icmp;
					__u8 quote[MAX_QUOTE6 + 4];
				};
			};
		} six;
	};
	__u8 slack[8]; /* for the verifier, which adds the longest answer to the latest start */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct answer);
} answers SEC(".maps");

/* When the bucket of answers will be full again, in 1/64 ns, as in limit.bpf.c. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} rejects SEC(".maps");

/* Generated, constants: what an answer costs, and how much may be owed. */
__u64 reject_cost(void);
__u64 reject_tolerance(void);

#ifdef XDP
#define CONTEXT struct xdp_md
#define LOAD(ctx, at, to, size) bpf_xdp_load_bytes(ctx, at, to, size)
#define STORE(ctx, from, size) bpf_xdp_store_bytes(ctx, 0, from, size)
/* The packet grows at its head, where every driver leaves room, and shrinks at its tail. */
#define RESIZE(ctx, old, new) ((new) > (old) ? bpf_xdp_adjust_head(ctx, (int)((old) - (new))) : \
			       (new) < (old) ? bpf_xdp_adjust_tail(ctx, (int)((new) - (old))) : 0)
#else
#define CONTEXT void
#define LOAD(ctx, at, to, size) bpf_skb_load_bytes(ctx, at, to, size)
#define STORE(ctx, from, size) bpf_skb_store_bytes(ctx, 0, from, size, BPF_F_INVALIDATE_HASH)
#define RESIZE(ctx, old, new) ((void)(old), bpf_skb_change_tail(ctx, new, 0))
#endif

static __always_inline __be16 folded(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* The sum of `size` bytes, a constant, at `data`, which is aligned to 4. */
static __always_inline __u64 sum_of(const void *data, __u32 size)
{
	__u64 sum = 0;

#pragma unroll
	for (__u32 i = 0; i < size / 4; i++)
		sum += ((const __u32 *)data)[i];
	return sum;
}

struct summing {
	const __u8 *data;
	__u32 size, sum;
};

/*
 * A turn of bpf_loop(): the next 4 bytes; behind the quote stand zeros.  The sum keeps 32 bits, which the verifier takes for
 * any number: of a sum that grows it would look at every turn.
 */
static long add_word(__u32 n, struct summing *s)
{
	__u32 at = 4 * n;
	__u64 sum;

	if (at >= s->size || at > MAX_QUOTE6)
		return 1;
	sum = (__u64)s->sum + *(const __u32 *)(s->data + at);
	s->sum = sum + (sum >> 32);
	return 0;
}

/* Quote `size` bytes, at most `most`, of the packet from `l3` on; their sum, -1 where that cannot be. */
static __always_inline __s64 quote(CONTEXT *ctx, __u8 *room, __u32 l3, __u32 size, const __u32 most)
{
	struct summing s;

	asm volatile("" : "+r"(size));
	if (size < 20 || size > most)
		return -1;
	if (LOAD(ctx, l3, room, size))
		return -1;
	asm volatile("" : "+r"(size));
	if (size > most)
		return -1;
	room[size] = room[size + 1] = room[size + 2] = room[size + 3] = 0;
	s = (struct summing){ room, size, 0 };
	bpf_loop(MAX_QUOTE6 / 4 + 1, add_word, &s, 0);
	return s.sum;
}

/* The reset of the segment at `l4`, which ends at `end`; 0 where it cannot be read. */
static __always_inline int reset(CONTEXT *ctx, struct tcp_wire *to, __u32 l4, __u32 end)
{
	struct tcp_wire tcp;
	__u32 payload;

	if (LOAD(ctx, l4, &tcp, sizeof(tcp)))
		return 0;
	*to = (struct tcp_wire){ .sport = tcp.dport, .dport = tcp.sport, .off = 0x50 };
	if (tcp.flags & ACK) {
		to->seq = tcp.ack;
		to->flags = RST;
		return 1;
	}
	payload = l4 + (tcp.off >> 4) * 4;
	payload = end > payload ? end - payload : 0;
	to->ack = bpf_htonl(bpf_ntohl(tcp.seq) + payload + !!(tcp.flags & SYN) + (tcp.flags & FIN));
	to->flags = RST | ACK;
	return 1;
}

/* One more answer may be sent; it is paid for. */
static __always_inline int may_answer(void)
{
	__u32 zero = 0;
	__u64 *full = bpf_map_lookup_elem(&rejects, &zero), at = bpf_ktime_get_ns() << 6;

	if (!full)
		return 0;
	for (int i = 0; i < 8; i++) { /* it fails only where another CPU answers in between */
		__u64 seen = *(volatile __u64 *)full, then = (seen > at ? seen : at) + reject_cost();

		if (then - at > reject_tolerance())
			return 0;
		if (__sync_val_compare_and_swap(full, seen, then) == seen)
			return 1;
	}
	return 0;
}

#define ICMP_ANSWERED (1u << 0 | 1u << 8 | 0x3fu << 13)

/* Bytes of the answer behind its link header; 0 for none. */
static __always_inline __u32 answer4(CONTEXT *ctx, struct answer *a, __u32 l3, __u32 l4, __u32 len, __u32 present, __u32 code)
{
	__u8 type, source, target;
	__u32 size, ihl, there = len - l3;
	struct ip_wire ip;
	__s64 sum;

	if (LOAD(ctx, l3, &ip, sizeof(ip)))
		return 0;
	source = ip.src, target = ip.dst; /* first bytes */
	if (ip.frag & bpf_htons(0x1fff) || source == 0 || source == 127 || source >= 224 || target >= 224)
		return 0;
	if (ip.proto == PROTO_ICMP &&
	    (!(present & HAS_ICMP) || LOAD(ctx, l4, &type, 1) || type > 18 || !(ICMP_ANSWERED >> type & 1)))
		return 0;
	size = bpf_ntohs(ip.len), ihl = (ip.vihl & 15) * 4;
	if (size < ihl || size > there)
		size = there;
	a->four.ip = (struct ip_wire){ .vihl = 0x45, .frag = bpf_htons(0x4000), .ttl = TTL, .src = ip.dst, .dst = ip.src };
	if (code >> 7 && present & HAS_TCP) {
		if (!reset(ctx, &a->four.tcp, l4, l3 + size))
			return 0;
		a->four.ip.proto = PROTO_TCP;
		a->four.ip.len = bpf_htons(40);
		a->four.tcp.sum = folded(sum_of(&a->four.ip.src, 8) + sum_of(&a->four.tcp, 20) + bpf_htons(PROTO_TCP) +
					 bpf_htons(20));
		size = 40;
	} else {
		if (size > MAX_QUOTE4)
			size = MAX_QUOTE4;
		sum = quote(ctx, a->four.quote, l3, size, MAX_QUOTE4);
		if (sum < 0)
			return 0;
		a->four.icmp = (struct icmp_head){ .type = 3, .code = code >> 3 & 15 };
		a->four.icmp.sum = folded(sum + sum_of(&a->four.icmp, 8));
		a->four.ip.tos = (ip.tos & 0x1e) | 0xc0;
		a->four.ip.proto = PROTO_ICMP;
		size += 28;
		a->four.ip.len = bpf_htons(size);
	}
	a->four.ip.sum = folded(sum_of(&a->four.ip, 20));
	return size;
}

#define EXTENSION(proto)                                                                                               \
	((proto) == PROTO_HOPOPTS || (proto) == PROTO_ROUTING || (proto) == PROTO_FRAGMENT || (proto) == PROTO_AH ||   \
	 (proto) == PROTO_DSTOPTS)

static __always_inline __u32 answer6(CONTEXT *ctx, struct answer *a, __u32 l3, __u32 l4, __u32 len, __u32 present, __u32 code,
				     __u32 proto)
{
	__u32 size, there = len - l3;
	struct ip6_wire ip;
	__u8 source, target, type;
	__s64 sum;

	if (LOAD(ctx, l3, &ip, sizeof(ip)))
		return 0;
	source = ip.src[0], target = ip.dst[0];
	if (source == 0xff || target == 0xff || !(ip.src[0] | ip.src[1]) || EXTENSION(proto))
		return 0;
	if (proto == PROTO_ICMP6 && (!(present & HAS_ICMP6) || LOAD(ctx, l4, &type, 1) || type < 128 || type == 137))
		return 0;
	size = bpf_ntohs(ip.len) + 40;
	if (size == 40 || size > there)
		size = there;
	a->six.ip = (struct ip6_wire){ .version = 0x60, .hlim = TTL, .src = { ip.dst[0], ip.dst[1] },
				       .dst = { ip.src[0], ip.src[1] } };
	if (code >> 7 && present & HAS_TCP) {
		if (!reset(ctx, &a->six.tcp, l4, l3 + size))
			return 0;
		a->six.ip.next = PROTO_TCP;
		a->six.ip.len = bpf_htons(20);
		a->six.tcp.sum = folded(sum_of(&a->six.ip.src, 32) + sum_of(&a->six.tcp, 20) + bpf_htons(PROTO_TCP) +
					bpf_htons(20));
		return 60;
	}
	if (size > MAX_QUOTE6)
		size = MAX_QUOTE6;
	sum = quote(ctx, a->six.quote, l3, size, MAX_QUOTE6);
	if (sum < 0)
		return 0;
	size += 8;
	a->six.icmp = (struct icmp_head){ .type = 1, .code = code & 7 };
	a->six.ip.next = PROTO_ICMP6;
	a->six.ip.len = bpf_htons(size);
	a->six.icmp.sum = folded(sum + sum_of(&a->six.icmp, 8) + sum_of(&a->six.ip.src, 32) + bpf_htons(PROTO_ICMP6) +
				 bpf_htons(size));
	return size + 40;
}

/*
 * Make the packet of `len` bytes the answer to itself: 1, or 0 where it must not be answered.  `places`: where its network,
 * transport and fragment headers start, in 16 bits each; `present`: HAS_ bits; `code`: the answer (Reject.packed) and,
 * above 8 bits, the protocol behind IPv6's extension headers.
 */
static __attribute__((noinline)) int answer(CONTEXT *ctx, __u32 len, __u64 places, __u32 present, __u32 code)
{
	__u32 zero = 0, l3 = places & 0xffff, l4 = places >> 16 & 0xffff, size, start;
	struct answer *a = bpf_map_lookup_elem(&answers, &zero);
	__u8 *link, flags;
	__be16 fragment;

	if (!a || l3 < 14 || l3 > MAX_LINK || len > 0xffff || len < l3)
		return 0;
	if (present & HAS_TCP && (LOAD(ctx, l4 + 13, &flags, 1) || flags & RST))
		return 0;
	if (present & HAS_FRAG && (LOAD(ctx, (__u32)(places >> 32) + 2, &fragment, 2) || fragment & bpf_htons(0xfff8)))
		return 0;
	start = sizeof(a->link) - l3;
	asm volatile("" : "+r"(start));
	if (start > sizeof(a->link) - 14)
		return 0;
	link = (__u8 *)a + start;
	asm volatile("" : "+r"(l3));
	if (l3 < 14 || l3 > MAX_LINK)
		return 0;
	if (LOAD(ctx, 0, link, l3) || link[0] & 1)
		return 0;
	size = present & HAS_IP ? answer4(ctx, a, l3, l4, len, present, code & 0xff) :
				  answer6(ctx, a, l3, l4, len, present, code & 0xff, code >> 8);
	if (!size || !may_answer())
		return 0;
	for (int i = 0; i < 6; i++) {
		__u8 byte = link[i];

		link[i] = link[i + 6], link[i + 6] = byte;
	}
	size += l3;
	if (RESIZE(ctx, len, size))
		return 0;
	asm volatile("" : "+r"(size));
	if (size < 54 || size > MAX_LINK + 1280)
		return 0;
	return !STORE(ctx, link, size);
}

GENERATED_CALLS int reject(CONTEXT *ctx, __u32 len, __u64 places, __u32 present, __u32 code)
{
	return answer(ctx, len, places, present, code);
}
