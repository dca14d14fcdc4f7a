/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The header walk: one pass from the Ethernet header to the transport header, shared by every hook.
 *
 * Rules of the walk, the same in xdpkit/reference.py:
 *  - a header is present when its fixed part lies wholly inside the packet, else it and all behind it are absent;
 *  - up to two VLAN tags (0x8100, 0x88a8) are walked; a tag that the kernel moved to metadata counts as the outer one;
 *  - IPv4 needs version 4 and ihl >= 5; the transport header is absent in fragments with an offset;
 *  - IPv6 extension headers (hop-by-hop, routing, fragment, AH, destination) are walked, at most
 *    MAX_EXTENSIONS of them; a chain that is longer, cut short, or a fragment with an offset has no transport header.
 *
 * The entry defines `struct source` and take(): `*at` becomes the `size` bytes at `offset`, in place or copied to `room`;
 * 0 where the packet has no such bytes.  Nothing here is kept that the rules do not read: classify() is inlined behind the walk and
 * LLVM removes the rest.
 */
#pragma once
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "packet_layout.h"

#define MAX_EXTENSIONS 6

enum { ETHERTYPE_IP = 0x0800, ETHERTYPE_ARP = 0x0806, ETHERTYPE_VLAN = 0x8100, ETHERTYPE_IP6 = 0x86dd,
       ETHERTYPE_QINQ = 0x88a8 };
enum { PROTO_HOPOPTS = 0, PROTO_ICMP = 1, PROTO_TCP = 6, PROTO_UDP = 17, PROTO_ROUTING = 43, PROTO_FRAGMENT = 44,
       PROTO_AH = 51, PROTO_ICMP6 = 58, PROTO_DSTOPTS = 60 };

/* Wire formats, as the walk reads them. */
struct eth_wire { __be16 dst[3], src[3], type; };
struct vlan_wire { __be16 tci, type; };
struct arp_wire { __be16 htype, ptype; __u8 hlen, plen; __be16 op; __u8 sha[6]; __be16 spa[2]; __u8 tha[6]; __be16 tpa[2]; };
struct ip_wire { __u8 vihl, tos; __be16 len, id, frag; __u8 ttl, proto; __be16 sum; __be32 src, dst; };
struct ip6_wire { __u8 version, rest[3]; __be16 len; __u8 next, hlim; __be64 src[2], dst[2]; };
struct ext_wire { __u8 next, len; __be16 frag; __be32 rest; };
struct tcp_wire { __be16 sport, dport; __be32 seq, ack; __u8 off, flags; __be16 win, sum, urg; };
struct udp_wire { __be16 sport, dport, len, sum; };
struct icmp_wire { __u8 type, code; __be16 sum; __be32 rest; };
struct icmp6_wire { __u8 type, code; __be16 sum; };

struct source;
static __always_inline int take(struct source *s, __u32 offset, __u32 size, void *room, const void **at);

/* `const type *name` and `name_there`: the header at `offset`; socket buffers are copied out, packets read in place. */
#define TAKE(type, name, s, offset)                                                                                    \
	struct type name##_room;                                                                                       \
	const struct type *name;                                                                                       \
	int name##_there = take(s, offset, sizeof(*name), &name##_room, (const void **)&name)

static __always_inline __u64 mac48(const __be16 *m)
{
	return (__u64)bpf_ntohs(m[0]) << 32 | (__u64)bpf_ntohs(m[1]) << 16 | bpf_ntohs(m[2]);
}

static __always_inline int is_tag(__u16 type)
{
	return type == ETHERTYPE_VLAN || type == ETHERTYPE_QINQ;
}

/* The transport header at `at`; `proto` is its protocol, -1 where there is none. */
static __always_inline void walk_transport(struct source *s, struct packet *p, __u32 at, int proto)
{
	if (proto == PROTO_TCP) {
		TAKE(tcp_wire, tcp, s, at);
		if (!tcp_there)
			return;
		p->present |= HAS_TCP;
		p->sport = bpf_ntohs(tcp->sport);
		p->dport = bpf_ntohs(tcp->dport);
		p->tcp_flags = tcp->flags;
	} else if (proto == PROTO_UDP) {
		TAKE(udp_wire, udp, s, at);
		if (!udp_there)
			return;
		p->present |= HAS_UDP;
		p->sport = bpf_ntohs(udp->sport);
		p->dport = bpf_ntohs(udp->dport);
	} else if (proto == PROTO_ICMP && p->present & HAS_IP) {
		TAKE(icmp_wire, icmp, s, at);
		if (!icmp_there)
			return;
		p->present |= HAS_ICMP;
		p->icmp_type = icmp->type;
		p->icmp_code = icmp->code;
	} else if (proto == PROTO_ICMP6 && p->present & HAS_IP6) {
		TAKE(icmp6_wire, icmp6, s, at);
		if (!icmp6_there)
			return;
		p->present |= HAS_ICMP6;
		p->icmp_type = icmp6->type;
		p->icmp_code = icmp6->code;
	}
}

