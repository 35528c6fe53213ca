/*
 * Which files of a directory are read, and why the others are not. Private to ingest/.
 *
 * The tree may be anybody's: nothing in it is followed, waited for, or run. Every name is opened beneath the root
 * without symbolic links; what blocks or never ends is not opened at all; names are bytes. The order is that of the
 * bytes of the paths, whatever the file system says.
 *
 * .gitignore and .quireignore are honoured in every directory from the root down, whether or not it is a git work
 * tree; in one, so is what git goes by from above (ingest/repo.h). We read them ourselves: git's library would open
 * them like any other file, and hang on a FIFO.
 *
 * The files may also be those of a commit. Then what git ignores is no question, and .quireignore files are its own.
 */
#ifndef QUIRE_INGEST_WALK_H
#define QUIRE_INGEST_WALK_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "cache/cache.h"
#include "config/err.h"
#include "ingest/repo.h"

struct walk_options {
	const char *root;
	int64_t max_file_bytes; /* of text; ingest/text.h says what else may be larger */
	const char *const *exclude, *const *include; /* globs, NULL-terminated; may be NULL */
	bool without_openat2;   /* as on a kernel that lacks it; for tests */
	struct repo *repo;      /* ignore rules and numbers of changes; lent until walk_free; may be NULL */
	bool from_commit;       /* the files of the repo's commit, and the root is not looked at */
	int64_t match_steps;    /* 0: ignore files may take as much matching as is done in a minute; less, for tests */
};

struct walk_file {
	const char *path;       /* relative to the root */
	int64_t bytes;          /* when it was listed */
	bool included;          /* by a glob of the caller's: text checks do not apply */
	int64_t n_changes;      /* by the history, 0 where none is known */
};

struct walk;

/* ERR_NOT_FOUND, ERR_PERMISSION: the root. ERR_TOO_LARGE: more files than any context has room for, or ignore files that would
 * take forever. ERR_CANCELLED: `cancel`, looked at before each file, was set. Anything below that cannot be read is only
 * skipped. */
int walk_new(struct walk **out, const struct walk_options *opt, const atomic_bool *cancel, struct err *err);
/* Takes NULL. */
void walk_free(struct walk *w);

/* Both in order; valid until walk_free. */
const struct walk_file *walk_files(const struct walk *w, size_t *n);
const struct cache_skipped *walk_skipped(struct walk *w, size_t *n);

/* Add what a reader found. The path must outlive the walk or come from it; the reason is copied. */
void walk_skip(struct walk *w, const char *path, const char *reason);

/* The repository whose commit is read; NULL: the files are on disk. */
struct repo *walk_commit(const struct walk *w);

/* Open a file beneath the root for reading, never blocking; -1 and errno. */
int walk_open(struct walk *w, const char *path);

#endif
