/* SPDX-License-Identifier: BSD-2-Clause */
/* Programs, maps and links through libbpf.  Its messages are kept per thread and handed out with the error. */
#define _GNU_SOURCE
#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <linux/if_link.h>
#include <linux/membarrier.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "base.h"
#include "xdpkit.h"

struct xk_program {
	struct bpf_object *object;
	struct bpf_program *program; /* the only one, or the first */
};

/* What libbpf said in this thread since words_clear(). */
static _Thread_local char words[4096];
static _Thread_local size_t words_used;

static void words_clear(void)
{
	words_used = 0;
	words[0] = 0;
}

static int words_keep(enum libbpf_print_level level, const char *format, va_list args)
{
	int n;

	if (level == LIBBPF_DEBUG || words_used >= sizeof(words) - 1)
		return 0;
	n = vsnprintf(words + words_used, sizeof(words) - words_used, format, args);
	if (n > 0)
		words_used += (size_t)n < sizeof(words) - words_used ? (size_t)n : sizeof(words) - words_used - 1;
	return n;
}

int xk_program_open(const void *object, size_t size, const char *name, struct xk_program **out)
{
	LIBBPF_OPTS(bpf_object_open_opts, opts, .object_name = name);
	struct xk_program *p = calloc(1, sizeof(*p));

	if (!p)
		return xk_fail("calloc", ENOMEM);
	libbpf_set_print(words_keep);
	words_clear();
	p->object = bpf_object__open_mem(object, size, &opts);
	if (!p->object) {
		int error = errno;

		free(p);
		return xk_fail("bpf_object__open_mem", error);
	}
	p->program = bpf_object__next_program(p->object, NULL);
	if (!p->program) {
		xk_program_close(p);
		return xk_fail("an eBPF object without a program", EINVAL);
	}
	*out = p;
	return 0;
}

int xk_program_set_entries(struct xk_program *p, const char *name, uint32_t entries)
{
	struct bpf_map *map = bpf_object__find_map_by_name(p->object, name);

	if (!map)
		return xk_fail("bpf_object__find_map_by_name", ENOENT);
	if (bpf_map__set_max_entries(map, entries))
		return xk_fail("bpf_map__set_max_entries", errno);
	return 0;
}

int xk_program_has_map(const struct xk_program *p, const char *name)
{
	return bpf_object__find_map_by_name(p->object, name) != NULL;
}

int xk_program_set_map(struct xk_program *p, const char *name, uint32_t type, uint32_t key_size, uint32_t entries)
{
	struct bpf_map *map = bpf_object__find_map_by_name(p->object, name);
	int error;

	if (!map)
		return xk_fail("bpf_object__find_map_by_name", ENOENT);
	error = bpf_map__set_type(map, (enum bpf_map_type)type);
	error = error ? error : bpf_map__set_key_size(map, key_size);
	error = error ? error : bpf_map__set_max_entries(map, entries);
	return error ? xk_fail("bpf_map__set_type", -error) : 0;
}

int xk_program_reuse_map(struct xk_program *p, const char *name, int fd)
{
	struct bpf_map *map = bpf_object__find_map_by_name(p->object, name);
	int error;

	if (!map)
		return xk_fail("bpf_object__find_map_by_name", ENOENT);
	error = bpf_map__reuse_fd(map, fd);
	return error ? xk_fail("bpf_map__reuse_fd", -error) : 0;
}

