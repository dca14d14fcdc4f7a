/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Connections, as in xdpkit/meaning/flows.py, which says what the states mean.
 *
 * This is a module of its own, compiled for each hook and linked only where a pipeline tracks.
 *
 * What the tables look at is noted in a map of one entry, not on the stack, and two functions that only work on that are
 * global.  The verifier follows a global function once by itself, and not for each path on which it is called, so the
 * states of TCP cost the rules nothing.  The flow that was found stays in a register of the program, still unchecked
 * (the verifier would follow all rules for a flow and again for none).  A half-open flow is looked up again at the end.
 *
 * Two CPUs may have packets of one flow at the same time.  All that one can lose then is the other's step of a window's
 * edge, which the next packet makes again.
 */
#include "source.h"
#include "headers.h"
#include "flow.h"
#include "load.h"

/*
 * One key for both directions: the smaller endpoint first, addresses of IPv4 as IPv4-mapped ones (RFC 4291 section 2.5.5.2; in
 * a packet of IPv6 such an address is no right one).  A query of ICMP has its identifier and its kind in place of ports;
 * fragments have their identification there, and the sender first.
 */
struct flow_key {
	__u64 low[2], high[2];
	union {
		__be16 port[2];
		__u32 ports;
	};
	__u32 tags; /* protocol, and identifiers of both VLAN tags (0 without one) from bits 8 and 20 up */
};
_Static_assert(sizeof(struct flow_key) == 40, "shared with user space");

/* The tables are made by user space (xdpkit/link/flows.py): it sets their sizes, and several programs share them. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(struct flow_key));
	__uint(value_size, sizeof(struct flow));
} flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(struct flow_key));
	__uint(value_size, sizeof(struct flow));
} half_open SEC(".maps");

/* First fragments that were let go: until when those behind them are, too. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(struct flow_key));
	__uint(value_size, sizeof(__u64));
} fragments SEC(".maps");

/* LEARN_UNTIL: time in ns.  FULL: packets that found no room.  LEARNED: flows that were picked up while learning. */
enum { LEARN_UNTIL, FULL, LEARNED, NOTES };

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, NOTES);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u64));
} flow_notes SEC(".maps");

/* Set before load.  Time-outs are in milliseconds. */
const volatile __u32 flow_loose = 0, flow_counted = 0;
const volatile __u32 tcp_syn_sent_ms = 0, tcp_syn_recv_ms = 0, tcp_established_ms = 0, tcp_closing_ms = 0,
		     tcp_time_wait_ms = 0, tcp_closed_ms = 0, udp_ms = 0, udp_stream_ms = 0, icmp_ms = 0, other_ms = 0;
#define MS 1000000ull
/* The end of a flow's life is written again when a 64th of it has passed: most packets write nothing. */
#define EXPIRES_SHIFT 6
#define FRAGMENT_NS (30000 * MS)

enum { FIN = 1, SYN = 2, RST = 4, ACK = 16 };
enum kind { NONE, BAD, TCP, PLAIN, QUERY, ANSWER, ERROR, LATER };
enum stage { SYN_SENT = 1, SYN_RECV, ESTABLISHED, CLOSING, TIME_WAIT, CLOSED, STATELESS };
enum action { KEEP, OPEN, RESTART, CROSS, UPDATE, CLOSE };
enum { IS_UNTRACKED, IS_NEW, IS_ESTABLISHED, IS_RELATED, IS_INVALID, IS_ORIGINAL = 1 << 4, IS_REPLY = 2 << 4 };
/* Of a flow: by whom it was opened; which sides have sent a FIN; the other side has sent data before the handshake ended. */
enum { OPENED_BY_HIGH = 1, ANSWERED = 2, ASSURED = 4, HAS_FIN = 8, HAS_OTHER_FIN = 16, HAS_EARLY_DATA = 32 };
#define NO_SCALE 0xff
#define MAX_SCALE 14
#define MAX_OPTIONS 16
#define OPTION_BYTES 40
#define ACK_WINDOW 66000

struct tracked {
	__u64 now_ns, tick;
	struct flow_key key, other; /* other: of fragments, or of the packet that an ICMP error quotes */
	__u32 seq, end, ack, window, len, options;
	__u8 kind, flags, high, way, state, action, half, dead, fragment, scale, start, family;
	__u8 bytes[64] __attribute__((aligned(8))); /* TCP options, or the IP header that an ICMP error quotes */
	__u8 quoted[8]; /* and what is behind that */
	__u8 target[16]; /* whoever gets the ICMP error */
	struct flow made;
	struct flow_counts made_counts;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct tracked);
} tracked SEC(".maps");

