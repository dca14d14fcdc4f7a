/* SPDX-License-Identifier: BSD-2-Clause */
/* pcapng blocks of packets: their options, and the comments that name rules. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include "capture.h"

void xk_free_comments(struct comments *c)
{
	for (struct comments *next; c; c = next) {
		next = c->next;
		free(c->sizes);
		free(c->options);
		free(c);
	}
}

int xk_sink_rules(struct xk_sink *s, uint32_t count, const char *const *texts)
{
	struct comments *c = calloc(1, sizeof(*c));

	if (c && count) {
		c->sizes = calloc(count, sizeof(*c->sizes));
		c->options = calloc(count, sizeof(*c->options));
	}
	if (!c || (count && (!c->sizes || !c->options))) {
		xk_free_comments(c);
		return xk_fail("calloc", ENOMEM);
	}
	for (uint32_t i = 0; i < count; i++) {
		size_t size = strnlen(texts[i], COMMENT_MAX);
		uint16_t head[2] = { 1, (uint16_t)size }; /* opt_comment */

		memcpy(c->options[i], head, 4);
		memcpy(c->options[i] + 4, texts[i], size);
		c->sizes[i] = (uint16_t)(4 + ((size + 3) & ~3u));
	}
	c->count = count;
	c->next = s->comments;
	__atomic_store_n(&s->comments, c, __ATOMIC_RELEASE); /* pairs with comment_of() */
	return 0;
}

static void put_option(struct xk_writer *w, uint16_t code, const void *value, uint16_t size)
{
	uint16_t start[2] = { code, size };

	memcpy(w->options + w->options_size, start, 4);
	memcpy(w->options + w->options_size + 4, value, size);
	w->options_size += 4u + ((size + 3u) & ~3u);
}

void xk_open_options(struct xk_writer *w)
{
	const struct xk_label *label = &w->source->label;
	/* a verdict's first byte says whose it is, 1: Linux_eBPF_TC, 2: Linux_eBPF_XDP; then 64 bits */
	const uint8_t verdict[9] = { label->hook == XK_HOOK_XDP ? 2 : 1 };
	const uint32_t direction = label->outbound ? 2 : 1, queue = 0;

	put_option(w, 2, &direction, 4); /* epb_flags */
	if (label->queues) {
		w->queue_at = w->options_size + 4;
		put_option(w, 6, &queue, 4); /* epb_queue */
	}
	if (label->hook != XK_HOOK_SOCKET) { /* there all packets go on */
		w->verdict_at = w->options_size + 5;
		put_option(w, 7, verdict, 9); /* epb_verdict */
	}
}

/* The opt_comment that names the rule which took a packet; its size, or 0. */
static uint32_t comment_of(const struct xk_sink *s, uint32_t rule, const uint8_t **option)
{
	const struct comments *c = __atomic_load_n(&s->comments, __ATOMIC_ACQUIRE);

	if (!c || rule >= c->count)
		return 0;
	*option = c->options[rule];
	return c->sizes[rule];
}

static void copy_bytes(uint8_t *to, const struct xk_view *v, uint32_t kept)
{
	uint32_t n = kept < v->len ? kept : v->len;

	memcpy(to, v->data, n);
	for (const struct xk_part *part = v->parts; (to += n, kept -= n); part++) {
		n = part->len < kept ? part->len : kept;
		memcpy(to, part->data, n);
	}
}

/*
 * Where in the buffer a block of that time and size goes: behind the others, or where a source mixes its order up in
 * front of younger ones, which move.
 */
static uint8_t *place_of(struct xk_writer *w, uint64_t time, uint32_t size)
{
	struct buffer *b = w->open;
	uint32_t at = b->used;

	while (w->source->disorder_ns && at > b->start) {
		uint32_t before = at - get32(b->data + at - 4);

		if (time_of(b->data + before) <= time)
			break;
		at = before;
	}
	memmove(b->data + at + size, b->data + at, b->used - at);
	b->used += size;
	return b->data + at;
}

void xk_put_block(struct xk_writer *w, const struct xk_view *v)
{
	/* ABORTED, DROP, PASS, TX, REDIRECT as XDP and as TC know them: TC_ACT_SHOT, _OK, _REDIRECT, _REDIRECT. */
	static const uint8_t verdicts[2][5] = { { 2, 2, 0, 7, 7 }, { 0, 1, 2, 3, 4 } };
	uint32_t kept = v->len, padded, size, comment_size;
	const uint8_t *comment = NULL;
	uint8_t *at;

	for (uint32_t i = 0; i < v->more; i++)
		kept += v->parts[i].len;
	if (kept > w->sink->snaplen)
		kept = w->sink->snaplen;
	padded = (kept + 3) & ~3u;
	comment_size = comment_of(w->sink, v->rule, &comment);
	size = 32 + padded + w->options_size + comment_size + 4;
	if (w->open->used + size > BUFFER)
		xk_make_room(w);
	at = place_of(w, v->time_ns, size);
	at = put32(put32(put32(at, 6), size), w->interface);
	at = put32(put32(at, (uint32_t)(v->time_ns >> 32)), (uint32_t)v->time_ns);
	at = put32(put32(at, kept), v->wire_len);
	copy_bytes(at, v, kept);
	memset(at + kept, 0, padded - kept);
	at += padded;
	if (w->queue_at)
		put32(w->options + w->queue_at, v->queue);
	if (w->verdict_at)
		w->options[w->verdict_at] = verdicts[w->source->label.hook == XK_HOOK_XDP][v->verdict < 5 ? v->verdict : 0];
	memcpy(at, w->options, w->options_size);
	at += w->options_size;
	if (comment_size)
		memcpy(at, comment, comment_size);
	put32(put32(at + comment_size, 0), size); /* opt_endofopt */
	if (v->time_ns > w->newest)
		w->newest = v->time_ns;
}
