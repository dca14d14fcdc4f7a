/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* How many system calls a process makes: its threads together, counted as each enters the kernel. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

const volatile __u32 process = 0;

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} calls SEC(".maps");

SEC("tp_btf/sys_enter")
int count_calls(void *ctx)
{
	__u32 zero = 0;
	__u64 *n;

	(void)ctx;
	if (bpf_get_current_pid_tgid() >> 32 != process)
		return 0;
	n = bpf_map_lookup_elem(&calls, &zero);
	if (n)
		(*n)++;
	return 0;
}

char _license[] SEC("license") = "Dual BSD/GPL";