static __always_inline struct tracked *tracked_room(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&tracked, &zero);
}

static __always_inline __u64 *note(__u32 which)
{
	return bpf_map_lookup_elem(&flow_notes, &which);
}

/* ---- what the tables look at: track_find() ---- */

static __always_inline long copy_bytes(struct source *s, __u32 offset, void *to, __u32 size)
{
#ifdef XDP
	return bpf_xdp_load_bytes(s->ctx, offset, to, size);
#else
	return bpf_skb_load_bytes(s->skb, offset, to, size);
#endif
}

/*
 * Two numbers as they are side by side in memory.  The kernel hashes a key in words of 32 bits: a word that was stored in
 * parts it can read only when they have left the processor's store buffer.
 */
static __always_inline __u32 pair(__u16 first, __u16 second)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	return first | (__u32)second << 16;
#else
	return (__u32)first << 16 | second;
#endif
}

static __always_inline __u64 words(__u32 first, __u32 second)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	return first | (__u64)second << 32;
#else
	return (__u64)first << 32 | second;
#endif
}

static __always_inline __u16 first_half(__be32 word)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	return word;
#else
	return word >> 16;
#endif
}

static __always_inline void put4(__u64 *to, __be32 address)
{
	to[0] = 0;
	to[1] = words(bpf_htonl(0xffff), address);
}

static __always_inline int is_mapped(const __u64 *address)
{
	return !address[0] && ((const __u32 *)address)[2] == bpf_htonl(0xffff);
}

static __always_inline void put6(__u64 *to, const __be64 *from)
{
	to[0] = from[0];
	to[1] = from[1];
}

/* The flags of a TCP header that contradict each other (RFC 9293 section 3.10.7). */
static __always_inline int are_odd(__u32 flags)
{
	if (flags & SYN)
		return flags & (FIN | RST);
	return flags & RST ? flags & FIN : !(flags & ACK);
}

static __always_inline void find_tcp(struct source *s, struct tracked *t, __u32 at, const struct tcp_wire *tcp, __u32 size)
{
	__u32 header = (tcp->off >> 4) * 4, flags = tcp->flags & (FIN | SYN | RST | ACK), count = header - sizeof(*tcp);

	t->flags = flags;
	t->kind = header < sizeof(*tcp) || size > 0x7fffffff || size < header || are_odd(flags) ? BAD : TCP;
	t->seq = bpf_ntohl(tcp->seq);
	t->ack = bpf_ntohl(tcp->ack);
	t->window = bpf_ntohs(tcp->win);
	t->end = t->seq + size - header + (flags >> 1 & 1) + (flags & 1);
	t->options = 0;
	if (flags & SYN && count - 1 < OPTION_BYTES) {
		asm("" : "+r"(count));
		if (count && count <= OPTION_BYTES && !copy_bytes(s, at + sizeof(*tcp), t->bytes, count))
			t->options = count;
	}
}

static __always_inline void find_icmp(struct source *s, struct tracked *t, __u32 at, __u32 proto, __u32 type, __be32 rest,
				      int has_id)
{
	__u32 error, ask, answer, base;

	if (proto == PROTO_ICMP) {
		error = type < 32 && 1u << type & (1u << 3 | 1u << 4 | 1u << 5 | 1u << 11 | 1u << 12);
		ask = type == 8 || type == 13 || type == 15 || type == 17;
		answer = type == 0 || type == 14 || type == 16 || type == 18;
		base = ask ? type : type ? type - 1 : 8;
	} else {
		error = type - 1 < 4;
		ask = type == 128;
		answer = type == 129;
		base = 128;
	}
	t->kind = error ? ERROR : !ask && !answer ? NONE : !has_id ? BAD : ask ? QUERY : ANSWER;
	t->key.ports = pair(first_half(rest), base << 1);
	if (error) {
		__u32 size = proto == PROTO_ICMP ? sizeof(struct ip_wire) : sizeof(struct ip6_wire), below;

		t->options = 0;
		if (proto == PROTO_ICMP ? copy_bytes(s, at + 8, t->bytes, sizeof(struct ip_wire))
					: copy_bytes(s, at + 8, t->bytes, sizeof(struct ip6_wire)))
			return;
		below = at + 8 + (proto == PROTO_ICMP ? (t->bytes[0] & 15) * 4 : size);
		t->options = !copy_bytes(s, below, t->quoted, sizeof(t->quoted));
	}
}

