/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Room for packets that an inspector in user space is to judge.  A packet that is sent towards a socket cannot be called
 * back when its ring turns out to be full, so it is sent only where there is room: no more than `size` of them are on
 * their way or with the inspector.  The program counts those that it sends, user space those that it is done with, in
 * memory that both see.
 *
 * This is a module of its own, linked only where a rule has the action Inspect.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "load.h"

/* struct xk_room of csrc/xdpkit.h */
struct room {
	__u64 sent;  /* by the program; one CPU at a time has a queue */
	__u64 taken; /* by user space */
	__u64 size;  /* the same; 0: nobody inspects */
};

/* By RX queue; max_entries is set before load. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct room);
} inspecting SEC(".maps");

/* Take room for one packet: 1, or 0 where there is none. */
GENERATED_CALLS __u32 inspect_room(__u32 queue)
{
	struct room *r = bpf_map_lookup_elem(&inspecting, &queue);

	if (!r || r->sent - *(volatile __u64 *)&r->taken >= *(volatile __u64 *)&r->size)
		return 0;
	r->sent++;
	return 1;
}
