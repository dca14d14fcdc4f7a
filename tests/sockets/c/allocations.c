/* SPDX-License-Identifier: BSD-2-Clause */
/* Preloaded: counts what threads other than the first one allocate. */
#define _GNU_SOURCE
#include <stddef.h>
#include <unistd.h>

void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *block, size_t size);
void *__libc_memalign(size_t alignment, size_t size);

static unsigned long others;

unsigned long allocations(void)
{
	return __atomic_load_n(&others, __ATOMIC_RELAXED);
}

static void note(void)
{
	if (gettid() != getpid())
		__atomic_fetch_add(&others, 1, __ATOMIC_RELAXED);
}

void *malloc(size_t size)
{
	note();
	return __libc_malloc(size);
}

void *calloc(size_t count, size_t size)
{
	note();
	return __libc_calloc(count, size);
}

void *realloc(void *block, size_t size)
{
	note();
	return __libc_realloc(block, size);
}

void *aligned_alloc(size_t alignment, size_t size)
{
	note();
	return __libc_memalign(alignment, size);
}