/*
 * Note what the tables look at, and find the flow among those that were seen in both directions: NULL where there is none,
 * or where the packet has no flow of its own.
 */
__attribute__((always_inline)) struct flow *track_find(struct source *s, const struct packet *p)
{
	const struct headers *h = &p->outer;
	struct tracked *t = tracked_room();
	__u32 at = offset_from_map(h->l4), proto, size, later = 0, more = 0, ident = 0, tags;
	__u32 len = p->len, v4 = h->present & HAS_IP;
	__be16 sport = 0, dport = 0;
	__s32 order = 0; /* of the addresses: -1 where the source is the smaller */
	struct flow_key *k;

	if (!t)
		return 0;
	k = &t->key;
	t->kind = NONE;
	t->now_ns = coarse_now(&t->tick, t->now_ns);
	t->len = len;
	t->fragment = 0;
	tags = h->present & HAS_VLAN ? (h->vlan_tci & 0xfff) << 8 : 0;
	if (h->present & HAS_VLAN2)
		tags |= (__u32)h->vlan2_tci << 20;
#ifndef XDP
	len -= s->tpid ? TAG_SIZE : 0; /* offsets count without the tag */
#endif
	if (v4) {
		__u32 below = offset_from_map(h->l3);
		TAKE(ip_wire, ip, s, below, 0);
		__u32 header;

		if (!ip_there)
			return 0;
		proto = ip->proto;
		header = (ip->vihl & 15) * 4;
		size = ip->len ? bpf_ntohs(ip->len) - header : len - (below + header);
		later = bpf_ntohs(ip->frag) & 0x1fff;
		more = bpf_ntohs(ip->frag) >> 13 & 1;
		ident = bpf_ntohs(ip->id);
		t->family = 4;
		order = ip->src == ip->dst ? 0 : ip->src < ip->dst ? -1 : 1;
		put4(order > 0 ? k->high : k->low, ip->src);
		put4(order > 0 ? k->low : k->high, ip->dst);
		*(__be32 *)t->target = ip->dst;
	} else if (h->present & HAS_IP6) {
		__u32 below = offset_from_map(h->l3);
		TAKE(ip6_wire, ip6, s, below, 0);

		if (!ip6_there)
			return 0;
		proto = h->ip6_proto;
		size = ip6->len ? bpf_ntohs(ip6->len) + sizeof(*ip6) + below - at : len - at;
		t->family = 6;
		if (ip6->src[0] != ip6->dst[0])
			order = ip6->src[0] < ip6->dst[0] ? -1 : 1;
		else if (ip6->src[1] != ip6->dst[1])
			order = ip6->src[1] < ip6->dst[1] ? -1 : 1;
		put6(order > 0 ? k->high : k->low, ip6->src);
		put6(order > 0 ? k->low : k->high, ip6->dst);
		put6((__u64 *)t->target, ip6->dst);
		if (h->present & HAS_FRAG) {
			TAKE(ext_wire, frag, s, offset_from_map(h->frag), 0);

			if (!frag_there)
				return 0;
			later = bpf_ntohs(frag->frag) >> 3;
			more = bpf_ntohs(frag->frag) & 1;
			ident = bpf_ntohl(frag->rest);
		}
	} else {
		return 0;
	}
	k->tags = tags | (proto & 0xff);
	if (later || more) { /* the key of this packet's fragments: from whom to whom, and which packet */
		t->fragment = 1;
		t->other = *k;
		t->other.ports = ident;
		if (order > 0) {
			t->other.low[0] = k->high[0], t->other.low[1] = k->high[1];
			t->other.high[0] = k->low[0], t->other.high[1] = k->low[1];
		}
	}
	if (later) {
		t->kind = LATER;
		return 0;
	}
	t->kind = BAD;
	if (!v4 && (is_mapped(k->low) || is_mapped(k->high)))
		return 0;
	if (proto == PROTO_TCP) {
		TAKE(tcp_wire, tcp, s, at, 0);

		if (!(h->present & HAS_TCP) || !tcp_there)
			return 0;
		sport = tcp->sport, dport = tcp->dport;
		find_tcp(s, t, at, tcp, size);
	} else if (proto == PROTO_UDP) {
		TAKE(udp_wire, udp, s, at, 0);

		if (!(h->present & HAS_UDP) || !udp_there)
			return 0;
		sport = udp->sport, dport = udp->dport;
		t->kind = PLAIN;
	} else if (proto == PROTO_SCTP) {
		TAKE(sctp_wire, sctp, s, at, 0);

		if (!(h->present & HAS_SCTP) || !sctp_there)
			return 0;
		sport = sctp->sport, dport = sctp->dport;
		t->kind = PLAIN;
	} else if (proto == PROTO_ICMP && v4) {
		TAKE(icmp_wire, icmp, s, at, 0);

		if (!(h->present & HAS_ICMP) || !icmp_there)
			return 0;
		find_icmp(s, t, at, proto, icmp->type, icmp->rest, 1);
	} else if (proto == PROTO_ICMP6 && !v4) {
		TAKE(icmp6_wire, icmp6, s, at, 0);

		if (!(h->present & HAS_ICMP6) || !icmp6_there)
			return 0;
		t->options = !copy_bytes(s, at + sizeof(*icmp6), &t->seq, sizeof(t->seq));
		find_icmp(s, t, at, proto, icmp6->type, t->seq, t->options);
	} else if (v4 || !bit_of(proto, EXTENSIONS)) {
		t->kind = PLAIN;
	}
	if (t->kind == QUERY || t->kind == ANSWER) {
		t->high = order > 0;
		k->ports |= t->kind == QUERY ? pair(0, order <= 0) : pair(0, order >= 0); /* the first endpoint asks */
	} else {
		if (!order)
			order = sport > dport;
		t->high = order > 0;
		k->ports = order > 0 ? pair(dport, sport) : pair(sport, dport);
	}
	return t->kind == TCP || t->kind == PLAIN || t->kind == QUERY || t->kind == ANSWER ? bpf_map_lookup_elem(&flows, k) : 0;
}

