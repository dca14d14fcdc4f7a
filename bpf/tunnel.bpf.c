/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The walk into a tunnel, one level deep: the inner headers of
 *  - IP in IP, protocols 4 and 41 (RFC 2003, RFC 4213);
 *  - GRE of version 0 without routing, with IPv4, IPv6 or Ethernet (0x6558) inside (RFC 2784, RFC 2890);
 *  - VXLAN, UDP to port 4789 with the I flag set (RFC 7348);
 *  - GENEVE, UDP to port 6081, version 0, with IPv4, IPv6 or Ethernet inside (RFC 8926);
 *  - GTP-U, UDP to port 2152, version 1, message 255, behind at most MAX_GTPU_EXTENSIONS extension headers
 *    (3GPP TS 29.281); what is inside is IPv4 or IPv6 by its first four bits;
 *  - MPLS, EtherTypes 0x8847 and 0x8848, at most MAX_LABELS labels (RFC 3032), with IPv4 or IPv6 by the first four bits.
 * The rules are those of headers.h, the same in xdpkit/meaning/tunnels.py.
 *
 * This is a module of its own, compiled for each hook and linked only where a rule reads what it finds.
 */
#include "source.h"
#include "headers.h"
#include "load.h"

/* ZERO() counts from 0 in each module.  This one is linked to a module where walk.h uses the next two numbers. */
enum { ZEROS_OF_WALK = __COUNTER__ + __COUNTER__ };

#define MAX_LABELS 8
#define MAX_GTPU_EXTENSIONS 4

enum { PORT_GTPU = 2152, PORT_VXLAN = 4789, PORT_GENEVE = 6081 };
enum { GRE_CSUM = 0x8000, GRE_ROUTING = 0x4000, GRE_KEY = 0x2000, GRE_SEQUENCE = 0x1000, GRE_VERSION = 7 };

struct tunnel_wire { __u8 flags, type; __be16 proto; __be32 id; };
struct option_wire { __be16 sequence; __u8 npdu, next; };
struct word_wire { __be32 value; };

/* What the first four bits at `at` say that it is, as an EtherType; 0 for what is no IP. */
static __always_inline __u32 version_at(struct source *s, __u32 at)
{
	struct byte_wire room;
	TAKE(byte_wire, first, s, at, &room);

	if (!first_there)
		return 0;
	return first->value >> 4 == 4 ? ETHERTYPE_IP : first->value >> 4 == 6 ? ETHERTYPE_IP6 : 0;
}

/* Each of the following moves `*at` from a tunnel's header to what is inside and returns its EtherType, 0 if unknown. */

static __always_inline __u32 enter_mpls(struct source *s, struct packet *p, __u32 *at)
{
	__u32 bottom = 0;

	p->outer.tunnel = *at;
#pragma clang loop unroll(disable)
	for (int i = 0; i < MAX_LABELS && !bottom; i++) {
		struct word_wire room;
		TAKE(word_wire, label, s, *at, i ? (void *)&room : p->room.tunnel);

		if (!label_there)
			return 0;
		p->outer.present |= HAS_MPLS;
		*at += sizeof(*label);
		bottom = label->value & bpf_htonl(0x100);
	}
	return bottom ? version_at(s, *at) : 0;
}

static __always_inline __u32 enter_gre(struct source *s, struct packet *p, __u32 *at)
{
	struct gre_wire room;
	TAKE(gre_wire, gre, s, *at, &room);
	__u16 flags;

	if (!gre_there)
		return 0;
	flags = bpf_ntohs(gre->flags);
	if (flags & (GRE_ROUTING | GRE_VERSION))
		return 0;
	*at += sizeof(*gre) + (flags & GRE_CSUM ? 4 : 0);
	if (flags & GRE_KEY) {
		TAKE(word_wire, key, s, *at, p->room.tunnel);
		if (!key_there)
			return 0;
		p->outer.present |= HAS_GRE_KEY;
		p->outer.tunnel = *at;
		*at += sizeof(*key);
	}
	*at += flags & GRE_SEQUENCE ? 4 : 0;
	return bpf_ntohs(gre->proto);
}

