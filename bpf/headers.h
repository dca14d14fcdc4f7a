/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The header walk, part by part: from the Ethernet header to the transport header, for every hook.  walk.h calls the parts
 * for the outer headers, tunnel.bpf.c for those inside a tunnel.
 *
 * Rules of the walk, the same in xdpkit/meaning/walk.py:
 *  - a header is present when its fixed part lies wholly inside the packet, else it and all behind it are absent;
 *  - up to two VLAN tags (0x8100, 0x88a8) are walked; a tag that the kernel moved to metadata counts as the outer one;
 *  - IPv4 needs version 4 and ihl >= 5; the transport header is absent in fragments with an offset;
 *  - IPv6 extension headers (hop-by-hop, routing, fragment, AH, destination) are walked, at most
 *    MAX_EXTENSIONS of them; a chain that is longer, cut short, or a fragment with an offset has no transport header;
 *  - TCP has a payload if its data offset is 5 words or more; of its options the first MAX_TCP_OPTIONS are looked at.
 *
 * The walk notes where headers start (`struct headers`, generated from xdpkit/language/fields.py); classify() reads fields there
 * through header().  Nothing is kept that the rules do not read: classify() is inlined behind the walk and LLVM removes
 * the rest.  LLVM cannot remove helper calls by itself, so these are made only where wanted() says that a rule needs them.
 *
 * The entry, not the walk, finds what the kernel knows of a packet besides its bytes (HAS_META_*).
 */
#pragma once
#include "packet.h"

#define MAX_EXTENSIONS 6
#define MAX_TCP_OPTIONS 10

/* Note headers as present, those that rules ask for: what is left out is a number that LLVM need not carry. */
#define FOUND(bits) (h->present |= (bits) & wants)

static __always_inline int is_tag(__u16 type)
{
	return type == ETHERTYPE_VLAN || type == ETHERTYPE_QINQ;
}

/*
 * Numbers below 64 as bits.  The barrier keeps LLVM from turning a bit test into a compare and a branch: the verifier
 * follows every branch of the loop over extension headers, and two per turn already cost it 50,000 steps.
 */
static __always_inline __u64 bit_of(__u8 number, __u64 set)
{
	asm("" : "+r"(set));
	return number < 64 ? set >> number & 1 : 0;
}

/* The maximum segment size option of a TCP header at `at`, `size` bytes long (RFC 9293 section 3.2). */
static __always_inline void walk_tcp_options(struct source *s, struct headers *h, __u32 wants, __u32 at, __u32 size,
						     __u32 queue)
{
	__u32 end = at + size;

	at += sizeof(struct tcp_wire);
#pragma clang loop unroll(disable)
	for (int i = 0; i < MAX_TCP_OPTIONS && at < end; i++) {
		struct byte_wire kind_room, length_room;

		at = hide_offset(at, ZERO(queue));
		TAKE(byte_wire, kind, s, at, &kind_room);
		if (!kind_there || kind->value == 0)
			return;
		if (kind->value == 1) {
			at++;
			continue;
		}
		TAKE(byte_wire, length, s, at + 1, &length_room);
		if (!length_there || length->value < 2)
			return;
		if (kind->value == 2) {
			struct half_wire mss_room;
			TAKE(half_wire, mss, s, at + 2, &mss_room);
			if (length->value == 4 && at + 4 <= end && mss_there) {
				FOUND(HAS_TCP_MSS);
				h->tcp_mss = bpf_ntohs(mss->value);
			}
			return;
		}
		at += length->value;
	}
}