/* ---- TCP ---- */

/*
 * The window scale option (RFC 7323 section 2), or NO_SCALE.  `start` is 0, which the verifier does not know: it then takes
 * all places in the options for one.
 */
static __always_inline __u32 scale_of(const struct tracked *t)
{
	__u32 at = t->start & 63, end = t->options;

#pragma clang loop unroll(disable)
	for (int i = 0; i < MAX_OPTIONS && at < end; i++) {
		__u32 kind = t->bytes[at & 63], length = t->bytes[(at + 1) & 63];

		if (kind == 1) {
			length = 1;
		} else if (!kind || at + 1 >= end || length < 2) {
			break;
		} else if (kind == 3) {
			if (length != 3 || at + 3 > end)
				break;
			length = t->bytes[(at + 2) & 63];
			return length < MAX_SCALE ? length : MAX_SCALE;
		}
		at += length;
	}
	return NO_SCALE;
}

/* Note it: a function of its own, see above. */
__attribute__((noinline)) __u32 track_scale(void)
{
	struct tracked *t = tracked_room();

	if (!t)
		return 0;
	t->scale = t->options ? scale_of(t) : NO_SCALE;
	return 0;
}

static __always_inline int after(__u32 a, __u32 b)
{
	return (__s32)(a - b) > 0;
}

#define before(a, b) after(b, a)

static __always_inline __u32 larger(__u32 a, __u32 b)
{
	return a > b ? a : b;
}

static __always_inline int in_window(const struct tracked *t, const struct flow_side *mine, const struct flow_side *theirs)
{
	if (!mine->max_window)
		return 1;
	if (after(t->seq, mine->max_end))
		return 0;
	if (!theirs->max_window)
		return 1;
	if (before(t->end, mine->end - theirs->max_window))
		return 0;
	if (!(t->flags & ACK))
		return 1;
	return !after(t->ack, theirs->end) && !before(t->ack, theirs->end - larger(mine->max_window, ACK_WINDOW));
}

/* After a SYN alone: its answer, or a RST of either side. */
static __always_inline __u32 judge_answer(struct tracked *t, const struct flow_side *mine, const struct flow_side *theirs)
{
	__u32 acknowledges = t->flags & ACK && !before(t->ack, mine->end) && !after(t->ack, theirs->end);

	if (!t->way) {
		if (!(t->flags & RST))
			return IS_INVALID;
		t->action = t->seq == mine->end ? CLOSE : KEEP;
		return IS_NEW;
	}
	if (t->flags & (RST | SYN)) {
		if (!acknowledges)
			return IS_INVALID;
		t->action = t->flags & RST ? CLOSE : UPDATE;
		return IS_ESTABLISHED;
	}
	return t->flags & FIN || t->end != t->seq ? IS_INVALID : IS_ESTABLISHED;
}