/* The map that holds a global variable and its offset in the map's only value; NULL if there is none. */
static struct bpf_map *variable(const struct xk_program *p, const char *section, const char *name, size_t size,
				uint32_t *offset)
{
	const struct btf *btf = bpf_object__btf(p->object);
	int id = btf ? btf__find_by_name_kind(btf, section, BTF_KIND_DATASEC) : -ENOENT;
	const struct btf_type *type;
	const struct btf_var_secinfo *var;
	struct bpf_map *map;

	if (id < 0)
		return NULL;
	type = btf__type_by_id(btf, (uint32_t)id);
	var = btf_var_secinfos(type);
	for (int i = 0; i < btf_vlen(type); i++, var++) {
		const char *found = btf__name_by_offset(btf, btf__type_by_id(btf, var->type)->name_off);

		if (strcmp(found, name) || var->size != size)
			continue;
		bpf_object__for_each_map(map, p->object) {
			const char *suffix = strrchr(bpf_map__name(map), '.');

			if (!suffix || strcmp(suffix, section))
				continue;
			*offset = var->offset;
			return var->offset + size <= bpf_map__value_size(map) ? map : NULL;
		}
	}
	return NULL;
}

int xk_program_set_u32(struct xk_program *p, const char *name, uint32_t value)
{
	uint32_t offset;
	struct bpf_map *map = variable(p, ".rodata", name, sizeof(value), &offset);
	size_t size;
	uint8_t *area = map ? bpf_map__initial_value(map, &size) : NULL;

	if (!area)
		return xk_fail("a constant of the eBPF object", ENOENT);
	memcpy(area + offset, &value, sizeof(value));
	return 0;
}

int xk_program_set_u32s(struct xk_program *p, const char *name, const uint32_t *values, uint32_t n)
{
	uint32_t offset;
	struct bpf_map *map = variable(p, ".rodata", name, n * sizeof(*values), &offset);
	size_t size;
	uint8_t *area = map ? bpf_map__initial_value(map, &size) : NULL;

	if (!area)
		return xk_fail("an array of constants of the eBPF object", ENOENT);
	memcpy(area + offset, values, n * sizeof(*values));
	return 0;
}

int xk_program_bind(struct xk_program *p, int ifindex)
{
	const __u32 dev_bound_only = 1u << 6; /* BPF_F_XDP_DEV_BOUND_ONLY, Linux 6.3 */

	bpf_program__set_ifindex(p->program, (__u32)ifindex);
	if (bpf_program__set_flags(p->program, bpf_program__flags(p->program) | dev_bound_only))
		return xk_fail("bpf_program__set_flags", errno);
	return 0;
}

int xk_program_get_u64(const struct xk_program *p, const char *name, uint64_t *value)
{
	uint32_t offset, key = 0;
	struct bpf_map *map = variable(p, ".bss", name, sizeof(*value), &offset);
	uint8_t *area;
	int error = 0;

	if (!map)
		return xk_fail("a variable of the eBPF object", ENOENT);
	area = malloc(bpf_map__value_size(map));
	if (!area)
		return xk_fail("malloc", ENOMEM);
	/* asked of the kernel: the area that libbpf before 1.5 shows is its own copy, from before the load */
	if (bpf_map_lookup_elem(bpf_map__fd(map), &key, area))
		error = xk_fail("bpf(BPF_MAP_LOOKUP_ELEM)", errno);
	else
		memcpy(value, area + offset, sizeof(*value));
	free(area);
	return error;
}

int xk_program_load(struct xk_program *p, char *log, size_t log_size)
{
	const size_t room = 16 << 20; /* untouched pages cost nothing */
	char *buffer = malloc(room);
	int error;
	size_t used;

	if (!buffer)
		return xk_fail("malloc", ENOMEM);
	buffer[0] = 0;
	bpf_program__set_log_buf(p->program, buffer, room);
	words_clear();
	error = bpf_object__load(p->object);
	if (log_size) {
		used = strnlen(buffer, room);
		if (used >= log_size - 1)
			memmove(buffer, buffer + used - (log_size - 1), log_size);
		snprintf(log, log_size, "%s%s", buffer, used ? "" : words);
	}
	bpf_program__set_log_buf(p->program, NULL, 0);
	free(buffer);
	return error ? xk_fail("bpf(BPF_PROG_LOAD)", -error) : 0;
}

