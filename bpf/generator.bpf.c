/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The lab's traffic generator: run with BPF_PROG_TEST_RUN and live frames, each run of this program sends one frame out
 * of the device.  It numbers the frames (a 64-bit big-endian sequence number at `sequence_offset`, when that is not 0),
 * stamps them (CLOCK_MONOTONIC in ns, likewise, at `time_offset`, when that is not 0) and spreads them over `flows` flows by adding to the big-endian 16-bit word at `flow_offset` (a UDP source port, say;
 * the UDP checksum of the template must be 0).
 */
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

const volatile __u32 sequence_offset = 0;
const volatile __u32 time_offset = 0;
const volatile __u32 flow_offset = 0;
const volatile __u32 flows = 1;
const volatile __u32 flow_base = 0;

__u64 sequence = 0; /* the next number; one thread runs this program at a time */

SEC("xdp")
int generate(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u64 n = sequence++;

	if (sequence_offset) {
		__u32 *at = data + (sequence_offset & 0x7ff);

		if ((void *)(at + 2) <= end) {
			at[0] = bpf_htonl(n >> 32);
			at[1] = bpf_htonl((__u32)n);
		}
	}
	if (time_offset) {
		__u32 *at = data + (time_offset & 0x7ff);

		if ((void *)(at + 2) <= end) {
			__u64 now = bpf_ktime_get_ns();

			at[0] = bpf_htonl(now >> 32);
			at[1] = bpf_htonl((__u32)now);
		}
	}
	if (flow_offset && flows > 1) {
		__u16 *at = data + (flow_offset & 0x7ff);

		if ((void *)(at + 1) <= end)
			*at = bpf_htons(flow_base + (__u32)n % flows);
	}
	return XDP_TX;
}

char _license[] SEC("license") = "Dual BSD/GPL";
