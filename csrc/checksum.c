/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Checksums that the sender left to its device (CHECKSUM_PARTIAL), as packets between veth devices or in generic mode have
 * them.  The kernel marks such a packet in the skb, and XDP does not see the mark.  But the field has a known value then:
 * the sum of the pseudo header, not complemented (RFC 9293, 3.1; RFC 768; RFC 8200, 8.1).  A packet with a complete
 * checksum can have the same value by chance, so the whole packet is summed before anything is written: where the checksum
 * is right already, it stays.
 *
 * Only the outermost TCP or UDP header behind Ethernet, VLAN tags, IPv4 or IPv6 is looked at, and no fragment.
 * bpf/checksum.bpf.c does the same for packets that a program sends on; a property test compares the two.
 */
#include <arpa/inet.h>
#include <linux/if_ether.h>
#include <netinet/in.h>
#include <string.h>
#include "checksum.h"

#define VLAN_TAGS 2
#define EXTENSIONS 6 /* headers of IPv6 between the fixed one and TCP or UDP */
#define TCP_BYTES 20
#define TCP_CHECKSUM 16
#define UDP_BYTES 8
#define UDP_CHECKSUM 6

/* Where TCP or UDP is, how long it is with its payload, and the sum of its pseudo header. */
struct segment {
	uint32_t at, length, field; /* `field`: where the checksum is */
	uint64_t pseudo;
	int protocol;
};

static uint16_t get16(const uint8_t *at)
{
	uint16_t value;

	memcpy(&value, at, sizeof(value)); /* in network order: so are all sums here */
	return value;
}

static uint16_t fold(uint64_t sum)
{
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)sum;
}

/* Sum of 16-bit words; an odd last byte is the first of its word. */
static uint64_t sum_of(const uint8_t *at, size_t size)
{
	uint64_t sum = 0;
	uint32_t word;

	for (; size >= sizeof(word); at += sizeof(word), size -= sizeof(word)) {
		memcpy(&word, at, sizeof(word));
		sum += word;
	}
	if (size >= 2) {
		sum += get16(at);
		at += 2;
		size -= 2;
	}
	if (size)
		sum += htons((uint16_t)(*at << 8));
	return sum;
}

/* Find it in the first `size` bytes of a packet of `length` bytes; 0 if it is not there, or not whole. */
static int find(const uint8_t *p, uint32_t size, uint32_t length, struct segment *s)
{
	uint32_t at = 2 * ETH_ALEN, bytes;
	uint16_t type;

	if (size < ETH_HLEN)
		return 0;
	type = ntohs(get16(p + at));
	for (int i = 0; i < VLAN_TAGS && (type == ETH_P_8021Q || type == ETH_P_8021AD); i++) {
		at += 4;
		if (size < at + 2)
			return 0;
		type = ntohs(get16(p + at));
	}
	at += 2;
	if (type == ETH_P_IP) {
		uint32_t header;

		if (size < at + 20 || p[at] >> 4 != 4)
			return 0;
		header = (p[at] & 15) * 4u;
		if (header < 20 || ntohs(get16(p + at + 6)) & 0x3fff) /* a fragment */
			return 0;
		s->length = ntohs(get16(p + at + 2));
		if (s->length < header)
			return 0;
		s->length -= header;
		s->protocol = p[at + 9];
		s->pseudo = sum_of(p + at + 12, 8);
		at += header;
	} else if (type == ETH_P_IPV6) {
		uint32_t end;

		if (size < at + 40 || p[at] >> 4 != 6)
			return 0;
		s->protocol = p[at + 6];
		s->pseudo = sum_of(p + at + 8, 32);
		end = at + 40 + ntohs(get16(p + at + 4));
		at += 40;
		for (int i = 0; i < EXTENSIONS && (s->protocol == IPPROTO_HOPOPTS || s->protocol == IPPROTO_DSTOPTS); i++) {
			if (size < at + 8)
				return 0;
			s->protocol = p[at];
			at += 8 + p[at + 1] * 8u;
		}
		if (end < at)
			return 0;
		s->length = end - at;
	} else {
		return 0;
	}
	if (s->protocol != IPPROTO_TCP && s->protocol != IPPROTO_UDP)
		return 0;
	s->at = at;
	s->field = at + (s->protocol == IPPROTO_TCP ? TCP_CHECKSUM : UDP_CHECKSUM);
	s->pseudo += htons((uint16_t)s->protocol) + (uint64_t)htons((uint16_t)(s->length >> 16)) +
		     htons((uint16_t)s->length);
	bytes = s->protocol == IPPROTO_TCP ? TCP_BYTES : UDP_BYTES;
	return size >= at + bytes && s->length >= bytes && at + s->length <= length;
}

int xk_complete_checksum(const struct iovec *parts, uint32_t count)
{
	struct segment s = { 0 };
	uint8_t *first = parts[0].iov_base;
	uint32_t length = 0, skip, left;
	uint16_t stored, checksum;
	uint64_t sum;
	int odd = 0;

	for (uint32_t i = 0; i < count; i++)
		length += (uint32_t)parts[i].iov_len;
	if (!find(first, (uint32_t)parts[0].iov_len, length, &s))
		return 0;
	stored = get16(first + s.field);
	if (stored != fold(s.pseudo))
		return 0;
	sum = s.pseudo;
	skip = s.at;
	left = s.length;
	for (uint32_t i = 0; i < count && left; i++) {
		uint32_t size = (uint32_t)parts[i].iov_len - skip;
		uint16_t part;

		size = size < left ? size : left;
		part = fold(sum_of((const uint8_t *)parts[i].iov_base + skip, size));
		sum += odd ? (uint16_t)(part << 8 | part >> 8) : part; /* RFC 1071: sums of swapped bytes are swapped */
		odd ^= size & 1;
		left -= size;
		skip = 0;
	}
	if (fold(sum) == 0xffff) /* right as it is */
		return 0;
	checksum = (uint16_t)~fold(sum + (uint16_t)~stored); /* without the field */
	if (!checksum && s.protocol == IPPROTO_UDP)
		checksum = 0xffff; /* 0 says that there is none */
	memcpy(first + s.field, &checksum, sizeof(checksum));
	return 1;
}