/* The transport header at `at`; `proto` is its protocol, -1 where there is none. */
static __always_inline void walk_transport(struct source *s, struct headers *h, struct rooms *r, __u32 wants, __u32 queue,
					   __u32 at, int proto)
{
	h->l4 = at;
	if (proto == PROTO_TCP && wants & HAS_TCP) {
		TAKE(tcp_wire, tcp, s, at, r->l4);
		__u32 size;
		if (!tcp_there)
			return;
		FOUND(HAS_TCP);
		size = (tcp->off >> 4) * 4;
		if (size < sizeof(*tcp))
			return;
		FOUND(HAS_PAYLOAD);
		h->payload = at + size;
		if (wants & HAS_TCP_MSS)
			walk_tcp_options(s, h, wants, at, size, queue);
	} else if (proto == PROTO_UDP && wants & HAS_UDP) {
		TAKE(udp_wire, udp, s, at, r->l4);
		if (!udp_there)
			return;
		FOUND(HAS_UDP | HAS_PAYLOAD);
		h->payload = at + sizeof(*udp);
	} else if (proto == PROTO_ICMP && h->present & HAS_IP && wants & HAS_ICMP) {
		TAKE(icmp_wire, icmp, s, at, r->l4);
		if (icmp_there)
			FOUND(HAS_ICMP);
	} else if (proto == PROTO_ICMP6 && h->present & HAS_IP6 && wants & HAS_ICMP6) {
		TAKE(icmp6_wire, icmp6, s, at, r->l4);
		if (icmp6_there)
			FOUND(HAS_ICMP6);
	} else if (proto == PROTO_SCTP && wants & HAS_SCTP) {
		TAKE(sctp_wire, sctp, s, at, r->l4);
		if (sctp_there)
			FOUND(HAS_SCTP);
	} else if (proto == PROTO_GRE && wants & HAS_GRE) {
		TAKE(gre_wire, gre, s, at, r->l4);
		if (gre_there)
			FOUND(HAS_GRE);
	}
}

/* IPv4 at `*at`: moves it to the transport header and returns that header's protocol, or -1. */
static __always_inline int walk_ip(struct source *s, struct headers *h, struct rooms *r, __u32 wants, __u32 *at)
{
	TAKE(ip_wire, ip, s, *at, r->l3);

	if (!ip_there || ip->vihl >> 4 != 4 || (ip->vihl & 15) < 5)
		return -1;
	FOUND(HAS_IP);
	h->l3 = *at;
	*at += (ip->vihl & 15) * 4;
	return ip->frag & bpf_htons(0x1fff) ? -1 : ip->proto;
}

#define EXTENSIONS                                                                                                     \
	(1ull << PROTO_HOPOPTS | 1ull << PROTO_ROUTING | 1ull << PROTO_FRAGMENT | 1ull << PROTO_AH | 1ull << PROTO_DSTOPTS)

/* Note the extension header at `at`, and its bytes, if `it` is 1; without a branch. */
static __always_inline void keep_extension(const struct ext_wire *ext, __u64 it, __u64 *room, __u32 *slot, __u32 at)
{
	*room += (*(const __u64 *)ext - *room) * it;
	*slot = (*slot + (at - *slot) * it) & MAX_AT;
}

/* IPv6 at `*at`: the same, behind its extension headers. */
static __always_inline int walk_ip6(struct source *s, struct headers *h, struct rooms *r, __u32 wants, __u32 *at)
{
	TAKE(ip6_wire, ip6, s, *at, r->l3);
	__u32 present = HAS_IP6;
	int proto = -1;
	__u8 next;

	if (!ip6_there || ip6->version >> 4 != 6)
		return -1;
	h->l3 = *at;
	h->ip6_proto = next = ip6->next;
	*at += sizeof(*ip6);
#pragma clang loop unroll(disable)
	for (int i = 0; i < MAX_EXTENSIONS && bit_of(next, EXTENSIONS); i++) {
		__u64 fragment = bit_of(next, 1ull << PROTO_FRAGMENT), ah = bit_of(next, 1ull << PROTO_AH);
		struct ext_wire ext_room __attribute__((aligned(8)));
		TAKE(ext_wire, ext, s, *at, &ext_room);

		if (!ext_there)
			goto out;
		if (wants & (HAS_HOPOPTS | HAS_ROUTING | HAS_FRAG | HAS_AH | HAS_DSTOPTS))
			present |= bit_of(next, 1ull << PROTO_HOPOPTS) * HAS_HOPOPTS | bit_of(next, 1ull << PROTO_ROUTING) * HAS_ROUTING |
			   fragment * HAS_FRAG | ah * HAS_AH | bit_of(next, 1ull << PROTO_DSTOPTS) * HAS_DSTOPTS;
		if (wants & HAS_FRAG)
			keep_extension(ext, fragment, (__u64 *)r->frag, &h->frag, *at);
		if (wants & HAS_ROUTING)
			keep_extension(ext, bit_of(next, 1ull << PROTO_ROUTING), (__u64 *)r->routing, &h->routing, *at);
		h->ip6_proto = next = ext->next;
		if (fragment * (ext->frag & bpf_htons(0xfff8)))
			goto out;
		/* (len + 1) * 8 bytes; AH (len + 2) * 4; a fragment header 8 */
		*at += (ext->len * (1 - fragment) + 1 + ah) * (8 - 4 * ah);
		*at &= MAX_AT; /* no smaller for it; the verifier before Linux 6.10 knows nothing of a product */
	}
	proto = bit_of(next, EXTENSIONS) ? -1 : next;
out:
	h->present |= present & wants;
	return proto;
}

