/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The packet behind a socket buffer, for every hook that gets one.  skb->data is the Ethernet header; a VLAN tag that the
 * kernel took out is in `tpid` and `tci` (0 and 0 where it took out none), and load.h reads it at its place on the wire.
 */
#pragma once

#include "skb_source.h"
#include "walk.h"

/* 1 for a 16-bit number that is not 0.  It does not branch, because the verifier would follow both paths to the end. */
static __always_inline __u32 one_if(__u32 number)
{
	number += 0xffff;
	asm("" : "+r"(number)); /* LLVM would find the comparison in it, and make a branch of it again */
	return number >> 16 & 1;
}

#define SAVED_SOURCE struct skb *
#define save_source(s) ((s)->skb)
#define restore_source(skb) source_of(skb)
#include "loop.h"
#include "room.h"
#ifdef SHADOW
#include "shadow.h"
#endif

/*
 * The metadata that rules read, as the kernel keeps it in the skb: a hash of 0 and a time of 0 are none (skb_get_hash(),
 * skb_hwtstamps()).  Not skb->tstamp: that one is there or not as anybody on the host asks for time stamps.
 */
static __always_inline void find_metadata(const struct source *s, struct packet *p)
{
	__u32 wants = wanted();

	if (wanted_meta() & WANTED_META_MARK)
		p->meta_mark = s->skb->mark;
	if (wanted_meta() & WANTED_META_PRIORITY)
		p->meta_priority = s->skb->priority;
#ifdef DIRECT_ACCESS /* the kernel does not let socket filters read it */
	if (wants & HAS_META_TIMESTAMP && (p->meta_timestamp = s->skb->hwtstamp))
		p->outer.present |= HAS_META_TIMESTAMP;
#endif
	if (wants & HAS_META_HASH && (p->meta_hash = s->skb->hash))
		p->outer.present |= HAS_META_HASH;
	if (wants & HAS_META_VLAN && s->tpid) {
		p->meta_vlan = s->tci;
		p->outer.present |= HAS_META_VLAN;
	}
}

static __always_inline __u32 wire_length(const struct source *s)
{
	return s->skb->len + one_if(s->tpid) * TAG_SIZE;
}

/* The bytes in place, or NULL where they cannot be read in place; the barriers are those of xdp.bpf.c. */
static GENERATED_CALLS const void *linear(struct source *s, __u64 offset, __u32 size)
{
#ifdef DIRECT_ACCESS
	const void *from;

	asm("" : "+r"(offset));
	if (offset <= 0xffff - size) { /* MAX_PACKET_OFF of the verifier */
		from = s->data + offset;
		asm("" : "+r"(from));
		if (from + size <= s->end)
			return from;
	}
#endif
	(void)s, (void)offset, (void)size;
	return 0;
}

GENERATED_CALLS int header(struct source *s, __u32 at, __u32 size, const void *room, const void **where)
{
#ifdef DIRECT_ACCESS
	(void)room;
	if (wanted() & (HIDE_HEADERS | HEADERS_IN_MAP))
		at = offset_from_map(at);
	return in_place(s, at, size, where);
#else
	(void)s, (void)at, (void)size;
	*where = room;
	return 1;
#endif
}

GENERATED_CALLS int bytes(struct source *s, __u32 at, __u32 from, __u32 size, void *room, const void **where)
{
	at += from;
	/* with many rules the bytes are always copied, because two paths for each rule are too many for the verifier */
	if (!(wanted() & HIDE_HEADERS) && (*where = linear(s, at, size)))
		return 1;
	*where = room;
	return !bpf_skb_load_bytes(s->skb, at, room, size);
}

/* `size` bytes, at most 4, at an offset that lies in the tag or so near that they may: byte by byte. */
static __attribute__((noinline)) __s64 load_tagged(struct skb *skb, __u32 tag, __u32 offset, __u32 size)
{
	__s64 value = 0;

	for (__u32 i = 0; i < 4 && i < size; i++) {
		__u32 at = offset + i;
		__u8 byte = 0;

		if (at - TAG_AT < TAG_SIZE)
			byte = tag >> 8 * (TAG_AT + TAG_SIZE - 1 - at);
		else if (bpf_skb_load_bytes(skb, at < TAG_AT ? at : at - TAG_SIZE, &byte, 1))
			return -1;
		value = value << 8 | byte;
	}
	return value;
}

#define LOADS(bits, to_host)                                                                                           \
	static GENERATED_CALLS __s64 bytes##bits(struct source *s, __u64 offset)                                       \
	{                                                                                                              \
		const __u##bits *there;                                                                                \
		__u##bits room;                                                                                        \
                                                                                                                       \
		if (offset > 0x7fffffff)                                                                               \
			return -1;                                                                                     \
		if (s->tpid) {                                                                                         \
			if (offset - (TAG_AT - sizeof(room) + 1) < TAG_SIZE + sizeof(room) - 1)                        \
				return load_tagged(s->skb, (__u32)s->tpid << 16 | s->tci, offset, sizeof(room));       \
			if (offset > TAG_AT)                                                                           \
				offset -= TAG_SIZE;                                                                    \
		}                                                                                                      \
		there = linear(s, offset, sizeof(room));                                                               \
		if (there)                                                                                             \
			return to_host(*there);                                                                        \
		return bpf_skb_load_bytes(s->skb, offset, &room, sizeof(room)) ? -1 : to_host(room);                   \
	}                                                                                                              \
	GENERATED_CALLS __s64 load##bits(struct source *s, __u64 offset)                                               \
	{                                                                                                              \
		return bytes##bits(s, offset);                                                                         \
	}                                                                                                              \
	static GENERATED_CALLS __s64 constant##bits(struct source *s, __u64 offset)                                    \
	{                                                                                                              \
		if (bits == 16 && s->tpid && offset == TAG_AT)                                                         \
			return s->tpid;                                                                                \
		return bytes##bits(s, offset);                                                                         \
	}                                                                                                              \
	GENERATED_CALLS __s64 fixed##bits(struct source *s, __u64 offset)                                              \
	{                                                                                                              \
		return constant##bits(s, offset);                                                                      \
	}                                                                                                              \
	GENERATED_CALLS __s64 checked##bits(struct source *s, __u64 offset)                                              \
	{                                                                                                              \
		return constant##bits(s, offset);                                                                      \
	}

LOADS(8, (__s64)(__u8))
LOADS(16, (__s64)(__u16)bpf_ntohs)
LOADS(32, (__s64)(__u32)bpf_ntohl)