/* What the packet is to its TCP connection; `action` is what it does to it. */
static __always_inline __u32 judge_tcp(struct tracked *t, const struct flow *f)
{
	const struct flow_side *mine = t->way ? &f->side[1] : &f->side[0], *theirs = t->way ? &f->side[0] : &f->side[1];
	__u32 flags = t->flags, stage = f->stage;

	if ((flags & (SYN | ACK)) == SYN) {
		if (stage == TIME_WAIT || stage == CLOSED) {
			t->action = OPEN;
			return IS_NEW;
		}
		if (stage == SYN_SENT) {
			t->action = t->way ? CROSS : RESTART;
			return t->way ? IS_ESTABLISHED : IS_NEW;
		}
		return IS_ESTABLISHED;
	}
	if (stage == SYN_SENT)
		return judge_answer(t, mine, theirs);
	if (stage == CLOSED && !(f->flags & ANSWERED))
		return flags & RST ? IS_ESTABLISHED : IS_INVALID;
	if (!in_window(t, mine, theirs))
		return IS_INVALID;
	if (flags & RST) {
		t->action = CLOSE;
		return IS_ESTABLISHED;
	}
	if (stage == SYN_RECV && !t->way && !(flags & SYN) && t->ack != theirs->end && !(f->flags & HAS_EARLY_DATA))
		return IS_INVALID;
	t->action = UPDATE;
	return IS_ESTABLISHED;
}

/* Ends and windows after a packet that is in the window. */
static __always_inline void moved(const struct tracked *t, __u32 scale, struct flow_side *mine, struct flow_side *theirs)
{
	__u32 window = t->flags & SYN ? t->window : t->window << (scale & 15), edge;

	if (!mine->max_window) {
		mine->end = t->end;
		mine->max_window = larger(window, 1);
		mine->max_end = t->end + larger(theirs->max_window, mine->max_window);
		if (t->flags & ACK && (!theirs->max_window || after(t->ack, theirs->end))) {
			theirs->end = t->ack;
			if (!theirs->max_window)
				theirs->max_end = t->ack;
		}
	} else {
		if (window > mine->max_window)
			mine->max_window = window;
		if (after(t->end, mine->end))
			mine->end = t->end;
	}
	edge = t->ack + larger(window, 1);
	if (t->flags & ACK && after(edge, theirs->max_end))
		theirs->max_end = edge;
}

static __always_inline void finished(const struct tracked *t, struct flow *f, __u32 way)
{
	__u32 fin = way ? HAS_OTHER_FIN : HAS_FIN, fins;

	if (t->flags & FIN && !(f->flags & fin))
		f->flags |= fin;
	if (f->stage != ESTABLISHED && f->stage != CLOSING)
		return;
	fins = !!(f->flags & HAS_FIN) + !!(f->flags & HAS_OTHER_FIN);
	if (f->stage != ESTABLISHED + fins)
		f->stage = ESTABLISHED + fins;
}

/* The SYN of the side that answers.  Windows are scaled only if both say so (RFC 7323 section 2.2). */
static __always_inline void synchronise(const struct tracked *t, struct flow *f, struct flow_side *mine,
					struct flow_side *theirs)
{
	__u32 scale = t->scale;

	mine->end = t->end;
	mine->max_window = larger(t->window, 1);
	mine->max_end = t->end + theirs->max_window;
	if (scale == NO_SCALE || f->scale[0] == NO_SCALE) /* only the other side of an opener answers */
		f->scale[0] = f->scale[1] = 0;
	else
		f->scale[1] = scale;
}

/* A SYN, or a packet in the middle of a connection. */
static __always_inline void begin(const struct tracked *t, struct flow *f)
{
	struct flow_side *mine = &f->side[0], *theirs = &f->side[1];

	mine->end = mine->max_end = t->end;
	f->flags &= ~HAS_FIN;
	if ((t->flags & (SYN | ACK)) == SYN) {
		f->stage = SYN_SENT;
		mine->max_window = larger(t->window, 1);
		f->scale[0] = t->scale;
		theirs->end = t->seq + 1;
		return;
	}
	f->stage = ESTABLISHED;
	f->scale[0] = f->scale[1] = MAX_SCALE;
	mine->max_window = 0;
	moved(t, MAX_SCALE, mine, theirs);
	finished(t, f, 0);
}

