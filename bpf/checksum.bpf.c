/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Checksums that the sender left to its device (CHECKSUM_PARTIAL), of packets that leave by a device from XDP.  The rules are
 * those of csrc/checksum.c: the field then holds the sum of the pseudo header, not complemented; a checksum that is right
 * already stays as it is, and so do fragments, what is inside a tunnel, and all but TCP and UDP.
 *
 * This is a module of its own, linked only where a rule may FORWARD or TX.  What is summed is copied to a map block by block:
 * the verifier lets a program read a packet in place only at offsets of a known range.
 */
#include "source.h"
#include "headers.h"
#include "checksum.h"
#include "load.h"

#define BLOCK 512u	 /* bpf_csum_diff() takes no more before Linux 6.13 */
#define MAX_LENGTH 65536u /* of TCP or UDP with its payload */
#define HEADERS                                                                                                        \
	(HAS_ETH | HAS_VLAN | HAS_VLAN2 | HAS_IP | HAS_IP6 | HAS_FRAG | HAS_ROUTING | HAS_AH | HAS_TCP | HAS_UDP)

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} completed SEC(".maps");

struct block {
	__u8 bytes[BLOCK + 4]; /* and zeros up to a whole word */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct block);
} blocks SEC(".maps");

struct sum_state {
	struct xdp_md *ctx;
	struct block *block;
	__u64 sum;
	__u32 at, left;
};

/* In network order, as all sums here. */
static __always_inline __u16 fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (__u16)sum;
}

/* Add a block; 1 to stop, with `left` not 0 where the packet ends before its length. */
static long add_block(__u32 n, struct sum_state *s)
{
	__u32 size = s->left < BLOCK ? s->left : BLOCK;
	__u8 *bytes = s->block->bytes;
	__s64 sum;

	(void)n;
	if (!size)
		return 1;
	asm("" : "+r"(size)); /* LLVM would leave out the bounds, and the verifier of Linux 6.1 finds none */
	size = ((size - 1) & (BLOCK - 1)) + 1;
	if (bpf_xdp_load_bytes(s->ctx, s->at, bytes, size))
		return 1;
	if (size & 3)
		__builtin_memset(bytes + size, 0, 4);
	sum = bpf_csum_diff(0, 0, (__be32 *)bytes, (size + 3) & ~3u, 0);
	s->sum += (__u32)sum;
	s->at += size;
	s->left -= size;
	return !s->left;
}

/* The sum of a pseudo header but for its length (RFC 9293, 3.1; RFC 768; RFC 8200, 8.1). */
static __always_inline __u64 sum_words(const __be32 *words, int count)
{
	__u64 sum = 0;

	for (int i = 0; i < count; i++)
		sum += words[i];
	return sum;
}

/*
 * Complete it if it is such a packet.  A global function, so that the verifier looks at it once, and not once for each
 * rule that forwards.
 */
__attribute__((noinline)) int complete_checksum(struct xdp_md *ctx)
{
	struct source source = source_of(ctx), *s = &source;
	struct headers h = { 0 };
	struct rooms r = { 0 };
	struct sum_state state = { .ctx = ctx };
	__u32 at = 0, zero = 0, type, field;
	__u16 stored, checksum;
	__u64 *count, pseudo;
	int proto;

	type = walk_link(s, &h, &r, HEADERS, &at, 0, 0);
	proto = walk_network(s, &h, &r, HEADERS, ctx->rx_queue_index, &at, type);
	if (!(h.present & (HAS_TCP | HAS_UDP)) || h.present & (HAS_FRAG | HAS_ROUTING | HAS_AH))
		return 0;
	if (h.present & HAS_IP) {
		TAKE(ip_wire, ip, s, h.l3, r.l3);

		if (!ip_there || ip->frag & bpf_htons(0x3fff))
			return 0;
		state.left = bpf_ntohs(ip->len) - (at - h.l3);
		pseudo = sum_words(&ip->src, 2);
	} else {
		TAKE(ip6_wire, ip6, s, h.l3, r.l3);

		if (!ip6_there)
			return 0;
		state.left = bpf_ntohs(ip6->len) + sizeof(*ip6) - (at - h.l3);
		pseudo = sum_words((const __be32 *)ip6->src, 8);
	}
	if (state.left > MAX_LENGTH)
		return 0;
	pseudo += bpf_htons(proto) + bpf_htons(state.left >> 16) + bpf_htons((__u16)state.left);
	if (h.present & HAS_TCP) {
		TAKE(tcp_wire, tcp, s, at, r.l4);

		if (!tcp_there || state.left < sizeof(*tcp))
			return 0;
		stored = tcp->sum;
		field = at + __builtin_offsetof(struct tcp_wire, sum);
	} else {
		TAKE(udp_wire, udp, s, at, r.l4);

		if (!udp_there || state.left < sizeof(*udp))
			return 0;
		stored = udp->sum;
		field = at + __builtin_offsetof(struct udp_wire, sum);
	}
	if (stored != fold(pseudo))
		return 0;
	state.block = bpf_map_lookup_elem(&blocks, &zero);
	count = bpf_map_lookup_elem(&completed, &zero);
	if (!state.block || !count)
		return 0;
	state.sum = pseudo;
	state.at = at;
	bpf_loop(MAX_LENGTH / BLOCK, add_block, &state, 0);
	if (state.left || fold(state.sum) == 0xffff) /* not whole, or right as it is */
		return 0;
	checksum = ~fold(state.sum + (__u16)~stored); /* without the field */
	if (!checksum && h.present & HAS_UDP)
		checksum = 0xffff; /* 0 says that there is none */
	if (!bpf_xdp_store_bytes(ctx, field, &checksum, sizeof(checksum)))
		++*count;
	return 0;
}
