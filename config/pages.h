/*
 * Large arrays that grow: pages of their own from the system, moved by the page table and never copied. Room that nobody
 * has written to costs address space and nothing else, and huge pages are asked for where an array is large.
 */
#ifndef QUIRE_CONFIG_PAGES_H
#define QUIRE_CONFIG_PAGES_H

#include <stddef.h>

#include "config/err.h"

/* Make the array at *p, of old_bytes (0: there is none, *p is NULL), one of new_bytes. What both have stays as it is, new
 * bytes are zero; *p may change. Making one smaller never fails. Otherwise, on failure err is set (ERR_TOO_LARGE)
 * with `what` and the size, and the array is as before. */
int pages_resize(void **p, size_t old_bytes, size_t new_bytes, const char *what, struct err *err);

/* The same size as at the last resize. Takes NULL. */
void pages_free(void *p, size_t bytes);

#endif