static __always_inline void close_tcp(const struct tracked *t, struct flow *f, const struct flow_side *mine)
{
	/* a receiver takes a RST only if it is the very next (RFC 5961 section 3.2); of another one it may not */
	if (t->seq == mine->end || f->stage < ESTABLISHED)
		f->stage = CLOSED;
	else if (f->stage == ESTABLISHED)
		f->stage = CLOSING; /* until the next packet */
}

static __always_inline void update_tcp(const struct tracked *t, struct flow *f)
{
	struct flow_side *mine = t->way ? &f->side[1] : &f->side[0], *theirs = t->way ? &f->side[0] : &f->side[1];

	if (t->action == RESTART) {
		begin(t, f);
	} else if (t->action == CROSS) {
		f->stage = SYN_RECV;
		synchronise(t, f, mine, theirs);
	} else if (t->action == CLOSE) {
		close_tcp(t, f, mine);
	} else if (f->stage == SYN_SENT) {
		f->stage = SYN_RECV;
		synchronise(t, f, mine, theirs);
		moved(t, f->scale[1], mine, theirs);
	} else {
		moved(t, t->way ? f->scale[1] : f->scale[0], mine, theirs);
		if (f->stage == SYN_RECV) {
			if (t->way && !(t->flags & SYN) && t->end != t->seq)
				f->flags |= HAS_EARLY_DATA;
			if (!t->way && !(t->flags & SYN)) {
				f->stage = ESTABLISHED;
				f->flags |= ANSWERED;
			}
		} else if (t->way && !(f->flags & ANSWERED)) {
			f->flags |= ANSWERED;
		}
		finished(t, f, t->way);
	}
}

/* ---- flows ---- */

static __always_inline __u64 lifetime_ms(const struct tracked *t, const struct flow *f)
{
	switch (f->stage) {
	case SYN_SENT:
		return tcp_syn_sent_ms;
	case SYN_RECV:
		return tcp_syn_recv_ms;
	case ESTABLISHED:
		return f->flags & ANSWERED ? tcp_established_ms : tcp_syn_sent_ms;
	case CLOSING:
		return tcp_closing_ms;
	case TIME_WAIT:
		return tcp_time_wait_ms;
	case CLOSED:
		return tcp_closed_ms;
	}
	if (t->kind == QUERY || t->kind == ANSWER)
		return icmp_ms;
	if ((t->key.tags & 0xff) == PROTO_UDP)
		return f->flags & ASSURED ? udp_stream_ms : udp_ms;
	return other_ms;
}

static __always_inline void lives_on(const struct tracked *t, struct flow *f)
{
	__u64 lifetime = lifetime_ms(t, f) * MS, expires = t->now_ns + lifetime;

	if (f->stage == CLOSED && f->expires_ns && f->expires_ns < expires)
		return; /* what still comes does not keep it */
	if (expires - f->expires_ns > lifetime >> EXPIRES_SHIFT) /* or it is earlier */
		f->expires_ns = expires;
}

static __always_inline void update(const struct tracked *t, struct flow *f)
{
	if (t->action == KEEP)
		return;
	if (t->kind == TCP) {
		update_tcp(t, f);
	} else if (t->way) {
		if (!(f->flags & ANSWERED))
			f->flags |= ANSWERED;
	} else if ((f->flags & (ANSWERED | ASSURED)) == ANSWERED) {
		f->flags |= ASSURED;
	}
	lives_on(t, f);
}

/* With this packet a half-open flow has been seen in both directions. */
static __always_inline int completes(const struct tracked *t, const struct flow *f)
{
	if (t->kind != TCP)
		return t->way || f->flags & ANSWERED;
	if (t->action != UPDATE || f->stage == SYN_SENT)
		return 0;
	if (f->stage == SYN_RECV)
		return !t->way && !(t->flags & SYN);
	return t->way || f->flags & ANSWERED;
}

