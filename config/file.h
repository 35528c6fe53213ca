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

/* Make a directory, and those above it that are missing, for its owner alone (mode 0700). One that is there is left as it
 * is. */
int file_make_directories(const char *path, struct err *err);

#endif
