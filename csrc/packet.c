/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * AF_PACKET: the fallback where no XDP path works, and the paths that AF_XDP is measured against.
 *
 * The kernel takes an 802.1Q tag out of the packet before a packet socket sees it; here it is put back (not for
 * XK_RECVFROM, the plainest path, which is for measuring), so that the bytes are those of the wire.
 * packet(7), Documentation/networking/packet_mmap.rst.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/filter.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include "ring.h"
#include "source.h"

#define SLOT 65536u /* bytes per message buffer of the plain paths, offloads included */
#define TAG 4u
#define MMSG 64u

struct control {
	_Alignas(struct cmsghdr) char data[CMSG_SPACE(sizeof(struct tpacket_auxdata)) + CMSG_SPACE(sizeof(struct timespec))];
};

struct xk_packet {
	int fd;
	struct xk_packet_config config;
	uint64_t packets, drops;
	/* TPACKET_V3 */
	uint8_t *ring;
	size_t ring_size;
	uint32_t block, left; /* current block; packets of it not yet handed out */
	struct tpacket3_hdr *next;
	/* recvfrom, recvmmsg */
	uint8_t *slots;
	struct mmsghdr *messages;
	struct iovec *vectors;
	struct control *controls;
	/* xk_packet_receive(): the batch being copied out */
	struct xk_view views[XK_BATCH];
	int view_count, view_next;
};

/* Put a tag back in front of the EtherType; `data` has TAG bytes of room before it. */
static const uint8_t *insert_tag(uint8_t *data, uint16_t tpid, uint16_t tci)
{
	uint16_t tag[2] = { htons(tpid ? tpid : ETH_P_8021Q), htons(tci) };

	memmove(data - TAG, data, 2 * ETH_ALEN);
	memcpy(data - TAG + 2 * ETH_ALEN, tag, TAG);
	return data - TAG;
}

static int option(int fd, int name, int value, const char *call)
{
	return setsockopt(fd, SOL_PACKET, name, &value, sizeof(value)) ? xk_fail(call, errno) : 0;
}

static int open_ring(struct xk_packet *p)
{
	const struct xk_packet_config *c = &p->config;
	struct tpacket_req3 req = { .tp_block_size = c->block_size,
				    .tp_block_nr = c->blocks,
				    .tp_frame_size = TPACKET_ALIGNMENT << 7,
				    .tp_frame_nr = c->block_size / (TPACKET_ALIGNMENT << 7) * c->blocks,
				    .tp_retire_blk_tov = c->retire_ms };
	int error;

	if ((error = option(p->fd, PACKET_VERSION, TPACKET_V3, "setsockopt(PACKET_VERSION)")) ||
	    (error = option(p->fd, PACKET_RESERVE, TAG, "setsockopt(PACKET_RESERVE)")))
		return error;
	if (setsockopt(p->fd, SOL_PACKET, PACKET_RX_RING, &req, sizeof(req)))
		return xk_fail("setsockopt(PACKET_RX_RING)", errno);
	p->ring_size = (size_t)c->block_size * c->blocks;
	p->ring = mmap(NULL, p->ring_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, p->fd, 0);
	if (p->ring == MAP_FAILED) {
		p->ring = NULL;
		return xk_fail("mmap(PACKET_RX_RING)", errno);
	}
	return 0;
}

