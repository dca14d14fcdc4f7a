/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What rules tell user space: copies of packets that go on (Mirror), and that a packet was met (log).
 *
 * It is a module of bitcode of its own, linked only where a rule asks.  The entry of a module defines struct source and
 * copy_bytes().
 */
#pragma once
#include "copies.h"

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
		failed(a->mirror_rule);
}

GENERATED_CALLS void log_packet(struct source *s, const struct packet *p, __u32 rule)
{
	struct reader *r = find_reader(&events_reader);
	struct copy head = { .time_ns = now(), .rule = rule, .len = p->len < EVENT_BYTES ? p->len : EVENT_BYTES,
			     .wire_len = p->len, .queue = p->rx_queue };

	if (r && !copy_packet(s, &events, &events_count, r, &head))
		failed(rule);
}
