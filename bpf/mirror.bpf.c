/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Copies of packets that go on (Mirror), and events (log), for user space.
 *
 * This is a module of its own, compiled for each hook and linked only where a rule has such a step.
 */
#ifdef XDP
#include "xdp_source.h"
#include "xdp_copy.h"
#else
#include "skb_source.h"
#include "skb_copy.h"
#endif

RING(mirrored)
RING(events)

/* Bytes of a packet that an event shows. */
#define EVENT_BYTES 96

GENERATED_CALLS void mirror(struct source *s, __u32 len, __u32 queue, const struct steps *a, __u32 outcome)
{
	struct reader *r = find_reader(&mirrored_reader);
	struct copy head = { .time_ns = now(), .rule = a->mirror_rule, .len = a->mirror < len ? a->mirror : len,
			     .wire_len = len, .queue = queue, .mark = a->mark,
			     .verdict = verdict_of(outcome) == FORWARD ? XDP_REDIRECT : verdict_of(outcome) };

	if (r && !copy_packet(s, &mirrored, &mirrored_count, r, &head))
		count_failed(a->mirror_rule);
}

GENERATED_CALLS void log_packet(struct source *s, const struct packet *p, __u32 rule)
{
	struct reader *r = find_reader(&events_reader);
	struct copy head = { .time_ns = now(), .rule = rule, .len = p->len < EVENT_BYTES ? p->len : EVENT_BYTES,
			     .wire_len = p->len, .queue = p->rx_queue };

	if (r && !copy_packet(s, &events, &events_count, r, &head))
		count_failed(rule);
}