static int open_plain(struct xk_packet *p)
{
	uint32_t n = p->config.kind == XK_RECVMMSG ? MMSG : 1;
	int on = 1;

	if (p->config.buffer_bytes && setsockopt(p->fd, SOL_SOCKET, SO_RCVBUFFORCE, &p->config.buffer_bytes, 4))
		return xk_fail("setsockopt(SO_RCVBUFFORCE)", errno);
	p->slots = malloc((size_t)n * (SLOT + TAG));
	p->messages = calloc(n, sizeof(*p->messages));
	p->vectors = calloc(n, sizeof(*p->vectors));
	p->controls = calloc(n, sizeof(*p->controls));
	if (!p->slots || !p->messages || !p->vectors || !p->controls)
		return xk_fail("malloc", ENOMEM);
	for (uint32_t i = 0; i < n; i++) {
		p->vectors[i] = (struct iovec){ p->slots + (size_t)i * (SLOT + TAG) + TAG, SLOT };
		p->messages[i].msg_hdr.msg_iov = &p->vectors[i];
		p->messages[i].msg_hdr.msg_iovlen = 1;
		p->messages[i].msg_hdr.msg_control = &p->controls[i];
	}
	if (p->config.kind == XK_RECVFROM)
		return 0;
	if (setsockopt(p->fd, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof(on)))
		return xk_fail("setsockopt(SO_TIMESTAMPNS)", errno);
	return option(p->fd, PACKET_AUXDATA, 1, "setsockopt(PACKET_AUXDATA)");
}

int xk_packet_filter(struct xk_packet *p, int prog_fd)
{
	if (setsockopt(p->fd, SOL_SOCKET, SO_ATTACH_BPF, &prog_fd, sizeof(prog_fd)))
		return xk_fail("setsockopt(SO_ATTACH_BPF)", errno);
	return 0;
}

int xk_packet_open(int ifindex, const struct xk_packet_config *config, struct xk_packet **out)
{
	struct sockaddr_ll address = { .sll_family = AF_PACKET,
				       .sll_protocol = htons(ETH_P_ALL),
				       .sll_ifindex = ifindex };
	struct xk_packet *p = calloc(1, sizeof(*p));
	int error;

	if (!p)
		return xk_fail("calloc", ENOMEM);
	p->config = *config;
	p->fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0); /* protocol 0: deaf until bound */
	if (p->fd < 0) {
		error = xk_fail("socket(AF_PACKET)", errno);
		goto out_close;
	}
	if ((error = option(p->fd, PACKET_IGNORE_OUTGOING, 1, "setsockopt(PACKET_IGNORE_OUTGOING)")))
		goto out_close;
	if (config->filter_prog_fd >= 0 && (error = xk_packet_filter(p, config->filter_prog_fd)))
		goto out_close;
	error = config->kind == XK_TPACKET_V3 ? open_ring(p) : open_plain(p);
	if (error)
		goto out_close;
	if (bind(p->fd, (struct sockaddr *)&address, sizeof(address))) {
		error = xk_fail("bind(AF_PACKET)", errno);
		goto out_close;
	}
	*out = p;
	return 0;
out_close:
	xk_packet_close(p);
	return error;
}

int xk_packet_quiet(struct xk_packet *p)
{
	struct sock_filter none = BPF_STMT(BPF_RET | BPF_K, 0);
	struct sock_fprog program = { 1, &none };

	return setsockopt(p->fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof(program)) ?
		       xk_fail("setsockopt(SO_ATTACH_FILTER)", errno) :
		       0;
}

int xk_packet_fanout(struct xk_packet *p, uint16_t id, uint16_t mode)
{
	return option(p->fd, PACKET_FANOUT, (int)((uint32_t)mode << 16 | id), "setsockopt(PACKET_FANOUT)");
}

int xk_packet_stats(struct xk_packet *p, uint64_t *packets, uint64_t *drops)
{
	struct tpacket_stats_v3 s = { 0 }; /* begins as struct tpacket_stats, which the plain paths get */
	socklen_t size = sizeof(s);

	if (getsockopt(p->fd, SOL_PACKET, PACKET_STATISTICS, &s, &size))
		return xk_fail("getsockopt(PACKET_STATISTICS)", errno);
	/* the kernel starts again from zero at each read; a worker's sink reads too */
	*packets = __atomic_add_fetch(&p->packets, s.tp_packets, __ATOMIC_RELAXED);
	*drops = __atomic_add_fetch(&p->drops, s.tp_drops, __ATOMIC_RELAXED);
	return 0;
}

void xk_packet_close(struct xk_packet *p)
{
	if (p->ring)
		munmap(p->ring, p->ring_size);
	if (p->fd >= 0)
		close(p->fd);
	free(p->slots);
	free(p->messages);
	free(p->vectors);
	free(p->controls);
	free(p);
}