static __always_inline void walk_arp(struct source *s, struct headers *h, struct rooms *r, __u32 wants, __u32 at)
{
	TAKE(arp_wire, arp, s, at, r->l3);

	if (!arp_there)
		return;
	FOUND(HAS_ARP);
	h->l3 = at;
}

/*
 * Ethernet and its tags at `*at`: moves it behind them and returns the EtherType of what is there, 0 if nothing is.
 * `tpid` is non-zero when the kernel keeps the outer tag in metadata (socket buffers); then the bytes behind the MAC
 * addresses are the EtherType behind that tag.
 */
static __always_inline __u32 walk_link(struct source *s, struct headers *h, struct rooms *r, __u32 wants, __u32 *at, __u16 tpid,
				       __u16 tci)
{
	TAKE(eth_wire, eth, s, *at, r->eth);
	struct vlan_wire outer_room, inner_room;
	__u16 type;

	if (!eth_there)
		return 0;
	FOUND(HAS_ETH);
	h->eth = *at;
	*at += sizeof(*eth);
	type = bpf_ntohs(eth->type);
	h->eth_type = tpid ? tpid : type;
	if (!tpid && !is_tag(type))
		return type;
	if (!tpid) {
		TAKE(vlan_wire, outer, s, *at, &outer_room);
		if (!outer_there)
			return 0;
		*at += sizeof(*outer);
		tci = bpf_ntohs(outer->tci);
		type = bpf_ntohs(outer->type);
	}
	FOUND(HAS_VLAN);
	h->vlan_tci = tci;
	h->vlan_etype = type;
	if (is_tag(type)) {
		TAKE(vlan_wire, inner, s, *at, &inner_room);
		if (!inner_there)
			return 0;
		*at += sizeof(*inner);
		type = bpf_ntohs(inner->type);
		FOUND(HAS_VLAN2);
		h->vlan2_tci = bpf_ntohs(inner->tci);
		h->vlan2_etype = type;
	}
	return type;
}

/* The network header of EtherType `type` at `*at` and the transport header behind it; returns that one's protocol, or -1. */
static __always_inline int walk_network(struct source *s, struct headers *h, struct rooms *r, __u32 wants, __u32 queue,
					__u32 *at, __u32 type)
{
	int proto = -1;

	if (wants & HIDE_HEADERS)
		*at = hide_offset(*at, ZERO(queue));
	if (type == ETHERTYPE_IP && wants & HAS_IP)
		proto = walk_ip(s, h, r, wants, at);
	else if (type == ETHERTYPE_IP6 && wants & HAS_IP6)
		proto = walk_ip6(s, h, r, wants, at);
	else if (type == ETHERTYPE_ARP && wants & HAS_ARP)
		walk_arp(s, h, r, wants, *at);
	if (wants & (HIDE_HEADERS | HAS_TCP_MSS)) {
		__u32 zero = ZERO(queue);

		h->present ^= zero;
		h->l3 = hide_offset(h->l3, zero);
		h->frag = hide_offset(h->frag, zero);
		h->routing = hide_offset(h->routing, zero);
		*at = hide_offset(*at, zero);
		asm("" : "+r"(proto)); /* not known to be one of those that have no transport header */
	}
	walk_transport(s, h, r, wants, queue, *at, proto);
	return proto;
}

/* Walk into the tunnel behind the outer headers, if there is one; generated, and empty, where no rule needs it. */
void walk_tunnel(struct source *s, struct packet *p, __u32 at, int proto, __u32 type);