/* Find the key of the packet that an ICMP error quotes; 0 where it cannot be found. */
static __always_inline int quoted_key(struct tracked *t)
{
	const struct ip_wire *ip = (void *)t->bytes;
	const struct ip6_wire *ip6 = (void *)t->bytes;
	const struct icmp_wire *icmp = (void *)t->quoted;
	const __be16 *ports = (void *)t->quoted;
	__u32 v4 = t->family == 4, proto, ask, answer, base, type = icmp->type;
	struct flow_key *k = &t->other;
	__be16 sport = ports[0], dport = ports[1];
	__s32 order = 0;

	if (!t->options || ip->vihl >> 4 != (v4 ? 4 : 6))
		goto nothing;
	if (v4) {
		proto = ip->proto;
		if ((ip->vihl & 15) < 5 || ip->frag & bpf_htons(0x1fff) || ip->src != *(__be32 *)t->target)
			goto nothing;
		order = ip->src == ip->dst ? 0 : ip->src < ip->dst ? -1 : 1;
		put4(order > 0 ? k->high : k->low, ip->src);
		put4(order > 0 ? k->low : k->high, ip->dst);
	} else {
		const __be64 *target = (void *)t->target;

		proto = ip6->next;
		if (ip6->src[0] != target[0] || ip6->src[1] != target[1])
			goto nothing;
		if (ip6->src[0] != ip6->dst[0])
			order = ip6->src[0] < ip6->dst[0] ? -1 : 1;
		else if (ip6->src[1] != ip6->dst[1])
			order = ip6->src[1] < ip6->dst[1] ? -1 : 1;
		put6(order > 0 ? k->high : k->low, ip6->src);
		put6(order > 0 ? k->low : k->high, ip6->dst);
		if (is_mapped(k->low) || is_mapped(k->high))
			goto nothing;
	}
	k->tags = (t->key.tags & ~0xff) | proto;
	if (proto == (v4 ? PROTO_ICMP : PROTO_ICMP6)) {
		ask = v4 ? type == 8 || type == 13 || type == 15 || type == 17 : type == 128;
		answer = v4 ? type == 0 || type == 14 || type == 16 || type == 18 : type == 129;
		base = v4 ? ask ? type : type ? type - 1 : 8 : 128;
		if (!ask && !answer)
			goto nothing;
		k->ports = pair(first_half(icmp->rest), base << 1 | (ask ? order <= 0 : order >= 0));
		return 1;
	}
	if (proto != PROTO_TCP && proto != PROTO_UDP && proto != PROTO_SCTP)
		sport = dport = 0;
	if (!order)
		order = sport > dport;
	k->ports = order > 0 ? pair(dport, sport) : pair(sport, dport);
	return 1;
nothing:
	return 0;
}

static __always_inline int is_live(const struct tracked *t, const struct flow *f)
{
	return f && f->expires_ns > t->now_ns;
}

static __always_inline __u32 judge_quoted(struct tracked *t)
{
	struct flow *f;

	if (!quoted_key(t))
		return IS_INVALID;
	f = bpf_map_lookup_elem(&flows, &t->other);
	if (is_live(t, f))
		return IS_RELATED;
	f = bpf_map_lookup_elem(&half_open, &t->other);
	return is_live(t, f) ? IS_RELATED : IS_INVALID;
}

static __always_inline __u32 judge_later(struct tracked *t)
{
	__u64 *until = bpf_map_lookup_elem(&fragments, &t->other);

	return until && *until > t->now_ns ? IS_ESTABLISHED : IS_INVALID;
}

/* A packet of no flow that is known. */
static __always_inline __u32 judge_unknown(struct tracked *t)
{
	__u64 *until = note(LEARN_UNTIL);
	__u32 learning = until && *until > t->now_ns, state = IS_NEW;

	if (t->kind == ANSWER)
		return IS_INVALID;
	if (t->kind == TCP && (t->flags & (SYN | ACK)) != SYN) {
		if (t->flags & RST || !(learning || flow_loose))
			return IS_INVALID;
		state = learning ? IS_ESTABLISHED : IS_NEW;
	} else if (t->kind == PLAIN && learning) {
		state = IS_ESTABLISHED;
	}
	t->action = OPEN;
	return state;
}

static __always_inline __u32 judge_flow(struct tracked *t, const struct flow *f)
{
	__u32 state;

	t->way = t->kind == QUERY ? 0 : t->kind == ANSWER ? 1 : t->high != (f->flags & OPENED_BY_HIGH);
	if (t->kind == TCP) {
		state = judge_tcp(t, f);
	} else {
		t->action = UPDATE;
		state = t->way || f->flags & ANSWERED ? IS_ESTABLISHED : IS_NEW;
	}
	return state | (t->way ? IS_REPLY : IS_ORIGINAL);
}

