/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Room for what the walk finds, where it is not kept on the stack: LLVM cannot take apart what helpers write, and of 512
 * bytes of stack classify() needs most.  What is read from there the verifier takes for any number, however it came there.
 * Programs run with bottom halves off, so none meets another here.
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
