/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * BPF maps from user space: made, filled, read, pinned.  Batches where the kernel has them, single calls where not.
 *
 * Reading order: single maps, then many elements at a time, then what a set needs beyond that.
 */
#define _GNU_SOURCE
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <linux/bpf.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/vfs.h>
#include "base.h"
#include "xdpkit.h"

int xk_map_create(uint32_t type, const char *name, uint32_t key_size, uint32_t value_size, uint32_t entries,
		  uint32_t flags, int inner_fd)
{
	LIBBPF_OPTS(bpf_map_create_opts, opts, .map_flags = flags);
	int fd;

	if (inner_fd >= 0)
		opts.inner_map_fd = (uint32_t)inner_fd;
	fd = bpf_map_create((enum bpf_map_type)type, name, key_size, value_size, entries, &opts);
	return fd < 0 ? xk_fail("bpf(BPF_MAP_CREATE)", -fd) : fd;
}

int xk_map_info(int fd, struct xk_map_info *out)
{
	struct bpf_map_info info = { 0 };
	uint32_t size = sizeof(info);

	if (bpf_obj_get_info_by_fd(fd, &info, &size))
		return xk_fail("bpf(BPF_OBJ_GET_INFO_BY_FD)", errno);
	*out = (struct xk_map_info){
		.type = info.type,
		.id = info.id,
		.key_size = info.key_size,
		.value_size = info.value_size,
		.max_entries = info.max_entries,
		.flags = info.map_flags,
	};
	memcpy(out->name, info.name, sizeof(out->name));
	return 0;
}

int xk_map_by_id(uint32_t id)
{
	int fd = bpf_map_get_fd_by_id(id);

	return fd < 0 ? xk_fail("bpf(BPF_MAP_GET_FD_BY_ID)", -fd) : fd;
}

int xk_map_pin(int fd, const char *path)
{
	return bpf_obj_pin(fd, path) ? xk_fail("bpf(BPF_OBJ_PIN)", errno) : 0;
}

int xk_map_open(const char *path)
{
	int fd = bpf_obj_get(path);

	return fd < 0 ? xk_fail("bpf(BPF_OBJ_GET)", -fd) : fd;
}

int xk_map_lookup(int fd, const void *key, void *value)
{
	return bpf_map_lookup_elem(fd, key, value) ? xk_fail("bpf(BPF_MAP_LOOKUP_ELEM)", errno) : 0;
}

int xk_map_update(int fd, const void *key, const void *value, uint64_t flags)
{
	return bpf_map_update_elem(fd, key, value, flags) ? xk_fail("bpf(BPF_MAP_UPDATE_ELEM)", errno) : 0;
}

int xk_map_delete(int fd, const void *key)
{
	return bpf_map_delete_elem(fd, key) ? xk_fail("bpf(BPF_MAP_DELETE_ELEM)", errno) : 0;
}

/* The kernel has no such batch for maps of this type: ENOTSUPP (524) is its own, and never leaves it by design. */
static int no_batch(int error)
{
	return error == EOPNOTSUPP || error == ENOTSUP || error == 524 || error == EINVAL;
}

/* Elements per call: the kernel copies and looks whether it should give way in between, a signal ends none of it. */
#define BATCH (1u << 16)

int xk_map_update_many(int fd, uint32_t key_size, uint32_t value_size, const uint8_t *keys, const uint8_t *values,
		       uint32_t n, uint32_t *done)
{
	LIBBPF_OPTS(bpf_map_batch_opts, opts);
	int single = 0;

	for (*done = 0; *done < n;) {
		uint32_t count = n - *done < BATCH ? n - *done : BATCH;
		const uint8_t *key = keys + (size_t)*done * key_size, *value = values + (size_t)*done * value_size;
		int error;

		if (single) {
			if (bpf_map_update_elem(fd, key, value, BPF_ANY))
				return xk_fail("bpf(BPF_MAP_UPDATE_ELEM)", errno);
			++*done;
			continue;
		}
		error = bpf_map_update_batch(fd, key, value, &count, &opts) ? errno : 0;
		if (no_batch(error)) {
			single = 1;
		} else if (!error || error == EINTR || error == EAGAIN) {
			*done += count;
		} else {
			/* EFAULT leaves count as it was: then nothing of this call is known to be done */
			*done += error == EFAULT ? 0 : count;
			return xk_fail("bpf(BPF_MAP_UPDATE_BATCH)", error);
		}
	}
	return 0;
}

