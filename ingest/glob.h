/*
 * Patterns for paths, as .gitignore has them: `*` and `?` within a name, `**` across directories, [classes], a
 * trailing slash for directories alone, a slash elsewhere to bind the pattern to its directory, `!` to take back.
 * Matching takes time linear in the pattern for each place of the path, whatever the pattern.
 */
#ifndef QUIRE_INGEST_GLOB_H
#define QUIRE_INGEST_GLOB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "config/mem.h"

struct glob {
	const char *pattern;
	bool negated, directory, bound;
};

/* In the order of the file: the last one that matches decides. Start with {0}; memory is the arena's. */
struct globs {
	struct glob *list;
	size_t n, room;
	int64_t *steps;         /* globs_match adds what it did: compared bytes, about; NULL: nobody counts */
};

/* Add each line of an ignore file. */
void globs_parse(struct globs *g, struct arena *a, const char *text, size_t bytes);

enum glob_verdict { GLOB_SILENT, GLOB_TAKEN_BACK, GLOB_MATCHES };

/* `path` is relative to the directory of the globs. */
enum glob_verdict globs_match(const struct globs *g, const char *path, bool is_directory);

/* One pattern against a whole path. */
bool glob_match(const char *pattern, const char *path);

#endif