static __always_inline __u32 judge(struct tracked *t, const struct flow *f)
{
	__u32 state;

	switch (t->kind) {
	case NONE:
		return IS_UNTRACKED;
	case BAD:
		return IS_INVALID;
	case LATER:
		return judge_later(t);
	case ERROR:
		return judge_quoted(t);
	}
	if (f) {
		if (f->expires_ns > t->now_ns)
			return judge_flow(t, f);
		t->dead = 1;
	}
	f = bpf_map_lookup_elem(&half_open, &t->key);
	if (is_live(t, f)) {
		t->half = 1;
		return judge_flow(t, f);
	}
	t->way = 0;
	state = judge_unknown(t);
	return state == IS_INVALID ? state : state | IS_ORIGINAL;
}

/* What the packet is to the flow that track_find() found, and to those that are half open. */
__attribute__((noinline)) __u32 track_judge(struct flow *f)
{
	struct tracked *t = tracked_room();

	if (!t)
		return IS_UNTRACKED;
	t->action = KEEP;
	t->half = t->dead = 0;
	if (t->kind == TCP && t->flags & SYN)
		track_scale();
	t->state = judge(t, f);
	return t->state;
}

static __always_inline __u32 open_flow(struct tracked *t)
{
	struct flow *f = &t->made;

	__builtin_memset(f, 0, sizeof(*f));
	f->created = t->now_ns / 1000000000;
	f->flags = t->high ? OPENED_BY_HIGH : 0;
	f->stage = STATELESS;
	if ((t->state & 15) == IS_ESTABLISHED) {
		__u64 *learned = note(LEARNED);

		f->flags |= ANSWERED;
		if (learned)
			__sync_fetch_and_add(learned, 1);
	}
	if (t->kind == TCP)
		begin(t, f);
	lives_on(t, f);
	t->made_counts = (struct flow_counts){ .packets = { 1 }, .bytes = { t->len } };
	if (t->dead || t->action == OPEN)
		bpf_map_delete_elem(&flows, &t->key); /* of another time */
	bpf_map_update_elem(&half_open, &t->key, f, BPF_ANY);
	return 1;
}

static __always_inline void add_counts(const struct tracked *t, struct flow_counts *c)
{
	__u32 way = t->way & 1;

	__sync_fetch_and_add(way ? &c->packets[1] : &c->packets[0], 1);
	__sync_fetch_and_add(way ? &c->bytes[1] : &c->bytes[0], t->len);
}

static __always_inline __u32 update_half(struct tracked *t)
{
	struct flow *f = bpf_map_lookup_elem(&half_open, &t->key);
	__u64 *full;

	if (!f)
		return 1; /* it has just given way */
	t->made = *f;
	if (flow_counted) {
		t->made_counts = *(struct flow_counts *)(f + 1);
		add_counts(t, &t->made_counts);
	}
	if (completes(t, f)) {
		update(t, &t->made);
		if (!bpf_map_update_elem(&flows, &t->key, &t->made, BPF_ANY)) {
			bpf_map_delete_elem(&half_open, &t->key);
			return 1;
		}
		full = note(FULL);
		if (full)
			__sync_fetch_and_add(full, 1);
		if (full_outcome())
			return 0;
	} else {
		update(t, &t->made);
	}
	*f = t->made;
	if (flow_counted)
		*(struct flow_counts *)(f + 1) = t->made_counts;
	return 1;
}

/* The packet goes: note it.  0 where there is no room for its flow. */
__attribute__((noinline)) __u32 track_commit(struct flow *f)
{
	struct tracked *t = tracked_room();
	__u32 state;

	if (!t)
		return 1;
	state = t->state & 15;
	if ((state != IS_NEW && state != IS_ESTABLISHED) || t->kind == LATER)
		return 1;
	if (t->action == OPEN)
		open_flow(t);
	else if (t->half) {
		if (!update_half(t))
			return 0;
	} else if (f) {
		update(t, f);
	}
	if (t->fragment) {
		__u64 until = t->now_ns + FRAGMENT_NS;

		bpf_map_update_elem(&fragments, &t->other, &until, BPF_ANY);
	}
	return 1;
}

/* Count the packet for its flow, where it is one of those that track_find() finds. */
__attribute__((always_inline)) void track_count(struct flow *f)
{
	struct tracked *t;

	if (!flow_counted || !f || !(t = tracked_room()))
		return;
	if (t->half || t->dead || t->action == OPEN || ((t->state & 15) != IS_NEW && (t->state & 15) != IS_ESTABLISHED))
		return;
	add_counts(t, (struct flow_counts *)(f + 1));
}
