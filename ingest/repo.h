/*
 * What git knows of a directory: how often each path changed, what it ignores, and the files of a ref. By libgit2; the
 * git program is never run, and neither are hooks, filters, or anything else that a repository may name. Private to
 * ingest/.
 *
 * The repository may be anybody's. Before the library opens it, everything that it will open has been seen, by our own
 * descriptors and without following links, to be a regular file or a directory: a FIFO cannot hang us. (One that takes
 * a file's place in between could; who can do that can as well lock the file.) It must be ours, which the library
 * checks again; it may not include other configuration or borrow objects from elsewhere; and a .git that is a file
 * must be that of a work tree whose repository says so too.
 */
#ifndef QUIRE_INGEST_REPO_H
#define QUIRE_INGEST_REPO_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "config/err.h"
#include "config/mem.h"
#include "ingest/skip.h"

struct repo;

/* The repository whose work tree `dir` is, or lies in; with `ref` also a bare one. ref NULL: HEAD, else a branch, a tag
 * or a commit's id. ERR_NOT_FOUND: there is no repository, or no such ref. ERR_USAGE, ERR_PERMISSION, ERR_FORMAT: there
 * is one that is not read, and why. */
int repo_open(struct repo **out, const char *dir, const char *ref, struct err *err);
/* Takes NULL. */
void repo_close(struct repo *r);

/* The commit, 40 hex digits. */
const char *repo_commit(const struct repo *r);

struct repo_limits {
	int64_t n_commits;
	int64_t ms;
};

/* Count the changes of every path by the history of the commit. Merges do not count: what they merge does. What a limit
 * or a missing commit cuts off is not counted, and *note (static) says so; NULL: all was read.
 * ERR_CANCELLED. */
int repo_count_changes(struct repo *r, const struct repo_limits *limits, const atomic_bool *cancel, const char **note,
		       struct err *err);
/* Of a path relative to the directory; 0: none is known. */
int64_t repo_n_changes(const struct repo *r, const char *path);

/* Patterns that hold in the directory from above it: the user's, those of .git/info/exclude, and the .gitignore files
 * of the directories between the work tree's root and this one, in rising order of precedence. They see paths with
 * `prefix` before them. Valid until repo_close. */
struct repo_ignore {
	const char *prefix;
	const char *text;
	size_t bytes;
};
const struct repo_ignore *repo_ignores(struct repo *r, size_t *n);

/* One directory of the commit: names in no particular order; kind is S_IFDIR, S_IFREG, S_IFLNK or 0 (another
 * repository). Memory is the arena's. -1: it cannot be read, *reason (static) says why. */
struct repo_entry {
	const char *name;
	unsigned kind;
	int64_t bytes;
};
int repo_list(struct repo *r, const char *path, struct arena *a, struct repo_entry **out, size_t *n,
	      const char **reason);

/* A file of the commit: 1 and its bytes (to be freed), 0 and the reason. */
int repo_read(struct repo *r, const char *path, int64_t most, char **text, size_t *bytes,
	      char reason[SKIP_REASON_BYTES]);

#endif