int xk_program_missing(const struct xk_program *p, char *name, size_t size)
{
	const struct btf *btf = bpf_object__btf(p->object);
	struct btf *kernel = btf__load_vmlinux_btf();
	int missing = 0;

	if (!kernel)
		return xk_fail("/sys/kernel/btf/vmlinux", errno);
	for (__u32 id = 1; btf && !missing && id < btf__type_cnt(btf); id++) {
		const struct btf_type *type = btf__type_by_id(btf, id);
		const char *function = btf__name_by_offset(btf, type->name_off);

		/* libbpf makes external functions global ones, like ours; but the names of ours do not begin with bpf_ */
		missing = btf_is_func(type) && !strncmp(function, "bpf_", 4) &&
			  btf__find_by_name_kind(kernel, function, BTF_KIND_FUNC) < 0;
		if (missing)
			snprintf(name, size, "%s", function);
	}
	btf__free(kernel);
	return missing;
}

int xk_program_fd(const struct xk_program *p)
{
	return bpf_program__fd(p->program);
}

int xk_program_fd_of(const struct xk_program *p, const char *name)
{
	struct bpf_program *program = bpf_object__find_program_by_name(p->object, name);

	return program ? bpf_program__fd(program) : xk_fail("bpf_object__find_program_by_name", ENOENT);
}

int xk_program_map(const struct xk_program *p, const char *name)
{
	int fd = bpf_object__find_map_fd_by_name(p->object, name);

	return fd < 0 ? xk_fail("bpf_object__find_map_fd_by_name", ENOENT) : fd;
}

int xk_program_map_at(const struct xk_program *p, int index, char *name, size_t size)
{
	struct bpf_map *map;

	bpf_object__for_each_map(map, p->object) {
		if (index--)
			continue;
		snprintf(name, size, "%s", bpf_map__name(map));
		return bpf_map__fd(map);
	}
	return -ENOENT;
}

void xk_program_close(struct xk_program *p)
{
	bpf_object__close(p->object);
	free(p);
}

int xk_program_lines(int prog_fd, struct xk_line *out, int max)
{
	struct bpf_prog_info info = { 0 };
	struct bpf_line_info *lines;
	__u32 size = sizeof(info), count, btf_id;
	struct btf *btf;
	int n = 0;

	if (bpf_obj_get_info_by_fd(prog_fd, &info, &size))
		return xk_fail("bpf(BPF_OBJ_GET_INFO_BY_FD)", errno);
	count = info.nr_line_info;
	btf_id = info.btf_id;
	if (!count || !btf_id)
		return 0;
	lines = calloc(count, sizeof(*lines));
	if (!lines)
		return xk_fail("calloc", ENOMEM);
	info = (struct bpf_prog_info){ .nr_line_info = count,
				       .line_info_rec_size = sizeof(*lines),
				       .line_info = (uintptr_t)lines };
	size = sizeof(info);
	if (bpf_obj_get_info_by_fd(prog_fd, &info, &size)) {
		n = xk_fail("bpf(BPF_OBJ_GET_INFO_BY_FD)", errno);
		goto out_free;
	}
	btf = btf__load_from_kernel_by_id(btf_id);
	if (!btf) {
		n = xk_fail("bpf(BPF_BTF_GET_FD_BY_ID)", errno);
		goto out_free;
	}
	for (; n < max && (__u32)n < count; n++) {
		out[n].instruction = lines[n].insn_off;
		out[n].line = BPF_LINE_INFO_LINE_NUM(lines[n].line_col);
		snprintf(out[n].file, sizeof(out[n].file), "%s", btf__name_by_offset(btf, lines[n].file_name_off));
		snprintf(out[n].text, sizeof(out[n].text), "%s", btf__name_by_offset(btf, lines[n].line_off));
	}
	btf__free(btf);
out_free:
	free(lines);
	return n;
}

