#include "config/mem.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ALIGN = 64, ARENA_BLOCK = 1 << 20 };

static void out_of_memory(size_t bytes)
{
	fprintf(stderr, "quire: out of memory: could not allocate %zu bytes\n", bytes);
	abort();
}

static size_t product(size_t n, size_t bytes)
{
	size_t total;

	if (__builtin_mul_overflow(n, bytes, &total))
		out_of_memory(SIZE_MAX);
	return total;
}

void *xmalloc(size_t n, size_t bytes)
{
	size_t total = product(n, bytes);
	void *p = malloc(total ? total : 1);

	if (!p)
		out_of_memory(total);
	return p;
}

void *xcalloc(size_t n, size_t bytes)
{
	void *p = calloc(n ? n : 1, bytes ? bytes : 1);

	if (!p)
		out_of_memory(product(n, bytes));
	return p;
}

void *xrealloc(void *p, size_t n, size_t bytes)
{
	size_t total = product(n, bytes);
	void *q = realloc(p, total ? total : 1);

	if (!q)
		out_of_memory(total);
	return q;
}

char *xstrndup(const char *s, size_t n)
{
	char *p = xmalloc(n + 1, 1);

	memcpy(p, s, n);
	p[n] = '\0';
	return p;
}

char *xstrdup(const char *s)
{
	return xstrndup(s, strlen(s));
}

char *xasprintf(const char *format, ...)
{
	va_list args;
	char *p;
	int n;

	va_start(args, format);
	n = vsnprintf(NULL, 0, format, args);
	va_end(args);
	if (n < 0)
		out_of_memory(SIZE_MAX);
	p = xmalloc((size_t)n + 1, 1);
	va_start(args, format);
	vsnprintf(p, (size_t)n + 1, format, args);
	va_end(args);
	return p;
}

void *mem_try(size_t n, size_t bytes, const char *what, struct err *err)
{
	size_t total;
	void *p;

	if (__builtin_mul_overflow(n, bytes, &total) || total > SIZE_MAX - ALIGN) {
		err_set(err, ERR_TOO_LARGE, "%s: %zu x %zu bytes is more than any machine has", what, n, bytes);
		return NULL;
	}
	total = (total + ALIGN - 1) / ALIGN * ALIGN;
	p = aligned_alloc(ALIGN, total ? total : ALIGN);
	if (!p)
		err_set(err, ERR_TOO_LARGE, "%s: no memory for %zu bytes", what, total);
	return p;
}

struct block {
	struct block *next;
	size_t used, bytes;
	_Alignas(ALIGN) char data[];
};

struct arena {
	struct block *blocks; /* the one in use is first */
	size_t bytes;
	size_t room; /* of the next block, at least: what the last use needed, so that it fits one block */
};

struct arena *arena_new(void)
{
	return xcalloc(1, sizeof(struct arena));
}

void *arena_alloc(struct arena *a, size_t n, size_t bytes)
{
	size_t total = product(n, bytes);
	struct block *b = a->blocks;
	void *p;

	if (total > SIZE_MAX / 2)
		out_of_memory(total);
	total = (total + ALIGN - 1) / ALIGN * ALIGN;
	if (!b || b->bytes - b->used < total) {
		size_t room = a->room > ARENA_BLOCK ? a->room : ARENA_BLOCK;

		room = total > room ? total : room;
		b = aligned_alloc(ALIGN, sizeof *b + room);
		if (!b)
			out_of_memory(room);
		b->used = 0;
		b->bytes = room;
		b->next = a->blocks;
		a->blocks = b;
	}
	p = b->data + b->used;
	b->used += total;
	a->bytes += total;
	return p;
}

char *arena_strndup(struct arena *a, const char *s, size_t n)
{
	char *p = arena_alloc(a, n + 1, 1);

	memcpy(p, s, n);
	p[n] = '\0';
	return p;
}

static void free_blocks(struct arena *a)
{
	for (struct block *b = a->blocks, *next; b; b = next) {
		next = b->next;
		free(b);
	}
	a->blocks = NULL;
}

void arena_reset(struct arena *a)
{
	if (a->blocks && a->blocks->next) {
		a->room = a->bytes;
		free_blocks(a);
	} else if (a->blocks) {
		a->blocks->used = 0;
	}
	a->bytes = 0;
}

size_t arena_bytes(const struct arena *a)
{
	return a->bytes;
}

void arena_free(struct arena *a)
{
	if (!a)
		return;
	free_blocks(a);
	free(a);
}
