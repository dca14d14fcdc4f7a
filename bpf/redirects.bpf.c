/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What became of packets that XDP programs forwarded from one device.  bpf_redirect_map() only says where a packet shall
 * go; the kernel reports the rest on two tracepoints, and each packet passes one of them once:
 *
 *   xdp_redirect_err   the kernel refused the packet before the other device's driver saw it
 *   xdp_devmap_xmit    the driver was given a bulk of packets, and took some of them
 *
 * In generic mode there are no bulks: only what is refused is reported.
 */
#include <linux/bpf.h>
#include <linux/errno.h>
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
struct bpf_prog;
struct net_device {
	int ifindex;
	possible_net_t nd_net;
} __attribute__((preserve_access_index));

/* In the order of xdpkit.link.tally.Forwarding. */
struct forwarding {
	__u64 sent;
	__u64 no_room;	   /* the driver took a part of the bulk */
	__u64 refused;	   /* the driver took nothing, with an error */
	__u64 down;	   /* -ENETDOWN */
	__u64 too_long;	   /* -EMSGSIZE */
	__u64 unsupported; /* -EOPNOTSUPP */
	__u64 other_error;
};

/* The device they came from: its index means something in one network namespace only. */
const volatile __u32 from_ifindex = 0;
const volatile __u32 from_namespace = 0;

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct forwarding);
} forwarding SEC(".maps");

static __always_inline struct forwarding *counts_of(const struct net_device *from)
{
	__u32 zero = 0;

	if (!from || (__u32)from->ifindex != from_ifindex || from->nd_net.net->ns.inum != from_namespace)
		return 0;
	return bpf_map_lookup_elem(&forwarding, &zero);
}

SEC("tp_btf/xdp_devmap_xmit")
int BPF_PROG(devmap_xmit, const struct net_device *from, const struct net_device *to, int sent, int drops, int error)
{
	struct forwarding *f = counts_of(from);

	(void)ctx, (void)to;
	if (!f)
		return 0;
	f->sent += sent;
	if (error < 0)
		f->refused += drops;
	else
		f->no_room += drops;
	return 0;
}

SEC("tp_btf/xdp_redirect_err")
int BPF_PROG(redirect_err, const struct net_device *from, const struct bpf_prog *program, const void *to, int error,
	     enum bpf_map_type map_type)
{
	struct forwarding *f = map_type == BPF_MAP_TYPE_DEVMAP ? counts_of(from) : 0;

	(void)ctx, (void)program, (void)to;
	if (!f)
		return 0;
	if (error == -ENETDOWN)
		f->down++;
	else if (error == -EMSGSIZE)
		f->too_long++;
	else if (error == -EOPNOTSUPP)
		f->unsupported++;
	else
		f->other_error++;
	return 0;
}

char _license[] SEC("license") = "Dual BSD/GPL";
