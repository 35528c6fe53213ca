/*
 * Opening what lies beneath a directory, however deep, and nothing else: no link is followed, nothing is waited for.
 * Private to ingest/.
 *
 * A path may be longer than the kernel takes at once, and a tree deeper than there are descriptors. The directories
 * that were opened last are held, the deepest ones of the present path, so that a walk in any order that goes deep
 * first opens each directory about once, with openat2 or without.
 */
#ifndef QUIRE_INGEST_BENEATH_H
#define QUIRE_INGEST_BENEATH_H

#include <stdbool.h>
#include <stdint.h>

#include "config/err.h"

struct beneath;

/* ERR_NOT_FOUND, ERR_PERMISSION, ERR_IO: the root. */
int beneath_new(struct beneath **out, const char *root, bool without_openat2, struct err *err);
/* Takes NULL. */
void beneath_free(struct beneath *b);

/* A directory, "" for the root; the descriptor is held here and stays valid until the next call. -1 and errno: ELOOP,
 * EXDEV or ENOTDIR for what leads out or is a link. */
int beneath_directory(struct beneath *b, const char *path);

/* A descriptor of the caller's own; flags as of open, O_NOFOLLOW, O_NONBLOCK and O_CLOEXEC are added. -1 and errno. */
int beneath_open(struct beneath *b, const char *path, int flags);

/* How many system calls have opened something so far: what must not grow as the square of a tree's depth. */
int64_t beneath_n_opens(const struct beneath *b);

#endif
