/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The packet behind an XDP context, read in place.  Of a packet of several buffers that is the first one, which holds the
 * headers; programs for such packets, compiled with FRAGS, fetch() the bytes behind it.
 */
#pragma once
#define IN_PLACE
#include "packet.h"

struct source {
	void *data, *end;
	struct xdp_md *ctx;
};

#define SAVED_SOURCE struct source
#define save_source(s) (*(s))
#define restore_source(source) (source)

/*
 * The packet's bounds.  The kernel turns the 32-bit loads into loads of pointers; LLVM, which does not know that, must not
 * compute with them in 32 bits: the verifier takes the result for a number, and compares it without a word.
 */
static __always_inline struct source source_of(struct xdp_md *ctx)
{
	struct source s = { (void *)(long)ctx->data, (void *)(long)ctx->data_end, ctx };

	asm("" : "+r"(s.data), "+r"(s.end));
	return s;
}

/* The same packet, of which the verifier remembers nothing. */
#define reload_source(s) source_of((s)->ctx)

static __always_inline int take(struct source *s, __u32 offset, __u32 size, void *room, const void **at)
{
	const void *from = s->data + offset;

	(void)room;
	/* One register for check and loads: the verifier knows no bounds for a sum that LLVM computes again. */
	asm("" : "+r"(from));
	*at = from;
	return from + size <= s->end;
}
