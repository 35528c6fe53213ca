#include "config/pages.h"

#include <assert.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "config/mem.h"

/* LARGE: huge pages are asked for from so many bytes on, since the last one may be all but empty. PAGE: the largest page
 * that a processor we run on has for a small one. */
enum { HUGE_PAGE = 2 << 20, LARGE = 4 << 20, PAGE = 1 << 16 };

static int no_room(const char *what, size_t bytes, struct err *err)
{
	return err_set(err, ERR_TOO_LARGE, "no memory for %s: %zu bytes", what, bytes);
}

#if defined __SANITIZE_ADDRESS__
/* The sanitizer watches what malloc gives out, to the byte, and knows nothing of pages. */
int pages_resize(void **p, size_t old_bytes, size_t new_bytes, const char *what, struct err *err)
{
	void *q = realloc(*p, new_bytes ? new_bytes : 1);

	if (!q)
		return no_room(what, new_bytes, err);
	if (new_bytes > old_bytes)
		memset((char *)q + old_bytes, 0, new_bytes - old_bytes);
	*p = q;
	return 0;
}

void pages_free(void *p, size_t bytes)
{
	(void)bytes;
	free(p);
}
#else
static size_t whole_pages(size_t bytes)
{
	return (bytes + PAGE - 1) / PAGE * PAGE;
}

/* Address space of so many bytes that begins where a huge page could: a huge page is moved as a whole only between two
 * such places. NULL if there is none. */
static char *aligned_space(size_t bytes)
{
	size_t more = bytes + HUGE_PAGE, before, after;
	char *p = mmap(NULL, more, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED)
		return NULL;
	before = (HUGE_PAGE - (uintptr_t)p % HUGE_PAGE) % HUGE_PAGE;
	after = more - before - bytes;
	if (before)
		munmap(p, before);
	if (after)
		munmap(p + before + bytes, after);
	return p + before;
}

/* The whole of the old array and the new pages, somewhere else. NULL if it does not fit anywhere. */
static void *move(void *old, size_t old_bytes, size_t new_bytes)
{
	char *space = aligned_space(new_bytes);
	void *p;

	if (!space)
		return NULL;
	p = old ? mremap(old, old_bytes, new_bytes, MREMAP_MAYMOVE | MREMAP_FIXED, space)
		: mmap(space, new_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	if (p == MAP_FAILED) {
		munmap(space, new_bytes);
		return NULL;
	}
	return p;
}

int pages_resize(void **p, size_t old_bytes, size_t new_bytes, const char *what, struct err *err)
{
	size_t old_size = whole_pages(old_bytes), new_size = whole_pages(new_bytes);
	void *q;

	if (new_bytes > SIZE_MAX / 2)
		return no_room(what, new_bytes, err);
	if (!new_size) {
		pages_free(*p, old_bytes);
		*p = NULL;
		return 0;
	}
	if (*p && new_size <= old_size) {
		/* What is cut off inside the last page must be zero when the array grows again. */
		if (new_bytes < old_bytes && new_size > new_bytes)
			memset((char *)*p + new_bytes, 0, (old_bytes < new_size ? old_bytes : new_size) - new_bytes);
		if (new_size < old_size)
			munmap((char *)*p + new_size, old_size - new_size);
		return 0;
	}
	q = *p ? mremap(*p, old_size, new_size, 0) : MAP_FAILED; /* where it is, if what follows is free */
	if (q == MAP_FAILED)
		q = move(*p, old_size, new_size);
	if (!q)
		return no_room(what, new_bytes, err);
	/* Advice: a kernel without huge pages refuses it. */
	if (new_size >= LARGE)
		(void)madvise(q, new_size, MADV_HUGEPAGE);
	*p = q;
	return 0;
}

void pages_free(void *p, size_t bytes)
{
	if (p)
		munmap(p, whole_pages(bytes));
}
#endif
