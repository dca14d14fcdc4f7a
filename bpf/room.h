/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * A place in a map for what the walk finds.  Two kinds of programs do not keep it on the stack: those where helpers write
 * headers there (LLVM cannot split such a struct into registers), and those where classify() needs most of the 512 bytes.
 * The verifier takes what is read from the map for unknown numbers.  Programs run with bottom halves off, so two never use
 * the place at the same time.
 */
#pragma once
#include "packet.h"

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct packet);
} packets SEC(".maps");

static __always_inline struct packet *packet_room(void)
{
	__u32 key = 0;
	struct packet *p = bpf_map_lookup_elem(&packets, &key);

	if (p)
		__builtin_memset(p, 0, ROOMS ? sizeof(*p) : __builtin_offsetof(struct packet, room));
	return p;
}