int xk_map_delete_many(int fd, uint32_t key_size, const uint8_t *keys, uint32_t n, uint32_t *removed)
{
	*removed = 0;
	for (uint32_t i = 0; i < n; i++) {
		/* one by one: a batch ends at the first key that is not there, and costs about as much */
		if (!bpf_map_delete_elem(fd, keys + (size_t)i * key_size))
			++*removed;
		else if (errno != ENOENT)
			return xk_fail("bpf(BPF_MAP_DELETE_ELEM)", errno);
	}
	return 0;
}

int xk_map_read(int fd, uint32_t key_size, uint32_t value_size, struct xk_map_cursor *cursor, uint8_t *keys,
		uint8_t *values, uint32_t max)
{
	LIBBPF_OPTS(bpf_map_batch_opts, opts);
	uint32_t n = 0, count = max;
	uint8_t next[sizeof(cursor->at)];

	if (cursor->end)
		return 0;
	if (key_size > sizeof(cursor->at))
		return xk_fail("a key that long", EINVAL);
	if (!cursor->single) {
		int error = bpf_map_lookup_batch(fd, cursor->started ? cursor->at : NULL, next, keys, values, &count,
						 &opts) ? errno : 0;

		if (!error || error == ENOENT) {
			memcpy(cursor->at, next, sizeof(next));
			cursor->started = 1;
			cursor->end = error == ENOENT;
			return (int)count;
		}
		if (cursor->started || !no_batch(error))
			return xk_fail("bpf(BPF_MAP_LOOKUP_BATCH)", error);
		cursor->single = 1;
	}
	while (n < max) {
		uint8_t *key = keys + (size_t)n * key_size;

		if (bpf_map_get_next_key(fd, cursor->started ? cursor->at : NULL, key)) {
			if (errno != ENOENT)
				return xk_fail("bpf(BPF_MAP_GET_NEXT_KEY)", errno);
			cursor->end = 1;
			break;
		}
		memcpy(cursor->at, key, key_size);
		cursor->started = 1;
		if (!bpf_map_lookup_elem(fd, key, values + (size_t)n * value_size))
			n++;
		else if (errno != ENOENT)
			return xk_fail("bpf(BPF_MAP_LOOKUP_ELEM)", errno);
	}
	return (int)n;
}

int xk_map_find_many(int fd, uint32_t key_size, uint32_t value_size, const uint8_t *keys, uint32_t n, uint8_t *values,
		     uint8_t *found)
{
	for (uint32_t i = 0; i < n; i++) {
		found[i] = !bpf_map_lookup_elem(fd, keys + (size_t)i * key_size, values + (size_t)i * value_size);
		if (!found[i] && errno != ENOENT)
			return xk_fail("bpf(BPF_MAP_LOOKUP_ELEM)", errno);
	}
	return 0;
}

int xk_map_expire_many(int fd, uint32_t key_size, const uint8_t *keys, uint32_t n, uint64_t now_ns, uint32_t *removed)
{
	*removed = 0;
	for (uint32_t i = 0; i < n; i++) {
		const uint8_t *key = keys + (size_t)i * key_size;
		union { struct xk_member member; uint8_t room[XK_MAX_VALUE]; } value;

		if (bpf_map_lookup_elem(fd, key, &value)) {
			if (errno != ENOENT)
				return xk_fail("bpf(BPF_MAP_LOOKUP_ELEM)", errno);
			continue;
		}
		if (!value.member.expires_ns || value.member.expires_ns > now_ns) /* a packet came by: it stays */
			continue;
		if (!bpf_map_delete_elem(fd, key))
			++*removed;
		else if (errno != ENOENT)
			return xk_fail("bpf(BPF_MAP_DELETE_ELEM)", errno);
	}
	return 0;
}

int xk_bpffs(const char *path)
{
	struct statfs fs;

	if (statfs(path, &fs))
		return xk_fail("statfs", errno);
	if ((uint32_t)fs.f_type == BPF_FS_MAGIC)
		return 0;
	return mount("bpf", path, "bpf", 0, "mode=0700") ? xk_fail("mount(bpf)", errno) : 0;
}
