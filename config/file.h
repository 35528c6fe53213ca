/*
 * Whole small files: configurations, headers, templates. What is larger than a budget is read in pieces by
 * whoever owns the budget, not here.
 */
#ifndef QUIRE_CONFIG_FILE_H
#define QUIRE_CONFIG_FILE_H

#include <stddef.h>

#include "config/err.h"

/* Read a regular file of at most max_bytes. *text gets a NUL after its *bytes bytes; free() it. A directory, a
 * FIFO or a device is refused without being read, so that none can block; a file that changes length while it
 * is read is refused as well. The sentence names the path. */
int file_read(char **text, size_t *bytes, const char *path, size_t max_bytes, struct err *err);

/* Read a file of /proc or /sys to its end: such files do not say how long they are. *text gets a NUL; free() it. What
 * has more than max_bytes bytes is refused, not cut (ERR_TOO_LARGE). */
int file_read_kernel(char **text, const char *path, size_t max_bytes, struct err *err);

/* Make a small file these n bytes, whatever it was: they are written beside it (PATH.new) and synced, then put in its place. On failure
 * it is as it was. */
int file_replace(const char *path, const void *bytes, size_t n, struct err *err);

/* Make a directory, and those above it that are missing, for its owner alone (mode 0700). One that is there is left as it
 * is. */
int file_make_directories(const char *path, struct err *err);

/* Make durable the names that a directory has. */
int file_sync_directory(const char *path, struct err *err);

#endif
