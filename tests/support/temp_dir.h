/*
 * A directory of a test's own, gone with all that is in it when the test ends. A test that cannot have one ends
 * there and then: nothing it would show would mean anything.
 */
#ifndef QUIRE_TESTS_SUPPORT_TEMP_DIR_H
#define QUIRE_TESTS_SUPPORT_TEMP_DIR_H

#include <stddef.h>

#include "config/err.h"

/* Make a directory, mode 0700, below $TMPDIR or /tmp. The path is absolute. */
char *temp_dir_new(void);
/* The same on a file system in memory (/dev/shm) where there is one: for tests that change a byte and read it past the
 * page cache some ten thousand times, each of which would wait for the disk. */
char *temp_dir_new_in_memory(void);
/* Remove it with everything below, symbolic links not followed, and free the path. Takes NULL. */
void temp_dir_free(char *dir);
/* It goes when this process ends in any other way too, killed or not: for what would fill a disk. Another process waits for that. */
void temp_dir_guard(const char *dir);

/* Make `to`, with the files of `from`, which holds nothing but files. */
int temp_dir_copy(const char *from, const char *to, struct err *err);

/* dir/name, to be freed. */
char *temp_path(const char *dir, const char *name);
/* Write a file below dir, with the directories that lead to it; returns its path, to be freed. */
char *temp_file(const char *dir, const char *name, const void *bytes, size_t n);
/* The same with a string. */
char *temp_text(const char *dir, const char *name, const char *text);

#endif
