/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Keys of sets in bulk: lists of members read as text, and two tables of keys compared.
 *
 * A value is kept as a number of up to 128 bits while it is worked on, and written in network order.  What a list may
 * hold besides the plain forms (netmasks, scope ids, 0b101) is left to Python, line by line: xdpkit/language/sets.py has the say
 * of what a member is, this must agree with it on what it takes.
 */
#include <arpa/inet.h>
#include <string.h>
#include "xdpkit.h"

typedef unsigned __int128 u128;

struct cursor {
	const char *at;
	const char *end;
};

static int digit(char c)
{
	return c >= '0' && c <= '9';
}

static int blank(char c)
{
	return c == ' ' || c == '\t' || c == '\r';
}

/* A decimal number without leading zeros, at most `most`. */
static int decimal(struct cursor *c, u128 most, u128 *out)
{
	const char *start = c->at;
	u128 value = 0;

	for (; c->at < c->end && digit(*c->at); c->at++) {
		uint32_t d = (uint32_t)(*c->at - '0');

		if (value > (most - d) / 10)
			return 0;
		value = value * 10 + d;
	}
	*out = value;
	return c->at > start && (*start != '0' || c->at == start + 1);
}

static int ipv4(struct cursor *c, u128 *out)
{
	u128 value = 0, octet;

	for (int i = 0; i < 4; i++) {
		if (i && (c->at >= c->end || *c->at++ != '.'))
			return 0;
		if (!decimal(c, 255, &octet))
			return 0;
		value = value << 8 | octet;
	}
	*out = value;
	return 1;
}

static int ipv6(struct cursor *c, u128 *out)
{
	char text[INET6_ADDRSTRLEN];
	uint8_t raw[16];
	size_t n = 0;

	while (c->at + n < c->end && (c->at[n] == ':' || c->at[n] == '.' || digit(c->at[n]) ||
				       ((c->at[n] | 0x20) >= 'a' && (c->at[n] | 0x20) <= 'f')))
		if (++n == sizeof(text))
			return 0;
	memcpy(text, c->at, n);
	text[n] = 0;
	if (inet_pton(AF_INET6, text, raw) != 1)
		return 0;
	*out = 0;
	for (int i = 0; i < 16; i++)
		*out = *out << 8 | raw[i];
	c->at += n;
	return 1;
}

static int value(struct cursor *c, int kind, uint32_t width, u128 *out)
{
	u128 most = width < 128 ? ((u128)1 << width) - 1 : ~(u128)0;

	if (kind == XK_IPV4)
		return ipv4(c, out);
	if (kind == XK_IPV6)
		return ipv6(c, out);
	return decimal(c, most, out);
}

static void skip(struct cursor *c)
{
	while (c->at < c->end && blank(*c->at))
		c->at++;
}

/* low..high of what is written, the whole of it, of a kind other than XK_IP. */
static int plain_interval(struct cursor c, int kind, uint32_t width, int intervals, u128 *low, u128 *high)
{
	u128 length;

	if (!value(&c, kind, width, low))
		return 0;
	*high = *low;
	if (intervals && c.at < c.end && *c.at == '/' && kind != XK_NUMBER) {
		c.at++;
		if (!decimal(&c, width, &length))
			return 0;
		if (length < width) {
			uint32_t free = width - (uint32_t)length;
			u128 host = free < 128 ? ((u128)1 << free) - 1 : ~(u128)0;

			if (*low & host)
				return 0;
			*high = *low | host;
		}
	} else if (intervals) {
		skip(&c);
		if (c.at < c.end && *c.at == '-') {
			c.at++;
			skip(&c);
			if (!value(&c, kind, width, high) || *high < *low)
				return 0;
		}
	}
	return c.at == c.end;
}

/* An IPv4 address as one of IPv6: ::ffff:192.0.2.1 (RFC 4291, 2.5.5.2). */
#define MAPPED ((u128)0xffff << 32)

/* low..high of what is written; a range is within one family. */
static int interval(struct cursor c, int kind, uint32_t width, int intervals, u128 *low, u128 *high)
{
	if (kind != XK_IP)
		return plain_interval(c, kind, width, intervals, low, high);
	if (memchr(c.at, ':', (size_t)(c.end - c.at)))
		return plain_interval(c, XK_IPV6, 128, intervals, low, high);
	if (!plain_interval(c, XK_IPV4, 32, intervals, low, high))
		return 0;
	*low |= MAPPED;
	*high |= MAPPED;
	return 1;
}

/* Bits that are free in the largest prefix that starts at `low` and does not go beyond `high`. */
static uint32_t free_bits(u128 low, u128 high, uint32_t width)
{
	uint32_t bits = 0;

	while (bits < width) {
		u128 tail = bits + 1 < 128 ? ((u128)1 << (bits + 1)) - 1 : ~(u128)0;

		if ((low & tail) || (low | tail) > high)
			break;
		bits++;
	}
	return bits;
}

static void write_key(uint8_t *key, u128 number, uint32_t size, uint32_t key_bytes)
{
	memset(key + size, 0, key_bytes - size);
	for (uint32_t i = size; i-- > 0; number >>= 8)
		key[i] = (uint8_t)number;
}

int xk_list_parse(const char *text, size_t size, int kind, uint32_t width, int intervals, uint32_t key_bytes,
		  struct xk_list *list, uint8_t *keys, uint32_t *bits, uint32_t *lines, uint32_t max)
{
	uint32_t bytes = (width + 7) / 8;

	while (list->offset < size) {
		const char *start = text + list->offset;
		const char *newline = memchr(start, '\n', size - list->offset);
		size_t length = newline ? (size_t)(newline - start) : size - list->offset;
		struct cursor c = { start, start };
		u128 low, high;

		while (c.end < start + length && *c.end != '#' && *c.end != ';')
			c.end++;
		while (c.end > c.at && blank(c.end[-1]))
			c.end--;
		skip(&c);
		if (c.at < c.end) {
			if (!interval(c, kind, width, intervals, &low, &high)) {
				list->length = (uint32_t)length;
				return 2;
			}
			if (max - list->count < 2 * width) /* the most prefixes that a range can be */
				return 1;
			for (;;) {
				uint32_t free = intervals ? free_bits(low, high, width) : 0;
				u128 last = free < 128 ? low | (((u128)1 << free) - 1) : ~(u128)0;

				write_key(keys + (size_t)list->count * key_bytes, low, bytes, key_bytes);
				bits[list->count] = 8 * bytes - free;
				lines[list->count++] = (uint32_t)list->line + 1;
				if (last >= high)
					break;
				low = last + 1;
			}
		}
		list->line++;
		list->offset += length + !!newline;
	}
	return 0;
}

int xk_keys_join(uint32_t key_bytes, const uint8_t *others, const uint32_t *other_bits, uint32_t m, const uint8_t *keys,
		 const uint32_t *bits, uint32_t n, int64_t *found)
{
	uint32_t at = 0;

	for (uint32_t i = 0; i < n; i++) {
		const uint8_t *key = keys + (size_t)i * key_bytes;
		int order = 1;

		for (; at < m; at++) {
			order = memcmp(others + (size_t)at * key_bytes, key, key_bytes);
			if (!order)
				order = (other_bits[at] > bits[i]) - (other_bits[at] < bits[i]);
			if (order >= 0)
				break;
		}
		found[i] = at < m && !order ? (int64_t)at : -1;
	}
	return 0;
}
