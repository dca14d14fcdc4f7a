/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What stands in front of each redirected packet when want_meta is set: the kernel's clock at the hook, the rule that
 * matched, and what the driver knows of the packet where readers want that.  User space (csrc/xdpkit.h) believes it only
 * where the magic number is; a driver without room for metadata leaves it out.
 */
#pragma once
#include "xdp_metadata.h"

#define META_MAGIC 0x786b6d33u /* "xkm3" */

struct meta {
	__u64 time_ns; /* CLOCK_MONOTONIC */
	union {
		__u32 rule; /* with `vlan` above its 16 bits, in one store */
		struct {
			__u16 low, vlan; /* TCI */
		};
	};
	__u32 mark; /* what the pipeline says of the packet */
	__u32 hash;
	__u32 magic;
};

/* The same with what the driver knows, in a program whose readers want that. */
struct driver_meta {
	__u64 device_ns; /* the device's clock; 0: none */
	struct meta meta;
};
#define DRIVER_VLAN (1ull << 63) /* in device_ns, which has 63 bits (ktime_t is signed): there is a tag */
_Static_assert(sizeof(struct meta) == 24 && sizeof(struct driver_meta) == 32, "shared with csrc/xdpkit.h");

/* Generated, a constant: which of the driver's metadata readers want, READER_ bits. */
__u32 reader_metadata(void);
enum { READER_TIMESTAMP = 1, READER_HASH = 2, READER_VLAN = 4 };

static __always_inline int meta_room(void)
{
	return reader_metadata() ? sizeof(struct driver_meta) : sizeof(struct meta);
}

/*
 * The driver writes hash and time to their final places.  Its other results (the kind of the hash, the protocol of the
 * tag) are not wanted: they go to `mark` and `magic`, which are written later.  A hash of 0 means that there is none.
 */
static __always_inline struct meta *read_driver_meta(struct xdp_md *ctx, struct driver_meta *k)
{
	struct meta *m = &k->meta;

	k->device_ns = 0;
	m->rule = m->hash = 0;
	if (!bound)
		return m;
	if (reader_metadata() & READER_HASH && bpf_xdp_metadata_rx_hash(ctx, &m->hash, (enum xdp_rss_hash_type *)&m->mark))
		m->hash = 0;
	if (reader_metadata() & READER_TIMESTAMP && bpf_xdp_metadata_rx_timestamp(ctx, &k->device_ns))
		k->device_ns = 0;
	k->device_ns &= ~DRIVER_VLAN;
	if (reader_metadata() & READER_VLAN) {
		if (bpf_xdp_metadata_rx_vlan_tag(ctx, (__be16 *)&m->magic, &m->vlan))
			m->vlan = 0;
		else
			k->device_ns |= DRIVER_VLAN;
	}
	return m;
}

static __always_inline void put_meta(struct xdp_md *ctx, __u32 rule, __u32 mark)
{
	void *start;
	struct meta *m;

	if (bpf_xdp_adjust_meta(ctx, -meta_room()))
		return;
	start = (void *)(long)ctx->data_meta;
	if (start + meta_room() > (void *)(long)ctx->data)
		return;
	if (reader_metadata()) {
		m = read_driver_meta(ctx, start);
		rule |= m->rule;
	} else {
		m = start;
		m->hash = 0;
	}
	m->time_ns = bpf_ktime_get_ns();
	m->rule = rule;
	m->mark = mark;
	m->magic = META_MAGIC;
}
