/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Copies of socket buffers (copies.h). */
#pragma once
#include "copies.h"

/* As on the wire: a tag that the kernel took out goes back behind the addresses. */
static __always_inline int copy_bytes(struct source *s, __u8 *to, __u32 len)
{
	if (!s->tpid)
		return bpf_skb_load_bytes(s->skb, 0, to, len);
	if (len <= TAG_AT + TAG_SIZE)
		return -1;
	to[TAG_AT] = s->tpid >> 8, to[TAG_AT + 1] = s->tpid;
	to[TAG_AT + 2] = s->tci >> 8, to[TAG_AT + 3] = s->tci;
	return bpf_skb_load_bytes(s->skb, 0, to, TAG_AT) ||
	       bpf_skb_load_bytes(s->skb, TAG_AT, to + TAG_AT + TAG_SIZE, len - TAG_AT - TAG_SIZE);
}