/* ---- TPACKET_V3 ---- */

static struct tpacket_block_desc *current_block(const struct xk_packet *p)
{
	return (struct tpacket_block_desc *)(p->ring + (size_t)p->block * p->config.block_size);
}

static int ring_receive(void *self, struct xk_view *out)
{
	struct xk_packet *p = self;
	struct tpacket_block_desc *b = current_block(p);
	uint32_t n;

	if (!p->next) {
		/* acquire: pairs with the kernel's barrier before it hands the block over */
		if (!(xk_ring_load(&b->hdr.bh1.block_status) & TP_STATUS_USER))
			return 0;
		p->left = b->hdr.bh1.num_pkts;
		p->next = (struct tpacket3_hdr *)((uint8_t *)b + b->hdr.bh1.offset_to_first_pkt);
	}
	for (n = 0; n < XK_BATCH && p->left; n++, p->left--) {
		struct tpacket3_hdr *h = p->next;
		const uint8_t *data = (uint8_t *)h + h->tp_mac;
		uint32_t tag = 0;

		if (h->tp_status & TP_STATUS_VLAN_VALID) {
			data = insert_tag((uint8_t *)h + h->tp_mac,
					  h->tp_status & TP_STATUS_VLAN_TPID_VALID ? h->hv1.tp_vlan_tpid : 0,
					  (uint16_t)h->hv1.tp_vlan_tci);
			tag = TAG;
		}
		out[n] = (struct xk_view){ data, h->tp_snaplen + tag, h->tp_len + tag,
					   h->tp_sec * 1000000000ull + h->tp_nsec, XK_NO_RULE, 0, 0, NULL, 0 };
		p->next = (struct tpacket3_hdr *)((uint8_t *)h + h->tp_next_offset);
	}
	return (int)n;
}

static int ring_release(void *self)
{
	struct xk_packet *p = self;

	if (!p->next || p->left)
		return 0;
	/* release: our reads of the block end before the kernel gets it back */
	__atomic_store_n(&current_block(p)->hdr.bh1.block_status, TP_STATUS_KERNEL, __ATOMIC_RELEASE);
	p->block = (p->block + 1) % p->config.blocks;
	p->next = NULL;
	return 0;
}

/* ---- recvfrom, recvmmsg ---- */

static int recvfrom_receive(void *self, struct xk_view *out)
{
	struct xk_packet *p = self;
	ssize_t n = recvfrom(p->fd, p->vectors[0].iov_base, SLOT, MSG_DONTWAIT, NULL, NULL);

	if (n < 0)
		return errno == EAGAIN ? 0 : xk_fail("recvfrom(AF_PACKET)", errno);
	out[0] = (struct xk_view){ p->vectors[0].iov_base, (uint32_t)n, (uint32_t)n, xk_clock_ns(CLOCK_REALTIME),
				   XK_NO_RULE, 0, 0, NULL, 0 };
	return 1;
}

static int recvmmsg_receive(void *self, struct xk_view *out)
{
	struct xk_packet *p = self;
	int n;

	for (uint32_t i = 0; i < MMSG; i++)
		p->messages[i].msg_hdr.msg_controllen = sizeof(struct control);
	n = recvmmsg(p->fd, p->messages, MMSG, MSG_DONTWAIT, NULL);
	if (n < 0)
		return errno == EAGAIN ? 0 : xk_fail("recvmmsg(AF_PACKET)", errno);
	for (int i = 0; i < n; i++) {
		struct msghdr *m = &p->messages[i].msg_hdr;
		uint8_t *data = m->msg_iov->iov_base;
		uint32_t len = p->messages[i].msg_len;

		out[i] = (struct xk_view){ data, len, len, 0, XK_NO_RULE, 0, 0, NULL, 0 };
		for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c; c = CMSG_NXTHDR(m, c)) {
			if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SO_TIMESTAMPNS) {
				struct timespec t;

				memcpy(&t, CMSG_DATA(c), sizeof(t));
				out[i].time_ns = (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
			} else if (c->cmsg_level == SOL_PACKET && c->cmsg_type == PACKET_AUXDATA) {
				struct tpacket_auxdata a;

				memcpy(&a, CMSG_DATA(c), sizeof(a));
				out[i].wire_len = a.tp_len;
				if (a.tp_status & TP_STATUS_VLAN_VALID) {
					out[i].data = insert_tag(
						data, a.tp_status & TP_STATUS_VLAN_TPID_VALID ? a.tp_vlan_tpid : 0,
						a.tp_vlan_tci);
					out[i].len += TAG;
					out[i].wire_len += TAG;
				}
			}
		}
	}
	return n;
}