static __always_inline __u32 enter_gtpu(struct source *s, __u32 queue, __u32 *at, __u8 flags)
{
	struct option_wire room;
	__u8 next = 0;

	*at += sizeof(struct tunnel_wire);
	if (flags & 7) { /* a next extension header type, a sequence number, an N-PDU number: room for all three */
		TAKE(option_wire, option, s, *at, &room);
		if (!option_there)
			return 0;
		next = flags & 4 ? option->next : 0;
		*at += sizeof(*option);
	}
#pragma clang loop unroll(disable)
	for (int i = 0; i < MAX_GTPU_EXTENSIONS && next; i++) {
		struct byte_wire length_room, next_room;

		*at = hide_offset(*at, ZERO(queue));
		TAKE(byte_wire, length, s, *at, &length_room);
		if (!length_there || !length->value)
			return 0;
		*at += length->value * 4;
		TAKE(byte_wire, last, s, *at - 1, &next_room);
		if (!last_there)
			return 0;
		next = last->value;
	}
	return next ? 0 : version_at(s, *at);
}

/* UDP to a port of a tunnel. */
static __always_inline __u32 enter_udp(struct source *s, struct packet *p, __u32 wants, __u32 *at)
{
	struct udp_wire room;
	TAKE(udp_wire, udp, s, *at, &room);
	__u16 port;

	if (!udp_there)
		return 0;
	port = bpf_ntohs(udp->dport);
	if (port != PORT_VXLAN && port != PORT_GENEVE && port != PORT_GTPU)
		return 0;
	*at += sizeof(*udp);
	TAKE(tunnel_wire, tunnel, s, *at, p->room.tunnel);
	if (!tunnel_there)
		return 0;
	p->outer.tunnel = *at;
	if (port == PORT_VXLAN && wants & HAS_VXLAN && tunnel->flags & 8) {
		p->outer.present |= HAS_VXLAN;
		*at += sizeof(*tunnel);
		return ETHERTYPE_TEB;
	}
	if (port == PORT_GENEVE && wants & HAS_GENEVE && tunnel->flags >> 6 == 0) {
		p->outer.present |= HAS_GENEVE;
		*at += sizeof(*tunnel) + (tunnel->flags & 0x3f) * 4;
		return bpf_ntohs(tunnel->proto);
	}
	if (port == PORT_GTPU && wants & HAS_GTPU && (tunnel->flags & 0xf0) == 0x30) {
		p->outer.present |= HAS_GTPU;
		return tunnel->type == 255 ? enter_gtpu(s, p->rx_queue, at, tunnel->flags) : 0;
	}
	return 0;
}

GENERATED_CALLS void walk_tunnel(struct source *s, struct packet *p, __u32 at, int proto, __u32 type)
{
	__u64 both = wanted();
	__u32 wants = both, inside = 0, zero = ZERO(p->rx_queue);

	at = hide_offset(at, zero); /* one look of the verifier for all that led here, and below for all tunnels */
	if ((type == ETHERTYPE_MPLS || type == ETHERTYPE_MPLS_MULTICAST) && wants & HAS_MPLS)
		inside = enter_mpls(s, p, &at);
	else if (proto == PROTO_IPIP)
		inside = ETHERTYPE_IP;
	else if (proto == PROTO_IP6)
		inside = ETHERTYPE_IP6;
	else if (proto == PROTO_GRE && wants & HAS_GRE)
		inside = enter_gre(s, p, &at);
	else if (proto == PROTO_UDP && wants & HAS_UDP)
		inside = enter_udp(s, p, wants, &at);
	wants = both >> 32;
	if (!wants)
		return;
	zero = ZERO(p->rx_queue);
	at = hide_offset(at, zero);
	p->outer.present ^= zero;
	p->outer.tunnel = hide_offset(p->outer.tunnel, zero);
	if (inside == ETHERTYPE_TEB)
		inside = walk_link(s, &p->inner, &p->inner_room, wants, &at, 0, 0);
	else if (inside != ETHERTYPE_IP && inside != ETHERTYPE_IP6)
		return;
	walk_network(s, &p->inner, &p->inner_room, wants, p->rx_queue, &at, inside);
}
