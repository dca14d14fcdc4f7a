/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Connections: what the entries and the module that tracks them (track.bpf.c) share.
 *
 * A packet meets the tables twice.  track_find() notes what the tables look at and finds the flow among those that were
 * seen in both directions; track_judge() says what the packet is to it, for the rules.  When the rules let the packet
 * go, track_commit() notes it.  A pipeline that does not track is compiled without all of it.
 */
#pragma once
#include "packet.h"
#include "outcome.h"

/* One direction of a TCP connection; see class Side in xdpkit/meaning/tcp.py.  max_window 0: nothing seen of it. */
struct flow_side {
	__u32 end, max_end, max_window;
};

/*
 * What is known of one flow, shared with user space (xdpkit/kernel/flowmaps.py).  With its key of 40 bytes and the kernel's 48
 * of each entry of a hash it takes two cache lines, and no part of a third.
 */
struct flow {
	__u64 expires_ns;
	__u32 created; /* seconds of the monotonic clock */
	__u8 stage, flags;
	__u8 scale[2]; /* of windows, by side */
	struct flow_side side[2]; /* of whoever sent the first packet, and of the other */
};
_Static_assert(sizeof(struct flow) == 40, "shared with user space");

/* Behind a struct flow, where the pipeline counts; by direction. */
struct flow_counts {
	__u64 packets[2], bytes[2];
};

/*
 * Generated, constants: does the pipeline track?  What becomes of packets that find no room in the tables, as classify()
 * would say it; 0: they go.
 */
__u32 tracks(void);
__u32 full_outcome(void);

/* track.bpf.c.  Where the pipeline does not track these are generated, and do nothing. */
struct source;
struct flow *track_find(struct source *s, const struct packet *p);
__u32 track_judge(struct flow *f);
__u32 track_commit(struct flow *f);
void track_count(struct flow *f);

/* Find the packet's flow, and note for the rules what the packet is to it. */
static __always_inline struct flow *find_flow(struct source *s, struct packet *p)
{
	struct flow *f;

	if (!tracks())
		return 0;
	f = track_find(s, p);
	p->ct = track_judge(f);
	return f;
}

/* Note a packet that the rules let go; what becomes of it. */
static __always_inline __u32 note_flow(struct flow *f, __u32 outcome)
{
	if (!tracks() || verdict_of(outcome) == XDP_DROP || verdict_of(outcome) == REJECT)
		return outcome;
	if (!track_commit(f))
		return full_outcome();
	track_count(f);
	return outcome;
}
