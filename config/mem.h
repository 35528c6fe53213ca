/*
 * Memory. Small host allocations abort when there is none left: no caller could do anything sensible. What has
 * a budget (weights, latents, anything whose size comes from a file) uses mem_try, which returns an error.
 * Sizes are always given as count and size, and their product is checked.
 */
#ifndef QUIRE_CONFIG_MEM_H
#define QUIRE_CONFIG_MEM_H

#include <stddef.h>

#include "config/err.h"

void *xmalloc(size_t n, size_t bytes);
void *xcalloc(size_t n, size_t bytes);
void *xrealloc(void *p, size_t n, size_t bytes);
char *xstrdup(const char *s);
/* The n bytes at s, all of which must be there, and a NUL; likewise arena_strndup. */
char *xstrndup(const char *s, size_t n);
char *xasprintf(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* n x bytes, aligned to 64, not cleared; free() it. On failure returns NULL and sets err (ERR_TOO_LARGE), naming
 * `what` and the size. n x bytes = 0 gives a valid pointer. */
void *mem_try(size_t n, size_t bytes, const char *what, struct err *err);

/*
 * An arena: memory that goes all at once, with the query or file that needed it. One thread at a time.
 * Pieces are aligned to 64 bytes and not cleared; a piece lives until arena_reset or arena_free.
 */
struct arena;

struct arena *arena_new(void);
void *arena_alloc(struct arena *a, size_t n, size_t bytes);
char *arena_strndup(struct arena *a, const char *s, size_t n);
/* Forget everything. The next use finds its memory in one block if it needs no more than the last one. */
void arena_reset(struct arena *a);
/* Bytes handed out since the last reset. */
size_t arena_bytes(const struct arena *a);
/* Takes NULL. */
void arena_free(struct arena *a);

#endif
