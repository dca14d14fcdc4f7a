/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What became of forwarded packets: the kernel tells, for each bulk that it hands to a device on behalf of
 * bpf_redirect_map() and a device map, how many the driver took.  Counted by the device they came from.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

/* As much of the kernel's struct as is read; its real layout is found when the program is loaded. */
struct ns_common {
	unsigned int inum;
} __attribute__((preserve_access_index));
struct net {
	struct ns_common ns;
} __attribute__((preserve_access_index));
typedef struct {
	struct net *net;
} possible_net_t;
struct net_device {
	int ifindex;
	possible_net_t nd_net;
} __attribute__((preserve_access_index));

struct forwarded {
	__u64 sent;
	__u64 dropped;
};

/* The device they came from: its index means something in one network namespace only. */
const volatile __u32 from_ifindex = 0;
const volatile __u32 from_namespace = 0;

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct forwarded);
} forwarded SEC(".maps");

SEC("tp_btf/xdp_devmap_xmit")
int BPF_PROG(count_forwarded, const struct net_device *from, const struct net_device *to, int sent, int drops, int error)
{
	__u32 zero = 0;
	struct forwarded *f;

	(void)ctx, (void)to, (void)error;
	if (!from || (__u32)from->ifindex != from_ifindex || from->nd_net.net->ns.inum != from_namespace)
		return 0;
	f = bpf_map_lookup_elem(&forwarded, &zero);
	if (f) {
		f->sent += sent;
		f->dropped += drops;
	}
	return 0;
}

char _license[] SEC("license") = "Dual BSD/GPL";
