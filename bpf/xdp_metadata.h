/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What the driver knows of a packet beside its bytes (Documentation/networking/xdp-rx-metadata.rst).
 *
 * The kernel lets only a program that is bound to one device at load call these functions: it makes the calls direct ones
 * into that device's driver.  A program that no rule makes read them has no such call.  One that is loaded without a
 * device (a test run) must not even name them; xdpkit/kernel/program.py sees to that, and `bound` keeps the verifier away from
 * the calls that libbpf then leaves behind.
 */
#pragma once
#include "packet.h"

/* Set before load: the program is bound to a device. */
const volatile __u32 bound = 0;

/* Only its name and size count: libbpf compares the functions' types with the kernel's. */
enum xdp_rss_hash_type { XDP_RSS_TYPE_NONE };

/* Each returns 0, or -ENODATA where this packet has none, or -EOPNOTSUPP where the driver has no such function. */
extern int bpf_xdp_metadata_rx_timestamp(const struct xdp_md *ctx, __u64 *timestamp) __ksym __weak;
extern int bpf_xdp_metadata_rx_hash(const struct xdp_md *ctx, __u32 *hash, enum xdp_rss_hash_type *type) __ksym __weak;
extern int bpf_xdp_metadata_rx_vlan_tag(const struct xdp_md *ctx, __be16 *proto, __u16 *tci) __ksym __weak;

/* The metadata that rules read.  A hash of 0 and a time of 0 are none, as in socket buffers: veth answers 0 that way. */
static __always_inline void find_metadata(struct xdp_md *ctx, struct packet *p)
{
	__u32 wants = wanted();

	if (!(wants & (HAS_META_TIMESTAMP | HAS_META_HASH | HAS_META_VLAN)) || !bound)
		return;
	if (wants & HAS_META_TIMESTAMP) {
		__u64 timestamp = 0;

		if (!bpf_xdp_metadata_rx_timestamp(ctx, &timestamp) && timestamp) {
			p->outer.present |= HAS_META_TIMESTAMP;
			p->meta_timestamp = timestamp;
		}
	}
	if (wants & HAS_META_HASH) {
		enum xdp_rss_hash_type type = 0;
		__u32 hash = 0;

		if (!bpf_xdp_metadata_rx_hash(ctx, &hash, &type) && hash) {
			p->outer.present |= HAS_META_HASH;
			p->meta_hash = hash;
		}
	}
	if (wants & HAS_META_VLAN) {
		__be16 proto = 0;
		__u16 tci = 0;

		if (!bpf_xdp_metadata_rx_vlan_tag(ctx, &proto, &tci)) {
			p->outer.present |= HAS_META_VLAN;
			p->meta_vlan = tci;
		}
	}
}