static int plain_release(void *self)
{
	(void)self;
	return 0;
}

static uint64_t lost(const void *self)
{
	uint64_t packets, drops = 0;

	return xk_packet_stats((struct xk_packet *)self, &packets, &drops) ? 0 : drops;
}

void xk_packet_source(struct xk_packet *p, struct xk_source *out)
{
	*out = (struct xk_source){ .receive = recvfrom_receive,
				   .release = plain_release,
				   .fd = p->fd,
				   .self = p,
				   .label = { .hook = XK_HOOK_SOCKET },
				   .disorder_ns = 1000000, /* CPUs take the time first, and then their turn in the ring */
				   .delay_ns = 50000000 + 2000000ull * p->config.retire_ms,
				   .lost = lost };
	if (p->config.kind == XK_RECVMMSG)
		out->receive = recvmmsg_receive;
	if (p->config.kind == XK_TPACKET_V3) {
		out->receive = ring_receive;
		out->release = ring_release;
		out->linger_ms = 2 * (int)p->config.retire_ms + 10;
	}
}

int xk_packet_receive(struct xk_packet *p, uint32_t max, uint8_t *room, size_t room_size, uint32_t *len,
		      uint64_t *time_ns)
{
	struct xk_source source;
	uint32_t n = 0;
	size_t used = 0;

	xk_packet_source(p, &source);
	while (n < max) {
		if (p->view_next == p->view_count) {
			if (p->view_count)
				source.release(p);
			p->view_next = 0;
			p->view_count = source.receive(p, p->views);
			if (p->view_count < 0) {
				int error = p->view_count;

				p->view_count = 0;
				return n ? (int)n : error;
			}
			if (!p->view_count)
				break;
		}
		for (; p->view_next < p->view_count && n < max; p->view_next++, n++) {
			const struct xk_view *v = &p->views[p->view_next];

			if (used + v->len > room_size)
				return n ? (int)n : xk_fail("packet longer than the batch's room", EMSGSIZE);
			memcpy(room + used, v->data, v->len);
			used += v->len;
			len[n] = v->len;
			time_ns[n] = v->time_ns;
		}
	}
	return (int)n;
}

int xk_packet_fd(const struct xk_packet *p)
{
	return p->fd;
}

int xk_packet_wait(const struct xk_packet *p, int stop_fd, int timeout_ms)
{
	struct pollfd fds[] = { { .fd = p->fd, .events = POLLIN }, { .fd = stop_fd, .events = POLLIN } };
	struct sockaddr_ll address;
	socklen_t size = sizeof(address);
	int error, ready = poll(fds, 2, timeout_ms);

	if (ready < 0)
		return xk_fail("poll(AF_PACKET)", errno);
	if (fds[0].revents & POLLIN)
		return 1;
	if (fds[0].revents) { /* down or gone: take the error off the socket, else the next poll() returns at once */
		size = sizeof(error);
		getsockopt(p->fd, SOL_SOCKET, SO_ERROR, &error, &size);
	}
	size = sizeof(address);
	if (!getsockname(p->fd, (struct sockaddr *)&address, &size) && address.sll_ifindex < 0)
		return xk_fail("poll(AF_PACKET): the device is gone", ENODEV);
	return 0;
}