/* IPv4 at `*at`: moves it to the transport header and returns that header's protocol, or -1. */
static __always_inline int walk_ip(struct source *s, struct packet *p, __u32 *at)
{
	TAKE(ip_wire, ip, s, *at);

	if (!ip_there || ip->vihl >> 4 != 4 || (ip->vihl & 15) < 5)
		return -1;
	p->present |= HAS_IP;
	p->ip_src = bpf_ntohl(ip->src);
	p->ip_dst = bpf_ntohl(ip->dst);
	p->ip_proto = ip->proto;
	p->ip_ttl = ip->ttl;
	p->ip_tos = ip->tos;
	p->ip_len = bpf_ntohs(ip->len);
	*at += (ip->vihl & 15) * 4;
	return ip->frag & bpf_htons(0x1fff) ? -1 : ip->proto;
}

/*
 * Protocol numbers below 64 as bits.  The barrier keeps LLVM from turning a bit test into a compare and a branch: the
 * verifier follows every branch of the loop over extension headers, and two per turn already cost it 50,000 steps.
 */
static __always_inline __u64 bit_of(__u8 proto, __u64 set)
{
	asm("" : "+r"(set));
	return proto < 64 ? set >> proto & 1 : 0;
}

#define EXTENSIONS                                                                                                     \
	(1ull << PROTO_HOPOPTS | 1ull << PROTO_ROUTING | 1ull << PROTO_FRAGMENT | 1ull << PROTO_AH | 1ull << PROTO_DSTOPTS)

/* IPv6 at `*at`: the same, behind its extension headers. */
static __always_inline int walk_ip6(struct source *s, struct packet *p, __u32 *at)
{
	TAKE(ip6_wire, ip6, s, *at);
	__u8 next;

	if (!ip6_there || ip6->version >> 4 != 6)
		return -1;
	p->present |= HAS_IP6;
	p->ip6_src_hi = bpf_be64_to_cpu(ip6->src[0]);
	p->ip6_src_lo = bpf_be64_to_cpu(ip6->src[1]);
	p->ip6_dst_hi = bpf_be64_to_cpu(ip6->dst[0]);
	p->ip6_dst_lo = bpf_be64_to_cpu(ip6->dst[1]);
	p->ip6_hlim = ip6->hlim;
	p->ip6_len = bpf_ntohs(ip6->len);
	p->ip6_proto = next = ip6->next;
	*at += sizeof(*ip6);
#pragma clang loop unroll(disable)
	for (int i = 0; i < MAX_EXTENSIONS && bit_of(next, EXTENSIONS); i++) {
		TAKE(ext_wire, ext, s, *at);
		__u64 fragment = bit_of(next, 1ull << PROTO_FRAGMENT), ah = bit_of(next, 1ull << PROTO_AH);

		if (!ext_there)
			return -1;
		p->ip6_proto = next = ext->next;
		if (fragment * (ext->frag & bpf_htons(0xfff8)))
			return -1;
		/* (len + 1) * 8 bytes; AH (len + 2) * 4; a fragment header 8 */
		*at += (ext->len * (1 - fragment) + 1 + ah) * (8 - 4 * ah);
	}
	return bit_of(next, EXTENSIONS) ? -1 : next;
}

static __always_inline void walk_arp(struct source *s, struct packet *p, __u32 at)
{
	TAKE(arp_wire, arp, s, at);

	/* Ethernet and IPv4 addresses only: the other forms have other offsets (RFC 826). */
	if (!arp_there || arp->htype != bpf_htons(1) || arp->ptype != bpf_htons(ETHERTYPE_IP) || arp->hlen != 6 ||
	    arp->plen != 4)
		return;
	p->present |= HAS_ARP;
	p->arp_op = bpf_ntohs(arp->op);
	p->arp_spa = (__u32)bpf_ntohs(arp->spa[0]) << 16 | bpf_ntohs(arp->spa[1]);
	p->arp_tpa = (__u32)bpf_ntohs(arp->tpa[0]) << 16 | bpf_ntohs(arp->tpa[1]);
}

/*
 * Fill `p` from the packet.  `tpid` is non-zero when the kernel keeps the outer tag in metadata (socket buffers); then
 * the bytes behind the MAC addresses are the EtherType behind that tag.
 */
static __always_inline void walk(struct source *s, struct packet *p, __u16 tpid, __u16 tci)
{
	TAKE(eth_wire, eth, s, 0);
	__u32 at = sizeof(*eth);
	int proto = -1;
	__u16 type;

	if (!eth_there)
		return;
	p->present = HAS_ETH;
	p->eth_dst = mac48(eth->dst);
	p->eth_src = mac48(eth->src);
	type = bpf_ntohs(eth->type);
	p->eth_type = tpid ? tpid : type;
	if (tpid || is_tag(type)) {
		if (!tpid) {
			TAKE(vlan_wire, outer, s, at);
			if (!outer_there)
				return;
			at += sizeof(*outer);
			tci = bpf_ntohs(outer->tci);
			type = bpf_ntohs(outer->type);
		}
		p->present |= HAS_VLAN;
		p->vlan_tci = tci;
		p->vlan_etype = type;
		if (is_tag(type)) {
			TAKE(vlan_wire, inner, s, at);
			if (!inner_there)
				return;
			at += sizeof(*inner);
			type = bpf_ntohs(inner->type);
			p->present |= HAS_VLAN2;
			p->vlan2_tci = bpf_ntohs(inner->tci);
			p->vlan2_etype = type;
		}
	}
	if (type == ETHERTYPE_IP)
		proto = walk_ip(s, p, &at);
	else if (type == ETHERTYPE_IP6)
		proto = walk_ip6(s, p, &at);
	else if (type == ETHERTYPE_ARP)
		walk_arp(s, p, at);
	walk_transport(s, p, at, proto);
}
