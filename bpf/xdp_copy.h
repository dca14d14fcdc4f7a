/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Copies of packets at XDP (copies.h). */
#pragma once
#include "copies.h"

static __always_inline int copy_bytes(struct source *s, __u8 *to, __u32 len)
{
	return bpf_xdp_load_bytes(s->ctx, 0, to, len);
}