int xk_program_info(int prog_fd, struct xk_program_info *out)
{
	struct bpf_prog_info info = { 0 };
	__u32 size = sizeof(info);

	if (bpf_obj_get_info_by_fd(prog_fd, &info, &size))
		return xk_fail("bpf(BPF_OBJ_GET_INFO_BY_FD)", errno);
	*out = (struct xk_program_info){ .id = info.id,
					 .xlated_bytes = info.xlated_prog_len,
					 .jited_bytes = info.jited_prog_len,
					 .verified_instructions = info.verified_insns,
					 .run_time_ns = info.run_time_ns,
					 .run_count = info.run_cnt };
	memcpy(out->name, info.name, sizeof(out->name));
	return 0;
}

int xk_program_by_id(uint32_t id)
{
	int fd = bpf_prog_get_fd_by_id(id);

	return fd < 0 ? xk_fail("bpf(BPF_PROG_GET_FD_BY_ID)", errno) : fd;
}

int xk_program_name(uint32_t id, char name[16])
{
	struct xk_program_info info;
	int fd = xk_program_by_id(id), error;

	if (fd < 0)
		return fd;
	error = xk_program_info(fd, &info);
	close(fd);
	if (!error)
		memcpy(name, info.name, sizeof(info.name));
	return error;
}

int xk_program_has_link(uint32_t id)
{
	for (__u32 link = 0; !bpf_link_get_next_id(link, &link);) {
		struct bpf_link_info info = { 0 };
		__u32 size = sizeof(info);
		int fd = bpf_link_get_fd_by_id(link), error;

		if (fd < 0) {
			if (errno == ENOENT)
				continue; /* closed in this moment */
			return xk_fail("bpf(BPF_LINK_GET_FD_BY_ID)", errno);
		}
		error = bpf_obj_get_info_by_fd(fd, &info, &size);
		close(fd);
		if (!error && info.prog_id == id)
			return 1;
	}
	return errno == ENOENT ? 0 : xk_fail("bpf(BPF_LINK_GET_NEXT_ID)", errno);
}

int xk_pinned(const char *path)
{
	int fd = bpf_obj_get(path);

	return fd < 0 ? xk_fail("bpf(BPF_OBJ_GET)", errno) : fd;
}

int xk_link_xdp(int prog_fd, int ifindex, uint32_t flags)
{
	LIBBPF_OPTS(bpf_link_create_opts, opts, .flags = flags);
	int fd = bpf_link_create(prog_fd, ifindex, BPF_XDP, &opts);

	return fd < 0 ? xk_fail("bpf(BPF_LINK_CREATE)", errno) : fd;
}

int xk_link_tcx(int prog_fd, int ifindex, int egress)
{
	/* Numbers of Linux 6.6 and libbpf 1.3: BPF_TCX_INGRESS, BPF_TCX_EGRESS, BPF_F_BEFORE. */
	LIBBPF_OPTS(bpf_link_create_opts, opts, .flags = 1u << 3);
	int fd = bpf_link_create(prog_fd, ifindex, (enum bpf_attach_type)(egress ? 47 : 46), &opts);

	return fd < 0 ? xk_fail("bpf(BPF_LINK_CREATE, tcx)", errno) : fd;
}

int xk_link_trace(int prog_fd)
{
	int fd = bpf_raw_tracepoint_open(NULL, prog_fd);

	return fd < 0 ? xk_fail("bpf(BPF_RAW_TRACEPOINT_OPEN)", errno) : fd;
}

int xk_link_update(int link_fd, int prog_fd)
{
	return bpf_link_update(link_fd, prog_fd, NULL) ? xk_fail("bpf(BPF_LINK_UPDATE)", errno) : 0;
}

int xk_link_info(int link_fd, uint32_t *ifindex, uint32_t *prog_id)
{
	struct bpf_link_info info = { 0 };
	__u32 size = sizeof(info);

	if (bpf_obj_get_info_by_fd(link_fd, &info, &size))
		return xk_fail("bpf(BPF_OBJ_GET_INFO_BY_FD)", errno);
	*ifindex = info.xdp.ifindex; /* a tcx link has its index in the same place */
	*prog_id = info.prog_id;
	return 0;
}

