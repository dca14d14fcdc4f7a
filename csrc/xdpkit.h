/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * xdpkit core: the whole C API.
 *
 * Functions return 0 or a count, or -errno; xk_failed_call() then names the call that failed in this thread.  Nothing
 * here prints or exits; memory is allocated only when something is opened.  The region between the cdef marks is what
 * Python sees (cffi reads it, so it holds plain declarations only).
 *
 * Theory of operation
 *
 *   A *source* delivers packets in batches: an AF_XDP socket, a TPACKET_V3 ring, a plain packet socket, or the copies
 *   that a program writes into BPF ring buffers.  A *worker* is
 *   a thread that moves batches from one source into one *sink* (count, pcapng, delays) and gives the buffers back.  Python
 *   drains AF_XDP sockets itself with xk_xsk_receive()/xk_xsk_recycle(); both ways never run on one socket at once.
 *
 *   Frames of a UMEM belong to a *pool*, and have one owner at any time:
 *
 *      free --recycle--> FILL ring -> kernel -> RX ring --receive--> held --recycle--> FILL ring or free
 *      free --transmit-> TX ring -> kernel -> COMPLETION ring --complete--> free
 *      RX ring of one socket --forward--> TX ring of another of the same pool
 *
 *   free + fill + rx + held + tx + completion == frames, where `fill` counts what the kernel still has of it.  With
 *   `check` set each frame's owner is kept and every transition is checked; a wrong one is -EFAULT.
 *
 *   Sockets of one UMEM share its memory; those of one pool its frames (a pair of ports that forward to each other, or
 *   the sockets of one queue, which also share a FILL and a COMPLETION ring and take the pool's lock once per batch).
 */
#pragma once
#include <linux/if_xdp.h>
#include <stddef.h>
#include <stdint.h>

/* cdef begin */

/* ---- errors (base.c) ---- */

/* The call that the last failing function of this thread was making, e.g. "bind(AF_XDP)". */
const char *xk_failed_call(void);

/* ---- programs (loader.c) ---- */

struct xk_program;

/* Open an eBPF object in memory.  `name` is for messages. */
int xk_program_open(const void *object, size_t size, const char *name, struct xk_program **out);
/* Before load: entries of a map; a 32-bit constant in .rodata.  -ENOENT if the object has none of that name. */
int xk_program_set_entries(struct xk_program *p, const char *map, uint32_t entries);
int xk_program_set_u32(struct xk_program *p, const char *variable, uint32_t value);
/* The same for a whole array of `n` such constants. */
int xk_program_set_u32s(struct xk_program *p, const char *array, const uint32_t *values, uint32_t n);
/* Before load: bind an XDP program to a device of this network namespace; it may then ask the driver for metadata. */
int xk_program_bind(struct xk_program *p, int ifindex);
int xk_program_has_map(const struct xk_program *p, const char *map);
/* Before load: what kind of map, the size of its keys, its entries. */
int xk_program_set_map(struct xk_program *p, const char *map, uint32_t type, uint32_t key_size, uint32_t entries);
/* Before load: use the map `fd` (still the caller's: it is duplicated) for the object's map of that name. */
int xk_program_reuse_map(struct xk_program *p, const char *map, int fd);
/*
 * Load (CAP_BPF + CAP_PERFMON, or CAP_SYS_ADMIN; and CAP_NET_ADMIN).  The verifier's log and libbpf's words go to `log`, cut to
 * `log_size` from the front when they are longer.
 */
int xk_program_load(struct xk_program *p, char *log, size_t log_size);
/* 1 if the object calls a function of the kernel (a kfunc) that this one does not have, and its name; else 0. */
int xk_program_missing(const struct xk_program *p, char *name, size_t size);
int xk_program_fd(const struct xk_program *p);
/* fd of the program of that name, of an object with several; -ENOENT. */
int xk_program_fd_of(const struct xk_program *p, const char *name);
/* fd of a map, owned by the program; -ENOENT. */
int xk_program_map(const struct xk_program *p, const char *map);
/* The descriptor of the map of that index from 0 on, owned by p, and its name; -ENOENT behind the last one. */
int xk_program_map_at(const struct xk_program *p, int index, char *name, size_t size);
/* Read a 64-bit variable of .bss of a loaded program. */
int xk_program_get_u64(const struct xk_program *p, const char *variable, uint64_t *value);
void xk_program_close(struct xk_program *p);

/* One instruction's source line, from the BTF of a loaded program. */
struct xk_line {
	uint32_t instruction; /* index into the translated program */
	uint32_t line;
	char file[256];
	char text[256];
};
/* Up to `max` lines of a loaded program; the number there are. */
int xk_program_lines(int prog_fd, struct xk_line *out, int max);
/* Instructions of a loaded program: translated and jited bytes, verified instructions. */
struct xk_program_info {
	uint32_t id;
	uint32_t xlated_bytes;
	uint32_t jited_bytes;
	uint32_t verified_instructions;
	uint64_t run_time_ns;
	uint64_t run_count;
	char name[16];
};
int xk_program_info(int prog_fd, struct xk_program_info *out);
/* A new fd of a program that is loaded somewhere (CAP_SYS_ADMIN); its name. */
int xk_program_by_id(uint32_t id);
int xk_program_name(uint32_t id, char name[16]);
/* 1 if a bpf_link attaches the program, whoever holds that link (CAP_SYS_ADMIN); else 0. */
int xk_program_has_link(uint32_t id);
/* A new fd of what is pinned at `path`: a program, a map or a link. */
int xk_pinned(const char *path);

/* Attach with a bpf_link: the attachment lives as long as the returned fd.  flags: XDP_FLAGS_DRV_MODE or _SKB_MODE. */
int xk_link_xdp(int prog_fd, int ifindex, uint32_t flags);
/*
 * The same at TC (tcx, Linux 6.6), ingress or egress, in front of the programs that are there.  -EINVAL: no tcx here.
 */
int xk_link_tcx(int prog_fd, int ifindex, int egress);
/* Attach a tp_btf program to its tracepoint, the same way. */
int xk_link_trace(int prog_fd);
/* Put another program in the place of the one that a link holds: each packet meets the one or the other. */
int xk_link_update(int link_fd, int prog_fd);
/*
 * What an XDP or tcx link holds now: the device's index in its own network namespace, 0 when the link was detached or
 * the device was deleted; the id of the program.
 */
int xk_link_info(int link_fd, uint32_t *ifindex, uint32_t *prog_id);
/*
 * The kernel's words for a refused attachment, which bpf_link does not carry: asks again through netlink, and takes the
 * attachment back if that succeeds.  Returns that attempt's result; `text` is empty if the kernel said nothing.
 */
int xk_attach_reason(int prog_fd, int ifindex, uint32_t flags, char *text, size_t size);

/* Sum the per-CPU counters of entries 0 .. n-1 into out[n * words], each `words` 64-bit words. */
int xk_counters(int map_fd, uint32_t n, uint32_t words, uint64_t *out);
/* Set or clear an entry of an XSKMAP. */
int xk_xskmap_set(int map_fd, uint32_t queue, int xsk_fd);
int xk_xskmap_clear(int map_fd, uint32_t queue);
/* Wait until every program run and packet poll that was under way has ended (an RCU grace period). */
int xk_quiesce(void);

/* BPF_PROG_TEST_RUN on a copy of `packet`: verdict in *verdict, mean time of `repeat` runs in *ns. */
int xk_test_run(int prog_fd, const void *packet, uint32_t size, uint32_t repeat, void *out, uint32_t *out_size,
		uint32_t *verdict, uint32_t *ns);
/* Live frames: run an XDP program `repeat` times on copies of `packet` as if received on ifindex; the verdicts act. */
int xk_test_run_live(int prog_fd, const void *packet, uint32_t size, int ifindex, uint32_t repeat, uint32_t batch);

/* ---- maps (maps.c): CAP_BPF; by id CAP_SYS_ADMIN ---- */

struct xk_map_info {
	uint32_t type;
	uint32_t id;
	uint32_t key_size;
	uint32_t value_size;
	uint32_t max_entries;
	uint32_t flags;
	char name[16];
};

/* A new map's fd; inner_fd -1 unless it is a map of maps.  -EINVAL also for a name with other than [A-Za-z0-9_.]. */
int xk_map_create(uint32_t type, const char *name, uint32_t key_size, uint32_t value_size, uint32_t entries,
		  uint32_t flags, int inner_fd);
int xk_map_info(int fd, struct xk_map_info *out);
/* A new fd of a map that is loaded somewhere; of a pinned one. */
int xk_map_by_id(uint32_t id);
int xk_map_open(const char *path);
/* Pin to a path in a bpffs.  -EEXIST, -EPERM where `path` is in no bpffs. */
int xk_map_pin(int fd, const char *path);
/* Mount a bpffs at `path` unless there is one (CAP_SYS_ADMIN). */
int xk_bpffs(const char *path);
int xk_map_lookup(int fd, const void *key, void *value);
int xk_map_update(int fd, const void *key, const void *value, uint64_t flags);
int xk_map_delete(int fd, const void *key);

/* Write `n` elements; on error (-E2BIG, -ENOSPC: full) the first *done of them are written and no other. */
int xk_map_update_many(int fd, uint32_t key_size, uint32_t value_size, const uint8_t *keys, const uint8_t *values,
		       uint32_t n, uint32_t *done);
/* Delete `n` keys, of which *removed were there. */
int xk_map_delete_many(int fd, uint32_t key_size, const uint8_t *keys, uint32_t n, uint32_t *removed);
/* Where xk_map_read() is; zeros at the start. */
struct xk_map_cursor {
	uint8_t at[260];
	uint8_t started;
	uint8_t single;
	uint8_t end;
};
/*
 * Up to `max` next elements; 0 and cursor->end at the end (some may come with `end` too).  Elements that go while it
 * reads may make it start over: some are then read twice.  -ENOSPC: a bucket of a hash holds more than `max`.
 */
int xk_map_read(int fd, uint32_t key_size, uint32_t value_size, struct xk_map_cursor *cursor, uint8_t *keys,
		uint8_t *values, uint32_t max);
/* Look `n` keys up: found[i] 1 and values[i], or 0. */
int xk_map_find_many(int fd, uint32_t key_size, uint32_t value_size, const uint8_t *keys, uint32_t n, uint8_t *values,
		     uint8_t *found);

/* A value of a set; the same struct in bpf/set.bpf.c, which leaves `mark` 0 when a packet adds a member. */
struct xk_member {
	uint64_t expires_ns; /* CLOCK_MONOTONIC; 0: never */
	uint32_t action;
	uint32_t mark; /* 0: a packet added it; else 1 + bits of the key that count */
};
/* Bytes of a value that begins with `expires_ns`, at most. */
#define XK_MAX_VALUE 256
/*
 * Delete those of `n` members, or of other entries whose values begin as theirs do, whose time is over at `now_ns`, looked
 * at again just before: *removed were.
 */
int xk_map_expire_many(int fd, uint32_t key_size, const uint8_t *keys, uint32_t n, uint64_t now_ns, uint32_t *removed);

/* ---- keys of sets, in bulk (keys.c): no kernel ---- */

/* XK_IP: IPv6 addresses, and IPv4 ones as ::ffff:192.0.2.1, with the prefix lengths that they have as such. */
enum { XK_IPV4, XK_IPV6, XK_IP, XK_NUMBER };

struct xk_list {
	uint64_t offset; /* of the next line in the text */
	uint64_t line;   /* lines that were read */
	uint32_t count;  /* entries that were made */
	uint32_t length; /* bytes of the line that was not understood */
};

/*
 * Read members, one a line, of a field of `width` bits: addresses, with `intervals` also prefixes and ranges a-b; '#'
 * and ';' start a comment.  Writes keys[count * key_bytes] (network order, zeros behind), bits[] (that count) and
 * lines[] (from 1), of which there is room for `max`.  0: the text is at its end.  1: no more room.  2: the line at
 * `offset` of `length` bytes, number line + 1, is none of this.  Go on after 1 with more room, after 2 behind the line.
 */
int xk_list_parse(const char *text, size_t size, int kind, uint32_t width, int intervals, uint32_t key_bytes,
		  struct xk_list *list, uint8_t *keys, uint32_t *bits, uint32_t *lines, uint32_t max);
/*
 * Where each of `n` keys (key_bytes and a u32 of bits each) is among `m` others: found[i] is an index, or -1.  Both in
 * ascending order of key, then bits, each once.
 */
int xk_keys_join(uint32_t key_bytes, const uint8_t *others, const uint32_t *other_bits, uint32_t m, const uint8_t *keys,
		 const uint32_t *bits, uint32_t n, int64_t *found);

/* ---- UMEM (umem.c) ---- */

struct xk_umem_config {
	uint32_t frames;      /* number of frames, of all pools together */
	uint32_t chunk_size;  /* bytes per frame: 2048 or 4096; `unaligned`: 2048 to 4096 */
	uint32_t headroom;    /* bytes kept free before each received packet, on top of the kernel's 256 */
	uint32_t tx_metadata; /* bytes before each packet to transmit for struct xsk_tx_metadata: 0 or 24 */
	int32_t node;         /* NUMA node to prefer for the memory; -1: where it is touched first */
	uint8_t huge;         /* huge pages (MAP_HUGETLB) */
	uint8_t unaligned;    /* XDP_UMEM_UNALIGNED_CHUNK_FLAG: chunk_size need be no power of two */
	uint8_t software_checksum; /* XDP_UMEM_TX_SW_CSUM: in copy mode the kernel computes checksums that are asked for */
	uint8_t check;        /* keep and check the owner of every frame */
};

/* Where the frames of a pool are; the sum is `frames`. */
struct xk_frames {
	uint32_t free;
	uint32_t fill; /* handed to the kernel and not yet received: FILL ring and driver */
	uint32_t rx;   /* in the RX ring */
	uint32_t held;
	uint32_t tx;   /* handed to the kernel and not yet completed: TX ring and driver */
	uint32_t completion;
	uint32_t frames;
};

struct xk_umem;
struct xk_pool;

/*
 * Map and touch the memory.  -ENOMEM from "mmap(MAP_HUGETLB)": not enough huge pages are reserved.  The first socket
 * registers it with the kernel, which pins it (RLIMIT_MEMLOCK without CAP_IPC_LOCK).
 */
int xk_umem_open(const struct xk_umem_config *config, struct xk_umem **out);
/* Start of the memory and its size; it stays mapped until xk_umem_close(). */
uint8_t *xk_umem_memory(const struct xk_umem *u, size_t *size);
/* NUMA node of its first page, -errno if the kernel does not tell. */
int xk_umem_node(const struct xk_umem *u);
/* Unmap; its sockets and pools are closed before. */
void xk_umem_close(struct xk_umem *u);

/*
 * The owner of `frames` frames that no other pool has: sockets take from it and give back to it.  One thread uses a pool
 * at a time, but for sockets of one queue, which lock it once per batch.  -ENOSPC: the UMEM has fewer left.
 */
int xk_pool_open(struct xk_umem *u, uint32_t frames, struct xk_pool **out);
void xk_pool_frames(const struct xk_pool *p, struct xk_frames *out);
void xk_pool_close(struct xk_pool *p);

/* ---- AF_XDP sockets (xsk.c, receive.c, transmit.c) ---- */

struct xk_xsk_config {
	uint32_t fill_size;       /* ring sizes, powers of two */
	uint32_t completion_size;
	uint32_t rx_size;
	uint32_t tx_size;         /* 0: no TX ring */
	uint16_t bind_flags;      /* XDP_ZEROCOPY, XDP_COPY, XDP_USE_NEED_WAKEUP, XDP_USE_SG */
	uint8_t metadata;         /* the XDP program writes struct xk_meta before each packet */
	uint32_t busy_poll_us;    /* SO_BUSY_POLL with SO_PREFER_BUSY_POLL; 0: no busy polling */
	uint32_t busy_poll_budget; /* packets per busy poll */
	uint32_t tx_times;        /* times of packets that left to keep until they are read, a power of two; 0: none */
};

/* What was received, and what the kernel counts for the socket: XDP_STATISTICS. */
struct xk_xsk_stats {
	uint64_t received; /* packets taken off the RX ring */
	uint64_t rx_dropped;
	uint64_t rx_invalid;
	uint64_t tx_invalid;
	uint64_t rx_ring_full;
	uint64_t fill_empty; /* of the queue: the first socket of a group tells it */
	uint64_t tx_empty;
	uint64_t transmitted; /* packets handed to the TX ring */
	uint64_t kicks;       /* system calls that told the kernel of it */
	uint64_t tx_times_lost; /* times at which packets left that were not kept, because nobody had read those before */
	uint32_t unread;      /* packets in the RX ring */
};

/* What the kernel says of a socket. */
struct xk_xsk_got {
	uint8_t zerocopy;         /* XDP_OPTIONS */
	uint8_t prefer_busy_poll; /* SO_PREFER_BUSY_POLL */
	uint32_t busy_poll_us;    /* SO_BUSY_POLL */
	uint32_t napi_id;         /* SO_INCOMING_NAPI_ID: what is polled; 0: the driver names none for the queue */
};

/* Received packets in columns of the caller.  A packet's buffers go from first[i] to the next packet's first[]. */
struct xk_batch {
	uint32_t max_packets;
	uint32_t max_buffers;
	uint64_t *addr;    /* [max_buffers] offset in the UMEM of a buffer's first byte */
	uint32_t *size;    /* [max_buffers] its bytes */
	uint32_t *first;   /* [max_packets] index of the packet's first buffer */
	uint32_t *len;     /* [max_packets] bytes of the whole packet */
	uint64_t *time_ns; /* [max_packets] CLOCK_REALTIME */
	uint32_t *rule;    /* [max_packets] UINT32_MAX where the program wrote no metadata */
	uint32_t *mark;    /* [max_packets] 0 where the program set none */
	/* NULL unless the program writes struct xk_known: */
	uint64_t *device_ns; /* [max_packets] the device's clock; 0: none */
	uint32_t *hash;      /* [max_packets] RSS hash; 0: none */
	uint32_t *vlan;      /* [max_packets] TCI of the tag beside the packet; UINT32_MAX: none */
	uint32_t buffers;    /* out: how many there are */
};

/* Packets to transmit: `each` with a length of its own, or (NULL) rows of `length` bytes, `stride` bytes apart. */
struct xk_packets {
	uint32_t count;
	const uint8_t *const *each;
	const uint32_t *lengths;
	const uint8_t *rows;
	int64_t stride;
	uint32_t length;
};

/* What the caller wants for each packet of a call; the kernel reads it as struct xsk_tx_metadata. */
struct xk_tx_ask {
	uint8_t checksum;  /* the device (with software_checksum the kernel) sums the packet from `start` on */
	uint8_t timestamp; /* the kernel notes when the packet left; the socket keeps these times (tx_times) */
	uint32_t start;    /* byte of the packet where the sum begins */
	uint32_t offset;   /* bytes behind `start` where the sum is stored */
};

struct xk_xsk;

/*
 * socket(AF_XDP), rings, FILL ring filled from `pool`, bind to (ifindex, queue) in the current network namespace
 * (CAP_NET_RAW).  The first socket of a UMEM registers it and its bind flags hold for all; the others share it
 * (XDP_SHARED_UMEM).  `sibling`: an open socket of the same queue and pool whose FILL and COMPLETION rings this one
 * uses too, else NULL.  -EBUSY: the queue has a socket (or had one a moment ago); -EOPNOTSUPP: no zero-copy here, or
 * no packets of several buffers with it.
 */
int xk_xsk_open(int ifindex, uint32_t queue, const struct xk_xsk_config *config, struct xk_pool *pool,
		struct xk_xsk *sibling, struct xk_xsk **out);
int xk_xsk_fd(const struct xk_xsk *x);
int xk_xsk_got(const struct xk_xsk *x, struct xk_xsk_got *out);
int xk_xsk_stats(const struct xk_xsk *x, struct xk_xsk_stats *out);
/*
 * Take packets off the RX ring, whose frames are held until they are recycled; returns how many packets.  -EFAULT: the
 * kernel's descriptor or a frame's owner is wrong; -EMSGSIZE: a packet has more than max_buffers buffers.
 */
int xk_xsk_receive(struct xk_xsk *x, struct xk_batch *batch);
/* Give held frames back, by any address inside: to the FILL ring while it has room, else to the pool. */
int xk_xsk_recycle(struct xk_xsk *x, const uint64_t *addr, uint32_t n);
/*
 * Copy the packets into free frames and hand them to the TX ring; returns how many of them were taken, from the first on.
 * Completions are collected before.  A packet that is longer than a frame takes several, where the socket is bound with
 * XDP_USE_SG.  What `ask` wants is written into the UMEM's tx_metadata.  -EMSGSIZE: a packet is longer than a frame;
 * -EINVAL: one is shorter than an Ethernet header; no packet is sent then.
 */
int xk_xsk_transmit(struct xk_xsk *x, const struct xk_packets *packets, const struct xk_tx_ask *ask);
/*
 * Read up to `max` of the times at which packets left that were sent with `timestamp`; returns how many.  They come in
 * the order of completion, as far as completions were collected.  number[i]: which of the socket's packets it was, from 0
 * on; time_ns[i]: 0 where the device gave no time.
 */
int xk_xsk_times(struct xk_xsk *x, uint64_t *number, uint64_t *time_ns, uint32_t max);
/* Let the kernel send what still waits in the TX ring, and collect completions; returns how many frames came back. */
int xk_xsk_complete(struct xk_xsk *x);
/*
 * Wait until one of `n` sockets has packets to receive: 1, or 0 after timeout_ms (-1: for ever) or when stop_fd (-1:
 * none) is readable; -EINTR on a signal, -ENODEV when the time is over and a device is gone (which wakes nobody: do not
 * wait for ever).  Also wakes a driver that asked for it.
 */
int xk_xsk_wait(struct xk_xsk *const *x, uint32_t n, int stop_fd, int timeout_ms);
/* Unmap the rings and close the socket: the queue is free again once all sockets of it are closed. */
void xk_xsk_close(struct xk_xsk *x);

/* ---- packet sockets (packet.c) ---- */

struct xk_packet;

enum { XK_RECVFROM, XK_RECVMMSG, XK_TPACKET_V3 };

struct xk_packet_config {
	uint32_t kind;
	int filter_prog_fd;    /* eBPF socket filter, -1: none */
	uint32_t block_size;   /* TPACKET_V3: bytes per block, a multiple of the page size */
	uint32_t blocks;
	uint32_t retire_ms;    /* TPACKET_V3: hand over a block that is not full after this long */
	uint32_t buffer_bytes; /* the others: SO_RCVBUFFORCE */
};

/* An AF_PACKET socket on ifindex that sees what arrives there, not what leaves (CAP_NET_RAW). */
int xk_packet_open(int ifindex, const struct xk_packet_config *config, struct xk_packet **out);
/* Another eBPF filter in the place of the one that is there. */
int xk_packet_filter(struct xk_packet *p, int prog_fd);
/* Let nothing more in: what was received stays to be drained. */
int xk_packet_quiet(struct xk_packet *p);
/* Next batch of at most `max` packets, copied: bytes go to `room` one after the other (of `room_size`); arrays as above. */
int xk_packet_receive(struct xk_packet *p, uint32_t max, uint8_t *room, size_t room_size, uint32_t *len,
		      uint64_t *time_ns);
/*
 * Wait for packets: 1, or 0 after timeout_ms or sooner, as when stop_fd (-1: none) is readable; -EINTR on a signal,
 * -ENODEV when the device is gone.
 */
int xk_packet_wait(const struct xk_packet *p, int stop_fd, int timeout_ms);
/* The descriptor that is readable when packets are there. */
int xk_packet_fd(const struct xk_packet *p);
/* Join the PACKET_FANOUT group `id` of this network namespace, which shares packets out as `mode` says (packet(7)). */
int xk_packet_fanout(struct xk_packet *p, uint16_t id, uint16_t mode);
/* PACKET_STATISTICS since open: packets that passed the filter, and those of them dropped for want of room. */
int xk_packet_stats(struct xk_packet *p, uint64_t *packets, uint64_t *drops);
void xk_packet_close(struct xk_packet *p);

/* ---- copies in BPF ring buffers, one for each CPU (copies.c) ---- */

struct xk_copies;

/* The kernel's possible CPUs, of which some may not be there. */
uint32_t xk_cpus(void);
/* Before a program is loaded: make the maps of one of its rings (bpf/copies.h).  CAP_BPF. */
int xk_copies_prepare(struct xk_program *p, const char *ring);
/*
 * Read the copies that a loaded program writes into one of its rings; from here on it writes them.  Makes and maps `rings`
 * ring buffers of `ring_bytes` each, a power of two of whole pages (CAP_BPF); CPU i uses number ring_of[i], and there are
 * xk_cpus() of these.  -ENOENT: the program has no such ring.
 */
int xk_copies_open(const struct xk_program *p, const char *ring, const uint32_t *ring_of, uint32_t rings,
		   uint32_t ring_bytes, struct xk_copies **out);
/* From here on the program copies this many bytes of a packet at most; 0: all. */
void xk_copies_snaplen(struct xk_copies *c, uint32_t snaplen);
/* Tell the program that nobody reads.  A program that runs just now may still write: xk_quiesce(), then drain. */
void xk_copies_quiet(struct xk_copies *c);
/*
 * Next batch of at most `max` packets, copied as by xk_packet_receive(), the oldest first; rule: index of the rule that took
 * each or asked for the copy; mark: what rules gave it; verdict: enum xdp_action; wire_len: bytes that the packet has;
 * queue: on which it was received.
 */
int xk_copies_receive(struct xk_copies *c, uint32_t max, uint8_t *room, size_t room_size, uint32_t *len,
		      uint64_t *time_ns, uint32_t *rule, uint32_t *mark, uint8_t *verdict, uint32_t *wire_len,
		      uint32_t *queue);
/*
 * Wait for packets: 1, or 0 after timeout_ms or when stop_fd (-1: none) is readable; -EINTR on a signal.  The program
 * wakes those that wait for the descriptor only after this was called, and once.
 */
int xk_copies_wait(struct xk_copies *c, int stop_fd, int timeout_ms);
/* The descriptor that is readable when packets are there. */
int xk_copies_fd(const struct xk_copies *c);
/* Since open, for each of xk_cpus() CPUs: packets written into its ring buffer, and those that found no room. */
int xk_copies_stats(const struct xk_copies *c, uint64_t *packets, uint64_t *lost);
/* Quiet, unmap, free. */
void xk_copies_close(struct xk_copies *c);

/* ---- sinks (sink.c, block.c) ---- */

struct xk_sink;

/* Counts packets and forgets them; `limit` in all, 0 for no limit.  `workers`: how many will be started with it. */
int xk_sink_count(uint64_t limit, uint32_t workers, struct xk_sink **out);
/*
 * Writes a pcapng Enhanced Packet Block per packet to `fd` (not owned), in the order of the packets' times, which delays
 * them by 0.1 s at most.  `limit`: packets to write in all, 0 for no limit.  `snaplen`: bytes of each packet to keep, 0
 * for 256 KiB.  `workers`: how many will be started; their interface ids are different.  Every `interval_ms` (0: never)
 * an Interface Statistics Block for each follows.  After a failed write a regular file ends with its last whole block.
 * A reader of a pipe that has stopped reading ends in ETIMEDOUT a second after the order to stop.
 */
int xk_sink_pcapng(int fd, uint64_t limit, uint32_t snaplen, uint32_t workers, uint32_t interval_ms,
		   struct xk_sink **out);
/* Texts (255 bytes at most are kept) for opt_comment: of packets that rule 0 .. count-1 took, from the next one on. */
int xk_sink_rules(struct xk_sink *s, uint32_t count, const char *const *texts);
/*
 * Writes into delay_ns (of the caller, `room` entries, kept until xk_sink_close()) how long ago each packet was sent: the
 * time that stands at `offset` in it, 64 bits big-endian, ns of CLOCK_MONOTONIC.  For 64 workers at most.  `written` counts
 * those that found room.
 */
int xk_sink_delays(uint32_t offset, uint64_t *delay_ns, uint32_t room, struct xk_sink **out);
/* 1 once the sink takes no more: its limit is reached or a write failed. */
int xk_sink_done(const struct xk_sink *s);
/* Its workers have been joined before. */
void xk_sink_close(struct xk_sink *s);

/* ---- workers (worker.c) ---- */

struct xk_worker_stats {
	uint64_t packets;  /* received from the source */
	uint64_t bytes;
	uint64_t written;  /* taken by the sink */
	uint64_t refused;  /* received after the sink's limit, or lost to a failed write */
	uint64_t failed;   /* of them, lost to a failed write */
	uint64_t batches;
	uint64_t looks;    /* looks that found nothing */
	uint64_t nudges;   /* of them, system calls that let the driver go on (busy poll, need_wakeup) */
	uint64_t waits;    /* times it slept in poll() */
	int32_t error;     /* errno that ended it, or 0 */
	int32_t cpu;       /* -1: not pinned */
	uint64_t completed; /* checksums, by forward() */
};

/* What a worker does when there is nothing: look on for some 20 us, or less where that was in vain, and then sleep; look
 * on for ever; sleep at once; look again every half millisecond, and sleep after 10 ms. */
enum { XK_WAIT_ADAPTIVE, XK_WAIT_BUSY, XK_WAIT_SLEEP, XK_WAIT_NAP };

struct xk_worker;

/*
 * Start a thread that moves packets from the source into `sink` until stopped.  `interface` is the interface id that
 * its pcapng blocks carry, `queue` their epb_queue.  `wait`: one of XK_WAIT_*.  cpu -1: not pinned.  Source and sink
 * must outlive it.
 */
int xk_worker_start_xsk(struct xk_xsk *x, struct xk_sink *sink, uint32_t interface, uint32_t queue, int wait, int cpu,
			struct xk_worker **out);
int xk_worker_start_packet(struct xk_packet *p, struct xk_sink *sink, uint32_t interface, int wait, int cpu,
			   struct xk_worker **out);
/* `hook`: where the program runs, which says what its verdicts mean; `outbound`: the packets were leaving the host. */
enum { XK_HOOK_XDP, XK_HOOK_TC, XK_HOOK_SOCKET };
int xk_worker_start_copies(struct xk_copies *c, struct xk_sink *sink, uint32_t interface, int hook, int outbound,
			   int wait, int cpu, struct xk_worker **out);
void xk_worker_stats(const struct xk_worker *w, struct xk_worker_stats *out);
/*
 * Ask all workers of a sink to stop: each drains its source until it is empty, and ends.  Wait for all: each may write
 * what the others received.  Then take the final counts and free them.
 */
void xk_worker_stop(struct xk_worker *w);
void xk_worker_wait(struct xk_worker *w);
void xk_worker_join(struct xk_worker *w, struct xk_worker_stats *out);

/* ---- forwarding (forward.c) ---- */

struct xk_forwarder;

/*
 * Start a thread that transmits on `b` what `a` receives and on `a` what `b` receives, in the frames where the kernel put
 * it: RX -> TX -> COMPLETION -> FILL.  Both sockets have a TX ring and the same pool.  a == b: what a socket receives goes
 * back out of it, with the Ethernet addresses exchanged.  Where a TX ring is full packets stay in the RX ring, and what
 * that cannot hold the kernel drops and counts.  `complete`: of packets that come from a (1), from b (2), complete the
 * checksums that senders left to their device.
 */
int xk_forward_start(struct xk_xsk *a, struct xk_xsk *b, int complete, int wait, int cpu, struct xk_forwarder **out);
/* Room for packets that are to be inspected on a queue: struct room of bpf/inspect.bpf.c, in memory shared with it. */
struct xk_room {
	uint64_t sent, taken, size;
};
/*
 * Judge `count` packets that came from `a` (direction 0) or `b` (1): verdicts[i] becomes 1 for those that go on, 0 for
 * those that are dropped.  `data[i]` and `sizes[i]` are the first buffer of packet i; it may be changed in place.  Called
 * in the thread of the queues, which does nothing else meanwhile.
 */
typedef void (*xk_decide)(void *context, int direction, uint8_t *const *data, const uint32_t *sizes, uint32_t count,
			  uint8_t *verdicts);
/*
 * The same as xk_forward_start() for packets that `decide` judges; what is dropped goes back to the pool, and is
 * `refused` in the counts.  `rooms`: those of the queues of `a` and of `b`, with nothing under way; their `taken` is written
 * here.
 */
int xk_inspect_start(struct xk_xsk *a, struct xk_xsk *b, int complete, int wait, int cpu, xk_decide decide, void *context,
		     struct xk_room *const rooms[2], struct xk_forwarder **out);
/* The packet in `data`, of `size` bytes: complete its checksum; 1 if it was not complete. */
int xk_forward_complete(uint8_t *data, uint32_t size);
/* Counts of one direction, 0: a to b, 1: b to a; `written` is what was handed to TX, looks and waits are of both. */
void xk_forward_stats(const struct xk_forwarder *f, int direction, struct xk_worker_stats *out);
/* Ask to stop: what waits in the RX rings goes out first, for a second at most where TX makes no progress.  Then end. */
void xk_forward_stop(struct xk_forwarder *f);
/* `there`, `back`: the final counts of the directions. */
void xk_forward_join(struct xk_forwarder *f, struct xk_worker_stats *there, struct xk_worker_stats *back);

/* cdef end */
