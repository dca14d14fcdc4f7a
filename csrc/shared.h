/* SPDX-License-Identifier: BSD-2-Clause */
/* What user space shares with the programs of bpf/: the same structs are there. */
#pragma once
#include <stddef.h>
#include <stdint.h>

/* In front of each packet that xdp.bpf.c redirects with want_meta set; the same struct there. */
struct xk_meta {
	uint64_t time_ns; /* CLOCK_MONOTONIC */
	uint16_t rule;
	uint16_t vlan; /* TCI; of struct xk_known */
	uint32_t mark;
	uint32_t hash; /* of struct xk_known */
	uint32_t magic;
};
/* The same, written by a program that tells what the driver knows: 32 bytes, all that Linux before 6.9 takes. */
struct xk_known {
	uint64_t device_ns; /* the device's clock, 63 bits (ktime_t is signed); 0: none.  The last bit: there is a tag */
	struct xk_meta meta;
};
#define XK_KNOWN_VLAN (1ull << 63)
#define XK_META_MAGIC 0x786b6d33u
#define XK_NO_VLAN UINT32_MAX
_Static_assert(sizeof(struct xk_meta) == 24 && offsetof(struct xk_meta, vlan) == 10 &&
		       offsetof(struct xk_meta, hash) == 16 && offsetof(struct xk_meta, magic) == 20,
	       "shared with bpf/xdp_meta.h");
_Static_assert(sizeof(struct xk_known) == 32 && offsetof(struct xk_known, meta) == 8, "shared with bpf/xdp_meta.h");

/* A record of bpf/copies.h and what its reader tells the program; the same structs there. */
struct xk_copy {
	uint64_t time_ns; /* CLOCK_MONOTONIC */
	uint32_t rule;
	uint32_t len; /* bytes that follow */
	uint32_t wire_len;
	uint16_t queue;
	uint8_t verdict; /* enum xdp_action; 0: not known yet */
	uint8_t unused;
	uint32_t mark;
	uint32_t reserved;
};
struct xk_reader {
	uint32_t mode;
	uint32_t asleep;
	uint32_t snaplen;
	uint32_t unused;
};
enum { XK_READER_NONE, XK_READER_WAITS, XK_READER_NAPS };
_Static_assert(sizeof(struct xk_copy) == 32 && sizeof(struct xk_reader) == 16, "shared with bpf/copies.h");