int xk_attach_reason(int prog_fd, int ifindex, uint32_t flags, char *text, size_t size)
{
	const char *said, *prefix = "Kernel error message: ";
	int error;

	words_clear();
	error = bpf_xdp_attach(ifindex, prog_fd, flags | XDP_FLAGS_UPDATE_IF_NOEXIST, NULL);
	if (!error) {
		LIBBPF_OPTS(bpf_xdp_attach_opts, opts, .old_prog_fd = prog_fd);
		bpf_xdp_detach(ifindex, flags, &opts);
	}
	said = strstr(words, prefix);
	snprintf(text, size, "%s", said ? said + strlen(prefix) : "");
	text[strcspn(text, "\n")] = 0;
	return error;
}

int xk_counters(int map_fd, uint32_t n, uint32_t count, uint64_t *out)
{
	int cpus = libbpf_num_possible_cpus();
	uint64_t *values;

	if (cpus < 0)
		return xk_fail("libbpf_num_possible_cpus", -cpus);
	values = calloc((size_t)cpus * count, sizeof(*values));
	if (!values)
		return xk_fail("calloc", ENOMEM);
	memset(out, 0, (size_t)n * count * sizeof(*out));
	for (uint32_t key = 0; key < n; key++) {
		if (bpf_map_lookup_elem(map_fd, &key, values)) {
			int error = errno;

			free(values);
			return xk_fail("bpf(BPF_MAP_LOOKUP_ELEM)", error);
		}
		for (int cpu = 0; cpu < cpus; cpu++)
			for (uint32_t word = 0; word < count; word++)
				out[key * count + word] += values[(uint32_t)cpu * count + word];
	}
	free(values);
	return 0;
}

int xk_xskmap_set(int map_fd, uint32_t queue, int xsk_fd)
{
	return bpf_map_update_elem(map_fd, &queue, &xsk_fd, 0) ? xk_fail("bpf(BPF_MAP_UPDATE_ELEM, XSKMAP)", errno) : 0;
}

int xk_xskmap_clear(int map_fd, uint32_t queue)
{
	return bpf_map_delete_elem(map_fd, &queue) ? xk_fail("bpf(BPF_MAP_DELETE_ELEM, XSKMAP)", errno) : 0;
}

int xk_quiesce(void)
{
	/* The kernel answers MEMBARRIER_CMD_GLOBAL with synchronize_rcu(); NAPI polls run inside RCU read sections. */
	return syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) ? xk_fail("membarrier", errno) : 0;
}

int xk_test_run(int prog_fd, const void *packet, uint32_t size, uint32_t repeat, void *out, uint32_t *out_size,
		uint32_t *verdict, uint32_t *ns)
{
	LIBBPF_OPTS(bpf_test_run_opts, opts, .data_in = packet, .data_size_in = size, .data_out = out,
		    .data_size_out = out ? *out_size : 0, .repeat = (int)repeat);

	if (bpf_prog_test_run_opts(prog_fd, &opts))
		return xk_fail("bpf(BPF_PROG_TEST_RUN)", errno);
	*verdict = opts.retval;
	*ns = opts.duration;
	if (out)
		*out_size = opts.data_size_out;
	return 0;
}

int xk_test_run_live(int prog_fd, const void *packet, uint32_t size, int ifindex, uint32_t repeat, uint32_t batch)
{
	struct xdp_md context = { .data_end = size, .ingress_ifindex = (__u32)ifindex };
	LIBBPF_OPTS(bpf_test_run_opts, opts, .data_in = packet, .data_size_in = size, .ctx_in = &context,
		    .ctx_size_in = sizeof(context), .repeat = (int)repeat, .flags = BPF_F_TEST_XDP_LIVE_FRAMES,
		    .batch_size = batch);

	return bpf_prog_test_run_opts(prog_fd, &opts) ? xk_fail("bpf(BPF_PROG_TEST_RUN, live frames)", errno) : 0;
}
