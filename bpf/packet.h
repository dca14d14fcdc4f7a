/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What the walk over headers works with: the packet's bytes, the headers that it notes, and numbers that are hidden from
 * the verifier.
 *
 * The entry defines `struct source` and take(): `*at` becomes the `size` bytes at `offset`, in place or copied to `room`;
 * take() returns 0 where the packet has no such bytes.  The entry defines IN_PLACE where nothing is ever read from a room.
 */
#pragma once
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "packet_layout.h"

enum { ETHERTYPE_IP = 0x0800, ETHERTYPE_ARP = 0x0806, ETHERTYPE_TEB = 0x6558, ETHERTYPE_VLAN = 0x8100,
       ETHERTYPE_IP6 = 0x86dd, ETHERTYPE_MPLS = 0x8847, ETHERTYPE_MPLS_MULTICAST = 0x8848, ETHERTYPE_QINQ = 0x88a8 };
enum { PROTO_HOPOPTS = 0, PROTO_ICMP = 1, PROTO_IPIP = 4, PROTO_TCP = 6, PROTO_UDP = 17, PROTO_IP6 = 41,
       PROTO_ROUTING = 43, PROTO_FRAGMENT = 44, PROTO_GRE = 47, PROTO_AH = 51, PROTO_ICMP6 = 58, PROTO_DSTOPTS = 60,
       PROTO_SCTP = 132 };

/* Wire formats, as the walk reads them. */
struct eth_wire { __be16 dst[3], src[3], type; };
struct vlan_wire { __be16 tci, type; };
struct arp_wire { __be16 htype, ptype; __u8 hlen, plen; __be16 op; }; /* and addresses of these lengths */
struct ip_wire { __u8 vihl, tos; __be16 len, id, frag; __u8 ttl, proto; __be16 sum; __be32 src, dst; };
struct ip6_wire { __u8 version, rest[3]; __be16 len; __u8 next, hlim; __be64 src[2], dst[2]; };
struct ext_wire { __u8 next, len; __be16 frag; __be32 rest; };
struct tcp_wire { __be16 sport, dport; __be32 seq, ack; __u8 off, flags; __be16 win, sum, urg; };
struct udp_wire { __be16 sport, dport, len, sum; };
struct icmp_wire { __u8 type, code; __be16 sum; __be32 rest; };
struct icmp6_wire { __u8 type, code; __be16 sum; };
struct sctp_wire { __be16 sport, dport; __be32 vtag, sum; };
struct gre_wire { __be16 flags, proto; };
struct byte_wire { __u8 value; };
struct half_wire { __be16 value; };

#ifdef IN_PLACE
#define ROOMS 0
#else
#define ROOMS 1
#endif

struct source;
static __always_inline int take(struct source *s, __u32 offset, __u32 size, void *room, const void **at);

/* `const type *name` and `name_there`: the header at `offset`; socket buffers are copied to `room`, packets read in place. */
#define TAKE(type, name, s, offset, room)                                                                              \
	const struct type *name;                                                                                       \
	int name##_there = take(s, offset, sizeof(*name), room, (const void **)&name)

/* What classify() calls: the header of `size` bytes at `at`, found present by the walk, in place or in its room. */
int header(struct source *s, __u32 at, __u32 size, const void *room, const void **where);

/* The same for bytes that the walk knows nothing of, `from` bytes behind `at`: 0 where the packet has none. */
int bytes(struct source *s, __u32 at, __u32 from, __u32 size, void *room, const void **where);

/*
 * Generated: the HAS_ bits of the headers that rules read and of all on the way to them, those inside a tunnel in the
 * upper half.  HIDE_HEADERS: hide_headers() is called.  HEADERS_IN_MAP: the walk over a socket buffer that is read in
 * place keeps what it finds in a map, because the rules need the stack.
 */
__u64 wanted(void);
#define HIDE_HEADERS (1u << 31)
#define HEADERS_IN_MAP (1u << 30)

/* Generated, a constant: the WANTED_META_ bits of the values outside headers that rules test. */
__u32 wanted_meta(void);

/*
 * A zero that the verifier takes for an unknown number.  The verifier follows all rules once for every combination of the
 * numbers that it knows (which headers are present, where they start), and once only for numbers that it does not know.
 * So known numbers are combined with such a zero by XOR.  Each use of the macro is a different zero for LLVM too: LLVM would
 * otherwise remove two XORs with the same one.
 */
#define ZERO(queue)                                                                                                    \
	({                                                                                                             \
		__u32 same = (queue);                                                                                  \
		asm("" : "+r"(same) : "i"(__COUNTER__));                                                               \
		(queue) ^ same;                                                                                        \
	})

#define MAX_AT 0x7fff /* of the walk: six extension headers of 2 KiB outside and inside, and some */

static __always_inline __u32 hide_offset(__u32 at, __u32 zero)
{
	return (at ^ zero) & MAX_AT;
}

/* An offset that the walk noted in a map: the verifier does not know what was written there, and needs a bound. */
static __always_inline __u32 offset_from_map(__u32 at)
{
	asm("" : "+r"(at));
	return at & MAX_AT;
}

static __always_inline void hide_headers(struct headers *h, __u32 zero)
{
	h->present ^= zero;
	h->eth = hide_offset(h->eth, zero);
	h->l3 = hide_offset(h->l3, zero);
	h->frag = hide_offset(h->frag, zero);
	h->routing = hide_offset(h->routing, zero);
	h->l4 = hide_offset(h->l4, zero);
	h->payload = hide_offset(h->payload, zero);
	h->tunnel = hide_offset(h->tunnel, zero);
	h->eth_type ^= zero;
	h->vlan_tci ^= zero;
	h->vlan_etype ^= zero;
	h->vlan2_tci ^= zero;
	h->vlan2_etype ^= zero;
	h->tcp_mss ^= zero;
	h->ip6_proto ^= zero;
}
